// SPDX-License-Identifier: GPL-2.0

//! The owners of blocks, and the interface through which an index of them is kept.
//!
//! The layer above implements [`OwnerIndex`]; the file system calls it from [`crate::fs::alloc::space`] alone.

use crate::kernel_glue::Handle;
use core::any::Any;
use kernel::{prelude::*, sync::Arc};

/// What blocks are to their inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnerKind {
    /// Contents: the first of the blocks is this block of the file.
    Data {
        /// In blocks.
        offset: u32,
        /// Allocated but never written.
        unwritten: bool,
    },
    /// Nodes of its block mapping.
    Mapping,
    /// Its extended attributes.
    Attributes,
    /// Set aside for copy-on-write. They count neither as contents nor as sectors.
    Staged,
}

/// Who owns blocks, and as what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The inode.
    pub(crate) ino: u32,
    /// What they are to it.
    pub(crate) kind: OwnerKind,
}

/// What keeps an index of owners. Blocks are counted from the start of the volume.
///
/// Called inside a handle with the owner's mapping locked. An index that cannot keep up marks itself as to be rebuilt and
/// answers `Ok`; an error means that the journal is aborted.
pub(crate) trait OwnerIndex: Send + Sync {
    /// Blocks of the journal that so many changes may write.
    fn credits(&self, changes: u32) -> u32;
    /// Blocks of the journal that giving up so many blocks may write besides, when their counts are unlike.
    fn give_credits(&self, blocks: u32) -> u32;
    /// `owner` got these blocks.
    fn add(&self, handle: &Handle, start: u64, len: u32, owner: Owner) -> Result;
    /// `owner` lost these blocks.
    fn remove(&self, handle: &Handle, start: u64, len: u32, owner: Owner) -> Result;
    /// These blocks of a file, from file block `offset` on, were written for the first time.
    fn convert(&self, handle: &Handle, start: u64, len: u32, ino: u32, offset: u32) -> Result;
    /// These staged blocks of a file are its contents, written, from file block `offset` on.
    fn adopt(&self, handle: &Handle, start: u64, len: u32, ino: u32, offset: u32) -> Result;
    /// `owner` became one more owner of these blocks.
    fn share(&self, handle: &Handle, start: u64, len: u32, owner: Owner) -> Result;
    /// `owner` lost these blocks, which may have others: adds those that nobody has any more to `lost`.
    fn leave(
        &self,
        handle: &Handle,
        start: u64,
        len: u32,
        owner: Owner,
        lost: &mut KVVec<(u64, u32)>,
    ) -> Result;
    /// Returns true if any of these blocks is known to have an owner.
    fn is_owned(&self, start: u64, len: u32) -> Result<bool>;
    /// Whether blocks have several owners; see [`sharing`].
    fn sharing(&self, start: u64, len: u32) -> Result<(u32, bool)>;
    /// Returns true when the owners of all blocks are known.
    fn is_complete(&self) -> Result<bool>;
    /// Gets ready for blocks with several owners; see [`prepare`]. Nobody else does so meanwhile.
    fn prepare_sharing(&self) -> Result;
    /// Whether any block may have several owners.
    fn shares(&self) -> bool;
    /// Called with no handle open before one is started: may wait some milliseconds when it cannot keep up.
    fn throttle(&self);
    /// Itself, for who attached it.
    fn as_any(&self) -> &dyn Any;
}

/// The index of owners of a volume, if one is attached.
pub(in crate::fs) type Index = Option<Arc<dyn OwnerIndex>>;
