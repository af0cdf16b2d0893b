// SPDX-License-Identifier: GPL-2.0

//! Truncating files, and freeing inodes.
//!
//! A mapping is removed in pieces, several per handle, while the inode is recorded as an orphan:
//! after a crash in between, the next mount continues.

use crate::{
    format::inode::flags,
    fs::{
        alloc::{ialloc, space},
        data::cow,
        disk::inode,
        map::{
            change::MapChange,
            extent_tree::{REMOVE_CREDITS, REMOVE_REVOKES},
            mapping,
        },
        names::{orphan, xattr},
        state::Volume,
    },
    kernel_glue::{insist, Inode, Locked},
};
use kernel::prelude::*;

/// Number of blocks freed at a time if each costs a revoke record.
const JOURNALED_AT_ONCE: u32 = 64;
/// Number of pieces of a mapping removed per handle.
const REMOVALS: u32 = 8;

/// Removes the mapping of all file blocks from `from` on.
pub(in crate::fs) fn remove_from(inode: &Inode<Volume>, from: u32) -> Result {
    let volume = inode.super_block().volume()?;
    if !inode::is_mapped(inode)? {
        return Ok(());
    }
    let journaled = !inode.is_file();
    let most = if journaled {
        JOURNALED_AT_ONCE
    } else {
        space::give_at_once(volume, volume.layout.blocks_per_group)
    };
    let step = REMOVE_CREDITS
        + inode::STORE_CREDITS
        + space::credits(volume, 2 + REMOVE_REVOKES)
        + space::give_credits(volume);
    let revokes = REMOVE_REVOKES + if journaled { most } else { 0 };
    // Consecutive removals modify the same nodes of trees, which need credits only once.
    let credits = (2 * step).min(volume.journal()?.room() / 4).max(step);
    loop {
        let mut change = MapChange::begin(inode, credits, revokes)?;
        let (handle, root) = change.parts()?;
        let (mut done, mut taken) = (Ok(0), 0);
        for _ in 0..REMOVALS {
            done = mapping::remove_last(handle, inode, root, from, most - taken, journaled);
            match done {
                Ok(blocks @ 1..) => taken += blocks,
                _ => break,
            }
            if taken >= most || handle.blocks_left() < step || handle.revokes_left() < revokes {
                break;
            }
        }
        if change.end(done)? == 0 {
            return Ok(());
        }
    }
}

/// Frees an inode without names and users, and everything that it owns.
pub(in crate::fs) fn evict(inode: &Locked<Volume>) -> Result {
    let sb = inode.super_block();
    let volume = sb.volume()?;
    let data = inode.data()?;
    if inode.number() < volume.layout.first_inode {
        return Ok(());
    }
    cow::evict(inode);
    if data.orphan().is_none() {
        let handle = volume.begin(orphan::CREDITS, 0)?;
        orphan::add(&handle, inode)?;
        handle.stop()?;
    }
    if inode.is_file() {
        let _map = data.root.write();
        data.set_disk_size(0);
    }
    inode.set_size(match inode.mode() & 0o170000 {
        // The size of a symlink must stay, since it says where the target is stored.
        0o120000 => inode.size(),
        _ => 0,
    });
    remove_from(inode, 0)?;

    let credits = ialloc::CREDITS
        + orphan::CREDITS
        + inode::STORE_CREDITS
        + xattr::RELEASE_CREDITS
        + space::credits(volume, 1);
    let handle = volume.begin(credits, 1)?;
    if data.attributes() != 0 {
        let _map = data.root.write();
        xattr::release(&handle, inode, data.attributes())?;
        data.set_attributes(0);
        // If one of the next steps fails, the inode must not refer to a freed block.
        inode::store(&handle, inode, inode::Part::Attributes)?;
    }
    orphan::remove(&handle, inode)?;
    inode::store(&handle, inode, inode::Part::Deleted)?;
    ialloc::free(&handle, sb, inode.number(), inode.is_directory())?;
    handle.stop()
}

/// Changes the size of a regular file, in bytes. Preallocated blocks beyond the new size are freed.
pub(in crate::fs) fn resize(inode: &Locked<Volume>, size: u64) -> Result {
    if inode.data()?.flags() & (flags::IMMUTABLE | flags::APPEND) != 0 {
        return Err(EPERM);
    }
    if size > inode::max_size(inode) {
        return Err(EFBIG);
    }
    inode.wait_direct();
    // No page of the blocks being freed may be faulted in.
    let _faults = inode.lock_faults();
    match size == inode.size() {
        true => drop_behind(inode),
        false => set_size(inode, size),
    }
}

/// Frees blocks beyond the end of a file that were allocated for a write but not used.
pub(in crate::fs) fn trim(inode: &Locked<Volume>) -> Result {
    inode.wait_direct();
    let _faults = inode.lock_faults();
    drop_behind(inode)
}

/// Frees all blocks beyond the end of a file. The file is locked, and page faults are blocked.
fn drop_behind(inode: &Inode<Volume>) -> Result {
    let bits = inode.super_block().volume()?.layout.block_bits;
    let from = u32::try_from(inode.size().div_ceil(1 << bits)).map_err(|_| EFBIG)?;
    match has_blocks_behind(inode, from)? {
        true => insist(|| cow::drop_staged(inode, from, u32::MAX).and_then(|()| remove_from(inode, from))),
        false => Ok(()),
    }
}

/// Returns whether a file has blocks at or after file block `from`.
fn has_blocks_behind(inode: &Inode<Volume>, from: u32) -> Result<bool> {
    let mut at = from;
    // A hole of a file without extents may be reported in several parts, but only a few.
    for _ in 0..64 {
        let run = mapping::of_block(inode, at)?;
        let end = run.end();
        match (run.start, u32::try_from(end)) {
            (Some(_), _) => return Ok(true),
            (None, Err(_)) => return Ok(false),
            (None, Ok(end)) => at = end,
        }
    }
    Ok(true)
}

/// Called when the last writer closes a file. If the file was truncated to size 0 since the last
/// time, starts writeback: a program that replaces the contents of a file this way expects either
/// the old or the new contents after a crash, not an empty file.
pub(in crate::fs) fn closed(inode: &Inode<Volume>) {
    let (Ok(data), Ok(volume)) = (inode.data(), inode.super_block().volume()) else {
        return;
    };
    if data.take_emptied() && volume.options().has_auto_da_alloc() {
        // The error is reported by the next fsync.
        let _ = inode.start_write_out();
    }
}

/// Changes the size of a file in bytes, to a different one. Page faults are blocked.
pub(in crate::fs) fn set_size(inode: &Locked<Volume>, size: u64) -> Result {
    let volume = inode.super_block().volume()?;
    let data = inode.data()?;
    let old = inode.size();
    let bits = volume.layout.block_bits;
    let from = u32::try_from(size.div_ceil(1 << bits)).map_err(|_| EFBIG)?;
    // Cached data between the size on disk and the new size must be written back before the new
    // size is stored.
    if data.disk_size() < old.min(size) {
        inode.write_out(0..size)?;
    }
    inode.zero_for_resize(old, size)?;
    if size < old {
        // The truncated part of the last block must be zeroed on disk before the size is: otherwise
        // it would become visible if the file is extended and, due to a crash, only the new size
        // reaches the disk.
        inode.write_out(size..u64::from(from) << bits)?;
    }
    inode.truncate_cache(size);
    let before = data.disk_size();
    let store = || {
        let handle = volume.begin(orphan::CREDITS + inode::STORE_CREDITS, 0)?;
        if size < old {
            orphan::add(&handle, inode)?;
        }
        {
            // Data that comes to disk meanwhile raises the size under this lock.
            let _map = data.root.write();
            data.set_disk_size(size);
            if inode.is_sync() {
                handle.set_sync();
            }
            inode.touch(true);
            inode::store(&handle, inode, inode::Part::Attributes)?;
        }
        handle.stop()
    };
    // The cached pages behind a smaller size are gone.
    if let Err(error) = insist(store) {
        // The blocks behind a smaller size are all there: the file must not end before them.
        let _map = data.root.write();
        data.set_disk_size(before);
        inode.set_size(old);
        return Err(error);
    }
    if size == 0 {
        data.set_emptied();
    }
    if size < old {
        // The file is shorter already: if this failed, its blocks would stay until the next mount.
        insist(|| {
            cow::drop_staged(inode, from, u32::MAX)?;
            remove_from(inode, from)?;
            let handle = volume.begin(orphan::CREDITS, 0)?;
            orphan::remove(&handle, inode)?;
            handle.stop()
        })?;
    }
    Ok(())
}
