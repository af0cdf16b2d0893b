// SPDX-License-Identifier: GPL-2.0

//! Where the metadata of groups lies that are added to a volume.
//!
//! As mke2fs does it, the groups that are added together, of one flex group, have their block
//! bitmaps side by side, then their inode bitmaps, then their inode tables. They begin in the first
//! of these groups.

use super::superblock::Layout;

/// Hands out blocks of new groups in order, except those at the start of a group that copies of
/// superblock and descriptors take.
pub(crate) struct Placer<'a> {
    layout: &'a Layout,
    next: u64,
}

impl<'a> Placer<'a> {
    /// Starts in this group. `layout` is that of the volume which has the new groups.
    pub(crate) fn new(layout: &'a Layout, first: u32) -> Self {
        Placer {
            layout,
            next: layout.group_start(first),
        }
    }

    /// Returns the first of `len` blocks side by side in one group; `None` if no group has room for
    /// them.
    pub(crate) fn take(&mut self, len: u32) -> Option<u64> {
        loop {
            let group = self.layout.group_of_block(self.next)?;
            let start = self.layout.group_start(group);
            let end = start + u64::from(self.layout.group_blocks(group));
            let from = self
                .next
                .max(start + u64::from(self.layout.leading_blocks(group)));
            let behind = from + u64::from(len);
            if behind <= end {
                self.next = behind;
                return Some(from);
            }
            self.next = end;
        }
    }
}

/// Most groups that are added together.
const MOST_TOGETHER: u32 = 32;

/// Returns how many groups are added together to a volume whose last group is full: up to the end
/// of a flex group, and of a block of descriptors, but not beyond `groups` in all.
pub(crate) fn groups_together(layout: &Layout, groups: u32) -> u32 {
    let first = layout.groups;
    let flex = 1u32.checked_shl(layout.flex_bits.into()).unwrap_or(MOST_TOGETHER);
    let until_end = |each: u32| each - first % super::divisor(each);
    until_end(flex.min(MOST_TOGETHER))
        .min(until_end(layout.descs_per_block().get()))
        .min(groups.saturating_sub(first))
}

/// Returns how many of `more` blocks are reserved for root: as large a part, in whole percent, as
/// of those that the volume has.
pub(crate) fn reserved_of(reserved: u64, blocks: u64, more: u64) -> u64 {
    let percent = reserved
        .saturating_mul(100)
        .checked_div(blocks)
        .unwrap_or(0)
        .min(100);
    more.saturating_mul(percent) / 100
}
