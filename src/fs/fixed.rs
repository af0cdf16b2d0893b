// SPDX-License-Identifier: GPL-2.0

//! The blocks that no file may have: superblocks, descriptors, bitmaps, inode tables and the journal.
//!
//! They are listed once, at mount. Whatever takes blocks, frees them or finds them in a mapping asks here, so that a
//! damaged bitmap or mapping does not lead to damage of what holds the volume together.

use super::{groups, inode, scan, super_block, Volume};
use crate::{
    format::{
        inode::RESIZE,
        zones::{self, Zone},
        Corrupt,
    },
    kernel_glue::{Inode, SuperBlock},
};
use kernel::prelude::*;

/// Lists them; the descriptors have been read once.
pub(super) fn load(volume: &Volume, sb: &SuperBlock<Volume>) -> Result {
    let layout = &volume.layout;
    let mut zones: KVVec<Zone> = KVVec::new();
    let mut add = |start: u64, len: u32| -> Result {
        let end = start.saturating_add(u64::from(len));
        match zones.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => zones.push(Zone { start, end }, GFP_KERNEL)?,
        }
        Ok(())
    };
    for number in 0..layout.groups {
        let group = super_block::group(volume, sb, number)?;
        for (start, len) in groups::fixed_blocks(volume, number, &group) {
            add(start, len)?;
        }
    }
    if layout.journal_inode != 0 {
        // Without its journal a volume can still be read, and who wants to write it will find out.
        if let Ok(journal) = inode::get(sb, layout.journal_inode) {
            let map = scan::lock_map(&journal)?;
            let listed = scan::for_each_owned(&journal, &map, &mut |start, len, _| add(start, len));
            drop(map);
            if listed.is_err() && !sb.is_read_only() {
                return listed;
            }
        }
    }
    let kept = zones::settle(&mut zones);
    zones.truncate(kept);
    volume.fixed.populate(zones);
    Ok(())
}

/// Whether any of these blocks is one of them.
pub(super) fn meets(volume: &Volume, start: u64, len: u32) -> bool {
    volume
        .fixed
        .as_ref()
        .is_some_and(|zones| zones::meets(zones, start, len))
}

/// Hands out the parts of a run of blocks that are none of them: first block and number.
pub(super) fn outside(
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
pub(super) fn check(inode: &Inode<Volume>, start: u64, len: u32) -> Result {
    let sb = inode.super_block();
    let volume = sb.volume()?;
    let is_for_that = [RESIZE, volume.layout.journal_inode].contains(&inode.number());
    if !is_for_that && meets(volume, start, len) {
        let what = Corrupt("mapping leads to blocks of the file system");
        return Err(super::corrupt_inode(sb, inode.number(), Some(start), what));
    }
    Ok(())
}
