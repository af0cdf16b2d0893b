// SPDX-License-Identifier: GPL-2.0

//! From a block of a file to a block of the volume, and changes of this mapping, for files with and
//! without extents.

use crate::{
    format::extent::{max_len, Extent},
    fs::{
        alloc::{balloc, space},
        map::{
            extent_tree::{self, Root},
            extents, indirect, indirect_edit,
            run::Run,
        },
        staging::Stretch,
        state::Volume,
    },
    kernel_glue::{corrupted, Buffer, Handle, Inode, Mapping, Place},
};
use kernel::prelude::*;

/// Returns the run that contains file block `block`.
///
/// Fails with `EFSCORRUPTED` if the mapping is invalid, and with `EIO` or `ENOMEM`.
pub(in crate::fs) fn of_block(inode: &Inode<Volume>, block: u32) -> Result<Run> {
    find_in(inode, &inode.data()?.root.read(), block)
}

/// Returns the run that contains file block `block`. The caller holds the lock of the mapping,
/// whose root this is.
///
/// Blocks reserved for data that is not on disk yet count as unwritten.
pub(in crate::fs) fn find_in(inode: &Inode<Volume>, root: &Root, block: u32) -> Result<Run> {
    let data = inode.data()?;
    let run = match data.has_extents() {
        true => extents::find_in(inode, root, block)?,
        false => indirect::find_in(inode, root, block)?,
    };
    if run.start.is_some() || !data.has_staged() {
        return Ok(run);
    }
    let volume = inode.super_block().volume()?;
    let end = u64::from(run.offset).saturating_add(run.len);
    let found = volume.staging.lock().find_reserved(inode.number(), block, end);
    Ok(match found {
        Some(part) if part.offset <= block => Run {
            offset: part.offset,
            len: part.piece.len.into(),
            start: Some((part.piece.start, false)),
        },
        Some(part) => Run {
            len: run.len.min(u64::from(part.offset - block)),
            ..run
        },
        None => run,
    })
}

/// Returns how many blocks from file block `block` on can be mapped by one [`insert`].
///
/// Fails with `EFBIG` beyond the last block that can be mapped.
pub(in crate::fs) fn reach(inode: &Inode<Volume>, block: u32) -> Result<u32> {
    if inode.data()?.has_extents() {
        return Ok(max_len(false));
    }
    let bits = indirect::bits(inode)?;
    let way = crate::format::indirect::way(bits, block).ok_or(EFBIG)?;
    Ok(way.reach(bits))
}

/// Maps an extent, which must not be longer than [`reach`]. See [`extent_tree::insert`] and
/// [`indirect_edit::insert`].
pub(in crate::fs) fn insert(
    handle: &Handle,
    inode: &Inode<Volume>,
    root: &mut Root,
    extent: Extent,
) -> Result {
    match inode.data()?.has_extents() {
        true => extent_tree::insert(handle, inode, root, extent),
        false => indirect_edit::insert(handle, inode, root, extent),
    }
}

/// Removes up to `len` mapped blocks from file block `offset` on from the mapping, within one run,
/// and returns them without freeing them.
pub(in crate::fs) fn cut(
    handle: &Handle,
    inode: &Inode<Volume>,
    root: &mut Root,
    offset: u32,
    len: u32,
) -> Result<Extent> {
    match inode.data()?.has_extents() {
        true => extent_tree::replace(handle, inode, root, offset, len, &|_| None),
        false => indirect_edit::cut(handle, inode, root, offset, len),
    }
}

/// Frees blocks at the end of the mapping, none before file block `from`. See
/// [`extent_tree::remove_last`] and [`indirect_edit::remove_last`].
pub(in crate::fs) fn remove_last(
    handle: &Handle,
    inode: &Inode<Volume>,
    root: &mut Root,
    from: u32,
    most: u32,
    journaled: bool,
) -> Result<u32> {
    match inode.data()?.has_extents() {
        true => extent_tree::remove_last(handle, inode, root, from, most, journaled),
        false => indirect_edit::remove_last(handle, inode, root, from, most, journaled),
    }
}

/// Where blocks of a file should be allocated.
#[derive(Clone, Copy)]
pub(in crate::fs) struct Goal {
    pub(in crate::fs) block: u64,
    /// How the file block lies to the others of the file.
    pub(in crate::fs) site: Site,
}

/// How a file block lies to the other blocks of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) enum Site {
    /// The file has no blocks.
    First,
    /// Right after another one.
    After,
    /// Between holes.
    Apart,
}

/// Returns the goal for allocating file block `from`: right after the previous block of the file.
/// In a file with extents, as far from its nearest block on the volume as in the file, so that
/// blocks that are written at random join.
///
/// Without a handle, fails with `EAGAIN` if one is needed.
pub(in crate::fs) fn goal(
    handle: Option<&Handle>,
    inode: &Inode<Volume>,
    root: &Root,
    from: u32,
) -> Result<Goal> {
    if inode.data()?.has_extents() {
        return extent_goal(handle, inode, root, from);
    }
    let before = from.checked_sub(1);
    let (block, site) = match before.map(|before| find_in(inode, root, before)) {
        Some(Ok(Run {
            offset,
            start: Some((start, _)),
            ..
        })) => (start + u64::from(from - offset), Site::After),
        Some(Err(error)) => return Err(error),
        _ => (extent_tree::group_goal(inode)?, Site::Apart),
    };
    Ok(Goal { block, site })
}

/// Returns the [`goal`] in a file with extents.
fn extent_goal(handle: Option<&Handle>, inode: &Inode<Volume>, root: &Root, from: u32) -> Result<Goal> {
    let volume = inode.super_block().volume()?;
    let layout = &volume.layout;
    let ino = inode.number();
    let staged = match inode.data()?.has_staged() {
        true => volume.staging.lock().before(ino, from),
        false => None,
    };
    let staged = staged.filter(|part| part.piece.reserved);
    let after = |part: &Stretch| part.end() == u64::from(from);
    // Usually the one in front is on its way to disk as well.
    let before = match staged.filter(after) {
        Some(part) => Some((part.offset, part.piece.start, part.piece.len)),
        None => {
            let staged = staged.map(|part| (part.offset, part.piece.start, part.piece.len));
            let mapped = extent_tree::last_until(inode, root, from)?;
            let mapped = mapped.map(|extent| (extent.offset, extent.start, extent.len));
            staged.max(mapped)
        }
    };
    let (block, site) = match before {
        Some((offset, start, len)) => {
            let site = match u64::from(offset) + u64::from(len) == u64::from(from) {
                true => Site::After,
                false => Site::Apart,
            };
            (start.checked_add(u64::from(from - offset)), site)
        }
        None => {
            let hole = find_in(inode, root, from)?;
            let next = u32::try_from(u64::from(hole.offset).saturating_add(hole.len));
            match next.map(|next| find_in(inode, root, next)) {
                Ok(Ok(Run {
                    offset,
                    start: Some((start, _)),
                    ..
                })) => (start.checked_sub(u64::from(offset - from)), Site::Apart),
                Ok(Err(error)) => return Err(error),
                _ => (first_goal(handle, inode, from)?, Site::First),
            }
        }
    };
    let block = match block.filter(|&block| layout.contains(block, 1)) {
        Some(block) => block,
        None => extent_tree::group_goal(inode)?,
    };
    Ok(Goal { block, site })
}

/// Returns the goal for the first block of a file, if it is `from`. Where the file has a hole in
/// front of it, a place is looked for where there is room for what may be written there later.
fn first_goal(handle: Option<&Handle>, inode: &Inode<Volume>, from: u32) -> Result<Option<u64>> {
    let volume = inode.super_block().volume()?;
    let layout = &volume.layout;
    let goal = extent_tree::group_goal(inode)?;
    if from == 0 {
        return Ok(Some(goal));
    }
    let blocks = inode.size().div_ceil(1 << layout.block_bits);
    let most = layout.blocks_per_group / 4 * 3;
    // The nodes of the mapping come to lie in front.
    let nodes = (blocks / 64 + 8).min(u64::from(most / 8));
    let request = balloc::Request {
        goal,
        want: u32::try_from(blocks + nodes).unwrap_or(u32::MAX).min(most).max(1),
        for_node: false,
        narrow: false,
    };
    match balloc::locate(handle, inode.super_block(), request) {
        Ok((start, _)) => Ok(start.checked_add(nodes + u64::from(from))),
        Err(ENOSPC) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the mapping of byte `position` of a file, for iomap.
pub(in crate::fs) fn of_bytes(inode: &Inode<Volume>, position: u64, _length: u64) -> Result<Mapping> {
    let bits = inode.super_block().volume()?.layout.block_bits;
    let block = u32::try_from(position >> bits).map_err(|_| EFBIG)?;
    let run = of_block(inode, block)?;
    Ok(in_bytes(inode.super_block().volume()?, run, false))
}

/// Returns the mapping of up to `length` bytes at `position`, for iomap; either all of them are
/// shared, or none.
pub(in crate::fs) fn report(inode: &Inode<Volume>, position: u64, length: u64) -> Result<Mapping> {
    let sb = inode.super_block();
    let volume = sb.volume()?;
    let (from, want) = blocks(inode, position, length)?;
    let mut run = of_block(inode, from)?;
    // The journal also calls this, when the owners of blocks may be unknown.
    let own = inode.number() < volume.layout.first_inode;
    let Some((start, true)) = run.start.filter(|_| !own) else {
        return Ok(in_bytes(volume, run, false));
    };
    let skip = u64::from(from - run.offset);
    let len = (run.len - skip).min(want.into());
    let (len, shared) = space::sharing(sb, start + skip, u32::try_from(len).map_err(|_| EFBIG)?)?;
    run = Run {
        offset: from,
        len: len.into(),
        start: Some((start + skip, true)),
    };
    Ok(in_bytes(volume, run, shared))
}

/// Converts a run to iomap's representation.
pub(in crate::fs) fn in_bytes(volume: &Volume, run: Run, shared: bool) -> Mapping {
    let bits = volume.layout.block_bits;
    Mapping {
        position: u64::from(run.offset) << bits,
        length: run.len << bits,
        place: match run.start {
            None => Place::Hole,
            Some((start, true)) => Place::Written(start << bits),
            Some((start, false)) => Place::Unwritten(start << bits),
        },
        shared,
    }
}

/// Reads a metadata block of a file (a directory's, a symbolic link's) with its number on the
/// volume; `None` for a hole.
pub(in crate::fs) fn read_block(inode: &Inode<Volume>, block: u32) -> Result<Option<(u64, Buffer<'_>)>> {
    let run = of_block(inode, block)?;
    let Some((start, true)) = run.start else {
        return Ok(None);
    };
    let sb = inode.super_block();
    let place = start
        .checked_add(u64::from(block - run.offset))
        .ok_or_else(corrupted)?;
    let buffer = Buffer::read(sb, place).inspect_err(|_| {
        pr_err!(
            "{}: inode {}: block {place} cannot be read\n",
            sb.name(),
            inode.number()
        );
    })?;
    Ok(Some((place, buffer)))
}

/// Returns the file block that contains a byte, and the number of blocks up to the end of the
/// range.
pub(in crate::fs) fn blocks(inode: &Inode<Volume>, position: u64, length: u64) -> Result<(u32, u32)> {
    let bits = inode.super_block().volume()?.layout.block_bits;
    let from = u32::try_from(position >> bits).map_err(|_| EFBIG)?;
    let end = position.saturating_add(length).div_ceil(1 << bits);
    let want = u32::try_from(end.saturating_sub(u64::from(from))).unwrap_or(u32::MAX);
    Ok((from, want.max(1)))
}
