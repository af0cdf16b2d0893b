// SPDX-License-Identifier: GPL-2.0

//! `FS_IOC_GETFSMAP`: lists the owners of blocks from the reverse map.
//!
//! Three sources are merged in block order: the records of the regions' trees; the fixed metadata,
//! which has no records and follows from the layout; and free space in between. A region whose tree
//! is stale has no records: everything in it except fixed metadata has an unknown owner.
//!
//! Records are read in batches under the region lock, so each batch is consistent, but the result
//! as a whole is not a snapshot.
//!
//! Several owners of a block are listed one after the other, in the order of the tree: by the first
//! block of their run, then by inode, kind and offset. To continue, the caller passes the last
//! record as the low key of the next call. As in XFS, a nonzero length in the low key marks such a
//! call. The result then starts after that record in this order, so that no owner of a shared block
//! is skipped or listed twice.
//!
//! Source: ioctl_getfsmap(2), [`include/uapi/linux/fsmap.h`](srctree/include/uapi/linux/fsmap.h)

use super::{
    runs::{Run, FREE, UNKNOWN},
    scrubber::with_readable,
};
use crate::{
    engine::record::{Kind, Record, Rmap},
    fs::Volume,
    kernel_glue::{
        abi::{self, value, Array, Fsmap, FsmapHeadFixed},
        is_interrupted, NoReclaim, SuperBlock,
    },
    trees::{index::RmapIndex, region::LockedRegion},
};
use kernel::prelude::*;

/// Number of records read per lock hold.
const AT_ONCE: usize = 512;

/// The result under construction.
struct Answer {
    out: Array<Fsmap>,
    room: u32,
    count: u32,
    /// Only count records; do not copy them.
    dry: bool,
    device: u32,
    bits: u8,
    /// The first requested block.
    low: u64,
    /// The last requested block.
    high: u64,
    /// The record that the caller continues from.
    told: Option<Run>,
    /// The last record, which the next one may extend.
    held: Option<Run>,
    full: bool,
}

impl Answer {
    fn is_done(&self) -> bool {
        self.full
    }

    /// Returns true if the caller has already received a run: it precedes the record that the call
    /// continues from, or is part of it, as where a file's blocks continue in the next region.
    fn was_told(&self, run: &Run) -> bool {
        let Some(told) = &self.told else {
            return false;
        };
        let key = |run: &Run| (run.start, run.owner, kind(run.flags), run.offset);
        let part = run.start < told.end()
            && run.end() <= told.end()
            && (run.owner, kind(run.flags)) == (told.owner, kind(told.flags))
            && (kind(run.flags) != 0 || run.offset == told.offset + (run.start - told.start));
        key(run) <= key(told) || run.start >= told.start && part
    }

    /// Adds the next run in order.
    fn push(&mut self, run: Run) -> Result {
        if run.start > self.high || run.end() <= self.low || self.full || self.was_told(&run) {
            return Ok(());
        }
        match &mut self.held {
            Some(held) if continues(held, &run) => {
                held.len += run.len;
                return Ok(());
            }
            _ => (),
        }
        let done = self.held.replace(run);
        match done {
            Some(done) => self.emit(done, false),
            None => Ok(()),
        }
    }

    fn emit(&mut self, run: Run, last: bool) -> Result {
        if self.dry {
            self.count += 1;
            return Ok(());
        }
        if self.count >= self.room {
            self.full = true;
            return Ok(());
        }
        let mut flags = run.flags;
        if last {
            flags |= value::FMR_OF_LAST;
        }
        let record = Fsmap {
            fmr_device: self.device,
            fmr_flags: flags,
            fmr_physical: run.start << self.bits,
            fmr_owner: run.owner,
            fmr_offset: run.offset << self.bits,
            fmr_length: run.len << self.bits,
            fmr_reserved: [0; 3],
        };
        self.out.push(&record)?;
        self.count += 1;
        Ok(())
    }

    fn finish(&mut self, whole: bool) -> Result {
        match self.held.take() {
            Some(run) if !self.full => self.emit(run, whole),
            _ => Ok(()),
        }
    }
}

/// Rank of an inode's run among those that start at the same block: data, mapping, attributes.
fn kind(flags: u32) -> u32 {
    flags & (value::FMR_OF_EXTENT_MAP | value::FMR_OF_ATTR_FORK | value::FMR_OF_SPECIAL_OWNER)
}

/// Returns true if two runs were separated only by a region boundary.
fn continues(held: &Run, run: &Run) -> bool {
    let same = held.end() == run.start && held.owner == run.owner && held.flags == run.flags;
    let plain =
        held.flags & (value::FMR_OF_SPECIAL_OWNER | value::FMR_OF_EXTENT_MAP | value::FMR_OF_ATTR_FORK);
    same && (plain != 0 || held.offset + held.len == run.offset)
}

fn run_of(start: u64, record: &Rmap, shared: bool) -> Run {
    let flags = match record.kind {
        Kind::Data if record.unwritten => value::FMR_OF_PREALLOC,
        Kind::Data => 0,
        Kind::Mapping => value::FMR_OF_EXTENT_MAP,
        Kind::Xattr => value::FMR_OF_ATTR_FORK,
        Kind::Cow => value::FMR_OF_PREALLOC,
    };
    let flags = if shared {
        flags | value::FMR_OF_SHARED
    } else {
        flags
    };
    Run {
        start: start + u64::from(record.start),
        owner: record.owner.into(),
        offset: record.offset.into(),
        len: record.len.into(),
        flags,
    }
}

/// The fixed metadata, and the gaps between it and the records, up to `end`.
struct Rest<'a> {
    fixed: &'a [Run],
    /// The first block not yet reported.
    next: u64,
}

impl Rest<'_> {
    /// Reports everything before `end`: fixed metadata, and `owner` for the gaps.
    fn upto(&mut self, end: u64, owner: u64, answer: &mut Answer) -> Result {
        while self.next < end {
            let (next, fixed) = match self.fixed.split_first() {
                Some((run, rest)) if run.end() <= self.next => {
                    self.fixed = rest;
                    continue;
                }
                Some((run, _)) if run.start <= self.next => {
                    let stop = run.end().min(end);
                    let part = Run {
                        start: self.next,
                        len: stop - self.next,
                        ..*run
                    };
                    (stop, Some(part))
                }
                Some((run, _)) => (run.start.min(end), None),
                None => (end, None),
            };
            let part = fixed.unwrap_or(Run::special(self.next, next - self.next, owner));
            answer.push(part)?;
            self.next = next;
        }
        Ok(())
    }
}

/// Determines which records include a shared block. Without counts, all blocks that may be shared
/// count.
fn note_shared(index: &RmapIndex, region: &LockedRegion<'_>, records: &mut [(Rmap, bool)]) {
    for (record, shared) in records {
        let known = region.refcount.good;
        let has_counts = || match index.counts() {
            Some(counts) if known => counts
                .look(region, |tree| tree.has_counts(record.start, record.last()))
                .unwrap_or(true),
            _ => true,
        };
        *shared = record.kind == Kind::Data && has_counts();
    }
}

/// Adds the runs of one region.
fn region(index: &RmapIndex, number: u32, rest: &mut Rest<'_>, answer: &mut Answer) -> Result {
    let sb = index.super_block();
    let start = index.start_of(number);
    let blocks = sb.volume()?.layout().blocks;
    let end = (start + u64::from(index.rmap.file.frame.region_blocks)).min(blocks);
    if end <= answer.low {
        rest.next = rest.next.max(end);
        return Ok(());
    }
    // The first requested record covers the low block.
    let mut from = u32::try_from(answer.low.saturating_sub(start)).map_err(|_| EINVAL)?;
    rest.next = rest.next.max(start + u64::from(from)).max(start);
    let shares = sb.volume()?.shares();
    let mut begun = false;
    let mut records = KVVec::with_capacity(AT_ONCE, GFP_KERNEL)?;
    loop {
        records.clear();
        let mut next = None;
        let walked = {
            let _no_reclaim = NoReclaim::new();
            let region = index.lock(number)?;
            if !region.rmap.good {
                drop(region);
                return rest.upto(end, UNKNOWN, answer);
            }
            let walked = index.rmap.look(&region, |tree| {
                tree.overlapping(from, u32::MAX, &mut |record: &Rmap| {
                    if begun && record.start < from {
                        return Ok(true);
                    }
                    let last: Option<&(Rmap, bool)> = records.last();
                    if records.len() >= AT_ONCE && last.is_some_and(|(last, _)| last.start != record.start) {
                        next = Some(record.start);
                        return Ok(false);
                    }
                    records.push((*record, false), GFP_KERNEL)?;
                    Ok(true)
                })
            });
            if walked.is_ok() && shares {
                note_shared(index, &region, &mut records);
            }
            walked
        };
        walked.map_err(|error| index.rmap.report(number, error))?;
        for (record, shared) in records.iter() {
            let run = run_of(start, record, *shared);
            rest.upto(run.start, FREE, answer)?;
            answer.push(run)?;
            rest.next = rest.next.max(start + u64::from(record.last()) + 1);
            if answer.is_done() {
                return Ok(());
            }
        }
        if is_interrupted() {
            return Err(EINTR);
        }
        match next {
            Some(block) if start + u64::from(block) <= answer.high => from = block,
            _ => break,
        }
        begun = true;
    }
    rest.upto(end, FREE, answer)
}

/// Handles the ioctl.
pub(super) fn call(sb: &SuperBlock<Volume>, argument: usize) -> Result {
    let mut head: FsmapHeadFixed = abi::read(argument)?;
    let [low, high] = &head.fmh_keys;
    let odd = head.fmh_iflags != 0
        || head.fmh_reserved.iter().any(|&word| word != 0)
        || [low, high]
            .iter()
            .any(|key| key.fmr_reserved.iter().any(|&word| word != 0));
    if odd {
        return Err(EINVAL);
    }
    let count = with_readable(sb, |index, scrubber| {
        let layout = sb.volume()?.layout();
        let device = sb.device_id() as u32;
        for key in [low, high] {
            if key.fmr_device != 0 && key.fmr_device != u32::MAX && key.fmr_device != device {
                return Err(EINVAL);
            }
        }
        let bits = layout.block_bits;
        let first = low.fmr_physical >> bits;
        let goes_on = low.fmr_length > 0;
        let special = low.fmr_flags & value::FMR_OF_SPECIAL_OWNER != 0;
        let told = Run {
            start: first,
            owner: low.fmr_owner,
            offset: low.fmr_offset >> bits,
            len: low.fmr_length >> bits,
            flags: low.fmr_flags,
        };
        let mut answer = Answer {
            out: Array::new(argument + size_of::<FsmapHeadFixed>(), head.fmh_count as usize)?,
            room: head.fmh_count,
            count: 0,
            dry: head.fmh_count == 0,
            device,
            bits,
            // Blocks of a special owner have no other owner.
            low: match goes_on && special {
                true => first.saturating_add(told.len),
                false => first,
            },
            high: (high.fmr_physical >> bits).min(layout.blocks.saturating_sub(1)),
            told: (goes_on && !special).then_some(told),
            held: None,
            full: false,
        };
        let fixed = scrubber.fixed(sb)?;
        let low = answer.low;
        let mut rest = Rest {
            fixed: fixed
                .get(fixed.partition_point(|run| run.end() <= low)..)
                .unwrap_or_default(),
            next: low,
        };
        if low < index.start_of(0) {
            rest.upto(index.start_of(0), FREE, &mut answer)?;
        }
        for number in 0..index.regions() {
            if answer.is_done() || index.start_of(number) > answer.high {
                break;
            }
            region(index, number, &mut rest, &mut answer)?;
        }
        answer.finish(rest.next >= layout.blocks)?;
        Ok(answer.count)
    })?;
    head.fmh_oflags = value::FMH_OF_DEV_T;
    head.fmh_entries = count;
    abi::write(argument, &head)
}
