// SPDX-License-Identifier: GPL-2.0

//! Changing the extent tree of an inode.
//!
//! The caller holds the mapping lock exclusively, passes the root, and stores the inode afterwards.
//! An insertion walks to the leaf; if the leaf is full, one node is split (or the tree grows by a
//! level), and the walk is repeated. Removal proceeds from the end of the tree, a few extents at a
//! time, so that each handle does a bounded amount of work.

use crate::{
    format::{
        extent::{Extent, Node, MAX_DEPTH},
        extent_edit::{self as edit, Entry},
        inode::BLOCK_BYTES,
        Checked, Corrupt,
    },
    fs::{
        alloc::space,
        disk::{errors::corrupt_inode, fixed, inode},
        map::node::NodeBytes,
        owners::OwnerKind,
        state::Volume,
    },
    kernel_glue::{Buffer, FreshBuffer, Handle, Inode},
};
use core::ops::Range;
use kernel::prelude::*;

/// The root of a tree, which is stored in the inode.
pub(in crate::fs) type Root = [u8; BLOCK_BYTES];

/// Maximum number of levels of a tree.
const LEVELS: u32 = 6;
/// Number of journal credits for [`insert`] or [`convert`]: a split node and a new one on each
/// level, with their bitmaps.
pub(in crate::fs) const INSERT_CREDITS: u32 = LEVELS * 4;
/// Number of journal credits for [`remove_last`] in one or two groups: the path, and the freed
/// blocks.
pub(in crate::fs) const REMOVE_CREDITS: u32 = 4 + LEVELS * 3;
/// Number of journal credits for [`replace`], with the bitmaps of the blocks it frees.
pub(in crate::fs) const REPLACE_CREDITS: u32 = INSERT_CREDITS + REMOVE_CREDITS;
/// Maximum number of nodes that [`remove_last`] or [`replace`] revokes.
pub(in crate::fs) const REMOVE_REVOKES: u32 = LEVELS;

/// The path from the root to a leaf: the nodes below the root, and the entry of each node that
/// leads to the next one.
struct Path<'a> {
    nodes: KVec<Buffer<'a>>,
    steps: KVec<usize>,
    /// Number of levels below the last node.
    depth: Option<u16>,
}

fn bad(inode: &Inode<Volume>, what: Corrupt) -> Error {
    corrupt_inode(inode.super_block(), inode.number(), None, what)
}

/// Walks to the leaf for `block`.
fn walk<'a>(inode: &'a Inode<Volume>, root: &Root, block: u32) -> Result<Path<'a>> {
    let sb = inode.super_block();
    let layout = &sb.volume()?.layout;
    let seed = inode.data()?.seed;
    let mut path = Path {
        nodes: KVec::new(),
        steps: KVec::new(),
        depth: None,
    };
    let mut range = (0, u32::MAX);
    loop {
        let (step, depth, below) = {
            let bytes = path.node(root, path.levels())?;
            let node = match (path.nodes.last(), path.depth) {
                (Some(buffer), Some(depth)) if buffer.is_verified() => {
                    Node::read_again(layout, &bytes, depth, range)
                }
                (Some(_), depth) => Node::read(layout, &bytes, depth, Some(seed), range),
                _ => Node::read(layout, &bytes, None, None, range),
            }
            .map_err(|what| bad(inode, what))?;
            if let Some(buffer) = path.nodes.last() {
                buffer.set_verified();
            }
            if node.depth() == 0 {
                drop(bytes);
                return Ok(path);
            }
            let step = node.until(block).saturating_sub(1);
            let mut behind = node.indices().skip(step);
            let index = behind
                .next()
                .ok_or_else(|| bad(inode, Corrupt("empty extent node")))?;
            range = (
                index.offset,
                behind.next().map_or(range.1, |next| next.offset - 1),
            );
            (step, node.depth() - 1, index.child)
        };
        path.steps.push(step, GFP_KERNEL)?;
        path.depth = Some(depth);
        fixed::check(inode, below, 1)?;
        if path.nodes.iter().any(|node| node.number() == below) {
            return Err(bad(inode, Corrupt("extent node leads to itself")));
        }
        path.nodes.push(Buffer::read(sb, below)?, GFP_KERNEL)?;
    }
}

impl Path<'_> {
    /// Returns the number of levels below the root.
    fn levels(&self) -> usize {
        self.nodes.len()
    }

    /// Returns the bytes of the node on a level; the root is level 0.
    fn node<'b>(&'b self, root: &'b Root, level: usize) -> Result<NodeBytes<'b>> {
        NodeBytes::on_level(root, &self.nodes, level)
    }

    /// Modifies the node at a level and updates its checksum.
    fn change<T>(
        &mut self,
        handle: &Handle,
        inode: &Inode<Volume>,
        root: &mut Root,
        level: usize,
        change: impl FnOnce(&mut [u8]) -> Checked<T>,
    ) -> Result<T> {
        let Some(below) = level.checked_sub(1) else {
            return change(root).map_err(|what| bad(inode, what));
        };
        let layout = &inode.super_block().volume()?.layout;
        let mut bytes = handle.write(self.nodes.get_mut(below).ok_or(EIO)?)?;
        let seed = inode.data()?.seed;
        let done = change(&mut bytes).map_err(|what| bad(inode, what))?;
        edit::seal(layout, &mut bytes, seed).map_err(|what| bad(inode, what))?;
        Ok(done)
    }
}

/// Finds the last extent that begins at or before file block `block`.
pub(in crate::fs) fn last_until(inode: &Inode<Volume>, root: &Root, block: u32) -> Result<Option<Extent>> {
    let corrupt = |what| bad(inode, what);
    let mut block = block;
    loop {
        let path = walk(inode, root, block)?;
        let leaf = path.node(root, path.levels())?;
        if let Some(index) = edit::until(&leaf, block).map_err(corrupt)?.checked_sub(1) {
            let entry = edit::get(&leaf, index).map_err(corrupt)?;
            return Ok(Some(Extent::decode_entry(&entry)));
        }
        // The leaf begins after its key, so the leaf before it may have the extent.
        let Some((level, &step)) = path.steps.iter().enumerate().rfind(|(_, &step)| step > 0) else {
            return Ok(None);
        };
        let key = edit::offset_of(&edit::get(&path.node(root, level)?, step).map_err(corrupt)?);
        block = match key.min(block).checked_sub(1) {
            Some(before) => before,
            None => return Ok(None),
        };
    }
}

/// Adds an extent to the tree, joined to a neighbour if possible.
///
/// Fails with `EFSCORRUPTED` if another extent maps the same blocks, and if a block for a node
/// cannot be allocated. The mapping is then unchanged, although entries may have moved between
/// nodes.
pub(in crate::fs) fn insert(
    handle: &Handle,
    inode: &Inode<Volume>,
    root: &mut Root,
    extent: Extent,
) -> Result {
    // Each round that does not insert makes room on one more level.
    for _ in 0..2 * LEVELS {
        let mut path = walk(inode, root, extent.offset)?;
        let leaf = path.levels();
        if put(handle, inode, root, &mut path, leaf, extent)? {
            return Ok(());
        }
        make_room(handle, inode, root, &mut path, extent.offset)?;
    }
    Err(bad(inode, Corrupt("extent tree too deep")))
}

/// Adds an extent to a leaf. Returns false if there is no room.
fn put(
    handle: &Handle,
    inode: &Inode<Volume>,
    root: &mut Root,
    path: &mut Path<'_>,
    leaf: usize,
    extent: Extent,
) -> Result<bool> {
    let node = path.node(root, leaf)?;
    let count = edit::count(&node).map_err(|what| bad(inode, what))?;
    let room = edit::room(&node).map_err(|what| bad(inode, what))?;
    // An extent that begins at the same file block counts as the next one.
    let at = match extent.offset.checked_sub(1) {
        Some(before) => edit::until(&node, before).map_err(|what| bad(inode, what))?,
        None => 0,
    };
    let entry = |index: Option<usize>| {
        let entry = index
            .filter(|&index| index < count)
            .map(|index| edit::get(&node, index));
        let found = entry.map(|entry| entry.map(|entry| Extent::decode_entry(&entry)));
        found.transpose().map_err(|what| bad(inode, what))
    };
    let (left, right) = (entry(at.checked_sub(1))?, entry(Some(at))?);
    drop(node);
    let overlaps = |first: &Extent, second: &Extent| {
        u64::from(first.offset) + u64::from(first.len) > u64::from(second.offset)
    };
    if left.is_some_and(|left| overlaps(&left, &extent))
        || right.is_some_and(|right| overlaps(&extent, &right))
    {
        return Err(bad(inode, Corrupt("extent is mapped already")));
    }
    let joined = left.and_then(|left| left.joined(&extent));
    if let Some(joined) = joined {
        let all = right.and_then(|right| joined.joined(&right));
        path.change(handle, inode, root, leaf, |node| {
            edit::set(node, at - 1, &edit::extent_entry(&all.unwrap_or(joined)))?;
            if all.is_some() {
                edit::remove(node, at)?;
            }
            Ok(())
        })?;
        return Ok(true);
    }
    if let Some(joined) = right.and_then(|right| extent.joined(&right)) {
        path.change(handle, inode, root, leaf, |node| {
            edit::set(node, at, &edit::extent_entry(&joined))
        })?;
    } else {
        if count >= room {
            return Ok(false);
        }
        path.change(handle, inode, root, leaf, |node| {
            edit::insert(node, at, &edit::extent_entry(&extent))
        })?;
    }
    // An extent before all others of its leaf changes the keys that lead to the leaf.
    for level in (0..leaf).rev() {
        let step = *path.steps.get(level).ok_or(EIO)?;
        let entry = edit::get(&path.node(root, level)?, step).map_err(|what| bad(inode, what))?;
        if edit::offset_of(&entry) <= extent.offset {
            break;
        }
        path.change(handle, inode, root, level, |node| {
            edit::set_offset(node, step, extent.offset)
        })?;
    }
    Ok(true)
}

/// Splits the highest full node on the path that has room above it, or adds a level to the tree.
///
/// Fails with the tree as it was, or with the journal aborted.
fn make_room(
    handle: &Handle,
    inode: &Inode<Volume>,
    root: &mut Root,
    path: &mut Path<'_>,
    block: u32,
) -> Result {
    let sb = inode.super_block();
    let corrupt = |what| bad(inode, what);
    let mut level = path.levels();
    // The node to split is the one below the lowest node with room.
    let full = |level: usize, root: &Root| -> Result<bool> {
        let node = path.node(root, level)?;
        Ok(edit::count(&node).map_err(corrupt)? >= edit::room(&node).map_err(corrupt)?)
    };
    while level > 0 && full(level - 1, root)? {
        level -= 1;
    }
    let depth = path.levels() as u16;
    if level == 0 && depth >= MAX_DEPTH {
        return Err(corrupt(Corrupt("extent tree too deep")));
    }
    let goal = group_goal(inode)?;
    let (place, _) = space::take(handle, inode, goal, 1, OwnerKind::Mapping)?;
    if path.nodes.iter().any(|node| node.number() == place) {
        // The node is in use and must not be zeroed.
        handle.abort(EIO);
        return Err(corrupt(Corrupt("a node of the mapping is free in the bitmap")));
    }
    let fresh = match FreshBuffer::new(sb, place) {
        Ok(fresh) => fresh,
        Err(error) => {
            space::give(handle, inode, place, 1, OwnerKind::Mapping, false)?;
            return Err(error);
        }
    };
    // From here on, only errors of the journal or of verified nodes can make it fail.
    let done = spread(handle, inode, root, path, block, level, fresh);
    if done.is_err() {
        handle.abort(EIO);
    }
    done
}

/// Moves entries of the node at a level to a new node, `fresh`; for the root, moves all of them and
/// makes it point to the new node.
fn spread(
    handle: &Handle,
    inode: &Inode<Volume>,
    root: &mut Root,
    path: &mut Path<'_>,
    block: u32,
    level: usize,
    fresh: FreshBuffer<'_>,
) -> Result {
    let layout = &inode.super_block().volume()?.layout;
    let seed = inode.data()?.seed;
    let corrupt = |what| bad(inode, what);
    let place = fresh.number();
    let depth = path.levels() as u16;
    // If the file grows at its end, its nodes are kept full; elsewhere nodes are halved, so that
    // the next split there is far off.
    let mut at_end = true;
    for above in 0..level {
        let count = edit::count(&path.node(root, above)?).map_err(corrupt)?;
        at_end &= path.steps.get(above).is_some_and(|step| step + 1 == count);
    }
    let mut fresh = handle.create(fresh)?;
    if level == 0 {
        // Even the root is full: move its entries to the new node, which becomes its only child.
        let count = edit::count(root).map_err(corrupt)?;
        edit::start(&mut fresh, depth, true).map_err(corrupt)?;
        for index in 0..count {
            let entry = edit::get(root, index).map_err(corrupt)?;
            edit::insert(&mut fresh, index, &entry).map_err(corrupt)?;
        }
        let first = edit::get(root, 0).map_err(corrupt)?;
        edit::seal(layout, &mut fresh, seed).map_err(corrupt)?;
        edit::start(root, depth + 1, false).map_err(corrupt)?;
        return edit::insert(root, 0, &edit::index_entry(edit::offset_of(&first), place)).map_err(corrupt);
    }
    let node = path.node(root, level)?;
    let count = edit::count(&node).map_err(corrupt)?;
    let last = edit::get(&node, count.saturating_sub(1)).map_err(corrupt)?;
    let from = if at_end && edit::offset_of(&last) <= block {
        count.saturating_sub(1)
    } else {
        count / 2
    };
    edit::start(&mut fresh, depth - level as u16, true).map_err(corrupt)?;
    let mut first: Option<Entry> = None;
    for (slot, index) in (from..count).enumerate() {
        let entry = edit::get(&node, index).map_err(corrupt)?;
        first.get_or_insert(entry);
        edit::insert(&mut fresh, slot, &entry).map_err(corrupt)?;
    }
    edit::seal(layout, &mut fresh, seed).map_err(corrupt)?;
    drop(fresh);
    drop(node);
    let first = first.ok_or_else(|| corrupt(Corrupt("empty extent node")))?;
    path.change(handle, inode, root, level, |node| edit::truncate(node, from))?;
    let step = *path.steps.get(level - 1).ok_or(EIO)?;
    path.change(handle, inode, root, level - 1, |node| {
        edit::insert(node, step + 1, &edit::index_entry(edit::offset_of(&first), place))
    })
}

/// Removes up to `most` blocks from the end of the mapping, none before file block `from`, and
/// frees them. Removes blocks of one extent, and of further extents in the same leaf as far as the
/// handle has room. `journaled`: the blocks contain metadata, and each costs a revoke credit.
/// Returns the number of blocks.
pub(in crate::fs) fn remove_last(
    handle: &Handle,
    inode: &Inode<Volume>,
    root: &mut Root,
    from: u32,
    most: u32,
    journaled: bool,
) -> Result<u32> {
    let corrupt = |what| bad(inode, what);
    let volume = inode.super_block().volume()?;
    let mut path = walk(inode, root, u32::MAX)?;
    let level = path.levels();
    let node = path.node(root, level)?;
    let count = edit::count(&node).map_err(corrupt)?;
    let own = REMOVE_CREDITS + inode::STORE_CREDITS + space::credits(volume, REMOVE_REVOKES);
    let room = handle.blocks_left().saturating_sub(own);
    let mut gone: KVec<Extent> = KVec::new();
    let (mut left, mut kept, mut taken, mut needs) = (count, None, 0, 0);
    while let Some(index) = left.checked_sub(1).filter(|_| taken < most) {
        let last = Extent::decode_entry(&edit::get(&node, index).map_err(corrupt)?);
        if u64::from(last.offset) + u64::from(last.len) <= u64::from(from) {
            break;
        }
        let keep = from
            .saturating_sub(last.offset)
            .max(last.len.saturating_sub(most - taken));
        let part = Extent {
            offset: last.offset.saturating_add(keep),
            start: last.start.saturating_add(u64::from(keep)),
            len: last.len - keep,
            ..last
        };
        needs += space::give_needs(volume, part.len);
        // The caller has ensured that there is room for one.
        if needs > room && !gone.is_empty() {
            break;
        }
        gone.push(part, GFP_KERNEL)?;
        taken += part.len;
        if keep > 0 {
            kept = Some(Extent { len: keep, ..last });
            break;
        }
        left = index;
    }
    drop(node);
    // Blocks are freed only after nothing refers to them, so that an error leaves lost blocks, not
    // shared ones.
    if let Some(kept) = kept {
        path.change(handle, inode, root, level, |node| {
            edit::truncate(node, left)?;
            edit::set(node, left - 1, &edit::extent_entry(&kept))
        })?;
    } else if left < count {
        remove_entries(handle, inode, root, path, left..count)?;
    }
    let mut done = Ok(());
    for part in gone.iter() {
        let kind = OwnerKind::Data {
            offset: part.offset,
            unwritten: part.unwritten,
        };
        done = done.and(space::give(handle, inode, part.start, part.len, kind, journaled));
    }
    done.map(|()| taken)
}

/// Converts the unwritten ones among up to `len` blocks from file block `offset` on to written,
/// within one extent. Returns the number of blocks processed, after which the caller continues.
///
/// Fails as [`insert`] does, with the mapping unchanged: room for the resulting extents is made
/// first.
pub(in crate::fs) fn convert(
    handle: &Handle,
    inode: &Inode<Volume>,
    root: &mut Root,
    offset: u32,
    len: u32,
) -> Result<u32> {
    let corrupt = |what| bad(inode, what);
    for _ in 0..2 * LEVELS {
        let mut path = walk(inode, root, offset)?;
        let leaf = path.levels();
        let (index, found) = holder(&path.node(root, leaf)?, offset)
            .and_then(|found| found.ok_or(Corrupt("written blocks are not mapped")))
            .map_err(corrupt)?;
        let stop = found
            .offset
            .saturating_add(found.len)
            .min(offset.saturating_add(len));
        if !found.unwritten {
            return Ok(stop - offset);
        }
        if path.change(handle, inode, root, leaf, |node| {
            edit::convert(node, index, offset, stop)
        })? {
            let start = found.start + u64::from(offset - found.offset);
            space::written(handle, inode, start, stop - offset, offset)?;
            return Ok(stop - offset);
        }
        make_room(handle, inode, root, &mut path, offset)?;
    }
    Err(corrupt(Corrupt("extent tree too deep")))
}

/// Replaces a part of the mapping, up to `len` blocks from file block `offset` on, within one
/// extent, by the result of `new` for these file blocks, or by a hole. The blocks must be mapped.
/// Returns the previous extent.
///
/// Fails as [`insert`] does, with the mapping unchanged: room for the resulting extents is made
/// first.
pub(in crate::fs) fn replace(
    handle: &Handle,
    inode: &Inode<Volume>,
    root: &mut Root,
    offset: u32,
    len: u32,
    new: &dyn Fn(Extent) -> Option<Extent>,
) -> Result<Extent> {
    let corrupt = |what| bad(inode, what);
    for _ in 0..2 * LEVELS {
        let mut path = walk(inode, root, offset)?;
        let leaf = path.levels();
        let (index, found) = holder(&path.node(root, leaf)?, offset)
            .and_then(|found| found.ok_or(Corrupt("blocks are not mapped")))
            .map_err(corrupt)?;
        let stop = found
            .offset
            .saturating_add(found.len)
            .min(offset.saturating_add(len));
        let part = Extent {
            offset,
            start: found.start.saturating_add(u64::from(offset - found.offset)),
            len: stop - offset,
            unwritten: found.unwritten,
        };
        let put = new(part);
        if put.is_none() && part == found && leaf > 0 {
            remove_entries(handle, inode, root, path, index..index + 1)?;
            return Ok(part);
        }
        if path.change(handle, inode, root, leaf, |node| {
            edit::replace(node, index, offset, stop, put)
        })? {
            let left = edit::count(&path.node(root, leaf)?).map_err(corrupt)?;
            if index == 0 && left > 0 {
                set_keys(handle, inode, root, &mut path, leaf)?;
            }
            return Ok(part);
        }
        make_room(handle, inode, root, &mut path, offset)?;
    }
    Err(corrupt(Corrupt("extent tree too deep")))
}

/// Updates the keys of the pointers to a node, and of those above it if it is the first child.
fn set_keys(
    handle: &Handle,
    inode: &Inode<Volume>,
    root: &mut Root,
    path: &mut Path<'_>,
    level: usize,
) -> Result {
    let corrupt = |what| bad(inode, what);
    let first = edit::offset_of(&edit::get(&path.node(root, level)?, 0).map_err(corrupt)?);
    for above in (0..level).rev() {
        let step = *path.steps.get(above).ok_or(EIO)?;
        let entry = edit::get(&path.node(root, above)?, step).map_err(corrupt)?;
        if edit::offset_of(&entry) != first {
            path.change(handle, inode, root, above, |node| {
                edit::set_offset(node, step, first)
            })?;
        }
        if step > 0 {
            break;
        }
    }
    Ok(())
}

/// Removes entries, at least one, from the leaf at the end of a path, and all nodes that become
/// empty.
fn remove_entries(
    handle: &Handle,
    inode: &Inode<Volume>,
    root: &mut Root,
    mut path: Path<'_>,
    entries: Range<usize>,
) -> Result {
    let corrupt = |what| bad(inode, what);
    let (mut level, mut entries) = (path.levels(), entries);
    let mut empty: KVec<u64> = KVec::with_capacity(level, GFP_KERNEL)?;
    while level > 0 && edit::count(&path.node(root, level)?).map_err(corrupt)? == entries.len() {
        let node = path.nodes.pop().ok_or(EIO)?;
        empty.push(node.number(), GFP_KERNEL)?;
        level -= 1;
        let step = *path.steps.get(level).ok_or(EIO)?;
        entries = step..step + 1;
    }
    path.change(handle, inode, root, level, |node| {
        entries
            .clone()
            .rev()
            .try_for_each(|index| edit::remove(node, index))
    })?;
    let left = edit::count(&path.node(root, level)?).map_err(corrupt)?;
    if left == 0 {
        edit::start(root, 0, false).map_err(corrupt)?;
    } else if entries.start == 0 {
        set_keys(handle, inode, root, &mut path, level)?;
    }
    drop(path);
    for &place in empty.iter() {
        space::give(handle, inode, place, 1, OwnerKind::Mapping, true)?;
    }
    Ok(())
}

/// Returns the index and the extent in a leaf that maps file block `block`.
fn holder(leaf: &[u8], block: u32) -> Checked<Option<(usize, Extent)>> {
    let Some(index) = edit::until(leaf, block)?.checked_sub(1) else {
        return Ok(None);
    };
    let found = Extent::decode_entry(&edit::get(leaf, index)?);
    Ok((block - found.offset < found.len).then_some((index, found)))
}

/// Returns the default goal for allocations: the start of the inode's group.
pub(in crate::fs) fn group_goal(inode: &Inode<Volume>) -> Result<u64> {
    let layout = &inode.super_block().volume()?.layout;
    let (group, _) = layout.locate_inode(inode.number()).ok_or(EIO)?;
    Ok(layout.group_start(group))
}
