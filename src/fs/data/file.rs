// SPDX-License-Identifier: GPL-2.0

//! Allocating the blocks of files when they are written to, and noting when they are on disk.
//!
//! What is written over blocks of other files, too, is the business of [`cow`].
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
        data::cow,
        disk::inode,
        map::{
            change::{self, MapChange},
            extent_tree, extents, mapping,
            run::Run,
        },
        owners::OwnerKind,
        state::Volume,
    },
    kernel_glue::{unsupported, Change, Inode, Target, Written},
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
    if writes && !inode.data()?.has_extents() {
        return Ok(None);
    }
    Ok(match run.start {
        Some((_, true)) => {
            let whole = (position | length) & ((1 << volume.layout.block_bits) - 1) == 0;
            return cow::target(inode, run, from, want, change, whole);
        }
        None if writes => None,
        Some((_, false)) if writes && balloc::is_short_of_nodes(volume) => None,
        _ => Some(Target {
            place: mapping::in_bytes(volume, run, false),
            old: None,
        }),
    })
}

/// Sees to it that the first of the bytes, all that is asked for if that is easy, have blocks to be written to.
///
/// The inode is locked, or else (on a fault) the page of these bytes. Fails with `ENOSPC`, with `EOPNOTSUPP` for files that
/// are not mapped by extents, and with `ENOTBLK` for what must go through the page cache.
pub(in crate::fs) fn allocate(inode: &Inode<Volume>, position: u64, length: u64, change: Change) -> Result {
    let volume = inode.super_block().volume()?;
    let data = inode.data()?;
    let (from, want) = mapping::blocks(inode, position, length)?;
    has_extents(inode)?;
    let found = extents::find_in(inode, &data.root.read(), from)?;
    match found.start {
        Some((_, false)) if balloc::is_short_of_nodes(volume) => match change {
            Change::Fault => Err(ENOSPC),
            Change::Direct => Err(ENOTBLK),
            _ => settle(inode, from, found),
        },
        Some((_, true)) => cow::stage(inode, from, want, change),
        Some(_) => Ok(()),
        None => fill(inode, from, want.min(AT_ONCE)),
    }
}

/// Fails with `EOPNOTSUPP` for a file whose blocks are not mapped by extents.
pub(in crate::fs) fn has_extents(inode: &Inode<Volume>) -> Result {
    if inode.data()?.has_extents() {
        return Ok(());
    }
    pr_err!(
        "{}: inode {}: writing to indirect blocks is not supported\n",
        inode.super_block().name(),
        inode.number()
    );
    Err(unsupported())
}

/// Allocates up to `want` unwritten blocks from file block `from` on, one at least, if there is none.
///
/// Fails with `ENOSPC`.
pub(in crate::fs) fn fill(inode: &Inode<Volume>, from: u32, want: u32) -> Result {
    let volume = inode.super_block().volume()?;
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
        let goal = extent_tree::goal(inode, change.root(), from)?;
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

/// Makes the unwritten extent `run`, which file block `from` is in, a written one of zeroes, of which no part can get lost.
/// The inode is locked.
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
    let len = u32::try_from(left.len).map_err(|_| EFBIG)?;
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
            let step = extent_tree::convert(handle, inode, root, from, end - from);
            from += step.unwrap_or(0);
            done = step.map(|_| ());
        }
        let last = done.is_ok() && !staged && (!what.unwritten || from >= end);
        if last {
            // Who reads past the page cache finds the blocks written once he may read them. What the page cache wrote has
            // raised the size long ago, and it may just have been cut.
            if what.direct {
                inode.extend_size(what.end);
            }
            if what.end > data.disk_size() {
                data.set_disk_size(what.end);
            }
        }
        change.end(done.map(|()| last))
    };
    while !change::with_frees(volume, &mut step)? {}
    Ok(())
}
