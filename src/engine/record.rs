// SPDX-License-Identifier: GPL-2.0

//! The reverse map's records: each is a run of blocks and one owner of it.
//!
//! A run is within a region; blocks are counted from the region's start. Since files can share
//! blocks, several records may cover a block. Records are kept maximal: adjacent records that
//! continue each other are merged ([`Rmap::continues`]), so that each set of owned blocks has
//! exactly one representation, regardless of history.

pub(crate) use crate::format::tree_layout::MAX_LEN;
use crate::format::tree_layout::{HIDDEN, KIND_MASK, KIND_SHIFT, RMAP_KEY_SIZE, RMAP_SIZE, UNWRITTEN};
use zerocopy::little_endian::U32;

/// A record of an ordered index: fixed size, ordered by its key, covering a run of blocks.
pub(crate) trait Record: Copy + PartialEq {
    /// The sort key. No two records of a tree have the same key.
    type Key: Copy + Ord;
    /// Size of a record in bytes.
    const SIZE: usize;
    /// Size of a key in bytes.
    const KEY_SIZE: usize;
    /// True if no two records of a tree cover the same block; they then end in the order in which
    /// they start.
    const DISJOINT: bool;

    /// The record's key.
    fn key(&self) -> Self::Key;
    /// The first block it covers.
    fn first(&self) -> u32;
    /// The last block it covers.
    fn last(&self) -> u32;
    /// Writes it to `SIZE` bytes.
    fn store(&self, bytes: &mut [u8]);
    /// Reads it from `SIZE` bytes; returns `None` if they are not a valid record.
    fn load(bytes: &[u8]) -> Option<Self>;
    /// Returns the last block covered by a stored record, or `None` if it is invalid. Other fields
    /// need not be checked.
    fn last_in(bytes: &[u8]) -> Option<u32> {
        Self::load(bytes).map(|record| record.last())
    }
    /// Writes a key to `KEY_SIZE` bytes.
    fn store_key(key: Self::Key, bytes: &mut [u8]);
    /// Reads a key from `KEY_SIZE` bytes.
    fn load_key(bytes: &[u8]) -> Option<Self::Key>;
    /// The least key of a record that starts at `block`.
    fn key_from(block: u32) -> Self::Key;
}

/// How an owner uses its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Data of a file or directory.
    Data = 0,
    /// Mapping metadata of a file: extent-tree nodes, indirect blocks.
    Mapping = 1,
    /// Extended attributes.
    Xattr = 2,
    /// CoW staging: allocated for copy-on-write, not yet mapped.
    Cow = 3,
}

/// A run of blocks and one owner of it. All lengths and offsets are in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rmap {
    /// First block, within the region.
    pub(crate) start: u32,
    /// Number of blocks, 1 to [`MAX_LEN`].
    pub(crate) len: u32,
    /// The inode that owns them.
    pub(crate) owner: u32,
    /// Offset of the first block within the file; 0 for all kinds except data.
    pub(crate) offset: u32,
    /// The use of the blocks.
    pub(crate) kind: Kind,
    /// True for data that is allocated but unwritten.
    pub(crate) unwritten: bool,
}

/// The sort key of the reverse map: the block, then its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub(crate) struct RmapKey {
    pub(crate) start: u32,
    pub(crate) owner: u32,
    pub(crate) kind: u32,
    pub(crate) offset: u32,
}

impl Rmap {
    /// Returns true if `next` continues this record: same owner, kind and state, the next blocks on
    /// disk and, for data, the next blocks in the file.
    pub(crate) fn continues(&self, next: &Rmap) -> bool {
        let end = u64::from(self.start) + u64::from(self.len);
        let file_end = u64::from(self.offset) + u64::from(self.len);
        self.owner == next.owner
            && self.kind == next.kind
            && self.unwritten == next.unwritten
            && end == u64::from(next.start)
            && (self.kind != Kind::Data || file_end == u64::from(next.offset))
            && u64::from(self.len) + u64::from(next.len) <= u64::from(MAX_LEN)
    }

    /// Returns true if both records assign a common block to the same owner for the same purpose,
    /// written or not.
    pub(crate) fn clashes(&self, other: &Rmap) -> bool {
        let place = |record: &Rmap| i64::from(record.offset) - i64::from(record.start);
        (self.owner, self.kind) == (other.owner, other.kind)
            && self.start <= other.last()
            && other.start <= self.last()
            && (self.kind != Kind::Data || place(self) == place(other))
    }

    /// Returns true if this record covers all of `part`, with the same owner, kind, state and file
    /// offset.
    pub(crate) fn covers(&self, part: &Rmap) -> bool {
        let Some(skipped) = part.start.checked_sub(self.start) else {
            return false;
        };
        self.owner == part.owner
            && self.kind == part.kind
            && self.unwritten == part.unwritten
            && u64::from(skipped) + u64::from(part.len) <= u64::from(self.len)
            && (self.kind != Kind::Data
                || u64::from(self.offset) + u64::from(skipped) == u64::from(part.offset))
    }

    /// Returns the remainders of this record before and after `part`, which it covers.
    pub(crate) fn without(&self, part: &Rmap) -> (Option<Rmap>, Option<Rmap>) {
        let before = part.start.saturating_sub(self.start);
        let skip = before.saturating_add(part.len);
        let after = self.len.saturating_sub(skip);
        let step = |by: u32| if self.kind == Kind::Data { by } else { 0 };
        let head = Rmap { len: before, ..*self };
        let tail = Rmap {
            start: self.start.saturating_add(skip),
            len: after,
            offset: self.offset.saturating_add(step(skip)),
            ..*self
        };
        ((before > 0).then_some(head), (after > 0).then_some(tail))
    }
}

impl Rmap {
    /// Returns the key of a stored record as two words with the same order, without validating the
    /// record.
    pub(super) fn words(stored: &[u8; Rmap::SIZE]) -> [u64; 2] {
        let [start, packed, owner, offset]: [U32; 4] = zerocopy::transmute!(*stored);
        let wide = |high: u32, low: u32| (u64::from(high) << 32) | u64::from(low);
        [
            wide(start.get(), owner.get()),
            wide((packed.get() >> KIND_SHIFT) & KIND_MASK, offset.get()),
        ]
    }
}

impl RmapKey {
    /// Returns the key as two words with the same order.
    pub(super) fn words(&self) -> [u64; 2] {
        let wide = |high: u32, low: u32| (u64::from(high) << 32) | u64::from(low);
        [wide(self.start, self.owner), wide(self.kind, self.offset)]
    }
}

impl Record for Rmap {
    type Key = RmapKey;
    const SIZE: usize = RMAP_SIZE;
    const KEY_SIZE: usize = RMAP_KEY_SIZE;
    const DISJOINT: bool = false;

    fn key(&self) -> RmapKey {
        RmapKey {
            start: self.start,
            owner: self.owner,
            kind: self.kind as u32,
            offset: self.offset,
        }
    }

    fn first(&self) -> u32 {
        self.start
    }

    fn last(&self) -> u32 {
        self.start.saturating_add(self.len.saturating_sub(1))
    }

    fn store(&self, bytes: &mut [u8]) {
        let unwritten = if self.unwritten { UNWRITTEN } else { 0 };
        let packed = self.len & MAX_LEN | ((self.kind as u32) << KIND_SHIFT) | unwritten;
        store_words(bytes, [self.start, packed, self.owner, self.offset]);
    }

    fn load(bytes: &[u8]) -> Option<Self> {
        let [start, packed, owner, offset] = load_words(bytes)?;
        let kind = match (packed >> KIND_SHIFT) & KIND_MASK {
            0 => Kind::Data,
            1 => Kind::Mapping,
            2 => Kind::Xattr,
            _ => Kind::Cow,
        };
        let found = Rmap {
            start,
            len: packed & MAX_LEN,
            owner,
            offset,
            kind,
            unwritten: packed & UNWRITTEN != 0,
        };
        let sound = packed & HIDDEN == 0
            && found.len > 0
            && start.checked_add(found.len - 1).is_some()
            && offset.checked_add(found.len - 1).is_some()
            && (kind == Kind::Data || !found.unwritten && offset == 0);
        sound.then_some(found)
    }

    fn last_in(bytes: &[u8]) -> Option<u32> {
        let [start, packed] = load_words(bytes)?;
        start.checked_add((packed & MAX_LEN).checked_sub(1)?)
    }

    fn store_key(key: RmapKey, bytes: &mut [u8]) {
        store_words(bytes, [key.start, key.owner, key.kind, key.offset]);
    }

    fn load_key(bytes: &[u8]) -> Option<RmapKey> {
        let [start, owner, kind, offset] = load_words(bytes)?;
        Some(RmapKey {
            start,
            owner,
            kind,
            offset,
        })
    }

    fn key_from(block: u32) -> RmapKey {
        RmapKey {
            start: block,
            owner: 0,
            kind: 0,
            offset: 0,
        }
    }
}

/// Stores consecutive little-endian words.
pub(super) fn store_words<const N: usize>(bytes: &mut [u8], words: [u32; N]) {
    for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}

/// Loads words stored by [`store_words`].
pub(super) fn load_words<const N: usize>(bytes: &[u8]) -> Option<[u32; N]> {
    let mut words = [0; N];
    for (index, word) in words.iter_mut().enumerate() {
        *word = u32::from_le_bytes(bytes.get(index * 4..index * 4 + 4)?.try_into().ok()?);
    }
    Some(words)
}
