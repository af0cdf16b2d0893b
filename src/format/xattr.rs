// SPDX-License-Identifier: GPL-2.0

//! Extended attributes: after the fixed fields of an inode, and in a block that several inodes may
//! share.
//!
//! Both consist of a table of entries, terminated by four zero bytes, and the values, which grow
//! from the end of the area towards the table. An [`Area`] has been checked completely: entries and
//! values are within it and do not overlap, so that later accesses are safe. A [`Change`] creates a
//! new area from an old one, with table and values laid out without gaps.
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
/// Offset of the checksum of a block.
const CHECKSUM: usize = 16;
/// Size in bytes of the header of a block.
const BLOCK_HEADER: usize = 32;
/// Size in bytes of the header in an inode.
const INODE_HEADER: usize = 4;
/// Bytes of an entry before its name.
const ENTRY: usize = 16;
/// Alignment of entries and values in bytes.
const ALIGN: usize = 4;

/// `e_name_index`: the namespaces; their names are not stored.
#[allow(missing_docs)]
pub(crate) mod index {
    pub(crate) const USER: u8 = 1;
    pub(crate) const ACL_ACCESS: u8 = 2;
    pub(crate) const ACL_DEFAULT: u8 = 3;
    pub(crate) const TRUSTED: u8 = 4;
    pub(crate) const SECURITY: u8 = 6;
}

const SHORT: Corrupt = Corrupt("attribute cut short");

/// An attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attribute<'a> {
    /// The namespace, one of [`index`] or an unknown one.
    pub(crate) index: u8,
    /// The name within the namespace.
    pub(crate) name: &'a [u8],
    pub(crate) value: &'a [u8],
}

/// An attribute area that has been checked.
#[derive(Clone, Copy)]
pub(crate) struct Area<'a> {
    /// The bytes that value offsets are relative to: a whole block, or everything after the header
    /// in an inode.
    room: &'a [u8],
    /// Offset of the table in it.
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
    /// The range of the value, without padding.
    value: (usize, usize),
    hash: u32,
    /// Offset of the next entry.
    next: usize,
}

/// Decodes the entry at an offset; `None` at the end of the table.
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
    /// Checks the attributes in an inode, given all its bytes. Returns `None` if it has none.
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

    /// Checks the attributes in a block at `place`; the checksum only if `sum` is set.
    pub(crate) fn in_block(layout: &Layout, place: u64, block: &'a [u8], sum: bool) -> Checked<Area<'a>> {
        let short = Corrupt("attribute block cut short");
        let field = |at| word(block, at).ok_or(short);
        ensure(field(0)? == MAGIC, "bad attribute block magic")?;
        ensure(field(8)? == 1, "bad attribute block size")?;
        ensure(field(4)? != 0, "attribute block without holders")?;
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
        // The terminator of the table.
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

    /// Iterates over the attributes, in order of the table.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Attribute<'a>> {
        self.hashed().map(|(attribute, _)| attribute)
    }

    /// Iterates over the attributes with their hashes.
    fn hashed(&self) -> impl Iterator<Item = (Attribute<'a>, u32)> {
        let (room, mut at) = (self.room, self.first);
        core::iter::from_fn(move || {
            // The area was checked, so that this fails only at the end.
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

    /// Returns the value of an attribute.
    pub(crate) fn find(&self, index: u8, name: &[u8]) -> Option<&'a [u8]> {
        self.iter()
            .find(|found| found.index == index && found.name == name)
            .map(|found| found.value)
    }
}

/// Returns the offset of the attribute area in an inode, given all its bytes; `None` if there is no
/// room for it.
fn room_in_inode(layout: &Layout, bytes: &[u8]) -> Checked<Option<usize>> {
    let size = usize::from(layout.inode_size);
    let bytes = bytes.get(..size).ok_or(Corrupt("inode cut short"))?;
    let Some(&[low, high]) = bytes.get(GOOD_OLD_SIZE..GOOD_OLD_SIZE + 2) else {
        return Ok(None);
    };
    Ok(match u16::from_le_bytes([low, high]) {
        // The extra fields are not in use, nor is anything after them.
        0 => None,
        extra => {
            Some(GOOD_OLD_SIZE + usize::from(extra) + INODE_HEADER).filter(|start| start + ALIGN <= size)
        }
    })
}

/// A change of one attribute: a new value, or its removal.
#[derive(Clone, Copy)]
pub(crate) struct Change<'a> {
    /// The namespace.
    pub(crate) index: u8,
    /// The name within the namespace.
    pub(crate) name: &'a [u8],
    pub(crate) value: Option<&'a [u8]>,
}

/// Result of a [`Change`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    /// All attributes fit into the new area.
    Filled,
    /// No attribute is left.
    Empty,
    /// Not all attributes fit; the new area is invalid.
    NoRoom,
}

impl<'a> Change<'a> {
    /// Applies the change to the attributes in an inode. `new` starts as a copy of the inode; its
    /// checksum is not updated.
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

    /// Applies the change to the attributes in block `old`, or to none, and creates a block with
    /// one reference and without a checksum.
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

    /// Passes all attributes after the change with their hashes to a closure.
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
            // Entries in a block are sorted, those in an inode are not.
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

    /// Writes the changed attributes to `room`, leaving `first` bytes for a header.
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

/// Computes `e_hash` of an attribute in a block: over the bytes of its name and the words of its
/// value.
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

/// Returns the reference count of an attribute block.
pub(crate) fn holders(block: &[u8]) -> Checked<u32> {
    ensure(word(block, 0) == Some(MAGIC), "bad attribute block magic")?;
    word(block, 4).ok_or(SHORT)
}

/// Sets the reference count of an attribute block; its checksum has to be updated then.
pub(crate) fn set_holders(block: &mut [u8], holders: u32) -> Checked<()> {
    put(block, 4, &holders.to_le_bytes())
}

fn checksum(layout: &Layout, place: u64, block: &[u8]) -> u32 {
    let sum = crc32c(layout.seed, &place.to_le_bytes());
    crc32c_with_hole(sum, block, CHECKSUM, 4)
}

/// Updates the checksum of an attribute block at `place` on the volume.
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
