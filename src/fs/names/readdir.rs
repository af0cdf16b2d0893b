// SPDX-License-Identifier: GPL-2.0

//! Listing the names in a directory.
//!
//! A directory with an index, or of one block, is read in the order of the hashes of its names, as
//! stock ext4 does. The position is the hash of the next name, which stays valid when names are
//! added and removed, blocks are split and an index is created. Names of one hash, which may be in
//! several leaves, are sorted together.
//!
//! Any other directory is read block by block, and the position is the offset of the next entry. A
//! block is always walked from its start, so that a position inside an entry that was removed leads
//! to the next entry.

use crate::{
    format::{
        dir::Entries,
        htree::{Hash, Hasher},
        Corrupt,
    },
    fs::{
        disk::errors::corrupt_inode,
        names::{
            dir::is_hidden,
            dir_block::{blocks, read_block, read_leaf, walk_block},
            htree::{self, Next},
        },
        state::Volume,
    },
    kernel_glue::{corrupted, is_dying, Buffer, DirEmitter, Inode},
    sort,
};
use kernel::prelude::*;

/// `DT_*` of each file type of an entry.
const TYPES: [u8; 8] = [0, 8, 4, 2, 6, 1, 12, 10];

/// The place of `..` in the order of hashes; `.` has 0.
const PARENT: u32 = 2;

fn type_of(file_type: u8) -> u32 {
    TYPES.get(usize::from(file_type)).copied().unwrap_or(0).into()
}

/// Emits the entries from the position on.
pub(in crate::fs) fn read(dir: &Inode<Volume>, out: &mut DirEmitter<'_>) -> Result {
    if is_by_hash(dir)? {
        if by_hash(dir, out)? {
            return Ok(());
        }
        // The index is damaged. A hash leads nowhere without it.
        if out.position() > dir.size() {
            return Err(corrupted());
        }
    }
    by_block(dir, out)
}

/// Returns true if the positions in a directory are hashes.
pub(in crate::fs) fn is_by_hash(dir: &Inode<Volume>) -> Result<bool> {
    Ok(htree::is_usable(dir)? || htree::is_wanted(dir)?)
}

/// A name in the order of hashes.
#[derive(Clone, Copy)]
struct Name {
    hash: Hash,
    /// Orders names of one hash.
    tie: u32,
    /// Which of the blocks it is in, and where.
    block: u32,
    offset: u32,
}

impl Name {
    fn place(&self) -> Place {
        Place {
            hash: self.hash.major,
            rest: u64::from(self.hash.minor) << 32 | u64::from(self.tie),
        }
    }
}

/// A place in the order of hashes: the first hash, and all that orders names for which it is equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    hash: u32,
    rest: u64,
}

fn hash_of(hasher: &Hasher, name: &[u8]) -> Hash {
    let (major, minor) = match name {
        b"." => (0, 0),
        b".." => (PARENT, 0),
        _ => return hasher.hash(name),
    };
    Hash { major, minor }
}

/// FNV-1a of a name.
fn tie_of(name: &[u8]) -> u32 {
    name.iter().fold(0x811c_9dc5, |tie: u32, &byte| {
        (tie ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

/// Emits the entries in the order of their hashes. Returns false if the index is damaged.
fn by_hash(dir: &Inode<Volume>, out: &mut DirEmitter<'_>) -> Result<bool> {
    let layout = &dir.super_block().volume()?.layout;
    let Some((hash, minor)) = out.hash_position() else {
        return Ok(true);
    };
    let mut from = Place {
        hash,
        rest: (u64::from(minor) << 32).max(out.passed()),
    };
    let (mut blocks, mut names) = (KVec::new(), KVVec::new());
    if !htree::is_usable(dir)? {
        let hasher = Hasher::default_of(layout).ok_or(EIO)?;
        blocks.push(read_block(dir, 0)?, GFP_KERNEL)?;
        if emit(dir, out, &hasher, &blocks, &mut names, from)? {
            out.set_end();
        }
        return Ok(true);
    }
    let Some(mut path) = htree::probe(dir, |_| hash)? else {
        return Ok(false);
    };
    let hasher = path.hasher;
    if hash <= PARENT {
        // The root has the names `.` and `..`.
        blocks.push(read_block(dir, 0)?, GFP_KERNEL)?;
    }
    loop {
        if is_dying() {
            return Err(EINTR);
        }
        blocks.push(read_leaf(dir, path.leaf)?, GFP_KERNEL)?;
        let next = match htree::advance(dir, &mut path, None)? {
            // The leaf goes on with names of the same hash.
            Next::Leaf(hash) if hash & 1 != 0 => continue,
            Next::Leaf(hash) => Some(hash),
            Next::End => None,
            Next::Damaged => return Err(corrupted()),
        };
        if !emit(dir, out, &hasher, &blocks, &mut names, from)? {
            return Ok(true);
        }
        let Some(hash) = next else { break };
        blocks.clear();
        from = from.max(Place { hash, rest: 0 });
        out.set_hash_position(from.hash, (from.rest >> 32) as u32);
    }
    out.set_end();
    Ok(true)
}

/// Emits the entries of some blocks in the order of their hashes, from a place on. Returns false
/// when there is no room for more. `names` is scratch space.
fn emit(
    dir: &Inode<Volume>,
    out: &mut DirEmitter<'_>,
    hasher: &Hasher,
    blocks: &[(u64, Buffer<'_>)],
    names: &mut KVVec<Name>,
    from: Place,
) -> Result<bool> {
    let sb = dir.super_block();
    let layout = &sb.volume()?.layout;
    names.clear();
    for (number, (place, block)) in blocks.iter().enumerate() {
        let bad = |what| corrupt_inode(sb, dir.number(), Some(*place), what);
        for entry in Entries::new(layout, &block.bytes()?) {
            let entry = entry.map_err(bad)?;
            if entry.inode == 0 || is_hidden(dir, entry.name) {
                continue;
            }
            if !entry.has_valid_name() {
                return Err(bad(Corrupt("bad directory name")));
            }
            let name = Name {
                hash: hash_of(hasher, entry.name),
                tie: tie_of(entry.name),
                block: number as u32,
                offset: entry.offset as u32,
            };
            if name.place() >= from {
                names.push(name, GFP_KERNEL)?;
            }
        }
    }
    sort::by_key(names, Name::place);
    for name in names.iter() {
        let (_, block) = blocks.get(name.block as usize).ok_or(EIO)?;
        let bytes = block.bytes()?;
        let entry = Entries::at(layout, &bytes, name.offset as usize).next();
        let entry = entry.and_then(core::result::Result::ok).ok_or(EIO)?;
        out.set_hash_position(name.hash.major, name.hash.minor);
        if !out.emit(entry.name, entry.inode, type_of(entry.file_type)) {
            return Ok(false);
        }
        // If the next name has the same position, a later call goes on behind this one.
        out.set_passed(name.place().rest.saturating_add(1));
    }
    Ok(true)
}

/// Emits the entries block by block.
fn by_block(dir: &Inode<Volume>, out: &mut DirEmitter<'_>) -> Result {
    let sb = dir.super_block();
    let layout = &sb.volume()?.layout;
    let first = u32::try_from(out.position() >> layout.block_bits).unwrap_or(u32::MAX);
    for number in first..blocks(dir)? {
        let start = u64::from(number) << layout.block_bits;
        let (place, block) = walk_block(dir, number)?;
        let block = block.into_bytes()?;
        let bad = |what| corrupt_inode(sb, dir.number(), Some(place), what);
        for entry in Entries::new(layout, &block) {
            let entry = entry.map_err(bad)?;
            let position = start + entry.offset as u64;
            if position < out.position() || entry.inode == 0 || is_hidden(dir, entry.name) {
                continue;
            }
            if !entry.has_valid_name() {
                return Err(bad(Corrupt("bad directory name")));
            }
            out.set_position(position);
            if !out.emit(entry.name, entry.inode, type_of(entry.file_type)) {
                return Ok(());
            }
            // Behind this entry, wherever the next one starts.
            out.set_position(position + 1);
        }
        out.set_position(start + u64::from(layout.block_size));
    }
    Ok(())
}
