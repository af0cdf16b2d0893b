// SPDX-License-Identifier: GPL-2.0

//! The index of a hashed directory: hashes of names, index blocks, and splitting blocks by hash.
//!
//! The first block of a hashed directory is the root of the index: `.` and `..`, the root header,
//! and entries. Each entry holds the lowest hash of the block it leads to; the first entry leads
//! to all lower hashes, and has the limit and the count of entries in place of a hash. The root
//! leads to the leaves, which are linear blocks, or to one or two levels of nodes in between. Names
//! with one hash may extend over several leaves; the lowest bit of the entries of those after the
//! first one is set, and is no part of the hash.
//!
//! Source: `Documentation/filesystems/ext4/directory.rst`.

use super::{
    csum::crc32c,
    dir::{names_end, Entries},
    dir_edit::{self, clear, put, room, start},
    ensure,
    superblock::{incompat, Layout},
    Checked, Corrupt,
};
use crate::sort;

const SHORT: Corrupt = Corrupt("directory index block cut short");

/// Bytes of the root before its header: `.` and `..`.
const DOTS: usize = 24;
/// Bytes of the root header that are in use; its length is a field of it.
const INFO: u8 = 8;
/// Bytes of a node before its entries.
const FAKE: usize = 8;
/// Bytes of an entry.
const ENTRY: usize = 8;
/// Bytes of the checksum after the last possible entry, and of the reserved word before it.
const TAIL: usize = 8;
/// Bits of an entry that are the number of a block.
const CHILD: u32 = 0x0fff_ffff;
/// The highest hash, which means the end of a directory and is not given to a name.
const END: u32 = 0xffff_fffe;

/// The hash of a name: directories are in the order of both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Hash {
    /// The hash that the index is made of. Its lowest bit is 0.
    pub(crate) major: u32,
    /// A second hash, to tell names with the same first one apart; 0 with the legacy hash.
    pub(crate) minor: u32,
}

/// A hash function for names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hasher {
    kind: Kind,
    /// The bytes of names are unsigned.
    unsigned: bool,
    seed: [u32; 4],
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Legacy,
    HalfMd4,
    Tea,
}

impl Hasher {
    /// The hash function of a version: 0 legacy, 1 half MD4, 2 TEA. Returns `None` for others.
    pub(crate) fn new(layout: &Layout, version: u8) -> Option<Hasher> {
        let kind = match version {
            0 => Kind::Legacy,
            1 => Kind::HalfMd4,
            2 => Kind::Tea,
            _ => return None,
        };
        let seed = if layout.hash_seed == [0; 4] {
            [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476]
        } else {
            layout.hash_seed
        };
        Some(Hasher {
            kind,
            unsigned: layout.hash_unsigned,
            seed,
        })
    }

    /// The hash function of new indexes. Returns `None` if the volume has none that is known.
    pub(crate) fn default_of(layout: &Layout) -> Option<Hasher> {
        Hasher::new(layout, layout.hash_version)
    }

    /// Computes the hash of a name.
    pub(crate) fn hash(&self, name: &[u8]) -> Hash {
        let mut state = self.seed;
        let (major, minor) = match self.kind {
            Kind::Legacy => (self.legacy(name), 0),
            Kind::HalfMd4 => {
                for (index, part) in name.chunks(32).enumerate() {
                    let words = self.words(part, name.len() - index * 32);
                    half_md4(&mut state, &words);
                }
                let [_, major, minor, _] = state;
                (major, minor)
            }
            Kind::Tea => {
                for (index, part) in name.chunks(16).enumerate() {
                    let words = self.words(part, name.len() - index * 16);
                    tea(&mut state, &words);
                }
                let [major, minor, ..] = state;
                (major, minor)
            }
        };
        let major = match major & !1 {
            END => END - 2,
            major => major,
        };
        Hash { major, minor }
    }

    /// A byte of a name as a number.
    fn widen(&self, byte: u8) -> u32 {
        match self.unsigned {
            true => u32::from(byte),
            false => byte as i8 as u32,
        }
    }

    fn legacy(&self, name: &[u8]) -> u32 {
        let (mut last, mut before) = (0x12a3_fe2du32, 0x37ab_e8f9u32);
        for &byte in name {
            let mixed = last ^ self.widen(byte).wrapping_mul(7_152_373);
            let mut next = before.wrapping_add(mixed);
            if next & 0x8000_0000 != 0 {
                next = next.wrapping_sub(0x7fff_ffff);
            }
            (before, last) = (last, next);
        }
        last << 1
    }

    /// Converts a part of a name to words of four bytes each, highest byte first. The last word of
    /// a name, and words after it, are filled up with `left`: the bytes from this part to the end
    /// of the name.
    fn words<const N: usize>(&self, part: &[u8], left: usize) -> [u32; N] {
        let pad = u32::from(left as u8) * 0x0101_0101;
        let mut words = [pad; N];
        for (word, bytes) in words.iter_mut().zip(part.chunks(4)) {
            // Four bytes shift the padding out.
            for &byte in bytes {
                *word = self.widen(byte).wrapping_add(*word << 8);
            }
        }
        words
    }
}

/// One round of MD4 on four words of state, with a third of MD4's steps and three words of result.
fn half_md4(state: &mut [u32; 4], input: &[u32; 8]) {
    const ORDER: [[usize; 8]; 3] = [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [1, 3, 5, 7, 0, 2, 4, 6],
        [3, 7, 2, 6, 1, 5, 0, 4],
    ];
    const SHIFTS: [[u32; 4]; 3] = [[3, 7, 11, 19], [3, 5, 9, 13], [3, 9, 11, 15]];
    const ADD: [u32; 3] = [0, 0x5a82_7999, 0x6ed9_eba1];
    let mixes: [fn(u32, u32, u32) -> u32; 3] = [
        |x, y, z| z ^ (x & (y ^ z)),
        |x, y, z| (x & y).wrapping_add((x ^ y) & z),
        |x, y, z| x ^ y ^ z,
    ];
    let [mut a, mut b, mut c, mut d] = *state;
    for (((order, shifts), add), mix) in ORDER.iter().zip(&SHIFTS).zip(ADD).zip(mixes) {
        for (&index, &shift) in order.iter().zip(shifts.iter().cycle()) {
            let word = input.get(index).copied().unwrap_or(0).wrapping_add(add);
            let mixed = a.wrapping_add(mix(b, c, d)).wrapping_add(word).rotate_left(shift);
            (a, b, c, d) = (d, mixed, b, c);
        }
    }
    for (word, mixed) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(mixed);
    }
}

/// Sixteen rounds of TEA: the first two words of the state are encrypted with `key` and added.
fn tea(state: &mut [u32; 4], key: &[u32; 4]) {
    let [a, b, c, d] = *key;
    let [first, second, ..] = state;
    let (mut x, mut y, mut sum) = (*first, *second, 0u32);
    let mix = |half: u32, sum: u32, low: u32, high: u32| {
        (half << 4).wrapping_add(low) ^ half.wrapping_add(sum) ^ (half >> 5).wrapping_add(high)
    };
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9e37_79b9);
        x = x.wrapping_add(mix(y, sum, a, b));
        y = y.wrapping_add(mix(x, sum, c, d));
    }
    *first = first.wrapping_add(x);
    *second = second.wrapping_add(y);
}

/// Levels of index blocks that a directory can have, the root included.
pub(crate) fn max_levels(layout: &Layout) -> usize {
    match layout.features.incompat(incompat::LARGEDIR) {
        true => 3,
        false => 2,
    }
}

/// The header of the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    /// Version of the hash.
    pub(crate) version: u8,
    /// Levels of nodes between the root and the leaves.
    pub(crate) levels: u8,
}

fn half(block: &[u8], at: usize) -> Checked<u16> {
    let bytes = block.get(at..at + 2).and_then(|bytes| bytes.try_into().ok());
    Ok(u16::from_le_bytes(bytes.ok_or(SHORT)?))
}

fn word(block: &[u8], at: usize) -> Checked<u32> {
    let bytes = block.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    Ok(u32::from_le_bytes(bytes.ok_or(SHORT)?))
}

fn set_half(block: &mut [u8], at: usize, value: usize) -> Checked<()> {
    let bytes = block.get_mut(at..at + 2).ok_or(SHORT)?;
    bytes.copy_from_slice(&(value as u16).to_le_bytes());
    Ok(())
}

fn set_word(block: &mut [u8], at: usize, value: u32) -> Checked<()> {
    let bytes = block.get_mut(at..at + 4).ok_or(SHORT)?;
    bytes.copy_from_slice(&value.to_le_bytes());
    Ok(())
}

/// Offset of the entries of an index block: a node is one unused directory entry to its end.
fn entries_at(block: &[u8]) -> Checked<usize> {
    if usize::from(half(block, 4)?) == block.len() {
        return Ok(FAKE);
    }
    Ok(DOTS + usize::from(*block.get(DOTS + 5).ok_or(SHORT)?))
}

/// Entries that fit into an index block of which they start at `at`.
fn room_for(layout: &Layout, block: &[u8], at: usize) -> usize {
    let tail = if layout.has_metadata_csum() { TAIL } else { 0 };
    block.len().saturating_sub(at + tail) / ENTRY
}

/// Reads the header of the root, the first block of a hashed directory.
pub(crate) fn read_root(layout: &Layout, block: &[u8]) -> Checked<Root> {
    let [version, _, levels, unused] = word(block, DOTS + 4)?.to_le_bytes();
    ensure(
        Hasher::new(layout, version).is_some(),
        "directory index with an unknown hash",
    )?;
    ensure(unused & 1 == 0, "directory index with unknown flags")?;
    ensure(
        usize::from(levels) < max_levels(layout),
        "directory index is too deep",
    )?;
    Ok(Root { version, levels })
}

/// The entries of an index block.
pub(crate) struct Index<'a> {
    block: &'a [u8],
    at: usize,
    count: usize,
    limit: usize,
}

impl<'a> Index<'a> {
    /// Reads the root if `first`, else a node, and checks how many entries it has.
    pub(crate) fn read(layout: &Layout, block: &'a [u8], first: bool) -> Checked<Index<'a>> {
        let at = entries_at(block)?;
        ensure((at == FAKE) != first, "directory index block of a wrong kind")?;
        let (limit, count) = (usize::from(half(block, at)?), usize::from(half(block, at + 2)?));
        ensure(
            limit == room_for(layout, block, at),
            "directory index with a wrong limit",
        )?;
        ensure(
            count > 0 && count <= limit,
            "directory index with a wrong number of entries",
        )?;
        Ok(Index {
            block,
            at,
            count,
            limit,
        })
    }

    /// Entries.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Returns true if there is no room for an entry.
    pub(crate) fn is_full(&self) -> bool {
        self.count == self.limit
    }

    /// The lowest hash of entry `index`, with the bit of a continuation; 0 for the first entry.
    pub(crate) fn hash(&self, index: usize) -> u32 {
        match index {
            0 => 0,
            _ => word(self.block, self.at + index * ENTRY).unwrap_or(0),
        }
    }

    /// The block that entry `index` leads to.
    pub(crate) fn child(&self, index: usize) -> u32 {
        word(self.block, self.at + index * ENTRY + 4).unwrap_or(0) & CHILD
    }

    /// Finds the last entry whose hash is not higher.
    pub(crate) fn find(&self, hash: u32) -> usize {
        let (mut low, mut high) = (1, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.hash(middle) > hash {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low - 1
    }
}

/// Computes the checksum of an index block and the offset of its field. It covers the block up to
/// the last entry in use, and the reserved word and the field itself, taken as zero.
fn checksum(block: &[u8], seed: u32) -> Checked<(u32, usize)> {
    let at = entries_at(block)?;
    let (limit, count) = (usize::from(half(block, at)?), usize::from(half(block, at + 2)?));
    let tail = at + limit * ENTRY;
    ensure(
        count <= limit && tail + TAIL <= block.len(),
        "bad directory index",
    )?;
    let sum = crc32c(seed, block.get(..at + count * ENTRY).ok_or(SHORT)?);
    let sum = crc32c(sum, block.get(tail..tail + 4).ok_or(SHORT)?);
    Ok((crc32c(sum, &[0; 4]), tail + 4))
}

/// Checks the checksum of an index block. `seed` is that of the directory's inode.
pub(crate) fn verify(layout: &Layout, block: &[u8], seed: u32) -> Checked<()> {
    if !layout.has_metadata_csum() {
        return Ok(());
    }
    let (sum, at) = checksum(block, seed)?;
    ensure(word(block, at)? == sum, "directory index checksum mismatch")
}

/// Updates the checksum of an index block. `seed` is that of the directory's inode.
pub(crate) fn seal(layout: &Layout, block: &mut [u8], seed: u32) -> Checked<()> {
    if !layout.has_metadata_csum() {
        return Ok(());
    }
    let (sum, at) = checksum(block, seed)?;
    set_word(block, at, sum)
}

/// Inserts an entry as number `at`, which is not 0. Fails if the block is full.
pub(crate) fn insert(
    layout: &Layout,
    block: &mut [u8],
    first: bool,
    at: usize,
    hash: u32,
    child: u32,
) -> Checked<()> {
    let index = Index::read(layout, block, first)?;
    let (start, count) = (index.at, index.count);
    ensure(
        !index.is_full() && (1..=count).contains(&at),
        "bad directory index",
    )?;
    let place = start + at * ENTRY;
    block.copy_within(place..start + count * ENTRY, place + ENTRY);
    set_word(block, place, hash)?;
    set_word(block, place + 4, child)?;
    set_half(block, start + 2, count + 1)
}

/// Initializes a node with the entries of another index block from number `from` on.
pub(crate) fn start_node(layout: &Layout, block: &mut [u8], source: &Index<'_>, from: usize) -> Checked<()> {
    block.fill(0);
    let len = block.len();
    set_half(block, 4, len)?;
    let limit = room_for(layout, block, FAKE);
    let count = source.count.saturating_sub(from);
    ensure(count > 0 && count <= limit, "bad directory index")?;
    for index in 0..count {
        let at = FAKE + index * ENTRY;
        set_word(block, at, source.hash(from + index))?;
        set_word(block, at + 4, source.child(from + index))?;
    }
    set_half(block, FAKE, limit)?;
    set_half(block, FAKE + 2, count)
}

/// Removes the entries of an index block from number `count` on, which is not 0.
pub(crate) fn truncate(layout: &Layout, block: &mut [u8], first: bool, count: usize) -> Checked<()> {
    let index = Index::read(layout, block, first)?;
    ensure((1..=index.count).contains(&count), "bad directory index")?;
    let start = index.at;
    set_half(block, start + 2, count)
}

/// Replaces the entries of the root with one that leads to `child`, a node that has them: the tree
/// has one level more.
pub(crate) fn deepen(layout: &Layout, block: &mut [u8], child: u32) -> Checked<()> {
    truncate(layout, block, true, 1)?;
    let at = entries_at(block)?;
    set_word(block, at + 4, child)?;
    let levels = block.get_mut(DOTS + 6).ok_or(SHORT)?;
    *levels = levels.saturating_add(1);
    Ok(())
}

/// Makes an index of a directory of one block: moves its names except `.` and `..` to `leaf`, which
/// becomes block 1, and initializes `root`.
pub(crate) fn convert(layout: &Layout, block: &[u8], root: &mut [u8], leaf: &mut [u8]) -> Checked<()> {
    let mut entries = Entries::new(layout, block);
    let mut dot = |name: &[u8], what| {
        let entry = entries.next().ok_or(Corrupt(what))??;
        ensure(entry.inode != 0 && entry.name == name, what)?;
        Ok(entry.inode)
    };
    let own = dot(b".", "directory without .")?;
    let parent = dot(b"..", "directory without ..")?;
    let mut writer = Packer::new(layout, leaf)?;
    for entry in entries {
        let entry = entry?;
        if entry.inode != 0 {
            writer.push(entry.inode, entry.file_type, entry.name)?;
        }
    }
    writer.finish()?;
    start(layout, root, own, parent)?;
    let len = root.len() - 12;
    dir_edit::set_len(root, 12, len)?;
    // Everything behind `..` is the index.
    root.get_mut(DOTS..).ok_or(SHORT)?.fill(0);
    *root.get_mut(DOTS + 4).ok_or(SHORT)? = layout.hash_version;
    *root.get_mut(DOTS + 5).ok_or(SHORT)? = INFO;
    let at = entries_at(root)?;
    let limit = room_for(layout, root, at);
    set_half(root, at, limit)?;
    set_half(root, at + 2, 1)?;
    set_word(root, at + 4, 1)
}

/// Writes names into a block, one after the other.
struct Packer<'a> {
    block: &'a mut [u8],
    /// Offset of the next name.
    next: usize,
    /// Offset of the end of the names.
    end: usize,
    last: Option<usize>,
}

impl<'a> Packer<'a> {
    fn new(layout: &Layout, block: &'a mut [u8]) -> Checked<Packer<'a>> {
        clear(layout, block)?;
        let end = names_end(layout, block);
        Ok(Packer {
            block,
            next: 0,
            end,
            last: None,
        })
    }

    /// `file_type` as it is on disk.
    fn push(&mut self, inode: u32, file_type: u8, name: &[u8]) -> Checked<()> {
        let need = room(name.len());
        ensure(self.next + need <= self.end, "directory block overflows")?;
        put(self.block, self.next, inode, need, file_type, name)?;
        self.last = Some(self.next);
        self.next += need;
        Ok(())
    }

    /// Extends the last entry to the end.
    fn finish(self) -> Checked<()> {
        match self.last {
            Some(last) => dir_edit::set_len(self.block, last, self.end - last),
            None => Ok(()),
        }
    }
}

/// A name of a leaf that is split: its hash, and where it is.
#[derive(Clone, Copy, Default)]
pub(crate) struct Slot {
    hash: u32,
    offset: u16,
    size: u16,
}

/// Names that a block can have at most: the length of the scratch space of [`split`].
pub(crate) fn max_names(block: &[u8]) -> usize {
    block.len() / room(1)
}

/// Distributes the names of a leaf over `low` and `high` by their hashes, about half of the bytes
/// each. Returns the hash of the entry that leads to `high`. `scratch` has [`max_names`] slots.
pub(crate) fn split(
    layout: &Layout,
    hasher: &Hasher,
    block: &[u8],
    scratch: &mut [Slot],
    low: &mut [u8],
    high: &mut [u8],
) -> Checked<u32> {
    let mut count = 0;
    let mut bytes = 0;
    for entry in Entries::new(layout, block) {
        let entry = entry?;
        if entry.inode == 0 {
            continue;
        }
        let slot = scratch.get_mut(count).ok_or(SHORT)?;
        *slot = Slot {
            hash: hasher.hash(entry.name).major,
            offset: entry.offset as u16,
            size: room(entry.name.len()) as u16,
        };
        bytes += usize::from(slot.size);
        count += 1;
    }
    let slots = scratch.get_mut(..count).ok_or(SHORT)?;
    sort::by_key(slots, |slot| (slot.hash, slot.offset));
    // The first name that is not mainly in the lower half.
    let mut before = 0;
    let mut at = 0;
    for slot in slots.iter() {
        let size = usize::from(slot.size);
        if before + size / 2 >= bytes / 2 {
            break;
        }
        before += size;
        at += 1;
    }
    let at = at.clamp(1, count.saturating_sub(1).max(1));
    let (lower, upper) = slots
        .split_at_checked(at)
        .ok_or(Corrupt("bad hashed directory"))?;
    let (Some(last), Some(first)) = (lower.last(), upper.first()) else {
        return Err(Corrupt("bad hashed directory"));
    };
    let continued = u32::from(last.hash == first.hash);
    let hash = first.hash | continued;
    for (slots, target) in [(lower, low), (upper, high)] {
        let mut packer = Packer::new(layout, target)?;
        for slot in slots {
            let mut entries = Entries::at(layout, block, usize::from(slot.offset));
            let entry = entries.next().ok_or(SHORT)??;
            packer.push(entry.inode, entry.file_type, entry.name)?;
        }
        packer.finish()?;
    }
    Ok(hash)
}
