// SPDX-License-Identifier: GPL-2.0

//! Bulk loading: builds a tree bottom-up from sorted records.
//!
//! The number of records determines the geometry in advance: how many nodes each level has, with
//! the records spread evenly over them. The records are then read once, from left to right. One
//! node of each level is being filled; when it is full, it is sealed and written. No node is
//! touched twice, and blocks are claimed in the order in which they are written, leaf by leaf, so
//! that a sink that returns adjacent blocks gets large sequential writes.
//!
//! Cost: loading 10^6 sorted records, including checksums, takes a twentieth of the time of
//! inserting each one into a tree without checksums, and less than half of the time of building a
//! `BTreeMap` from them (`make bench-host`).

use super::{
    btree::Root,
    node::{capacity, Entry, Node, Tree, MAX_LEVELS},
    record::Record,
    Error, Result,
};
use kernel::prelude::*;

/// Receives the nodes of a tree under construction.
pub(crate) trait Sink {
    /// Claims one of the reserved blocks.
    fn claim(&mut self) -> Result<u32>;
    /// Writes a finished node.
    fn write(&mut self, block: u32, bytes: &[u8]) -> Result;
    /// Bytes in a block.
    fn block_size(&self) -> usize;
}

/// The layout of a tree with a given number of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Total number of records.
    pub(crate) records: u64,
    /// Number of nodes at each level, leaves first; 0 above the root.
    pub(crate) nodes: [u64; MAX_LEVELS],
    /// Level of the root.
    pub(crate) level: u16,
}

impl Geometry {
    /// Computes the geometry for nodes of `block_size` bytes of which `slack` percent stay free.
    ///
    /// Fails with [`Error::NoSpace`] if no tree can hold that many records.
    pub(crate) fn new<R: Record>(block_size: usize, records: u64, slack: u32) -> Result<Geometry> {
        let mut nodes = [0; MAX_LEVELS];
        let mut below = records;
        for (level, place) in (0u16..).zip(nodes.iter_mut()) {
            let full = capacity::<R>(block_size, level) as u64;
            // At least two entries, whatever the slack: a node above the leaves must have two
            // children.
            let filled = (full * u64::from(100 - slack.min(50)) / 100).min(full);
            *place = below.div_ceil(filled.max(2)).max(1);
            below = *place;
            if below == 1 {
                return Ok(Geometry {
                    records,
                    nodes,
                    level,
                });
            }
        }
        Err(Error::NoSpace)
    }

    /// Total number of nodes, which is the number of blocks to reserve.
    pub(crate) fn blocks(&self) -> u64 {
        self.nodes.iter().sum()
    }

    /// Number of records or entries in node `index` of a level.
    fn share(&self, level: u16, index: u64) -> u64 {
        let at = |level: usize| self.nodes.get(level).copied().unwrap_or(1).max(1);
        let items = match usize::from(level).checked_sub(1) {
            None => self.records,
            Some(below) => at(below),
        };
        let nodes = at(usize::from(level));
        items / nodes + u64::from(index < items % nodes)
    }
}

/// The node of a level that is being filled.
struct Filling {
    bytes: KVec<u8>,
    block: u32,
    left: u32,
    /// Index of the node within its level.
    index: u64,
}

/// Builds a tree in a sink.
pub(crate) struct Loader<'a, S> {
    sink: &'a mut S,
    tree: Tree,
    geometry: Geometry,
    levels: KVec<Filling>,
    taken: u64,
}

impl<'a, S: Sink> Loader<'a, S> {
    /// Starts a tree with this geometry.
    pub(crate) fn new(sink: &'a mut S, tree: Tree, geometry: Geometry) -> Result<Self> {
        let mut levels = KVec::new();
        for level in 0..=geometry.level {
            let block = sink.claim()?;
            let mut bytes = KVec::from_elem(0, sink.block_size(), GFP_KERNEL)?;
            Node(&mut *bytes).init(&tree, block, level);
            levels.push(
                Filling {
                    bytes,
                    block,
                    left: 0,
                    index: 0,
                },
                GFP_KERNEL,
            )?;
        }
        Ok(Loader {
            sink,
            tree,
            geometry,
            levels,
            taken: 0,
        })
    }

    /// Appends a record.
    ///
    /// Fails with [`Error::Mismatch`] if it does not follow the previous one, or exceeds the number
    /// of records in the geometry.
    #[allow(dead_code, reason = "tests use it")]
    pub(crate) fn push<R: Record>(&mut self, record: &R) -> Result {
        if self.taken >= self.geometry.records {
            return Err(Error::Mismatch("more records than were counted"));
        }
        let leaf = self.levels.first_mut().ok_or(Error::NoSpace)?;
        let mut node = Node(&mut *leaf.bytes);
        let count = node.count();
        if count
            .checked_sub(1)
            .and_then(|last| node.key::<R>(last))
            .is_some_and(|last| last >= record.key())
        {
            return Err(Error::Mismatch("records out of order"));
        }
        node.insert_record::<R>(count, record).ok_or(Error::NoSpace)?;
        self.taken += 1;
        self.complete::<R>(0)
    }

    /// Appends records in their stored form. The caller guarantees that they are in order.
    ///
    /// Fails as [`Loader::push`] does.
    pub(super) fn push_stored<R: Record>(&mut self, stored: &[u8]) -> Result {
        let mut rest = stored;
        while !rest.is_empty() {
            let leaf = self.levels.first_mut().ok_or(Error::NoSpace)?;
            let mut node = Node(&mut *leaf.bytes);
            let count = node.count();
            let share = self.geometry.share(0, leaf.index);
            let most = share
                .saturating_sub(count as u64)
                .min(self.geometry.records - self.taken);
            let taken = (rest.len() / R::SIZE).min(most as usize);
            if taken == 0 {
                return Err(Error::Mismatch("more records than were counted"));
            }
            let (now, later) = rest.split_at(taken * R::SIZE);
            let first = R::load(now).ok_or(Error::Mismatch("no record"))?;
            let last = count.checked_sub(1).and_then(|last| node.key::<R>(last));
            if last.is_some_and(|last| last >= first.key()) {
                return Err(Error::Mismatch("records out of order"));
            }
            node.append_stored::<R>(now).ok_or(Error::NoSpace)?;
            self.taken += taken as u64;
            self.complete::<R>(0)?;
            rest = later;
        }
        Ok(())
    }

    /// Writes the node of a level once it has its share of items, and adds its entry to the level
    /// above.
    fn complete<R: Record>(&mut self, level: u16) -> Result {
        let mut level = level;
        loop {
            let nodes = self.geometry.nodes.get(usize::from(level)).copied().unwrap_or(0);
            let share = |index| self.geometry.share(level, index);
            let filling = self.levels.get_mut(usize::from(level)).ok_or(Error::NoSpace)?;
            if (Node(&*filling.bytes).count() as u64) < share(filling.index) {
                return Ok(());
            }
            let next = if filling.index + 1 < nodes {
                self.sink.claim()?
            } else {
                0
            };
            let mut node = Node(&mut *filling.bytes);
            node.set_siblings(filling.left, next);
            node.seal(&self.tree);
            let (low, high) = node.summary::<R>().ok_or(Error::Mismatch("empty node"))?;
            let entry = Entry {
                low,
                high,
                child: filling.block,
            };
            self.sink.write(filling.block, &filling.bytes)?;
            if next != 0 {
                Node(&mut *filling.bytes).init(&self.tree, next, level);
                filling.left = filling.block;
                filling.block = next;
                filling.index += 1;
            }
            if level == self.geometry.level {
                return Ok(());
            }
            level += 1;
            let above = self.levels.get_mut(usize::from(level)).ok_or(Error::NoSpace)?;
            let mut node = Node(&mut *above.bytes);
            let count = node.count();
            node.insert_entry::<R>(count, &entry).ok_or(Error::NoSpace)?;
        }
    }

    /// Completes the tree and returns its root.
    ///
    /// Fails with [`Error::Mismatch`] if fewer records were appended than the geometry has.
    pub(crate) fn finish(mut self) -> Result<Root> {
        if self.taken != self.geometry.records {
            return Err(Error::Mismatch("fewer records than were counted"));
        }
        let root = self.levels.last_mut().ok_or(Error::NoSpace)?;
        if self.taken == 0 {
            // An empty leaf never reached its share, so it has not been written yet.
            Node(&mut *root.bytes).seal(&self.tree);
            self.sink.write(root.block, &root.bytes)?;
        }
        Ok(Root {
            block: root.block,
            level: self.geometry.level,
        })
    }
}
