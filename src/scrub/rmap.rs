// SPDX-License-Identifier: GPL-2.0

//! Comparing a region's tree with what a scan collected, and putting a new one in place.
//!
//! **Comparing.** First the tree's own shape is checked, a leaf at a time. Tree and collection are both kept up by whoever changes an owner, under the region's lock. So a piece of
//! both that is compared under that lock must be equal, whatever happened before and will happen after, and the lock is
//! held for a piece at a time only.
//!
//! **Rebuilding.**
//! 1. The collection is sealed: from now on changes gather behind it.
//! 2. The tree file grows until it has room, and the new tree's blocks are claimed. The region's entry says from then on
//!    that blocks of other generations than its own may be there: after a crash they are found by that and freed.
//! 3. The collected records are loaded into the claimed blocks, past the journal, and flushed.
//! 4. What has gathered is applied to the new tree, in transactions, round after round, until little is left.
//! 5. With the region locked the rest is applied, and in the same transaction the region's entry leads to the new tree.
//!    This is the only time that writers have to wait, and it is bounded by the rest.
//!
//! The old tree's blocks are freed afterwards ([`super::run::reap`]).

use super::{run::Report, scan::Scan, Scrubber};
use crate::{
    engine::{
        btree::{BTree, Root},
        bulk::Geometry,
        rebuild::{apply, load, Rebuild, Update},
        record::Rmap,
        shadow::Shadow,
        Error as EngineError,
    },
    fs::Volume,
    kernel_glue::{Handle, NoReclaim},
    trees::{
        report,
        rmap::{reserve, RmapIndex},
        store::{change_credits, Nodes, Staged},
    },
};
use kernel::{
    prelude::*,
    sync::Mutex,
    time::{Instant, Monotonic},
};

/// Records compared while the region is locked.
const AT_ONCE: usize = 1024;
/// Percent of each new node that stays free.
const SLACK: u32 = 10;
/// Changes that may be left for the time that the region is locked.
const REST: u32 = 64;

/// Compares a region's tree with what was collected. Answers whether they are equal; what is not is logged.
pub(super) fn compare(
    index: &RmapIndex,
    scrubber: &Scrubber,
    scan: &Scan,
    region: u32,
    asked: bool,
) -> Result<bool> {
    let collection = scan.region(region).ok_or(EINVAL)?;
    let sb = index.file.super_block();
    let mut key = None;
    loop {
        scrubber.may_go_on(asked)?;
        let _no_reclaim = NoReclaim::new();
        let state = index.lock(region)?;
        match index.check_step(region, &state, key) {
            Ok(None) => break,
            Ok(next) => key = next,
            Err(EngineError::NoMemory) => return Err(ENOMEM),
            Err(error) => {
                report(sb, region, error);
                return Ok(false);
            }
        }
    }
    let mut from = 0;
    loop {
        scrubber.may_go_on(asked)?;
        scan.outcome()?;
        match compare_piece(index, collection, region, from)? {
            Piece::Equal(Some(next)) => from = next,
            Piece::Equal(None) => return Ok(true),
            Piece::Different(found, wanted) => {
                pr_err!(
                    "{}: rmap: region {region}: the tree has {found:?}, the inodes say {wanted:?}\n",
                    sb.name()
                );
                return Ok(false);
            }
            Piece::Unreadable => return Ok(false),
        }
    }
}

/// What comparing a piece found.
enum Piece {
    /// Equal; the block to go on from.
    Equal(Option<u32>),
    /// What the tree has, and what it should have.
    Different(Option<Rmap>, Option<Rmap>),
    /// The tree cannot be read there.
    Unreadable,
}

fn compare_piece(index: &RmapIndex, collection: &Mutex<Rebuild>, region: u32, from: u32) -> Result<Piece> {
    let sb = index.file.super_block();
    let _no_reclaim = NoReclaim::new();
    let mut wanted = KVVec::with_capacity(AT_ONCE, GFP_KERNEL)?;
    let state = index.lock(region)?;
    let mut rebuild = collection.lock();
    let mut next = None;
    let collected = rebuild.collected().map_err(|error| report(sb, region, error))?;
    collected
        .walk_from(from, &mut |record| {
            let last: Option<&Rmap> = wanted.last();
            // Records that start together stay together.
            if wanted.len() >= AT_ONCE && last.is_some_and(|last| last.start != record.start) {
                next = Some(record.start);
                return Ok(false);
            }
            wanted.push(*record, GFP_KERNEL)?;
            Ok(true)
        })
        .map_err(|error| report(sb, region, error))?;
    drop(rebuild);
    let mut count = 0;
    let mut odd = None;
    let end = next.map_or(u32::MAX, |next: u32| next - 1);
    let walked = index.with_tree(region, &state, |tree| {
        tree.overlapping(from, end, &mut |record| {
            if record.start < from {
                return Ok(true);
            }
            if wanted.get(count) != Some(record) {
                odd = Some(*record);
                return Ok(false);
            }
            count += 1;
            Ok(true)
        })
    });
    if let Err(error) = walked {
        report(sb, region, error);
        return Ok(Piece::Unreadable);
    }
    if odd.is_some() || count != wanted.len() {
        return Ok(Piece::Different(odd, wanted.get(count).copied()));
    }
    Ok(Piece::Equal(next))
}

/// A tree on its way into its place.
struct New<'a> {
    index: &'a RmapIndex,
    region: u32,
    generation: u32,
    root: Root,
}

impl New<'_> {
    /// Blocks of the journal that one change of it takes.
    fn credits(&self) -> u32 {
        change_credits(self.root.level) + 1
    }

    /// Applies changes to it, as part of the handle.
    fn apply(&mut self, handle: &Handle, updates: &[Update]) -> Result {
        let tree = self.index.tree(self.region, self.generation);
        let mut nodes = Nodes::new(&self.index.file, Some(handle), tree);
        let mut btree = BTree::open(&mut nodes, tree, self.root);
        let outcome = apply(&mut btree, updates);
        self.root = btree.root;
        outcome.map_err(|error| report(self.index.file.super_block(), self.region, error))
    }

    /// Applies any number of changes, in as many transactions as it takes.
    fn catch_up(&mut self, volume: &Volume, updates: &[Update]) -> Result {
        let mut left = updates;
        while !left.is_empty() {
            let room = volume.journal()?.room() / 4;
            let each = self.credits();
            let (now, later) = left.split_at(((room / each).max(1) as usize).min(left.len()));
            let _write = self.index.file.super_block().internal_write();
            let handle = volume.begin(each * now.len() as u32, 0)?;
            self.apply(&handle, now)?;
            handle.stop()?;
            left = later;
        }
        Ok(())
    }
}

/// Makes a new tree of what was collected for a region and puts it in place of the old one.
///
/// Fails, with the old tree in place, with `ENOSPC`, `ENOMEM`, `EIO`, or when it is canceled.
pub(super) fn rebuild(
    index: &RmapIndex,
    scrubber: &Scrubber,
    scan: &Scan,
    region: u32,
    asked: bool,
    out: &mut Report,
) -> Result {
    let sb = index.file.super_block();
    let volume = sb.volume()?;
    let collection = scan.region(region).ok_or(EINVAL)?;
    let refuse = |error| report(sb, region, error);

    let mut shadow: Shadow = {
        let _state = index.lock(region)?;
        let sealed = collection.lock().seal();
        sealed.map_err(refuse)?
    };
    let records = shadow.count().map_err(refuse)?;
    out.memory += shadow.bytes() as u64;
    out.records += records;
    let geometry =
        Geometry::new::<Rmap>(index.file.frame.block_size as usize, records, SLACK).map_err(refuse)?;
    let blocks = usize::try_from(geometry.blocks()).map_err(|_| EFBIG)?;
    let (in_use, _) = index.file.blocks();
    let wanted = u32::try_from(blocks).map_err(|_| EFBIG)?;
    index.file.grow(wanted.saturating_add(reserve(in_use)))?;
    scrubber.may_go_on(asked)?;

    let generation = {
        let _write = sb.internal_write();
        let handle = volume.begin(2, 0)?;
        let generation = index.file.next_generation(&handle)?;
        index.set_reap(&handle, region, true)?;
        handle.stop()?;
        generation
    };
    let claimed = index.file.claim(blocks, region, generation)?;
    let mut staged = Staged::new(&index.file, claimed).map_err(refuse)?;
    let root = load(&mut shadow, &mut staged, index.tree(region, generation), SLACK).map_err(refuse)?;
    staged.finish().map_err(refuse)?;
    drop(shadow);
    out.blocks += blocks as u64;

    let mut new = New {
        index,
        region,
        generation,
        root,
    };
    loop {
        scrubber.may_go_on(asked)?;
        scan.outcome()?;
        let close = collection.lock().is_close();
        if !close {
            let updates = collection.lock().take().map_err(refuse)?;
            new.catch_up(volume, &updates)?;
            continue;
        }
        let each = new.credits();
        let rest = (volume.journal()?.room() / 2 / each).clamp(1, REST);
        let write = sb.internal_write();
        let handle = volume.begin(rest * each + 2, 0)?;
        let begun = Instant::<Monotonic>::now();
        let mut state = index.lock(region)?;
        let updates = collection.lock().take().map_err(refuse)?;
        if updates.len() > rest as usize {
            drop(state);
            handle.stop()?;
            drop(write);
            new.catch_up(volume, &updates)?;
            continue;
        }
        new.apply(&handle, &updates)?;
        index.put_in_place(&handle, region, &mut state, generation, new.root)?;
        drop(state);
        out.note_stall(begun.elapsed());
        handle.stop()?;
        out.rebuilt += 1;
        return Ok(());
    }
}
