// SPDX-License-Identifier: GPL-2.0

//! The superblock on disk: its location, reading it, and changing it in place.

use crate::{
    format::{
        superblock::{self, ro_compat, RawSuper},
        Corrupt,
    },
    fs::state::Volume,
    kernel_glue::{bad_checksum, Buffer, Credits, Handle, SuperBlock},
};
use kernel::{prelude::*, sync::atomic::Relaxed};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Returns the block that contains the superblock, and the byte offset in it.
pub(in crate::fs) fn location(block_size: u32) -> (u64, usize) {
    let offset = superblock::OFFSET as u64;
    let size = u64::from(block_size).max(1);
    (offset / size, (offset % size) as usize)
}

/// Reads the superblock from its block, at byte `offset`.
///
/// The copy is allocated on the heap: its 1 KiB is too much for a kernel stack on which an inode
/// may be evicted.
///
/// # Errors
///
/// `ENOMEM`, or `EINVAL` when the block is too short.
#[inline(never)]
pub(in crate::fs) fn read_raw(
    sb: &SuperBlock<Volume>,
    buffer: &Buffer<'_>,
    offset: usize,
) -> Result<KBox<RawSuper>> {
    let raw = KBox::<RawSuper>::new_uninit(GFP_KERNEL)?;
    let mut raw = KBox::write(raw, RawSuper::new_zeroed());
    // Use a copy, since the superblock may be changing concurrently; the rest of the block has
    // other users.
    buffer
        .copy(offset, raw.as_mut_bytes())
        .map_err(|_| refuse(sb, Corrupt("superblock cut short")))?;
    Ok(raw)
}

/// Logs why the device is not a mountable ext4 volume, and returns an errno that mount(8) can
/// explain.
pub(in crate::fs) fn refuse(sb: &SuperBlock<Volume>, what: Corrupt) -> Error {
    if what == Corrupt("bad magic") {
        // Not an error: mount(8) tries all file system types.
        return EINVAL;
    }
    pr_err!("{}: superblock: {}\n", sb.name(), what.0);
    if what.is_checksum() {
        return bad_checksum();
    }
    EINVAL
}

/// Changes a superblock in memory and updates its checksum.
fn edit_and_seal(volume: &Volume, raw: &mut RawSuper, edit: impl FnOnce(&mut RawSuper)) {
    edit(raw);
    if volume.layout.has_metadata_csum() {
        raw.checksum.set(superblock::checksum(raw));
    }
}

/// Calls `act` with the block that contains the superblock, and the offset of the superblock in it,
/// with the superblock locked.
fn with_block<T>(
    volume: &Volume,
    sb: &SuperBlock<Volume>,
    act: impl FnOnce(&mut Buffer<'_>, usize) -> Result<T>,
) -> Result<T> {
    let _lock = volume.super_lock.lock();
    let (block, offset) = location(volume.layout.block_size);
    act(&mut Buffer::read(sb, block)?, offset)
}

/// Changes the superblock within a handle, which needs [`CHANGE_CREDITS`] for that.
pub(in crate::fs) fn change(
    handle: &Handle,
    volume: &Volume,
    sb: &SuperBlock<Volume>,
    edit: impl FnOnce(&mut RawSuper),
) -> Result {
    with_block(volume, sb, |buffer, offset| {
        let mut bytes = handle.write_part(buffer, offset..offset + superblock::SIZE)?;
        let raw = RawSuper::mut_from_bytes(&mut bytes).map_err(|_| EIO)?;
        edit_and_seal(volume, raw, edit);
        Ok(())
    })
}

/// The block of the superblock; while it is held, [`change`] fails only with the journal.
pub(in crate::fs) fn pin(sb: &SuperBlock<Volume>) -> Result<Buffer<'_>> {
    Buffer::read(sb, location(sb.volume()?.layout.block_size).0)
}

/// Number of journal credits for [`change`].
pub(in crate::fs) const CHANGE_CREDITS: u32 = 1;

/// Changes the superblock and waits until the change is on disk, or in the journal on disk. While
/// the journal is active, the superblock may be part of a transaction and must be written only
/// through the journal. Must not be called with a handle open.
pub(in crate::fs) fn rewrite(
    volume: &Volume,
    sb: &SuperBlock<Volume>,
    edit: impl FnOnce(&mut RawSuper),
) -> Result {
    match volume.journal() {
        Ok(journal) if journal.is_present() && !journal.is_aborted() => {
            let handle = volume.begin_internal(CHANGE_CREDITS, 0)?;
            change(&handle, volume, sb, edit)?;
            handle.stop()?;
            journal.commit(true)
        }
        _ => rewrite_at_rest(volume, sb, edit),
    }
}

/// Changes the superblock without the journal and waits until it is on disk. Only permitted if no
/// journal is open, if it was flushed and no handle can be started, or if it was aborted.
pub(in crate::fs) fn rewrite_at_rest(
    volume: &Volume,
    sb: &SuperBlock<Volume>,
    edit: impl FnOnce(&mut RawSuper),
) -> Result {
    with_block(volume, sb, |buffer, offset| {
        let mut raw = read_raw(sb, buffer, offset)?;
        edit_and_seal(volume, &mut raw, edit);
        buffer.write_now(offset, raw.as_bytes())
    })
}

/// Sets or clears the feature `shared_blocks`.
pub(in crate::fs) fn note_shared_blocks(volume: &Volume, sb: &SuperBlock<Volume>, shares: bool) -> Result {
    rewrite(volume, sb, |raw| {
        let others = raw.feature_ro_compat.get() & !ro_compat::SHARED_BLOCKS;
        let bit = if shares { ro_compat::SHARED_BLOCKS } else { 0 };
        raw.feature_ro_compat.set(others | bit);
    })?;
    sb.flush_device()
}

/// Sets the feature `large_file`, once, in the handle that stores the first large file. If the
/// transaction has no room for the superblock, the next store tries again.
pub(in crate::fs) fn note_large_files(handle: &Handle, volume: &Volume, sb: &SuperBlock<Volume>) -> Result {
    let more = Credits {
        blocks: CHANGE_CREDITS,
        revokes: 0,
    };
    if volume.has_large_files.load(Relaxed) || !handle.extend(more)? {
        return Ok(());
    }
    change(handle, volume, sb, |raw| {
        raw.feature_ro_compat
            .set(raw.feature_ro_compat.get() | ro_compat::LARGE_FILE);
    })?;
    volume.has_large_files.store(true, Relaxed);
    Ok(())
}

/// Reads the label of the volume.
pub(in crate::fs) fn label(volume: &Volume, sb: &SuperBlock<Volume>) -> Result<[u8; 16]> {
    let _lock = volume.super_lock.lock();
    let (block, offset) = location(volume.layout.block_size);
    Ok(read_raw(sb, &Buffer::read(sb, block)?, offset)?.volume_name)
}

/// Sets the label of the volume, in the superblock and in its copies, and waits until that is on
/// disk. A copy that is no superblock of this volume, or has a wrong checksum, is left alone.
///
/// # Errors
///
/// `EROFS` while the volume is not writable; `EIO` when a copy cannot be read, with the superblock
/// changed and some copies.
pub(in crate::fs) fn set_label(volume: &Volume, sb: &SuperBlock<Volume>, label: &[u8; 16]) -> Result {
    let journal = volume.journal()?;
    let handle = volume.begin(CHANGE_CREDITS, 0)?;
    change(&handle, volume, sb, |raw| raw.volume_name = *label)?;
    handle.stop()?;
    for group in (1..volume.layout.groups).filter(|&group| volume.layout.has_super(group)) {
        let handle = volume.begin(CHANGE_CREDITS, 0)?;
        change_copy(&handle, volume, sb, group, |raw| raw.volume_name = *label)?;
        handle.stop()?;
    }
    journal.commit(true)
}

/// Changes the copy of the superblock in a group, within a handle that needs [`CHANGE_CREDITS`] for
/// that.
fn change_copy(
    handle: &Handle,
    volume: &Volume,
    sb: &SuperBlock<Volume>,
    group: u32,
    edit: impl FnOnce(&mut RawSuper),
) -> Result {
    let _lock = volume.super_lock.lock();
    let layout = &volume.layout;
    let mut buffer = Buffer::read(sb, layout.group_start(group))?;
    let raw = read_raw(sb, &buffer, 0)?;
    let is_sound = raw.magic.get() == superblock::MAGIC
        && raw.uuid == layout.uuid
        && (!layout.has_metadata_csum() || raw.checksum.get() == superblock::checksum(&raw));
    if !is_sound {
        pr_err!(
            "{}: group {group}: the copy of the superblock is damaged and left as it is; run e2fsck\n",
            sb.name()
        );
        return Ok(());
    }
    let mut bytes = handle.write_part(&mut buffer, 0..superblock::SIZE)?;
    let raw = RawSuper::mut_from_bytes(&mut bytes).map_err(|_| EIO)?;
    edit_and_seal(volume, raw, edit);
    Ok(())
}
