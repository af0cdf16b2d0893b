// SPDX-License-Identifier: GPL-2.0

//! Reference counts: a tree a region beside that of the reverse map, under the same lock and in the same transactions.
//!
//! The counts follow from the reverse map, so a tree of counts that cannot be kept up, or is found wrong, is swept out of
//! the reverse map of its region again ([`super::sweep`]).
//!
//! The file is made before the first block of the volume is shared ([`RmapIndex::open_counts`]). Before that no block has
//! more than one owner, and no trees are needed to say so.
//!
//! What loses an owner while the counts are not known is looked up in the reverse map. While that is not known either, it
//! stays in use, though nobody has it any more, until it is ([`RmapIndex::settle`]).
//!
//! A count that is too low would have blocks freed, or written in place, that others have. So before either is done the
//! reverse map is asked as well, which takes one look where it agrees. Where the two do not, neither is believed, and what
//! it was about waits until both were made anew from the inodes.

use super::{
    file::TreeFile,
    report_as,
    rmap::{counts_frame, is_sound, locate, look_into, root_of, RegionState, RmapIndex},
    store::{turn_credits, Nodes},
    sweep::swept_part,
};
use crate::{
    engine::{
        self,
        btree::{BTree, Root, Store},
        node::Tree,
        rebuild::Update,
        record::{Kind, Record, Rmap},
        refcount::{Count, Turn, STAGED},
    },
    format::tree_file::{Kind as FileKind, Region, Stamp},
    fs::{scan, space},
    kernel_glue::{Credits, Handle},
};
use kernel::{
    prelude::*,
    sync::atomic::{Atomic, Relaxed},
};

/// The tree of a region's counts, as the engine sees it.
pub(crate) type CountTree<'s, 'a> = BTree<'s, Nodes<'a>, Count>;

/// The file of the counts, once there is one.
pub(crate) struct Counts {
    /// The file that holds the trees.
    pub(crate) file: TreeFile,
    /// The highest level that any root has had.
    pub(super) level: Atomic<u32>,
}

/// A tree that is being swept together.
pub(super) struct Build {
    pub(super) generation: u32,
    pub(super) root: Root,
    /// The blocks before this one are in it.
    pub(super) next: u32,
}

/// Which tree could not be read.
enum Bad {
    Counts(engine::Error),
    Owners(engine::Error),
}

/// What is known of a region's counts, under the region's lock.
#[derive(Default)]
pub(crate) struct CountState {
    /// Its entry of the region table.
    pub(crate) entry: Region,
    pub(super) build: Option<Build>,
    /// The region is among those that may have shared blocks, or some set aside.
    shares: bool,
    /// Runs, no two of which overlap, that lost an owner when nobody could say whether it was the last.
    parked: KVVec<(u32, u32)>,
}

impl CountState {
    /// Notes that blocks, none of which is noted already, lost an owner when nobody could say whether it was the last.
    pub(crate) fn park(&mut self, start: u32, len: u32) -> Result {
        Ok(self.parked.push((start, len), GFP_KERNEL)?)
    }

    /// Takes one of the runs that are to be settled.
    pub(crate) fn take_parked(&mut self) -> Option<(u32, u32)> {
        self.parked.pop()
    }

    /// Forgets that any of these blocks is to be settled: what becomes of it is known.
    pub(crate) fn unpark(&mut self, start: u32, len: u32) -> Result {
        if self.parked.is_empty() {
            return Ok(());
        }
        let end = start.saturating_add(len);
        let mut kept = KVVec::with_capacity(self.parked.len() + 1, GFP_KERNEL)?;
        for &(first, blocks) in self.parked.iter() {
            let last = first.saturating_add(blocks);
            for (from, to) in [(first, last.min(start)), (first.max(end), last)] {
                if from < to {
                    kept.push((from, to - from), GFP_KERNEL)?;
                }
            }
        }
        self.parked = kept;
        Ok(())
    }
}

impl Counts {
    pub(super) fn of(file: TreeFile) -> Counts {
        Counts {
            file,
            level: Atomic::new(0),
        }
    }

    pub(super) fn note_level(&self, level: u16) {
        if u32::from(level) > self.level.load(Relaxed) {
            self.level.store(level.into(), Relaxed);
        }
    }

    /// Blocks of the journal that a change of counts may write.
    pub(super) fn credits(&self) -> u32 {
        turn_credits(self.level.load(Relaxed) as u16, 4) + 2
    }

    /// The same of one of so many blocks, however unlike they are.
    pub(super) fn give_credits(&self, blocks: u32) -> u32 {
        turn_credits(self.level.load(Relaxed) as u16, blocks) + 4
    }
}

/// Hands out those of a run's blocks that nobody owns by a reverse map: first block and number.
pub(crate) fn unowned<S: Store>(
    tree: &BTree<'_, S, Rmap>,
    run: (u32, u32),
    out: &mut dyn FnMut(u32, u32) -> engine::Result,
) -> engine::Result {
    let (mut at, end) = (run.0, run.0.saturating_add(run.1));
    let mut hand_out = |from: u32, to: u32| match to.checked_sub(from) {
        Some(len @ 1..) => out(from, len),
        _ => Ok(()),
    };
    tree.overlapping(run.0, end.saturating_sub(1), &mut |record: &Rmap| {
        hand_out(at, record.start)?;
        at = at.max(record.last().saturating_add(1));
        Ok(at < end)
    })?;
    hand_out(at, end)
}

impl RmapIndex {
    /// The counts, if the volume has a file for them.
    pub(crate) fn counts(&self) -> Option<&Counts> {
        self.counts.as_ref()
    }

    /// Opens the file of the counts, or makes it. `before` is the stamp that the superblock had when it was mounted; without
    /// one the volume is in use already. Unless `shares`, no block of it has several owners.
    ///
    /// Fails with `ENOSPC`, `ENOMEM`, `EIO`; then there are no counts. Must not be called with a handle open, nor twice at
    /// the same time.
    pub(crate) fn open_counts(&self, before: Option<&Stamp>, shares: bool) -> Result {
        if self.counts().is_some() {
            return Ok(());
        }
        let sb = self.file.super_block();
        let volume = sb.volume()?;
        let frame = counts_frame(&self.file.frame);
        let opened = TreeFile::open(sb, frame)?;
        let trusted = match (&opened.found, before) {
            (Some(header), Some(before)) => header.stamp.holds(before, header.in_use),
            _ => false,
        };
        let counts = Counts::of(opened.file);
        if !shares {
            // A leaf a region, and some for those that will be shared first.
            counts.file.grow(frame.regions.saturating_add(64))?;
        }
        for region in 0..frame.regions {
            let mut entry = counts.file.region(region).unwrap_or(Region {
                reap: true,
                ..Region::default()
            });
            let sound = trusted && is_sound(&entry);
            if !(shares || entry.good && sound) {
                entry = self.empty_tree(&counts, region)?;
            } else if entry.good && !sound {
                entry.good = false;
                entry.reap = true;
                let handle = volume.begin_internal(1, 0)?;
                counts.file.store_region(&handle, region, &entry)?;
                handle.stop()?;
            }
            if entry.good {
                counts.note_level(entry.level);
            }
            let mut state = self.lock(region)?;
            state.counts.entry = entry;
            let has = self.has_shared(&counts, region, &state);
            self.note_sharing(&mut state, has);
        }
        counts.file.stamp(true, self.in_use)?;
        self.counts.populate(counts);
        Ok(())
    }

    /// Makes an empty tree for a region.
    fn empty_tree(&self, counts: &Counts, region: u32) -> Result<Region> {
        let _write = self.file.super_block().internal_write();
        let handle = self.file.super_block().volume()?.begin_internal(6, 0)?;
        let generation = counts.file.next_generation(&handle)?;
        let tree = counts.file.tree(region, generation);
        let mut nodes = Nodes::new(&counts.file, Some(&handle), tree);
        let made: engine::Result<CountTree<'_, '_>> = BTree::create(&mut nodes, tree);
        let root = made.map_err(|error| self.report_counts(region, error))?.root;
        let entry = Region {
            good: true,
            generation,
            root: root.block,
            level: root.level,
            reap: true,
        };
        counts.file.store_region(&handle, region, &entry)?;
        handle.stop()?;
        Ok(entry)
    }

    /// Makes an errno of the engine's error and says what is wrong.
    pub(crate) fn report_counts(&self, region: u32, error: engine::Error) -> Error {
        report_as(self.file.super_block(), FileKind::Refcount.name(), region, error)
    }

    /// Whether a region may have blocks with several owners, or ones that are set aside.
    ///
    /// Those count as well: as long as the superblock tells of shared blocks, whoever mounts the volume next makes sure of
    /// every owner first, and so finds what a crash left of them even if the trees are not to be believed.
    pub(super) fn has_shared(&self, counts: &Counts, region: u32, state: &RegionState) -> bool {
        let entry = &state.counts.entry;
        if !entry.good {
            return true;
        }
        look_into(&counts.file, region, entry, false, |tree: &CountTree<'_, '_>| {
            tree.has_counts(0, u32::MAX)
        })
        .unwrap_or(true)
    }

    pub(super) fn note_sharing(&self, state: &mut RegionState, shares: bool) {
        if state.counts.shares != shares {
            state.counts.shares = shares;
            self.sharing_regions
                .fetch_add(if shares { 1 } else { -1 }, Relaxed);
        }
    }

    /// Regions that may have blocks with several owners.
    pub(crate) fn sharing_regions(&self) -> u32 {
        self.sharing_regions.load(Relaxed).max(0) as u32
    }

    /// Has `look` look into the tree of a region's counts, which is locked and good; `strict` as of [`Nodes::strict`].
    pub(crate) fn with_counts<T>(
        &self,
        region: u32,
        state: &RegionState,
        strict: bool,
        look: impl FnOnce(&CountTree<'_, '_>) -> engine::Result<T>,
    ) -> engine::Result<T> {
        let counts = self.counts().ok_or(engine::Error::Io)?;
        look_into(&counts.file, region, &state.counts.entry, strict, look)
    }

    /// Changes a tree of counts; answers with its root then.
    fn turn_tree(
        &self,
        handle: &Handle,
        counts: &Counts,
        tree: Tree,
        root: Root,
        turn: &Turn,
    ) -> engine::Result<Root> {
        let mut nodes = Nodes::new(&counts.file, Some(handle), tree);
        let mut btree: CountTree<'_, '_> = BTree::open(&mut nodes, tree, root);
        let wanted = |records| turn_credits(root.level, records) + 4;
        // Each record about them has one block of them at least, or is one of the two beside them.
        if handle.blocks_left() < wanted(turn.len.saturating_add(2)) {
            let last = turn.start.saturating_add(turn.len);
            let records = btree.counts_between(turn.start.saturating_sub(1), last)?;
            if !self.has_room(handle, wanted(records)) {
                return Err(engine::Error::Mismatch("no room in the transaction"));
            }
        }
        btree.turn(turn)?;
        let root = btree.root;
        if nodes.has_taken() {
            counts.note_level(root.level);
            self.keep_reserve(&counts.file);
        }
        Ok(root)
    }

    /// Sees to it that a handle has room for so many blocks.
    pub(super) fn has_room(&self, handle: &Handle, wanted: u32) -> bool {
        let have = handle.blocks_left();
        have >= wanted
            || matches!(
                handle.extend(Credits {
                    blocks: wanted - have,
                    revokes: 0,
                }),
                Ok(true)
            )
    }

    /// Changes the counts of a region, which is locked.
    pub(super) fn turn(&self, handle: &Handle, region: u32, state: &mut RegionState, turn: &Turn) -> Result {
        let Some(counts) = self.counts() else {
            return Ok(());
        };
        if let Some(build) = &mut state.counts.build {
            if let Some(part) = swept_part(turn, build.next) {
                let tree = counts.file.tree(region, build.generation);
                match self.turn_tree(handle, counts, tree, build.root, &part) {
                    Ok(root) => build.root = root,
                    Err(error) => {
                        self.report_counts(region, error);
                        state.counts.build = None;
                    }
                }
            }
        }
        if !state.counts.entry.good {
            return Ok(());
        }
        let entry = state.counts.entry;
        let tree = counts.file.tree(region, entry.generation);
        match self.turn_tree(handle, counts, tree, root_of(&entry), turn) {
            Ok(root) if root != root_of(&entry) => {
                state.counts.entry.root = root.block;
                state.counts.entry.level = root.level;
                counts.file.store_region(handle, region, &state.counts.entry)?;
            }
            Ok(_) => (),
            Err(error) => {
                self.report_counts(region, error);
                return self.mark_stale(handle, region, state, FileKind::Refcount);
            }
        }
        if turn.up || state.counts.shares {
            let shares = turn.up || self.has_shared(counts, region, state);
            let last = state.counts.shares && !shares;
            self.note_sharing(state, shares);
            if last && self.sharing_regions() == 0 {
                self.keeper.kick();
            }
        }
        Ok(())
    }

    /// Before blocks lose an owner: hands out those of which it is the last. Answers `false` when the counts do not say.
    pub(super) fn lost_by_counts(
        &self,
        handle: &Handle,
        region: u32,
        state: &mut RegionState,
        part: &Rmap,
        lost: &mut KVVec<(u64, u32)>,
    ) -> Result<bool> {
        if self.counts().is_none() || !state.counts.entry.good {
            return Ok(false);
        }
        let start = self.start_of(region);
        let before = lost.len();
        let looked = self.with_counts(region, state, false, |tree| {
            tree.each_count(part.start, part.len, &mut |first, len, count| {
                if count == 1 {
                    lost.push((start + u64::from(first), len), GFP_KERNEL)?;
                }
                Ok(true)
            })
        });
        match looked {
            Ok(()) => {
                state.counts.unpark(part.start, part.len)?;
                Ok(true)
            }
            Err(error) => {
                lost.truncate(before);
                self.report_counts(region, error);
                self.mark_stale(handle, region, state, FileKind::Refcount)?;
                Ok(false)
            }
        }
    }

    /// After blocks have lost an owner: whether the reverse map says as well that nobody has these of them any more. Where
    /// it does not, both trees are marked as stale.
    pub(super) fn agrees(
        &self,
        handle: &Handle,
        region: u32,
        state: &mut RegionState,
        part: &Rmap,
        lost: &[(u64, u32)],
    ) -> Result<bool> {
        if !state.entry.good {
            return Ok(true);
        }
        let mut unowned = KVVec::new();
        match self.unowned(region, state, (part.start, part.len), &mut unowned) {
            Ok(()) if *unowned == *lost => return Ok(true),
            Ok(()) => pr_err!(
                "{}: refcount: region {region}: counts and reverse map tell differently of blocks {} to {}\n",
                self.file.super_block().name(),
                part.start,
                part.last()
            ),
            Err(error) => {
                super::report(self.file.super_block(), region, error);
                self.mark_stale(handle, region, state, FileKind::Rmap)?;
                return Ok(true);
            }
        }
        self.mark_stale(handle, region, state, FileKind::Refcount)?;
        self.mark_stale(handle, region, state, FileKind::Rmap)?;
        Ok(false)
    }

    /// Whether the reverse map, if it is good, has more than one owner of contents for any of a run's blocks.
    fn has_several(&self, region: u32, state: &RegionState, first: u32, last: u32) -> bool {
        let mut several = false;
        let mut next = first;
        let looked = !state.entry.good
            || self
                .with_tree(region, state, |tree| {
                    tree.overlapping(first, last, &mut |record: &Rmap| {
                        if record.kind == Kind::Data {
                            several |= record.start.max(first) < next;
                            next = next.max(record.last().saturating_add(1));
                        }
                        Ok(!several)
                    })
                })
                .is_ok();
        looked && several
    }

    /// After blocks have lost an owner and the counts did not say: hands out those that have none by the reverse map. If
    /// that does not say either, they are left for [`RmapIndex::settle`].
    pub(super) fn lost_by_owners(
        &self,
        region: u32,
        state: &mut RegionState,
        part: &Rmap,
        lost: &mut KVVec<(u64, u32)>,
    ) -> Result {
        let before = lost.len();
        state.counts.unpark(part.start, part.len)?;
        if state.entry.good {
            match self.unowned(region, state, (part.start, part.len), lost) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    lost.truncate(before);
                    super::report(self.file.super_block(), region, error);
                }
            }
        }
        state.counts.park(part.start, part.len)?;
        self.keeper.kick();
        Ok(())
    }

    /// Hands out those of a run's blocks that nobody owns, by the reverse map of the region, which is good.
    fn unowned(
        &self,
        region: u32,
        state: &RegionState,
        run: (u32, u32),
        out: &mut KVVec<(u64, u32)>,
    ) -> engine::Result {
        let start = self.start_of(region);
        self.with_tree(region, state, |tree| {
            unowned(tree, run, &mut |first, len| {
                Ok(out.push((start + u64::from(first), len), GFP_KERNEL)?)
            })
        })
    }

    /// Whether any region has blocks that are left for [`RmapIndex::settle`].
    pub(crate) fn has_parked(&self) -> Result<bool> {
        for region in 0..self.regions() {
            if !self.lock(region)?.counts.parked.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Gives back what lost its last owner when nobody could say so, in a region whose reverse map is good again.
    ///
    /// Must not be called with a handle open.
    pub(crate) fn settle(&self, region: u32) -> Result {
        let sb = self.file.super_block();
        loop {
            let mut lost = KVVec::new();
            {
                let mut state = self.lock(region)?;
                if !state.entry.good {
                    return Ok(());
                }
                let Some(run) = state.counts.take_parked() else {
                    return Ok(());
                };
                if let Err(error) = self.unowned(region, &state, run, &mut lost) {
                    state.counts.park(run.0, run.1)?;
                    return Err(super::report(sb, region, error));
                }
            }
            for &(start, len) in lost.iter() {
                space::release(sb, start, len)?;
            }
        }
    }

    /// What a region has of blocks that are set aside.
    fn staged(
        &self,
        region: u32,
        state: &RegionState,
        out: &mut KVVec<Rmap>,
    ) -> core::result::Result<(), Bad> {
        let mut runs: KVVec<Count> = KVVec::new();
        self.with_counts(region, state, false, |tree| {
            tree.overlapping(STAGED, u32::MAX, &mut |record| {
                runs.push(*record, GFP_KERNEL)?;
                Ok(true)
            })
        })
        .map_err(Bad::Counts)?;
        for run in runs.iter() {
            let (first, last) = (run.start & !STAGED, run.last() & !STAGED);
            self.with_tree(region, state, |tree| {
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

    /// Frees what a crash left of blocks that were set aside, and answers how many these were; `None` when a tree cannot be
    /// read, and was marked as stale. Nobody may be setting any aside.
    ///
    /// Must not be called with a handle open.
    pub(crate) fn free_staged(&self, region: u32) -> Result<Option<u32>> {
        let sb = self.file.super_block();
        let mut left: KVVec<Rmap> = KVVec::new();
        {
            let handle = sb.volume()?.begin_internal(2, 0)?;
            let mut state = self.lock(region)?;
            if self.counts().is_none() || !state.entry.good || !state.counts.entry.good {
                return Ok(Some(0));
            }
            match self.staged(region, &state, &mut left) {
                Ok(()) => (),
                Err(Bad::Counts(error)) => {
                    self.report_counts(region, error);
                    self.mark_stale(&handle, region, &mut state, FileKind::Refcount)?;
                    return Ok(None);
                }
                Err(Bad::Owners(error)) => {
                    super::report(sb, region, error);
                    self.mark_stale(&handle, region, &mut state, FileKind::Rmap)?;
                    return Ok(None);
                }
            }
        }
        let mut freed = 0;
        for record in left.iter() {
            let start = self.start_of(region) + u64::from(record.start);
            space::release_with(sb, start, record.len, &mut |handle| {
                let turn = Turn {
                    start: STAGED | record.start,
                    len: record.len,
                    up: false,
                };
                self.change(handle, region, &[Update::Remove(*record)], Some(turn))
            })?;
            freed += record.len;
        }
        Ok(Some(freed))
    }

    /// Frees what the bitmaps call used in a region and nobody owns by its reverse map, which was just made out of the
    /// inodes, and answers how many blocks these were. Nobody may be changing owners.
    ///
    /// Fails with `EFSCORRUPTED` or `EIO` when a bitmap or the map cannot be read. Must not be called with a handle open.
    pub(crate) fn free_unowned(&self, region: u32) -> Result<u64> {
        let sb = self.file.super_block();
        let layout = sb.volume()?.layout();
        let frame = &self.file.frame;
        let each = layout.blocks_per_group.max(1);
        let first = region.saturating_mul(frame.region_blocks / each);
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
                let state = self.lock(region)?;
                if !state.entry.good {
                    return Ok(freed);
                }
                for &run in used.iter() {
                    self.unowned(region, &state, run, &mut lost)
                        .map_err(|error| super::report(sb, region, error))?;
                }
            }
            for &(start, len) in lost.iter() {
                space::release(sb, start, len)?;
                freed += u64::from(len);
            }
        }
        Ok(freed)
    }

    /// Whether blocks have several owners: of how many, from the first on, that is true. What is not known is shared.
    pub(super) fn look_up_sharing(&self, start: u64, len: u32) -> Result<(u32, bool)> {
        let (region, within) = locate(&self.file.frame, start).ok_or(EINVAL)?;
        let len = len.min(self.file.frame.region_blocks - within);
        let mut state = self.lock(region)?;
        if self.counts().is_none() || !state.counts.entry.good {
            return Ok((len, true));
        }
        let mut found = (len, false);
        let looked = self.with_counts(region, &state, false, |tree| {
            let mut first = None;
            tree.each_count(within, len, &mut |_, part, count| {
                match &mut first {
                    None => first = Some((part, count > 1)),
                    // Runs of unlike counts that are all shared are one to who asks.
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
                if !self.has_several(region, &state, within, last) {
                    return Ok(found);
                }
                pr_err!(
                    "{}: refcount: region {region}: blocks {within} to {last} are shared and not counted\n",
                    self.file.super_block().name()
                );
            }
            Err(error) => {
                self.report_counts(region, error);
            }
        }
        // Nothing can be written here; it is when the tree is made anew.
        state.counts.entry.good = false;
        self.note_sharing(&mut state, true);
        self.keeper.kick();
        Ok((len, true))
    }
}
