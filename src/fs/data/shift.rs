// SPDX-License-Identifier: GPL-2.0

//! Removing a range of whole blocks from a file, and inserting a hole between two of its blocks.
//! The contents that follow are moved only in the mapping.
//!
//! Extents are moved one by one, several per handle, starting at the gap, so that each moves to an
//! unmapped range. A crash in between leaves the gap inside the contents, as with stock ext4: no
//! block is lost, and none is mapped twice. Shared blocks are moved as well, since their number of
//! owners does not change.

use crate::{
    format::extent::Extent,
    fs::{
        alloc::{balloc, space},
        data::{cow, file, reserve},
        disk::inode::{self, Part},
        map::{change::MapChange, extent_tree, mapping},
        state::Volume,
    },
    kernel_glue::{Handle, Inode, Locked, Shift},
};
use kernel::prelude::*;

/// Maximum number of extents moved in one handle.
const AT_ONCE: u32 = 64;

/// Removes a range of bytes from a file, or inserts a hole of that range.
///
/// # Errors
///
/// `EOPNOTSUPP` for a file without extents; `EINVAL` if the range does not consist of whole blocks,
/// or is not before the end of the file; `EFBIG` if the file would become too large; `ENOSPC` if
/// there is no space for mapping nodes. Nothing is changed then.
pub(in crate::fs) fn shift(inode: &Locked<Volume>, how: Shift, position: u64, length: u64) -> Result {
    file::has_extents(inode)?;
    let volume = inode.super_block().volume()?;
    let bits = volume.layout.block_bits;
    let size = inode.size();
    let end = position.checked_add(length).ok_or(EINVAL)?;
    let inside = match how {
        Shift::Collapse => end < size,
        Shift::Insert => position < size,
    };
    if (position | length) & ((1 << bits) - 1) != 0 || !inside {
        return Err(EINVAL);
    }
    if how == Shift::Insert && length > inode::max_size(inode).saturating_sub(size) {
        return Err(EFBIG);
    }
    let block = |byte: u64| u32::try_from(byte >> bits).map_err(|_| EFBIG);
    let (first, count) = (block(position)?, block(length)?);
    if balloc::is_short_of_nodes(volume) {
        return Err(ENOSPC);
    }
    let _faults = inode.lock_faults();
    let unit = (1u64 << bits).max(reserve::PAGE);
    let start = position / unit * unit;
    inode.write_out(start..u64::MAX)?;
    inode.drop_cache(start..u64::MAX);
    // Staged blocks are indexed by file block.
    cow::drop_staged(inode, first, u32::MAX)?;
    match how {
        Shift::Collapse => {
            reserve::make_hole(inode, first, first + count)?;
            forward(inode, first + count, count)?;
            set_size(inode, size - length)
        }
        Shift::Insert => {
            let last = last_end(inode)?;
            // Preallocated blocks may be beyond the last mappable block then.
            if last > first && last.checked_add(count).is_none() {
                return Err(EINVAL);
            }
            set_size(inode, size + length)?;
            backward(inode, first, count)
        }
    }
}

/// Returns the file block after the last mapped one.
fn last_end(inode: &Inode<Volume>) -> Result<u32> {
    let last = extent_tree::last_until(inode, &inode.data()?.root.read(), u32::MAX)?;
    Ok(last.map_or(0, |last| last.offset.saturating_add(last.len)))
}

/// Sets the size, both in the inode and on disk.
fn set_size(inode: &Locked<Volume>, size: u64) -> Result {
    let data = inode.data()?;
    let before = (inode.size(), data.disk_size());
    let handle = inode.super_block().volume()?.begin(inode::STORE_CREDITS, 0)?;
    inode.set_size(size);
    data.set_disk_size(size);
    inode.touch(true);
    if let Err(error) = inode::store(&handle, inode, Part::Attributes) {
        inode.set_size(before.0);
        data.set_disk_size(before.1);
        return Err(error);
    }
    handle.stop()
}

/// Moves all extents from file block `from` on by `count` blocks to the front, which is unmapped.
fn forward(inode: &Inode<Volume>, from: u32, count: u32) -> Result {
    let mut at = from;
    loop {
        let moved = each(inode, |root| {
            // The first extent at or after the block.
            loop {
                let run = mapping::find_in(inode, root, at)?;
                let end = u32::try_from(run.end());
                if run.start.is_some() {
                    let (offset, len) = (at, end.unwrap_or(u32::MAX) - at);
                    at = offset.saturating_add(len);
                    return Ok(Some((offset, len, offset - count)));
                }
                match end {
                    Ok(end) if end < u32::MAX => at = end,
                    _ => return Ok(None),
                }
            }
        })?;
        if !moved {
            return Ok(());
        }
    }
}

/// Moves all extents from file block `from` on by `count` blocks to the back, which is unmapped.
fn backward(inode: &Inode<Volume>, from: u32, count: u32) -> Result {
    let mut before = u32::MAX;
    loop {
        let moved = each(inode, |root| {
            let last = extent_tree::last_until(inode, root, before)?;
            let part = last.and_then(|last| {
                let offset = last.offset.max(from);
                let len = last.offset.saturating_add(last.len).saturating_sub(offset);
                (len > 0).then_some((offset, len, offset.saturating_add(count)))
            });
            before = match part {
                Some((offset, ..)) if offset > from => offset - 1,
                // The part of the extent before the hole stays.
                Some(_) => 0,
                None => return Ok(None),
            };
            Ok(part)
        })?;
        if !moved || before < from {
            return Ok(());
        }
    }
}

/// Maximum number of changes of owners when an extent is moved: it is removed and inserted, each
/// with split nodes.
const MOVE_CHANGES: u32 = 16;

/// Moves the extents that `next` returns, in one handle: file block, number of blocks, and the file
/// block to move to. Returns true if there may be more.
fn each(
    inode: &Inode<Volume>,
    mut next: impl FnMut(&extent_tree::Root) -> Result<Option<(u32, u32, u32)>>,
) -> Result<bool> {
    let volume = inode.super_block().volume()?;
    let step = extent_tree::REPLACE_CREDITS
        + extent_tree::INSERT_CREDITS
        + inode::STORE_CREDITS
        + space::credits(volume, MOVE_CHANGES);
    let credits = (4 * step).min(volume.journal()?.room() / 4).max(step);
    let mut change = MapChange::begin(inode, credits, extent_tree::REMOVE_REVOKES)?;
    let (handle, root) = change.parts()?;
    let mut done = Ok(true);
    for _ in 0..AT_ONCE {
        done = match next(&*root) {
            Ok(Some((offset, len, to))) => move_extent(handle, inode, root, offset, len, to).map(|()| true),
            Ok(None) => Ok(false),
            Err(error) => Err(error),
        };
        let full = handle.blocks_left() < step || handle.revokes_left() < extent_tree::REMOVE_REVOKES;
        if full || !matches!(done, Ok(true)) {
            break;
        }
    }
    change.end(done)
}

/// Moves `len` blocks of one extent from file block `offset` to file block `to`, where nothing is
/// mapped.
fn move_extent(
    handle: &Handle,
    inode: &Inode<Volume>,
    root: &mut extent_tree::Root,
    offset: u32,
    len: u32,
    to: u32,
) -> Result {
    let cut = mapping::cut(handle, inode, root, offset, len)?;
    let put = mapping::insert(handle, inode, root, Extent { offset: to, ..cut });
    if let Err(error) = put {
        // Undo the cut; if that fails, nothing of this handle may reach the disk.
        return mapping::insert(handle, inode, root, cut)
            .inspect_err(|&error| handle.abort(error))
            .and(Err(error));
    }
    if cut.len != len {
        // The extent was read under the lock that is held.
        handle.abort(EIO);
        return Err(EIO);
    }
    space::moved(handle, inode, cut.start, cut.len, cut.unwritten, (cut.offset, to))
}
