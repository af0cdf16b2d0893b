// SPDX-License-Identifier: GPL-2.0

//! The names of all directories under check.

use crate::{
    format::{dir::Entries, inode::is_free, Corrupt},
    fs::{
        disk::{errors::corrupt_inode, inode},
        names::dir_block::{blocks, walk_block},
        state::Volume,
    },
    kernel_glue::{Buffer, Locked, SuperBlock},
};
use kernel::prelude::*;

/// Returns whether the slot of an inode is that of a directory. The answer may be outdated at once.
///
/// # Errors
///
/// `EINVAL` for an invalid number, `EIO` when the slot cannot be read.
pub(crate) fn is_directory(sb: &SuperBlock<Volume>, ino: u32) -> Result<bool> {
    let volume = sb.volume()?;
    let (group, index) = volume.layout.locate_inode(ino).ok_or(EINVAL)?;
    let (block, offset) = inode::place(volume, sb, group, index)?;
    let buffer = Buffer::read(sb, block)?;
    let _table = volume.lock_table(block)?;
    let bytes = buffer.bytes()?;
    let slot = bytes.get(offset..).ok_or(EIO)?;
    let mode = slot.first_chunk().map_or(0, |&mode| u16::from_le_bytes(mode));
    Ok(!is_free(slot) && mode >> 12 == 4)
}

/// Calls `out` with the inode of each entry of a directory, and the name.
///
/// # Errors
///
/// `EFSCORRUPTED` when a block of the directory is damaged, `EIO`, `EINTR`, and errors of `out`.
pub(crate) fn for_each_name(dir: &Locked<Volume>, out: &mut dyn FnMut(u32, &[u8]) -> Result) -> Result {
    let sb = dir.super_block();
    let layout = &sb.volume()?.layout;
    for number in 0..blocks(dir)? {
        let (place, block) = walk_block(dir, number)?;
        let bad = |what| corrupt_inode(sb, dir.number(), Some(place), what);
        for entry in Entries::new(layout, &block.bytes()?) {
            let entry = entry.map_err(bad)?;
            if entry.inode == 0 {
                continue;
            }
            if !entry.has_valid_name() {
                return Err(bad(Corrupt("bad directory name")));
            }
            out(entry.inode, entry.name)?;
        }
    }
    Ok(())
}
