// SPDX-License-Identifier: GPL-2.0

//! The attributes of an inode that `statx` returns, and the flags that programs set
//! (`FS_IOC_SETFLAGS`, `FS_IOC_FSSETXATTR`).
//!
//! The VFS checks who may change flags, and converts the flags of both calls to one format.
//!
//! C headers: [`include/linux/stat.h`](srctree/include/linux/stat.h),
//! [`include/linux/fileattr.h`](srctree/include/linux/fileattr.h)

use super::{
    bindings,
    inode::{Inode, Locked, Timestamp},
    operations::{FileSystem, Operations},
    vfs::Tables,
};
use kernel::{error::from_result, prelude::*};

/// The attributes of an inode that the VFS does not know.
#[derive(Default)]
pub(crate) struct Status {
    /// Its flags, as programs see them (`FS_*_FL`).
    pub(crate) flags: u32,
    /// The time of its creation, if known.
    pub(crate) made: Option<Timestamp>,
    /// The number of 512-byte sectors that delayed allocation will add. Programs consider a file
    /// without sectors to consist of zeroes.
    pub(crate) pending_sectors: u64,
    /// The number of hidden subdirectories, which are not included in the link count.
    pub(crate) hidden_links: u32,
}

/// The flags of an inode that the VFS enforces (`S_*`).
#[allow(missing_docs)]
pub(crate) struct VfsFlags {
    pub(crate) sync: bool,
    pub(crate) append: bool,
    pub(crate) immutable: bool,
    pub(crate) noatime: bool,
    pub(crate) dirsync: bool,
}

impl<V: FileSystem> Inode<V> {
    /// Returns true if it has this `S_*` flag.
    pub(super) fn has_flag(&self, flag: u32) -> bool {
        // SAFETY: The inode is live by its type invariant; its flags are read with a single load.
        unsafe { core::ptr::addr_of!((*self.as_ptr()).i_flags).read_volatile() & flag != 0 }
    }
}

impl<V: FileSystem> Locked<V> {
    /// Sets the flags that the VFS enforces; others stay unchanged.
    pub(crate) fn set_flags(&self, flags: VfsFlags) {
        let mut bits = 0;
        let mut all = 0;
        for (set, bit) in [
            (flags.sync, bindings::S_SYNC),
            (flags.append, bindings::S_APPEND),
            (flags.immutable, bindings::S_IMMUTABLE),
            (flags.noatime, bindings::S_NOATIME),
            (flags.dirsync, bindings::S_DIRSYNC),
        ] {
            all |= bit;
            bits |= if set { bit } else { 0 };
        }
        // SAFETY: The inode is live, and locked by the type invariant.
        unsafe { bindings::inode_set_flags(self.as_ptr(), bits, all) };
    }
}

impl<V: Operations> Tables<V> {
    /// # Safety
    ///
    /// Must be called as the VFS calls it: with a path to an inode of ours and room for the result.
    pub(super) unsafe extern "C" fn getattr(
        idmap: *mut bindings::mnt_idmap,
        path: *const bindings::path,
        out: *mut bindings::kstat,
        mask: u32,
        _flags: u32,
    ) -> c_int {
        // SAFETY: The path leads to an inode of ours, and all are live for the call.
        unsafe {
            let status = V::status(Inode::from_ptr((*(*path).dentry).d_inode));
            let made = status.made.unwrap_or(Timestamp {
                seconds: 0,
                nanoseconds: 0,
            });
            let more = bindings::rext4_status {
                flags: status.flags,
                has_made: status.made.is_some(),
                made_seconds: made.seconds,
                made_nanoseconds: made.nanoseconds,
                pending_sectors: status.pending_sectors,
                hidden_links: status.hidden_links,
            };
            bindings::rext4_getattr(idmap, path, out, mask, &more);
        }
        0
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with an entry for an inode of ours and room for the
    /// result.
    pub(super) unsafe extern "C" fn fileattr_get(
        dentry: *mut bindings::dentry,
        out: *mut bindings::file_kattr,
    ) -> c_int {
        // SAFETY: The entry has an inode of ours, and the VFS gave us room for the answer.
        unsafe {
            let status = V::status(Inode::from_ptr((*dentry).d_inode));
            bindings::rext4_fileattr_fill(out, status.flags);
        }
        0
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with an entry for an inode of ours, which is locked, and
    /// its new flags.
    pub(super) unsafe extern "C" fn fileattr_set(
        _idmap: *mut bindings::mnt_idmap,
        dentry: *mut bindings::dentry,
        new: *mut bindings::file_kattr,
    ) -> c_int {
        from_result(|| {
            let mut project = 0;
            // SAFETY: The entry has an inode of ours, which is locked, and the new flags are live.
            unsafe {
                let flags = bindings::rext4_fileattr_flags(new, &mut project);
                V::set_flags(Locked::from_ptr((*dentry).d_inode), flags, project)?;
            }
            Ok(0)
        })
    }
}
