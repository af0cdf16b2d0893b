// SPDX-License-Identifier: GPL-2.0

//! Which blocks are shared, and which have lost their last owner.
//!
//! The file of the counts is created before the first block of the volume is shared. Until then no
//! block has more than one owner, and no tree is needed. The counts are derived from the reverse
//! map, so a tree of counts that cannot be updated, or is found wrong, is recounted from the
//! reverse map of its region.
//!
//! Blocks that lose an owner while the counts are stale are looked up in the reverse map. If that
//! is stale as well, they are parked: they stay allocated until it is good again
//! ([`super::freeing`]).
//!
//! Too low a count would let us free, or overwrite in place, another file's blocks. Before either,
//! we therefore check the reverse map as well, which takes a single lookup if both agree. If they
//! disagree, both trees become stale and the blocks are parked until both are rebuilt from the
//! inodes.

use super::{
    index::RmapIndex,
    region::{locate, LockedRegion},
};
use crate::{
    engine::{
        self,
        record::{Kind, Record, Rmap},
    },
    kernel_glue::Handle,
};
use kernel::prelude::*;

impl RmapIndex {
    /// Called before blocks lose an owner. Adds those whose last owner this is to `lost`. Returns
    /// false if the counts are stale or cannot be read.
    pub(super) fn lost_by_counts(
        &self,
        handle: &Handle,
        region: &mut LockedRegion<'_>,
        part: &Rmap,
        lost: &mut KVVec<(u64, u32)>,
    ) -> Result<bool> {
        let counts = match self.counts() {
            Some(counts) if region.refcount.good => counts,
            _ => return Ok(false),
        };
        let start = self.start_of(region.number());
        let before = lost.len();
        let looked = counts.look(region, |tree| {
            tree.each_count(part.start, part.len, &mut |first, len, count| {
                if count == 1 {
                    lost.push((start + u64::from(first), len), GFP_KERNEL)?;
                }
                Ok(true)
            })
        });
        match looked {
            Ok(()) => {
                region.parked.unpark(part.start, part.len)?;
                Ok(true)
            }
            Err(error) => {
                lost.truncate(before);
                counts.report(region.number(), error);
                self.mark_counts_stale(handle, region)?;
                Ok(false)
            }
        }
    }

    /// Called after blocks have lost an owner. Returns whether the reverse map agrees that exactly
    /// the `lost` blocks have no owner left. If it does not, both trees become stale.
    pub(super) fn agrees(
        &self,
        handle: &Handle,
        region: &mut LockedRegion<'_>,
        part: &Rmap,
        lost: &[(u64, u32)],
    ) -> Result<bool> {
        if !region.rmap.good {
            return Ok(true);
        }
        let mut unowned = KVVec::new();
        match self.unowned(region, (part.start, part.len), &mut unowned) {
            Ok(()) if *unowned == *lost => return Ok(true),
            Ok(()) => pr_err!(
                "{}: refcount: region {}: counts and reverse map disagree about blocks {} to {} of the region\n",
                self.super_block().name(),
                region.number(),
                part.start,
                part.last()
            ),
            Err(error) => {
                self.rmap.report(region.number(), error);
                self.mark_rmap_stale(handle, region)?;
                return Ok(true);
            }
        }
        self.mark_counts_stale(handle, region)?;
        self.mark_rmap_stale(handle, region)?;
        Ok(false)
    }

    /// Returns true if the reverse map is good and records more than one owner for any block of a
    /// run. CoW staging does not count.
    fn has_several(&self, region: &LockedRegion<'_>, first: u32, last: u32) -> bool {
        if !region.rmap.good {
            return false;
        }
        let mut several = false;
        let mut next = first;
        let looked = self.rmap.look(region, |tree| {
            tree.overlapping(first, last, &mut |record: &Rmap| {
                if record.kind == Kind::Data {
                    several |= record.start.max(first) < next;
                    next = next.max(record.last().saturating_add(1));
                }
                Ok(!several)
            })
        });
        looked.is_ok() && several
    }

    /// Called after blocks have lost an owner while the counts were stale. Adds those without an
    /// owner in the reverse map to `lost`. If the reverse map is stale as well, the blocks are
    /// parked.
    pub(super) fn lost_by_owners(
        &self,
        region: &mut LockedRegion<'_>,
        part: &Rmap,
        lost: &mut KVVec<(u64, u32)>,
    ) -> Result {
        let before = lost.len();
        region.parked.unpark(part.start, part.len)?;
        if region.rmap.good {
            match self.unowned(region, (part.start, part.len), lost) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    lost.truncate(before);
                    self.rmap.report(region.number(), error);
                }
            }
        }
        region.parked.park(part.start, part.len)?;
        self.keeper.kick();
        Ok(())
    }

    /// Adds those blocks of a run to `out` that have no owner in the region's reverse map, which
    /// must be good.
    pub(super) fn unowned(
        &self,
        region: &LockedRegion<'_>,
        run: (u32, u32),
        out: &mut KVVec<(u64, u32)>,
    ) -> engine::Result {
        let start = self.start_of(region.number());
        self.rmap.look(region, |tree| {
            tree.unowned(run, &mut |first, len| {
                Ok(out.push((start + u64::from(first), len), GFP_KERNEL)?)
            })
        })
    }

    /// Returns `(n, shared)`: whether the first `n` blocks have more than one owner. Blocks of
    /// stale regions count as shared.
    pub(super) fn look_up_sharing(&self, start: u64, len: u32) -> Result<(u32, bool)> {
        let frame = &self.rmap.file.frame;
        let (number, within) = locate(frame, start).ok_or(EINVAL)?;
        let len = len.min(frame.region_blocks - within);
        let mut region = self.lock(number)?;
        let counts = match self.counts() {
            Some(counts) if region.refcount.good => counts,
            _ => return Ok((len, true)),
        };
        let mut found = (len, false);
        let looked = counts.look(&region, |tree| {
            let mut first = None;
            tree.each_count(within, len, &mut |_, part, count| {
                match &mut first {
                    None => first = Some((part, count > 1)),
                    // Adjacent runs that are all shared are reported as one, even if their counts
                    // differ.
                    Some((so_far, true)) if count > 1 => *so_far += part,
                    Some(_) => return Ok(false),
                }
                Ok(true)
            })?;
            found = first.unwrap_or((len, false));
            Ok(())
        });
        match looked {
            Ok(()) if found.1 => return Ok(found),
            Ok(()) => {
                let last = within + found.0.saturating_sub(1);
                if !self.has_several(&region, within, last) {
                    return Ok(found);
                }
                pr_err!(
                    "{}: refcount: region {number}: blocks {within} to {last} of the region are shared but have no reference count\n",
                    self.super_block().name()
                );
            }
            Err(error) => {
                counts.report(number, error);
            }
        }
        // No handle is open, so the stale state is not stored now; the recount will store the
        // entry.
        region.refcount.good = false;
        self.note_sharing(&mut region, true);
        self.keeper.kick();
        Ok((len, true))
    }
}
