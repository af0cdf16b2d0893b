// SPDX-License-Identifier: GPL-2.0

//! Freeing blocks that were parked, that a crash left staged, or that no inode owns.

use super::{
    cost,
    forest::Forest,
    index::RmapIndex,
    region::{locate, LockedRegion},
};
use crate::{
    engine::{
        self,
        rebuild::Update,
        record::{Kind, Record, Rmap},
        refcount::{Count, Turn, STAGED},
    },
    fs::{scan, space},
};
use kernel::prelude::*;

/// A tree that could not be read.
enum Bad {
    Counts(engine::Error),
    Owners(engine::Error),
}

impl RmapIndex {
    /// Returns whether any region has parked blocks.
    pub(crate) fn has_parked(&self) -> Result<bool> {
        for region in 0..self.regions() {
            if !self.lock(region)?.parked.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Frees the parked blocks of a region that have no owner left, if its reverse map is good again.
    ///
    /// Must not be called with a handle open.
    pub(crate) fn free_parked(&self, number: u32) -> Result {
        loop {
            let mut lost = KVVec::new();
            {
                let mut region = self.lock(number)?;
                if !region.rmap.good {
                    return Ok(());
                }
                let Some(run) = region.parked.take() else {
                    return Ok(());
                };
                if let Err(error) = self.unowned(&region, run, &mut lost) {
                    region.parked.park(run.0, run.1)?;
                    return Err(self.rmap.report(number, error));
                }
            }
            for &(start, len) in lost.iter() {
                space::release(self.super_block(), start, len)?;
            }
        }
    }

    /// Adds the reverse map's records of a region's staged blocks to `out`.
    fn staged(
        &self,
        counts: &Forest<Count>,
        region: &LockedRegion<'_>,
        out: &mut KVVec<Rmap>,
    ) -> core::result::Result<(), Bad> {
        let mut runs: KVVec<Count> = KVVec::new();
        counts
            .look(region, |tree| {
                tree.overlapping(STAGED, u32::MAX, &mut |record| {
                    runs.push(*record, GFP_KERNEL)?;
                    Ok(true)
                })
            })
            .map_err(Bad::Counts)?;
        for run in runs.iter() {
            let (first, last) = (run.start & !STAGED, run.last() & !STAGED);
            self.rmap
                .look(region, |tree| {
                    tree.overlapping(first, last, &mut |record: &Rmap| {
                        if record.kind == Kind::Cow {
                            out.push(*record, GFP_KERNEL)?;
                        }
                        Ok(true)
                    })
                })
                .map_err(Bad::Owners)?;
        }
        Ok(())
    }

    /// Frees the staged blocks that a crash left in a region, and returns how many there were; `None` when a tree could
    /// not be read and was marked stale. Nobody may be staging blocks meanwhile.
    ///
    /// Must not be called with a handle open.
    pub(crate) fn free_staged(&self, number: u32) -> Result<Option<u32>> {
        let sb = self.super_block();
        let mut left: KVVec<Rmap> = KVVec::new();
        {
            let handle = sb.volume()?.begin_internal(cost::MARK_STALE, 0)?;
            let mut region = self.lock(number)?;
            let counts = match self.counts() {
                Some(counts) if region.rmap.good && region.refcount.good => counts,
                _ => return Ok(Some(0)),
            };
            match self.staged(counts, &region, &mut left) {
                Ok(()) => (),
                Err(Bad::Counts(error)) => {
                    counts.report(number, error);
                    self.mark_counts_stale(&handle, &mut region)?;
                    return Ok(None);
                }
                Err(Bad::Owners(error)) => {
                    self.rmap.report(number, error);
                    self.mark_rmap_stale(&handle, &mut region)?;
                    return Ok(None);
                }
            }
        }
        let mut freed = 0;
        for record in left.iter() {
            let start = self.start_of(number) + u64::from(record.start);
            space::release_with(sb, start, record.len, &mut |handle| {
                let turn = Turn {
                    start: STAGED | record.start,
                    len: record.len,
                    up: false,
                };
                self.change(handle, number, &[Update::Remove(*record)], Some(turn))
            })?;
            freed += record.len;
        }
        Ok(Some(freed))
    }

    /// Frees the blocks of a region that the bitmaps call used and that have no owner in its reverse map, which was just
    /// rebuilt from the inodes, and returns how many there were. Nobody may be changing owners meanwhile.
    ///
    /// # Errors
    ///
    /// `EFSCORRUPTED` or `EIO` when a bitmap or the map cannot be read. Must not be called with a handle open.
    pub(crate) fn free_unowned(&self, number: u32) -> Result<u64> {
        let sb = self.super_block();
        let layout = sb.volume()?.layout();
        let frame = &self.rmap.file.frame;
        let each = layout.blocks_per_group.max(1);
        let first = number.saturating_mul(frame.region_blocks / each);
        let last = first
            .saturating_add(frame.region_blocks / each)
            .min(layout.groups);
        let mut freed = 0;
        for group in first..last {
            let mut lost = KVVec::new();
            {
                let mut used: KVVec<(u32, u32)> = KVVec::new();
                scan::used_blocks(sb, group, &mut |start, len| {
                    let (_, within) = locate(frame, start).ok_or(EINVAL)?;
                    Ok(used.push((within, len), GFP_KERNEL)?)
                })?;
                let region = self.lock(number)?;
                if !region.rmap.good {
                    return Ok(freed);
                }
                for &run in used.iter() {
                    self.unowned(&region, run, &mut lost)
                        .map_err(|error| self.rmap.report(number, error))?;
                }
            }
            for &(start, len) in lost.iter() {
                space::release(sb, start, len)?;
                freed += u64::from(len);
            }
        }
        Ok(freed)
    }
}
