// SPDX-License-Identifier: GPL-2.0

//! Going over all inodes of a volume and all that they own, while it is written.
//!
//! A scan looks at the bit of an inode and moves its cursor past a free one under the lock under which inodes are taken:
//! so whatever is made behind the cursor is known to be behind it. It then takes the inode, locks its mapping to read,
//! and has every run of blocks that it owns handed out.

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
    /// There are none in use any more.
    Nothing,
    /// The inode bitmap calls these used, from the first to the last.
    Used(u32, u32),
    /// The inode bitmap calls this one free, or cannot be read; its slot in the inode table has links and contents.
    Doubtful(u32),
}

/// Finds the first inodes in use from `ino` to `last`, all of one group. Free ones before them are handed to `pass`, the
/// first of them and the last, before anybody can take them.
///
/// The inode bitmap alone does not make an inode free: its slot must be free as well, unless the group's descriptor says
/// that the slot was never written. When the bitmap cannot be read, `trouble` gets the error, and the slots decide alone;
/// nobody can take an inode of the group then.
///
/// Fails with `EINVAL` for a number that cannot be, `EFSCORRUPTED` or `EIO` when the group's descriptor or a block of its
/// inode table cannot be read.
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

/// The first slot of a group's inode table, of those from `first` on and before `end`, that holds a live inode: with
/// links, of a known type, and with the right checksum where there are any.
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

/// Whether any group has a live inode in a slot that its descriptor calls never written: the last witness before blocks
/// without an owner are freed.
///
/// Fails with `EFSCORRUPTED` or `EIO` when a descriptor or a table cannot be read. Reads all inode tables.
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

/// Reads the written part of the inode table in which the inodes from `first` to `last`, all of one group, lie, so that
/// it need not be read with the group locked. Errors are left to whoever looks at the inodes.
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

/// Whether a reserved inode was never made; its bit is set all the same, and it never will be. The inode of bad blocks is
/// never more than its slot ([`bad_blocks`]), and counts as not made.
pub(crate) fn is_unmade(sb: &SuperBlock<Volume>, ino: u32) -> Result<bool> {
    let volume = sb.volume()?;
    let (group, index) = volume.layout.locate_inode(ino).ok_or(EINVAL)?;
    let (block, offset) = inode::place(volume, sb, group, index)?;
    let buffer = Buffer::read(sb, block)?;
    let _table = volume.lock_table(block)?;
    let bytes = buffer.bytes()?;
    let bytes = bytes.get(offset..).ok_or(EIO)?;
    Ok(ino < volume.layout.first_inode && (ino == BAD_BLOCKS || format::inode::is_free(bytes)))
}

/// Hands out the bad blocks of the volume, as what inode 1 owns. It has neither a mode nor links and is never taken. Bad
/// blocks in fixed metadata are left out: they belong to that.
pub(crate) fn bad_blocks(sb: &SuperBlock<Volume>, out: &mut impl FnMut(u64, u32, Owner) -> Result) -> Result {
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let (group, index) = layout.locate_inode(BAD_BLOCKS).ok_or(EINVAL)?;
    let (block, offset) = inode::place(volume, sb, group, index)?;
    let found = {
        let buffer = Buffer::read(sb, block)?;
        let _table = volume.lock_table(block)?;
        let bytes = buffer.bytes()?;
        let bytes = bytes.get(offset..).ok_or(EIO)?;
        format::inode::read(layout, BAD_BLOCKS, bytes)
            .map_err(|what| corrupt_inode(sb, BAD_BLOCKS, Some(block), what))?
    };
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

/// Whether an inode owns fixed metadata for what it is: the journal, and the inode of blocks kept for descriptors.
pub(crate) fn may_have_fixed(sb: &SuperBlock<Volume>, ino: u32) -> Result<bool> {
    Ok([RESIZE, sb.volume()?.layout.journal_inode].contains(&ino))
}

/// Whether this inode is a user's, not one of the file system's own.
pub(crate) fn is_ordinary(sb: &SuperBlock<Volume>, ino: u32) -> Result<bool> {
    Ok(format::inode::is_ordinary(&sb.volume()?.layout, ino))
}

/// Whether any of these blocks is fixed metadata or the journal.
pub(crate) fn meets_fixed(sb: &SuperBlock<Volume>, start: u64, len: u32) -> Result<bool> {
    Ok(fixed::meets(sb.volume()?, start, len))
}

/// Nodes named at a time that are not in the cache.
const COLD: usize = 4096;

/// Lists nodes of an inode's mapping that are not in the cache, as far as the nodes that are there lead to them. Waits for
/// no disk. `map` is the mapping, from [`lock_map`].
fn cold_nodes(inode: &Inode<Volume>, map: &Root) -> Result<KVVec<u64>> {
    let sb = inode.super_block();
    let layout = &sb.volume()?.layout;
    let mut cold = KVVec::new();
    let system = matches!(inode.number(), JOURNAL | RESIZE);
    if !system && !inode::is_mapped(inode)? {
        return Ok(cold);
    }
    // Nodes by their block and how many levels of nodes are below; the next one at the end.
    let mut todo: KVec<(u64, u32)> = KVec::new();
    let by_extents = inode.data()?.has_extents();
    let children = |bytes: &[u8], levels: u32, root: bool, todo: &mut KVec<(u64, u32)>| -> Result {
        let before = todo.len();
        if by_extents {
            let depth = if root { None } else { Some(levels as u16) };
            // Damage is found by whoever visits the inode.
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
        // Only the first block of its pointers is its own.
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

/// Reads nodes of a mapping into the cache. Errors are left to whoever needs them.
fn read_nodes(sb: &SuperBlock<Volume>, blocks: &[u64]) {
    read_nodes_ahead(sb, blocks, |&block| block);
    for &block in blocks {
        let _ = Buffer::read(sb, block);
    }
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
    let slots = buffer.bytes()?;
    let slots = slots.get(offset..).ok_or(EIO)?;
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

/// How often the nodes of a mapping are read with no lock held before it is locked all the same.
const WARM_TRIES: u32 = 16;

/// Locks an inode's mapping to read, as [`lock_map`] does, once its nodes are in the cache. Whoever waits for the lock may
/// hold a handle open, and a commit waits for that: so the lock is not held while the disk is waited for.
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
        by_extents(inode.super_block(), ino, data.seed, map, &mut emit)
    } else {
        by_pointers(inode.super_block(), ino, map, &mut emit)
    }
}

/// Hands out what the extent tree with this root leads to. `seed` is that of the inode's checksums.
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

/// Hands out what these block pointers and the indirect blocks behind them lead to.
fn by_pointers(
    sb: &SuperBlock<Volume>,
    ino: u32,
    map: &Root,
    emit: &mut impl FnMut(u64, u32, OwnerKind) -> Result,
) -> Result {
    let layout = &sb.volume()?.layout;
    let per_block = u64::from(layout.block_size / 4);
    // What is below the one block of the resize inode is the descriptor table and what is reserved for it.
    let layout_only = ino == RESIZE;
    // Pointers still to be followed: where to, levels below, first file block; the next one at the end.
    let mut todo: KVec<(u32, u32, u64)> = KVec::new();
    let mut offset = 0;
    for (slot, pointer) in pointers(map).enumerate() {
        let levels = (slot as u32).saturating_sub(11);
        todo.push((pointer, levels, offset), GFP_KERNEL)?;
        offset += per_block.pow(levels);
    }
    todo.reverse();
    // No file has more blocks than the volume: pointers that lead to one block again and again end here.
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

/// The block numbers in an indirect block, or those in an inode.
fn pointers(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes
        .chunks_exact(4)
        .filter_map(|bytes| bytes.try_into().ok().map(u32::from_le_bytes))
}
