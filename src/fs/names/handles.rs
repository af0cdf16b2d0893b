// SPDX-License-Identifier: GPL-2.0

//! Finding inodes by handles, which programs and NFS clients keep for as long as they like, and may
//! make up.

use crate::{
    format,
    fs::{alloc::ialloc, disk::inode, names::dir, state::Volume},
    kernel_glue::{not_a_directory, stale, Inode, InodeRef, SuperBlock},
};
use kernel::prelude::*;

/// The inode of this number and generation; a generation of 0 stands for any.
///
/// # Errors
///
/// `ESTALE` when there is none, when it is one of the file system's own, and while it is being
/// made. The bitmap is asked first: what lies in the inode table where no inode is must not be
/// taken for a damaged one.
pub(in crate::fs) fn by_handle(
    sb: &SuperBlock<Volume>,
    ino: u64,
    generation: u32,
) -> Result<InodeRef<Volume>> {
    let volume = sb.volume()?;
    let ino = u32::try_from(ino).map_err(|_| stale())?;
    if !format::inode::is_ordinary(&volume.layout, ino) || volume.is_system_inode(ino) {
        return Err(stale());
    }
    if !sb.is_cached(ino) && !ialloc::is_used(sb, ino)? {
        return Err(stale());
    }
    let inode = inode::get(sb, ino)?;
    match generation == 0 || inode.generation() == generation {
        true => Ok(inode),
        false => Err(stale()),
    }
}

/// The directory that a directory is in, as its own name for it says.
pub(in crate::fs) fn parent(dir: &Inode<Volume>) -> Result<InodeRef<Volume>> {
    if !dir.is_directory() {
        return Err(not_a_directory());
    }
    dir::find(dir, b"..")?.ok_or(ENOENT)
}
