// SPDX-License-Identifier: GPL-2.0

//! Changes of owners that wait to be applied to a staged tree.
//!
//! They are kept oldest first and coalesced with recent changes: an addition and a removal of the
//! same blocks cancel each other, and adjacent blocks become one change. A change is only moved
//! past changes of other blocks or other owners, where the order does not matter.
//!
//! The changes are taken in rounds; new ones arrive while a round is being applied. The rounds
//! shrink, and catching up ends, if less than half as many new changes arrive as the round
//! contained. Otherwise the delta *lags* ([`Delta::lag`]), as it does when half of its budget is
//! used; tasks that make changes must then wait, longer the more it lags.

use super::{
    record::{Record, Rmap},
    Error, Result,
};
use kernel::prelude::*;

/// A change of owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Update {
    /// Blocks gained this owner.
    Add(Rmap),
    /// Blocks lost this owner.
    Remove(Rmap),
}

impl Update {
    fn record(&self) -> &Rmap {
        match self {
            Update::Add(record) | Update::Remove(record) => record,
        }
    }

    /// Returns true if the order in which the two are applied matters.
    fn depends_on(&self, other: &Update) -> bool {
        let (one, other) = (self.record(), other.record());
        one.owner == other.owner && one.start <= other.last() && other.start <= one.last()
    }
}

/// Number of recent changes that a new one is compared with.
const LOOK_BACK: usize = 32;
/// Maximum number of changes that are applied while all writers of the region are stopped.
pub(super) const CLOSE: usize = 64;

/// The maximum lag.
pub(crate) const MOST_LAG: u32 = 64;

/// Number of rounds after which only half as many changes per round are let through without a
/// delay.
const PATIENCE: usize = 8;

/// The changes collected so far.
pub(crate) struct Delta {
    /// Oldest first.
    updates: KVVec<Update>,
    /// Maximum number of changes.
    most: usize,
    /// Number of changes that the last round took.
    taken: Option<usize>,
    /// Number of rounds so far.
    rounds: usize,
}

impl Delta {
    /// Returns an empty delta that may use up to `budget` bytes.
    pub(crate) fn new(budget: usize) -> Delta {
        Delta {
            updates: KVVec::new(),
            // The array doubles as it grows.
            most: budget / (2 * size_of::<Update>()),
            taken: None,
            rounds: 0,
        }
    }

    /// Adds a change. Fails with [`Error::NoMemory`] if this would exceed the budget.
    pub(crate) fn push(&mut self, update: Update) -> Result {
        if self.coalesce(&update) {
            return Ok(());
        }
        if self.updates.len() >= self.most {
            return Err(Error::NoMemory);
        }
        Ok(self.updates.push(update, GFP_KERNEL)?)
    }

    /// Merges a change into a recent one, or cancels both. Returns false if no recent change
    /// permits it.
    fn coalesce(&mut self, update: &Update) -> bool {
        let from = self.updates.len().saturating_sub(LOOK_BACK);
        let Some(recent) = self.updates.get_mut(from..) else {
            return false;
        };
        for index in (0..recent.len()).rev() {
            let Some(earlier) = recent.get_mut(index) else {
                return false;
            };
            match (earlier, update) {
                (Update::Add(came), Update::Remove(goes)) if came == goes => {
                    if let Some(rest) = recent.get_mut(index..) {
                        rest.rotate_left(1);
                    }
                    self.updates.pop();
                    return true;
                }
                (Update::Add(came), Update::Add(comes)) if came.continues(comes) => {
                    came.len += comes.len;
                    return true;
                }
                (earlier, update) if update.depends_on(earlier) => return false,
                _ => (),
            }
        }
        false
    }

    /// Takes all changes, oldest first, to be applied as the next round.
    pub(crate) fn take(&mut self) -> KVVec<Update> {
        self.taken = Some(self.updates.len());
        self.rounds += 1;
        core::mem::replace(&mut self.updates, KVVec::new())
    }

    /// Restarts the rounds. The changes that collect while a tree is being loaded say nothing about
    /// the rate of the writers, so they cause no delay.
    pub(crate) fn begin_rounds(&mut self) {
        (self.taken, self.rounds) = (None, 0);
    }

    /// Returns true if few enough changes are left for writers to be stopped while they are
    /// applied.
    pub(crate) fn is_close(&self) -> bool {
        self.updates.len() <= CLOSE
    }

    /// Returns how long each task should wait after a change, in units chosen by the caller: 0 as
    /// long as the rounds can catch up, then 1, doubled for each further eighth of excess, up to
    /// [`MOST_LAG`]. A few writers are thus hardly delayed, and many are delayed enough. If
    /// catching up takes many rounds, fewer changes pass without a delay, so that it ends however
    /// many writers there are.
    pub(crate) fn lag(&self) -> u32 {
        let held = self.updates.len();
        if held > self.most / 2 {
            return MOST_LAG;
        }
        let patience = self.rounds / PATIENCE;
        let fair = |taken: usize| ((CLOSE / 2).max(taken / 2) >> patience.min(8)).max(1);
        let eighths = self.taken.map_or(0, |taken| held * 8 / fair(taken));
        match eighths.checked_sub(8) {
            None => 0,
            Some(beyond) => 1 << beyond.min(MOST_LAG.ilog2() as usize),
        }
    }
}
