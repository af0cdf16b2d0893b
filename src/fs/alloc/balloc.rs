// SPDX-License-Identifier: GPL-2.0

//! Taking blocks from the block bitmaps and giving them back.
//!
//! A block that was freed is not taken again before the free is committed: bitmaps are changed with jbd2 keeping their
//! committed state, and only what is clear in both is taken. The allocator looks for a run near a goal, first in the
//! goal's group and then in the ones behind it.

use crate::{
    format::{bitmap, group::BLOCK_UNINIT, Corrupt},
    fs::{
        disk::{errors, fixed, groups},
        state::Volume,
    },
    kernel_glue::{corrupted, may_use_reserve, Handle, SuperBlock},
};
use kernel::prelude::*;

/// Blocks of the journal that one [`allocate`] may write: a bitmap and a descriptor.
pub(crate) const ALLOCATE_CREDITS: u32 = 2;

/// The blocks kept for the nodes of mappings: a fiftieth of the volume, and no more than this.
const NODES_KEPT: u64 = 4096;

/// Blocks of a volume that only nodes of mappings get. When data has come to disk in the middle of an unwritten extent,
/// it is too late to say that there is no room for the pieces.
pub(in crate::fs) fn kept_for_nodes(volume: &Volume) -> u64 {
    (volume.layout.blocks / 50).min(NODES_KEPT)
}

/// Whether even of those some are gone, so that no more unwritten extents should be had fall into pieces.
pub(in crate::fs) fn is_short_of_nodes(volume: &Volume) -> bool {
    volume.counts.lock().free_blocks < kept_for_nodes(volume)
}

/// Takes up to `want` blocks that lie together, near `goal`. Answers with the first one and how many there are.
/// `for_node` lets it have those that are kept for the nodes of mappings.
///
/// Fails with `ENOSPC` when there are none, or only ones whose free is not committed.
pub(crate) fn allocate(
    handle: &Handle,
    sb: &SuperBlock<Volume>,
    goal: u64,
    want: u32,
    for_node: bool,
) -> Result<(u64, u32)> {
    let volume = sb.volume()?;
    let claimed = claim(volume, want, for_node)?;
    let found = find(handle, sb, goal, claimed);
    let used = found.map_or(0, |(_, len)| len);
    let left = u64::from(claimed.saturating_sub(used));
    let mut counts = volume.counts.lock();
    counts.free_blocks = counts.free_blocks.saturating_add(left);
    found
}

/// Waits until blocks that were just freed can be had; answers whether there were any. No handle may be open.
pub(in crate::fs) fn wait_for_frees(volume: &Volume) -> Result<bool> {
    let frees = {
        let counts = volume.counts.lock();
        if counts.frees == counts.frees_committed {
            return Ok(false);
        }
        counts.frees
    };
    volume.journal()?.commit(true)?;
    volume.counts.lock().frees_committed = frees;
    Ok(true)
}

/// Takes up to `want` blocks off the count of free ones, as many as the current task may have of them.
fn claim(volume: &Volume, want: u32, for_node: bool) -> Result<u32> {
    let (owner, group) = volume.counts.lock().reserved_for;
    let of_all = for_node || may_use_reserve(owner, group);
    let mut counts = volume.counts.lock();
    let kept = if for_node { 0 } else { kept_for_nodes(volume) };
    let kept = kept.saturating_add(if of_all { 0 } else { counts.reserved });
    let most = counts.free_blocks.saturating_sub(kept);
    let claimed = want.min(u32::try_from(most).unwrap_or(u32::MAX));
    if claimed == 0 {
        return Err(ENOSPC);
    }
    counts.free_blocks = counts.free_blocks.saturating_sub(u64::from(claimed));
    Ok(claimed)
}

/// Looks for a run of up to `want` blocks, and takes it from its bitmap.
fn find(handle: &Handle, sb: &SuperBlock<Volume>, goal: u64, want: u32) -> Result<(u64, u32)> {
    let layout = &sb.volume()?.layout;
    let first = layout.group_of_block(goal).unwrap_or(0);
    let mut taken = KVec::from_elem(0u8, layout.block_size as usize, GFP_KERNEL)?;
    // A short run is taken only when a whole round found no longer one.
    let mut least = want.min(64);
    loop {
        for step in 0..=layout.groups {
            let number = ((u64::from(first) + u64::from(step)) % u64::from(layout.groups.max(1))) as u32;
            let from = match layout.group_of_block(goal) {
                Some(group) if step == 0 && group == number => (goal - layout.group_start(number)) as u32,
                _ => 0,
            };
            if let Some(found) = in_group(handle, sb, number, from, want, least, &mut taken)? {
                return Ok(found);
            }
        }
        if least == 1 {
            return Err(ENOSPC);
        }
        least = 1;
    }
}

fn in_group(
    handle: &Handle,
    sb: &SuperBlock<Volume>,
    number: u32,
    from: u32,
    want: u32,
    least: u32,
    taken: &mut [u8],
) -> Result<Option<(u64, u32)>> {
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let _lock = volume.lock_group(number)?;
    let mut group = groups::group(volume, sb, number)?;
    if group.free_blocks < least {
        return Ok(None);
    }
    let mut buffer = groups::block_bitmap(Some(handle), sb, number, &mut group)?;
    buffer.copy_with_committed(taken);
    let end = layout.group_blocks(number);
    let here = bitmap::clear_run(taken, from, end, want);
    let run = if here >= least {
        Some((from, here))
    } else {
        bitmap::find_run(taken, from, end, want)
    };
    let Some((start, len)) = run.filter(|&(_, len)| len >= least) else {
        return Ok(None);
    };
    let block = layout.group_start(number) + u64::from(start);
    if fixed::meets(volume, block, len) {
        return Err(groups::bad(
            sb,
            number,
            Corrupt("blocks of the file system are free"),
        ));
    }
    if group.free_blocks < len {
        return Err(groups::bad(
            sb,
            number,
            Corrupt("free blocks do not match the bitmap"),
        ));
    }
    let mut bits = handle.write_bitmap(&mut buffer)?;
    bitmap::assign(&mut bits, start, len, true);
    groups::seal_blocks(volume, &mut group, &bits);
    drop(bits);
    groups::change(handle, sb, number, |stored| {
        stored.free_blocks = stored.free_blocks.saturating_sub(len);
        stored.block_bitmap_csum = group.block_bitmap_csum;
        Ok(())
    })?;
    Ok(Some((block, len)))
}

/// Gives blocks back. The handle needs room for a bitmap and a descriptor of each group they lie in.
///
/// Fails with `EFSCORRUPTED`, with nothing changed in that group, when some are free already or fixed metadata.
pub(crate) fn free(handle: &Handle, sb: &SuperBlock<Volume>, start: u64, len: u32) -> Result {
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let (mut start, mut len) = (start, len);
    while len > 0 {
        let number = layout.group_of_block(start).ok_or_else(|| {
            pr_err!("{}: block {start} cannot be freed\n", sb.name());
            errors::note(sb, 0, start);
            corrupted()
        })?;
        let bit = (start - layout.group_start(number)) as u32;
        let part = len.min(layout.group_blocks(number).saturating_sub(bit));
        if part == 0 {
            return Err(groups::bad(sb, number, Corrupt("freed block beyond its group")));
        }
        let _lock = volume.lock_group(number)?;
        let mut group = groups::group(volume, sb, number)?;
        let mut buffer = groups::block_bitmap(Some(handle), sb, number, &mut group)?;
        if fixed::meets(volume, start, part) || (bit..bit + part).any(|bit| !bitmap::is_set(&buffer, bit)) {
            pr_err!(
                "{}: blocks {start} to {} are not to be freed\n",
                sb.name(),
                start + u64::from(part) - 1
            );
            return Err(groups::bad(sb, number, Corrupt("freed block is not in use")));
        }
        if group.free_blocks.saturating_add(part) > layout.group_blocks(number) {
            return Err(groups::bad(
                sb,
                number,
                Corrupt("free blocks do not match the bitmap"),
            ));
        }
        let mut bits = handle.write_bitmap(&mut buffer)?;
        bitmap::assign(&mut bits, bit, part, false);
        bits.hold_freed(bit, part);
        groups::seal_blocks(volume, &mut group, &bits);
        drop(bits);
        groups::change(handle, sb, number, |stored| {
            stored.free_blocks = stored.free_blocks.saturating_add(part);
            stored.block_bitmap_csum = group.block_bitmap_csum;
            Ok(())
        })?;
        let mut counts = volume.counts.lock();
        counts.free_blocks = counts.free_blocks.saturating_add(u64::from(part));
        counts.frees = counts.frees.wrapping_add(1);
        drop(counts);
        start += u64::from(part);
        len -= part;
    }
    Ok(())
}

/// Hands out the runs of a group's blocks that are in use and not fixed metadata: first block and number.
///
/// Fails with `EFSCORRUPTED` or `EIO` when the bitmap cannot be read.
pub(crate) fn used_blocks(
    sb: &SuperBlock<Volume>,
    number: u32,
    out: &mut dyn FnMut(u64, u32) -> Result,
) -> Result {
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let _lock = volume.lock_group(number)?;
    let mut group = groups::group(volume, sb, number)?;
    if group.flags & BLOCK_UNINIT != 0 && groups::has_uninit(volume) {
        return Ok(());
    }
    let bits = groups::block_bitmap(None, sb, number, &mut group)?;
    let end = layout.group_blocks(number);
    let mut at = 0;
    loop {
        at += bitmap::clear_run(&bits, at, end, u32::MAX);
        if at >= end {
            return Ok(());
        }
        let behind = bitmap::next_clear(&bits, at, end).unwrap_or(end);
        let start = layout.group_start(number) + u64::from(at);
        fixed::outside(volume, start, behind - at, out)?;
        at = behind;
    }
}

/// Copies a group's block bitmap, a bit for each of its blocks and more.
///
/// Fails with `EFSCORRUPTED` or `EIO` when it cannot be read.
pub(crate) fn copy_bitmap(sb: &SuperBlock<Volume>, number: u32, to: &mut KVec<u8>) -> Result {
    let volume = sb.volume()?;
    let _lock = volume.lock_group(number)?;
    let mut group = groups::group(volume, sb, number)?;
    to.clear();
    if group.flags & BLOCK_UNINIT != 0 && groups::has_uninit(volume) {
        to.resize(volume.layout.block_size as usize, 0, GFP_KERNEL)?;
        return Ok(());
    }
    let bits = groups::block_bitmap(None, sb, number, &mut group)?;
    Ok(to.extend_from_slice(&bits, GFP_KERNEL)?)
}
