// SPDX-License-Identifier: GPL-2.0

//! The flags of inodes that programs see and set (`chattr`).

use crate::{
    format::inode::flags,
    fs::{
        disk::inode::{self, Part},
        state::Volume,
    },
    kernel_glue::{unsupported, Inode, Locked, VfsFlags},
};
use kernel::prelude::*;

/// The flags of an inode that programs may see.
pub(in crate::fs) fn get(inode: &Inode<Volume>) -> Result<u32> {
    let found = inode.data()?.flags() & flags::VISIBLE;
    Ok(match inode.is_file() {
        true => found & !flags::PROJINHERIT,
        false => found,
    })
}

/// Sets the flags of an inode to `wanted`, and its project. Flags that programs can see but not
/// change are ignored.
///
/// # Errors
///
/// `EOPNOTSUPP` for unknown flags and flags that this type of inode cannot have; for changing how
/// the blocks of a file are mapped, data journaling, or casefolding; and for a project. `EPERM` for
/// other changes of an inode that is immutable and stays so.
pub(in crate::fs) fn set(inode: &Locked<Volume>, wanted: u32, project: u32) -> Result {
    let data = inode.data()?;
    let before = data.flags();
    if wanted & !flags::VISIBLE != 0 || project != 0 {
        return Err(unsupported());
    }
    let wanted = wanted & flags::CHANGEABLE;
    if flags::allowed(inode.mode(), wanted) != wanted {
        return Err(unsupported());
    }
    let changed = (before ^ wanted) & flags::CHANGEABLE;
    if before & wanted & flags::IMMUTABLE != 0 && changed != 0 {
        return Err(EPERM);
    }
    if changed & (flags::EXTENTS | flags::JOURNAL_DATA | flags::CASEFOLD) != 0 {
        return Err(unsupported());
    }
    if inode.is_file() && changed & wanted & flags::IMMUTABLE != 0 {
        // Pages that were written out are read-only in all mappings, so that each write through one
        // asks again.
        inode.wait_direct();
        inode.write_out(0..u64::MAX)?;
    }
    let handle = inode.super_block().volume()?.begin(inode::STORE_CREDITS, 0)?;
    if inode.is_sync() {
        handle.set_sync();
    }
    let set = |flags| {
        data.set_flags(flags);
        inode.set_flags(of_disk(flags));
    };
    set(before & !flags::CHANGEABLE | wanted);
    inode.touch(false);
    if let Err(error) = inode::store(&handle, inode, Part::Attributes) {
        set(before);
        return Err(error);
    }
    handle.stop()
}

/// Returns the flags on disk that the VFS enforces.
fn of_disk(own: u32) -> VfsFlags {
    let flag = |bit: u32| own & bit != 0;
    VfsFlags {
        sync: flag(flags::SYNC),
        append: flag(flags::APPEND),
        immutable: flag(flags::IMMUTABLE),
        noatime: flag(flags::NOATIME),
        dirsync: flag(flags::DIRSYNC),
    }
}
