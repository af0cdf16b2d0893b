// SPDX-License-Identifier: GPL-2.0

//! Allocating the blocks of files when they are written to, and noting when they are on disk.
//!
//! Writes to blocks that other files share are the business of [`cow`], those to holes of files without extents that of
//! [`holes`].
//!
//! Blocks come as unwritten ones, right behind those of the file block before if that can be. After the I/O they are
//! made written ones, and the file's size on disk is raised, in one handle: there is never a size without its data, nor
//! stale data in the file.
//!
//! An unwritten extent that is written in part falls into pieces, which may want another node of the mapping, and nobody
//! can be told any more if there is no block for it. Some blocks are kept for that. When even they become few, an
//! unwritten extent (of a file that was allocated in advance) is zeroed on disk and made a written one before it is
//! written to; a page fault, which cannot wait for that, is refused.

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

/// Blocks taken at a time at most when a file is written.
const AT_ONCE: u32 = 2048;

/// Where the first of the bytes go, and how far around them that holds; `None` when [`allocate`] is to see to that.
///
/// The inode is locked, or else (on a fault) the page of these bytes.
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

/// Sees to it that the first of the bytes, all that is asked for if that is easy, have blocks to be written to.
///
/// The inode is locked, or else (on a fault) the page of these bytes. Fails with `ENOSPC`, with `EFBIG` for what cannot be
/// mapped, and with `ENOTBLK` for what must go through the page cache.
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
        None => match fill(inode, from, want.min(AT_ONCE)) {
            // With a page locked nobody else's inode can be waited for.
            Err(ENOSPC) if change != Change::Fault && cow::drop_idle(inode.super_block(), false)? => {
                fill(inode, from, want.min(AT_ONCE))
            }
            done => done,
        },
    }
}

/// Whether the unwritten extent that file block `from` lies in must become a written one before it is written to: when the
/// nodes kept for pieces of extents run short. Blocks behind the end of the file on disk stay unwritten: written ones are
/// an error there, should the size not get to the disk.
fn must_settle(inode: &Inode<Volume>, from: u32) -> Result<bool> {
    let volume = inode.super_block().volume()?;
    let data = inode.data()?;
    Ok(data.has_extents() && from < blocks_on_disk(inode)? && balloc::is_short_of_nodes(volume))
}

/// Blocks of the file as far as its size on disk reaches.
fn blocks_on_disk(inode: &Inode<Volume>) -> Result<u32> {
    let bits = inode.super_block().volume()?.layout.block_bits;
    let blocks = inode.data()?.disk_size().div_ceil(1 << bits);
    Ok(u32::try_from(blocks).unwrap_or(u32::MAX))
}

/// Fails with `EOPNOTSUPP` for a file whose blocks are not mapped by extents.
pub(in crate::fs) fn has_extents(inode: &Inode<Volume>) -> Result {
    match inode.data()?.has_extents() {
        true => Ok(()),
        false => Err(unsupported()),
    }
}

/// Allocates up to `want` unwritten blocks from file block `from` on, one at least, if there is none. Blocks of a file
/// without extents are only reserved.
///
/// Fails with `ENOSPC`.
pub(in crate::fs) fn fill(inode: &Inode<Volume>, from: u32, want: u32) -> Result {
    let volume = inode.super_block().volume()?;
    if !inode.data()?.has_extents() {
        return holes::fill(inode, from, want);
    }
    change::with_frees(volume, || {
        let credits = balloc::ALLOCATE_CREDITS
            + extent_tree::INSERT_CREDITS
            + inode::STORE_CREDITS
            + space::credits(volume, 2);
        let mut change = MapChange::begin(inode, credits, 0)?;
        // Somebody else may have been faster.
        let run = extents::find_in(inode, change.root(), from)?;
        if run.start.is_some() {
            return Ok(());
        }
        let hole = u64::from(run.offset)
            .saturating_add(run.len)
            .saturating_sub(u64::from(from));
        let want = want.min(u32::try_from(hole).unwrap_or(u32::MAX));
        let goal = mapping::goal(inode, change.root(), from)?;
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

/// Makes the unwritten extent `run`, which file block `from` is in, a written one of zeroes, of which no part can get lost,
/// as far as the size on disk reaches. The inode is locked.
fn settle(inode: &Inode<Volume>, from: u32, run: Run) -> Result {
    let volume = inode.super_block().volume()?;
    let data = inode.data()?;
    let bits = volume.layout.block_bits;
    // What is cached of it goes to disk, and nobody can write to it then until it is zeroed.
    inode.wait_direct();
    let _faults = inode.lock_faults();
    let end = u64::from(run.offset).saturating_add(run.len);
    inode.write_out(u64::from(run.offset) << bits..end << bits)?;
    let left = extents::find_in(inode, &data.root.read(), from)?;
    let Some((start, false)) = left.start else {
        return Ok(());
    };
    // What goes to disk with it may have raised the size there; blocks behind that stay unwritten.
    let len = u32::try_from(left.len).map_err(|_| EFBIG)?;
    let len = len.min(blocks_on_disk(inode)?.saturating_sub(left.offset));
    if left.offset < run.offset || u64::from(left.offset).saturating_add(left.len) > end {
        return Err(EIO);
    }
    inode.super_block().zero_out(start, len)?;
    let credits = extent_tree::INSERT_CREDITS + inode::STORE_CREDITS + space::credits(volume, 8);
    let mut change = MapChange::begin(inode, credits, 0)?;
    let (handle, root) = change.parts()?;
    let done = extent_tree::convert(handle, inode, root, left.offset, len);
    change.end(done.map(|_| ()))
}

/// Notes that bytes of a file are on disk.
pub(in crate::fs) fn written(inode: &Inode<Volume>, what: Written) -> Result {
    let volume = inode.super_block().volume()?;
    let data = inode.data()?;
    let bits = volume.layout.block_bits;
    let (mut from, len) = mapping::blocks(inode, what.start, what.length)?;
    let end = from.saturating_add(len);
    // Two passes, if need be: staged blocks are adopted first.
    let (mut staged, mut at) = (what.staged, from);
    let mut step = || {
        let credits = match staged {
            true => {
                extent_tree::REPLACE_CREDITS
                    + inode::STORE_CREDITS
                    + space::credits(volume, 12)
                    + space::give_credits(volume)
            }
            false => extent_tree::INSERT_CREDITS + inode::STORE_CREDITS + space::credits(volume, 8),
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
            let step = match data.has_extents() {
                true => extent_tree::convert(handle, inode, root, from, end - from),
                false => holes::written(handle, inode, root, from, end - from),
            };
            from += step.unwrap_or(0);
            done = step.map(|_| ());
        }
        let last = done.is_ok() && !staged && (!what.unwritten || from >= end);
        // The size goes to disk together with the blocks that it reaches over: after a crash between two handles there are
        // no written blocks behind it.
        let reached = match (last, what.unwritten && !staged) {
            (true, _) => what.end,
            (false, true) => what.end.min(u64::from(from) << bits),
            (false, false) => 0,
        };
        if done.is_ok() && reached > data.disk_size() {
            data.set_disk_size(reached);
        }
        // Direct reads find the blocks written once the size lets them. What the page cache wrote has raised the size long
        // ago, and it may just have been cut.
        if last && what.direct {
            inode.extend_size(what.end);
        }
        change.end(done.map(|()| last))
    };
    // The data is on disk, and would be lost for lack of memory.
    while !insist(|| change::with_frees(volume, &mut step))? {}
    Ok(())
}
