// SPDX-License-Identifier: GPL-2.0

//! Growing a mounted volume (`EXT4_IOC_RESIZE_FS`, `EXT4_IOC_GROUP_EXTEND`).
//!
//! 1. Check everything that can be checked: who asks, the size of the device, room for descriptors.
//! 2. The layer above lets no scan of all inodes run meanwhile.
//! 3. Make the last group longer, then add groups, those of a flex group together. Each of these
//!    steps is a transaction. The bitmaps, inode tables and descriptors of the new groups and the
//!    superblock change in it, and when it is complete, the new [`Layout`] is published: only then
//!    is anything allocated in the new groups.
//! 4. Write the copies of superblock and descriptors.
//!
//! Without `meta_bg`, a new block of descriptors comes from those that mke2fs reserved behind the
//! descriptors and their copies ([`Reserve`]).
//!
//! After a failure or a crash the volume has the size of the last complete step. Copies of the
//! superblock that were not updated then are right after the next growth or e2fsck.

use crate::{
    format::{
        bitmap, divisor,
        group::{bitmap_checksum, Group, INODE_UNINIT},
        growth::{groups_together, reserved_of, Placer},
        inode::RESIZE,
        superblock::{self, compat, incompat, Layout, RawSuper, NOT_RESERVED},
        zones::{self, Zone},
        Corrupt,
    },
    fs::{
        disk::{
            errors, groups,
            inode::{self, Part},
            super_disk,
        },
        state::{Counts, Volume, MOST_GROUPS},
        volume::companion,
    },
    kernel_glue::{
        is_dying, may_resize, unsupported, Buffer, FreshBuffer, Handle, InodeRef, OpenFile, SuperBlock,
    },
};
use kernel::{
    prelude::*,
    sync::atomic::{Full, Release},
};
use zerocopy::{little_endian::U32, IntoBytes};

/// The growth of a volume, of which there is one at a time.
struct Growth<'a>(&'a Volume);

impl<'a> Growth<'a> {
    /// Fails as stock ext4 does if the volume must not be resized.
    fn begin(volume: &'a Volume, sb: &SuperBlock<Volume>) -> Result<Self> {
        if !may_resize() {
            return Err(EPERM);
        }
        let layout = &volume.layout;
        let has_inode = layout.features.compat(compat::RESIZE_INODE);
        if layout.reserved_gdt_blocks > 0 && !has_inode {
            let what = Corrupt("blocks are reserved for descriptors without the feature resize_inode");
            pr_err!("{}: superblock: {}\n", sb.name(), what.0);
            errors::note(sb, 0, 0);
            return Err(errors::errno(what));
        }
        if volume.is_damaged() {
            pr_warn!("{}: a volume with errors is not resized\n", sb.name());
            return Err(EPERM);
        }
        if layout.features.compat(compat::SPARSE_SUPER2) {
            pr_err!(
                "{}: a volume with sparse_super2 is not resized while mounted\n",
                sb.name()
            );
            return Err(unsupported());
        }
        match volume.grows.xchg(true, Full) {
            true => Err(EBUSY),
            false => Ok(Growth(volume)),
        }
    }
}

impl Drop for Growth<'_> {
    fn drop(&mut self) {
        self.0.grows.store(false, Release);
    }
}

/// Makes the volume `blocks` blocks long (`EXT4_IOC_RESIZE_FS`).
pub(in crate::fs) fn resize(sb: &SuperBlock<Volume>, file: &OpenFile<'_>, blocks: u64) -> Result {
    let volume = sb.volume()?;
    let _growth = Growth::begin(volume, sb)?;
    let _write = file.want_write()?;
    grow(volume, sb, blocks)
}

/// Makes the last group longer, so that the volume has `blocks` blocks or the group is full
/// (`EXT4_IOC_GROUP_EXTEND`).
pub(in crate::fs) fn extend(sb: &SuperBlock<Volume>, file: &OpenFile<'_>, blocks: u64) -> Result {
    let volume = sb.volume()?;
    let _growth = Growth::begin(volume, sb)?;
    let _write = file.want_write()?;
    let layout = &volume.layout;
    if blocks == 0 || blocks == layout.blocks {
        return Ok(());
    }
    let full = layout.group_start(layout.groups);
    if blocks > layout.blocks && layout.blocks == full {
        pr_warn!("{}: the last group is full\n", sb.name());
        return Err(EPERM);
    }
    grow(volume, sb, blocks.min(full))
}

fn grow(volume: &Volume, sb: &SuperBlock<Volume>, blocks: u64) -> Result {
    let before = *volume.layout;
    let Some(target) = target(&before, sb, blocks)? else {
        return Ok(());
    };
    pr_info!(
        "{}: growing from {} to {} blocks\n",
        sb.name(),
        before.blocks,
        target.blocks
    );
    let mut steps = || loop {
        let layout = *volume.layout;
        if layout.blocks >= target.blocks {
            return Ok(());
        }
        if is_dying() {
            return Err(EINTR);
        }
        match layout.group_start(layout.groups) {
            full if layout.blocks < full => extend_last(volume, sb, target.blocks.min(full))?,
            _ => add_groups(volume, sb, &target)?,
        }
    };
    let grown = match companion::get() {
        Some(companion) => companion.grow(sb, target.blocks, &mut steps),
        None => steps(),
    };
    let copied = match volume.layout.blocks > before.blocks {
        true => update_copies(volume, sb, &before),
        false => Ok(()),
    };
    pr_info!(
        "{}: the volume has {} blocks now\n",
        sb.name(),
        volume.layout.blocks
    );
    grown.and(copied).and(volume.journal()?.flush())
}

/// Returns the layout that the volume will have, or `None` if nothing is to be done.
fn target(layout: &Layout, sb: &SuperBlock<Volume>, blocks: u64) -> Result<Option<Layout>> {
    if blocks == 0 || blocks > sb.device_bytes() >> layout.block_bits {
        pr_warn!("{}: the device has no {blocks} blocks\n", sb.name());
        return Err(ENOSPC);
    }
    let grown = |blocks| {
        layout.grown(blocks).map_err(|what| {
            pr_warn!("{}: not resized to {blocks} blocks: {}\n", sb.name(), what.0);
            match what == NOT_RESERVED {
                true => unsupported(),
                false => EINVAL,
            }
        })
    };
    let mut new = grown(blocks)?;
    if new.groups > MOST_GROUPS {
        pr_warn!("{}: too many groups for a writable mount\n", sb.name());
        return Err(EINVAL);
    }
    let last = new.groups.saturating_sub(1);
    let needed = u64::from(new.leading_blocks(last)) + 3 + u64::from(new.inode_table_blocks());
    if last >= layout.groups && new.group_start(last) + needed >= blocks {
        // The last group would have no room for its metadata.
        new = grown(new.group_start(last))?;
    }
    Ok((new.blocks > layout.blocks).then_some(new))
}

/// Changes the superblock within the handle: the layout, and the counts by what was added. Costs
/// [`super_disk::CHANGE_CREDITS`].
fn change_super(
    handle: &Handle,
    volume: &Volume,
    sb: &SuperBlock<Volume>,
    new: &Layout,
    change: &Counts,
) -> Result {
    let counts = *volume.counts.lock();
    let is_wide = new.features.incompat(incompat::B64BIT);
    super_disk::change(handle, volume, sb, |raw: &mut RawSuper| {
        let mut set =
            |low: fn(&mut RawSuper) -> &mut U32, high: fn(&mut RawSuper) -> &mut U32, value: u64| {
                low(raw).set(value as u32);
                if is_wide {
                    high(raw).set((value >> 32) as u32);
                }
            };
        set(
            |raw| &mut raw.blocks_count_lo,
            |raw| &mut raw.blocks_count_hi,
            new.blocks,
        );
        set(
            |raw| &mut raw.free_blocks_count_lo,
            |raw| &mut raw.free_blocks_count_hi,
            counts.free_blocks.saturating_add(change.free_blocks),
        );
        set(
            |raw| &mut raw.r_blocks_count_lo,
            |raw| &mut raw.r_blocks_count_hi,
            counts.reserved.saturating_add(change.reserved),
        );
        raw.inodes_count.set(new.inodes);
        raw.free_inodes_count
            .set(counts.free_inodes.saturating_add(change.free_inodes) as u32);
        raw.reserved_gdt_blocks.set(new.reserved_gdt_blocks);
        if raw.overhead_clusters.get() != 0 {
            let overhead = u64::from(raw.overhead_clusters.get()).saturating_add(change.overhead);
            raw.overhead_clusters.set(u32::try_from(overhead).unwrap_or(0));
        }
    })
}

/// Adds what a step added to the counts in memory.
fn count(volume: &Volume, change: &Counts) {
    let mut counts = volume.counts.lock();
    counts.free_blocks = counts.free_blocks.saturating_add(change.free_blocks);
    counts.free_inodes = counts.free_inodes.saturating_add(change.free_inodes);
    counts.overhead = counts.overhead.saturating_add(change.overhead);
    counts.reserved = counts.reserved.saturating_add(change.reserved);
}

/// Converts a defect of the volume to an errno, and logs it.
fn bad(sb: &SuperBlock<Volume>, what: &'static str) -> Error {
    pr_err!("{}: not resized: {what}\n", sb.name());
    errors::note(sb, RESIZE, 0);
    errors::errno(Corrupt(what))
}

/// Makes the last group longer.
fn extend_last(volume: &Volume, sb: &SuperBlock<Volume>, blocks: u64) -> Result {
    let before = *volume.layout;
    let new = before.grown(blocks).map_err(|what| bad(sb, what.0))?;
    let number = before.groups.saturating_sub(1);
    let more = u32::try_from(blocks - before.blocks).map_err(|_| EINVAL)?;
    let ready = volume.layout.prepare(new)?;
    let change = Counts {
        free_blocks: more.into(),
        ..Counts::default()
    };
    // The bitmap, the descriptor and the superblock.
    let handle = volume.begin_internal(2 + super_disk::CHANGE_CREDITS, 0)?;
    let mut state = volume.lock_group(number)?;
    let mut group = groups::group(volume, sb, number)?;
    let mut buffer = groups::block_bitmap(Some(&handle), sb, number, &mut group)?;
    change_super(&handle, volume, sb, &new, &change)?;
    let mut bits = handle.write_bitmap(&mut buffer)?;
    bitmap::assign(&mut bits, before.group_blocks(number), more, false);
    groups::seal_blocks(volume, &mut group, &bits);
    drop(bits);
    groups::change(&handle, sb, number, |stored| {
        stored.free_blocks = stored.free_blocks.saturating_add(more);
        stored.block_bitmap_csum = group.block_bitmap_csum;
        Ok(())
    })?;
    state.note_free(Some(handle.transaction()));
    ready.publish();
    let is_fenced = state.is_fenced;
    drop(state);
    if !is_fenced {
        count(volume, &change);
    }
    handle.stop()
}

/// Adds the groups up to the end of a flex group, or those that `target` has.
fn add_groups(volume: &Volume, sb: &SuperBlock<Volume>, target: &Layout) -> Result {
    let before = *volume.layout;
    let mut together = groups_together(&before, target.groups).max(1);
    let (new, planned) = loop {
        let end = before.group_start(before.groups.saturating_add(together));
        let new = before
            .grown(end.min(target.blocks))
            .map_err(|what| bad(sb, what.0))?;
        match plan(volume, &before, &new)? {
            Some(planned) => break (new, planned),
            // Each alone has room for its metadata.
            None if together > 1 => together = 1,
            None => return Err(bad(sb, "a new group has no room for its metadata")),
        }
    };
    if !groups::has_uninit(volume) {
        for (_, group) in planned.iter() {
            clear_table(sb, &new, group.inode_table)?;
        }
    }
    // All that may fail for lack of memory comes before the transaction.
    volume.add_groups(new.groups)?;
    let zones = volume.fixed.as_ref().ok_or(EIO)?;
    let ready_zones = zones.prepare(with_zones(zones, &new, &planned)?)?;
    let ready = volume.layout.prepare(new)?;
    let mut reserve = match new.reserved_gdt_blocks < before.reserved_gdt_blocks
        || before.reserved_gdt_blocks > 0 && planned.iter().any(|&(number, _)| new.has_super(number))
    {
        true => Some(Reserve::read(sb, &before)?),
        false => None,
    };
    let mut change = Counts {
        reserved: reserved_of(
            volume.counts.lock().reserved,
            before.blocks,
            new.blocks - before.blocks,
        ),
        ..Counts::default()
    };
    for &(number, group) in planned.iter() {
        change.free_blocks += u64::from(group.free_blocks);
        change.free_inodes += u64::from(group.free_inodes);
        change.overhead += u64::from(new.group_blocks(number) - group.free_blocks);
    }
    let all = planned.len() as u32;
    let reserved = reserve
        .as_ref()
        .map_or(0, |_| 2 + u32::from(before.reserved_gdt_blocks));
    let handle = volume.begin_internal(2 * all + 1 + super_disk::CHANGE_CREDITS + reserved, 0)?;
    change_super(&handle, volume, sb, &new, &change)?;
    if new.desc_blocks > before.desc_blocks {
        if let (None, Some(reserve)) = (new.first_meta_bg, &mut reserve) {
            reserve.use_first(&handle, &before)?;
        }
        let (block, _) = new.desc_location(before.groups);
        drop(handle.renew(FreshBuffer::new(sb, block)?)?);
    }
    for &(number, mut group) in planned.iter() {
        if let Some(reserve) = reserve.as_mut().filter(|_| new.has_super(number)) {
            reserve.add_copies(&handle, &new, number)?;
        }
        let mut bits = handle.renew(FreshBuffer::new(sb, group.block_bitmap)?)?;
        mark_used(volume, &new, number, &planned, &mut bits);
        group.block_bitmap_csum = match new.has_metadata_csum() {
            true => bitmap_checksum(&new, &bits, new.blocks_per_group).unwrap_or(0),
            false => 0,
        };
        bits.into_buffer().set_verified();
        if group.flags & INODE_UNINIT == 0 {
            let mut bits = handle.renew(FreshBuffer::new(sb, group.inode_bitmap)?)?;
            groups::pad(volume, new.inodes_per_group, &mut bits);
            bits.into_buffer().set_verified();
        }
        let (block, offset) = new.desc_location(number);
        let mut buffer = Buffer::read(sb, block)?;
        let mut bytes = handle.write_part(&mut buffer, offset..offset + usize::from(new.desc_size))?;
        bytes.fill(0);
        group
            .store(&new, number, &mut bytes)
            .map_err(|what| bad(sb, what.0))?;
    }
    ready_zones.publish();
    ready.publish();
    count(volume, &change);
    handle.stop()
}

/// A new group: its number and its descriptor, without checksums.
type NewGroup = (u32, Group);

/// Places the metadata of new groups; `None` if there is no room for that.
fn plan(volume: &Volume, before: &Layout, new: &Layout) -> Result<Option<KVec<NewGroup>>> {
    let has_uninit = groups::has_uninit(volume);
    let empty = Group {
        block_bitmap: 0,
        inode_bitmap: 0,
        inode_table: 0,
        free_blocks: 0,
        free_inodes: new.inodes_per_group,
        used_dirs: 0,
        flags: if has_uninit { INODE_UNINIT } else { 0 },
        itable_unused: if has_uninit { new.inodes_per_group } else { 0 },
        block_bitmap_csum: 0,
        inode_bitmap_csum: 0,
    };
    let mut planned = KVec::new();
    for number in before.groups..new.groups {
        planned.push((number, empty), GFP_KERNEL)?;
    }
    let mut placer = Placer::new(new, before.groups);
    type Place = fn(&mut Group) -> &mut u64;
    let parts: [(u32, Place); 3] = [
        (1, |group| &mut group.block_bitmap),
        (1, |group| &mut group.inode_bitmap),
        (new.inode_table_blocks(), |group| &mut group.inode_table),
    ];
    for (len, part) in parts {
        for (_, group) in planned.iter_mut() {
            let Some(start) = placer.take(len) else {
                return Ok(None);
            };
            *part(group) = start;
        }
    }
    let mut bits = KVec::from_elem(0u8, new.block_size as usize, GFP_KERNEL)?;
    for index in 0..planned.len() {
        bits.fill(0);
        let number = before.groups.saturating_add(index as u32);
        mark_used(volume, new, number, &planned, &mut bits);
        if let Some((_, group)) = planned.get_mut(index) {
            group.free_blocks = bitmap::count_clear(&bits, new.group_blocks(number));
        }
    }
    Ok(Some(planned))
}

/// Calls back with the blocks that metadata of these groups takes, as first block and length.
fn for_each_fixed(new: &Layout, planned: &[NewGroup], mut out: impl FnMut(u64, u32) -> Result) -> Result {
    for (number, group) in planned {
        for (start, len) in groups::fixed_of_layout(new, *number, group) {
            out(start, len)?;
        }
    }
    Ok(())
}

/// Makes the block bitmap of a new group.
fn mark_used(volume: &Volume, new: &Layout, number: u32, planned: &[NewGroup], bits: &mut [u8]) {
    let start = new.group_start(number);
    let end = start + u64::from(new.group_blocks(number));
    // The callback never fails.
    let _ = for_each_fixed(new, planned, |first, len| {
        let (from, to) = (first.max(start), (first + u64::from(len)).min(end));
        if from < to {
            bitmap::assign(bits, (from - start) as u32, (to - from) as u32, true);
        }
        Ok(())
    });
    groups::pad(volume, new.group_blocks(number), bits);
}

/// Returns the zones of fixed metadata, with those of new groups.
fn with_zones(zones: &[Zone], new: &Layout, planned: &[NewGroup]) -> Result<KVVec<Zone>> {
    let mut all = KVVec::with_capacity(zones.len() + 4 * planned.len(), GFP_KERNEL)?;
    all.extend_from_slice(zones, GFP_KERNEL)?;
    for_each_fixed(new, planned, |start, len| {
        let end = start + u64::from(len);
        Ok(all.push(Zone { start, end }, GFP_KERNEL)?)
    })?;
    let kept = zones::merge(&mut all);
    all.truncate(kept);
    Ok(all)
}

/// Zeroes an inode table that is not on the volume yet.
fn clear_table(sb: &SuperBlock<Volume>, new: &Layout, table: u64) -> Result {
    const AT_ONCE: u32 = 64;
    let zeroes = KVec::from_elem(0u8, new.block_size as usize, GFP_KERNEL)?;
    let blocks = new.inode_table_blocks();
    let mut next = 0;
    while next < blocks {
        let end = next.saturating_add(AT_ONCE).min(blocks);
        let mut filled = KVec::with_capacity(AT_ONCE as usize, GFP_KERNEL)?;
        for block in next..end {
            let fresh = FreshBuffer::new(sb, table + u64::from(block))?;
            filled.push(fresh.fill(&zeroes)?, GFP_KERNEL)?;
        }
        Buffer::submit(&filled);
        for buffer in filled.iter() {
            buffer.wait()?;
        }
        next = end;
    }
    Ok(())
}

/// The index in `i_block` of the pointer to the block of pointers to the reserved blocks.
const DOUBLE: usize = 13;

/// Reads a pointer of an array of pointers.
fn pointer(bytes: &[u8], index: usize) -> Option<u32> {
    let bytes = bytes.get(index * 4..index * 4 + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// The blocks that are reserved for more descriptors, in group 0 and next to each copy.
///
/// They belong to the resize inode. Its double indirect block has an entry for each block of
/// descriptors modulo the number of its entries: the reserved block in group 0. This holds a list
/// of the corresponding blocks in the groups with copies, in order of groups.
struct Reserve<'a> {
    inode: InodeRef<Volume>,
    double: Buffer<'a>,
    blocks: KVec<Buffer<'a>>,
    /// The number of groups with copies.
    copies: usize,
}

impl<'a> Reserve<'a> {
    /// Reads and checks all of it.
    fn read(sb: &'a SuperBlock<Volume>, layout: &Layout) -> Result<Self> {
        let inode = inode::get(sb, RESIZE)?;
        let block = pointer(&*inode.data()?.root.read(), DOUBLE).unwrap_or(0);
        if !layout.contains(block.into(), 1) {
            return Err(bad(sb, "the resize inode has no double indirect block"));
        }
        let double = Buffer::read(sb, block.into())?;
        let mut groups = KVec::new();
        for group in (1..layout.groups).filter(|&group| layout.has_super(group)) {
            groups.push(group, GFP_KERNEL)?;
        }
        let mut blocks = KVec::new();
        for number in layout.desc_blocks..layout.desc_blocks + u32::from(layout.reserved_gdt_blocks) {
            let block = u64::from(layout.first_data_block) + 1 + u64::from(number);
            let slot = (number % divisor(layout.block_size / 4)) as usize;
            if pointer(&double.bytes()?, slot).map(u64::from) != Some(block) {
                return Err(bad(sb, "the resize inode lacks a reserved block"));
            }
            let buffer = Buffer::read(sb, block)?;
            let list = buffer.bytes()?;
            for (slot, &group) in groups.iter().enumerate() {
                if pointer(&list, slot).map(u64::from) != Some(Self::copy(layout, block, group)) {
                    return Err(bad(sb, "the resize inode lacks a reserved block of a copy"));
                }
            }
            drop(list);
            blocks.push(buffer, GFP_KERNEL)?;
        }
        Ok(Reserve {
            inode,
            double,
            blocks,
            copies: groups.len(),
        })
    }

    /// The block that corresponds to one of group 0 in a group with copies.
    fn copy(layout: &Layout, block: u64, group: u32) -> u64 {
        block + u64::from(group) * u64::from(layout.blocks_per_group)
    }

    /// Changes the count of blocks of the resize inode.
    fn add_blocks(&self, handle: &Handle, layout: &Layout, blocks: i64) -> Result {
        let sectors = i64::from(layout.block_size / 512);
        // As many as there are.
        let _ = self.inode.add_sectors(blocks.saturating_mul(sectors));
        inode::store(handle, &self.inode, Part::Attributes)
    }

    /// Takes the first reserved block and its copies from the resize inode. They stay in use, and
    /// become descriptors.
    fn use_first(&mut self, handle: &Handle, layout: &Layout) -> Result {
        let slot = (layout.desc_blocks % divisor(layout.block_size / 4)) as usize * 4;
        let mut bytes = handle.write_part(&mut self.double, slot..slot + 4)?;
        bytes.fill(0);
        drop(bytes);
        if !self.blocks.is_empty() {
            drop(self.blocks.remove(0));
        }
        self.add_blocks(handle, layout, -(self.copies as i64 + 1))
    }

    /// Adds the reserved blocks of a new group with copies.
    fn add_copies(&mut self, handle: &Handle, layout: &Layout, group: u32) -> Result {
        for buffer in self.blocks.iter_mut() {
            let copy = Self::copy(layout, buffer.number(), group);
            let copy = u32::try_from(copy).map_err(|_| EFBIG)?;
            let slot = self.copies * 4;
            let mut bytes = handle.write_part(buffer, slot..slot + 4)?;
            bytes.copy_from_slice(&copy.to_le_bytes());
        }
        self.copies += 1;
        self.add_blocks(handle, layout, self.blocks.len() as i64)
    }
}

/// Copies the superblock and the blocks of descriptors that changed to the groups with copies.
fn update_copies(volume: &Volume, sb: &SuperBlock<Volume>, before: &Layout) -> Result {
    let layout = &*volume.layout;
    let each = layout.descs_per_block();
    let first_changed = before.groups.saturating_sub(1) / each;
    let first_meta = layout.first_meta_bg.unwrap_or(layout.desc_blocks);
    for group in (1..layout.groups).filter(|&group| layout.has_super(group)) {
        copy_super(volume, sb, group)?;
        let from = if group < before.groups { first_changed } else { 0 };
        for number in from..first_meta.min(layout.desc_blocks) {
            let to = layout.group_start(group) + 1 + u64::from(number);
            copy_descriptors(volume, sb, number * each.get(), to)?;
        }
    }
    for number in first_changed.max(first_meta)..layout.desc_blocks {
        let first = number * each.get();
        for group in [first.saturating_add(1), first.saturating_add(each.get() - 1)] {
            if group < layout.groups {
                let to = layout.group_start(group) + u64::from(layout.has_super(group));
                copy_descriptors(volume, sb, first, to)?;
            }
        }
    }
    Ok(())
}

/// Copies the superblock to a group.
fn copy_super(volume: &Volume, sb: &SuperBlock<Volume>, group: u32) -> Result {
    let layout = &volume.layout;
    let handle = volume.begin_internal(1, 0)?;
    let (block, offset) = super_disk::location(layout.block_size);
    let mut raw = super_disk::read_raw(sb, &Buffer::read(sb, block)?, offset)?;
    raw.block_group_nr.set(u16::try_from(group).unwrap_or(u16::MAX));
    if layout.has_metadata_csum() {
        let sum = superblock::checksum(&raw);
        raw.checksum.set(sum);
    }
    let mut bytes = handle.renew(FreshBuffer::new(sb, layout.group_start(group))?)?;
    if let Some(bytes) = bytes.get_mut(..superblock::SIZE) {
        bytes.copy_from_slice(raw.as_bytes());
    }
    drop(bytes);
    handle.stop()
}

/// Copies the block of descriptors that begins with this group's to another block.
fn copy_descriptors(volume: &Volume, sb: &SuperBlock<Volume>, first: u32, to: u64) -> Result {
    let layout = &volume.layout;
    let (block, _) = layout.desc_location(first);
    let mut copy = KVec::from_elem(0u8, layout.block_size as usize, GFP_KERNEL)?;
    Buffer::read(sb, block)?.copy(0, &mut copy)?;
    let handle = volume.begin_internal(1, 0)?;
    let mut bytes = handle.renew(FreshBuffer::new(sb, to)?)?;
    bytes.copy_from_slice(&copy);
    drop(bytes);
    handle.stop()
}
