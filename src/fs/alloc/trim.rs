// SPDX-License-Identifier: GPL-2.0

//! Discarding free blocks: on request (`FITRIM`), and with the mount option `discard` freed blocks
//! after the commit.
//!
//! A block is discarded only if the group's bitmap marks it as free, both on disk and in the
//! running transaction, and it is not reserved in memory, not fixed metadata, and has no owner in
//! the reverse map, where that is good. Staged and parked blocks are in use in the bitmap. While
//! the device discards blocks they are reserved, so that they cannot be allocated. Allocations that
//! fail because of that wait, as for other claims; at most half of the free blocks are reserved at
//! a time.

use crate::{
    format::{bitmap, group::BLOCK_UNINIT, superblock::Layout, Corrupt},
    fs::{
        alloc::{balloc, freed},
        disk::{fixed, groups},
        state::{GroupState, Trimmer, Volume},
    },
    kernel_glue::{is_dying, unsupported, Background, InodeRef, NoReclaim, SuperBlock, Task},
};
use kernel::{
    prelude::*,
    sync::{atomic::Relaxed, Arc},
};

/// Maximum number of blocks reserved at a time.
const MOST: u32 = 8192;
/// Maximum number of blocks reserved at a time out of those kept for mapping nodes or for root.
const FEW: u64 = 64;
/// Maximum number of runs reserved at a time.
const PIECES: usize = 64;
/// The part of a group to discard, in bits of its bitmap: runs of at least `least` in `from..to`.
#[derive(Clone, Copy)]
struct Part {
    number: u32,
    from: u32,
    to: u32,
    least: u32,
    /// The bit at which the rest of a run begins of which the front was discarded. It may be
    /// shorter than `least`.
    rest: Option<u32>,
}

/// Discards free blocks of bytes `start..start + len` of the volume, runs of at least `least`
/// bytes. Returns how many bytes that were.
///
/// # Errors
///
/// `EROFS` when the volume is not writable, `EOPNOTSUPP` when the device cannot discard, `EINVAL`
/// for a range off the volume or shorter than a block, and for `least` of more than a group.
pub(in crate::fs) fn trim(sb: &SuperBlock<Volume>, start: u64, len: u64, least: u64) -> Result<u64> {
    let volume = sb.volume()?;
    let layout = &volume.layout;
    volume.journal()?;
    let granularity = sb.discard_granularity().ok_or_else(unsupported)?;
    let bits = layout.block_bits;
    let first = start >> bits;
    let end = first.saturating_add(len >> bits).min(layout.blocks);
    let group = u64::from(layout.blocks_per_group);
    if least >> bits > group || first >= layout.blocks || len < u64::from(layout.block_size) {
        return Err(EINVAL);
    }
    let least = match least < u64::from(granularity) {
        true => u64::from(granularity) >> bits,
        false => least >> bits,
    };
    let least = match u32::try_from(least) {
        Ok(least) if u64::from(least) <= group => least.max(1),
        _ => return Ok(0),
    };
    let mut trimmed = 0u64;
    each_group(
        layout,
        first.max(layout.first_data_block.into()),
        end,
        least,
        |part| {
            if is_dying() {
                return Ok(false);
            }
            trimmed += u64::from(in_group(sb, part)?);
            Ok(true)
        },
    )?;
    Ok(trimmed << bits)
}

/// Calls `visit` for the part of each group within blocks `start..end`, until it returns false.
fn each_group(
    layout: &Layout,
    start: u64,
    end: u64,
    least: u32,
    mut visit: impl FnMut(Part) -> Result<bool>,
) -> Result {
    let mut at = start;
    while at < end {
        let number = layout.group_of_block(at).ok_or(EIO)?;
        let begin = layout.group_start(number);
        let to = (end - begin).min(layout.group_blocks(number).into());
        let part = Part {
            number,
            from: (at - begin) as u32,
            to: to as u32,
            least,
            rest: None,
        };
        if !visit(part)? {
            break;
        }
        at = begin + to;
    }
    Ok(())
}

/// Discards free blocks of a group. Returns how many.
fn in_group(sb: &SuperBlock<Volume>, part: Part) -> Result<u32> {
    let volume = sb.volume()?;
    let whole = part.from == 0 && part.to == volume.layout.group_blocks(part.number);
    let journal = volume.journal()?;
    let (frees, settled) = {
        let state = volume.lock_group(part.number)?;
        if state.trimmed.is_some_and(|least| least <= part.least) {
            return Ok(0);
        }
        let settled = state.freed_in.is_none_or(|freed| journal.has_committed(freed));
        (state.frees, settled)
    };
    let (mut left, mut count) = (part, 0);
    let mut pieces: KVec<(u32, u32)> = KVec::with_capacity(PIECES, GFP_KERNEL)?;
    while left.from < part.to && !is_dying() {
        // A frozen volume stays as it is.
        let _write = sb.internal_write();
        volume.check_alive()?;
        if journal.is_aborted() {
            return Err(EROFS);
        }
        pieces.clear();
        let next = reserve(sb, left, &mut pieces)?;
        let mut done = Ok(());
        for &(bit, len) in pieces.iter() {
            match done.and_then(|()| discard(sb, part.number, bit, len)) {
                Ok(true) => count += len,
                Ok(false) => (),
                Err(error) => done = Err(error),
            }
        }
        release(sb, part.number, &pieces)?;
        done?;
        match next {
            Some(next) => left = next,
            // Too little is free to go on.
            None => return Ok(count),
        }
    }
    if whole && left.from >= part.to {
        let mut state = volume.lock_group(part.number)?;
        // Unless blocks were freed meanwhile, or shortly before.
        if settled && state.frees == frees {
            state.trimmed = Some(part.least);
        }
    }
    Ok(count)
}

/// Reserves free runs of a group, from its bit `part.from` on, and adds them to `pieces`. Returns
/// the rest of the part; `None` if the volume has too few free blocks to reserve any.
fn reserve(sb: &SuperBlock<Volume>, part: Part, pieces: &mut KVec<(u32, u32)>) -> Result<Option<Part>> {
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let mut taken = KVec::from_elem(0u8, layout.block_size as usize, GFP_KERNEL)?;
    let _scope = NoReclaim::new();
    let mut state = volume.lock_group(part.number)?;
    let from = |from, rest| Ok(Some(Part { from, rest, ..part }));
    if state.is_fenced {
        return from(part.to, None);
    }
    let mut group = groups::group(volume, sb, part.number)?;
    if group.flags & BLOCK_UNINIT == 0 || !groups::has_uninit(volume) {
        groups::block_bitmap(None, sb, part.number, &mut group)?.copy_with_committed(&mut taken)?;
    }
    for (byte, reserved) in taken.iter_mut().zip(state.reserved.iter()) {
        *byte |= reserved;
    }
    let begin = layout.group_start(part.number);
    let (mut at, mut left) = (part.from, MOST);
    while let Some(start) = bitmap::next_clear(&taken, at, part.to) {
        let len = bitmap::clear_run(&taken, start, part.to, u32::MAX);
        // The bitmap of a group that was never used does not tell its fixed metadata.
        let mut first = None;
        fixed::outside(volume, begin + u64::from(start), len, &mut |block, len| {
            first.get_or_insert(((block - begin) as u32, len));
            Ok(())
        })?;
        let Some((bit, run)) = first else {
            at = start + len;
            continue;
        };
        if run < part.least && part.rest != Some(bit) {
            at = bit + run;
            continue;
        }
        if pieces.len() == PIECES || left == 0 {
            return from(bit, part.rest.filter(|&rest| rest == bit));
        }
        let claimed = claim(volume, run.min(left));
        if claimed == 0 {
            return Ok(None);
        }
        if let Err(error) = hold(layout.block_size, &mut state, bit, claimed) {
            end_claim(volume, claimed);
            return Err(error);
        }
        // There is room for it.
        pieces.push((bit, claimed), GFP_KERNEL)?;
        left -= claimed;
        at = bit + claimed;
        if claimed < run {
            return from(at, Some(at));
        }
    }
    from(part.to, None)
}

/// Reserves blocks of a group, which is locked.
fn hold(block_size: u32, state: &mut GroupState, bit: u32, len: u32) -> Result {
    if state.reserved.is_empty() {
        state.reserved = KVec::from_elem(0, block_size as usize, GFP_KERNEL)?;
    }
    bitmap::assign(&mut state.reserved, bit, len, true);
    state.reserved_count += len;
    Ok(())
}

/// Takes up to `want` blocks off the count of free ones: half of those that anybody may have at
/// most. On a volume that is as good as full it is few of those that are kept.
fn claim(volume: &Volume, want: u32) -> u32 {
    let mut counts = volume.counts.lock();
    let kept = balloc::kept_for_nodes(volume).saturating_add(counts.reserved);
    let most = counts.free_blocks.saturating_sub(kept) / 2;
    let most = most.max((counts.free_blocks / 8).min(FEW));
    let claimed = want.min(u32::try_from(most).unwrap_or(u32::MAX));
    if claimed > 0 {
        counts.free_blocks = counts.free_blocks.saturating_sub(claimed.into());
        counts.claims += 1;
    }
    claimed
}

/// Returns the blocks of one [`claim`].
fn end_claim(volume: &Volume, len: u32) {
    let mut counts = volume.counts.lock();
    counts.free_blocks = counts.free_blocks.saturating_add(len.into());
    counts.claims = counts.claims.saturating_sub(1);
    drop(counts);
    volume.claim_ended.notify_all();
}

/// Ends the reservation of pieces of a group.
fn release(sb: &SuperBlock<Volume>, number: u32, pieces: &[(u32, u32)]) -> Result {
    let volume = sb.volume()?;
    let mut state = volume.lock_group(number)?;
    for &(bit, len) in pieces {
        balloc::end_reservation(&mut state, bit, len);
        end_claim(volume, len);
    }
    Ok(())
}

/// Discards blocks of a group that are reserved. Returns false, and leaves them alone, when they
/// have an owner in the reverse map.
fn discard(sb: &SuperBlock<Volume>, number: u32, bit: u32, len: u32) -> Result<bool> {
    let volume = sb.volume()?;
    let start = volume.layout.group_start(number) + u64::from(bit);
    if volume
        .index()
        .map_or(Ok(false), |index| index.is_owned(start, len))?
    {
        // Without a journal, a damaged bitmap cannot be distinguished from a free in progress.
        if volume.journal()?.is_present() {
            pr_err!(
                "{}: group {number}: some of blocks {start} to {} are free in the bitmap but have an owner; none is discarded\n",
                sb.name(),
                start + u64::from(len) - 1
            );
            let what = Corrupt("blocks of files are free in the block bitmap");
            groups::bad(sb, number, what);
        }
        return Ok(false);
    }
    match sb.discard(start, len) {
        // A part of a composed device cannot.
        Err(error) if error == unsupported() => Ok(true),
        done => done.map(|()| true),
    }
}

impl Task for Trimmer {
    fn run(&self) {
        discard_freed(self.root.super_block());
    }
}

/// Discards the blocks freed by transactions that have committed. If the device fails, logs that
/// and disables the option.
fn discard_freed(sb: &SuperBlock<Volume>) {
    let Ok(volume) = sb.volume() else { return };
    let Ok(journal) = volume.journal() else { return };
    let runs = core::mem::take(&mut *volume.freed.runs.lock());
    let mut later = KVVec::new();
    for &(transaction, start, len) in runs.iter() {
        if !volume.freed.on.load(Relaxed) {
            return;
        }
        if !journal.has_committed(transaction) {
            if later.push((transaction, start, len), GFP_KERNEL).is_err() {
                break;
            }
            continue;
        }
        if let Err(error) = discard_run(sb, start, len) {
            if volume.check_alive().is_ok() && !journal.is_aborted() {
                pr_warn!(
                    "{}: freed blocks are no longer discarded: error {}\n",
                    sb.name(),
                    error.to_errno()
                );
            }
            volume.freed.on.store(false, Relaxed);
            return;
        }
    }
    if later.is_empty() {
        return;
    }
    {
        let mut runs = volume.freed.runs.lock();
        for &run in runs.iter() {
            if later.len() >= freed::MOST || later.push(run, GFP_KERNEL).is_err() {
                break;
            }
        }
        *runs = later;
    }
    freed::wake(volume);
}

/// Discards those of a run of blocks that are still free.
fn discard_run(sb: &SuperBlock<Volume>, start: u64, len: u32) -> Result {
    let layout = &sb.volume()?.layout;
    each_group(layout, start, start + u64::from(len), 1, |part| {
        in_group(sb, part)?;
        Ok(true)
    })
}

/// Makes the task that discards freed blocks; called when the volume became writable.
pub(in crate::fs) fn start(volume: &Volume, root: InodeRef<Volume>) -> Result {
    let task = Background::new(Arc::new(Trimmer { root }, GFP_KERNEL)?)?;
    let old = volume.freed.task.lock().replace(task);
    drop(old);
    Ok(())
}

/// Ends the task. With `finish` all that was freed is discarded first; the journal has committed
/// all.
pub(in crate::fs) fn stop(volume: &Volume, sb: &SuperBlock<Volume>, finish: bool) {
    let task = volume.freed.task.lock().take();
    // Outside of the lock: it is waited for.
    drop(task);
    if finish {
        discard_freed(sb);
    }
    *volume.freed.runs.lock() = KVVec::new();
}

/// Freed blocks are discarded from now on, or no longer.
pub(in crate::fs) fn set_online(volume: &Volume, sb: &SuperBlock<Volume>, on: bool) {
    let was_on = volume.freed.on.load(Relaxed);
    if on && !was_on && sb.discard_granularity().is_none() {
        pr_warn!(
            "{}: mounted with discard, but the device cannot discard\n",
            sb.name()
        );
    }
    volume
        .freed
        .on
        .store(on && sb.discard_granularity().is_some(), Relaxed);
}
