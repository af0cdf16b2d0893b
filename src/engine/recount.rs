// SPDX-License-Identifier: GPL-2.0

//! Recounting: deriving the reference counts of a region from its reverse map.
//!
//! This happens a part of the region at a time, into a new tree. Changes below the end of the last part are applied to the
//! new tree as well ([`counted_part`]); later parts see those above it. Both happen under the region's lock, so no change is
//! lost and none is counted twice, and no writer waits longer than one part takes.

use super::{
    btree::{BTree, Store},
    record::{Kind, Record, Rmap},
    refcount::{Count, Turn, STAGED},
    Error, Result,
};
use crate::sort;
use kernel::prelude::*;

/// A bound behind the last block of any region.
const END: u32 = 1 << 28;

/// The counts of a part of a region, derived from its reverse map.
pub(crate) struct Part {
    /// In order, counts of shared blocks before those of staged blocks.
    pub(crate) counts: KVVec<Count>,
    /// The first block behind the part; `None` when this is the last one.
    pub(crate) next: Option<u32>,
}

impl Part {
    /// The first block behind the part, or one behind all blocks.
    pub(crate) fn end(&self) -> u32 {
        self.next.unwrap_or(END)
    }
}

/// Derives the counts from block `from` on, from about `at_once` records of the reverse map.
///
/// # Errors
///
/// [`Error::Mismatch`] when two owners have the same blocks staged.
pub(crate) fn part<S: Store>(tree: &BTree<'_, S, Rmap>, from: u32, at_once: usize) -> Result<Part> {
    let mut owners: KVVec<Rmap> = KVVec::new();
    let mut next = None;
    let mut fresh = 0;
    tree.overlapping(from, u32::MAX, &mut |record: &Rmap| {
        // Records with the same start stay together; those that start before `from` do not count as new.
        let last = owners.last().map_or(0, |last: &Rmap| last.start);
        if fresh >= at_once && record.start > last {
            next = Some(record.start);
            return Ok(false);
        }
        fresh += usize::from(record.start > from);
        owners.push(*record, GFP_KERNEL)?;
        Ok(true)
    })?;
    let mut part = Part {
        counts: KVVec::new(),
        next,
    };
    for (base, kind) in [(0, Kind::Data), (STAGED, Kind::Cow)] {
        let mut counter = Counter::new(base | from, base | part.end());
        let counts = &mut part.counts;
        let mut out = |count| Ok(counts.push(count, GFP_KERNEL)?);
        for owner in owners.iter().filter(|owner| owner.kind == kind) {
            counter.push(base | owner.start, base | owner.last(), &mut out)?;
        }
        if base == STAGED && counter.most() > 1 {
            return Err(Error::Mismatch("blocks are staged twice"));
        }
        counter.finish(&mut out)?;
    }
    Ok(part)
}

/// The part of a change that concerns a tree which has been recounted up to block `next`.
pub(crate) fn counted_part(turn: &Turn, next: u32) -> Option<Turn> {
    let len = turn.len.min(next.saturating_sub(turn.start & !STAGED));
    (len > 0).then_some(Turn { len, ..*turn })
}

/// Counts the owners of blocks. Owners come in order of their first blocks; only the ends of those that cover the current
/// block are kept.
pub(crate) struct Counter {
    /// The blocks that are counted: from the first to before the second.
    range: (u32, u32),
    /// The last blocks of the owners that reach behind `at`, the least first: a binary heap.
    ends: KVVec<u32>,
    /// Everything before this block has been counted.
    at: u32,
    /// A record that may still become longer.
    held: Option<Count>,
    /// The greatest number of owners seen.
    most: u32,
}

impl Counter {
    /// A counter for the blocks from `from` to before `to`, both with [`STAGED`] or both without.
    pub(crate) fn new(from: u32, to: u32) -> Counter {
        Counter {
            range: (from, to),
            ends: KVVec::new(),
            at: from,
            held: None,
            most: 0,
        }
    }

    /// The most owners that any block had so far.
    pub(crate) fn most(&self) -> u32 {
        self.most
    }

    /// Takes in an owner of the blocks from `first` to `last`. Owners come in order of `first`, except those that begin
    /// before the counted range does.
    ///
    /// Fails with [`Error::Mismatch`] when they do not.
    pub(crate) fn push(&mut self, first: u32, last: u32, out: &mut dyn FnMut(Count) -> Result) -> Result {
        let first = first.max(self.range.0);
        let last = last.min(self.range.1.saturating_sub(1));
        if first > last {
            return Ok(());
        }
        if first < self.at {
            return Err(Error::Mismatch("owners out of order"));
        }
        self.advance(first, out)?;
        self.ends.push(last, GFP_KERNEL)?;
        let added = self.ends.len() - 1;
        sort::sift_up(&mut self.ends, added, |one, other| one < other);
        self.most = self.most.max(self.ends.len() as u32);
        Ok(())
    }

    /// Hands out the last record.
    pub(crate) fn finish(mut self, out: &mut dyn FnMut(Count) -> Result) -> Result {
        self.advance(self.range.1, out)?;
        match self.held.take() {
            Some(held) => out(held),
            None => Ok(()),
        }
    }

    /// Hands out all records that end before `to`.
    fn advance(&mut self, to: u32, out: &mut dyn FnMut(Count) -> Result) -> Result {
        while let Some(&end) = self.ends.first().filter(|&&end| end < to) {
            self.emit(end + 1, out)?;
            self.drop_least();
        }
        self.emit(to, out)
    }

    /// Takes in the blocks up to `to`, which all have the same number of owners.
    fn emit(&mut self, to: u32, out: &mut dyn FnMut(Count) -> Result) -> Result {
        let next = Count {
            start: self.at,
            len: to.saturating_sub(self.at),
            count: self.ends.len() as u32,
        };
        self.at = self.at.max(to);
        if next.len == 0 || !next.is_kept() {
            return Ok(());
        }
        match &mut self.held {
            Some(held) if held.continues(&next) => {
                held.len += next.len;
                Ok(())
            }
            held => match held.replace(next) {
                Some(done) => out(done),
                None => Ok(()),
            },
        }
    }

    /// Removes the least end from the heap.
    fn drop_least(&mut self) {
        let Some(last) = self.ends.pop() else { return };
        if let Some(first) = self.ends.first_mut() {
            *first = last;
            sort::sift_down(&mut self.ends, 0, |one, other| one < other);
        }
    }
}
