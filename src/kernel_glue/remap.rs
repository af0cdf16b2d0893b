// SPDX-License-Identifier: GPL-2.0

//! Reflink: `FICLONE`, `FICLONERANGE`, `FIDEDUPERANGE` and `copy_file_range`.
//!
//! The VFS has checked the files and flags. Its helper checks sizes and contents after both files
//! are locked.
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use super::{
    bindings,
    inode::{Inode, Locked},
    operations::{FileSystem, Operations},
    vfs::Tables,
};
use core::marker::PhantomData;
use kernel::{error::to_result, prelude::*};

/// A request to make a file share blocks of another file, or of itself.
///
/// # Invariants
///
/// Both files are on one volume of `V` and stay open for the lifetime of this value.
pub(crate) struct Remap<'a, V: FileSystem> {
    files: [*mut bindings::file; 2],
    starts: [i64; 2],
    length: i64,
    flags: u32,
    volume: PhantomData<&'a V>,
}

/// The ranges of a [`Remap`], checked, with both files locked against changes until this is
/// dropped.
///
/// # Invariants
///
/// Both files are locked exclusively by this task, and against faults.
#[must_use]
pub(crate) struct Remapping<'a, V: FileSystem> {
    source: &'a Inode<V>,
    target: &'a Locked<V>,
    /// Start of the range in the source, in bytes.
    pub(crate) from: u64,
    /// Start of the range in the target, in bytes.
    pub(crate) to: u64,
    /// Length in bytes; the source may have only part of the last block.
    pub(crate) length: u64,
}

impl<'a, V: FileSystem> Remap<'a, V> {
    /// Returns the file that will share the blocks.
    pub(crate) fn target(&self) -> &'a Inode<V> {
        // SAFETY: The file is open by the type invariant.
        unsafe { Inode::from_ptr((*self.files[1]).f_inode) }
    }

    /// Returns true if fewer bytes than requested may be done.
    pub(crate) fn may_shorten(&self) -> bool {
        self.flags & bindings::REMAP_FILE_CAN_SHORTEN != 0
    }

    /// Locks both files, writes back the dirty parts of the ranges, and checks the request; for a
    /// dedupe also that the contents are equal. Returns `None` if there is nothing to do.
    ///
    /// Fails as documented for these system calls.
    pub(crate) fn lock(&self) -> Result<Option<Remapping<'a, V>>> {
        let mut length = self.length;
        // SAFETY: By the type invariant both files are open. The guard unlocks them.
        unsafe {
            let [source, target] = self.files.map(|file| (*file).f_inode);
            bindings::lock_two_nondirectories(source, target);
            bindings::filemap_invalidate_lock_two((*source).i_mapping, (*target).i_mapping);
            let mut locked = Remapping {
                source: Inode::from_ptr(source),
                target: Locked::from_ptr(target),
                from: self.starts[0].max(0) as u64,
                to: self.starts[1].max(0) as u64,
                length: 0,
            };
            to_result(bindings::generic_remap_file_range_prep(
                self.files[0],
                self.starts[0],
                self.files[1],
                self.starts[1],
                &mut length,
                self.flags,
            ))?;
            locked.length = length.max(0) as u64;
            Ok((length > 0).then_some(locked))
        }
    }

    /// Returns true if either file is open for synchronous writes.
    fn is_sync(&self) -> bool {
        self.files.iter().any(|&file| {
            // SAFETY: The file is open by the type invariant.
            unsafe { bindings::rext4_file_is_sync(file) }
        })
    }
}

impl<V: FileSystem> Remapping<'_, V> {
    /// Returns the file that has the blocks.
    pub(crate) fn source(&self) -> &Inode<V> {
        self.source
    }

    /// Returns the file that will share them. It is locked as long as this lives.
    pub(crate) fn target(&self) -> &Locked<V> {
        self.target
    }
}

impl<V: FileSystem> Drop for Remapping<'_, V> {
    fn drop(&mut self) {
        // SAFETY: Both inodes are live, and by the type invariant locked by this task.
        unsafe { bindings::rext4_remap_unlock(self.source.as_ptr(), self.target.as_ptr()) };
    }
}

impl<V: Operations> Tables<V> {
    /// # Safety
    ///
    /// Must be called as the VFS calls it: with two open files of one volume of ours.
    pub(super) unsafe extern "C" fn remap_file_range(
        source: *mut bindings::file,
        from: i64,
        target: *mut bindings::file,
        to: i64,
        length: i64,
        flags: u32,
    ) -> i64 {
        if flags & !(bindings::REMAP_FILE_DEDUP | bindings::REMAP_FILE_ADVISORY) != 0 {
            return EINVAL.to_errno().into();
        }
        // INVARIANT: The VFS has checked this, and keeps the files open during the call.
        let call = Remap::<V> {
            files: [source, target],
            starts: [from, to],
            length,
            flags,
            volume: PhantomData,
        };
        let done = V::remap(&call).and_then(|done| {
            if done > 0 && call.is_sync() {
                V::sync_inode(call.target())?;
            }
            Ok(done)
        });
        match done {
            Ok(done) => i64::try_from(done).unwrap_or(i64::MAX),
            Err(error) => error.to_errno().into(),
        }
    }
}
