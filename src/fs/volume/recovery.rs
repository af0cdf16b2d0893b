// SPDX-License-Identifier: GPL-2.0

//! Recovery: replays the journal, and frees inodes that were deleted or being truncated.

use crate::{
    format::superblock::{self, compat, incompat, ro_compat, Layout},
    fs::{
        data::truncate,
        disk::{
            inode,
            super_disk::{location, read_raw, refuse},
        },
        names::orphan,
        state::{OrphanPlace, Volume},
    },
    kernel_glue::{stale, unsupported, Buffer, InodeRef, SuperBlock, UnloadedJournal},
};
use kernel::{prelude::*, sync::atomic::Relaxed};
use zerocopy::IntoBytes;

/// Replays the journal after an unclean unmount or a crash.
pub(in crate::fs) fn recover(volume: &Volume, sb: &SuperBlock<Volume>) -> Result {
    let layout = &volume.layout;
    if volume.options().no_recovery {
        pr_warn!(
            "{}: the journal is not replayed; the contents may be inconsistent\n",
            sb.name()
        );
        return Ok(());
    }
    if sb.device_is_read_only() {
        pr_err!(
            "{}: the journal must be replayed, and the device is read-only (mount with norecovery)\n",
            sb.name()
        );
        return Err(EROFS);
    }
    if layout.features.compat(compat::FAST_COMMIT) {
        pr_err!(
            "{}: a journal with fast commits cannot be replayed; use e2fsck\n",
            sb.name()
        );
        return Err(unsupported());
    }
    if layout.journal_inode == 0 {
        pr_err!("{}: a journal on another device is not supported\n", sb.name());
        return Err(unsupported());
    }
    let journal = UnloadedJournal::open(inode::get(sb, layout.journal_inode)?)?.load(
        layout.features.incompat(incompat::B64BIT),
        layout.has_metadata_csum(),
    )?;
    journal.flush()?;
    drop(journal);

    // The replay used the device's buffer cache, so this is the superblock as restored by the
    // journal.
    let (block, offset) = location(layout.block_size);
    let mut buffer = Buffer::read(sb, block)?;
    let mut found = read_raw(sb, &buffer, offset)?;
    let raw = &mut *found;
    let now = Layout::read(raw, sb.device_bytes()).map_err(|what| refuse(sb, what))?;
    if now.blocks != layout.blocks || now.desc_blocks != layout.desc_blocks {
        pr_err!("{}: the journal resized the volume; mount it again\n", sb.name());
        return Err(EAGAIN);
    }
    // A mount sets and clears these features through the journal, so the replay may have changed
    // them.
    volume
        .shared
        .on
        .store(now.features.ro_compat(ro_compat::SHARED_BLOCKS), Relaxed);
    volume
        .has_large_files
        .store(now.features.ro_compat(ro_compat::LARGE_FILE), Relaxed);
    raw.feature_incompat
        .set(raw.feature_incompat.get() & !incompat::RECOVER);
    if layout.has_metadata_csum() {
        raw.checksum.set(superblock::checksum(raw));
    }
    buffer.write_now(offset, raw.as_bytes())?;
    volume.replayed.store(true, Relaxed);
    pr_info!("{}: the journal was replayed\n", sb.name());
    Ok(())
}

/// Finishes the orphans left by a crash: frees those without links, and truncates the others to
/// their size. An orphan that cannot be processed is skipped with a log line; it never prevents the
/// mount.
///
/// Fails with `ENOMEM`, and if the journal fails.
pub(in crate::fs) fn process_orphans(sb: &SuperBlock<Volume>) -> Result {
    let volume = sb.volume()?;
    orphan::write_cut(sb)?;
    let found = orphan::all(volume)?;
    let (mut deleted, mut cut) = (0, 0);
    volume.frees_orphans.store(true, Relaxed);
    for &(place, ino) in found.iter() {
        match one(sb, place, ino) {
            Ok(Some(true)) => deleted += 1,
            Ok(Some(false)) => cut += 1,
            Ok(None) => (),
            Err(error) => pr_err!(
                "{}: orphan inode {ino} is skipped: error {}; e2fsck is recommended\n",
                sb.name(),
                error.to_errno()
            ),
        }
    }
    volume.frees_orphans.store(false, Relaxed);
    if deleted + cut > 0 {
        pr_info!(
            "{}: orphans: {deleted} deleted files were freed, {cut} files were truncated to their size\n",
            sb.name()
        );
    }
    Ok(())
}

/// Processes one orphan. Returns whether it was a deleted inode, which is freed when its last
/// reference is dropped; `None` for an invalid entry, which was removed.
fn one(sb: &SuperBlock<Volume>, place: OrphanPlace, ino: u32) -> Result<Option<bool>> {
    let volume = sb.volume()?;
    let inode: InodeRef<Volume> = match orphan::can_be(volume, ino) {
        true => match inode::get(sb, ino) {
            Err(error) if error == stale() => return drop_wrong(sb, place, ino, "is free"),
            found => found?,
        },
        false => return drop_wrong(sb, place, ino, "is none that can be deleted"),
    };
    let data = inode.data()?;
    if data.orphan().is_some_and(|noted| noted != place) {
        return drop_wrong(sb, place, ino, "is noted twice");
    }
    data.set_orphan(Some(place));
    if inode.links() == 0 {
        return Ok(Some(true));
    }
    let bits = volume.layout.block_bits;
    let from = u32::try_from(inode.size().div_ceil(1 << bits)).map_err(|_| EFBIG)?;
    truncate::remove_from(&inode, from)?;
    let handle = volume.begin(orphan::CREDITS, 0)?;
    orphan::remove(&handle, &inode)?;
    handle.stop()?;
    Ok(Some(false))
}

/// Removes an invalid entry, and logs that.
fn drop_wrong(sb: &SuperBlock<Volume>, place: OrphanPlace, ino: u32, why: &str) -> Result<Option<bool>> {
    let from = match place {
        OrphanPlace::Slot(_) => "file",
        OrphanPlace::List => "list",
    };
    pr_err!(
        "{}: inode {ino} in the orphan {from} {why}; the entry is removed\n",
        sb.name()
    );
    let handle = sb.volume()?.begin(orphan::CREDITS, 0)?;
    orphan::drop_entry(&handle, sb, place, ino, false)?;
    handle.stop()?;
    Ok(None)
}
