// SPDX-License-Identifier: GPL-2.0

//! A shadow: the records that a region's new tree must hold, in order, in a few bytes each.
//!
//! While a scan collects these records, writers keep adding and removing owners anywhere. A shadow
//! therefore has two parts. The records found by the scan are gathered, sorted once, and do not
//! move afterwards ([`super::base`]); they take 16 bytes each. Changes are kept separately, in the
//! engine's own B+tree over pages in memory, whose nodes have no checksums; since it supports
//! overlap queries, the code that maintains the tree on disk also maintains this one. The contents
//! of a shadow are those of both parts together, which are merged when it is read in order.
//!
//! Why two parts: a tree alone would be sufficient, but takes 6 to 11 times as long to fill from a
//! scan, under a lock that all workers need, and leaves a fifth of its nodes empty when filled in
//! random order, while the sorted records take little more than 16 bytes each. Sorted records alone
//! could not absorb changes at arbitrary places.
//!
//! The records of a scan bypass both the tree and its lock: the workers gather them
//! ([`super::gather`]), and after all inodes have been visited they are merged into the shadow
//! ([`Shadow::fill`]). Until then, owners that are added are kept in the tree. Owners that are
//! removed and are not in that tree are kept in a second one. They must have been gathered, because
//! updates are only reported for inodes that have been visited.
//!
//! The records can be read once the shadow is filled, which applies the changes to the gathered
//! records. Errors in earlier changes are only found then: an owner that was removed but never
//! existed, or that was added twice.
//!
//! After that, and in shadows without gathered records, errors are found at once. A change first
//! *lifts* the sorted records that it touches or continues into the tree; the other sorted records
//! are then unrelated to the contents of the tree.
//!
//! A [`Pool`] bounds the memory of the gathered records; the rest is spilled to its file. The
//! changes are bounded by a budget and by a pool of their own; beyond these they fail with
//! [`Error::NoMemory`] and leave the shadow unchanged, with one exception: a removal that affects
//! both gathered and added records may be left half done. All later calls on that shadow then
//! return the error.

use super::{
    base::{Base, Place, CHUNK},
    btree::{BTree, Root, Store},
    delta::Update,
    gather::{pack, unpack, Merge, Packed},
    node::Tree,
    record::{Kind, Record, Rmap, RmapKey},
    Error, Result,
};
use kernel::{prelude::*, sync::Arc};

pub(crate) use super::pool::Pool;

/// Bytes of a page.
const PAGE: usize = 4096;
/// Number of records taken from the tree at a time, to be merged with the sorted records.
const QUEUE: usize = 128;

/// Pages in memory.
struct Pages {
    /// Indexed by number, from 1 on; `None` if free.
    pages: KVVec<Option<KVec<u8>>>,
    free: KVVec<u32>,
    /// Bytes that other users take from the same budget.
    beside: usize,
    budget: usize,
    /// The source of the pages of all shadows of a scan.
    pool: Option<Arc<dyn Pool>>,
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
        if self.bytes() + PAGE > self.budget || !self.pool.as_ref().is_none_or(|pool| pool.take(PAGE)) {
            return Err(Error::NoMemory);
        }
        let placed = self.place_page();
        if let (Err(_), Some(pool)) = (&placed, &self.pool) {
            pool.give(PAGE);
        }
        placed
    }

    fn free(&mut self, block: u32) -> Result {
        let index = (block as usize).wrapping_sub(1);
        let page = self.pages.get_mut(index).ok_or(Error::Io)?;
        if page.take().is_none() {
            return Err(Error::Io);
        }
        self.free.push(block, GFP_KERNEL)?;
        if let Some(pool) = &self.pool {
            pool.give(PAGE);
        }
        Ok(())
    }

    fn block_size(&self) -> usize {
        PAGE
    }
}

impl Pages {
    /// Makes a page and returns its number.
    fn place_page(&mut self) -> Result<u32> {
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
}

/// The records that a region's new tree must hold.
pub(crate) struct Shadow {
    pages: Pages,
    /// The tree of added records; it holds all records if none were gathered. An empty shadow uses
    /// no page.
    root: Option<Root>,
    /// Number of records in that tree.
    records: u64,
    /// Gathered records.
    base: Base,
    /// The pool of their memory.
    pool: Option<Arc<dyn Pool>>,
    /// The tree of records that were removed and must have been gathered.
    gone: Option<Root>,
    /// The gathered records have not been merged yet.
    awaits: bool,
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
        Self::with_pools(budget, None, None, false)
    }

    /// Returns an empty shadow that is to be [filled](Shadow::fill) with memory from the pool
    /// `gathered`. Changes may use up to `budget` bytes from the pool `changes`.
    pub(crate) fn awaiting(budget: usize, gathered: Arc<dyn Pool>, changes: Arc<dyn Pool>) -> Shadow {
        Self::with_pools(budget, Some(gathered), Some(changes), true)
    }

    fn with_pools(
        budget: usize,
        gathered: Option<Arc<dyn Pool>>,
        changes: Option<Arc<dyn Pool>>,
        awaits: bool,
    ) -> Shadow {
        let pages = Pages {
            pages: KVVec::new(),
            free: KVVec::new(),
            beside: 0,
            budget,
            pool: changes,
        };
        Shadow {
            pages,
            root: None,
            records: 0,
            base: Base::new(gathered.clone()),
            pool: gathered,
            gone: None,
            awaits,
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

    /// Fails with [`Error::Mismatch`] until the gathered records have been merged.
    fn settled(&self) -> Result {
        self.sound()?;
        match self.awaits {
            true => Err(Error::Mismatch("what was gathered is not there yet")),
            false => Ok(()),
        }
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
        if !self.awaits {
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

    /// Removes an owner before the gathered records are merged: from the tree as far as it was
    /// added there, and otherwise from the gathered records.
    fn remove_around(&mut self, part: Rmap) -> Result {
        let mut rest = Some(part);
        while let Some(left) = rest.take() {
            let Some(added) = self.added(&left)? else {
                return self.remove_gathered(left);
            };
            let (before, after) = left.without(&added);
            if let Some(before) = before {
                self.remove_gathered(before)?;
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

    /// Records the removal of a gathered record, or part of one.
    fn remove_gathered(&mut self, part: Rmap) -> Result {
        let (gone, _, outcome) = self.change_at(self.gone, |tree| tree.add_owner(part))?;
        self.gone = Some(gone);
        outcome
    }

    /// Fills the shadow with the gathered records of region `region` of `merge`, and applies the
    /// changes made since. Takes a fraction of a microsecond per record.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] if it has already been filled, or if the gathered records and the
    /// changes contradict each other.
    pub(crate) fn fill(&mut self, merge: &mut Merge, region: u32) -> Result {
        self.sound()?;
        if !self.awaits {
            return Err(Error::Mismatch("filled already"));
        }
        let outcome = self.take_in(merge, region);
        self.spoiled = outcome.err();
        outcome
    }

    fn take_in(&mut self, merge: &mut Merge, region: u32) -> Result {
        let mut base = Base::new(self.pool.clone());
        let merged = merge.region(region, CHUNK, &mut |records| {
            base.add(records, &mut |bytes| self.take_room(bytes))
        });
        self.base = base;
        merged?;
        self.awaits = false;
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

    /// Charges bytes for gathered records to the budget and to the pool. Returns false if either
    /// has too few left.
    fn take_room(&mut self, bytes: usize) -> bool {
        let fits = self.pages.bytes() + bytes <= self.pages.budget;
        let taken = fits && self.pool.as_ref().is_none_or(|pool| pool.take(bytes));
        if taken {
            self.pages.beside += bytes;
        }
        taken
    }

    /// Removes the records of the tree with the root `from` one by one and passes them to `apply`.
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
        self.settled()?;
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
        self.settled()?;
        Ok(self.base.overlaps() || self.records > 0)
    }

    /// Calls `visit` for every record in order, until it returns false. The shadow must have been
    /// filled.
    pub(crate) fn walk(&mut self, visit: &mut dyn FnMut(&Rmap) -> Result<bool>) -> Result {
        self.walk_from(0, visit)
    }

    /// Calls `visit` for every record that starts at or after `block`, in order, until it returns
    /// false. The shadow must have been filled.
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

    /// Returns the number of records. The shadow must be filled.
    pub(crate) fn count(&mut self) -> Result<u64> {
        self.settled()?;
        Ok(self.base.len() + self.records)
    }

    /// Returns the number of bytes used.
    #[allow(dead_code, reason = "tests use it")]
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
        if let Some(pool) = &self.pool {
            pool.give(self.pages.beside);
        }
        if let Some(pool) = &self.pages.pool {
            pool.give((self.pages.pages.len() - self.pages.free.len()) * PAGE);
        }
    }
}
