// SPDX-License-Identifier: GPL-2.0

//! The B+tree: lookup, insertion, deletion, and overlap queries.
//!
//! All records are in the leaves, in key order, and the nodes of each level are linked from left to
//! right. An entry above the leaves contains its child's least key and also the last block that
//! anything below it covers. A query for the records that cover a block therefore reads only nodes
//! that can contain matches, even where many records overlap.
//!
//! A change reads every node that it will touch, and allocates every block that it will need,
//! before it modifies the first byte: it either succeeds or leaves the tree unchanged. The one
//! exception is a store that fails to return a block for writing ([`Store::modify`]) which it has
//! just returned for reading. Such a failure can leave a tree that has to be checked and rebuilt.
//!
//! A full leaf first moves records to a neighbour that has room, and is split only if there is
//! none. Nodes are then a fifth empty instead of two fifths, and a record takes 20 bytes of memory
//! regardless of insertion order.
//!
//! The same code implements the tree on disk and the tree in memory, and both support overlap
//! queries. A change of an owner takes two to three times as long as in a `BTreeMap` of 10^6
//! records, which has no checksums, never merges nodes and supports no overlap queries (`make
//! bench-host`).

use super::{
    node::{capacity, ensure, even_out, Entry, Node, Tree, MAX_LEVELS},
    record::Record,
    Error, Result,
};

/// Records are moved to a neighbour only if at least 1/`WORTH` of a leaf is free in it.
const WORTH: usize = 8;

/// A node being modified.
type Edit<'n> = Node<&'n mut [u8]>;

/// Where a tree's nodes are stored.
pub(crate) trait Store {
    /// Access to the bytes of a node.
    type Read<'a>: AsRef<[u8]>
    where
        Self: 'a;

    /// Whether nodes can be damaged outside memory, and therefore have checksums that are verified
    /// on reading.
    const SEALED: bool;

    /// Reads a block of the tree's file.
    fn read(&self, block: u32) -> Result<Self::Read<'_>>;
    /// Calls `change` once to modify a block. On failure, the modification is discarded.
    fn modify(&mut self, block: u32, change: &mut dyn FnMut(&mut [u8])) -> Result;
    /// Calls `change` once to modify two different blocks. On failure, both modifications are
    /// discarded.
    fn modify_pair(&mut self, blocks: [u32; 2], change: &mut dyn FnMut(&mut [u8], &mut [u8])) -> Result;
    /// Allocates a block. Its contents are undefined.
    fn alloc(&mut self) -> Result<u32>;
    /// Frees a block.
    fn free(&mut self, block: u32) -> Result;
    /// Bytes in a block.
    fn block_size(&self) -> usize;

    /// Returns true if the checksum of these bytes has been verified since they were read from
    /// storage ([`Store::set_checked`]), so that it need not be computed again. Changes made
    /// through [`Store::modify`] preserve this state.
    fn is_checked(&self, _read: &Self::Read<'_>) -> bool {
        false
    }
    /// Records that the checksum of these bytes is correct. A store on top of cached buffers keeps
    /// this flag with the buffer, and must clear it when the buffer is read again or filled by any
    /// means other than [`Store::modify`].
    fn set_checked(&self, _read: &Self::Read<'_>) {}
}

/// The root of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    /// The root's block.
    pub(crate) block: u32,
    /// The root's level; 0 if the root is the only leaf.
    pub(crate) level: u16,
}

/// A node on the path from the root to a leaf, and the index of the entry that the path follows.
#[derive(Clone, Copy, Default)]
struct Step {
    block: u32,
    index: usize,
}

/// The path to a leaf, indexed by level. The leaf's index is the position where a key belongs.
struct Path([Step; MAX_LEVELS]);

impl Path {
    fn at(&self, level: u16) -> Step {
        self.0.get(usize::from(level)).copied().unwrap_or_default()
    }

    fn set(&mut self, level: u16, step: Step) {
        if let Some(place) = self.0.get_mut(usize::from(level)) {
            *place = step;
        }
    }
}

/// A record found in a leaf.
pub(super) struct Located<R> {
    path: Path,
    index: usize,
    /// The record.
    pub(super) record: R,
}

/// A tree in a store.
pub(crate) struct BTree<'a, S, R> {
    store: &'a mut S,
    tree: Tree,
    /// The root; changes as the tree grows and shrinks.
    pub(crate) root: Root,
    /// Records inserted since the tree was opened, minus records deleted.
    pub(crate) gained: i64,
    records: core::marker::PhantomData<R>,
}

impl<'a, S: Store, R: Record> BTree<'a, S, R> {
    /// Opens the tree at `root`.
    pub(crate) fn open(store: &'a mut S, tree: Tree, root: Root) -> Self {
        BTree {
            store,
            tree,
            root,
            gained: 0,
            records: core::marker::PhantomData,
        }
    }

    /// Creates an empty tree.
    pub(crate) fn create(store: &'a mut S, tree: Tree) -> Result<Self> {
        let block = store.alloc()?;
        let mut made = Self::open(store, tree, Root { block, level: 0 });
        made.edit(block, |node| {
            node.init(&tree, block, 0);
            Some(())
        })?;
        Ok(made)
    }

    /// Reads a node and verifies its identity.
    pub(super) fn read(&self, block: u32, level: Option<u16>) -> Result<Node<S::Read<'_>>> {
        let node = Node(self.store.read(block)?);
        if S::SEALED {
            if self.store.is_checked(&node.0) {
                node.check_identity::<R>(&self.tree, block, level)?;
            } else {
                node.check::<R>(&self.tree, block, level)?;
                self.store.set_checked(&node.0);
            }
        }
        Ok(node)
    }

    fn seal(tree: &Tree, node: &mut Edit<'_>) {
        if S::SEALED {
            node.seal(tree);
        }
    }

    /// Modifies a node that was read before, and updates its checksum.
    fn edit(&mut self, block: u32, mut change: impl FnMut(&mut Edit<'_>) -> Option<()>) -> Result {
        let tree = self.tree;
        let mut done = None;
        self.store.modify(block, &mut |bytes| {
            let mut node = Node(bytes);
            done = change(&mut node);
            Self::seal(&tree, &mut node);
        })?;
        done.ok_or(Error::Corrupt {
            block,
            what: "overfull",
        })
    }

    /// Modifies two nodes at once, and updates both checksums.
    fn edit_pair(
        &mut self,
        blocks: [u32; 2],
        mut change: impl FnMut(&mut Edit<'_>, &mut Edit<'_>) -> Option<()>,
    ) -> Result {
        if blocks[0] == blocks[1] {
            // In a damaged tree, two pointers may lead to one node, which can be opened only once.
            return Err(Error::Corrupt {
                block: blocks[0],
                what: "a node is its own sibling",
            });
        }
        let tree = self.tree;
        let mut done = None;
        self.store.modify_pair(blocks, &mut |first, second| {
            let (mut first, mut second) = (Node(first), Node(second));
            done = change(&mut first, &mut second);
            Self::seal(&tree, &mut first);
            Self::seal(&tree, &mut second);
        })?;
        done.ok_or(Error::Corrupt {
            block: blocks[0],
            what: "overfull",
        })
    }

    /// Returns the path to the leaf where `key` belongs. The index at the leaf is the number of
    /// keys that are at most `key`.
    fn descend(&self, key: R::Key) -> Result<Path> {
        let mut path = Path([Step::default(); MAX_LEVELS]);
        let (mut block, mut level) = (self.root.block, self.root.level);
        loop {
            let node = self.read(block, Some(level))?;
            let bad = |what| Error::Corrupt { block, what };
            let rank = node.rank::<R>(key).ok_or(bad("bad record"))?;
            if level == 0 {
                path.set(0, Step { block, index: rank });
                return Ok(path);
            }
            let index = rank.saturating_sub(1);
            path.set(level, Step { block, index });
            block = node.entry::<R>(index).ok_or(bad("empty node"))?.child;
            level -= 1;
        }
    }

    /// Returns the first key of the leaf where `key` belongs; `None` if the leaf is empty.
    pub(super) fn leaf_low(&self, key: R::Key) -> Result<Option<R::Key>> {
        let leaf = self.descend(key)?.at(0);
        Ok(self.read(leaf.block, Some(0))?.key::<R>(0))
    }

    /// Number of records that a leaf has room for.
    pub(super) fn leaf_capacity(&self) -> usize {
        capacity::<R>(self.store.block_size(), 0)
    }

    /// Looks up a record by its key.
    #[allow(dead_code, reason = "tests use it")]
    pub(crate) fn get(&self, key: R::Key) -> Result<Option<R>> {
        let leaf = self.descend(key)?.at(0);
        let Some(index) = leaf.index.checked_sub(1) else {
            return Ok(None);
        };
        let node = self.read(leaf.block, Some(0))?;
        Ok(node.record::<R>(index).filter(|record| record.key() == key))
    }

    /// Calls `visit` for every record that covers any of the blocks from `first` to `last`, in key
    /// order, until it returns false.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when a node on the path is invalid. No node is visited twice, whatever
    /// the tree contains.
    pub(crate) fn overlapping(
        &self,
        first: u32,
        last: u32,
        visit: &mut dyn FnMut(&R) -> Result<bool>,
    ) -> Result {
        self.overlapping_below(self.root, None, None, (first, last), visit)
            .map(drop)
    }

    /// `low` is the node's least key according to its parent, `beyond` an upper bound for all keys
    /// below it.
    ///
    /// The low keys visited at each level increase strictly, and each node stores its own, so no
    /// node is visited twice.
    fn overlapping_below(
        &self,
        at: Root,
        low: Option<R::Key>,
        beyond: Option<R::Key>,
        (first, last): (u32, u32),
        visit: &mut dyn FnMut(&R) -> Result<bool>,
    ) -> Result<bool> {
        let Root { block, level } = at;
        let node = self.read(block, Some(level))?;
        let bad = Error::Corrupt {
            block,
            what: "bad record",
        };
        if low.is_some() {
            ensure(node.key::<R>(0) == low, block, "wrong low key")?;
        }
        let mut before = None;
        // Keys from this one on start after `last`.
        let end = match last.checked_add(1).map(R::key_from) {
            None => node.count(),
            // Keys equal to it start after `last` as well.
            Some(behind) => node.rank_below::<R>(behind).ok_or(bad)?,
        };
        let mut index = 0;
        if R::DISJOINT {
            // Only the last record that starts before `first` can reach it.
            let before = node.rank_below::<R>(R::key_from(first)).ok_or(bad)?;
            index = before.saturating_sub(1).min(end);
        }
        loop {
            index = node.reaching::<R>(index, end, first).ok_or(bad)?;
            if index >= end {
                return Ok(end == node.count());
            }
            let more = if level == 0 {
                visit(&node.record::<R>(index).ok_or(bad)?)?
            } else {
                let entry = node.entry::<R>(index).ok_or(bad)?;
                let rises = before < Some(entry.low) && beyond.is_none_or(|beyond| entry.low < beyond);
                ensure(rises, block, "keys out of order")?;
                before = Some(entry.low);
                let child = Root {
                    block: entry.child,
                    level: level - 1,
                };
                let bound = node.entry::<R>(index + 1).map(|next| next.low);
                let bound = match (bound, beyond) {
                    (Some(one), Some(other)) => Some(one.min(other)),
                    (one, other) => one.or(other),
                };
                self.overlapping_below(child, Some(entry.low), bound, (first, last), visit)?
            };
            if !more {
                return Ok(false);
            }
            index += 1;
        }
    }

    /// Inserts a record. Fails with [`Error::Mismatch`] if its key exists.
    pub(crate) fn insert(&mut self, record: &R) -> Result {
        let path = self.descend(record.key())?;
        let leaf = path.at(0);
        let node = self.read(leaf.block, Some(0))?;
        if let Some(index) = leaf.index.checked_sub(1) {
            if node.key::<R>(index) == Some(record.key()) {
                return Err(Error::Mismatch("the record is there already"));
            }
        }
        let full = node.count() >= self.leaf_capacity();
        drop(node);
        let path = match full && self.make_room(&path)? {
            true => self.descend(record.key())?,
            false => path,
        };

        // Determine what has to be split, and allocate every block, before anything is modified.
        let mut fresh = [0u32; MAX_LEVELS + 1];
        let mut taken = 0;
        let outcome = self.take_for_split(&path, &mut fresh, &mut taken);
        if let Err(error) = outcome {
            for &block in fresh.get(..taken).unwrap_or(&[]) {
                self.store.free(block)?;
            }
            return Err(error);
        }
        self.insert_along(&path, record, fresh)?;
        self.gained += 1;
        Ok(())
    }

    /// If a leaf is full, moves some of its records to a neighbour under the same parent that has
    /// room, to avoid a split: if full nodes were always split, nodes would stay little more than
    /// half full when records arrive in runs. The last leaf of the tree is not treated this way,
    /// since a split there leaves full nodes behind. Returns whether records were moved.
    fn make_room(&mut self, path: &Path) -> Result<bool> {
        if self.root.level == 0 {
            return Ok(false);
        }
        let (leaf, above) = (path.at(0), path.at(1));
        let full = self.leaf_capacity();
        if leaf.index == full && self.read(leaf.block, Some(0))?.siblings().1 == 0 {
            return Ok(false);
        }
        let parent = self.read(above.block, Some(1))?;
        let beside = |index: Option<usize>| index.and_then(|index| parent.entry::<R>(index));
        let (left, right) = (above.index.checked_sub(1), above.index.checked_add(1));
        let (before, after) = (beside(left), beside(right));
        drop(parent);
        for (first, index, second) in [
            (before.map(|entry| entry.child), left, Some(leaf.block)),
            (
                Some(leaf.block),
                Some(above.index),
                after.map(|entry| entry.child),
            ),
        ] {
            let (Some(first), Some(index), Some(second)) = (first, index, second) else {
                continue;
            };
            let both = self.read(first, Some(0))?.count() + self.read(second, Some(0))?.count();
            // There must be room for the new record in either, and enough that this is not repeated
            // at once.
            if both + (full / WORTH).max(2) > 2 * full {
                continue;
            }
            self.edit_pair([first, second], |left, right| even_out::<R, _, _>(left, right))?;
            for index in [index, index + 1] {
                let block = above.block;
                self.refresh(Step { block, index }, 1)?;
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// Allocates a block for each full node on the path and one for a new root, and reads the
    /// siblings that will have to be updated.
    fn take_for_split(
        &mut self,
        path: &Path,
        fresh: &mut [u32; MAX_LEVELS + 1],
        taken: &mut usize,
    ) -> Result {
        for level in 0..=self.root.level {
            let step = path.at(level);
            let node = self.read(step.block, Some(level))?;
            if node.count() < capacity::<R>(self.store.block_size(), level) {
                return Ok(());
            }
            let (_, right) = node.siblings();
            drop(node);
            if right != 0 {
                self.read(right, Some(level))?;
            }
            let mut take = || -> Result {
                let place = fresh.get_mut(*taken).ok_or(Error::NoSpace)?;
                *place = self.store.alloc()?;
                *taken += 1;
                Ok(())
            };
            take()?;
            if level == self.root.level {
                if usize::from(level) + 1 >= MAX_LEVELS {
                    return Err(Error::NoSpace);
                }
                take()?;
            }
        }
        Ok(())
    }

    /// Inserts a record and updates all levels above, splitting nodes with the blocks in `fresh`,
    /// lowest level first.
    fn insert_along(&mut self, path: &Path, record: &R, fresh: [u32; MAX_LEVELS + 1]) -> Result {
        let mut fresh = fresh.into_iter();
        let mut next_block = || fresh.next().filter(|&block| block != 0).ok_or(Error::NoSpace);
        // The entry of a node created by a split, to be inserted one level up.
        let mut pending: Option<Entry<R::Key>> = None;
        for level in 0..=self.root.level {
            let step = path.at(level);
            let mut at = step.index;
            if level > 0 {
                if pending.is_none() {
                    self.widen(step, level, record)?;
                    continue;
                }
                self.refresh(step, level)?;
                at += 1;
            }
            let entry = pending.take();
            let put = |node: &mut Edit<'_>, index: usize| match &entry {
                None => node.insert_record::<R>(index, record),
                Some(entry) => node.insert_entry::<R>(index, entry),
            };
            let node = self.read(step.block, Some(level))?;
            let count = node.count();
            let (left, right) = node.siblings();
            drop(node);
            if count < capacity::<R>(self.store.block_size(), level) {
                self.edit(step.block, |node| put(node, at))?;
                continue;
            }
            // A split at the right edge leaves the old node full, so that sequential insertion
            // yields full nodes.
            let cut = if at == count && right == 0 {
                count
            } else {
                count / 2
            };
            let made = next_block()?;
            let tree = self.tree;
            self.edit_pair([step.block, made], |node, new| {
                new.init(&tree, made, level);
                new.set_siblings(step.block, right);
                node.move_tail::<R, _>(cut, new)?;
                node.set_siblings(left, made);
                if at > cut || cut == count {
                    put(new, at - cut)
                } else {
                    put(node, at)
                }
            })?;
            self.set_left(right, made)?;
            let (low, high) = self.summary(made, level)?;
            pending = Some(Entry {
                low,
                high,
                child: made,
            });
        }
        if let Some(entry) = pending {
            self.grow(next_block()?, entry)?;
        }
        Ok(())
    }

    /// Adds a new root above the old one and the node created by its split.
    fn grow(&mut self, block: u32, second: Entry<R::Key>) -> Result {
        let old = self.root;
        let (low, high) = self.summary(old.block, old.level)?;
        let level = old.level + 1;
        let tree = self.tree;
        self.edit(block, |node| {
            node.init(&tree, block, level);
            node.insert_entry::<R>(
                0,
                &Entry {
                    low,
                    high,
                    child: old.block,
                },
            )?;
            node.insert_entry::<R>(1, &second)
        })?;
        self.root = Root { block, level };
        Ok(())
    }

    fn summary(&self, block: u32, level: u16) -> Result<(R::Key, u32)> {
        let node = self.read(block, Some(level))?;
        node.summary::<R>().ok_or(Error::Corrupt {
            block,
            what: "empty node",
        })
    }

    /// Returns the entry at `step`, which is in a node of this level.
    fn entry(&self, step: Step, level: u16) -> Result<Entry<R::Key>> {
        let node = self.read(step.block, Some(level))?;
        node.entry::<R>(step.index).ok_or(Error::Corrupt {
            block: step.block,
            what: "bad record",
        })
    }

    /// Updates the entry at `step` to cover one more record in its child.
    fn widen(&mut self, step: Step, level: u16, record: &R) -> Result {
        let old = self.entry(step, level)?;
        let new = Entry {
            low: old.low.min(record.key()),
            high: old.high.max(record.last()),
            child: old.child,
        };
        if new != old {
            self.edit(step.block, |node| node.set_entry::<R>(step.index, &new))?;
        }
        Ok(())
    }

    /// Recomputes the entry at `step` from its child.
    fn refresh(&mut self, step: Step, level: u16) -> Result {
        let old = self.entry(step, level)?;
        let (low, high) = self.summary(old.child, level - 1)?;
        let new = Entry {
            low,
            high,
            child: old.child,
        };
        if new != old {
            self.edit(step.block, |node| node.set_entry::<R>(step.index, &new))?;
        }
        Ok(())
    }

    /// Finds the record with this key: its path, its index in the leaf, and the record.
    fn locate(&self, key: R::Key) -> Result<Located<R>> {
        let path = self.descend(key)?;
        let leaf = path.at(0);
        let node = self.read(leaf.block, Some(0))?;
        let (index, record) = leaf
            .index
            .checked_sub(1)
            .and_then(|index| node.record::<R>(index).map(|record| (index, record)))
            .filter(|(_, record)| record.key() == key)
            .ok_or(Error::Mismatch("the record is not there"))?;
        Ok(Located { path, index, record })
    }

    /// Finds a record to be deleted, and reads every node that the deletion may have to update, so
    /// that an unreadable node is detected before anything is modified.
    pub(super) fn doom(&self, key: R::Key) -> Result<Located<R>> {
        let doomed = self.locate(key)?;
        self.look_around(&doomed.path)?;
        Ok(doomed)
    }

    /// Deletes a record found by [`BTree::doom`]. No records or nodes may have been moved in
    /// between.
    pub(super) fn delete_doomed(&mut self, doomed: Located<R>) -> Result<R> {
        let Located { path, index, record } = doomed;
        self.edit(path.at(0).block, |node| node.remove::<R>(index))?;
        self.gained -= 1;
        for level in 0..self.root.level {
            self.settle(&path, level)?;
        }
        self.shrink()?;
        Ok(record)
    }

    /// Deletes a record and returns it. Fails with [`Error::Mismatch`] if there is none.
    pub(crate) fn delete(&mut self, key: R::Key) -> Result<R> {
        let doomed = self.doom(key)?;
        self.delete_doomed(doomed)
    }

    /// Replaces the record with key `old_key` by `new`. Fails with [`Error::Mismatch`] if `old_key`
    /// does not exist, or if another record has the key of `new`.
    ///
    /// If the key stays the same, or the new key belongs in the same leaf, the record is replaced
    /// in place: only nodes on the path to it change, nothing is moved, and no block is needed.
    /// Otherwise the new record is inserted before the old one is deleted. Only the insertion can
    /// run out of blocks, and in that case the tree is unchanged.
    pub(crate) fn replace(&mut self, old_key: R::Key, new: &R) -> Result {
        let Located { path, index, .. } = self.locate(old_key)?;
        let Some(target) = self.place_in_leaf(&path, index, old_key, new.key())? else {
            self.look_around(&path)?;
            self.insert(new)?;
            return self.delete(old_key).map(drop);
        };
        self.edit(path.at(0).block, |node| {
            if target == index {
                return node.set_record::<R>(index, new);
            }
            node.remove::<R>(index)?;
            node.insert_record::<R>(target, new)
        })?;
        for level in 1..=self.root.level {
            self.refresh(path.at(level), level)?;
        }
        Ok(())
    }

    /// Returns the index in the same leaf where the record at `index` belongs if its key becomes
    /// `new`; `None` if it belongs in another leaf.
    fn place_in_leaf(&self, path: &Path, index: usize, old: R::Key, new: R::Key) -> Result<Option<usize>> {
        if old == new {
            return Ok(Some(index));
        }
        let (leaf, there) = (path.at(0), self.descend(new)?.at(0));
        let node = self.read(there.block, Some(0))?;
        let before = there
            .index
            .checked_sub(1)
            .and_then(|before| node.key::<R>(before));
        if before == Some(new) {
            return Err(Error::Mismatch("the record is there already"));
        }
        if there.block == leaf.block {
            // In a leaf whose keys are in order, this is less than the number of records.
            let target = there.index.saturating_sub(usize::from(old < new));
            return Ok(Some(target.min(node.count().saturating_sub(1))));
        }
        // The end of the leaf on the left is also the position before the first record of this one.
        let between = index == 0 && there.index == node.count() && node.siblings().1 == leaf.block;
        Ok(between.then_some(0))
    }

    /// Reads the siblings that a deletion may have to update, so that a bad one is detected before
    /// anything is modified.
    fn look_around(&self, path: &Path) -> Result {
        for level in 0..self.root.level {
            let (left, right) = self.read(path.at(level).block, Some(level))?.siblings();
            for sibling in [left, right] {
                if sibling != 0 {
                    let (_, far) = self.read(sibling, Some(level))?.siblings();
                    if sibling == right && far != 0 {
                        self.read(far, Some(level))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Rebalances after a removal from the node at this level of the path: frees the node if it is
    /// empty, merges it with a sibling under the same parent if both are small, and updates the
    /// parent's entry.
    fn settle(&mut self, path: &Path, level: u16) -> Result {
        let (step, above) = (path.at(level), path.at(level + 1));
        let node = self.read(step.block, Some(level))?;
        let count = node.count();
        drop(node);
        if count == 0 {
            self.unlink(step.block, level)?;
            return self.edit(above.block, |parent| parent.remove::<R>(above.index));
        }
        let capacity = capacity::<R>(self.store.block_size(), level);
        if count < capacity / 4 {
            let parent = self.read(above.block, Some(level + 1))?;
            let neighbour = |index: Option<usize>| index.and_then(|index| parent.entry::<R>(index));
            let right = neighbour(above.index.checked_add(1));
            let left = neighbour(above.index.checked_sub(1));
            drop(parent);
            for (first, index, second) in [
                (Some(step.block), above.index, right.map(|entry| entry.child)),
                (
                    left.map(|entry| entry.child),
                    above.index.wrapping_sub(1),
                    Some(step.block),
                ),
            ] {
                let (Some(first), Some(second)) = (first, second) else {
                    continue;
                };
                let both = self.read(first, Some(level))?.count() + self.read(second, Some(level))?.count();
                if both > capacity * 3 / 4 {
                    continue;
                }
                self.edit_pair([first, second], |target, node| node.move_tail::<R, _>(0, target))?;
                self.unlink(second, level)?;
                self.edit(above.block, |parent| parent.remove::<R>(index + 1))?;
                return self.refresh(
                    Step {
                        block: above.block,
                        index,
                    },
                    level + 1,
                );
            }
        }
        self.refresh(above, level + 1)
    }

    /// Unlinks a node from its level's list and frees its block.
    fn unlink(&mut self, block: u32, level: u16) -> Result {
        let (left, right) = self.read(block, Some(level))?.siblings();
        if left != 0 {
            self.edit(left, |node| {
                let (far, _) = node.siblings();
                node.set_siblings(far, right);
                Some(())
            })?;
        }
        self.set_left(right, left)?;
        self.store.free(block)
    }

    /// Sets the left sibling of a node, if the node exists.
    fn set_left(&mut self, block: u32, left: u32) -> Result {
        if block == 0 {
            return Ok(());
        }
        self.edit(block, |node| {
            let (_, right) = node.siblings();
            node.set_siblings(left, right);
            Some(())
        })
    }

    /// Removes roots that have only one child.
    fn shrink(&mut self) -> Result {
        while self.root.level > 0 {
            let Root { block, level } = self.root;
            let node = self.read(block, Some(level))?;
            let only = node.entry::<R>(0).filter(|_| node.count() == 1);
            let empty = node.count() == 0;
            drop(node);
            let tree = self.tree;
            match only {
                Some(entry) => {
                    self.root = Root {
                        block: entry.child,
                        level: level - 1,
                    };
                    self.store.free(block)?;
                }
                // All leaves are gone: the root becomes an empty leaf.
                None if empty => {
                    self.edit(block, |node| {
                        node.init(&tree, block, 0);
                        Some(())
                    })?;
                    self.root = Root { block, level: 0 };
                }
                None => break,
            }
        }
        Ok(())
    }
}
