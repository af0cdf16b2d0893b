// SPDX-License-Identifier: GPL-2.0

//! Recounting: derives the reference counts of a region from its reverse map.
//!
//! This is done in parts, into a new tree. Changes to blocks before the end of the last part are
//! applied to the new tree as well ([`counted_part`]); changes after it are seen by later parts.
//! Both happen under the region's lock, so that no change is lost or counted twice, and writers
//! never wait longer than one part takes.

use super::{
    btree::{BTree, Store},
    record::{Kind, Record, Rmap},
    refcount::{Count, Turn, STAGED},
    Error, Result,
};
use crate::sort;
use kernel::prelude::*;

/// An upper bound of all block numbers within a region.
const END: u32 = 1 << 28;

/// The counts of one part of a region.
pub(crate) struct Part {
    /// In order; counts of shared blocks before those of staged blocks.
    pub(crate) counts: KVVec<Count>,
    /// The first block after the part; `None` for the last part.
    pub(crate) next: Option<u32>,
}

impl Part {
    /// Returns the first block after the part, or [`END`] for the last part.
    pub(crate) fn end(&self) -> u32 {
        self.next.unwrap_or(END)
    }
}

/// Derives the counts from block `from` on, using about `at_once` records of the reverse map.
///
/// # Errors
///
/// [`Error::Mismatch`] when two owners have staged the same blocks.
pub(crate) fn part<S: Store>(tree: &BTree<'_, S, Rmap>, from: u32, at_once: usize) -> Result<Part> {
    let mut owners: KVVec<Rmap> = KVVec::new();
    let mut next = None;
    let mut fresh = 0;
    tree.overlapping(from, u32::MAX, &mut |record: &Rmap| {
        // Records with the same start stay in one part; those that start before `from` do not count
        // as new.
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

/// Returns the portion of a change that concerns a tree which has been recounted up to block
/// `next`.
pub(crate) fn counted_part(turn: &Turn, next: u32) -> Option<Turn> {
    let len = turn.len.min(next.saturating_sub(turn.start & !STAGED));
    (len > 0).then_some(Turn { len, ..*turn })
}

/// Counts owners with a sweep over the blocks. Owners arrive in order of their first blocks; only
/// the ends of those that cover the current block are kept.
pub(crate) struct Counter {
    /// The blocks to count: the first one, and the first one after them.
    range: (u32, u32),
    /// The last blocks of the owners that cover `at` or later blocks: a binary min-heap.
    ends: KVVec<u32>,
    /// All blocks before this one are counted.
    at: u32,
    /// A record that may still be extended.
    held: Option<Count>,
    /// The maximum number of owners seen.
    most: u32,
}

impl Counter {
    /// Returns a counter for the blocks from `from` to before `to`, both with [`STAGED`] or both
    /// without.
    pub(crate) fn new(from: u32, to: u32) -> Counter {
        Counter {
            range: (from, to),
            ends: KVVec::new(),
            at: from,
            held: None,
            most: 0,
        }
    }

    /// Returns the maximum number of owners of any block so far.
    pub(crate) fn most(&self) -> u32 {
        self.most
    }

    /// Adds an owner of the blocks from `first` to `last`. Owners must be passed in order of
    /// `first`, except those that start before the counted range.
    ///
    /// Fails with [`Error::Mismatch`] if they are not.
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

    /// Emits the remaining records.
    pub(crate) fn finish(mut self, out: &mut dyn FnMut(Count) -> Result) -> Result {
        self.advance(self.range.1, out)?;
        match self.held.take() {
            Some(held) => out(held),
            None => Ok(()),
        }
    }

    /// Emits all records that end before `to`.
    fn advance(&mut self, to: u32, out: &mut dyn FnMut(Count) -> Result) -> Result {
        while let Some(&end) = self.ends.first().filter(|&&end| end < to) {
            self.emit(end + 1, out)?;
            self.drop_least();
        }
        self.emit(to, out)
    }

    /// Adds the blocks from the current position to before `to`, which all have the same number of
    /// owners.
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

    /// Removes the least element from the heap.
    fn drop_least(&mut self) {
        let Some(last) = self.ends.pop() else { return };
        if let Some(first) = self.ends.first_mut() {
            *first = last;
            sort::sift_down(&mut self.ends, 0, |one, other| one < other);
        }
    }
}
