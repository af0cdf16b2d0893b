// SPDX-License-Identifier: GPL-2.0

//! From a block of a file to a block of the volume.

use crate::{
    fs::{
        alloc::space,
        map::{extents, indirect, run::Run},
        state::Volume,
    },
    kernel_glue::{corrupted, Buffer, Inode, Mapping, Place},
};
use kernel::prelude::*;

/// What holds `block` of a file.
///
/// Fails with `EFSCORRUPTED` when the mapping cannot be right, and with `EIO` or `ENOMEM`.
pub(in crate::fs) fn of_block(inode: &Inode<Volume>, block: u32) -> Result<Run> {
    if inode.data()?.has_extents() {
        extents::find(inode, block)
    } else {
        indirect::find(inode, block)
    }
}

/// What holds byte `position` of a file, as iomap wants it.
pub(in crate::fs) fn of_bytes(inode: &Inode<Volume>, position: u64, _length: u64) -> Result<Mapping> {
    let bits = inode.super_block().volume()?.layout.block_bits;
    let block = u32::try_from(position >> bits).map_err(|_| EFBIG)?;
    let run = of_block(inode, block)?;
    Ok(in_bytes(inode.super_block().volume()?, run, false))
}

/// The same, up to `length` bytes, all of them shared with others or none.
pub(in crate::fs) fn report(inode: &Inode<Volume>, position: u64, length: u64) -> Result<Mapping> {
    let sb = inode.super_block();
    let volume = sb.volume()?;
    let (from, want) = blocks(inode, position, length)?;
    let mut run = of_block(inode, from)?;
    // The journal asks, too, when nobody knows who owns what yet, or any more.
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

/// A run as iomap wants it.
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

/// Reads a metadata block of a file (a directory's, a symbolic link's) with its number on the volume; `None` for a hole.
pub(in crate::fs) fn read_block(inode: &Inode<Volume>, block: u32) -> Result<Option<(u64, Buffer)>> {
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

/// The file block that a byte is in, and how many blocks there are to the end of the bytes.
pub(in crate::fs) fn blocks(inode: &Inode<Volume>, position: u64, length: u64) -> Result<(u32, u32)> {
    let bits = inode.super_block().volume()?.layout.block_bits;
    let from = u32::try_from(position >> bits).map_err(|_| EFBIG)?;
    let end = position.saturating_add(length).div_ceil(1 << bits);
    let want = u32::try_from(end.saturating_sub(u64::from(from))).unwrap_or(u32::MAX);
    Ok((from, want.max(1)))
}
