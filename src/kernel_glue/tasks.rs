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

/// Guard for `memalloc_nofs_save()`: allocations do not recurse into file system reclaim. Hold it while holding a lock
/// that reclaim could take.
pub(crate) struct NoReclaim(u32, PhantomData<*mut ()>);

impl NoReclaim {
    /// Begins; ends with the drop, scopes nesting.
    pub(crate) fn new() -> Self {
        // SAFETY: It changes a flag of the current task.
        NoReclaim(unsafe { bindings::rext4_no_reclaim_begin() }, PhantomData)
    }
}

impl Drop for NoReclaim {
    fn drop(&mut self) {
        // SAFETY: On the same task, as the type is not `Send`, with the flags that `new` saved.
        unsafe { bindings::rext4_no_reclaim_end(self.0) };
    }
}

/// Whether the current task may administrate the system (`CAP_SYS_ADMIN`).
pub(crate) fn is_admin() -> bool {
    // SAFETY: It may be called by any task.
    unsafe { bindings::rext4_is_admin() }
}

/// Whether the current task has a signal to take.
pub(crate) fn is_interrupted() -> bool {
    kernel::current!().signal_pending()
}

/// Whether the current task is being killed.
pub(crate) fn is_dying() -> bool {
    // SAFETY: It may be called by any task.
    unsafe { bindings::rext4_is_dying() }
}

/// Whether the current task frees memory, for itself or for others.
pub(crate) fn is_reclaiming() -> bool {
    // SAFETY: It may be called by any task.
    unsafe { bindings::rext4_is_reclaiming() }
}

/// Processors that run.
pub(crate) fn processors() -> u32 {
    // SAFETY: It may be called anywhere.
    unsafe { bindings::rext4_processors() }
}

/// Sleeps for some milliseconds.
pub(crate) fn pause(milliseconds: u32) {
    fsleep(Delta::from_millis(milliseconds.into()));
}

/// How often, 10 ms apart, something is tried that must not fail for lack of memory.
const PATIENCE: u32 = 100;

/// Calls `act` again, after a pause, while it fails with `ENOMEM`, for a second at most. For work
/// that has to be done although nobody can be told that it failed, such as freeing an inode. `act`
/// must be able to continue what it began. With a handle open the next commit has to wait.
pub(crate) fn insist<T>(mut act: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 0..PATIENCE {
        match act() {
            Err(ENOMEM) => pause(10),
            done => return done,
        }
    }
    act()
}

/// Sleeps for so many microseconds; not at all for none.
pub(crate) fn pause_briefly(microseconds: u32) {
    if microseconds > 0 {
        fsleep(Delta::from_micros(microseconds.into()));
    }
}

/// Runs `work` in `count` threads at once, the caller's among them, and waits for all. Fails with `ENOMEM`.
pub(crate) fn run_parallel<F: Fn() + Sync>(count: u32, work: &F) -> Result {
    /// # Safety
    ///
    /// `data` must point to a live `F`.
    unsafe extern "C" fn run<F: Fn() + Sync>(data: *mut c_void) {
        // SAFETY: As the caller promises; `F` may be called from several threads.
        unsafe { (*data.cast::<F>())() };
    }
    let data = core::ptr::from_ref(work).cast_mut().cast();
    // SAFETY: All threads are done with `work` when this returns.
    to_result(unsafe { bindings::rext4_run_parallel(Some(run::<F>), data, count) })
}

/// The work of a [`Background`].
pub(crate) trait Task: Send + Sync + 'static {
    /// Does the work. Runs once at a time; when it is started meanwhile, it runs again.
    fn run(&self);
}

/// A task that runs in the background when it is started. Dropping it waits for the end of a run.
///
/// # Invariants
///
/// `raw` is a live background work whose data is what `task` points to.
pub(crate) struct Background<T: Task> {
    raw: NonNull<bindings::rext4_background>,
    _task: Arc<T>,
}

// SAFETY: Works may be started and ended from any thread; the task may be shared.
unsafe impl<T: Task> Send for Background<T> {}
// SAFETY: As for `Send`.
unsafe impl<T: Task> Sync for Background<T> {}

impl<T: Task> Background<T> {
    /// One that does not run yet. Fails with `ENOMEM`.
    pub(crate) fn new(task: Arc<T>) -> Result<Self> {
        /// # Safety
        ///
        /// `data` must point to a live `T`.
        unsafe extern "C" fn run<T: Task>(data: *mut c_void) {
            // SAFETY: As the caller promises.
            unsafe { (*data.cast::<T>()).run() };
        }
        let data = core::ptr::from_ref::<T>(&task).cast_mut().cast();
        // SAFETY: The task lives as long as the work, by the reference kept beside it.
        let raw = unsafe { bindings::rext4_background_new(Some(run::<T>), data) };
        // INVARIANT: It was just made with the task as its data.
        Ok(Background {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
            _task: task,
        })
    }

    /// Starts it. Does not wait, and may be called with any lock held.
    pub(crate) fn start(&self) {
        // SAFETY: By the type invariant the work is live.
        unsafe { bindings::rext4_background_start(self.raw.as_ptr(), 0) };
    }

    /// Runs it after so many milliseconds, or at once if [`Background::start`] is called before; likewise.
    pub(crate) fn start_after(&self, milliseconds: u32) {
        // SAFETY: By the type invariant the work is live.
        unsafe { bindings::rext4_background_start(self.raw.as_ptr(), milliseconds) };
    }
}

impl<T: Task> Drop for Background<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the work is live; this is its end.
        unsafe { bindings::rext4_background_free(self.raw.as_ptr()) };
    }
}
