// SPDX-License-Identifier: GPL-2.0

//! One check, or check and repair, of any number of regions.
//!
//! 1. **Setup**: a collection for each region that is looked at, and a watcher on it.
//! 2. **Scan**: one for all regions ([`super::scan`]).
//! 3. **Check**, region after region: it is compared with its collection ([`super::rmap`]), if it is not to be rebuilt anyway;
//! 4. **Rebuild**, if that was asked for, and it is wrong, stale or to be rebuilt anyway.
//! 5. **Reap**: the old trees' blocks are freed, in one sweep of the space maps.
//!
//! However it ends, nobody watches any more then, and trees that were not put in place are freed as old ones are.

use super::{pool::Memory, rmap, scan::Scan, Scrubber};
use crate::{
    format::tree_file::Kind as FileKind,
    kernel_glue::{abi::value, canceled, is_interrupted, pause, Hooks},
    trees::{cost, index::RmapIndex},
};
use kernel::{
    prelude::*,
    sync::{atomic::Relaxed, Arc, MutexGuard},
    time::{Delta, Instant, Monotonic},
};

/// Bytes that changes of a region may take beside what the scan finds, which has a limit of its own.
const CHANGES: usize = 64 << 20;

/// What is asked for.
pub(super) struct Request {
    /// One region, or all.
    pub(super) region: Option<u32>,
    pub(super) repair: bool,
    /// Rebuild what is right, too.
    pub(super) force: bool,
    /// Bytes of memory for what the scan finds; `None` for what the module's parameter says.
    pub(super) memory: Option<u64>,
    /// Nobody asked for it: all regions that are not stale are left alone.
    pub(super) background: bool,
}

/// What was found and done. Times in nanoseconds.
#[derive(Default)]
pub(super) struct Report {
    /// Regions that were found to be wrong.
    pub(super) bad: u32,
    /// Regions that are stale, and were not rebuilt.
    pub(super) stale: u32,
    /// Regions that got a new tree.
    pub(super) rebuilt: u32,
    pub(super) inodes: u64,
    pub(super) records: u64,
    pub(super) blocks: u64,
    pub(super) updates: u64,
    /// Bytes.
    pub(super) memory: u64,
    /// Bytes that memory had no room for.
    pub(super) spilled: u64,
    pub(super) scan_ns: u64,
    pub(super) check_ns: u64,
    pub(super) load_ns: u64,
    pub(super) reap_ns: u64,
    pub(super) stall_ns: u64,
}

impl Report {
    /// Notes for how long something was compared.
    pub(super) fn note_check(&mut self, time: Delta) {
        self.check_ns += nanoseconds(time);
    }

    /// Notes for how long a new tree was made.
    pub(super) fn note_load(&mut self, time: Delta) {
        self.load_ns += nanoseconds(time);
    }

    /// Notes for how long writers were held up once.
    pub(super) fn note_stall(&mut self, time: Delta) {
        self.stall_ns = self.stall_ns.max(nanoseconds(time));
    }
}

fn nanoseconds(time: Delta) -> u64 {
    time.as_nanos().max(0) as u64
}

/// Ends a run: nobody watches any more.
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

/// Waits for the turn of a check or repair, and has its progress seen.
///
/// Waits for what runs in the background. Fails with `EBUSY` when somebody else's check or repair runs.
fn begin<'a>(scrubber: &'a Scrubber, request: &Request) -> Result<MutexGuard<'a, ()>> {
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
    progress.records.store(0, Relaxed);
    progress.flags.store(flags, Relaxed);
    Ok(busy)
}

/// Does what is asked for.
///
/// Waits for what runs in the background. Fails with `EBUSY` when somebody else's check or repair runs, and as the header
/// of the ioctl says.
pub(super) fn run(index: &RmapIndex, scrubber: &Scrubber, request: &Request) -> Result<Report> {
    framed(
        index,
        scrubber,
        request,
        value::REXT4_SCRUB_TYPE_RMAP,
        &check_and_repair,
        &|| reap(index, &|region| request.region.is_none_or(|only| only == region)),
    )
}

/// What is done in a check or repair.
type Work = dyn Fn(&RmapIndex, &Scrubber, &Request, &mut Report) -> Result;

/// A check or repair of one kind from its turn to its end: `work`, and after a repair, however it went, `reap`, since there
/// may be what was staged and is in no tree, and what was replaced.
pub(super) fn framed(
    index: &RmapIndex,
    scrubber: &Scrubber,
    request: &Request,
    kind: u32,
    work: &Work,
    reap: &dyn Fn() -> Result,
) -> Result<Report> {
    let _busy = begin(scrubber, request)?;
    let progress = &scrubber.progress;
    progress.kind.store(kind, Relaxed);
    let mut report = Report::default();
    let outcome = work(index, scrubber, request, &mut report);
    let begun = Instant::<Monotonic>::now();
    progress.enter(value::REXT4_SCRUB_PHASE_REAP, u64::from(index.regions()));
    let reaped = if request.repair { reap() } else { Ok(()) };
    report.reap_ns = nanoseconds(begun.elapsed());
    progress.flags.store(0, Relaxed);
    progress.enter(value::REXT4_SCRUB_PHASE_IDLE, 0);
    outcome?;
    reaped?;
    Ok(report)
}

fn check_and_repair(
    index: &RmapIndex,
    scrubber: &Scrubber,
    request: &Request,
    report: &mut Report,
) -> Result {
    let asked = !request.background;
    let progress = &scrubber.progress;
    let inodes = index.super_block().volume()?.inode_count();
    progress.enter(value::REXT4_SCRUB_PHASE_SCAN, u64::from(inodes));
    let wanted = |region| -> Result<bool> {
        let picked = request.region.is_none_or(|only| only == region);
        Ok(picked && !(request.background && index.lock(region)?.rmap.good))
    };
    let hooks = Hooks::new();
    let limit = u64::from(*crate::module_parameters::rebuild_memory.value()) << 20;
    let memory = Arc::new(Memory::new(request.memory.unwrap_or(limit)), GFP_KERNEL)?;
    let budget = usize::try_from(memory.limit()).map_or(usize::MAX, |limit| limit.saturating_add(CHANGES));
    let scan = Arc::new(Scan::new(index, &wanted, budget, &memory)?, GFP_KERNEL)?;
    let watching = Watching {
        index,
        scan: scan.clone(),
        _hooks: hooks,
    };
    let picked = || (0..index.regions()).filter(|&region| scan.region(region).is_some());
    for region in picked() {
        index.watch(region, Some(scan.clone()))?;
    }

    let begun = Instant::<Monotonic>::now();
    let scanned = scan.run(index, scrubber, asked);
    report.scan_ns = nanoseconds(begun.elapsed());
    report.inodes = scan.inodes.load(Relaxed);
    report.updates = scan.updates.load(Relaxed);
    scanned?;

    progress.enter(value::REXT4_SCRUB_PHASE_CHECK, picked().count() as u64);
    for region in picked() {
        let begun = Instant::<Monotonic>::now();
        let good = index.lock(region)?.rmap.good;
        let mut collected = rmap::Collected::take(index, &scan, region)?;
        let anyway = request.repair && request.force;
        let equal = good && !anyway && collected.equals_tree(scrubber, &scan, asked, report)?;
        report.bad += u32::from(good && !anyway && !equal);
        report.check_ns += nanoseconds(begun.elapsed());
        if request.repair && !equal {
            progress.phase.store(value::REXT4_SCRUB_PHASE_LOAD, Relaxed);
            let begun = Instant::<Monotonic>::now();
            rmap::rebuild(collected, scrubber, &scan, asked, report)?;
            report.load_ns += nanoseconds(begun.elapsed());
            progress.phase.store(value::REXT4_SCRUB_PHASE_CHECK, Relaxed);
        } else {
            index.watch(region, None)?;
            report.records += collected.count()?;
            report.stale += u32::from(!good);
        }
        progress.advance(1);
    }
    report.updates = scan.updates.load(Relaxed);
    report.spilled = memory.spilled();
    drop(watching);
    Ok(())
}

/// Frees the blocks of those regions that `picked` picks whose generation is not that of the region's tree.
pub(super) fn reap(index: &RmapIndex, picked: &dyn Fn(u32) -> bool) -> Result {
    reap_trees(index, FileKind::Rmap, picked)
}

/// The same of the trees of either kind.
pub(super) fn reap_trees(index: &RmapIndex, kind: FileKind, picked: &dyn Fn(u32) -> bool) -> Result {
    let Some(file) = index.file_of(kind) else {
        return Ok(());
    };
    let mut keep = KVVec::with_capacity(index.regions() as usize, GFP_KERNEL)?;
    let mut any = false;
    for region in 0..index.regions() {
        let entry = index.lock(region)?.entry(kind);
        let reaps = entry.reap && picked(region);
        any |= reaps;
        // Nothing is used of a tree that is stale, and no tree is of generation 0.
        let current = if entry.good { entry.generation } else { 0 };
        keep.push(reaps.then_some(current), GFP_KERNEL)?;
    }
    if !any {
        return Ok(());
    }
    file.reap(&|region, generation| {
        matches!(keep.get(region as usize), Some(Some(current)) if *current != generation)
    })?;
    let sb = index.super_block();
    for (region, _) in (0..).zip(keep.iter()).filter(|(_, keep)| keep.is_some()) {
        let _write = sb.internal_write();
        let handle = sb.volume()?.begin_internal(cost::ENTRY, 0)?;
        index.set_reap(&handle, region, kind, false)?;
        handle.stop()?;
    }
    Ok(())
}
