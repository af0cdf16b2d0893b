// SPDX-License-Identifier: GPL-2.0

//! Access control lists (`struct posix_acl`), which the VFS caches in an inode and evaluates when
//! it checks permissions.
//!
//! C header: [`include/linux/posix_acl.h`](srctree/include/linux/posix_acl.h)

use super::{
    bindings,
    inode::{Inode, Locked},
    namespace::with_space,
    operations::Operations,
    vfs::Tables,
};
use core::{mem::ManuallyDrop, ptr, ptr::NonNull};
use kernel::{
    error::{from_err_ptr, from_result, to_result},
    prelude::*,
};

/// An entry of an access control list: its tag, its permissions, and the user or group that it
/// names, if any, as an id on the volume.
pub(crate) use bindings::rext4_acl_entry as AclEntry;

/// An access control list.
///
/// # Invariants
///
/// We hold one reference to the list.
pub(crate) struct AccessList(NonNull<bindings::posix_acl>);

impl AccessList {
    /// Creates a list of these entries. Fails with `EFSCORRUPTED` if they do not form a valid list.
    pub(crate) fn new(entries: &[AclEntry]) -> Result<Self> {
        let count = u32::try_from(entries.len()).map_err(|_| EINVAL)?;
        // SAFETY: The pointer and the count describe a live slice.
        let list = from_err_ptr(unsafe { bindings::rext4_acl_new(entries.as_ptr(), count) })?;
        // INVARIANT: The list is new, and its reference is ours.
        NonNull::new(list).map(AccessList).ok_or(ENOMEM)
    }

    /// Returns the entries.
    pub(crate) fn entries(&self) -> Result<KVec<AclEntry>> {
        // SAFETY: By the type invariant the list is live. It is never modified.
        let count = unsafe { bindings::rext4_acl_count(self.0.as_ptr()) };
        let mut entries = KVec::with_capacity(count as usize, GFP_KERNEL)?;
        for number in 0..count {
            let mut entry = AclEntry::default();
            // SAFETY: The list is live and has an entry with this number, and `entry` is valid for
            // writes.
            unsafe { bindings::rext4_acl_entry(self.0.as_ptr(), number, &mut entry) };
            entries.push(entry, GFP_KERNEL)?;
        }
        Ok(entries)
    }

    /// Borrows a list to which someone else holds a reference. The result must not be dropped.
    ///
    /// # Safety
    ///
    /// `list` must be null or a list that lives as long as the returned value.
    unsafe fn borrow(list: *mut bindings::posix_acl) -> Option<ManuallyDrop<Self>> {
        // INVARIANT: The caller guarantees that someone else's reference exists. It is never
        // released here.
        NonNull::new(list).map(|list| ManuallyDrop::new(AccessList(list)))
    }

    /// Takes over a reference.
    ///
    /// # Safety
    ///
    /// `list` must be null, or a list to which the caller owns a reference that it gives up.
    unsafe fn from_raw(list: *mut bindings::posix_acl) -> Option<Self> {
        // INVARIANT: Guaranteed by the caller.
        NonNull::new(list).map(AccessList)
    }

    /// Returns the list as a pointer, together with the reference.
    fn into_raw(self) -> *mut bindings::posix_acl {
        ManuallyDrop::new(self).0.as_ptr()
    }
}

impl Drop for AccessList {
    fn drop(&mut self) {
        // SAFETY: By the type invariant we own a reference, which is released once.
        unsafe { bindings::rext4_acl_release(self.0.as_ptr()) };
    }
}

/// The access control lists that a new inode inherits from its directory: its own list and, for a
/// directory, the default list.
pub(crate) struct Inherited {
    /// The inode's own list.
    pub(crate) access: Option<AccessList>,
    /// The default list, for new inodes in the directory.
    pub(crate) default: Option<AccessList>,
}

impl Inherited {
    /// No lists.
    pub(crate) const NONE: Inherited = Inherited {
        access: None,
        default: None,
    };

    /// Returns the lists that a new inode with this mode inherits from `dir`, and removes the
    /// permissions from the mode that the list does not grant.
    ///
    /// # Safety
    ///
    /// `dir` must be live.
    pub(super) unsafe fn new(dir: *mut bindings::inode, mode: &mut u16) -> Result<Self> {
        let (mut access, mut default) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: The directory is live. The out-pointers are valid for writes, and each list is
        // returned with a reference.
        unsafe {
            to_result(bindings::posix_acl_create(dir, mode, &mut default, &mut access))?;
            Ok(Inherited {
                access: AccessList::from_raw(access),
                default: AccessList::from_raw(default),
            })
        }
    }
}

impl<V: Operations> Tables<V> {
    /// # Safety
    ///
    /// Must be called as the VFS calls it: with an inode of ours; `in_rcu` forbids to sleep.
    pub(super) unsafe extern "C" fn get_access_list(
        inode: *mut bindings::inode,
        kind: c_int,
        in_rcu: bool,
    ) -> *mut kernel::bindings::posix_acl {
        if in_rcu {
            return ECHILD.to_ptr();
        }
        // SAFETY: The inode is live.
        let inode = unsafe { Inode::<V>::from_ptr(inode) };
        match V::access_list(inode, kind == bindings::ACL_TYPE_DEFAULT as c_int) {
            Ok(Some(list)) => list.into_raw().cast(),
            Ok(None) => ptr::null_mut(),
            Err(error) => error.to_ptr(),
        }
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with an entry for an inode of ours, which is locked, and
    /// a list, or null.
    pub(super) unsafe extern "C" fn set_access_list(
        idmap: *mut bindings::mnt_idmap,
        dentry: *mut bindings::dentry,
        list: *mut kernel::bindings::posix_acl,
        kind: c_int,
    ) -> c_int {
        from_result(|| {
            let default = kind == bindings::ACL_TYPE_DEFAULT as c_int;
            // SAFETY: The dentry is live.
            let ptr = unsafe { (*dentry).d_inode };
            // SAFETY: The inode is live, locked, and one of ours.
            let inode = unsafe { Locked::<V>::from_ptr(ptr) };
            if default && !inode.is_directory() {
                return if list.is_null() { Ok(0) } else { Err(EACCES) };
            }
            let (mut list, mut mode) = (list.cast::<bindings::posix_acl>(), inode.mode());
            if !default && !list.is_null() {
                // SAFETY: All arguments are live. The list is replaced by null if it is equivalent
                // to the mode.
                to_result(unsafe { bindings::posix_acl_update_mode(idmap, ptr, &mut mode, &mut list) })?;
            }
            // SAFETY: The VFS holds a reference to the list during the call.
            let borrowed = unsafe { AccessList::borrow(list) };
            let mode = Some(mode).filter(|&mode| mode != inode.mode());
            with_space(inode, || {
                V::set_access_list(inode, default, borrowed.as_deref(), mode)
            })?;
            // SAFETY: The inode is live and locked, and the cache takes its own reference.
            unsafe { bindings::set_cached_acl(ptr, kind, list) };
            Ok(0)
        })
    }
}
