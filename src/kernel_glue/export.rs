// SPDX-License-Identifier: GPL-2.0

//! File handles, by which NFS and `open_by_handle_at` find inodes without a name, generated from
//! [`ExportOperations`](super::ExportOperations).
//!
//! A handle contains the inode's number and generation, and those of its directory if requested.
//! The format is the kernel's own for 32-bit numbers, as in stock ext4, so handles stay valid if
//! the driver is changed.
//!
//! C header: [`include/linux/exportfs.h`](srctree/include/linux/exportfs.h)

use super::{bindings, inode::Inode, operations::Operations, super_block::SuperBlock, vfs::Tables};
use kernel::{error::from_result, prelude::*};

impl<V: Operations> Tables<V> {
    pub(super) const EXPORT: &'static bindings::export_operations = &bindings::export_operations {
        encode_fh: Some(bindings::rext4_encode_handle),
        fh_to_dentry: Some(Self::handle_to_dentry),
        fh_to_parent: Some(Self::handle_to_parent),
        get_parent: Some(Self::get_parent),
        commit_metadata: Some(Self::commit_metadata),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// Must be called as exportfs calls it: with a mounted superblock of ours. Returns a reference
    /// to the inode, or an error.
    unsafe extern "C" fn by_handle(
        sb: *mut bindings::super_block,
        ino: u64,
        generation: u32,
    ) -> *mut bindings::inode {
        // SAFETY: The superblock is live.
        let sb = unsafe { SuperBlock::<V>::from_ptr(sb) };
        match V::by_handle(sb, ino, generation).and_then(|inode| inode.into_raw_of(sb)) {
            Ok(inode) => inode,
            Err(error) => error.to_ptr(),
        }
    }

    /// # Safety
    ///
    /// Must be called as exportfs calls it: with a mounted superblock of ours and a handle.
    unsafe extern "C" fn handle_to_dentry(
        sb: *mut bindings::super_block,
        handle: *mut bindings::fid,
        len: c_int,
        kind: c_int,
    ) -> *mut bindings::dentry {
        // SAFETY: The caller guarantees the arguments.
        unsafe { bindings::generic_fh_to_dentry(sb, handle, len, kind, Some(Self::by_handle)).cast() }
    }

    /// # Safety
    ///
    /// As for [`Self::handle_to_dentry`].
    unsafe extern "C" fn handle_to_parent(
        sb: *mut bindings::super_block,
        handle: *mut bindings::fid,
        len: c_int,
        kind: c_int,
    ) -> *mut bindings::dentry {
        // SAFETY: The caller guarantees the arguments.
        unsafe { bindings::generic_fh_to_parent(sb, handle, len, kind, Some(Self::by_handle)).cast() }
    }

    /// # Safety
    ///
    /// Must be called as exportfs calls it: with an entry for a directory of ours.
    unsafe extern "C" fn get_parent(child: *mut bindings::dentry) -> *mut bindings::dentry {
        // SAFETY: The entry is live, and has an inode of ours.
        let dir = unsafe { Inode::<V>::from_ptr((*child).d_inode) };
        match V::parent(dir).and_then(|parent| parent.into_raw_of(dir.super_block())) {
            // SAFETY: This takes the reference to the inode, which is of the entry's superblock.
            Ok(parent) => unsafe { bindings::d_obtain_alias(parent) },
            Err(error) => error.to_ptr(),
        }
    }

    /// # Safety
    ///
    /// Must be called as the NFS server calls it: with an inode of ours that it has changed.
    unsafe extern "C" fn commit_metadata(inode: *mut bindings::inode) -> c_int {
        // SAFETY: The inode is live.
        from_result(|| V::sync_inode(unsafe { Inode::from_ptr(inode) }).map(|()| 0))
    }
}
