// SPDX-License-Identifier: GPL-2.0

//! Inodes (`struct inode`), and the file system's own data beside each.
//!
//! An inode and the file system's own data for it are one allocation, [`Whole`]. Both are made together when the VFS
//! asks for a new inode. The data is dropped when the inode has been evicted, by a task that may sleep; the memory is
//! freed after the last reader under RCU, which sees the inode alone.
//!
//! Dropping the last reference to an inode evicts it, which starts a handle and waits for its writeback. So a reference
//! that is dropped while a handle is open is left to a worker of the volume.
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

/// A point in time, seconds since 1970 and nanoseconds.
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub(crate) struct Timestamp {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// The fields of an inode that the VFS has, as the file system read them.
#[allow(missing_docs)]
pub(crate) struct InodeFields {
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) links: u32,
    /// Bytes.
    pub(crate) size: u64,
    /// 512-byte sectors.
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
    /// The device of a character or block device's inode, as `MKDEV` makes it.
    pub(crate) device: u32,
}

/// An inode of a file system, borrowed.
///
/// # Invariants
///
/// It is the `vfs` part of a [`Whole<V>`], and somebody holds a reference to it for as long as it is borrowed.
#[repr(transparent)]
pub(crate) struct Inode<V: FileSystem>(Opaque<bindings::inode>, PhantomData<V>);

/// An inode and the file system's data for it.
#[repr(C)]
pub(super) struct Whole<V: FileSystem> {
    vfs: Opaque<bindings::inode>,
    /// For [`InodeRef`] when its drop leaves the inode to a worker.
    release: Opaque<bindings::rext4_release>,
    /// Set once, when the inode's fields have been; empty in an inode that failed before.
    data: Slot<V::InodeData>,
}

/// A place for a value that is initialized where it stays.
///
/// # Invariants
///
/// `value` is initialized, and pinned, if `ready` is set.
struct Slot<T> {
    ready: Atomic<bool>,
    value: UnsafeCell<MaybeUninit<T>>,
}

impl<T> Slot<T> {
    /// An empty one.
    const fn new() -> Self {
        Slot {
            ready: Atomic::new(false),
            value: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }

    /// Fills it.
    ///
    /// # Safety
    ///
    /// It must be empty and stay where it is, and nobody else may fill it meanwhile.
    unsafe fn fill(&self, value: impl PinInit<T>) {
        // SAFETY: Nobody else looks at the value before `ready` is set, and it stays where it is.
        let Ok(()) = unsafe { value.__pinned_init(self.value.get().cast()) };
        // INVARIANT: It was initialized just now.
        self.ready.store(true, Release);
    }

    /// The value, if there is one.
    fn get(&self) -> Option<&T> {
        if !self.ready.load(Acquire) {
            return None;
        }
        // SAFETY: By the type invariant it is initialized, and it goes only with a unique reference.
        Some(unsafe { &*self.value.get().cast() })
    }

    /// Drops the value, if there is one.
    fn clear(&mut self) {
        if self.ready.xchg(false, Full) {
            // SAFETY: By the type invariant it is initialized, and nobody can get it any more.
            unsafe { self.value.get_mut().assume_init_drop() };
        }
    }
}

impl<V: FileSystem> Whole<V> {
    /// Initializes the part that is not the VFS's.
    ///
    /// # Safety
    ///
    /// `whole` must be valid for writes, and hold nothing that has to be dropped.
    pub(super) unsafe fn init(whole: *mut Self) {
        // SAFETY: As the caller promises.
        unsafe { ptr::addr_of_mut!((*whole).data).write(Slot::new()) };
    }

    /// Drops the data, and leaves none.
    ///
    /// # Safety
    ///
    /// `whole` must be initialized, and nobody else may use its data.
    pub(super) unsafe fn drop_data(whole: *mut Self) {
        // SAFETY: As the caller promises.
        unsafe { (*whole).data.clear() };
    }
}

/// Drops a reference to an inode, or leaves that to a worker where it must not be done here.
///
/// # Safety
///
/// `inode` must be of a superblock of `V`, and one reference the caller's to give back.
unsafe fn put<V: FileSystem>(inode: *mut bindings::inode) {
    // SAFETY: The inode is live and the first part of a `Whole<V>`; its superblock outlives it, and so do the
    // completions of that.
    unsafe {
        let completions = SuperBlock::<V>::from_ptr((*inode).i_sb).completions();
        let release = (*inode.cast::<Whole<V>>()).release.get();
        bindings::rext4_inode_put(inode, release, completions);
    }
}

impl<V: FileSystem> Inode<V> {
    /// Borrows the inode behind a pointer.
    ///
    /// # Safety
    ///
    /// `ptr` must point to an inode of a superblock of `V`, referenced by somebody for `'a`.
    pub(super) unsafe fn from_ptr<'a>(ptr: *mut bindings::inode) -> &'a Self {
        // SAFETY: `Self` is transparent over the inode, and the caller vouches for the rest.
        // INVARIANT: All inodes of such a superblock were made by `alloc_inode` as the first part of a `Whole<V>`.
        unsafe { &*ptr.cast() }
    }

    /// The C inode.
    pub(super) fn as_ptr(&self) -> *mut bindings::inode {
        self.0.get()
    }

    /// The inode's number.
    pub(crate) fn number(&self) -> u32 {
        // SAFETY: The number does not change; ext4's are 32 bits wide.
        unsafe { (*self.as_ptr()).i_ino as u32 }
    }

    /// The size in bytes.
    pub(crate) fn size(&self) -> u64 {
        // SAFETY: The inode is live by the type invariant; on 64-bit machines the size is read in one go.
        let size = unsafe { core::ptr::addr_of!((*self.as_ptr()).i_size).read_volatile() };
        size.max(0) as u64
    }

    /// Whether it is a directory.
    pub(crate) fn is_directory(&self) -> bool {
        u32::from(self.mode()) & bindings::S_IFMT == bindings::S_IFDIR
    }

    /// Whether it is a regular file.
    pub(crate) fn is_file(&self) -> bool {
        u32::from(self.mode()) & bindings::S_IFMT == bindings::S_IFREG
    }

    /// Type and permissions.
    pub(crate) fn mode(&self) -> u16 {
        // SAFETY: The inode is live by the type invariant. It may be changed meanwhile, by a task that has it locked.
        unsafe { ptr::addr_of!((*self.as_ptr()).i_mode).read_volatile() }
    }

    /// The owner, in the volume's own numbers.
    pub(crate) fn uid(&self) -> u32 {
        // SAFETY: The inode is live by the type invariant.
        unsafe { bindings::rext4_inode_uid(self.as_ptr()) }
    }

    /// The group, in the volume's own numbers.
    pub(crate) fn gid(&self) -> u32 {
        // SAFETY: The inode is live by the type invariant.
        unsafe { bindings::rext4_inode_gid(self.as_ptr()) }
    }

    /// The generation.
    pub(crate) fn generation(&self) -> u32 {
        // SAFETY: The inode is live by the type invariant. It may be changed meanwhile, by a task that has it locked.
        unsafe { ptr::addr_of!((*self.as_ptr()).i_generation).read_volatile() }
    }

    /// The 512-byte sectors that it takes.
    pub(crate) fn sectors(&self) -> u64 {
        // SAFETY: The inode is live by the type invariant.
        unsafe { core::ptr::addr_of!((*self.as_ptr()).i_blocks).read_volatile() }
    }

    /// Changes the count of 512-byte sectors. Returns false if it would have fallen below zero; it is zero then.
    #[must_use]
    pub(crate) fn add_sectors(&self, sectors: i64) -> bool {
        // SAFETY: The inode is live by the type invariant.
        unsafe { bindings::rext4_inode_add_sectors(self.as_ptr(), sectors) }
    }

    /// Raises the size to so many bytes, if it is smaller. For a file of which the rest is on disk already: direct writes,
    /// and files that only the file system itself writes.
    pub(crate) fn extend_size(&self, bytes: u64) {
        // SAFETY: The inode is live by the type invariant; the helper takes its spinlock.
        unsafe { bindings::rext4_inode_extend_size(self.as_ptr(), bytes.min(i64::MAX as u64) as i64) };
    }

    /// Names that it has.
    pub(crate) fn links(&self) -> u32 {
        // SAFETY: As for `mode`.
        unsafe { ptr::addr_of!((*self.as_ptr()).__bindgen_anon_1.i_nlink).read_volatile() }
    }

    /// Change, modification and access time.
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

    /// Sets the time of change to now, and that of modification if `modified`.
    pub(crate) fn touch(&self, modified: bool) {
        // SAFETY: The inode is live by the type invariant.
        unsafe { bindings::rext4_inode_touch(self.as_ptr(), modified) };
    }

    /// Returns true if changes of the names in it must reach the disk at once: `IS_DIRSYNC`.
    pub(crate) fn is_dir_sync(&self) -> bool {
        self.has_flags(
            bindings::S_SYNC | bindings::S_DIRSYNC,
            bindings::REXT4_SB_SYNCHRONOUS | bindings::REXT4_SB_DIRSYNC,
        )
    }

    /// Returns true if changes of it must reach the disk at once: `IS_SYNC`.
    pub(crate) fn is_sync(&self) -> bool {
        self.has_flags(bindings::S_SYNC, bindings::REXT4_SB_SYNCHRONOUS)
    }

    /// Returns true if the inode has one of these flags, or its superblock one of those.
    fn has_flags(&self, own: u32, of_volume: usize) -> bool {
        // SAFETY: The inode is live by the type invariant, and the flags are read in one go.
        let flags = unsafe { ptr::addr_of!((*self.as_ptr()).i_flags).read_volatile() };
        flags & own != 0 || self.super_block().flags() & of_volume != 0
    }

    /// Locks it as the VFS does around changes of a directory.
    pub(crate) fn lock(&self) -> InodeLock<'_, V> {
        // SAFETY: The inode is live by the type invariant, and locked before the guard is made.
        unsafe {
            bindings::rext4_inode_lock(self.as_ptr());
            InodeLock::locked(self)
        }
    }

    /// Whether access lists hold for it.
    pub(crate) fn has_access_lists(&self) -> bool {
        self.super_block().flags() & bindings::REXT4_SB_POSIXACL != 0
    }

    /// Whether it belongs to this superblock.
    fn is_of(&self, sb: &SuperBlock<V>) -> bool {
        ptr::eq(self.super_block(), sb)
    }

    /// The superblock it belongs to.
    pub(crate) fn super_block(&self) -> &SuperBlock<V> {
        // SAFETY: An inode's superblock lives at least as long as the inode.
        unsafe { SuperBlock::from_ptr((*self.as_ptr()).i_sb) }
    }

    /// The file system's data for it. Fails with `EIO` for an inode that has none yet.
    pub(crate) fn data(&self) -> Result<&V::InodeData> {
        // SAFETY: By the type invariant this is the first part of a `Whole<V>`, which is initialized. Its data goes only
        // when nobody has a reference any more.
        unsafe { (*self.as_ptr().cast::<Whole<V>>()).data.get() }.ok_or(EIO)
    }
}

/// An inode that its borrower has locked exclusively (`i_rwsem`), or that nobody else knows of: it can be changed.
///
/// # Invariants
///
/// No other task changes the inode while it is borrowed.
#[repr(transparent)]
pub(crate) struct Locked<V: FileSystem>(Inode<V>);

impl<V: FileSystem> Locked<V> {
    /// Borrows the locked inode behind a pointer.
    ///
    /// # Safety
    ///
    /// As for [`Inode::from_ptr`]. The current task must have the inode locked exclusively for `'a`, or nobody else may
    /// know of it.
    pub(super) unsafe fn from_ptr<'a>(ptr: *mut bindings::inode) -> &'a Self {
        // SAFETY: `Self` is transparent over an `Inode`, and the caller vouches for the rest.
        unsafe { &*ptr.cast() }
    }

    /// Sets the rights in the mode, and the type stays what it is.
    pub(crate) fn set_mode(&self, mode: u16) {
        const TYPE: u16 = 0o170000;
        let new = self.mode() & TYPE | mode & !TYPE;
        // SAFETY: The inode is live, and by the type invariant nobody else changes it.
        unsafe { ptr::addr_of_mut!((*self.as_ptr()).i_mode).write_volatile(new) };
    }

    /// Sets the size, in bytes.
    pub(crate) fn set_size(&self, bytes: u64) {
        // SAFETY: The inode is live, and by the type invariant nobody else changes it.
        unsafe { bindings::rext4_inode_set_size(self.as_ptr(), bytes.min(i64::MAX as u64) as i64) };
    }

    /// Cuts or extends the cached file at `bytes`, and sets its size.
    pub(crate) fn truncate_cache(&self, bytes: u64) {
        // SAFETY: The inode is live, and by the type invariant nobody else changes it.
        unsafe { bindings::truncate_setsize(self.as_ptr(), bytes.min(i64::MAX as u64) as i64) };
    }

    /// Sets the number of names.
    pub(crate) fn set_links(&self, links: u32) {
        // SAFETY: The inode is live, and by the type invariant nobody else changes it.
        unsafe {
            match links {
                0 => bindings::clear_nlink(self.as_ptr()),
                _ => bindings::set_nlink(self.as_ptr(), links),
            }
        }
    }

    /// One name more.
    pub(crate) fn add_link(&self) {
        // SAFETY: The inode is live, and by the type invariant nobody else changes it.
        unsafe { bindings::inc_nlink(self.as_ptr()) };
    }

    /// One name less, if there is one.
    pub(crate) fn drop_link(&self) {
        if self.links() > 0 {
            // SAFETY: The inode is live, and by the type invariant nobody else changes it.
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

/// An inode locked exclusively (`i_rwsem`), until this is dropped.
#[must_use]
pub(crate) struct InodeLock<'a, V: FileSystem>(&'a Locked<V>);

impl<'a, V: FileSystem> InodeLock<'a, V> {
    /// Takes over a lock that this task has on the inode.
    ///
    /// # Safety
    ///
    /// It must be locked exclusively by this task, and by nothing else that unlocks it.
    pub(super) unsafe fn locked(inode: &'a Inode<V>) -> Self {
        // SAFETY: As the caller promises, and the guard goes before the lock does.
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
        // SAFETY: The inode is live, and this task locked it.
        unsafe { bindings::rext4_inode_unlock(self.0.as_ptr()) };
    }
}

/// A reference to an inode, given back on drop.
///
/// # Invariants
///
/// One reference to the inode is ours.
pub(crate) struct InodeRef<V: FileSystem>(NonNull<bindings::inode>, PhantomData<V>);

// SAFETY: References to inodes are counted atomically and may be given back from any thread that may sleep.
unsafe impl<V: FileSystem> Send for InodeRef<V> {}
// SAFETY: As for `Send`; a shared one only borrows the inode.
unsafe impl<V: FileSystem> Sync for InodeRef<V> {}

impl<V: FileSystem> InodeRef<V> {
    /// Gives the reference away as a pointer.
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
        // SAFETY: By the type invariant one reference is ours to give back.
        unsafe { put::<V>(self.0.as_ptr()) };
    }
}

/// A new inode that has an owner and a mode, but no number and no place yet.
///
/// # Invariants
///
/// The one reference to the inode is ours, and nobody else knows of it.
pub(crate) struct Blank<V: FileSystem>(NonNull<bindings::inode>, PhantomData<V>);

impl<V: FileSystem> Blank<V> {
    /// A new inode in `dir`, owned by whoever asks. Fails with `ENOMEM`.
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
        // SAFETY: The inode is new and ours, and the caller vouches for the rest.
        unsafe { bindings::inode_init_owner(idmap, blank.0.as_ptr(), dir, mode) };
        Ok(blank)
    }

    /// A new inode that root owns, for the file system's own use. Fails with `ENOMEM`.
    pub(crate) fn internal(sb: &SuperBlock<V>, mode: u16) -> Result<Self> {
        // SAFETY: The superblock is live.
        let inode = NonNull::new(unsafe { bindings::new_inode(sb.as_ptr()) }).ok_or(ENOMEM)?;
        // SAFETY: The inode is new and ours.
        unsafe {
            (*inode.as_ptr()).i_mode = mode;
            bindings::rext4_inode_set_owner(inode.as_ptr(), 0, 0);
            bindings::rext4_inode_init_times(inode.as_ptr());
        }
        // INVARIANT: It was just made.
        Ok(Blank(inode, PhantomData))
    }

    /// Its fields: owner and mode are set, the times are now, and the rest is empty.
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

    /// Gives it its number and the rest, and puts it in the cache, where it stays locked.
    ///
    /// Fails with `EIO` when the cache has an inode of this number in use.
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
        // SAFETY: By the type invariant nobody else sees the inode, and it is part of a `Whole<V>`. In the cache it is
        // marked as one that is being made, which lookups pass over.
        unsafe {
            (*inode).i_ino = ino.into();
            fill::<V>(inode, fields);
            if bindings::insert_inode_locked(inode) < 0 {
                return Err(EIO);
            }
            (*inode.cast::<Whole<V>>()).data.fill(data);
        }
        let this = ManuallyDrop::new(self);
        // INVARIANT: It was put in the cache above, locked, and the reference goes over.
        Ok(NewInode(this.0, PhantomData))
    }
}

impl<V: FileSystem> Drop for Blank<V> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours. An inode without data is not looked up, stored or freed on
        // disk when it ends, so that this may be done inside a handle.
        unsafe { bindings::iput(self.0.as_ptr()) };
    }
}

/// A new inode in the cache, locked: whoever looks it up gets `ESTALE`. Dropped without [`publish`](Self::publish) it
/// loses its links and is evicted, by a worker if a handle is open.
///
/// # Invariants
///
/// One reference is ours, and the inode is new and locked.
pub(crate) struct NewInode<V: FileSystem>(NonNull<bindings::inode>, PhantomData<V>);

impl<V: FileSystem> NewInode<V> {
    /// Lets others have it.
    pub(crate) fn publish(self) -> InodeRef<V> {
        let inode = ManuallyDrop::new(self).0;
        // SAFETY: It is new and locked by the type invariant.
        unsafe { bindings::unlock_new_inode(inode.as_ptr()) };
        // INVARIANT: The reference goes over.
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
        // SAFETY: By the type invariant the inode is referenced, and nobody else gets it yet.
        unsafe { Locked::from_ptr(self.0.as_ptr()) }
    }
}

impl<V: FileSystem> Drop for NewInode<V> {
    fn drop(&mut self) {
        let inode = self.0.as_ptr();
        // SAFETY: By the type invariant it is new and locked, one reference is ours, and it is the first part of a
        // `Whole<V>`. Its superblock outlives it.
        unsafe {
            let completions = SuperBlock::<V>::from_ptr((*inode).i_sb).completions();
            let release = (*inode.cast::<Whole<V>>()).release.get();
            bindings::rext4_inode_discard(inode, release, completions);
        }
    }
}

impl<V: FileSystem> SuperBlock<V> {
    /// Inode `ino` if it is in the cache, has been set up, and has a name. Does not wait for one that comes or goes.
    pub(crate) fn cached_inode(&self, ino: u32) -> Option<InodeRef<V>> {
        // SAFETY: The superblock is live.
        let inode = unsafe { bindings::rext4_inode_grab(self.as_ptr(), ino.into()) };
        // INVARIANT: The reference that was taken goes over.
        NonNull::new(inode).map(|inode| InodeRef(inode, PhantomData))
    }
}

impl<V: Operations> SuperBlock<V> {
    /// Finds inode `ino` in the cache, or has `read` fill in a new one.
    ///
    /// Other tasks that look up the same inode wait until `read` is done. When it fails, the inode is thrown away.
    pub(crate) fn inode<D: PinInit<V::InodeData>>(
        &self,
        ino: u32,
        read: impl FnOnce() -> Result<(InodeFields, D)>,
    ) -> Result<InodeRef<V>> {
        // SAFETY: The superblock is live and its operations are set.
        let ptr = unsafe { bindings::iget_locked(self.as_ptr(), u64::from(ino)) };
        // There is none either while the inode is being made and has no contents yet.
        let ptr = match NonNull::new(ptr) {
            Some(ptr) => ptr,
            None if self.is_cached(ino) => return Err(super::stale()),
            None => return Err(ENOMEM),
        };
        // SAFETY: `iget_locked` gave us a reference.
        if !unsafe { bindings::rext4_inode_is_new(ptr.as_ptr()) } {
            return Ok(InodeRef(ptr, PhantomData));
        }
        match read() {
            Ok((fields, data)) => {
                // SAFETY: The inode is new and locked, so that only we see it, and it is part of a `Whole<V>`.
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

/// Puts the fields of a new inode in place and gives it the operations of its type.
///
/// # Safety
///
/// `inode` must be new, locked, and of a superblock of `V`.
unsafe fn fill<V: Operations>(inode: *mut bindings::inode, fields: &InodeFields) {
    let flag = |set: bool, bit: u32| if set { bit } else { 0 };
    // SAFETY: Only we see the inode, as the caller promises.
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
                (*inode).i_op = &Tables::<V>::FILE_INODE;
                (*inode).__bindgen_anon_3.i_fop = &Tables::<V>::FILE;
                (*(*inode).i_mapping).a_ops = &Tables::<V>::MAPPING;
                bindings::rext4_mapping_set_large_folios(inode);
            }
            bindings::S_IFDIR => {
                (*inode).i_op = &Tables::<V>::DIR_INODE;
                (*inode).__bindgen_anon_3.i_fop = &Tables::<V>::DIR;
            }
            bindings::S_IFLNK => (*inode).i_op = &Tables::<V>::SYMLINK_INODE,
            _ => {
                (*inode).i_op = &Tables::<V>::SPECIAL_INODE;
                bindings::init_special_inode(inode, fields.mode, fields.device);
            }
        }
    }
}
