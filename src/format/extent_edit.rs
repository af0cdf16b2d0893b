// SPDX-License-Identifier: GPL-2.0

//! Modifies nodes of an extent tree: inserts and removes entries, and updates the checksum.
//!
//! These functions work on the bytes of one node that [`Node::read`](super::extent::Node::read) has
//! checked. The caller keeps the nodes above and below consistent.

use super::{
    csum::crc32c,
    extent::{self, Extent, MAGIC, MAX_WRITTEN, STRIDE},
    superblock::Layout,
    Checked, Corrupt,
};

const SHORT: Corrupt = Corrupt("extent node cut short");

fn half(node: &[u8], at: usize) -> Checked<u16> {
    let bytes = node.get(at..at + 2).and_then(|bytes| bytes.try_into().ok());
    Ok(u16::from_le_bytes(bytes.ok_or(SHORT)?))
}

fn set_half(node: &mut [u8], at: usize, value: u16) -> Checked<()> {
    let field = node.get_mut(at..at + 2).ok_or(SHORT)?;
    field.copy_from_slice(&value.to_le_bytes());
    Ok(())
}

/// Number of entries in use.
pub(crate) fn count(node: &[u8]) -> Checked<usize> {
    half(node, 2).map(usize::from)
}

/// Capacity of the node.
pub(crate) fn room(node: &[u8]) -> Checked<usize> {
    half(node, 4).map(usize::from)
}

/// Initializes an empty node with maximum capacity; in a block, room is left for the checksum.
pub(crate) fn start(node: &mut [u8], depth: u16, in_block: bool) -> Checked<()> {
    let room = (node.len() - if in_block { 4 } else { 0 }).saturating_sub(STRIDE) / STRIDE;
    node.fill(0);
    set_half(node, 0, MAGIC)?;
    set_half(node, 4, room as u16)?;
    set_half(node, 6, depth)
}

/// An entry of a node.
pub(crate) type Entry = [u8; STRIDE];

/// Encodes an extent. Its length must be valid.
pub(crate) fn extent_entry(extent: &Extent) -> Entry {
    let len = extent.len as u16 + if extent.unwritten { MAX_WRITTEN } else { 0 };
    let [a, b, c, d] = extent.offset.to_le_bytes();
    let [e, f] = len.to_le_bytes();
    let [g, h] = ((extent.start >> 32) as u16).to_le_bytes();
    let [i, j, k, l] = (extent.start as u32).to_le_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l]
}

/// Encodes a pointer to a child whose first file block is `offset`.
pub(crate) fn index_entry(offset: u32, child: u64) -> Entry {
    let [a, b, c, d] = offset.to_le_bytes();
    let [e, f, g, h] = (child as u32).to_le_bytes();
    let [i, j] = ((child >> 32) as u16).to_le_bytes();
    [a, b, c, d, e, f, g, h, i, j, 0, 0]
}

fn place(index: usize) -> core::ops::Range<usize> {
    let at = STRIDE + index * STRIDE;
    at..at + STRIDE
}

/// Returns the entry at `index`.
pub(crate) fn get(node: &[u8], index: usize) -> Checked<Entry> {
    let bytes = node.get(place(index)).and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or(SHORT)
}

/// Returns how many entries of a node begin at or before file block `block`.
pub(crate) fn until(node: &[u8], block: u32) -> Checked<usize> {
    let entries = node.get(STRIDE..STRIDE + count(node)? * STRIDE).ok_or(SHORT)?;
    Ok(extent::until(entries, block))
}

/// Overwrites the entry at `index`.
pub(crate) fn set(node: &mut [u8], index: usize, entry: &Entry) -> Checked<()> {
    node.get_mut(place(index)).ok_or(SHORT)?.copy_from_slice(entry);
    Ok(())
}

/// Inserts an entry before `index`. There must be room.
pub(crate) fn insert(node: &mut [u8], index: usize, entry: &Entry) -> Checked<()> {
    let used = count(node)?;
    if used >= room(node)? || index > used {
        return Err(Corrupt("extent node overfull"));
    }
    let end = STRIDE + used * STRIDE;
    node.get(..end + STRIDE).ok_or(SHORT)?;
    node.copy_within(place(index).start..end, place(index).end);
    set(node, index, entry)?;
    set_half(node, 2, used as u16 + 1)
}

/// Removes the entry at `index`.
pub(crate) fn remove(node: &mut [u8], index: usize) -> Checked<()> {
    let used = count(node)?;
    if index >= used {
        return Err(SHORT);
    }
    let end = STRIDE + used * STRIDE;
    node.get(..end).ok_or(SHORT)?;
    node.copy_within(place(index).end..end, place(index).start);
    set_half(node, 2, used as u16 - 1)
}

/// Truncates the node to its first `len` entries.
pub(crate) fn truncate(node: &mut [u8], len: usize) -> Checked<()> {
    let used = count(node)?;
    set_half(node, 2, len.min(used) as u16)
}

/// Returns the first file block of an entry.
pub(crate) fn offset_of(entry: &Entry) -> u32 {
    let [a, b, c, d, ..] = *entry;
    u32::from_le_bytes([a, b, c, d])
}

/// Sets the first file block of the entry at `index`.
pub(crate) fn set_offset(node: &mut [u8], index: usize, offset: u32) -> Checked<()> {
    let field = node.get_mut(place(index)).and_then(|entry| entry.get_mut(..4));
    field.ok_or(SHORT)?.copy_from_slice(&offset.to_le_bytes());
    Ok(())
}

/// Converts the file blocks `from..to` of the unwritten extent at `index` of a leaf to written, by
/// [`replace`].
pub(crate) fn convert(leaf: &mut [u8], index: usize, from: u32, to: u32) -> Checked<bool> {
    let found = Extent::decode_entry(&get(leaf, index)?);
    if !found.unwritten || from < found.offset || from >= to {
        return Err(Corrupt("no unwritten extent to convert"));
    }
    let written = Extent {
        offset: from,
        start: found.start.saturating_add(u64::from(from - found.offset)),
        len: to - from,
        unwritten: false,
    };
    replace(leaf, index, from, to, Some(written))
}

/// Replaces the file blocks `from..to` of the extent at `index` of a leaf by `new`, which maps the
/// same file blocks, or by a hole. The parts before and after remain extents, and `new` is merged
/// with its neighbours if possible. Returns false, with the leaf unchanged, if there is not enough
/// room.
pub(crate) fn replace(
    leaf: &mut [u8],
    index: usize,
    from: u32,
    to: u32,
    new: Option<Extent>,
) -> Checked<bool> {
    let used = count(leaf)?;
    let at = |index: usize| -> Checked<Extent> { Ok(Extent::decode_entry(&get(leaf, index)?)) };
    let found = at(index)?;
    let end = found.offset.checked_add(found.len).ok_or(SHORT)?;
    if index >= used || from < found.offset || from >= to || to > end {
        return Err(Corrupt("no extent to replace"));
    }
    let part = |from: u32, to: u32| Extent {
        offset: from,
        start: found.start.saturating_add(u64::from(from - found.offset)),
        len: to - from,
        unwritten: found.unwritten,
    };
    let mut head = (found.offset < from).then(|| part(found.offset, from));
    let mut tail = (to < end).then(|| part(to, end));
    let mut new = new;
    // The range of entries to replace.
    let (mut first, mut behind) = (index, index + 1);
    if let Some(middle) = &mut new {
        let before = match head {
            None if index > 0 => Some(at(index - 1)?),
            head => head,
        };
        if let Some(joined) = before.and_then(|before| before.joined(middle)) {
            *middle = joined;
            first -= usize::from(head.is_none());
            head = None;
        }
        let after = match tail {
            None if behind < used => Some(at(behind)?),
            tail => tail,
        };
        if let Some(joined) = after.and_then(|after| middle.joined(&after)) {
            *middle = joined;
            behind += usize::from(tail.is_none());
            tail = None;
        }
    }
    let entries = [head, new, tail];
    if used - (behind - first) + entries.iter().flatten().count() > room(leaf)? {
        return Ok(false);
    }
    for _ in first..behind {
        remove(leaf, first)?;
    }
    for (step, extent) in entries.iter().flatten().enumerate() {
        insert(leaf, first + step, &extent_entry(extent))?;
    }
    Ok(true)
}

/// Updates the checksum of a node that fills a block. `seed` is that of the inode.
pub(crate) fn seal(layout: &Layout, node: &mut [u8], seed: u32) -> Checked<()> {
    if !layout.has_metadata_csum() {
        return Ok(());
    }
    let at = STRIDE + room(node)? * STRIDE;
    let sum = crc32c(seed, node.get(..at).ok_or(SHORT)?);
    node.get_mut(at..at + 4)
        .ok_or(SHORT)?
        .copy_from_slice(&sum.to_le_bytes());
    Ok(())
}
