// SPDX-License-Identifier: GPL-2.0

//! The scrubber of a volume: at most one check or repair at a time, its progress and its
//! cancellation.

use super::runs::{self, Run};
use crate::{
    fs::Volume,
    kernel_glue::{
        abi::value, canceled, is_dying, is_interrupted, pause, restart, unsupported, Latest, SuperBlock,
    },
    trees::index::{Keeper, RmapIndex},
};
use core::any::Any;
use kernel::{
    new_mutex, new_spinlock,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, Mutex, MutexGuard, SpinLock,
    },
};

/// The progress of the running check or repair, as reported to programs.
pub(super) struct Progress {
    /// `REXT4_SCRUB_TYPE_`
    pub(super) kind: Atomic<u32>,
    /// `REXT4_SCRUB_PHASE_`
    pub(super) phase: Atomic<u32>,
    /// `REXT4_SCRUB_PROGRESS_`
    pub(super) flags: Atomic<u32>,
    pub(super) done: Atomic<u64>,
    pub(super) total: Atomic<u64>,
    pub(super) records: Atomic<u64>,
}

impl Progress {
    /// Starts a phase with `total` inodes or regions.
    pub(super) fn enter(&self, phase: u32, total: u64) {
        self.done.store(0, Relaxed);
        self.total.store(total, Relaxed);
        self.phase.store(phase, Relaxed);
    }

    /// Adds `by` inodes or regions to those done in this phase.
    pub(super) fn advance(&self, by: u64) {
        self.done.fetch_add(by, Relaxed);
    }
}

/// A background task that can be woken with locks held.
pub(super) trait Wake: Send + Sync {
    /// Starts the task, or makes it run again if it is running.
    fn wake(&self);
    /// Starts the task after a delay.
    fn wake_after(&self, seconds: u32);
}

/// The background task of a volume, if there is one.
type Woken = Option<Arc<dyn Wake>>;

/// Checks and repairs the trees of one volume.
#[pin_data]
pub(super) struct Scrubber {
    /// Held by the running check or repair.
    #[pin]
    pub(super) busy: Mutex<()>,
    pub(super) progress: Progress,
    /// The errno with which the running check or repair must end; 0 if it may continue.
    pub(super) end: Atomic<i32>,
    /// Held for the duration of an upkeep run, so that mount, unmount and the background task never
    /// run two at once.
    #[pin]
    pub(super) upkeeping: Mutex<()>,
    /// The current run, or the one about to start, is a background run.
    pub(super) upkeep: Atomic<bool>,
    /// The volume is being unmounted; no new run may start.
    pub(super) closing: Atomic<bool>,
    /// The volume is growing: runs that start wait until it has grown.
    pub(super) grows: Atomic<bool>,
    #[pin]
    background: SpinLock<Woken>,
    /// The runs of the fixed metadata, computed on first use; empty before that.
    fixed: Latest<KVVec<Run>>,
    /// Held while they are computed.
    #[pin]
    listing: Mutex<()>,
}

impl Scrubber {
    pub(super) fn new() -> Result<Arc<Scrubber>> {
        let scrubber = try_pin_init!(Scrubber {
            busy <- new_mutex!((), "Scrubber::busy"),
            progress: Progress {
                kind: Atomic::new(value::REXT4_SCRUB_TYPE_RMAP),
                phase: Atomic::new(value::REXT4_SCRUB_PHASE_IDLE),
                flags: Atomic::new(0),
                done: Atomic::new(0),
                total: Atomic::new(0),
                records: Atomic::new(0),
            },
            end: Atomic::new(0),
            upkeeping <- new_mutex!((), "Scrubber::upkeeping"),
            upkeep: Atomic::new(false),
            closing: Atomic::new(false),
            background <- new_spinlock!(None, "Scrubber::background"),
            grows: Atomic::new(false),
            fixed: Latest::new(KVVec::new())?,
            listing <- new_mutex!((), "Scrubber::listing"),
        });
        Arc::pin_init(scrubber, GFP_KERNEL)
    }

    /// Sets the background task, or removes it. Returns the old one; dropping it waits for it to
    /// finish, so no lock may be held then.
    pub(super) fn set_background(&self, work: Option<Arc<dyn Wake>>) -> Option<Arc<dyn Wake>> {
        core::mem::replace(&mut *self.background.lock(), work)
    }

    /// Returns the runs of the volume's fixed metadata in block order. They change only when the
    /// volume grows.
    pub(super) fn fixed(&self, sb: &SuperBlock<Volume>) -> Result<&[Run]> {
        if self.fixed.is_empty() {
            let _listing = self.listing.lock();
            if self.fixed.is_empty() {
                self.fixed.prepare(runs::fixed(sb)?)?.publish();
            }
        }
        Ok(&self.fixed)
    }

    /// Has the runs of the fixed metadata listed again when they are needed next.
    pub(super) fn forget_fixed(&self) -> Result {
        let _listing = self.listing.lock();
        if !self.fixed.is_empty() {
            self.fixed.prepare(KVVec::new())?.publish();
        }
        Ok(())
    }

    /// Ends the running check or repair, which starts again once the volume has grown, and lets no
    /// other one start while the guard lives. Fails with `EINTR` if the task is killed.
    pub(super) fn interrupt(&self) -> Result<MutexGuard<'_, ()>> {
        self.grows.store(true, Relaxed);
        loop {
            // One that has just started forgets that it is to end.
            self.cancel(restart());
            if let Some(busy) = self.busy.try_lock() {
                return Ok(busy);
            }
            if is_dying() {
                return Err(EINTR);
            }
            pause(10);
        }
    }

    /// Starts the background task.
    pub(super) fn kick_upkeep(&self) {
        if let Some(background) = &*self.background.lock() {
            background.wake();
        }
    }

    /// Starts the background task after a delay.
    pub(super) fn wake_after(&self, seconds: u32) {
        if let Some(background) = &*self.background.lock() {
            background.wake_after(seconds);
        }
    }

    /// Makes the running check or repair end with `error` at its next check.
    pub(super) fn cancel(&self, error: Error) {
        self.end.store(error.to_errno(), Relaxed);
    }

    /// Fails with `ECANCELED` if no new run may start, with `ERESTART` if that is so because the
    /// volume grows and will have another scrubber.
    pub(super) fn check_open(&self) -> Result {
        match (self.closing.load(Relaxed), self.grows.load(Relaxed)) {
            (false, _) => Ok(()),
            (true, false) => Err(canceled()),
            (true, true) => Err(restart()),
        }
    }

    /// Fails with `ECANCELED`, `ERESTART` or `EINTR` if the running check or repair must end.
    /// `asked` says that the current task requested the run, so that a signal to it ends the run as
    /// well.
    pub(super) fn may_go_on(&self, asked: bool) -> Result {
        if asked && is_interrupted() {
            self.cancel(EINTR);
        }
        self.check_open()?;
        match self.end.load(Relaxed) {
            0 => Ok(()),
            errno => Err(Error::from_errno(errno)),
        }
    }
}

impl Keeper for Scrubber {
    fn kick(&self) {
        self.kick_upkeep();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Calls `then` with the volume's reverse map and its scrubber; returns `None` if there is no
/// reverse map.
pub(super) fn with<T>(sb: &SuperBlock<Volume>, then: impl FnOnce(&RmapIndex, &Scrubber) -> T) -> Option<T> {
    let index = sb.volume().ok()?.index()?;
    let index = index.as_any().downcast_ref::<RmapIndex>()?;
    let scrubber = index.keeper.as_any().downcast_ref::<Scrubber>()?;
    Some(then(index, scrubber))
}

/// Calls `then` with the volume's reverse map, for modification.
///
/// Fails with `EROFS` on a read-only mount, and with `EOPNOTSUPP` if no reverse map is in use.
pub(super) fn with_writable<T>(
    sb: &SuperBlock<Volume>,
    then: impl FnOnce(&RmapIndex, &Scrubber) -> Result<T>,
) -> Result<T> {
    if sb.is_read_only() {
        return Err(EROFS);
    }
    with(sb, then).ok_or_else(unsupported)?
}

/// Calls `then` with the volume's reverse map, for reading.
///
/// Fails with `EROFS` if a read-only mount has no good reverse map, and with `EOPNOTSUPP` if none
/// is in use.
pub(super) fn with_readable<T>(
    sb: &SuperBlock<Volume>,
    then: impl FnOnce(&RmapIndex, &Scrubber) -> Result<T>,
) -> Result<T> {
    let none = || if sb.is_read_only() { EROFS } else { unsupported() };
    with(sb, then).ok_or_else(none)?
}
