// SPDX-License-Identifier: GPL-2.0

//! Changing the indirect blocks of an inode without extents.
//!
//! The caller holds the mapping lock exclusively, passes the root, and stores the inode afterwards.
//! There are no unwritten blocks here: every mapped block is readable. A block is therefore mapped
//! only after its data is on disk (for a directory, in the same handle); until then it is reserved
//! in memory ([`crate::fs::staging`]). The indirect blocks needed for its pointer are created when
//! it is reserved, so that mapping it allocates nothing and cannot fail for lack of space. An
//! indirect block without pointers is kept as long as blocks are reserved for its part of the file.

use crate::{
    format::{
        extent::Extent,
        indirect::{self as raw, Way},
        Checked, Corrupt,
    },
    fs::{
        alloc::space,
        disk::inode,
        map::{
            extent_tree::{self, group_goal, REMOVE_CREDITS, REMOVE_REVOKES},
            indirect::{bad, bits, walk, Path},
        },
        owners::OwnerKind,
        state::Volume,
    },
    kernel_glue::{FreshBuffer, Handle, Inode},
};
use kernel::prelude::*;

pub(in crate::fs) use crate::fs::map::indirect::Root;

// The credits for changing an extent tree are also sufficient here: a bitmap, a descriptor and the
// block itself for each indirect block created or freed, and the table above them.
const _: () = assert!((raw::LEVELS as u32 * 3) < extent_tree::INSERT_CREDITS);
const _: () = assert!((raw::LEVELS as u32 * 3) < REMOVE_CREDITS);
const _: () = assert!(raw::LEVELS as u32 <= REMOVE_REVOKES);

impl Path<'_> {
    /// Changes the table of pointers on a level.
    fn change(
        &mut self,
        handle: &Handle,
        inode: &Inode<Volume>,
        root: &mut Root,
        level: usize,
        change: impl FnOnce(&mut [u8]) -> Checked<()>,
    ) -> Result {
        let changed = match level.checked_sub(1) {
            None => change(root),
            Some(below) => change(&mut handle.write(self.nodes.get_mut(below).ok_or(EIO)?)?),
        };
        changed.map_err(|what| bad(inode, None, what))
    }
}

/// Creates the indirect blocks on the path to file block `block`, and returns the path.
///
/// Fails with `EFBIG` beyond the last block that can be mapped, and as taking a block does;
/// indirect blocks that were made before that stay part of the mapping.
pub(in crate::fs) fn prepare<'a>(
    handle: &Handle,
    inode: &'a Inode<Volume>,
    root: &mut Root,
    block: u32,
) -> Result<Path<'a>> {
    let sb = inode.super_block();
    let mut path = walk(inode, root, block)?.ok_or(EFBIG)?;
    while !path.is_whole() {
        let level = path.nodes.len();
        let (place, _) = space::take(handle, inode, group_goal(inode)?, 1, OwnerKind::Mapping)?;
        let pointer = u32::try_from(place).map_err(|_| EFBIG);
        let (node, pointer) = match FreshBuffer::new(sb, place).and_then(|node| Ok((node, pointer?))) {
            Ok(fresh) => fresh,
            Err(error) => {
                space::give(handle, inode, place, 1, OwnerKind::Mapping, false)?;
                return Err(error);
            }
        };
        let slot = path.way.slot(level);
        // From here on, only errors of the journal can make it fail.
        let done = handle.create(node).and_then(|node| {
            path.change(handle, inode, root, level, |table| {
                raw::set_pointer(table, slot, pointer)
            })?;
            Ok(node.into_buffer())
        });
        match done {
            Ok(node) => path.nodes.push(node, GFP_KERNEL)?,
            Err(error) => {
                handle.abort(EIO);
                return Err(error);
            }
        }
    }
    Ok(path)
}

/// Maps unmapped file blocks to the written blocks of an extent, whose pointers must all be in one
/// table.
///
/// Fails with `EFSCORRUPTED` if some are mapped already, and as [`prepare`] does; the extent is not
/// mapped then.
pub(in crate::fs) fn insert(
    handle: &Handle,
    inode: &Inode<Volume>,
    root: &mut Root,
    extent: Extent,
) -> Result {
    let mut path = prepare(handle, inode, root, extent.offset)?;
    let level = path.way.levels;
    if extent.len > path.way.reach(bits(inode)?) {
        return Err(EINVAL);
    }
    let first = u32::try_from(extent.start).map_err(|_| EFBIG)?;
    first.checked_add(extent.len).ok_or(EFBIG)?;
    let slot = path.way.slot(level);
    let table = path.table(root, level)?;
    for step in 0..extent.len {
        if raw::pointer(&table, slot + step) != Ok(0) {
            return Err(bad(inode, None, Corrupt("block is mapped already")));
        }
    }
    drop(table);
    path.change(handle, inode, root, level, |table| {
        (0..extent.len).try_for_each(|step| raw::set_pointer(table, slot + step, first + step))
    })
}

/// Removes up to `len` mapped file blocks from `offset` on from the mapping, as far as they are
/// contiguous on the volume and have their pointers in one table. Returns them without freeing
/// them. Indirect blocks that become empty are freed.
pub(in crate::fs) fn cut(
    handle: &Handle,
    inode: &Inode<Volume>,
    root: &mut Root,
    offset: u32,
    len: u32,
) -> Result<Extent> {
    let missing = Corrupt("blocks are not mapped");
    let path = walk(inode, root, offset)?.filter(Path::is_whole);
    let mut path = path.ok_or_else(|| bad(inode, None, missing))?;
    let level = path.way.levels;
    let (slot, most) = (path.way.slot(level), len.min(path.way.reach(bits(inode)?)));
    let table = path.table(root, level)?;
    let first = raw::pointer(&table, slot).unwrap_or(0);
    if first == 0 {
        return Err(bad(inode, None, missing));
    }
    let same = |&step: &u32| raw::pointer(&table, slot + step) == Ok(first.wrapping_add(step));
    let len = 1 + (1..most).take_while(same).count() as u32;
    drop(table);
    path.change(handle, inode, root, level, |table| {
        (slot..slot + len).try_for_each(|slot| raw::set_pointer(table, slot, 0))
    })?;
    prune(handle, inode, root, path, offset)?;
    Ok(Extent {
        offset,
        start: first.into(),
        len,
        unwritten: false,
    })
}

/// Frees the indirect blocks at the end of a way that lead to nothing, unless blocks are reserved
/// for their part of the file. `block` is a file block that the way leads to. Returns how many were
/// freed.
fn prune(
    handle: &Handle,
    inode: &Inode<Volume>,
    root: &mut Root,
    mut path: Path<'_>,
    block: u32,
) -> Result<u32> {
    let volume = inode.super_block().volume()?;
    let bits = bits(inode)?;
    let mut freed = 0;
    while let Some(node) = path.nodes.last() {
        let level = path.nodes.len();
        let all = path.way.each(bits, level) << bits;
        let index: u64 = (level..=path.way.levels)
            .map(|level| u64::from(path.way.slot(level)) * path.way.each(bits, level))
            .sum();
        let first = u64::from(block) - index;
        let reserved = volume.staging.lock().find(inode.number(), first as u32);
        if !raw::is_empty(&node.bytes()?) || reserved.is_some_and(|part| u64::from(part.offset) < first + all)
        {
            break;
        }
        let place = node.number();
        path.nodes.pop();
        let slot = path.way.slot(level - 1);
        path.change(handle, inode, root, level - 1, |table| {
            raw::set_pointer(table, slot, 0)
        })?;
        space::give(handle, inode, place, 1, OwnerKind::Mapping, true)?;
        freed += 1;
    }
    Ok(freed)
}

/// Returns the last nonzero pointer of a table at or after `least`.
fn last_set(inode: &Inode<Volume>, table: &[u8], least: u32, end: u32) -> Result<Option<(u32, u32)>> {
    for slot in (least..end).rev() {
        match raw::pointer(table, slot).map_err(|what| bad(inode, None, what))? {
            0 => (),
            place => return Ok(Some((slot, place))),
        }
    }
    Ok(None)
}

/// Removes up to `most` blocks from the end of the mapping, none before file block `from`, and
/// frees them; or frees one empty indirect block. Removes blocks of one table, as many as the
/// handle has room for. `journaled`: the blocks contain metadata, and each costs a revoke credit.
/// Returns the number of blocks, 0 if nothing is left.
pub(in crate::fs) fn remove_last(
    handle: &Handle,
    inode: &Inode<Volume>,
    root: &mut Root,
    from: u32,
    most: u32,
    journaled: bool,
) -> Result<u32> {
    let bits = bits(inode)?;
    let from = u64::from(from);
    let behind = |slot: u32| {
        let (first, all, _) = raw::root_slot(bits, slot);
        first + all > from
    };
    let least = (0..raw::SLOTS).find(|&slot| behind(slot)).unwrap_or(raw::SLOTS);
    let Some((slot, _)) = last_set(inode, root, least, raw::SLOTS)? else {
        return Ok(0);
    };
    let (mut first, _, levels) = raw::root_slot(bits, slot);
    let mut way = Way {
        slots: [slot, 0, 0, 0],
        levels,
    };
    let mut path = Path {
        way,
        nodes: KVec::with_capacity(raw::LEVELS, GFP_KERNEL)?,
    };
    loop {
        let level = path.nodes.len();
        let each = way.each(bits, level);
        let least = match level {
            0 => way.slot(0),
            _ => (from.saturating_sub(first) / each) as u32,
        };
        let end = if level == 0 { least + 1 } else { 1 << bits };
        let last = last_set(inode, &path.table(root, level)?, least, end)?;
        match last {
            Some(_) if level == levels => break,
            Some((slot, place)) => {
                if let Some(step) = way.slots.get_mut(level) {
                    *step = slot;
                }
                if level > 0 {
                    first += u64::from(slot) * each;
                }
                path.way = way;
                path.descend(inode, place)?;
            }
            None if first >= from && level > 0 => {
                // The block and its ancestors that become empty.
                let block = u32::try_from(first).map_err(|_| EFBIG)?;
                return prune(handle, inode, root, path, block);
            }
            None => return Ok(0),
        }
    }
    remove_pointers(handle, inode, root, path, first, from, most, journaled)
}

/// Frees blocks of the table at the end of a path, whose first file block is `first`; see
/// [`remove_last`].
#[allow(clippy::too_many_arguments)]
fn remove_pointers(
    handle: &Handle,
    inode: &Inode<Volume>,
    root: &mut Root,
    mut path: Path<'_>,
    first: u64,
    from: u64,
    most: u32,
    journaled: bool,
) -> Result<u32> {
    let volume = inode.super_block().volume()?;
    let level = path.way.levels;
    let (base, least, end) = match level {
        // The direct pointers: the path leads to the last nonzero one.
        0 => (0, from as u32, path.way.slot(0) + 1),
        _ => (first, from.saturating_sub(first) as u32, 1 << bits(inode)?),
    };
    let own = REMOVE_CREDITS + inode::STORE_CREDITS + space::credits(volume, REMOVE_REVOKES);
    let room = handle.blocks_left().saturating_sub(own);
    let mut gone: KVec<Extent> = KVec::new();
    let (mut taken, mut needs, mut stop) = (0, 0, end);
    let table = path.table(root, level)?;
    while let Some((last, place)) = last_set(inode, &table, least, stop)? {
        let before = |&step: &u32| {
            last >= least + step && place > step && raw::pointer(&table, last - step) == Ok(place - step)
        };
        let len = 1 + (1..most - taken).take_while(before).count() as u32;
        needs += space::give_needs(volume, len);
        // The caller has ensured that there is room for one.
        if needs > room && !gone.is_empty() {
            break;
        }
        let slot = last + 1 - len;
        let run = Extent {
            offset: u32::try_from(base + u64::from(slot)).map_err(|_| EFBIG)?,
            start: u64::from(place + 1 - len),
            len,
            unwritten: false,
        };
        gone.push(run, GFP_KERNEL)?;
        (taken, stop) = (taken + len, slot);
        if taken >= most {
            break;
        }
    }
    drop(table);
    // Blocks are free only once nothing leads to them, so that an error leaves some that are lost,
    // not shared.
    path.change(handle, inode, root, level, |table| {
        (stop..end).try_for_each(|slot| raw::set_pointer(table, slot, 0))
    })?;
    if least == 0 && level > 0 {
        let block = u32::try_from(first).map_err(|_| EFBIG)?;
        prune(handle, inode, root, path, block)?;
    }
    let mut done = Ok(());
    for run in gone.iter() {
        let kind = OwnerKind::Data {
            offset: run.offset,
            unwritten: false,
        };
        done = done.and(space::give(handle, inode, run.start, run.len, kind, journaled));
    }
    done.map(|()| taken)
}
