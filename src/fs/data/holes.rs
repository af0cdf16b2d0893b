// SPDX-License-Identifier: GPL-2.0

//! Writing to holes of files without extents.
//!
//! Such a file has no unwritten blocks: after a crash between mapping a block and writing it, stale
//! data would be visible. The blocks for a hole are therefore only reserved, in memory, when it is
//! written to, and appear as unwritten in the mapping. The indirect blocks for their pointers are
//! created at once, so that `write` reports a lack of space. When the data is on disk, one handle
//! allocates the blocks in the bitmap, maps them and increases the size. After a crash before that,
//! they are free, and the hole is unchanged.

use crate::{
    fs::{
        alloc::{balloc, space},
        data::cow,
        disk::inode,
        map::{
            change::{self, MapChange},
            extent_tree::{self, Root},
            indirect_edit, mapping,
        },
        staging::{Piece, Stretch},
        state::Volume,
    },
    kernel_glue::{Handle, Inode},
};
use kernel::prelude::*;

/// Maximum number of changes of owners in [`fill`]: the blocks, and three indirect blocks.
const FILL_CHANGES: u32 = 4;

/// If file block `from` is in a hole, reserves up to `want` blocks for it, at least one.
///
/// Fails with `ENOSPC`, and with `EFBIG` beyond the last block that can be mapped.
pub(in crate::fs) fn fill(inode: &Inode<Volume>, from: u32, want: u32) -> Result {
    let volume = inode.super_block().volume()?;
    let want = want.min(mapping::reach(inode, from)?);
    change::with_frees(volume, || {
        let spare = cow::spare()?;
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
        let goal = mapping::goal(inode, change.root(), from)?;
        let (handle, root) = change.parts()?;
        let (start, len) = space::reserve(handle, inode, goal, want)?;
        let done = indirect_edit::prepare(handle, inode, root, from);
        if done.is_ok() {
            let piece = Piece {
                start,
                len,
                issued: false,
                reserved: true,
            };
            volume.staging.lock().insert(spare, inode.number(), from, piece);
            let data = inode.data()?;
            data.set_reserved(data.reserved() + u64::from(len));
            data.set_staged(true);
        } else {
            space::unreserve(inode.super_block(), start, len)?;
        }
        change.end(done.map(|_| ()))
    })
}

/// Maps reserved blocks that were written, for up to `len` file blocks from `offset` on, skipping
/// blocks that are mapped already. Returns the number of file blocks processed, after which the
/// caller continues.
pub(in crate::fs) fn written(
    handle: &Handle,
    inode: &Inode<Volume>,
    root: &mut Root,
    offset: u32,
    len: u32,
) -> Result<u32> {
    let run = mapping::find_in(inode, root, offset)?;
    let len = u64::from(len).min(run.len_from(offset));
    let len = u32::try_from(len).map_err(|_| EFBIG)?;
    let part = match run.start {
        Some((_, true)) => return Ok(len),
        Some((_, false)) => {
            cow::find(inode, offset)?.and_then(|part| part.within(offset, u64::from(offset) + u64::from(len)))
        }
        None => None,
    };
    let Some(Stretch { offset, piece }) = part else {
        pr_err!(
            "{}: inode {}: data was written for file block {offset}, which has no block\n",
            inode.super_block().name(),
            inode.number()
        );
        return Err(EIO);
    };
    let spare = cow::three()?;
    let extent = crate::format::extent::Extent {
        offset,
        start: piece.start,
        len: piece.len,
        unwritten: false,
    };
    indirect_edit::insert(handle, inode, root, extent)?;
    space::take_reserved(handle, inode, piece.start, piece.len, offset).inspect_err(|&error| {
        // The pointers are set, but the blocks are still free.
        handle.abort(error);
    })?;
    cow::take_out(inode, Stretch { offset, piece }, spare)?;
    Ok(len)
}
