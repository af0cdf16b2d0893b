// SPDX-License-Identifier: GPL-2.0

//! Walking the indirect blocks of an inode that has no extents: an old file, or the inode that keeps the blocks reserved
//! for the descriptor table.
//!
//! `i_block` holds 12 direct pointers and one each to trees of one, two and three levels.
//!
//! Source: `Documentation/filesystems/ext4/ifork.rst` (direct/indirect block addressing).

use crate::{
    format::Corrupt,
    fs::{
        disk::{errors::corrupt_inode, fixed},
        map::run::Run,
        state::Volume,
    },
    kernel_glue::{Buffer, Inode},
};
use kernel::prelude::*;

/// Direct pointers in the inode.
const DIRECT: u64 = 12;

/// What holds `block` of a file.
pub(in crate::fs) fn find(inode: &Inode<Volume>, block: u32) -> Result<Run> {
    let sb = inode.super_block();
    let layout = &sb.volume()?.layout;
    let data = inode.data()?;
    let root = data.root.read();
    let bad = |place, what| corrupt_inode(sb, inode.number(), place, Corrupt(what));
    // Pointers that a block holds are a power of two: of this.
    let bits = u32::from(layout.block_bits) - 2;

    // The pointer in the inode to start from, the levels below it, and the place of `block` in what it leads to.
    let (mut slot, mut levels, mut index) = (u64::from(block), 0u32, 0u64);
    if slot >= DIRECT {
        index = slot - DIRECT;
        levels = 1;
        while index >> (bits * levels) > 0 {
            index -= 1 << (bits * levels);
            levels += 1;
        }
        if levels > 3 {
            // Farther than such a file can reach.
            let len = u64::from(u32::MAX - block) + 1;
            return Ok(Run {
                offset: block,
                len,
                start: None,
            });
        }
        slot = DIRECT + u64::from(levels) - 1;
    }
    let mut buffer: Option<Buffer> = None;
    loop {
        let table: &[u8] = match &buffer {
            Some(buffer) => buffer,
            None => &*root,
        };
        let place = u64::from(pointer(table, slot).ok_or_else(|| bad(None, "indirect block cut short"))?);
        // Blocks that one pointer of this level stands for.
        let reach = 1u64 << (bits * levels);
        if place == 0 {
            // The hole ends at the latest where the next pointer begins.
            return Ok(Run {
                offset: block,
                len: reach - (index & (reach - 1)),
                start: None,
            });
        }
        if !layout.contains(place, 1) {
            return Err(bad(None, "indirect pointer is off the volume"));
        }
        fixed::check(inode, place, 1)?;
        if levels == 0 {
            let more = 1..(table.len() as u64 / 4).saturating_sub(slot);
            let limit = if buffer.is_none() {
                DIRECT.saturating_sub(slot)
            } else {
                u64::MAX
            };
            let len = 1 + more
                .take_while(|&step| {
                    step < limit
                        && pointer(table, slot + step).is_some_and(|next| u64::from(next) == place + step)
                })
                .count() as u32;
            if !layout.contains(place, len) {
                return Err(bad(None, "indirect pointer is off the volume"));
            }
            fixed::check(inode, place, len)?;
            return Ok(Run {
                offset: block,
                len: u64::from(len),
                start: Some((place, true)),
            });
        }
        let next = Buffer::read(sb, place).inspect_err(|_| {
            pr_err!(
                "{}: inode {}: block {place} cannot be read\n",
                sb.name(),
                inode.number()
            );
        })?;
        levels -= 1;
        slot = index >> (bits * levels);
        index &= (1 << (bits * levels)) - 1;
        buffer = Some(next);
    }
}

/// The pointer at `slot` of a table of 32-bit block numbers.
fn pointer(table: &[u8], slot: u64) -> Option<u32> {
    let start = usize::try_from(slot).ok()?.checked_mul(4)?;
    let bytes = table.get(start..start.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}
