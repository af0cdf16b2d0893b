// SPDX-License-Identifier: GPL-2.0

//! Block group descriptors: location of a group's bitmaps and inode table, free counts, and
//! checksums.
//!
//! A descriptor has 32 bytes, or with the 64bit feature 64 or more; the second half holds the high
//! parts. [`Group`] is a descriptor that was read and checked; [`Group::store`] writes it back with
//! its checksum.
//!
//! Source: `Documentation/filesystems/ext4/group_descr.rst`, `checksums.rst`.

use super::{
    csum::{crc16, crc32c},
    ensure,
    superblock::{ro_compat, Layout},
    Checked, Corrupt,
};
use zerocopy::little_endian::{U16, U32};
use zerocopy::FromBytes;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `bg_flags`: inode bitmap and inode table are not initialized.
pub(crate) const INODE_UNINIT: u16 = 1;
/// `bg_flags`: the whole inode table is initialized.
pub(crate) const INODE_ZEROED: u16 = 4;
/// `bg_flags`: the block bitmap is not initialized.
pub(crate) const BLOCK_UNINIT: u16 = 2;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Default)]
#[repr(C)]
struct Low {
    block_bitmap: U32,
    inode_bitmap: U32,
    inode_table: U32,
    free_blocks: U16,
    free_inodes: U16,
    used_dirs: U16,
    flags: U16,
    exclude_bitmap: U32,
    block_bitmap_csum: U16,
    inode_bitmap_csum: U16,
    itable_unused: U16,
    checksum: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Default)]
#[repr(C)]
struct High {
    block_bitmap: U32,
    inode_bitmap: U32,
    inode_table: U32,
    free_blocks: U16,
    free_inodes: U16,
    used_dirs: U16,
    itable_unused: U16,
    exclude_bitmap: U32,
    block_bitmap_csum: U16,
    inode_bitmap_csum: U16,
    reserved: U32,
}

const LOW: usize = core::mem::size_of::<Low>();
const HIGH: usize = core::mem::size_of::<High>();
/// Offset of the checksum in a descriptor.
const CHECKSUM: usize = LOW - 2;
const _: () = assert!(LOW == 32 && HIGH == 32);

/// A block group descriptor. Locations are blocks of the volume; counts are blocks, inodes and
/// directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) struct Group {
    pub(crate) block_bitmap: u64,
    pub(crate) inode_bitmap: u64,
    pub(crate) inode_table: u64,
    pub(crate) free_blocks: u32,
    pub(crate) free_inodes: u32,
    pub(crate) used_dirs: u32,
    pub(crate) flags: u16,
    /// Inodes at the end of the table that were never used.
    pub(crate) itable_unused: u32,
    pub(crate) block_bitmap_csum: u32,
    pub(crate) inode_bitmap_csum: u32,
}

impl Group {
    /// Reads the descriptor of `group` from its `desc_size` bytes. Checks the checksum, and that
    /// all locations are on the volume.
    pub(crate) fn read(layout: &Layout, group: u32, bytes: &[u8]) -> Checked<Group> {
        let (low, rest) = Low::read_from_prefix(bytes).map_err(|_| Corrupt("descriptor cut short"))?;
        ensure(
            checksum_holds(layout, group, bytes, low.checksum.get()),
            "descriptor checksum mismatch",
        )?;
        let high = if usize::from(layout.desc_size) >= LOW + HIGH {
            High::read_from_prefix(rest)
                .map_err(|_| Corrupt("descriptor cut short"))?
                .0
        } else {
            High::default()
        };
        let wide = |low: U32, high: U32| (u64::from(high.get()) << 32) | u64::from(low.get());
        let count = |low: U16, high: U16| (u32::from(high.get()) << 16) | u32::from(low.get());
        let found = Group {
            block_bitmap: wide(low.block_bitmap, high.block_bitmap),
            inode_bitmap: wide(low.inode_bitmap, high.inode_bitmap),
            inode_table: wide(low.inode_table, high.inode_table),
            free_blocks: count(low.free_blocks, high.free_blocks),
            free_inodes: count(low.free_inodes, high.free_inodes),
            used_dirs: count(low.used_dirs, high.used_dirs),
            flags: low.flags.get(),
            itable_unused: count(low.itable_unused, high.itable_unused),
            block_bitmap_csum: count(low.block_bitmap_csum, high.block_bitmap_csum),
            inode_bitmap_csum: count(low.inode_bitmap_csum, high.inode_bitmap_csum),
        };
        ensure(
            layout.contains(found.block_bitmap, 1),
            "block bitmap is off the volume",
        )?;
        ensure(
            layout.contains(found.inode_bitmap, 1),
            "inode bitmap is off the volume",
        )?;
        ensure(
            layout.contains(found.inode_table, layout.inode_table_blocks()),
            "inode table is off the volume",
        )?;
        ensure(
            found.free_blocks <= layout.group_blocks(group),
            "more free blocks than blocks",
        )?;
        ensure(
            found.free_inodes <= layout.inodes_per_group,
            "more free inodes than inodes",
        )?;
        ensure(
            found.used_dirs <= layout.inodes_per_group,
            "more directories than inodes",
        )?;
        ensure(
            found.itable_unused <= layout.inodes_per_group,
            "more unused inodes than inodes",
        )?;
        Ok(found)
    }

    /// Returns the first block of a group's inode table, from the group's descriptor. The checksum
    /// is not verified: this field never changes, but the rest of the descriptor may be changing.
    pub(crate) fn table_of(layout: &Layout, bytes: &[u8]) -> Checked<u64> {
        let (low, rest) = Low::read_from_prefix(bytes).map_err(|_| Corrupt("descriptor cut short"))?;
        let mut table = u64::from(low.inode_table.get());
        if usize::from(layout.desc_size) >= LOW + HIGH {
            let (high, _) = High::read_from_prefix(rest).map_err(|_| Corrupt("descriptor cut short"))?;
            table |= u64::from(high.inode_table.get()) << 32;
        }
        ensure(
            layout.contains(table, layout.inode_table_blocks()),
            "inode table is off the volume",
        )?;
        Ok(table)
    }

    /// Writes the descriptor of `group` with its checksum. Unknown fields are left unchanged.
    pub(crate) fn store(&self, layout: &Layout, group: u32, bytes: &mut [u8]) -> Checked<()> {
        let short = Corrupt("descriptor cut short");
        let has_high = usize::from(layout.desc_size) >= LOW + HIGH;
        let (low, rest) = Low::mut_from_prefix(bytes).map_err(|_| short)?;
        low.block_bitmap.set(self.block_bitmap as u32);
        low.inode_bitmap.set(self.inode_bitmap as u32);
        low.inode_table.set(self.inode_table as u32);
        low.free_blocks.set(self.free_blocks as u16);
        low.free_inodes.set(self.free_inodes as u16);
        low.used_dirs.set(self.used_dirs as u16);
        low.flags.set(self.flags);
        low.block_bitmap_csum.set(self.block_bitmap_csum as u16);
        low.inode_bitmap_csum.set(self.inode_bitmap_csum as u16);
        low.itable_unused.set(self.itable_unused as u16);
        if has_high {
            let (high, _) = High::mut_from_prefix(rest).map_err(|_| short)?;
            high.block_bitmap.set((self.block_bitmap >> 32) as u32);
            high.inode_bitmap.set((self.inode_bitmap >> 32) as u32);
            high.inode_table.set((self.inode_table >> 32) as u32);
            high.free_blocks.set((self.free_blocks >> 16) as u16);
            high.free_inodes.set((self.free_inodes >> 16) as u16);
            high.used_dirs.set((self.used_dirs >> 16) as u16);
            high.block_bitmap_csum.set((self.block_bitmap_csum >> 16) as u16);
            high.inode_bitmap_csum.set((self.inode_bitmap_csum >> 16) as u16);
            high.itable_unused.set((self.itable_unused >> 16) as u16);
        }
        if let Some(sum) = checksum(layout, group, bytes) {
            let (low, _) = Low::mut_from_prefix(bytes).map_err(|_| short)?;
            low.checksum.set(sum);
        }
        Ok(())
    }
}

/// Computes the checksum of a descriptor, if the volume has descriptor checksums.
fn checksum(layout: &Layout, group: u32, bytes: &[u8]) -> Option<u16> {
    let bytes = bytes.get(..usize::from(layout.desc_size))?;
    let (head, rest) = bytes.split_at_checked(CHECKSUM)?;
    let tail = rest.get(2..)?;
    if layout.has_metadata_csum() {
        let sum = crc32c(layout.seed, &group.to_le_bytes());
        let sum = crc32c(crc32c(crc32c(sum, head), &[0, 0]), tail);
        Some(sum as u16)
    } else if layout.features.ro_compat(ro_compat::GDT_CSUM) {
        let sum = crc16(crc16(!0, &layout.uuid), &group.to_le_bytes());
        Some(crc16(crc16(sum, head), tail))
    } else {
        None
    }
}

fn checksum_holds(layout: &Layout, group: u32, bytes: &[u8], found: u16) -> bool {
    checksum(layout, group, bytes).is_none_or(|sum| sum == found)
}

/// Computes the checksum of a bitmap over its first `bits` bits. Short descriptors store only the
/// low half.
pub(crate) fn bitmap_checksum(layout: &Layout, bitmap: &[u8], bits: u32) -> Option<u32> {
    let bytes = bitmap.get(..bits as usize / 8)?;
    let sum = crc32c(layout.seed, bytes);
    Some(if usize::from(layout.desc_size) >= LOW + HIGH {
        sum
    } else {
        sum & 0xffff
    })
}
