// SPDX-License-Identifier: GPL-2.0

//! The blocks that no file may have: superblocks, descriptors, bitmaps, inode tables and the journal.
//!
//! They are listed once, at mount. Whatever takes blocks, frees them or finds them in a mapping asks here, so that a
//! damaged bitmap or mapping does not lead to damage of what holds the volume together.

use crate::{
    format::{inode::RESIZE, zones, Corrupt},
    fs::{disk::errors, state::Volume},
    kernel_glue::Inode,
};
use kernel::prelude::*;

/// Whether any of these blocks is one of them.
pub(in crate::fs) fn meets(volume: &Volume, start: u64, len: u32) -> bool {
    volume
        .fixed
        .as_ref()
        .is_some_and(|zones| zones::meets(zones, start, len))
}

/// Hands out the parts of a run of blocks that are none of them: first block and number.
pub(in crate::fs) fn outside(
    volume: &Volume,
    start: u64,
    len: u32,
    out: &mut dyn FnMut(u64, u32) -> Result,
) -> Result {
    let zones = volume.fixed.as_ref().ok_or(EINVAL)?;
    let end = start.saturating_add(u64::from(len));
    zones::outside(zones, start, end, &mut |from, to| out(from, (to - from) as u32))
}

/// Fails with `EFSCORRUPTED` if an inode's mapping leads to one of them, unless that is what the inode is for.
pub(in crate::fs) fn check(inode: &Inode<Volume>, start: u64, len: u32) -> Result {
    let sb = inode.super_block();
    let volume = sb.volume()?;
    let is_for_that = [RESIZE, volume.layout.journal_inode].contains(&inode.number());
    if !is_for_that && meets(volume, start, len) {
        let what = Corrupt("mapping leads to blocks of the file system");
        return Err(errors::corrupt_inode(sb, inode.number(), Some(start), what));
    }
    Ok(())
}
