// SPDX-License-Identifier: GPL-2.0

//! The background task of a volume: rebuilds stale trees, frees blocks left behind by crashes and
//! rebuilds, grows tree files in advance, and clears the feature `shared_blocks` when no shared
//! block is left.
//!
//! Each step is attempted regardless of the others' results. If a step failed, upkeep is retried by
//! a timer, first after [`FIRST_RETRY`] seconds, then with the delay doubling each time up to
//! [`LAST_RETRY`].

use super::{
    reap::reap,
    refcount,
    report::{Report, Request},
    rmap, run,
    scrubber::{Scrubber, Wake},
};
use crate::{
    format::tree_file::Kind,
    fs::sharing,
    kernel_glue::{canceled, restart, Background, Task},
    trees::index::{reserve, RmapIndex},
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc,
    },
    time::{Instant, Monotonic},
};

/// Seconds until a failed upkeep is retried: initially,
const FIRST_RETRY: i64 = 10;
/// and at most.
const LAST_RETRY: i64 = 3600;

/// Number of times that upkeep is repeated if a tree became stale while another was derived from
/// it.
const TRIES: u32 = 3;

/// The background task of a volume.
pub(super) struct Upkeep {
    index: Arc<RmapIndex>,
    scrubber: Arc<Scrubber>,
    /// Origin of `due`. Not the time of day, which may be set.
    begun: Instant<Monotonic>,
    /// Earliest time of the next attempt after a failure, in seconds. Until then, wakeups are
    /// ignored, unless blocks have been parked: freeing these may be what makes it succeed.
    due: Atomic<i64>,
    /// Earliest time of the next attempt if blocks are parked.
    due_for_parked: Atomic<i64>,
    /// Seconds until the next retry.
    delay: Atomic<i64>,
}

impl Upkeep {
    pub(super) fn new(index: Arc<RmapIndex>, scrubber: Arc<Scrubber>) -> Upkeep {
        Upkeep {
            index,
            scrubber,
            begun: Instant::now(),
            due: Atomic::new(i64::MIN),
            due_for_parked: Atomic::new(i64::MIN),
            delay: Atomic::new(FIRST_RETRY),
        }
    }

    /// Seconds since this was made.
    fn now(&self) -> i64 {
        self.begun.elapsed().as_nanos() / 1_000_000_000
    }
}

impl Wake for Background<Upkeep> {
    fn wake(&self) {
        self.start();
    }

    fn wake_after(&self, seconds: u32) {
        self.start_after(seconds.saturating_mul(1000));
    }
}

impl Task for Upkeep {
    fn run(&self) {
        let mut due = self.due.load(Relaxed);
        if self.index.has_parked().unwrap_or(false) {
            due = due.min(self.due_for_parked.load(Relaxed));
        }
        let early = due.saturating_sub(self.now());
        if early > 0 {
            self.scrubber.wake_after(early.min(LAST_RETRY) as u32);
            return;
        }
        self.scrubber.upkeep.store(true, Relaxed);
        let refreshed = refresh(&self.index, &self.scrubber);
        self.scrubber.upkeep.store(false, Relaxed);
        let name = self.index.super_block().name();
        match refreshed.outcome {
            Ok(()) if !refreshed.doubts => {
                self.due.store(i64::MIN, Relaxed);
                self.delay.store(FIRST_RETRY, Relaxed);
                return;
            }
            Err(error) if error == canceled() || error == restart() => return,
            _ => (),
        }
        let delay = self.delay.load(Relaxed);
        match refreshed.outcome {
            Err(error) => pr_err!(
                "{name}: rmap: could not be brought up to date: error {}; retrying in {delay} s\n",
                error.to_errno()
            ),
            Ok(()) => pr_warn!(
                "{name}: rmap: some regions are not up to date, because inodes or block bitmaps are damaged; run a scrub or e2fsck; retrying in {delay} s\n"
            ),
        }
        self.due.store(self.now().saturating_add(delay), Relaxed);
        self.due_for_parked
            .store(self.now().saturating_add(FIRST_RETRY), Relaxed);
        self.delay.store((2 * delay).min(LAST_RETRY), Relaxed);
        self.scrubber.wake_after(delay as u32);
    }
}

/// The result of one upkeep run.
pub(super) struct Refreshed {
    /// The first error.
    pub(super) outcome: Result,
    /// Some inodes could not be read or contradict each other, so the trees may lack owners.
    pub(super) doubts: bool,
}

/// Runs all steps.
pub(super) fn refresh(index: &RmapIndex, scrubber: &Scrubber) -> Refreshed {
    let _upkeeping = scrubber.upkeeping.lock();
    let mut tries = TRIES;
    // A region rebuilt by an earlier attempt is not scanned again.
    let mut doubts = false;
    loop {
        tries -= 1;
        let (outcome, doubtful) = refresh_once(index, scrubber);
        doubts |= doubtful;
        match outcome {
            Err(EAGAIN) if tries > 0 => (),
            outcome => return Refreshed { outcome, doubts },
        }
    }
}

/// Runs all steps once. Returns the first error, or else `EAGAIN` if a tree became stale meanwhile,
/// and whether there are doubts.
fn refresh_once(index: &RmapIndex, scrubber: &Scrubber) -> (Result, bool) {
    let mut outcome = Ok(());
    let mut note = |part: Result| outcome = outcome.and(part);
    // First, since it frees blocks in the tree files.
    note(reap_pending(index, scrubber));
    match fill_reserves(index) {
        // The next steps may free blocks.
        Err(ENOSPC) => (),
        done => note(done),
    }
    let mut doubts = false;
    for kind in [&rmap::TYPE, &refcount::TYPE] {
        if !kind.trees.is_some_and(|trees| has_stale(index, trees)) {
            continue;
        }
        let mut report = Report::default();
        let done = run::run(index, scrubber, kind, &Request::UPKEEP, &mut report);
        if report.rebuilt > 0 {
            pr_info!(
                "{}: {}: {} of {} regions rebuilt, {} records\n",
                index.super_block().name(),
                kind.name,
                report.rebuilt,
                index.regions(),
                report.records
            );
        }
        let doubtful = report.xfail || report.xcorrupt;
        doubts |= doubtful;
        note(done);
        if report.incomplete && !doubtful {
            note(Err(EAGAIN));
        }
    }
    {
        // A check of the bitmaps must not take parked blocks that are being freed for lost ones.
        let _busy = scrubber.busy.lock();
        note(settle(index));
    }
    note(fill_reserves(index));
    (outcome, doubts)
}

/// Makes the tree files longer in which too few blocks are free.
fn fill_reserves(index: &RmapIndex) -> Result {
    let mut outcome = Ok(());
    for file in [Some(&index.rmap.file), index.counts().map(|counts| &counts.file)]
        .into_iter()
        .flatten()
    {
        let (blocks, free) = file.blocks();
        if free < reserve(blocks) {
            outcome = outcome.and(file.grow(reserve(blocks)));
        }
    }
    outcome
}

/// Returns whether any region's tree of this kind is stale.
fn has_stale(index: &RmapIndex, kind: Kind) -> bool {
    index.file_of(kind).is_some()
        && (0..index.regions()).any(|region| index.lock(region).is_ok_and(|state| !state.entry(kind).good))
}

/// Frees the blocks of replaced trees left behind by a crash or a failed repair. Stale regions are
/// skipped, since their rebuild does this.
fn reap_pending(index: &RmapIndex, scrubber: &Scrubber) -> Result {
    let _busy = scrubber.busy.lock();
    let mut outcome = Ok(());
    for kind in [Kind::Rmap, Kind::Refcount] {
        let is_good = |region| index.lock(region).is_ok_and(|state| state.entry(kind).good);
        outcome = outcome.and(reap(index, kind, &is_good));
    }
    outcome
}

/// Frees blocks that had to wait for the reverse map, and clears the feature `shared_blocks` if
/// nothing is shared any more.
pub(super) fn settle(index: &RmapIndex) -> Result {
    let mut outcome = Ok(());
    for region in 0..index.regions() {
        outcome = outcome.and(index.settle(region));
    }
    outcome.and(sharing::end_sharing(index.super_block()))
}
