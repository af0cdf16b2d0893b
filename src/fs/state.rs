// SPDX-License-Identifier: GPL-2.0

//! The state of a mounted volume, and the plain structures that it consists of.
//!
//! Every wing of `fs` works on a [`Volume`]; none of their code is here, so that it can stand below all of them.

use crate::{
    format::{
        superblock::{ro_compat, Layout},
        zones::Zone,
    },
    fs::{owners::Index, staging::Staging},
    kernel_glue::{
        is_reclaiming, Background, Credits, Handle, HeldWriters, InodeRef, Journal, KeptBuffer, Pinned,
        SuperBlock,
    },
};
use kernel::{
    new_condvar, new_mutex, new_spinlock,
    prelude::*,
    rbtree::RBTree,
    sync::{
        atomic::{Acquire, Atomic, Relaxed},
        Arc, CondVar, Mutex, MutexGuard, SetOnce, SpinLock,
    },
};

/// The number of the open directory on which all writers are held, and what keeps them.
pub(in crate::fs) type Hold = (usize, HeldWriters<Volume>);

/// A mounted volume.
pub(crate) struct Volume {
    /// Where everything is. Fixed while mounted.
    pub(in crate::fs) layout: Layout,
    /// The options that are in force.
    pub(in crate::fs) options: Pin<KBox<SpinLock<Options>>>,
    /// The journal, from the first writable mount or remount until the volume is unmounted. A remount to read-only keeps
    /// it, since handles that end late still hold it.
    pub(in crate::fs) journal: Pin<KBox<SpinLock<Option<Arc<Journal>>>>>,
    /// Handles may be started.
    pub(in crate::fs) writable: Atomic<bool>,
    /// The volume was shut down: nothing is written any more, and no file read.
    pub(in crate::fs) shut_down: Atomic<bool>,
    /// `s_state` as it was when the volume became writable; it is left as it was found.
    pub(in crate::fs) state_before: Atomic<u32>,
    /// One lock a block group, held while its bitmaps and its descriptor are looked at to be changed. A volume of more than
    /// [`MOST_GROUPS`], which nobody writes, has none.
    pub(in crate::fs) groups: Pinned<Mutex<GroupState>>,
    /// The groups from which no more inodes are taken: their bitmap cannot be relied on.
    pub(in crate::fs) fenced_inodes: KVVec<Atomic<bool>>,
    /// Locks for blocks of inode tables, which several inodes share: that of a block is found by its number.
    pub(in crate::fs) tables: Locks,
    /// Free blocks and inodes, and the blocks that files can never have, as found at mount.
    pub(in crate::fs) counts: Pin<KBox<Mutex<Counts>>>,
    /// Some of the [`Counts::claims`] have ended.
    pub(in crate::fs) claim_ended: Pin<KBox<CondVar>>,
    /// The blocks that no file may have, in order, once they were listed.
    pub(in crate::fs) fixed: SetOnce<KVVec<Zone>>,
    /// The inodes that were deleted or cut and are still to be freed.
    pub(in crate::fs) orphans: Pin<KBox<Mutex<Orphans>>>,
    /// This mount replayed the journal of a mount that did not end.
    pub(in crate::fs) replayed: Atomic<bool>,
    /// Deleted inodes may be had: they are being freed after a crash.
    pub(in crate::fs) frees_orphans: Atomic<bool>,
    /// There is a directory of the file system's own files, which nobody sees.
    pub(in crate::fs) has_system_dir: Atomic<bool>,
    /// That directory, and the files in it; 0 for none. They are not handed out by handles.
    pub(in crate::fs) system_inodes: [Atomic<u32>; 4],
    /// What has the name of that directory was made by a user, and is not hidden.
    pub(in crate::fs) foreign_system_dir: Atomic<bool>,
    /// What was found damaged, and what is done about that.
    pub(in crate::fs) errors: Errors,
    /// The superblock says that files may be larger than 2 GiB.
    pub(in crate::fs) has_large_files: Atomic<bool>,
    /// Held while the superblock is changed on disk.
    pub(in crate::fs) super_lock: Pin<KBox<Mutex<()>>>,
    /// The open directory on which somebody asked for all writers to be held, by its number.
    pub(in crate::fs) held_by: Pin<KBox<Mutex<Option<Hold>>>>,
    /// The same number, to be read without the lock; 0 while nobody holds the writers.
    pub(in crate::fs) holder: Atomic<usize>,
    /// What keeps an index of who owns which block.
    pub(in crate::fs) index: Pin<KBox<SpinLock<Index>>>,
    /// The blocks that are staged for inodes.
    pub(in crate::fs) staging: Pin<KBox<Mutex<Staging>>>,
    /// The blocks that are to be discarded.
    pub(in crate::fs) freed: Freed,
    /// What is known of blocks with several owners.
    pub(in crate::fs) shared: SharedBlocks,
    /// The sectors that had been written to the device when the volume's count of that was last brought up to date.
    pub(in crate::fs) sectors_counted: Atomic<u64>,
}

impl Volume {
    pub(in crate::fs) fn new(layout: Layout, options: Options, sb: &SuperBlock<Volume>) -> Result<Volume> {
        let locks = if layout.groups > MOST_GROUPS {
            0
        } else {
            layout.groups
        };
        let groups = Pinned::new(locks as usize, || {
            new_mutex!(GroupState::default(), "Volume::groups")
        })?;
        let mut fenced_inodes = KVVec::with_capacity(locks as usize, GFP_KERNEL)?;
        for _ in 0..locks {
            fenced_inodes.push(Atomic::new(false), GFP_KERNEL)?;
        }
        let tables = Pinned::new(TABLE_LOCKS, || new_mutex!((), "Volume::tables"))?;
        Ok(Volume {
            options: KBox::pin_init(new_spinlock!(options, "Volume::options"), GFP_KERNEL)?,
            journal: KBox::pin_init(new_spinlock!(None, "Volume::journal"), GFP_KERNEL)?,
            writable: Atomic::new(false),
            state_before: Atomic::new(0),
            groups,
            fenced_inodes,
            tables,
            fixed: SetOnce::new(),
            orphans: KBox::pin_init(new_mutex!(Orphans::default(), "Volume::orphans"), GFP_KERNEL)?,
            replayed: Atomic::new(false),
            frees_orphans: Atomic::new(false),
            has_system_dir: Atomic::new(false),
            system_inodes: [const { Atomic::new(0) }; 4],
            foreign_system_dir: Atomic::new(false),
            errors: Errors::new(options.on_error.unwrap_or(Action::ReadOnly))?,
            has_large_files: Atomic::new(layout.features.ro_compat(ro_compat::LARGE_FILE)),
            super_lock: KBox::pin_init(new_mutex!((), "Volume::super_lock"), GFP_KERNEL)?,
            held_by: KBox::pin_init(new_mutex!(None, "Volume::held_by"), GFP_KERNEL)?,
            holder: Atomic::new(0),
            shut_down: Atomic::new(false),
            index: KBox::pin_init(new_spinlock!(None, "Volume::index"), GFP_KERNEL)?,
            claim_ended: KBox::pin_init(new_condvar!("Volume::claim_ended"), GFP_KERNEL)?,
            counts: KBox::pin_init(new_mutex!(Counts::default(), "Volume::counts"), GFP_KERNEL)?,
            staging: KBox::pin_init(new_mutex!(Staging::new(), "Volume::staging"), GFP_KERNEL)?,
            freed: Freed::new()?,
            shared: SharedBlocks::new(layout.features.ro_compat(ro_compat::SHARED_BLOCKS))?,
            sectors_counted: Atomic::new(sb.sectors_written()),
            layout,
        })
    }

    /// The journal. Fails with `EROFS` while the volume is not mounted writable.
    pub(crate) fn journal(&self) -> Result<Arc<Journal>> {
        if !self.is_writable() {
            return Err(EROFS);
        }
        self.journal.lock().clone().ok_or(EROFS)
    }

    /// Returns true while handles may be started. After an error that made the mount read-only it still does: the journal
    /// is aborted then and refuses them itself.
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

    /// Starts a handle that may write so many blocks, for a task that changes something; see [`Handle::start`].
    ///
    /// May wait first while changes come faster than a running rebuild can apply them.
    pub(crate) fn begin(&self, blocks: u32, revokes: u32) -> Result<Handle> {
        self.throttle();
        self.begin_internal(blocks, revokes)
    }

    /// Waits while changes of owners come faster than a running rebuild can apply them. No handle may be open. A task
    /// that frees memory for others goes on.
    pub(in crate::fs) fn throttle(&self) {
        if !is_reclaiming() {
            if let Some(index) = self.index() {
                index.throttle();
            }
        }
    }

    /// Starts a handle that may write so many blocks and never waits for a rebuild: for the index itself, which would
    /// wait for itself, and for the worker that completes writeback, for which everybody waits.
    pub(crate) fn begin_internal(&self, blocks: u32, revokes: u32) -> Result<Handle> {
        self.check_alive()?;
        let handle = Handle::start(self.journal()?, Credits { blocks, revokes });
        // The journal is aborted only once the flag is set.
        let handle = handle.or_else(|error| self.check_alive().and(Err(error)))?;
        // A remount to read-only clears the flag while no handle runs, and those that waited for that start afterwards.
        if !self.is_writable() {
            return Err(EROFS);
        }
        Ok(handle)
    }

    /// The options that are in force.
    pub(in crate::fs) fn options(&self) -> Options {
        *self.options.lock()
    }

    /// Locks a block group: its two bitmaps and its descriptor. Taken inside a handle, one group at a time.
    pub(crate) fn lock_group(&self, group: u32) -> Result<MutexGuard<'_, GroupState>> {
        Ok(self.groups.get(group as usize).ok_or(EINVAL)?.lock())
    }

    /// The index of who owns which block, if one is attached.
    pub(crate) fn index(&self) -> Index {
        self.index.lock().clone()
    }

    /// Attaches an index, or takes the one that is attached away.
    pub(crate) fn attach_index(&self, index: Index) {
        // The old one goes after the lock.
        let _old = core::mem::replace(&mut *self.index.lock(), index);
    }

    pub(in crate::fs) fn frees_orphans(&self) -> bool {
        self.frees_orphans.load(Relaxed)
    }

    /// Locks a block of an inode table against others who write inodes in it.
    pub(in crate::fs) fn lock_table(&self, block: u64) -> Result<MutexGuard<'_, ()>> {
        let lock = self.tables.get((block % TABLE_LOCKS as u64) as usize);
        Ok(lock.ok_or(EINVAL)?.lock())
    }

    /// Notes that an inode is the directory of the file system's own files, or one of these.
    pub(in crate::fs) fn note_system_inode(&self, ino: u32) {
        for known in &self.system_inodes {
            match known.cmpxchg(0, ino, Relaxed) {
                Ok(_) => return,
                Err(found) if found == ino => return,
                Err(_) => (),
            }
        }
    }

    /// Whether an inode was noted as one of the file system's own.
    pub(in crate::fs) fn is_system_inode(&self, ino: u32) -> bool {
        self.system_inodes.iter().any(|known| known.load(Relaxed) == ino)
    }

    /// Whether blocks may have several owners.
    pub(crate) fn shares(&self) -> bool {
        self.shared.on.load(Relaxed)
    }

    /// Where everything is.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Inodes of the volume, numbered from 1.
    pub(crate) fn inode_count(&self) -> u32 {
        self.layout.inodes
    }

    /// Whether damage was found, in this mount or an earlier one, and not repaired since.
    pub(crate) fn is_damaged(&self) -> bool {
        self.errors.are_known()
    }

    /// Inodes of a group.
    pub(crate) fn inodes_per_group(&self) -> u32 {
        self.layout.inodes_per_group
    }
}

/// Locks of which each is for many things of a kind.
pub(in crate::fs) type Locks = Pinned<Mutex<()>>;

/// Groups of which the descriptors are read at mount and the blocks listed. A volume that claims more, for which there may
/// not be the memory, can only be read: 4 million groups are 512 TiB in blocks of 4 KiB.
pub(in crate::fs) const MOST_GROUPS: u32 = 1 << 22;

/// Locks for all blocks of inode tables.
const TABLE_LOCKS: usize = 64;

/// What is known of a block group beyond its descriptor and its bitmaps. Under the group's lock.
#[derive(Default)]
pub(crate) struct GroupState {
    /// The blocks that are reserved in memory, as in a block bitmap; empty while there are none. They are free on disk, and
    /// the count of free blocks does not include them.
    pub(in crate::fs) reserved: KVec<u8>,
    /// How many there are.
    pub(in crate::fs) reserved_count: u32,
    /// It is damaged; no blocks are taken from it.
    pub(in crate::fs) is_fenced: bool,
    /// Counts frees of its blocks.
    pub(in crate::fs) frees: u32,
    /// The last transaction that freed any of them on disk.
    pub(in crate::fs) freed_in: Option<u32>,
    /// All its free runs of so many blocks were discarded since any of its blocks was last freed.
    pub(in crate::fs) trimmed: Option<u32>,
}

impl GroupState {
    /// Some of its blocks are being freed, in this transaction if they were in use on disk, so that
    /// there is something to discard again.
    pub(in crate::fs) fn note_free(&mut self, transaction: Option<u32>) {
        self.frees = self.frees.wrapping_add(1);
        self.freed_in = transaction.or(self.freed_in);
        self.trimmed = None;
    }
}

/// How data is written, as ext4 names it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) enum DataMode {
    /// Before the metadata that leads to it is committed.
    Ordered,
    /// At any time.
    Writeback,
    /// Through the journal.
    Journal,
}

/// The options of a mount, by the superblock's defaults, the mount itself or a remount. `None` where nothing is said. Those
/// that are accepted without effect are a bit each, by their number in the table of options.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// The journal is not replayed.
    pub(in crate::fs) no_recovery: bool,
    /// A file that replaces another, or its own contents, is written out before that is on disk.
    pub(in crate::fs) auto_da_alloc: Option<bool>,
    /// What is done about damage.
    pub(in crate::fs) on_error: Option<Action>,
    /// The journal is to be aborted, as if damage had been found.
    pub(in crate::fs) abort: bool,
    /// Seconds between commits.
    pub(in crate::fs) commit: Option<u32>,
    /// Microseconds that a commit waits at least for others to join.
    pub(in crate::fs) min_batch_time: Option<u32>,
    /// Microseconds that a commit waits at most for others to join.
    pub(in crate::fs) max_batch_time: Option<u32>,
    /// The device's cache is flushed where order matters.
    pub(in crate::fs) barrier: Option<bool>,
    /// The user who may have reserved blocks.
    pub(in crate::fs) reserve_uid: Option<u32>,
    /// The group that may have reserved blocks.
    pub(in crate::fs) reserve_gid: Option<u32>,
    /// `statfs` counts the blocks of fixed metadata as part of the volume.
    pub(in crate::fs) minix_df: Option<bool>,
    /// How data is written.
    pub(in crate::fs) data: Option<DataMode>,
    /// A commit does not wait for its blocks before it writes its end.
    pub(in crate::fs) async_commit: Option<bool>,
    /// Blocks that were freed are discarded.
    pub(in crate::fs) discard: Option<bool>,
    /// Blocks may come to have several owners.
    pub(in crate::fs) reflink: Option<bool>,
    /// The options that were accepted without effect.
    pub(in crate::fs) without_effect: u128,
}

impl Options {
    /// Whether the device's cache is flushed where order matters.
    pub(in crate::fs) fn has_barrier(&self) -> bool {
        self.barrier != Some(false)
    }

    /// Whether a file that replaces another, or its own contents, is written out before that is on disk.
    pub(in crate::fs) fn has_auto_da_alloc(&self) -> bool {
        self.auto_da_alloc != Some(false)
    }
}

/// How full the volume is. In blocks and inodes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(in crate::fs) free_blocks: u64,
    pub(in crate::fs) free_inodes: u64,
    pub(in crate::fs) overhead: u64,
    /// Blocks that only root and whom the superblock names may have.
    pub(in crate::fs) reserved: u64,
    /// Whom it names: a user and a group.
    pub(in crate::fs) reserved_for: (u32, u32),
    /// Tasks that have taken blocks off the count of free ones and are looking for a run of as many.
    pub(in crate::fs) claims: u32,
    /// Whom a mount option names instead.
    pub(in crate::fs) asked_reserve: (Option<u32>, Option<u32>),
    /// Counts frees of blocks, which can be taken again once that is committed.
    pub(in crate::fs) frees: u64,
    /// What that count was when a commit was last waited for.
    pub(in crate::fs) frees_committed: u64,
}

impl Counts {
    /// The user and the group who may have the reserved blocks.
    pub(in crate::fs) fn reserve_of(&self) -> (u32, u32) {
        let (user, group) = self.asked_reserve;
        (
            user.unwrap_or(self.reserved_for.0),
            group.unwrap_or(self.reserved_for.1),
        )
    }
}

/// What a mount does when it comes upon damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fs) enum Action {
    /// Notes it and goes on.
    Continue = 1,
    /// Lets nothing more be written.
    ReadOnly = 2,
    /// Stops the machine.
    Panic = 3,
}

impl Action {
    /// The one of this name.
    pub(in crate::fs) fn of_name(name: &[u8]) -> Option<Action> {
        Some(match name {
            b"continue" => Action::Continue,
            b"remount-ro" => Action::ReadOnly,
            b"panic" => Action::Panic,
            _ => return None,
        })
    }

    /// The one of this `s_errors`, in which what is not known is taken with care.
    pub(in crate::fs) fn of_number(number: u32) -> Action {
        match number {
            1 => Action::Continue,
            3 => Action::Panic,
            _ => Action::ReadOnly,
        }
    }

    /// The mount option.
    pub(in crate::fs) fn option(self) -> &'static CStr {
        match self {
            Action::Continue => c"errors=continue",
            Action::ReadOnly => c"errors=remount-ro",
            Action::Panic => c"errors=panic",
        }
    }
}

/// One damage: when, and which inode and block, 0 where that is not known.
#[derive(Clone, Copy)]
pub(in crate::fs) struct Event {
    pub(in crate::fs) time: i64,
    pub(in crate::fs) ino: u32,
    pub(in crate::fs) block: u64,
}

/// Damage that the superblock does not tell of yet, oldest and newest, and how often there was any.
#[derive(Clone, Copy)]
pub(in crate::fs) struct Notes {
    pub(in crate::fs) first: Event,
    pub(in crate::fs) last: Event,
    pub(in crate::fs) count: u32,
}

/// What a volume knows of its damage.
pub(in crate::fs) struct Errors {
    pub(in crate::fs) action: Atomic<u32>,
    /// There was some, in this mount or an earlier one.
    pub(in crate::fs) known: Atomic<bool>,
    pub(in crate::fs) notes: Pin<KBox<SpinLock<Option<Notes>>>>,
    pub(in crate::fs) task: Pin<KBox<SpinLock<Option<Background<Writer>>>>>,
    /// Damage was found by somebody else than a check, so that what `errors=` says is to be done.
    pub(in crate::fs) acts: Atomic<bool>,
    /// The tasks that look for damage, by their numbers.
    pub(in crate::fs) checkers: Pin<KBox<SpinLock<KVec<i32>>>>,
}

impl Errors {
    pub(in crate::fs) fn new(action: Action) -> Result<Errors> {
        Ok(Errors {
            action: Atomic::new(action as u32),
            known: Atomic::new(false),
            notes: KBox::pin_init(kernel::new_spinlock!(None, "Errors::notes"), GFP_KERNEL)?,
            task: KBox::pin_init(kernel::new_spinlock!(None, "Errors::task"), GFP_KERNEL)?,
            acts: Atomic::new(false),
            checkers: KBox::pin_init(kernel::new_spinlock!(KVec::new(), "Errors::checkers"), GFP_KERNEL)?,
        })
    }

    pub(in crate::fs) fn action(&self) -> Action {
        Action::of_number(self.action.load(Relaxed))
    }

    /// Whether there is damage.
    pub(in crate::fs) fn are_known(&self) -> bool {
        self.known.load(Relaxed)
    }

    /// The superblock tells of damage.
    pub(in crate::fs) fn set_known(&self) {
        self.known.store(true, Relaxed);
    }

    pub(in crate::fs) fn set_action(&self, action: Action) {
        self.action.store(action as u32, Relaxed);
    }
}

/// Brings notes to the superblock, and does what cannot be done where damage is found.
pub(in crate::fs) struct Writer {
    /// Keeps the superblock; the task ends before the volume is unmounted.
    pub(in crate::fs) root: InodeRef<Volume>,
}

/// Runs of blocks that were freed: transaction, first block and length.
pub(in crate::fs) type FreedRuns = KVVec<(u32, u64, u32)>;

/// The blocks that are to be discarded.
pub(in crate::fs) struct Freed {
    /// Blocks that are freed are noted.
    pub(in crate::fs) on: Atomic<bool>,
    /// The noted runs.
    pub(in crate::fs) runs: Pin<KBox<Mutex<FreedRuns>>>,
    pub(in crate::fs) task: Pin<KBox<SpinLock<Option<Background<Trimmer>>>>>,
}

impl Freed {
    fn new() -> Result<Freed> {
        Ok(Freed {
            on: Atomic::new(false),
            runs: KBox::pin_init(new_mutex!(KVVec::new(), "Freed::runs"), GFP_KERNEL)?,
            task: KBox::pin_init(new_spinlock!(None, "Freed::task"), GFP_KERNEL)?,
        })
    }
}

/// Discards what was freed.
pub(in crate::fs) struct Trimmer {
    /// Keeps the superblock; the task ends before the volume is unmounted.
    pub(in crate::fs) root: InodeRef<Volume>,
}

/// Where an inode is noted as an orphan.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) enum OrphanPlace {
    /// In this slot of the orphan file.
    Slot(u32),
    /// In the legacy list.
    List,
}

/// The blocks of the orphan file, each with the number of its free slots.
pub(in crate::fs) type OrphanBlocks = KVec<(KeptBuffer<Volume>, u32)>;

/// The inodes of a writable mount that are deleted or being cut and not done with: those in the
/// orphan file and those in the legacy list.
#[derive(Default)]
pub(in crate::fs) struct Orphans {
    /// Empty if there is no usable orphan file.
    pub(in crate::fs) blocks: OrphanBlocks,
    /// The block of the file from which to look for a free slot.
    pub(in crate::fs) next: u32,
    /// The register from which checksums of the file's blocks start.
    pub(in crate::fs) seed: u32,
    /// The first inode of the legacy list, 0 for none: `s_last_orphan`.
    pub(in crate::fs) first: u32,
    /// The inodes of the legacy list, each with the one before it and the one behind it, 0 for
    /// none.
    pub(in crate::fs) list: RBTree<u32, (u32, u32)>,
    /// The list on disk goes on behind this inode (0: behind `s_last_orphan`) with one that cannot
    /// be in it.
    pub(in crate::fs) cut_behind: Option<u32>,
}

/// What a volume knows of blocks with several owners.
pub(in crate::fs) struct SharedBlocks {
    /// There may be some; the superblock says so.
    pub(in crate::fs) on: Atomic<bool>,
    /// There may come to be some where there are none.
    pub(in crate::fs) allowed: Atomic<bool>,
    /// How many are about to make some. Held by who changes what the superblock says.
    pub(in crate::fs) sharers: Pin<KBox<Mutex<u32>>>,
}

impl SharedBlocks {
    pub(in crate::fs) fn new(on: bool) -> Result<SharedBlocks> {
        Ok(SharedBlocks {
            on: Atomic::new(on),
            allowed: Atomic::new(false),
            sharers: KBox::pin_init(new_mutex!(0, "SharedBlocks::sharers"), GFP_KERNEL)?,
        })
    }
}
