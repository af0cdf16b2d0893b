// SPDX-License-Identifier: GPL-2.0

//! The journal of a volume (`journal_t` of jbd2).
//!
//! C header: [`include/linux/jbd2.h`](srctree/include/linux/jbd2.h)

use super::{bindings, FileSystem, InodeRef};
use core::ptr::NonNull;
use kernel::{
    error::{from_err_ptr, to_result},
    prelude::*,
};

/// A journal that lies in an inode of the volume. Dropping it commits what runs, checkpoints, and stops its thread.
///
/// # Invariants
///
/// `0` points to a live journal that is ours to destroy.
pub(crate) struct Journal(NonNull<bindings::journal_s>);

// SAFETY: A journal has locks of its own for all that is done through it.
unsafe impl Send for Journal {}
// SAFETY: As for `Send`.
unsafe impl Sync for Journal {}

impl Journal {
    /// Opens the journal in `inode` without looking into it yet.
    pub(crate) fn open<V: FileSystem>(inode: InodeRef<V>) -> Result<Journal> {
        let inode = inode.into_raw();
        // SAFETY: `inode` is live and ours; its mapping answers `bmap`.
        match from_err_ptr(unsafe { bindings::jbd2_journal_init_inode(inode) }) {
            // INVARIANT: jbd2 made it and took the inode's reference; the pointer is not null when it is no error.
            Ok(journal) => NonNull::new(journal).map(Journal).ok_or(EINVAL),
            Err(error) => {
                // SAFETY: The reference stays ours when jbd2 fails.
                unsafe { bindings::iput(inode) };
                Err(error)
            }
        }
    }

    /// Replays what a crash left in the journal, and makes it ready to be written.
    ///
    /// Fails with `EFSCORRUPTED` or `EIO` when the journal is damaged or the device does not obey.
    pub(crate) fn replay(&self) -> Result {
        // SAFETY: By the type invariant the journal is live, and nobody else uses it before it is loaded.
        to_result(unsafe { bindings::jbd2_journal_load(self.0.as_ptr()) })?;
        // SAFETY: As above; flushing leaves an empty journal on disk.
        unsafe {
            bindings::jbd2_journal_lock_updates(self.0.as_ptr());
            let flushed = to_result(bindings::jbd2_journal_flush(self.0.as_ptr(), 0));
            bindings::jbd2_journal_unlock_updates(self.0.as_ptr());
            flushed
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the journal is ours to destroy, and this is its end.
        let error = unsafe { bindings::jbd2_journal_destroy(self.0.as_ptr()) };
        if error != 0 {
            pr_err!("rext4: the journal could not be put to rest: error {}\n", error);
        }
    }
}
