// SPDX-License-Identifier: GPL-2.0

//! Allocating blocks of files in advance, and giving back blocks in their middle.
//!
//! A hole is made in pieces, one extent and one handle each, from the front to the back. Parts of blocks at its ends are
//! zeroed in the page cache before; all that is cached of the rest is written out and dropped, with faults kept out. To
//! zero a range is to make a hole of it and fill that with unwritten blocks: should there be no room for them, the range
//! reads as zeroes nevertheless.

use crate::{
    fs::{
        alloc::space,
        data::{cow, file, truncate},
        disk::inode::{self, Part},
        map::{
            change::{self, MapChange},
            extent_tree, mapping,
        },
        state::Volume,
    },
    kernel_glue::{is_dying, Inode, Locked, Reserve},
};
use kernel::prelude::*;

/// Bytes of a page.
pub(in crate::fs) const PAGE: u64 = kernel::page::PAGE_SIZE as u64;

/// Does this to a range of bytes of a file.
///
/// Fails with `ENOSPC`, with what is done until then staying done; with `EFBIG`, and with `EOPNOTSUPP` for all but holes in a
/// file that is not mapped by extents.
pub(in crate::fs) fn reserve(inode: &Locked<Volume>, how: Reserve, position: u64, length: u64) -> Result {
    if how != Reserve::Punch {
        file::has_extents(inode)?;
    }
    let end = position.checked_add(length).ok_or(EFBIG)?;
    let bits = inode.super_block().volume()?.layout.block_bits;
    let block = |byte: u64| u32::try_from(byte).map_err(|_| EFBIG);
    let (first, last) = (block(position >> bits)?, block(end.div_ceil(1 << bits))?);
    let grows = match how {
        Reserve::Allocate { keep_size } | Reserve::Zero { keep_size } | Reserve::Unshare { keep_size } => {
            !keep_size && end > inode.size()
        }
        Reserve::Punch => false,
    };
    if grows {
        inode.check_size(end)?;
    }
    let _faults = inode.lock_faults();
    match how {
        Reserve::Allocate { .. } => allocate(inode, first, last)?,
        Reserve::Punch => punch(inode, position, end)?,
        Reserve::Zero { .. } => {
            punch(inode, position, end)?;
            allocate(inode, first, last)?;
        }
        Reserve::Unshare { .. } => {
            inode.unshare(position..end)?;
            inode.write_out(position..end)?;
            allocate(inode, first, last)?;
        }
    }
    if grows {
        return truncate::set_size(inode, end);
    }
    store(inode)
}

/// The times have changed.
fn store(inode: &Inode<Volume>) -> Result {
    inode.touch(true);
    let handle = inode.super_block().volume()?.begin(inode::STORE_CREDITS, 0)?;
    inode::store(&handle, inode, Part::Attributes)?;
    handle.stop()
}

/// Sees to it that the file blocks from `from` to before `to` have blocks.
fn allocate(inode: &Inode<Volume>, from: u32, to: u32) -> Result {
    let data = inode.data()?;
    let mut at = from;
    while at < to {
        if is_dying() {
            return Err(EINTR);
        }
        let run = mapping::find_in(inode, &data.root.read(), at)?;
        if run.start.is_none() {
            file::fill(inode, at, to - at)?;
            continue;
        }
        at = next(run.offset, run.len);
    }
    Ok(())
}

/// The file block behind a run.
fn next(offset: u32, len: u64) -> u32 {
    u32::try_from(u64::from(offset).saturating_add(len)).unwrap_or(u32::MAX)
}

/// Makes a hole of a range of bytes. The inode and its faults are locked.
fn punch(inode: &Locked<Volume>, position: u64, end: u64) -> Result {
    let bits = inode.super_block().volume()?.layout.block_bits;
    let size = 1u64 << bits;
    let unit = size.max(PAGE);
    let around = position / unit * unit..end.div_ceil(unit).saturating_mul(unit);
    inode.write_out(around.clone())?;
    inode.drop_cache(around);
    let (first, last) = (position.div_ceil(size), end >> bits);
    if first < last {
        let block = |block: u64| u32::try_from(block).unwrap_or(u32::MAX);
        make_hole(inode, block(first), block(last))?;
    }
    // Parts of blocks at both ends, or of one.
    let end = end.min(inode.size());
    let (head, tail) = (first * size, last * size);
    if head > tail {
        return inode.zero(position..end.max(position));
    }
    if position < head.min(end) {
        inode.zero(position..head.min(end))?;
    }
    if tail.max(position) < end {
        inode.zero(tail.max(position)..end)?;
    }
    Ok(())
}

/// Gives back what the file has from file block `from` to before `to`.
pub(in crate::fs) fn make_hole(inode: &Inode<Volume>, from: u32, to: u32) -> Result {
    let volume = inode.super_block().volume()?;
    let data = inode.data()?;
    let most = space::give_at_once(volume, volume.layout.blocks_per_group);
    let credits = extent_tree::REPLACE_CREDITS
        + inode::STORE_CREDITS
        + space::credits(volume, 6)
        + space::give_credits(volume);
    let mut at = from;
    cow::drop_staged(inode, from, to)?;
    while at < to {
        let run = mapping::find_in(inode, &data.root.read(), at)?;
        if run.start.is_none() {
            at = next(run.offset, run.len);
            continue;
        }
        at += change::with_frees(volume, || {
            let mut change = MapChange::begin(inode, credits, extent_tree::REMOVE_REVOKES)?;
            let (handle, root) = change.parts()?;
            let cut = mapping::cut(handle, inode, root, at, (to - at).min(most));
            // Blocks are free only once nothing leads to them.
            let done = cut.and_then(|cut| cow::give_old(handle, inode, cut).map(|()| cut.len));
            change.end(done)
        })?;
    }
    Ok(())
}
