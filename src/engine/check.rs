// SPDX-License-Identifier: GPL-2.0

//! Whether a tree is sound: every node what it should be, keys in order, what parents say of children, and the chains.
//!
//! [`BTree::check`] looks at the whole tree at once. [`BTree::check_step`] looks at one leaf and the way to it, and says
//! where to go on, so that others may change the tree between two steps: whoever checks a tree that is in use holds its
//! lock for a leaf at a time. A step knows from the nodes on the way, and from their neighbours where the way runs along
//! an edge, what must lie to both sides of each node and behind its last key. So steps from one end of a tree that nobody
//! changes to the other find what a check of the whole finds. [`BTree::check_leaves`] takes a step of several leaves at once
//! and lets somebody else look into each, who may know that its records are sound and in order.

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

/// The verdict of a caller who looked into a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// Nothing.
    Unknown,
    /// Its records are sound and in order.
    Sound,
    /// The step is to end before this leaf.
    Enough,
}

/// The properties that a node must have, as far as the way to it tells.
struct Place<K> {
    block: u32,
    /// The parent's entry; `None` for the root.
    entry: Option<Entry<K>>,
    /// The nodes on both sides, 0 for none.
    siblings: (u32, u32),
    /// The least key behind this node.
    beyond: Option<K>,
}

impl<S: Store, R: Record> BTree<'_, S, R> {
    /// Checks a node's own contents, and against what the parent says of them. The order of what is in it is only looked at
    /// if it is not known.
    fn check_contents(
        node: &Node<S::Read<'_>>,
        block: u32,
        entry: Option<&Entry<R::Key>>,
        in_order: bool,
    ) -> Result {
        if node.count() == 0 {
            // Only a tree without records has a node without, and that is its root.
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

    /// Checks the leaf where `from` belongs, or the first, and the nodes on the way to it, and returns where to go
    /// on: the next leaf's first key, behind `from`, or `None` behind the last leaf.
    pub(crate) fn check_step(&self, from: Option<R::Key>) -> Result<Option<R::Key>> {
        self.check_leaves(from, 1, &mut |_| Ok(Sight::Unknown))
    }

    /// Checks the leaf where `from` belongs, or the first, the leaves behind it under the same parent, at most `most` in
    /// all, and the nodes on the way to them. `look` sees each leaf's records as they are stored, before they are checked.
    /// Returns where to go on, as [`BTree::check_step`] does.
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

    /// Hands out the blocks of the leaves that [`BTree::check_leaves`] would look at.
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

    /// Checks a leaf, unless `look` finds that it is enough.
    fn check_leaf(&self, at: &Place<R::Key>, look: &mut dyn FnMut(&[u8]) -> Result<Sight>) -> Result<Sight> {
        let node = self.read(at.block, Some(0))?;
        let sight = look(node.stored::<R>().unwrap_or_default())?;
        if sight != Sight::Enough {
            self.check_place(&node, at, sight == Sight::Sound)?;
        }
        Ok(sight)
    }

    /// Checks a node against all that is known of it.
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

    /// The child that `which` of so many picks below a neighbour of a node on the way; 0 if there is no neighbour.
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
    /// Returns the size of the tree, or the first block that is wrong and how.
    #[allow(dead_code, reason = "tests use it")]
    pub(crate) fn check(&self) -> Result<Shape> {
        let mut shape = Shape::default();
        // The rightmost node seen so far at each level, for the chains.
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
