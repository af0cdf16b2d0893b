// SPDX-License-Identifier: GPL-2.0

//! The scrub type of the reverse map: checks a region's tree against all inodes, and rebuilds it.
//!
//! **Check.** The tree is checked and compared with the collected records ([`super::collected`]), a
//! few leaves at a time. A task that changes owners updates the tree and informs the scan under the
//! region lock. With that lock held, and all reported changes applied, any part of both must
//! therefore be equal, regardless of changes before and after ([`crate::engine::compare`]). The
//! lock is held for one part at a time, whose leaves have been read before. A tree that will be
//! rebuilt anyway is not compared.
//!
//! A region is not judged if, according to its tree, blocks in it belong to an inode that could not
//! be read, or if the inodes contradict each other about its blocks.
//!
//! **Repair.**
//! 1. Claim: the tree file is extended as needed, and blocks for the new tree are claimed. From now
//!    on the region's entry says that blocks of other generations may exist, so that they are found
//!    and freed after a crash.
//! 2. Load: the collected records are loaded into the claimed blocks without journaling, and
//!    flushed. (A tree of only a few nodes is journaled instead, in the transaction that allocates
//!    its blocks.)
//! 3. Catch up: the changes collected meanwhile are applied to the new tree in transactions, round
//!    after round, until few are left.
//! 4. Install: with the region locked, the remaining changes are applied, and in the same
//!    transaction the region's entry is changed to refer to the new tree. This is the only time
//!    that writers have to wait, and it is bounded by the number of remaining changes.
//!
//! The old tree's blocks are freed afterwards ([`super::reap`]).

use super::{
    collected::{take, Claim, Collected},
    reap::make_room,
    report::{nanoseconds, Verdict},
    run::{Needs, RegionScrub, ScrubType},
};
use crate::{
    engine::{
        btree::{BTree, Root},
        bulk::Geometry,
        compare::{Comparison, Step, Trouble},
        rebuild::{apply, load, Update},
        record::Rmap,
        Error as EngineError,
    },
    format::tree_file::Kind as FileKind,
    fs::Volume,
    kernel_glue::{abi::value, Handle, NoReclaim},
    trees::{
        cost,
        forest::Tree,
        index::RmapIndex,
        store::{Nodes, Staged},
    },
};
use kernel::{
    prelude::*,
    time::{Instant, Monotonic},
};

/// Maximum number of nodes of a tree that is written as part of a transaction, and so does not wait
/// for the disk. A large volume has many regions that are empty or nearly so.
const SMALL: usize = 16;
/// Number of leaves compared per hold of the region lock.
const AT_ONCE: usize = 16;
/// Number of leaves being read ahead while others are compared.
const AHEAD: usize = 4 * AT_ONCE;
/// Percentage of each new node that stays free.
const SLACK: u32 = 10;
/// Maximum number of changes left to be applied while the region is locked.
const REST: u32 = 64;

/// The entry in the table of scrub types.
pub(super) static TYPE: ScrubType = ScrubType {
    number: value::REXT4_SCRUB_TYPE_RMAP,
    name: "rmap",
    needs: Needs::Inodes,
    trees: Some(FileKind::Rmap),
    check,
    repair,
};

fn check(part: &mut RegionScrub<'_>) -> Result<Verdict> {
    let mut collected = part.collect()?;
    let verdict = judge(part, &mut collected)?;
    part.report.records += collected.count()?;
    part.collected = Some(collected);
    Ok(verdict)
}

fn judge(part: &mut RegionScrub<'_>, collected: &mut Collected<'_>) -> Result<Verdict> {
    let mut unread = false;
    let contradictions = collected.contradictions(&mut unread)?;
    part.report.xfail |= unread;
    if contradictions > 0 {
        return Ok(Verdict::CrossCorrupt);
    }
    let good = part.is_good()?;
    let unread = part.unread_here(good)?;
    match (unread, good) {
        (Some(verdict), _) => Ok(verdict),
        (None, false) => Ok(Verdict::Stale),
        (None, true) if part.rebuilds_anyway() => Ok(Verdict::Good),
        (None, true) => compare(part, collected),
    }
}

/// Compares the region's tree, which is good, with the collected records. The first difference is
/// logged.
fn compare(part: &mut RegionScrub<'_>, collected: &mut Collected<'_>) -> Result<Verdict> {
    let (index, region) = (part.index, part.region);
    let mut comparison = Comparison::new();
    // The leaves to be compared next. Read errors are left to the comparison.
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
        part.may_go_on()?;
        // Apply most changes and wait for I/O before taking the lock.
        index.rmap.file.read_soon(&soon, AT_ONCE);
        collected.catch_up()?;
        let _no_reclaim = NoReclaim::new();
        let state = index.lock(region)?;
        let begun = Instant::<Monotonic>::now();
        // After a region is marked stale, its tree is no longer updated, so it would differ.
        if !state.rmap.good {
            return Ok(Verdict::Stale);
        }
        collected.catch_up()?;
        let step = index.rmap.look_strictly(&state, |tree| {
            let step = comparison.step(tree, &mut collected.shadow, AT_ONCE);
            look_ahead(&comparison, tree, &mut soon);
            step
        });
        drop(state);
        part.report.note_stall(begun.elapsed());
        match step {
            Ok(Step::Equal(Some(_))) => (),
            Ok(Step::Equal(None)) => return Ok(Verdict::Good),
            Ok(Step::Different(found, wanted)) => {
                let claim = |record| Claim {
                    start: index.start_of(region),
                    record,
                };
                pr_err!(
                    "{}: rmap: region {region}: the tree has {}; the inodes have {}\n",
                    index.super_block().name(),
                    claim(found),
                    claim(wanted)
                );
                return Ok(Verdict::Corrupt);
            }
            Err(Trouble::Tree(EngineError::NoMemory)) => return Err(ENOMEM),
            Err(Trouble::Tree(error)) => {
                collected.refuse(error);
                return Ok(Verdict::Corrupt);
            }
            Err(Trouble::Collected(error)) => return Err(collected.refuse(error)),
        }
    }
}

/// A new tree that is not installed yet.
struct New<'a> {
    index: &'a RmapIndex,
    region: u32,
    generation: u32,
    root: Root,
}

impl New<'_> {
    /// Number of journal blocks that one change of the tree may use.
    fn credits(&self) -> u32 {
        cost::owner_change(self.root.level) + cost::ENTRY
    }

    /// Applies changes to the tree as part of the handle.
    fn apply(&mut self, handle: &Handle, updates: &[Update]) -> Result {
        let tree = self.index.rmap.file.tree(self.region, self.generation);
        let mut nodes = Nodes::new(&self.index.rmap.file, Some(handle), tree);
        let mut btree = BTree::open(&mut nodes, tree, self.root);
        let outcome = apply(&mut btree, updates);
        self.root = btree.root;
        outcome.map_err(|error| self.index.rmap.report(self.region, error))
    }

    /// Applies any number of changes, in as many transactions as needed.
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

/// Builds a new tree from the collected records of a region and installs it.
///
/// # Errors
///
/// The old tree stays in place. `ENOSPC`, `ENOMEM`, `EIO`; `ECANCELED` or `EINTR` when the run is
/// cancelled.
fn repair(part: &mut RegionScrub<'_>) -> Result {
    let begun = Instant::<Monotonic>::now();
    let mut collected = part.collected.take().ok_or(EINVAL)?;
    collected.catch_up()?;
    let (index, region) = (part.index, part.region);
    // On a volume with shared blocks, which alone has parked ones, no inode is missing here.
    collected.free_parked()?;
    let Collected {
        changes, mut shadow, ..
    } = collected;
    changes.lock().begin_rounds();
    part.begin_rebuild();
    let sb = index.super_block();
    let volume = sb.volume()?;
    let refuse = |error| index.rmap.report(region, error);

    let records = shadow.count().map_err(refuse)?;
    let geometry =
        Geometry::new::<Rmap>(index.rmap.file.frame.block_size as usize, records, SLACK).map_err(refuse)?;
    let blocks = usize::try_from(geometry.blocks()).map_err(|_| EFBIG)?;
    let wanted = u32::try_from(blocks).map_err(|_| EFBIG)?;
    make_room(index, FileKind::Rmap, wanted)?;
    part.may_go_on()?;

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
        drop(nodes);
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
    part.report.blocks += blocks as u64;

    let mut new = New {
        index,
        region,
        generation,
        root,
    };
    loop {
        part.may_go_on()?;
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
        let stalled = Instant::<Monotonic>::now();
        let mut state = index.lock(region)?;
        // A change that could not be recorded would be missing from the new tree.
        part.outcome()?;
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
        part.report.note_stall(stalled.elapsed());
        handle.stop()?;
        part.report.load_ns += nanoseconds(begun.elapsed());
        return Ok(());
    }
}
