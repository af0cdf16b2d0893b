// SPDX-License-Identifier: GPL-2.0

//! Writing to holes.
//!
//! The blocks for a hole are only reserved, in memory, when it is written to, and appear as
//! unwritten in the mapping. When the data is on disk, one handle allocates the blocks in the
//! bitmap, maps them as written and increases the size. After a crash before that, they are free,
//! and the hole is unchanged. Nothing has to be written to the journal before the data, and stale
//! data never becomes visible, also in files without extents, which have no unwritten blocks.
//!
//! A lack of space is reported by `write`: the blocks are reserved exactly. Indirect blocks for
//! pointers are created at once. Nodes of extent trees come from the node reserve; while that is in
//! use, or might not suffice for all the pieces that are reserved, blocks of files with extents are
//! allocated and mapped at once instead ([`may_reserve`]).
//!
//! A write directly behind a block of the file usually continues, so more blocks are reserved: the
//! file's window ([`windows`]).

use crate::{
    format::extent::{max_len, Extent, ENTRY_BYTES},
    fs::{
        alloc::{
            balloc, space,
            windows::{self, Holder},
        },
        data::cow,
        disk::inode,
        map::{
            change::{self, MapChange},
            extent_tree::{self, Root},
            indirect_edit,
            mapping::{self, Site},
        },
        staging::{Piece, Stretch},
        state::Volume,
    },
    kernel_glue::{Handle, Inode, NoReclaim},
};
use kernel::prelude::*;

/// Maximum number of changes of owners in [`fill_indirect`] and [`settle`]: the blocks, and nodes
/// of the mapping.
const FILL_CHANGES: u32 = 4;
/// Maximum number of blocks written at a time to a new file for it to count as small.
const SMALL: u32 = 16;
/// Number of blocks of the window of a group's small files.
const SMALL_WINDOW: u32 = 256;
/// A file's window has this many times the blocks that the file has, within bounds.
const WINDOW_SHARE: u32 = 8;
const WINDOW: (u32, u32) = (64, 2048);

/// If file block `from` is in a hole, reserves up to `want` blocks for it, at least one.
///
/// Fails with `ENOSPC`, and with `EFBIG` beyond the last block that can be mapped.
pub(in crate::fs) fn fill(inode: &Inode<Volume>, from: u32, want: u32) -> Result {
    let volume = inode.super_block().volume()?;
    if !inode.data()?.has_extents() {
        return fill_indirect(inode, from, want);
    }
    volume.throttle();
    volume.check_alive()?;
    if volume.journal()?.is_aborted() {
        return Err(EROFS);
    }
    // Usually no handle is needed.
    match fill_extents(None, inode, from, want) {
        Err(EAGAIN | ENOSPC) => change::with_frees(volume, || {
            let handle = volume.begin(balloc::ALLOCATE_CREDITS, 0)?;
            fill_extents(Some(&handle), inode, from, want)?;
            handle.stop()
        }),
        done => done,
    }
}

/// Returns whether the node reserve suffices to map one more piece, wherever the pieces are: if all
/// leaves of the volume's mappings were full each would have to be split once, and then once more
/// for every half of a leaf that is inserted.
pub(in crate::fs) fn may_reserve(volume: &Volume) -> bool {
    let in_leaf = u64::from(volume.layout.block_size) / ENTRY_BYTES as u64;
    let most = balloc::kept_for_nodes(volume) * in_leaf / 10;
    !balloc::is_short_of_nodes(volume) && (volume.staging.lock().reserved() as u64) < most
}

/// Reserves blocks for a hole of a file with extents. Without a handle, fails with `EAGAIN` if one
/// is needed.
fn fill_extents(handle: Option<&Handle>, inode: &Inode<Volume>, from: u32, want: u32) -> Result {
    let sb = inode.super_block();
    let volume = sb.volume()?;
    let data = inode.data()?;
    let _scope = NoReclaim::new();
    let root = data.root.write();
    // Another task may have done it meanwhile.
    let run = mapping::find_in(inode, &root, from)?;
    if run.start.is_some() {
        return Ok(());
    }
    let end = u64::from(run.offset).saturating_add(run.len);
    let want = want.min(u32::try_from(end - u64::from(from)).unwrap_or(u32::MAX));
    let goal = mapping::goal(handle, inode, &root, from)?;
    let own = Holder::Inode(inode.number());
    let (holder, near, ahead) = match goal.site {
        Site::First if from == 0 && want <= SMALL => {
            let (group, _) = volume.layout.locate_inode(inode.number()).ok_or(EIO)?;
            (Holder::Group(group), None, SMALL_WINDOW)
        }
        // Only at the end of a file: a hole is rarely filled in order.
        Site::First | Site::After if (from == 0 || goal.site == Site::After) && end > u64::from(u32::MAX) => {
            let blocks = from.saturating_add(want).saturating_mul(WINDOW_SHARE);
            (own, Some(goal.block), blocks.clamp(WINDOW.0, WINDOW.1))
        }
        _ => {
            // Where the goal is in the window, it would be in the way.
            balloc::end_window(sb, own)?;
            (own, Some(goal.block), 0)
        }
    };
    let found = match windows::take(volume, holder, near, want) {
        Some(found) => found,
        None => {
            let ahead = ahead.min(balloc::spare_blocks(volume));
            space::reserve(handle, inode, goal.block, want, Some((holder, ahead)))?
        }
    };
    put(inode, from, found)
}

/// Makes reserved blocks those of a hole from file block `offset` on. The mapping is locked
/// exclusively.
fn put(inode: &Inode<Volume>, offset: u32, (start, len): (u64, u32)) -> Result {
    let sb = inode.super_block();
    let volume = sb.volume()?;
    let data = inode.data()?;
    let joins = volume.staging.lock().extend(inode.number(), offset, start, len);
    if !joins {
        let spare = match cow::spare() {
            Ok(spare) => spare,
            Err(error) => {
                space::unreserve(sb, start, len)?;
                return Err(error);
            }
        };
        let piece = Piece {
            start,
            len,
            issued: false,
            reserved: true,
        };
        volume.staging.lock().insert(spare, inode.number(), offset, piece);
    }
    data.set_reserved(data.reserved() + u64::from(len));
    data.set_staged(true);
    data.new_version();
    Ok(())
}

/// Reserves blocks for a hole of a file without extents.
fn fill_indirect(inode: &Inode<Volume>, from: u32, want: u32) -> Result {
    let volume = inode.super_block().volume()?;
    let want = want.min(mapping::reach(inode, from)?);
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
        let goal = mapping::goal(None, inode, change.root(), from)?.block;
        let (handle, root) = change.parts()?;
        let (start, len) = space::reserve(Some(handle), inode, goal, want, None)?;
        let done = match indirect_edit::prepare(handle, inode, root, from) {
            Ok(_) => put(inode, from, (start, len)),
            Err(error) => space::unreserve(inode.super_block(), start, len).and(Err(error)),
        };
        change.end(done)
    })
}

/// Maps reserved blocks that were written, or converts unwritten ones, for up to `len` file blocks
/// from `offset` on, skipping blocks that are written already. Returns the number of file blocks
/// processed, after which the caller continues.
pub(in crate::fs) fn written(
    handle: &Handle,
    inode: &Inode<Volume>,
    root: &mut Root,
    offset: u32,
    len: u32,
) -> Result<u32> {
    let end = u64::from(offset) + u64::from(len);
    let volume = inode.super_block().volume()?;
    let part = match inode.data()?.has_staged() {
        true => volume.staging.lock().find_reserved(inode.number(), offset, end),
        false => None,
    };
    match part.and_then(|part| part.within(offset, end)) {
        Some(part) if part.offset == offset => map(handle, inode, root, part, false),
        Some(part) => passed(handle, inode, root, offset, part.offset - offset),
        None => passed(handle, inode, root, offset, len),
    }
}

/// As [`written`], where no blocks are reserved.
fn passed(handle: &Handle, inode: &Inode<Volume>, root: &mut Root, offset: u32, len: u32) -> Result<u32> {
    if inode.data()?.has_extents() {
        return extent_tree::convert(handle, inode, root, offset, len);
    }
    let run = mapping::find_in(inode, root, offset)?;
    let left = run.len_from(offset);
    match run.start {
        Some(_) => Ok(u32::try_from(left).unwrap_or(u32::MAX).min(len)),
        None => {
            pr_err!(
                "{}: inode {}: data was written for file block {offset}, which has no block\n",
                inode.super_block().name(),
                inode.number()
            );
            Err(EIO)
        }
    }
}

/// Maps the first ones of reserved blocks. Returns their number.
fn map(
    handle: &Handle,
    inode: &Inode<Volume>,
    root: &mut Root,
    part: Stretch,
    unwritten: bool,
) -> Result<u32> {
    let volume = inode.super_block().volume()?;
    let Stretch { offset, piece } = part;
    let len = balloc::in_one_group(volume, piece.start, piece.len)?;
    let len = match inode.data()?.has_extents() {
        true => len.min(max_len(unwritten)),
        false => len.min(mapping::reach(inode, offset)?),
    };
    let piece = Piece { len, ..piece };
    let spare = cow::three()?;
    let extent = Extent {
        offset,
        start: piece.start,
        len,
        unwritten,
    };
    mapping::insert(handle, inode, root, extent)?;
    space::take_reserved(handle, inode, piece.start, len, offset, unwritten).inspect_err(|&error| {
        // The blocks are mapped, but still free.
        handle.abort(error);
    })?;
    cow::take_out(inode, Stretch { offset, piece }, spare)?;
    Ok(len)
}

/// Makes blocks that are reserved for file block `offset` and those behind it, `most` at most,
/// unwritten blocks of the file, as if they had been allocated in advance. Returns their number.
///
/// Fails with `ENOSPC` if there is no room for a node of the mapping.
pub(in crate::fs) fn settle(inode: &Inode<Volume>, offset: u32, most: u32) -> Result<u32> {
    let volume = inode.super_block().volume()?;
    let credits = extent_tree::INSERT_CREDITS
        + balloc::ALLOCATE_CREDITS
        + inode::STORE_CREDITS
        + space::credits(volume, FILL_CHANGES);
    change::with_frees(volume, || {
        let mut change = MapChange::begin(inode, credits, 0)?;
        let end = u64::from(offset) + u64::from(most);
        let part = cow::find(inode, offset)?.and_then(|part| part.within(offset, end));
        // They may have been written meanwhile.
        let Some(part) = part.filter(|part| part.piece.reserved && part.offset == offset) else {
            return Ok(0);
        };
        let (handle, root) = change.parts()?;
        let done = map(handle, inode, root, part, true);
        change.end(done)
    })
}
