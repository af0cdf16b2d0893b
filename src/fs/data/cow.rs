// SPDX-License-Identifier: GPL-2.0

//! Copy on write: what is written over blocks that have several owners goes elsewhere.
//!
//! Before such blocks are written to (when the page cache is, so that it is known in time that there is no room) others are
//! *staged* for them: taken from the bitmaps and set aside for the inode, in pieces that are aligned in the file, so that
//! small writes here and there leave a file of larger extents. They are no part of its contents until the data is in them:
//! when the I/O is done, one handle puts them into the mapping, gives the old blocks back, and has the inode adopt the new
//! ones. What of a piece was not written stays staged for writes to come, and is given back when the file is closed or
//! cut, or leaves memory. After a crash nobody knows of staged blocks; the next mount frees them.
//!
//! The pieces of all inodes lie in one tree, by inode and block of the file, whose lock is taken last. They change only
//! with the mapping of their inode locked to write. A piece counts only where the mapping has written blocks: what has
//! none, or unwritten ones, is written in place.

use crate::{
    format::extent::Extent,
    fs::{
        alloc::{balloc, space},
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

/// Pieces are aligned to so many blocks of the file, if its extents allow.
const UNIT: u32 = 32;
/// Blocks of a piece at most, unless more are written at once.
const AT_ONCE: u32 = 2048;
/// Blocks of the journal that giving blocks of two groups back may write.
const FREE_CREDITS: u32 = 4;

pub(in crate::fs) fn spare() -> Result<Spare> {
    // A page may be locked, or a handle be open.
    let _scope = NoReclaim::new();
    Spare::new(GFP_KERNEL)
}

pub(in crate::fs) fn three() -> Result<[Spare; 3]> {
    Ok([spare()?, spare()?, spare()?])
}

/// The piece of an inode that file block `block` is in, or else the first one behind it.
pub(in crate::fs) fn find(inode: &Inode<Volume>, block: u32) -> Result<Option<Stretch>> {
    let volume = inode.super_block().volume()?;
    if !inode.data()?.has_staged() {
        return Ok(None);
    }
    let found = volume.staging.lock().find(inode.number(), block);
    Ok(found)
}

/// Takes a part of a piece out of the inode's, whose mapping is locked to write.
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

/// The first inode from this number on for which anything is staged, also one that is just leaving memory.
pub(in crate::fs) fn next_staged(volume: &Volume, ino: u32) -> Option<u32> {
    volume.staging.lock().next_inode(ino)
}

/// Hands out the blocks that are staged for an inode, whose mapping is locked: first block and number of blocks. Blocks that
/// are only reserved are none of them.
pub(in crate::fs) fn for_each_staged(
    inode: &Inode<Volume>,
    out: &mut dyn FnMut(u64, u32) -> Result,
) -> Result {
    let mut at = 0;
    while let Some(part) = find(inode, at)? {
        // Those that are only reserved are free on disk.
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

/// A run from file block `from` on.
fn cut_front(run: Run, from: u32) -> Run {
    let skip = u64::from(from.saturating_sub(run.offset));
    Run {
        offset: run.offset.max(from),
        len: run.len.saturating_sub(skip),
        start: run.start.map(|(start, written)| (start + skip, written)),
    }
}

/// What of written blocks, and of how many of them the answer is true.
enum Place {
    /// They are the inode's own.
    Own(u64),
    /// They are to go to these.
    Staged(Stretch),
    /// They have several owners, and nothing is staged for them.
    Shared,
}

/// Where the blocks of a written run are to be written to, from its first one on, looking no further than `want`.
fn place(inode: &Inode<Volume>, run: &Run, want: u32, unshare: bool) -> Result<Place> {
    let (start, _) = run.start.ok_or(EIO)?;
    let mut len = run.len.min(u64::from(want));
    let mut staged = None;
    match find(inode, run.offset)? {
        Some(part) if part.offset <= run.offset => {
            staged = part.within(run.offset, u64::from(run.offset) + run.len);
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

/// Where written blocks go that are changed; see [`file::target`]. `whole`: whole blocks are.
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
        // Unless it went meanwhile.
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

/// Where byte `position` of a file, which is dirty in the page cache, is to be written to.
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
            // What is dirty has a place to go to from the start; should it have got lost, shared blocks are not written.
            Place::Shared => stage(inode, from, want, Change::Fault)?,
        }
    }
}

/// Stages blocks for file block `from` and those around it, if it is shared and there are none. `want` blocks are about to
/// be written.
///
/// Fails with `ENOSPC`.
pub(in crate::fs) fn stage(inode: &Inode<Volume>, from: u32, want: u32, change: Change) -> Result {
    let sb = inode.super_block();
    match stage_once(inode, from, want) {
        Err(ENOSPC) => {
            // With a page locked nobody else's inode can be waited for.
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
    let credits = balloc::ALLOCATE_CREDITS + FREE_CREDITS + space::credits(volume, 2);
    let handle = volume.begin(credits, 0)?;
    let root = data.root.write();
    // Somebody else may have been faster.
    let run = extents::find_in(inode, &root, from)?;
    let Some((_, true)) = run.start else {
        return Ok(());
    };
    let first = cut_front(run, from);
    if !matches!(place(inode, &first, 1, false)?, Place::Shared) {
        return Ok(());
    }
    // When data came to disk it would be too late to say that the mapping has no room for the pieces.
    if balloc::is_short_of_nodes(volume) {
        return Err(ENOSPC);
    }
    let mut low = (from - from % UNIT).max(run.offset);
    let mut high = from
        .saturating_add(want.min(AT_ONCE))
        .checked_next_multiple_of(UNIT)
        .unwrap_or(u32::MAX);
    high = high.min(u32::try_from(u64::from(run.offset) + run.len).unwrap_or(u32::MAX));
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
        None => mapping::goal(inode, &root, low)?,
    };
    let (start, len) = space::stage(&handle, inode, goal, high.saturating_sub(low).max(1))?;
    // When there are less than would be good, the ones that are needed come first.
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

/// Has a file adopt staged blocks that were written: of the file blocks from `*from` to before `end` those of one piece,
/// with `*from` moved behind them. Answers whether there is more to do.
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
            // Only what this write went to is known to hold data.
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
    // Counted before the old ones go: a file never seems to have no blocks meanwhile.
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

/// Gives back what a file had in a place that is mapped anew.
pub(in crate::fs) fn give_old(handle: &Handle, inode: &Inode<Volume>, old: Extent) -> Result {
    let kind = OwnerKind::Data {
        offset: old.offset,
        unwritten: old.unwritten,
    };
    space::give(handle, inode, old.start, old.len, kind, false)
}

/// Maps up to `len` file blocks from `offset` on to written blocks from `start` on: as many as one extent or hole has that
/// is there now. Answers how many, and what was there.
///
/// Fails as [`extent_tree::insert`] does, the mapping being as it was.
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

/// Gives the blocks back that are staged for the file blocks from `from` to before `to`. Nothing of these is dirty.
pub(in crate::fs) fn drop_staged(inode: &Inode<Volume>, from: u32, to: u32) -> Result {
    let volume = inode.super_block().volume()?;
    let data = inode.data()?;
    // Blocks for holes of files without extents are only reserved, in memory.
    let reserved = !data.has_extents();
    while data.has_staged() {
        let spare = three()?;
        let handle = match reserved {
            true => None,
            false => Some(volume.begin(FREE_CREDITS + space::credits(volume, 2), 0)?),
        };
        let root = data.root.write();
        let part = find(inode, from)?.and_then(|part| part.within(from, to.into()));
        let Some(part) = part else {
            return Ok(());
        };
        data.new_version();
        // Until they are given back, a scan must take them for the inode's.
        match &handle {
            Some(handle) => space::unstage(handle, inode, part.piece.start, part.piece.len)?,
            None => space::unreserve(inode.super_block(), part.piece.start, part.piece.len)?,
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

/// Gives everything back that is staged for an inode which leaves memory.
pub(in crate::fs) fn evict(inode: &Inode<Volume>) {
    let Ok(data) = inode.data() else { return };
    if !data.has_staged() || insist(|| drop_staged(inode, 0, u32::MAX)).is_ok() {
        return;
    }
    // Nothing is written any more; the next mount frees them.
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

/// Gives everything back that is staged for inodes which nobody is writing to, or even (`closed`) could write to. Returns
/// whether there were any.
pub(in crate::fs) fn drop_idle(sb: &SuperBlock<Volume>, closed: bool) -> Result<bool> {
    let volume = sb.volume()?;
    let (mut ino, mut found) = (0, false);
    loop {
        let next = volume.staging.lock().next_inode(ino);
        let Some(next) = next else {
            return Ok(found);
        };
        // One without a name is going to be freed, and one that is leaving memory gives back what it has.
        if let Some(inode) = sb.cached_inode(next) {
            if !closed || !inode.has_writers() {
                found |= release(&inode)?;
            }
        }
        ino = next.saturating_add(1);
    }
}

/// Gives everything back that is staged for an inode, unless somebody is writing to it. Returns whether that was done.
pub(in crate::fs) fn release(inode: &Inode<Volume>) -> Result<bool> {
    if !inode.data()?.has_staged() {
        return Ok(false);
    }
    match inode.lock_idle() {
        Some(_idle) => drop_staged(inode, 0, u32::MAX).map(|()| true),
        None => Ok(false),
    }
}
