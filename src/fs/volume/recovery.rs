// SPDX-License-Identifier: GPL-2.0

//! Finishing after an unclean end: the journal is replayed, and inodes that were deleted or being truncated are freed.

use crate::{
    format::{
        orphan as raw,
        superblock::{self, compat, incompat, Layout},
        Corrupt,
    },
    fs::{
        data::truncate,
        disk::{
            inode,
            super_disk::{location, read_raw, refuse},
        },
        names::orphan,
        state::Volume,
    },
    kernel_glue::{unsupported, Buffer, InodeRef, SuperBlock, UnloadedJournal},
};
use kernel::{prelude::*, sync::atomic::Relaxed};
use zerocopy::IntoBytes;

/// Replays the journal that an unclean end left behind.
pub(in crate::fs) fn recover(volume: &Volume, sb: &SuperBlock<Volume>) -> Result {
    let layout = &volume.layout;
    if volume.options.no_recovery {
        pr_warn!(
            "{}: the journal is not replayed; what is read may be inconsistent\n",
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

    // The replay went through the device's cache, so this is the superblock as the journal left it.
    let (block, offset) = location(layout.block_size);
    let mut buffer = Buffer::read(sb, block)?;
    let mut raw = read_raw(&buffer, offset).map_err(|what| refuse(sb, what))?;
    let found = Layout::read(&raw, sb.device_bytes()).map_err(|what| refuse(sb, what))?;
    if found.blocks != layout.blocks || found.desc_blocks != layout.desc_blocks {
        pr_err!("{}: the journal resized the volume; mount it again\n", sb.name());
        return Err(EAGAIN);
    }
    raw.feature_incompat
        .set(raw.feature_incompat.get() & !incompat::RECOVER);
    if layout.has_metadata_csum() {
        raw.checksum.set(superblock::checksum(&raw));
    }
    buffer.write_now(offset, raw.as_bytes())?;
    pr_info!("{}: the journal was replayed\n", sb.name());
    Ok(())
}

/// Frees what a crash left in the orphan file.
pub(in crate::fs) fn process_orphans(sb: &SuperBlock<Volume>) -> Result {
    let volume = sb.volume()?;
    let mut found: KVec<(u32, u32)> = KVec::new();
    {
        let orphans = volume.orphans.lock();
        let all = orphans.blocks.iter().flat_map(|block| raw::inodes(block));
        for (slot, ino) in all.enumerate() {
            if ino != 0 {
                found.push((slot as u32, ino), GFP_KERNEL)?;
            }
        }
    }
    volume.frees_orphans.store(true, Relaxed);
    let mut done = Ok(());
    for &(slot, ino) in found.iter() {
        done = one(sb, slot, ino);
        if done.is_err() {
            break;
        }
    }
    volume.frees_orphans.store(false, Relaxed);
    if !found.is_empty() {
        pr_info!(
            "{}: {} deleted or cut files were finished\n",
            sb.name(),
            found.len()
        );
    }
    done
}

fn one(sb: &SuperBlock<Volume>, slot: u32, ino: u32) -> Result {
    let volume = sb.volume()?;
    if ino < volume.layout.first_inode || ino > volume.layout.inodes {
        return Err(inode::bad(sb, ino, Corrupt("orphan file names a reserved inode")));
    }
    let inode: InodeRef<Volume> = inode::get(sb, ino)?;
    inode.data()?.set_orphan(Some(slot));
    if inode.links() > 0 {
        let bits = volume.layout.block_bits;
        let from = u32::try_from(inode.size().div_ceil(1 << bits)).map_err(|_| EFBIG)?;
        truncate::remove_from(&inode, from)?;
        let handle = volume.begin(orphan::CREDITS, 0)?;
        orphan::remove(&handle, &inode)?;
        handle.stop()?;
    }
    // One without links ends with this reference.
    Ok(())
}
