// SPDX-License-Identifier: GPL-2.0

//! The journal of a volume (`journal_t` of jbd2), from opening to closing it. The
//! [handles](super::handle) write through it.
//!
//! C header: [`include/linux/jbd2.h`](srctree/include/linux/jbd2.h)

use super::{bindings, super_block::CountedJournal, FileSystem, InodeRef, SuperBlock};
use core::ptr::NonNull;
use kernel::{
    error::{from_err_ptr, to_result},
    prelude::*,
    str::CString,
    sync::atomic::{Atomic, Relaxed},
};

/// A journal in an inode of the volume that has not been read yet. It can only be
/// [loaded](Self::load).
pub(crate) struct UnloadedJournal(Journal);

impl UnloadedJournal {
    /// Opens the journal in `inode` without reading it.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an inode without blocks, `EBUSY` when the volume has a journal already, or
    /// `ENOMEM`.
    pub(crate) fn open<V: FileSystem>(inode: InodeRef<V>) -> Result<UnloadedJournal> {
        let counted = inode.super_block().count_journal()?;
        let name = CString::try_from_fmt(fmt!("{}", inode.super_block().name()))?;
        let inode = inode.into_raw();
        // SAFETY: `inode` is live, and the reference ours to give away. One whose mapping has no
        // `bmap` is refused.
        match from_err_ptr(unsafe { bindings::jbd2_journal_init_inode(inode) }) {
            // INVARIANT: jbd2 created it and took over the inode's reference. The pointer is not
            // null unless it is an error.
            Ok(journal) => NonNull::new(journal)
                .map(|journal| {
                    UnloadedJournal(Journal {
                        log: Log::Jbd2(journal),
                        name,
                        _counted: counted,
                    })
                })
                .ok_or(EINVAL),
            Err(error) => {
                // SAFETY: The reference stays ours if jbd2 fails.
                unsafe { bindings::iput(inode) };
                Err(error)
            }
        }
    }

    /// Replays the transactions left by a crash, and prepares the journal for writing.
    ///
    /// `wide` says that the volume has 64-bit block numbers, and `checksums` that its metadata has
    /// checksums; the journal then has them, too.
    ///
    /// # Errors
    ///
    /// `EFSCORRUPTED` or `EIO` when the journal is damaged or cannot be read or written;
    /// `EOPNOTSUPP` when its format is too old to have features.
    pub(crate) fn load(self, wide: bool, checksums: bool) -> Result<Journal> {
        let journal = self.0;
        let raw = journal.jbd2().ok_or(EINVAL)?;
        // SAFETY: By the type invariant the journal is live, and no one else uses it before it is
        // loaded.
        unsafe {
            to_result(bindings::jbd2_journal_load(raw))?;
            // The checksum formats exclude each other; a journal with two of them would be rejected
            // by every driver.
            bindings::jbd2_journal_clear_features(
                raw,
                bindings::JBD2_FEATURE_COMPAT_CHECKSUM as usize,
                0,
                (bindings::JBD2_FEATURE_INCOMPAT_CSUM_V2
                    | bindings::JBD2_FEATURE_INCOMPAT_CSUM_V3
                    | bindings::JBD2_FEATURE_INCOMPAT_ASYNC_COMMIT) as usize,
            );
            let wanted = if wide {
                bindings::JBD2_FEATURE_INCOMPAT_64BIT
            } else {
                0
            } | if checksums {
                bindings::JBD2_FEATURE_INCOMPAT_CSUM_V3
            } else {
                0
            };
            // It returns 0 if the journal's format is too old to have features.
            if bindings::jbd2_journal_set_features(raw, 0, 0, wanted as usize) == 0 && wanted != 0 {
                return Err(super::unsupported());
            }
        }
        Ok(journal)
    }
}

/// A volume's journal. On a volume without one, a substitute: blocks are only marked dirty, and
/// after a crash the volume must be checked by e2fsck. Dropping it commits the running transaction,
/// checkpoints, and stops the journal's thread.
pub(crate) struct Journal {
    pub(super) log: Log,
    /// The name of the volume's device, for messages.
    pub(super) name: CString,
    /// Keeps the superblock.
    _counted: CountedJournal,
}

/// # Invariants
///
/// The pointers are live and owned by us. The superblock outlives a loaded journal, which it
/// counts.
pub(super) enum Log {
    Jbd2(NonNull<bindings::journal_s>),
    Absent {
        unlogged: NonNull<bindings::rext4_unlogged>,
        aborted: Atomic<bool>,
    },
}

// SAFETY: A journal has its own locks for all operations.
unsafe impl Send for Journal {}
// SAFETY: As for `Send`.
unsafe impl Sync for Journal {}

pub(crate) use bindings::rext4_journal_tuning as JournalTuning;

/// Maximum number of blocks of a handle without a journal.
pub(super) const UNLOGGED_ROOM: u32 = 1 << 16;

impl Journal {
    /// Returns the replacement for a journal on a volume without one.
    ///
    /// # Errors
    ///
    /// `EBUSY` when the volume has a journal already, or `ENOMEM`.
    pub(crate) fn absent<V: FileSystem>(sb: &SuperBlock<V>) -> Result<Journal> {
        let counted = sb.count_journal()?;
        let name = CString::try_from_fmt(fmt!("{}", sb.name()))?;
        // SAFETY: The superblock is live, and unmounting waits for the journal, which was counted.
        let unlogged = unsafe { bindings::rext4_unlogged_new(sb.as_ptr()) };
        // INVARIANT: It is new.
        let log = Log::Absent {
            unlogged: NonNull::new(unlogged).ok_or(ENOMEM)?,
            aborted: Atomic::new(false),
        };
        Ok(Journal {
            log,
            name,
            _counted: counted,
        })
    }

    /// Returns false on a volume without a journal.
    pub(crate) fn is_present(&self) -> bool {
        matches!(self.log, Log::Jbd2(_))
    }

    fn jbd2(&self) -> Option<*mut bindings::journal_s> {
        match &self.log {
            Log::Jbd2(journal) => Some(journal.as_ptr()),
            Log::Absent { .. } => None,
        }
    }

    /// The volume's device.
    pub(super) fn device(&self) -> *mut bindings::block_device {
        match &self.log {
            // SAFETY: By the type invariant the journal is live, and its device does not change.
            Log::Jbd2(journal) => unsafe { (*journal.as_ptr()).j_fs_dev },
            // SAFETY: By the type invariant it is live.
            Log::Absent { unlogged, .. } => unsafe { bindings::rext4_unlogged_device(unlogged.as_ptr()) },
        }
    }

    /// Writes out all metadata of a volume without a journal.
    fn sync_unlogged(&self) -> Result {
        match &self.log {
            Log::Absent { unlogged, .. } => {
                // SAFETY: By the type invariant it is live.
                to_result(unsafe { bindings::rext4_unlogged_sync(unlogged.as_ptr()) })
            }
            Log::Jbd2(_) => Ok(()),
        }
    }

    /// Sets the commit interval, and whether the journal flushes the device's cache.
    pub(crate) fn tune(&self, to: &JournalTuning) {
        if let Some(journal) = self.jbd2() {
            // SAFETY: By the type invariant the journal is live.
            unsafe { bindings::rext4_journal_tune(journal, to) };
        }
    }

    /// Returns the error with which a mount aborted the journal, if it has not been cleared since.
    pub(crate) fn recorded_error(&self) -> Option<Error> {
        // SAFETY: By the type invariant the journal is live.
        let errno = unsafe { bindings::jbd2_journal_errno(self.jbd2()?) };
        (errno < 0).then(|| Error::from_errno(errno))
    }

    /// Clears the recorded error in the journal on disk.
    pub(crate) fn clear_error(&self) {
        let Some(journal) = self.jbd2() else { return };
        // SAFETY: By the type invariant the journal is live.
        unsafe {
            bindings::jbd2_journal_clear_err(journal);
            bindings::jbd2_journal_update_sb_errno(journal);
        }
    }

    /// Commits and checkpoints all transactions, which leaves an empty journal on disk.
    pub(crate) fn flush(&self) -> Result {
        self.flush_and(|| ())
    }

    /// Like [`flush`](Self::flush), but first calls `alone` while no handle is running and none can
    /// be started.
    pub(crate) fn flush_and(&self, alone: impl FnOnce()) -> Result {
        self.between_handles(|| {
            alone();
            match self.jbd2() {
                // SAFETY: By the type invariant the journal is live.
                Some(journal) => to_result(unsafe { bindings::jbd2_journal_flush(journal, 0) }),
                None => Ok(()),
            }
        })?;
        self.sync_unlogged()
    }

    /// Calls `act` while no handle is running and none can be started, and returns its result.
    /// Changes made in one handle are thus seen either entirely or not at all. `act` must not start
    /// a handle, and must allocate memory without reclaim, which may start one.
    ///
    /// Must not be called with a handle open.
    pub(crate) fn between_handles<T>(&self, act: impl FnOnce() -> T) -> T {
        match &self.log {
            // SAFETY: By the type invariant the journal is live, and updates are resumed below.
            Log::Jbd2(journal) => unsafe {
                bindings::jbd2_journal_lock_updates(journal.as_ptr());
                let done = act();
                bindings::jbd2_journal_unlock_updates(journal.as_ptr());
                done
            },
            // SAFETY: By the type invariant it is live, and updates are resumed below.
            Log::Absent { unlogged, .. } => unsafe {
                bindings::rext4_unlogged_stop(unlogged.as_ptr());
                let done = act();
                bindings::rext4_unlogged_go_on(unlogged.as_ptr());
                done
            },
        }
    }

    /// Starts the commit of the running transaction; with `wait`, waits until it is on disk.
    ///
    /// With `wait`, must not be called with a handle open.
    pub(crate) fn commit(&self, wait: bool) -> Result {
        let Some(journal) = self.jbd2() else {
            return match wait {
                true => self.sync_unlogged(),
                false => Ok(()),
            };
        };
        // SAFETY: By the type invariant the journal is live.
        unsafe {
            if wait {
                to_result(bindings::jbd2_journal_force_commit(journal))
            } else {
                let mut tid = 0;
                bindings::jbd2_journal_start_commit(journal, &mut tid);
                Ok(())
            }
        }
    }

    /// Waits until transaction `tid` is on disk, and starts its commit if necessary. Must not be
    /// called with a handle open.
    pub(crate) fn wait_for(&self, tid: u32) -> Result {
        let Some(journal) = self.jbd2() else {
            return self.sync_unlogged();
        };
        // SAFETY: By the type invariant the journal is live.
        to_result(unsafe { bindings::jbd2_complete_transaction(journal, tid) })
    }

    /// Returns the newest transaction that may have changed data read now.
    pub(crate) fn newest(&self) -> u32 {
        // SAFETY: By the type invariant the journal is live.
        self.jbd2().map_or(0, |journal| unsafe {
            bindings::rext4_journal_newest_tid(journal)
        })
    }

    /// Returns true if transaction `tid` has committed.
    pub(crate) fn has_committed(&self, tid: u32) -> bool {
        self.jbd2().is_none_or(|journal| {
            // SAFETY: By the type invariant the journal is live; the number is read with a single
            // load.
            let last = unsafe { core::ptr::addr_of!((*journal).j_commit_sequence).read_volatile() };
            last.wrapping_sub(tid) as i32 >= 0
        })
    }

    /// Returns true if the commit of transaction `tid` will flush the device's cache, so the caller
    /// need not.
    pub(crate) fn will_flush_device(&self, tid: u32) -> bool {
        self.jbd2().is_some_and(|journal| {
            // SAFETY: By the type invariant the journal is live.
            unsafe { bindings::jbd2_trans_will_send_data_barrier(journal, tid) != 0 }
        })
    }

    /// Returns the maximum number of blocks of one handle.
    pub(crate) fn room(&self) -> u32 {
        // SAFETY: By the type invariant the journal is live.
        self.jbd2().map_or(UNLOGGED_ROOM, |journal| unsafe {
            bindings::rext4_journal_room(journal)
        })
    }

    /// Permanently stops all writing of metadata: committed transactions stay valid, and no new one
    /// is accepted.
    pub(crate) fn abort(&self, error: Error) {
        match &self.log {
            // SAFETY: By the type invariant the journal is live.
            Log::Jbd2(journal) => unsafe {
                bindings::jbd2_journal_abort(journal.as_ptr(), error.to_errno());
            },
            Log::Absent { aborted, .. } => aborted.store(true, Relaxed),
        }
    }

    /// Permanently stops all writing of metadata, without logging an error, because the volume is
    /// shut down.
    pub(crate) fn shut_down(&self) {
        if !self.is_aborted() {
            self.abort(super::shut_down());
        }
    }

    /// Returns true if it was aborted.
    pub(crate) fn is_aborted(&self) -> bool {
        match &self.log {
            // SAFETY: By the type invariant the journal is live.
            Log::Jbd2(journal) => unsafe { bindings::rext4_journal_is_aborted(journal.as_ptr()) },
            Log::Absent { aborted, .. } => aborted.load(Relaxed),
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        match &self.log {
            Log::Jbd2(journal) => {
                // SAFETY: By the type invariant the journal is ours to destroy, and this is its
                // end.
                let (why, error) = unsafe {
                    let why = (*journal.as_ptr()).j_errno;
                    (why, bindings::jbd2_journal_destroy(journal.as_ptr()))
                };
                if error != 0 && why != super::shut_down().to_errno() {
                    pr_err!(
                        "{}: the journal could not be closed: error {}\n",
                        &*self.name,
                        error
                    );
                }
            }
            // SAFETY: By the type invariant we own it, and it is not used any more.
            Log::Absent { unlogged, .. } => unsafe { bindings::rext4_unlogged_free(unlogged.as_ptr()) },
        }
    }
}
