// SPDX-License-Identifier: GPL-2.0

//! Scanning all inodes of a volume and everything that they own, while the volume is being written.
//!
//! A scan checks the bit of an inode, and moves its cursor past a free one, under the lock under
//! which inodes are allocated, so that an inode created behind the cursor is known to be behind it.
//! It then gets the inode, locks its mapping shared, and lists every run of blocks that it owns.

pub(crate) use crate::fs::{
    alloc::balloc::{copy_bitmap, used_blocks},
    disk::{errors::Checking, groups::fixed_of_group},
};

use crate::{
    format::{
        self, bitmap,
        extent::Node,
        group::INODE_UNINIT,
        inode::{flags, BAD_BLOCKS, JOURNAL, RESIZE},
        superblock::inode_seed,
        Corrupt,
    },
    fs::{
        data::cow,
        disk::{errors::corrupt_inode, fixed, groups, inode},
        map::extent_tree::Root,
        owners::{Owner, OwnerKind},
        state::Volume,
    },
    kernel_glue::{stale, Buffer, Inode, InodeRef, ReadGuard, SuperBlock},
};
use kernel::prelude::*;

/// The next inodes of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// No further inode is in use.
    Nothing,
    /// These inodes, from the first to the last, are used according to the inode bitmap.
    Used(u32, u32),
    /// This inode is free according to the inode bitmap, or the bitmap cannot be read, but its slot
    /// in the inode table has links and contents.
    Doubtful(u32),
}

/// Finds the first inodes in use from `ino` to `last`, all of which must be in one group. Before
/// that, calls `pass` with the first and last of the free inodes that precede them, before anyone
/// can allocate those.
///
/// The inode bitmap alone does not make an inode free: its slot must be free as well, unless the
/// group's descriptor says that the slot was never written. If the bitmap cannot be read, `trouble`
/// gets the error, and the slots alone decide; no inode can be allocated in the group then.
///
/// # Errors
///
/// `EINVAL` for an invalid number; `EFSCORRUPTED` or `EIO` when the group's descriptor or a block
/// of its inode table cannot be read.
pub(crate) fn next_used(
    sb: &SuperBlock<Volume>,
    ino: u32,
    last: u32,
    trouble: &mut Result,
    pass: &mut dyn FnMut(u32, u32),
) -> Result<Next> {
    let volume = sb.volume()?;
    let (number, first) = volume.layout.locate_inode(ino).ok_or(EINVAL)?;
    let _lock = volume.lock_group(number)?;
    let mut group = groups::group(volume, sb, number)?;
    let has_uninit = groups::has_uninit(volume);
    if group.flags & INODE_UNINIT != 0 && has_uninit {
        pass(ino, last);
        return Ok(Next::Nothing);
    }
    let end = first.saturating_add(last.saturating_sub(ino)).saturating_add(1);
    let end = end.min(volume.layout.inodes_per_group);
    let bits = groups::inode_bitmap(None, sb, number, &mut group).and_then(Buffer::into_bytes);
    let free = match &bits {
        Ok(bits) => bitmap::clear_run(bits, first, end, u32::MAX),
        Err(error) if *error == ENOMEM => return Err(ENOMEM),
        Err(error) => {
            *trouble = Err(*error);
            end - first
        }
    };
    let written = match has_uninit {
        true => volume.layout.inodes_per_group.saturating_sub(group.itable_unused),
        false => volume.layout.inodes_per_group,
    };
    if let Some(live) = first_live(sb, number, first, (first + free).min(written))? {
        if live > first {
            pass(ino, ino + (live - first) - 1);
        }
        return Ok(Next::Doubtful(ino + (live - first)));
    }
    if free > 0 {
        pass(ino, ino + free - 1);
    }
    let start = first + free;
    let Ok(bits) = bits else {
        return Ok(Next::Nothing);
    };
    if start >= end {
        return Ok(Next::Nothing);
    }
    let behind = bitmap::next_clear(&bits, start, end).unwrap_or(end);
    Ok(Next::Used(ino + free, ino + (behind - first) - 1))
}

/// Returns the first slot of a group's inode table in `first..end` with an inode in use: with
/// links, of a known type, and with a valid checksum if the volume has checksums.
fn first_live(sb: &SuperBlock<Volume>, group: u32, first: u32, end: u32) -> Result<Option<u32>> {
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let size = usize::from(layout.inode_size);
    let number = |index: u32| group * layout.inodes_per_group + index + 1;
    let mut index = first;
    while index < end {
        let (block, offset) = inode::place(volume, sb, group, index)?;
        let buffer = Buffer::read(sb, block)?;
        let _table = volume.lock_table(block)?;
        let slots = buffer.bytes()?;
        let slots = slots.get(offset..).ok_or(EIO)?;
        for bytes in slots.chunks_exact(size) {
            if index >= end {
                break;
            }
            if number(index) >= layout.first_inode && !format::inode::is_free(bytes) {
                let found = format::inode::outline(layout, number(index), bytes, true);
                let live = found.is_ok_and(|found| {
                    found.links() > 0 && matches!(found.mode() >> 12, 1 | 2 | 4 | 6 | 8 | 10 | 12)
                });
                if live {
                    return Ok(Some(index));
                }
            }
            index += 1;
        }
    }
    Ok(None)
}

/// Returns whether any group has an inode in use in a slot that is never written according to its
/// descriptor. This is the last check before blocks without an owner are freed.
///
/// Fails with `EFSCORRUPTED` or `EIO` if a descriptor or a table cannot be read. Reads all inode
/// tables.
pub(crate) fn has_hidden_inodes(sb: &SuperBlock<Volume>) -> Result<bool> {
    let volume = sb.volume()?;
    let layout = &volume.layout;
    if !groups::has_uninit(volume) {
        return Ok(false);
    }
    for number in 0..layout.groups {
        let group = {
            let _lock = volume.lock_group(number)?;
            groups::group(volume, sb, number)?
        };
        let written = match group.flags & INODE_UNINIT {
            0 => layout.inodes_per_group.saturating_sub(group.itable_unused),
            _ => 0,
        };
        if first_live(sb, number, written, layout.inodes_per_group)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads the written part of the inode table for the inodes from `first` to `last`, all of which
/// are in one group, so that it need not be read with the group locked. Errors are left to later
/// reads.
pub(crate) fn read_slots(sb: &SuperBlock<Volume>, first: u32, last: u32) -> Result {
    let volume = sb.volume()?;
    let (number, index) = volume.layout.locate_inode(first).ok_or(EINVAL)?;
    let group = {
        let _lock = volume.lock_group(number)?;
        groups::group(volume, sb, number)?
    };
    let written = match (groups::has_uninit(volume), group.flags & INODE_UNINIT) {
        (true, 0) => volume.layout.inodes_per_group.saturating_sub(group.itable_unused),
        (true, _) => 0,
        (false, _) => volume.layout.inodes_per_group,
    };
    let Some(end) = written.checked_sub(1).map(|end| end.min(index + (last - first))) else {
        return Ok(());
    };
    if end < index {
        return Ok(());
    }
    let (start, end) = (
        inode::place(volume, sb, number, index)?.0,
        inode::place(volume, sb, number, end)?.0,
    );
    sb.read_ahead(start, end.saturating_sub(start) as u32 + 1);
    for block in start..=end {
        let _ = Buffer::read(sb, block);
    }
    Ok(())
}

/// Returns whether a reserved inode was never created; its bit is set nevertheless. The inode of
/// bad blocks never has a mode ([`bad_blocks`]), and counts as not created.
pub(crate) fn is_unmade(sb: &SuperBlock<Volume>, ino: u32) -> Result<bool> {
    let first = sb.volume()?.layout.first_inode;
    inode::with_slot(sb, ino, |_, slot| {
        Ok(ino < first && (ino == BAD_BLOCKS || format::inode::is_free(slot)))
    })
}

/// Lists the bad blocks of the volume, which inode 1 owns. It has neither a mode nor links, and
/// cannot be opened. Bad blocks within fixed metadata are omitted, since they belong to that.
pub(crate) fn bad_blocks(sb: &SuperBlock<Volume>, out: &mut impl FnMut(u64, u32, Owner) -> Result) -> Result {
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let found = inode::with_slot(sb, BAD_BLOCKS, |block, slot| {
        format::inode::read(layout, BAD_BLOCKS, slot)
            .map_err(|what| corrupt_inode(sb, BAD_BLOCKS, Some(block), what))
    })?;
    if found.block.iter().all(|&byte| byte == 0) {
        return Ok(());
    }
    let mut emit = |start, len, kind| {
        fixed::outside(volume, start, len, &mut |from, len| {
            let kind = match kind {
                OwnerKind::Data { offset, unwritten } => OwnerKind::Data {
                    offset: offset.saturating_add((from - start) as u32),
                    unwritten,
                },
                kind => kind,
            };
            let ino = BAD_BLOCKS;
            out(from, len, Owner { ino, kind })
        })
    };
    if found.flags & flags::EXTENTS != 0 {
        let seed = inode_seed(layout.seed, BAD_BLOCKS, found.generation);
        by_extents(sb, BAD_BLOCKS, seed, &found.block, &mut emit)
    } else {
        by_pointers(sb, BAD_BLOCKS, &found.block, &mut emit)
    }
}

/// Returns whether an inode may own fixed metadata: the journal, and the inode of reserved
/// descriptor blocks.
pub(crate) fn may_have_fixed(sb: &SuperBlock<Volume>, ino: u32) -> Result<bool> {
    Ok([RESIZE, sb.volume()?.layout.journal_inode].contains(&ino))
}

/// Returns true if this inode is a user's, not one of the file system's own.
pub(crate) fn is_ordinary(sb: &SuperBlock<Volume>, ino: u32) -> Result<bool> {
    Ok(format::inode::is_ordinary(&sb.volume()?.layout, ino))
}

/// Returns true if any of these blocks is fixed metadata or part of the journal.
pub(crate) fn meets_fixed(sb: &SuperBlock<Volume>, start: u64, len: u32) -> Result<bool> {
    Ok(fixed::meets(sb.volume()?, start, len))
}

/// Maximum number of uncached nodes listed at a time.
const COLD: usize = 4096;

/// Lists the nodes of an inode's mapping that are not in the buffer cache, as far as they can be
/// found through cached nodes. Does no I/O. `map` is the mapping, from [`lock_map`].
fn cold_nodes(inode: &Inode<Volume>, map: &Root) -> Result<KVVec<u64>> {
    let sb = inode.super_block();
    let layout = &sb.volume()?.layout;
    let mut cold = KVVec::new();
    let system = matches!(inode.number(), JOURNAL | RESIZE);
    if !system && !inode::is_mapped(inode)? {
        return Ok(cold);
    }
    // Nodes to visit: block and number of levels of nodes below; the next one is at the end.
    let mut todo: KVec<(u64, u32)> = KVec::new();
    let by_extents = inode.data()?.has_extents();
    let children = |bytes: &[u8], levels: u32, root: bool, todo: &mut KVec<(u64, u32)>| -> Result {
        let before = todo.len();
        if by_extents {
            let depth = if root { None } else { Some(levels as u16) };
            // Damage is reported when the inode is visited.
            if let Ok(node) = Node::read(layout, bytes, depth, None, (0, u32::MAX)) {
                let below = u32::from(node.depth()).saturating_sub(1);
                if node.depth() > 0 {
                    for index in node.indices() {
                        todo.push((index.child, below), GFP_KERNEL)?;
                    }
                }
            }
        } else {
            for (slot, pointer) in pointers(bytes).enumerate() {
                let below = if root {
                    (slot as u32).saturating_sub(11)
                } else {
                    levels
                };
                if pointer != 0 && below > 0 && layout.contains(u64::from(pointer), 1) {
                    todo.push((u64::from(pointer), below - 1), GFP_KERNEL)?;
                }
            }
        }
        if let Some(fresh) = todo.get_mut(before..) {
            fresh.reverse();
        }
        Ok(())
    };
    children(map, 0, true, &mut todo)?;
    if inode.number() == RESIZE {
        // Only the first block of its pointers belongs to the inode itself.
        for entry in todo.iter_mut() {
            entry.1 = 0;
        }
    }
    let mut seen = 0u64;
    while let Some((block, levels)) = todo.pop() {
        seen += 1;
        if cold.len() >= COLD || seen > layout.blocks {
            break;
        }
        if !sb.is_block_cached(block) {
            cold.push(block, GFP_KERNEL)?;
        } else if levels > 0 {
            let buffer = Buffer::read(sb, block)?;
            children(&buffer.bytes()?, levels, false, &mut todo)?;
        }
    }
    Ok(cold)
}

/// Reads nodes of a mapping into the cache. Errors are left to later reads.
fn read_nodes(sb: &SuperBlock<Volume>, blocks: &[u64]) {
    read_nodes_ahead(sb, blocks, |&block| block);
    for &block in blocks {
        let _ = Buffer::read(sb, block);
    }
}

/// Starts reading the nodes of a mapping that are visited next, in contiguous requests where
/// possible.
///
/// If the first and the last one are cached, the others are assumed to be cached, too.
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

/// Maximum number of inodes of an inode table block that are processed together.
const AT_ONCE: usize = 64;

/// Lists everything owned by the inodes in use from `first` on, at most up to `last`, like
/// [`for_each_owned`], but without instantiating them: as long as they are in one block of the
/// inode table, are not in the inode cache, and own nothing beyond what their slots describe. Then
/// calls `done` with the first and the last one, before anyone can access them. Returns the first
/// inode that was not visited.
///
/// An inode is read into the cache under the lock of its block of the inode table. While that lock
/// is held here, an inode that is not in the cache cannot change.
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
    let slots = buffer.bytes()?;
    let slots = slots.get(offset..).ok_or(EIO)?;
    let size = usize::from(volume.layout.inode_size);
    let verified = buffer.is_verified();
    // Inodes that are not cached now cannot be cached before the table is unlocked. This check must
    // precede the one for staged blocks: an inode may be evicted in between, and then still has its
    // staged blocks.
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
    // The checksums of all inodes in the block were valid, and later changes keep them valid.
    if !verified && (next - first) as usize == buffer.len() / size {
        buffer.set_verified();
    }
    if next > first {
        done(first, next - 1);
    }
    Ok(next)
}

/// Lists everything owned by the inode in this slot, which is not in the cache and has nothing
/// staged. Returns false, without having listed anything, if that is not possible.
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
    // Defects are logged when the inode is instantiated.
    let Ok(found) = format::inode::outline(layout, ino, bytes, !verified) else {
        return Ok(false);
    };
    let bad_acl = found.file_acl != 0 && !layout.contains(found.file_acl, 1);
    if found.links() == 0 || found.flags() & flags::REFUSED != 0 || bad_acl {
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

/// Lists the extents of a leaf.
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

/// Gets an inode that is in use; returns `None` if it no longer is.
///
/// Waits if it is being created or freed. Must not be called with a handle open.
pub(crate) fn get(sb: &SuperBlock<Volume>, ino: u32) -> Result<Option<InodeRef<Volume>>> {
    let volume = sb.volume()?;
    for _ in 0..2 {
        match inode::get(sb, ino) {
            // The bit is set but the inode is not stored yet. Both happen in one handle, for which
            // the commit waits.
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

/// Locks the mapping of an inode shared.
pub(crate) fn lock_map(inode: &Inode<Volume>) -> Result<ReadGuard<'_, Root>> {
    Ok(inode.data()?.root.read())
}

/// Number of times that the nodes of a mapping are read without a lock before the mapping is locked
/// regardless.
const WARM_TRIES: u32 = 16;

/// Locks an inode's mapping shared like [`lock_map`], once its nodes are cached. A task that waits
/// for the lock may have a handle open, for which a commit waits, so the lock should not be held
/// during I/O.
pub(crate) fn lock_warm_map(inode: &Inode<Volume>) -> Result<ReadGuard<'_, Root>> {
    for _ in 0..WARM_TRIES {
        let map = lock_map(inode)?;
        let cold = cold_nodes(inode, &map)?;
        if cold.is_empty() {
            return Ok(map);
        }
        drop(map);
        read_nodes(inode.super_block(), &cold);
    }
    lock_map(inode)
}

/// Calls back with every run of blocks that an inode owns, and how it uses them. Runs of contents
/// are in file order; nothing is merged.
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
        by_extents(inode.super_block(), ino, data.seed, map, &mut emit)
    } else {
        by_pointers(inode.super_block(), ino, map, &mut emit)
    }
}

/// Lists everything in the extent tree with this root. `seed` is the seed of the inode's checksums.
fn by_extents(
    sb: &SuperBlock<Volume>,
    ino: u32,
    seed: u32,
    map: &Root,
    emit: &mut impl FnMut(u64, u32, OwnerKind) -> Result,
) -> Result {
    let layout = &sb.volume()?.layout;
    let bad = |block, what| corrupt_inode(sb, ino, block, what);
    let root = Node::read(layout, map, None, None, (0, u32::MAX)).map_err(|what| bad(None, what))?;
    leaf(&root, emit)?;
    // Nodes to visit: block, depth, and range of file blocks; the next one is at the end.
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
        let buffer = Buffer::read(sb, place)?.into_bytes()?;
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

/// Lists everything that these block pointers and the indirect blocks below them refer to.
fn by_pointers(
    sb: &SuperBlock<Volume>,
    ino: u32,
    map: &Root,
    emit: &mut impl FnMut(u64, u32, OwnerKind) -> Result,
) -> Result {
    let layout = &sb.volume()?.layout;
    let per_block = u64::from(layout.block_size / 4);
    // The blocks below the resize inode's own block are the descriptor table and blocks reserved
    // for it.
    let layout_only = ino == RESIZE;
    // Pointers to follow: block, levels below, first file block; the next one is at the end.
    let mut todo: KVec<(u32, u32, u64)> = KVec::new();
    let mut offset = 0;
    for (slot, pointer) in pointers(map).enumerate() {
        let levels = (slot as u32).saturating_sub(11);
        todo.push((pointer, levels, offset), GFP_KERNEL)?;
        offset += per_block.pow(levels);
    }
    todo.reverse();
    // No file has more blocks than the volume, so circular pointers end here.
    let mut left = layout.blocks;
    while let Some((place, levels, offset)) = todo.pop() {
        if place == 0 {
            continue;
        }
        left = left.checked_sub(1).ok_or_else(|| {
            let what = Corrupt("indirect blocks lead to more blocks than there are");
            corrupt_inode(sb, ino, Some(place.into()), what)
        })?;
        if !layout.contains(u64::from(place), 1) {
            return Err(corrupt_inode(
                sb,
                ino,
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
        let buffer = Buffer::read(sb, u64::from(place))?.into_bytes()?;
        if pointers(&buffer).any(|pointer| pointer == place) {
            let what = Corrupt("indirect block leads to itself");
            return Err(corrupt_inode(sb, ino, Some(place.into()), what));
        }
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

/// Iterates over the pointers in an indirect block or in an inode.
fn pointers(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes
        .chunks_exact(4)
        .filter_map(|bytes| bytes.try_into().ok().map(u32::from_le_bytes))
}
