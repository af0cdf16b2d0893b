// SPDX-License-Identifier: GPL-2.0

//! Extended attributes: the handlers that the VFS finds by the first part of a name, and the list of names.
//!
//! C header: [`include/linux/xattr.h`](srctree/include/linux/xattr.h)

use super::{bindings, inode::Inode, super_block::FileSystem, unsupported, vfs::Tables};
use core::ptr;
use kernel::{error::from_result, prelude::*};

/// A namespace of attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttributeSpace {
    /// `user.`
    User,
    /// `trusted.`
    Trusted,
    /// `security.`
    Security,
    /// The access list, which has no further name.
    AclAccess,
    /// The access list that new files in a directory get, which has no further name.
    AclDefault,
}

impl AttributeSpace {
    /// How names in it start.
    fn prefix(self) -> &'static CStr {
        match self {
            AttributeSpace::User => c"user.",
            AttributeSpace::Trusted => c"trusted.",
            AttributeSpace::Security => c"security.",
            AttributeSpace::AclAccess => c"system.posix_acl_access",
            AttributeSpace::AclDefault => c"system.posix_acl_default",
        }
    }

    /// The one that a handler is for.
    fn of_handler(flags: c_int) -> Result<Self> {
        [
            AttributeSpace::User,
            AttributeSpace::Trusted,
            AttributeSpace::Security,
        ]
        .into_iter()
        .find(|space| *space as c_int == flags)
        .ok_or(EINVAL)
    }
}

impl<V: FileSystem> Tables<V> {
    const fn handler(space: AttributeSpace, prefix: &'static CStr) -> bindings::xattr_handler {
        bindings::xattr_handler {
            name: ptr::null(),
            prefix: prefix.to_bytes_with_nul().as_ptr().cast(),
            flags: space as c_int,
            list: None,
            get: Some(Self::get_attribute),
            set: Some(Self::set_attribute),
        }
    }

    const USER: bindings::xattr_handler = Self::handler(AttributeSpace::User, c"user.");
    const TRUSTED: bindings::xattr_handler = Self::handler(AttributeSpace::Trusted, c"trusted.");
    const SECURITY: bindings::xattr_handler = Self::handler(AttributeSpace::Security, c"security.");

    /// `s_xattr`; ends in null.
    pub(super) const ATTRIBUTES: &'static [*const bindings::xattr_handler] =
        &[&Self::USER, &Self::TRUSTED, &Self::SECURITY, ptr::null()];

    /// # Safety
    ///
    /// Called by the VFS with one of our handlers, an inode of ours, a terminated name and room for `size` bytes, of
    /// which 0 only asks how many there are.
    unsafe extern "C" fn get_attribute(
        handler: *const bindings::xattr_handler,
        _dentry: *mut bindings::dentry,
        inode: *mut bindings::inode,
        name: *const c_char,
        buffer: *mut c_void,
        size: usize,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The VFS vouches for the arguments.
            let (inode, name, flags) = unsafe {
                (
                    Inode::<V>::from_ptr(inode),
                    CStr::from_char_ptr(name.cast()),
                    (*handler).flags,
                )
            };
            let value = V::attribute(inode, AttributeSpace::of_handler(flags)?, name.to_bytes())?;
            if size > 0 {
                if value.len() > size {
                    return Err(ERANGE);
                }
                // SAFETY: There is room for `size` bytes, and nothing else looks at it.
                unsafe { ptr::copy_nonoverlapping(value.as_ptr(), buffer.cast(), value.len()) };
            }
            Ok(value.len() as c_int)
        })
    }

    /// # Safety
    ///
    /// As for [`Self::get_attribute`]; without a `value` the attribute is to go.
    unsafe extern "C" fn set_attribute(
        handler: *const bindings::xattr_handler,
        _idmap: *mut bindings::mnt_idmap,
        _dentry: *mut bindings::dentry,
        _inode: *mut bindings::inode,
        name: *const c_char,
        _value: *const c_void,
        _size: usize,
        _flags: c_int,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The VFS vouches for the arguments.
            let (name, flags) = unsafe { (CStr::from_char_ptr(name.cast()), (*handler).flags) };
            // Who writes to a program that has capabilities first takes those away, and goes on if that is said to be
            // unsupported. It must not: the program would keep them.
            if AttributeSpace::of_handler(flags)? == AttributeSpace::Security
                && name.to_bytes() == b"capability"
            {
                return Err(EPERM);
            }
            Err(unsupported())
        })
    }

    /// # Safety
    ///
    /// Called by the VFS with an entry for an inode of ours and room for `size` bytes, of which 0 only asks how many
    /// there are.
    pub(super) unsafe extern "C" fn list_attributes(
        dentry: *mut bindings::dentry,
        buffer: *mut c_char,
        size: usize,
    ) -> isize {
        // SAFETY: The VFS vouches for the entry.
        let inode = unsafe { Inode::<V>::from_ptr((*dentry).d_inode) };
        let mut len = 0usize;
        // SAFETY: It may be called by any task.
        let admin = unsafe { bindings::rext4_is_admin() };
        let lists = inode.has_access_lists();
        let done = V::attributes(inode, &mut |space, name| {
            let shown = match space {
                AttributeSpace::Trusted => admin,
                AttributeSpace::AclAccess | AttributeSpace::AclDefault => lists,
                AttributeSpace::User | AttributeSpace::Security => true,
            };
            if !shown {
                return Ok(());
            }
            for part in [space.prefix().to_bytes(), name, b"\0"] {
                let end = len.checked_add(part.len()).ok_or(ERANGE)?;
                if size > 0 {
                    if end > size {
                        return Err(ERANGE);
                    }
                    // SAFETY: There is room for `size` bytes, `end` is not beyond them, and nothing else looks at them.
                    unsafe {
                        ptr::copy_nonoverlapping(part.as_ptr(), buffer.cast::<u8>().add(len), part.len())
                    };
                }
                len = end;
            }
            Ok(())
        });
        match done {
            Ok(()) => len as isize,
            Err(error) => error.to_errno() as isize,
        }
    }
}
