// SPDX-License-Identifier: GPL-2.0

//! Orphans: inodes that are deleted or being truncated, and not finished yet.
//!
//! An inode is recorded as an orphan in the handle that removes its last name, and removed from the
//! record in the handle that frees it. The next writable mount finishes those left by a crash.
//! There are two places for this record:
//!
//! - the orphan file, an array of inode numbers, 0 for a free slot; each of its blocks ends with a
//!   magic and a checksum;
//! - the legacy list: `s_last_orphan` is its first inode, and `i_dtime` of each inode is the next
//!   one. It is used if there is no usable orphan file, if all of its slots are taken, and on a
//!   volume with the feature `shared_blocks`: stock ext4, which mounts such a volume read-only,
//!   leaves the orphans of the list alone, but refuses a volume with entries in the orphan file.
//!
//! Source: `Documentation/filesystems/ext4/orphan.rst`, `super.rst`, `inodes.rst`.

use crate::{
    format::{divisor, inode::is_ordinary, orphan as raw, Corrupt},
    fs::{
        disk::{
            inode,
            super_disk::{self, location, read_raw},
        },
        map::mapping,
        state::{OrphanBlocks, OrphanPlace, Orphans, Volume},
    },
    kernel_glue::{corrupted, is_interrupted, Buffer, Handle, Inode, KeptBuffer, SuperBlock},
};
use core::num::NonZero;
use kernel::{prelude::*, rbtree::RBTreeNode};

/// Number of journal credits for [`add`] or [`remove`]: a block of the orphan file, or the
/// superblock or the preceding inode in the list, and this inode.
pub(in crate::fs) const CREDITS: u32 = 2;
/// Number of journal credits for moving an inode from the orphan file to the legacy list: a block
/// of the file, the superblock and the inode.
const MOVE_CREDITS: u32 = CREDITS + 1;

/// Maximum number of blocks of the file.
const MAX_BLOCKS: u32 = 512;

fn slots(volume: &Volume) -> NonZero<u32> {
    divisor(raw::slots(volume.layout.block_size as usize) as u32)
}

/// Reads the orphan file and the legacy list. Returns whether there is a usable orphan file. A
/// damaged one is left to e2fsck, and all orphans are added to the list.
pub(in crate::fs) fn load(sb: &SuperBlock<Volume>) -> Result<bool> {
    let volume = sb.volume()?;
    let ino = volume.layout.orphan_inode;
    let mut read = Orphans::default();
    if ino != 0 {
        match read_file(sb, ino) {
            Ok((blocks, seed)) => (read.blocks, read.seed) = (blocks, seed),
            Err(ENOMEM) => return Err(ENOMEM),
            Err(error) => pr_err!(
                "{}: the orphan file (inode {ino}) cannot be read: error {}; the legacy orphan list is used, e2fsck is \
                 recommended\n",
                sb.name(),
                error.to_errno()
            ),
        }
    }
    read_list(sb, &mut read)?;
    read.avoids_file = volume.shares();
    let usable = !read.blocks.is_empty();
    let old = core::mem::replace(&mut *volume.orphans.lock(), read);
    drop(old);
    Ok(usable)
}

/// Reads the blocks of the orphan file, and the register from which their checksums start.
fn read_file(sb: &SuperBlock<Volume>, ino: u32) -> Result<(OrphanBlocks, u32)> {
    let volume = sb.volume()?;
    let file = inode::get_special(sb, ino)?;
    let seed = file.data()?.seed;
    let count = match u32::try_from(file.size() >> volume.layout.block_bits) {
        Ok(count @ 1..=MAX_BLOCKS) => count,
        _ => return Err(inode::bad(sb, ino, Corrupt("bad size of the orphan file"))),
    };
    let mut blocks = KVec::new();
    for number in 0..count {
        let (place, buffer) = mapping::read_block(&file, number)?
            .ok_or_else(|| inode::bad(sb, ino, Corrupt("hole in the orphan file")))?;
        let bytes = buffer.bytes()?;
        raw::verify(&volume.layout, place, &bytes, seed).map_err(|what| inode::bad(sb, ino, what))?;
        let free = raw::inodes(&bytes).filter(|&ino| ino == 0).count() as u32;
        drop(bytes);
        blocks.push((buffer.keep(&file)?, free), GFP_KERNEL)?;
    }
    Ok((blocks, seed))
}

/// Reads the legacy list, up to an inode that cannot be in it. The rest is left to e2fsck.
fn read_list(sb: &SuperBlock<Volume>, orphans: &mut Orphans) -> Result {
    let volume = sb.volume()?;
    let (block, offset) = location(volume.layout.block_size);
    let found = read_raw(sb, &Buffer::read(sb, block)?, offset)?;
    let (mut before, mut ino) = (0, found.last_orphan.get());
    while ino != 0 {
        // An inode cannot be in the list twice, so the loop terminates.
        let next = match can_be(volume, ino) && orphans.list.get(&ino).is_none() {
            true => inode::dtime(sb, ino),
            false => Err(EINVAL),
        };
        if is_interrupted() {
            return Err(EINTR);
        }
        let Ok(next) = next else {
            pr_err!(
                "{}: invalid inode {ino} in the legacy orphan list; the list is truncated before it, e2fsck is \
                 recommended\n",
                sb.name()
            );
            if let Some(last) = orphans.list.get_mut(&before) {
                last.1 = 0;
            }
            orphans.cut_behind = Some(before);
            break;
        };
        orphans
            .list
            .try_create_and_insert(ino, (before, next), GFP_KERNEL)?;
        if before == 0 {
            orphans.first = ino;
        }
        (before, ino) = (ino, next);
    }
    Ok(())
}

/// Returns true if an inode with this number can be an orphan.
pub(in crate::fs) fn can_be(volume: &Volume, ino: u32) -> bool {
    ino >= volume.layout.first_inode && is_ordinary(&volume.layout, ino)
}

/// Truncates the legacy list on disk where [`load`] had to stop.
pub(in crate::fs) fn write_cut(sb: &SuperBlock<Volume>) -> Result {
    let volume = sb.volume()?;
    let cut = volume.orphans.lock().cut_behind.take();
    let Some(last) = cut else {
        return Ok(());
    };
    let handle = volume.begin(CREDITS, 0)?;
    match last {
        0 => super_disk::change(&handle, volume, sb, |raw| raw.last_orphan.set(0))?,
        _ => inode::set_dtime(&handle, sb, last, 0)?,
    }
    handle.stop()
}

/// Lists the orphans: those in the file by slot, then those in the list.
pub(in crate::fs) fn all(volume: &Volume) -> Result<KVVec<(OrphanPlace, u32)>> {
    let orphans = volume.orphans.lock();
    let mut found = KVVec::new();
    let mut slot = 0;
    for (block, _) in &orphans.blocks {
        for ino in raw::inodes(&block.buffer().bytes()?) {
            if ino != 0 {
                found.push((OrphanPlace::Slot(slot), ino), GFP_KERNEL)?;
            }
            slot += 1;
        }
    }
    let mut ino = orphans.first;
    while let Some(&(_, next)) = orphans.list.get(&ino) {
        found.push((OrphanPlace::List, ino), GFP_KERNEL)?;
        ino = next;
    }
    Ok(found)
}

/// Drops the in-memory record of orphans. Returns whether there was a readable orphan file and it
/// is empty.
pub(in crate::fs) fn unload(volume: &Volume) -> bool {
    let old = core::mem::take(&mut *volume.orphans.lock());
    let blocks = &old.blocks;
    let is_clear = |block: &KeptBuffer<Volume>| {
        let bytes = block.buffer().bytes();
        bytes.is_ok_and(|bytes| raw::inodes(&bytes).all(|ino| ino == 0))
    };
    !blocks.is_empty() && blocks.iter().all(|(block, _)| is_clear(block))
}

fn set(handle: &Handle, sb: &SuperBlock<Volume>, orphans: &mut Orphans, slot: u32, ino: u32) -> Result {
    let volume = sb.volume()?;
    let each = slots(volume);
    let seed = orphans.seed;
    let (buffer, free) = orphans.blocks.get_mut((slot / each) as usize).ok_or(EIO)?;
    let place = buffer.buffer().number();
    let mut bytes = handle.write_kept(buffer)?;
    raw::set(&mut bytes, (slot % each) as usize, ino)
        .and_then(|()| raw::seal(&volume.layout, place, &mut bytes, seed))
        .map_err(|what| inode::bad(sb, volume.layout.orphan_inode, what))?;
    drop(bytes);
    *free = match ino {
        0 => free.saturating_add(1).min(each.get()),
        _ => free.saturating_sub(1),
    };
    Ok(())
}

/// Returns true if a slot of the orphan file contains this inode.
fn contains(volume: &Volume, orphans: &Orphans, slot: u32, ino: u32) -> Result<bool> {
    let each = slots(volume);
    let Some((block, _)) = orphans.blocks.get((slot / each) as usize) else {
        return Ok(false);
    };
    let bytes = block.buffer().bytes()?;
    let found = raw::inodes(&bytes).nth((slot % each) as usize);
    Ok(found == Some(ino))
}

/// Returns a free slot of the orphan file, if there is one and the file is used.
fn free_slot(volume: &Volume, orphans: &mut Orphans) -> Option<u32> {
    if orphans.avoids_file {
        return None;
    }
    let count = orphans.blocks.len() as u32;
    let first = orphans.next;
    let mut numbers = (0..count).map(|step| (first + step) % count.max(1));
    // Full blocks are skipped by their count of free slots, so at most one block is searched.
    let number = numbers.find(|&number| {
        let block = orphans.blocks.get(number as usize);
        block.is_some_and(|(_, free)| *free > 0)
    })?;
    orphans.next = number;
    let (block, _) = orphans.blocks.get(number as usize)?;
    let bytes = block.buffer().bytes().ok()?;
    let within = raw::inodes(&bytes).position(|ino| ino == 0)? as u32;
    Some(number * slots(volume).get() + within)
}

/// Records an inode as an orphan, if it is not yet recorded: in the orphan file, or in the legacy
/// list if the file has no room.
///
/// On failure nothing is changed, unless the journal is aborted.
pub(in crate::fs) fn add(handle: &Handle, inode: &Inode<Volume>) -> Result {
    let sb = inode.super_block();
    let volume = sb.volume()?;
    let data = inode.data()?;
    if data.orphan().is_some() {
        return Ok(());
    }
    let mut orphans = volume.orphans.lock();
    if !volume.journal()?.is_present() {
        // On a volume without a journal, e2fsck finds inodes left by a crash.
        return Ok(());
    }
    let place = match free_slot(volume, &mut orphans) {
        Some(slot) => {
            set(handle, sb, &mut orphans, slot, inode.number())?;
            OrphanPlace::Slot(slot)
        }
        None => {
            add_to_list(handle, sb, &mut orphans, inode.number())?;
            OrphanPlace::List
        }
    };
    data.set_orphan(Some(place));
    Ok(())
}

/// Moves all entries of the orphan file to the legacy list, and has later ones added to the list,
/// until [`use_file`]. An entry whose inode cannot be changed stays, with a log line. Must not be
/// called with a handle open.
///
/// # Errors
///
/// `ENOMEM`, and errors of the journal.
pub(in crate::fs) fn empty_file(sb: &SuperBlock<Volume>) -> Result {
    let volume = sb.volume()?;
    volume.orphans.lock().avoids_file = true;
    for (place, ino) in all(volume)? {
        let OrphanPlace::Slot(slot) = place else {
            continue;
        };
        let handle = volume.begin_internal(MOVE_CREDITS, 0)?;
        let mut orphans = volume.orphans.lock();
        // It may have been freed meanwhile.
        if contains(volume, &orphans, slot, ino)? {
            match move_to_list(&handle, sb, &mut orphans, slot, ino) {
                Err(ENOMEM) => return Err(ENOMEM),
                Err(error) => pr_err!(
                    "{}: inode {ino} stays in the orphan file: error {}\n",
                    sb.name(),
                    error.to_errno()
                ),
                Ok(()) => (),
            }
        }
        drop(orphans);
        handle.stop()?;
    }
    Ok(())
}

/// Lets the orphan file be used again after [`empty_file`].
pub(in crate::fs) fn use_file(volume: &Volume) {
    volume.orphans.lock().avoids_file = false;
}

/// Moves an entry of the orphan file to the legacy list. On failure nothing is changed, unless the
/// journal is aborted.
fn move_to_list(
    handle: &Handle,
    sb: &SuperBlock<Volume>,
    orphans: &mut Orphans,
    slot: u32,
    ino: u32,
) -> Result {
    if !can_be(sb.volume()?, ino) || orphans.list.get(&ino).is_some() {
        return Err(corrupted());
    }
    add_to_list(handle, sb, orphans, ino)?;
    set(handle, sb, orphans, slot, 0).inspect_err(|&error| handle.abort(error))
}

/// Adds an inode at the front of the legacy list.
fn add_to_list(handle: &Handle, sb: &SuperBlock<Volume>, orphans: &mut Orphans, ino: u32) -> Result {
    let volume = sb.volume()?;
    // Steps that may fail come before the first change.
    let node = RBTreeNode::new(ino, (0, orphans.first), GFP_KERNEL)?;
    let _pins = (inode::pin(sb, ino)?, super_disk::pin(sb)?);
    inode::set_dtime(handle, sb, ino, orphans.first)
        .and_then(|()| super_disk::change(handle, volume, sb, |raw| raw.last_orphan.set(ino)))
        .inspect_err(|&error| handle.abort(error))?;
    let second = orphans.first;
    if let Some(second) = orphans.list.get_mut(&second) {
        second.0 = ino;
    }
    orphans.list.insert(node);
    orphans.first = ino;
    Ok(())
}

/// Removes an inode from the record of orphans, if it is recorded.
///
/// On failure nothing is changed, unless the journal is aborted.
pub(in crate::fs) fn remove(handle: &Handle, inode: &Inode<Volume>) -> Result {
    let data = inode.data()?;
    if let Some(place) = data.orphan() {
        drop_entry(handle, inode.super_block(), place, inode.number(), true)?;
        data.set_orphan(None);
    }
    Ok(())
}

/// Removes the entry for inode `ino` from the orphan file or the list. The inode itself is changed
/// only if `is_orphan` is set.
pub(in crate::fs) fn drop_entry(
    handle: &Handle,
    sb: &SuperBlock<Volume>,
    place: OrphanPlace,
    ino: u32,
    is_orphan: bool,
) -> Result {
    let volume = sb.volume()?;
    let mut orphans = volume.orphans.lock();
    // An entry that was in the file may have been moved to the list.
    match place {
        OrphanPlace::Slot(slot) if contains(volume, &orphans, slot, ino)? => {
            return set(handle, sb, &mut orphans, slot, 0);
        }
        _ => (),
    }
    let Some(&(before, next)) = orphans.list.get(&ino) else {
        return Ok(());
    };
    let _pins = (
        match before {
            0 => super_disk::pin(sb)?,
            _ => inode::pin(sb, before)?,
        },
        inode::pin(sb, ino)?,
    );
    let link = match before {
        0 => super_disk::change(handle, volume, sb, |raw| raw.last_orphan.set(next)),
        _ => inode::set_dtime(handle, sb, before, next),
    };
    link.and_then(|()| match is_orphan {
        true => inode::set_dtime(handle, sb, ino, 0),
        false => Ok(()),
    })
    .inspect_err(|&error| handle.abort(error))?;
    match orphans.list.get_mut(&before) {
        Some(before) => before.1 = next,
        None => orphans.first = next,
    }
    if let Some(next) = orphans.list.get_mut(&next) {
        next.0 = before;
    }
    orphans.list.remove(&ino);
    Ok(())
}
