// SPDX-License-Identifier: GPL-2.0

//! Reference counts: the number of owners of blocks that have more than one.
//!
//! Two sets of records share a tree. A record of the first set gives the number of owners, two or
//! more, of a run of blocks; blocks without a record have one owner or none. The second set, marked
//! by [`STAGED`], a bit above all block numbers, contains the blocks allocated for copy-on-write
//! but not yet mapped, so that those left behind by a crash are found without looking at anything
//! else. In both sets adjacent records with equal counts are merged, so the records depend only on
//! the owners, not on the history.
//!
//! A change of many blocks may change many records, one after the other. It is not atomic: when it
//! fails, the tree may be partly changed and must not be used any more. The caller marks it stale.
//!
//! [`super::recount`] derives the same records from the reverse map.

use super::{
    btree::{BTree, Store},
    record::{load_words, store_words, Record},
    Error, Result,
};
pub(crate) use crate::format::tree_layout::STAGED;
use crate::format::tree_layout::{REFCOUNT_KEY_SIZE, REFCOUNT_SIZE};
use kernel::prelude::*;

/// A run of blocks and its number of owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Count {
    /// First block, within the region, with [`STAGED`] or without.
    pub(crate) start: u32,
    /// Number of blocks.
    pub(crate) len: u32,
    /// Number of owners, at least 2; 1 for staged blocks.
    pub(crate) count: u32,
}

impl Count {
    /// Returns the first block after the run.
    pub(crate) fn end(&self) -> u32 {
        self.start.saturating_add(self.len)
    }

    /// Returns true if `next` starts right after this run and has the same count.
    pub(crate) fn continues(&self, next: &Count) -> bool {
        self.end() == next.start && self.count == next.count
    }

    /// Returns true if a run with this count needs a record.
    pub(super) fn is_kept(&self) -> bool {
        self.count > implied(self.start)
    }
}

/// Returns the count of blocks that have no record, in the set that `block` belongs to.
fn implied(block: u32) -> u32 {
    u32::from(block & STAGED == 0)
}

impl Record for Count {
    type Key = u32;
    const SIZE: usize = REFCOUNT_SIZE;
    const KEY_SIZE: usize = REFCOUNT_KEY_SIZE;
    const DISJOINT: bool = true;

    fn key(&self) -> u32 {
        self.start
    }

    fn first(&self) -> u32 {
        self.start
    }

    fn last(&self) -> u32 {
        self.start.saturating_add(self.len.saturating_sub(1))
    }

    fn store(&self, bytes: &mut [u8]) {
        store_words(bytes, [self.start, self.len, self.count]);
    }

    fn load(bytes: &[u8]) -> Option<Self> {
        let [start, len, count] = load_words(bytes)?;
        let found = Count { start, len, count };
        let last = start.checked_add(len.checked_sub(1)?)?;
        let sound = (start ^ last) & STAGED == 0 && last < u32::MAX && found.is_kept();
        let sound = sound && (start & STAGED == 0 || count == 1);
        sound.then_some(found)
    }

    fn last_in(bytes: &[u8]) -> Option<u32> {
        let [start, len] = load_words(bytes)?;
        start.checked_add(len.checked_sub(1)?)
    }

    fn store_key(key: u32, bytes: &mut [u8]) {
        store_words(bytes, [key]);
    }

    fn load_key(bytes: &[u8]) -> Option<u32> {
        let [start] = load_words(bytes)?;
        Some(start)
    }

    fn key_from(block: u32) -> u32 {
        block
    }
}

/// A change of the counts of a run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    /// First block, with [`STAGED`] or without.
    pub(crate) start: u32,
    /// Number of blocks.
    pub(crate) len: u32,
    /// True to increment, false to decrement. Blocks that lose their only owner have no record
    /// before or after.
    pub(crate) up: bool,
}

impl Turn {
    fn end(&self) -> u32 {
        self.start.saturating_add(self.len)
    }

    /// Returns the new count of a block at `at` with the given count.
    fn of(&self, count: u32, at: u32) -> Result<u32> {
        if self.up && at & STAGED != 0 && count > 0 {
            return Err(Error::Mismatch("the blocks are set aside already"));
        }
        if self.up {
            return count.checked_add(1).ok_or(Error::Mismatch("too many owners"));
        }
        match (count, at & STAGED) {
            (0, _) => Err(Error::Mismatch("the blocks are not set aside")),
            // The caller frees blocks that lose their last owner.
            (1, 0) => Ok(1),
            _ => Ok(count - 1),
        }
    }
}

/// A list of records in order that merges adjacent ones with equal counts.
struct Merged(KVVec<Count>);

impl Merged {
    fn push(&mut self, start: u32, end: u32, count: u32) -> Result {
        let next = Count {
            start,
            len: end.saturating_sub(start),
            count,
        };
        if next.len == 0 || !next.is_kept() {
            return Ok(());
        }
        match self.0.last_mut() {
            Some(last) if last.continues(&next) => last.len += next.len,
            _ => self.0.push(next, GFP_KERNEL)?,
        }
        Ok(())
    }
}

impl<S: Store> BTree<'_, S, Count> {
    /// Returns the number of records that overlap the blocks from `first` to `last`.
    pub(crate) fn counts_between(&self, first: u32, last: u32) -> Result<u32> {
        let mut found = 0u32;
        self.overlapping(first, last, &mut |_| {
            found = found.saturating_add(1);
            Ok(true)
        })?;
        Ok(found)
    }

    /// Returns true if any block from `first` to `last` has a record.
    pub(crate) fn has_counts(&self, first: u32, last: u32) -> Result<bool> {
        let mut found = false;
        self.overlapping(first, last, &mut |_| {
            found = true;
            Ok(false)
        })?;
        Ok(found)
    }

    /// Calls `visit` with first block, length and count of each run of blocks with equal counts,
    /// from `start` on, until it returns false. The count is 1 for blocks without a record.
    pub(crate) fn each_count(
        &self,
        start: u32,
        len: u32,
        visit: &mut dyn FnMut(u32, u32, u32) -> Result<bool>,
    ) -> Result {
        let end = start.saturating_add(len);
        let mut at = start;
        let mut more = len > 0;
        if !more {
            return Ok(());
        }
        self.overlapping(start, end - 1, &mut |record| {
            let from = record.start.max(start);
            if from > at {
                more = visit(at, from - at, implied(at))?;
            }
            at = record.end().min(end);
            if more {
                more = visit(from, at.saturating_sub(from), record.count)?;
            }
            Ok(more)
        })?;
        if more && at < end {
            visit(at, end - at, implied(at))?;
        }
        Ok(())
    }

    /// Changes the counts of a run of blocks.
    ///
    /// Fails with [`Error::Mismatch`] if the existing counts do not permit the change. After any
    /// failure the tree may be partly changed.
    pub(crate) fn turn(&mut self, turn: &Turn) -> Result {
        let (start, end) = (turn.start, turn.end());
        if turn.len == 0 {
            return Ok(());
        }
        let mut old: KVVec<Count> = KVVec::new();
        let first = start.saturating_sub(1).max(start & STAGED);
        self.overlapping(first, end, &mut |record| {
            old.push(*record, GFP_KERNEL)?;
            Ok(true)
        })?;
        let mut new = Merged(KVVec::new());
        let mut at = start;
        for record in old.iter() {
            let gap = record.start.min(end);
            if gap > at {
                new.push(at, gap, turn.of(implied(at), at)?)?;
            }
            let (inner, outer) = (record.start.max(start), record.end().min(end));
            new.push(record.start, record.end().min(start), record.count)?;
            if inner < outer {
                new.push(inner, outer, turn.of(record.count, inner)?)?;
            }
            at = at.max(outer);
            if record.end() > end {
                // The gap before it has been handled above.
                new.push(record.start.max(end), record.end(), record.count)?;
            }
        }
        if at < end {
            new.push(at, end, turn.of(implied(at), at)?)?;
        }
        self.exchange(&old, &new.0)
    }

    /// Replaces the records `old` by `new`, both in order.
    fn exchange(&mut self, old: &[Count], new: &[Count]) -> Result {
        let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
        loop {
            match (old.peek(), new.peek()) {
                (None, None) => return Ok(()),
                (Some(gone), Some(come)) if gone.start == come.start => {
                    if gone != come {
                        self.replace(gone.start, come)?;
                    }
                    old.next();
                    new.next();
                }
                (Some(gone), come) if come.is_none_or(|come| gone.start < come.start) => {
                    self.delete(gone.start)?;
                    old.next();
                }
                (_, Some(come)) => {
                    self.insert(come)?;
                    new.next();
                }
                (Some(_), None) => return Ok(()),
            }
        }
    }

    /// Adds a record after all others of its set, or extends the last one.
    pub(crate) fn append(&mut self, record: &Count) -> Result {
        let mut before = None;
        if let Some(last) = record.start.checked_sub(1) {
            self.overlapping(last, last, &mut |found| {
                before = Some(*found);
                Ok(false)
            })?;
        }
        match before {
            Some(before) if before.continues(record) => {
                let longer = Count {
                    len: before.len.saturating_add(record.len),
                    ..before
                };
                self.replace(before.start, &longer)
            }
            _ => self.insert(record),
        }
    }
}
