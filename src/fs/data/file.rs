// SPDX-License-Identifier: GPL-2.0

//! Allocating blocks when files are written to, and recording when the data is on disk.
//!
//! Writes to shared blocks are handled by [`cow`], writes to holes by [`holes`].
//!
//! Blocks for holes are only reserved in memory when they are written to ([`holes`]); those that
//! were allocated in advance are unwritten. When the I/O is complete, one handle maps or converts
//! them and increases the file's size on disk: the size never includes data that is not on disk,
//! and stale data never becomes visible.
//!
//! A partial write splits an unwritten extent, which may require another mapping node, at a time
//! when a failed allocation can no longer be reported. The node reserve serves this purpose. Once
//! it is in use, an unwritten extent (of a preallocated file) is zeroed on disk and converted as a
//! whole before it is written to; a page fault, which cannot wait for that, fails.

use crate::{
    format::extent::{self, Extent},
    fs::{
        alloc::{balloc, space},
        data::{cow, holes},
        disk::inode,
        map::{
            change::{self, MapChange},
            extent_tree, extents, mapping,
            run::Run,
        },
        owners::OwnerKind,
        state::Volume,
    },
    kernel_glue::{insist, unsupported, Change, Inode, Target, Written},
};
use kernel::prelude::*;

/// Maximum number of blocks allocated at a time.
const AT_ONCE: u32 = 2048;

/// Returns where the first of the bytes are to be written, and the range around them for which this
/// holds; `None` if [`allocate`] has to be called first.
///
/// The caller has locked the inode or, on a fault, the page of these bytes.
pub(in crate::fs) fn target(
    inode: &Inode<Volume>,
    position: u64,
    length: u64,
    change: Change,
) -> Result<Option<Target>> {
    let volume = inode.super_block().volume()?;
    let (from, want) = mapping::blocks(inode, position, length)?;
    let run = mapping::of_block(inode, from)?;
    let writes = !matches!(change, Change::Zero | Change::Unshare);
    Ok(match run.start {
        Some((_, true)) => {
            let whole = (position | length) & ((1 << volume.layout.block_bits) - 1) == 0;
            return cow::target(inode, run, from, want, change, whole);
        }
        None if writes => None,
        Some((_, false)) if writes && must_settle(inode, from)? => None,
        _ => Some(Target {
            place: mapping::in_bytes(volume, run, false),
            old: None,
        }),
    })
}

/// Ensures that the first of the bytes, and more if that is cheap, have blocks to be written to.
///
/// The caller has locked the inode or, on a fault, the page of these bytes.
///
/// # Errors
///
/// `ENOSPC`; `EFBIG` beyond the maximum size; `ENOTBLK` when the write must go through the page
/// cache.
pub(in crate::fs) fn allocate(inode: &Inode<Volume>, position: u64, length: u64, change: Change) -> Result {
    let data = inode.data()?;
    let (from, want) = mapping::blocks(inode, position, length)?;
    let found = mapping::find_in(inode, &data.root.read(), from)?;
    match found.start {
        Some((_, false)) if must_settle(inode, from)? => match change {
            Change::Fault => Err(ENOSPC),
            Change::Direct => Err(ENOTBLK),
            _ => settle(inode, from, found),
        },
        Some((_, true)) => cow::stage(inode, from, want, change),
        Some(_) => Ok(()),
        None => match reserve(inode, from, want.min(AT_ONCE)) {
            // While a page is locked, do not wait for other inodes.
            Err(ENOSPC) if change != Change::Fault && cow::drop_idle(inode.super_block(), false)? => {
                reserve(inode, from, want.min(AT_ONCE))
            }
            done => done,
        },
    }
}

/// Reserves up to `want` blocks, at least one, from file block `from` on, if it is a hole;
/// allocates them at once if the nodes that map them might be lacking later.
///
/// Fails with `ENOSPC`, and with `EFBIG` beyond the last block that can be mapped.
fn reserve(inode: &Inode<Volume>, from: u32, want: u32) -> Result {
    match inode.data()?.has_extents() && !holes::may_reserve(inode.super_block().volume()?) {
        true => fill(inode, from, want),
        false => holes::fill(inode, from, want),
    }
}

/// Returns whether the unwritten extent that contains file block `from` must be converted before it
/// is written to, because the node reserve is in use. Blocks beyond the file's size on disk stay
/// unwritten, since written blocks there are an error if the new size does not reach the disk.
fn must_settle(inode: &Inode<Volume>, from: u32) -> Result<bool> {
    let volume = inode.super_block().volume()?;
    let data = inode.data()?;
    Ok(data.has_extents()
        && from < blocks_on_disk(inode)?
        && balloc::is_short_of_nodes(volume)
        && !cow::is_reserved(inode, from)?)
}

/// Returns the size of the file on disk, in blocks.
fn blocks_on_disk(inode: &Inode<Volume>) -> Result<u32> {
    let bits = inode.super_block().volume()?.layout.block_bits;
    let blocks = inode.data()?.disk_size().div_ceil(1 << bits);
    Ok(u32::try_from(blocks).unwrap_or(u32::MAX))
}

/// Fails with `EOPNOTSUPP` for a file without extents.
pub(in crate::fs) fn has_extents(inode: &Inode<Volume>) -> Result {
    match inode.data()?.has_extents() {
        true => Ok(()),
        false => Err(unsupported()),
    }
}

/// Maximum number of changes of owners in [`fill`]: the blocks, and a node of the extent tree.
const FILL_CHANGES: u32 = 2;
/// Maximum number of changes of owners when unwritten or reserved blocks become written: up to
/// three extents, and split nodes.
const CONVERT_CHANGES: u32 = 8;
/// Maximum number of changes of owners when staged blocks are adopted: those of
/// [`CONVERT_CHANGES`], and the replaced blocks in two groups.
const ADOPT_CHANGES: u32 = 12;

/// Allocates up to `want` unwritten blocks, at least one, from file block `from` of a file with
/// extents on, if it is a hole.
///
/// Fails with `ENOSPC`.
pub(in crate::fs) fn fill(inode: &Inode<Volume>, from: u32, want: u32) -> Result {
    let volume = inode.super_block().volume()?;
    change::with_frees(volume, || {
        let credits = balloc::ALLOCATE_CREDITS
            + extent_tree::INSERT_CREDITS
            + inode::STORE_CREDITS
            + space::credits(volume, FILL_CHANGES);
        let mut change = MapChange::begin(inode, credits, 0)?;
        // Another task may have done it meanwhile.
        let run = mapping::find_in(inode, change.root(), from)?;
        if run.start.is_some() {
            return Ok(());
        }
        let want = want.min(u32::try_from(run.len_from(from)).unwrap_or(u32::MAX));
        let goal = mapping::goal(Some(change.handle()), inode, change.root(), from)?.block;
        let want = want.min(extent::max_len(true));
        let kind = OwnerKind::Data {
            offset: from,
            unwritten: true,
        };
        let (handle, root) = change.parts()?;
        let (start, len) = space::take(handle, inode, goal, want, kind)?;
        let extent = Extent {
            offset: from,
            start,
            len,
            unwritten: true,
        };
        let done = extent_tree::insert(handle, inode, root, extent)
            .or_else(|error| space::give(handle, inode, start, len, kind, false).and(Err(error)));
        change.end(done)
    })
}

/// Converts the unwritten extent `run`, which contains file block `from`, to written zeroes, up to
/// the file's size on disk. No cached data is lost. The inode is locked.
fn settle(inode: &Inode<Volume>, from: u32, run: Run) -> Result {
    let volume = inode.super_block().volume()?;
    let data = inode.data()?;
    let bits = volume.layout.block_bits;
    // Write back its cached data, and keep it from being written to until it is zeroed.
    inode.wait_direct();
    let _faults = inode.lock_faults();
    let end = run.end();
    inode.write_out(u64::from(run.offset) << bits..end << bits)?;
    let left = extents::find_in(inode, &data.root.read(), from)?;
    let Some((start, false)) = left.start else {
        return Ok(());
    };
    // The writeback may have increased the size on disk; blocks beyond it stay unwritten.
    let len = u32::try_from(left.len).map_err(|_| EFBIG)?;
    let len = len.min(blocks_on_disk(inode)?.saturating_sub(left.offset));
    if left.offset < run.offset || u64::from(left.offset).saturating_add(left.len) > end {
        return Err(EIO);
    }
    inode.super_block().zero_out(start, len)?;
    let credits =
        extent_tree::INSERT_CREDITS + inode::STORE_CREDITS + space::credits(volume, CONVERT_CHANGES);
    let mut change = MapChange::begin(inode, credits, 0)?;
    let (handle, root) = change.parts()?;
    let done = extent_tree::convert(handle, inode, root, left.offset, len);
    change.end(done.map(|_| ()))
}

/// Records that bytes of a file are on disk.
pub(in crate::fs) fn written(inode: &Inode<Volume>, what: Written) -> Result {
    let volume = inode.super_block().volume()?;
    let data = inode.data()?;
    let bits = volume.layout.block_bits;
    let (mut from, len) = mapping::blocks(inode, what.start, what.length)?;
    let end = from.saturating_add(len);
    // Up to two passes: first staged blocks are adopted.
    let (mut staged, mut at) = (what.staged, from);
    let mut step = || {
        let credits = match staged {
            true => {
                extent_tree::REPLACE_CREDITS
                    + inode::STORE_CREDITS
                    + space::credits(volume, ADOPT_CHANGES)
                    + space::give_credits(volume)
            }
            false => {
                extent_tree::INSERT_CREDITS
                    + balloc::ALLOCATE_CREDITS
                    + inode::STORE_CREDITS
                    + space::credits(volume, CONVERT_CHANGES)
            }
        };
        let mut change = MapChange::complete(inode, credits, extent_tree::REMOVE_REVOKES)?;
        let mut done = Ok(());
        if staged {
            let (handle, root) = change.parts()?;
            let more = cow::adopt(handle, inode, root, &mut at, end, &what);
            staged = more.unwrap_or(true);
            done = more.map(|_| ());
        } else if what.unwritten && from < end {
            let (handle, root) = change.parts()?;
            let step = holes::written(handle, inode, root, from, end - from);
            from += step.unwrap_or(0);
            done = step.map(|_| ());
        }
        let last = done.is_ok() && !staged && (!what.unwritten || from >= end);
        // The size on disk is increased in the same handle that converts the blocks, so that after
        // a crash there are no written blocks beyond it.
        let reached = match (last, what.unwritten && !staged) {
            (true, _) => what.end,
            (false, true) => what.end.min(u64::from(from) << bits),
            (false, false) => 0,
        };
        if done.is_ok() && reached > data.disk_size() {
            data.set_disk_size(reached);
        }
        // A direct write makes its data visible by increasing the size. For the page cache, the
        // size was increased long ago, and the file may have been truncated since.
        if last && what.direct {
            inode.extend_size(what.end);
        }
        change.end(done.map(|()| last))
    };
    // The data is on disk, and would be lost for lack of memory.
    while !insist(|| change::with_frees(volume, &mut step))? {}
    Ok(())
}
