// SPDX-License-Identifier: GPL-2.0

//! Block pointers of files without extents.
//!
//! `i_block` contains 12 direct pointers and one pointer each to trees of one, two and three levels
//! of indirect blocks. An indirect block is an array of 32-bit block numbers, 0 for none, without a
//! checksum.
//!
//! Source: `Documentation/filesystems/ext4/ifork.rst` (direct/indirect block addressing).

use super::{Checked, Corrupt};

/// Number of direct pointers in the inode.
pub(crate) const DIRECT: u32 = 12;
/// Number of pointers in the inode.
pub(crate) const SLOTS: u32 = 15;
/// Maximum number of levels of indirect blocks.
pub(crate) const LEVELS: usize = 3;

const SHORT: Corrupt = Corrupt("indirect block cut short");

/// The path to the pointer for a file block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    /// The index to follow at each level, the one in the inode first.
    pub(crate) slots: [u32; LEVELS + 1],
    /// Number of levels of indirect blocks on the path.
    pub(crate) levels: usize,
}

/// Returns the path to file block `block`, with `1 << bits` pointers per indirect block; `None` if
/// it is beyond the last block that can be mapped.
pub(crate) fn way(bits: u32, block: u32) -> Option<Way> {
    let mut slots = [0; LEVELS + 1];
    if block < DIRECT {
        slots[0] = block;
        return Some(Way { slots, levels: 0 });
    }
    let mut index = u64::from(block - DIRECT);
    for levels in 1..=LEVELS {
        let all = 1u64 << (bits * levels as u32);
        if index < all {
            slots[0] = DIRECT + levels as u32 - 1;
            for (level, slot) in slots.iter_mut().enumerate().take(levels + 1).skip(1) {
                *slot = (index >> (bits * (levels - level) as u32)) as u32 & ((1 << bits) - 1);
            }
            return Some(Way { slots, levels });
        }
        index -= all;
    }
    None
}

impl Way {
    /// Returns the index to follow at a level.
    pub(crate) fn slot(&self, level: usize) -> u32 {
        self.slots.get(level).copied().unwrap_or(0)
    }

    /// Returns the number of file blocks that one pointer at a level covers.
    pub(crate) fn each(&self, bits: u32, level: usize) -> u64 {
        1 << (bits * self.levels.saturating_sub(level) as u32)
    }

    /// Returns the number of pointers from this one, inclusive, to the end of the last table: the
    /// pointers of that many consecutive file blocks are adjacent.
    pub(crate) fn reach(&self, bits: u32) -> u32 {
        let all = if self.levels == 0 { DIRECT } else { 1 << bits };
        all.saturating_sub(self.slot(self.levels))
    }
}

/// Returns the first file block that pointer `slot` of the inode covers, the number of blocks, and
/// the levels below it.
pub(crate) fn root_slot(bits: u32, slot: u32) -> (u64, u64, usize) {
    let Some(level) = slot.checked_sub(DIRECT) else {
        return (slot.into(), 1, 0);
    };
    let before: u64 = (1..=level).map(|level| 1u64 << (bits * level)).sum();
    let levels = level + 1;
    (u64::from(DIRECT) + before, 1 << (bits * levels), levels as usize)
}

/// Returns the pointer at `slot` of a table.
pub(crate) fn pointer(table: &[u8], slot: u32) -> Checked<u32> {
    let start = slot as usize * 4;
    let bytes = table
        .get(start..start + 4)
        .and_then(|bytes| bytes.try_into().ok());
    Ok(u32::from_le_bytes(bytes.ok_or(SHORT)?))
}

/// Sets the pointer at `slot` of a table.
pub(crate) fn set_pointer(table: &mut [u8], slot: u32, place: u32) -> Checked<()> {
    let start = slot as usize * 4;
    let field = table.get_mut(start..start + 4).ok_or(SHORT)?;
    field.copy_from_slice(&place.to_le_bytes());
    Ok(())
}

/// Returns true if a table contains no pointer.
pub(crate) fn is_empty(table: &[u8]) -> bool {
    table.iter().all(|&byte| byte == 0)
}

/// Returns the maximum size in bytes of a file without extents: the range that its pointers cover,
/// limited so that its blocks and the indirect blocks of a dense mapping do not exceed `i_blocks`
/// (32 bits of sectors, or with `huge_file` 48 bits of blocks).
pub(crate) fn max_size(block_bits: u32, huge_file: bool) -> u64 {
    let bits = block_bits - 2;
    let (one, two, three) = (1u64 << bits, 1u64 << (2 * bits), 1u64 << (3 * bits));
    let most = match huge_file {
        true => (1 << 48) - 1,
        false => ((1u64 << 32) - 1) >> (block_bits - 9),
    };
    let all = u64::from(DIRECT) + one + two + three;
    let nodes = 1 + (1 + one) + (1 + one + two);
    if all + nodes <= most {
        return all << block_bits;
    }
    // Reserve the indirect blocks needed if all blocks were data.
    let left = most - u64::from(DIRECT) - one;
    let nodes = match left.checked_sub(two) {
        None => 1 + 1 + left.div_ceil(one),
        Some(left) => 1 + (1 + one) + 1 + left.div_ceil(one) + left.div_ceil(two),
    };
    (most - nodes) << block_bits
}
