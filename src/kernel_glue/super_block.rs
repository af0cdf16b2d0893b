// SPDX-License-Identifier: GPL-2.0

//! The superblock of a mounted volume (`struct super_block`), and what is attached to it.
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use super::{
    bindings,
    operations::{FileSystem, Operations},
    vfs::Tables,
};
use core::{
    marker::PhantomData,
    ops::Deref,
    ptr::{self, NonNull},
};
use kernel::{
    error::to_result,
    prelude::*,
    str::CStr,
    sync::{
        atomic::{Acquire, Atomic, Full, Relaxed, Release},
        SetOnce,
    },
    types::Opaque,
};

/// The values for `statfs`, in blocks, inodes and bytes.
#[allow(missing_docs)]
pub(crate) struct Statistics {
    pub(crate) block_size: u32,
    pub(crate) blocks: u64,
    pub(crate) free_blocks: u64,
    /// Free blocks available to unprivileged users.
    pub(crate) available_blocks: u64,
    pub(crate) inodes: u64,
    pub(crate) free_inodes: u64,
    /// Maximum length of a name in bytes.
    pub(crate) name_length: u32,
    /// An identifier of the volume.
    pub(crate) id: u64,
}

/// The borrowed superblock of a mounted volume.
///
/// # Invariants
///
/// It is a superblock of the type registered by `V`, and it is live while it is borrowed.
#[repr(transparent)]
pub(crate) struct SuperBlock<V: FileSystem>(Opaque<bindings::super_block>, PhantomData<V>);

impl<V: FileSystem> SuperBlock<V> {
    /// Blocks every task that is about to change something on the volume, and writes back dirty
    /// data, until the guard is dropped. The journal continues, and so do changes that do not take
    /// the VFS's write protection. Must not be called while writers are held already, which would
    /// deadlock.
    ///
    /// # Errors
    ///
    /// `EBUSY` when the volume is being unmounted, or the error of the writeback.
    pub(crate) fn hold_writers(&self) -> Result<HeldWriters<V>> {
        // SAFETY: The superblock is live, and in use by the caller.
        to_result(unsafe { bindings::rext4_hold_writers(self.as_ptr()) })?;
        // INVARIANT: Writers are held, and a reference to the superblock was taken.
        Ok(HeldWriters(NonNull::from(&self.0).cast(), PhantomData))
    }

    /// Borrows a superblock from a pointer.
    ///
    /// # Safety
    ///
    /// `ptr` must point to a superblock of the type registered by `V`, live for `'a`.
    pub(super) unsafe fn from_ptr<'a>(ptr: *mut bindings::super_block) -> &'a Self {
        // SAFETY: `Self` is a transparent wrapper, and the caller guarantees the rest.
        unsafe { &*ptr.cast() }
    }

    /// Returns the C superblock.
    pub(super) fn as_ptr(&self) -> *mut bindings::super_block {
        self.0.get()
    }

    /// Returns the volume and its worker.
    pub(super) fn mounted(&self) -> &Mounted<V> {
        // SAFETY: `s_fs_info` is the box set by `fill_super` before anyone could access the
        // superblock as one of ours, and is dropped only after the last inode.
        unsafe { &*(*self.as_ptr()).s_fs_info.cast() }
    }

    /// Returns the volume. Fails with `EIO` before [`FileSystem::open`] has returned.
    pub(crate) fn volume(&self) -> Result<&V> {
        let volume = self.mounted().volume.as_ref().ok_or(EIO)?;
        Ok(volume)
    }

    /// Records that the volume has a journal, of which there may be only one at a time.
    ///
    /// # Errors
    ///
    /// `EBUSY` if it has one already.
    pub(super) fn count_journal(&self) -> Result<CountedJournal> {
        let has_journal = &self.mounted().has_journal;
        if has_journal.xchg(true, Full) {
            return Err(EBUSY);
        }
        // INVARIANT: The flag was just set.
        Ok(CountedJournal(NonNull::from(has_journal)))
    }

    /// Returns the volume's worker, which lives as long as the superblock.
    pub(super) fn completions(&self) -> *mut bindings::rext4_completions {
        self.mounted().completions.0.as_ptr()
    }

    /// Returns the device.
    pub(super) fn device(&self) -> *mut bindings::block_device {
        // SAFETY: The superblock is live by the type invariant, and its device does not change.
        unsafe { (*self.as_ptr()).s_bdev }
    }

    /// Returns the name of the device, for messages.
    pub(crate) fn name(&self) -> &CStr {
        // SAFETY: `s_id` is null-terminated, and set before anyone accesses the superblock.
        unsafe { CStr::from_char_ptr((*self.as_ptr()).s_id.as_ptr().cast()) }
    }

    /// Returns false if a message that could repeat for every inode must not be logged because of
    /// the rate limit. The number of suppressed messages is logged with the next one, or by
    /// [`log_left_out`](Self::log_left_out).
    pub(crate) fn may_log() -> bool {
        // SAFETY: It may be called in any context.
        unsafe { bindings::rext4_may_log() }
    }

    /// Logs the number of suppressed messages, if there are any.
    pub(crate) fn log_left_out() {
        // SAFETY: It may be called anywhere.
        unsafe { bindings::rext4_log_left_out() }
    }

    /// Returns true if it is mounted read-only.
    pub(crate) fn is_read_only(&self) -> bool {
        self.flags() & bindings::REXT4_SB_RDONLY != 0
    }

    /// Returns `s_flags`, which a remount or an error may change at any time.
    pub(super) fn flags(&self) -> usize {
        // SAFETY: The superblock is live by the type invariant, and the flags are read with a
        // single load.
        unsafe { ptr::addr_of!((*self.as_ptr()).s_flags).read_volatile() }
    }

    /// Returns true if the device itself is read-only.
    pub(crate) fn device_is_read_only(&self) -> bool {
        // SAFETY: The superblock is live, and so is its device.
        unsafe { bindings::rext4_sb_device_read_only(self.as_ptr()) }
    }

    /// Flushes the device's write cache. Fails with `EIO`.
    pub(crate) fn flush_device(&self) -> Result {
        // SAFETY: The superblock is live, and so is its device.
        to_result(unsafe { bindings::rext4_flush_device(self.as_ptr()) })
    }

    /// Returns true if an inode is in the cache and not being evicted. The answer can change unless
    /// the caller prevents the inode from being loaded.
    pub(crate) fn is_cached(&self, ino: u32) -> bool {
        self.cached(ino, 1) != 0
    }

    /// Returns which of up to 64 inodes from `first` on are in the cache, as a bit mask; the lowest
    /// bit is the first inode.
    pub(crate) fn cached(&self, first: u32, count: u32) -> u64 {
        // SAFETY: The superblock is live.
        unsafe { bindings::rext4_inodes_cached(self.as_ptr(), first.into(), count) }
    }

    /// Returns which of up to 64 inodes from `first` on are in the cache and set up, as a bit mask
    /// like [`cached`](Self::cached).
    pub(crate) fn live(&self, first: u32, count: u32) -> u64 {
        // SAFETY: The superblock is live.
        unsafe { bindings::rext4_inodes_live(self.as_ptr(), first.into(), count) }
    }

    /// Starts reading blocks (of the volume) that will be needed soon.
    pub(crate) fn read_ahead(&self, block: u64, count: u32) {
        // SAFETY: The superblock is live; blocks beyond the device are ignored.
        unsafe { bindings::rext4_read_ahead(self.as_ptr(), block, count) };
    }

    /// Returns true if a block of the volume is in the buffer cache.
    pub(crate) fn is_block_cached(&self, block: u64) -> bool {
        // SAFETY: The superblock is live; a block beyond the device is never cached.
        unsafe { bindings::rext4_block_is_cached(self.as_ptr(), block) }
    }

    /// Takes freeze protection for the file system's own changes, until the guard is dropped. Must
    /// be taken before a handle is started.
    pub(crate) fn internal_write(&self) -> InternalWrite<'_, V> {
        // SAFETY: The superblock is live.
        unsafe { bindings::rext4_start_internal_write(self.as_ptr()) };
        InternalWrite(self)
    }

    /// Writes back all dirty data and waits for completion. Must be called during a remount, with
    /// `s_umount` held.
    pub(crate) fn sync_all(&self) -> Result {
        // SAFETY: The superblock is live. Without `s_umount`, the function only warns.
        to_result(unsafe { bindings::sync_filesystem(self.as_ptr()) })
    }

    /// Like [`internal_write`](Self::internal_write), but does not wait: returns `None` if the
    /// volume is frozen.
    pub(crate) fn try_internal_write(&self) -> Option<InternalWrite<'_, V>> {
        // SAFETY: The superblock is live.
        unsafe { bindings::rext4_try_internal_write(self.as_ptr()) }.then_some(InternalWrite(self))
    }

    /// Panics, as requested by `errors=panic`, unless the machine is already shutting down.
    pub(crate) fn panic(&self) {
        // SAFETY: The name is null-terminated.
        unsafe { bindings::rext4_panic(self.name().as_char_ptr().cast()) };
    }

    /// Returns the size of the device in bytes.
    pub(crate) fn device_bytes(&self) -> u64 {
        // SAFETY: The superblock is live, and so is its device.
        unsafe { bindings::rext4_sb_bytes(self.as_ptr()) }
    }

    /// Returns the device number, as an identifier for `statfs`.
    pub(crate) fn device_id(&self) -> u64 {
        // SAFETY: The superblock is live, and so is its device.
        unsafe { bindings::rext4_sb_device_id(self.as_ptr()) }
    }

    /// Returns the number of 512-byte sectors written to the device since it was added, modulo
    /// 2^64.
    pub(crate) fn sectors_written(&self) -> u64 {
        // SAFETY: The superblock is live, and so is its device.
        unsafe { bindings::rext4_sb_sectors_written(self.as_ptr()) }
    }
}

/// A superblock that is being filled: no one else uses it or its device yet.
pub(crate) struct NewSuperBlock<'a, V: FileSystem>(&'a SuperBlock<V>);

impl<'a, V: FileSystem> NewSuperBlock<'a, V> {
    /// Borrows a superblock that is being filled.
    ///
    /// # Safety
    ///
    /// No one else may use the superblock or its device.
    pub(super) unsafe fn new(sb: &'a SuperBlock<V>) -> Self {
        NewSuperBlock(sb)
    }
}

impl<V: FileSystem> NewSuperBlock<'_, V> {
    /// Sets the block size in bytes. There must be no buffers, inodes or journal yet, which would
    /// have the old size.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the device's sectors are larger, and `EBUSY` when the volume has inodes or a
    /// journal.
    pub(crate) fn set_block_size(&mut self, bytes: u32) -> Result {
        let mounted = self.mounted();
        if mounted.has_journal.load(Acquire) || mounted.inodes.0.load(Acquire) != 0 {
            return Err(EBUSY);
        }
        // SAFETY: The superblock is being filled, so no one else uses its device. A buffer borrows
        // either `self`, of which this has a unique reference, or an inode, of which there is none.
        match unsafe { bindings::sb_set_blocksize(self.0.as_ptr(), bytes as i32) } {
            0 => Err(EINVAL),
            _ => Ok(()),
        }
    }

    /// Sets the UUID that the VFS reports for the volume.
    pub(crate) fn set_identity(&self, uuid: &[u8; 16]) {
        // SAFETY: The superblock is being filled, and a UUID has 16 bytes.
        unsafe { bindings::rext4_set_identity(self.0.as_ptr(), uuid.as_ptr()) };
    }

    /// Sets the limits of times and sizes. Seconds since 1970, bytes. Times are whole seconds if
    /// `coarse`.
    pub(crate) fn set_limits(&self, earliest: i64, latest: i64, coarse: bool, max_bytes: u64) {
        // SAFETY: The superblock is being filled, so no one else accesses it.
        unsafe {
            let sb = self.0.as_ptr();
            (*sb).s_time_gran = if coarse { 1_000_000_000 } else { 1 };
            (*sb).s_time_min = earliest;
            (*sb).s_time_max = latest;
            (*sb).s_maxbytes = max_bytes.min(i64::MAX as u64) as i64;
        }
    }
}

impl<V: FileSystem> Deref for NewSuperBlock<'_, V> {
    type Target = SuperBlock<V>;

    fn deref(&self) -> &SuperBlock<V> {
        self.0
    }
}

/// Holds the writers of a volume until it is dropped, by any task.
///
/// # Invariants
///
/// The writers are held, and we own an active reference to the superblock.
#[must_use]
pub(crate) struct HeldWriters<V: FileSystem>(NonNull<bindings::super_block>, PhantomData<fn() -> V>);

// SAFETY: Any task may release the writers.
unsafe impl<V: FileSystem> Send for HeldWriters<V> {}

impl<V: FileSystem> HeldWriters<V> {
    /// Returns true if the writers of this superblock are held.
    pub(super) fn are_of(&self, sb: *mut bindings::super_block) -> bool {
        ptr::eq(self.0.as_ptr(), sb)
    }
}

impl<V: FileSystem> Drop for HeldWriters<V> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the writers are held, and we own the reference, which is
        // released once.
        unsafe { bindings::rext4_release_writers(self.0.as_ptr()) };
    }
}

/// The volume of a superblock, and its worker (`s_fs_info`).
pub(super) struct Mounted<V: FileSystem> {
    /// Set after the volume has been read.
    pub(super) volume: SetOnce<Pin<KBox<V>>>,
    /// Dropped after the volume, because it releases the volume's inodes.
    pub(super) completions: Completions,
    /// A journal is open.
    has_journal: Atomic<bool>,
    inodes: InodeCount,
}

impl<V: Operations> Mounted<V> {
    /// Creates the attachment of a superblock that is being filled. Fails with `ENOMEM`.
    ///
    /// # Safety
    ///
    /// `sb` must be a superblock of `V` that outlives the attachment.
    pub(super) unsafe fn new(sb: *mut bindings::super_block) -> Result<KBox<Self>> {
        let mounted = Mounted {
            volume: SetOnce::new(),
            // SAFETY: Guaranteed by the caller.
            completions: unsafe { Completions::new::<V>(sb) }?,
            has_journal: Atomic::new(false),
            inodes: InodeCount(Atomic::new(0)),
        };
        Ok(KBox::new(mounted, GFP_KERNEL)?)
    }
}

impl<V: FileSystem> Mounted<V> {
    /// Counts an inode that was allocated.
    pub(super) fn add_inode(&self) {
        self.inodes.0.fetch_add(1, Relaxed);
    }

    /// Counts an inode whose data was dropped. After this, the volume may be unmounted.
    pub(super) fn remove_inode(&self) {
        self.inodes.0.fetch_sub(1, Release);
    }
}

/// The number of inodes of the superblock that exist, in a cache line of its own. The list of the
/// superblock's inodes does not contain those that are being evicted.
#[repr(align(64))]
struct InodeCount(Atomic<i64>);

/// Records that a volume has a journal, until it is dropped.
///
/// # Invariants
///
/// The pointer is the flag `has_journal` of a mounted volume, and the flag was set for this value.
pub(super) struct CountedJournal(NonNull<Atomic<bool>>);

// SAFETY: The flag is atomic.
unsafe impl Send for CountedJournal {}
// SAFETY: As for `Send`.
unsafe impl Sync for CountedJournal {}

impl Drop for CountedJournal {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the flag is live, since unmounting waits until it is clear.
        unsafe { self.0.as_ref() }.store(false, Release);
    }
}

/// The worker that completes a volume's writeback.
///
/// # Invariants
///
/// The pointer was returned by `rext4_completions_new` and has not been freed.
pub(super) struct Completions(NonNull<bindings::rext4_completions>);

// SAFETY: It may be freed by any task.
unsafe impl Send for Completions {}
// SAFETY: Its lock protects all shared state.
unsafe impl Sync for Completions {}

impl Completions {
    /// Starts the worker. Fails with `ENOMEM`.
    ///
    /// # Safety
    ///
    /// `sb` must be a superblock of `V` that outlives the worker.
    unsafe fn new<V: Operations>(sb: *mut bindings::super_block) -> Result<Self> {
        // SAFETY: Guaranteed by the caller; the function exists as long as the module.
        let new = unsafe { bindings::rext4_completions_new(sb, Some(Tables::<V>::finish)) };
        // INVARIANT: It is new.
        NonNull::new(new).map(Completions).ok_or(ENOMEM)
    }

    /// Waits until the worker has released all inodes that were left to it. No handle may be open.
    pub(super) fn release(&self) {
        // SAFETY: It is live by the type invariant.
        unsafe { bindings::rext4_completions_release(self.0.as_ptr()) };
    }
}

impl Drop for Completions {
    fn drop(&mut self) {
        // SAFETY: It is live by the type invariant, and not used after this.
        unsafe { bindings::rext4_completions_free(self.0.as_ptr()) };
    }
}

/// Makes the volume release all its resources, including the inodes left to the worker.
pub(super) fn stop<V: FileSystem>(sb: &SuperBlock<V>) {
    let Ok(volume) = sb.volume() else { return };
    // Once before the journal goes, which freeing an inode needs.
    sb.mounted().completions.release();
    volume.stop(sb);
    wait_until_unused(sb);
}

/// Waits until the volume's journal and all of its inodes are gone, since each leads to the
/// superblock. The superblock is not active, so an inode is evicted with its last reference, which
/// any task may drop: one that is being evicted still counts until its data has been dropped.
pub(super) fn wait_until_unused<V: FileSystem>(sb: &SuperBlock<V>) {
    let mut waited = 0;
    loop {
        // Ends the inodes that the volume dropped within handles.
        sb.mounted().completions.release();
        let has_journal = sb.mounted().has_journal.load(Acquire);
        if !has_journal && sb.mounted().inodes.0.load(Acquire) == 0 {
            return;
        }
        if waited == 10_000 {
            pr_err!(
                "{}: unmounting waits for the {}, which is in use\n",
                sb.name(),
                if has_journal { "journal" } else { "last inode" }
            );
        }
        waited += 1;
        super::pause(1);
    }
}

/// Freeze protection for the file system's own writes, held until it is dropped.
pub(crate) struct InternalWrite<'a, V: FileSystem>(&'a SuperBlock<V>);

impl<V: FileSystem> Drop for InternalWrite<'_, V> {
    fn drop(&mut self) {
        // SAFETY: The superblock is live, and `internal_write` took the protection.
        unsafe { bindings::rext4_end_internal_write(self.0.as_ptr()) };
    }
}
