// SPDX-License-Identifier: GPL-2.0

//! Checking a tree: that every node is intact, keys are in order, parents' entries match their
//! children, and each level is linked correctly.
//!
//! [`BTree::check`] checks the whole tree at once. [`BTree::check_step`] checks one leaf and the
//! path to it, and returns where to continue, so that a checker of a tree in use holds the tree's
//! lock for one leaf at a time and the tree may change between steps. A step knows from the nodes
//! on the path, and from their siblings where the path runs along an edge, the neighbours of each
//! node and the bound of its keys. So if the tree does not change, steps from one end to the other
//! find everything that a check of the whole tree finds. [`BTree::check_leaves`] checks several
//! leaves in one step and lets a callback look at each leaf first, which may already know that its
//! records are valid and in order.

use super::{
    btree::{BTree, Root, Store},
    node::{ensure, Entry, Node, MAX_LEVELS},
    record::Record,
    Error, Result,
};

/// The size of a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
#[allow(dead_code, reason = "tests use it")]
pub(crate) struct Shape {
    pub(crate) records: u64,
    pub(crate) nodes: u64,
}

/// The callback's verdict on a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// The records have not been checked.
    Unknown,
    /// The records are valid and in order.
    Sound,
    /// The step must end before this leaf.
    Enough,
}

/// The properties that a node must have according to the path to it.
struct Place<K> {
    block: u32,
    /// The parent's entry for it; `None` for the root.
    entry: Option<Entry<K>>,
    /// The siblings, 0 for none.
    siblings: (u32, u32),
    /// The least key of the next node.
    beyond: Option<K>,
}

impl<S: Store, R: Record> BTree<'_, S, R> {
    /// Checks the contents of a node, also against its parent's entry. Skips the order of the
    /// records if it is known to be right.
    fn check_contents(
        node: &Node<S::Read<'_>>,
        block: u32,
        entry: Option<&Entry<R::Key>>,
        in_order: bool,
    ) -> Result {
        if node.count() == 0 {
            // Only the root of an empty tree may be empty.
            return ensure(entry.is_none() && node.level() == 0, block, "empty node");
        }
        let bad = Error::Corrupt {
            block,
            what: "bad record",
        };
        let (low, high) = node.summary::<R>().ok_or(bad)?;
        if let Some(entry) = entry {
            ensure(entry.low == low, block, "wrong low key")?;
            ensure(entry.high == high, block, "wrong high block")?;
        }
        if in_order {
            return Ok(());
        }
        let mut before = low;
        for index in 1..node.count() {
            let key = node.key::<R>(index).ok_or(bad)?;
            ensure(before < key, block, "keys out of order")?;
            before = key;
        }
        Ok(())
    }

    /// Checks the leaf where `from` belongs (or the first leaf) and the nodes on the path to it.
    /// Returns the first key of the next leaf, which is greater than `from`, or `None` after the
    /// last leaf.
    pub(crate) fn check_step(&self, from: Option<R::Key>) -> Result<Option<R::Key>> {
        self.check_leaves(from, 1, &mut |_| Ok(Sight::Unknown))
    }

    /// Checks the leaf where `from` belongs (or the first leaf), the leaves after it under the same
    /// parent, at most `most` in total, and the nodes on the path to them. `look` is called with
    /// each leaf's stored records before they are checked. Returns where to continue, as
    /// [`BTree::check_step`] does.
    pub(super) fn check_leaves(
        &self,
        from: Option<R::Key>,
        most: usize,
        look: &mut dyn FnMut(&[u8]) -> Result<Sight>,
    ) -> Result<Option<R::Key>> {
        let mut level = self.root.level;
        let mut at = Place {
            block: self.root.block,
            entry: None,
            siblings: (0, 0),
            beyond: None,
        };
        loop {
            let block = at.block;
            let Some(below) = level.checked_sub(1) else {
                self.check_leaf(&at, look)?;
                return Ok(at.beyond);
            };
            let node = self.read(block, Some(level))?;
            self.check_place(&node, &at, false)?;
            let bad = Error::Corrupt {
                block,
                what: "bad record",
            };
            let rank = from.map_or(Some(0), |from| node.rank::<R>(from)).ok_or(bad)?;
            let mut index = rank.saturating_sub(1);
            let end = match level {
                1 => index.saturating_add(most),
                _ => index + 1,
            };
            loop {
                let below = self.child(&node, &at, level, index)?;
                index += 1;
                if level > 1 {
                    at = below;
                    break;
                }
                if self.check_leaf(&below, look)? == Sight::Enough {
                    return Ok(below.entry.map(|entry| entry.low));
                }
                if index >= end.min(node.count()) {
                    return Ok(below.beyond);
                }
            }
            level = below;
        }
    }

    /// Calls back with the blocks of the leaves that [`BTree::check_leaves`] would check.
    pub(super) fn leaves_from(
        &self,
        from: Option<R::Key>,
        most: usize,
        out: &mut dyn FnMut(u32) -> Result,
    ) -> Result {
        let (mut block, mut level) = (self.root.block, self.root.level);
        while level > 0 {
            let node = self.read(block, Some(level))?;
            let bad = Error::Corrupt {
                block,
                what: "bad record",
            };
            let rank = from.map_or(Some(0), |from| node.rank::<R>(from)).ok_or(bad)?;
            let index = rank.saturating_sub(1);
            block = node.entry::<R>(index).ok_or(bad)?.child;
            if level == 1 {
                for index in index + 1..index.saturating_add(most).min(node.count()) {
                    out(block)?;
                    block = node.entry::<R>(index).ok_or(bad)?.child;
                }
            }
            level -= 1;
        }
        out(block)
    }

    /// Checks a leaf, unless `look` returns [`Sight::Enough`].
    fn check_leaf(&self, at: &Place<R::Key>, look: &mut dyn FnMut(&[u8]) -> Result<Sight>) -> Result<Sight> {
        let node = self.read(at.block, Some(0))?;
        let sight = look(node.stored::<R>().unwrap_or_default())?;
        if sight != Sight::Enough {
            self.check_place(&node, at, sight == Sight::Sound)?;
        }
        Ok(sight)
    }

    /// Checks a node against everything that is known about it.
    fn check_place(&self, node: &Node<S::Read<'_>>, at: &Place<R::Key>, in_order: bool) -> Result {
        ensure(node.siblings() == at.siblings, at.block, "wrong sibling")?;
        Self::check_contents(node, at.block, at.entry.as_ref(), in_order)?;
        let last = node.count().checked_sub(1).and_then(|last| node.key::<R>(last));
        let ends = at.beyond.is_none_or(|beyond| last < Some(beyond));
        ensure(ends, at.block, "keys out of order")
    }

    /// Returns the properties that the child of entry `index` of a node must have.
    fn child(
        &self,
        node: &Node<S::Read<'_>>,
        at: &Place<R::Key>,
        level: u16,
        index: usize,
    ) -> Result<Place<R::Key>> {
        let bad = Error::Corrupt {
            block: at.block,
            what: "bad record",
        };
        let entry = node.entry::<R>(index).ok_or(bad)?;
        let next = node.entry::<R>(index + 1);
        let left = match index.checked_sub(1) {
            Some(before) => node.entry::<R>(before).ok_or(bad)?.child,
            None => self.outermost(at.siblings.0, level, |count| count.checked_sub(1))?,
        };
        let right = match next {
            Some(next) => next.child,
            None => self.outermost(at.siblings.1, level, |_| Some(0))?,
        };
        Ok(Place {
            block: entry.child,
            entry: Some(entry),
            siblings: (left, right),
            beyond: next.map(|next| next.low).or(at.beyond),
        })
    }

    /// Descends from `block`, a sibling of a node on the path, to its child at the index that
    /// `which` selects; returns 0 if there is no sibling.
    fn outermost(&self, block: u32, level: u16, which: impl Fn(usize) -> Option<usize>) -> Result<u32> {
        if block == 0 {
            return Ok(0);
        }
        let node = self.read(block, Some(level))?;
        let entry = which(node.count()).and_then(|index| node.entry::<R>(index));
        Ok(entry
            .ok_or(Error::Corrupt {
                block,
                what: "empty node",
            })?
            .child)
    }

    /// Checks the whole tree.
    ///
    /// Returns the tree's size. Fails with the first invalid block and the defect.
    #[allow(dead_code, reason = "tests use it")]
    pub(crate) fn check(&self) -> Result<Shape> {
        let mut shape = Shape::default();
        // The rightmost node seen so far at each level, to check the sibling links.
        let mut edges = [0u32; MAX_LEVELS];
        let mut last_key = None;
        self.check_below(self.root, None, &mut edges, &mut last_key, &mut shape)?;
        for (level, &block) in (0u16..).zip(edges.iter()).take(usize::from(self.root.level) + 1) {
            let (_, right) = self.read(block, Some(level))?.siblings();
            ensure(right == 0, block, "wrong sibling")?;
        }
        Ok(shape)
    }

    #[allow(dead_code, reason = "tests use it")]
    fn check_below(
        &self,
        at: Root,
        parent: Option<Entry<R::Key>>,
        edges: &mut [u32; MAX_LEVELS],
        last_key: &mut Option<R::Key>,
        shape: &mut Shape,
    ) -> Result {
        let Root { block, level } = at;
        let node = self.read(block, Some(level))?;
        shape.nodes += 1;
        let bad = Error::Corrupt {
            block,
            what: "bad record",
        };
        let edge = edges.get_mut(usize::from(level)).ok_or(bad)?;
        ensure(node.siblings().0 == *edge, block, "wrong sibling")?;
        if *edge != 0 {
            let (_, right) = self.read(*edge, Some(level))?.siblings();
            ensure(right == block, *edge, "wrong sibling")?;
        }
        *edge = block;
        Self::check_contents(&node, block, parent.as_ref(), false)?;
        let Some(below) = level.checked_sub(1) else {
            let (first, last) = match node.count().checked_sub(1) {
                None => return Ok(()),
                Some(last) => (node.key::<R>(0), node.key::<R>(last)),
            };
            ensure(
                last_key.is_none() || *last_key < first,
                block,
                "keys out of order",
            )?;
            *last_key = last;
            shape.records += node.count() as u64;
            return Ok(());
        };
        for index in 0..node.count() {
            let entry = node.entry::<R>(index).ok_or(bad)?;
            let child = Root {
                block: entry.child,
                level: below,
            };
            self.check_below(child, Some(entry), edges, last_key, shape)?;
        }
        Ok(())
    }
}
