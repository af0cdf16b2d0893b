// SPDX-License-Identifier: GPL-2.0

//! Properties that hold in every schedule, and breaches that must be detected.

use crate::volume::{Breach, Volume};
use shuttle::{check_pct, check_random, thread};
use std::panic::{catch_unwind, AssertUnwindSafe};

/// Number of schedules tried of each kind.
const TRIES: usize = 3000;

/// Runs a scan next to writers, and checks the result.
fn run(breach: Breach, stale: bool, writers: u32, operations: u32) {
    let volume = Volume::new(breach, stale);
    let writers: Vec<_> = (0..writers)
        .map(|_| {
            let volume = volume.clone();
            thread::spawn(move || volume.writer(operations))
        })
        .collect();
    if stale {
        volume.rebuild();
    } else {
        volume.check();
    }
    for writer in writers {
        writer.join().unwrap();
    }
    volume.judge();
}

/// Returns whether a schedule is found in which the breach is detected.
fn is_found(breach: Breach) -> bool {
    let found = |stale| {
        let tried = AssertUnwindSafe(|| check_random(move || run(breach, stale, 2, 3), TRIES));
        catch_unwind(tried).is_err()
    };
    // A breach of the install's rules does not affect a check.
    found(true) || found(false)
}

#[test]
fn a_rebuild_ends_in_the_truth() {
    check_random(|| run(Breach::None, true, 2, 4), TRIES);
    check_pct(|| run(Breach::None, true, 2, 4), TRIES, 3);
}

#[test]
fn a_check_finds_a_good_tree_good() {
    check_random(|| run(Breach::None, false, 2, 4), TRIES);
    check_pct(|| run(Breach::None, false, 2, 4), TRIES, 3);
}

#[test]
fn a_mark_outside_the_lock_is_found() {
    assert!(is_found(Breach::MarkOutside));
}

#[test]
fn a_mark_before_the_visit_is_found() {
    assert!(is_found(Breach::MarkBefore));
}

#[test]
fn a_free_inode_passed_outside_the_lock_is_found() {
    assert!(is_found(Breach::PassOutside));
}

#[test]
fn a_change_told_outside_the_lock_is_found() {
    assert!(is_found(Breach::TellOutside));
}

#[test]
fn a_rest_taken_outside_the_lock_is_found() {
    assert!(is_found(Breach::RestOutside));
}

#[test]
fn a_watcher_that_leaves_early_is_found() {
    assert!(is_found(Breach::LeaveEarly));
}
