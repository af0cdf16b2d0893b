// SPDX-License-Identifier: GPL-2.0

//! The layout of the trees on disk: every magic, version, size and bit, in one place.
//!
//! [`docs/on-disk.md`](../../docs/on-disk.md) describes it. The module and the command share this file, and nothing else
//! says where a bit lies. To change the layout of nodes or records, change [`NODE_VERSION`]: a node of another version is
//! refused, so that its tree is found stale and rebuilt.

/// The first eight bytes of the file of the reverse map.
pub(crate) const RMAP_MAGIC: [u8; 8] = *b"rext4map";
/// The first eight bytes of the file of the reference counts.
pub(crate) const REFCOUNT_MAGIC: [u8; 8] = *b"rext4cnt";
/// The version of a tree file: its header, region table and space maps.
pub(crate) const FILE_VERSION: u32 = 1;
/// Bytes of the header that count.
pub(crate) const HEADER_SIZE: usize = 256;

/// Bytes of an entry of the region table.
pub(crate) const REGION_SIZE: usize = 32;
/// The state of a region whose tree must be rebuilt.
pub(crate) const STALE: u32 = 0;
/// The state of a region whose tree says what is true.
pub(crate) const GOOD: u32 = 1;
/// The state of a region whose tree is good, while blocks that lost their last owner may still be in use.
pub(crate) const UNSETTLED: u32 = 2;

/// The first word of a space map.
pub(crate) const MAP_MAGIC: u32 = 0x6d73_7872;
/// Bytes before the first entry of a space map.
pub(crate) const MAP_HEADER: usize = 32;
/// Bytes of an entry of a space map.
pub(crate) const MAP_ENTRY: usize = 8;
/// The first word of a space map's entry for a block that can never hold a node.
pub(crate) const MAP_FIXED: u32 = u32::MAX;

/// The version of nodes and of the records in them: the last character of their magic.
pub(crate) const NODE_VERSION: u8 = b'1';
/// The first word of a node.
pub(crate) const NODE_MAGIC: u32 = u32::from_le_bytes([b'r', b't', b'x', NODE_VERSION]);
/// Bytes before the first record or entry of a node.
pub(crate) const NODE_HEADER: usize = 32;
/// Where a node's checksum lies.
pub(crate) const NODE_CHECKSUM: usize = 4;
/// Levels of a tree at most.
pub(crate) const MAX_LEVELS: usize = 10;

/// Bytes of a record of the reverse map.
pub(crate) const RMAP_SIZE: usize = 16;
/// Bytes of its key.
pub(crate) const RMAP_KEY_SIZE: usize = 16;
/// Blocks of a record of the reverse map at most: the low bits of its second word.
pub(crate) const MAX_LEN: u32 = (1 << 28) - 1;
/// The lowest of the two bits that hold the kind, in that word.
pub(crate) const KIND_SHIFT: u32 = 28;
/// These two bits, shifted down.
pub(crate) const KIND_MASK: u32 = 3;
/// A bit of that word that is zero on disk. In memory it hides a record that a change has replaced.
pub(crate) const HIDDEN: u32 = 1 << 30;
/// The bit of that word that says that data was allocated and never written.
pub(crate) const UNWRITTEN: u32 = 1 << 31;

/// Bytes of a record of the reference counts.
pub(crate) const REFCOUNT_SIZE: usize = 12;
/// Bytes of its key.
pub(crate) const REFCOUNT_KEY_SIZE: usize = 4;
/// The bit of a block's number that says, in a record of the reference counts, that the blocks are staged.
pub(crate) const STAGED: u32 = 1 << 31;
