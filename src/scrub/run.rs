// SPDX-License-Identifier: GPL-2.0

//! The frame of every check, or check and repair, of one scrub type in any number of regions.
//!
//! 1. **Turn**: one at a time on a volume; the background gives way.
//! 2. **Scan**, if the type needs one: a collection for each region that is looked at, a watcher on it, and one scan of
//!    all inodes for all regions ([`super::scan`]).
//! 3. **Check**, region after region, by the type.
//! 4. **Repair** by the type, if that was asked for, and the region is wrong, stale, or to be rebuilt anyway.
//! 5. **Reap**: the blocks of trees that are not in place are freed, in one sweep of the space maps.
//!
//! An error stays with its region: it is counted, and the next region is looked at. Only when all is to end (a signal, a
//! request to cancel, the end of the mount) are the regions left out that are not done. The report holds in either case.

use super::{
    collected::Collected,
    pool::Memory,
    reap::reap,
    report::{nanoseconds, Report, Request, Verdict},
    scan::Scan,
    scrubber::Scrubber,
};
use crate::{
    engine::{record::Rmap, Error as EngineError},
    format::tree_file::Kind as FileKind,
    kernel_glue::{abi::value, canceled, is_interrupted, pause, Hooks, NoReclaim},
    trees::index::RmapIndex,
};
use kernel::{
    prelude::*,
    sync::{atomic::Relaxed, Arc, MutexGuard},
    time::{Instant, Monotonic},
};

/// Bytes that changes of a region may take beside what the scan finds, which has a limit of its own.
const CHANGES: usize = 64 << 20;

/// The witness that a scrub type compares with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// A scan of all inodes.
    Inodes,
    /// The region's reverse map.
    ReverseMap,
}

/// A row of the table of scrub types.
pub(super) struct ScrubType {
    /// Its `REXT4_SCRUB_TYPE_` number.
    pub(super) number: u32,
    /// Its name in the log.
    pub(super) name: &'static str,
    /// What it compares with.
    pub(super) needs: Needs,
    /// The trees that it is about. A region's tree is stale or good, and its replaced blocks are freed after a repair.
    pub(super) trees: FileKind,
    /// Checks a region. Fails only when there is no verdict.
    pub(super) check: fn(&mut RegionScrub<'_>) -> Result<Verdict>,
    /// Repairs a region that was checked. Fails with the region as it was.
    pub(super) repair: fn(&mut RegionScrub<'_>) -> Result,
}

/// One region in the hands of a scrub type.
pub(super) struct RegionScrub<'a> {
    pub(super) index: &'a RmapIndex,
    pub(super) region: u32,
    pub(super) report: &'a mut Report,
    /// What the check took from the scan, for the repair.
    pub(super) collected: Option<Collected<'a>>,
    kind: &'static ScrubType,
    scrubber: &'a Scrubber,
    request: &'a Request,
    scan: Option<&'a Scan>,
}

impl<'a> RegionScrub<'a> {
    /// Fails when the scrub is to end, or the scan's collection of the region is of no use any more.
    pub(super) fn may_go_on(&self) -> Result {
        self.scrubber.may_go_on(!self.request.background)?;
        self.outcome()
    }

    /// Fails when the scan's collection of the region is of no use any more.
    pub(super) fn outcome(&self) -> Result {
        self.scan.map_or(Ok(()), |scan| scan.outcome_of(self.region))
    }

    /// Whether the region is to be rebuilt even if it is right, so that it need not be compared.
    pub(super) fn rebuilds_anyway(&self) -> bool {
        self.request.repair && self.request.force
    }

    /// Whether the region's tree is good.
    pub(super) fn is_good(&self) -> Result<bool> {
        Ok(self.index.lock(self.region)?.entry(self.kind.trees).good)
    }

    /// Lets writers wait from now on when they are faster than a new tree of the region can be made.
    pub(super) fn begin_rebuild(&self) {
        if let Some(scan) = self.scan {
            scan.begin_rebuild(self.region);
        }
    }

    /// Takes what the scan collected for the region.
    pub(super) fn collect(&self) -> Result<Collected<'a>> {
        Collected::take(self.index, self.scan.ok_or(EINVAL)?, self.region)
    }

    /// Whether the region cannot be judged because of inodes that could not be read. With a `good` tree that is so where
    /// the tree has records of one of them.
    ///
    /// Without one the blocks of such inodes are not known. On a volume without shared blocks a new tree can do without
    /// them: they stay in use, and nobody else can have them. Where blocks are shared a tree without an owner would have
    /// them freed under it.
    pub(super) fn unread_here(&self, good: bool) -> Result<Option<Verdict>> {
        let Some(scan) = self.scan else {
            return Ok(None);
        };
        let verdict = {
            let unread = scan.unread();
            match (unread.is_listed(), unread.damaged) {
                (false, _) => return Ok(None),
                (true, true) => Verdict::CrossCorrupt,
                (true, false) => Verdict::CrossFailed,
            }
        };
        let shares = self.index.super_block().volume()?.shares();
        let concerned = if good {
            let found = has_owner(self.index, self.region, &|ino| scan.unread().has(ino))?;
            // A tree that cannot be read is corrupt, and says nothing of them.
            found.unwrap_or(shares)
        } else {
            shares
        };
        Ok(concerned.then_some(verdict))
    }

    /// Whether blocks of replaced trees are still to be freed.
    fn has_dead_blocks(&self) -> Result<bool> {
        Ok(self.index.lock(self.region)?.entry(self.kind.trees).reap)
    }

    /// Checks the region, and repairs it if that was asked for and is needed.
    fn run(&mut self) -> Result {
        let begun = Instant::<Monotonic>::now();
        let checked = (self.kind.check)(self);
        self.report.check_ns += nanoseconds(begun.elapsed());
        let verdict = match checked? {
            Verdict::Good if self.has_dead_blocks()? => Verdict::Preen,
            verdict => verdict,
        };
        self.report.note(verdict);
        let repairs = self.request.repair
            && match verdict {
                Verdict::Good | Verdict::Preen => self.request.force,
                Verdict::Corrupt | Verdict::Stale => true,
                Verdict::Unknown | Verdict::CrossFailed | Verdict::CrossCorrupt => false,
            };
        if repairs {
            let progress = &self.scrubber.progress;
            progress.phase.store(value::REXT4_SCRUB_PHASE_LOAD, Relaxed);
            let repaired = (self.kind.repair)(self);
            progress.phase.store(value::REXT4_SCRUB_PHASE_CHECK, Relaxed);
            repaired?;
            self.report.rebuilt += 1;
        } else if !matches!(verdict, Verdict::Good | Verdict::Preen | Verdict::Corrupt) {
            self.report.incomplete = true;
        }
        Ok(())
    }
}

/// Records looked at while a region is locked.
const AT_ONCE: usize = 512;

/// Whether a region's reverse map has a record of an owner of some kind; `None` when it cannot be read.
fn has_owner(index: &RmapIndex, region: u32, wanted: &dyn Fn(u32) -> bool) -> Result<Option<bool>> {
    let mut from = 0;
    loop {
        let (mut seen, mut next, mut found) = (0, None, false);
        let _no_reclaim = NoReclaim::new();
        let state = index.lock(region)?;
        let looked = index.rmap.look(&state, |tree| {
            tree.overlapping(from, u32::MAX, &mut |record: &Rmap| {
                if seen >= AT_ONCE && record.start > from {
                    next = Some(record.start);
                    return Ok(false);
                }
                seen += 1;
                found = wanted(record.owner);
                Ok(!found)
            })
        });
        match (looked, next) {
            (Err(EngineError::NoMemory), _) => return Err(ENOMEM),
            (Err(_), _) => return Ok(None),
            (Ok(()), Some(block)) if !found => from = block,
            (Ok(()), _) => return Ok(Some(found)),
        }
    }
}

/// Ends the watch on all regions.
struct Watching<'a> {
    index: &'a RmapIndex,
    scan: Arc<Scan>,
    _hooks: Hooks,
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        for region in 0..self.index.regions() {
            if self.scan.region(region).is_some() {
                // Only a region that is not there could not be locked.
                let _ = self.index.watch(region, None);
            }
        }
        self.index.caught_up();
    }
}

/// Waits for the turn of a check or repair. A background run is waited for, and waits itself.
///
/// Fails with `EBUSY` when somebody else's check or repair runs, with `EINTR` on a signal, with `ECANCELED` when the
/// volume is being closed.
fn begin<'a>(scrubber: &'a Scrubber, kind: &ScrubType, request: &Request) -> Result<MutexGuard<'a, ()>> {
    let busy = loop {
        if scrubber.closing.load(Relaxed) {
            return Err(canceled());
        }
        if let Some(busy) = scrubber.busy.try_lock() {
            break busy;
        }
        if request.background {
            break scrubber.busy.lock();
        }
        if !scrubber.upkeep.load(Relaxed) {
            return Err(EBUSY);
        }
        if is_interrupted() {
            return Err(EINTR);
        }
        pause(10);
    };
    scrubber.end.store(0, Relaxed);
    let progress = &scrubber.progress;
    let mut flags = 0;
    if request.background {
        flags |= value::REXT4_SCRUB_PROGRESS_BACKGROUND;
    }
    if request.repair {
        flags |= value::REXT4_SCRUB_PROGRESS_REPAIR;
    }
    progress.kind.store(kind.number, Relaxed);
    progress.records.store(0, Relaxed);
    progress.flags.store(flags, Relaxed);
    Ok(busy)
}

/// Checks one type of metadata, and repairs it if that is asked for. `report` holds whatever is returned.
///
/// Fails as the header of the ioctl says.
pub(super) fn run(
    index: &RmapIndex,
    scrubber: &Scrubber,
    kind: &'static ScrubType,
    request: &Request,
    report: &mut Report,
) -> Result {
    let _busy = begin(scrubber, kind, request)?;
    report.begun = true;
    let outcome = run_regions(index, scrubber, kind, request, report);
    let progress = &scrubber.progress;
    let begun = Instant::<Monotonic>::now();
    progress.enter(value::REXT4_SCRUB_PHASE_REAP, u64::from(index.regions()));
    let reaped = if request.repair {
        // However the repair went, there may be blocks that were staged and are in no tree, and ones that were replaced.
        reap(index, kind.trees, &|region| request.picks(region))
    } else {
        Ok(())
    };
    report.reap_ns = nanoseconds(begun.elapsed());
    progress.flags.store(0, Relaxed);
    progress.enter(value::REXT4_SCRUB_PHASE_IDLE, 0);
    let outcome = outcome.and(reaped);
    report.incomplete |= outcome.is_err();
    outcome
}

/// All regions: with a scan, if the type needs one.
fn run_regions(
    index: &RmapIndex,
    scrubber: &Scrubber,
    kind: &'static ScrubType,
    request: &Request,
    report: &mut Report,
) -> Result {
    if index.file_of(kind.trees).is_none() {
        // No block was ever shared, so that there is nothing to count.
        return Ok(());
    }
    let wanted = |region| -> Result<bool> {
        let stale = !index.lock(region)?.entry(kind.trees).good;
        Ok(request.picks(region) && (stale || !request.background))
    };
    if kind.needs == Needs::ReverseMap {
        return each_region(index, scrubber, kind, request, &wanted, None, report);
    }
    let limit = u64::from(*crate::module_parameters::rebuild_memory.value()) << 20;
    let memory = Arc::new(Memory::new(request.memory.unwrap_or(limit)), GFP_KERNEL)?;
    let budget = usize::try_from(memory.limit()).map_or(usize::MAX, |limit| limit.saturating_add(CHANGES));
    let hooks = Hooks::new();
    let scan = Arc::new(Scan::new(index, &wanted, budget, &memory)?, GFP_KERNEL)?;
    let _watching = Watching {
        index,
        scan: scan.clone(),
        _hooks: hooks,
    };
    for region in (0..index.regions()).filter(|&region| scan.region(region).is_some()) {
        index.watch(region, Some(scan.clone()))?;
    }
    let inodes = index.super_block().volume()?.inode_count();
    scrubber
        .progress
        .enter(value::REXT4_SCRUB_PHASE_SCAN, u64::from(inodes));
    let begun = Instant::<Monotonic>::now();
    let scanned = scan.run(index, scrubber, !request.background);
    report.scan_ns = nanoseconds(begun.elapsed());
    {
        let unread = scan.unread();
        report.xfail |= unread.failed;
        report.xcorrupt |= unread.damaged || unread.contradicted;
    }
    let outcome = scanned.and_then(|()| {
        let wanted = |region| Ok(scan.region(region).is_some());
        each_region(index, scrubber, kind, request, &wanted, Some(&scan), report)
    });
    report.inodes = scan.inodes.load(Relaxed);
    report.updates = scan.updates.load(Relaxed);
    report.spilled = memory.spilled();
    outcome
}

/// Region after region. Fails with what ended all, or else with the first error of a region.
fn each_region(
    index: &RmapIndex,
    scrubber: &Scrubber,
    kind: &'static ScrubType,
    request: &Request,
    wanted: &dyn Fn(u32) -> Result<bool>,
    scan: Option<&Scan>,
    report: &mut Report,
) -> Result {
    scrubber
        .progress
        .enter(value::REXT4_SCRUB_PHASE_CHECK, u64::from(index.regions()));
    let mut outcome = Ok(());
    for region in 0..index.regions() {
        if wanted(region)? {
            let done = RegionScrub {
                index,
                region,
                report: &mut *report,
                collected: None,
                kind,
                scrubber,
                request,
                scan,
            }
            .run();
            if scan.is_some() {
                index.watch(region, None)?;
            }
            match done {
                Ok(()) => (),
                // The tree that it rests on went stale meanwhile.
                Err(EAGAIN) => report.incomplete = true,
                Err(error) => {
                    report.failed += 1;
                    scrubber.may_go_on(!request.background)?;
                    if error == EROFS {
                        // Nothing more is written to the volume.
                        return Err(error);
                    }
                    pr_err!(
                        "{}: {}: region {region} could not be {}: error {}\n",
                        index.super_block().name(),
                        kind.name,
                        if request.repair { "repaired" } else { "checked" },
                        error.to_errno()
                    );
                    outcome = outcome.and(Err(error));
                }
            }
        }
        scrubber.progress.advance(1);
    }
    outcome
}
