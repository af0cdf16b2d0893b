// SPDX-License-Identifier: GPL-2.0

//! Parked blocks: blocks that lost an owner while it was unknown whether that was the last one.
//!
//! They stay allocated until it is known whether they have another owner: the reverse map of their
//! region is good again, or all inodes have been scanned ([`Unowned`]).

use super::record::{Record, Rmap};
use crate::sort;
use kernel::{alloc::AllocError, prelude::*};

/// The parked runs of a region, as first block and length. They do not overlap.
#[derive(Default)]
pub(crate) struct Parked(KVVec<(u32, u32)>);

impl Parked {
    /// Returns true if no blocks are parked.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Parks a run of blocks, none of which may be parked already.
    pub(crate) fn park(&mut self, start: u32, len: u32) -> Result<(), AllocError> {
        self.0.push((start, len), GFP_KERNEL)
    }

    /// Removes and returns one of the runs.
    pub(crate) fn take(&mut self) -> Option<(u32, u32)> {
        self.0.pop()
    }

    /// Removes these blocks from all runs, because their fate has been decided elsewhere.
    pub(crate) fn unpark(&mut self, start: u32, len: u32) -> Result<(), AllocError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let end = start.saturating_add(len);
        let mut kept = KVVec::with_capacity(self.0.len() + 1, GFP_KERNEL)?;
        for &(first, blocks) in self.0.iter() {
            let last = first.saturating_add(blocks);
            for (from, to) in [(first, last.min(start)), (first.max(end), last)] {
                if from < to {
                    kept.push((from, to - from), GFP_KERNEL)?;
                }
            }
        }
        self.0 = kept;
        Ok(())
    }

    /// Returns the runs in order.
    pub(crate) fn runs(&self) -> Result<KVVec<(u32, u32)>, AllocError> {
        let mut runs = KVVec::with_capacity(self.0.len(), GFP_KERNEL)?;
        runs.extend_from_slice(&self.0, GFP_KERNEL)?;
        sort::by_key(&mut runs, |&run| run);
        Ok(runs)
    }

    /// Takes blocks out of the runs: `gone` are runs in order that do not overlap. On failure
    /// nothing changes.
    pub(crate) fn subtract(&mut self, gone: &[(u32, u32)]) -> Result<(), AllocError> {
        let mut kept = KVVec::with_capacity(self.0.len() + gone.len(), GFP_KERNEL)?;
        for &(first, len) in self.0.iter() {
            let (mut at, end) = (first, first.saturating_add(len));
            let from = gone.partition_point(|&(start, len)| start.saturating_add(len) <= first);
            for &(start, len) in gone.get(from..).unwrap_or_default() {
                if start >= end {
                    break;
                }
                if start > at {
                    kept.push((at, start - at), GFP_KERNEL)?;
                }
                at = start.saturating_add(len);
            }
            if at < end {
                kept.push((at, end - at), GFP_KERNEL)?;
            }
        }
        self.0 = kept;
        Ok(())
    }
}

/// Finds the blocks of some runs that no record covers, from records that are passed in order.
pub(crate) struct Unowned<'a> {
    /// The runs, in order. They do not overlap.
    runs: &'a [(u32, u32)],
    /// The first block that has not been decided, if it lies in the first run.
    at: u32,
    found: KVVec<(u32, u32)>,
}

impl<'a> Unowned<'a> {
    pub(crate) fn new(runs: &'a [(u32, u32)]) -> Self {
        Unowned {
            runs,
            at: 0,
            found: KVVec::new(),
        }
    }

    /// Takes in the next record. Returns false once no record behind it matters.
    pub(crate) fn pass(&mut self, record: &Rmap) -> Result<bool, AllocError> {
        self.decide(record.start)?;
        self.at = self.at.max(record.last().saturating_add(1));
        Ok(!self.runs.is_empty())
    }

    /// Notes the blocks before `to` as unowned that no record has covered.
    fn decide(&mut self, to: u32) -> Result<(), AllocError> {
        while let Some((&(first, len), later)) = self.runs.split_first() {
            let end = first.saturating_add(len);
            let from = first.max(self.at);
            let to = end.min(to);
            if from < to {
                self.found.push((from, to - from), GFP_KERNEL)?;
                self.at = to;
            }
            if end > to.max(self.at) {
                break;
            }
            self.runs = later;
        }
        Ok(())
    }

    /// Returns the blocks without a record, in order, after all records have been passed.
    pub(crate) fn finish(mut self) -> Result<KVVec<(u32, u32)>, AllocError> {
        self.decide(u32::MAX)?;
        Ok(self.found)
    }
}
