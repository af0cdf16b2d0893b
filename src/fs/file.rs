// SPDX-License-Identifier: GPL-2.0

//! Allocating the blocks of files when they are written to, and noting when they are on disk.
//!
//! Blocks come as unwritten ones, right behind those of the file block before if that can be. After the I/O they are
//! made written ones, and the file's size on disk is raised, in one handle: there is never a size without its data, nor
//! stale data in the file.
//!
//! An unwritten extent that is written in part falls into pieces, which may want another node of the mapping, and nobody
//! can be told any more if there is no block for it. Some blocks are kept for that. When even they become few, an
//! unwritten extent (of a file that was allocated in advance) is zeroed on disk and made a written one before it is
//! written to; a page fault, which cannot wait for that, is refused.

use super::{
    balloc, extent_tree, extents, inode,
    inode::Part,
    mapping::Run,
    space::{self, OwnerKind},
    Volume,
};
use crate::{
    format::{extent::Extent, extent_edit},
    kernel_glue::{unsupported, Inode},
};
use kernel::prelude::*;

/// Blocks taken at a time at most.
const AT_ONCE: u32 = 2048;

/// Sees to it that the first of the bytes, all that is asked for if that is easy, have blocks.
///
/// The inode is locked, or else (`in_fault`) the page of these bytes. Fails with `ENOSPC`, and with `EOPNOTSUPP` for
/// files that are not mapped by extents.
pub(super) fn allocate(inode: &Inode<Volume>, position: u64, length: u64, in_fault: bool) -> Result {
    let volume = inode.super_block().volume()?;
    let data = inode.data()?;
    let bits = volume.layout.block_bits;
    let from = u32::try_from(position >> bits).map_err(|_| EFBIG)?;
    let end = position.saturating_add(length).div_ceil(1 << bits);
    let want = u32::try_from(end.saturating_sub(u64::from(from)))
        .unwrap_or(u32::MAX)
        .clamp(1, AT_ONCE);
    if !data.has_extents() {
        pr_err!(
            "{}: inode {}: writing to indirect blocks is not supported\n",
            inode.super_block().name(),
            inode.number()
        );
        return Err(unsupported());
    }
    let found = extents::find_in(inode, &data.root.read(), from)?;
    match found.start {
        Some((_, false)) if balloc::is_short_of_nodes(volume) && in_fault => return Err(ENOSPC),
        Some((_, false)) if balloc::is_short_of_nodes(volume) => return settle(inode, from, found),
        Some(_) => return Ok(()),
        None => {}
    }
    let once = || -> Result {
        let credits = balloc::ALLOCATE_CREDITS
            + extent_tree::INSERT_CREDITS
            + inode::STORE_CREDITS
            + space::credits(volume, 2);
        let handle = volume.begin(credits, 0)?;
        let mut root = data.root.write();
        // Somebody else may have been faster.
        let run = extents::find_in(inode, &root, from)?;
        if run.start.is_some() {
            return Ok(());
        }
        let hole = u64::from(run.offset)
            .saturating_add(run.len)
            .saturating_sub(u64::from(from));
        let want = want.min(u32::try_from(hole).unwrap_or(u32::MAX));
        let goal = match from.checked_sub(1) {
            Some(before) => match extents::find_in(inode, &root, before)? {
                Run {
                    offset,
                    start: Some((start, _)),
                    ..
                } => start + u64::from(from - offset),
                _ => extent_tree::goal(inode)?,
            },
            None => extent_tree::goal(inode)?,
        };
        let want = want.min(extent_edit::max_len(true));
        let kind = OwnerKind::Data {
            offset: from,
            unwritten: true,
        };
        let (start, len) = space::take(&handle, inode, goal, want, kind)?;
        let extent = Extent {
            offset: from,
            start,
            len,
            unwritten: true,
        };
        let done = extent_tree::insert(&handle, inode, &mut root, extent)
            .or_else(|error| space::give(&handle, inode, start, len, kind, false).and(Err(error)));
        // Also when there was no room for the extent, entries may have moved to other nodes.
        data.new_version();
        inode::store(&handle, inode, Part::Mapping(&root))?;
        drop(root);
        handle.stop()?;
        done
    };
    match once() {
        Err(ENOSPC) if balloc::wait_for_frees(volume)? => once(),
        done => done,
    }
}

/// Makes the unwritten extent `run`, which file block `from` is in, a written one of zeroes, of which no part can get lost.
/// The inode is locked.
fn settle(inode: &Inode<Volume>, from: u32, run: Run) -> Result {
    let volume = inode.super_block().volume()?;
    let data = inode.data()?;
    let bits = volume.layout.block_bits;
    // What is cached of it goes to disk, and nobody can write to it then until it is zeroed.
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
    let handle = volume.begin(credits, 0)?;
    let mut root = data.root.write();
    let done = extent_tree::convert(&handle, inode, &mut root, left.offset, len);
    data.new_version();
    inode::store(&handle, inode, Part::Mapping(&root))?;
    drop(root);
    handle.stop()?;
    done.map(|_| ())
}

/// Notes that bytes of a file are on disk: `unwritten` blocks among them are written now.
pub(super) fn written(inode: &Inode<Volume>, start: u64, length: u64, unwritten: bool) -> Result {
    let volume = inode.super_block().volume()?;
    let data = inode.data()?;
    let bits = volume.layout.block_bits;
    let size = (start + length).min(inode.size());
    let mut from = u32::try_from(start >> bits).map_err(|_| EFBIG)?;
    let end = u32::try_from((start + length).div_ceil(1 << bits)).map_err(|_| EFBIG)?;
    let mut waited = false;
    loop {
        let credits = extent_tree::INSERT_CREDITS + inode::STORE_CREDITS + space::credits(volume, 8);
        let handle = volume.begin(credits, 0)?;
        let mut root = data.root.write();
        let mut done = Ok(0);
        if unwritten && from < end {
            done = extent_tree::convert(&handle, inode, &mut root, from, end - from);
            data.new_version();
        }
        from += done.unwrap_or(0);
        let last = done.is_ok() && (!unwritten || from >= end);
        if last && size > data.disk_size() {
            data.set_disk_size(size);
        }
        inode::store(&handle, inode, Part::Mapping(&root))?;
        drop(root);
        handle.stop()?;
        match done {
            Err(ENOSPC) if !waited && balloc::wait_for_frees(volume)? => waited = true,
            Err(error) => return Err(error),
            Ok(_) if last => return Ok(()),
            Ok(_) => {}
        }
    }
}
