// SPDX-License-Identifier: GPL-2.0

//! Linear directory blocks.
//!
//! A block of a directory is a chain of entries that fills it to the end. With metadata_csum, the
//! last 12 bytes are a special entry that holds the checksum. The index blocks of a hashed
//! directory look like blocks without names, so that iterating over all blocks in order finds every
//! name of a hashed directory, too.
//!
//! Source: `Documentation/filesystems/ext4/directory.rst`.

use super::{csum::crc32c, ensure, superblock::Layout, Checked, Corrupt};
use zerocopy::little_endian::{U16, U32};
use zerocopy::FromBytes;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Maximum length of a name in bytes.
pub(crate) const NAME_LEN: usize = 255;
/// Bytes of an entry before its name.
pub(super) const HEADER: usize = 8;
/// Size in bytes of the entry that holds the checksum.
pub(super) const TAIL: usize = 12;
/// File type of that entry.
pub(super) const TAIL_TYPE: u8 = 0xde;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawEntry {
    inode: U32,
    rec_len: U16,
    name_len: u8,
    file_type: u8,
}

/// An entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    /// Offset of the entry in its block, in bytes.
    pub(crate) offset: usize,
    /// Bytes to the next entry.
    pub(crate) len: usize,
    /// The inode; 0 for an unused entry.
    pub(crate) inode: u32,
    /// The type as defined by the filetype feature: 1 file, 2 directory, 3 character device, 4
    /// block device, 5 fifo, 6 socket, 7 symlink.
    pub(crate) file_type: u8,
    /// The name, without a terminator.
    pub(crate) name: &'a [u8],
}

impl Entry<'_> {
    /// Returns true if the name may be given to programs: no byte of it separates or ends names.
    pub(crate) fn has_valid_name(&self) -> bool {
        !self.name.iter().any(|byte| matches!(byte, 0 | b'/'))
    }
}

/// Iterates over the entries of a block, including unused ones, and checks each, except for the
/// bytes of its name. Ends after the first error.
pub(crate) struct Entries<'a> {
    layout: &'a Layout,
    block: &'a [u8],
    offset: usize,
    /// Offset at which the entries end and the checksum starts.
    end: usize,
}

impl<'a> Entries<'a> {
    /// Starts at the beginning of `block`.
    pub(crate) fn new(layout: &'a Layout, block: &'a [u8]) -> Self {
        Entries {
            layout,
            block,
            offset: 0,
            end: names_end(layout, block),
        }
    }

    /// Starts at the entry at `offset`.
    pub(crate) fn at(layout: &'a Layout, block: &'a [u8], offset: usize) -> Self {
        Entries {
            offset,
            ..Entries::new(layout, block)
        }
    }

    fn step(&mut self) -> Checked<Entry<'a>> {
        let offset = self.offset;
        let rest = self
            .block
            .get(offset..)
            .ok_or(Corrupt("directory entry beyond its block"))?;
        let (raw, names) =
            RawEntry::ref_from_prefix(rest).map_err(|_| Corrupt("directory entry cut short"))?;
        let len = usize::from(raw.rec_len.get());
        let name_len = usize::from(raw.name_len);
        ensure(len >= HEADER + 4 && len % 4 == 0, "bad directory entry length")?;
        ensure(len <= rest.len(), "directory entry beyond its block")?;
        ensure(HEADER + name_len <= len, "directory name longer than its entry")?;
        let inode = raw.inode.get();
        let behind = offset + len;
        if let Some(left) = self.end.checked_sub(behind) {
            ensure(
                left == 0 || left >= HEADER + 4,
                "directory entry leaves too little room",
            )?;
        } else {
            // Only an entry that hides an index, an unused one or `..`, may extend over
            // the checksum.
            ensure(
                behind == self.block.len() && (inode == 0 || offset == HEADER + 4),
                "directory entry covers the checksum",
            )?;
        }
        ensure(
            inode <= self.layout.inodes,
            "directory entry names an inode that cannot be",
        )?;
        let name = names
            .get(..name_len)
            .ok_or(Corrupt("directory entry cut short"))?;
        ensure(inode == 0 || name_len > 0, "directory entry without a name")?;
        self.offset = behind;
        Ok(Entry {
            offset,
            len,
            inode,
            file_type: raw.file_type,
            name,
        })
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Checked<Entry<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.end {
            return None;
        }
        let step = self.step();
        if step.is_err() {
            self.offset = self.block.len();
        }
        Some(step)
    }
}

/// Finds the entry of a name. Of the entries before it only the lengths are checked.
pub(crate) fn find<'a>(layout: &'a Layout, block: &'a [u8], name: &[u8]) -> Checked<Option<Entry<'a>>> {
    let end = names_end(layout, block);
    let mut offset = 0;
    while offset < end {
        let rest = block.get(offset..).unwrap_or_default();
        let (raw, names) =
            RawEntry::ref_from_prefix(rest).map_err(|_| Corrupt("directory entry cut short"))?;
        let is_name = usize::from(raw.name_len) == name.len() && raw.inode.get() != 0;
        if is_name && names.get(..name.len()) == Some(name) {
            return Entries::at(layout, block, offset).next().transpose();
        }
        let len = usize::from(raw.rec_len.get());
        ensure(len >= HEADER + 4 && len % 4 == 0, "bad directory entry length")?;
        ensure(len <= rest.len(), "directory entry beyond its block")?;
        offset += len;
    }
    Ok(None)
}

/// Returns the offset at which the entries of a block end: that of the checksum, if there is one.
pub(super) fn names_end(layout: &Layout, block: &[u8]) -> usize {
    let tail = if layout.has_metadata_csum() { TAIL } else { 0 };
    block.len().saturating_sub(tail)
}

/// Returns true for an index block of a hashed directory: no names, and a checksum of its own,
/// which is not checked here.
pub(crate) fn is_index(block: &[u8], first: bool) -> bool {
    let at = |offset: usize| {
        block
            .get(offset..)
            .and_then(|rest| RawEntry::ref_from_prefix(rest).ok())
    };
    if first {
        // `.` and `..` take 24 bytes; `..` extends to the end of the block, and the index follows
        // its name.
        matches!(at(12), Some((dotdot, _)) if usize::from(dotdot.rec_len.get()) + 12 == block.len())
    } else {
        matches!(at(0), Some((fake, _)) if fake.inode.get() == 0 && usize::from(fake.rec_len.get()) == block.len())
    }
}

/// Checks the checksum of a block of names. `seed` is that of the directory's inode.
pub(crate) fn verify(layout: &Layout, block: &[u8], seed: u32) -> Checked<()> {
    if !layout.has_metadata_csum() {
        return Ok(());
    }
    let (names, tail) = block
        .split_at_checked(block.len().saturating_sub(TAIL))
        .ok_or(Corrupt("directory block cut short"))?;
    let (raw, kept) = RawEntry::ref_from_prefix(tail).map_err(|_| Corrupt("directory block cut short"))?;
    ensure(
        raw.inode.get() == 0
            && usize::from(raw.rec_len.get()) == TAIL
            && raw.name_len == 0
            && raw.file_type == TAIL_TYPE,
        "directory block without checksum",
    )?;
    ensure(
        kept == crc32c(seed, names).to_le_bytes(),
        "directory block checksum mismatch",
    )
}
