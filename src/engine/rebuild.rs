// SPDX-License-Identifier: GPL-2.0

//! Rebuilding a region's tree while its blocks change owners.
//!
//! There is one [`Rebuild`] per region, protected by a lock of the caller which nests inside the
//! inodes' locks:
//!
//! 1. It collects live updates of inodes that have been visited ([`Rebuild::update`]), while the
//!    scan's workers gather the records that they find ([`super::gather`]).
//! 2. After the scan, [`Rebuild::seal`] returns the shadow, which is filled with the gathered
//!    records ([`Shadow::fill`]) and loaded ([`load`]) with no lock held. Later updates are queued.
//! 3. Rounds of catching up: [`Rebuild::take`] returns the queued updates, and [`apply`] applies
//!    them to the new tree. [`Rebuild::is_close`] returns true when few are left.
//! 4. The caller stops the updates of the region, applies the rest, and installs the new tree in
//!    the same transaction. The duration of that stop depends on the rest, not on the size of the
//!    tree.
//!
//! Updates may arrive faster than they can be applied. A task that has made one therefore calls
//! [`Rebuild::lag`] and, after dropping its locks and its handle, waits for that many units of
//! time. If all tasks do so, the rounds shrink, starting with the updates that arrived while the
//! tree was loaded ([`Rebuild::begin_rounds`]), so that few rounds suffice whatever the write load.
//! Waiting is optional: tasks that do not wait may prolong the catch-up, or cause the delta to
//! exceed its budget.
//!
//! An update that cannot be recorded spoils the rebuild; the caller discards it, and the old tree
//! stays.
//!
//! [`Rebuild::update`] allocates memory with `GFP_KERNEL`, and is called under locks that
//! filesystem reclaim could take. The caller must prevent recursion: inside a jbd2 handle, jbd2
//! already does so; outside of one, as in a scan that holds an inode's lock, the caller opens a
//! `memalloc_nofs_save()` scope.

use super::{
    btree::{BTree, Root, Store},
    bulk::{Geometry, Loader, Sink},
    delta::Delta,
    node::Tree,
    record::Rmap,
    shadow::{Pool, Shadow},
    Error, Result,
};
use kernel::{prelude::*, sync::Arc};

pub(crate) use super::delta::Update;

/// The phase of a rebuild. There is at most one per region, so the size of the larger variant does
/// not matter.
#[allow(clippy::large_enum_variant)]
enum Phase {
    Collecting(Shadow),
    /// Updates since [`Rebuild::seal`] returned the collected records.
    Following(Delta),
}

/// The records that a region's new tree must hold.
pub(crate) struct Rebuild {
    phase: Phase,
    /// Maximum bytes of memory for pending updates.
    delta_budget: usize,
    /// The first error in recording an update.
    spoiled: Option<Error>,
}

impl Rebuild {
    /// Starts to collect updates without a scan, in up to `budget` bytes. Updates after
    /// [`Rebuild::seal`] may use a quarter of that in addition.
    #[allow(dead_code, reason = "tests use it")]
    pub(crate) fn new(budget: usize) -> Rebuild {
        Self::of(Shadow::new(budget), budget)
    }

    /// Starts to collect updates during a scan. Gathered records use memory from the pool
    /// `gathered`; updates may use up to `budget` bytes from the pool `changes`, and those after
    /// [`Rebuild::seal`] a quarter of that in addition.
    pub(crate) fn awaiting(budget: usize, gathered: Arc<dyn Pool>, changes: Arc<dyn Pool>) -> Rebuild {
        Self::of(Shadow::awaiting(budget, gathered, changes), budget)
    }

    fn of(shadow: Shadow, budget: usize) -> Rebuild {
        Rebuild {
            phase: Phase::Collecting(shadow),
            delta_budget: budget / 4,
            spoiled: None,
        }
    }

    /// Sets the delta's budget in bytes. Must be called before [`Rebuild::seal`].
    #[allow(dead_code, reason = "tests use it")]
    pub(crate) fn set_delta_budget(&mut self, budget: usize) {
        self.delta_budget = budget;
    }

    /// Records an update. A failure spoils the rebuild, and every later call returns the same
    /// error.
    pub(crate) fn update(&mut self, update: Update) -> Result {
        if let Some(error) = self.spoiled {
            return Err(error);
        }
        let outcome = match &mut self.phase {
            Phase::Collecting(shadow) => shadow.apply(&update),
            Phase::Following(delta) => delta.push(update),
        };
        self.spoiled = outcome.err();
        outcome
    }

    /// Returns the shadow; later updates are queued. The scan must be complete.
    ///
    /// Fails with the error that spoiled the rebuild, or with [`Error::Mismatch`] if it was sealed
    /// before.
    pub(crate) fn seal(&mut self) -> Result<Shadow> {
        if let Some(error) = self.spoiled {
            return Err(error);
        }
        match core::mem::replace(&mut self.phase, Phase::Following(Delta::new(self.delta_budget))) {
            Phase::Collecting(shadow) => Ok(shadow),
            following => {
                self.phase = following;
                Err(Error::Mismatch("sealed already"))
            }
        }
    }

    /// Takes the updates queued since the last call, oldest first.
    pub(crate) fn take(&mut self) -> Result<KVVec<Update>> {
        if let Some(error) = self.spoiled {
            return Err(error);
        }
        match &mut self.phase {
            Phase::Collecting(_) => Err(Error::Mismatch("not sealed")),
            Phase::Following(delta) => Ok(delta.take()),
        }
    }

    /// Announces that a tree is about to be loaded: updates queued meanwhile do not count as
    /// lag.
    pub(crate) fn begin_rounds(&mut self) {
        if let Phase::Following(delta) = &mut self.phase {
            delta.begin_rounds();
        }
    }

    /// Returns true if few enough updates are left for writers to be stopped while they are
    /// applied.
    pub(crate) fn is_close(&self) -> bool {
        matches!(&self.phase, Phase::Following(delta) if delta.is_close())
    }

    /// Returns how long a task that has made an update should wait, in units chosen by the caller;
    /// see [`Delta::lag`].
    pub(crate) fn lag(&self) -> u32 {
        match &self.phase {
            Phase::Following(delta) if self.spoiled.is_none() => delta.lag(),
            _ => 0,
        }
    }
}

/// Loads the collected records into a new tree and returns its root. `slack` percent of each node
/// stay free.
pub(crate) fn load<S: Sink>(shadow: &mut Shadow, sink: &mut S, tree: Tree, slack: u32) -> Result<Root> {
    let geometry = Geometry::new::<Rmap>(sink.block_size(), shadow.count()?, slack)?;
    let mut loader = Loader::new(sink, tree, geometry)?;
    shadow.pieces(None, &mut |piece| {
        loader.push_stored::<Rmap>(piece.as_flattened())?;
        Ok(true)
    })?;
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
