// SPDX-License-Identifier: GPL-2.0

//! Parked blocks: blocks that lost an owner while it was unknown whether that was the last one.
//!
//! They stay allocated until the reverse map of their region is good again and shows whether they
//! have another owner.

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
}
