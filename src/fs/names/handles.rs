// SPDX-License-Identifier: GPL-2.0

//! Finding inodes by file handles, which programs and NFS clients keep for any length of time, and
//! may forge.

use crate::{
    format,
    fs::{alloc::ialloc, disk::inode, names::dir, state::Volume},
    kernel_glue::{not_a_directory, stale, Inode, InodeRef, SuperBlock},
};
use kernel::prelude::*;

/// Returns the inode with this number and generation; generation 0 matches any. The bitmap is
/// checked first, so that the remains of a free inode are not taken for a damaged one.
///
/// # Errors
///
/// `ESTALE` if there is none, if it is one of the file system's own, and while it is being created.
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

/// Returns the parent of a directory, according to its entry `..`.
pub(in crate::fs) fn parent(dir: &Inode<Volume>) -> Result<InodeRef<Volume>> {
    if !dir.is_directory() {
        return Err(not_a_directory());
    }
    dir::find(dir, b"..")?.ok_or(ENOENT)
}
