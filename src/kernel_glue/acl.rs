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
use core::{ptr, ptr::NonNull};
use kernel::{
    error::{from_err_ptr, from_result, to_result},
    prelude::*,
    sync::aref::{ARef, AlwaysRefCounted},
    types::Opaque,
};

/// An entry of an access control list: its tag, its permissions, and the user or group that it
/// names, if any, as an id on the volume.
pub(crate) use bindings::rext4_acl_entry as AclEntry;

/// Maximum number of entries of a list. An attribute has room for fewer.
const MOST_ENTRIES: usize = u16::MAX as usize;

/// An access control list. It never changes.
#[repr(transparent)]
pub(crate) struct AccessList(Opaque<bindings::posix_acl>);

// SAFETY: A list lives as long as references to it are counted in `a_refcount`.
unsafe impl AlwaysRefCounted for AccessList {
    fn inc_ref(&self) {
        // SAFETY: The list is live while it is borrowed.
        unsafe { bindings::rext4_acl_get(self.0.get()) };
    }

    unsafe fn dec_ref(list: NonNull<Self>) {
        // SAFETY: The caller owns a reference, which it gives up.
        unsafe { bindings::rext4_acl_release(list.cast().as_ptr()) };
    }
}

impl AccessList {
    /// Creates a list of these entries.
    ///
    /// # Errors
    ///
    /// `EFSCORRUPTED` if they do not form a valid list, or `ENOMEM`.
    pub(crate) fn new(entries: &[AclEntry]) -> Result<ARef<Self>> {
        if entries.len() > MOST_ENTRIES {
            return Err(super::corrupted());
        }
        // SAFETY: The pointer and the count describe a live slice.
        let list = from_err_ptr(unsafe { bindings::rext4_acl_new(entries.as_ptr(), entries.len() as u32) })?;
        // SAFETY: The list is new, and its reference is ours.
        unsafe { Self::from_raw(list) }.ok_or(ENOMEM)
    }

    /// Returns the entries.
    pub(crate) fn entries(&self) -> Result<KVec<AclEntry>> {
        // SAFETY: The list is live while it is borrowed.
        let count = unsafe { bindings::rext4_acl_count(self.0.get()) };
        let mut entries = KVec::with_capacity(count as usize, GFP_KERNEL)?;
        for number in 0..count {
            let mut entry = AclEntry::default();
            // SAFETY: The list is live and has an entry with this number, and `entry` is valid for
            // writes.
            unsafe { bindings::rext4_acl_entry(self.0.get(), number, &mut entry) };
            entries.push(entry, GFP_KERNEL)?;
        }
        Ok(entries)
    }

    /// Borrows a list to which someone else holds a reference.
    ///
    /// # Safety
    ///
    /// `list` must be null or a list that lives for `'a`.
    unsafe fn borrow<'a>(list: *mut bindings::posix_acl) -> Option<&'a Self> {
        // SAFETY: `Self` is a transparent wrapper, and the caller guarantees the rest.
        unsafe { list.cast::<Self>().as_ref() }
    }

    /// Takes over a reference.
    ///
    /// # Safety
    ///
    /// `list` must be null, or a list to which the caller owns a reference that it gives up.
    unsafe fn from_raw(list: *mut bindings::posix_acl) -> Option<ARef<Self>> {
        // SAFETY: `Self` is a transparent wrapper, and the caller guarantees the rest.
        NonNull::new(list.cast()).map(|list| unsafe { ARef::from_raw(list) })
    }
}

/// The access control lists that a new inode inherits from its directory: its own list and, for a
/// directory, the default list.
pub(crate) struct Inherited {
    /// The inode's own list.
    pub(crate) access: Option<ARef<AccessList>>,
    /// The default list, for new inodes in the directory.
    pub(crate) default: Option<ARef<AccessList>>,
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
            Ok(Some(list)) => ARef::into_raw(list).cast().as_ptr(),
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
            with_space(inode, || V::set_access_list(inode, default, borrowed, mode))?;
            // SAFETY: The inode is live and locked, and the cache takes its own reference.
            unsafe { bindings::set_cached_acl(ptr, kind, list) };
            Ok(0)
        })
    }
}
