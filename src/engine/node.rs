// SPDX-License-Identifier: GPL-2.0

//! A tree's nodes as bytes.
//!
//! A node fills a block. Its header names the block itself, the region and the generation of the tree it belongs to, so
//! that a node that was written to the wrong place, or left behind by an older tree, is told from a good one; the
//! checksum starts from the volume's own seed, so that another volume's node is as well. Behind the header lie records
//! (level 0), or entries of a low key, the last block that anything below covers, and the child's block.
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

/// The header as it lies on disk.
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

/// Which tree nodes belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tree {
    /// The register from which checksums start.
    pub(crate) seed: u32,
    /// The region the tree covers.
    pub(crate) region: u32,
    /// Counts rebuilds.
    pub(crate) generation: u32,
}

/// An entry of a node above the leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry<K> {
    /// The least key below.
    pub(crate) low: K,
    /// The last block that any record below covers.
    pub(crate) high: u32,
    /// The child's block.
    pub(crate) child: u32,
}

/// Bytes of a record or entry at a level.
pub(crate) fn stride<R: Record>(level: u16) -> usize {
    if level == 0 {
        R::SIZE
    } else {
        R::KEY_SIZE + 8
    }
}

/// Records or entries that a node of `size` bytes has room for.
pub(crate) fn capacity<R: Record>(size: usize, level: u16) -> usize {
    (size.saturating_sub(HEADER) / stride::<R>(level)).min(usize::from(u16::MAX))
}

/// Says what is wrong with a block unless `good`.
pub(super) fn ensure(good: bool, block: u32, what: &'static str) -> Result {
    if good {
        Ok(())
    } else {
        Err(Error::Corrupt { block, what })
    }
}

/// A node's bytes, checked once by [`Node::check`].
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

    /// 0 for a leaf.
    pub(crate) fn level(&self) -> u16 {
        self.header().map_or(0, |header| header.level.get())
    }

    /// Records or entries.
    pub(crate) fn count(&self) -> usize {
        self.header().map_or(0, |header| usize::from(header.count.get()))
    }

    /// The blocks of the siblings at the same level, 0 for none.
    pub(crate) fn siblings(&self) -> (u32, u32) {
        self.header()
            .map_or((0, 0), |header| (header.left.get(), header.right.get()))
    }

    /// Checks that these are the bytes of the node of `tree` at `block` and, if it is known, at `level`.
    pub(crate) fn check<R: Record>(&self, tree: &Tree, block: u32, level: Option<u16>) -> Result {
        let header = self.magic(block)?;
        let sum = crc32c_with_hole(tree.seed, self.bytes(), CHECKSUM, 4);
        ensure(header.checksum.get() == sum, block, "checksum mismatch")?;
        self.check_identity::<R>(tree, block, level)
    }

    /// Checks bytes whose checksum is known to be right, as [`Node::check`] does.
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

    /// The header of something that looks like a node.
    fn magic(&self, block: u32) -> Result<&RawHeader> {
        let header = self.header().ok_or(Error::Corrupt {
            block,
            what: "node cut short",
        })?;
        let magic = header.magic.get();
        // The last character of the magic is the version.
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

    /// A leaf's records as they are stored.
    pub(crate) fn stored<R: Record>(&self) -> Option<&[u8]> {
        self.bytes().get(HEADER..HEADER + self.count() * R::SIZE)
    }

    /// A leaf's record.
    pub(crate) fn record<R: Record>(&self, index: usize) -> Option<R> {
        R::load(self.slot::<R>(index)?)
    }

    /// The entry of a node above the leaves.
    pub(crate) fn entry<R: Record>(&self, index: usize) -> Option<Entry<R::Key>> {
        let slot = self.slot::<R>(index)?;
        let word = |at: usize| Some(u32::from_le_bytes(slot.get(at..at + 4)?.try_into().ok()?));
        Some(Entry {
            low: R::load_key(slot)?,
            high: word(R::KEY_SIZE)?,
            child: word(R::KEY_SIZE + 4)?,
        })
    }

    /// The first at or behind `index`, and before `end`, that covers `block` or anything behind it; `end` if none does.
    /// `None` when one on the way makes no sense.
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

    /// The bytes of each from `index` up to `end`.
    fn slots<R: Record>(&self, index: usize, end: usize) -> Option<core::slice::ChunksExact<'_, u8>> {
        let stride = stride::<R>(self.level());
        let range = HEADER + index * stride..HEADER + end.min(self.count()) * stride;
        Some(self.bytes().get(range)?.chunks_exact(stride))
    }

    /// The least key at `index`, of a record or of what lies below an entry.
    pub(crate) fn key<R: Record>(&self, index: usize) -> Option<R::Key> {
        if self.level() == 0 {
            self.record::<R>(index).map(|record| record.key())
        } else {
            self.entry::<R>(index).map(|entry| entry.low)
        }
    }

    /// The number of keys that are at most `key`.
    pub(crate) fn rank<R: Record>(&self, key: R::Key) -> Option<usize> {
        self.halve::<R>(|other| other <= key)
    }

    /// The number of keys that are less than `key`.
    pub(crate) fn rank_below<R: Record>(&self, key: R::Key) -> Option<usize> {
        self.halve::<R>(|other| other < key)
    }

    /// The number of keys at the front that `before` accepts, by halving.
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

    /// The entry that a parent must have for this node: its least key and the last block it covers. `None` when it is empty.
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

    /// Makes these bytes an empty node.
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

    /// Names the siblings, 0 for none.
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

    /// Puts the checksum in place; the last thing after any change.
    pub(crate) fn seal(&mut self, tree: &Tree) {
        let sum = crc32c_with_hole(tree.seed, self.bytes(), CHECKSUM, 4);
        if let Some(header) = self.header_mut() {
            header.checksum.set(sum);
        }
    }

    /// Makes room for one at `index`; `None` when the node is full or the place is none.
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

    /// Puts records as they are stored at the end of a leaf.
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

    /// Takes out what is at `index`.
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

    /// Moves what lies from `index` on to the end of `other`, a node of the same level with room for it.
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

/// Moves records or entries from the fuller one of two neighbours of the same level to the other, until both have as many or
/// the right one has one more. `None` when they cannot be nodes of one tree.
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

/// The last block that a record or what lies below an entry covers.
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
