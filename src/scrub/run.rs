// SPDX-License-Identifier: GPL-2.0

//! The framework of every check, or check and repair, of one scrub type in any number of regions.
//!
//! 1. **Begin**: one run at a time per volume. A background run is waited for.
//! 2. **Scan**, if the type needs one: start a collection and a watcher for each region to be
//!    checked, and one scan of all inodes for all regions ([`super::scan`]).
//! 3. **Check**, by the type, one region after the other.
//! 4. **Repair**, by the type, if requested and if the region is wrong, stale, or to be rebuilt
//!    anyway.
//! 5. **Reap**: free the blocks of trees that are not in use, in one pass over the space maps.
//!
//! An error is confined to its region: it is counted, and the next region is processed. Only a
//! signal, a request to cancel or the end of the mount stops the run and leaves the remaining
//! regions out. The report is valid in either case.

use super::{
    collected::Collected,
    names::{self, Names},
    pool::Memory,
    reap::reap,
    report::{nanoseconds, Report, Request, Verdict},
    scan::Scan,
    scrubber::Scrubber,
};
use crate::{
    engine::{record::Rmap, Error as EngineError},
    format::{divisor, tree_file::Kind as FileKind},
    kernel_glue::{abi::value, is_interrupted, pause, Hooks, NoReclaim},
    trees::index::RmapIndex,
};
use core::{num::NonZero, ops::Range};
use kernel::{
    prelude::*,
    sync::{atomic::Relaxed, Arc, MutexGuard},
    time::{Instant, Monotonic},
};

/// Bytes that changes of all regions may take beside what the scan finds, which has a limit of its
/// own.
const CHANGES: u64 = 64 << 20;

/// The metadata that a scrub type compares with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// A scan of all inodes.
    Inodes,
    /// The region's reverse map.
    ReverseMap,
    /// The inode tables, which the type reads itself.
    InodeTables,
    /// A scan of all names.
    Names,
}

/// An entry in the table of scrub types.
pub(super) struct ScrubType {
    /// Its `REXT4_SCRUB_TYPE_` number.
    pub(super) number: u32,
    /// Its name in the log.
    pub(super) name: &'static str,
    /// The metadata that it compares with.
    pub(super) needs: Needs,
    /// The trees that it checks, if any. Their regions' state decides about repair, and their
    /// replaced blocks are reaped afterwards.
    pub(super) trees: Option<FileKind>,
    /// Checks a region. Fails only if there is no verdict.
    pub(super) check: fn(&mut RegionScrub<'_>) -> Result<Verdict>,
    /// Repairs a region that was checked. On failure the region is unchanged.
    pub(super) repair: fn(&mut RegionScrub<'_>) -> Result,
}

/// One region during a run.
pub(super) struct RegionScrub<'a> {
    pub(super) index: &'a RmapIndex,
    pub(super) region: u32,
    pub(super) report: &'a mut Report,
    /// The collected records, passed from check to repair.
    pub(super) collected: Option<Collected<'a>>,
    kind: &'static ScrubType,
    scrubber: &'a Scrubber,
    request: &'a Request,
    scan: Option<&'a Scan>,
    /// The entries that lead to each inode, if the type needs them.
    pub(super) names: Option<&'a Names>,
}

impl<'a> RegionScrub<'a> {
    /// Fails when the run must end, or when the scan's collection for the region is unusable.
    pub(super) fn may_go_on(&self) -> Result {
        self.scrubber.may_go_on(!self.request.background)?;
        self.outcome()
    }

    /// Fails when the scan's collection for the region is unusable.
    pub(super) fn outcome(&self) -> Result {
        self.scan.map_or(Ok(()), |scan| scan.outcome_of(self.region))
    }

    /// Returns true if the region is rebuilt even if it is right, so that it need not be compared.
    pub(super) fn rebuilds_anyway(&self) -> bool {
        self.request.repair && self.request.force
    }

    /// Returns the groups that begin in the region, of those whose names were counted.
    pub(super) fn groups(&self) -> Result<Range<u32>> {
        let groups = groups_of(self.index, self.region)?;
        Ok(self
            .names
            .map_or(groups.clone(), |names| common(&groups, &names.groups)))
    }

    /// Returns whether the region's tree is good.
    pub(super) fn is_good(&self) -> Result<bool> {
        let region = self.index.lock(self.region)?;
        Ok(self.kind.trees.is_none_or(|trees| region.entry(trees).good))
    }

    /// From now on, writers are delayed if they are faster than the region's new tree can catch up.
    pub(super) fn begin_rebuild(&self) {
        if let Some(scan) = self.scan {
            scan.begin_rebuild(self.region);
        }
    }

    /// Returns whether the scan saw all inodes, so that it knows all owners of blocks.
    pub(super) fn knows_all(&self) -> Result<bool> {
        match self.scan {
            Some(scan) if !scan.unread().is_listed() => {
                Ok(!scan.has_hidden_inodes(self.index.super_block())?)
            }
            _ => Ok(false),
        }
    }

    /// Takes the records that the scan collected for the region.
    pub(super) fn collect(&self) -> Result<Collected<'a>> {
        Collected::take(self.index, self.scan.ok_or(EINVAL)?, self.region)
    }

    /// Returns a verdict if the region cannot be judged because of inodes that could not be read.
    /// With a `good` tree, that is the case if the tree has records of such an inode.
    ///
    /// Without one, the blocks of these inodes are unknown. On a volume without shared blocks, a
    /// new tree can do without them: the blocks stay allocated in the bitmap. With shared blocks, a
    /// missing owner could cause them to be freed.
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
            // A tree that cannot be read is corrupt, and says nothing about them.
            found.unwrap_or(shares)
        } else {
            shares
        };
        Ok(concerned.then_some(verdict))
    }

    /// Returns whether blocks of replaced trees remain to be freed.
    fn has_dead_blocks(&self) -> Result<bool> {
        let region = self.index.lock(self.region)?;
        Ok(self.kind.trees.is_some_and(|trees| region.entry(trees).reap))
    }

    /// Checks the region, and repairs it if requested and necessary.
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
                Verdict::Good | Verdict::Preen => self.request.force && self.kind.trees.is_some(),
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

/// Number of records read per hold of the region lock.
const AT_ONCE: usize = 512;

/// Returns whether a region's reverse map has a record whose owner satisfies `wanted`; `None` if it
/// cannot be read.
pub(super) fn has_owner(
    index: &RmapIndex,
    region: u32,
    wanted: &dyn Fn(u32) -> bool,
) -> Result<Option<bool>> {
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

/// Ends the subscriptions to all regions on drop.
struct Watching<'a> {
    index: &'a RmapIndex,
    scan: Arc<Scan>,
    _hooks: Hooks,
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        for region in 0..self.index.regions() {
            if self.scan.region(region).is_some() {
                // Locking fails only for a region that does not exist.
                let _ = self.index.watch(region, None);
            }
        }
        self.index.caught_up();
    }
}

/// Waits until a check or repair may start. A requested run waits for a background run, but not
/// for another requested run.
///
/// # Errors
///
/// `EBUSY` when another requested run is in progress, `EINTR` on a signal, `ECANCELED` when the
/// volume is being unmounted.
/// volume is being closed.
fn begin<'a>(scrubber: &'a Scrubber, kind: &ScrubType, request: &Request) -> Result<MutexGuard<'a, ()>> {
    let busy = loop {
        scrubber.check_open()?;
        if let Some(busy) = scrubber.busy.try_lock() {
            break busy;
        }
        if request.background {
            break scrubber.busy.lock();
        }
        if !scrubber.upkeep.load(Relaxed) && !scrubber.grows.load(Relaxed) {
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

/// Checks one type of metadata, and repairs it if requested. `report` is valid whatever is
/// returned.
///
/// Fails as described in the header of the ioctl.
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
    let reaped = match kind.trees {
        // Regardless of the result of the repair, there may be staged blocks that are in no tree,
        // and replaced ones.
        Some(trees) if request.repair => reap(index, trees, &|region| request.picks(region)),
        _ => Ok(()),
    };
    report.reap_ns = nanoseconds(begun.elapsed());
    progress.flags.store(0, Relaxed);
    progress.enter(value::REXT4_SCRUB_PHASE_IDLE, 0);
    let outcome = outcome.and(reaped);
    report.incomplete |= outcome.is_err();
    outcome
}

/// Processes all regions, with a scan if the type needs one.
fn run_regions(
    index: &RmapIndex,
    scrubber: &Scrubber,
    kind: &'static ScrubType,
    request: &Request,
    report: &mut Report,
) -> Result {
    if kind.trees.is_some_and(|trees| index.file_of(trees).is_none()) {
        // No block was ever shared, so there is nothing to count.
        return Ok(());
    }
    let wanted = |region| -> Result<bool> {
        let state = index.lock(region)?;
        let stale = kind.trees.is_some_and(|trees| !state.entry(trees).good);
        Ok(request.picks(region) && (stale || !request.background))
    };
    if !matches!(kind.needs, Needs::Inodes | Needs::Names) {
        return each_region(index, scrubber, kind, request, &wanted, (None, None), report);
    }
    let limit = u64::from(*crate::module_parameters::rebuild_memory.value()) << 20;
    if kind.needs == Needs::Names {
        return with_names(index, scrubber, kind, request, limit, report);
    }
    let memory = Arc::new(Memory::new(request.memory.unwrap_or(limit)), GFP_KERNEL)?;
    let changes = Arc::new(Memory::without_file(CHANGES), GFP_KERNEL)?;
    let hooks = Hooks::new();
    let scan = Scan::new(index, &wanted, &memory, changes, request.repair)?;
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
        each_region(
            index,
            scrubber,
            kind,
            request,
            &wanted,
            (Some(&scan), None),
            report,
        )
    });
    report.inodes = scan.inodes.load(Relaxed);
    report.updates = scan.updates.load(Relaxed);
    report.memory = memory.peak();
    report.spilled = memory.spilled();
    outcome
}

/// Returns the groups that begin in a region.
fn groups_of(index: &RmapIndex, region: u32) -> Result<Range<u32>> {
    let layout = index.super_block().volume()?.layout();
    let blocks = index.blocks_of(region)?;
    let groups = layout.groups_of(&blocks).ok_or(EINVAL)?;
    let first = groups.start + u32::from(layout.group_start(groups.start) < blocks.start);
    Ok(first..groups.end)
}

/// Returns what two ranges have in common.
fn common(one: &Range<u32>, other: &Range<u32>) -> Range<u32> {
    let start = one.start.max(other.start);
    start..one.end.min(other.end).max(start)
}

/// Processes all regions with scans of all names. A scan counts the links of as many groups as
/// `limit` bytes are sufficient for, at least one: those of whole regions, if possible.
fn with_names(
    index: &RmapIndex,
    scrubber: &Scrubber,
    kind: &'static ScrubType,
    request: &Request,
    limit: u64,
    report: &mut Report,
) -> Result {
    let volume = index.super_block().volume()?;
    let limit = request.memory.unwrap_or(limit);
    let each = u64::from(volume.inodes_per_group()) * names::BYTES;
    let most = limit / names::BYTES / NonZero::<u64>::from(divisor(volume.inodes_per_group()));
    let most = u32::try_from(most).unwrap_or(u32::MAX).max(1);
    let mut outcome = Ok(());
    let mut next = 0;
    for region in 0..index.regions() {
        let groups = groups_of(index, region)?;
        next = groups.start.max(next);
        while next < groups.end {
            let mut end = groups.end.min(next.saturating_add(most));
            let mut picked = request.picks(region);
            for more in region + 1..index.regions() {
                let further = groups_of(index, more)?.end;
                if end < groups.end || further > next.saturating_add(most) {
                    break;
                }
                end = further;
                picked |= request.picks(more);
            }
            if picked {
                let part = next..end;
                report.memory = report.memory.max(u64::from(end - next) * each);
                match with_names_of(index, scrubber, kind, request, part, report) {
                    Err(error) if error == ENOMEM || error == EROFS => return Err(error),
                    done => outcome = outcome.and(done),
                }
                scrubber.may_go_on(!request.background)?;
            }
            next = end;
        }
    }
    outcome
}

/// Processes the regions of these groups with a scan of all names.
fn with_names_of(
    index: &RmapIndex,
    scrubber: &Scrubber,
    kind: &'static ScrubType,
    request: &Request,
    groups: Range<u32>,
    report: &mut Report,
) -> Result {
    let sb = index.super_block();
    let volume = sb.volume()?;
    let watching = names::Watching::begin(volume, groups)?;
    let names = &watching.names;
    let inodes = u64::from(volume.inode_count());
    scrubber.progress.enter(value::REXT4_SCRUB_PHASE_SCAN, inodes);
    let begun = Instant::<Monotonic>::now();
    let scanned = names.run(sb, scrubber, !request.background);
    report.scan_ns += nanoseconds(begun.elapsed());
    let outcome = scanned.and_then(|()| {
        let wanted = |region| {
            let groups = groups_of(index, region)?;
            Ok(request.picks(region) && !common(&groups, &names.groups).is_empty())
        };
        each_region(
            index,
            scrubber,
            kind,
            request,
            &wanted,
            (None, Some(&**names)),
            report,
        )
    });
    report.inodes = names.visited.load(Relaxed);
    report.updates += names.updates.load(Relaxed);
    outcome
}

/// Processes the regions one after the other. Fails with the error that ended the run, or else with
/// the first error of a region.
fn each_region(
    index: &RmapIndex,
    scrubber: &Scrubber,
    kind: &'static ScrubType,
    request: &Request,
    wanted: &dyn Fn(u32) -> Result<bool>,
    (scan, names): (Option<&Scan>, Option<&Names>),
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
                names,
            }
            .run();
            if let Some(scan) = scan {
                index.watch(region, None)?;
                scan.forget(region);
            }
            match done {
                Ok(()) => (),
                // The tree that it is derived from became stale meanwhile.
                Err(EAGAIN) => report.incomplete = true,
                Err(error) => {
                    report.failed += 1;
                    scrubber.may_go_on(!request.background)?;
                    if error == EROFS {
                        // The volume became read-only.
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
