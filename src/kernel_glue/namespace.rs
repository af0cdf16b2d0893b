// SPDX-License-Identifier: GPL-2.0

//! The VFS operations that change directories, attributes and the volume's state, generated from
//! [`Operations`].
//!
//! The VFS holds the directories' locks around each of these and has checked permissions. A new
//! inode is created here, since its owner depends on the mount through which it is created, and
//! passed to the file system as a [`Blank`].
//!
//! C headers: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use super::{
    acl::Inherited,
    bindings,
    inode::{Blank, Inode, Locked},
    operations::{FileSystem, Operations},
    super_block::SuperBlock,
    vfs::Tables,
};
use core::ptr;
use kernel::{
    error::{from_result, to_result},
    prelude::*,
};

/// The properties of a new inode in addition to its [`Blank`].
pub(crate) struct Make<'a> {
    /// The device number of a character or block device, in the encoding of `MKDEV`.
    pub(crate) device: u32,
    /// The target of a symbolic link, without a terminator.
    pub(crate) target: Option<&'a [u8]>,
    /// The access control lists that it inherits.
    pub(crate) lists: Inherited,
    /// True if security modules assign labels to it.
    pub(crate) labelled: bool,
}

/// The arguments of a rename.
pub(crate) struct Rename<'a, V: FileSystem> {
    /// The directory that currently contains the name.
    pub(crate) old_dir: &'a Locked<V>,
    /// The current name.
    pub(crate) old_name: &'a [u8],
    /// The inode to rename. A directory that stays in its parent is not locked.
    pub(crate) inode: &'a Inode<V>,
    /// The directory of the new name, possibly the same one.
    pub(crate) new_dir: &'a Locked<V>,
    /// The new name.
    pub(crate) new_name: &'a [u8],
    /// The inode that has the new name and is replaced, if there is one.
    pub(crate) replaced: Option<&'a Locked<V>>,
    /// The inode that has the new name and gets the old one. A directory that stays in its parent
    /// is not locked.
    pub(crate) exchanged: Option<&'a Inode<V>>,
    /// Creates the whiteout, a character device 0, that replaces the old name (`RENAME_WHITEOUT`).
    pub(crate) whiteout: Option<&'a dyn Fn() -> Result<Blank<V>>>,
}

/// Returns the name of a dentry.
///
/// # Safety
///
/// `dentry` must be live and its directory locked for `'a`.
pub(super) unsafe fn name_of<'a>(dentry: *mut bindings::dentry) -> &'a [u8] {
    // SAFETY: The name does not change while its directory is locked, which the caller guarantees.
    unsafe {
        let name = &(*dentry).__bindgen_anon_1.d_name;
        let len = name.__bindgen_anon_1.__bindgen_anon_1.len as usize;
        core::slice::from_raw_parts(name.name, len)
    }
}

/// Calls `act`, and once more if it failed with `ENOSPC` and recently freed blocks have become
/// available.
pub(super) fn with_space<V: Operations, T>(inode: &Inode<V>, act: impl Fn() -> Result<T>) -> Result<T> {
    match act() {
        Err(ENOSPC) if V::wait_for_space(inode)? => act(),
        done => done,
    }
}

impl<V: Operations> Tables<V> {
    /// Creates an inode and its name.
    ///
    /// # Safety
    ///
    /// The arguments must be live and belong to one of our volumes, and the directory must be
    /// locked.
    unsafe fn make(
        idmap: *mut bindings::mnt_idmap,
        dir: *mut bindings::inode,
        dentry: *mut bindings::dentry,
        mut mode: u16,
        mut make: Make<'_>,
    ) -> Result {
        // SAFETY: Guaranteed by the caller.
        let (parent, name) = unsafe { (Locked::<V>::from_ptr(dir), name_of(dentry)) };
        // SAFETY: The directory is live.
        make.lists = unsafe { Inherited::new(dir, &mut mode) }?;
        let new = with_space(parent, || {
            // SAFETY: The directory and the idmap are live.
            let blank = unsafe { Blank::new(parent.super_block(), idmap, dir, mode) }?;
            V::create(parent, name, blank, &make)
        })?;
        let new = new.into_raw_of(parent.super_block())?;
        // SAFETY: The inode is new, locked and of the directory's volume; this unlocks it and takes
        // its reference.
        unsafe { bindings::d_instantiate_new(dentry, new) };
        Ok(())
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with a locked directory of ours and an entry for a name
    /// that is not there.
    pub(super) unsafe extern "C" fn create(
        idmap: *mut bindings::mnt_idmap,
        dir: *mut bindings::inode,
        dentry: *mut bindings::dentry,
        mode: u16,
        _exclusive: bool,
    ) -> c_int {
        // SAFETY: The VFS guarantees the arguments.
        unsafe { Self::mknod(idmap, dir, dentry, mode, 0) }
    }

    /// # Safety
    ///
    /// As for [`Self::create`].
    pub(super) unsafe extern "C" fn mknod(
        idmap: *mut bindings::mnt_idmap,
        dir: *mut bindings::inode,
        dentry: *mut bindings::dentry,
        mode: u16,
        device: u32,
    ) -> c_int {
        let make = Make {
            device,
            target: None,
            lists: Inherited::NONE,
            labelled: true,
        };
        // SAFETY: The VFS guarantees the arguments.
        from_result(|| unsafe { Self::make(idmap, dir, dentry, mode, make) }.map(|()| 0))
    }

    /// # Safety
    ///
    /// As for [`Self::create`].
    pub(super) unsafe extern "C" fn mkdir(
        idmap: *mut bindings::mnt_idmap,
        dir: *mut bindings::inode,
        dentry: *mut bindings::dentry,
        mode: u16,
    ) -> *mut bindings::dentry {
        let make = Make {
            device: 0,
            target: None,
            lists: Inherited::NONE,
            labelled: true,
        };
        let mode = mode | bindings::S_IFDIR as u16;
        // SAFETY: The VFS guarantees the arguments.
        match unsafe { Self::make(idmap, dir, dentry, mode, make) } {
            Ok(()) => ptr::null_mut(),
            Err(error) => error.to_ptr(),
        }
    }

    /// # Safety
    ///
    /// As for [`Self::create`], with a null-terminated target.
    pub(super) unsafe extern "C" fn symlink(
        idmap: *mut bindings::mnt_idmap,
        dir: *mut bindings::inode,
        dentry: *mut bindings::dentry,
        target: *const c_char,
    ) -> c_int {
        // SAFETY: The target is null-terminated.
        let target = unsafe { CStr::from_char_ptr(target) }.to_bytes();
        let make = Make {
            device: 0,
            target: Some(target),
            lists: Inherited::NONE,
            labelled: true,
        };
        let mode = (bindings::S_IFLNK | 0o777) as u16;
        // SAFETY: The VFS guarantees the arguments.
        from_result(|| unsafe { Self::make(idmap, dir, dentry, mode, make) }.map(|()| 0))
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with a directory of ours and a file that is being opened
    /// on what is made.
    pub(super) unsafe extern "C" fn tmpfile(
        idmap: *mut bindings::mnt_idmap,
        dir: *mut bindings::inode,
        file: *mut bindings::file,
        mut mode: u16,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The VFS guarantees the arguments.
            let (parent, lists) = unsafe { (Inode::<V>::from_ptr(dir), Inherited::new(dir, &mut mode)?) };
            let make = Make {
                device: 0,
                target: None,
                lists,
                labelled: true,
            };
            let new = with_space(parent, || {
                // SAFETY: The directory and the idmap are live.
                let blank = unsafe { Blank::new(parent.super_block(), idmap, dir, mode) }?;
                V::tmpfile(parent, blank, &make)
            })?;
            let new = new.into_raw_of(parent.super_block())?;
            // SAFETY: The inode is new, locked and of the directory's volume; this unlocks it and
            // takes its reference.
            to_result(unsafe { bindings::rext4_open_tmpfile(file, new) }).map(|()| 0)
        })
    }

    /// # Safety
    ///
    /// As for [`Self::create`]; `old` is a dentry of the inode that gets another name, which is
    /// locked.
    pub(super) unsafe extern "C" fn link(
        old: *mut bindings::dentry,
        dir: *mut bindings::inode,
        dentry: *mut bindings::dentry,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The VFS guarantees the arguments.
            let (dir, name, inode) = unsafe {
                (
                    Locked::<V>::from_ptr(dir),
                    name_of(dentry),
                    Locked::<V>::from_ptr((*old).d_inode),
                )
            };
            with_space(dir, || V::link(inode, dir, name))?;
            // SAFETY: The inode is live; the dentry takes over the reference.
            unsafe {
                bindings::ihold(inode.as_ptr());
                bindings::d_instantiate(dentry, inode.as_ptr());
            }
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with a locked directory and an entry for a name in it,
    /// whose inode is locked.
    pub(super) unsafe extern "C" fn unlink(
        dir: *mut bindings::inode,
        dentry: *mut bindings::dentry,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The VFS guarantees the arguments.
            let (dir, name, inode) = unsafe {
                (
                    Locked::<V>::from_ptr(dir),
                    name_of(dentry),
                    Locked::<V>::from_ptr((*dentry).d_inode),
                )
            };
            V::unlink(dir, name, inode).map(|()| 0)
        })
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with locked directories and, if there is one, a locked
    /// inode that has the new name.
    pub(super) unsafe extern "C" fn rename(
        idmap: *mut bindings::mnt_idmap,
        old_dir: *mut bindings::inode,
        old: *mut bindings::dentry,
        new_dir: *mut bindings::inode,
        new: *mut bindings::dentry,
        flags: u32,
    ) -> c_int {
        from_result(|| {
            // With RENAME_NOREPLACE, the VFS has checked that the new name does not exist.
            let known = bindings::RENAME_NOREPLACE | bindings::RENAME_EXCHANGE | bindings::RENAME_WHITEOUT;
            if flags & !known != 0 {
                return Err(EINVAL);
            }
            let whiteout = || {
                // SAFETY: The directory and the idmap are live during the call.
                unsafe {
                    let dir = Inode::<V>::from_ptr(old_dir);
                    Blank::new(dir.super_block(), idmap, old_dir, bindings::S_IFCHR as u16)
                }
            };
            // SAFETY: The VFS guarantees the arguments.
            let rename = unsafe {
                let target = (*new).d_inode;
                let exchange = flags & bindings::RENAME_EXCHANGE != 0;
                Rename {
                    old_dir: Locked::<V>::from_ptr(old_dir),
                    old_name: name_of(old),
                    inode: Inode::from_ptr((*old).d_inode),
                    new_dir: Locked::from_ptr(new_dir),
                    new_name: name_of(new),
                    replaced: (!exchange && !target.is_null()).then(|| Locked::from_ptr(target)),
                    exchanged: (exchange && !target.is_null()).then(|| Inode::from_ptr(target)),
                    whiteout: (flags & bindings::RENAME_WHITEOUT != 0).then_some(&whiteout),
                }
            };
            with_space(rename.new_dir, || V::rename(&rename)).map(|()| 0)
        })
    }

    /// Fails with `EPERM` where the flags of an inode forbid that these attributes (`ATTR_*`)
    /// change: the VFS does not ask for a file that was opened before it got them.
    fn may_change(inode: &Inode<V>, attributes: u32) -> Result {
        let guarded =
            bindings::ATTR_MODE | bindings::ATTR_UID | bindings::ATTR_GID | bindings::ATTR_TIMES_SET;
        if inode.has_flag(bindings::S_IMMUTABLE)
            || inode.has_flag(bindings::S_APPEND) && attributes & guarded != 0
        {
            return Err(EPERM);
        }
        Ok(())
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with an entry of ours whose inode is locked.
    pub(super) unsafe extern "C" fn setattr(
        idmap: *mut bindings::mnt_idmap,
        dentry: *mut bindings::dentry,
        attr: *mut bindings::iattr,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The VFS guarantees the arguments.
            unsafe {
                let ptr = (*dentry).d_inode;
                Self::check_writes(Inode::from_ptr(ptr))?;
                Self::may_change(Inode::from_ptr(ptr), (*attr).ia_valid)?;
                to_result(bindings::setattr_prepare(idmap, dentry, attr))?;
                let inode = Locked::<V>::from_ptr(ptr);
                if (*attr).ia_valid & bindings::ATTR_MODE != 0 {
                    // The access control list must agree with the mode.
                    to_result(bindings::posix_acl_chmod(idmap, dentry, (*attr).ia_mode))?;
                }
                if (*attr).ia_valid & bindings::ATTR_SIZE != 0 {
                    V::resize(inode, (*attr).ia_size.max(0) as u64)?;
                }
                bindings::setattr_copy(idmap, ptr, attr);
                V::store(inode)?;
            }
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with an inode of ours that was changed in memory.
    pub(super) unsafe extern "C" fn dirty_inode(inode: *mut bindings::inode, _flags: c_int) {
        // SAFETY: The inode is live.
        let inode = unsafe { Inode::<V>::from_ptr(inode) };
        if Self::check_writes(inode).is_err() {
            return;
        }
        if let Some(error) = V::store(inode).err().filter(|_| SuperBlock::<V>::may_log()) {
            pr_err!(
                "{}: inode {}: could not be written: error {}\n",
                inode.super_block().name(),
                inode.number(),
                error.to_errno()
            );
        }
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with an inode of ours; it already is in the journal, and
    /// only the commit may be missing.
    pub(super) unsafe extern "C" fn write_inode(
        inode: *mut bindings::inode,
        control: *mut bindings::writeback_control,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The inode and the request are live.
            let (inode, waits) = unsafe { (Inode::<V>::from_ptr(inode), bindings::rext4_wbc_waits(control)) };
            if waits {
                V::sync_inode(inode)?;
            }
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with an inode of ours without references.
    pub(super) unsafe extern "C" fn evict_inode(inode: *mut bindings::inode) {
        // SAFETY: No one else uses the inode. Freeze protection is taken as for every change.
        unsafe {
            bindings::truncate_inode_pages_final(ptr::addr_of_mut!((*inode).i_data));
            let this = Locked::<V>::from_ptr(inode);
            let sb = (*inode).i_sb;
            if this.links() == 0 && !bindings::is_bad_inode(inode) && this.data().is_ok() {
                bindings::rext4_start_internal_write(sb);
                V::evict(this);
                bindings::rext4_end_internal_write(sb);
            } else if V::needs_forget(this) && bindings::rext4_try_internal_write(sb) {
                // Memory reclaim must not wait for a frozen volume. The blocks reserved for the
                // inode then stay recorded under its number.
                V::forget(this);
                bindings::rext4_end_internal_write(sb);
            }
            bindings::clear_inode(inode);
        }
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with a mounted superblock of ours.
    pub(super) unsafe extern "C" fn sync_fs(sb: *mut bindings::super_block, wait: c_int) -> c_int {
        from_result(|| {
            // SAFETY: The superblock is live.
            let sb = unsafe { SuperBlock::<V>::from_ptr(sb) };
            sb.volume()?.sync(sb, wait != 0).map(|()| 0)
        })
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with a mounted superblock of ours whose writers have
    /// been stopped.
    pub(super) unsafe extern "C" fn freeze_fs(sb: *mut bindings::super_block) -> c_int {
        from_result(|| {
            // SAFETY: The superblock is live.
            let sb = unsafe { SuperBlock::<V>::from_ptr(sb) };
            sb.volume()?.freeze(sb, true).map(|()| 0)
        })
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with a superblock of ours that was frozen.
    pub(super) unsafe extern "C" fn unfreeze_fs(sb: *mut bindings::super_block) -> c_int {
        from_result(|| {
            // SAFETY: The superblock is live.
            let sb = unsafe { SuperBlock::<V>::from_ptr(sb) };
            sb.volume()?.freeze(sb, false).map(|()| 0)
        })
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with an open file or directory of ours.
    pub(super) unsafe extern "C" fn fsync(
        file: *mut bindings::file,
        start: i64,
        end: i64,
        _data_only: c_int,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The file is open, so its inode is live.
            unsafe {
                Self::check_writes(Inode::from_ptr((*file).f_inode))?;
                to_result(bindings::file_write_and_wait_range(file, start, end))?;
                V::sync_inode(Inode::<V>::from_ptr((*file).f_inode)).map(|()| 0)
            }
        })
    }
}
