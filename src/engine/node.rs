// SPDX-License-Identifier: GPL-2.0

//! B+tree nodes as bytes.
//!
//! A node fills a block. Its header contains its own block number, and the region and generation of
//! its tree, so that a misplaced write or a leftover node of an older tree is detected. The
//! checksum is seeded per volume, so that another volume's node is detected as well. The header is
//! followed by records (level 0) or by entries (low key, last block that anything below covers,
//! child block).
//!
//! ```text
//! byte  0  magic      4  checksum   8  own block    12 region
//!      16  generation 20 level (16 bits), count (16 bits)
//!      24  left sibling's block     28 right sibling's block     (0 for none)
//!      32  records or entries
//! ```
//! All little-endian.

use super::{record::Record, Error, Result};
pub(crate) use crate::format::tree_layout::{MAX_LEVELS, NODE_HEADER as HEADER};
use crate::format::{
    csum::crc32c_with_hole,
    tree_layout::{NODE_CHECKSUM as CHECKSUM, NODE_MAGIC as MAGIC},
};
use zerocopy::little_endian::{U16, U32};
use zerocopy::FromBytes;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The header on disk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    magic: U32,
    checksum: U32,
    block: U32,
    region: U32,
    generation: U32,
    level: U16,
    count: U16,
    left: U32,
    right: U32,
}

const _: () = assert!(core::mem::size_of::<RawHeader>() == HEADER);

/// Identifies the tree that a node belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tree {
    /// The initial value of the checksums.
    pub(crate) seed: u32,
    /// The region the tree covers.
    pub(crate) region: u32,
    /// The generation, incremented by each rebuild.
    pub(crate) generation: u32,
}

/// An entry of a node above the leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry<K> {
    /// The least key below.
    pub(crate) low: K,
    /// The last block covered by any record below.
    pub(crate) high: u32,
    /// The child's block.
    pub(crate) child: u32,
}

/// Size in bytes of a record or entry at a level.
pub(crate) fn stride<R: Record>(level: u16) -> usize {
    if level == 0 {
        R::SIZE
    } else {
        R::KEY_SIZE + 8
    }
}

/// Number of records or entries that fit in a node of `size` bytes.
pub(crate) fn capacity<R: Record>(size: usize, level: u16) -> usize {
    (size.saturating_sub(HEADER) / stride::<R>(level)).min(usize::from(u16::MAX))
}

/// Returns [`Error::Corrupt`] for `block` unless `good`.
pub(super) fn ensure(good: bool, block: u32, what: &'static str) -> Result {
    if good {
        Ok(())
    } else {
        Err(Error::Corrupt { block, what })
    }
}

/// The bytes of a node, to be verified by [`Node::check`] first.
#[derive(Clone, Copy)]
pub(crate) struct Node<B>(pub(crate) B);

impl<B: AsRef<[u8]>> Node<B> {
    fn bytes(&self) -> &[u8] {
        self.0.as_ref()
    }

    fn header(&self) -> Option<&RawHeader> {
        RawHeader::ref_from_prefix(self.bytes())
            .ok()
            .map(|(header, _)| header)
    }

    /// The level; 0 for a leaf.
    pub(crate) fn level(&self) -> u16 {
        self.header().map_or(0, |header| header.level.get())
    }

    /// Number of records or entries.
    pub(crate) fn count(&self) -> usize {
        self.header().map_or(0, |header| usize::from(header.count.get()))
    }

    /// The blocks of the siblings at the same level, 0 for none.
    pub(crate) fn siblings(&self) -> (u32, u32) {
        self.header()
            .map_or((0, 0), |header| (header.left.get(), header.right.get()))
    }

    /// Verifies that these bytes are the node of `tree` at `block` and, if given, at `level`,
    /// including the checksum.
    pub(crate) fn check<R: Record>(&self, tree: &Tree, block: u32, level: Option<u16>) -> Result {
        let header = self.magic(block)?;
        let sum = crc32c_with_hole(tree.seed, self.bytes(), CHECKSUM, 4);
        ensure(header.checksum.get() == sum, block, "checksum mismatch")?;
        self.check_identity::<R>(tree, block, level)
    }

    /// Like [`Node::check`], for bytes whose checksum has been verified before.
    pub(crate) fn check_identity<R: Record>(&self, tree: &Tree, block: u32, level: Option<u16>) -> Result {
        let header = self.magic(block)?;
        ensure(header.block.get() == block, block, "node of another block")?;
        ensure(
            header.region.get() == tree.region,
            block,
            "node of another region",
        )?;
        ensure(
            header.generation.get() == tree.generation,
            block,
            "stale generation",
        )?;
        let found = header.level.get();
        ensure(usize::from(found) < MAX_LEVELS, block, "level too high")?;
        ensure(level.is_none_or(|level| level == found), block, "wrong level")?;
        let room = capacity::<R>(self.bytes().len(), found);
        ensure(self.count() <= room, block, "overfull")
    }

    /// Returns the header if the magic is right.
    fn magic(&self, block: u32) -> Result<&RawHeader> {
        let header = self.header().ok_or(Error::Corrupt {
            block,
            what: "node cut short",
        })?;
        let magic = header.magic.get();
        // The last character of the magic is the format version.
        let other_version = magic != MAGIC && magic & 0x00ff_ffff == MAGIC & 0x00ff_ffff;
        ensure(!other_version, block, "node of another version")?;
        ensure(magic == MAGIC, block, "bad magic")?;
        Ok(header)
    }

    fn slot<R: Record>(&self, index: usize) -> Option<&[u8]> {
        let stride = stride::<R>(self.level());
        let start = HEADER + index * stride;
        if index >= self.count() {
            return None;
        }
        self.bytes().get(start..start + stride)
    }

    /// Returns a leaf's records in their stored form.
    pub(crate) fn stored<R: Record>(&self) -> Option<&[u8]> {
        self.bytes().get(HEADER..HEADER + self.count() * R::SIZE)
    }

    /// Returns a record of a leaf.
    pub(crate) fn record<R: Record>(&self, index: usize) -> Option<R> {
        R::load(self.slot::<R>(index)?)
    }

    /// Returns an entry of a node above the leaves.
    pub(crate) fn entry<R: Record>(&self, index: usize) -> Option<Entry<R::Key>> {
        let slot = self.slot::<R>(index)?;
        let word = |at: usize| Some(u32::from_le_bytes(slot.get(at..at + 4)?.try_into().ok()?));
        Some(Entry {
            low: R::load_key(slot)?,
            high: word(R::KEY_SIZE)?,
            child: word(R::KEY_SIZE + 4)?,
        })
    }

    /// Returns the first index in `index..end` whose record or entry reaches `block` or a later
    /// block; `end` if there is none. Returns `None` if a record on the way is invalid.
    pub(crate) fn reaching<R: Record>(&self, index: usize, end: usize, block: u32) -> Option<usize> {
        let mut at = index;
        for slot in self.slots::<R>(index, end)? {
            if high_in::<R>(slot, self.level())? >= block {
                break;
            }
            at += 1;
        }
        Some(at)
    }

    /// Iterates over the stored bytes of the items from `index` to before `end`.
    fn slots<R: Record>(&self, index: usize, end: usize) -> Option<core::slice::ChunksExact<'_, u8>> {
        let stride = stride::<R>(self.level());
        let range = HEADER + index * stride..HEADER + end.min(self.count()) * stride;
        Some(self.bytes().get(range)?.chunks_exact(stride))
    }

    /// Returns the key of the record at `index`, or the low key of the entry there.
    pub(crate) fn key<R: Record>(&self, index: usize) -> Option<R::Key> {
        if self.level() == 0 {
            self.record::<R>(index).map(|record| record.key())
        } else {
            self.entry::<R>(index).map(|entry| entry.low)
        }
    }

    /// Returns the number of keys that are at most `key`.
    pub(crate) fn rank<R: Record>(&self, key: R::Key) -> Option<usize> {
        self.halve::<R>(|other| other <= key)
    }

    /// Returns the number of keys that are less than `key`.
    pub(crate) fn rank_below<R: Record>(&self, key: R::Key) -> Option<usize> {
        self.halve::<R>(|other| other < key)
    }

    /// Returns the number of leading keys that `before` accepts, by binary search.
    fn halve<R: Record>(&self, before: impl Fn(R::Key) -> bool) -> Option<usize> {
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let middle = low + (high - low) / 2;
            if before(self.key::<R>(middle)?) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Some(low)
    }

    /// Returns the low key and the high block for this node's entry in its parent; `None` if it is
    /// empty.
    pub(crate) fn summary<R: Record>(&self) -> Option<(R::Key, u32)> {
        let (mut high, level, count) = (0, self.level(), self.count());
        let first = if R::DISJOINT { count.saturating_sub(1) } else { 0 };
        for slot in self.slots::<R>(first, count)? {
            high = high.max(high_in::<R>(slot, level)?);
        }
        Some((self.key::<R>(0)?, high))
    }
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Node<B> {
    fn header_mut(&mut self) -> Option<&mut RawHeader> {
        RawHeader::mut_from_prefix(self.0.as_mut())
            .ok()
            .map(|(header, _)| header)
    }

    /// Initializes an empty node.
    pub(crate) fn init(&mut self, tree: &Tree, block: u32, level: u16) {
        self.0.as_mut().fill(0);
        if let Some(header) = self.header_mut() {
            header.magic.set(MAGIC);
            header.block.set(block);
            header.region.set(tree.region);
            header.generation.set(tree.generation);
            header.level.set(level);
        }
    }

    /// Sets the siblings, 0 for none.
    pub(crate) fn set_siblings(&mut self, left: u32, right: u32) {
        if let Some(header) = self.header_mut() {
            header.left.set(left);
            header.right.set(right);
        }
    }

    fn set_count(&mut self, count: usize) {
        if let Some(header) = self.header_mut() {
            header.count.set(count as u16);
        }
    }

    /// Computes and stores the checksum. Must be called after every change.
    pub(crate) fn seal(&mut self, tree: &Tree) {
        let sum = crc32c_with_hole(tree.seed, self.bytes(), CHECKSUM, 4);
        if let Some(header) = self.header_mut() {
            header.checksum.set(sum);
        }
    }

    /// Makes room for an item at `index`. Returns `None` if the node is full or the index is out of
    /// range.
    fn open<R: Record>(&mut self, index: usize) -> Option<&mut [u8]> {
        let (level, count) = (self.level(), self.count());
        let stride = stride::<R>(level);
        if index > count || count >= capacity::<R>(self.bytes().len(), level) {
            return None;
        }
        let start = HEADER + index * stride;
        let end = HEADER + count * stride;
        self.0.as_mut().copy_within(start..end, start + stride);
        self.set_count(count + 1);
        self.0.as_mut().get_mut(start..start + stride)
    }

    /// Inserts a record at `index` of a leaf.
    pub(crate) fn insert_record<R: Record>(&mut self, index: usize, record: &R) -> Option<()> {
        record.store(self.open::<R>(index)?);
        Some(())
    }

    /// Appends records in their stored form to a leaf.
    pub(crate) fn append_stored<R: Record>(&mut self, stored: &[u8]) -> Option<()> {
        let (count, more) = (self.count(), stored.len() / R::SIZE);
        if count + more > capacity::<R>(self.bytes().len(), 0) {
            return None;
        }
        let start = HEADER + count * R::SIZE;
        self.0
            .as_mut()
            .get_mut(start..start + stored.len())?
            .copy_from_slice(stored);
        self.set_count(count + more);
        Some(())
    }

    /// Replaces the record at `index` of a leaf.
    pub(crate) fn set_record<R: Record>(&mut self, index: usize, record: &R) -> Option<()> {
        if index >= self.count() {
            return None;
        }
        let start = HEADER + index * R::SIZE;
        record.store(self.0.as_mut().get_mut(start..start + R::SIZE)?);
        Some(())
    }

    /// Inserts an entry at `index` of a node above the leaves.
    pub(crate) fn insert_entry<R: Record>(&mut self, index: usize, entry: &Entry<R::Key>) -> Option<()> {
        store_entry::<R>(self.open::<R>(index)?, entry);
        Some(())
    }

    /// Replaces the entry at `index` of a node above the leaves.
    pub(crate) fn set_entry<R: Record>(&mut self, index: usize, entry: &Entry<R::Key>) -> Option<()> {
        if index >= self.count() {
            return None;
        }
        let stride = stride::<R>(self.level());
        let start = HEADER + index * stride;
        store_entry::<R>(self.0.as_mut().get_mut(start..start + stride)?, entry);
        Some(())
    }

    /// Removes the item at `index`.
    pub(crate) fn remove<R: Record>(&mut self, index: usize) -> Option<()> {
        let count = self.count();
        if index >= count {
            return None;
        }
        let stride = stride::<R>(self.level());
        let start = HEADER + index * stride;
        let end = HEADER + count * stride;
        self.0.as_mut().copy_within(start + stride..end, start);
        self.0.as_mut().get_mut(end - stride..end)?.fill(0);
        self.set_count(count - 1);
        Some(())
    }

    /// Moves the items from `index` on to the end of `other`, a node of the same level with enough
    /// room.
    pub(crate) fn move_tail<R: Record, C: AsRef<[u8]> + AsMut<[u8]>>(
        &mut self,
        index: usize,
        other: &mut Node<C>,
    ) -> Option<()> {
        let (count, there) = (self.count(), other.count());
        let moved = count.checked_sub(index)?;
        if there + moved > capacity::<R>(other.bytes().len(), other.level()) {
            return None;
        }
        let stride = stride::<R>(self.level());
        let (start, end) = (HEADER + index * stride, HEADER + count * stride);
        let target = HEADER + there * stride;
        let bytes = self.0.as_mut().get_mut(start..end)?;
        other
            .0
            .as_mut()
            .get_mut(target..target + moved * stride)?
            .copy_from_slice(bytes);
        bytes.fill(0);
        other.set_count(there + moved);
        self.set_count(index);
        Some(())
    }
}

/// Moves items from the fuller of two siblings to the other, until both have the same number or the
/// right one has one more. Returns `None` if they cannot be nodes of one tree.
pub(crate) fn even_out<R: Record, A, B>(left: &mut Node<A>, right: &mut Node<B>) -> Option<()>
where
    A: AsRef<[u8]> + AsMut<[u8]>,
    B: AsRef<[u8]> + AsMut<[u8]>,
{
    let (few, many) = (left.count(), right.count());
    let target = (few + many) / 2;
    let stride = stride::<R>(left.level());
    let place = |index: usize| HEADER + index * stride;
    if few > target {
        let moved = few - target;
        let bytes = right.0.as_mut();
        bytes.get(place(0)..place(many + moved))?;
        bytes.copy_within(place(0)..place(many), place(moved));
        let tail = left.0.as_mut().get_mut(place(target)..place(few))?;
        bytes.get_mut(place(0)..place(moved))?.copy_from_slice(tail);
        tail.fill(0);
    } else {
        let moved = target - few;
        let bytes = right.0.as_mut();
        let head = bytes.get(place(0)..place(moved))?;
        left.0
            .as_mut()
            .get_mut(place(few)..place(target))?
            .copy_from_slice(head);
        bytes.copy_within(place(moved)..place(many), place(0));
        bytes.get_mut(place(many - moved)..place(many))?.fill(0);
    }
    left.set_count(target);
    right.set_count(few + many - target);
    Some(())
}

/// Returns the last block covered by a record, or by anything below an entry.
fn high_in<R: Record>(slot: &[u8], level: u16) -> Option<u32> {
    if level == 0 {
        return R::last_in(slot);
    }
    let word = slot.get(R::KEY_SIZE..R::KEY_SIZE + 4)?;
    Some(u32::from_le_bytes(word.try_into().ok()?))
}

fn store_entry<R: Record>(slot: &mut [u8], entry: &Entry<R::Key>) {
    let (key, words) = slot.split_at_mut(R::KEY_SIZE);
    R::store_key(entry.low, key);
    let (high, child) = words.split_at_mut(4);
    high.copy_from_slice(&entry.high.to_le_bytes());
    child.copy_from_slice(&entry.child.to_le_bytes());
}
