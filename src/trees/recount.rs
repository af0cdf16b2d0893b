// SPDX-License-Identifier: GPL-2.0

//! Recounting a region: derives a new tree of counts from its reverse map, in parts
//! ([`crate::engine::recount`]). Each part is a transaction; the last one installs the new tree.

use super::{
    cost,
    forest::Forest,
    index::{has_counts, reserve, RmapIndex},
    region::{LockedRegion, Recount},
};
use crate::{
    engine::{
        self,
        recount::{part, Part},
        refcount::Count,
    },
    format::tree_file::Region,
};
use kernel::prelude::*;

/// Number of reverse map records per part.
const AT_ONCE: usize = 512;
/// Number of file blocks, beyond the reserve, that must be free before a part is counted.
pub(crate) const BLOCKS_FOR_PART: u32 = 128;

/// Makes room for a part, as much as there is on a full volume.
fn make_room(counts: &Forest<Count>) -> Result {
    let (blocks, _) = counts.file.blocks();
    match counts.file.grow(reserve(blocks).saturating_add(BLOCKS_FOR_PART)) {
        Err(ENOSPC) if counts.file.blocks().1 > 0 => Ok(()),
        done => done,
    }
}

impl RmapIndex {
    /// Derives the counts from block `from` on, in a region whose reverse map is good.
    pub(crate) fn recounted(&self, region: &LockedRegion<'_>, from: u32) -> engine::Result<Part> {
        self.rmap.look(region, |tree| part(tree, from, AT_ONCE))
    }

    /// Starts recounting a region into a new tree, and returns its generation.
    ///
    /// Must not be called with a handle or a region lock held.
    pub(crate) fn begin_recount(&self, number: u32) -> Result<u32> {
        let counts = self.counts().ok_or(EINVAL)?;
        make_room(counts)?;
        let _write = self.super_block().internal_write();
        let handle = self.super_block().volume()?.begin_internal(cost::EMPTY_TREE, 0)?;
        let mut region = self.lock(number)?;
        let entry = Region {
            reap: true,
            ..region.refcount
        };
        counts.store_entry(&handle, &mut region, entry)?;
        let (generation, root) = counts.create_tree(&handle, number)?;
        region.recount = Some(Recount {
            generation,
            root,
            next: 0,
        });
        drop(region);
        handle.stop()?;
        Ok(generation)
    }

    /// Abandons a recount that was not completed.
    pub(crate) fn end_recount(&self, region: u32) {
        if let Ok(mut region) = self.lock(region) {
            region.recount = None;
        }
    }

    /// Recounts the next part of a region into the tree of this generation, and installs the tree
    /// with the last part. Returns the number of records in the part, and whether it was the last
    /// one.
    ///
    /// # Errors
    ///
    /// `EAGAIN` when the region's reverse map became stale or the new tree could not be updated
    /// meanwhile; `ENOSPC`, `ENOMEM`, `EIO`. Must not be called with a handle or a region lock
    /// held.
    pub(crate) fn recount_part(&self, number: u32, generation: u32) -> Result<(u64, bool)> {
        let counts = self.counts().ok_or(EINVAL)?;
        let volume = self.super_block().volume()?;
        make_room(counts)?;
        let _write = self.super_block().internal_write();
        let level = counts.level() + 1;
        // Each owner starts and ends once, and there are two kinds of records.
        let most = cost::count_change_stored(level, 2 * AT_ONCE as u32);
        let handle = volume.begin_internal(most.min(volume.journal()?.room() / 2), 0)?;
        let mut region = self.lock(number)?;
        let (from, root) = match &region.recount {
            Some(recount) if recount.generation == generation && region.rmap.good => {
                (recount.next, recount.root)
            }
            _ => return Err(EAGAIN),
        };
        let part = match self.recounted(&region, from) {
            Ok(part) => part,
            Err(engine::Error::NoMemory) => return Err(ENOMEM),
            Err(error) => {
                self.rmap.report(number, error);
                self.mark_rmap_stale(&handle, &mut region)?;
                return Err(EAGAIN);
            }
        };
        let records = part.counts.len() as u64;
        if !cost::ensure(&handle, cost::count_change_stored(level, records as u32)) {
            return Err(ENOSPC);
        }
        let id = counts.file.tree(number, generation);
        let (root, outcome, _) = counts.change_tree(&handle, id, root, |tree| {
            part.counts.iter().try_for_each(|count| tree.append(count))
        });
        region.recount = Some(Recount {
            generation,
            root,
            next: part.end(),
        });
        outcome.map_err(|error| counts.report(number, error))?;
        let done = part.next.is_none();
        if done {
            counts.install(&handle, &mut region, generation, root, false)?;
            region.recount = None;
            let shares = has_counts(counts, &region);
            self.note_sharing(&mut region, shares);
        }
        drop(region);
        handle.stop()?;
        Ok((records, done))
    }
}
