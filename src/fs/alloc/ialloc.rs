// SPDX-License-Identifier: GPL-2.0

//! Inode allocation: the inode bitmaps.
//!
//! A file is placed in its directory's group, and a top-level directory in a group that is emptier
//! than average; if there is no room, in the next group that has some. Where no inode was ever
//! used, a group's inode table may have undefined contents, so its block is zeroed when the first
//! inode in it is allocated.
//!
//! An inode is taken only if the table agrees with the bitmap that it is free, and it is not in
//! memory. Where they contradict each other, the group is fenced: nothing more is taken from it
//! until a scrub has corrected its bitmap, or e2fsck before the next mount.

use crate::{
    format::{
        self, bitmap, extent_edit,
        group::INODE_ZEROED,
        inode::{flags, BLOCK_BYTES},
        superblock::{incompat, inode_seed},
        Corrupt,
    },
    fs::{
        disk::{
            groups,
            inode::{self, write_device},
        },
        state::{Volume, MOST_GROUPS},
    },
    kernel_glue::{random, Blank, Buffer, FreshBuffer, Handle, Inode, InodeFields, NewInode, SuperBlock},
};
use kernel::{prelude::*, sync::atomic::Relaxed};

/// Number of journal credits for [`allocate`]: the bitmap, the descriptor, and the block of the
/// table.
pub(in crate::fs) const CREDITS: u32 = 3;

/// Number of inode table blocks to read ahead while a group is being filled.
const READ_AHEAD: u32 = 8;

/// Allocates an inode for a new object in `dir` and returns its number.
///
/// Fails with `ENOSPC` if no inode is free.
pub(in crate::fs) fn allocate(handle: &Handle, dir: &Inode<Volume>, directory: bool) -> Result<u32> {
    let sb = dir.super_block();
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let all = layout.groups.max(1);
    let (home, _) = layout.locate_inode(dir.number()).ok_or(EIO)?;
    let (free, spread) = {
        let counts = volume.counts.lock();
        (
            counts.free_inodes,
            directory && dir.number() == format::inode::ROOT,
        )
    };
    if free == 0 {
        return Err(ENOSPC);
    }
    let first = if spread { random() % all } else { home };
    let average = (free / u64::from(all)) as u32;
    // For a top-level directory, first try only groups with at least the average number of free
    // inodes.
    for least in [if spread { average.max(1) } else { 1 }, 1] {
        for step in 0..all {
            let number = ((u64::from(first) + u64::from(step)) % u64::from(all)) as u32;
            if let Some(ino) = in_group(handle, sb, number, least, directory)? {
                return Ok(ino);
            }
        }
    }
    Err(ENOSPC)
}

fn in_group(
    handle: &Handle,
    sb: &SuperBlock<Volume>,
    number: u32,
    least: u32,
    directory: bool,
) -> Result<Option<u32>> {
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let Some(fenced) = volume.fenced_inodes.get(number as usize) else {
        return Ok(None);
    };
    if fenced.load(Relaxed) {
        return Ok(None);
    }
    let _lock = volume.lock_group(number)?;
    let fence = || {
        fenced.store(true, Relaxed);
        pr_err!(
            "{}: group {number}: no inodes are allocated in it until a scrub has repaired its inode bitmap\n",
            sb.name()
        );
        Ok(None)
    };
    let mut group = match groups::group(volume, sb, number) {
        Ok(group) => group,
        Err(error) if volume.journal()?.is_aborted() => return Err(error),
        Err(_) => return fence(),
    };
    if group.free_inodes < least {
        return Ok(None);
    }
    // The table holds inodes of this volume up to here, or it may never have been written.
    let written = match groups::has_uninit(volume) && group.flags & INODE_ZEROED == 0 {
        true => layout.inodes_per_group.saturating_sub(group.itable_unused),
        false => layout.inodes_per_group,
    };
    let mut buffer = match groups::inode_bitmap(Some(handle), sb, number, &mut group) {
        Ok(buffer) => buffer,
        Err(error) if volume.journal()?.is_aborted() => return Err(error),
        Err(_) => return fence(),
    };
    let from = if number == 0 { layout.first_inode - 1 } else { 0 };
    let bits = buffer.bytes()?;
    let Some(index) = bitmap::next_clear(&bits, from, layout.inodes_per_group) else {
        return Ok(None);
    };
    // A block of the table without used inodes may never have been written; or its last inode has
    // just been freed, and the committing transaction still uses the block.
    let per_block = format::divisor(layout.block_size / u32::from(layout.inode_size).max(1));
    let start = index - index % per_block;
    let all = per_block.get();
    let is_unused = bitmap::clear_run(&bits, start, start + all, all) == all;
    drop(bits);
    let mut slots = if is_unused {
        start..start + all
    } else {
        index..index + 1
    };
    let place = group.inode_table + u64::from(index / per_block);
    if index == start {
        // The next blocks are needed soon if the group is being filled.
        let left = layout.inode_table_blocks().saturating_sub(index / per_block);
        sb.read_ahead(place, READ_AHEAD.min(left));
    }
    let Ok(table) = Buffer::read(sb, place) else {
        pr_err!(
            "{}: group {number}: block {place} of the inode table cannot be read\n",
            sb.name()
        );
        return fence();
    };
    // An inode in memory is in use even if it has no name any more. One that has just been freed is
    // none of these.
    let first = number * layout.inodes_per_group + slots.start + 1;
    let live = sb.live(first, slots.end - slots.start);
    if live != 0 {
        let what = Corrupt("free in the inode bitmap, in use in memory");
        inode::bad(sb, first + live.trailing_zeros(), what);
        return fence();
    }
    {
        let _table = volume.lock_table(place)?;
        let size = usize::from(layout.inode_size);
        let inodes = table.bytes()?;
        let in_use = slots.find(|&slot| {
            let ino = number * layout.inodes_per_group + slot + 1;
            let at = (slot - start) as usize * size;
            let bytes = inodes.get(at..at + size);
            bytes.is_some_and(|bytes| format::inode::has_names(layout, ino, bytes, slot < written))
        });
        drop(inodes);
        if let Some(slot) = in_use {
            let ino = number * layout.inodes_per_group + slot + 1;
            inode::bad(
                sb,
                ino,
                Corrupt("free in the inode bitmap, in use in the inode table"),
            );
            return fence();
        }
        if is_unused {
            drop(handle.renew(FreshBuffer::new(sb, place)?)?);
        }
    }
    let mut bits = handle.write(&mut buffer)?;
    if bitmap::assign(&mut bits, index, 1, true) != 1 {
        return Err(groups::bad(sb, number, Corrupt("inode bitmap changed")));
    }
    groups::seal_inodes(volume, &mut group, &bits);
    drop(bits);
    groups::change(handle, sb, number, |stored| {
        stored.free_inodes = stored.free_inodes.saturating_sub(1);
        let dirs = stored.used_dirs.saturating_add(u32::from(directory));
        stored.used_dirs = dirs.min(layout.inodes_per_group);
        stored.inode_bitmap_csum = group.inode_bitmap_csum;
        if groups::has_uninit(volume) {
            stored.itable_unused = stored.itable_unused.min(layout.inodes_per_group - index - 1);
        }
        Ok(())
    })?;
    let mut counts = volume.counts.lock();
    counts.free_inodes = counts.free_inodes.saturating_sub(1);
    Ok(Some(number * layout.inodes_per_group + index + 1))
}

/// Returns true if an inode is in use according to its group's bitmap, or if the volume has too
/// many groups for its bitmaps to be read.
pub(in crate::fs) fn is_used(sb: &SuperBlock<Volume>, ino: u32) -> Result<bool> {
    let volume = sb.volume()?;
    if volume.layout.groups > MOST_GROUPS {
        return Ok(true);
    }
    let (number, index) = volume.layout.locate_inode(ino).ok_or(EIO)?;
    let _lock = volume.lock_group(number)?;
    let mut group = groups::group(volume, sb, number)?;
    match groups::inode_bitmap(None, sb, number, &mut group) {
        // It is not initialized yet.
        Err(EAGAIN) => Ok(false),
        bitmap => Ok(bitmap::is_set(&bitmap?.bytes()?, index)),
    }
}

/// Frees an inode, which must have no blocks and must be stored with its time of deletion.
pub(in crate::fs) fn free(handle: &Handle, sb: &SuperBlock<Volume>, ino: u32, directory: bool) -> Result {
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let (number, index) = layout.locate_inode(ino).ok_or(EIO)?;
    if ino < layout.first_inode {
        return Err(inode::bad(sb, ino, Corrupt("a reserved inode is freed")));
    }
    let _lock = volume.lock_group(number)?;
    let mut group = groups::group(volume, sb, number)?;
    let mut buffer = groups::inode_bitmap(Some(handle), sb, number, &mut group)?;
    if group.free_inodes >= layout.inodes_per_group {
        return Err(groups::bad(
            sb,
            number,
            Corrupt("free inodes do not match the bitmap"),
        ));
    }
    if !bitmap::is_set(&buffer.bytes()?, index) {
        return Err(inode::bad(sb, ino, Corrupt("a free inode is freed")));
    }
    let mut bits = handle.write(&mut buffer)?;
    bitmap::assign(&mut bits, index, 1, false);
    groups::seal_inodes(volume, &mut group, &bits);
    drop(bits);
    groups::change(handle, sb, number, |stored| {
        stored.free_inodes = stored.free_inodes.saturating_add(1);
        stored.used_dirs = stored.used_dirs.saturating_sub(u32::from(directory));
        stored.inode_bitmap_csum = group.inode_bitmap_csum;
        Ok(())
    })?;
    let mut counts = volume.counts.lock();
    counts.free_inodes = counts.free_inodes.saturating_add(1);
    Ok(())
}

/// Allocates an inode in `dir` for `blank`, and adds it to the inode cache. It is not stored yet.
pub(in crate::fs) fn make(
    handle: &Handle,
    dir: &Inode<Volume>,
    blank: Blank<Volume>,
    device: u32,
) -> Result<NewInode<Volume>> {
    let sb = dir.super_block();
    let fields = blank.fields();
    let directory = fields.mode & 0o170000 == 0o040000;
    let ino = allocate(handle, dir, directory)?;
    // Free the inode again on failure.
    place(dir, blank, device, fields, handle.transaction(), ino).or_else(|error| {
        free(handle, sb, ino, directory)?;
        Err(error)
    })
}

/// Initializes a new inode with its number, and adds it to the inode cache.
fn place(
    dir: &Inode<Volume>,
    blank: Blank<Volume>,
    device: u32,
    mut fields: InodeFields,
    transaction: u32,
    ino: u32,
) -> Result<NewInode<Volume>> {
    let sb = dir.super_block();
    let layout = &sb.volume()?.layout;
    let kind = fields.mode & 0o170000;
    fields.generation = random();
    fields.device = device;
    let mut root = [0; BLOCK_BYTES];
    let mut own = 0;
    if matches!(kind, 0o040000 | 0o100000 | 0o120000) {
        // Without the feature, an empty mapping consists of null pointers.
        if layout.features.incompat(incompat::EXTENTS) {
            extent_edit::start(&mut root, 0, false).map_err(|what| inode::bad(sb, ino, what))?;
            own = flags::EXTENTS;
        }
    } else if device != 0 {
        write_device(&mut root, device);
    }
    own |= flags::inherited(fields.mode, dir.data()?.flags());
    fields.sync = own & flags::SYNC != 0;
    fields.noatime = own & flags::NOATIME != 0;
    fields.dirsync = own & flags::DIRSYNC != 0;
    let seed = inode_seed(layout.seed, ino, fields.generation);
    let made = format::inode::has_extra_times(layout.inode_size).then_some(format::inode::Time {
        seconds: fields.ctime.seconds,
        nanoseconds: fields.ctime.nanoseconds,
    });
    let data = inode::Data::new(root, own, 0, 0, inode::Since { transaction, made }, false, seed);
    blank.place(ino, &fields, data)
}
