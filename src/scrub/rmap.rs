// SPDX-License-Identifier: GPL-2.0

//! The scrub type of the reverse map: a region's tree against all inodes, and a new tree made of them.
//!
//! **Check.** The tree is checked and compared with what a scan collected ([`super::collected`]), some leaves at a time.
//! Whoever changes an owner changes the tree and tells the scan under the region's lock. So with that lock held, and all
//! that was told taken into account, a piece of both must be equal, whatever happened before and will happen after
//! ([`crate::engine::compare`]). The lock is held for a piece at a time only, whose leaves have been read before. What
//! is to be rebuilt anyway is not compared.
//!
//! A region is not judged when blocks in it belong, by its tree, to an inode that could not be read, and neither when
//! the inodes contradict each other about its blocks.
//!
//! **Repair.**
//! 1. The tree file grows until it has room, and the new tree's blocks are claimed. The region's entry says from then on
//!    that blocks of other generations than its own may be there: after a crash they are found by that and freed.
//! 2. The collected records are loaded into the claimed blocks, past the journal, and flushed. (A tree of few nodes is
//!    written with the journal instead, in the transaction that takes its blocks.)
//! 3. The gathered changes are applied to the new tree, in transactions, round after round, until little is left.
//! 4. With the region locked the rest is applied, and in the same transaction the region's entry leads to the new tree.
//!    This is the only time that writers have to wait, and it is bounded by the rest.
//!
//! The old tree's blocks are freed afterwards ([`super::reap`]).

use super::{
    collected::{take, Claim, Collected},
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
        index::{reserve, RmapIndex},
        store::{Nodes, Staged},
    },
};
use kernel::{
    prelude::*,
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

/// The row of the table.
pub(super) static TYPE: ScrubType = ScrubType {
    number: value::REXT4_SCRUB_TYPE_RMAP,
    name: "rmap",
    needs: Needs::Inodes,
    trees: FileKind::Rmap,
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

/// Compares the region's tree, which is good, with what was collected. The first difference is logged.
fn compare(part: &mut RegionScrub<'_>, collected: &mut Collected<'_>) -> Result<Verdict> {
    let (index, region) = (part.index, part.region);
    let mut comparison = Comparison::new();
    // Leaves that are compared next. Errors are left to the comparison.
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
        // Most changes are taken in with no lock held, and no disk is waited for with one.
        index.rmap.file.read_soon(&soon, AT_ONCE);
        collected.catch_up()?;
        let _no_reclaim = NoReclaim::new();
        let state = index.lock(region)?;
        let begun = Instant::<Monotonic>::now();
        // Whoever marks a region stale changes the owners all the same, so that its tree differs from then on.
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
fn repair(part: &mut RegionScrub<'_>) -> Result {
    let begun = Instant::<Monotonic>::now();
    let mut collected = part.collected.take().ok_or(EINVAL)?;
    collected.catch_up()?;
    let (index, region) = (part.index, part.region);
    let Collected {
        changes, mut shadow, ..
    } = collected;
    changes.lock().begin_rounds();
    part.begin_rebuild();
    let sb = index.super_block();
    let volume = sb.volume()?;
    let refuse = |error| index.rmap.report(region, error);

    let records = shadow.count().map_err(refuse)?;
    part.report.memory += shadow.bytes() as u64;
    let geometry =
        Geometry::new::<Rmap>(index.rmap.file.frame.block_size as usize, records, SLACK).map_err(refuse)?;
    let blocks = usize::try_from(geometry.blocks()).map_err(|_| EFBIG)?;
    let (in_use, _) = index.rmap.file.blocks();
    let wanted = u32::try_from(blocks).map_err(|_| EFBIG)?;
    index.rmap.file.grow(wanted.saturating_add(reserve(in_use)))?;
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
        // A change that could not be kept meanwhile would be missing in the new tree.
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
