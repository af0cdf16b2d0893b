// SPDX-License-Identifier: GPL-2.0

//! Owners of blocks, and the interface to an index of them.
//!
//! The layer above implements [`OwnerIndex`]; the file system calls it only from
//! [`crate::fs::alloc::space`].

use crate::kernel_glue::Handle;
use core::any::Any;
use kernel::{prelude::*, sync::Arc};

/// How an inode uses its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnerKind {
    /// Contents of a file or directory.
    Data {
        /// The file block of the first of the blocks.
        offset: u32,
        /// Allocated, but unwritten.
        unwritten: bool,
    },
    /// Mapping metadata: extent-tree nodes, indirect blocks.
    Mapping,
    /// Extended attributes.
    Attributes,
    /// CoW staging. Staged blocks count neither as contents nor in `i_blocks`.
    Staged,
}

/// An owner of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The inode.
    pub(crate) ino: u32,
    /// How it uses the blocks.
    pub(crate) kind: OwnerKind,
}

/// An index of the owners of blocks. Blocks are numbered from the start of the volume.
///
/// Called inside a handle with the owner's mapping locked. An index that cannot be updated marks
/// itself stale and returns `Ok`; an error means that the journal has been aborted.
pub(crate) trait OwnerIndex: Send + Sync {
    /// Returns the number of journal credits for `changes` changes.
    fn credits(&self, changes: u32) -> u32;
    /// Returns the number of additional journal credits for giving up `blocks` blocks whose
    /// reference counts may all differ.
    fn give_credits(&self, blocks: u32) -> u32;
    /// `owner` gained these blocks.
    fn add(&self, handle: &Handle, start: u64, len: u32, owner: Owner) -> Result;
    /// `owner` lost these blocks.
    fn remove(&self, handle: &Handle, start: u64, len: u32, owner: Owner) -> Result;
    /// These blocks of a file, starting at file block `offset`, were written for the first time.
    fn convert(&self, handle: &Handle, start: u64, len: u32, ino: u32, offset: u32) -> Result;
    /// These staged blocks have been written and become the file's contents, starting at file block
    /// `offset`.
    fn adopt(&self, handle: &Handle, start: u64, len: u32, ino: u32, offset: u32) -> Result;
    /// `owner` became an additional owner of these blocks.
    fn share(&self, handle: &Handle, start: u64, len: u32, owner: Owner) -> Result;
    /// `owner` lost these blocks, which may have other owners. Adds the blocks without an owner to
    /// `lost`.
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
    /// Returns whether blocks have several owners; see [`sharing`].
    fn sharing(&self, start: u64, len: u32) -> Result<(u32, bool)>;
    /// Returns true if the owners of all blocks are known.
    fn is_complete(&self) -> Result<bool>;
    /// Prepares for shared blocks; see [`prepare`]. The caller ensures that this is not called
    /// concurrently.
    fn prepare_sharing(&self) -> Result;
    /// Returns true if any block may have several owners.
    fn shares(&self) -> bool;
    /// Called before a handle is started, with none open. May sleep for some milliseconds to let
    /// the index catch up.
    fn throttle(&self);
    /// Returns `self` for a downcast.
    fn as_any(&self) -> &dyn Any;
}

/// A volume's index of owners, if one is attached.
pub(in crate::fs) type Index = Option<Arc<dyn OwnerIndex>>;
