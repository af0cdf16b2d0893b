// SPDX-License-Identifier: GPL-2.0

//! Threads, background work, and allocating without file system reclaim.
//!
//! C headers: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h),
//! [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h)

use super::bindings;
use core::{marker::PhantomData, ptr::NonNull};
use kernel::{
    error::to_result,
    prelude::*,
    sync::Arc,
    time::{delay::fsleep, Delta},
};

/// Guard for `memalloc_nofs_save()`: allocations do not recurse into file system reclaim. Hold it
/// while holding a lock that reclaim could take.
pub(crate) struct NoReclaim(u32, PhantomData<*mut ()>);

impl NoReclaim {
    /// Starts a scope, which ends when this is dropped. Scopes nest.
    pub(crate) fn new() -> Self {
        // SAFETY: This changes a flag of the current task.
        NoReclaim(unsafe { bindings::rext4_no_reclaim_begin() }, PhantomData)
    }
}

impl Drop for NoReclaim {
    fn drop(&mut self) {
        // SAFETY: The task is the same one, as the type is not `Send`, and the flags were saved by
        // `new`.
        unsafe { bindings::rext4_no_reclaim_end(self.0) };
    }
}

/// Returns true if the current task has `CAP_SYS_ADMIN`.
pub(crate) fn is_admin() -> bool {
    // SAFETY: It may be called by any task.
    unsafe { bindings::rext4_is_admin() }
}

/// Returns true if the current task has `CAP_SYS_RESOURCE`.
pub(crate) fn may_resize() -> bool {
    // SAFETY: It may be called by any task.
    unsafe { bindings::rext4_may_resize() }
}

/// Returns true if a signal is pending for the current task.
pub(crate) fn is_interrupted() -> bool {
    kernel::current!().signal_pending()
}

/// Returns true if the current task is being killed.
pub(crate) fn is_dying() -> bool {
    // SAFETY: It may be called by any task.
    unsafe { bindings::rext4_is_dying() }
}

/// Returns true if the current task is reclaiming memory.
pub(crate) fn is_reclaiming() -> bool {
    // SAFETY: It may be called by any task.
    unsafe { bindings::rext4_is_reclaiming() }
}

/// Returns the number of online processors.
pub(crate) fn processors() -> u32 {
    // SAFETY: It may be called in any context.
    unsafe { bindings::rext4_processors() }
}

/// Sleeps for a number of milliseconds.
pub(crate) fn pause(milliseconds: u32) {
    fsleep(Delta::from_millis(milliseconds.into()));
}

/// Number of attempts, 10 ms apart, of an operation that must not fail for lack of memory.
const PATIENCE: u32 = 100;

/// Calls `act` until it does not fail with `ENOMEM`, for a second at most. For work whose failure
/// cannot be reported to anyone, such as freeing an inode. `act` must be able to continue what it
/// began. If a handle is open, the next commit waits.
pub(crate) fn insist<T>(mut act: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 0..PATIENCE {
        match act() {
            Err(ENOMEM) => pause(10),
            done => return done,
        }
    }
    act()
}

/// Sleeps for a number of microseconds; returns at once for 0.
pub(crate) fn pause_briefly(microseconds: u32) {
    if microseconds > 0 {
        fsleep(Delta::from_micros(microseconds.into()));
    }
}

/// Runs `work` in `count` threads concurrently, one of which is the caller, and waits for all of
/// them. Fails with `ENOMEM`.
pub(crate) fn run_parallel<F: Fn() + Sync>(count: u32, work: &F) -> Result {
    /// # Safety
    ///
    /// `data` must point to a live `F`.
    unsafe extern "C" fn run<F: Fn() + Sync>(data: *mut c_void) {
        // SAFETY: Guaranteed by the caller; `F` may be called from several threads.
        unsafe { (*data.cast::<F>())() };
    }
    let data = core::ptr::from_ref(work).cast_mut().cast();
    // SAFETY: All threads have finished with `work` when this returns.
    to_result(unsafe { bindings::rext4_run_parallel(Some(run::<F>), data, count) })
}

/// The work of a [`Background`].
pub(crate) trait Task: Send + Sync + 'static {
    /// Does the work. Never runs concurrently; if it is started while running, it runs again.
    fn run(&self);
}

/// A task that runs in the background when it is started. Dropping it waits for a running task to
/// end.
///
/// # Invariants
///
/// `raw` is a live background work whose data is the object that `_task` points to.
pub(crate) struct Background<T: Task> {
    raw: NonNull<bindings::rext4_background>,
    _task: Arc<T>,
}

// SAFETY: Works may be started and freed on any thread; the task can be shared.
unsafe impl<T: Task> Send for Background<T> {}
// SAFETY: As for `Send`.
unsafe impl<T: Task> Sync for Background<T> {}

impl<T: Task> Background<T> {
    /// Creates a task that is not running. Fails with `ENOMEM`.
    pub(crate) fn new(task: Arc<T>) -> Result<Self> {
        /// # Safety
        ///
        /// `data` must point to a live `T`.
        unsafe extern "C" fn run<T: Task>(data: *mut c_void) {
            // SAFETY: Guaranteed by the caller.
            unsafe { (*data.cast::<T>()).run() };
        }
        let data = core::ptr::from_ref::<T>(&task).cast_mut().cast();
        // SAFETY: The task lives as long as the work, due to the reference kept in this value.
        let raw = unsafe { bindings::rext4_background_new(Some(run::<T>), data) };
        // INVARIANT: It was just created with the task as its data.
        Ok(Background {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
            _task: task,
        })
    }

    /// Starts the task. Does not sleep, and may be called with any lock held.
    pub(crate) fn start(&self) {
        // SAFETY: By the type invariant the work is live.
        unsafe { bindings::rext4_background_start(self.raw.as_ptr(), 0) };
    }

    /// Starts the task after a delay, or earlier if [`Background::start`] is called. Does not
    /// sleep, and may be called with any lock held.
    pub(crate) fn start_after(&self, milliseconds: u32) {
        // SAFETY: By the type invariant the work is live.
        unsafe { bindings::rext4_background_start(self.raw.as_ptr(), milliseconds) };
    }
}

impl<T: Task> Drop for Background<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the work is live; it is not used after this.
        unsafe { bindings::rext4_background_free(self.raw.as_ptr()) };
    }
}
