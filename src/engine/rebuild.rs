// SPDX-License-Identifier: GPL-2.0

//! Rebuilding a region's tree while its blocks change owners.
//!
//! One [`Rebuild`] a region, behind a lock of the caller's that is taken inside the locks of the inodes:
//!
//! 1. It collects: the scan's workers append every mapping, each on its own ([`Rebuild::appender`]), or tell it of each
//!    ([`Rebuild::update`] with [`Update::Add`]); live updates of what has been visited change what was collected.
//! 2. [`Rebuild::seal`], once the scan is complete, hands the collected records out, to be loaded ([`load`]) with no lock
//!    held. Updates gather behind it.
//! 3. Rounds of catching up: [`Rebuild::take`] what has gathered, [`apply`] it to the new tree. [`Rebuild::is_close`] says
//!    when what is left is little.
//! 4. The caller stops the updates of the region, applies the rest, and makes the new tree the region's in the same
//!    transaction. That stop is as long as the rest, whatever the size of the tree.
//!
//! Updates may come faster than the tree takes them. Whoever made one asks for [`Rebuild::lag`], and when it has dropped its
//! locks and its handle waits a little, as many times as the answer says. While all do so the rounds shrink, the first of
//! them as large as what came while the tree was loaded ([`Rebuild::begin_rounds`]), so that there are few rounds however
//! hard the volume is written. Waiting is optional: tasks that do not wait may make the catching up take longer, or exceed the budget
//! of what may gather.
//!
//! An update that cannot be kept spoils the rebuild; the caller drops it, and the old tree stays.
//!
//! [`Rebuild::update`] allocates, with the flags of an allocation that may wait and may come back into the file system,
//! and is called under locks that this must not happen under. The caller sees to it: within a jbd2 handle jbd2 has done
//! so; outside of one, as in a scan that holds an inode's lock, it opens a scope of its own (`memalloc_nofs_save`).

use super::{
    append::Appender,
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

/// How far a rebuild is. There is one for each region at most: what its larger phase takes does not matter.
#[allow(clippy::large_enum_variant)]
enum Phase {
    Collecting(Shadow),
    /// Changes since the collected records were handed out.
    Following(Delta),
}

/// The records that a region's new tree must hold.
pub(crate) struct Rebuild {
    phase: Phase,
    /// Bytes that updates may take while they wait.
    delta_budget: usize,
    /// The first update that could not be kept.
    spoiled: Option<Error>,
}

impl Rebuild {
    /// Starts to collect, in up to `budget` bytes. Later changes may take a quarter as many besides.
    #[allow(dead_code, reason = "tests use it")]
    pub(crate) fn new(budget: usize) -> Rebuild {
        Self::with_pool(budget, None)
    }

    /// Starts to collect, with a pool for the records that the scan finds.
    pub(crate) fn with_pool(budget: usize, pool: Option<Arc<dyn Pool>>) -> Rebuild {
        Rebuild {
            phase: Phase::Collecting(Shadow::with_pool(budget, pool)),
            delta_budget: budget / 4,
            spoiled: None,
        }
    }

    /// Lets what gathers after [`Rebuild::seal`], which has not been called yet, take up to `budget` bytes.
    #[allow(dead_code, reason = "tests use it")]
    pub(crate) fn set_delta_budget(&mut self, budget: usize) {
        self.delta_budget = budget;
    }

    /// Takes in a change. A failure spoils the rebuild, and is the answer from then on.
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

    /// The shadow of the records collected so far.
    ///
    /// Fails with what spoiled the rebuild, or with [`Error::Mismatch`] when it was sealed.
    fn collected(&mut self) -> Result<&mut Shadow> {
        match (&self.spoiled, &mut self.phase) {
            (Some(error), _) => Err(*error),
            (None, Phase::Collecting(shadow)) => Ok(shadow),
            (None, Phase::Following(_)) => Err(Error::Mismatch("sealed already")),
        }
    }

    /// Hands out an appender, by which a worker of the scan collects with no lock of ours, instead of telling each mapping
    /// to [`Rebuild::update`]. It is handed over when it is full ([`Rebuild::absorb`]) and given back at the end of the
    /// scan ([`Rebuild::recall`], [`Rebuild::close`]), all outside of the inodes' locks if need be.
    pub(crate) fn appender(&mut self) -> Result<Appender> {
        self.collected()?.appender()
    }

    /// Gives an appender back what it has handed over, to be sorted ([`Appender::finish`]) with no lock held.
    pub(crate) fn recall(&mut self, appender: &mut Appender) -> Result {
        let outcome = self.collected()?.recall(appender);
        self.spoiled = outcome.err();
        outcome
    }

    /// Takes over what an appender has gathered. A failure spoils the rebuild.
    pub(crate) fn absorb(&mut self, appender: &mut Appender) -> Result {
        let outcome = self.collected()?.absorb(appender);
        self.spoiled = outcome.err();
        outcome
    }

    /// Takes an appender back, with what it has gathered. A failure spoils the rebuild.
    pub(crate) fn close(&mut self, appender: Appender) -> Result {
        let outcome = self.collected()?.close(appender);
        self.spoiled = outcome.err();
        outcome
    }

    /// Hands out what was collected; updates gather from here on. The caller has seen the scan complete.
    ///
    /// Fails with what spoiled the rebuild, or with [`Error::Mismatch`] when it was sealed before, or an appender is
    /// still out.
    pub(crate) fn seal(&mut self) -> Result<Shadow> {
        if self.collected()?.is_open() {
            return Err(Error::Mismatch("an appender is still out"));
        }
        match core::mem::replace(&mut self.phase, Phase::Following(Delta::new(self.delta_budget))) {
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
            Phase::Following(delta) => Ok(delta.take()),
        }
    }

    /// Says that a tree is about to be loaded: what gathers meanwhile is no sign that anybody is too fast.
    pub(crate) fn begin_rounds(&mut self) {
        if let Phase::Following(delta) = &mut self.phase {
            delta.begin_rounds();
        }
    }

    /// Whether so little has gathered that updates may be stopped for it.
    pub(crate) fn is_close(&self) -> bool {
        matches!(&self.phase, Phase::Following(delta) if delta.is_close())
    }

    /// Returns how long a task that has made an update should wait, in units of its own choice; see [`Delta::lag`].
    pub(crate) fn lag(&self) -> u32 {
        match &self.phase {
            Phase::Following(delta) if self.spoiled.is_none() => delta.lag(),
            _ => 0,
        }
    }
}

/// Loads collected records into a new tree and returns its root; `slack` percent of each node stay free.
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
