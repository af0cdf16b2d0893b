// SPDX-License-Identifier: GPL-2.0

//! Registering a file system type, mounting a volume, and the superblock (`struct super_block`).
//!
//! Sequence of a mount: `init_fs_context` creates the options, `parse_param` sets them, `get_tree`
//! opens the device and calls [`fill_super`], which calls [`FileSystem::open`] to read the volume,
//! attaches the result to the superblock, and then calls [`FileSystem::start`], which returns the
//! root directory.
//!
//! C headers: [`include/linux/fs.h`](srctree/include/linux/fs.h),
//! [`include/linux/fs_context.h`](srctree/include/linux/fs_context.h)

use super::{
    bindings,
    inode::Whole,
    operations::{FileSystem, Operations},
    vfs::Tables,
};
use core::{
    marker::PhantomData,
    ops::Deref,
    ptr::{self, NonNull},
};
use kernel::{
    error::{from_result, to_result},
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
    fn mounted(&self) -> &Mounted<V> {
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

    /// Makes the mounted volume read-only, after an error.
    pub(crate) fn set_read_only(&self) {
        // SAFETY: The superblock is live; writers check the flag for each operation.
        unsafe { bindings::rext4_set_read_only(self.as_ptr()) };
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
struct Mounted<V: FileSystem> {
    /// Set after the volume has been read.
    volume: SetOnce<Pin<KBox<V>>>,
    /// Dropped after the volume, because it releases the volume's inodes.
    completions: Completions,
    /// A journal is open.
    has_journal: Atomic<bool>,
    inodes: InodeCount,
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
struct Completions(NonNull<bindings::rext4_completions>);

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
    fn release(&self) {
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
fn wait_until_unused<V: FileSystem>(sb: &SuperBlock<V>) {
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

/// A registered file system type; unregistered on drop.
///
/// # Invariants
///
/// There is at most one at a time, so all inodes come from its cache and have its type.
pub(crate) struct Registration<V: FileSystem> {
    /// The registered types: one with its own name, and optionally one with another name.
    fs_types: [*mut bindings::file_system_type; 2],
    cache: *mut bindings::kmem_cache,
    volumes: PhantomData<V>,
}

// SAFETY: The registration can only be dropped, which is permitted on any thread.
unsafe impl<V: FileSystem> Send for Registration<V> {}
// SAFETY: A shared registration provides nothing.
unsafe impl<V: FileSystem> Sync for Registration<V> {}

/// The slab cache for inodes.
static mut INODES: *mut bindings::kmem_cache = ptr::null_mut();

/// A [`Registration`] exists, or is being created.
static REGISTERED: Atomic<bool> = Atomic::new(false);

impl<V: Operations> Registration<V> {
    /// Registers the type until the module is unloaded, and with `other` under that name as well.
    ///
    /// A volume can be mounted as soon as one name is registered, and from then on loading the
    /// module must not fail. The other name, which stock ext4 may already have registered,
    /// therefore comes first. If its own name is then found to be taken, the type is registered
    /// only under the other one.
    ///
    /// Fails with `EBUSY` if a type with this name, or another registration, exists.
    pub(crate) fn new(module: &'static ThisModule, other: Option<&'static CStr>) -> Result<Self> {
        if REGISTERED.xchg(true, Full) {
            return Err(EBUSY);
        }
        // SAFETY: The constructor only accesses the `inode` at the start of a `Whole`.
        let cache = unsafe {
            bindings::rext4_inode_cache(
                c"rext4_inode".as_char_ptr().cast(),
                size_of::<Whole<V>>() as u32,
                align_of::<Whole<V>>() as u32,
                Some(construct),
            )
        };
        if cache.is_null() {
            REGISTERED.store(false, Release);
            return Err(ENOMEM);
        }
        // SAFETY: No volume can be mounted before the type is registered, so no one reads this yet,
        // and by the type invariant no one else writes it.
        unsafe { INODES = cache };
        // INVARIANT: `REGISTERED` was not set before.
        let mut registration = Registration {
            fs_types: [ptr::null_mut(); 2],
            cache,
            volumes: PhantomData,
        };
        if let Some(other) = other {
            registration.add(module, other, 1)?;
        }
        match registration.add(module, V::NAME, 0) {
            Err(error) if other.is_none() => Err(error),
            _ => Ok(registration),
        }
    }

    /// Registers the type under one name.
    fn add(&mut self, module: &'static ThisModule, name: &'static CStr, slot: usize) -> Result {
        let fs_type = bindings::file_system_type {
            name: name.as_char_ptr().cast(),
            fs_flags: (bindings::FS_REQUIRES_DEV | bindings::FS_ALLOW_IDMAP) as i32,
            init_fs_context: Some(init_fs_context::<V>),
            kill_sb: Some(kill_sb::<V>),
            owner: module.as_ptr(),
            ..pin_init::zeroed()
        };
        let kept = self.fs_types.get_mut(slot).ok_or(EINVAL)?;
        // SAFETY: The location belongs to the module, and no one accesses it before the type is
        // registered. It is static, and the type is unregistered on drop, before the module is
        // unloaded.
        unsafe {
            let place = bindings::rext4_fs_type(slot > 0);
            place.write(fs_type);
            to_result(bindings::register_filesystem(place)).inspect_err(|_| {
                pr_err!("the file system type {} is registered already\n", name);
            })?;
            *kept = place;
        }
        Ok(())
    }
}

impl<V: FileSystem> Drop for Registration<V> {
    fn drop(&mut self) {
        // SAFETY: The module is being unloaded, or no name was registered, so no volume of the type
        // is mounted. This waits for inodes that are freed by RCU.
        unsafe {
            for fs_type in self.fs_types {
                if !fs_type.is_null() {
                    bindings::unregister_filesystem(fs_type);
                }
            }
            super::Hooks::flush();
            bindings::rcu_barrier();
            bindings::kmem_cache_destroy(self.cache);
        }
        REGISTERED.store(false, Release);
    }
}

/// Initializes the part of a slab object that stays initialized between uses.
///
/// # Safety
///
/// Must be called as the slab allocator calls it: with a new object of the inode cache.
unsafe extern "C" fn construct(object: *mut c_void) {
    // SAFETY: A `Whole` starts with its inode.
    unsafe { bindings::inode_init_once(object.cast()) };
}

/// # Safety
///
/// Must be called as the VFS calls it: with a context of our type.
unsafe extern "C" fn init_fs_context<V: Operations>(fc: *mut kernel::bindings::fs_context) -> c_int {
    let fc: *mut bindings::fs_context = fc.cast();
    from_result(|| {
        let options = KBox::new(V::Options::default(), GFP_KERNEL)?;
        // SAFETY: The context is ours to fill.
        unsafe {
            (*fc).fs_private = KBox::into_raw(options).cast();
            (*fc).ops = Contexts::<V>::OPS;
        }
        Ok(0)
    })
}

struct Contexts<V>(PhantomData<V>);

impl<V: Operations> Contexts<V> {
    const OPS: &'static bindings::fs_context_operations = &bindings::fs_context_operations {
        free: Some(Self::free),
        dup: None,
        parse_param: Some(Self::parse_param),
        parse_monolithic: None,
        get_tree: Some(Self::get_tree),
        reconfigure: Some(Self::reconfigure),
    };

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with a context that [`init_fs_context`] filled.
    unsafe extern "C" fn free(fc: *mut bindings::fs_context) {
        // SAFETY: `fs_private` is null or the box set by `init_fs_context`, and not used after
        // this.
        unsafe {
            let options = (*fc).fs_private.cast::<V::Options>();
            if !options.is_null() {
                drop(KBox::from_raw(options));
            }
        }
    }

    /// # Safety
    ///
    /// As for [`Self::free`], with a live parameter.
    unsafe extern "C" fn parse_param(
        fc: *mut bindings::fs_context,
        param: *mut bindings::fs_parameter,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The context holds our options, and no one else uses them.
            let options = unsafe { &mut *(*fc).fs_private.cast::<V::Options>() };
            // SAFETY: The key is a null-terminated string, and so is the value if the type says so.
            let (key, value) = unsafe {
                let string = (*param).__bindgen_anon_1.string;
                let is_string = (*param).type_() == bindings::fs_value_type_fs_value_is_string;
                (
                    CStr::from_char_ptr((*param).key.cast()),
                    (is_string && !string.is_null()).then(|| CStr::from_char_ptr(string.cast())),
                )
            };
            if V::option(options, key, value)? {
                Ok(0)
            } else {
                // The VFS checks whether it knows the option itself, and otherwise rejects it by
                // name.
                Ok(-(bindings::ENOPARAM as c_int))
            }
        })
    }

    /// # Safety
    ///
    /// As for [`Self::free`].
    unsafe extern "C" fn get_tree(fc: *mut bindings::fs_context) -> c_int {
        // SAFETY: The VFS calls `fill_super` with this context.
        unsafe { bindings::get_tree_bdev(fc, Some(fill_super::<V>)) }
    }

    /// # Safety
    ///
    /// As for [`Self::free`], for a mounted volume.
    unsafe extern "C" fn reconfigure(fc: *mut bindings::fs_context) -> c_int {
        from_result(|| {
            // SAFETY: The context refers to the root of one of our mounted volumes and holds our
            // options.
            let (sb, options, flags) = unsafe {
                let sb = (*(*fc).root).d_sb;
                (
                    SuperBlock::<V>::from_ptr(sb),
                    &*(*fc).fs_private.cast::<V::Options>(),
                    (*fc).sb_flags,
                )
            };
            let read_only = flags as usize & bindings::REXT4_SB_RDONLY != 0;
            if read_only {
                // Freeing these inodes needs the journal.
                sb.mounted().completions.release();
            }
            sb.volume()?.reconfigure(sb, options, read_only)?;
            Ok(0)
        })
    }
}

/// # Safety
///
/// Must be called as the VFS calls it: with a new superblock of our type and the context it is made
/// for.
unsafe extern "C" fn fill_super<V: Operations>(
    sb: *mut bindings::super_block,
    fc: *mut bindings::fs_context,
) -> c_int {
    from_result(|| {
        // SAFETY: The superblock is of `V`'s type; `kill_sb` drops this before the superblock is
        // freed.
        let completions = unsafe { Completions::new::<V>(sb) }?;
        let mounted = KBox::new(
            Mounted::<V> {
                volume: SetOnce::new(),
                completions,
                has_journal: Atomic::new(false),
                inodes: InodeCount(Atomic::new(0)),
            },
            GFP_KERNEL,
        )?;
        // SAFETY: The superblock is new and ours to initialize. From here on, `kill_sb` frees
        // `s_fs_info`.
        unsafe {
            (*sb).s_fs_info = KBox::into_raw(mounted).cast();
            (*sb).s_op = Tables::<V>::SUPER;
            (*sb).s_export_op = ptr::from_ref(Tables::<V>::EXPORT).cast();
            (*sb).s_xattr = Tables::<V>::ATTRIBUTES.as_ptr().cast();
            (*sb).s_magic = V::MAGIC as usize;
            // The VFS then evaluates access control lists, and leaves applying the umask to
            // `Inherited::new`.
            (*sb).s_flags |= bindings::REXT4_SB_POSIXACL;
        }
        // SAFETY: The context holds our options; the superblock is of our type.
        let (options, shared) = unsafe {
            (
                &*(*fc).fs_private.cast::<V::Options>(),
                SuperBlock::<V>::from_ptr(sb),
            )
        };
        let opened =
            V::open(&mut NewSuperBlock(shared), options).inspect_err(|_| wait_until_unused(shared))?;
        shared.mounted().volume.populate(opened);
        let root = shared
            .volume()?
            .start(shared)
            .and_then(|root| root.into_raw_of(shared));
        let root = root.inspect_err(|_| stop(shared))?;
        // SAFETY: This takes the reference to the root, also when it fails.
        let dentry = unsafe { bindings::d_make_root(root) };
        if dentry.is_null() {
            stop(shared);
            return Err(ENOMEM);
        }
        // SAFETY: The superblock is ours to initialize.
        unsafe { (*sb).s_root = dentry };
        Ok(0)
    })
}

/// # Safety
///
/// Must be called as the VFS calls it: when the last mount of the superblock went, or filling it
/// failed.
unsafe extern "C" fn kill_sb<V: FileSystem>(sb: *mut bindings::super_block) {
    // SAFETY: The volume is dropped after everything that could access it; `s_fs_info` is null or
    // the box set by `fill_super`.
    unsafe {
        bindings::kill_block_super(sb);
        let mounted = (*sb).s_fs_info.cast::<Mounted<V>>();
        (*sb).s_fs_info = ptr::null_mut();
        if !mounted.is_null() {
            drop(KBox::from_raw(mounted));
        }
    }
}

/// Allocates an inode.
///
/// # Safety
///
/// Must be called as the VFS calls it: with a superblock of our type.
pub(super) unsafe extern "C" fn alloc_inode<V: FileSystem>(
    sb: *mut bindings::super_block,
) -> *mut bindings::inode {
    // SAFETY: The cache exists as long as the type is registered.
    let whole = unsafe { bindings::rext4_inode_alloc(sb, INODES) }.cast::<Whole<V>>();
    if !whole.is_null() {
        // SAFETY: The object is new, and contains nothing that must be dropped. The superblock is
        // live and of our type.
        unsafe {
            Whole::init(whole);
            SuperBlock::<V>::from_ptr(sb)
                .mounted()
                .inodes
                .0
                .fetch_add(1, Relaxed);
        }
    }
    whole.cast()
}

/// Drops the file system's data of an inode. Unlike [`free_inode`], this may sleep.
///
/// # Safety
///
/// Must be called as the VFS calls it: with an inode of [`alloc_inode`] that was evicted, or whose
/// making failed.
pub(super) unsafe extern "C" fn destroy_inode<V: FileSystem>(inode: *mut bindings::inode) {
    // SAFETY: The data was initialized by `alloc_inode`. No reference is left, and RCU readers do
    // not access the data. Unmounting waits for the inode, so the superblock is live until it is no
    // longer counted; the VFS does not access it after this.
    unsafe {
        let sb = (*inode).i_sb;
        Whole::drop_data(inode.cast::<Whole<V>>());
        SuperBlock::<V>::from_ptr(sb)
            .mounted()
            .inodes
            .0
            .fetch_sub(1, Release);
    }
}

/// Frees an inode after an RCU grace period. Runs as an RCU callback, which must not sleep.
///
/// # Safety
///
/// Must be called as the VFS calls it: with an inode of [`alloc_inode`] for which [`destroy_inode`]
/// ran.
pub(super) unsafe extern "C" fn free_inode(inode: *mut bindings::inode) {
    // SAFETY: The object came from this cache, is not in use, and contains nothing that must be
    // dropped.
    unsafe { bindings::kmem_cache_free(INODES, inode.cast()) };
}
