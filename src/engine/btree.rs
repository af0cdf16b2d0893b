// SPDX-License-Identifier: GPL-2.0

//! The B+tree: lookup, insertion, deletion, and overlap queries.
//!
//! All records lie in the leaves, in order of their keys, and the nodes of each level are chained from left to right. An
//! entry above the leaves holds besides its child's least key the last block that anything below it covers, so that
//! "what covers block B" looks only into nodes that can answer, also where many records overlap.
//!
//! A change looks at everything that it will touch, and takes the blocks that it will need, before it changes the first
//! byte: it either happens or leaves the tree as it was. The one exception is a store that cannot give a block for writing
//! ([`Store::modify`]) that it has just let be read: such a failure can leave a tree that must be checked and rebuilt.
//!
//! A leaf that is full first shares with a neighbour that is not, and is split only when there is none. So nodes are a fifth
//! empty rather than two fifths, and a record takes 20 bytes in memory whatever the order in which they come.
//!
//! Why so: the same code keeps the tree on disk and the one in memory, and both answer what overlaps. A change of an owner
//! takes two to three times as long as in a `BTreeMap` of 10^6 records, which has no checksums, joins nothing and answers no
//! such question (`make bench-host`).

use super::{
    node::{capacity, ensure, even_out, Entry, Node, Tree, MAX_LEVELS},
    record::Record,
    Error, Result,
};

/// A neighbour is worth sharing with when so great a part of a leaf is free in it.
const WORTH: usize = 8;

/// A node that is being changed.
type Edit<'n> = Node<&'n mut [u8]>;

/// Where nodes come from.
pub(crate) trait Store {
    /// A node's bytes.
    type Read<'a>: AsRef<[u8]>
    where
        Self: 'a;

    /// Whether nodes can come to harm outside memory, so that they carry checksums and are checked when they are read.
    const SEALED: bool;

    /// Reads a block of the tree's file.
    fn read(&self, block: u32) -> Result<Self::Read<'_>>;
    /// Calls `change` once to change a block; nothing is kept when this fails.
    fn modify(&mut self, block: u32, change: &mut dyn FnMut(&mut [u8])) -> Result;
    /// Calls `change` once to change two different blocks; nothing is kept when this fails.
    fn modify_pair(&mut self, blocks: [u32; 2], change: &mut dyn FnMut(&mut [u8], &mut [u8])) -> Result;
    /// Takes a free block. Its contents are anything.
    fn alloc(&mut self) -> Result<u32>;
    /// Gives a block back.
    fn free(&mut self, block: u32) -> Result;
    /// Bytes of a block.
    fn block_size(&self) -> usize;

    /// Whether the checksum of these bytes was found right since they were read from where they can come to harm
    /// ([`Store::set_checked`]), so that it need not be summed again. Changes by [`Store::modify`] keep it right.
    fn is_checked(&self, _read: &Self::Read<'_>) -> bool {
        false
    }
    /// Notes that the checksum of these bytes is right. A store over cached buffers keeps this with the buffer, and must
    /// forget it when the buffer is read again or filled by any other way than [`Store::modify`].
    fn set_checked(&self, _read: &Self::Read<'_>) {}
}

/// Where a tree starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    /// The root's block.
    pub(crate) block: u32,
    /// Its level: 0 when it is the only leaf.
    pub(crate) level: u16,
}

/// One node on the way from the root to a leaf, and the place in it that the way takes.
#[derive(Clone, Copy, Default)]
struct Step {
    block: u32,
    index: usize,
}

/// The way to a leaf: `steps[level]`, the leaf's index being where a key belongs.
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

/// A record that was found in a leaf.
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
    /// Where it starts; changes as it grows and shrinks.
    pub(crate) root: Root,
    /// Records inserted since it was opened, less those deleted.
    pub(crate) gained: i64,
    records: core::marker::PhantomData<R>,
}

impl<'a, S: Store, R: Record> BTree<'a, S, R> {
    /// Opens the tree that starts at `root`.
    pub(crate) fn open(store: &'a mut S, tree: Tree, root: Root) -> Self {
        BTree {
            store,
            tree,
            root,
            gained: 0,
            records: core::marker::PhantomData,
        }
    }

    /// Makes an empty tree.
    pub(crate) fn create(store: &'a mut S, tree: Tree) -> Result<Self> {
        let block = store.alloc()?;
        let mut made = Self::open(store, tree, Root { block, level: 0 });
        made.edit(block, |node| {
            node.init(&tree, block, 0);
            Some(())
        })?;
        Ok(made)
    }

    /// Reads a node and sees that it is the one it should be.
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

    /// Changes a node that was read before, and seals it.
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

    /// Changes two nodes at once, and seals both.
    fn edit_pair(
        &mut self,
        blocks: [u32; 2],
        mut change: impl FnMut(&mut Edit<'_>, &mut Edit<'_>) -> Option<()>,
    ) -> Result {
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

    /// The way to the leaf where `key` belongs; the leaf's step counts the keys that are at most `key`.
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

    /// The first key of the leaf where `key` belongs; `None` when there is nothing in it.
    pub(super) fn leaf_low(&self, key: R::Key) -> Result<Option<R::Key>> {
        let leaf = self.descend(key)?.at(0);
        Ok(self.read(leaf.block, Some(0))?.key::<R>(0))
    }

    /// Records that a leaf has room for.
    pub(super) fn leaf_capacity(&self) -> usize {
        capacity::<R>(self.store.block_size(), 0)
    }

    /// The record of this key.
    #[allow(dead_code, reason = "tests use it")]
    pub(crate) fn get(&self, key: R::Key) -> Result<Option<R>> {
        let leaf = self.descend(key)?.at(0);
        let Some(index) = leaf.index.checked_sub(1) else {
            return Ok(None);
        };
        let node = self.read(leaf.block, Some(0))?;
        Ok(node.record::<R>(index).filter(|record| record.key() == key))
    }

    /// Hands `visit` every record that covers any of the blocks from `first` to `last`, in order of their keys, until it
    /// returns false.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when a node on the way is not what it must be. No node is visited twice, whatever the tree holds.
    pub(crate) fn overlapping(
        &self,
        first: u32,
        last: u32,
        visit: &mut dyn FnMut(&R) -> Result<bool>,
    ) -> Result {
        self.overlapping_below(self.root, None, None, (first, last), visit)
            .map(drop)
    }

    /// `low` is the least key of the node according to its parent, `beyond` a bound for all keys below.
    ///
    /// The low keys that are visited at each level rise strictly, and each node has its own, so no node is visited twice.
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
        // Keys from here on start behind what is asked for.
        let end = match last.checked_add(1).map(R::key_from) {
            None => node.count(),
            // Keys that are equal to it lie behind it as well.
            Some(behind) => node.rank_below::<R>(behind).ok_or(bad)?,
        };
        let mut index = 0;
        if R::DISJOINT {
            // Only the last one that starts before `first` can reach it.
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

    /// Adds a record. Fails with [`Error::Mismatch`] when there is one of the same key.
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

        // Whatever must be split is known, and every block is taken, before anything changes.
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

    /// Shares what is in a full leaf with a neighbour under the same parent that has room, if there is one, rather than
    /// have it split: nodes that are split whenever they are full stay little more than half full when records come in runs.
    /// At the right edge of the tree it is left to be split, since that leaves full nodes. Returns whether anything moved.
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
            // Room for this one in either, and so much that it is not done again at once.
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

    /// Takes a block for each full node on the way up and one more for a new root, and reads the siblings that will have
    /// to be told.
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

    /// Inserts below and tells everyone above, splitting with the blocks of `fresh`, lowest level first.
    fn insert_along(&mut self, path: &Path, record: &R, fresh: [u32; MAX_LEVELS + 1]) -> Result {
        let mut fresh = fresh.into_iter();
        let mut next_block = || fresh.next().filter(|&block| block != 0).ok_or(Error::NoSpace);
        // The node that a split made, for the level above to take in.
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
            // Appending to the right edge leaves the full node as it is: whoever fills in order leaves full nodes.
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

    /// Puts a new root above the old one and the node that its split made.
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

    /// Makes the entry that a step took say that its child holds one more record.
    fn widen(&mut self, step: Step, level: u16, record: &R) -> Result {
        let node = self.read(step.block, Some(level))?;
        let old = node.entry::<R>(step.index).ok_or(Error::Corrupt {
            block: step.block,
            what: "bad record",
        })?;
        drop(node);
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

    /// Makes the entry that a step took say of its child what is true.
    fn refresh(&mut self, step: Step, level: u16) -> Result {
        let node = self.read(step.block, Some(level))?;
        let old = node.entry::<R>(step.index).ok_or(Error::Corrupt {
            block: step.block,
            what: "bad record",
        })?;
        drop(node);
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

    /// The way to the record of this key, its place in the leaf, and the record.
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

    /// Finds a record that is to be deleted, and reads whatever the deletion may have to tell, so that a node that
    /// cannot be read is known before anything changes.
    pub(super) fn doom(&self, key: R::Key) -> Result<Located<R>> {
        let doomed = self.locate(key)?;
        self.look_around(&doomed.path)?;
        Ok(doomed)
    }

    /// Deletes what [`BTree::doom`] found. Nothing that moves records or nodes may have come between.
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

    /// Removes a record and returns it. Fails with [`Error::Mismatch`] when there is none.
    pub(crate) fn delete(&mut self, key: R::Key) -> Result<R> {
        let doomed = self.doom(key)?;
        self.delete_doomed(doomed)
    }

    /// Puts `new` in the place of the record of `old_key`. Fails with [`Error::Mismatch`] when there is none, or when
    /// another one has the key of `new`.
    ///
    /// A record that keeps its key, or whose new key belongs into the same leaf, is changed where it lies: only the nodes
    /// on the way to it change, nothing moves, and no block is needed. Otherwise the new one is inserted before the old
    /// one is deleted: only the insertion can want for a block, and then the tree is as it was.
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

    /// Where in its leaf the record at `index` belongs if its key becomes `new`; `None` if it belongs into another leaf.
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
            // In a leaf whose keys are in order this is less than their count.
            let target = there.index.saturating_sub(usize::from(old < new));
            return Ok(Some(target.min(node.count().saturating_sub(1))));
        }
        // Behind everything in the leaf on the left is also before everything in this one.
        let between = index == 0 && there.index == node.count() && node.siblings().1 == leaf.block;
        Ok(between.then_some(0))
    }

    /// Reads the neighbours that a deletion may have to tell, so that a bad one is known before anything changes.
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

    /// After something was taken from the node of this level on the way: throws it away if it is empty, joins it with a
    /// neighbour under the same parent if both are small, and makes the parent say what is true.
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

    /// Takes a node out of its level's chain and gives its block back.
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

    /// Stores the left sibling of a node, if there is one.
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

    /// Takes away roots that lead to one node only.
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
                // Every leaf went: the root becomes one.
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
