// SPDX-License-Identifier: GPL-2.0

//! The engine: ordered indexes of a volume's blocks, kept in B+trees and rebuilt while the volume
//! is written.
//!
//! Everything here is pure. It knows records, nodes as bytes, and a store that provides nodes. It
//! knows nothing of file systems, does no I/O and takes no locks, so it can be compiled and tested
//! on the host unchanged.
//!
//! - [`record`] — the reverse map's records: their meaning and order, how they merge and are cut
//! - [`node`] — a tree's nodes as bytes
//! - [`btree`] — lookup, insertion, deletion, overlap queries
//! - [`check`] — checking a tree, at once or leaf by leaf
//! - [`compare`] — comparing a tree with collected records, in steps
//! - [`owners`] — adding and removing owners of blocks with as few records as possible
//! - [`refcount`] — reference counts, updated with each change of owners
//! - [`recount`] — deriving the reference counts from the reverse map
//! - [`parked`] — blocks that lost an owner while it was unknown whether that was the last one
//! - [`bulk`] — building a tree bottom-up from sorted records
//! - [`append`] — collecting a scan's records, separately for each worker
//! - [`base`] — the merged records of a scan, partly in a file if necessary
//! - [`shadow`] — the records that a new tree must hold, kept up to date in memory
//! - [`delta`] — changes of owners that wait to be applied to a staged tree
//! - [`rebuild`] — rebuilding a region's tree while its blocks change owners
//! - [`scan`] — the cursor of a scan over inodes that others change meanwhile

pub(crate) mod append;
mod base;
pub(crate) mod btree;
pub(crate) mod bulk;
pub(crate) mod check;
pub(crate) mod compare;
pub(crate) mod delta;
pub(crate) mod node;
pub(crate) mod owners;
pub(crate) mod parked;
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
