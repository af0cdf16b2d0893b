// SPDX-License-Identifier: GPL-2.0

//! Extended attributes: behind the fixed fields of an inode, and in a block that several inodes may share.
//!
//! Both places hold a table of entries, which ends in four zero bytes, and the values, from the end of the room towards
//! the table. An [`Area`] is such a place with everything in it checked: entries and values lie within the room and no two
//! of them on the same bytes, so that nothing that is read later can lead astray. A [`Change`] makes a new place of an old
//! one: table and values are laid out anew, without gaps.
//!
//! Source: `Documentation/filesystems/ext4/attributes.rst`.

use super::{
    csum::{crc32c, crc32c_with_hole},
    ensure,
    inode::GOOD_OLD_SIZE,
    superblock::Layout,
    Checked, Corrupt,
};

/// `h_magic`.
pub(crate) const MAGIC: u32 = 0xea02_0000;
/// Where the checksum of a block lies.
const CHECKSUM: usize = 16;
/// Bytes of the header of a block.
const BLOCK_HEADER: usize = 32;
/// Bytes of the header in an inode.
const INODE_HEADER: usize = 4;
/// Bytes of an entry before its name.
const ENTRY: usize = 16;
/// Entries and values take multiples of so many bytes.
const ALIGN: usize = 4;

/// `e_name_index`: the namespaces, whose names are not stored.
#[allow(missing_docs)]
pub(crate) mod index {
    pub(crate) const USER: u8 = 1;
    pub(crate) const ACL_ACCESS: u8 = 2;
    pub(crate) const ACL_DEFAULT: u8 = 3;
    pub(crate) const TRUSTED: u8 = 4;
    pub(crate) const SECURITY: u8 = 6;
}

const SHORT: Corrupt = Corrupt("attribute cut short");

/// One attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attribute<'a> {
    /// Its namespace, of [`index`] or another one.
    pub(crate) index: u8,
    /// Its name in there.
    pub(crate) name: &'a [u8],
    pub(crate) value: &'a [u8],
}

/// A place of attributes, checked.
#[derive(Clone, Copy)]
pub(crate) struct Area<'a> {
    /// What offsets of values count in: a whole block, or what lies behind the header in an inode.
    room: &'a [u8],
    /// The byte of it at which the table starts.
    first: usize,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    bytes.try_into().ok().map(u32::from_le_bytes)
}

fn padded(bytes: usize) -> usize {
    bytes.saturating_add(ALIGN - 1) & !(ALIGN - 1)
}

/// An entry of the table.
struct Entry<'a> {
    index: u8,
    name: &'a [u8],
    /// The bytes of the room that the value takes, without what pads it.
    value: (usize, usize),
    hash: u32,
    /// The byte at which the next one starts.
    next: usize,
}

/// The entry at a byte of the room; `None` for the end of the table.
fn entry(room: &[u8], at: usize) -> Checked<Option<Entry<'_>>> {
    let outside = Corrupt("attribute entry out of bounds");
    if word(room, at).ok_or(outside)? == 0 {
        return Ok(None);
    }
    let head = at.checked_add(ENTRY).and_then(|end| room.get(at..end));
    let Some(&[len, index, low, high, ref inode @ .., _, _, _, _, _, _, _, _]) = head else {
        return Err(outside);
    };
    let len = usize::from(len);
    let name = room.get(at + ENTRY..at + ENTRY + len).ok_or(outside)?;
    ensure(!name.contains(&0), "bad attribute name")?;
    ensure(inode.iter().all(|&byte| byte == 0), "attribute value in an inode")?;
    let size = word(room, at + 8).and_then(|size| usize::try_from(size).ok());
    Ok(Some(Entry {
        index,
        name,
        value: (usize::from(u16::from_le_bytes([low, high])), size.ok_or(outside)?),
        hash: word(room, at + 12).ok_or(outside)?,
        next: at + ENTRY + padded(len),
    }))
}

impl<'a> Area<'a> {
    /// The attributes behind the fields of an inode, of which these are all bytes; `None` if it has none there.
    pub(crate) fn in_inode(layout: &Layout, bytes: &'a [u8]) -> Checked<Option<Area<'a>>> {
        let Some(start) = room_in_inode(layout, bytes)? else {
            return Ok(None);
        };
        if word(bytes, start - INODE_HEADER) != Some(MAGIC) {
            return Ok(None);
        }
        let room = bytes.get(start..usize::from(layout.inode_size)).ok_or(SHORT)?;
        Area { room, first: 0 }.check().map(Some)
    }

    /// The attributes in a block, which lies at `place`. Its checksum is looked at if `sum` says so.
    pub(crate) fn in_block(layout: &Layout, place: u64, block: &'a [u8], sum: bool) -> Checked<Area<'a>> {
        let short = Corrupt("attribute block cut short");
        let field = |at| word(block, at).ok_or(short);
        ensure(field(0)? == MAGIC, "bad attribute block magic")?;
        ensure(field(8)? == 1, "bad attribute block size")?;
        ensure(field(4)? != 0, "attribute block that nobody holds")?;
        ensure(
            !sum || !layout.has_metadata_csum() || field(CHECKSUM)? == checksum(layout, place, block),
            "attribute block checksum mismatch",
        )?;
        Area {
            room: block,
            first: BLOCK_HEADER,
        }
        .check()
    }

    fn check(self) -> Checked<Area<'a>> {
        let mut end = self.first;
        while let Some(entry) = entry(self.room, end)? {
            end = entry.next;
        }
        // What marks the end of the table.
        let end = end + 4;
        let mut at = self.first;
        while let Some(this) = entry(self.room, at)? {
            at = this.next;
            let (start, len) = this.value;
            if len == 0 {
                continue;
            }
            let stop = start.saturating_add(padded(len));
            ensure(
                start >= end && stop <= self.room.len(),
                "attribute value out of bounds",
            )?;
            let mut other = at;
            while let Some(next) = entry(self.room, other)? {
                other = next.next;
                let (from, len) = next.value;
                ensure(
                    len == 0 || from >= stop || from.saturating_add(padded(len)) <= start,
                    "attribute values overlap",
                )?;
            }
        }
        Ok(self)
    }

    /// All of them, in order of the table.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Attribute<'a>> {
        self.hashed().map(|(attribute, _)| attribute)
    }

    /// The same with their hashes.
    fn hashed(&self) -> impl Iterator<Item = (Attribute<'a>, u32)> {
        let (room, mut at) = (self.room, self.first);
        core::iter::from_fn(move || {
            // It was checked, so that this fails only at the end.
            let entry = entry(room, at).ok()??;
            at = entry.next;
            let (start, len) = entry.value;
            let attribute = Attribute {
                index: entry.index,
                name: entry.name,
                value: match len {
                    0 => &[],
                    _ => room.get(start..start.checked_add(len)?)?,
                },
            };
            Some((attribute, entry.hash))
        })
    }

    /// The value of a name.
    pub(crate) fn find(&self, index: u8, name: &[u8]) -> Option<&'a [u8]> {
        self.iter()
            .find(|found| found.index == index && found.name == name)
            .map(|found| found.value)
    }
}

/// Where the room of attributes starts in an inode, of which these are all bytes; `None` if it has no room for any.
fn room_in_inode(layout: &Layout, bytes: &[u8]) -> Checked<Option<usize>> {
    let size = usize::from(layout.inode_size);
    let bytes = bytes.get(..size).ok_or(Corrupt("inode cut short"))?;
    let Some(&[low, high]) = bytes.get(GOOD_OLD_SIZE..GOOD_OLD_SIZE + 2) else {
        return Ok(None);
    };
    Ok(match u16::from_le_bytes([low, high]) {
        // The extra fields are not in use, nor is what lies behind them.
        0 => None,
        extra => {
            Some(GOOD_OLD_SIZE + usize::from(extra) + INODE_HEADER).filter(|start| start + ALIGN <= size)
        }
    })
}

/// What becomes of one attribute: it gets this value, or goes.
#[derive(Clone, Copy)]
pub(crate) struct Change<'a> {
    /// Its namespace.
    pub(crate) index: u8,
    /// Its name in there.
    pub(crate) name: &'a [u8],
    pub(crate) value: Option<&'a [u8]>,
}

/// What came of a [`Change`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    /// The new place holds all.
    Filled,
    /// No attribute is left.
    Empty,
    /// There is no room for all; what was written is of no use.
    NoRoom,
}

impl<'a> Change<'a> {
    /// Makes the bytes of an inode whose attributes are changed; `new` starts as the inode's bytes are. Checksums are left.
    pub(crate) fn in_inode(&self, layout: &Layout, old: &'a [u8], new: &mut [u8]) -> Checked<Changed> {
        let Some(start) = room_in_inode(layout, old)? else {
            return Ok(Changed::NoRoom);
        };
        let area = Area::in_inode(layout, old)?;
        let size = usize::from(layout.inode_size);
        let room = new.get_mut(start..size).ok_or(SHORT)?;
        let changed = self.lay_out(area, room, 0, false)?;
        let header = new.get_mut(start - INODE_HEADER..start).ok_or(SHORT)?;
        let magic = if changed == Changed::Filled { MAGIC } else { 0 };
        header.copy_from_slice(&magic.to_le_bytes());
        Ok(changed)
    }

    /// Makes a block of attributes with one holder out of `old`, or of nothing; to be sealed where it shall lie.
    pub(crate) fn in_block(&self, old: Option<Area<'a>>, new: &mut [u8]) -> Checked<Changed> {
        let changed = self.lay_out(old, new, BLOCK_HEADER, true)?;
        let mut hash = 0u32;
        let area = Area {
            room: new,
            first: BLOCK_HEADER,
        };
        for (_, own) in area.hashed() {
            if own == 0 {
                // Such a block is never shared.
                hash = 0;
                break;
            }
            hash = hash.rotate_left(16) ^ own;
        }
        for (field, value) in [(0, MAGIC), (4, 1), (8, 1), (12, hash)] {
            put(new, field, &value.to_le_bytes())?;
        }
        Ok(changed)
    }

    /// Hands out all attributes as they are to be, with their hashes.
    fn merge(
        &self,
        old: Option<Area<'a>>,
        in_block: bool,
        out: &mut dyn FnMut(Attribute<'a>, u32) -> Checked<()>,
    ) -> Checked<()> {
        let mut new = self.value.map(|value| {
            let attribute = Attribute {
                index: self.index,
                name: self.name,
                value,
            };
            let hash = if in_block { hash(self.name, value) } else { 0 };
            (attribute, hash)
        });
        let key = |index: u8, name: &'a [u8]| (index, name.len(), name);
        for (other, hash) in old.iter().flat_map(Area::hashed) {
            let order = key(self.index, self.name).cmp(&key(other.index, other.name));
            // Those in a block are in order, those in an inode are not.
            if order.is_eq() || (in_block && order.is_lt()) {
                if let Some((attribute, hash)) = new.take() {
                    out(attribute, hash)?;
                }
            }
            if order.is_ne() {
                out(other, hash)?;
            }
        }
        match new {
            Some((attribute, hash)) => out(attribute, hash),
            None => Ok(()),
        }
    }

    /// Lays the changed attributes out in `room`, of which `first` bytes are left for a header.
    fn lay_out(
        &self,
        old: Option<Area<'a>>,
        room: &mut [u8],
        first: usize,
        in_block: bool,
    ) -> Checked<Changed> {
        let (mut needed, mut count) = (first.saturating_add(4), 0usize);
        self.merge(old, in_block, &mut |attribute, _| {
            let entry = ENTRY + padded(attribute.name.len());
            needed = needed
                .saturating_add(entry)
                .saturating_add(padded(attribute.value.len()));
            count += 1;
            Ok(())
        })?;
        room.fill(0);
        if count == 0 {
            return Ok(Changed::Empty);
        }
        if needed > room.len() {
            return Ok(Changed::NoRoom);
        }
        let (mut at, mut end) = (first, room.len());
        self.merge(old, in_block, &mut |attribute, hash| {
            let too_long = |_| Corrupt("attribute too long");
            let Attribute { index, name, value } = attribute;
            put(room, at, &[u8::try_from(name.len()).map_err(too_long)?, index])?;
            if !value.is_empty() {
                end = end.checked_sub(padded(value.len())).ok_or(SHORT)?;
                put(room, end, value)?;
                put(room, at + 2, &u16::try_from(end).map_err(too_long)?.to_le_bytes())?;
            }
            put(
                room,
                at + 8,
                &u32::try_from(value.len()).map_err(too_long)?.to_le_bytes(),
            )?;
            put(room, at + 12, &hash.to_le_bytes())?;
            put(room, at + ENTRY, name)?;
            at += ENTRY + padded(name.len());
            Ok(())
        })?;
        Ok(Changed::Filled)
    }
}

fn put(room: &mut [u8], at: usize, bytes: &[u8]) -> Checked<()> {
    let end = at.checked_add(bytes.len()).ok_or(SHORT)?;
    room.get_mut(at..end).ok_or(SHORT)?.copy_from_slice(bytes);
    Ok(())
}

/// `e_hash` of an attribute in a block: over the bytes of its name and the words of its value.
fn hash(name: &[u8], value: &[u8]) -> u32 {
    let hash = name
        .iter()
        .fold(0u32, |hash, &byte| hash.rotate_left(5) ^ u32::from(byte));
    value.chunks(ALIGN).fold(hash, |hash, part| {
        let mut word = [0; ALIGN];
        for (to, from) in word.iter_mut().zip(part) {
            *to = *from;
        }
        hash.rotate_left(16) ^ u32::from_le_bytes(word)
    })
}

/// How many inodes hold a block of attributes.
pub(crate) fn holders(block: &[u8]) -> Checked<u32> {
    ensure(word(block, 0) == Some(MAGIC), "bad attribute block magic")?;
    word(block, 4).ok_or(SHORT)
}

/// Sets how many inodes hold a block of attributes, which is to be sealed then.
pub(crate) fn set_holders(block: &mut [u8], holders: u32) -> Checked<()> {
    put(block, 4, &holders.to_le_bytes())
}

fn checksum(layout: &Layout, place: u64, block: &[u8]) -> u32 {
    let sum = crc32c(layout.seed, &place.to_le_bytes());
    crc32c_with_hole(sum, block, CHECKSUM, 4)
}

/// Puts the right checksum into a block, which lies at `place` on the volume.
pub(crate) fn seal(layout: &Layout, place: u64, block: &mut [u8]) -> Checked<()> {
    if !layout.has_metadata_csum() {
        return Ok(());
    }
    let sum = checksum(layout, place, block);
    let field = block.get_mut(CHECKSUM..CHECKSUM + 4);
    field
        .ok_or(Corrupt("attribute block cut short"))?
        .copy_from_slice(&sum.to_le_bytes());
    Ok(())
}
