// SPDX-License-Identifier: GPL-2.0

//! Reaping: freeing the blocks of trees that are not in use, which are replaced trees and staged
//! trees of rebuilds that did not complete.
//!
//! The region's entry says that such blocks may exist, from before the first one is allocated until
//! all are freed, so that blocks left behind by a crash are freed after the next mount.

use crate::{
    format::tree_file::Kind,
    trees::{
        cost,
        index::{reserve, RmapIndex},
    },
};
use kernel::prelude::*;

/// Sees to it that `wanted` blocks of a tree file are free, and on top of that the reserve, if the
/// volume has room for it. If it has not even room for the former, the stale trees of the file make
/// room, since nothing in them is used any more.
///
/// Must be called by the repair that runs, without a handle or a region's lock held. Fails with
/// `ENOSPC`.
pub(super) fn make_room(index: &RmapIndex, kind: Kind, wanted: u32) -> Result {
    let file = index.file_of(kind).ok_or(EINVAL)?;
    let (blocks, _) = file.blocks();
    match file.grow(wanted.saturating_add(reserve(blocks))) {
        Err(ENOSPC) => (),
        done => return done,
    }
    if file.blocks().1 < wanted {
        let is_stale = |region| index.lock(region).is_ok_and(|state| !state.entry(kind).good);
        reap(index, kind, &is_stale)?;
    }
    file.grow(wanted)
}

/// In the regions that `picked` selects, frees the blocks whose generation is not that of the
/// current tree.
///
/// Must not be called with a handle or a region lock held.
pub(super) fn reap(index: &RmapIndex, kind: Kind, picked: &dyn Fn(u32) -> bool) -> Result {
    let Some(file) = index.file_of(kind) else {
        return Ok(());
    };
    let mut keep = KVVec::with_capacity(index.regions() as usize, GFP_KERNEL)?;
    let mut any = false;
    for region in 0..index.regions() {
        let entry = index.lock(region)?.entry(kind);
        let reaps = entry.reap && picked(region);
        any |= reaps;
        // A stale tree is not used, and no tree has generation 0.
        let current = if entry.good { entry.generation } else { 0 };
        keep.push(reaps.then_some(current), GFP_KERNEL)?;
    }
    if !any {
        return Ok(());
    }
    file.reap(&|region, generation| {
        matches!(keep.get(region as usize), Some(Some(current)) if *current != generation)
    })?;
    let sb = index.super_block();
    for (region, _) in (0..).zip(keep.iter()).filter(|(_, keep)| keep.is_some()) {
        let _write = sb.internal_write();
        let handle = sb.volume()?.begin_internal(cost::ENTRY, 0)?;
        index.set_reap(&handle, region, kind, false)?;
        handle.stop()?;
    }
    Ok(())
}
