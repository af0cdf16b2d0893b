// SPDX-License-Identifier: GPL-2.0

//! Files that share blocks.
//!
//! A range of a file is made to share the blocks of another piece by piece, each an extent at most, in the order of the
//! file: in one handle the mapping changes, the file becomes one more owner of the blocks, and those that it had are given
//! back. So a crash, or an error in the middle, leaves a beginning of the range done. Only written blocks are shared; where
//! the source has none, the target gets a hole.

use crate::{
    fs::{
        alloc::{
            balloc,
            space::{self, Sharing},
        },
        data::{cow, file, reserve},
        disk::inode::{self, Part},
        map::{
            change::{self, MapChange},
            extent_tree, mapping,
        },
        state::Volume,
    },
    kernel_glue::{is_dying, Inode, Remap, Remapping},
};
use kernel::prelude::*;

/// Does what the call asks for, and answers how many bytes that were.
///
/// Fails with `EOPNOTSUPP` for a volume that cannot have shared blocks and for files that are not mapped by extents, with
/// `ENOSPC`, and as [`Remap::lock`] does.
pub(in crate::fs) fn remap(call: &Remap<'_, Volume>) -> Result<u64> {
    let sb = call.target().super_block();
    let ready = space::prepare(sb)?;
    let done = remap_ready(&ready, call);
    drop(ready);
    if !matches!(done, Ok(1..)) {
        // It may have been for nothing that the superblock says so.
        space::end_sharing(sb)?;
    }
    done
}

fn remap_ready(ready: &Sharing<'_>, call: &Remap<'_, Volume>) -> Result<u64> {
    let Some(ranges) = call.lock()? else {
        return Ok(0);
    };
    file::has_extents(ranges.source())?;
    file::has_extents(ranges.target())?;
    let (done, error) = match prepare(&ranges).and_then(|()| share(ready, &ranges)) {
        Ok(done) => done,
        Err(error) => (0, Some(error)),
    };
    match error {
        Some(error) if done == 0 || !call.may_shorten() => Err(error),
        _ => Ok(done),
    }
}

/// Brings the target to a state in which its mapping can change.
fn prepare(ranges: &Remapping<'_, Volume>) -> Result {
    let target = ranges.target();
    let volume = target.super_block().volume()?;
    let (size, to) = (target.size(), ranges.to);
    if to > size {
        target.zero_for_resize(size, to)?;
    }
    // What is cached behind the size on disk must not be skipped over by a larger one.
    let unit = (1u64 << volume.layout.block_bits).max(reserve::PAGE);
    let end = to
        .saturating_add(ranges.length)
        .div_ceil(unit)
        .saturating_mul(unit);
    let start = to.min(size) / unit * unit;
    target.write_out(start.min(target.data()?.disk_size())..end)?;
    target.drop_cache(start..end);
    Ok(())
}

/// Shares the range piece by piece. Answers how many bytes were done, and what stopped it before the end.
fn share(ready: &Sharing<'_>, ranges: &Remapping<'_, Volume>) -> Result<(u64, Option<Error>)> {
    let (source, target) = (ranges.source(), ranges.target());
    let volume = target.super_block().volume()?;
    let bits = volume.layout.block_bits;
    let (from, count) = mapping::blocks(source, ranges.from, ranges.length)?;
    let (to, _) = mapping::blocks(target, ranges.to, ranges.length)?;
    to.checked_add(count).ok_or(EFBIG)?;
    let end = ranges.to + ranges.length;
    cow::drop_staged(target, to, to + count)?;
    let mut done = 0;
    let mut stopped = None;
    while done < count {
        let at = from + done;
        let step = if is_dying() {
            Err(EINTR)
        } else {
            mapping::of_block(source, at).and_then(|run| {
                let skip = u64::from(at - run.offset);
                let len = (run.len - skip).min(u64::from(count - done)) as u32;
                match run.start {
                    Some((start, true)) => piece(ready, target, to + done, start + skip, len, end),
                    _ => hole(target, to + done, len, run.start.is_some()),
                }
            })
        };
        match step {
            Ok(step) => done += step,
            Err(error) => {
                stopped = Some(error);
                break;
            }
        }
    }
    let bytes = (u64::from(done) << bits).min(ranges.length);
    let reached = ranges.to + bytes;
    if bytes > 0 && reached > target.size() {
        let handle = volume.begin(inode::STORE_CREDITS, 0)?;
        {
            let _map = target.data()?.root.write();
            grow(target, reached)?;
            inode::store(&handle, target, Part::Attributes)?;
        }
        handle.stop()?;
    }
    Ok((bytes, stopped))
}

/// The target, which is locked and so is its mapping, ends here at least, in bytes; it must be stored then.
fn grow(target: &Inode<Volume>, end: u64) -> Result {
    let data = target.data()?;
    target.extend_size(end);
    if end > data.disk_size() {
        data.set_disk_size(end);
    }
    Ok(())
}

/// Makes up to `len` written blocks from `start` on, which another file has, the target's, from its file block `at` on, but
/// no further than byte `end`. Answers how many.
fn piece(
    ready: &Sharing<'_>,
    target: &Inode<Volume>,
    at: u32,
    start: u64,
    len: u32,
    end: u64,
) -> Result<u32> {
    let volume = target.super_block().volume()?;
    let bits = volume.layout.block_bits;
    // Counts may change as often by what comes as by what goes.
    let len = space::give_at_once(volume, len);
    let credits = extent_tree::REPLACE_CREDITS
        + inode::STORE_CREDITS
        + space::credits(volume, 12)
        + 2 * space::give_credits(volume);
    change::with_frees(volume, || {
        if balloc::is_short_of_nodes(volume) {
            return Err(ENOSPC);
        }
        let mut change = MapChange::begin(target, credits, extent_tree::REMOVE_REVOKES)?;
        let run = mapping::find_in(target, change.root(), at)?;
        let skip = u64::from(at - run.offset);
        let len = len.min(u32::try_from(run.len - skip).unwrap_or(u32::MAX));
        if run.start.is_some_and(|(old, _)| old + skip == start) {
            // They are its own already.
            return Ok(len);
        }
        let (handle, root) = change.parts()?;
        let moved = cow::move_to(handle, target, root, at, start, len);
        let done = moved.and_then(|(len, old)| {
            space::share(ready, handle, target, start, len, at)?;
            if let Some(old) = old {
                cow::give_old(handle, target, old)?;
            }
            grow(target, (u64::from(at + len) << bits).min(end).max(target.size()))?;
            Ok(len)
        });
        change.end(done)
    })
}

/// Makes a hole of up to `len` blocks of the target, where the source has no data. `unwritten`: what the target has
/// unwritten stays.
fn hole(target: &Inode<Volume>, at: u32, len: u32, unwritten: bool) -> Result<u32> {
    let run = mapping::of_block(target, at)?;
    let len = len.min(u32::try_from(run.len - u64::from(at - run.offset)).unwrap_or(u32::MAX));
    match run.start {
        None => {}
        Some((_, false)) if unwritten => {}
        Some(_) => reserve::make_hole(target, at, at + len)?,
    }
    Ok(len)
}
