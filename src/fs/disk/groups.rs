// SPDX-License-Identifier: GPL-2.0

//! Block groups: reading and changing their descriptors and bitmaps.
//!
//! A group's descriptor and bitmaps are read and changed only under the group's lock,
//! [`Volume::lock_group`]. Bitmaps that mke2fs did not initialize (`BLOCK_UNINIT`, `INODE_UNINIT`)
//! are initialized when the group is first allocated from.

use crate::{
    format::{
        bitmap,
        group::{bitmap_checksum, Group, BLOCK_UNINIT, INODE_UNINIT},
        superblock::{ro_compat, Layout},
        Checked, Corrupt,
    },
    fs::{
        disk::{errors, fixed},
        state::Volume,
    },
    kernel_glue::{Buffer, FreshBuffer, Handle, NoReclaim, SuperBlock},
};
use kernel::prelude::*;

/// Logs the defect of a group, and returns the errno.
pub(in crate::fs) fn bad(sb: &SuperBlock<Volume>, group: u32, what: Corrupt) -> Error {
    pr_err!("{}: group {group}: {}\n", sb.name(), what.0);
    errors::note(sb, 0, 0);
    errors::errno(what)
}

/// Changes the descriptor of a group. The caller holds the group's lock.
pub(in crate::fs) fn change(
    handle: &Handle,
    sb: &SuperBlock<Volume>,
    number: u32,
    edit: impl FnOnce(&mut Group) -> Result,
) -> Result {
    let volume = sb.volume()?;
    let mut group = group(volume, sb, number)?;
    edit(&mut group)?;
    let (block, offset) = volume.layout.desc_location(number);
    let mut buffer = Buffer::read(sb, block)?;
    let range = offset..offset + usize::from(volume.layout.desc_size);
    let mut bytes = handle.write_part(&mut buffer, range)?;
    group
        .store(&volume.layout, number, &mut bytes)
        .map_err(|what| bad(sb, number, what))
}

/// A bitmap of a group.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bitmap {
    Blocks,
    Inodes,
}

/// Returns the block bitmap of a group, checked, or initialized if it was never written. The group
/// must be locked.
pub(in crate::fs) fn block_bitmap<'a>(
    handle: Option<&Handle>,
    sb: &'a SuperBlock<Volume>,
    number: u32,
    group: &mut Group,
) -> Result<Buffer<'a>> {
    bitmap(handle, sb, number, group, Bitmap::Blocks)
}

/// Returns the inode bitmap of a group, checked, or initialized if it was never written. The group
/// must be locked.
pub(in crate::fs) fn inode_bitmap<'a>(
    handle: Option<&Handle>,
    sb: &'a SuperBlock<Volume>,
    number: u32,
    group: &mut Group,
) -> Result<Buffer<'a>> {
    bitmap(handle, sb, number, group, Bitmap::Inodes)
}

fn bitmap<'a>(
    handle: Option<&Handle>,
    sb: &'a SuperBlock<Volume>,
    number: u32,
    group: &mut Group,
    which: Bitmap,
) -> Result<Buffer<'a>> {
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let (place, uninit) = match which {
        Bitmap::Blocks => (group.block_bitmap, BLOCK_UNINIT),
        Bitmap::Inodes => (group.inode_bitmap, INODE_UNINIT),
    };
    if group.flags & uninit != 0 && has_uninit(volume) {
        let handle = handle.ok_or(EAGAIN)?;
        let mut bits = handle.create(FreshBuffer::new(sb, place)?)?;
        group.flags &= !uninit;
        match which {
            Bitmap::Blocks => {
                let blocks = layout.group_blocks(number);
                fixed::mark(volume, layout.group_start(number), blocks, &mut bits)?;
                pad(volume, blocks, &mut bits);
                seal_blocks(volume, group, &bits);
            }
            Bitmap::Inodes => {
                pad(volume, layout.inodes_per_group, &mut bits);
                group.itable_unused = layout.inodes_per_group;
                seal_inodes(volume, group, &bits);
            }
        }
        let buffer = bits.into_buffer();
        buffer.set_verified();
        change(handle, sb, number, |stored| {
            stored.flags = group.flags;
            match which {
                Bitmap::Blocks => stored.block_bitmap_csum = group.block_bitmap_csum,
                Bitmap::Inodes => {
                    stored.itable_unused = group.itable_unused;
                    stored.inode_bitmap_csum = group.inode_bitmap_csum;
                }
            }
            Ok(())
        })?;
        return Ok(buffer);
    }
    let (bits, sum, mismatch) = match which {
        Bitmap::Blocks => (
            layout.blocks_per_group,
            group.block_bitmap_csum,
            "block bitmap checksum mismatch",
        ),
        Bitmap::Inodes => (
            layout.inodes_per_group,
            group.inode_bitmap_csum,
            "inode bitmap checksum mismatch",
        ),
    };
    let buffer = Buffer::read(sb, place)?;
    if !buffer.is_verified() {
        if layout.has_metadata_csum() && bitmap_checksum(layout, &buffer.bytes()?, bits) != Some(sum) {
            return Err(bad(sb, number, Corrupt(mismatch)));
        }
        buffer.set_verified();
    }
    Ok(buffer)
}

/// Sets the padding bits of a bitmap: those after the first `used`.
pub(in crate::fs) fn pad(volume: &Volume, used: u32, bits: &mut [u8]) {
    let all = volume.layout.block_size * 8;
    bitmap::assign(bits, used, all - used, true);
}

/// Returns true if groups of this volume may have uninitialized parts.
pub(in crate::fs) fn has_uninit(volume: &Volume) -> bool {
    volume.layout.has_metadata_csum() || volume.layout.features.ro_compat(ro_compat::GDT_CSUM)
}

/// Stores the checksum of the block bitmap in the descriptor.
pub(in crate::fs) fn seal_blocks(volume: &Volume, group: &mut Group, bitmap: &[u8]) {
    let layout = &volume.layout;
    if layout.has_metadata_csum() {
        group.block_bitmap_csum = bitmap_checksum(layout, bitmap, layout.blocks_per_group).unwrap_or(0);
    }
}

/// Stores the checksum of the inode bitmap in the descriptor.
pub(in crate::fs) fn seal_inodes(volume: &Volume, group: &mut Group, bitmap: &[u8]) {
    let layout = &volume.layout;
    if layout.has_metadata_csum() {
        group.inode_bitmap_csum = bitmap_checksum(layout, bitmap, layout.inodes_per_group).unwrap_or(0);
    }
}

/// Returns the blocks of a group's own fixed metadata, wherever they are stored: copies of
/// superblock and descriptors, the two bitmaps and the inode table, as first block and length.
pub(crate) fn fixed_blocks(volume: &Volume, number: u32, group: &Group) -> [(u64, u32); 4] {
    fixed_of_layout(&volume.layout, number, group)
}

/// As [`fixed_blocks`], of a volume with this layout.
pub(in crate::fs) fn fixed_of_layout(layout: &Layout, number: u32, group: &Group) -> [(u64, u32); 4] {
    [
        (layout.group_start(number), layout.leading_blocks(number)),
        (group.block_bitmap, 1),
        (group.inode_bitmap, 1),
        (group.inode_table, layout.inode_table_blocks()),
    ]
}

/// Reads and checks the descriptor of a group. Fails with `EFSCORRUPTED` and a log message.
pub(in crate::fs) fn group(volume: &Volume, sb: &SuperBlock<Volume>, group: u32) -> Result<Group> {
    look_at(volume, sb, group)?.map_err(|what| bad(sb, group, what))
}

/// Returns the descriptor of a group, or its defect. Fails with `EIO`.
pub(in crate::fs) fn look_at(volume: &Volume, sb: &SuperBlock<Volume>, group: u32) -> Result<Checked<Group>> {
    let (block, offset) = volume.layout.desc_location(group);
    let buffer = Buffer::read(sb, block)?;
    // Descriptors of other groups in the same block may be changing concurrently.
    let len = usize::from(volume.layout.desc_size);
    let mut usual = [0; 64];
    let mut large = KVec::new();
    let bytes = match usual.get_mut(..len) {
        Some(bytes) => bytes,
        None => {
            let _scope = NoReclaim::new();
            large.resize(len, 0, GFP_KERNEL)?;
            &mut *large
        }
    };
    buffer.copy(offset, bytes)?;
    Ok(Group::read(&volume.layout, group, bytes))
}

/// Returns the first block of a group's inode table.
///
/// Read from the (cached) descriptor each time, since a volume may claim more groups than memory
/// can hold. Fails with `EFSCORRUPTED` if the location is invalid.
pub(in crate::fs) fn inode_table(volume: &Volume, sb: &SuperBlock<Volume>, group: u32) -> Result<u64> {
    let (block, offset) = volume.layout.desc_location(group);
    let buffer = Buffer::read(sb, block)?;
    // Descriptors of other groups, in the same block, may be changed at the same time.
    let mut bytes = [0; 64];
    let len = usize::from(volume.layout.desc_size).min(bytes.len());
    let bytes = bytes.get_mut(..len).ok_or(EIO)?;
    buffer.copy(offset, bytes)?;
    Group::table_of(&volume.layout, bytes).map_err(|what| bad(sb, group, what))
}

/// Returns the blocks of a group's own fixed metadata; see [`fixed_blocks`].
pub(crate) fn fixed_of_group(sb: &SuperBlock<Volume>, number: u32) -> Result<[(u64, u32); 4]> {
    let volume = sb.volume()?;
    let _lock = volume.lock_group(number)?;
    let group = group(volume, sb, number)?;
    Ok(fixed_blocks(volume, number, &group))
}
