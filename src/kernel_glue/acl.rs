// SPDX-License-Identifier: GPL-2.0

//! Access lists (`struct posix_acl`), which the VFS keeps beside an inode and looks at when it checks permissions.
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

/// One entry of an access list: its tag, its permissions, and the user or group that it names, if any, in the volume's
/// own numbers.
pub(crate) use bindings::rext4_acl_entry as AclEntry;

/// An access list.
///
/// # Invariants
///
/// One reference to the list is ours.
pub(crate) struct AccessList(NonNull<bindings::posix_acl>);

impl AccessList {
    /// One of these entries. Fails with `EFSCORRUPTED` if they do not go together.
    pub(crate) fn new(entries: &[AclEntry]) -> Result<Self> {
        let count = u32::try_from(entries.len()).map_err(|_| EINVAL)?;
        // SAFETY: There are as many entries.
        let list = from_err_ptr(unsafe { bindings::rext4_acl_new(entries.as_ptr(), count) })?;
        // INVARIANT: It was just made.
        NonNull::new(list).map(AccessList).ok_or(ENOMEM)
    }

    /// Its entries.
    pub(crate) fn entries(&self) -> Result<KVec<AclEntry>> {
        // SAFETY: By the type invariant the list is live, and it never changes.
        let count = unsafe { bindings::rext4_acl_count(self.0.as_ptr()) };
        let mut entries = KVec::with_capacity(count as usize, GFP_KERNEL)?;
        for number in 0..count {
            let mut entry = AclEntry::default();
            // SAFETY: As above; the list has an entry of this number, and there is room for it.
            unsafe { bindings::rext4_acl_entry(self.0.as_ptr(), number, &mut entry) };
            entries.push(entry, GFP_KERNEL)?;
        }
        Ok(entries)
    }

    /// Borrows a list that somebody else holds, if there is one; it must not be dropped.
    ///
    /// # Safety
    ///
    /// `list` must be null or a list that lives as long as the returned value.
    unsafe fn borrow(list: *mut bindings::posix_acl) -> Option<ManuallyDrop<Self>> {
        // INVARIANT: The reference is the other's, as the caller promises, and is not given back.
        NonNull::new(list).map(|list| ManuallyDrop::new(AccessList(list)))
    }

    /// Takes over a reference, if there is one.
    ///
    /// # Safety
    ///
    /// `list` must be null or a list of which one reference is the caller's to give away.
    unsafe fn from_raw(list: *mut bindings::posix_acl) -> Option<Self> {
        // INVARIANT: As the caller promises.
        NonNull::new(list).map(AccessList)
    }

    /// Gives the reference away as a pointer.
    fn into_raw(self) -> *mut bindings::posix_acl {
        ManuallyDrop::new(self).0.as_ptr()
    }
}

impl Drop for AccessList {
    fn drop(&mut self) {
        // SAFETY: By the type invariant one reference is ours to give back.
        unsafe { bindings::rext4_acl_release(self.0.as_ptr()) };
    }
}

/// The access lists that a new inode inherits from its directory: its own one and, if it is a directory, the default one.
pub(crate) struct Inherited {
    /// Its own.
    pub(crate) access: Option<AccessList>,
    /// The default one, for new inodes in the directory.
    pub(crate) default: Option<AccessList>,
}

impl Inherited {
    /// None.
    pub(crate) const NONE: Inherited = Inherited {
        access: None,
        default: None,
    };

    /// Those that `dir` has for something new of this mode, of which the rights are taken that it is not to have.
    ///
    /// # Safety
    ///
    /// `dir` must be live.
    pub(super) unsafe fn new(dir: *mut bindings::inode, mode: &mut u16) -> Result<Self> {
        let (mut access, mut default) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: The directory is live, and there is room for the two lists, each of which comes with a reference.
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
            // SAFETY: The entry is live.
            let ptr = unsafe { (*dentry).d_inode };
            // SAFETY: The inode is live, ours and locked.
            let inode = unsafe { Locked::<V>::from_ptr(ptr) };
            if default && !inode.is_directory() {
                return if list.is_null() { Ok(0) } else { Err(EACCES) };
            }
            let (mut list, mut mode) = (list.cast::<bindings::posix_acl>(), inode.mode());
            if !default && !list.is_null() {
                // SAFETY: All are live. The list is replaced by null if the mode says as much.
                to_result(unsafe { bindings::posix_acl_update_mode(idmap, ptr, &mut mode, &mut list) })?;
            }
            // SAFETY: The VFS holds the list during the call.
            let borrowed = unsafe { AccessList::borrow(list) };
            let mode = Some(mode).filter(|&mode| mode != inode.mode());
            with_space(inode, || {
                V::set_access_list(inode, default, borrowed.as_deref(), mode)
            })?;
            // SAFETY: The inode is live and locked, and the cache takes a reference of its own.
            unsafe { bindings::set_cached_acl(ptr, kind, list) };
            Ok(0)
        })
    }
}
