// SPDX-License-Identifier: GPL-2.0

//! The ext4 on-disk format: structures over bytes, their checksums, and what follows from them.
//!
//! Everything here is pure. It reads and edits byte slices, never does I/O and never locks, so that it compiles and is
//! tested on the host as it stands. Nothing trusts a value from disk: a field that cannot be right is reported as
//! [`Corrupt`] with the name of what was wrong, and the caller adds the block or inode and turns it into an errno.
//!
//! Source: `Documentation/filesystems/ext4/` of the kernel.
//!
//! - [`superblock`] — the superblock, feature sets, and the [`Layout`](superblock::Layout) that follows from them
//! - [`group`] — block group descriptors and bitmap checksums
//! - [`inode`] — inodes, their times and sizes
//! - [`extent`], [`extent_edit`] — reading and changing nodes of an inode's extent tree
//! - [`dir`], [`dir_edit`] — reading and changing linear directory blocks
//! - [`bitmap`] — bitmaps
//! - [`acl`] — access lists
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
pub(crate) mod inode;
pub(crate) mod orphan;
pub(crate) mod superblock;
pub(crate) mod tree_file;
pub(crate) mod tree_layout;
pub(crate) mod xattr;
pub(crate) mod zones;

use core::num::NonZero;

/// What was wrong with a structure read from disk. The text is stable: logs and tests name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Corrupt(pub(crate) &'static str);

/// A number to divide by: this, or 1 where that is 0. Unlike a quotient that `max` made at least 1 it is one that the
/// compiler never takes for 0.
pub(crate) fn divisor(number: u32) -> NonZero<u32> {
    NonZero::new(number).unwrap_or(NonZero::<u32>::MIN)
}

/// The outcome of looking at something from disk.
pub(crate) type Checked<T> = core::result::Result<T, Corrupt>;

/// Fails with `what` unless `good` holds.
pub(crate) fn ensure(good: bool, what: &'static str) -> Checked<()> {
    if good {
        Ok(())
    } else {
        Err(Corrupt(what))
    }
}
