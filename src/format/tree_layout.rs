// SPDX-License-Identifier: GPL-2.0

//! The layout of the trees on disk: every magic, version, size and bit, in one place.
//!
//! [`docs/on-disk.md`](../../docs/on-disk.md) describes it. The module and the command share this
//! file, which is the only definition of the layout. After a change to the layout of nodes or
//! records, increment [`NODE_VERSION`]: nodes of another version are rejected, so their tree is
//! found stale and rebuilt.

/// The first eight bytes of the file of the reverse map.
pub(crate) const RMAP_MAGIC: [u8; 8] = *b"rext4map";
/// The first eight bytes of the file of the reference counts.
pub(crate) const REFCOUNT_MAGIC: [u8; 8] = *b"rext4cnt";
/// The version of a tree file: its header, region table and space maps.
pub(crate) const FILE_VERSION: u32 = 1;
/// Size in bytes of the header in use.
pub(crate) const HEADER_SIZE: usize = 256;

/// Size in bytes of an entry of the region table.
pub(crate) const REGION_SIZE: usize = 32;
/// State of a region whose tree must be rebuilt.
pub(crate) const STALE: u32 = 0;
/// State of a region whose tree is correct.
pub(crate) const GOOD: u32 = 1;
/// State of a region whose tree is correct, while blocks that lost their last owner may still be
/// allocated.
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
/// Offset of a node's checksum in bytes.
pub(crate) const NODE_CHECKSUM: usize = 4;
/// Maximum number of levels of a tree.
pub(crate) const MAX_LEVELS: usize = 10;

/// Size in bytes of a reverse map record.
pub(crate) const RMAP_SIZE: usize = 16;
/// Size in bytes of its key.
pub(crate) const RMAP_KEY_SIZE: usize = 16;
/// Maximum number of blocks of a reverse map record: the low bits of its second word.
pub(crate) const MAX_LEN: u32 = (1 << 28) - 1;
/// In that word, the position of the two bits that hold the kind.
pub(crate) const KIND_SHIFT: u32 = 28;
/// The mask of these two bits, after shifting.
pub(crate) const KIND_MASK: u32 = 3;
/// A bit of that word that is zero on disk. In memory it marks a record as hidden, because a change
/// has replaced it.
pub(crate) const HIDDEN: u32 = 1 << 30;
/// The bit of that word that marks data as allocated but unwritten.
pub(crate) const UNWRITTEN: u32 = 1 << 31;

/// Size in bytes of a reference count record.
pub(crate) const REFCOUNT_SIZE: usize = 12;
/// Size in bytes of its key.
pub(crate) const REFCOUNT_KEY_SIZE: usize = 4;
/// In a reference count record, the bit of the block number that marks the blocks as staged.
pub(crate) const STAGED: u32 = 1 << 31;
