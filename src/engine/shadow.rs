// SPDX-License-Identifier: GPL-2.0

//! Records in memory, in order, few bytes each.
//!
//! While a scan collects what a tree must hold, writers go on adding and removing owners anywhere. The shadow is the
//! engine's own B+tree over pages in memory: its leaves hold nothing but 16-byte records, appending in order leaves them
//! full, and overlap queries let the same code that keeps the tree on disk keep this one. Its nodes carry no checksums.
//!
//! What a scan finds need not go through the tree, and not through the lock that guards it: each worker fills an
//! [`Appender`] of its own ([`Shadow::appender`]), now and then moves what it has to the shadow ([`Shadow::absorb`]), and
//! gives it back at the end ([`Shadow::close`]). Until then nobody knows what has been appended. Owners that are added
//! meanwhile are kept in the tree, and those that are removed and are not in the tree in a second one: what they are
//! removed from must have been appended, since an update comes after its inode was visited. Once all appenders are back,
//! the first one who asks for the records has the appended ones sorted and loaded into a new tree, the removed ones taken
//! out of it, and the added ones put in. That is exact, and errors are only found late: an owner removed that was never
//! there, or added twice, is told then. With no appender everything is in the tree, and errors are told at once.
//!
//! A budget of bytes bounds all of it but the appenders' own buffers: what does not fit is refused with
//! [`Error::NoMemory`]. What was there stays, with one exception: a removal that touches both what was appended and what
//! was added may be done by half when it fails. The shadow then tells that error whatever is asked of it.

use super::{
    append::{Appender, Runs},
    btree::{BTree, Root, Store},
    bulk::{Geometry, Loader, Sink},
    delta::Update,
    node::Tree,
    record::{Kind, Record, Rmap},
    Error, Result,
};
use kernel::prelude::*;

/// Bytes of a page.
const PAGE: usize = 4096;

/// Pages in memory.
struct Pages {
    /// By number, from 1 on; `None` is free.
    pages: KVVec<Option<KVec<u8>>>,
    free: KVVec<u32>,
    /// Bytes that something else takes of the same budget.
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
        // So that giving a page back never has to allocate.
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

impl Sink for Pages {
    fn claim(&mut self) -> Result<u32> {
        self.alloc()
    }

    fn write(&mut self, block: u32, bytes: &[u8]) -> Result {
        self.page(block)?.copy_from_slice(bytes);
        Ok(())
    }

    fn block_size(&self) -> usize {
        PAGE
    }
}

/// The records that a tree must hold, as far as they are known.
pub(crate) struct Shadow {
    pages: Pages,
    /// What was added; without anything appended that is everything.
    root: Root,
    /// Records there.
    records: u64,
    /// What was appended.
    runs: Runs,
    /// What was removed of it since.
    gone: Option<Root>,
    /// Appenders that are out.
    appenders: usize,
    spoiled: Option<Error>,
}

/// The tree that the pages hold; nothing of it is ever written, so that one will do for all.
const TREE: Tree = Tree {
    seed: 0,
    region: 0,
    generation: 0,
};

impl Shadow {
    /// An empty one that may take up to `budget` bytes.
    pub(crate) fn new(budget: usize) -> Result<Shadow> {
        let mut pages = Pages {
            pages: KVVec::new(),
            free: KVVec::new(),
            beside: 0,
            budget,
        };
        let root = BTree::<_, Rmap>::create(&mut pages, TREE)?.root;
        Ok(Shadow {
            pages,
            root,
            records: 0,
            runs: Runs::new(),
            gone: None,
            appenders: 0,
            spoiled: None,
        })
    }

    /// Has `change` change the tree that starts at `root`.
    fn change_at(
        &mut self,
        root: Root,
        change: impl FnOnce(&mut BTree<'_, Pages, Rmap>) -> Result,
    ) -> (Root, i64, Result) {
        let mut tree = BTree::open(&mut self.pages, TREE, root);
        let outcome = change(&mut tree);
        (tree.root, tree.gained, outcome)
    }

    fn change(&mut self, change: impl FnOnce(&mut BTree<'_, Pages, Rmap>) -> Result) -> Result {
        let (root, gained, outcome) = self.change_at(self.root, change);
        self.root = root;
        self.records = self.records.saturating_add_signed(gained);
        outcome
    }

    /// Takes in a change of an owner.
    pub(crate) fn apply(&mut self, update: &Update) -> Result {
        match update {
            Update::Add(record) => self.add_owner(*record),
            Update::Remove(record) => self.remove_owner(*record),
        }
    }

    fn sound(&self) -> Result {
        self.spoiled.map_or(Ok(()), Err)
    }

    /// Whether the tree is everything.
    fn is_settled(&self) -> bool {
        self.appenders == 0 && self.runs.len() == 0 && self.gone.is_none()
    }

    /// Adds an owner; see [`BTree::add_owner`].
    pub(crate) fn add_owner(&mut self, record: Rmap) -> Result {
        self.sound()?;
        self.change(|tree| tree.add_owner(record))
    }

    /// Removes an owner; see [`BTree::remove_owner`].
    pub(crate) fn remove_owner(&mut self, part: Rmap) -> Result {
        self.sound()?;
        if self.is_settled() {
            return self.change(|tree| tree.remove_owner(part));
        }
        let outcome = self.remove_around(part);
        self.spoiled = outcome.err();
        outcome
    }

    /// Removes an owner while not all is in the tree: what is, from the tree, and the rest from what was appended.
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

    /// The first part of `left` that is in the tree.
    fn added(&mut self, left: &Rmap) -> Result<Option<Rmap>> {
        let place = |record: &Rmap| match record.kind {
            Kind::Data => i64::from(record.offset) - i64::from(record.start),
            _ => 0,
        };
        let what = |record: &Rmap| (record.owner, record.kind, record.unwritten, place(record));
        let mut found = None;
        let tree = BTree::<_, Rmap>::open(&mut self.pages, TREE, self.root);
        tree.overlapping(left.first(), left.last(), &mut |record| {
            if what(record) == what(left) {
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

    /// Notes that something appended is gone.
    fn remove_appended(&mut self, part: Rmap) -> Result {
        let gone = match self.gone {
            Some(gone) => gone,
            None => BTree::<_, Rmap>::create(&mut self.pages, TREE)?.root,
        };
        let (gone, _, outcome) = self.change_at(gone, |tree| tree.add_owner(part));
        self.gone = Some(gone);
        outcome
    }

    /// Hands out an appender. It must be given back to [`Shadow::close`].
    pub(crate) fn appender(&mut self) -> Appender {
        self.appenders += 1;
        Appender::new()
    }

    /// Moves what an appender has gathered here.
    pub(crate) fn absorb(&mut self, appender: &mut Appender) -> Result {
        self.sound()?;
        self.make_room(appender.len())?;
        let outcome = self.runs.take_from(appender);
        self.spoiled = outcome.err();
        outcome
    }

    /// Takes an appender back, with what it has gathered.
    pub(crate) fn close(&mut self, mut appender: Appender) -> Result {
        self.sound()?;
        let outcome = appender
            .end_owner()
            .and_then(|()| self.make_room(appender.len()))
            .and_then(|()| self.runs.take_from(&mut appender));
        self.appenders = self.appenders.saturating_sub(1);
        self.spoiled = outcome.err();
        outcome
    }

    /// Whether an appender is out.
    pub(crate) fn is_open(&self) -> bool {
        self.appenders > 0
    }

    /// Sees that so many more records fit, also when they move into a tree, which takes a little more than they do.
    fn make_room(&mut self, more: usize) -> Result {
        let others = self.pages.bytes() - self.pages.beside;
        let beside = self.runs.bytes_with(more);
        if others + beside + beside / 16 + 2 * Runs::CHUNK_BYTES > self.pages.budget {
            return Err(Error::NoMemory);
        }
        self.pages.beside = beside;
        Ok(())
    }

    /// Has everything in the tree, as the first who asks for records will otherwise. Takes some time, for each record
    /// that was appended: part of a microsecond.
    pub(crate) fn settle(&mut self) -> Result {
        self.sound()?;
        if self.is_settled() {
            return Ok(());
        }
        if self.is_open() {
            return Err(Error::Mismatch("an appender is still out"));
        }
        let outcome = self.merge();
        self.spoiled = outcome.err();
        outcome
    }

    fn merge(&mut self) -> Result {
        let added = self.root;
        self.root = self.load_runs()?;
        if let Some(gone) = self.gone.take() {
            self.empty(gone, |tree, record| tree.remove_owner(record))?;
        }
        self.empty(added, |tree, record| tree.add_owner(record))
    }

    /// Loads what was appended into a new tree.
    fn load_runs(&mut self) -> Result<Root> {
        let mut runs = core::mem::replace(&mut self.runs, Runs::new());
        runs.sort();
        self.records = runs.len() as u64;
        let geometry = Geometry::new::<Rmap>(PAGE, runs.len() as u64, 0)?;
        let beside = self.pages.beside;
        let mut loader = Loader::new(&mut self.pages, TREE, geometry)?;
        let mut before: Option<Rmap> = None;
        runs.drain(|record, freed| {
            // Only shows where no other owner lies between; who keeps to the rule of appenders need not rely on it.
            if before.is_some_and(|before| before.clashes(record) || before.continues(record)) {
                return Err(Error::Mismatch("an owner was appended in pieces"));
            }
            before = Some(*record);
            loader.sink().beside = beside.saturating_sub(freed * Runs::CHUNK_BYTES);
            loader.push(record)
        })?;
        loader.sink().beside = 0;
        loader.finish()
    }

    /// Takes one record after the other out of the tree that starts at `from` and hands it to `apply` with the tree of
    /// everything, until there is none.
    fn empty(&mut self, from: Root, apply: impl Fn(&mut BTree<'_, Pages, Rmap>, Rmap) -> Result) -> Result {
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
            let (root, _, outcome) = self.change_at(from, |tree| tree.delete(record.key()).map(drop));
            from = root;
            outcome?;
            self.change(|tree| apply(tree, record))?;
        }
    }

    /// Hands `visit` every record in order, until it answers `false`. Fails while an appender is out.
    pub(crate) fn walk(&mut self, visit: &mut dyn FnMut(&Rmap) -> Result<bool>) -> Result {
        self.settle()?;
        BTree::open(&mut self.pages, TREE, self.root).overlapping(0, u32::MAX, visit)
    }

    /// Hands `visit` every record that starts at `block` or behind it, in order, until it answers `false`. Fails while an
    /// appender is out.
    pub(crate) fn walk_from(&mut self, block: u32, visit: &mut dyn FnMut(&Rmap) -> Result<bool>) -> Result {
        self.settle()?;
        BTree::open(&mut self.pages, TREE, self.root).overlapping(block, u32::MAX, &mut |record: &Rmap| {
            if record.start < block {
                return Ok(true);
            }
            visit(record)
        })
    }

    /// How many records there are. Fails while an appender is out.
    pub(crate) fn count(&mut self) -> Result<u64> {
        self.settle()?;
        Ok(self.records)
    }

    /// Bytes taken, everything included but the appenders' buffers.
    pub(crate) fn bytes(&self) -> usize {
        self.pages.bytes()
    }
}
