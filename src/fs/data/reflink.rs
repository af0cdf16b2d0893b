// SPDX-License-Identifier: GPL-2.0

//! Reflink: files that share blocks.
//!
//! A range of a file is made to share the blocks of another in pieces of at most one extent, in
//! file order. For each piece, one handle changes the mapping, makes the file an additional owner
//! of the blocks, and gives up its previous blocks. After a crash or an error, a prefix of the
//! range is done. Only written blocks are shared; where the source has none, the target gets a
//! hole.

use crate::{
    fs::{
        alloc::{
            balloc,
            space::{self, Sharing},
        },
        data::{cow, file, reserve, sharing},
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

/// Performs a clone or dedupe request, and returns the number of bytes done.
///
/// # Errors
///
/// `EOPNOTSUPP` for a volume that cannot have shared blocks, and for files without extents;
/// `ENOSPC`; and the errors of [`Remap::lock`].
pub(in crate::fs) fn remap(call: &Remap<'_, Volume>) -> Result<u64> {
    let sb = call.target().super_block();
    let ready = sharing::prepare(sb)?;
    let done = remap_ready(&ready, call);
    drop(ready);
    if !matches!(done, Ok(1..)) {
        // The superblock's feature may have been set for nothing.
        sharing::end_sharing(sb)?;
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

/// Prepares the target for changes of its mapping.
fn prepare(ranges: &Remapping<'_, Volume>) -> Result {
    let target = ranges.target();
    let volume = target.super_block().volume()?;
    let (size, to) = (target.size(), ranges.to);
    if to > size {
        target.zero_for_resize(size, to)?;
    }
    // Cached data beyond the size on disk must be written back before the size increases past it.
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

/// Shares the range piece by piece. Returns the number of bytes done, and the error that stopped
/// it, if any.
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

/// The target, which is locked and so is its mapping, ends here at least, in bytes; it must be
/// stored then.
fn grow(target: &Inode<Volume>, end: u64) -> Result {
    let data = target.data()?;
    target.extend_size(end);
    if end > data.disk_size() {
        data.set_disk_size(end);
    }
    Ok(())
}

/// Maximum number of changes of owners in a step of a clone: blocks are shared, others are freed in
/// two groups, and nodes of the extent tree are split.
const CLONE_CHANGES: u32 = 12;

/// Maps up to `len` file blocks of the target, from `at` on, to another file's written blocks from
/// `start` on, but not beyond byte `end`. Returns their number.
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
    // Reference counts may differ for each block gained, as for each block given up.
    let len = space::give_at_once(volume, len);
    let credits = extent_tree::REPLACE_CREDITS
        + inode::STORE_CREDITS
        + space::credits(volume, CLONE_CHANGES)
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
            // The target has these blocks already.
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

/// Makes up to `len` blocks of the target a hole, where the source has no data. `unwritten`:
/// unwritten blocks of the target stay.
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
