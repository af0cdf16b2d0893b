// SPDX-License-Identifier: GPL-2.0

//! A shadow: the records that a region's new tree must hold, in order, in a few bytes each.
//!
//! While a scan collects what a tree must hold, writers go on adding and removing owners anywhere. So a shadow is made of
//! two parts. What the scan finds is gathered, sorted once, and then lies still ([`super::base`]), 16 bytes a record. What
//! changes is kept beside it in the engine's own B+tree over pages in memory, whose nodes carry no checksums; overlap
//! queries let the same code that keeps the tree on disk keep this one. All that a shadow holds is what the two parts hold
//! together: whoever reads it in order has both merged while they are read.
//!
//! Why two parts: a tree alone could do it all, but takes 6 to 11 times as long for what a scan finds,
//! under a lock that all workers need, and in no order leaves a fifth of its nodes empty, where what lies still takes 16
//! bytes a record and a little. Sorted rows alone could not take changes anywhere.
//!
//! What a scan finds goes neither through the tree nor through the lock that guards it: the workers gather it
//! ([`super::gather`]), and once all inodes were visited it is merged into the shadow ([`Shadow::fill`]). Owners that are added
//! meanwhile are kept in the tree, and those that are removed and are in neither part are kept in a second one: what they are
//! removed from must have been gathered, since an update comes after its inode was visited.
//!
//! The records can be read once the shadow is filled, which applies the changes to what was gathered. Errors of changes that
//! came earlier are found only then: an owner that was removed and never there, or added twice.
//!
//! From then on, and if nothing was gathered for it, errors are found at once. A change first *lifts* the records that lie
//! still and that it touches or continues into the tree; what lies still then has nothing to do with what the tree holds.
//!
//! A [`Pool`] bounds what was gathered: what does not fit goes to its file. A budget, and a pool of their own, bound the
//! changes: what does not fit is refused with [`Error::NoMemory`]. What was there stays, with one exception: a removal that
//! touches both what was gathered and what was added may be done by half when it fails. The shadow then tells that error
//! whatever is asked of it.

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
/// Records taken out of the tree at a time, to be merged with what lies still.
const QUEUE: usize = 128;

/// Pages in memory.
struct Pages {
    /// Indexed by number, from 1 on; `None` if free.
    pages: KVVec<Option<KVec<u8>>>,
    free: KVVec<u32>,
    /// Bytes that other users take from the same budget.
    beside: usize,
    budget: usize,
    /// Where the pages of all shadows of a scan come from.
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
    /// The tree of records that were added; all records if nothing was gathered. An empty shadow takes no page.
    root: Option<Root>,
    /// Number of records in that tree.
    records: u64,
    /// Gathered records.
    base: Base,
    /// Where they come from and go to.
    pool: Option<Arc<dyn Pool>>,
    /// The tree of records that were removed and must have been gathered.
    gone: Option<Root>,
    /// What was gathered is not there yet.
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

    /// An empty one that is to be [filled](Shadow::fill), of memory from the pool `gathered`. Changes may take up to
    /// `budget` bytes, from the pool `changes`.
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

    /// Fails with [`Error::Mismatch`] until what was gathered is there.
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

    /// Removes an owner before what was gathered is there: from the tree where it was added there, and the rest from what
    /// was gathered.
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

    /// Notes that something gathered is gone.
    fn remove_gathered(&mut self, part: Rmap) -> Result {
        let (gone, _, outcome) = self.change_at(self.gone, |tree| tree.add_owner(part))?;
        self.gone = Some(gone);
        outcome
    }

    /// Takes in what was gathered for it, as region `region` of `merge`, and applies the changes since. Takes part of a
    /// microsecond for each record.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when it is filled already, or what was gathered and the changes contradict each other.
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

    /// Takes bytes for what was gathered from the budget, and from the pool's; `false` if they are not to be had.
    fn take_room(&mut self, bytes: usize) -> bool {
        let fits = self.pages.bytes() + bytes <= self.pages.budget;
        let taken = fits && self.pool.as_ref().is_none_or(|pool| pool.take(bytes));
        if taken {
            self.pages.beside += bytes;
        }
        taken
    }

    /// Takes one record after the other out of the tree that starts at `from` and hands it to `apply`, until there is none.
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

    /// Hands `visit` every record in order, until it returns false; once the shadow is filled.
    pub(crate) fn walk(&mut self, visit: &mut dyn FnMut(&Rmap) -> Result<bool>) -> Result {
        self.walk_from(0, visit)
    }

    /// Hands `visit` every record that starts at `block` or behind it, in order, until it returns false; once
    /// the shadow is filled.
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

    /// How many records there are; once the shadow is filled.
    pub(crate) fn count(&mut self) -> Result<u64> {
        self.settled()?;
        Ok(self.base.len() + self.records)
    }

    /// Bytes taken.
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
