// SPDX-License-Identifier: GPL-2.0

//! Adding and removing owners of blocks, the records kept as few as they can be.
//!
//! A new owner joins the record that it continues and the one that continues it; a removed one is cut out of the record
//! that covers it. So the tree's records depend on who owns what, and not on how that came about, and a tree that
//! was kept up equals one that was built from a scan, record for record.
//!
//! A change of owners is made of at most two changes of the tree, in an order in which only the first can want for a
//! block, and everything that the second will touch is read before the first. So it happens whole or not at all, a full
//! store or an unreadable node notwithstanding; what can still tear it is what can tear one change ([`super::btree`]).

use super::{
    btree::{BTree, Store},
    record::{Record, Rmap},
    Error, Result,
};

/// Nodes that one [`BTree::add_owner`] or [`BTree::remove_owner`] changes at most in a tree of this root level.
///
/// The worst is a record whose start moves to another leaf: one insertion and one deletion. Below the node where their
/// ways part each changes three nodes of a level. From there on up a node that the insertion splits is too full to be
/// joined, so that only one of the two goes on changing three nodes of a level. The root, its new sibling, and a new root.
pub(crate) fn owner_nodes_touched(level: u16) -> u32 {
    u32::from(level) * 6 + 3
}

/// The records around blocks that are to get an owner.
#[derive(Default)]
struct Around {
    /// The owner has some of the blocks in this place already.
    clash: bool,
    /// The record that the new one continues.
    before: Option<Rmap>,
    /// The record that continues the new one.
    after: Option<Rmap>,
}

impl<S: Store> BTree<'_, S, Rmap> {
    /// Looks for what concerns `new`, in one walk.
    fn around(&self, new: &Rmap) -> Result<Around> {
        let mut around = Around::default();
        let (first, last) = (new.start.saturating_sub(1), new.last().saturating_add(1));
        self.overlapping(first, last, &mut |record| {
            if record.clashes(new) {
                around.clash = true;
            } else if record.continues(new) {
                around.before = Some(*record);
            } else if new.continues(record) {
                around.after = Some(*record);
            }
            Ok(!around.clash)
        })?;
        Ok(around)
    }

    /// Adds an owner of blocks that it does not own yet in this place.
    ///
    /// Fails with [`Error::Mismatch`] when it does. Changes everything or nothing.
    pub(crate) fn add_owner(&mut self, new: Rmap) -> Result {
        let around = self.around(&new)?;
        if around.clash {
            return Err(Error::Mismatch("the owner has these blocks already"));
        }
        let Some(before) = around.before else {
            return match around.after {
                None => self.insert(&new),
                Some(after) => {
                    let merged = Rmap {
                        len: new.len + after.len,
                        ..new
                    };
                    self.replace(after.key(), &merged)
                }
            };
        };
        let mut merged = Rmap {
            len: before.len + new.len,
            ..before
        };
        // All three together may be longer than a record can be.
        let Some(after) = around.after.filter(|after| merged.continues(after)) else {
            return self.replace(before.key(), &merged);
        };
        merged.len += after.len;
        // Neither needs a block, and growing in place moves nothing.
        let doomed = self.doom(after.key())?;
        self.replace(before.key(), &merged)?;
        self.delete_doomed(doomed).map(drop)
    }

    /// The record that covers `part`.
    fn whole(&self, part: &Rmap) -> Result<Rmap> {
        let mut found = None;
        self.overlapping(part.start, part.start, &mut |record| {
            if record.covers(part) {
                found = Some(*record);
            }
            Ok(found.is_none())
        })?;
        found.ok_or(Error::Mismatch("the owner does not have these blocks"))
    }

    /// Removes an owner from blocks that it owns.
    ///
    /// Fails with [`Error::Mismatch`] when it does not. Changes everything or nothing.
    pub(crate) fn remove_owner(&mut self, part: Rmap) -> Result {
        let whole = self.whole(&part)?;
        match whole.without(&part) {
            (None, None) => self.delete(whole.key()).map(drop),
            (Some(rest), None) | (None, Some(rest)) => self.replace(whole.key(), &rest),
            (Some(head), Some(tail)) => {
                // The tail may need a block; cutting the head off in place does not.
                self.insert(&tail)?;
                self.replace(whole.key(), &head)
            }
        }
    }

    /// Hands out the blocks of a run that have no owner: first block and length.
    pub(crate) fn unowned(&self, run: (u32, u32), out: &mut dyn FnMut(u32, u32) -> Result) -> Result {
        let (mut at, end) = (run.0, run.0.saturating_add(run.1));
        let mut hand_out = |from: u32, to: u32| match to.checked_sub(from) {
            Some(len @ 1..) => out(from, len),
            _ => Ok(()),
        };
        self.overlapping(run.0, end.saturating_sub(1), &mut |record: &Rmap| {
            hand_out(at, record.start)?;
            at = at.max(record.last().saturating_add(1));
            Ok(at < end)
        })?;
        hand_out(at, end)
    }
}
