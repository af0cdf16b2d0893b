// SPDX-License-Identifier: GPL-2.0

//! Comparing a tree with the records that a scan collected, while both keep changing.
//!
//! A task that changes an owner changes the tree and the collected records under one lock. A part
//! of both that is examined with that lock held, after all pending changes are applied, must
//! therefore be equal, regardless of changes before and after. A step compares such a part: it
//! checks some leaves of the tree and the path to them, and compares their records bytewise with
//! the collected ones. Records that equal sorted records are sorted themselves and need no second
//! check.
//!
//! Cost: checking the tree first and then comparing record by record took about ten times as long
//! for 10^5 records in the kernel.

use super::{
    btree::{BTree, Store},
    check::Sight,
    gather::{unpack, Packed},
    record::{Rmap, RmapKey},
    shadow::Shadow,
    Error,
};
use kernel::prelude::*;
use zerocopy::FromBytes;

/// The result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Both are equal. Contains the key to continue from, or `None` at the end.
    Equal(Option<RmapKey>),
    /// The tree's record and the collected record at the first difference.
    Different(Option<Rmap>, Option<Rmap>),
}

/// The side that could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The tree could not be read or is not sound.
    Tree(Error),
    /// The collected records could not be read.
    Collected(Error),
}

/// A comparison in progress.
pub(crate) struct Comparison {
    from: Option<RmapKey>,
    /// The collected records of the current part.
    wanted: KVVec<Packed>,
}

impl Comparison {
    /// Starts a comparison at the first key.
    pub(crate) const fn new() -> Comparison {
        Comparison {
            from: None,
            wanted: KVVec::new(),
        }
    }

    /// Compares up to `leaves` more leaves. The caller holds the lock of both the tree and the
    /// collected records, and has applied all changes to both.
    pub(crate) fn step<S: Store>(
        &mut self,
        tree: &BTree<'_, S, Rmap>,
        shadow: &mut Shadow,
        leaves: usize,
    ) -> Result<Step, Trouble> {
        // The leaf may now start before `from`, if its first records were in another leaf at the
        // last step.
        let low = match self.from {
            None => None,
            Some(from) => {
                let low = tree.leaf_low(from).map_err(Trouble::Tree)?;
                Some(low.map_or(from, |low| low.min(from)))
            }
        };
        let all = self
            .take(shadow, low, tree.leaf_capacity().saturating_mul(leaves.max(1)))
            .map_err(Trouble::Collected)?;
        let (mut compared, mut different) = (0, None);
        let next = tree.check_leaves(self.from, leaves, &mut |stored| {
            let rest = self.wanted.get(compared..).unwrap_or_default();
            let Ok(found) = <[Packed]>::ref_from_bytes(stored) else {
                return Ok(Sight::Unknown);
            };
            if different.is_some() || !all && rest.len() < found.len() {
                return Ok(Sight::Enough);
            }
            let expected = rest.get(..found.len()).unwrap_or(rest);
            if expected == found {
                compared += found.len();
                return Ok(Sight::Sound);
            }
            let same = found.iter().zip(expected).take_while(|(one, other)| one == other);
            let first = same.count();
            let at = |records: &[Packed]| records.get(first).and_then(|packed| unpack(packed).ok());
            different = Some(Step::Different(at(found), at(expected)));
            Ok(Sight::Unknown)
        });
        let next = next.map_err(Trouble::Tree)?;
        if let Some(different) = different {
            return Ok(different);
        }
        // All collected records before the next key must have been matched.
        if let Some(left) = self.wanted.get(compared) {
            if next.is_none_or(|next| Rmap::words(left) < next.words()) {
                let missing = unpack(left).map_err(Trouble::Collected)?;
                return Ok(Step::Different(None, Some(missing)));
            }
        }
        self.from = next;
        Ok(Step::Equal(next))
    }

    /// Calls back with the blocks of the next leaves to be compared, at most `leaves`, so that they
    /// can be read ahead before the lock is taken again.
    pub(crate) fn ahead<S: Store>(
        &self,
        tree: &BTree<'_, S, Rmap>,
        leaves: usize,
        out: &mut dyn FnMut(u32) -> super::Result,
    ) -> super::Result {
        tree.leaves_from(self.from, leaves, out)
    }

    /// Fetches up to `most` records from `from` on, plus one more. Returns true if there are no
    /// further records.
    fn take(&mut self, shadow: &mut Shadow, from: Option<RmapKey>, most: usize) -> super::Result<bool> {
        let wanted = &mut self.wanted;
        wanted.clear();
        shadow.pieces(from, &mut |piece| {
            let room = most + 1 - wanted.len();
            wanted.extend_from_slice(piece.get(..room.min(piece.len())).unwrap_or_default(), GFP_KERNEL)?;
            Ok(wanted.len() <= most)
        })?;
        Ok(wanted.len() <= most)
    }
}
