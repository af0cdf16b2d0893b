// SPDX-License-Identifier: GPL-2.0

//! Taking blocks from the block bitmaps and giving them back.
//!
//! Blocks may be reserved in memory before they are taken: for data on its way to disk, so that no crash leaves them in use
//! without an owner.
//!
//! A block that was freed is not taken again before the free is committed: bitmaps are changed with jbd2 keeping their
//! committed state, and only what is clear in both is taken. The allocator looks for a run near a goal, first in the
//! goal's group and then in the ones behind it.

use crate::{
    format::{
        bitmap,
        group::{Group, BLOCK_UNINIT},
        Corrupt,
    },
    fs::{
        alloc::freed,
        disk::{errors, fixed, groups},
        state::{GroupState, Volume},
    },
    kernel_glue::{corrupted, may_use_reserve, Buffer, Handle, SuperBlock},
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

/// Which blocks to look for.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    /// The block to look from.
    pub(crate) goal: u64,
    /// How many, at most.
    pub(crate) want: u32,
    /// They are for nodes of a mapping, which may have those that are kept for that.
    pub(crate) for_node: bool,
    /// Their numbers must fit into 32 bits.
    pub(crate) narrow: bool,
}

/// Takes blocks that lie together. Returns the first one and how many there are.
///
/// Fails with `ENOSPC` when there are none, or only ones whose free is not committed.
pub(crate) fn allocate(handle: &Handle, sb: &SuperBlock<Volume>, request: Request) -> Result<(u64, u32)> {
    claim_and_find(handle, sb, request, false)
}

/// Reserves blocks that lie together, in memory: nobody else gets them, and on disk they stay free until
/// [`take_reserved`]. The handle needs room for a bitmap and a descriptor all the same, which may have to be made.
///
/// Fails with `ENOSPC` as [`allocate`] does.
pub(crate) fn reserve(handle: &Handle, sb: &SuperBlock<Volume>, request: Request) -> Result<(u64, u32)> {
    claim_and_find(handle, sb, request, true)
}

fn claim_and_find(
    handle: &Handle,
    sb: &SuperBlock<Volume>,
    request: Request,
    reserve: bool,
) -> Result<(u64, u32)> {
    let volume = sb.volume()?;
    let claimed = claim(volume, request.want, request.for_node)?;
    let found = find(
        handle,
        sb,
        Request {
            want: claimed,
            ..request
        },
        reserve,
    );
    let used = found.map_or(0, |(_, len)| len);
    {
        let mut counts = volume.counts.lock();
        counts.claims = counts.claims.saturating_sub(1);
        counts.free_blocks = counts
            .free_blocks
            .saturating_add(claimed.saturating_sub(used).into());
    }
    volume.claim_ended.notify_all();
    found
}

/// Takes blocks that were reserved, which lie in one group.
pub(crate) fn take_reserved(handle: &Handle, sb: &SuperBlock<Volume>, start: u64, len: u32) -> Result {
    let volume = sb.volume()?;
    let number = volume.layout.group_of_block(start).ok_or(EIO)?;
    let mut state = volume.lock_group(number)?;
    let bit = (start - volume.layout.group_start(number)) as u32;
    let mut group = groups::group(volume, sb, number)?;
    let mut buffer = groups::block_bitmap(Some(handle), sb, number, &mut group)?;
    let bits = buffer.bytes()?;
    let in_use = (bit..bit + len).any(|bit| bitmap::is_set(&bits, bit));
    drop(bits);
    if group.free_blocks < len || in_use {
        return Err(groups::bad(
            sb,
            number,
            Corrupt("reserved blocks are in use in the bitmap"),
        ));
    }
    mark(handle, sb, number, &mut group, &mut buffer, bit, len)?;
    end_reservation(&mut state, bit, len);
    Ok(())
}

/// Gives blocks that were reserved and not taken back, which lie in one group.
pub(crate) fn unreserve(sb: &SuperBlock<Volume>, start: u64, len: u32) -> Result {
    let volume = sb.volume()?;
    let number = volume.layout.group_of_block(start).ok_or(EIO)?;
    let mut state = volume.lock_group(number)?;
    let bit = (start - volume.layout.group_start(number)) as u32;
    // They may have been written to.
    state.note_free(None);
    unclaim(volume, end_reservation(&mut state, bit, len));
    Ok(())
}

/// Ends the reservation of blocks of a group; returns how many were reserved.
pub(in crate::fs) fn end_reservation(state: &mut GroupState, bit: u32, len: u32) -> u32 {
    let ended = bitmap::assign(&mut state.reserved, bit, len, false);
    state.reserved_count = state.reserved_count.saturating_sub(ended);
    if state.reserved_count == 0 {
        state.reserved = KVec::new();
    }
    ended
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

/// Takes up to `want` blocks off the count of free ones, as many as the current task may have of them, until a run is found.
fn claim(volume: &Volume, want: u32, for_node: bool) -> Result<u32> {
    let (owner, group) = volume.counts.lock().reserve_of();
    let of_all = for_node || may_use_reserve(owner, group);
    let mut counts = volume.counts.lock();
    let kept = if for_node { 0 } else { kept_for_nodes(volume) };
    let kept = kept.saturating_add(if of_all { 0 } else { counts.reserved });
    loop {
        let most = counts.free_blocks.saturating_sub(kept);
        let claimed = want.min(u32::try_from(most).unwrap_or(u32::MAX));
        if claimed > 0 {
            counts.free_blocks = counts.free_blocks.saturating_sub(u64::from(claimed));
            counts.claims += 1;
            return Ok(claimed);
        }
        if counts.claims == 0 {
            return Err(ENOSPC);
        }
        // Others are looking for blocks, and may take fewer than they claimed. They wait for nothing that this task holds.
        volume.claim_ended.wait(&mut counts);
    }
}

/// Gives blocks back to the count of free ones.
fn unclaim(volume: &Volume, blocks: u32) {
    let mut counts = volume.counts.lock();
    counts.free_blocks = counts.free_blocks.saturating_add(u64::from(blocks));
}

/// Looks for a run of blocks, and takes it from its bitmap or (`reserve`) reserves it.
fn find(handle: &Handle, sb: &SuperBlock<Volume>, request: Request, reserve: bool) -> Result<(u64, u32)> {
    let layout = &sb.volume()?.layout;
    let Request { goal, want, .. } = request;
    let groups = match request.narrow {
        true => layout
            .group_of_block(u64::from(u32::MAX))
            .unwrap_or(layout.groups),
        false => layout.groups,
    };
    let first = layout.group_of_block(goal).unwrap_or(0);
    let mut taken = KVec::from_elem(0u8, layout.block_size as usize, GFP_KERNEL)?;
    // A short run is taken only when a whole round found no longer one.
    let mut least = want.min(64);
    loop {
        for step in 0..=groups {
            let number = ((u64::from(first) + u64::from(step)) % u64::from(groups.max(1))) as u32;
            let from = match layout.group_of_block(goal) {
                Some(group) if step == 0 && group == number => (goal - layout.group_start(number)) as u32,
                _ => 0,
            };
            let run = Search {
                number,
                from,
                want,
                least,
                reserve,
            };
            if let Some(found) = in_group(handle, sb, run, &mut taken)? {
                return Ok(found);
            }
        }
        if least == 1 {
            return Err(ENOSPC);
        }
        least = 1;
    }
}

/// A search in one group, in bits of its bitmap.
#[derive(Clone, Copy)]
struct Search {
    number: u32,
    from: u32,
    want: u32,
    least: u32,
    reserve: bool,
}

/// Takes or reserves the best run of blocks of a group. A group that is damaged is fenced: it has none, now and later.
fn in_group(
    handle: &Handle,
    sb: &SuperBlock<Volume>,
    search: Search,
    taken: &mut [u8],
) -> Result<Option<(u64, u32)>> {
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let Search { number, least, .. } = search;
    let mut state = volume.lock_group(number)?;
    if state.is_fenced {
        return Ok(None);
    }
    let fence = |state: &mut GroupState, free, error| {
        fence(handle, sb, number, state, free, error)?;
        Ok(None)
    };
    let mut group = match groups::group(volume, sb, number) {
        Ok(group) => group,
        Err(error) => return fence(&mut state, 0, error),
    };
    if group.free_blocks < least {
        return Ok(None);
    }
    // Reserved blocks are no longer among the free ones.
    let free = group.free_blocks.saturating_sub(state.reserved_count);
    let mut buffer = match groups::block_bitmap(Some(handle), sb, number, &mut group) {
        Ok(buffer) => buffer,
        Err(error) => return fence(&mut state, free, error),
    };
    buffer.copy_with_committed(taken)?;
    for (byte, reserved) in taken.iter_mut().zip(state.reserved.iter()) {
        *byte |= reserved;
    }
    let Search { from, want, .. } = search;
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
    let wrong = match (fixed::meets(volume, block, len), group.free_blocks < len) {
        (true, _) => Some("blocks of the file system are free"),
        (_, true) => Some("free blocks do not match the bitmap"),
        _ => None,
    };
    let wrong = match wrong {
        None if has_owner(volume, block, len)? => Some("blocks of files are free in the block bitmap"),
        wrong => wrong,
    };
    if let Some(what) = wrong {
        let error = groups::bad(sb, number, Corrupt(what));
        return fence(&mut state, free, error);
    }
    if search.reserve {
        if state.reserved.is_empty() {
            state.reserved = KVec::from_elem(0, layout.block_size as usize, GFP_KERNEL)?;
        }
        bitmap::assign(&mut state.reserved, start, len, true);
        state.reserved_count += len;
    } else {
        mark(handle, sb, number, &mut group, &mut buffer, start, len)?;
    }
    Ok(Some((block, len)))
}

/// Returns true if the index of owners knows an owner of any of these blocks, which are free in
/// their bitmap.
///
/// Blocks lose their owner in the same transaction in which they become free, slightly later. With
/// a journal they are not allocated before it is committed; without one there is no telling a
/// damaged bitmap from a free in progress.
fn has_owner(volume: &Volume, start: u64, len: u32) -> Result<bool> {
    match volume.index() {
        Some(index) if volume.journal()?.is_present() => index.is_owned(start, len),
        _ => Ok(false),
    }
}

/// Fences a group whose bitmap or descriptor is damaged, as `error` says: from now on no blocks are taken from it, and those
/// that are freed in it are lost until its bitmap is repaired. `free` blocks of it count as free ones.
///
/// Fails with the error when nothing can be written any more.
fn fence(
    handle: &Handle,
    sb: &SuperBlock<Volume>,
    number: u32,
    state: &mut GroupState,
    free: u32,
    error: Error,
) -> Result {
    if handle.is_aborted() {
        return Err(error);
    }
    state.is_fenced = true;
    let mut counts = sb.volume()?.counts.lock();
    counts.free_blocks = counts.free_blocks.saturating_sub(free.into());
    pr_err!(
        "{}: group {number}: no blocks are allocated in it until its bitmap is repaired\n",
        sb.name()
    );
    Ok(())
}

/// Marks free blocks of a group, which is locked, as in use.
fn mark(
    handle: &Handle,
    sb: &SuperBlock<Volume>,
    number: u32,
    group: &mut Group,
    buffer: &mut Buffer<'_>,
    start: u32,
    len: u32,
) -> Result {
    let volume = sb.volume()?;
    let mut bits = handle.write_bitmap(buffer)?;
    bitmap::assign(&mut bits, start, len, true);
    groups::seal_blocks(volume, group, &bits);
    drop(bits);
    groups::change(handle, sb, number, |stored| {
        stored.free_blocks = stored.free_blocks.saturating_sub(len);
        stored.block_bitmap_csum = group.block_bitmap_csum;
        Ok(())
    })
}

/// Gives blocks back. The handle needs room for a bitmap and a descriptor of each group they lie in.
///
/// Blocks of a group whose bitmap or descriptor is damaged stay in use, as with stock ext4: else nothing could be removed that has some
/// there. Fails with `EFSCORRUPTED`, with nothing changed in that group, when some are free already or fixed metadata.
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
        let mut state = volume.lock_group(number)?;
        if state.is_fenced {
            start += u64::from(part);
            len -= part;
            continue;
        }
        let mut group = match groups::group(volume, sb, number) {
            Ok(group) => group,
            Err(error) => {
                fence(handle, sb, number, &mut state, 0, error)?;
                continue;
            }
        };
        let free = group.free_blocks.saturating_sub(state.reserved_count);
        let mut buffer = match groups::block_bitmap(Some(handle), sb, number, &mut group) {
            Ok(buffer) => buffer,
            Err(error) => {
                fence(handle, sb, number, &mut state, free, error)?;
                continue;
            }
        };
        let bits = buffer.bytes()?;
        let is_free = (bit..bit + part).any(|bit| !bitmap::is_set(&bits, bit));
        drop(bits);
        if fixed::meets(volume, start, part) || is_free {
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
        state.note_free(Some(handle.transaction()));
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
        freed::note(volume, handle.transaction(), start, part);
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
    let bits = groups::block_bitmap(None, sb, number, &mut group)?.into_bytes()?;
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
    let bits = groups::block_bitmap(None, sb, number, &mut group)?.into_bytes()?;
    Ok(to.extend_from_slice(&bits, GFP_KERNEL)?)
}
