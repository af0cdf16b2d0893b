// SPDX-License-Identifier: GPL-2.0

//! Comparing a region's reference counts with its reverse map, and sweeping new ones out of it.
//!
//! Neither looks at inodes: what the reverse map says of them is checked by itself ([`super::rmap`]). A region of which
//! that is stale or unreadable is passed over, and counted as such. Both trees change under one lock, so with that held a
//! piece of both must agree; it is held for a piece at a time.

use super::{
    run::{framed, reap_trees, Report, Request},
    Scrubber,
};
use crate::{
    engine::{
        refcount::{Count, STAGED},
        Error as EngineError, Result as EngineResult,
    },
    format::tree_file::Kind as FileKind,
    fs::space,
    kernel_glue::{abi::value, NoReclaim},
    trees::{forest::Forest, index::RmapIndex, region::LockedRegion},
};
use kernel::{
    prelude::*,
    sync::atomic::Relaxed,
    time::{Instant, Monotonic},
};

/// What a look at a region's counts said.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Right,
    Wrong,
    /// The reverse map that they are compared with is stale or cannot be read.
    Unknown,
}

/// Checks the counts of one region or all, and sweeps new ones if that is asked for.
///
/// Fails as [`super::run::run`] does.
pub(super) fn run(index: &RmapIndex, scrubber: &Scrubber, request: &Request) -> Result<Report> {
    framed(
        index,
        scrubber,
        request,
        value::REXT4_SCRUB_TYPE_REFCOUNT,
        &check_and_repair,
        &|| reap(index),
    )
}

fn check_and_repair(
    index: &RmapIndex,
    scrubber: &Scrubber,
    request: &Request,
    report: &mut Report,
) -> Result {
    if index.counts().is_none() {
        // No block was ever shared.
        return Ok(());
    }
    let asked = !request.background;
    let progress = &scrubber.progress;
    progress.enter(value::REXT4_SCRUB_PHASE_CHECK, u64::from(index.regions()));
    for region in 0..index.regions() {
        progress.advance(1);
        let (owners_good, good) = {
            let state = index.lock(region)?;
            (state.rmap.good, state.refcount.good)
        };
        let picked = request.region.is_none_or(|only| only == region);
        if !picked || request.background && (good || !owners_good) {
            continue;
        }
        let begun = Instant::<Monotonic>::now();
        let verdict = match (owners_good, good) {
            (false, _) => Verdict::Unknown,
            (true, false) => Verdict::Wrong,
            (true, true) => compare(index, scrubber, region, asked, report)?,
        };
        report.note_check(begun.elapsed());
        report.bad += u32::from(good && verdict == Verdict::Wrong);
        let rebuild = request.repair
            && match verdict {
                Verdict::Right => request.force,
                Verdict::Wrong => true,
                Verdict::Unknown => false,
            };
        if rebuild {
            progress.phase.store(value::REXT4_SCRUB_PHASE_LOAD, Relaxed);
            let begun = Instant::<Monotonic>::now();
            sweep(index, scrubber, region, asked, report)?;
            report.note_load(begun.elapsed());
            progress.phase.store(value::REXT4_SCRUB_PHASE_CHECK, Relaxed);
        } else {
            report.stale += u32::from(!good || verdict == Verdict::Unknown);
        }
    }
    Ok(())
}

/// Compares a region's counts with what its reverse map makes of them. What is not equal is logged.
fn compare(
    index: &RmapIndex,
    scrubber: &Scrubber,
    region: u32,
    asked: bool,
    report: &mut Report,
) -> Result<Verdict> {
    let counts = index.counts().ok_or(EINVAL)?;
    let refuse = |error| match error {
        EngineError::NoMemory => Err(ENOMEM),
        error => {
            counts.report(region, error);
            Ok(Verdict::Wrong)
        }
    };
    let mut key = None;
    loop {
        scrubber.may_go_on(asked)?;
        let _no_reclaim = NoReclaim::new();
        let state = index.lock(region)?;
        if !state.refcount.good {
            return Ok(Verdict::Wrong);
        }
        match counts.look_strictly(&state, |tree| tree.check_step(key)) {
            Ok(None) => break,
            Ok(next) => key = next,
            Err(error) => return refuse(error),
        }
    }
    let mut from = 0;
    // The records that the last piece ended with, of each kind.
    let mut before = [None; 2];
    loop {
        scrubber.may_go_on(asked)?;
        let _no_reclaim = NoReclaim::new();
        let state = index.lock(region)?;
        if !state.rmap.good {
            return Ok(Verdict::Unknown);
        }
        if !state.refcount.good {
            return Ok(Verdict::Wrong);
        }
        let piece = match index.recounted(&state, from) {
            Ok(piece) => piece,
            Err(EngineError::NoMemory) => return Err(ENOMEM),
            Err(error) => {
                index.rmap.report(region, error);
                return Ok(Verdict::Unknown);
            }
        };
        report.records += piece.counts.len() as u64;
        match differs(counts, &state, (from, piece.end()), &piece.counts, &mut before) {
            Ok(None) => (),
            Ok(Some((found, wanted))) => {
                pr_err!(
                    "{}: refcount: region {region}: the tree has {found:?}, the reverse map says {wanted:?}\n",
                    index.super_block().name()
                );
                return Ok(Verdict::Wrong);
            }
            Err(error) => return refuse(error),
        }
        match piece.next {
            Some(next) => from = next,
            None => return Ok(Verdict::Right),
        }
    }
}

/// What the tree has, and what it should have.
type Difference = (Option<Count>, Option<Count>);

/// Compares the records within `range` with those `wanted`; `before` are the last of each kind before it.
fn differs(
    counts: &Forest<Count>,
    region: &LockedRegion<'_>,
    range: (u32, u32),
    wanted: &[Count],
    before: &mut [Option<Count>; 2],
) -> EngineResult<Option<Difference>> {
    let mut wanted = wanted.iter().copied();
    let mut odd = None;
    for (base, before) in [0, STAGED].into_iter().zip(before) {
        let (from, to) = (base | range.0, base | range.1);
        counts.look(region, |tree| {
            tree.overlapping(from, to.saturating_sub(1), &mut |record: &Count| {
                let start = record.start.max(from);
                let part = Count {
                    start,
                    len: record.end().min(to).saturating_sub(start),
                    count: record.count,
                };
                // Records that could be one are wrong as well.
                let parted = before.is_some_and(|before: Count| before.continues(record));
                let next = wanted.next();
                if parted || next != Some(part) {
                    odd = Some((Some(*record), next));
                }
                *before = Some(*record);
                Ok(odd.is_none())
            })
        })?;
        if odd.is_some() {
            return Ok(odd);
        }
    }
    Ok(wanted.next().map(|missing| (None, Some(missing))))
}

/// Sweeps a region's counts out of its reverse map into a new tree, and puts that in place.
///
/// Fails, with the old tree in place, with `EAGAIN` when the reverse map went stale meanwhile, with `ENOSPC`, `ENOMEM`,
/// `EIO`, or when it is canceled.
fn sweep(index: &RmapIndex, scrubber: &Scrubber, region: u32, asked: bool, report: &mut Report) -> Result {
    let generation = index.begin_recount(region)?;
    let outcome = loop {
        if let Err(error) = scrubber.may_go_on(asked) {
            break Err(error);
        }
        let begun = Instant::<Monotonic>::now();
        match index.recount_part(region, generation) {
            Ok((records, done)) => {
                report.note_stall(begun.elapsed());
                report.records += records;
                if done {
                    break Ok(());
                }
            }
            Err(error) => break Err(error),
        }
    };
    if outcome.is_err() {
        index.end_recount(region);
    }
    outcome?;
    report.rebuilt += 1;
    Ok(())
}

/// Frees the blocks of counts' trees that are not, or no longer, in place.
pub(super) fn reap(index: &RmapIndex) -> Result {
    reap_trees(index, FileKind::Refcount, &|_| true)
}

/// Gives back what had to wait for the reverse map, and has the superblock say so when nothing is shared any more.
pub(super) fn settle(index: &RmapIndex) -> Result {
    for region in 0..index.regions() {
        index.settle(region)?;
    }
    space::end_sharing(index.super_block())
}
