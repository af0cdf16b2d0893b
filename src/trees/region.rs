// SPDX-License-Identifier: GPL-2.0

//! The regions of a volume: their layout, and the state of each under its lock.

use crate::{
    engine::{
        btree::Root,
        parked::Parked,
        rebuild::Update,
        record::{Kind, Rmap},
    },
    format::{
        superblock::Layout,
        tree_file::{Frame, Kind as FileKind, Region},
    },
    fs::space::{Owner, OwnerKind},
    kernel_glue::Pinned,
};
use core::ops::{Deref, DerefMut};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex, MutexGuard},
};

/// Number of groups per region on a volume without flex groups.
const GROUPS: u32 = 16;

/// Returns the properties that the file of a volume's reverse map must have.
pub(crate) fn frame(layout: &Layout) -> Frame {
    let groups = match layout.flex_bits {
        0 => GROUPS,
        bits => 1u32.checked_shl(bits.into()).unwrap_or(u32::MAX),
    };
    let region_blocks = layout.blocks_per_group.saturating_mul(groups).min(1 << 28);
    let blocks = layout.blocks.saturating_sub(u64::from(layout.first_data_block));
    Frame {
        kind: FileKind::Rmap,
        seed: layout.seed,
        uuid: layout.uuid,
        block_size: layout.block_size,
        first_block: layout.first_data_block,
        region_blocks,
        regions: u32::try_from(blocks.div_ceil(u64::from(region_blocks.max(1)))).unwrap_or(u32::MAX),
    }
}

/// Returns the region of a volume block, and the block's index within the region.
pub(crate) fn locate(frame: &Frame, block: u64) -> Option<(u32, u32)> {
    let block = block.checked_sub(u64::from(frame.first_block))?;
    let each = u64::from(frame.region_blocks.max(1));
    let region = u32::try_from(block / each).ok()?;
    (region < frame.regions).then_some((region, (block % each) as u32))
}

/// Cuts a run of blocks at region boundaries, and calls `out` with each part and its region.
///
/// # Errors
///
/// `EINVAL` when a block is outside the volume, `EFBIG` when a file offset does not fit into 32
/// bits, and errors of `out`.
pub(crate) fn cut(
    frame: &Frame,
    start: u64,
    len: u32,
    owner: Owner,
    out: &mut impl FnMut(u32, Rmap) -> Result,
) -> Result {
    let (kind, mut offset, unwritten) = match owner.kind {
        OwnerKind::Data { offset, unwritten } => (Kind::Data, offset, unwritten),
        OwnerKind::Mapping => (Kind::Mapping, 0, false),
        OwnerKind::Attributes => (Kind::Xattr, 0, false),
        OwnerKind::Staged => (Kind::Cow, 0, false),
    };
    let (mut start, mut left) = (start, len);
    while left > 0 {
        let (region, within) = locate(frame, start).ok_or(EINVAL)?;
        let part = left.min(frame.region_blocks - within);
        let record = Rmap {
            start: within,
            len: part,
            owner: owner.ino,
            offset,
            kind,
            unwritten,
        };
        out(region, record)?;
        start += u64::from(part);
        left -= part;
        if kind == Kind::Data {
            offset = offset.checked_add(part).ok_or(EFBIG)?;
        }
    }
    Ok(())
}

/// A subscriber to the changes of a region's owners.
pub(crate) trait Watcher: Send + Sync {
    /// Called for each change of a region, with its lock held, inside a handle. Returns how long
    /// the task that makes the change should wait afterwards
    /// ([`Rebuild::lag`](crate::engine::rebuild::Rebuild::lag)).
    fn changed(&self, region: u32, update: Update) -> u32;
}

/// A new tree of counts under construction.
pub(super) struct Recount {
    pub(super) generation: u32,
    pub(super) root: Root,
    /// The first block not yet counted.
    pub(super) next: u32,
}

/// The state of a region, protected by its lock.
#[derive(Default)]
pub(crate) struct RegionState {
    /// The region's entry in the reverse map's region table.
    pub(crate) rmap: Region,
    /// The region's entry in the reference counts' region table.
    pub(crate) refcount: Region,
    pub(super) watcher: Option<Arc<dyn Watcher>>,
    pub(super) recount: Option<Recount>,
    /// The region may have shared or staged blocks.
    pub(super) shares: bool,
    /// Blocks that lost an owner while it was unknown whether that was the last one.
    pub(super) parked: Parked,
    /// An earlier mount may have left blocks without an owner allocated ([`super::freeing`]).
    pub(super) owes: bool,
}

impl RegionState {
    /// Returns the region table entry for trees of this kind.
    pub(crate) fn entry(&self, kind: FileKind) -> Region {
        match kind {
            FileKind::Rmap => self.rmap,
            FileKind::Refcount => self.refcount,
        }
    }
}

/// A locked region.
#[must_use]
pub(crate) struct LockedRegion<'a> {
    number: u32,
    state: MutexGuard<'a, RegionState>,
}

impl LockedRegion<'_> {
    /// Returns the number of the region.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }
}

impl Deref for LockedRegion<'_> {
    type Target = RegionState;

    fn deref(&self) -> &RegionState {
        &self.state
    }
}

impl DerefMut for LockedRegion<'_> {
    fn deref_mut(&mut self) -> &mut RegionState {
        &mut self.state
    }
}

/// All regions of a volume.
pub(super) struct Regions(Pinned<Mutex<RegionState>>);

impl Regions {
    /// Creates the state of `count` regions without trees.
    pub(super) fn new(count: u32) -> Result<Regions> {
        let regions = Pinned::new(count as usize, || new_mutex!(RegionState::default(), "Regions"))?;
        Ok(Regions(regions))
    }

    /// Returns the number of regions.
    pub(super) fn len(&self) -> u32 {
        self.0.len() as u32
    }

    /// Locks a region. Fails with `EINVAL` if there is no such region.
    pub(super) fn lock(&self, number: u32) -> Result<LockedRegion<'_>> {
        let state = self.0.get(number as usize).ok_or(EINVAL)?.lock();
        Ok(LockedRegion { number, state })
    }
}
