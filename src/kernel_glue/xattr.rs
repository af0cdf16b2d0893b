// SPDX-License-Identifier: GPL-2.0

//! Extended attributes: the handlers, which the VFS selects by the prefix of a name, and the list
//! of names.
//!
//! C header: [`include/linux/xattr.h`](srctree/include/linux/xattr.h)

use super::{
    bindings,
    inode::{Inode, NewInode},
    namespace::with_space,
    operations::{FileSystem, Operations},
    vfs::Tables,
};
use core::{ptr, slice};
use kernel::{
    error::{from_result, to_result},
    prelude::*,
};

/// Whether an attribute that is being set must exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetMode {
    /// It may or may not exist.
    Any,
    /// It must not exist (`XATTR_CREATE`).
    New,
    /// It must exist (`XATTR_REPLACE`).
    Existing,
}

/// A namespace of attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttributeSpace {
    /// `user.`
    User,
    /// `trusted.`
    Trusted,
    /// `security.`
    Security,
    /// The access control list; the name consists of the prefix only.
    AclAccess,
    /// The default access control list of a directory; the name consists of the prefix only.
    AclDefault,
}

impl AttributeSpace {
    /// Returns the prefix of names in this namespace.
    fn prefix(self) -> &'static CStr {
        match self {
            AttributeSpace::User => c"user.",
            AttributeSpace::Trusted => c"trusted.",
            AttributeSpace::Security => c"security.",
            AttributeSpace::AclAccess => c"system.posix_acl_access",
            AttributeSpace::AclDefault => c"system.posix_acl_default",
        }
    }

    /// Returns the namespace of a handler.
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

impl<V: Operations> Tables<V> {
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

    const USER: &'static bindings::xattr_handler = &Self::handler(AttributeSpace::User, c"user.");
    const TRUSTED: &'static bindings::xattr_handler = &Self::handler(AttributeSpace::Trusted, c"trusted.");
    const SECURITY: &'static bindings::xattr_handler = &Self::handler(AttributeSpace::Security, c"security.");

    /// `s_xattr`; terminated by null.
    pub(super) const ATTRIBUTES: &'static [*const bindings::xattr_handler] =
        &[Self::USER, Self::TRUSTED, Self::SECURITY, ptr::null()];

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with one of our handlers, an inode of ours, a terminated
    /// name and room for `size` bytes, of which 0 only asks how many there are.
    unsafe extern "C" fn get_attribute(
        handler: *const bindings::xattr_handler,
        _dentry: *mut bindings::dentry,
        inode: *mut bindings::inode,
        name: *const c_char,
        buffer: *mut c_void,
        size: usize,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The VFS guarantees the arguments.
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
                // SAFETY: The buffer has `size` bytes, and no one else accesses it.
                unsafe { ptr::copy_nonoverlapping(value.as_ptr(), buffer.cast(), value.len()) };
            }
            Ok(value.len() as c_int)
        })
    }

    /// # Safety
    ///
    /// As for [`Self::get_attribute`], with the inode locked and `value` having `size` bytes; if
    /// `value` is null, the attribute is removed.
    unsafe extern "C" fn set_attribute(
        handler: *const bindings::xattr_handler,
        _idmap: *mut bindings::mnt_idmap,
        _dentry: *mut bindings::dentry,
        inode: *mut bindings::inode,
        name: *const c_char,
        value: *const c_void,
        size: usize,
        flags: c_int,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The VFS guarantees the arguments.
            let (inode, name, space) = unsafe {
                (
                    Inode::<V>::from_ptr(inode),
                    CStr::from_char_ptr(name.cast()).to_bytes(),
                    (*handler).flags,
                )
            };
            let space = AttributeSpace::of_handler(space)?;
            let value = match (value.is_null(), size) {
                (true, _) => None,
                (false, 0) => Some(&[][..]),
                // SAFETY: The value has this size, and no one modifies it during the call.
                (false, _) => Some(unsafe { slice::from_raw_parts(value.cast::<u8>(), size) }),
            };
            let flags = flags as u32;
            let mode = if flags & bindings::XATTR_CREATE != 0 {
                SetMode::New
            } else if flags & bindings::XATTR_REPLACE != 0 {
                SetMode::Existing
            } else {
                SetMode::Any
            };
            with_space(inode, || V::set_attribute(inode, space, name, value, mode))?;
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with an entry for an inode of ours and room for `size`
    /// bytes, of which 0 only asks how many there are.
    pub(super) unsafe extern "C" fn list_attributes(
        dentry: *mut bindings::dentry,
        buffer: *mut c_char,
        size: usize,
    ) -> isize {
        // SAFETY: The VFS guarantees the dentry.
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
                    // SAFETY: The buffer has `size` bytes, `end` is not beyond them, and no one
                    // else accesses it.
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

/// Receives the name and the value of a label.
type TakeLabel<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result;

impl<V: FileSystem> NewInode<V> {
    /// Calls back with the labels that security modules assign to a new inode in `dir`: names in
    /// the namespace [`Security`](AttributeSpace::Security), and values.
    pub(crate) fn security_labels(&self, dir: &Inode<V>, name: &[u8], mut take: TakeLabel<'_>) -> Result {
        let len = u32::try_from(name.len()).map_err(|_| EINVAL)?;
        // SAFETY: The inodes are live, and the new one is known to no one else; the name has this
        // length; and `take_label` receives the `take` that it expects.
        to_result(unsafe {
            bindings::rext4_init_security(
                self.as_ptr(),
                dir.as_ptr(),
                name.as_ptr().cast(),
                len,
                Some(take_label),
                ptr::from_mut(&mut take).cast(),
            )
        })
    }
}

/// # Safety
///
/// `data` must be a [`TakeLabel`], `name` null-terminated, and `value` must have `len` bytes.
unsafe extern "C" fn take_label(
    data: *mut c_void,
    name: *const c_char,
    value: *const c_void,
    len: usize,
) -> c_int {
    from_result(|| {
        // SAFETY: Guaranteed by the caller.
        let (take, name) = unsafe {
            (
                &mut *data.cast::<TakeLabel<'_>>(),
                CStr::from_char_ptr(name.cast()),
            )
        };
        let value = match value.is_null() || len == 0 {
            true => &[][..],
            // SAFETY: As the caller promises.
            false => unsafe { slice::from_raw_parts(value.cast::<u8>(), len) },
        };
        take(name.to_bytes(), value).map(|()| 0)
    })
}
