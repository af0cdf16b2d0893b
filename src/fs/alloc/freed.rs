// SPDX-License-Identifier: GPL-2.0

//! The blocks that were freed and are to be discarded once that has committed, in memory.

use crate::fs::state::Volume;
use kernel::{prelude::*, sync::atomic::Relaxed};

/// Runs that are kept at most. More are not discarded, until somebody asks for that.
pub(in crate::fs) const MOST: usize = 1 << 16;
/// Milliseconds between two looks whether a transaction has committed.
const PATIENCE: u32 = 1000;

/// Notes blocks that were freed in a transaction. Called within its handle.
pub(in crate::fs) fn note(volume: &Volume, transaction: u32, start: u64, len: u32) {
    if !volume.freed.on.load(Relaxed) {
        return;
    }
    let mut runs = volume.freed.runs.lock();
    let before = runs
        .last_mut()
        .filter(|(last, first, count)| *last == transaction && *first + u64::from(*count) == start);
    if let Some((_, _, count)) = before {
        *count = count.saturating_add(len);
    } else if runs.len() >= MOST || runs.push((transaction, start, len), GFP_KERNEL).is_err() {
        return;
    }
    drop(runs);
    wake(volume);
}

/// Has the task look some time later for transactions that have committed.
pub(in crate::fs) fn wake(volume: &Volume) {
    if let Some(task) = &*volume.freed.task.lock() {
        task.start_after(PATIENCE);
    }
}
