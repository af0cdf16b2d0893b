// SPDX-License-Identifier: GPL-2.0

//! The one place through which blocks get and lose owners.
//!
//! Every change of who owns which block goes through here: it takes the blocks from the bitmaps or gives them back, keeps
//! the owner's count of sectors, and tells the index of owners, if one is attached, in the same handle. The owner's
//! mapping is locked to write, and the caller changes it before it drops that lock.
//!
//! Contents of regular files may have several owners. As long as no block of the volume has, which [`Volume::shares`]
//! tells, nothing is asked of the index. Blocks that are to take the place of shared ones are *staged*: they belong to the
//! inode, but are no part of its contents, until the data is in them and they are adopted.

use super::{balloc, Volume};
use crate::kernel_glue::{unsupported, Handle, Inode, SuperBlock};
use core::any::Any;
use kernel::prelude::*;

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
    /// `owner` got these blocks.
    fn add(&self, handle: &Handle, start: u64, len: u32, owner: Owner) -> Result;
    /// `owner` lost these blocks.
    fn remove(&self, handle: &Handle, start: u64, len: u32, owner: Owner) -> Result;
    /// These blocks of a file, from file block `offset` on, were written for the first time.
    fn convert(&self, handle: &Handle, start: u64, len: u32, ino: u32, offset: u32) -> Result;
    /// These staged blocks of a file are its contents, written, from file block `offset` on.
    fn adopt(&self, handle: &Handle, start: u64, len: u32, ino: u32, offset: u32) -> Result;
    /// Called with no handle open before one is started: may wait some milliseconds when it cannot keep up.
    fn throttle(&self);
    /// Itself, for who attached it.
    fn as_any(&self) -> &dyn Any;
}

/// Blocks of the journal to reserve for so many changes of owners, beyond those of bitmaps and mappings.
///
/// At most half of what a handle can have: where the journal is so small, an index asks for more when it needs it.
pub(crate) fn credits(volume: &Volume, changes: u32) -> u32 {
    let (Some(index), Ok(journal)) = (volume.index(), volume.journal()) else {
        return 0;
    };
    index.credits(changes).min(journal.room() / 2)
}

/// Takes up to `want` blocks near `goal` for an inode.
///
/// Fails as [`balloc::allocate`] does.
pub(crate) fn take(
    handle: &Handle,
    inode: &Inode<Volume>,
    goal: u64,
    want: u32,
    kind: OwnerKind,
) -> Result<(u64, u32)> {
    let sb = inode.super_block();
    let (start, len) = balloc::allocate(handle, sb, goal, want, kind == OwnerKind::Mapping)?;
    count(inode, i64::from(len))?;
    if let Some(index) = sb.volume()?.index() {
        let owner = Owner {
            ino: inode.number(),
            kind,
        };
        index.add(handle, start, len, owner)?;
    }
    Ok((start, len))
}

/// Gives blocks of an inode back. `journaled` blocks, which hold metadata, are revoked, each taking a revoke credit.
pub(crate) fn give(
    handle: &Handle,
    inode: &Inode<Volume>,
    start: u64,
    len: u32,
    kind: OwnerKind,
    journaled: bool,
) -> Result {
    let sb = inode.super_block();
    if journaled {
        for block in start..start + u64::from(len) {
            handle.revoke(sb, block)?;
        }
    }
    balloc::free(handle, sb, start, len)?;
    leave(handle, inode, start, len, kind)
}

/// An inode no longer owns these blocks, which stay in use for others.
pub(crate) fn leave(handle: &Handle, inode: &Inode<Volume>, start: u64, len: u32, kind: OwnerKind) -> Result {
    let sb = inode.super_block();
    count(inode, -i64::from(len))?;
    if let Some(index) = sb.volume()?.index() {
        let owner = Owner {
            ino: inode.number(),
            kind,
        };
        index.remove(handle, start, len, owner)?;
    }
    Ok(())
}

/// Notes that blocks of a file were written for the first time.
pub(crate) fn written(handle: &Handle, inode: &Inode<Volume>, start: u64, len: u32, offset: u32) -> Result {
    match inode.super_block().volume()?.index() {
        Some(index) => index.convert(handle, start, len, inode.number(), offset),
        None => Ok(()),
    }
}

/// Keeps the volume ready for blocks with several owners, from [`prepare`] until it is dropped.
pub(crate) struct Sharing<'a>(&'a Volume);

/// Gets the volume ready for blocks with several owners. Whoever is going to [`share`] does this first, with no handle open
/// and no inode locked.
///
/// Fails with `EOPNOTSUPP` when there is no index of owners, with `ENOSPC` when there is no room for the counts.
pub(crate) fn prepare(sb: &SuperBlock<Volume>) -> Result<Sharing<'_>> {
    let _ = Sharing(sb.volume()?);
    Err(unsupported())
}

/// Whether blocks have more than one owner: of how many, from the first on, the answer is true, and the answer. Where it
/// is not known the answer is yes.
pub(crate) fn sharing(sb: &SuperBlock<Volume>, _start: u64, len: u32) -> Result<(u32, bool)> {
    sb.volume()?;
    Ok((len, false))
}

/// Makes the inode, a regular file, one more owner of blocks that hold written contents of one: they are its contents from
/// file block `offset` on. The mappings of both are locked, the one of `inode` to write.
pub(crate) fn share(
    _ready: &Sharing<'_>,
    _handle: &Handle,
    _inode: &Inode<Volume>,
    _start: u64,
    _len: u32,
    _offset: u32,
) -> Result {
    Err(unsupported())
}

/// Takes up to `want` blocks near `goal` and sets them aside for the inode. They must be [given back](unstage) or
/// [adopted](adopt) before the inode leaves memory; until then its list of them tells a scan that they are its.
///
/// Fails as [`balloc::allocate`] does.
pub(crate) fn stage(handle: &Handle, inode: &Inode<Volume>, goal: u64, want: u32) -> Result<(u64, u32)> {
    let sb = inode.super_block();
    let (start, len) = balloc::allocate(handle, sb, goal, want, false)?;
    if let Some(index) = sb.volume()?.index() {
        index.add(handle, start, len, staged(inode))?;
    }
    Ok((start, len))
}

/// Gives blocks back that were set aside for the inode.
pub(crate) fn unstage(handle: &Handle, inode: &Inode<Volume>, start: u64, len: u32) -> Result {
    let sb = inode.super_block();
    balloc::free(handle, sb, start, len)?;
    match sb.volume()?.index() {
        Some(index) => index.remove(handle, start, len, staged(inode)),
        None => Ok(()),
    }
}

/// Makes blocks that were set aside for the inode its contents, which were written, from file block `offset` on. What it
/// had there was given back before.
pub(crate) fn adopt(handle: &Handle, inode: &Inode<Volume>, start: u64, len: u32, offset: u32) -> Result {
    count(inode, i64::from(len))?;
    match inode.super_block().volume()?.index() {
        Some(index) => index.adopt(handle, start, len, inode.number(), offset),
        None => Ok(()),
    }
}

fn staged(inode: &Inode<Volume>) -> Owner {
    Owner {
        ino: inode.number(),
        kind: OwnerKind::Staged,
    }
}

fn count(inode: &Inode<Volume>, blocks: i64) -> Result {
    let bits = inode.super_block().volume()?.layout.block_bits;
    inode.add_sectors(blocks << (bits - 9));
    Ok(())
}
