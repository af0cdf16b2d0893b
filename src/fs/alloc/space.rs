// SPDX-License-Identifier: GPL-2.0

//! The choke point: the only place where blocks gain and lose owners.
//!
//! Every change of ownership goes through here. In one handle, it allocates or frees the blocks in
//! the bitmaps, updates the owner's count of sectors, and informs the index of owners, if one is
//! attached. The caller holds the owner's mapping lock exclusively, and changes the mapping before
//! it drops that lock.
//!
//! Contents of regular files may have several owners. The index is not queried as long as no block
//! of the volume is shared ([`Volume::shares`]). Blocks that will replace shared ones are *staged*:
//! they belong to the inode, but not to its contents, until the data has been written to them and
//! they are adopted.

pub(crate) use crate::fs::owners::{Owner, OwnerIndex, OwnerKind};

use crate::{
    fs::{
        alloc::{balloc, windows::Holder},
        state::Volume,
    },
    kernel_glue::{insist, Handle, Inode, SuperBlock},
};
use kernel::prelude::*;

/// Returns the number of journal credits for `changes` changes of owners, in addition to those for
/// bitmaps and mappings.
///
/// At most half of a handle's maximum; with a journal that small, the index extends the handle when
/// it needs to.
pub(crate) fn credits(volume: &Volume, changes: u32) -> u32 {
    let (Some(index), Ok(journal)) = (volume.index(), volume.journal()) else {
        return 0;
    };
    index.credits(changes).min(journal.room() / 2)
}

/// Maximum number of data blocks to [`give`] at a time if they may be shared. If all their
/// reference counts differ, the handle needs [`give_credits`] more credits.
const GIVE_AT_ONCE: u32 = 1024;

/// Returns how many data blocks to [`give`] at a time, at most `most`.
pub(crate) fn give_at_once(volume: &Volume, most: u32) -> u32 {
    if volume.shares() {
        most.min(GIVE_AT_ONCE)
    } else {
        most
    }
}

/// Returns the number of journal credits for one [`give`] of [`give_at_once`] blocks, in addition
/// to [`credits`].
///
/// At most an eighth of a handle's maximum, since a clone reserves this twice besides [`credits`].
pub(crate) fn give_credits(volume: &Volume) -> u32 {
    match (volume.shares(), volume.index(), volume.journal()) {
        (true, Some(index), Ok(journal)) => index.give_credits(GIVE_AT_ONCE).min(journal.room() / 8),
        _ => 0,
    }
}

/// Returns the number of journal credits that one [`give`] of `blocks` blocks, in one or two
/// groups, may use.
pub(crate) fn give_needs(volume: &Volume, blocks: u32) -> u32 {
    let index = volume.index().map_or(0, |index| match volume.shares() {
        true => index.credits(1).saturating_add(index.give_credits(blocks)),
        false => index.credits(1),
    });
    index.saturating_add(2 * balloc::ALLOCATE_CREDITS)
}

/// Allocates up to `want` blocks near `goal` for an inode.
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

/// Makes an inode the owner of newly allocated blocks.
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

/// Reserves up to `want` blocks near `goal` for contents of an inode. They must be
/// [allocated](take_reserved) or [released](unreserve) before the inode is evicted; until then they
/// are free on disk. Up to `ahead` more blocks become the window of `holder`.
///
/// Fails as [`balloc::reserve`] does.
pub(in crate::fs) fn reserve(
    handle: Option<&Handle>,
    inode: &Inode<Volume>,
    goal: u64,
    want: u32,
    ahead: Option<(Holder, u32)>,
) -> Result<(u64, u32)> {
    let sb = inode.super_block();
    let more = ahead.map_or(0, |(_, more)| more);
    let (start, len) = balloc::reserve(
        handle,
        sb,
        request(inode, goal, want.saturating_add(more), false)?,
    )?;
    match ahead {
        Some((holder, _)) if len > want => {
            balloc::keep_window(sb, holder, start + u64::from(want), len - want)?;
            Ok((start, want))
        }
        _ => Ok((start, len)),
    }
}

/// Makes reserved blocks of an inode its contents from file block `offset` on, `unwritten` unless
/// they have been written. All must be in one group.
pub(crate) fn take_reserved(
    handle: &Handle,
    inode: &Inode<Volume>,
    start: u64,
    len: u32,
    offset: u32,
    unwritten: bool,
) -> Result {
    balloc::take_reserved(handle, inode.super_block(), start, len)?;
    let kind = OwnerKind::Data { offset, unwritten };
    own(handle, inode, start, len, kind)
}

/// Releases blocks that were reserved and not allocated.
pub(crate) fn unreserve(sb: &SuperBlock<Volume>, start: u64, len: u32) -> Result {
    balloc::unreserve(sb, start, len)
}

/// Gives up blocks of an inode, and frees those that have no other owner. `journaled` blocks, which
/// contain metadata, are revoked, at the cost of one revoke credit each.
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

/// Removes an inode as the owner of blocks without freeing them, because they have other owners.
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

/// Records that blocks of a file were written for the first time.
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

/// Keeps the volume ready for blocks with several owners, from its creation until it is dropped.
pub(crate) struct Sharing<'a>(pub(in crate::fs) &'a Volume);

impl Drop for Sharing<'_> {
    fn drop(&mut self) {
        let mut sharers = self.0.shared.sharers.lock();
        *sharers = sharers.saturating_sub(1);
    }
}

/// Returns `(n, shared)`: whether the first `n` blocks have more than one owner. If this is
/// unknown, as on a read-only mount without good trees, they count as shared.
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

/// Makes a regular file an additional owner of blocks with written contents of another one; they
/// become its contents from file block `offset` on. Both mappings must be locked, that of `inode`
/// exclusively.
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

/// Frees blocks without an owner in a separate transaction. Must not be called with a handle open.
pub(crate) fn release(sb: &SuperBlock<Volume>, start: u64, len: u32) -> Result {
    release_with(sb, start, len, &mut |_| Ok(()))
}

/// Frees blocks without an owner in a separate transaction, together with another change that must
/// be in the same transaction; this may be at most one change of owners. Must not be called with a
/// handle open.
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

/// Allocates up to `want` blocks near `goal` and stages them for the inode. They must be
/// [freed](unstage) or [adopted](adopt) before the inode is evicted; until then a scan finds them
/// in the inode's list of staged blocks.
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

/// Frees staged blocks of the inode.
pub(crate) fn unstage(handle: &Handle, inode: &Inode<Volume>, start: u64, len: u32) -> Result {
    let sb = inode.super_block();
    balloc::free(handle, sb, start, len)?;
    match sb.volume()?.index() {
        Some(index) => index.remove(handle, start, len, staged(inode)),
        None => Ok(()),
    }
}

/// Makes staged blocks of the inode, which have been written, its contents from file block `offset`
/// on. Its previous blocks there must have been given up, and the blocks must have been
/// [counted](count).
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

/// Changes the inode's count of sectors by a number of blocks. If the count on disk was too small,
/// it stops at zero: if it wrapped around, the inode could no longer be stored, and its mapping
/// would keep blocks that are allocated to other files.
pub(crate) fn count(inode: &Inode<Volume>, blocks: i64) -> Result {
    let sb = inode.super_block();
    let bits = sb.volume()?.layout.block_bits;
    if !inode.add_sectors(blocks << (bits - 9)) && inode.data()?.is_first_miscount() {
        pr_warn!(
            "{}: inode {}: i_blocks is smaller than its number of blocks; set to 0, run e2fsck\n",
            sb.name(),
            inode.number()
        );
    }
    Ok(())
}
