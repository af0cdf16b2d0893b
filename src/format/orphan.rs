// SPDX-License-Identifier: GPL-2.0

//! Blocks of the orphan file: inode numbers, 0 for a free slot, followed by a magic and a checksum.
//!
//! Source: `Documentation/filesystems/ext4/orphan.rst`.

use super::{csum::crc32c, ensure, superblock::Layout, Checked, Corrupt};

/// `ob_magic`.
const MAGIC: u32 = 0x0b10_ca04;
/// Size in bytes of magic and checksum.
const TAIL: usize = 8;
const SHORT: Corrupt = Corrupt("orphan block cut short");

/// Returns the number of slots in a block of the given size.
pub(crate) fn slots(block_size: usize) -> usize {
    block_size.saturating_sub(TAIL) / 4
}

/// Returns the slots of a block.
pub(crate) fn inodes(block: &[u8]) -> impl Iterator<Item = u32> + '_ {
    block
        .chunks_exact(4)
        .take(slots(block.len()))
        .filter_map(|bytes| bytes.try_into().ok().map(u32::from_le_bytes))
}

fn checksum(place: u64, block: &[u8], seed: u32) -> Checked<u32> {
    let body = block.get(..slots(block.len()) * 4).ok_or(SHORT)?;
    Ok(crc32c(crc32c(seed, &place.to_le_bytes()), body))
}

/// Checks a block at `place` on the volume. `seed` is that of the file's inode.
pub(crate) fn verify(layout: &Layout, place: u64, block: &[u8], seed: u32) -> Checked<()> {
    let (_, tail) = block
        .split_at_checked(block.len().saturating_sub(TAIL))
        .ok_or(SHORT)?;
    let (magic, sum) = tail.split_at_checked(4).ok_or(SHORT)?;
    ensure(magic == MAGIC.to_le_bytes(), "bad orphan block magic")?;
    ensure(
        !layout.has_metadata_csum() || sum == checksum(place, block, seed)?.to_le_bytes(),
        "orphan block checksum mismatch",
    )
}

/// Sets a slot.
pub(crate) fn set(block: &mut [u8], slot: usize, ino: u32) -> Checked<()> {
    let field = block.get_mut(slot * 4..slot * 4 + 4).ok_or(SHORT)?;
    field.copy_from_slice(&ino.to_le_bytes());
    Ok(())
}

/// Updates the checksum of a block.
pub(crate) fn seal(layout: &Layout, place: u64, block: &mut [u8], seed: u32) -> Checked<()> {
    if !layout.has_metadata_csum() {
        return Ok(());
    }
    let sum = checksum(place, block, seed)?;
    let at = block.len().checked_sub(4).ok_or(SHORT)?;
    block
        .get_mut(at..)
        .ok_or(SHORT)?
        .copy_from_slice(&sum.to_le_bytes());
    Ok(())
}
