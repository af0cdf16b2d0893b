// SPDX-License-Identifier: GPL-2.0

//! The state of a mounted volume, and the plain structures that it consists of.
//!
//! Every wing of `fs` works on a [`Volume`]. None of their code is here, so this file can be below
//! all of them.

use crate::{
    format::{
        superblock::{ro_compat, Layout},
        zones::Zone,
    },
    fs::{owners::Index, staging::Staging, watch::Watcher},
    kernel_glue::{
        is_reclaiming, Background, Credits, Growing, Handle, HeldWriters, Hooks, InodeRef, Journal,
        KeptBuffer, Latest, Pinned,
    },
};
use kernel::{
    new_condvar, new_mutex, new_spinlock,
    prelude::*,
    rbtree::RBTree,
    sync::{
        atomic::{Acquire, Atomic, Full, Relaxed},
        Arc, CondVar, Mutex, MutexGuard, SetOnce, SpinLock,
    },
};

/// The identity of the open directory whose holder stopped all writers, and the guard that stops
/// them.
pub(in crate::fs) type Hold = (usize, HeldWriters<Volume>);

/// A mounted volume.
#[pin_data]
pub(crate) struct Volume {
    /// The layout of the volume. Constant while mounted, except that the volume may grow.
    pub(in crate::fs) layout: Latest<Layout>,
    /// The volume is growing.
    pub(in crate::fs) grows: Atomic<bool>,
    /// The current mount options.
    #[pin]
    pub(in crate::fs) options: SpinLock<Options>,
    /// The journal, from the first writable mount or remount until the volume is unmounted. A
    /// remount to read-only keeps it, since handles that end late still refer to it.
    #[pin]
    pub(in crate::fs) journal: SpinLock<Option<Arc<Journal>>>,
    /// True while handles may be started.
    pub(in crate::fs) writable: Atomic<bool>,
    /// The volume was shut down: nothing is written, and no file is read.
    pub(in crate::fs) shut_down: Atomic<bool>,
    /// The journal was aborted, which makes the volume read-only until it is unmounted.
    stopped: Atomic<bool>,
    /// `s_state` as it was when the volume became writable; it is left as it was found.
    pub(in crate::fs) state_before: Atomic<u32>,
    /// One lock per block group, held while its bitmaps and its descriptor are read or changed. A
    /// volume of more than [`MOST_GROUPS`] groups, which is always read-only, has none.
    pub(in crate::fs) groups: Growing<Mutex<GroupState>>,
    /// The groups in which no inodes are allocated, because their bitmap is unreliable.
    pub(in crate::fs) fenced_inodes: Growing<Atomic<bool>>,
    /// Locks for blocks of inode tables, which contain several inodes each; selected by block
    /// number.
    pub(in crate::fs) tables: Locks,
    /// Free blocks and inodes, and the number of blocks of fixed metadata.
    #[pin]
    pub(in crate::fs) counts: Mutex<Counts>,
    /// Signalled when some of the [`Counts::claims`] have ended.
    #[pin]
    pub(in crate::fs) claim_ended: CondVar,
    /// The blocks of fixed metadata, sorted, once they have been listed.
    pub(in crate::fs) fixed: SetOnce<Latest<KVVec<Zone>>>,
    /// Inodes that were deleted or truncated and have not been processed yet.
    #[pin]
    pub(in crate::fs) orphans: Mutex<Orphans>,
    /// This mount replayed the journal of a mount that did not end.
    pub(in crate::fs) replayed: Atomic<bool>,
    /// Deleted inodes may be read, because they are being freed after a crash.
    pub(in crate::fs) frees_orphans: Atomic<bool>,
    /// The system directory exists; it is hidden from users.
    pub(in crate::fs) has_system_dir: Atomic<bool>,
    /// The inode numbers of that directory and the files in it; 0 for none. File handles do not
    /// lead to them.
    pub(in crate::fs) system_inodes: [Atomic<u32>; 4],
    /// The entry with the name of that directory was created by a user, and is not hidden.
    pub(in crate::fs) foreign_system_dir: Atomic<bool>,
    /// The damage found so far, and the reaction to it.
    #[pin]
    pub(in crate::fs) errors: Errors,
    /// The superblock has the feature `large_file`.
    pub(in crate::fs) has_large_files: Atomic<bool>,
    /// Held while the superblock is changed on disk.
    #[pin]
    pub(in crate::fs) super_lock: Mutex<()>,
    /// The open directory through which writers are stopped.
    #[pin]
    pub(in crate::fs) held_by: Mutex<Option<Hold>>,
    /// Its identity, to be read without the lock; 0 while writers are not stopped.
    pub(in crate::fs) holder: Atomic<usize>,
    /// The index of owners.
    #[pin]
    pub(in crate::fs) index: SpinLock<Index>,
    /// Free blocks kept for what is written next.
    #[pin]
    pub(in crate::fs) windows: Mutex<Windows>,
    /// The watcher of names.
    #[pin]
    pub(in crate::fs) name_watcher: SpinLock<Watcher>,
    /// The blocks staged for inodes.
    #[pin]
    pub(in crate::fs) staging: Mutex<Staging>,
    /// The blocks to be discarded.
    #[pin]
    pub(in crate::fs) freed: Freed,
    /// The state of block sharing on the volume.
    #[pin]
    pub(in crate::fs) shared: SharedBlocks,
    /// The device's counter of sectors written, as of the last update of the volume's lifetime
    /// counter.
    pub(in crate::fs) sectors_counted: Atomic<u64>,
}

impl Volume {
    /// Creates the volume in place. `sectors_written` is the device's counter of sectors written.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(in crate::fs) fn new(
        layout: Layout,
        options: Options,
        sectors_written: u64,
    ) -> impl PinInit<Volume, Error> {
        let locks = if layout.groups > MOST_GROUPS {
            0
        } else {
            layout.groups as usize
        };
        let action = options.on_error.unwrap_or(Action::ReadOnly);
        let has_large_files = layout.features.ro_compat(ro_compat::LARGE_FILE);
        let shares = layout.features.ro_compat(ro_compat::SHARED_BLOCKS);
        try_pin_init!(Volume {
            options <- new_spinlock!(options, "Volume::options"),
            journal <- new_spinlock!(None, "Volume::journal"),
            writable: Atomic::new(false),
            state_before: Atomic::new(0),
            groups: Growing::new(Pinned::new(locks, || {
                new_mutex!(GroupState::default(), "Volume::groups")
            })?),
            fenced_inodes: Growing::new(Pinned::new(locks, || Atomic::new(false))?),
            grows: Atomic::new(false),
            tables: Pinned::new(TABLE_LOCKS, || new_mutex!((), "Volume::tables"))?,
            fixed: SetOnce::new(),
            orphans <- new_mutex!(Orphans::default(), "Volume::orphans"),
            replayed: Atomic::new(false),
            frees_orphans: Atomic::new(false),
            has_system_dir: Atomic::new(false),
            system_inodes: [const { Atomic::new(0) }; 4],
            foreign_system_dir: Atomic::new(false),
            errors <- Errors::new(action),
            has_large_files: Atomic::new(has_large_files),
            super_lock <- new_mutex!((), "Volume::super_lock"),
            held_by <- new_mutex!(None, "Volume::held_by"),
            holder: Atomic::new(0),
            shut_down: Atomic::new(false),
            stopped: Atomic::new(false),
            index <- new_spinlock!(None, "Volume::index"),
            name_watcher <- new_spinlock!(None, "Volume::name_watcher"),
            claim_ended <- new_condvar!("Volume::claim_ended"),
            counts <- new_mutex!(Counts::default(), "Volume::counts"),
            windows <- new_mutex!(Windows::default(), "Volume::windows"),
            staging <- new_mutex!(Staging::new(), "Volume::staging"),
            freed <- Freed::new(),
            shared <- SharedBlocks::new(shares),
            sectors_counted: Atomic::new(sectors_written),
            layout: Latest::new(layout)?,
        })
    }

    /// Returns the journal. Fails with `EROFS` while the volume is not mounted writable.
    pub(crate) fn journal(&self) -> Result<Arc<Journal>> {
        if !self.is_writable() {
            return Err(EROFS);
        }
        self.journal.lock().clone().ok_or(EROFS)
    }

    /// Returns true while handles may be started. Still true after an error that made the mount
    /// read-only; the aborted journal refuses handles then.
    pub(in crate::fs) fn is_writable(&self) -> bool {
        self.writable.load(Acquire)
    }

    /// Fails with `EIO` once the volume was shut down.
    pub(crate) fn check_alive(&self) -> Result {
        match self.shut_down.load(Acquire) {
            true => Err(EIO),
            false => Ok(()),
        }
    }

    /// Fails with `EIO` once the volume was shut down, and with `EROFS` once it was noticed that
    /// the journal was aborted.
    pub(crate) fn check_writes(&self) -> Result {
        self.check_alive()?;
        match self.stopped.load(Acquire) {
            true => Err(EROFS),
            false => Ok(()),
        }
    }

    /// Like [`check_writes`](Self::check_writes), but looks at the journal: jbd2 may have aborted
    /// it on its own. Changes may be reported to be on disk only if this succeeds after the commit.
    pub(in crate::fs) fn check_journal(&self) -> Result {
        self.check_writes()?;
        let aborted = self
            .journal
            .lock()
            .as_ref()
            .is_some_and(|journal| journal.is_aborted());
        if aborted {
            self.stop();
        }
        self.check_writes()
    }

    /// Notes that the journal was aborted. May be called with any lock held.
    pub(in crate::fs) fn stop(&self) {
        if self.check_alive().is_err() || self.stopped.xchg(true, Full) {
            return;
        }
        // It logs that the volume is read-only now.
        if let Some(task) = &*self.errors.task.lock() {
            task.start();
        }
    }

    pub(in crate::fs) fn is_stopped(&self) -> bool {
        self.stopped.load(Acquire)
    }

    /// Starts a handle with this number of credits, for a task that changes something; see
    /// [`Handle::start`].
    ///
    /// May sleep first, if changes arrive faster than a running rebuild can apply them.
    pub(crate) fn begin(&self, blocks: u32, revokes: u32) -> Result<Handle> {
        self.throttle();
        self.begin_internal(blocks, revokes)
    }

    /// Sleeps if owners change faster than a running rebuild can apply. No handle may be open. Does
    /// not sleep in memory reclaim.
    pub(in crate::fs) fn throttle(&self) {
        if !is_reclaiming() {
            if let Some(index) = self.index() {
                index.throttle();
            }
        }
    }

    /// Starts a handle with this number of credits without ever waiting for a rebuild: for the
    /// index itself, which would wait for itself, and for the worker that completes writeback, on
    /// which other tasks wait.
    pub(crate) fn begin_internal(&self, blocks: u32, revokes: u32) -> Result<Handle> {
        self.check_alive()?;
        let journal = self.journal()?;
        // The journal is aborted only once the flag is set.
        let handle = Handle::start(journal, Credits { blocks, revokes })
            .or_else(|error| self.check_journal().and(Err(error)))?;
        // A remount to read-only clears the flag while no handle runs, and those that waited for
        // that start afterwards.
        if !self.is_writable() {
            return Err(EROFS);
        }
        Ok(handle)
    }

    /// Returns the current mount options.
    pub(in crate::fs) fn options(&self) -> Options {
        *self.options.lock()
    }

    /// Locks a block group: its two bitmaps and its descriptor. Must be called inside a handle; at
    /// most one group lock may be held.
    pub(crate) fn lock_group(&self, group: u32) -> Result<MutexGuard<'_, GroupState>> {
        // There may be more locks than groups.
        let lock = self
            .groups
            .get(group as usize)
            .filter(|_| group < self.layout.groups);
        Ok(lock.ok_or(EINVAL)?.lock())
    }

    /// Returns the index of owners, if one is attached.
    pub(crate) fn index(&self) -> Index {
        self.index.lock().clone()
    }

    /// Attaches an index, or detaches the current one.
    pub(crate) fn attach_index(&self, index: Index) {
        // Drop the old one after releasing the lock.
        let _old = core::mem::replace(&mut *self.index.lock(), index);
    }

    /// Has every change of a name reported to `watcher` from now on, or to nobody. The subscriber
    /// must hold [`Hooks`] while subscribed.
    pub(crate) fn watch_names(&self, watcher: Watcher) {
        // Drop the old one after releasing the lock.
        let _old = core::mem::replace(&mut *self.name_watcher.lock(), watcher);
    }

    /// Reports a change of an entry to the watcher of names, if there is one.
    pub(in crate::fs) fn name_changed(&self, dir: u32, ino: u32, dot: bool, added: bool) {
        if Hooks::are_on() {
            let watcher = self.name_watcher.lock().clone();
            if let Some(watcher) = watcher {
                watcher.changed(dir, ino, dot, added);
            }
        }
    }

    pub(in crate::fs) fn frees_orphans(&self) -> bool {
        self.frees_orphans.load(Relaxed)
    }

    /// Locks a block of an inode table against writers of other inodes in it.
    pub(in crate::fs) fn lock_table(&self, block: u64) -> Result<MutexGuard<'_, ()>> {
        let lock = self.tables.get((block % TABLE_LOCKS as u64) as usize);
        Ok(lock.ok_or(EINVAL)?.lock())
    }

    /// Records that an inode is the system directory, or a file in it.
    pub(in crate::fs) fn note_system_inode(&self, ino: u32) {
        for known in &self.system_inodes {
            match known.cmpxchg(0, ino, Relaxed) {
                Ok(_) => return,
                Err(found) if found == ino => return,
                Err(_) => (),
            }
        }
    }

    /// Returns true if an inode was recorded as one of the file system's own.
    pub(in crate::fs) fn is_system_inode(&self, ino: u32) -> bool {
        self.system_inodes.iter().any(|known| known.load(Relaxed) == ino)
    }

    /// Returns true if blocks may have several owners.
    pub(crate) fn shares(&self) -> bool {
        self.shared.on.load(Relaxed)
    }

    /// Returns the layout of the volume.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Adds groups to those that can be locked, up to `count`; see [`Growing::grow`].
    pub(in crate::fs) fn add_groups(&self, count: u32) -> Result {
        self.fenced_inodes.grow(count as usize, || Atomic::new(false))?;
        self.groups.grow(count as usize, || {
            new_mutex!(GroupState::default(), "Volume::groups")
        })
    }

    /// Returns the number of inodes of the volume; they are numbered from 1.
    pub(crate) fn inode_count(&self) -> u32 {
        self.layout.inodes
    }

    /// Returns true if damage was found, by this mount or an earlier one, and has not been repaired
    /// since.
    pub(crate) fn is_damaged(&self) -> bool {
        self.errors.are_known()
    }

    /// Returns the number of inodes per group.
    pub(crate) fn inodes_per_group(&self) -> u32 {
        self.layout.inodes_per_group
    }
}

/// Locks each of which protects many objects of one kind.
pub(in crate::fs) type Locks = Pinned<Mutex<()>>;

/// Maximum number of groups whose descriptors are read at mount and whose metadata blocks are
/// listed. A volume that claims more, for which memory may not suffice, can only be mounted
/// read-only: 4 million groups are 512 TiB with blocks of 4 KiB.
pub(in crate::fs) const MOST_GROUPS: u32 = 1 << 22;

/// Number of locks for blocks of inode tables.
const TABLE_LOCKS: usize = 64;

/// In-memory state of a block group, protected by the group's lock.
#[derive(Default)]
pub(crate) struct GroupState {
    /// The blocks reserved in memory, in the format of a block bitmap; empty if there are none.
    /// They are free on disk, but not included in the count of free blocks.
    pub(in crate::fs) reserved: KVec<u8>,
    /// The number of reserved blocks.
    pub(in crate::fs) reserved_count: u32,
    /// The group is damaged; no blocks are allocated in it.
    pub(in crate::fs) is_fenced: bool,
    /// If known, no run of free blocks in the bitmap is longer than this. Forgotten when blocks are
    /// freed.
    pub(in crate::fs) longest: Option<u32>,
    /// Counts frees of its blocks.
    pub(in crate::fs) frees: u32,
    /// The last transaction that freed any of them on disk.
    pub(in crate::fs) freed_in: Option<u32>,
    /// All its free runs of at least this many blocks were discarded since the last free.
    pub(in crate::fs) trimmed: Option<u32>,
}

impl GroupState {
    /// Records that some of its blocks are being freed, in this transaction if they were in use on
    /// disk.
    pub(in crate::fs) fn note_free(&mut self, transaction: Option<u32>) {
        self.frees = self.frees.wrapping_add(1);
        self.freed_in = transaction.or(self.freed_in);
        self.trimmed = None;
        if transaction.is_some() {
            self.longest = None;
        }
    }
}

/// The journaling mode for data (`data=`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) enum DataMode {
    /// Data is written before the metadata that refers to it is committed.
    Ordered,
    /// Data is written at any time.
    Writeback,
    /// Data is written through the journal.
    Journal,
}

/// Mount options, from the superblock's defaults, a mount or a remount. `None` if not specified.
/// Options that are accepted without effect are represented by one bit each, their index in the
/// table of options.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Do not replay the journal.
    pub(in crate::fs) no_recovery: bool,
    /// Write out a file that replaces another file, or its own contents, before the replacement is
    /// committed.
    pub(in crate::fs) auto_da_alloc: Option<bool>,
    /// The reaction to damage.
    pub(in crate::fs) on_error: Option<Action>,
    /// Abort the journal as if damage had been found.
    pub(in crate::fs) abort: bool,
    /// Commit interval in seconds.
    pub(in crate::fs) commit: Option<u32>,
    /// Minimum time in microseconds that a commit waits for other handles.
    pub(in crate::fs) min_batch_time: Option<u32>,
    /// Maximum time in microseconds that a commit waits for other handles.
    pub(in crate::fs) max_batch_time: Option<u32>,
    /// Flush the device's write cache where ordering matters.
    pub(in crate::fs) barrier: Option<bool>,
    /// The user who may use reserved blocks.
    pub(in crate::fs) reserve_uid: Option<u32>,
    /// The group that may use reserved blocks.
    pub(in crate::fs) reserve_gid: Option<u32>,
    /// `statfs` counts the blocks of fixed metadata as part of the volume.
    pub(in crate::fs) minix_df: Option<bool>,
    /// The journaling mode.
    pub(in crate::fs) data: Option<DataMode>,
    /// Write the commit block without waiting for the blocks of the transaction.
    pub(in crate::fs) async_commit: Option<bool>,
    /// Blocks that were freed are discarded.
    pub(in crate::fs) discard: Option<bool>,
    /// Blocks may become shared.
    pub(in crate::fs) reflink: Option<bool>,
    /// The options that were accepted without effect.
    pub(in crate::fs) without_effect: u128,
}

impl Options {
    /// Returns true if the device's write cache is flushed where ordering matters.
    pub(in crate::fs) fn has_barrier(&self) -> bool {
        self.barrier != Some(false)
    }

    /// Returns true if a file that replaces another file, or its own contents, is written out
    /// before the replacement is committed.
    pub(in crate::fs) fn has_auto_da_alloc(&self) -> bool {
        self.auto_da_alloc != Some(false)
    }
}

/// Space usage of the volume, in blocks and inodes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(in crate::fs) free_blocks: u64,
    pub(in crate::fs) free_inodes: u64,
    pub(in crate::fs) overhead: u64,
    /// Blocks that only root, and the user and group named in the superblock, may use.
    pub(in crate::fs) reserved: u64,
    /// The user and group named in the superblock.
    pub(in crate::fs) reserved_for: (u32, u32),
    /// Number of tasks that have subtracted blocks from the free count and are still searching for
    /// a run.
    pub(in crate::fs) claims: u32,
    /// The user and group named in mount options, which override these.
    pub(in crate::fs) asked_reserve: (Option<u32>, Option<u32>),
    /// Number of frees of blocks; the blocks can be reallocated once the transaction is committed.
    pub(in crate::fs) frees: u64,
    /// The value of `frees` when a commit was last waited for.
    pub(in crate::fs) frees_committed: u64,
}

impl Counts {
    /// Returns the user and the group who may use the reserved blocks.
    pub(in crate::fs) fn reserve_of(&self) -> (u32, u32) {
        let (user, group) = self.asked_reserve;
        (
            user.unwrap_or(self.reserved_for.0),
            group.unwrap_or(self.reserved_for.1),
        )
    }
}

/// Free blocks that are kept for a file, or for the small files of a group.
#[derive(Clone, Copy)]
pub(in crate::fs) struct Window {
    /// First block on the volume.
    pub(in crate::fs) start: u64,
    /// Number of blocks.
    pub(in crate::fs) len: u32,
}

/// The windows of a volume; see [`crate::fs::alloc::windows`].
#[derive(Default)]
pub(in crate::fs) struct Windows {
    /// By holder.
    pub(in crate::fs) tree: RBTree<u64, Window>,
    /// The number of blocks in all of them. They are not included in the count of free blocks.
    pub(in crate::fs) blocks: u64,
}

/// The reaction of a mount to damage (`errors=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fs) enum Action {
    /// Record it and continue.
    Continue = 1,
    /// Make the volume read-only.
    ReadOnly = 2,
    /// Panic.
    Panic = 3,
}

impl Action {
    /// Returns the action of this name.
    pub(in crate::fs) fn of_name(name: &[u8]) -> Option<Action> {
        Some(match name {
            b"continue" => Action::Continue,
            b"remount-ro" => Action::ReadOnly,
            b"panic" => Action::Panic,
            _ => return None,
        })
    }

    /// Returns the action with this number in `s_errors`; unknown numbers mean read-only.
    pub(in crate::fs) fn of_number(number: u32) -> Action {
        match number {
            1 => Action::Continue,
            3 => Action::Panic,
            _ => Action::ReadOnly,
        }
    }

    /// Returns the mount option.
    pub(in crate::fs) fn option(self) -> &'static CStr {
        match self {
            Action::Continue => c"errors=continue",
            Action::ReadOnly => c"errors=remount-ro",
            Action::Panic => c"errors=panic",
        }
    }
}

/// A detected error: its time, inode and block; 0 if unknown.
#[derive(Clone, Copy)]
pub(in crate::fs) struct Event {
    pub(in crate::fs) time: i64,
    pub(in crate::fs) ino: u32,
    pub(in crate::fs) block: u64,
}

/// Errors not yet recorded in the superblock: the first, the last, and their number.
#[derive(Clone, Copy)]
pub(in crate::fs) struct Notes {
    pub(in crate::fs) first: Event,
    pub(in crate::fs) last: Event,
    pub(in crate::fs) count: u32,
}

/// A volume's state of error handling.
#[pin_data]
pub(in crate::fs) struct Errors {
    pub(in crate::fs) action: Atomic<u32>,
    /// Errors were found, by this mount or an earlier one.
    pub(in crate::fs) known: Atomic<bool>,
    #[pin]
    pub(in crate::fs) notes: SpinLock<Option<Notes>>,
    #[pin]
    pub(in crate::fs) task: SpinLock<Option<Background<Writer>>>,
    /// An error was found outside of a check, so the action of `errors=` must be taken.
    pub(in crate::fs) acts: Atomic<bool>,
    /// The log says that the volume is read-only now.
    pub(in crate::fs) told: Atomic<bool>,
    /// The pids of tasks that are running a check.
    #[pin]
    pub(in crate::fs) checkers: SpinLock<KVec<i32>>,
}

impl Errors {
    fn new(action: Action) -> impl PinInit<Errors> {
        pin_init!(Errors {
            action: Atomic::new(action as u32),
            known: Atomic::new(false),
            notes <- new_spinlock!(None, "Errors::notes"),
            task <- new_spinlock!(None, "Errors::task"),
            acts: Atomic::new(false),
            told: Atomic::new(false),
            checkers <- new_spinlock!(KVec::new(), "Errors::checkers"),
        })
    }

    pub(in crate::fs) fn action(&self) -> Action {
        Action::of_number(self.action.load(Relaxed))
    }

    /// Returns true if errors are known.
    pub(in crate::fs) fn are_known(&self) -> bool {
        self.known.load(Relaxed)
    }

    /// Records that the superblock says that there are errors.
    pub(in crate::fs) fn set_known(&self) {
        self.known.store(true, Relaxed);
    }

    pub(in crate::fs) fn set_action(&self, action: Action) {
        self.action.store(action as u32, Relaxed);
    }
}

/// The background task that writes errors to the superblock, and takes the actions that are not
/// possible in the context where an error is found.
pub(in crate::fs) struct Writer {
    /// Pins the superblock; the task ends before the volume is unmounted.
    pub(in crate::fs) root: InodeRef<Volume>,
}

/// Runs of blocks that were freed: transaction, first block and length.
pub(in crate::fs) type FreedRuns = KVVec<(u32, u64, u32)>;

/// The blocks that are to be discarded.
#[pin_data]
pub(in crate::fs) struct Freed {
    /// Freed blocks are recorded.
    pub(in crate::fs) on: Atomic<bool>,
    /// The recorded runs.
    #[pin]
    pub(in crate::fs) runs: Mutex<FreedRuns>,
    #[pin]
    pub(in crate::fs) task: SpinLock<Option<Background<Trimmer>>>,
}

impl Freed {
    fn new() -> impl PinInit<Freed> {
        pin_init!(Freed {
            on: Atomic::new(false),
            runs <- new_mutex!(KVVec::new(), "Freed::runs"),
            task <- new_spinlock!(None, "Freed::task"),
        })
    }
}

/// The background task that discards freed blocks.
pub(in crate::fs) struct Trimmer {
    /// Keeps the superblock; the task ends before the volume is unmounted.
    pub(in crate::fs) root: InodeRef<Volume>,
}

/// The place where an inode is recorded as an orphan.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) enum OrphanPlace {
    /// In this slot of the orphan file.
    Slot(u32),
    /// In the legacy list.
    List,
}

/// The blocks of the orphan file, each with the number of its free slots.
pub(in crate::fs) type OrphanBlocks = KVec<(KeptBuffer<Volume>, u32)>;

/// The inodes of a writable mount whose deletion or truncation is not complete: those in the orphan
/// file and those in the legacy list.
#[derive(Default)]
pub(in crate::fs) struct Orphans {
    /// Empty if there is no usable orphan file.
    pub(in crate::fs) blocks: OrphanBlocks,
    /// The block of the file from which to look for a free slot.
    pub(in crate::fs) next: u32,
    /// Initial value of the checksums of the file's blocks.
    pub(in crate::fs) seed: u32,
    /// The first inode of the legacy list, 0 for none: `s_last_orphan`.
    pub(in crate::fs) first: u32,
    /// The inodes of the legacy list, each with its predecessor and successor, 0 for none.
    pub(in crate::fs) list: RBTree<u32, (u32, u32)>,
    /// On disk, the list continues after this inode (0: after `s_last_orphan`) with one that cannot
    /// be in it.
    pub(in crate::fs) cut_behind: Option<u32>,
    /// New entries are added to the list even if the file has room.
    pub(in crate::fs) avoids_file: bool,
}

/// State of block sharing on a volume.
#[pin_data]
pub(in crate::fs) struct SharedBlocks {
    /// Blocks may be shared; the superblock has the feature.
    pub(in crate::fs) on: Atomic<bool>,
    /// Blocks may become shared even if the feature is not set yet.
    pub(in crate::fs) allowed: Atomic<bool>,
    /// Number of tasks that are about to share blocks. Locked while the feature is changed.
    #[pin]
    pub(in crate::fs) sharers: Mutex<u32>,
}

impl SharedBlocks {
    fn new(on: bool) -> impl PinInit<SharedBlocks> {
        pin_init!(SharedBlocks {
            on: Atomic::new(on),
            allowed: Atomic::new(false),
            sharers <- new_mutex!(0, "SharedBlocks::sharers"),
        })
    }
}
