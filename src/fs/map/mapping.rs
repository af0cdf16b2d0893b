// SPDX-License-Identifier: GPL-2.0

//! From a block of a file to a block of the volume, and changes of this mapping, for files with and
//! without extents.

use crate::{
    format::extent::{max_len, Extent},
    fs::{
        alloc::space,
        map::{
            extent_tree::{self, Root},
            extents, indirect, indirect_edit,
            run::Run,
        },
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
/// In a file without extents, blocks reserved for data that is not on disk yet count as unwritten.
pub(in crate::fs) fn find_in(inode: &Inode<Volume>, root: &Root, block: u32) -> Result<Run> {
    let data = inode.data()?;
    if data.has_extents() {
        return extents::find_in(inode, root, block);
    }
    let run = indirect::find_in(inode, root, block)?;
    if run.start.is_some() || !data.has_staged() {
        return Ok(run);
    }
    let volume = inode.super_block().volume()?;
    let found = volume.staging.lock().find(inode.number(), block);
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

/// Returns the goal for allocating file block `from`: right after the previous block of the file.
pub(in crate::fs) fn goal(inode: &Inode<Volume>, root: &Root, from: u32) -> Result<u64> {
    let before = from.checked_sub(1);
    match before.map(|before| find_in(inode, root, before)) {
        Some(Ok(Run {
            offset,
            start: Some((start, _)),
            ..
        })) => Ok(start + u64::from(from - offset)),
        Some(Err(error)) => Err(error),
        _ => extent_tree::group_goal(inode),
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
