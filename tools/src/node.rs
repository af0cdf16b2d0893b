// SPDX-License-Identifier: GPL-2.0

//! Tree nodes and their records, as described in `docs/on-disk.md`.
//!
//! As in [`crate::format`], reading is total; [`crate::survey`] checks that a node fits into its
//! tree.

use crate::{
    format::{is_sealed, put, seal, u16_at, u32_at, Tree, NODE_HEADER},
    tree_layout::{
        HIDDEN, KIND_MASK, KIND_SHIFT, NODE_CHECKSUM, NODE_MAGIC, REFCOUNT_KEY_SIZE, REFCOUNT_SIZE,
        RMAP_KEY_SIZE, RMAP_SIZE, STAGED, UNWRITTEN,
    },
};
use anyhow::{bail, ensure, Result};

pub(crate) use crate::tree_layout::MAX_LEN;

/// Maximum number of levels of a tree.
pub const MAX_LEVELS: u16 = crate::tree_layout::MAX_LEVELS as u16;

impl Tree {
    /// Size of a record in bytes.
    fn record_size(self) -> usize {
        match self {
            Tree::Rmap => RMAP_SIZE,
            Tree::Refcount => REFCOUNT_SIZE,
        }
    }

    /// Number of u32 words in a key.
    fn key_words(self) -> usize {
        match self {
            Tree::Rmap => RMAP_KEY_SIZE / 4,
            Tree::Refcount => REFCOUNT_KEY_SIZE / 4,
        }
    }
}

/// Sort key of a record: start, owner, kind, offset. For reference counts: start, and zeroes.
pub type Key = [u32; 4];

/// Kind of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Kind {
    Data = 0,
    Mapping = 1,
    Xattr = 2,
    Cow = 3,
    /// A reference count.
    Shared = 4,
    /// CoW staging, in the reference counts.
    Staged = 5,
}

/// An extent and its owner, or its number of owners. All units are blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Record {
    /// First block, relative to the region.
    pub start: u32,
    pub len: u32,
    pub kind: Kind,
    pub unwritten: bool,
    /// Inode number; for reference counts, the number of owners.
    pub owner: u32,
    /// First block in the file; 0 for all kinds but data.
    pub offset: u32,
}

impl Record {
    /// Reads a record and checks what does not depend on other records.
    pub fn load(tree: Tree, bytes: &[u8]) -> Result<Record> {
        if tree == Tree::Refcount {
            return Self::load_count(bytes);
        }
        let packed = u32_at(bytes, 4);
        let record = Record {
            start: u32_at(bytes, 0),
            len: packed & MAX_LEN,
            kind: match (packed >> KIND_SHIFT) & KIND_MASK {
                0 => Kind::Data,
                1 => Kind::Mapping,
                2 => Kind::Xattr,
                _ => Kind::Cow,
            },
            unwritten: packed & UNWRITTEN != 0,
            owner: u32_at(bytes, 8),
            offset: u32_at(bytes, 12),
        };
        ensure!(packed & HIDDEN == 0, "a reserved bit is set");
        ensure!(record.len > 0, "its length is zero");
        ensure!(record.owner > 0, "it has no owner");
        let data = record.kind == Kind::Data;
        ensure!(data || !record.unwritten, "unwritten, but not data");
        ensure!(data || record.offset == 0, "it has an offset, but is not data");
        let last = record.len - 1;
        if record.start.checked_add(last).is_none() || record.offset.checked_add(last).is_none() {
            bail!("it extends beyond the maximum block number");
        }
        Ok(record)
    }

    fn load_count(bytes: &[u8]) -> Result<Record> {
        let start = u32_at(bytes, 0);
        let record = Record {
            start,
            len: u32_at(bytes, 4),
            kind: if start & STAGED == 0 {
                Kind::Shared
            } else {
                Kind::Staged
            },
            unwritten: false,
            owner: u32_at(bytes, 8),
            offset: 0,
        };
        ensure!(record.len > 0, "its length is zero");
        let last = start.checked_add(record.len - 1);
        if last.is_none_or(|last| (last ^ start) & STAGED != 0) {
            bail!("it extends beyond the maximum block number");
        }
        match record.kind {
            Kind::Staged => ensure!(record.owner == 1, "CoW staging with {} owners", record.owner),
            _ => ensure!(record.owner > 1, "a count of {}", record.owner),
        }
        Ok(record)
    }

    /// Returns true for a reference count record.
    pub fn is_count(&self) -> bool {
        matches!(self.kind, Kind::Shared | Kind::Staged)
    }

    /// Returns the record's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let unwritten = if self.unwritten { UNWRITTEN } else { 0 };
        let packed = self.len | ((self.kind as u32) << KIND_SHIFT) | unwritten;
        let words = if self.is_count() {
            vec![self.start, self.len, self.owner]
        } else {
            vec![self.start, packed, self.owner, self.offset]
        };
        words.into_iter().flat_map(u32::to_le_bytes).collect()
    }

    /// First block relative to the region, without the staging bit.
    pub fn first_block(&self) -> u32 {
        match self.kind {
            Kind::Staged => self.start & !STAGED,
            _ => self.start,
        }
    }

    /// Last block relative to the region, without the staging bit.
    pub fn last_block(&self) -> u32 {
        self.first_block().saturating_add(self.len.saturating_sub(1))
    }

    /// Returns the sort key.
    pub fn key(&self) -> Key {
        if self.is_count() {
            return [self.start, 0, 0, 0];
        }
        [self.start, self.owner, self.kind as u32, self.offset]
    }

    /// Last block as stored, with the staging bit.
    pub fn last(&self) -> u32 {
        self.start.saturating_add(self.len.saturating_sub(1))
    }

    /// Returns true if `next` continues this record, so that they should be merged.
    pub fn continues(&self, next: &Record) -> bool {
        let data = self.kind == Kind::Data;
        (self.kind, self.unwritten, self.owner) == (next.kind, next.unwritten, next.owner)
            && self.start.checked_add(self.len) == Some(next.start)
            && (!data || self.offset.checked_add(self.len) == Some(next.offset))
            && u64::from(self.len) + u64::from(next.len) <= u64::from(MAX_LEN)
    }

    /// Name of the kind.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Data if self.unwritten => "unwritten",
            Kind::Data => "data",
            Kind::Mapping => "mapping",
            Kind::Xattr => "xattr",
            Kind::Cow => "cow",
            Kind::Shared => "shared",
            Kind::Staged => "staged",
        }
    }
}

/// An entry of an inner node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Lowest key in the child.
    pub low: Key,
    /// Last block that any record in the child covers.
    pub high: u32,
    /// Block of the child.
    pub child: u32,
}

/// The block of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node(pub Vec<u8>, pub Tree);

impl Node {
    /// Creates an empty node without a valid checksum.
    #[cfg(test)]
    pub fn new(size: u32, block: u32, region: u32, generation: u32, level: u16) -> Node {
        let mut bytes = vec![0; size as usize];
        for (at, word) in [(0, NODE_MAGIC), (8, block), (12, region), (16, generation)] {
            put(&mut bytes, at, &word.to_le_bytes());
        }
        put(&mut bytes, 20, &level.to_le_bytes());
        Node(bytes, Tree::Rmap)
    }

    /// Level of the node; 0 for a leaf.
    pub fn level(&self) -> u16 {
        u16_at(&self.0, 20)
    }

    /// Number of records or entries.
    pub fn count(&self) -> usize {
        u16_at(&self.0, 22).into()
    }

    /// Blocks of the left and right sibling, 0 if none.
    pub fn siblings(&self) -> (u32, u32) {
        (u32_at(&self.0, 24), u32_at(&self.0, 28))
    }

    /// Sets both siblings.
    pub fn set_siblings(&mut self, left: u32, right: u32) {
        put(&mut self.0, 24, &left.to_le_bytes());
        put(&mut self.0, 28, &right.to_le_bytes());
    }

    /// Updates the checksum.
    pub fn seal(&mut self, seed: u32) {
        seal(seed, &mut self.0, NODE_CHECKSUM);
    }

    fn stride(&self) -> usize {
        if self.level() == 0 {
            self.1.record_size()
        } else {
            self.1.key_words() * 4 + 8
        }
    }

    /// Maximum number of records or entries.
    pub fn capacity(&self) -> usize {
        ((self.0.len().saturating_sub(NODE_HEADER)) / self.stride()).min(u16::MAX.into())
    }

    /// Checks that this is the node of the given tree at the given block.
    pub fn check(&self, seed: u32, block: u32, region: u32, generation: u32, level: u16) -> Result<()> {
        if self.0.iter().all(|byte| *byte == 0) {
            bail!("all zero");
        }
        ensure!(u32_at(&self.0, 0) == NODE_MAGIC, "bad magic");
        ensure!(is_sealed(seed, &self.0, NODE_CHECKSUM), "checksum mismatch");
        for (at, what, is) in [
            (8, "block", block),
            (12, "region", region),
            (16, "generation", generation),
        ] {
            let said = u32_at(&self.0, at);
            ensure!(said == is, "{what} is {said}, should be {is}");
        }
        let said = self.level();
        ensure!(said == level, "level is {said}, should be {level}");
        let (count, room) = (self.count(), self.capacity());
        ensure!(
            count <= room,
            "{count} records or entries where there is room for {room}"
        );
        Ok(())
    }

    fn slots(&self) -> impl Iterator<Item = &[u8]> {
        let body = self.0.get(NODE_HEADER..).unwrap_or(&[]);
        body.chunks_exact(self.stride()).take(self.count())
    }

    /// Returns the records of a leaf. An invalid record is an error in its position.
    pub fn records(&self) -> impl Iterator<Item = Result<Record>> + '_ {
        self.slots().map(|slot| Record::load(self.1, slot))
    }

    /// Returns the entries of an inner node.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let words = self.1.key_words();
        self.slots().map(move |slot| Entry {
            low: [0, 1, 2, 3].map(|word| if word < words { u32_at(slot, word * 4) } else { 0 }),
            high: u32_at(slot, words * 4),
            child: u32_at(slot, words * 4 + 4),
        })
    }

    fn fill(&mut self, slots: &[impl AsRef<[u8]>]) {
        self.0.iter_mut().skip(NODE_HEADER).for_each(|byte| *byte = 0);
        let count = u16::try_from(slots.len()).unwrap_or(u16::MAX);
        put(&mut self.0, 22, &count.to_le_bytes());
        let stride = self.stride();
        for (index, slot) in slots.iter().enumerate() {
            put(&mut self.0, NODE_HEADER + index * stride, slot.as_ref());
        }
    }

    /// Replaces the records of a leaf; they must fit.
    pub fn set_records(&mut self, records: &[Record]) {
        let slots: Vec<_> = records.iter().map(Record::bytes).collect();
        self.fill(&slots);
    }

    /// Replaces the entries of an inner node; they must fit.
    pub fn set_entries(&mut self, entries: &[Entry]) {
        let words = self.1.key_words();
        let slot = |entry: &Entry| -> Vec<u8> {
            let key = entry.low.iter().take(words);
            let all = key.chain([&entry.high, &entry.child]);
            all.flat_map(|word| word.to_le_bytes()).collect()
        };
        let slots: Vec<_> = entries.iter().map(slot).collect();
        self.fill(&slots);
    }
}

/// Returns the lowest key and the last block of these records, for the parent's entry.
pub fn summary(records: &[Record]) -> Option<(Key, u32)> {
    Some((records.first()?.key(), records.iter().map(Record::last).max()?))
}
