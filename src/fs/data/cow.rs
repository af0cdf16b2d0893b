// SPDX-License-Identifier: GPL-2.0

//! Copy-on-write: writes to shared blocks are redirected to other blocks.
//!
//! Before shared blocks are written to (for buffered writes, before the page cache is modified, so
//! that a lack of space is reported in time), replacement blocks are *staged*: allocated from the
//! bitmaps and assigned to the inode, in pieces that are aligned in the file, so that small
//! scattered writes do not fragment it. They do not belong to the file's contents until the data
//! has been written to them. When the I/O is complete, one handle inserts them into the mapping,
//! gives up the old blocks, and has the inode adopt the new ones. Blocks of a piece that were not
//! written stay staged for later writes, and are freed when the file is closed or truncated, or its
//! inode is evicted. Staged blocks are not recorded in the inode; after a crash the next mount
//! frees them.
//!
//! The pieces of all inodes are in one tree, ordered by inode and file block, whose lock is taken
//! last. They change only with the mapping of their inode locked exclusively. A piece is used only
//! where the mapping has written blocks; holes and unwritten blocks are written in place.

use crate::{
    format::extent::Extent,
    fs::{
        alloc::{balloc, space, windows::Holder},
        map::{extent_tree, extents, mapping, run::Run},
        owners::OwnerKind,
        staging::{Piece, Spare, Stretch},
        state::Volume,
    },
    kernel_glue::{
        insist, unsupported, Change, Handle, Inode, Locked, Mapping, NoReclaim, SuperBlock, Target, Written,
    },
};
use kernel::prelude::*;

/// Alignment of pieces in file blocks, if the extents permit it.
const UNIT: u32 = 32;
/// Maximum number of blocks of a piece, unless one write has more.
const AT_ONCE: u32 = 2048;
/// Number of journal credits for freeing blocks of two groups.
const FREE_CREDITS: u32 = 4;
/// Maximum number of changes of owners when blocks are staged, or staged blocks freed.
const STAGE_CHANGES: u32 = 2;

pub(in crate::fs) fn spare() -> Result<Spare> {
    // The caller may have locked a page or opened a handle.
    let _scope = NoReclaim::new();
    Spare::new(GFP_KERNEL)
}

pub(in crate::fs) fn three() -> Result<[Spare; 3]> {
    Ok([spare()?, spare()?, spare()?])
}

/// Returns the inode's piece that contains file block `block`, or else the next one after it.
pub(in crate::fs) fn find(inode: &Inode<Volume>, block: u32) -> Result<Option<Stretch>> {
    let volume = inode.super_block().volume()?;
    if !inode.data()?.has_staged() {
        return Ok(None);
    }
    let found = volume.staging.lock().find(inode.number(), block);
    Ok(found)
}

/// Returns true if file block `block` is in a hole, and blocks are reserved for it in memory.
pub(in crate::fs) fn is_reserved(inode: &Inode<Volume>, block: u32) -> Result<bool> {
    let part = find(inode, block)?;
    Ok(part.is_some_and(|part| part.piece.reserved && part.offset <= block))
}

/// Removes a part of one of the inode's pieces. The inode's mapping is locked exclusively.
pub(in crate::fs) fn take_out(inode: &Inode<Volume>, part: Stretch, spare: [Spare; 3]) -> Result {
    let data = inode.data()?;
    if part.piece.reserved {
        data.set_reserved(data.reserved().saturating_sub(part.piece.len.into()));
    }
    let mut staging = inode.super_block().volume()?.staging.lock();
    staging.split(inode.number(), part, false, spare);
    if staging.find(inode.number(), 0).is_none() {
        data.set_staged(false);
    }
    Ok(())
}

/// Returns the first inode, starting at `ino`, that has staged blocks, including inodes being
/// evicted.
pub(in crate::fs) fn next_staged(volume: &Volume, ino: u32) -> Option<u32> {
    volume.staging.lock().next_inode(ino)
}

/// Calls back with the first block and length of each run of blocks staged for an inode, whose
/// mapping is locked. Blocks that are only reserved are not included.
pub(in crate::fs) fn for_each_staged(
    inode: &Inode<Volume>,
    out: &mut dyn FnMut(u64, u32) -> Result,
) -> Result {
    let mut at = 0;
    while let Some(part) = find(inode, at)? {
        // Blocks that are only reserved are free on disk.
        if !part.piece.reserved {
            out(part.piece.start, part.piece.len)?;
        }
        match u32::try_from(part.end()) {
            Ok(end) => at = end,
            Err(_) => break,
        }
    }
    Ok(())
}

/// Returns the part of a run from file block `from` on.
fn cut_front(run: Run, from: u32) -> Run {
    let skip = u64::from(from.saturating_sub(run.offset));
    Run {
        offset: run.offset.max(from),
        len: run.len.saturating_sub(skip),
        start: run.start.map(|(start, written)| (start + skip, written)),
    }
}

/// The destination of a write to written blocks.
enum Place {
    /// In place, since they are not shared.
    Own(u64),
    /// These staged blocks.
    Staged(Stretch),
    /// They are shared, and nothing is staged for them.
    Shared,
}

/// Returns where the blocks of a written run are to be written to, starting at its first one and
/// looking no further than `want` blocks.
fn place(inode: &Inode<Volume>, run: &Run, want: u32, unshare: bool) -> Result<Place> {
    let (start, _) = run.start.ok_or(EIO)?;
    let mut len = run.len.min(u64::from(want));
    let mut staged = None;
    match find(inode, run.offset)? {
        Some(part) if part.offset <= run.offset => {
            staged = part.within(run.offset, run.end());
        }
        Some(part) => len = len.min(u64::from(part.offset - run.offset)),
        None => {}
    }
    if let (Some(part), false) = (staged, unshare) {
        return Ok(Place::Staged(part));
    }
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    let (len, shared) = space::sharing(inode.super_block(), start, len)?;
    Ok(match (shared, staged) {
        (false, _) => Place::Own(len.into()),
        (true, Some(part)) => Place::Staged(part),
        (true, None) => Place::Shared,
    })
}

/// Returns where changes of written blocks go; see [`file::target`]. `whole`: only whole blocks are
/// written.
pub(in crate::fs) fn target(
    inode: &Inode<Volume>,
    run: Run,
    from: u32,
    want: u32,
    change: Change,
    whole: bool,
) -> Result<Option<Target>> {
    let volume = inode.super_block().volume()?;
    let run = cut_front(run, from);
    let part = match place(inode, &run, want, change == Change::Unshare)? {
        Place::Own(len) => {
            let place = mapping::in_bytes(volume, Run { len, ..run }, false);
            return Ok(Some(Target { place, old: None }));
        }
        Place::Shared if change == Change::Direct && !whole => return Err(ENOTBLK),
        Place::Shared => return Ok(None),
        Place::Staged(part) => part,
    };
    let mut len = part.piece.len;
    if change == Change::Direct {
        if !whole {
            return Err(ENOTBLK);
        }
        len = len.min(want);
        let spare = three()?;
        let mut staging = volume.staging.lock();
        // Unless the piece was removed meanwhile.
        let Some(part) = staging
            .find(inode.number(), from)
            .and_then(|found| found.within(from, u64::from(from) + u64::from(len)))
            .filter(|found| found.offset == from && found.piece.start == part.piece.start)
        else {
            return Ok(None);
        };
        len = part.piece.len;
        staging.split(inode.number(), part, true, spare);
    }
    let len = u64::from(len);
    let new = Run {
        offset: from,
        len,
        start: Some((part.piece.start, true)),
    };
    Ok(Some(Target {
        place: mapping::in_bytes(volume, new, true),
        old: Some(mapping::in_bytes(volume, Run { len, ..run }, false)),
    }))
}

/// Returns where dirty data of the page cache at byte `position` is to be written to.
pub(in crate::fs) fn write_back(inode: &Inode<Volume>, position: u64, length: u64) -> Result<Mapping> {
    let volume = inode.super_block().volume()?;
    let (from, want) = mapping::blocks(inode, position, length)?;
    loop {
        let run = cut_front(mapping::of_block(inode, from)?, from);
        if !matches!(run.start, Some((_, true))) {
            return Ok(mapping::in_bytes(volume, run, false));
        }
        match place(inode, &run, want, false)? {
            Place::Own(len) => return Ok(mapping::in_bytes(volume, Run { len, ..run }, false)),
            Place::Staged(Stretch { piece, .. }) => {
                let new = Run {
                    offset: from,
                    len: piece.len.into(),
                    start: Some((piece.start, true)),
                };
                return Ok(mapping::in_bytes(volume, new, true));
            }
            // Blocks are staged when the page is dirtied. If that was lost, stage now: shared
            // blocks are never overwritten.
            Place::Shared => stage(inode, from, want, Change::Fault)?,
        }
    }
}

/// Stages blocks for file block `from` and the blocks around it, if it is shared and nothing is
/// staged. `want` blocks are about to be written.
///
/// Fails with `ENOSPC`.
pub(in crate::fs) fn stage(inode: &Inode<Volume>, from: u32, want: u32, change: Change) -> Result {
    let sb = inode.super_block();
    match stage_once(inode, from, want) {
        Err(ENOSPC) => {
            // While a page is locked, do not wait for other inodes.
            if change != Change::Fault {
                drop_idle(sb, false)?;
            }
            match balloc::wait_for_frees(sb.volume()?)? {
                true => stage_once(inode, from, want),
                false => Err(ENOSPC),
            }
        }
        done => done,
    }
}

fn stage_once(inode: &Inode<Volume>, from: u32, want: u32) -> Result {
    let sb = inode.super_block();
    let volume = sb.volume()?;
    let data = inode.data()?;
    if !data.has_extents() {
        pr_err!(
            "{}: inode {}: shared blocks of a file without extents cannot be written\n",
            sb.name(),
            inode.number()
        );
        return Err(unsupported());
    }
    let spare = spare()?;
    let credits = balloc::ALLOCATE_CREDITS + FREE_CREDITS + space::credits(volume, STAGE_CHANGES);
    let handle = volume.begin(credits, 0)?;
    let root = data.root.write();
    // Another task may have done it meanwhile.
    let run = extents::find_in(inode, &root, from)?;
    let Some((_, true)) = run.start else {
        return Ok(());
    };
    let first = cut_front(run, from);
    if !matches!(place(inode, &first, 1, false)?, Place::Shared) {
        return Ok(());
    }
    // When the data is written back, it is too late to fail for lack of space for mapping nodes.
    if balloc::is_short_of_nodes(volume) {
        return Err(ENOSPC);
    }
    let mut low = (from - from % UNIT).max(run.offset);
    let mut high = from
        .saturating_add(want.min(AT_ONCE))
        .checked_next_multiple_of(UNIT)
        .unwrap_or(u32::MAX);
    high = high.min(u32::try_from(run.end()).unwrap_or(u32::MAX));
    let mut goal = None;
    {
        let staging = volume.staging.lock();
        while let Some(part) = staging
            .find(inode.number(), low)
            .filter(|part| part.offset < from)
        {
            low = u32::try_from(part.end()).map_err(|_| EFBIG)?;
            goal = Some(part.piece.start + u64::from(part.piece.len));
        }
        if let Some(part) = staging.find(inode.number(), from) {
            high = high.min(part.offset);
        }
    }
    let goal = match goal {
        Some(goal) => goal,
        None => mapping::goal(Some(&handle), inode, &root, low)?.block,
    };
    let (start, len) = space::stage(&handle, inode, goal, high.saturating_sub(low).max(1))?;
    // If fewer blocks than wanted were available, use them for the ones that are needed.
    let offset = if low + len > from { low } else { from };
    let keep = len.min(high - offset);
    if keep < len {
        space::unstage(&handle, inode, start + u64::from(keep), len - keep)?;
    }
    let piece = Piece {
        start,
        len: keep,
        issued: false,
        reserved: false,
    };
    volume.staging.lock().insert(spare, inode.number(), offset, piece);
    data.set_staged(true);
    data.new_version();
    drop(root);
    handle.stop()
}

/// Makes a file adopt staged blocks that were written: those of one piece within the file blocks
/// from `*from` to before `end`. Advances `*from` past them. Returns whether there is more to do.
///
/// Fails as [`move_to`] does.
pub(in crate::fs) fn adopt(
    handle: &Handle,
    inode: &Inode<Volume>,
    root: &mut extent_tree::Root,
    from: &mut u32,
    end: u32,
    what: &Written,
) -> Result<bool> {
    let found = loop {
        let part = find(inode, *from)?.and_then(|part| part.within(*from, end.into()));
        match part {
            // Only blocks to which this write was directed are known to contain data.
            Some(part) if what.direct && !part.piece.issued => {
                *from = u32::try_from(part.end()).map_err(|_| EFBIG)?;
            }
            part => break part,
        }
    };
    let Some(part) = found else {
        return Ok(false);
    };
    let spare = three()?;
    let most = space::give_at_once(inode.super_block().volume()?, part.piece.len);
    let (moved, old) = move_to(handle, inode, root, part.offset, part.piece.start, most)?;
    // Counted before the old blocks are given up, so that `i_blocks` is never 0 in between.
    space::count(inode, moved.into())?;
    if let Some(old) = old {
        give_old(handle, inode, old)?;
    }
    space::adopt(handle, inode, part.piece.start, moved, part.offset)?;
    let done = part
        .within(part.offset, u64::from(part.offset) + u64::from(moved))
        .ok_or(EIO)?;
    take_out(inode, done, spare)?;
    *from = part.offset.saturating_add(moved);
    Ok(*from < end)
}

/// Frees the previous blocks of a range that was remapped.
pub(in crate::fs) fn give_old(handle: &Handle, inode: &Inode<Volume>, old: Extent) -> Result {
    let kind = OwnerKind::Data {
        offset: old.offset,
        unwritten: old.unwritten,
    };
    space::give(handle, inode, old.start, old.len, kind, false)
}

/// Maps up to `len` file blocks from `offset` on to written blocks from `start` on, within one
/// existing extent or hole. Returns their number and the previous extent.
///
/// Fails as [`extent_tree::insert`] does, with the mapping unchanged.
pub(in crate::fs) fn move_to(
    handle: &Handle,
    inode: &Inode<Volume>,
    root: &mut extent_tree::Root,
    offset: u32,
    start: u64,
    len: u32,
) -> Result<(u32, Option<Extent>)> {
    let run = cut_front(extents::find_in(inode, root, offset)?, offset);
    let len = u32::try_from(run.len.min(len.into()))
        .map_err(|_| EFBIG)?
        .min(crate::format::extent::max_len(false));
    let new = Extent {
        offset,
        start,
        len,
        unwritten: false,
    };
    if run.start.is_none() {
        extent_tree::insert(handle, inode, root, new)?;
        return Ok((len, None));
    }
    let put = |old: Extent| Some(Extent { len: old.len, ..new });
    let old = extent_tree::replace(handle, inode, root, offset, len, &put)?;
    Ok((old.len, Some(old)))
}

/// Frees the blocks staged for the file blocks from `from` to before `to`, none of which may be
/// dirty.
pub(in crate::fs) fn drop_staged(inode: &Inode<Volume>, from: u32, to: u32) -> Result {
    let volume = inode.super_block().volume()?;
    let data = inode.data()?;
    let next = || -> Result<Option<Stretch>> {
        Ok(find(inode, from)?.and_then(|part| part.within(from, to.into())))
    };
    while data.has_staged() {
        // Blocks for holes are only reserved in memory.
        let reserved = next()?.is_some_and(|part| part.piece.reserved);
        let spare = three()?;
        let handle = match reserved {
            true => None,
            false => Some(volume.begin(FREE_CREDITS + space::credits(volume, STAGE_CHANGES), 0)?),
        };
        let root = data.root.write();
        let Some(part) = next()? else {
            return Ok(());
        };
        data.new_version();
        // Until they are freed, a scan must see them as owned by the inode.
        match (&handle, part.piece.reserved) {
            (_, true) => space::unreserve(inode.super_block(), part.piece.start, part.piece.len)?,
            (Some(handle), false) => space::unstage(handle, inode, part.piece.start, part.piece.len)?,
            // It changed before the mapping was locked.
            (None, false) => continue,
        }
        take_out(inode, part, spare)?;
        drop(root);
        if let Some(handle) = handle {
            handle.stop()?;
        }
    }
    Ok(())
}

/// Leaves nothing staged or reserved for a file that is about to be swapped to: what is dirty goes
/// to disk, and takes its place in the mapping.
pub(in crate::fs) fn before_swap(inode: &Locked<Volume>) -> Result {
    inode.wait_direct();
    let _faults = inode.lock_faults();
    inode.write_out(0..u64::MAX)?;
    drop_staged(inode, 0, u32::MAX)
}

/// Frees everything that is staged for an inode that is being evicted.
pub(in crate::fs) fn evict(inode: &Inode<Volume>) {
    let Ok(data) = inode.data() else { return };
    // Its last writer has given it back; a fault may have come in between.
    let _ = balloc::end_window(inode.super_block(), Holder::Inode(inode.number()));
    if !data.has_staged() || insist(|| drop_staged(inode, 0, u32::MAX)).is_ok() {
        return;
    }
    // The volume cannot be written any more; the next mount frees them.
    let Ok(volume) = inode.super_block().volume() else {
        return;
    };
    let take_first = || {
        let mut staging = volume.staging.lock();
        let part = staging.find(inode.number(), 0)?;
        staging.remove(inode.number(), part.offset);
        Some(part)
    };
    while let Some(Stretch { piece, .. }) = take_first() {
        if piece.reserved {
            let _ = space::unreserve(inode.super_block(), piece.start, piece.len);
        }
    }
    data.set_reserved(0);
    data.set_staged(false);
}

/// Frees everything staged for inodes that are not being written to or, with `closed`, that are not
/// even open for writing. Returns whether anything was freed.
pub(in crate::fs) fn drop_idle(sb: &SuperBlock<Volume>, closed: bool) -> Result<bool> {
    let volume = sb.volume()?;
    let (mut ino, mut found) = (0, false);
    loop {
        let next = volume.staging.lock().next_inode(ino);
        let Some(next) = next else {
            return Ok(found);
        };
        // Inodes without a name are about to be freed, and inodes being evicted free their own
        // staged blocks.
        if let Some(inode) = sb.cached_inode(next) {
            if !closed || !inode.has_writers() {
                found |= release(&inode)?;
            }
        }
        ino = next.saturating_add(1);
    }
}

/// Frees everything staged for an inode, unless it is being written to. Returns whether that was
/// done.
pub(in crate::fs) fn release(inode: &Inode<Volume>) -> Result<bool> {
    balloc::end_window(inode.super_block(), Holder::Inode(inode.number()))?;
    if !inode.data()?.has_staged() {
        return Ok(false);
    }
    match inode.lock_idle() {
        Some(_idle) => drop_staged(inode, 0, u32::MAX).map(|()| true),
        None => Ok(false),
    }
}
