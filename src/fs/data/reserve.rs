// SPDX-License-Identifier: GPL-2.0

//! Preallocation, punching holes, and zeroing ranges.
//!
//! A hole is punched in pieces of one extent and one handle each, from front to back. Partial
//! blocks at its ends are zeroed in the page cache first; cached data of the rest is written back
//! and dropped, with page faults blocked. A range is zeroed by punching a hole and filling it with
//! unwritten blocks; if there is no space for them, the range nevertheless reads as zeroes.

use crate::{
    fs::{
        alloc::{balloc, space, windows::Holder},
        data::{cow, file, holes, truncate},
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

/// Page size in bytes.
pub(in crate::fs) const PAGE: u64 = kernel::page::PAGE_SIZE as u64;

/// Performs a `fallocate` operation on a range of bytes of a file.
///
/// # Errors
///
/// `ENOSPC`, in which case the part done so far stays done; `EFBIG`; `EOPNOTSUPP` for anything but
/// holes in a file without extents.
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
    // The blocks right behind the file are wanted now.
    balloc::end_window(inode.super_block(), Holder::Inode(inode.number()))?;
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

/// Stores the inode with new times.
fn store(inode: &Inode<Volume>) -> Result {
    inode.touch(true);
    let handle = inode.super_block().volume()?.begin(inode::STORE_CREDITS, 0)?;
    inode::store(&handle, inode, Part::Attributes)?;
    handle.stop()
}

/// Allocates blocks for the holes in the file blocks from `from` to before `to`.
fn allocate(inode: &Inode<Volume>, from: u32, to: u32) -> Result {
    let data = inode.data()?;
    let mut at = from;
    while at < to {
        if is_dying() {
            return Err(EINTR);
        }
        if cow::is_reserved(inode, at)? {
            at += holes::settle(inode, at, to - at)?;
            continue;
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

/// Returns the first file block after a run.
fn next(offset: u32, len: u64) -> u32 {
    u32::try_from(u64::from(offset).saturating_add(len)).unwrap_or(u32::MAX)
}

/// Punches a hole into a range of bytes. The inode is locked, and page faults are blocked.
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
    // Partial blocks at both ends, or within one block.
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

/// Maximum number of changes of owners in a step of [`make_hole`]: the freed blocks, in two groups,
/// and nodes of the extent tree.
const HOLE_CHANGES: u32 = 6;

/// Gives up the blocks of the file from file block `from` to before `to`.
pub(in crate::fs) fn make_hole(inode: &Inode<Volume>, from: u32, to: u32) -> Result {
    let volume = inode.super_block().volume()?;
    let data = inode.data()?;
    let most = space::give_at_once(volume, volume.layout.blocks_per_group);
    let credits = extent_tree::REPLACE_CREDITS
        + inode::STORE_CREDITS
        + space::credits(volume, HOLE_CHANGES)
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
            // Blocks are freed only after their pointers are removed.
            let done = cut.and_then(|cut| cow::give_old(handle, inode, cut).map(|()| cut.len));
            change.end(done)
        })?;
    }
    Ok(())
}
