// SPDX-License-Identifier: GPL-2.0

//! A shadow: the records that a region's new tree must hold, in order, in a few bytes each.
//!
//! While a scan collects these records, writers keep adding and removing owners anywhere. A shadow
//! therefore has two parts. The records that the scan finds are appended, sorted once, and then
//! immutable ([`super::base`]), at 16 bytes each. Changes are kept in the engine's own B+tree, in
//! memory pages without checksums. The contents of the shadow are the union of both parts, merged
//! on the fly when they are read in order.
//!
//! A tree alone would be sufficient, but takes 6 to 11 times as long for the records of a scan
//! ([`super::append`]), under a lock that all workers need, and with random insertion a fifth of
//! each node stays empty. Sorted arrays alone do not support changes.
//!
//! The records of a scan pass neither through the tree nor through the lock that protects it. Each
//! worker fills its own [`Appender`] ([`Shadow::appender`]) and from time to time hands its chunks
//! to the shadow ([`Shadow::absorb`]), which moves only pointers. At the end it takes them all back
//! to sort them without a lock ([`Shadow::recall`]), and returns them ([`Shadow::close`]). Owners
//! added meanwhile are kept in the tree. Removals of records that are not in that tree are kept in
//! a second tree: the records must have been appended, since updates are sent only for visited
//! inodes.
//!
//! The records can be read once all appenders are closed. The first reader merges the collected
//! records and applies the pending changes. Only then are contradictions in earlier changes
//! detected: a removed owner that never existed, or one added twice.
//!
//! After the merge, or if there never was an appender, errors are detected at once. A change first
//! *lifts* the base records that it touches or continues into the tree, so that the rest of the
//! base is independent of the tree.
//!
//! A byte budget limits all of this. Appended records that exceed it go to a file in sorted runs,
//! if there is one ([`Pool`]); everything else that exceeds it fails with [`Error::NoMemory`] and
//! leaves the shadow unchanged. The one exception is a removal that touches both appended and added
//! records: it may be half done when it fails, and every later call then returns that error.

use super::{
    append::{pack, unpack, Appender, Gathered, Lane, Packed, CHUNK_BYTES},
    base::{Base, Place, Run},
    btree::{BTree, Root, Store},
    delta::Update,
    node::Tree,
    record::{Kind, Record, Rmap, RmapKey},
    Error, Result,
};
use core::cell::Cell;
use kernel::{prelude::*, sync::Arc};

pub(crate) use super::base::Pool;

/// Bytes of a page.
const PAGE: usize = 4096;
/// Minimum number of records in a run in the file.
const RUN: usize = 16 << 10;
/// Number of records fetched from the tree at a time while it is merged with the base.
const QUEUE: usize = 128;

/// Pages in memory.
struct Pages {
    /// Indexed by number, from 1 on; `None` if free.
    pages: KVVec<Option<KVec<u8>>>,
    free: KVVec<u32>,
    /// Bytes that other users take from the same budget.
    beside: usize,
    budget: usize,
}

impl Pages {
    fn bytes(&self) -> usize {
        let held = self.pages.len() - self.free.len();
        let lists = self.pages.capacity() * size_of::<Option<KVec<u8>>>() + self.free.capacity() * 4;
        held * PAGE + lists + self.beside
    }

    fn page(&mut self, block: u32) -> Result<&mut KVec<u8>> {
        let index = (block as usize).wrapping_sub(1);
        self.pages
            .get_mut(index)
            .and_then(Option::as_mut)
            .ok_or(Error::Io)
    }
}

impl Store for Pages {
    type Read<'a> = &'a [u8];
    const SEALED: bool = false;

    fn read(&self, block: u32) -> Result<&[u8]> {
        let index = (block as usize).wrapping_sub(1);
        self.pages.get(index).and_then(Option::as_deref).ok_or(Error::Io)
    }

    fn modify(&mut self, block: u32, change: &mut dyn FnMut(&mut [u8])) -> Result {
        change(self.page(block)?);
        Ok(())
    }

    fn modify_pair(&mut self, blocks: [u32; 2], change: &mut dyn FnMut(&mut [u8], &mut [u8])) -> Result {
        let mut first = core::mem::take(self.page(blocks[0])?);
        let done = self.page(blocks[1]).map(|second| change(&mut first, second));
        *self.page(blocks[0])? = first;
        done
    }

    fn alloc(&mut self) -> Result<u32> {
        if self.bytes() + PAGE > self.budget {
            return Err(Error::NoMemory);
        }
        let page = KVec::from_elem(0, PAGE, GFP_KERNEL)?;
        if let Some(block) = self.free.pop() {
            if let Some(place) = self.pages.get_mut((block as usize).wrapping_sub(1)) {
                *place = Some(page);
            }
            return Ok(block);
        }
        // Reserve an entry in the free list, so that freeing a page never allocates.
        self.free
            .reserve(self.pages.len() + 1 - self.free.len(), GFP_KERNEL)?;
        self.pages.push(Some(page), GFP_KERNEL)?;
        u32::try_from(self.pages.len()).map_err(|_| Error::NoSpace)
    }

    fn free(&mut self, block: u32) -> Result {
        let index = (block as usize).wrapping_sub(1);
        let page = self.pages.get_mut(index).ok_or(Error::Io)?;
        if page.take().is_none() {
            return Err(Error::Io);
        }
        self.free.push(block, GFP_KERNEL)?;
        Ok(())
    }

    fn block_size(&self) -> usize {
        PAGE
    }
}

/// The records that a region's new tree must hold.
pub(crate) struct Shadow {
    pages: Pages,
    /// The tree of added records; of all records if nothing was appended. An empty shadow has no
    /// pages.
    root: Option<Root>,
    /// Number of records in that tree.
    records: u64,
    /// Appended records not yet merged: those handed over by each open appender,
    open: KVVec<Gathered>,
    /// those of closed appenders,
    lanes: KVVec<Lane>,
    /// and those in the file.
    runs: KVVec<Run>,
    /// Appended records after the merge.
    base: Base,
    pool: Option<Arc<dyn Pool>>,
    /// The tree of removed records that must have been appended.
    gone: Option<Root>,
    /// Number of open appenders.
    appenders: usize,
    spoiled: Option<Error>,
}

/// Identity of the in-memory trees. They are never written, so it need not be unique.
const TREE: Tree = Tree {
    seed: 0,
    region: 0,
    generation: 0,
};

impl Shadow {
    /// Returns an empty shadow that may use up to `budget` bytes.
    #[allow(dead_code, reason = "tests use it")]
    pub(crate) fn new(budget: usize) -> Shadow {
        Self::with_pool(budget, None)
    }

    /// Returns an empty shadow whose appended records also take memory from `pool`, and go to its
    /// file when they do not fit.
    pub(crate) fn with_pool(budget: usize, pool: Option<Arc<dyn Pool>>) -> Shadow {
        let pages = Pages {
            pages: KVVec::new(),
            free: KVVec::new(),
            beside: 0,
            budget,
        };
        Shadow {
            pages,
            root: None,
            records: 0,
            open: KVVec::new(),
            lanes: KVVec::new(),
            runs: KVVec::new(),
            base: Base::new(pool.clone()),
            pool,
            gone: None,
            appenders: 0,
            spoiled: None,
        }
    }

    /// Calls `change` with the tree at `root`, or with a new one.
    fn change_at(
        &mut self,
        root: Option<Root>,
        change: impl FnOnce(&mut BTree<'_, Pages, Rmap>) -> Result,
    ) -> Result<(Root, i64, Result)> {
        let mut tree = match root {
            Some(root) => BTree::open(&mut self.pages, TREE, root),
            None => BTree::create(&mut self.pages, TREE)?,
        };
        let outcome = change(&mut tree);
        Ok((tree.root, tree.gained, outcome))
    }

    fn change(&mut self, change: impl FnOnce(&mut BTree<'_, Pages, Rmap>) -> Result) -> Result {
        let (root, gained, outcome) = self.change_at(self.root, change)?;
        self.root = Some(root);
        self.records = self.records.saturating_add_signed(gained);
        outcome
    }

    /// Applies a change of an owner.
    pub(crate) fn apply(&mut self, update: &Update) -> Result {
        match update {
            Update::Add(record) => self.add_owner(*record),
            Update::Remove(record) => self.remove_owner(*record),
        }
    }

    fn sound(&self) -> Result {
        self.spoiled.map_or(Ok(()), Err)
    }

    /// Returns true once all appended records are merged.
    fn is_settled(&self) -> bool {
        !self.is_open() && self.gone.is_none() && self.lanes.is_empty() && self.runs.is_empty()
    }

    /// Adds an owner; see [`BTree::add_owner`].
    pub(crate) fn add_owner(&mut self, record: Rmap) -> Result {
        self.sound()?;
        if self.base.len() > 0 {
            // At most two records are touched: the one that it continues, and the one that
            // continues it.
            let mut touched = [None; 2];
            let (first, last) = (record.start.saturating_sub(1), record.last().saturating_add(1));
            self.base.overlapping(first, last, &mut |place, other| {
                if other.clashes(&record) {
                    return Err(Error::Mismatch("the owner has these blocks already"));
                }
                if other.continues(&record) || record.continues(other) {
                    if let Some(free) = touched.iter_mut().find(|touched| touched.is_none()) {
                        *free = Some((place, *other));
                    }
                }
                Ok(())
            })?;
            for (place, other) in touched.into_iter().flatten() {
                self.lift(place, other)?;
            }
        }
        self.change(|tree| tree.add_owner(record))
    }

    /// Moves a base record to the tree.
    fn lift(&mut self, place: Place, record: Rmap) -> Result {
        self.change(|tree| tree.insert(&record))?;
        let hidden = self.base.hide(place);
        // If hiding fails, the record exists twice.
        self.spoiled = hidden.err();
        hidden
    }

    /// Removes an owner; see [`BTree::remove_owner`].
    pub(crate) fn remove_owner(&mut self, part: Rmap) -> Result {
        self.sound()?;
        if self.is_settled() {
            return self.remove_settled(part);
        }
        let outcome = self.remove_around(part);
        self.spoiled = outcome.err();
        outcome
    }

    fn remove_settled(&mut self, part: Rmap) -> Result {
        if self.base.len() > 0 {
            let mut whole = None;
            self.base
                .overlapping(part.start, part.start, &mut |place, other| {
                    if other.covers(&part) {
                        whole = Some((place, *other));
                    }
                    Ok(())
                })?;
            if let Some((place, whole)) = whole {
                self.lift(place, whole)?;
            }
        }
        self.change(|tree| tree.remove_owner(part))
    }

    /// Removes an owner before the merge: first from the tree, as far as it was added there, and
    /// the rest from the appended records.
    fn remove_around(&mut self, part: Rmap) -> Result {
        let mut rest = Some(part);
        while let Some(left) = rest.take() {
            let Some(added) = self.added(&left)? else {
                return self.remove_appended(left);
            };
            let (before, after) = left.without(&added);
            if let Some(before) = before {
                self.remove_appended(before)?;
            }
            self.change(|tree| tree.remove_owner(added))?;
            rest = after;
        }
        Ok(())
    }

    /// Returns the first part of `left` that is in the tree.
    fn added(&mut self, left: &Rmap) -> Result<Option<Rmap>> {
        let Some(root) = self.root else {
            return Ok(None);
        };
        let mut found = None;
        let tree = BTree::<_, Rmap>::open(&mut self.pages, TREE, root);
        tree.overlapping(left.first(), left.last(), &mut |record| {
            if is_of(record, left) {
                found = Some(*record);
            }
            Ok(found.is_none())
        })?;
        Ok(found.map(|record| {
            let start = record.start.max(left.start);
            let skip = start - left.start;
            Rmap {
                start,
                len: record.last().min(left.last()) - start + 1,
                offset: match left.kind {
                    Kind::Data => left.offset + skip,
                    _ => left.offset,
                },
                ..*left
            }
        }))
    }

    /// Records the removal of an appended record.
    fn remove_appended(&mut self, part: Rmap) -> Result {
        let (gone, _, outcome) = self.change_at(self.gone, |tree| tree.add_owner(part))?;
        self.gone = Some(gone);
        outcome
    }

    /// Opens an appender. It must be returned to [`Shadow::close`].
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when the records of earlier appenders have already been merged.
    pub(crate) fn appender(&mut self) -> Result<Appender> {
        if self.base.len() > 0 {
            return Err(Error::Mismatch("appended after the merge"));
        }
        self.open.push(Gathered::new(), GFP_KERNEL)?;
        self.appenders += 1;
        Ok(Appender::new(self.open.len() - 1))
    }

    /// Takes over an appender's records if they fill at least two chunks. If memory is short, all
    /// records of that appender are moved to the file.
    pub(crate) fn absorb(&mut self, appender: &mut Appender) -> Result {
        self.sound()?;
        let outcome = self.take_over(appender);
        self.spoiled = outcome.err();
        outcome
    }

    fn take_over(&mut self, appender: &mut Appender) -> Result {
        let mut gathered = self.handed_over(appender.number);
        let outcome = gathered.take_whole(&mut appender.gathered);
        let outcome = outcome.and_then(|()| self.charge(&mut gathered, RUN));
        if let Some(place) = self.open.get_mut(appender.number) {
            *place = gathered;
        }
        outcome
    }

    /// Takes the records that an appender has handed over.
    fn handed_over(&mut self, number: usize) -> Gathered {
        let place = self.open.get_mut(number);
        place.map_or(Gathered::new(), |place| {
            core::mem::replace(place, Gathered::new())
        })
    }

    /// Returns to an appender the records that it has handed over, unless they are in the file, to
    /// be sorted ([`Appender::finish`]) without holding a lock. Nothing may be appended afterwards.
    pub(crate) fn recall(&mut self, appender: &mut Appender) -> Result {
        self.sound()?;
        let mut gathered = self.handed_over(appender.number);
        let outcome = gathered.take_all(&mut appender.gathered);
        appender.gathered = gathered;
        self.spoiled = outcome.err();
        outcome
    }

    /// Closes an appender and takes over its records. [`Shadow::recall`] and [`Appender::finish`]
    /// should be called before, since sorting takes time and needs no lock.
    pub(crate) fn close(&mut self, mut appender: Appender) -> Result {
        self.recall(&mut appender)?;
        let outcome = self.take_back(appender);
        self.appenders = self.appenders.saturating_sub(1);
        self.spoiled = outcome.err();
        outcome
    }

    fn take_back(&mut self, mut appender: Appender) -> Result {
        appender.finish()?;
        let gathered = core::mem::replace(&mut appender.gathered, Gathered::new());
        self.put_by(gathered)
    }

    /// Stores an appender's records for the merge.
    fn put_by(&mut self, mut gathered: Gathered) -> Result {
        self.charge(&mut gathered, 1)?;
        for lane in gathered.into_lanes() {
            self.lanes.push(lane, GFP_KERNEL)?;
        }
        Ok(())
    }

    /// Charges an appender's records to the budget. If there is no room, they go to the file,
    /// provided that there are at least `worth` records; fewer may exceed the budget slightly.
    fn charge(&mut self, gathered: &mut Gathered, worth: usize) -> Result {
        let bytes = gathered.bytes();
        if self.take_room(bytes - gathered.charged) {
            gathered.charged = bytes;
            return Ok(());
        }
        let pool = self.pool.clone().ok_or(Error::NoMemory)?;
        if gathered.len() < worth {
            return Ok(());
        }
        let charged = gathered.charged;
        for lane in core::mem::replace(gathered, Gathered::new()).into_lanes() {
            self.runs.push(Run::write(lane, &*pool)?, GFP_KERNEL)?;
        }
        self.give_room(charged);
        Ok(())
    }

    /// Takes bytes from the budget and from the pool; returns false if they are not available.
    fn take_room(&mut self, bytes: usize) -> bool {
        let fits = self.pages.bytes() + bytes + 2 * CHUNK_BYTES <= self.pages.budget;
        let taken = fits && self.pool.as_ref().is_none_or(|pool| pool.take(bytes));
        if taken {
            self.pages.beside += bytes;
        }
        taken
    }

    fn give_room(&mut self, bytes: usize) {
        self.pages.beside -= bytes.min(self.pages.beside);
        if let Some(pool) = &self.pool {
            pool.give(bytes);
        }
    }

    /// Returns true while an appender is open.
    pub(crate) fn is_open(&self) -> bool {
        self.appenders > 0
    }

    /// Merges all appended records. The first reader does this otherwise. Takes a fraction of a
    /// microsecond per record.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] while an appender is open, or when the appended records and the changes
    /// contradict each other.
    pub(crate) fn settle(&mut self) -> Result {
        self.sound()?;
        if self.is_open() {
            return Err(Error::Mismatch("an appender is still out"));
        }
        if self.is_settled() {
            return Ok(());
        }
        let outcome = self.merge();
        self.spoiled = outcome.err();
        outcome
    }

    fn merge(&mut self) -> Result {
        let (lanes, runs) = (core::mem::take(&mut self.lanes), core::mem::take(&mut self.runs));
        let mut base = Base::new(self.pool.clone());
        let given = Cell::new(0);
        let merged = base.merge(
            lanes,
            runs,
            &mut |bytes| {
                self.give_room(given.take());
                self.take_room(bytes)
            },
            &mut |bytes| given.set(given.get() + bytes),
        );
        self.base = base;
        self.give_room(given.take());
        merged?;
        if self.base.len() == 0 && self.gone.is_none() {
            return Ok(());
        }
        let added = self.root.take();
        self.records = 0;
        if let Some(gone) = self.gone.take() {
            self.empty(gone, Self::remove_settled)?;
        }
        match added {
            Some(added) => self.empty(added, Self::add_owner),
            None => Ok(()),
        }
    }

    /// Removes the records of the tree at `from` one by one and passes each to `apply`.
    fn empty(&mut self, from: Root, apply: impl Fn(&mut Shadow, Rmap) -> Result) -> Result {
        let mut from = from;
        loop {
            let mut first = None;
            let tree = BTree::<_, Rmap>::open(&mut self.pages, TREE, from);
            tree.overlapping(0, u32::MAX, &mut |record| {
                first = Some(*record);
                Ok(false)
            })?;
            let Some(record) = first else {
                return self.pages.free(from.block);
            };
            let (root, _, outcome) =
                self.change_at(Some(from), |tree| tree.delete(record.key()).map(drop))?;
            from = root;
            outcome?;
            apply(self, record)?;
        }
    }

    /// Calls `visit` with all stored records whose key is at least `from`, in order and in slices
    /// of any length, until it returns false.
    pub(super) fn pieces(
        &mut self,
        from: Option<RmapKey>,
        visit: &mut dyn FnMut(&[Packed]) -> Result<bool>,
    ) -> Result {
        self.settle()?;
        let first = from.map_or([0; 2], |from| from.words());
        let mut at = self.base.lower_bound(first)?;
        // The next records of the tree.
        let mut queue: KVVec<Packed> = KVVec::new();
        let (mut position, mut after, mut more) = (0, None, self.records > 0);
        loop {
            if position == queue.len() && more {
                queue.clear();
                position = 0;
                more = self.refill(&mut queue, first, after)?;
                after = queue.last().map(Rmap::words);
            }
            let limit = queue.get(position).map(Rmap::words);
            let still = self.base.next(&mut at, limit)?;
            if !still.is_empty() {
                if !visit(still)? {
                    return Ok(());
                }
                continue;
            }
            if limit.is_none() {
                return Ok(());
            }
            let end = match self.base.is_end(&mut at)? {
                true => queue.len(),
                false => position + 1,
            };
            if !visit(queue.get(position..end).unwrap_or_default())? {
                return Ok(());
            }
            position = end;
        }
    }

    /// Fetches the next records of the tree, starting at `first` and after `after`. Returns whether
    /// there may be more.
    fn refill(
        &mut self,
        queue: &mut KVVec<Packed>,
        first: [u64; 2],
        after: Option<[u64; 2]>,
    ) -> Result<bool> {
        let Some(root) = self.root else {
            return Ok(false);
        };
        let block = (after.unwrap_or(first)[0] >> 32) as u32;
        let tree = BTree::<_, Rmap>::open(&mut self.pages, TREE, root);
        tree.overlapping(block, u32::MAX, &mut |record| {
            let key = record.key().words();
            if key >= first && Some(key) > after {
                queue.push(pack(record), GFP_KERNEL)?;
            }
            Ok(queue.len() < QUEUE)
        })?;
        Ok(queue.len() == QUEUE)
    }

    /// Returns true if blocks may have several owners. If false, each block has at most one.
    pub(crate) fn overlaps(&mut self) -> Result<bool> {
        self.settle()?;
        Ok(self.base.overlaps() || self.records > 0)
    }

    /// Calls `visit` for every record in order, until it returns false. Merges first; see
    /// [`Shadow::settle`].
    pub(crate) fn walk(&mut self, visit: &mut dyn FnMut(&Rmap) -> Result<bool>) -> Result {
        self.walk_from(0, visit)
    }

    /// Calls `visit` for every record that starts at or after `block`, in order, until it returns
    /// false. Merges first; see [`Shadow::settle`].
    pub(crate) fn walk_from(&mut self, block: u32, visit: &mut dyn FnMut(&Rmap) -> Result<bool>) -> Result {
        self.pieces(Some(Rmap::key_from(block)), &mut |piece| {
            for packed in piece {
                if !visit(&unpack(packed)?)? {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// Returns the number of records. Merges first; see [`Shadow::settle`].
    pub(crate) fn count(&mut self) -> Result<u64> {
        self.settle()?;
        Ok(self.base.len() + self.records)
    }

    /// Returns the bytes used, including the appenders' records that have been charged.
    pub(crate) fn bytes(&self) -> usize {
        self.pages.bytes()
    }
}

/// Returns true if some of the blocks that both records cover may belong to the same extent of the
/// same owner as `part`.
fn is_of(record: &Rmap, part: &Rmap) -> bool {
    let place = |record: &Rmap| match record.kind {
        Kind::Data => i64::from(record.offset) - i64::from(record.start),
        _ => 0,
    };
    let what = |record: &Rmap| (record.owner, record.kind, record.unwritten, place(record));
    what(record) == what(part)
}

impl Drop for Shadow {
    fn drop(&mut self) {
        self.give_room(self.pages.beside);
    }
}
