// SPDX-License-Identifier: GPL-2.0

//! Both forests of a mounted volume: the reverse map and the reference counts.
//!
//! Both trees of a region change under one lock, and in the same transactions as the block bitmaps.
//! A tree that cannot be updated (because of a bad node, or because no block is left for a new
//! node) is marked stale in the same transaction. The user's operation succeeds regardless, and the
//! [`Keeper`] is asked to rebuild the tree.
//!
//! A [`Watcher`] can subscribe to all changes of a region, under the same lock, so that each change
//! happens entirely before or entirely after the subscription. While there are no subscriptions at
//! all, a static key skips the check for a watcher.

use super::{
    cost,
    file::TreeFile,
    forest::{Forest, Indexed},
    region::{frame, LockedRegion, RegionState, Regions, Watcher},
};
use crate::{
    engine::{btree::Root, record::Rmap, refcount::Count},
    format::tree_file::{Kind, Left, Region, Stamp},
    fs::Volume,
    kernel_glue::{Handle, SuperBlock},
};
use core::{any::Any, ops::Range};
use kernel::{
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, SetOnce,
    },
};

/// The layer above, which repairs stale trees. Called with locks held, so it must not sleep.
pub(crate) trait Keeper: Send + Sync {
    /// A region became stale, or few free blocks are left in a tree file.
    fn kick(&self);
    /// Returns `self` for a downcast.
    fn as_any(&self) -> &dyn Any;
}

/// Both trees of each region of a mounted volume.
pub(crate) struct RmapIndex {
    /// The reverse map.
    pub(crate) rmap: Forest<Rmap>,
    /// The reference counts, once their file exists.
    counts: SetOnce<Forest<Count>>,
    regions: Regions,
    /// Notified when a repair is needed.
    pub(crate) keeper: Arc<dyn Keeper>,
    /// The lag reported by a watcher; reset when a task has waited for it.
    pub(super) lag: Atomic<u32>,
    /// Number of regions that may have shared blocks.
    sharing_regions: Atomic<i32>,
    /// The superblock's stamp while the volume is in use.
    in_use: Stamp,
}

/// Number of free blocks to maintain in a file, so that no change runs out of them.
pub(crate) fn reserve(blocks: u32) -> u32 {
    (blocks / 16).clamp(32, 4096)
}

impl RmapIndex {
    fn new(rmap: Forest<Rmap>, keeper: Arc<dyn Keeper>, in_use: Stamp) -> Result<Self> {
        let regions = Regions::new(rmap.file.frame.regions)?;
        Ok(RmapIndex {
            rmap,
            counts: SetOnce::new(),
            regions,
            keeper,
            lag: Atomic::new(0),
            sharing_regions: Atomic::new(0),
            in_use,
        })
    }

    /// Opens the volume's reverse map. `before` is the state of the superblock before the mount,
    /// `now` its stamp while in use.
    ///
    /// # Errors
    ///
    /// As for [`Forest::open`]. Must not be called with a handle open.
    pub(crate) fn open(
        sb: &SuperBlock<Volume>,
        before: &Left,
        now: &Stamp,
        keeper: Arc<dyn Keeper>,
    ) -> Result<Self> {
        let rmap = Forest::open(sb, &frame(sb.volume()?.layout()), Some(before))?;
        let index = Self::new(rmap, keeper, *now)?;
        let shares = sb.volume()?.shares();
        for number in 0..index.regions() {
            // On a volume with shared blocks, an unsettled region is treated as stale: blocks that
            // an earlier mount may have left without an owner are freed only on the basis of a scan
            // of this mount, which knows about inodes that could not be read. Without shared
            // blocks, losing the last owner is always noticed.
            let entry = index.rmap.load(number, |entry| !(shares && entry.unsettled))?;
            let mut region = index.lock(number)?;
            region.rmap = entry;
            region.owes = shares && !entry.good;
        }
        Ok(index)
    }

    /// Opens the trees of a volume that is mounted read-only, for queries; returns `None` if none
    /// can be trusted. `left` is the state of the superblock.
    ///
    /// # Errors
    ///
    /// `EFSCORRUPTED`, `ENOMEM`, `EIO`.
    pub(crate) fn open_read_only(
        sb: &SuperBlock<Volume>,
        left: &Left,
        keeper: Arc<dyn Keeper>,
    ) -> Result<Option<Self>> {
        let frame = frame(sb.volume()?.layout());
        let Some(rmap) = Forest::open_read_only(sb, &frame, left)? else {
            return Ok(None);
        };
        let counts = Forest::<Count>::open_read_only(sb, &frame, left)?;
        let index = Self::new(rmap, keeper, left.stamp)?;
        for number in 0..index.regions() {
            let mut region = index.lock(number)?;
            region.rmap = index.rmap.peek(number);
            if let Some(counts) = &counts {
                region.refcount = counts.peek(number);
            }
        }
        if let Some(counts) = counts {
            index.counts.populate(counts);
        }
        Ok(Some(index))
    }

    /// Opens the reference counts, if the volume has any, and marks the files as in use. `before`
    /// is as for [`RmapIndex::open`].
    ///
    /// The index must already be attached to the volume, because the blocks allocated to the file
    /// of the counts are recorded in it.
    ///
    /// # Errors
    ///
    /// As for [`Forest::open`], if the volume has shared blocks; otherwise the counts are omitted
    /// with a log message.
    pub(crate) fn start(&self, before: &Left) -> Result {
        let sb = self.super_block();
        let shares = sb.volume()?.shares();
        if shares || TreeFile::is_there(sb, Kind::Refcount).unwrap_or(true) {
            match self.open_counts(Some(before), shares) {
                Err(error) if shares => return Err(error),
                Err(error) => pr_warn!(
                    "{}: refcount: not opened: error {}\n",
                    sb.name(),
                    error.to_errno()
                ),
                Ok(()) => (),
            }
        }
        self.rmap.file.stamp(true, self.in_use)
    }

    /// Opens the file of the counts, or creates it. `before` is the state of the superblock before
    /// the mount, or `None` if the volume is in use already. Unless `shares`, no block of the
    /// volume is shared.
    ///
    /// # Errors
    ///
    /// `ENOSPC`, `ENOMEM`, `EIO`; there are no counts then. Must not be called with a handle open,
    /// or twice at the same time.
    pub(super) fn open_counts(&self, before: Option<&Left>, shares: bool) -> Result {
        if self.counts().is_some() {
            return Ok(());
        }
        let sb = self.super_block();
        let counts = Forest::<Count>::open(sb, &self.rmap.file.frame, before)?;
        if !shares {
            // A leaf for each region, and some for the first regions with shared blocks.
            counts.file.grow(self.regions().saturating_add(64))?;
        }
        for number in 0..self.regions() {
            let entry = counts.load(number, |_| true)?;
            self.lock(number)?.refcount = entry;
            if !shares && !entry.good {
                let _write = sb.internal_write();
                let handle = sb.volume()?.begin_internal(cost::EMPTY_TREE, 0)?;
                let (generation, root) = counts.create_tree(&handle, number)?;
                counts.install(&handle, &mut self.lock(number)?, generation, root, false)?;
                handle.stop()?;
            }
            if counts.emptied {
                // Records of the blocks that the file had are wrong now.
                let handle = sb.volume()?.begin_internal(cost::MARK_STALE, 0)?;
                self.mark_rmap_stale(&handle, &mut self.lock(number)?)?;
                handle.stop()?;
            }
            let mut region = self.lock(number)?;
            let shares = has_counts(&counts, &region);
            self.note_sharing(&mut region, shares);
        }
        counts.file.stamp(true, self.in_use)?;
        self.counts.populate(counts);
        Ok(())
    }

    /// Stores the superblock's stamp in the files, as the last step of a clean unmount.
    pub(crate) fn close(&self, stamp: &Stamp) -> Result {
        if let Some(counts) = self.counts() {
            counts.file.stamp(false, *stamp)?;
        }
        self.rmap.file.stamp(false, *stamp)
    }

    /// Returns the volume.
    pub(crate) fn super_block(&self) -> &SuperBlock<Volume> {
        self.rmap.super_block()
    }

    /// Returns the reference counts, if the volume has a file for them.
    pub(crate) fn counts(&self) -> Option<&Forest<Count>> {
        self.counts.as_ref()
    }

    /// Returns the superblock's stamp while the volume is in use.
    pub(crate) fn stamp(&self) -> Stamp {
        self.in_use
    }

    /// Returns the number of regions.
    pub(crate) fn regions(&self) -> u32 {
        self.regions.len()
    }

    /// Returns the first block of a region on the volume.
    pub(crate) fn start_of(&self, region: u32) -> u64 {
        let frame = &self.rmap.file.frame;
        u64::from(frame.first_block) + u64::from(region) * u64::from(frame.region_blocks)
    }

    /// Returns the blocks of a region on the volume.
    pub(crate) fn blocks_of(&self, region: u32) -> Result<Range<u64>> {
        let start = self.start_of(region);
        let end = start.saturating_add(self.rmap.file.frame.region_blocks.into());
        Ok(start..end.min(self.super_block().volume()?.layout().blocks))
    }

    /// Locks a region. Must be called inside a handle, or without holding any lock under which a
    /// handle may be started.
    pub(crate) fn lock(&self, region: u32) -> Result<LockedRegion<'_>> {
        self.regions.lock(region)
    }

    /// Sets or removes the watcher that is notified of every change of a region. The subscriber
    /// must hold [`Hooks`](crate::kernel_glue::Hooks) while subscribed.
    pub(crate) fn watch(&self, region: u32, watcher: Option<Arc<dyn Watcher>>) -> Result {
        self.lock(region)?.watcher = watcher;
        Ok(())
    }

    /// Installs a new reverse map for a region as part of the handle, and ends the subscription to
    /// its changes. Costs [`cost::ENTRY`].
    pub(crate) fn install(
        &self,
        handle: &Handle,
        region: &mut LockedRegion<'_>,
        generation: u32,
        root: Root,
    ) -> Result {
        // Blocks parked meanwhile are recorded only in memory: until they are freed, the region
        // must be unsettled on disk in case of a crash.
        let unsettled = region.rmap.unsettled || !region.rmap.good || !region.parked.is_empty();
        self.rmap.install(handle, region, generation, root, unsettled)?;
        region.watcher = None;
        self.caught_up();
        Ok(())
    }

    /// Returns the file of the trees of this kind, if it exists.
    pub(crate) fn file_of(&self, kind: Kind) -> Option<&TreeFile> {
        match kind {
            Kind::Rmap => Some(&*self.rmap.file),
            Kind::Refcount => self.counts().map(|counts| &*counts.file),
        }
    }

    /// Stores whether blocks of other generations of a region's tree may have to be freed. Costs
    /// [`cost::ENTRY`].
    pub(crate) fn set_reap(&self, handle: &Handle, region: u32, kind: Kind, reap: bool) -> Result {
        let mut region = self.lock(region)?;
        let entry = |entry: &Region| Region { reap, ..*entry };
        match (kind, self.counts()) {
            (Kind::Rmap, _) => {
                let new = entry(&region.rmap);
                self.rmap.store_entry(handle, &mut region, new)
            }
            (Kind::Refcount, Some(counts)) => {
                let new = entry(&region.refcount);
                counts.store_entry(handle, &mut region, new)
            }
            (Kind::Refcount, None) => Ok(()),
        }
    }

    /// Resets the lag, after a watcher has processed all changes.
    pub(crate) fn caught_up(&self) {
        self.lag.store(0, Relaxed);
    }

    /// Marks a region's reverse map stale, as part of the handle. Costs [`cost::MARK_STALE`].
    pub(super) fn mark_rmap_stale(&self, handle: &Handle, region: &mut LockedRegion<'_>) -> Result {
        self.rmap.mark_stale(handle, region)?;
        self.keeper.kick();
        Ok(())
    }

    /// Marks a region's counts stale, as part of the handle. Costs [`cost::MARK_STALE`].
    pub(super) fn mark_counts_stale(&self, handle: &Handle, region: &mut LockedRegion<'_>) -> Result {
        if let Some(counts) = self.counts() {
            counts.mark_stale(handle, region)?;
            self.note_sharing(region, true);
            self.keeper.kick();
        }
        Ok(())
    }

    /// Wakes the keeper when few blocks of a file are free. Called after blocks were allocated.
    pub(super) fn keep_reserve(&self, file: &TreeFile) {
        let (blocks, free) = file.blocks();
        if free < reserve(blocks) / 2 {
            self.keeper.kick();
        }
    }

    /// Records whether a region may have shared or staged blocks.
    pub(super) fn note_sharing(&self, state: &mut RegionState, shares: bool) {
        if state.shares != shares {
            state.shares = shares;
            self.sharing_regions
                .fetch_add(if shares { 1 } else { -1 }, Relaxed);
        }
    }

    /// Returns the number of regions that may have shared blocks.
    pub(crate) fn sharing_regions(&self) -> u32 {
        self.sharing_regions.load(Relaxed).max(0) as u32
    }
}

/// Returns whether a region may have shared or staged blocks.
///
/// Staged blocks count because, as long as the superblock says that blocks are shared, the next
/// mount determines all owners first, and so finds staged blocks left by a crash even if the trees
/// cannot be trusted.
pub(super) fn has_counts(counts: &Forest<Count>, region: &LockedRegion<'_>) -> bool {
    if !Count::entry(region).good {
        return true;
    }
    counts
        .look(region, |tree| tree.has_counts(0, u32::MAX))
        .unwrap_or(true)
}
