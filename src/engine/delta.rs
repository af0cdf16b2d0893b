// SPDX-License-Identifier: GPL-2.0

//! Changes of owners that wait to be applied to a tree that is being built.
//!
//! They are kept oldest first, as few as a short look back can make them: blocks that came and went again are forgotten,
//! and blocks that continue those that came before them make one change of two. A change is only moved past changes of
//! other blocks or other owners, where the order makes no difference.
//!
//! They are taken in rounds, each while the one before is being applied. The rounds shrink, and the catching up ends, if
//! in the time that one takes less than half as many new changes come: otherwise the delta *lags* ([`Delta::lag`]), as it
//! does when half of its budget is used, and those who make the changes must wait a little, and longer the more it lags.

use super::{
    record::{Record, Rmap},
    Error, Result,
};
use kernel::prelude::*;

/// A change of owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Update {
    /// Blocks got this owner.
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

    /// Whether it makes a difference which of the two is applied first.
    fn depends_on(&self, other: &Update) -> bool {
        let (one, other) = (self.record(), other.record());
        one.owner == other.owner && one.start <= other.last() && other.start <= one.last()
    }
}

/// How many changes to look back.
const LOOK_BACK: usize = 32;
/// Changes that are few enough to be applied while all who make them are stopped.
pub(super) const CLOSE: usize = 64;

/// No lag is greater.
pub(crate) const MOST_LAG: u32 = 64;

/// Rounds after which half as much is let pass.
const PATIENCE: usize = 8;

/// The changes that have gathered.
pub(crate) struct Delta {
    /// Oldest first.
    updates: KVVec<Update>,
    /// How many there may be.
    most: usize,
    /// How many the last round took.
    taken: Option<usize>,
    /// Rounds so far.
    rounds: usize,
}

impl Delta {
    /// An empty one that may take up to `budget` bytes.
    pub(crate) fn new(budget: usize) -> Delta {
        Delta {
            updates: KVVec::new(),
            // The array doubles as it grows.
            most: budget / (2 * size_of::<Update>()),
            taken: None,
            rounds: 0,
        }
    }

    /// Takes in a change. Fails with [`Error::NoMemory`] when it is one more than the budget allows.
    pub(crate) fn push(&mut self, update: Update) -> Result {
        if self.coalesce(&update) {
            return Ok(());
        }
        if self.updates.len() >= self.most {
            return Err(Error::NoMemory);
        }
        Ok(self.updates.push(update, GFP_KERNEL)?)
    }

    /// Makes a change part of an earlier one, or makes both vanish, if one of the last allows it.
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

    /// Takes what has gathered, oldest first.
    pub(crate) fn take(&mut self) -> KVVec<Update> {
        self.taken = Some(self.updates.len());
        self.rounds += 1;
        core::mem::replace(&mut self.updates, KVVec::new())
    }

    /// Begins anew with the rounds: what gathers until the next one is as much as it is, while a tree is loaded, and nobody
    /// need wait for it.
    pub(crate) fn begin_rounds(&mut self) {
        (self.taken, self.rounds) = (None, 0);
    }

    /// Whether so little has gathered that changes may be stopped for it.
    pub(crate) fn is_close(&self) -> bool {
        self.updates.len() <= CLOSE
    }

    /// How long those who make changes had better wait after each, in units that are theirs to choose; 0 while no more
    /// gathers than can be caught up with, then 1, and twice as much for each eighth more than that, [`MOST_LAG`] at most.
    /// So few wait no longer than they must, and many wait long enough. If that takes many rounds less is let pass without a
    /// wait, so that the delta is close, in the end, however many they are.
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
