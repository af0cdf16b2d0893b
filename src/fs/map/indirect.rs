// SPDX-License-Identifier: GPL-2.0

//! Walking the indirect blocks of an inode without extents: a file on an ext2 or ext3 volume, or
//! the inode that owns the blocks reserved for the descriptor table.
//!
//! An indirect block has no magic and no checksum. A pointer is checked against the bounds of the
//! volume and its fixed metadata, and no block may be its own ancestor.

use crate::{
    format::{
        indirect::{self as raw, Way},
        Corrupt,
    },
    fs::{
        disk::{errors::corrupt_inode, fixed},
        map::{node::NodeBytes, run::Run},
        state::Volume,
    },
    kernel_glue::{Buffer, Inode},
};
use kernel::prelude::*;

/// The root of the mapping, which is stored in the inode.
pub(in crate::fs) type Root = [u8; crate::format::inode::BLOCK_BYTES];

/// The way from the inode to a pointer: the indirect blocks on it, as far as there are any.
pub(in crate::fs) struct Path<'a> {
    pub(in crate::fs) way: Way,
    pub(in crate::fs) nodes: KVec<Buffer<'a>>,
}

pub(in crate::fs) fn bad(inode: &Inode<Volume>, block: Option<u64>, what: Corrupt) -> Error {
    corrupt_inode(inode.super_block(), inode.number(), block, what)
}

/// Returns the log2 of the number of pointers in an indirect block.
pub(in crate::fs) fn bits(inode: &Inode<Volume>) -> Result<u32> {
    Ok(u32::from(inode.super_block().volume()?.layout.block_bits) - 2)
}

impl<'a> Path<'a> {
    /// The table of pointers on a level: that of the inode, or an indirect block.
    pub(in crate::fs) fn table<'b>(&'b self, root: &'b Root, level: usize) -> Result<NodeBytes<'b>> {
        NodeBytes::on_level(root, &self.nodes, level)
    }

    /// Returns the pointer to follow at a level.
    pub(in crate::fs) fn pointer(&self, inode: &Inode<Volume>, root: &Root, level: usize) -> Result<u32> {
        raw::pointer(&self.table(root, level)?, self.way.slot(level)).map_err(|what| bad(inode, None, what))
    }

    /// Returns true if all indirect blocks on the path exist.
    pub(in crate::fs) fn is_whole(&self) -> bool {
        self.nodes.len() == self.way.levels
    }

    /// Reads the indirect block that a pointer leads to and goes there.
    pub(in crate::fs) fn descend(&mut self, inode: &'a Inode<Volume>, place: u32) -> Result {
        let sb = inode.super_block();
        let place = u64::from(place);
        check(inode, place, 1)?;
        if self.nodes.iter().any(|node| node.number() == place) {
            return Err(bad(inode, Some(place), Corrupt("indirect block leads to itself")));
        }
        let node = Buffer::read(sb, place).inspect_err(|_| {
            pr_err!(
                "{}: inode {}: block {place} cannot be read\n",
                sb.name(),
                inode.number()
            );
        })?;
        self.nodes.push(node, GFP_KERNEL)?;
        Ok(())
    }
}

/// Fails with `EFSCORRUPTED` if a file cannot own these blocks.
fn check(inode: &Inode<Volume>, place: u64, len: u32) -> Result {
    if !inode.super_block().volume()?.layout.contains(place, len) {
        return Err(bad(inode, None, Corrupt("indirect pointer is off the volume")));
    }
    fixed::check(inode, place, len)
}

/// Walks towards the pointer of file block `block`, as far as there are indirect blocks; `None`
/// beyond the last block that can be mapped.
pub(in crate::fs) fn walk<'a>(inode: &'a Inode<Volume>, root: &Root, block: u32) -> Result<Option<Path<'a>>> {
    let Some(way) = raw::way(bits(inode)?, block) else {
        return Ok(None);
    };
    let mut path = Path {
        way,
        nodes: KVec::with_capacity(raw::LEVELS, GFP_KERNEL)?,
    };
    while !path.is_whole() {
        match path.pointer(inode, root, path.nodes.len())? {
            0 => break,
            place => path.descend(inode, place)?,
        }
    }
    Ok(Some(path))
}

/// Returns the run that contains file block `block`. The caller holds the lock of the mapping,
/// whose root this is.
pub(in crate::fs) fn find_in(inode: &Inode<Volume>, root: &Root, block: u32) -> Result<Run> {
    let hole = |len| Run {
        offset: block,
        len,
        start: None,
    };
    let Some(path) = walk(inode, root, block)? else {
        return Ok(hole(u64::from(u32::MAX - block) + 1));
    };
    let bits = bits(inode)?;
    let level = path.nodes.len();
    let table = path.table(root, level)?;
    let slot = path.way.slot(level);
    let next = |slot| raw::pointer(&table, slot).map_err(|what| bad(inode, None, what));
    // Slots of the inode behind the direct ones lead to other levels.
    let end = match level {
        0 if slot < raw::DIRECT => raw::DIRECT,
        0 => slot + 1,
        _ => 1 << bits,
    };
    let place = next(slot)?;
    let mut len = 1;
    if place == 0 {
        while slot + len < end && next(slot + len)? == 0 {
            len += 1;
        }
        // The first pointer may also cover file blocks before this one.
        let each = path.way.each(bits, level);
        let below: u64 = (level + 1..=path.way.levels)
            .map(|level| u64::from(path.way.slot(level)) * path.way.each(bits, level))
            .sum();
        return Ok(hole(u64::from(len) * each - below));
    }
    while slot + len < end && next(slot + len)? == place.wrapping_add(len) {
        len += 1;
    }
    check(inode, place.into(), len)?;
    Ok(Run {
        offset: block,
        len: len.into(),
        start: Some((place.into(), true)),
    })
}
