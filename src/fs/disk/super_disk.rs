// SPDX-License-Identifier: GPL-2.0

//! The superblock as it lies on disk: where it is, reading it, and changing it in place.

use crate::{
    format::{
        superblock::{self, ro_compat, RawSuper},
        Checked, Corrupt,
    },
    fs::state::Volume,
    kernel_glue::{bad_checksum, Buffer, SuperBlock},
};
use kernel::{prelude::*, sync::atomic::Relaxed};
use zerocopy::{FromZeros, IntoBytes};

/// The block that holds the superblock, and the byte of it at which it starts.
pub(in crate::fs) fn location(block_size: u32) -> (u64, usize) {
    let offset = superblock::OFFSET as u64;
    let size = u64::from(block_size).max(1);
    (offset / size, (offset % size) as usize)
}

pub(in crate::fs) fn read_raw(buffer: &Buffer, offset: usize) -> Checked<RawSuper> {
    // It may be changed at the same time; and what lies behind it in its block is none of its business.
    let mut raw = RawSuper::new_zeroed();
    buffer
        .copy(offset, raw.as_mut_bytes())
        .map_err(|_| Corrupt("superblock cut short"))?;
    Ok(raw)
}

/// Says why there is no ext4 volume to be mounted, with the errno mount(8) knows how to explain.
pub(in crate::fs) fn refuse(sb: &SuperBlock<Volume>, what: Corrupt) -> Error {
    if what == Corrupt("bad magic") {
        // Not an error of the volume's: mount(8) asks every type it knows.
        return EINVAL;
    }
    pr_err!("{}: superblock: {}\n", sb.name(), what.0);
    if what.is_checksum() {
        return bad_checksum();
    }
    EINVAL
}

/// Changes the superblock as it lies on disk and waits until it is there. It is never part of a transaction.
pub(in crate::fs) fn rewrite(
    volume: &Volume,
    sb: &SuperBlock<Volume>,
    edit: impl FnOnce(&mut RawSuper),
) -> Result {
    let _lock = volume.super_lock.lock();
    let (block, offset) = location(volume.layout.block_size);
    let mut buffer = Buffer::read(sb, block)?;
    let mut raw = read_raw(&buffer, offset).map_err(|what| refuse(sb, what))?;
    edit(&mut raw);
    if volume.layout.has_metadata_csum() {
        raw.checksum.set(superblock::checksum(&raw));
    }
    buffer.write_now(offset, raw.as_bytes())
}

/// Writes down whether blocks may have several owners.
pub(in crate::fs) fn note_shared_blocks(volume: &Volume, sb: &SuperBlock<Volume>, shares: bool) -> Result {
    rewrite(volume, sb, |raw| {
        let others = raw.feature_ro_compat.get() & !ro_compat::SHARED_BLOCKS;
        let bit = if shares { ro_compat::SHARED_BLOCKS } else { 0 };
        raw.feature_ro_compat.set(others | bit);
    })?;
    sb.flush_device()
}

/// Writes down that there are files larger than 2 GiB, once, before the first one is stored.
pub(in crate::fs) fn note_large_files(volume: &Volume, sb: &SuperBlock<Volume>) -> Result {
    if volume.has_large_files.load(Relaxed) {
        return Ok(());
    }
    rewrite(volume, sb, |raw| {
        raw.feature_ro_compat
            .set(raw.feature_ro_compat.get() | ro_compat::LARGE_FILE);
    })?;
    volume.has_large_files.store(true, Relaxed);
    Ok(())
}
