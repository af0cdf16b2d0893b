// SPDX-License-Identifier: GPL-2.0

//! Nodes of an inode's extent tree.
//!
//! A node is a 12-byte header followed by 12-byte entries, sorted by file block: extents in a leaf,
//! pointers to child nodes above. The root is in the inode's `i_block`; every other node fills a
//! block and ends with a checksum. [`Node::read`] checks a whole node once, so that its entries can
//! be used without further checks; [`Node::read_again`] relies on that.
//!
//! Source: `Documentation/filesystems/ext4/ifork.rst` (extent tree).

use super::{csum::crc32c, ensure, superblock::Layout, Checked, Corrupt};
use zerocopy::little_endian::{U16, U32};
use zerocopy::FromBytes;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `eh_magic`.
pub(super) const MAGIC: u16 = 0xf30a;
/// Size in bytes of the header and of an entry.
pub(super) const STRIDE: usize = 12;
/// Size in bytes of an entry.
pub(crate) const ENTRY_BYTES: usize = STRIDE;
/// Maximum number of levels below the root.
pub(crate) const MAX_DEPTH: u16 = 5;
/// Maximum length of a written extent; a larger length in an entry means an unwritten one.
pub(super) const MAX_WRITTEN: u16 = 1 << 15;

/// Maximum length of any extent.
pub(crate) fn max_len(unwritten: bool) -> u32 {
    u32::from(MAX_WRITTEN) - u32::from(unwritten)
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    magic: U16,
    entries: U16,
    max: U16,
    depth: U16,
    generation: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawExtent {
    block: U32,
    len: U16,
    start_hi: U16,
    start_lo: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawIndex {
    block: U32,
    leaf_lo: U32,
    leaf_hi: U16,
    unused: U16,
}

/// An extent of a file. All units are blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// First block in the file.
    pub(crate) offset: u32,
    /// First block on the volume.
    pub(crate) start: u64,
    /// Length, 1 to 32768.
    pub(crate) len: u32,
    /// Allocated but never written: reads as zeroes.
    pub(crate) unwritten: bool,
}

impl Extent {
    /// Decodes an entry.
    pub(crate) fn decode_entry(entry: &[u8; STRIDE]) -> Extent {
        RawExtent::ref_from_bytes(entry).map_or(
            Extent {
                offset: 0,
                start: 0,
                len: 0,
                unwritten: false,
            },
            Extent::decode,
        )
    }

    /// Merges this extent with the one that follows, if they are contiguous and both written or
    /// both unwritten.
    pub(crate) fn joined(&self, next: &Extent) -> Option<Extent> {
        let len = self.len.checked_add(next.len)?;
        let fits = u64::from(self.offset) + u64::from(self.len) == u64::from(next.offset)
            && self.start + u64::from(self.len) == next.start
            && self.unwritten == next.unwritten
            && len <= max_len(self.unwritten);
        fits.then_some(Extent { len, ..*self })
    }

    fn decode(raw: &RawExtent) -> Extent {
        let len = raw.len.get();
        let unwritten = len > MAX_WRITTEN;
        Extent {
            offset: raw.block.get(),
            start: (u64::from(raw.start_hi.get()) << 32) | u64::from(raw.start_lo.get()),
            len: u32::from(if unwritten { len - MAX_WRITTEN } else { len }),
            unwritten,
        }
    }
}

/// A pointer to a child node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Index {
    /// First file block that the child may map.
    pub(crate) offset: u32,
    /// Block of the child on the volume.
    pub(crate) child: u64,
}

/// A node that has been checked.
#[derive(Clone, Copy)]
pub(crate) struct Node<'a> {
    entries: &'a [u8],
    depth: u16,
}

impl<'a> Node<'a> {
    /// Checks a node: `i_block` for the root, a block for others, including its checksum, with the
    /// inode's `seed`.
    ///
    /// `depth` is the depth that the parent implies, `None` for the root. `range` is the range of
    /// the file that the node may map.
    pub(crate) fn read(
        layout: &Layout,
        bytes: &'a [u8],
        depth: Option<u16>,
        seed: Option<u32>,
        range: (u32, u32),
    ) -> Checked<Node<'a>> {
        let (node, max) = Node::open(bytes, depth)?;
        if let (Some(seed), true) = (seed, layout.has_metadata_csum()) {
            let tail = STRIDE + max * STRIDE;
            let kept = bytes
                .get(tail..tail + 4)
                .ok_or(Corrupt("extent node without checksum"))?;
            let sum = crc32c(seed, bytes.get(..tail).ok_or(Corrupt("extent node cut short"))?);
            ensure(kept == sum.to_le_bytes(), "extent node checksum mismatch")?;
        }
        node.check(layout, range)?;
        Ok(node)
    }

    /// Opens a node that [`read`](Self::read) has checked since it came into memory: of its
    /// entries, only the first and the last one are compared with `range`, which another parent may
    /// imply.
    pub(crate) fn read_again(
        layout: &Layout,
        bytes: &'a [u8],
        depth: u16,
        range: (u32, u32),
    ) -> Checked<Node<'a>> {
        let (node, _) = Node::open(bytes, Some(depth))?;
        let len = node.entries.len();
        for entries in [
            node.entries.get(..STRIDE),
            node.entries.get(len.saturating_sub(STRIDE)..),
        ] {
            let entries = entries.ok_or(Corrupt("empty extent node"))?;
            Node { entries, ..node }.check(layout, range)?;
        }
        Ok(node)
    }

    /// Checks the header of a node. Returns the node, and how many entries it has room for.
    fn open(bytes: &'a [u8], depth: Option<u16>) -> Checked<(Node<'a>, usize)> {
        let (header, rest) =
            RawHeader::ref_from_prefix(bytes).map_err(|_| Corrupt("extent node cut short"))?;
        ensure(header.magic.get() == MAGIC, "bad extent node magic")?;
        let found = header.depth.get();
        ensure(found <= MAX_DEPTH, "extent tree too deep")?;
        ensure(
            depth.is_none_or(|depth| depth == found),
            "extent node at the wrong depth",
        )?;
        let count = usize::from(header.entries.get());
        let max = usize::from(header.max.get());
        ensure(max > 0 && count <= max, "extent node overfull")?;
        ensure(max <= rest.len() / STRIDE, "extent node larger than its room")?;
        ensure(count > 0 || (found == 0 && depth.is_none()), "empty extent node")?;
        let entries = rest
            .get(..count * STRIDE)
            .ok_or(Corrupt("extent node cut short"))?;
        let node = Node {
            entries,
            depth: found,
        };
        Ok((node, max))
    }

    /// Checks that the entries are in order, within `range`, and on the volume.
    fn check(&self, layout: &Layout, range: (u32, u32)) -> Checked<()> {
        let (first, last) = (u64::from(range.0), u64::from(range.1));
        let mut next = first;
        if self.depth == 0 {
            for extent in self.extents() {
                let offset = u64::from(extent.offset);
                ensure(extent.len > 0, "empty extent")?;
                ensure(offset >= next, "extents out of order")?;
                next = offset + u64::from(extent.len);
                ensure(next <= last + 1, "extent beyond its node")?;
                ensure(
                    layout.contains(extent.start, extent.len),
                    "extent is off the volume",
                )?;
            }
        } else {
            for index in self.indices() {
                let offset = u64::from(index.offset);
                ensure(offset >= next, "extent index out of order")?;
                ensure(offset <= last, "extent index beyond its node")?;
                ensure(layout.contains(index.child, 1), "extent node is off the volume")?;
                next = offset + 1;
            }
        }
        Ok(())
    }

    /// Number of levels below this node: 0 for a leaf.
    pub(crate) fn depth(&self) -> u16 {
        self.depth
    }

    /// Returns the extents of a leaf, in order of file block.
    pub(crate) fn extents(&self) -> impl Iterator<Item = Extent> + 'a {
        let entries: &'a [u8] = if self.depth == 0 { self.entries } else { &[] };
        entries
            .chunks_exact(STRIDE)
            .filter_map(|bytes| RawExtent::ref_from_bytes(bytes).ok().map(Extent::decode))
    }

    /// Returns the pointers of an inner node, in order of file block.
    pub(crate) fn indices(&self) -> impl Iterator<Item = Index> + 'a {
        let entries: &'a [u8] = if self.depth == 0 { &[] } else { self.entries };
        entries.chunks_exact(STRIDE).filter_map(|bytes| {
            RawIndex::ref_from_bytes(bytes).ok().map(|raw| Index {
                offset: raw.block.get(),
                child: (u64::from(raw.leaf_hi.get()) << 32) | u64::from(raw.leaf_lo.get()),
            })
        })
    }

    /// Returns the number of entries that begin at or before file block `block`.
    pub(crate) fn until(&self, block: u32) -> usize {
        until(self.entries, block)
    }

    /// The same node without its first entries.
    fn skip(&self, entries: usize) -> Node<'a> {
        Node {
            entries: self.entries.get(entries * STRIDE..).unwrap_or(&[]),
            ..*self
        }
    }

    /// Looks `block` up in a leaf. If it is not mapped, returns the next mapped file block
    /// ([`u32::MAX`] + 1 if none).
    pub(crate) fn find(&self, block: u32) -> Found {
        let at = self.until(block);
        let last = self.skip(at.saturating_sub(1)).extents().next();
        if let Some(extent) = last.filter(|extent| extent.offset <= block) {
            if block - extent.offset < extent.len {
                return Found::Mapped(extent);
            }
        }
        let next = self.skip(at).extents().next();
        Found::Hole {
            end: next.map_or(u64::from(u32::MAX) + 1, |next| next.offset.into()),
        }
    }

    /// Returns the pointer to follow for `block`, and the first file block of the next pointer, if
    /// there is one.
    pub(crate) fn descend(&self, block: u32) -> Option<(Index, Option<u32>)> {
        let mut indices = self.skip(self.until(block).saturating_sub(1)).indices();
        let chosen = indices.next()?;
        Some((chosen, indices.next().map(|next| next.offset)))
    }
}

/// Returns how many of the entries begin at or before file block `block`. Both kinds of entries
/// start with their first file block, and are in order.
pub(super) fn until(entries: &[u8], block: u32) -> usize {
    let offset = |index: usize| {
        let bytes = entries
            .get(index * STRIDE..)
            .and_then(|entry| entry.first_chunk());
        bytes.map_or(u32::MAX, |bytes| u32::from_le_bytes(*bytes))
    };
    let (mut low, mut high) = (0, entries.len() / STRIDE);
    while low < high {
        let middle = low + (high - low) / 2;
        match offset(middle) <= block {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    low
}

/// Result of looking a file block up in a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The block is in this extent.
    Mapped(Extent),
    /// The block is not mapped.
    Hole {
        /// The next file block that this leaf maps; 2^32 if none.
        end: u64,
    },
}
