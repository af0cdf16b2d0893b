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

pub(crate) use crate::fs::owners::{Owner, OwnerIndex, OwnerKind};

use crate::{
    fs::{alloc::balloc, disk::super_disk, state::Volume},
    kernel_glue::{insist, unsupported, Handle, Inode, SuperBlock},
};
use kernel::{prelude::*, sync::atomic::Relaxed};

/// Blocks of the journal to reserve for so many changes of owners, beyond those of bitmaps and mappings.
///
/// At most half of what a handle can have: where the journal is so small, an index asks for more when it needs it.
pub(crate) fn credits(volume: &Volume, changes: u32) -> u32 {
    let (Some(index), Ok(journal)) = (volume.index(), volume.journal()) else {
        return 0;
    };
    index.credits(changes).min(journal.room() / 2)
}

/// Blocks of contents to [`give`] at a time at most, where they may be shared. Their counts may change as often as they
/// do, for which a handle has room with [`give_credits`] more.
const GIVE_AT_ONCE: u32 = 1024;

/// How many blocks of contents to [`give`] at a time, if that many would be.
pub(crate) fn give_at_once(volume: &Volume, most: u32) -> u32 {
    if volume.shares() {
        most.min(GIVE_AT_ONCE)
    } else {
        most
    }
}

/// Blocks of the journal to reserve for one [`give`] of [`give_at_once`] blocks, beyond [`credits`].
///
/// At most an eighth of what a handle can have: a clone reserves it twice beside [`credits`].
pub(crate) fn give_credits(volume: &Volume) -> u32 {
    match (volume.shares(), volume.index(), volume.journal()) {
        (true, Some(index), Ok(journal)) => index.give_credits(GIVE_AT_ONCE).min(journal.room() / 8),
        _ => 0,
    }
}

/// Blocks of the journal that one [`give`] of so many blocks, in one group or two, may write.
pub(crate) fn give_needs(volume: &Volume, blocks: u32) -> u32 {
    let index = volume.index().map_or(0, |index| match volume.shares() {
        true => index.credits(1).saturating_add(index.give_credits(blocks)),
        false => index.credits(1),
    });
    index.saturating_add(2 * balloc::ALLOCATE_CREDITS)
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
    let request = request(inode, goal, want, kind == OwnerKind::Mapping)?;
    let (start, len) = balloc::allocate(handle, sb, request)?;
    own(handle, inode, start, len, kind)?;
    Ok((start, len))
}

fn request(inode: &Inode<Volume>, goal: u64, want: u32, for_node: bool) -> Result<balloc::Request> {
    Ok(balloc::Request {
        goal,
        want,
        for_node,
        narrow: !inode.data()?.has_extents(),
    })
}

/// An inode becomes the owner of these blocks, which were just taken.
fn own(handle: &Handle, inode: &Inode<Volume>, start: u64, len: u32, kind: OwnerKind) -> Result {
    count(inode, i64::from(len))?;
    match inode.super_block().volume()?.index() {
        Some(index) => {
            let owner = Owner {
                ino: inode.number(),
                kind,
            };
            index.add(handle, start, len, owner)
        }
        None => Ok(()),
    }
}

/// Reserves up to `want` blocks near `goal` for contents of an inode. They must be [taken](take_reserved) or
/// [given back](unreserve) before the inode leaves memory; on disk they are free until then.
///
/// Fails as [`balloc::reserve`] does.
pub(crate) fn reserve(handle: &Handle, inode: &Inode<Volume>, goal: u64, want: u32) -> Result<(u64, u32)> {
    balloc::reserve(handle, inode.super_block(), request(inode, goal, want, false)?)
}

/// Makes blocks that were reserved for an inode its contents, which were written, from file block `offset` on.
pub(crate) fn take_reserved(
    handle: &Handle,
    inode: &Inode<Volume>,
    start: u64,
    len: u32,
    offset: u32,
) -> Result {
    balloc::take_reserved(handle, inode.super_block(), start, len)?;
    let kind = OwnerKind::Data {
        offset,
        unwritten: false,
    };
    own(handle, inode, start, len, kind)
}

/// Gives blocks back that were reserved and not taken.
pub(crate) fn unreserve(sb: &SuperBlock<Volume>, start: u64, len: u32) -> Result {
    balloc::unreserve(sb, start, len)
}

/// Gives blocks of an inode back. `journaled` blocks, which hold metadata, are revoked, each taking a revoke credit. Those
/// that others have as well stay theirs.
pub(crate) fn give(
    handle: &Handle,
    inode: &Inode<Volume>,
    start: u64,
    len: u32,
    kind: OwnerKind,
    journaled: bool,
) -> Result {
    let sb = inode.super_block();
    let volume = sb.volume()?;
    if journaled {
        for block in start..start + u64::from(len) {
            handle.revoke(sb, block)?;
        }
    }
    let can_share = volume.shares() && inode.is_file() && matches!(kind, OwnerKind::Data { .. });
    let index = match volume.index() {
        Some(index) if can_share => index,
        _ => {
            balloc::free(handle, sb, start, len)?;
            return leave(handle, inode, start, len, kind);
        }
    };
    let owner = Owner {
        ino: inode.number(),
        kind,
    };
    // The mapping no longer has the blocks, so this must not fail half way. Each block may become a
    // run of its own.
    let mut lost = insist(|| Ok(KVVec::with_capacity(len as usize, GFP_KERNEL)?))
        .inspect_err(|&error| handle.abort(error))?;
    count(inode, -i64::from(len))?;
    index
        .leave(handle, start, len, owner, &mut lost)
        .inspect_err(|&error| handle.abort(error))?;
    for &(start, len) in lost.iter() {
        balloc::free(handle, sb, start, len)?;
    }
    Ok(())
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

/// Blocks of an inode's contents, which may have other owners as well, move from the file block of
/// the first offset on to that of the second one on.
pub(crate) fn moved(
    handle: &Handle,
    inode: &Inode<Volume>,
    start: u64,
    len: u32,
    unwritten: bool,
    offsets: (u32, u32),
) -> Result {
    let Some(index) = inode.super_block().volume()?.index() else {
        return Ok(());
    };
    let owner = |offset| Owner {
        ino: inode.number(),
        kind: OwnerKind::Data { offset, unwritten },
    };
    index.remove(handle, start, len, owner(offsets.0))?;
    index.add(handle, start, len, owner(offsets.1))
}

/// Keeps the volume ready for blocks with several owners, from [`prepare`] until it is dropped.
pub(crate) struct Sharing<'a>(&'a Volume);

impl Drop for Sharing<'_> {
    fn drop(&mut self) {
        let mut sharers = self.0.shared.sharers.lock();
        *sharers = sharers.saturating_sub(1);
    }
}

/// Gets the volume ready for blocks with several owners. Whoever is going to [`share`] does this first, with no handle open
/// and no inode locked.
///
/// The superblock says so before the first block is shared, and for as long as the result is held.
///
/// # Errors
///
/// `EROFS` when the volume is not writable. `EOPNOTSUPP` when there is no index of owners, when it is not complete yet, and
/// when no block has several owners and the mount does not allow that any has: programs copy then instead of waiting.
/// `ENOSPC` when there is no room for the counts.
pub(crate) fn prepare(sb: &SuperBlock<Volume>) -> Result<Sharing<'_>> {
    let volume = sb.volume()?;
    volume.journal()?;
    let index = volume.index().ok_or_else(unsupported)?;
    let mut sharers = volume.shared.sharers.lock();
    if !volume.shares() {
        if !volume.shared.allowed.load(Relaxed) || !index.is_complete()? {
            return Err(unsupported());
        }
        index.prepare_sharing()?;
        let _write = sb.internal_write();
        super_disk::note_shared_blocks(volume, sb, true)?;
        volume.shared.on.store(true, Relaxed);
    }
    *sharers += 1;
    Ok(Sharing(volume))
}

/// Has the superblock no longer say that blocks have several owners, if none has and nobody is about to share any. Must not
/// be called with a handle open.
pub(crate) fn end_sharing(sb: &SuperBlock<Volume>) -> Result {
    let volume = sb.volume()?;
    let Some(index) = volume.index() else {
        return Ok(());
    };
    let sharers = volume.shared.sharers.lock();
    if !volume.shares() || index.shares() || *sharers > 0 {
        return Ok(());
    }
    // The last sharing must be gone from the disk first.
    volume.journal()?.commit(true)?;
    let _write = sb.internal_write();
    super_disk::note_shared_blocks(volume, sb, false)?;
    volume.shared.on.store(false, Relaxed);
    Ok(())
}

/// Whether blocks have more than one owner: of how many, from the first on, the answer is true, and the answer. Where it
/// is not known, as on a read-only mount without good trees, the answer is yes.
pub(crate) fn sharing(sb: &SuperBlock<Volume>, start: u64, len: u32) -> Result<(u32, bool)> {
    let volume = sb.volume()?;
    if !volume.shares() {
        return Ok((len, false));
    }
    match volume.index() {
        Some(index) => index.sharing(start, len),
        None => Ok((len, true)),
    }
}

/// Makes the inode, a regular file, one more owner of blocks that hold written contents of one: they are its contents from
/// file block `offset` on. The mappings of both are locked, the one of `inode` to write.
pub(crate) fn share(
    _ready: &Sharing<'_>,
    handle: &Handle,
    inode: &Inode<Volume>,
    start: u64,
    len: u32,
    offset: u32,
) -> Result {
    let index = inode.super_block().volume()?.index().ok_or(EROFS)?;
    count(inode, i64::from(len))?;
    let owner = Owner {
        ino: inode.number(),
        kind: OwnerKind::Data {
            offset,
            unwritten: false,
        },
    };
    index.share(handle, start, len, owner)
}

/// Gives blocks back that nobody owns, in a transaction of its own. Must not be called with a handle open.
pub(crate) fn release(sb: &SuperBlock<Volume>, start: u64, len: u32) -> Result {
    release_with(sb, start, len, &mut |_| Ok(()))
}

/// The same, with something else that must come to disk together with it, one change of owners at most.
pub(crate) fn release_with(
    sb: &SuperBlock<Volume>,
    start: u64,
    len: u32,
    also: &mut dyn FnMut(&Handle) -> Result,
) -> Result {
    let volume = sb.volume()?;
    let groups = len / volume.layout.blocks_per_group.max(1) + 2;
    let _write = sb.internal_write();
    let handle = volume.begin_internal(groups * balloc::ALLOCATE_CREDITS + credits(volume, 1), 0)?;
    also(&handle)?;
    balloc::free(&handle, sb, start, len)?;
    handle.stop()
}

/// Takes up to `want` blocks near `goal` and sets them aside for the inode. They must be [given back](unstage) or
/// [adopted](adopt) before the inode leaves memory; until then its list of them tells a scan that they are its.
///
/// Fails as [`balloc::allocate`] does.
pub(crate) fn stage(handle: &Handle, inode: &Inode<Volume>, goal: u64, want: u32) -> Result<(u64, u32)> {
    let sb = inode.super_block();
    let (start, len) = balloc::allocate(handle, sb, request(inode, goal, want, false)?)?;
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
/// had there was given back before. They have been [counted](count).
pub(crate) fn adopt(handle: &Handle, inode: &Inode<Volume>, start: u64, len: u32, offset: u32) -> Result {
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

/// Changes the inode's count of sectors by so many blocks. A count that was too small on disk stops at zero: if it wrapped,
/// the inode could no longer be stored, and its mapping would keep blocks that are given to other files.
pub(crate) fn count(inode: &Inode<Volume>, blocks: i64) -> Result {
    let sb = inode.super_block();
    let bits = sb.volume()?.layout.block_bits;
    if !inode.add_sectors(blocks << (bits - 9)) && inode.data()?.is_first_miscount() {
        pr_warn!(
            "{}: inode {}: i_blocks is smaller than the blocks it has; counted as 0, run e2fsck\n",
            sb.name(),
            inode.number()
        );
    }
    Ok(())
}
