// SPDX-License-Identifier: GPL-2.0

//! Making files shorter, and freeing inodes.
//!
//! A mapping is taken down in pieces, some with each handle, while the inode stands in the orphan file: after a crash in
//! between, the next mount goes on with it.

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

/// Blocks freed at a time where each takes a revoke record.
const JOURNALED_AT_ONCE: u32 = 64;
/// Pieces of a mapping taken down with one handle.
const REMOVALS: u32 = 8;

/// Takes all mapping at and behind file block `from` down.
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
    // Nodes of trees that one removal has changed are those that the next one changes, which costs nothing more.
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

/// Frees an inode that has no name and no user left, with all that it owns.
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
        // What the size of a link's target says of where it lies must stay true.
        0o120000 => inode.size(),
        _ => 0,
    });
    remove_from(inode, 0)?;

    let credits = ialloc::CREDITS + orphan::CREDITS + inode::STORE_CREDITS + 3 + space::credits(volume, 1);
    let handle = volume.begin(credits, 1)?;
    if data.attributes() != 0 {
        let _map = data.root.write();
        xattr::release(&handle, inode, data.attributes())?;
        data.set_attributes(0);
        // Should what follows fail, the inode must not name a block that is free.
        inode::store(&handle, inode, inode::Part::Attributes)?;
    }
    orphan::remove(&handle, inode)?;
    inode::store(&handle, inode, inode::Part::Deleted)?;
    ialloc::free(&handle, sb, inode.number(), inode.is_directory())?;
    handle.stop()
}

/// Gives a regular file another size in bytes. What was allocated in advance behind it is given back.
pub(in crate::fs) fn resize(inode: &Locked<Volume>, size: u64) -> Result {
    if inode.data()?.flags() & (flags::IMMUTABLE | flags::APPEND) != 0 {
        return Err(EPERM);
    }
    if size > inode::max_size(inode) {
        return Err(EFBIG);
    }
    inode.wait_direct();
    // Nobody may bring a page of blocks into memory that are being freed.
    let _faults = inode.lock_faults();
    match size == inode.size() {
        true => drop_behind(inode),
        false => set_size(inode, size),
    }
}

/// Frees the blocks behind the end of a file that a write allocated and did not reach.
pub(in crate::fs) fn trim(inode: &Locked<Volume>) -> Result {
    inode.wait_direct();
    let _faults = inode.lock_faults();
    drop_behind(inode)
}

/// Frees all blocks behind the end of a file, which is locked with its faults.
fn drop_behind(inode: &Inode<Volume>) -> Result {
    let bits = inode.super_block().volume()?.layout.block_bits;
    let from = u32::try_from(inode.size().div_ceil(1 << bits)).map_err(|_| EFBIG)?;
    match has_blocks_behind(inode, from)? {
        true => insist(|| cow::drop_staged(inode, from, u32::MAX).and_then(|()| remove_from(inode, from))),
        false => Ok(()),
    }
}

/// Whether a file has blocks at or behind file block `from`.
fn has_blocks_behind(inode: &Inode<Volume>, from: u32) -> Result<bool> {
    let mut at = from;
    // A hole of a file without extents may be told in some parts, of which there are few.
    for _ in 0..64 {
        let run = mapping::of_block(inode, at)?;
        let end = u64::from(run.offset).saturating_add(run.len);
        match (run.start, u32::try_from(end)) {
            (Some(_), _) => return Ok(true),
            (None, Err(_)) => return Ok(false),
            (None, Ok(end)) => at = end,
        }
    }
    Ok(true)
}

/// The last writer closes a file. If it was cut to nothing since the last time, what was written is
/// on its way to the disk from now on: whoever replaces the contents of a file so expects old or
/// new ones after a crash, and not none.
pub(in crate::fs) fn closed(inode: &Inode<Volume>) {
    let (Ok(data), Ok(volume)) = (inode.data(), inode.super_block().volume()) else {
        return;
    };
    if data.take_emptied() && volume.options().has_auto_da_alloc() {
        // An error is kept for whoever asks by fsync.
        let _ = inode.start_write_out();
    }
}

/// Gives a file another size in bytes than it has. Its faults are locked.
pub(in crate::fs) fn set_size(inode: &Locked<Volume>, size: u64) -> Result {
    let volume = inode.super_block().volume()?;
    let data = inode.data()?;
    let old = inode.size();
    let bits = volume.layout.block_bits;
    let from = u32::try_from(size.div_ceil(1 << bits)).map_err(|_| EFBIG)?;
    // What is cached behind the size on disk and stays must be there before the new size is.
    if data.disk_size() < old.min(size) {
        inode.write_out(0..size)?;
    }
    inode.zero_for_resize(old, size)?;
    if size < old {
        // What is cut off of the last block leaves the disk before the size does: else it would be back once the file
        // grows over it and that, by a crash, is all that reaches the disk.
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
