// SPDX-License-Identifier: GPL-2.0

//! The ext4 on-disk format: structures over bytes, their checksums, and derived values.
//!
//! Everything here is pure: it reads and modifies byte slices, does no I/O and takes no locks, so
//! that it compiles and is tested unchanged on the host. No value from disk is trusted: an invalid
//! field is reported as [`Corrupt`] with a description; the caller adds the block or inode and
//! converts it to an errno.
//!
//! Source: `Documentation/filesystems/ext4/` of the kernel.
//!
//! - [`superblock`] — the superblock, feature sets, and the [`Layout`](superblock::Layout) that
//!   follows from them
//! - [`group`] — block group descriptors and bitmap checksums
//! - [`inode`] — inodes, their times and sizes
//! - [`extent`], [`extent_edit`] — reading and changing nodes of an inode's extent tree
//! - [`dir`], [`dir_edit`] — reading and changing linear directory blocks
//! - [`htree`] — hashes of names, index blocks of hashed directories
//! - [`bitmap`] — bitmaps
//! - [`acl`] — access lists
//! - [`indirect`] — block pointers of files without extents
//! - [`orphan`] — blocks of the orphan file
//! - [`tree_file`] — header, region table and space maps of the files that hold trees
//! - [`xattr`] — extended attributes
//! - [`zones`] — ranges of blocks in order
//! - [`csum`] — crc32c and crc16

pub(crate) mod acl;
pub(crate) mod bitmap;
pub(crate) mod csum;
pub(crate) mod dir;
pub(crate) mod dir_edit;
pub(crate) mod extent;
pub(crate) mod extent_edit;
pub(crate) mod group;
pub(crate) mod growth;
pub(crate) mod htree;
pub(crate) mod indirect;
pub(crate) mod inode;
pub(crate) mod orphan;
pub(crate) mod superblock;
pub(crate) mod tree_file;
pub(crate) mod tree_layout;
pub(crate) mod xattr;
pub(crate) mod zones;

use core::num::NonZero;

/// Describes an invalid on-disk structure. The texts are stable: log messages and tests contain
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Corrupt(pub(crate) &'static str);

impl Corrupt {
    /// Returns true if only the checksum of a block or an inode is known to be wrong.
    pub(crate) fn is_checksum(&self) -> bool {
        let kinds = [
            "inode checksum mismatch",
            "block bitmap checksum mismatch",
            "inode bitmap checksum mismatch",
            "extent node checksum mismatch",
            "directory block checksum mismatch",
            "directory block without checksum",
            "attribute block checksum mismatch",
            "superblock checksum mismatch",
        ];
        kinds.contains(&self.0)
    }
}

/// Returns a non-zero divisor: `number`, or 1 if it is 0. Unlike with `max(1)`, the compiler knows
/// that the result is not 0 and omits the check for a division by zero.
pub(crate) fn divisor(number: u32) -> NonZero<u32> {
    NonZero::new(number).unwrap_or(NonZero::<u32>::MIN)
}

/// Result of reading an on-disk structure.
pub(crate) type Checked<T> = core::result::Result<T, Corrupt>;

/// Fails with `what` unless `good` holds.
pub(crate) fn ensure(good: bool, what: &'static str) -> Checked<()> {
    if good {
        Ok(())
    } else {
        Err(Corrupt(what))
    }
}
