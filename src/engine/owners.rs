// SPDX-License-Identifier: GPL-2.0

//! Adding and removing owners of blocks, with as few records as possible.
//!
//! A new owner's record is merged with the adjacent records of the same owner; a removed one is cut
//! out of the record that covers it. So the records depend only on which blocks have which owners,
//! not on the history, and a tree that was kept up to date equals a tree that was built from a
//! scan, record for record.
//!
//! A change of owners consists of at most two changes of the tree, ordered so that only the first
//! can need a block, and everything that the second will touch is read before the first. It
//! therefore happens entirely or not at all, even if the store is full or a node cannot be read.
//! The only exception is the one described for a single change ([`super::btree`]).

use super::{
    btree::{BTree, Store},
    record::{Record, Rmap},
    Error, Result,
};

/// Maximum number of nodes that [`BTree::add_owner`] or [`BTree::remove_owner`] modifies in a tree
/// whose root has this level.
///
/// The worst case is a record whose start moves to another leaf: one insertion and one deletion.
/// Below the node where their paths meet, each modifies three nodes of a level. Above it, a node
/// that the insertion splits is too full to be merged, so only one of the two continues to modify
/// three nodes of a level. The root, its new sibling and a new root come on top.
pub(crate) fn owner_nodes_touched(level: u16) -> u32 {
    u32::from(level) * 6 + 3
}

/// The existing records around blocks that are to gain an owner.
#[derive(Default)]
struct Around {
    /// The owner already has some of the blocks at this file offset.
    clash: bool,
    /// The record that the new one continues.
    before: Option<Rmap>,
    /// The record that continues the new one.
    after: Option<Rmap>,
}

impl<S: Store> BTree<'_, S, Rmap> {
    /// Finds the records that matter for adding `new`, in one query.
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

    /// Adds an owner to blocks that it does not own yet at this offset. Changes everything or
    /// nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when it owns some of the blocks already.
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
        // The three records together may exceed the maximum length.
        let Some(after) = around.after.filter(|after| merged.continues(after)) else {
            return self.replace(before.key(), &merged);
        };
        merged.len += after.len;
        // Neither change needs a block, and extending a record in place moves nothing.
        let doomed = self.doom(after.key())?;
        self.replace(before.key(), &merged)?;
        self.delete_doomed(doomed).map(drop)
    }

    /// Returns the record that covers `part`.
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

    /// Removes an owner from blocks that it owns. Changes everything or nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when it does not own all of them.
    pub(crate) fn remove_owner(&mut self, part: Rmap) -> Result {
        let whole = self.whole(&part)?;
        match whole.without(&part) {
            (None, None) => self.delete(whole.key()).map(drop),
            (Some(rest), None) | (None, Some(rest)) => self.replace(whole.key(), &rest),
            (Some(head), Some(tail)) => {
                // Inserting the tail may need a block; shortening the head in place does not.
                self.insert(&tail)?;
                self.replace(whole.key(), &head)
            }
        }
    }

    /// Calls `out` with the first block and length of each part of a run that has no owner.
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
