// SPDX-License-Identifier: GPL-2.0

//! The orphan file: inodes that are deleted or being cut, and not done with yet.
//!
//! The file is an array of inode numbers, 0 for a free slot; each of its blocks ends in a magic and a checksum. An inode
//! is put into a slot in the handle that takes its last name, and out of it in the one that frees it. What a crash left
//! there the next writable mount frees.
//!
//! Source: `Documentation/filesystems/ext4/orphan.rst`.

use crate::{
    format::{divisor, orphan as raw, Corrupt},
    fs::{
        disk::inode,
        map::mapping,
        state::{Orphans, Volume},
    },
    kernel_glue::{Handle, Inode, SuperBlock},
};
use core::num::NonZero;
use kernel::prelude::*;

/// Blocks of the journal that [`add`] or [`remove`] may write.
pub(in crate::fs) const CREDITS: u32 = 1;

/// Blocks that the file has at most.
const MAX_BLOCKS: u32 = 512;

fn slots(volume: &Volume) -> NonZero<u32> {
    divisor(raw::slots(volume.layout.block_size as usize) as u32)
}

/// Reads the orphan file. Fails with `EFSCORRUPTED` when it cannot be right.
pub(in crate::fs) fn load(sb: &SuperBlock<Volume>) -> Result {
    let volume = sb.volume()?;
    let ino = volume.layout.orphan_inode;
    let file = inode::get(sb, ino)?;
    let seed = file.data()?.seed;
    let count = match u32::try_from(file.size() >> volume.layout.block_bits) {
        Ok(count @ 1..=MAX_BLOCKS) => count,
        _ => return Err(inode::bad(sb, ino, Corrupt("bad size of the orphan file"))),
    };
    let mut blocks = KVec::new();
    for number in 0..count {
        let (place, buffer) = mapping::read_block(&file, number)?
            .ok_or_else(|| inode::bad(sb, ino, Corrupt("hole in the orphan file")))?;
        raw::verify(&volume.layout, place, &buffer, seed).map_err(|what| inode::bad(sb, ino, what))?;
        blocks.push(buffer, GFP_KERNEL)?;
    }
    let mut orphans = volume.orphans.lock();
    orphans.blocks = blocks;
    orphans.seed = seed;
    Ok(())
}

/// Lets go of the orphan file; answers whether it held nothing.
pub(in crate::fs) fn unload(volume: &Volume) -> bool {
    let mut orphans = volume.orphans.lock();
    let blocks = core::mem::take(&mut orphans.blocks);
    let empty = blocks.iter().all(|block| raw::inodes(block).all(|ino| ino == 0));
    drop(orphans);
    empty
}

fn set(handle: &Handle, sb: &SuperBlock<Volume>, orphans: &mut Orphans, slot: u32, ino: u32) -> Result {
    let volume = sb.volume()?;
    let each = slots(volume);
    let seed = orphans.seed;
    let buffer = orphans.blocks.get_mut((slot / each) as usize).ok_or(EIO)?;
    let place = buffer.number();
    let mut bytes = handle.write(buffer)?;
    raw::set(&mut bytes, (slot % each) as usize, ino)
        .and_then(|()| raw::seal(&volume.layout, place, &mut bytes, seed))
        .map_err(|what| inode::bad(sb, volume.layout.orphan_inode, what))
}

/// Puts an inode into the orphan file, if it is not there.
///
/// Fails with `ENOSPC` when all slots are taken.
pub(in crate::fs) fn add(handle: &Handle, inode: &Inode<Volume>) -> Result {
    let sb = inode.super_block();
    let volume = sb.volume()?;
    let data = inode.data()?;
    if data.orphan().is_some() {
        return Ok(());
    }
    let mut orphans = volume.orphans.lock();
    let all = (slots(volume).get() * orphans.blocks.len() as u32).max(1);
    let first = orphans.next;
    for step in 0..all {
        let slot = (first + step) % all;
        let block = orphans.blocks.get((slot / slots(volume)) as usize).ok_or(EIO)?;
        if raw::inodes(block).nth((slot % slots(volume)) as usize) == Some(0) {
            set(handle, sb, &mut orphans, slot, inode.number())?;
            orphans.next = (slot + 1) % all;
            data.set_orphan(Some(slot));
            return Ok(());
        }
    }
    pr_err!("{}: the orphan file is full\n", sb.name());
    Err(ENOSPC)
}

/// Takes an inode out of the orphan file, if it is there.
pub(in crate::fs) fn remove(handle: &Handle, inode: &Inode<Volume>) -> Result {
    let sb = inode.super_block();
    let data = inode.data()?;
    let Some(slot) = data.orphan() else {
        return Ok(());
    };
    let volume = sb.volume()?;
    let mut orphans = volume.orphans.lock();
    set(handle, sb, &mut orphans, slot, 0)?;
    data.set_orphan(None);
    Ok(())
}
