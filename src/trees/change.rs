// SPDX-License-Identifier: GPL-2.0

//! Changing the owners of blocks in one region, and the reference counts accordingly.

use super::{
    cost,
    forest::{root_of, Forest},
    index::{has_counts, RmapIndex},
    region::LockedRegion,
};
use crate::{
    engine::{
        self,
        btree::Root,
        node::Tree as TreeId,
        rebuild::{apply, Update},
        recount::counted_part,
        refcount::{Count, Turn},
    },
    format::tree_file::Region,
    kernel_glue::{Handle, Hooks},
};
use kernel::{prelude::*, sync::atomic::Relaxed};

impl RmapIndex {
    /// Changes owners within one region and, if there is a `turn`, the counts.
    pub(super) fn change(
        &self,
        handle: &Handle,
        region: u32,
        updates: &[Update],
        turn: Option<Turn>,
    ) -> Result {
        let mut region = self.lock(region)?;
        self.change_owners(handle, &mut region, updates)?;
        match turn {
            Some(turn) => self.change_counts(handle, &mut region, &turn),
            None => Ok(()),
        }
    }

    /// Changes the reverse map of a region and informs its watcher. A tree that cannot be changed,
    /// or whose new root cannot be stored, becomes stale.
    ///
    /// # Errors
    ///
    /// `EIO` or `EROFS` when the stale state cannot be stored either; the journal is then aborted.
    pub(super) fn change_owners(
        &self,
        handle: &Handle,
        region: &mut LockedRegion<'_>,
        updates: &[Update],
    ) -> Result {
        if Hooks::are_on() {
            if let Some(watcher) = &region.watcher {
                for &update in updates {
                    let lag = watcher.changed(region.number(), update);
                    if lag > 0 {
                        self.lag.store(lag, Relaxed);
                    }
                }
            }
        }
        let entry = region.rmap;
        if !entry.good {
            return Ok(());
        }
        let rmap = &self.rmap;
        if !cost::ensure(handle, cost::owner_changes(entry.level, updates.len() as u32)) {
            pr_warn!(
                "{}: rmap: region {}: no room in the transaction\n",
                self.super_block().name(),
                region.number()
            );
            return self.mark_rmap_stale(handle, region);
        }
        let id = rmap.file.tree(region.number(), entry.generation);
        let (root, outcome, taken) =
            rmap.change_tree(handle, id, root_of(&entry), |tree| apply(tree, updates));
        if let Err(error) = outcome {
            rmap.report(region.number(), error);
            return self.mark_rmap_stale(handle, region);
        }
        if taken {
            self.keep_reserve(&rmap.file);
        }
        match moved(&entry, root) {
            Some(new) if rmap.store_entry(handle, region, new).is_err() => {
                self.mark_rmap_stale(handle, region)
            }
            _ => Ok(()),
        }
    }

    /// Changes the counts of a region, and also those of a recount in progress.
    ///
    /// # Errors
    ///
    /// As for [`RmapIndex::change_owners`].
    pub(super) fn change_counts(
        &self,
        handle: &Handle,
        region: &mut LockedRegion<'_>,
        turn: &Turn,
    ) -> Result {
        let Some(counts) = self.counts() else {
            return Ok(());
        };
        let number = region.number();
        if let Some(recount) = &mut region.recount {
            if let Some(part) = counted_part(turn, recount.next) {
                let id = counts.file.tree(number, recount.generation);
                match self.apply_turn(handle, counts, id, recount.root, &part) {
                    Ok(root) => recount.root = root,
                    Err(error) => {
                        counts.report(number, error);
                        region.recount = None;
                    }
                }
            }
        }
        let entry = region.refcount;
        if !entry.good {
            return Ok(());
        }
        let id = counts.file.tree(number, entry.generation);
        let stored = match self.apply_turn(handle, counts, id, root_of(&entry), turn) {
            Ok(root) => match moved(&entry, root) {
                Some(new) => counts.store_entry(handle, region, new).is_ok(),
                None => true,
            },
            Err(error) => {
                counts.report(number, error);
                false
            }
        };
        if !stored {
            return self.mark_counts_stale(handle, region);
        }
        if turn.up || region.shares {
            let shares = turn.up || has_counts(counts, region);
            let last = region.shares && !shares;
            self.note_sharing(region, shares);
            if last && self.sharing_regions() == 0 {
                self.keeper.kick();
            }
        }
        Ok(())
    }

    /// Applies a change to a tree of counts; returns its root.
    fn apply_turn(
        &self,
        handle: &Handle,
        counts: &Forest<Count>,
        id: TreeId,
        root: Root,
        turn: &Turn,
    ) -> engine::Result<Root> {
        let (root, outcome, taken) = counts.change_tree(handle, id, root, |tree| {
            let wanted = |records| cost::count_change_stored(root.level, records);
            // Each record concerned covers at least one of the blocks, or is one of the two
            // adjacent records.
            if handle.blocks_left() < wanted(turn.len.saturating_add(2)) {
                let last = turn.start.saturating_add(turn.len);
                let records = tree.counts_between(turn.start.saturating_sub(1), last)?;
                if !cost::ensure(handle, wanted(records)) {
                    return Err(engine::Error::Mismatch("no room in the transaction"));
                }
            }
            tree.turn(turn)
        });
        if taken {
            self.keep_reserve(&counts.file);
        }
        outcome.map(|()| root)
    }
}

/// Returns the entry for a tree whose root has moved; `None` if it has not.
fn moved(entry: &Region, root: Root) -> Option<Region> {
    (root != root_of(entry)).then_some(Region {
        root: root.block,
        level: root.level,
        ..*entry
    })
}
