// SPDX-License-Identifier: GPL-2.0

//! Block bitmaps under check and repair.
//!
//! The allocator rejects a bitmap whose checksum is wrong. A check needs its contents nevertheless,
//! and a repair writes single bits, the padding, the checksum and the free count of the group's
//! descriptor in one handle, under the group's lock. A group that was fenced because of its bitmap
//! is allocated from again afterwards.

use crate::{
    format::{
        bitmap,
        group::{bitmap_checksum, BLOCK_UNINIT},
        Corrupt,
    },
    fs::{alloc::balloc::ALLOCATE_CREDITS, disk::groups, state::Volume},
    kernel_glue::{corrupted, Buffer, Handle, SuperBlock},
};
use kernel::prelude::*;

pub(crate) use crate::fs::disk::fixed::mark as mark_fixed;

/// Blocks of the journal that one [`repair`] may write.
pub(crate) const REPAIR_CREDITS: u32 = ALLOCATE_CREDITS;

/// The state of a group's block bitmap apart from the bits of its blocks.
pub(crate) struct BitmapState {
    /// The checksum in the descriptor matches, or the volume has none.
    pub(crate) is_sealed: bool,
    /// The bits beyond the last block are set.
    pub(crate) is_padded: bool,
    /// The free count of the descriptor is the number of clear bits.
    pub(crate) is_counted: bool,
}

impl BitmapState {
    /// Returns true if nothing is wrong.
    pub(crate) fn is_sound(&self) -> bool {
        self.is_sealed && self.is_padded && self.is_counted
    }
}

/// Copies the block bitmap of a group to `bits`, whatever it holds. A bitmap that was never written
/// (`BLOCK_UNINIT`) has the bits of fixed metadata set.
///
/// # Errors
///
/// `EFSCORRUPTED` when the descriptor is damaged, `EIO` when it or the bitmap cannot be read,
/// `ENOMEM`.
pub(crate) fn read_any(sb: &SuperBlock<Volume>, number: u32, bits: &mut KVec<u8>) -> Result<BitmapState> {
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let blocks = layout.group_blocks(number);
    bits.clear();
    bits.resize(layout.block_size as usize, 0, GFP_KERNEL)?;
    let _lock = volume.lock_group(number)?;
    let group = groups::look_at(volume, sb, number)?.map_err(|what: Corrupt| {
        pr_err!("{}: group {number}: {}\n", sb.name(), what.0);
        corrupted()
    })?;
    let is_counted = |bits: &[u8]| bitmap::count_clear(bits, blocks) == group.free_blocks;
    if group.flags & BLOCK_UNINIT != 0 && groups::has_uninit(volume) {
        mark_fixed(volume, layout.group_start(number), blocks, bits)?;
        return Ok(BitmapState {
            is_sealed: true,
            is_padded: true,
            is_counted: is_counted(bits),
        });
    }
    Buffer::read(sb, group.block_bitmap)?.copy(0, bits)?;
    let sum = bitmap_checksum(layout, bits, layout.blocks_per_group);
    Ok(BitmapState {
        is_sealed: !layout.has_metadata_csum() || sum == Some(group.block_bitmap_csum),
        is_padded: bitmap::next_clear(bits, blocks, layout.block_size * 8).is_none(),
        is_counted: is_counted(bits),
    })
}

/// Sets and clears runs of bits of a group's block bitmap, as (first bit, length), and corrects its
/// padding, its checksum and the group's free count. The handle needs [`REPAIR_CREDITS`].
///
/// Cleared blocks are not allocated again before the handle's transaction is on disk.
///
/// # Errors
///
/// `EFSCORRUPTED` when the descriptor is damaged, `EIO`, `EROFS` when the journal is aborted.
pub(crate) fn repair(
    handle: &Handle,
    sb: &SuperBlock<Volume>,
    number: u32,
    set: &[(u32, u32)],
    clear: &[(u32, u32)],
) -> Result {
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let mut state = volume.lock_group(number)?;
    let mut group = groups::group(volume, sb, number)?;
    let reserved = state.reserved_count;
    // A fenced group is not part of the volume's free count.
    let before = match state.is_fenced {
        true => 0,
        false => group.free_blocks.saturating_sub(reserved),
    };
    let mut buffer = match group.flags & BLOCK_UNINIT != 0 && groups::has_uninit(volume) {
        true => groups::block_bitmap(Some(handle), sb, number, &mut group)?,
        false => Buffer::read(sb, group.block_bitmap)?,
    };
    let mut bits = handle.write_bitmap(&mut buffer)?;
    for &(bit, len) in set {
        bitmap::assign(&mut bits, bit, len, true);
    }
    for &(bit, len) in clear {
        bitmap::assign(&mut bits, bit, len, false);
        bits.hold_freed(bit, len);
    }
    let blocks = layout.group_blocks(number);
    groups::pad(volume, blocks, &mut bits);
    let free = bitmap::count_clear(&bits, blocks);
    groups::seal_blocks(volume, &mut group, &bits);
    drop(bits);
    buffer.set_verified();
    groups::change(handle, sb, number, |stored| {
        stored.free_blocks = free;
        stored.block_bitmap_csum = group.block_bitmap_csum;
        Ok(())
    })?;
    state.is_fenced = false;
    state.note_free(Some(handle.transaction()));
    let after = free.saturating_sub(reserved);
    let mut counts = volume.counts.lock();
    counts.free_blocks = counts
        .free_blocks
        .saturating_add(after.into())
        .saturating_sub(before.into());
    counts.frees = counts.frees.wrapping_add(1);
    Ok(())
}
