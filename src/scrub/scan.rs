// SPDX-License-Identifier: GPL-2.0

//! Collecting what the trees must hold from all inodes, while others change them.
//!
//! A [`Scan`] watches the regions it is for. Its workers, as many as there are processors, share the inodes: each range is
//! a part of one block group's inode table, so that the tables are read from front to back. An inode is visited with its
//! mapping locked to read (or, if it is not in the cache, where it lies in the table, which keeps it from being taken
//! meanwhile): all that it owns goes to what the worker itself gathers, then the cursor moves past it. A
//! change of an inode that was visited comes in through [`Watcher::changed`], in the handle and under the mapping's lock
//! of whoever makes it; one of an inode that was not is left alone, since the visit will see it.
//!
//! The first thing that cannot be taken in ends the scan, and with it whatever it is for.

use super::{pool::Memory, Scrubber};
use crate::{
    engine::{
        self,
        append::Appender,
        rebuild::{Rebuild, Update},
        record::Rmap,
        scan::{Cursor, Work},
        shadow::Pool,
    },
    fs::{scan, space::Owner, Volume},
    kernel_glue::{corrupted, pause, processors, run_parallel, NoReclaim, SuperBlock},
    trees::{index::RmapIndex, region::Watcher},
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, Mutex,
    },
};

/// Inodes of a range at most.
const WIDTH: u32 = 2048;
/// How often an inode is asked for that is in use and cannot be had.
const TRIES: u32 = 100;

/// A collection for each region that is looked at.
pub(super) struct Scan {
    cursor: Cursor,
    /// By region; `None` for one that nobody asked for.
    regions: KVVec<Option<Pin<KBox<Mutex<Rebuild>>>>>,
    /// The first thing that went wrong, as an errno.
    failed: Atomic<i32>,
    /// Inodes in use that were visited.
    pub(super) inodes: Atomic<u64>,
    /// Changes by others that were taken in.
    pub(super) updates: Atomic<u64>,
}

/// What a worker gathers, by region.
struct Gathered<'a> {
    index: &'a RmapIndex,
    scan: &'a Scan,
    appenders: KVVec<Option<Appender>>,
    /// How many pieces came since that was last told.
    records: u64,
}

impl Gathered<'_> {
    /// Takes in what an inode owns.
    fn take(&mut self, start: u64, len: u32, owner: Owner) -> Result {
        let index = self.index;
        index.cut(start, len, owner, &mut |region, record| self.push(region, record))
    }

    /// Takes in what an inode owns in a region.
    fn push(&mut self, region: u32, record: Rmap) -> Result {
        self.records += 1;
        let Some(collection) = self.scan.region(region) else {
            return Ok(());
        };
        let refuse = |error| self.index.rmap.report(region, error);
        let place = self.appenders.get_mut(region as usize).ok_or(EINVAL)?;
        let appender = match place {
            Some(appender) => appender,
            None => place.insert(collection.lock().appender().map_err(refuse)?),
        };
        appender.push(record).map_err(refuse)?;
        if appender.is_full() {
            collection.lock().absorb(appender).map_err(refuse)?;
        }
        Ok(())
    }

    /// Hands over what is left.
    fn close(self) -> Result {
        let mut done = Ok(());
        // The collections are locked inside of handles, too.
        let _no_reclaim = NoReclaim::new();
        for (region, appender) in (0..).zip(self.appenders) {
            if let (Some(mut appender), Some(collection)) = (appender, self.scan.region(region)) {
                let recalled = collection.lock().recall(&mut appender);
                // What takes its time with no lock held, by each worker for itself.
                let finished = recalled.and_then(|()| appender.finish());
                if let Err(error) = finished.and(collection.lock().close(appender)) {
                    done = Err(self.index.rmap.report(region, error));
                }
            }
        }
        done
    }
}

impl Scan {
    /// A scan for the regions that `wanted` picks, each of which may take `budget` bytes in all, and what it finds for them
    /// from `memory`.
    pub(super) fn new(
        index: &RmapIndex,
        wanted: &dyn Fn(u32) -> Result<bool>,
        budget: usize,
        memory: &Arc<Memory>,
    ) -> Result<Scan> {
        let volume = index.super_block().volume()?;
        // No range may reach over a group's end.
        let mut width = volume.inodes_per_group().max(1);
        while width > WIDTH && width % 2 == 0 {
            width /= 2;
        }
        let mut regions = KVVec::with_capacity(index.regions() as usize, GFP_KERNEL)?;
        for region in 0..index.regions() {
            let collection = if wanted(region)? {
                let pool: Arc<dyn Pool> = memory.clone();
                let rebuild = Rebuild::with_pool(budget, Some(pool));
                Some(KBox::pin_init(new_mutex!(rebuild, "Scan::regions"), GFP_KERNEL)?)
            } else {
                None
            };
            regions.push(collection, GFP_KERNEL)?;
        }
        Ok(Scan {
            cursor: Cursor::new(volume.inode_count(), width)?,
            regions,
            failed: Atomic::new(0),
            inodes: Atomic::new(0),
            updates: Atomic::new(0),
        })
    }

    /// The collection of a region; `None` when it is not looked at.
    pub(super) fn region(&self, region: u32) -> Option<&Mutex<Rebuild>> {
        let collection = self.regions.get(region as usize)?.as_ref()?;
        Some(collection)
    }

    fn fail(&self, error: Error) {
        let _ = self.failed.cmpxchg(0, error.to_errno(), Relaxed);
        self.cursor.poison();
    }

    /// Fails with what went wrong first.
    pub(super) fn outcome(&self) -> Result {
        match self.failed.load(Relaxed) {
            0 => Ok(()),
            errno => Err(Error::from_errno(errno)),
        }
    }

    /// Visits all inodes.
    ///
    /// Fails with `EFSCORRUPTED` or `EIO` when inodes cannot be read, with `ENOMEM`, and when it is canceled.
    pub(super) fn run(&self, index: &RmapIndex, scrubber: &Scrubber, asked: bool) -> Result {
        let caller = kernel::current!().pid();
        run_parallel(processors(), &|| {
            let asked = asked && kernel::current!().pid() == caller;
            if let Err(error) = self.worker(index, scrubber, asked) {
                self.fail(error);
            }
        })?;
        self.outcome()?;
        if self.cursor.is_complete() {
            Ok(())
        } else {
            Err(EIO)
        }
    }

    /// Takes ranges until there are none.
    fn worker(&self, index: &RmapIndex, scrubber: &Scrubber, asked: bool) -> Result {
        let mut appenders = KVVec::with_capacity(self.regions.len(), GFP_KERNEL)?;
        for _ in 0..self.regions.len() {
            appenders.push(None, GFP_KERNEL)?;
        }
        let mut gathered = Gathered {
            index,
            scan: self,
            appenders,
            records: 0,
        };
        while let Some(work) = self.cursor.take() {
            self.range(&mut gathered, scrubber, work, asked)?;
        }
        gathered.close()
    }

    fn range(&self, gathered: &mut Gathered<'_>, scrubber: &Scrubber, work: Work, asked: bool) -> Result {
        let sb = gathered.index.super_block();
        // Memory must not be got by having the file system write: locks are held that writers wait for.
        let _no_reclaim = NoReclaim::new();
        let mut next = work.first;
        let mut tries = 0;
        while next <= work.last {
            scrubber.may_go_on(asked)?;
            let mut passed = 0;
            let used = scan::next_used(sb, next, work.last, &mut |first, last| {
                self.cursor.passed(first, last);
                passed = u64::from(last - first) + 1;
            })?;
            scrubber.progress.advance(passed);
            let Some((first, last)) = used else {
                return Ok(());
            };
            if first > next || next == work.first {
                scan::read_ahead(sb, first, last)?;
            }
            next = first;
            while next <= last {
                scrubber.may_go_on(asked)?;
                let mut seen = scan::peek(
                    sb,
                    next,
                    last,
                    &mut |start, len, owner| gathered.take(start, len, owner),
                    |first, last| self.cursor.passed(first, last),
                )?;
                self.inodes.fetch_add(u64::from(seen - next), Relaxed);
                if seen == next {
                    if !self.visit(gathered, sb, next)? {
                        break;
                    }
                    seen += 1;
                }
                let progress = &scrubber.progress;
                progress.advance(u64::from(seen - next));
                progress
                    .records
                    .fetch_add(core::mem::take(&mut gathered.records), Relaxed);
                tries = 0;
                next = seen;
            }
            if next <= last {
                // It was freed, or is being made: the bitmap is asked again.
                tries += 1;
                if tries > TRIES {
                    pr_err!("{}: inode {next} is in use and has no contents\n", sb.name());
                    return Err(corrupted());
                }
                pause(1);
            }
        }
        Ok(())
    }

    /// Visits an inode; answers whether it could be had.
    fn visit(&self, gathered: &mut Gathered<'_>, sb: &SuperBlock<Volume>, ino: u32) -> Result<bool> {
        let reserved = ino < sb.volume()?.layout().first_inode;
        let Some(inode) = scan::get(sb, ino)? else {
            if reserved {
                // Its bit is set though it was never made, and never will be.
                self.cursor.visited(ino);
            }
            return Ok(reserved);
        };
        let map = scan::lock_map(&inode)?;
        scan::for_each_owned(&inode, &map, &mut |start, len, owner| {
            gathered.take(start, len, owner)
        })?;
        self.cursor.visited(ino);
        drop(map);
        self.inodes.fetch_add(1, Relaxed);
        Ok(true)
    }
}

impl Watcher for Scan {
    fn changed(&self, region: u32, update: Update) -> u32 {
        let (Update::Add(record) | Update::Remove(record)) = update;
        if !self.cursor.wants_update(record.owner) {
            return 0;
        }
        let Some(collection) = self.region(region) else {
            return 0;
        };
        self.updates.fetch_add(1, Relaxed);
        let mut rebuild = collection.lock();
        if let Err(error) = rebuild.update(update) {
            pr_err!("rext4: rmap: region {region}: a change could not be taken in: {error:?}\n");
            self.fail(match error {
                engine::Error::NoMemory => ENOMEM,
                _ => corrupted(),
            });
        }
        rebuild.lag()
    }
}
