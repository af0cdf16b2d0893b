// SPDX-License-Identifier: GPL-2.0

//! Less common operations: freezing and shutting down a volume, discarding free blocks, reporting
//! errors, swap files.
//!
//! C headers: [`include/linux/fserror.h`](srctree/include/linux/fserror.h),
//! [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::{
    bindings,
    inode::{Inode, Locked},
    operations::{FileSystem, Operations},
    super_block::SuperBlock,
    vfs::{OpenFile, Tables},
};
use core::marker::PhantomData;
use kernel::{
    error::{from_result, to_result},
    prelude::*,
};

impl<V: FileSystem> SuperBlock<V> {
    /// Freezes the volume, through its device, until the guard is dropped.
    ///
    /// # Errors
    ///
    /// `EBUSY` when it is frozen already, or the error of
    /// [`SuperOperations::freeze`](super::SuperOperations::freeze).
    pub(crate) fn freeze_device(&self) -> Result<FrozenDevice<'_, V>> {
        // SAFETY: The superblock is live, and so is its device.
        to_result(unsafe { bindings::rext4_freeze_device(self.as_ptr()) })?;
        Ok(FrozenDevice(self))
    }

    /// Returns the device's discard granularity in bytes; `None` if the device cannot discard.
    pub(crate) fn discard_granularity(&self) -> Option<u32> {
        // SAFETY: The superblock is live, and so is its device.
        let bytes = unsafe { bindings::rext4_discard_granularity(self.as_ptr()) };
        (bytes > 0).then_some(bytes)
    }

    /// Discards blocks on the device, and waits for completion.
    pub(crate) fn discard(&self, start: u64, len: u32) -> Result {
        // SAFETY: The superblock is live, and so is its device. Blocks beyond its end are refused.
        to_result(unsafe { bindings::rext4_discard(self.as_ptr(), start, len.into()) })
    }

    /// Reports damage to programs that watch for file system errors (`FAN_FS_ERROR`): of an inode,
    /// or (0) of other metadata.
    pub(crate) fn report_damage(&self, ino: u32) {
        // SAFETY: The superblock is live; this may be called with any lock held.
        unsafe { bindings::rext4_report_damage(self.as_ptr(), ino.into()) };
    }

    /// Reports to programs that watch for file system errors that the volume was shut down.
    pub(crate) fn report_shutdown(&self) {
        // SAFETY: The superblock is live.
        unsafe { bindings::rext4_report_shutdown(self.as_ptr()) };
    }
}

impl OpenFile<'_> {
    /// Takes write access to the mount that the file was opened through (`mnt_want_write_file()`),
    /// until the guard is dropped. Waits while the volume is frozen.
    ///
    /// # Errors
    ///
    /// `EROFS` on a read-only mount.
    pub(crate) fn want_write(&self) -> Result<WantWrite<'_>> {
        // SAFETY: The file is open while it is borrowed.
        to_result(unsafe { bindings::rext4_want_write(self.as_ptr()) })?;
        Ok(WantWrite(self.as_ptr(), PhantomData))
    }

    /// Returns true if the current task owns the file or has `CAP_FOWNER` for it.
    pub(crate) fn is_owned(&self) -> bool {
        // SAFETY: The file is open while it is borrowed.
        unsafe { bindings::rext4_owns(self.as_ptr()) }
    }
}

/// Write access to a mount, until this is dropped.
#[must_use]
pub(crate) struct WantWrite<'a>(*mut bindings::file, PhantomData<&'a ()>);

impl Drop for WantWrite<'_> {
    fn drop(&mut self) {
        // SAFETY: The file is open, and write access was taken when this was created.
        unsafe { bindings::rext4_drop_write(self.0) };
    }
}

impl<V: FileSystem> Locked<V> {
    /// Sets the generation.
    pub(crate) fn set_generation(&self, generation: u32) {
        // SAFETY: The inode is live, and by the type invariant no one else changes it.
        unsafe { core::ptr::addr_of_mut!((*self.as_ptr()).i_generation).write_volatile(generation) };
    }
}

/// A volume that stays frozen until this is dropped.
#[must_use]
pub(crate) struct FrozenDevice<'a, V: FileSystem>(&'a SuperBlock<V>);

impl<V: FileSystem> Drop for FrozenDevice<'_, V> {
    fn drop(&mut self) {
        // SAFETY: The superblock is live, and its device was frozen when this was created.
        unsafe { bindings::rext4_thaw_device(self.0.as_ptr()) };
    }
}

impl<V: Operations> Tables<V> {
    /// Fails with `EIO` when the volume of an inode was shut down.
    pub(super) fn check_alive(inode: &Inode<V>) -> Result {
        inode.super_block().volume()?.check_alive()
    }

    /// Fails when the volume of an inode was shut down (`EIO`) or has become read-only because of
    /// an error (`EROFS`).
    pub(super) fn check_writes(inode: &Inode<V>) -> Result {
        inode.super_block().volume()?.check_writes()
    }

    /// Fails with the error of [`check_writes`](Self::check_writes) for a file that is open for
    /// writing, and of [`check_alive`](Self::check_alive) for others.
    ///
    /// # Safety
    ///
    /// The file must be one of ours, and open or being opened.
    pub(super) unsafe fn check_access(file: *const bindings::file) -> Result {
        // SAFETY: The caller guarantees the file, which has an inode.
        let (mode, inode) = unsafe { ((*file).f_mode, Inode::from_ptr((*file).f_inode)) };
        match mode & bindings::REXT4_FMODE_WRITE {
            0 => Self::check_alive(inode),
            _ => Self::check_writes(inode),
        }
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with a mounted superblock of ours whose device is gone.
    pub(super) unsafe extern "C" fn shutdown(sb: *mut bindings::super_block) {
        // SAFETY: The superblock is live.
        let sb = unsafe { SuperBlock::<V>::from_ptr(sb) };
        if let Ok(volume) = sb.volume() {
            volume.device_gone(sb);
        }
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with an open file of ours and a pipe.
    pub(super) unsafe extern "C" fn splice_read(
        file: *mut bindings::file,
        position: *mut i64,
        pipe: *mut bindings::pipe_inode_info,
        length: usize,
        flags: c_uint,
    ) -> isize {
        // SAFETY: The VFS guarantees the arguments; the file is open, so its inode is live.
        unsafe {
            if let Err(error) = Self::check_alive(Inode::from_ptr((*file).f_inode)) {
                return error.to_errno() as isize;
            }
            bindings::filemap_splice_read(file, position, pipe, length, flags)
        }
    }

    /// # Safety
    ///
    /// Must be called as `swapon` calls it: with an open file of ours, whose inode is locked. As
    /// long as the file is
    /// swapped to, the VFS refuses to write to it, to change its size or its blocks, to share them,
    /// and to remove its names.
    pub(super) unsafe extern "C" fn swap_activate(
        to: *mut bindings::swap_info_struct,
        file: *mut bindings::file,
        span: *mut u64,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The file is open, and its inode is locked.
            V::before_swap(unsafe { Locked::from_ptr((*file).f_inode) })?;
            // SAFETY: The caller guarantees the arguments.
            Ok(unsafe { bindings::rext4_swap_activate(to, file, span, Self::iomap()) })
        })
    }
}
