// SPDX-License-Identifier: GPL-2.0

//! Entering and leaving the state in which blocks of the volume may have several owners.
//!
//! The superblock has the feature `shared_blocks` in that state. Stock ext4 then mounts the volume
//! only read-only, and only if the orphan file is empty, so orphans are in the legacy list.

use crate::{
    fs::{alloc::space::Sharing, disk::super_disk, names::orphan, state::Volume},
    kernel_glue::{unsupported, SuperBlock},
};
use kernel::{
    prelude::*,
    sync::atomic::{Full, Relaxed},
};

/// Prepares the volume for shared blocks. Must be called before
/// [`share`](crate::fs::space::share), with no handle open and no inode locked.
///
/// The superblock has the feature before the first block is shared, and at least as long as the
/// result exists.
///
/// # Errors
///
/// `EROFS` when the volume is not writable. `EOPNOTSUPP` when there is no index of owners, when it
/// is not complete yet, or when no block is shared and the mount does not permit sharing; programs
/// then copy the data instead. `ENOSPC` when there is no space for the reference counts.
pub(in crate::fs) fn prepare(sb: &SuperBlock<Volume>) -> Result<Sharing<'_>> {
    let volume = sb.volume()?;
    volume.journal()?;
    let index = volume.index().ok_or_else(unsupported)?;
    let mut sharers = volume.shared.sharers.lock();
    if !volume.shares() {
        if !volume.shared.allowed.load(Relaxed) || !index.is_complete()? {
            return Err(unsupported());
        }
        index.prepare_sharing()?;
        let _write = sb.internal_write();
        orphan::empty_file(sb)
            .and_then(|()| super_disk::note_shared_blocks(volume, sb, true))
            .inspect_err(|_| orphan::use_file(volume))?;
        volume.shared.on.store(true, Relaxed);
    }
    *sharers += 1;
    Ok(Sharing(volume))
}

/// While this exists, no block becomes shared.
#[must_use]
pub(crate) struct Unshared<'a> {
    volume: &'a Volume,
    allowed: bool,
}

/// Prevents blocks from becoming shared. Fails with `EOPNOTSUPP` if there are shared blocks, or a
/// task is about to share some.
pub(crate) fn forbid(volume: &Volume) -> Result<Unshared<'_>> {
    let sharers = volume.shared.sharers.lock();
    if volume.shares() || *sharers > 0 {
        return Err(unsupported());
    }
    let allowed = volume.shared.allowed.xchg(false, Full);
    Ok(Unshared { volume, allowed })
}

impl Drop for Unshared<'_> {
    fn drop(&mut self) {
        self.volume.shared.allowed.store(self.allowed, Relaxed);
    }
}

/// Clears the feature `shared_blocks` if no block is shared and no task is about to share any. Must
/// not be called with a handle open.
pub(crate) fn end_sharing(sb: &SuperBlock<Volume>) -> Result {
    let volume = sb.volume()?;
    let Some(index) = volume.index() else {
        return Ok(());
    };
    let sharers = volume.shared.sharers.lock();
    if !volume.shares() || index.shares() || *sharers > 0 {
        return Ok(());
    }
    // The removal of the last shared block must be on disk first.
    volume.journal()?.commit(true)?;
    let _write = sb.internal_write();
    super_disk::note_shared_blocks(volume, sb, false)?;
    volume.shared.on.store(false, Relaxed);
    orphan::use_file(volume);
    Ok(())
}
