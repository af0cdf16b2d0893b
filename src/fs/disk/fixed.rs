// SPDX-License-Identifier: GPL-2.0

//! Fixed metadata: superblocks, descriptors, bitmaps, inode tables and the journal.
//!
//! These blocks are listed once, at mount. Code that allocates blocks, frees them or finds them in
//! a mapping checks them against this list, so that a damaged bitmap or mapping does not cause
//! damage to other metadata.

use crate::{
    format::{bitmap, inode::RESIZE, zones, Corrupt},
    fs::{disk::errors, state::Volume},
    kernel_glue::Inode,
};
use kernel::prelude::*;

/// Returns true if any of these blocks is fixed metadata.
pub(in crate::fs) fn meets(volume: &Volume, start: u64, len: u32) -> bool {
    volume
        .fixed
        .as_ref()
        .is_some_and(|zones| zones::meets(zones, start, len))
}

/// Calls back with the first block and length of each part of a run that is not fixed metadata.
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

/// Sets the bits of blocks that are fixed metadata, and clears the others. Bit 0 is `start`.
pub(crate) fn mark(volume: &Volume, start: u64, len: u32, bits: &mut [u8]) -> Result {
    bitmap::assign(bits, 0, len, true);
    outside(volume, start, len, &mut |from, len| {
        bitmap::assign(bits, (from - start) as u32, len, false);
        Ok(())
    })
}

/// Fails with `EFSCORRUPTED` if an inode's mapping refers to fixed metadata, unless the inode is
/// the one that owns it.
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
