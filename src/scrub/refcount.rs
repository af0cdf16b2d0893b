// SPDX-License-Identifier: GPL-2.0

//! The scrub type of the reference counts: checks a region's tree of counts against its reverse
//! map, and rebuilds it.
//!
//! Neither reads inodes; the reverse map is checked against them by its own type ([`super::rmap`]).
//! A region whose reverse map is stale is skipped. Both trees change under one lock, so any part of
//! both that is compared with that lock held must agree. The lock is held for one part at a time.

use super::{
    reap::make_room,
    report::{nanoseconds, Verdict},
    run::{Needs, RegionScrub, ScrubType},
};
use crate::{
    engine::{
        refcount::{Count, STAGED},
        Error as EngineError, Result as EngineResult,
    },
    format::tree_file::Kind as FileKind,
    kernel_glue::{abi::value, NoReclaim},
    trees::{forest::Forest, recount::BLOCKS_FOR_PART, region::LockedRegion},
};
use kernel::{
    fmt,
    prelude::*,
    time::{Instant, Monotonic},
};

/// The entry in the table of scrub types.
pub(super) static TYPE: ScrubType = ScrubType {
    number: value::REXT4_SCRUB_TYPE_REFCOUNT,
    name: "refcount",
    needs: Needs::ReverseMap,
    trees: Some(FileKind::Refcount),
    check,
    repair,
};

fn check(part: &mut RegionScrub<'_>) -> Result<Verdict> {
    let (owners_good, good) = {
        let state = part.index.lock(part.region)?;
        (state.rmap.good, state.refcount.good)
    };
    match (owners_good, good) {
        (false, _) => Ok(Verdict::Unknown),
        (true, false) => Ok(Verdict::Stale),
        (true, true) if part.rebuilds_anyway() => Ok(Verdict::Good),
        (true, true) => compare(part),
    }
}

/// Formats a record for the log, with blocks relative to the start of the volume; `None` is
/// "nothing".
struct Counted {
    /// The first block of the record's region.
    start: u64,
    record: Option<Count>,
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(record) = self.record else {
            return f.write_str("nothing");
        };
        let first = self.start + u64::from(record.start & !STAGED);
        let last = first + u64::from(record.len.saturating_sub(1));
        match record.start & STAGED {
            0 => f.write_fmt(fmt!("blocks {first}-{last} with {} owners", record.count)),
            _ => f.write_fmt(fmt!("blocks {first}-{last} as CoW staging")),
        }
    }
}

/// Compares a region's counts with those derived from its reverse map. The first difference is
/// logged.
fn compare(part: &mut RegionScrub<'_>) -> Result<Verdict> {
    let (index, region) = (part.index, part.region);
    let counts = index.counts().ok_or(EINVAL)?;
    let refuse = |error| match error {
        EngineError::NoMemory => Err(ENOMEM),
        error => {
            counts.report(region, error);
            Ok(Verdict::Corrupt)
        }
    };
    let mut key = None;
    loop {
        part.may_go_on()?;
        let _no_reclaim = NoReclaim::new();
        let state = index.lock(region)?;
        if !state.refcount.good {
            return Ok(Verdict::Stale);
        }
        match counts.look_strictly(&state, |tree| tree.check_step(key)) {
            Ok(None) => break,
            Ok(next) => key = next,
            Err(error) => return refuse(error),
        }
    }
    let mut from = 0;
    // The last record of each kind in the previous part.
    let mut before = [None; 2];
    loop {
        part.may_go_on()?;
        let _no_reclaim = NoReclaim::new();
        let state = index.lock(region)?;
        if !state.rmap.good {
            return Ok(Verdict::Unknown);
        }
        if !state.refcount.good {
            return Ok(Verdict::Stale);
        }
        let recounted = match index.recounted(&state, from) {
            Ok(recounted) => recounted,
            Err(EngineError::NoMemory) => return Err(ENOMEM),
            Err(error) => {
                index.rmap.report(region, error);
                return Ok(Verdict::CrossCorrupt);
            }
        };
        part.report.records += recounted.counts.len() as u64;
        match differs(
            counts,
            &state,
            (from, recounted.end()),
            &recounted.counts,
            &mut before,
        ) {
            Ok(None) => (),
            Ok(Some((found, wanted))) => {
                let counted = |record| Counted {
                    start: index.start_of(region),
                    record,
                };
                pr_err!(
                    "{}: refcount: region {region}: the tree has {}; the reverse map has {}\n",
                    index.super_block().name(),
                    counted(found),
                    counted(wanted)
                );
                return Ok(Verdict::Corrupt);
            }
            Err(error) => return refuse(error),
        }
        match recounted.next {
            Some(next) => from = next,
            None => return Ok(Verdict::Good),
        }
    }
}

/// The record in the tree, and the expected record.
type Difference = (Option<Count>, Option<Count>);

/// Compares the records within `range` with those `wanted`. `before` is the last record of each
/// kind before the range.
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
                // Two adjacent records that should have been merged are also wrong.
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

/// Derives a new tree of counts from a region's reverse map, and installs it.
///
/// # Errors
///
/// The old tree stays in place. `EAGAIN` when the reverse map became stale meanwhile; `ENOSPC`,
/// `ENOMEM`, `EIO`; `ECANCELED` or `EINTR` when the run is cancelled.
fn repair(part: &mut RegionScrub<'_>) -> Result {
    let begun = Instant::<Monotonic>::now();
    let (index, region) = (part.index, part.region);
    match make_room(index, FileKind::Refcount, BLOCKS_FOR_PART) {
        // Fewer may do.
        Err(ENOSPC) => (),
        done => done?,
    }
    let generation = index.begin_recount(region)?;
    let outcome = loop {
        if let Err(error) = part.may_go_on() {
            break Err(error);
        }
        let locked = Instant::<Monotonic>::now();
        match index.recount_part(region, generation) {
            Ok((records, done)) => {
                part.report.note_stall(locked.elapsed());
                part.report.records += records;
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
    part.report.load_ns += nanoseconds(begun.elapsed());
    outcome
}
