// SPDX-License-Identifier: GPL-2.0

//! Rebuilding a region's tree while its blocks change owners.
//!
//! One [`Rebuild`] a region, behind a lock of the caller's that is taken inside the locks of the inodes:
//!
//! 1. It collects: the scan tells it of every mapping ([`Rebuild::update`] with [`Update::Add`]), live updates of what has
//!    been visited change what was collected.
//! 2. [`Rebuild::seal`], once the scan is complete, hands the collected records out, to be loaded ([`load`]) with no lock
//!    held. Updates gather behind it.
//! 3. Rounds of catching up: [`Rebuild::take`] what has gathered, [`apply`] it to the new tree. Each round takes less
//!    time than the one before while the tree takes updates faster than they come; [`Rebuild::is_close`] says when what
//!    is left is little.
//! 4. The caller stops the updates of the region, applies the rest, and makes the new tree the region's in the same
//!    transaction. That stop is as long as the rest, whatever the size of the tree.
//!
//! An update that cannot be kept spoils the rebuild; the caller drops it, and the old tree stays.

use super::{
    btree::{BTree, Root, Store},
    bulk::{Geometry, Loader, Sink},
    node::Tree,
    record::Rmap,
    shadow::Shadow,
    Error, Result,
};
use kernel::prelude::*;

/// A change of who owns what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Update {
    /// Blocks got this owner.
    Add(Rmap),
    /// Blocks lost this owner.
    Remove(Rmap),
}

/// How far a rebuild is.
enum Phase {
    Collecting(Shadow),
    /// What came after the collected records were handed out, oldest first.
    Following(KVVec<Update>),
}

/// What a region's new tree must hold.
pub(crate) struct Rebuild {
    phase: Phase,
    /// The first update that could not be kept.
    spoiled: Option<Error>,
}

/// Updates that may be left for the final stop.
const CLOSE: usize = 64;

impl Rebuild {
    /// Starts to collect, in up to `budget` bytes.
    pub(crate) fn new(budget: usize) -> Result<Rebuild> {
        Ok(Rebuild {
            phase: Phase::Collecting(Shadow::new(budget)?),
            spoiled: None,
        })
    }

    /// Takes in a change. A failure spoils the rebuild, and is the answer from then on.
    pub(crate) fn update(&mut self, update: Update) -> Result {
        if let Some(error) = self.spoiled {
            return Err(error);
        }
        let outcome = match &mut self.phase {
            Phase::Collecting(shadow) => match update {
                Update::Add(record) => shadow.add_owner(record),
                Update::Remove(record) => shadow.remove_owner(record),
            },
            // Inside somebody's handle, where jbd2 keeps allocations from coming back into the file system.
            Phase::Following(updates) => updates.push(update, GFP_KERNEL).map_err(Error::from),
        };
        self.spoiled = outcome.err();
        outcome
    }

    /// Hands out what was collected; updates gather from here on. The caller has seen the scan complete.
    ///
    /// Fails with what spoiled the rebuild, or with [`Error::Mismatch`] when it was sealed before.
    pub(crate) fn seal(&mut self) -> Result<Shadow> {
        if let Some(error) = self.spoiled {
            return Err(error);
        }
        match core::mem::replace(&mut self.phase, Phase::Following(KVVec::new())) {
            Phase::Collecting(shadow) => Ok(shadow),
            following => {
                self.phase = following;
                Err(Error::Mismatch("sealed already"))
            }
        }
    }

    /// Takes the updates that have gathered since the last time, oldest first.
    pub(crate) fn take(&mut self) -> Result<KVVec<Update>> {
        if let Some(error) = self.spoiled {
            return Err(error);
        }
        match &mut self.phase {
            Phase::Collecting(_) => Err(Error::Mismatch("not sealed")),
            Phase::Following(updates) => Ok(core::mem::replace(updates, KVVec::new())),
        }
    }

    /// Whether so little has gathered that updates may be stopped for it.
    pub(crate) fn is_close(&self) -> bool {
        matches!(&self.phase, Phase::Following(updates) if updates.len() <= CLOSE)
    }
}

/// Loads collected records into a new tree and answers with its root; `slack` percent of each node stay free.
pub(crate) fn load<S: Sink>(shadow: &mut Shadow, sink: &mut S, tree: Tree, slack: u32) -> Result<Root> {
    let geometry = Geometry::new::<Rmap>(sink.block_size(), shadow.count()?, slack)?;
    let mut loader = Loader::new(sink, tree, geometry)?;
    shadow.walk(&mut |record| loader.push(record).map(|()| true))?;
    loader.finish()
}

/// Applies updates to a tree, oldest first.
pub(crate) fn apply<S: Store>(tree: &mut BTree<'_, S, Rmap>, updates: &[Update]) -> Result {
    for update in updates {
        match update {
            Update::Add(record) => tree.add_owner(*record)?,
            Update::Remove(record) => tree.remove_owner(*record)?,
        }
    }
    Ok(())
}
