// SPDX-License-Identifier: GPL-2.0

//! Adding and removing owners of blocks, the records kept as few as they can be.
//!
//! What is added joins the record that it continues and the one that continues it; what is removed is cut out of the
//! record that covers it. So the tree's records depend on who owns what, and not on how that came about, and a tree that
//! was kept up equals one that was built from a scan, record for record.

use super::{
    btree::{BTree, Store},
    record::Rmap,
    Error, Result,
};
use crate::engine::record::Record;

impl<S: Store> BTree<'_, S, Rmap> {
    /// The record that `wanted` accepts among those that cover `block`.
    fn covering(&self, block: u32, wanted: impl Fn(&Rmap) -> bool) -> Result<Option<Rmap>> {
        let mut found = None;
        self.overlapping(block, block, &mut |record| {
            if wanted(record) {
                found = Some(*record);
            }
            Ok(found.is_none())
        })?;
        Ok(found)
    }

    /// Adds an owner of blocks that it does not own yet in this place.
    ///
    /// Fails with [`Error::Mismatch`] when it does.
    pub(crate) fn add_owner(&mut self, new: Rmap) -> Result {
        let same = |record: &Rmap| (record.owner, record.kind) == (new.owner, new.kind);
        let mut clash = false;
        self.overlapping(new.start, new.last(), &mut |record| {
            let place = i64::from(record.offset) - i64::from(record.start);
            clash = same(record) && place == i64::from(new.offset) - i64::from(new.start)
                || same(record) && record.kind != super::record::Kind::Data;
            Ok(!clash)
        })?;
        if clash {
            return Err(Error::Mismatch("the owner has these blocks already"));
        }
        let mut merged = new;
        let before = match new.start.checked_sub(1) {
            Some(block) => self.covering(block, |record| record.continues(&new))?,
            None => None,
        };
        if let Some(before) = before {
            merged = Rmap {
                len: before.len + new.len,
                ..before
            };
        }
        let after = match merged.last().checked_add(1) {
            Some(block) => self.covering(block, |record| merged.continues(record))?,
            None => None,
        };
        if let Some(after) = after {
            merged.len += after.len;
            self.delete(after.key())?;
        }
        if let Some(before) = before {
            self.delete(before.key())?;
        }
        self.insert(&merged)
    }

    /// Removes an owner from blocks that it owns.
    ///
    /// Fails with [`Error::Mismatch`] when it does not.
    pub(crate) fn remove_owner(&mut self, part: Rmap) -> Result {
        let whole = self
            .covering(part.start, |record| record.covers(&part))?
            .ok_or(Error::Mismatch("the owner does not have these blocks"))?;
        self.delete(whole.key())?;
        let (head, tail) = whole.without(&part);
        for rest in [head, tail].into_iter().flatten() {
            self.insert(&rest)?;
        }
        Ok(())
    }
}
