// SPDX-License-Identifier: GPL-2.0

//! Block allocation: the block bitmaps.
//!
//! Blocks may be reserved in memory before they are allocated, for data that is not on disk yet, so
//! that a crash never leaves them allocated without an owner.
//!
//! A freed block is not reallocated before the free is committed: bitmaps are changed with jbd2
//! keeping their committed state, and only blocks that are clear in both are allocated. The
//! allocator searches for a run near a goal, first in the goal's group and then in the groups after
//! it.

use crate::{
    format::{
        bitmap,
        group::{Group, BLOCK_UNINIT},
        Corrupt,
    },
    fs::{
        alloc::{
            freed,
            windows::{self, Holder},
        },
        disk::{errors, fixed, groups},
        state::{GroupState, Volume, Window},
    },
    kernel_glue::{corrupted, may_use_reserve, Buffer, Handle, SuperBlock},
};
use kernel::prelude::*;

/// Number of journal credits for one [`allocate`]: a bitmap and a descriptor.
pub(crate) const ALLOCATE_CREDITS: u32 = 2;

/// Upper bound of the node reserve, which otherwise is 1/50 of the volume.
const NODES_KEPT: u64 = 4096;

/// Returns the size of the node reserve: blocks that are only allocated for mapping nodes. When
/// data is written back into the middle of an unwritten extent, it is too late to fail for lack of
/// space for the resulting extents.
pub(in crate::fs) fn kept_for_nodes(volume: &Volume) -> u64 {
    (volume.layout.blocks / 50).min(NODES_KEPT)
}

/// Returns true once the node reserve is in use; unwritten extents must then not be split.
pub(in crate::fs) fn is_short_of_nodes(volume: &Volume) -> bool {
    volume.counts.lock().free_blocks < kept_for_nodes(volume)
}

/// Returns how many blocks may be taken for later at a time: a small part of those that are free.
pub(in crate::fs) fn spare_blocks(volume: &Volume) -> u32 {
    let counts = *volume.counts.lock();
    let kept = kept_for_nodes(volume).saturating_add(counts.reserved);
    u32::try_from(counts.free_blocks.saturating_sub(kept) / 64).unwrap_or(u32::MAX)
}

/// The parameters of an allocation.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    /// The block at which the search starts.
    pub(crate) goal: u64,
    /// Maximum number of blocks.
    pub(crate) want: u32,
    /// The blocks are for mapping nodes, which may use the node reserve.
    pub(crate) for_node: bool,
    /// The block numbers must fit into 32 bits.
    pub(crate) narrow: bool,
}

/// Allocates contiguous blocks. Returns the first one and their number.
///
/// Fails with `ENOSPC` if no blocks are free, or only blocks whose free is not committed.
pub(crate) fn allocate(handle: &Handle, sb: &SuperBlock<Volume>, request: Request) -> Result<(u64, u32)> {
    claim_and_find(Some(handle), sb, request, Use::Allocate)
}

/// Reserves contiguous blocks in memory: they are not available to others, but on disk they stay
/// free until [`take_reserved`]. A handle nevertheless needs credits for a bitmap and a descriptor,
/// which may have to be initialized.
///
/// Fails with `ENOSPC` as [`allocate`] does. Without a handle, fails with `EAGAIN` if one is
/// needed.
pub(crate) fn reserve(
    handle: Option<&Handle>,
    sb: &SuperBlock<Volume>,
    request: Request,
) -> Result<(u64, u32)> {
    claim_and_find(handle, sb, request, Use::Reserve)
}

fn claim_and_find(
    handle: Option<&Handle>,
    sb: &SuperBlock<Volume>,
    request: Request,
    what: Use,
) -> Result<(u64, u32)> {
    match claim_and_find_once(handle, sb, request, what) {
        Err(ENOSPC) if end_windows(sb)? => claim_and_find_once(handle, sb, request, what),
        done => done,
    }
}

fn claim_and_find_once(
    handle: Option<&Handle>,
    sb: &SuperBlock<Volume>,
    request: Request,
    what: Use,
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
        what,
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

/// Allocates reserved blocks, all of which must be in one group.
pub(crate) fn take_reserved(handle: &Handle, sb: &SuperBlock<Volume>, start: u64, len: u32) -> Result {
    let volume = sb.volume()?;
    let number = volume.layout.group_of_block(start).ok_or(EIO)?;
    let mut state = volume.lock_group(number)?;
    let bit = (start - volume.layout.group_start(number)) as u32;
    let mut group = groups::group(volume, sb, number)?;
    let mut buffer = groups::block_bitmap(Some(handle), sb, number, &mut group)?;
    let bits = buffer.bytes()?;
    let in_use = bitmap::clear_run(&bits, bit, bit + len, len) < len;
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

/// Releases blocks that were reserved and not allocated.
pub(crate) fn unreserve(sb: &SuperBlock<Volume>, start: u64, len: u32) -> Result {
    let volume = sb.volume()?;
    let (mut start, mut len) = (start, len);
    while len > 0 {
        let number = volume.layout.group_of_block(start).ok_or(EIO)?;
        let part = in_one_group(volume, start, len)?;
        let mut state = volume.lock_group(number)?;
        let bit = (start - volume.layout.group_start(number)) as u32;
        // They may have been written to.
        state.note_free(None);
        unclaim(volume, end_reservation(&mut state, bit, part));
        start += u64::from(part);
        len -= part;
    }
    Ok(())
}

/// Makes reserved blocks the window of `holder`, and gives back those that it had.
pub(in crate::fs) fn keep_window(sb: &SuperBlock<Volume>, holder: Holder, start: u64, len: u32) -> Result {
    end_window(sb, holder)?;
    match windows::put(sb.volume()?, holder, Window { start, len }) {
        true => Ok(()),
        false => unreserve(sb, start, len),
    }
}

/// Gives a window back, if there is one.
pub(in crate::fs) fn end_window(sb: &SuperBlock<Volume>, holder: Holder) -> Result {
    match windows::remove(sb.volume()?, holder) {
        Some(Window { start, len }) => unreserve(sb, start, len),
        None => Ok(()),
    }
}

/// Gives all windows back. Returns whether there were any. No group may be locked.
pub(in crate::fs) fn end_windows(sb: &SuperBlock<Volume>) -> Result<bool> {
    let all = windows::remove_all(sb.volume()?);
    let mut done = Ok(all.blocks > 0);
    for window in all.tree.values() {
        if let Err(error) = unreserve(sb, window.start, window.len) {
            done = Err(error);
        }
    }
    done
}

/// Returns how many of `len` blocks from `start` on are in the same group, at least one.
pub(in crate::fs) fn in_one_group(volume: &Volume, start: u64, len: u32) -> Result<u32> {
    let layout = &volume.layout;
    let number = layout.group_of_block(start).ok_or(EIO)?;
    let end = layout.group_start(number) + u64::from(layout.group_blocks(number));
    u32::try_from(u64::from(len).min(end.saturating_sub(start)))
        .ok()
        .filter(|&part| part > 0)
        .ok_or(EIO)
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

/// Waits until recently freed blocks can be reallocated. Returns whether there were any. No handle
/// may be open.
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

/// Subtracts up to `want` blocks, as many as the current task may use, from the free count, until a
/// run is found.
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
        // Other tasks are searching, and may use fewer blocks than they claimed. They do not wait
        // for anything that this task holds.
        volume.claim_ended.wait(&mut counts);
    }
}

/// Returns blocks to the free count.
fn unclaim(volume: &Volume, blocks: u32) {
    let mut counts = volume.counts.lock();
    counts.free_blocks = counts.free_blocks.saturating_add(u64::from(blocks));
}

/// The use of a run of free blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Allocate,
    Reserve,
    /// Only its place is returned.
    Locate,
}

/// Returns the first block and the length of the best run of up to `want` free blocks, without
/// allocating it: the first of that length, or else one that is long. A guess where blocks will be
/// found later.
///
/// Fails as [`reserve`] does.
pub(in crate::fs) fn locate(
    handle: Option<&Handle>,
    sb: &SuperBlock<Volume>,
    request: Request,
) -> Result<(u64, u32)> {
    find(handle, sb, request, Use::Locate)
}

/// Finds a run of blocks, and allocates or reserves it.
fn find(handle: Option<&Handle>, sb: &SuperBlock<Volume>, request: Request, what: Use) -> Result<(u64, u32)> {
    let layout = &sb.volume()?.layout;
    let Request { goal, want, .. } = request;
    let groups = match request.narrow {
        true => layout
            .group_of_block(u64::from(u32::MAX))
            .unwrap_or(layout.groups),
        false => layout.groups,
    };
    let first = layout.group_of_block(goal).unwrap_or(0);
    let mut taken = KVec::new();
    // Accept a shorter run only after a whole round without a longer one.
    let mut least = match what {
        Use::Locate => want,
        _ => want.min(64),
    };
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
                what,
            };
            if let Some(found) = in_group(handle, sb, run, &mut taken)? {
                return Ok(found);
            }
        }
        if least == 1 {
            return Err(ENOSPC);
        }
        least = if least > 64 { 64 } else { 1 };
    }
}

/// A search in one group, in bits of its bitmap.
#[derive(Clone, Copy)]
struct Search {
    number: u32,
    from: u32,
    want: u32,
    least: u32,
    what: Use,
}

/// Allocates or reserves the best run of blocks in a group. A damaged group is fenced, and treated
/// as full from then on.
fn in_group(
    handle: Option<&Handle>,
    sb: &SuperBlock<Volume>,
    search: Search,
    taken: &mut KVec<u8>,
) -> Result<Option<(u64, u32)>> {
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let Search { number, least, .. } = search;
    let mut state = volume.lock_group(number)?;
    if state.is_fenced || state.longest.is_some_and(|longest| longest < least) {
        return Ok(None);
    }
    let fence = |state: &mut GroupState, free, error| {
        // Whoever has a handle comes next.
        fence(handle.ok_or(EAGAIN)?, sb, number, state, free, error)?;
        Ok(None)
    };
    let mut group = match groups::group(volume, sb, number) {
        Ok(group) => group,
        Err(error) => return fence(&mut state, 0, error),
    };
    if group.free_blocks < least {
        return Ok(None);
    }
    // The free count of blocks no longer includes reserved ones.
    let free = group.free_blocks.saturating_sub(state.reserved_count);
    let mut buffer = match groups::block_bitmap(handle, sb, number, &mut group) {
        Ok(buffer) => buffer,
        Err(EAGAIN) => return Err(EAGAIN),
        Err(error) => return fence(&mut state, free, error),
    };
    let Search { from, want, .. } = search;
    let end = layout.group_blocks(number);
    // Usually the blocks at the goal are free, and no copy of the bitmap is needed.
    let here = buffer.clear_run_with_committed(from, end, want)?;
    let here = match state.reserved.is_empty() {
        true => here,
        false => bitmap::clear_run(&state.reserved, from, end, here),
    };
    let run = if here >= least {
        Some((from, here))
    } else {
        taken.resize(layout.block_size as usize, 0, GFP_KERNEL)?;
        buffer.copy_with_committed(taken)?;
        bitmap::merge(taken, &state.reserved);
        // A longer run than the longest one is not looked for.
        let want = want.min(state.longest.unwrap_or(u32::MAX));
        let run = bitmap::find_run(taken, from, end, want);
        if state.longest.is_none() && run.is_none_or(|(_, len)| len < want) {
            // Blocks that only the committed bitmap or a reservation keeps from being allocated
            // become free without notice.
            state.longest = Some(bitmap::longest_run(&buffer.bytes()?, end));
        }
        run
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
    if search.what == Use::Reserve {
        if state.reserved.is_empty() {
            state.reserved = KVec::from_elem(0, layout.block_size as usize, GFP_KERNEL)?;
        }
        bitmap::assign(&mut state.reserved, start, len, true);
        state.reserved_count += len;
    } else if search.what == Use::Allocate {
        let handle = handle.ok_or(EINVAL)?;
        mark(handle, sb, number, &mut group, &mut buffer, start, len)?;
    }
    Ok(Some((block, len)))
}

/// Returns true if the index of owners knows an owner of any of these blocks, which are free in
/// their bitmap.
///
/// Blocks lose their owner in the same transaction in which they become free, slightly later. With
/// a journal they are not allocated before it is committed; without one, it is impossible to tell a
/// damaged bitmap from a free in progress.
fn has_owner(volume: &Volume, start: u64, len: u32) -> Result<bool> {
    match volume.index() {
        Some(index) if volume.journal()?.is_present() => index.is_owned(start, len),
        _ => Ok(false),
    }
}

/// Fences a group whose bitmap or descriptor is damaged, as described by `error`: from now on no
/// blocks are allocated in it, and blocks freed in it are lost until its bitmap is repaired. The
/// free count is reduced by the `free` blocks of the group.
///
/// Fails with the error if the volume cannot be written any more.
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

/// Marks free blocks of a group as used. The caller holds the group's lock.
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

/// Frees blocks. The handle needs credits for a bitmap and a descriptor of each group concerned.
///
/// Blocks of a group whose bitmap or descriptor is damaged stay in use, as with stock ext4;
/// otherwise no file with blocks in that group could be removed. Fails with `EFSCORRUPTED`, with
/// nothing changed in that group, if some of the blocks are already free or are fixed metadata.
pub(crate) fn free(handle: &Handle, sb: &SuperBlock<Volume>, start: u64, len: u32) -> Result {
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let (mut start, mut len) = (start, len);
    while len > 0 {
        let number = layout.group_of_block(start).ok_or_else(|| {
            pr_err!(
                "{}: block {start} is not on the volume and cannot be freed\n",
                sb.name()
            );
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
        let is_free = bitmap::next_clear(&bits, bit, bit + part).is_some();
        drop(bits);
        if fixed::meets(volume, start, part) || is_free {
            pr_err!(
                "{}: blocks {start} to {} must not be freed\n",
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

/// Calls back with the first block and length of each run of used blocks in a group that are not
/// fixed metadata.
///
/// Fails with `EFSCORRUPTED` or `EIO` if the bitmap cannot be read.
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

/// Copies a group's block bitmap, which may have more bits than the group has blocks.
///
/// Fails with `EFSCORRUPTED` or `EIO` if it cannot be read.
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
