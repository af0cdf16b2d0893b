// SPDX-License-Identifier: GPL-2.0

//! Sweeping the reference counts of a region out of its reverse map.
//!
//! That is done a piece of the region at a time, each in a transaction of its own, into a new tree. Changes below the place
//! that the sweep has come to go into the new tree as well; those above it the sweep will see. Both happen under the
//! region's lock, so none is lost and none is counted twice, and nobody waits for longer than a piece takes. With the last
//! piece the new tree is the region's.

use super::{
    counts::{Build, CountTree},
    rmap::{reserve, RegionState, RmapIndex},
    store::{turn_credits, Nodes},
};
use crate::{
    engine::{
        self,
        btree::{BTree, Store},
        record::{Kind, Record, Rmap},
        refcount::{Count, Sweep, Turn, STAGED},
    },
    format::tree_file::{Kind as FileKind, Region},
};
use kernel::{prelude::*, sync::atomic::Relaxed};

/// Records of the reverse map that a piece of a sweep takes in.
const AT_ONCE: usize = 512;
/// A bound that lies behind the last block of any region.
const END: u32 = 1 << 28;

/// A piece of a region's counts, as the reverse map has them.
pub(crate) struct Piece {
    /// In order, those of shared blocks before those of blocks that are set aside.
    pub(crate) counts: KVVec<Count>,
    /// The first block behind it; `None` behind the last one.
    pub(crate) next: Option<u32>,
}

impl Piece {
    /// The first block behind it, or one that is behind all.
    pub(crate) fn end(&self) -> u32 {
        self.next.unwrap_or(END)
    }
}

/// The counts that a reverse map makes from block `from` on, of some `at_once` of its records.
pub(crate) fn piece<S: Store>(tree: &BTree<'_, S, Rmap>, from: u32, at_once: usize) -> engine::Result<Piece> {
    let mut owners: KVVec<Rmap> = KVVec::new();
    let mut next = None;
    let mut fresh = 0;
    tree.overlapping(from, u32::MAX, &mut |record: &Rmap| {
        // Those that start together stay together; those that began before are not new.
        let last = owners.last().map_or(0, |last: &Rmap| last.start);
        if fresh >= at_once && record.start > last {
            next = Some(record.start);
            return Ok(false);
        }
        fresh += usize::from(record.start > from);
        owners.push(*record, GFP_KERNEL)?;
        Ok(true)
    })?;
    let mut piece = Piece {
        counts: KVVec::new(),
        next,
    };
    for (base, kind) in [(0, Kind::Data), (STAGED, Kind::Cow)] {
        let mut sweep = Sweep::new(base | from, base | piece.end());
        let counts = &mut piece.counts;
        let mut out = |count| Ok(counts.push(count, GFP_KERNEL)?);
        for owner in owners.iter().filter(|owner| owner.kind == kind) {
            sweep.push(base | owner.start, base | owner.last(), &mut out)?;
        }
        if base == STAGED && sweep.most() > 1 {
            return Err(engine::Error::Mismatch("blocks are set aside twice"));
        }
        sweep.finish(&mut out)?;
    }
    Ok(piece)
}

/// What of a change concerns a tree that has been swept up to block `next`.
pub(crate) fn swept_part(turn: &Turn, next: u32) -> Option<Turn> {
    let len = turn.len.min(next.saturating_sub(turn.start & !STAGED));
    (len > 0).then_some(Turn { len, ..*turn })
}

impl RmapIndex {
    /// The counts that the reverse map makes from block `from` on, of a region that is locked and whose reverse map is good.
    pub(crate) fn swept(&self, region: u32, state: &RegionState, from: u32) -> engine::Result<Piece> {
        self.with_tree(region, state, |tree| piece(tree, from, AT_ONCE))
    }

    /// Begins to sweep a region's counts into a new tree. Answers with its generation.
    ///
    /// Must not be called with a handle or a region's lock held.
    pub(crate) fn begin_build(&self, region: u32) -> Result<u32> {
        let counts = self.counts().ok_or(EINVAL)?;
        let (blocks, _) = counts.file.blocks();
        counts.file.grow(reserve(blocks).saturating_add(64))?;
        let _write = self.file.super_block().internal_write();
        let handle = self.file.super_block().volume()?.begin_internal(8, 0)?;
        let generation = counts.file.next_generation(&handle)?;
        let mut state = self.lock(region)?;
        let entry = Region {
            reap: true,
            ..state.counts.entry
        };
        counts.file.store_region(&handle, region, &entry)?;
        state.counts.entry = entry;
        let tree = counts.file.tree(region, generation);
        let mut nodes = Nodes::new(&counts.file, Some(&handle), tree);
        let made: engine::Result<CountTree<'_, '_>> = BTree::create(&mut nodes, tree);
        let root = made.map_err(|error| self.report_counts(region, error))?.root;
        state.counts.build = Some(Build {
            generation,
            root,
            next: 0,
        });
        drop(state);
        handle.stop()?;
        Ok(generation)
    }

    /// Ends a sweep that does not come to its end.
    pub(crate) fn end_build(&self, region: u32) {
        if let Ok(mut state) = self.lock(region) {
            state.counts.build = None;
        }
    }

    /// Sweeps the next piece of a region's counts into the tree of this generation, and with the last one puts it in place.
    /// Answers how many records there were, and whether that was the last.
    ///
    /// Fails with `EAGAIN` when the region's reverse map, or a change of the new tree, went wrong meanwhile; with `ENOSPC`,
    /// `EIO`. Must not be called with a handle or a region's lock held.
    pub(crate) fn build_piece(&self, region: u32, generation: u32) -> Result<(u64, bool)> {
        let counts = self.counts().ok_or(EINVAL)?;
        let volume = self.file.super_block().volume()?;
        let (blocks, _) = counts.file.blocks();
        counts.file.grow(reserve(blocks).saturating_add(128))?;
        let _write = self.file.super_block().internal_write();
        let level = counts.level.load(Relaxed) as u16;
        // Each owner begins and ends once, and may be of both kinds of records.
        let credits = turn_credits(level + 1, 2 * AT_ONCE as u32) + 8;
        let handle = volume.begin_internal(credits.min(volume.journal()?.room() / 2), 0)?;
        let mut state = self.lock(region)?;
        let from = match &state.counts.build {
            Some(build) if build.generation == generation && state.entry.good => build.next,
            _ => return Err(EAGAIN),
        };
        let piece = match self.swept(region, &state, from) {
            Ok(piece) => piece,
            Err(engine::Error::NoMemory) => return Err(ENOMEM),
            Err(error) => {
                super::report(self.file.super_block(), region, error);
                self.mark_stale(&handle, region, &mut state, FileKind::Rmap)?;
                return Err(EAGAIN);
            }
        };
        let refuse = |error| self.report_counts(region, error);
        let taken = piece.counts.len() as u64;
        if !self.has_room(&handle, turn_credits(level + 1, taken as u32) + 8) {
            return Err(ENOSPC);
        }
        let Some(build) = &mut state.counts.build else {
            return Err(EAGAIN);
        };
        let tree = counts.file.tree(region, generation);
        let mut nodes = Nodes::new(&counts.file, Some(&handle), tree);
        let mut btree: CountTree<'_, '_> = BTree::open(&mut nodes, tree, build.root);
        let outcome = piece.counts.iter().try_for_each(|count| btree.append(count));
        build.root = btree.root;
        build.next = piece.end();
        counts.note_level(build.root.level);
        outcome.map_err(refuse)?;
        let done = piece.next.is_none();
        if done {
            let entry = Region {
                good: true,
                generation,
                root: build.root.block,
                level: build.root.level,
                reap: true,
            };
            counts.file.store_region(&handle, region, &entry)?;
            state.counts.entry = entry;
            state.counts.build = None;
            let shares = self.has_shared(counts, region, &state);
            self.note_sharing(&mut state, shares);
        }
        drop(state);
        handle.stop()?;
        Ok((taken, done))
    }
}
