// SPDX-License-Identifier: GPL-2.0

//! Comparing a region's tree with what a scan collected, and putting a new one in place.
//!
//! What was collected must make sense by itself before it is compared with anything: blocks with owners that may not share
//! them are damage to inodes, which no tree can be right about ([`Overlaps`]).
//!
//! **Comparing.** The tree is checked and compared with what was collected, some leaves at a time. Whoever changes an owner
//! changes the tree and leaves word of it under the region's lock: so with that lock held, and all word taken into
//! account, a piece of both must be equal, whatever happened before and will happen after ([`crate::engine::compare`]). The
//! lock is held for a piece at a time only, whose leaves have been read before. What is to be rebuilt anyway is not compared.
//!
//! **Rebuilding.**
//! 1. The tree file grows until it has room, and the new tree's blocks are claimed. The region's entry says from then on
//!    that blocks of other generations than its own may be there: after a crash they are found by that and freed.
//! 2. The collected records are loaded into the claimed blocks, past the journal, and flushed. (A tree of few nodes is written
//!    with the journal instead, in the transaction that takes its blocks.)
//! 3. What has gathered is applied to the new tree, in transactions, round after round, until little is left.
//! 4. With the region locked the rest is applied, and in the same transaction the region's entry leads to the new tree.
//!    This is the only time that writers have to wait, and it is bounded by the rest.
//!
//! The old tree's blocks are freed afterwards ([`super::run::reap`]).

use super::{run::Report, scan::Scan, Scrubber};
use crate::{
    engine::{
        btree::{BTree, Root},
        bulk::Geometry,
        compare::{Comparison, Step, Trouble},
        rebuild::{apply, load, Rebuild, Update},
        record::{Kind, Record, Rmap},
        shadow::Shadow,
        Error as EngineError, Result as EngineResult,
    },
    format::tree_file::Kind as FileKind,
    fs::{scan, Volume},
    kernel_glue::{Handle, NoReclaim, SuperBlock},
    trees::{
        cost,
        forest::Tree,
        index::{reserve, RmapIndex},
        store::{Nodes, Staged},
    },
};
use kernel::{
    prelude::*,
    sync::Mutex,
    time::{Instant, Monotonic},
};

/// Nodes of a tree that is written as part of a transaction, and thus waits for no disk. Of regions that are empty, or nearly,
/// a large volume has many.
const SMALL: usize = 16;
/// Leaves compared while the region is locked.
const AT_ONCE: usize = 16;
/// Leaves that are being read while others are compared.
const AHEAD: usize = 4 * AT_ONCE;
/// Percent of each new node that stays free.
const SLACK: u32 = 10;
/// Changes that may be left for the time that the region is locked.
const REST: u32 = 64;

/// Inodes remembered as regular files while overlaps are looked at.
const REMEMBERED: usize = 256;

/// Finds blocks that may not have as many owners as were collected: all but contents of regular files, where the volume
/// has the feature for that, and extended attributes.
struct Overlaps<'a> {
    sb: &'a SuperBlock<Volume>,
    /// The first block of the region, on the volume.
    start: u64,
    shares: bool,
    /// The record of each kind that reached farthest so far.
    farthest: [Option<Rmap>; 4],
    /// Regular files, by their numbers.
    regular: KVec<u32>,
}

impl Overlaps<'_> {
    /// Takes the next record in order. Fails with [`EngineError::Mismatch`] when blocks of it may not be its, too.
    fn take(&mut self, record: &Rmap) -> EngineResult {
        for kind in 0..self.farthest.len() {
            let other = self.farthest.get(kind).copied().flatten();
            let Some(other) = other.filter(|other| other.last() >= record.start) else {
                continue;
            };
            let legal = match (other.kind, record.kind) {
                (Kind::Xattr, Kind::Xattr) => true,
                (Kind::Data, Kind::Data) => {
                    self.shares && self.is_regular(other.owner)? && self.is_regular(record.owner)?
                }
                _ => false,
            };
            if !legal {
                pr_err!(
                    "{}: block {} is of inode {} and of inode {}, which may not share it\n",
                    self.sb.name(),
                    self.start + u64::from(record.start),
                    other.owner,
                    record.owner
                );
                return Err(EngineError::Mismatch(
                    "blocks have owners that may not share them",
                ));
            }
        }
        if let Some(place) = self.farthest.get_mut(record.kind as usize) {
            if place.is_none_or(|other| other.last() < record.last()) {
                *place = Some(*record);
            }
        }
        Ok(())
    }

    fn is_regular(&mut self, ino: u32) -> EngineResult<bool> {
        let place = ino as usize % REMEMBERED;
        if self.regular.get(place) == Some(&ino) {
            return Ok(true);
        }
        let inode = scan::get(self.sb, ino).map_err(|_| EngineError::Io)?;
        // One that is gone has left nothing to be judged.
        let regular = inode.is_none_or(|inode| inode.is_file());
        if let Some(place) = self.regular.get_mut(place).filter(|_| regular) {
            *place = ino;
        }
        Ok(regular)
    }
}

/// What a scan collected for a region: all records in order, and the changes since then.
pub(super) struct Collected<'a> {
    index: &'a RmapIndex,
    region: u32,
    /// Where changes gather.
    changes: &'a Mutex<Rebuild>,
    shadow: Shadow,
}

impl<'a> Collected<'a> {
    /// Takes what a complete scan collected for a region. From now on changes gather behind it.
    pub(super) fn take(index: &'a RmapIndex, scan: &'a Scan, region: u32) -> Result<Self> {
        let changes = scan.region(region).ok_or(EINVAL)?;
        let sb = index.super_block();
        let refuse = |error| index.rmap.report(region, error);
        let volume = sb.volume()?;
        let shares = volume.shares();
        let shadow = {
            let _state = index.lock(region)?;
            let sealed = changes.lock().seal();
            sealed.map_err(refuse)?
        };
        let mut collected = Collected {
            index,
            region,
            changes,
            shadow,
        };
        // With no lock held: this takes its time.
        collected.shadow.settle().map_err(refuse)?;
        let mut overlaps = Overlaps {
            sb,
            start: index.start_of(region),
            // It may have come or gone with what was collected.
            shares: shares || volume.shares(),
            farthest: [None; 4],
            regular: KVec::from_elem(0, REMEMBERED, GFP_KERNEL)?,
        };
        if collected.shadow.overlaps().map_err(refuse)? {
            let walked = collected.shadow.walk(&mut |record| {
                overlaps.take(record)?;
                Ok(true)
            });
            walked.map_err(refuse)?;
        }
        Ok(collected)
    }

    fn refuse(&self, error: EngineError) -> Error {
        self.index.rmap.report(self.region, error)
    }

    /// Takes the changes that have gathered into account. Those that come meanwhile are left, unless the region is locked.
    fn catch_up(&mut self) -> Result {
        let updates = take(self.index, self.changes, self.region)?;
        for update in updates.iter() {
            let applied = self.shadow.apply(update);
            applied.map_err(|error| self.refuse(error))?;
        }
        Ok(())
    }

    /// How many records there are.
    pub(super) fn count(&mut self) -> Result<u64> {
        let count = self.shadow.count();
        count.map_err(|error| self.refuse(error))
    }

    /// Compares the region's tree with what was collected. Answers whether they are equal; what is not is logged.
    pub(super) fn equals_tree(
        &mut self,
        scrubber: &Scrubber,
        scan: &Scan,
        asked: bool,
        out: &mut Report,
    ) -> Result<bool> {
        let sb = self.index.super_block();
        let (index, region) = (self.index, self.region);
        let mut comparison = Comparison::new();
        // Leaves that are compared next: what cannot be read is said when it is.
        let mut soon: KVVec<u32> = KVVec::new();
        let look_ahead = |comparison: &Comparison, tree: &Tree<'_, '_, Rmap>, soon: &mut KVVec<u32>| {
            soon.clear();
            let _ = comparison.ahead(tree, AHEAD, &mut |block| Ok(soon.push(block, GFP_KERNEL)?));
        };
        {
            let _no_reclaim = NoReclaim::new();
            let state = index.lock(region)?;
            index
                .rmap
                .look_strictly(&state, |tree| look_ahead(&comparison, tree, &mut soon));
        }
        loop {
            scrubber.may_go_on(asked)?;
            scan.outcome()?;
            // Most of what has gathered is taken in with no lock held, and no disk is waited for with one.
            index.rmap.file.read_soon(&soon, AT_ONCE);
            self.catch_up()?;
            let _no_reclaim = NoReclaim::new();
            let state = index.lock(region)?;
            let begun = Instant::<Monotonic>::now();
            self.catch_up()?;
            let step = index.rmap.look_strictly(&state, |tree| {
                let step = comparison.step(tree, &mut self.shadow, AT_ONCE);
                look_ahead(&comparison, tree, &mut soon);
                step
            });
            drop(state);
            out.note_stall(begun.elapsed());
            match step {
                Ok(Step::Equal(Some(_))) => (),
                Ok(Step::Equal(None)) => return Ok(true),
                Ok(Step::Different(found, wanted)) => {
                    pr_err!(
                        "{}: rmap: region {region}: the tree has {found:?}, the inodes say {wanted:?}\n",
                        sb.name()
                    );
                    return Ok(false);
                }
                Err(Trouble::Tree(EngineError::NoMemory)) => return Err(ENOMEM),
                Err(Trouble::Tree(error)) => {
                    self.refuse(error);
                    return Ok(false);
                }
                Err(Trouble::Collected(error)) => return Err(self.refuse(error)),
            }
        }
    }
}

/// Takes the changes of a region that have gathered, oldest first.
fn take(index: &RmapIndex, changes: &Mutex<Rebuild>, region: u32) -> Result<KVVec<Update>> {
    let taken = changes.lock().take();
    index.caught_up();
    taken.map_err(|error| index.rmap.report(region, error))
}

/// A tree on its way into its place.
struct New<'a> {
    index: &'a RmapIndex,
    region: u32,
    generation: u32,
    root: Root,
}

impl New<'_> {
    /// Blocks of the journal that one change of it takes.
    fn credits(&self) -> u32 {
        cost::owner_change(self.root.level) + cost::ENTRY
    }

    /// Applies changes to it, as part of the handle.
    fn apply(&mut self, handle: &Handle, updates: &[Update]) -> Result {
        let tree = self.index.rmap.file.tree(self.region, self.generation);
        let mut nodes = Nodes::new(&self.index.rmap.file, Some(handle), tree);
        let mut btree = BTree::open(&mut nodes, tree, self.root);
        let outcome = apply(&mut btree, updates);
        self.root = btree.root;
        outcome.map_err(|error| self.index.rmap.report(self.region, error))
    }

    /// Applies any number of changes, in as many transactions as it takes.
    fn catch_up(&mut self, volume: &Volume, updates: &[Update]) -> Result {
        let mut left = updates;
        while !left.is_empty() {
            let room = volume.journal()?.room() / 4;
            let each = self.credits();
            let (now, later) = left.split_at(((room / each).max(1) as usize).min(left.len()));
            let _write = self.index.super_block().internal_write();
            let handle = volume.begin_internal(each * now.len() as u32, 0)?;
            self.apply(&handle, now)?;
            handle.stop()?;
            left = later;
        }
        Ok(())
    }
}

/// Makes a new tree of what was collected for a region and puts it in place of the old one.
///
/// Fails, with the old tree in place, with `ENOSPC`, `ENOMEM`, `EIO`, or when it is canceled.
pub(super) fn rebuild(
    mut collected: Collected<'_>,
    scrubber: &Scrubber,
    scan: &Scan,
    asked: bool,
    out: &mut Report,
) -> Result {
    collected.catch_up()?;
    let Collected {
        index,
        region,
        changes,
        mut shadow,
    } = collected;
    changes.lock().begin_rounds();
    let sb = index.super_block();
    let volume = sb.volume()?;
    let refuse = |error| index.rmap.report(region, error);

    let records = shadow.count().map_err(refuse)?;
    out.memory += shadow.bytes() as u64;
    out.records += records;
    let geometry =
        Geometry::new::<Rmap>(index.rmap.file.frame.block_size as usize, records, SLACK).map_err(refuse)?;
    let blocks = usize::try_from(geometry.blocks()).map_err(|_| EFBIG)?;
    let (in_use, _) = index.rmap.file.blocks();
    let wanted = u32::try_from(blocks).map_err(|_| EFBIG)?;
    index.rmap.file.grow(wanted.saturating_add(reserve(in_use)))?;
    scrubber.may_go_on(asked)?;

    let start = |credits: u32| -> Result<(Handle, u32)> {
        let handle = volume.begin_internal(credits + cost::GENERATION + cost::ENTRY, 0)?;
        let generation = index.rmap.file.next_generation(&handle)?;
        index.set_reap(&handle, region, FileKind::Rmap, true)?;
        Ok((handle, generation))
    };
    let (generation, root) = if blocks <= SMALL {
        let _write = sb.internal_write();
        let (handle, generation) = start(cost::NODE * wanted)?;
        let tree = index.rmap.file.tree(region, generation);
        let mut nodes = Nodes::new(&index.rmap.file, Some(&handle), tree);
        let root = load(&mut shadow, &mut nodes, tree, SLACK).map_err(refuse)?;
        handle.stop()?;
        (generation, root)
    } else {
        let generation = {
            let _write = sb.internal_write();
            let (handle, generation) = start(0)?;
            handle.stop()?;
            generation
        };
        let claimed = index.rmap.file.claim(blocks, region, generation)?;
        let mut staged = Staged::new(&index.rmap.file, claimed).map_err(refuse)?;
        let tree = index.rmap.file.tree(region, generation);
        let root = load(&mut shadow, &mut staged, tree, SLACK).map_err(refuse)?;
        staged.finish().map_err(refuse)?;
        (generation, root)
    };
    drop(shadow);
    out.blocks += blocks as u64;

    let mut new = New {
        index,
        region,
        generation,
        root,
    };
    loop {
        scrubber.may_go_on(asked)?;
        scan.outcome()?;
        let close = changes.lock().is_close();
        if !close {
            let updates = take(index, changes, region)?;
            new.catch_up(volume, &updates)?;
            continue;
        }
        let each = new.credits();
        let rest = (volume.journal()?.room() / 2 / each).clamp(1, REST);
        let write = sb.internal_write();
        let handle = volume.begin_internal(rest * each + cost::ENTRY, 0)?;
        let begun = Instant::<Monotonic>::now();
        let mut state = index.lock(region)?;
        let updates = take(index, changes, region)?;
        if updates.len() > rest as usize {
            drop(state);
            handle.stop()?;
            drop(write);
            new.catch_up(volume, &updates)?;
            continue;
        }
        new.apply(&handle, &updates)?;
        index.install(&handle, &mut state, generation, new.root)?;
        drop(state);
        out.note_stall(begun.elapsed());
        handle.stop()?;
        out.rebuilt += 1;
        return Ok(());
    }
}
