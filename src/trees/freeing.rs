// SPDX-License-Identifier: GPL-2.0

//! Freeing blocks that were parked, left staged by a crash, or have no owner.
//!
//! After its reverse map is rebuilt, a region stays *unsettled*, also on disk, until these blocks
//! are freed, so that a crash in between does not leak them: the next mount rebuilds the map again
//! and frees the blocks without an owner in it ([`RmapIndex::owes`], [`RmapIndex::free_unowned`]).

use super::{cost, forest::Forest, index::RmapIndex, region::LockedRegion};
use crate::{
    engine::{
        self,
        rebuild::Update,
        record::{Kind, Record, Rmap},
        refcount::{Count, Turn, STAGED},
    },
    format::tree_file::Region,
    fs::{scan, space},
    kernel_glue::NoReclaim,
};
use core::ops::Range;
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

    /// Frees those parked blocks of a region that have no owner left, if its reverse map is good
    /// again.
    ///
    /// Must not be called with a handle open.
    fn free_parked(&self, number: u32) -> Result {
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
            self.release(number, &lost)?;
        }
    }

    /// Adds those blocks of a run of a region to `out` that have no owner in its reverse map, as
    /// first block on the volume and length. Returns false, with nothing added, when that cannot be
    /// told yet: the reverse map is stale, or blocks are parked until they are freed.
    ///
    /// # Errors
    ///
    /// `EFSCORRUPTED`, `EIO` or `ENOMEM` when the reverse map cannot be read.
    pub(crate) fn confirm_unowned(
        &self,
        number: u32,
        run: (u32, u32),
        out: &mut KVVec<(u64, u32)>,
    ) -> Result<bool> {
        let _no_reclaim = NoReclaim::new();
        let region = self.lock(number)?;
        if !region.rmap.good || !region.parked.is_empty() {
            return Ok(false);
        }
        self.unowned(&region, run, out)
            .map_err(|error| self.rmap.report(number, error))?;
        Ok(true)
    }

    /// Frees blocks of a region that were parked and have no owner. Those that cannot be freed are
    /// parked again.
    fn release(&self, number: u32, lost: &[(u64, u32)]) -> Result {
        let start = self.start_of(number);
        for (done, &(first, len)) in lost.iter().enumerate() {
            let Err(error) = space::release(self.super_block(), first, len) else {
                continue;
            };
            let mut region = self.lock(number)?;
            for &(first, len) in lost.get(done..).unwrap_or_default() {
                // The next mount finds what this one does not remember.
                region.owes |= region.parked.park((first - start) as u32, len).is_err();
            }
            return Err(error);
        }
        Ok(())
    }

    /// Returns the parked runs of a region in order, if its reverse map is stale.
    pub(crate) fn parked_while_stale(&self, number: u32) -> Result<KVVec<(u32, u32)>> {
        let region = self.lock(number)?;
        match region.rmap.good {
            true => Ok(KVVec::new()),
            false => Ok(region.parked.runs()?),
        }
    }

    /// Frees those parked blocks of a region that a scan has found without an owner, since its
    /// reverse map is stale and cannot tell. `lost` are in order. Only one caller may do this, or
    /// rebuild the region, at a time. Returns how many blocks were freed.
    ///
    /// A block without an owner gets none as long as it is allocated, so it does not matter how
    /// long ago the scan ended.
    ///
    /// Must not be called with a handle open.
    pub(crate) fn free_parked_by_scan(&self, number: u32, lost: &[(u32, u32)]) -> Result<u64> {
        let start = self.start_of(number);
        let mut runs = KVVec::with_capacity(lost.len(), GFP_KERNEL)?;
        let mut blocks = 0;
        for &(first, len) in lost {
            runs.push((start + u64::from(first), len), GFP_KERNEL)?;
            blocks += u64::from(len);
        }
        {
            let mut region = self.lock(number)?;
            if region.rmap.good {
                return Ok(0);
            }
            region.parked.subtract(lost)?;
        }
        self.release(number, &runs)?;
        Ok(blocks)
    }

    /// Returns whether an earlier mount may have left blocks without an owner allocated in a
    /// region.
    pub(crate) fn owes(&self, number: u32) -> Result<bool> {
        Ok(self.lock(number)?.owes)
    }

    /// Frees the parked blocks of a region, and marks it as settled on disk if nothing else remains
    /// to be freed.
    ///
    /// Must not be called with a handle open.
    pub(crate) fn settle(&self, number: u32) -> Result {
        self.free_parked(number)?;
        let is_settled = |region: &LockedRegion<'_>| {
            region.rmap.good && region.rmap.unsettled && !region.owes && region.parked.is_empty()
        };
        if !is_settled(&self.lock(number)?) {
            return Ok(());
        }
        let sb = self.super_block();
        let _write = sb.internal_write();
        let handle = sb.volume()?.begin_internal(cost::ENTRY, 0)?;
        let mut region = self.lock(number)?;
        if is_settled(&region) {
            let entry = Region {
                unsettled: false,
                ..region.rmap
            };
            self.rmap.store_entry(&handle, &mut region, entry)?;
        }
        drop(region);
        handle.stop()
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

    /// Frees the staged blocks that a crash left behind in a region, and returns their number;
    /// `None` if a tree could not be read and was marked stale. No task may be staging blocks at
    /// the same time.
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

    /// Frees the blocks of a region that are allocated in the bitmaps but have no owner in its
    /// reverse map, and returns their number. No owners may be changing at the same time. Does
    /// nothing unless the reverse map is good. `may` is called before the first block is freed; if
    /// it returns false, nothing is freed. Groups whose bitmap cannot be read, or contradicts the
    /// map, are skipped; the region then still owes their blocks.
    ///
    /// # Errors
    ///
    /// `EFSCORRUPTED` or `EIO` when the map cannot be read. Must not be called with a handle open.
    pub(crate) fn free_unowned(&self, number: u32, may: &mut dyn FnMut() -> Result<bool>) -> Result<u64> {
        let sb = self.super_block();
        // Regions are not necessarily aligned to groups.
        let blocks = self.blocks_of(number)?;
        let groups = sb.volume()?.layout().groups_of(&blocks).ok_or(EINVAL)?;
        let Range { start, end } = blocks;
        let (mut freed, mut complete) = (0, true);
        for group in groups {
            let mut lost = KVVec::new();
            {
                let mut used: KVVec<(u32, u32)> = KVVec::new();
                let listed = scan::used_blocks(sb, group, &mut |first, len| {
                    let (from, to) = (first.max(start), (first + u64::from(len)).min(end));
                    if from < to {
                        used.push(((from - start) as u32, (to - from) as u32), GFP_KERNEL)?;
                    }
                    Ok(())
                });
                match listed {
                    Ok(()) => (),
                    Err(ENOMEM) => return Err(ENOMEM),
                    Err(_) => {
                        complete = false;
                        continue;
                    }
                }
                let region = self.lock(number)?;
                if !region.rmap.good {
                    return Ok(freed);
                }
                for &run in used.iter() {
                    self.unowned(&region, run, &mut lost)
                        .map_err(|error| self.rmap.report(number, error))?;
                }
            }
            if !lost.is_empty() && !may()? {
                return Ok(freed);
            }
            for &(start, len) in lost.iter() {
                match space::release(sb, start, len) {
                    Ok(()) => freed += u64::from(len),
                    Err(error) if sb.volume()?.journal()?.is_aborted() => return Err(error),
                    Err(_) => complete = false,
                }
            }
        }
        if complete {
            self.lock(number)?.owes = false;
        }
        Ok(freed)
    }
}
