// SPDX-License-Identifier: GPL-2.0

//! Going over all inodes of a volume and all that they own, while it is written.
//!
//! A scan looks at the bit of an inode and moves its cursor past a free one under the lock under which inodes are taken:
//! so whatever is made behind the cursor is known to be behind it. It then takes the inode, locks its mapping to read,
//! and has every run of blocks that it owns handed out.

pub(crate) use crate::fs::{alloc::balloc::used_blocks, disk::groups::fixed_of_group};

use crate::{
    format::{
        self, bitmap,
        extent::Node,
        group::INODE_UNINIT,
        inode::{flags, JOURNAL, RESIZE},
        Corrupt,
    },
    fs::{
        data::cow,
        disk::{errors::corrupt_inode, groups, inode},
        map::extent_tree::Root,
        owners::{Owner, OwnerKind},
        state::Volume,
    },
    kernel_glue::{stale, Buffer, Inode, InodeRef, ReadGuard, SuperBlock},
};
use kernel::prelude::*;

/// Finds the first run of inodes in use from `ino` to `last`, all of one group: the first of them and the last. Those that
/// are passed over before, the first of them and the last, are handed to `pass` before anybody can take them.
///
/// Fails with `EINVAL` for a number that cannot be, `EFSCORRUPTED` or `EIO` when its group cannot be read.
pub(crate) fn next_used(
    sb: &SuperBlock<Volume>,
    ino: u32,
    last: u32,
    pass: &mut dyn FnMut(u32, u32),
) -> Result<Option<(u32, u32)>> {
    let volume = sb.volume()?;
    let (number, first) = volume.layout.locate_inode(ino).ok_or(EINVAL)?;
    let _lock = volume.lock_group(number)?;
    let mut group = groups::group(volume, sb, number)?;
    let never_used = group.flags & INODE_UNINIT != 0 && groups::has_uninit(volume);
    if never_used {
        pass(ino, last);
        return Ok(None);
    }
    let bits = groups::inode_bitmap(None, sb, number, &mut group)?;
    let end = first.saturating_add(last.saturating_sub(ino)).saturating_add(1);
    let end = end.min(volume.layout.inodes_per_group);
    let free = bitmap::clear_run(&bits, first, end, u32::MAX);
    if free > 0 {
        pass(ino, ino + free - 1);
    }
    let start = first + free;
    if start >= end {
        return Ok(None);
    }
    let behind = bitmap::next_clear(&bits, start, end).unwrap_or(end);
    Ok(Some((ino + free, ino + (behind - first) - 1)))
}

/// Starts to read the blocks of the inode table in which the inodes from `first` to `last`, all of one group, lie.
pub(crate) fn read_ahead(sb: &SuperBlock<Volume>, first: u32, last: u32) -> Result {
    let volume = sb.volume()?;
    let place = |ino| {
        let (group, index) = volume.layout.locate_inode(ino).ok_or(EINVAL)?;
        inode::place(volume, sb, group, index)
    };
    let (start, end) = (place(first)?.0, place(last)?.0);
    sb.read_ahead(start, end.saturating_sub(start) as u32 + 1);
    Ok(())
}

/// Starts to read the nodes of a mapping that are visited next, whose blocks these are: side by side where they lie so.
///
/// Where both ends are in the cache the rest is taken to be there.
fn read_nodes_ahead<T>(sb: &SuperBlock<Volume>, nodes: &[T], block_of: impl Fn(&T) -> u64) {
    let is_cached = |node: Option<&T>| node.is_none_or(|node| sb.is_block_cached(block_of(node)));
    if is_cached(nodes.first()) && is_cached(nodes.last()) {
        return;
    }
    for run in nodes.chunk_by(|node, next| block_of(node).checked_add(1) == Some(block_of(next))) {
        if let Some(first) = run.first() {
            sb.read_ahead(block_of(first), run.len() as u32);
        }
    }
}

/// Inodes of a block of the inode table that are looked at together.
const AT_ONCE: usize = 64;

/// Hands out what inodes in use own, from `first` on and at most up to `last`, as [`for_each_owned`] does, without taking
/// them: as many as lie in one block of the inode table, are not in the cache, and have all in their slots. Then `done`
/// is told the first and the last one, before anybody can have them. Answers with the first that was not visited.
///
/// Whoever takes an inode reads it under the lock of its block of the table. While that is held here, one that is not
/// in the cache cannot change.
pub(crate) fn peek(
    sb: &SuperBlock<Volume>,
    first: u32,
    last: u32,
    out: &mut impl FnMut(u64, u32, Owner) -> Result,
    done: impl FnOnce(u32, u32),
) -> Result<u32> {
    let volume = sb.volume()?;
    let (group, index) = volume.layout.locate_inode(first).ok_or(EINVAL)?;
    let (block, offset) = inode::place(volume, sb, group, index)?;
    let buffer = Buffer::read(sb, block)?;
    let _table = volume.lock_table(block)?;
    let slots = buffer.get(offset..).ok_or(EIO)?;
    let size = usize::from(volume.layout.inode_size);
    let verified = buffer.is_verified();
    // What is not in the cache now cannot get there before the table is unlocked. First this, then what is staged: an inode
    // may leave the cache in between, and is not done with its staged blocks then.
    let count = (slots.len() / size).min(AT_ONCE) as u32;
    let count = count.min(last.saturating_sub(first).saturating_add(1));
    let count = count.min(sb.cached(first, count).trailing_zeros());
    let staged = cow::next_staged(volume, first).unwrap_or(u32::MAX);
    let end = first.saturating_add(count).min(staged);
    let mut next = first;
    for (ino, bytes) in (first..end).zip(slots.chunks_exact(size)) {
        if !peek_at(volume, ino, bytes, verified, out)? {
            break;
        }
        next = ino + 1;
    }
    // Checksums of all that the block holds were right, and who changes it keeps them so.
    if !verified && (next - first) as usize == buffer.len() / size {
        buffer.set_verified();
    }
    if next > first {
        done(first, next - 1);
    }
    Ok(next)
}

/// Hands out what an inode owns whose slot is this, which is not in the cache and has nothing staged; answers whether that
/// could be done. Otherwise nothing happened.
fn peek_at(
    volume: &Volume,
    ino: u32,
    bytes: &[u8],
    verified: bool,
    out: &mut impl FnMut(u64, u32, Owner) -> Result,
) -> Result<bool> {
    let layout = &volume.layout;
    if ino < layout.first_inode || format::inode::is_free(bytes) {
        return Ok(false);
    }
    // What is wrong with it is said by who takes it.
    let Ok(found) = format::inode::outline(layout, ino, bytes, !verified) else {
        return Ok(false);
    };
    if found.links() == 0 || found.flags() & flags::REFUSED != 0 {
        return Ok(false);
    }
    let by_extents = found.flags() & flags::EXTENTS != 0;
    let node = match inode::maps(found.mode(), found.size, by_extents) {
        false => None,
        true if !by_extents => return Ok(false),
        true => match Node::read(layout, found.block(), None, None, (0, u32::MAX)) {
            Ok(node) if node.depth() == 0 => Some(node),
            _ => return Ok(false),
        },
    };
    let mut emit = |start, len, kind| out(start, len, Owner { ino, kind });
    if found.file_acl != 0 {
        emit(found.file_acl, 1, OwnerKind::Attributes)?;
    }
    if let Some(node) = node {
        leaf(&node, &mut emit)?;
    }
    Ok(true)
}

/// Hands out the extents of a leaf.
fn leaf(node: &Node<'_>, emit: &mut impl FnMut(u64, u32, OwnerKind) -> Result) -> Result {
    for extent in node.extents() {
        let kind = OwnerKind::Data {
            offset: extent.offset,
            unwritten: extent.unwritten,
        };
        emit(extent.start, extent.len, kind)?;
    }
    Ok(())
}

/// Takes an inode that is in use; `None` when it no longer is.
///
/// One that is just being made or freed is waited for. Must not be called with a handle open.
pub(crate) fn get(sb: &SuperBlock<Volume>, ino: u32) -> Result<Option<InodeRef<Volume>>> {
    let volume = sb.volume()?;
    for _ in 0..2 {
        match inode::get(sb, ino) {
            // Its bit is set but it was not stored yet: that happens in one handle, which the commit waits for.
            Err(error) if error == stale() => {
                if let Ok(journal) = volume.journal() {
                    journal.commit(true)?;
                }
            }
            found => return found.map(Some),
        }
    }
    Ok(None)
}

/// The mapping of an inode, locked to read.
pub(crate) fn lock_map(inode: &Inode<Volume>) -> Result<ReadGuard<'_, Root>> {
    Ok(inode.data()?.root.read())
}

/// Hands out every run of blocks that an inode owns: first block, number of blocks, and as what. Runs of contents come
/// in order of the file; nothing is merged.
///
/// `map` is the inode's mapping, from [`lock_map`].
pub(crate) fn for_each_owned(
    inode: &Inode<Volume>,
    map: &Root,
    out: &mut impl FnMut(u64, u32, Owner) -> Result,
) -> Result {
    let ino = inode.number();
    let data = inode.data()?;
    let mut emit = |start, len, kind| out(start, len, Owner { ino, kind });
    if data.attributes() != 0 {
        emit(data.attributes(), 1, OwnerKind::Attributes)?;
    }
    cow::for_each_staged(inode, &mut |start, len| emit(start, len, OwnerKind::Staged))?;
    let system = matches!(ino, JOURNAL | RESIZE);
    if !system && !inode::is_mapped(inode)? {
        return Ok(());
    }
    if data.has_extents() {
        by_extents(inode, map, &mut emit)
    } else {
        by_pointers(inode, map, &mut emit)
    }
}

fn by_extents(
    inode: &Inode<Volume>,
    map: &Root,
    emit: &mut impl FnMut(u64, u32, OwnerKind) -> Result,
) -> Result {
    let sb = inode.super_block();
    let layout = &sb.volume()?.layout;
    let seed = inode.data()?.seed;
    let bad = |block, what| corrupt_inode(sb, inode.number(), block, what);
    let root = Node::read(layout, map, None, None, (0, u32::MAX)).map_err(|what| bad(None, what))?;
    leaf(&root, emit)?;
    // Nodes still to be read: their block, their depth and what of the file they map; the next one at the end.
    let mut todo: KVec<(u64, u16, (u32, u32))> = KVec::new();
    let push = |node: &Node<'_>, range: (u32, u32), todo: &mut KVec<(u64, u16, (u32, u32))>| -> Result {
        let first = todo.len();
        let mut indices = node.indices().peekable();
        while let Some(index) = indices.next() {
            let last = indices.peek().map_or(range.1, |next| next.offset - 1);
            todo.push((index.child, node.depth() - 1, (index.offset, last)), GFP_KERNEL)?;
        }
        if let Some(fresh) = todo.get_mut(first..) {
            read_nodes_ahead(sb, fresh, |node| node.0);
            fresh.reverse();
        }
        Ok(())
    };
    if root.depth() > 0 {
        push(&root, (0, u32::MAX), &mut todo)?;
    }
    while let Some((place, depth, range)) = todo.pop() {
        emit(place, 1, OwnerKind::Mapping)?;
        let buffer = Buffer::read(sb, place)?;
        let check = (!buffer.is_verified()).then_some(seed);
        let node =
            Node::read(layout, &buffer, Some(depth), check, range).map_err(|what| bad(Some(place), what))?;
        buffer.set_verified();
        if depth == 0 {
            leaf(&node, emit)?;
        } else {
            push(&node, range, &mut todo)?;
        }
    }
    Ok(())
}

fn by_pointers(
    inode: &Inode<Volume>,
    map: &Root,
    emit: &mut impl FnMut(u64, u32, OwnerKind) -> Result,
) -> Result {
    let sb = inode.super_block();
    let layout = &sb.volume()?.layout;
    let per_block = u64::from(layout.block_size / 4);
    // What is below the one block of the resize inode is the descriptor table and what is reserved for it.
    let layout_only = inode.number() == RESIZE;
    // Pointers still to be followed: where to, levels below, first file block; the next one at the end.
    let mut todo: KVec<(u32, u32, u64)> = KVec::new();
    let mut offset = 0;
    for (slot, pointer) in pointers(map).enumerate() {
        let levels = (slot as u32).saturating_sub(11);
        todo.push((pointer, levels, offset), GFP_KERNEL)?;
        offset += per_block.pow(levels);
    }
    todo.reverse();
    while let Some((place, levels, offset)) = todo.pop() {
        if place == 0 {
            continue;
        }
        if !layout.contains(u64::from(place), 1) {
            return Err(corrupt_inode(
                sb,
                inode.number(),
                None,
                Corrupt("indirect pointer is off the volume"),
            ));
        }
        if levels == 0 {
            let kind = OwnerKind::Data {
                offset: u32::try_from(offset).map_err(|_| EFBIG)?,
                unwritten: false,
            };
            emit(u64::from(place), 1, kind)?;
            continue;
        }
        emit(u64::from(place), 1, OwnerKind::Mapping)?;
        if layout_only {
            continue;
        }
        let buffer = Buffer::read(sb, u64::from(place))?;
        let first = todo.len();
        let each = per_block.pow(levels - 1);
        for (slot, pointer) in pointers(&buffer).enumerate() {
            if pointer != 0 {
                todo.push((pointer, levels - 1, offset + slot as u64 * each), GFP_KERNEL)?;
            }
        }
        if let Some(fresh) = todo.get_mut(first..) {
            if levels > 1 {
                read_nodes_ahead(sb, fresh, |node| node.0.into());
            }
            fresh.reverse();
        }
    }
    Ok(())
}

/// The block numbers in an indirect block, or those in an inode.
fn pointers(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes
        .chunks_exact(4)
        .filter_map(|bytes| bytes.try_into().ok().map(u32::from_le_bytes))
}
