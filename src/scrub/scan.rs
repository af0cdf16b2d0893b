// SPDX-License-Identifier: GPL-2.0

//! Visits all inodes and collects the blocks that they own, while others change them.
//!
//! A [`Scan`] watches the requested regions. Its workers, one per processor, share the inodes: each
//! range is a part of one block group's inode table, so that tables are read sequentially. An inode
//! is visited with its mapping locked for reading, or, if it is not in the cache, in the table,
//! whose lock prevents it from being loaded. All its blocks are added to the worker's buffer
//! ([`crate::engine::gather`]), then the cursor moves past it. A change of an inode that has been
//! visited is reported to [`Watcher::changed`], in the handle and under the mapping lock of the
//! task that makes it; a change of any other inode is ignored, because the visit will see it.
//!
//! Errors are confined to their inode or region. An inode that cannot be read is recorded
//! ([`Scan::unread`]) and the scan continues without it; the readable part of its mapping is kept.
//! A region whose collection cannot be kept up to date fails alone ([`Scan::outcome_of`]). Only
//! errors that concern everything, such as a signal or a lack of memory for the scan itself, end
//! the scan.

use super::{pool::Memory, scrubber::Scrubber};
use crate::{
    engine::{
        self,
        delta::MOST_LAG,
        gather::{Gathered, Gatherer, Merge, Run},
        rebuild::{Rebuild, Update},
        scan::{Cursor, Work},
        shadow::Shadow,
    },
    format::inode::BAD_BLOCKS,
    fs::{
        scan::{self, Next},
        space::Owner,
        Volume,
    },
    kernel_glue::{canceled, corrupted, pause, processors, run_parallel, NoReclaim, SuperBlock},
    trees::{index::RmapIndex, region::Watcher},
};
use kernel::{
    new_mutex,
    prelude::*,
    str::CString,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, Mutex, MutexGuard,
    },
};

/// Maximum number of inodes per range.
const WIDTH: u32 = 2048;
/// Number of attempts to visit an inode that is in use but cannot be accessed.
const TRIES: u32 = 100;

/// The collection of a region.
#[pin_data]
struct Collection {
    #[pin]
    rebuild: Mutex<Rebuild>,
    /// The first error that concerned only this region, as an errno.
    failed: Atomic<i32>,
    /// A new tree is being built from it, so tasks that change owners may have to wait.
    rebuilt: Atomic<bool>,
}

/// Inodes that could not be visited, or are inconsistent.
#[derive(Default)]
pub(super) struct Unread {
    /// Up to [`UNREAD`] of them, sorted.
    inodes: KVVec<u32>,
    /// Some could not be read from disk,
    pub(super) failed: bool,
    /// and some are damaged.
    pub(super) damaged: bool,
    /// Some inodes that could be read contradict the inode bitmap, or the bitmap cannot be read.
    pub(super) contradicted: bool,
    /// More inodes than are listed, so that any inode may be one of them.
    all: bool,
}

/// Maximum number of inodes listed,
const UNREAD: usize = 1 << 16;
/// and logged.
const LOGGED: usize = 16;

impl Unread {
    /// Returns true if some inodes could not be visited.
    pub(super) fn is_listed(&self) -> bool {
        self.all || !self.inodes.is_empty()
    }

    /// Returns true if this inode may be one of them.
    pub(super) fn has(&self, ino: u32) -> bool {
        self.all || self.inodes.binary_search(&ino).is_ok()
    }

    /// Adds an inode.
    fn push(&mut self, ino: u32) {
        if let Err(place) = self.inodes.binary_search(&ino) {
            let full = self.inodes.len() >= UNREAD || self.inodes.push(ino, GFP_KERNEL).is_err();
            self.all |= full;
            if let Some(behind) = self.inodes.get_mut(place..).filter(|_| !full) {
                behind.rotate_right(1);
            }
        }
    }
}

/// A scan of all inodes, with a collection for each region to be checked.
#[pin_data]
pub(super) struct Scan {
    /// The name of the device, for messages.
    name: CString,
    cursor: Cursor,
    /// Indexed by region; `None` if the region was not requested.
    regions: KVVec<Option<Pin<KBox<Collection>>>>,
    /// Memory for changes by others while the scan runs, of all regions.
    changes: Arc<Memory>,
    /// New trees are going to be built from the records.
    repairs: bool,
    #[pin]
    gathered: Mutex<Gathered>,
    /// The gathered records, after all inodes have been visited.
    #[pin]
    merge: Mutex<Option<Merge>>,
    /// The first error that ended the scan, as an errno.
    failed: Atomic<i32>,
    #[pin]
    unread: Mutex<Unread>,
    /// Number of inodes in use that are free in the inode bitmap.
    doubtful: Atomic<u32>,
    /// 2 if a part of an inode table that is marked as never used has an inode in use, 1 if none
    /// has, 0 while that is unknown.
    hidden: Atomic<u32>,
    /// Number of inodes in use that were visited.
    pub(super) inodes: Atomic<u64>,
    /// Number of live updates received.
    pub(super) updates: Atomic<u64>,
}

/// Number of records of one inode after which the scan checks for cancellation.
const OFTEN: u64 = 4096;

/// Returns true if an error ends the scan, because it does not concern the inode.
fn is_fatal(error: Error) -> bool {
    error == ENOMEM || error == EINTR || error == EROFS || error == canceled()
}

/// A worker and the records that it collects.
struct Worker<'a> {
    index: &'a RmapIndex,
    scan: &'a Scan,
    scrubber: &'a Scrubber,
    /// The current task is the one that asked for the scan.
    asked: bool,
    gatherer: Gatherer,
    /// Number of records since the progress was last updated.
    records: u64,
}

impl Worker<'_> {
    /// Takes in blocks that an inode owns.
    ///
    /// # Errors
    ///
    /// `EINVAL` for blocks outside the volume and `EFSCORRUPTED` for data out of file order, which
    /// concern the inode; `ENOMEM`, `EINTR` and `ECANCELED`, which end the scan.
    fn take(&mut self, start: u64, len: u32, owner: Owner) -> Result {
        let (index, scan) = (self.index, self.scan);
        // A damaged mapping may be very long.
        if self.records > OFTEN {
            self.scrubber
                .progress
                .records
                .fetch_add(core::mem::take(&mut self.records), Relaxed);
            self.scrubber.may_go_on(self.asked)?;
        }
        index.cut(start, len, owner, &mut |region, record| {
            self.records += 1;
            if scan.region(region).is_none() || scan.has_failed(region) {
                return Ok(());
            }
            let pushed = self.gatherer.push(region, record);
            pushed.map_err(|error| index.rmap.report(region, error))?;
            match self.gatherer.is_full() {
                true => {
                    let run = self.gatherer.spill();
                    scan.add(run.map(Some))
                }
                false => Ok(()),
            }
        })
    }

    /// Adds the remaining entries to the collection.
    fn close(mut self) -> Result {
        let last = self.gatherer.finish();
        self.scan.add(last)
    }
}

impl Scan {
    /// Returns a scan for the regions that `wanted` selects. Gathered records use `memory`, and
    /// live updates use `changes`. `repairs`: new trees are going to be built.
    pub(super) fn new(
        index: &RmapIndex,
        wanted: &dyn Fn(u32) -> Result<bool>,
        memory: &Arc<Memory>,
        changes: Arc<Memory>,
        repairs: bool,
    ) -> Result<Arc<Scan>> {
        let volume = index.super_block().volume()?;
        // A range must not extend beyond the end of a group.
        let mut width = volume.inodes_per_group().max(1);
        while width > WIDTH && width % 2 == 0 {
            width /= 2;
        }
        let budget = memory.limit().saturating_add(changes.limit());
        let budget = usize::try_from(budget).unwrap_or(usize::MAX);
        let mut regions = KVVec::with_capacity(index.regions() as usize, GFP_KERNEL)?;
        for region in 0..index.regions() {
            let collection = if wanted(region)? {
                let rebuild = Rebuild::awaiting(budget, memory.clone(), changes.clone());
                let collection = pin_init!(Collection {
                    rebuild <- new_mutex!(rebuild, "Scan::regions"),
                    failed: Atomic::new(0),
                    rebuilt: Atomic::new(false),
                });
                Some(KBox::pin_init(collection, GFP_KERNEL)?)
            } else {
                None
            };
            regions.push(collection, GFP_KERNEL)?;
        }
        let gathered = Gathered::new(memory.clone(), processors() as usize, memory.limit());
        let cursor = Cursor::new(volume.inode_count(), width)?;
        let name = CString::try_from_fmt(fmt!("{}", index.super_block().name()))?;
        let scan = pin_init!(Scan {
            name,
            cursor,
            regions,
            changes,
            repairs,
            gathered <- new_mutex!(gathered, "Scan::gathered"),
            merge <- new_mutex!(None, "Scan::merge"),
            failed: Atomic::new(0),
            unread <- new_mutex!(Unread::default(), "Scan::unread"),
            doubtful: Atomic::new(0),
            hidden: Atomic::new(0),
            inodes: Atomic::new(0),
            updates: Atomic::new(0),
        });
        Arc::pin_init(scan, GFP_KERNEL)
    }

    /// Returns the collection of a region; `None` if it is not part of the scan.
    pub(super) fn region(&self, region: u32) -> Option<&Mutex<Rebuild>> {
        let collection = self.regions.get(region as usize)?.as_ref()?;
        Some(&collection.rebuild)
    }

    /// Announces that a new tree is being built from a region's collection: from now on, writers
    /// that are faster than the build are delayed. Checks never delay writers.
    pub(super) fn begin_rebuild(&self, region: u32) {
        if let Some(Some(collection)) = self.regions.get(region as usize) {
            collection.rebuilt.store(true, Relaxed);
        }
    }

    /// Takes in a run, if there is one. Fails with `ENOMEM`.
    fn add(&self, run: engine::Result<Option<Run>>) -> Result {
        // The lock is taken inside of handles, too.
        let _no_reclaim = NoReclaim::new();
        let added = run.and_then(|run| match run {
            Some(run) => self.gathered.lock().add(run),
            None => Ok(()),
        });
        // Whatever the error was, records are missing.
        added.map_err(|_| ENOMEM)
    }

    /// Fills the shadow of a region, whose turn it is: regions are taken in order.
    pub(super) fn fill(&self, region: u32, shadow: &mut Shadow) -> engine::Result {
        match &mut *self.merge.lock() {
            Some(merge) => shadow.fill(merge, region),
            None => Err(engine::Error::Mismatch("the scan has not ended")),
        }
    }

    /// Frees the collection of a region that was processed.
    pub(super) fn forget(&self, region: u32) {
        if let Some(rebuild) = self.region(region) {
            let nothing = Rebuild::awaiting(0, self.changes.clone(), self.changes.clone());
            let _old = core::mem::replace(&mut *rebuild.lock(), nothing);
        }
    }

    /// Ends the scan with `error`.
    fn fail(&self, error: Error) {
        let _ = self.failed.cmpxchg(0, error.to_errno(), Relaxed);
        self.cursor.poison();
    }

    /// Marks a region's collection as unusable.
    fn fail_region(&self, region: u32, error: Error) {
        if let Some(Some(collection)) = self.regions.get(region as usize) {
            let _ = collection.failed.cmpxchg(0, error.to_errno(), Relaxed);
        }
    }

    fn has_failed(&self, region: u32) -> bool {
        self.outcome_of(region).is_err()
    }

    /// Fails with the error that ended the scan.
    fn outcome(&self) -> Result {
        match self.failed.load(Relaxed) {
            0 => Ok(()),
            errno => Err(Error::from_errno(errno)),
        }
    }

    /// Fails with the first error that concerns this region. Its collection is then incomplete and
    /// must not be used.
    pub(super) fn outcome_of(&self, region: u32) -> Result {
        self.outcome()?;
        match self.regions.get(region as usize) {
            Some(Some(collection)) => match collection.failed.load(Relaxed) {
                0 => Ok(()),
                errno => Err(Error::from_errno(errno)),
            },
            _ => Err(EINVAL),
        }
    }

    /// Returns the inodes that could not be visited.
    pub(super) fn unread(&self) -> MutexGuard<'_, Unread> {
        self.unread.lock()
    }

    /// Records that the inodes from `first` to `last` could not be visited. Fails if the error
    /// concerns the whole scan.
    fn note_unread(&self, sb: &SuperBlock<Volume>, (first, last): (u32, u32), error: Error) -> Result {
        let failed = error == EIO;
        if is_fatal(error) {
            return Err(error);
        }
        let mut unread = self.unread.lock();
        if unread.inodes.len() < LOGGED {
            pr_err!(
                "{}: inode {first}: cannot be scanned, so its blocks are unknown: error {}\n",
                sb.name(),
                error.to_errno()
            );
        }
        unread.failed |= failed;
        unread.damaged |= !failed;
        for ino in first..=last {
            if !unread.all {
                unread.push(ino);
            }
        }
        Ok(())
    }

    /// Returns whether a part of an inode table that is marked as never used has an inode in use,
    /// which the scan has not seen. Reads all inode tables the first time.
    pub(super) fn has_hidden_inodes(&self, sb: &SuperBlock<Volume>) -> Result<bool> {
        if self.hidden.load(Relaxed) == 0 {
            let hidden = scan::has_hidden_inodes(sb)?;
            self.hidden.store(1 + u32::from(hidden), Relaxed);
        }
        Ok(self.hidden.load(Relaxed) == 2)
    }

    /// Records that an inode is in use although it is free in the inode bitmap.
    fn note_doubtful(&self, sb: &SuperBlock<Volume>, ino: u32) {
        self.unread.lock().contradicted = true;
        let told = self.doubtful.fetch_add(1, Relaxed);
        if told < LOGGED as u32 {
            pr_err!(
                "{}: inode {ino}: free in the inode bitmap, but it has links and contents; it keeps its blocks\n",
                sb.name()
            );
        }
    }

    /// Visits all inodes.
    ///
    /// # Errors
    ///
    /// `EINTR` or `ECANCELED` when the scan is cancelled, `ENOMEM`.
    pub(super) fn run(&self, index: &RmapIndex, scrubber: &Scrubber, asked: bool) -> Result {
        let caller = kernel::current!().pid();
        run_parallel(processors(), &|| {
            let asked = asked && kernel::current!().pid() == caller;
            if let Err(error) = self.worker(index, scrubber, asked) {
                self.fail(error);
            }
        })?;
        self.outcome()?;
        if !self.cursor.is_complete() {
            return Err(EIO);
        }
        let merge = self.gathered.lock().merge();
        *self.merge.lock() = Some(merge.map_err(|_| ENOMEM)?);
        Ok(())
    }

    /// Takes ranges until none is left.
    fn worker(&self, index: &RmapIndex, scrubber: &Scrubber, asked: bool) -> Result {
        let _checking = scan::Checking::begin(index.super_block().volume()?)?;
        let mut worker = Worker {
            index,
            scan: self,
            scrubber,
            asked,
            gatherer: self.gathered.lock().gatherer(),
            records: 0,
        };
        let mut done = Ok(());
        while let Some(work) = self.cursor.take() {
            done = self.range(&mut worker, scrubber, work, asked);
            if done.is_err() {
                break;
            }
        }
        done.and(worker.close())
    }

    fn range(&self, worker: &mut Worker<'_>, scrubber: &Scrubber, work: Work, asked: bool) -> Result {
        let sb = worker.index.super_block();
        // Locks are held that tasks in a handle wait for.
        let _no_reclaim = NoReclaim::new();
        let progress = &scrubber.progress;
        let _ = scan::read_slots(sb, work.first, work.last);
        let mut next = work.first;
        let mut tries = 0;
        while next <= work.last {
            scrubber.may_go_on(asked)?;
            let (mut passed, mut bitmap) = (0, Ok(()));
            let found = scan::next_used(sb, next, work.last, &mut bitmap, &mut |first, last| {
                self.cursor.passed(first, last);
                passed = u64::from(last - first) + 1;
            });
            progress.advance(passed);
            if let Err(error) = bitmap {
                let mut unread = self.unread.lock();
                unread.contradicted |= error != EIO;
                unread.failed |= error == EIO;
            }
            let (first, last) = match found {
                Ok(Next::Nothing) => return Ok(()),
                Ok(Next::Used(first, last)) => (first, last),
                Ok(Next::Doubtful(ino)) => {
                    self.note_doubtful(sb, ino);
                    (ino, ino)
                }
                Err(error) => {
                    // The group's inodes can be neither loaded nor allocated, so they do not
                    // change.
                    self.note_unread(sb, (next, work.last), error)?;
                    self.cursor.passed(next, work.last);
                    return Ok(());
                }
            };
            next = first;
            while next <= last {
                scrubber.may_go_on(asked)?;
                let peeked = scan::peek(
                    sb,
                    next,
                    last,
                    &mut |start, len, owner| worker.take(start, len, owner),
                    |first, last| self.cursor.passed(first, last),
                );
                let mut seen = match peeked {
                    Err(error) if is_fatal(error) => return Err(error),
                    // The visit has logged what is wrong with which inode.
                    Err(_) => next,
                    Ok(seen) => seen,
                };
                self.inodes.fetch_add(u64::from(seen - next), Relaxed);
                if seen == next {
                    if !self.visit(worker, sb, next)? {
                        break;
                    }
                    seen += 1;
                }
                progress.advance(u64::from(seen - next));
                progress
                    .records
                    .fetch_add(core::mem::take(&mut worker.records), Relaxed);
                tries = 0;
                next = seen;
            }
            if next <= last {
                // The inode is being freed or created: look at the bitmap again.
                tries += 1;
                if tries > TRIES {
                    // It cannot be loaded, so it does not change.
                    self.note_unread(sb, (next, next), corrupted())?;
                    self.cursor.visited(next);
                    next += 1;
                    tries = 0;
                    continue;
                }
                pause(1);
            }
        }
        Ok(())
    }

    /// Visits an inode. Returns false if it is being created or freed.
    fn visit(&self, worker: &mut Worker<'_>, sb: &SuperBlock<Volume>, ino: u32) -> Result<bool> {
        if ino < sb.volume()?.layout().first_inode && scan::is_unmade(sb, ino).unwrap_or(false) {
            let mut take = |start, len, owner| worker.take(start, len, owner);
            let listed = match ino {
                BAD_BLOCKS => scan::bad_blocks(sb, &mut take),
                _ => Ok(()),
            };
            if let Err(error) = listed {
                self.note_unread(sb, (ino, ino), error)?;
            }
            self.cursor.visited(ino);
            return Ok(true);
        }
        let inode = match scan::get(sb, ino) {
            Ok(Some(inode)) => inode,
            Ok(None) => return Ok(false),
            Err(error) => {
                // It cannot be loaded, so it does not change.
                self.note_unread(sb, (ino, ino), error)?;
                self.cursor.visited(ino);
                return Ok(true);
            }
        };
        let map = scan::lock_warm_map(&inode)?;
        let visited = scan::for_each_owned(&inode, &map, &mut |start, len, owner| {
            worker.take(start, len, owner)
        });
        if let Err(error) = visited {
            self.note_unread(sb, (ino, ino), error)?;
        }
        self.cursor.visited(ino);
        drop(map);
        self.inodes.fetch_add(1, Relaxed);
        Ok(true)
    }
}

impl Watcher for Scan {
    fn changed(&self, region: u32, update: Update) -> u32 {
        let (Update::Add(record) | Update::Remove(record)) = update;
        if !self.cursor.wants_update(record.owner) || self.has_failed(region) {
            return 0;
        }
        let Some(Some(collection)) = self.regions.get(region as usize) else {
            return 0;
        };
        self.updates.fetch_add(1, Relaxed);
        let mut rebuild = collection.rebuild.lock();
        if let Err(error) = rebuild.update(update) {
            let error = match error {
                engine::Error::NoMemory => ENOMEM,
                _ => corrupted(),
            };
            pr_err!(
                "{}: rmap: region {region}: a change during a scrub could not be recorded: error {}\n",
                &*self.name,
                error.to_errno()
            );
            self.fail_region(region, error);
        }
        let lag = match collection.rebuilt.load(Relaxed) {
            true => rebuild.lag(),
            false => 0,
        };
        match self.repairs {
            true => lag.max(self.changes.strain(MOST_LAG)),
            false => lag,
        }
    }
}
