// SPDX-License-Identifier: GPL-2.0

//! Inodes (`struct inode`), and the file system's own data for each.
//!
//! An inode and the file system's data for it are one allocation, [`Whole`], created when the VFS
//! requests a new inode. The data is dropped after the inode has been evicted, in a context that
//! may sleep; the memory is freed after an RCU grace period. RCU readers access only the inode.
//!
//! Dropping the last reference to an inode evicts it, which starts a handle and waits for its
//! writeback. If a handle is open when a reference is dropped, this is left to a worker of the
//! volume.
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use super::{
    bindings,
    operations::{FileSystem, Operations},
    vfs::Tables,
    SuperBlock,
};
use core::{
    cell::UnsafeCell,
    marker::PhantomData,
    mem::{ManuallyDrop, MaybeUninit},
    ops::Deref,
    ptr::{self, NonNull},
};
use kernel::{
    prelude::*,
    sync::atomic::{Acquire, Atomic, Full, Release},
    types::Opaque,
};

/// A point in time: seconds since 1970, and nanoseconds.
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub(crate) struct Timestamp {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// The fields of a VFS inode, as read by the file system.
#[allow(missing_docs)]
pub(crate) struct InodeFields {
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) links: u32,
    /// In bytes.
    pub(crate) size: u64,
    /// In units of 512 bytes.
    pub(crate) sectors: u64,
    pub(crate) generation: u32,
    pub(crate) atime: Timestamp,
    pub(crate) ctime: Timestamp,
    pub(crate) mtime: Timestamp,
    /// `S_*` flags.
    pub(crate) sync: bool,
    pub(crate) append: bool,
    pub(crate) immutable: bool,
    pub(crate) noatime: bool,
    pub(crate) dirsync: bool,
    /// The device number of a character or block device, in the encoding of `MKDEV`.
    pub(crate) device: u32,
}

/// A borrowed inode of a file system.
///
/// # Invariants
///
/// It is the `vfs` part of a [`Whole<V>`], and it is live while it is borrowed: either a reference
/// to it exists, or it is being evicted by the lender.
#[repr(transparent)]
pub(crate) struct Inode<V: FileSystem>(Opaque<bindings::inode>, PhantomData<V>);

/// An inode and the file system's data for it.
#[repr(C)]
pub(super) struct Whole<V: FileSystem> {
    vfs: Opaque<bindings::inode>,
    /// Used when the release of an [`InodeRef`] is left to a worker.
    release: Opaque<bindings::rext4_release>,
    /// Set once, after the inode's fields; empty in an inode that could not be read.
    data: Slot<V::InodeData>,
}

/// A place for a value that is initialized in place.
///
/// # Invariants
///
/// `value` is initialized, and pinned, if `ready` is set.
struct Slot<T> {
    ready: Atomic<bool>,
    value: UnsafeCell<MaybeUninit<T>>,
}

impl<T> Slot<T> {
    /// Creates an empty slot.
    const fn new() -> Self {
        Slot {
            ready: Atomic::new(false),
            value: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }

    /// Initializes the value.
    ///
    /// # Safety
    ///
    /// The slot must be empty and pinned, and must not be filled concurrently.
    unsafe fn fill(&self, value: impl PinInit<T>) {
        // SAFETY: The value is not accessed before `ready` is set, and it is pinned.
        let Ok(()) = unsafe { value.__pinned_init(self.value.get().cast()) };
        // INVARIANT: The value was just initialized.
        self.ready.store(true, Release);
    }

    /// Returns the value, if there is one.
    fn get(&self) -> Option<&T> {
        if !self.ready.load(Acquire) {
            return None;
        }
        // SAFETY: By the type invariant the value is initialized. It is dropped only through an
        // exclusive reference.
        Some(unsafe { &*self.value.get().cast() })
    }

    /// Drops the value, if there is one.
    fn clear(&mut self) {
        if self.ready.xchg(false, Full) {
            // SAFETY: By the type invariant the value is initialized. It is not accessible any
            // more.
            unsafe { self.value.get_mut().assume_init_drop() };
        }
    }
}

impl<V: FileSystem> Whole<V> {
    /// Initializes the fields other than the VFS inode.
    ///
    /// # Safety
    ///
    /// `whole` must be valid for writes, and must not contain anything that has to be dropped.
    pub(super) unsafe fn init(whole: *mut Self) {
        // SAFETY: Guaranteed by the caller.
        unsafe { ptr::addr_of_mut!((*whole).data).write(Slot::new()) };
    }

    /// Drops the data.
    ///
    /// # Safety
    ///
    /// `whole` must be initialized, and its data must not be in use.
    pub(super) unsafe fn drop_data(whole: *mut Self) {
        // SAFETY: Guaranteed by the caller.
        unsafe { (*whole).data.clear() };
    }
}

/// Drops a reference to an inode, or leaves that to a worker if it must not be done in this
/// context.
///
/// # Safety
///
/// `inode` must belong to a superblock of `V`, and the caller must own a reference, which it gives
/// up.
unsafe fn put<V: FileSystem>(inode: *mut bindings::inode) {
    // SAFETY: The inode is live and the first field of a `Whole<V>`. Its superblock and the
    // completions of that outlive it.
    unsafe {
        let completions = SuperBlock::<V>::from_ptr((*inode).i_sb).completions();
        let release = (*inode.cast::<Whole<V>>()).release.get();
        bindings::rext4_inode_put(inode, release, completions);
    }
}

impl<V: FileSystem> Inode<V> {
    /// Borrows an inode from a pointer.
    ///
    /// # Safety
    ///
    /// `ptr` must point to an inode of a superblock of `V` that is live for `'a`.
    pub(super) unsafe fn from_ptr<'a>(ptr: *mut bindings::inode) -> &'a Self {
        // SAFETY: `Self` is a transparent wrapper, and the caller guarantees the rest.
        // INVARIANT: All inodes of such a superblock were created by `alloc_inode` as the first
        // field of a `Whole<V>`.
        unsafe { &*ptr.cast() }
    }

    /// Returns the C inode.
    pub(super) fn as_ptr(&self) -> *mut bindings::inode {
        self.0.get()
    }

    /// Returns the inode number.
    pub(crate) fn number(&self) -> u32 {
        // SAFETY: The number does not change; ext4's inode numbers have 32 bits.
        unsafe { (*self.as_ptr()).i_ino as u32 }
    }

    /// Returns the size in bytes.
    pub(crate) fn size(&self) -> u64 {
        // SAFETY: The inode is live by the type invariant. On 64-bit machines the size is read
        // atomically.
        let size = unsafe { core::ptr::addr_of!((*self.as_ptr()).i_size).read_volatile() };
        size.max(0) as u64
    }

    /// Returns true if it is a directory.
    pub(crate) fn is_directory(&self) -> bool {
        u32::from(self.mode()) & bindings::S_IFMT == bindings::S_IFDIR
    }

    /// Returns true if it is a regular file.
    pub(crate) fn is_file(&self) -> bool {
        u32::from(self.mode()) & bindings::S_IFMT == bindings::S_IFREG
    }

    /// Returns type and permissions.
    pub(crate) fn mode(&self) -> u16 {
        // SAFETY: The inode is live by the type invariant. A task that has locked it may be
        // changing the mode.
        unsafe { ptr::addr_of!((*self.as_ptr()).i_mode).read_volatile() }
    }

    /// Returns the owner, as an id on the volume.
    pub(crate) fn uid(&self) -> u32 {
        // SAFETY: The inode is live by the type invariant.
        unsafe { bindings::rext4_inode_uid(self.as_ptr()) }
    }

    /// Returns the group, as an id on the volume.
    pub(crate) fn gid(&self) -> u32 {
        // SAFETY: The inode is live by the type invariant.
        unsafe { bindings::rext4_inode_gid(self.as_ptr()) }
    }

    /// Returns the generation.
    pub(crate) fn generation(&self) -> u32 {
        // SAFETY: The inode is live by the type invariant. A task that has locked it may be
        // changing the generation.
        unsafe { ptr::addr_of!((*self.as_ptr()).i_generation).read_volatile() }
    }

    /// Returns the number of 512-byte sectors that it uses.
    pub(crate) fn sectors(&self) -> u64 {
        // SAFETY: The inode is live by the type invariant.
        unsafe { core::ptr::addr_of!((*self.as_ptr()).i_blocks).read_volatile() }
    }

    /// Changes the count of 512-byte sectors. If the result would be negative, sets it to 0 and
    /// returns false.
    #[must_use]
    pub(crate) fn add_sectors(&self, sectors: i64) -> bool {
        // SAFETY: The inode is live by the type invariant.
        unsafe { bindings::rext4_inode_add_sectors(self.as_ptr(), sectors) }
    }

    /// Increases the size to `bytes` if it is smaller. For data that is already on disk: direct
    /// writes, and files written only by the file system itself.
    pub(crate) fn extend_size(&self, bytes: u64) {
        // SAFETY: The inode is live by the type invariant. The helper takes its spinlock.
        unsafe { bindings::rext4_inode_extend_size(self.as_ptr(), bytes.min(i64::MAX as u64) as i64) };
    }

    /// Returns the link count.
    pub(crate) fn links(&self) -> u32 {
        // SAFETY: As for `mode`.
        unsafe { ptr::addr_of!((*self.as_ptr()).__bindgen_anon_1.i_nlink).read_volatile() }
    }

    /// Returns change, modification and access time.
    pub(crate) fn times(&self) -> [Timestamp; 3] {
        let (mut seconds, mut nanoseconds) = ([0i64; 3], [0u32; 3]);
        // SAFETY: The inode is live by the type invariant, and there is room for three times.
        unsafe {
            bindings::rext4_inode_get_times(self.as_ptr(), seconds.as_mut_ptr(), nanoseconds.as_mut_ptr());
        }
        core::array::from_fn(|i| Timestamp {
            seconds: seconds[i],
            nanoseconds: nanoseconds[i],
        })
    }

    /// Sets the change time to now, and with `modified` also the modification time.
    pub(crate) fn touch(&self, modified: bool) {
        // SAFETY: The inode is live by the type invariant.
        unsafe { bindings::rext4_inode_touch(self.as_ptr(), modified) };
    }

    /// Returns true if changes of names in it must reach the disk immediately: `IS_DIRSYNC`.
    pub(crate) fn is_dir_sync(&self) -> bool {
        self.has_flags(
            bindings::S_SYNC | bindings::S_DIRSYNC,
            bindings::REXT4_SB_SYNCHRONOUS | bindings::REXT4_SB_DIRSYNC,
        )
    }

    /// Returns true if changes to it must reach the disk immediately: `IS_SYNC`.
    pub(crate) fn is_sync(&self) -> bool {
        self.has_flags(bindings::S_SYNC, bindings::REXT4_SB_SYNCHRONOUS)
    }

    /// Returns true if the inode has one of the flags `own`, or its superblock one of `of_volume`.
    fn has_flags(&self, own: u32, of_volume: usize) -> bool {
        // SAFETY: The inode is live by the type invariant, and the flags are read with a single
        // load.
        let flags = unsafe { ptr::addr_of!((*self.as_ptr()).i_flags).read_volatile() };
        flags & own != 0 || self.super_block().flags() & of_volume != 0
    }

    /// Locks the inode (`i_rwsem`) as the VFS does to change a directory.
    pub(crate) fn lock(&self) -> InodeLock<'_, V> {
        // SAFETY: The inode is live by the type invariant, and locked before the guard is created.
        unsafe {
            bindings::rext4_inode_lock(self.as_ptr());
            InodeLock::locked(self)
        }
    }

    /// Returns true if access control lists apply to it.
    pub(crate) fn has_access_lists(&self) -> bool {
        self.super_block().flags() & bindings::REXT4_SB_POSIXACL != 0
    }

    /// Returns true if it belongs to this superblock.
    fn is_of(&self, sb: &SuperBlock<V>) -> bool {
        ptr::eq(self.super_block(), sb)
    }

    /// Returns its superblock.
    pub(crate) fn super_block(&self) -> &SuperBlock<V> {
        // SAFETY: The superblock outlives its inodes.
        unsafe { SuperBlock::from_ptr((*self.as_ptr()).i_sb) }
    }

    /// Returns the file system's data for it. Fails with `EIO` for an inode that has none yet.
    pub(crate) fn data(&self) -> Result<&V::InodeData> {
        // SAFETY: By the type invariant this is the first field of a `Whole<V>`, which is
        // initialized. Its data is dropped only after it has been evicted.
        unsafe { (*self.as_ptr().cast::<Whole<V>>()).data.get() }.ok_or(EIO)
    }
}

/// An inode that is locked exclusively by its borrower (`i_rwsem`), or known to no one else, so
/// that it can be changed.
///
/// # Invariants
///
/// No other task changes the inode while it is borrowed.
#[repr(transparent)]
pub(crate) struct Locked<V: FileSystem>(Inode<V>);

impl<V: FileSystem> Locked<V> {
    /// Borrows a locked inode from a pointer.
    ///
    /// # Safety
    ///
    /// As for [`Inode::from_ptr`]. The current task must hold the inode's lock exclusively for
    /// `'a`, or no other task may know the inode.
    pub(super) unsafe fn from_ptr<'a>(ptr: *mut bindings::inode) -> &'a Self {
        // SAFETY: `Self` is a transparent wrapper of `Inode`, and the caller guarantees the rest.
        unsafe { &*ptr.cast() }
    }

    /// Sets the permissions; the type stays the same.
    pub(crate) fn set_mode(&self, mode: u16) {
        const TYPE: u16 = 0o170000;
        let new = self.mode() & TYPE | mode & !TYPE;
        // SAFETY: The inode is live, and by the type invariant no one else changes it.
        unsafe { ptr::addr_of_mut!((*self.as_ptr()).i_mode).write_volatile(new) };
    }

    /// Sets the size in bytes.
    pub(crate) fn set_size(&self, bytes: u64) {
        // SAFETY: The inode is live, and by the type invariant no one else changes it.
        unsafe { bindings::rext4_inode_set_size(self.as_ptr(), bytes.min(i64::MAX as u64) as i64) };
    }

    /// Truncates or extends the cached file to `bytes`, and sets its size.
    pub(crate) fn truncate_cache(&self, bytes: u64) {
        // SAFETY: The inode is live, and by the type invariant no one else changes it.
        unsafe { bindings::truncate_setsize(self.as_ptr(), bytes.min(i64::MAX as u64) as i64) };
    }

    /// Sets the link count.
    pub(crate) fn set_links(&self, links: u32) {
        // SAFETY: The inode is live, and by the type invariant no one else changes it.
        unsafe {
            match links {
                0 => bindings::clear_nlink(self.as_ptr()),
                _ => bindings::set_nlink(self.as_ptr(), links),
            }
        }
    }

    /// Increments the link count.
    pub(crate) fn add_link(&self) {
        // SAFETY: The inode is live, and by the type invariant no one else changes it.
        unsafe { bindings::inc_nlink(self.as_ptr()) };
    }

    /// Decrements the link count, unless it is 0.
    pub(crate) fn drop_link(&self) {
        if self.links() > 0 {
            // SAFETY: The inode is live, and by the type invariant no one else changes it.
            unsafe { bindings::drop_nlink(self.as_ptr()) };
        }
    }
}

impl<V: FileSystem> Deref for Locked<V> {
    type Target = Inode<V>;

    fn deref(&self) -> &Inode<V> {
        &self.0
    }
}

/// An inode that stays locked exclusively (`i_rwsem`) until this is dropped.
#[must_use]
pub(crate) struct InodeLock<'a, V: FileSystem>(&'a Locked<V>);

impl<'a, V: FileSystem> InodeLock<'a, V> {
    /// Takes over a lock that this task holds.
    ///
    /// # Safety
    ///
    /// This task must hold the lock exclusively, and no other code may release it.
    pub(super) unsafe fn locked(inode: &'a Inode<V>) -> Self {
        // SAFETY: Guaranteed by the caller. The guard is dropped before the lock is released.
        InodeLock(unsafe { Locked::from_ptr(inode.as_ptr()) })
    }
}

impl<V: FileSystem> Deref for InodeLock<'_, V> {
    type Target = Locked<V>;

    fn deref(&self) -> &Locked<V> {
        self.0
    }
}

impl<V: FileSystem> Drop for InodeLock<'_, V> {
    fn drop(&mut self) {
        // SAFETY: The inode is live, and this task holds the lock.
        unsafe { bindings::rext4_inode_unlock(self.0.as_ptr()) };
    }
}

/// A reference to an inode; released on drop.
///
/// # Invariants
///
/// We hold one reference to the inode.
pub(crate) struct InodeRef<V: FileSystem>(NonNull<bindings::inode>, PhantomData<fn() -> V>);

// SAFETY: References to inodes are counted atomically and may be released by any thread that may
// sleep.
unsafe impl<V: FileSystem> Send for InodeRef<V> {}
// SAFETY: As for `Send`; a shared one only borrows the inode.
unsafe impl<V: FileSystem> Sync for InodeRef<V> {}

impl<V: FileSystem> InodeRef<V> {
    /// Returns the inode as a pointer, together with the reference.
    pub(super) fn into_raw(self) -> *mut bindings::inode {
        ManuallyDrop::new(self).0.as_ptr()
    }

    /// Gives the reference away as a pointer to an inode of this superblock.
    ///
    /// # Errors
    ///
    /// `EIO` for an inode of another one.
    pub(super) fn into_raw_of(self, sb: &SuperBlock<V>) -> Result<*mut bindings::inode> {
        match self.is_of(sb) {
            true => Ok(self.into_raw()),
            false => Err(EIO),
        }
    }
}

impl<V: FileSystem> Clone for InodeRef<V> {
    fn clone(&self) -> Self {
        // SAFETY: By the type invariant the inode is referenced.
        unsafe { bindings::ihold(self.0.as_ptr()) };
        // INVARIANT: The reference is a new one.
        InodeRef(self.0, PhantomData)
    }
}

impl<V: FileSystem> Deref for InodeRef<V> {
    type Target = Inode<V>;

    fn deref(&self) -> &Inode<V> {
        // SAFETY: By the type invariant the inode is referenced.
        unsafe { Inode::from_ptr(self.0.as_ptr()) }
    }
}

impl<V: FileSystem> Drop for InodeRef<V> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant we own a reference, which is released once.
        unsafe { put::<V>(self.0.as_ptr()) };
    }
}

/// A new inode that has an owner and a mode, but no number, and is not in the inode cache yet.
///
/// # Invariants
///
/// We hold the only reference to the inode, and no one else knows it.
pub(crate) struct Blank<V: FileSystem>(NonNull<bindings::inode>, PhantomData<fn() -> V>);

impl<V: FileSystem> Blank<V> {
    /// Creates an inode in `dir`, owned by the current task. Fails with `ENOMEM`.
    ///
    /// # Safety
    ///
    /// `idmap` and `dir` must be live.
    pub(super) unsafe fn new(
        sb: &SuperBlock<V>,
        idmap: *mut bindings::mnt_idmap,
        dir: *mut bindings::inode,
        mode: u16,
    ) -> Result<Self> {
        let blank = Self::internal(sb, mode)?;
        // SAFETY: The inode is new and ours, and the caller guarantees the rest.
        unsafe { bindings::inode_init_owner(idmap, blank.0.as_ptr(), dir, mode) };
        Ok(blank)
    }

    /// Creates an inode owned by root, for the file system's own use. Fails with `ENOMEM`.
    pub(crate) fn internal(sb: &SuperBlock<V>, mode: u16) -> Result<Self> {
        // SAFETY: The superblock is live.
        let inode = NonNull::new(unsafe { bindings::new_inode(sb.as_ptr()) }).ok_or(ENOMEM)?;
        // SAFETY: The inode is new and ours.
        unsafe {
            (*inode.as_ptr()).i_mode = mode;
            bindings::rext4_inode_set_owner(inode.as_ptr(), 0, 0);
            bindings::rext4_inode_init_times(inode.as_ptr());
        }
        // INVARIANT: The inode is new.
        Ok(Blank(inode, PhantomData))
    }

    /// Returns its fields: owner and mode are set, the times are the current time, and the rest is
    /// empty.
    pub(crate) fn fields(&self) -> InodeFields {
        // SAFETY: By the type invariant the inode is live.
        let inode = unsafe { Inode::<V>::from_ptr(self.0.as_ptr()) };
        let [ctime, mtime, atime] = inode.times();
        InodeFields {
            mode: inode.mode(),
            uid: inode.uid(),
            gid: inode.gid(),
            links: 1,
            size: 0,
            sectors: 0,
            generation: 0,
            atime,
            ctime,
            mtime,
            sync: false,
            append: false,
            immutable: false,
            noatime: false,
            dirsync: false,
            device: 0,
        }
    }

    /// Sets its number and the other fields, and adds it to the inode cache, where it stays locked.
    ///
    /// Fails with `EIO` if the cache contains an inode in use with this number.
    pub(crate) fn place(
        self,
        ino: u32,
        fields: &InodeFields,
        data: impl PinInit<V::InodeData>,
    ) -> Result<NewInode<V>>
    where
        V: Operations,
    {
        let inode = self.0.as_ptr();
        // SAFETY: By the type invariant no one else knows the inode, and it is part of a
        // `Whole<V>`. In the cache it is marked as being created, so lookups skip it.
        unsafe {
            (*inode).i_ino = ino.into();
            fill::<V>(inode, fields);
            if bindings::insert_inode_locked(inode) < 0 {
                return Err(EIO);
            }
            (*inode.cast::<Whole<V>>()).data.fill(data);
        }
        let this = ManuallyDrop::new(self);
        // INVARIANT: The inode was added to the cache above, locked, and the reference is passed
        // on.
        Ok(NewInode(this.0, PhantomData))
    }
}

impl<V: FileSystem> Drop for Blank<V> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours. An inode without data is never
        // looked up, stored or freed on disk, so this is permitted inside a handle.
        unsafe { bindings::iput(self.0.as_ptr()) };
    }
}

/// A new inode in the inode cache, locked: lookups fail with `ESTALE`. If it is dropped without
/// [`publish`](Self::publish), its link count is set to 0 and it is evicted, by a worker if a
/// handle is open.
///
/// # Invariants
///
/// We hold one reference, and the inode is new and locked.
pub(crate) struct NewInode<V: FileSystem>(NonNull<bindings::inode>, PhantomData<fn() -> V>);

impl<V: FileSystem> NewInode<V> {
    /// Makes it available to others.
    pub(crate) fn publish(self) -> InodeRef<V> {
        let inode = ManuallyDrop::new(self).0;
        // SAFETY: By the type invariant it is new and locked.
        unsafe { bindings::unlock_new_inode(inode.as_ptr()) };
        // INVARIANT: The reference is passed on.
        InodeRef(inode, PhantomData)
    }

    /// Gives the reference and the lock away as a pointer to an inode of this superblock.
    ///
    /// # Errors
    ///
    /// `EIO` for an inode of another one.
    pub(super) fn into_raw_of(self, sb: &SuperBlock<V>) -> Result<*mut bindings::inode> {
        match self.is_of(sb) {
            true => Ok(ManuallyDrop::new(self).0.as_ptr()),
            false => Err(EIO),
        }
    }
}

impl<V: FileSystem> Deref for NewInode<V> {
    type Target = Locked<V>;

    fn deref(&self) -> &Locked<V> {
        // SAFETY: By the type invariant we hold a reference, and no one else has access yet.
        unsafe { Locked::from_ptr(self.0.as_ptr()) }
    }
}

impl<V: FileSystem> Drop for NewInode<V> {
    fn drop(&mut self) {
        let inode = self.0.as_ptr();
        // SAFETY: By the type invariant it is new and locked, we own a reference, and it is the
        // first field of a `Whole<V>`. Its superblock outlives it.
        unsafe {
            let completions = SuperBlock::<V>::from_ptr((*inode).i_sb).completions();
            let release = (*inode.cast::<Whole<V>>()).release.get();
            bindings::rext4_inode_discard(inode, release, completions);
        }
    }
}

impl<V: FileSystem> SuperBlock<V> {
    /// Returns inode `ino` if it is in the cache, initialized, and has a name. Does not wait for an
    /// inode being created or freed.
    pub(crate) fn cached_inode(&self, ino: u32) -> Option<InodeRef<V>> {
        // SAFETY: The superblock is live.
        let inode = unsafe { bindings::rext4_inode_grab(self.as_ptr(), ino.into()) };
        // INVARIANT: The reference taken by the helper is passed on.
        NonNull::new(inode).map(|inode| InodeRef(inode, PhantomData))
    }
}

impl<V: Operations> SuperBlock<V> {
    /// Finds inode `ino` in the cache, or calls `read` to initialize a new one.
    ///
    /// Other tasks that look up the same inode wait until `read` returns. If it fails, the inode is
    /// discarded.
    pub(crate) fn inode<D: PinInit<V::InodeData>>(
        &self,
        ino: u32,
        read: impl FnOnce() -> Result<(InodeFields, D)>,
    ) -> Result<InodeRef<V>> {
        // SAFETY: The superblock is live and its operations are set.
        let ptr = unsafe { bindings::iget_locked(self.as_ptr(), u64::from(ino)) };
        // This also fails while the inode is being created and not initialized yet.
        let ptr = match NonNull::new(ptr) {
            Some(ptr) => ptr,
            None if self.is_cached(ino) => return Err(super::stale()),
            None => return Err(ENOMEM),
        };
        // SAFETY: `iget_locked` returned a reference.
        if !unsafe { bindings::rext4_inode_is_new(ptr.as_ptr()) } {
            return Ok(InodeRef(ptr, PhantomData));
        }
        match read() {
            Ok((fields, data)) => {
                // SAFETY: The inode is new and locked, so only we access it, and it is part of a
                // `Whole<V>`.
                unsafe {
                    fill::<V>(ptr.as_ptr(), &fields);
                    (*ptr.as_ptr().cast::<Whole<V>>()).data.fill(data);
                    bindings::unlock_new_inode(ptr.as_ptr());
                }
                Ok(InodeRef(ptr, PhantomData))
            }
            Err(error) => {
                // SAFETY: The inode is new, locked and ours.
                unsafe { bindings::iget_failed(ptr.as_ptr()) };
                Err(error)
            }
        }
    }
}

/// Sets the fields of a new inode, and the operations for its type.
///
/// # Safety
///
/// `inode` must be new, locked, and belong to a superblock of `V`.
unsafe fn fill<V: Operations>(inode: *mut bindings::inode, fields: &InodeFields) {
    let flag = |set: bool, bit: u32| if set { bit } else { 0 };
    // SAFETY: Only we access the inode, as the caller guarantees.
    unsafe {
        (*inode).i_mode = fields.mode;
        (*inode).i_generation = fields.generation;
        (*inode).i_blocks = fields.sectors;
        (*inode).i_flags = flag(fields.sync, bindings::S_SYNC)
            | flag(fields.append, bindings::S_APPEND)
            | flag(fields.immutable, bindings::S_IMMUTABLE)
            | flag(fields.noatime, bindings::S_NOATIME)
            | flag(fields.dirsync, bindings::S_DIRSYNC);
        bindings::set_nlink(inode, fields.links);
        bindings::rext4_inode_set_owner(inode, fields.uid, fields.gid);
        bindings::rext4_inode_set_size(inode, fields.size.min(i64::MAX as u64) as i64);
        bindings::rext4_inode_set_times(
            inode,
            fields.atime.seconds,
            fields.atime.nanoseconds,
            fields.ctime.seconds,
            fields.ctime.nanoseconds,
            fields.mtime.seconds,
            fields.mtime.nanoseconds,
        );
        match u32::from(fields.mode) & bindings::S_IFMT {
            bindings::S_IFREG => {
                (*inode).i_op = Tables::<V>::FILE_INODE;
                (*inode).__bindgen_anon_3.i_fop = Tables::<V>::FILE;
                (*(*inode).i_mapping).a_ops = Tables::<V>::MAPPING;
                bindings::rext4_mapping_set_large_folios(inode);
            }
            bindings::S_IFDIR => {
                (*inode).i_op = Tables::<V>::DIR_INODE;
                (*inode).__bindgen_anon_3.i_fop = Tables::<V>::DIR;
            }
            bindings::S_IFLNK => (*inode).i_op = Tables::<V>::SYMLINK_INODE,
            _ => {
                (*inode).i_op = Tables::<V>::SPECIAL_INODE;
                bindings::init_special_inode(inode, fields.mode, fields.device);
            }
        }
    }
}
