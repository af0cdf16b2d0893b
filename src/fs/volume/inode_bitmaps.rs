// SPDX-License-Identifier: GPL-2.0

//! Inode bitmaps and the inode counts of groups under check and repair.
//!
//! [`look`] compares each bit with its slot of the inode table, the inodes in memory and the
//! orphans. Bit and slot change in one handle, so it is exact between handles
//! ([`crate::kernel_glue::Journal::between_handles`]), and may show changes that are half done
//! otherwise. [`repair`] corrects a group in one handle, under the group's lock, after it has
//! looked at each slot again. A group that was fenced is allocated from again afterwards.

use crate::{
    format::{
        self, bitmap,
        group::{bitmap_checksum, INODE_UNINIT, INODE_ZEROED},
        inode::BAD_BLOCKS,
    },
    fs::{
        alloc::ialloc::CREDITS,
        disk::{groups, inode},
        names::orphan,
        state::Volume,
    },
    kernel_glue::{corrupted, Buffer, Handle, SuperBlock},
    sort,
};
use kernel::{prelude::*, sync::atomic::Relaxed};

/// Blocks of the journal that one [`repair`] may write.
pub(crate) const REPAIR_CREDITS: u32 = CREDITS;

/// The findings in the inode bitmap, the inode counts and the flags of a group.
#[derive(Default)]
pub(crate) struct InodeGroup {
    /// Inodes in use that are free in the bitmap.
    pub(crate) unmarked: KVVec<u32>,
    /// Inodes that are marked in use, but free by all that the group knows of them.
    pub(crate) unused: KVVec<u32>,
    /// Number of slots that say neither that they are in use nor that they are free.
    pub(crate) unclear: u32,
    /// The checksum of the bitmap is wrong.
    pub(crate) is_unsealed: bool,
    /// A bit beyond the last inode is clear.
    pub(crate) is_unpadded: bool,
    /// The count of free inodes and the number of clear bits, if they differ.
    pub(crate) free: Option<(u32, u32)>,
    /// The count of directories and the number of directories, if they differ.
    pub(crate) directories: Option<(u32, u32)>,
    /// The end of the table counts as never used, but has inodes in use: the number of inodes that
    /// are said to be there, and that of those that may be.
    pub(crate) never_used: Option<(u32, u32)>,
}

impl InodeGroup {
    /// Returns true if something is to be corrected.
    pub(crate) fn is_wrong(&self) -> bool {
        !self.unmarked.is_empty()
            || !self.unused.is_empty()
            || self.is_unsealed
            || self.is_unpadded
            || self.free.is_some()
            || self.directories.is_some()
            || self.never_used.is_some()
    }
}

/// The state of an inode according to its slot of the inode table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slot {
    /// The inode has links, a known type and a valid checksum.
    Live,
    /// It has no links and was not deleted: an orphan, unless it was left behind.
    Nameless,
    /// It was never used, or deleted.
    Free,
    /// It is damaged, or was never written.
    Unclear,
}

/// Returns what a slot says, and whether it is that of a directory.
fn read_slot(volume: &Volume, ino: u32, bytes: &[u8]) -> (Slot, bool) {
    let layout = &volume.layout;
    if bytes.iter().all(|&byte| byte == 0) {
        return (Slot::Free, false);
    }
    let Ok(found) = format::inode::outline(layout, ino, bytes, true) else {
        return (Slot::Unclear, false);
    };
    let kind = found.mode() >> 12;
    let slot = match (found.links(), found.mode(), found.dtime()) {
        (0, 0, _) => Slot::Free,
        (0, _, 0) => Slot::Nameless,
        (0, _, _) => Slot::Free,
        _ if matches!(kind, 1 | 2 | 4 | 6 | 8 | 10 | 12) => Slot::Live,
        _ => Slot::Unclear,
    };
    (slot, kind == 4)
}

/// Returns the inodes that are recorded as orphans, sorted.
pub(crate) fn orphans(sb: &SuperBlock<Volume>) -> Result<KVVec<u32>> {
    let mut sorted = KVVec::new();
    for &(_, ino) in orphan::all(sb.volume()?)?.iter() {
        sorted.push(ino, GFP_KERNEL)?;
    }
    sort::by_key(&mut sorted, |&ino| ino);
    Ok(sorted)
}

/// Calls `each` with the index, the number and the bytes of the slots of a group from `first` to
/// before `end`.
fn slots(
    sb: &SuperBlock<Volume>,
    number: u32,
    first: u32,
    end: u32,
    each: &mut dyn FnMut(u32, u32, &[u8]) -> Result,
) -> Result {
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let size = usize::from(layout.inode_size);
    let mut index = first;
    while index < end {
        let (block, offset) = inode::place(volume, sb, number, index)?;
        let buffer = Buffer::read(sb, block)?;
        let _table = volume.lock_table(block)?;
        let bytes = buffer.bytes()?;
        for slot in bytes.get(offset..).ok_or(EIO)?.chunks_exact(size) {
            if index >= end {
                break;
            }
            each(index, number * layout.inodes_per_group + index + 1, slot)?;
            index += 1;
        }
    }
    Ok(())
}

/// Compares the bitmap and the descriptor of a group with its inode table. `orphans` are those of
/// [`orphans`].
///
/// The end of a table that was never used is read only if something contradicts that.
///
/// # Errors
///
/// `EFSCORRUPTED` when the descriptor is damaged, `EIO` when it, the bitmap or the table cannot be
/// read, `ENOMEM`.
pub(crate) fn look(sb: &SuperBlock<Volume>, number: u32, orphans: &[u32]) -> Result<InodeGroup> {
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let all = layout.inodes_per_group;
    let mut bits = KVec::from_elem(0u8, layout.block_size as usize, GFP_KERNEL)?;
    let mut found = InodeGroup::default();
    let _lock = volume.lock_group(number)?;
    let group = groups::look_at(volume, sb, number)?.map_err(|what| {
        pr_err!("{}: group {number}: {}\n", sb.name(), what.0);
        corrupted()
    })?;
    let has_uninit = groups::has_uninit(volume);
    let is_uninit = group.flags & INODE_UNINIT != 0 && has_uninit;
    if is_uninit {
        groups::pad(volume, all, &mut bits);
    } else {
        Buffer::read(sb, group.inode_bitmap)?.copy(0, &mut bits)?;
        let sum = bitmap_checksum(layout, &bits, all);
        found.is_unsealed = layout.has_metadata_csum() && sum != Some(group.inode_bitmap_csum);
        found.is_unpadded = bitmap::next_clear(&bits, all, layout.block_size * 8).is_some();
    }
    let free = bitmap::count_clear(&bits, all);
    if free != group.free_inodes {
        found.free = Some((group.free_inodes, free));
    }
    let written = match (has_uninit, is_uninit) {
        (true, true) => 0,
        (true, false) => all - group.itable_unused,
        (false, _) => all,
    };
    let contradicted = found.free.is_some()
        || found.is_unsealed
        || is_uninit && group.used_dirs > 0
        || bitmap::clear_run(&bits, written, all, u32::MAX) < all - written;
    let end = if contradicted { all } else { written };
    // A part that was never written may have any contents.
    let is_written = !has_uninit || group.flags & INODE_ZEROED != 0;
    let (mut directories, mut unsure, mut behind, mut exposed) = (0, 0, 0, 0);
    let mut live = (0u32, 0u64);
    slots(sb, number, 0, end, &mut |index, ino, bytes| {
        if index % 64 == 0 {
            live = (ino, sb.live(ino, 64));
        }
        let in_memory = live.1 >> (ino - live.0) & 1 != 0;
        let is_set = bitmap::is_set(&bits, index);
        let (slot, is_directory) = read_slot(volume, ino, bytes);
        let is_orphan = orphans.binary_search(&ino).is_ok();
        let in_use = match slot {
            _ if ino < layout.first_inode => true,
            Slot::Live => index < written || layout.has_metadata_csum() || is_written || is_set,
            Slot::Nameless => is_set || is_orphan || in_memory,
            Slot::Free => is_set && (is_orphan || in_memory),
            Slot::Unclear => is_set && (index < written || is_written),
        };
        if in_use {
            behind = index + 1;
            directories += u32::from(is_directory && slot != Slot::Free && ino != BAD_BLOCKS);
            if slot == Slot::Unclear && ino >= layout.first_inode {
                unsure += 1;
            }
            if !is_set {
                found.unmarked.push(ino, GFP_KERNEL)?;
            }
        } else if is_set {
            match slot {
                Slot::Free => found.unused.push(ino, GFP_KERNEL)?,
                _ => unsure += 1,
            }
        } else if slot == Slot::Unclear && index < written {
            unsure += 1;
        }
        if slot == Slot::Unclear && index >= written {
            exposed = exposed.max(index + 1);
        }
        Ok(())
    })?;
    if behind > written {
        found.never_used = Some((all - written, all - behind));
        // Slots that would become a part of the table must not hold anything.
        unsure += u32::from(exposed > 0 && exposed <= behind);
    }
    found.unclear = unsure;
    // Damaged inodes may be directories.
    if unsure == 0 && directories != group.used_dirs {
        found.directories = Some((group.used_dirs, directories));
    }
    Ok(found)
}

/// Corrects the inode bitmap of a group: sets the bits of the inodes in `found.unmarked`, clears
/// those in `found.unused`, and corrects checksum, padding, counts and flags. Inodes whose slots
/// have changed since are left out. The handle needs [`REPAIR_CREDITS`].
///
/// `found` was found between handles. The count of directories changes by the difference found
/// then, which does not depend on directories that were made or removed since.
///
/// # Errors
///
/// `EFSCORRUPTED` when the descriptor is damaged, `EIO`, `EROFS` when the journal is aborted.
/// Nothing was changed then, unless the journal is aborted.
pub(crate) fn repair(handle: &Handle, sb: &SuperBlock<Volume>, number: u32, found: &InodeGroup) -> Result {
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let all = layout.inodes_per_group;
    let _lock = volume.lock_group(number)?;
    let mut group = groups::group(volume, sb, number)?;
    let before = group.free_inodes;
    let mut changes = KVVec::new();
    for (inodes, value) in [(&found.unmarked, true), (&found.unused, false)] {
        for &ino in inodes {
            let (_, index) = layout.locate_inode(ino).ok_or(EIO)?;
            slots(sb, number, index, index + 1, &mut |index, ino, bytes| {
                let (slot, _) = read_slot(volume, ino, bytes);
                let still = match value {
                    true => slot != Slot::Free || ino < layout.first_inode,
                    false => slot == Slot::Free && sb.live(ino, 1) == 0,
                };
                if still {
                    changes.push((index, value), GFP_KERNEL)?;
                }
                Ok(())
            })?;
        }
    }
    let has_uninit = groups::has_uninit(volume);
    let mut buffer = match group.flags & INODE_UNINIT != 0 && has_uninit {
        // It is made only for bits to be set.
        true if !changes.is_empty() => groups::inode_bitmap(Some(handle), sb, number, &mut group)?,
        true => {
            return correct_counts(handle, sb, number, found, before, all, None);
        }
        false => Buffer::read(sb, group.inode_bitmap)?,
    };
    let mut bits = handle.write(&mut buffer)?;
    for &(index, value) in changes.iter() {
        bitmap::assign(&mut bits, index, 1, value);
    }
    groups::pad(volume, all, &mut bits);
    groups::seal_inodes(volume, &mut group, &bits);
    let free = bitmap::count_clear(&bits, all);
    let behind = (0..all).rev().find(|&index| bitmap::is_set(&bits, index));
    drop(bits);
    buffer.set_verified();
    let end = behind.map_or(0, |index| index + 1);
    correct_counts(
        handle,
        sb,
        number,
        found,
        before,
        free,
        Some((end, group.inode_bitmap_csum)),
    )
}

/// Stores the counts of a group: `free` inodes, of which there were `before`; and, if the bitmap
/// was written, the end of the inodes in use and its checksum.
fn correct_counts(
    handle: &Handle,
    sb: &SuperBlock<Volume>,
    number: u32,
    found: &InodeGroup,
    before: u32,
    free: u32,
    written: Option<(u32, u32)>,
) -> Result {
    let volume = sb.volume()?;
    let all = volume.layout.inodes_per_group;
    groups::change(handle, sb, number, |stored| {
        stored.free_inodes = free;
        if let Some((counted, right)) = found.directories {
            let dirs = stored.used_dirs.saturating_add(right).saturating_sub(counted);
            stored.used_dirs = dirs.min(all);
        }
        if let Some((end, sum)) = written {
            stored.inode_bitmap_csum = sum;
            if groups::has_uninit(volume) {
                stored.itable_unused = stored.itable_unused.min(all - end);
            }
        }
        Ok(())
    })?;
    if let Some(fenced) = volume.fenced_inodes.get(number as usize) {
        fenced.store(false, Relaxed);
    }
    let mut counts = volume.counts.lock();
    let total = counts.free_inodes.saturating_add(free.into());
    counts.free_inodes = total.saturating_sub(before.into());
    Ok(())
}
