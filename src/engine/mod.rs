// SPDX-License-Identifier: GPL-2.0

//! The engine: ordered indexes of a volume's blocks, kept in B+trees and rebuilt while the volume
//! is written.
//!
//! Everything here is pure: it knows records, nodes as bytes, and a store that provides nodes. It
//! knows nothing of file systems, does no I/O and takes no locks, so it can be compiled and tested
//! on the host unchanged.
//!
//! - [`record`] — the reverse map's records: their meaning and order, how they merge and are cut
//! - [`node`] — a tree's nodes as bytes
//! - [`btree`] — lookup, insertion, deletion, overlap queries
//! - [`check`] — checking the structure of a tree, at once or a leaf at a time
//! - [`compare`] — comparing a tree with the collected records, in parts
//! - [`owners`] — adding and removing owners of blocks, with as few records as possible
//! - [`refcount`] — the number of owners of blocks, updated with each change of owners
//! - [`recount`] — the same, derived from the reverse map
//! - [`parked`] — blocks that lost an owner while it was unknown whether that was the last one
//! - [`bulk`] — building a tree bottom-up from records in order
//! - [`pool`] — memory with a limit, and a file for what does not fit
//! - [`gather`] — records found by a scan, for all regions: a buffer for each worker, sorted runs,
//!   one merge
//! - [`base`] — the records of a scan in order, in memory or in a file
//! - [`shadow`] — the records of a scan and the changes made since, in order
//! - [`delta`] — changes of owners that wait to be applied to a tree that is being built
//! - [`rebuild`] — rebuilding a region's tree while its blocks change owners
//! - [`scan`] — the cursor of a scan over all inodes, which may change during the scan

mod base;
pub(crate) mod btree;
pub(crate) mod bulk;
pub(crate) mod check;
pub(crate) mod compare;
pub(crate) mod delta;
pub(crate) mod gather;
pub(crate) mod node;
pub(crate) mod owners;
pub(crate) mod parked;
mod pool;
pub(crate) mod rebuild;
pub(crate) mod record;
pub(crate) mod recount;
pub(crate) mod refcount;
pub(crate) mod scan;
pub(crate) mod shadow;

use kernel::alloc::AllocError;

/// The reason for a failure. The names are stable: logs, counters and tests use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Error {
    /// A node is invalid.
    Corrupt {
        /// Its block in the tree's file.
        block: u32,
        /// The defect.
        what: &'static str,
    },
    /// A record to be added exists, or one to be removed does not.
    Mismatch(&'static str),
    /// Out of memory.
    NoMemory,
    /// No free block is left in the tree's file.
    NoSpace,
    /// Reading or writing a block failed.
    Io,
}

impl From<AllocError> for Error {
    fn from(_: AllocError) -> Self {
        Error::NoMemory
    }
}

/// A result of the engine.
pub(crate) type Result<T = ()> = core::result::Result<T, Error>;
