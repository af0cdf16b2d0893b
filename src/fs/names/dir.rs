// SPDX-License-Identifier: GPL-2.0

//! Finding and listing the names in a directory.
//!
//! Every block of a directory is walked as a chain of entries. The index of a hashed directory is not used: its blocks
//! hold no names, so that the walk passes through them.
//!
//! A position in a directory is the byte of the entry to go on from. A block is always walked from its start, so that a
//! position inside an entry that is gone leads to the next one.

use crate::{
    format::{
        self,
        dir::{Entries, NAME_LEN},
        inode::flags,
        Corrupt,
    },
    fs::{
        disk::{errors::corrupt_inode, inode},
        map::mapping,
        state::Volume,
    },
    kernel_glue::{is_dying, name_too_long, stale, Buffer, DirEmitter, Inode, InodeRef},
};
use kernel::{prelude::*, sync::atomic::Relaxed};

/// The system directory, in the root; hidden while we mount the volume, unless a user made it.
pub(in crate::fs) const SYSTEM_DIR: &[u8] = b".rext4";

/// `DT_*` of each file type of an entry.
const TYPES: [u8; 8] = [0, 8, 4, 2, 6, 1, 12, 10];

pub(in crate::fs) fn is_hidden(dir: &Inode<Volume>, name: &[u8]) -> bool {
    let is_name = dir.number() == format::inode::ROOT && name == SYSTEM_DIR;
    let volume = dir.super_block().volume();
    is_name && volume.is_ok_and(|volume| !volume.foreign_system_dir.load(Relaxed))
}

/// Blocks of a directory, which is always whole ones.
pub(in crate::fs) fn blocks(dir: &Inode<Volume>) -> Result<u32> {
    let layout = &dir.super_block().volume()?.layout;
    let whole = dir.size() % u64::from(layout.block_size.max(1)) == 0;
    match u32::try_from(dir.size() >> layout.block_bits) {
        Ok(blocks) if whole && u64::from(blocks) <= layout.blocks => Ok(blocks),
        _ => Err(inode::bad(
            dir.super_block(),
            dir.number(),
            Corrupt("bad directory size"),
        )),
    }
}

/// Reads a block of a directory and checks its checksum. Answers with its number on the volume, too.
pub(in crate::fs) fn read_block(dir: &Inode<Volume>, block: u32) -> Result<(u64, Buffer<'_>)> {
    let sb = dir.super_block();
    // Were holes passed over, a wrong size could have one walk through four billion of them.
    let (place, buffer) = mapping::read_block(dir, block)?
        .ok_or_else(|| inode::bad(sb, dir.number(), Corrupt("hole in a directory")))?;
    let data = dir.data()?;
    if !buffer.is_verified() {
        let bytes = buffer.bytes()?;
        let indexed = data.flags() & flags::INDEX != 0 && format::dir::is_index(&bytes, block == 0);
        if !indexed {
            format::dir::verify(&sb.volume()?.layout, &bytes, data.seed)
                .map_err(|what| corrupt_inode(sb, dir.number(), Some(place), what))?;
            buffer.set_verified();
        }
    }
    Ok((place, buffer))
}

/// Reads a block of a directory for somebody who goes through all of them, and has changed nothing.
///
/// Fails with `EINTR` when the task was killed: a damaged directory may be very long.
pub(in crate::fs) fn walk_block(dir: &Inode<Volume>, block: u32) -> Result<(u64, Buffer<'_>)> {
    match block > 0 && is_dying() {
        true => Err(EINTR),
        false => read_block(dir, block),
    }
}

/// Finds a name.
pub(in crate::fs) fn lookup(dir: &Inode<Volume>, name: &[u8]) -> Result<Option<InodeRef<Volume>>> {
    if name.len() > NAME_LEN {
        return Err(name_too_long());
    }
    if is_hidden(dir, name) {
        return Ok(None);
    }
    find(dir, name)
}

/// Finds a name, also one that is hidden.
pub(in crate::fs) fn find(dir: &Inode<Volume>, name: &[u8]) -> Result<Option<InodeRef<Volume>>> {
    let sb = dir.super_block();
    let layout = &sb.volume()?.layout;
    for number in 0..blocks(dir)? {
        let (place, block) = walk_block(dir, number)?;
        let block = block.into_bytes()?;
        let bad = |what| corrupt_inode(sb, dir.number(), Some(place), what);
        for entry in Entries::new(layout, &block) {
            let entry = entry.map_err(bad)?;
            if entry.inode == 0 || entry.name != name {
                continue;
            }
            return match inode::get_named(sb, entry.inode) {
                // A name whose inode is not in use.
                Err(error) if error == stale() => Err(bad(Corrupt("a name for an inode that is free"))),
                found => found.map(Some),
            };
        }
    }
    Ok(None)
}

/// Hands out the entries from the position on.
pub(in crate::fs) fn read(dir: &Inode<Volume>, out: &mut DirEmitter<'_>) -> Result {
    let sb = dir.super_block();
    let layout = &sb.volume()?.layout;
    let first = u32::try_from(out.position() >> layout.block_bits).unwrap_or(u32::MAX);
    for number in first..blocks(dir)? {
        let start = u64::from(number) << layout.block_bits;
        let (place, block) = walk_block(dir, number)?;
        let block = block.into_bytes()?;
        for entry in Entries::new(layout, &block) {
            let entry = entry.map_err(|what| corrupt_inode(sb, dir.number(), Some(place), what))?;
            let position = start + entry.offset as u64;
            if position < out.position() || entry.inode == 0 || is_hidden(dir, entry.name) {
                continue;
            }
            out.set_position(position);
            let file_type = TYPES.get(usize::from(entry.file_type)).copied().unwrap_or(0);
            if !out.emit(entry.name, entry.inode, u32::from(file_type)) {
                return Ok(());
            }
            // Behind this entry, wherever the next one starts.
            out.set_position(position + 1);
        }
        out.set_position(start + u64::from(layout.block_size));
    }
    Ok(())
}
