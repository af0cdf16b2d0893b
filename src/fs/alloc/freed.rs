// SPDX-License-Identifier: GPL-2.0

//! Blocks that were freed and will be discarded after the commit, in memory.

use crate::fs::state::Volume;
use kernel::{prelude::*, sync::atomic::Relaxed};

/// Maximum number of runs kept. Further ones are not discarded until `FITRIM`.
pub(in crate::fs) const MOST: usize = 1 << 16;
/// Delay in milliseconds before checking whether a transaction has committed.
const PATIENCE: u32 = 1000;

/// Records blocks that were freed in a transaction. Must be called within its handle.
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

/// Starts the task after a delay, to discard what has been committed by then.
pub(in crate::fs) fn wake(volume: &Volume) {
    if let Some(task) = &*volume.freed.task.lock() {
        task.start_after(PATIENCE);
    }
}
