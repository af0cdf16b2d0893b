// SPDX-License-Identifier: GPL-2.0

//! The number of blocks of inodes (`i_blocks`) under check and repair.
//!
//! The blocks of an inode are those of its mapping, with its nodes, and the block of its extended
//! attributes. They and the count change with the mapping locked exclusively.

use crate::{
    format,
    fs::{
        disk::inode::{self, Part},
        map::extent_tree::Root,
        owners::OwnerKind,
        state::Volume,
        volume::scan,
    },
    kernel_glue::{Buffer, Inode, SuperBlock},
};
use kernel::prelude::*;

/// Returns whether the count of an inode is that of the blocks which it owns. The reserved inodes
/// count differently.
pub(crate) fn is_counted(sb: &SuperBlock<Volume>, ino: u32) -> Result<bool> {
    let layout = &sb.volume()?.layout;
    Ok(ino >= layout.first_inode || ino == format::inode::ROOT)
}

/// Counts the blocks of inodes that are not in the cache, as [`scan::peek`] does, and calls `out`
/// with each of these inodes, the sectors that it counts, and those that it has. Returns the first
/// inode that was not looked at.
///
/// # Errors
///
/// `EIO` when the table cannot be read, and errors of `out`. Called with an inode table locked, so
/// memory must be allocated without reclaim.
pub(crate) fn peek(
    sb: &SuperBlock<Volume>,
    first: u32,
    last: u32,
    out: &mut dyn FnMut(u32, u64, u64) -> Result,
) -> Result<u32> {
    let bits = sb.volume()?.layout.block_bits - 9;
    // Inodes with blocks, in order.
    let mut owners: KVec<(u32, u64)> = KVec::new();
    let mut count = |_, len: u32, owner: crate::fs::owners::Owner| -> Result {
        match owners.last_mut() {
            Some((ino, blocks)) if *ino == owner.ino => *blocks += u64::from(len),
            _ => owners.push((owner.ino, len.into()), GFP_KERNEL)?,
        }
        Ok(())
    };
    let mut seen = (1, 0);
    let mut stored: KVec<u64> = KVec::new();
    let mut read: Result = Ok(());
    let next = scan::peek(sb, first, last, &mut count, |first, last| {
        seen = (first, last);
        // The table is still locked.
        read = (first..=last).try_for_each(|ino| {
            stored.push(sectors(sb, ino)?, GFP_KERNEL)?;
            Ok(())
        });
    })?;
    read?;
    for (ino, stored) in (seen.0..=seen.1).zip(stored) {
        let at = owners.binary_search_by_key(&ino, |&(ino, _)| ino);
        let blocks = at
            .ok()
            .and_then(|at| owners.get(at))
            .map_or(0, |&(_, blocks)| blocks);
        out(ino, stored, blocks << bits)?;
    }
    Ok(next)
}

/// Returns the sectors that the slot of an inode counts. The caller has locked the table.
fn sectors(sb: &SuperBlock<Volume>, ino: u32) -> Result<u64> {
    let volume = sb.volume()?;
    let (group, index) = volume.layout.locate_inode(ino).ok_or(EINVAL)?;
    let (block, offset) = inode::place(volume, sb, group, index)?;
    let buffer = Buffer::read(sb, block)?;
    let bytes = buffer.bytes()?;
    format::inode::sectors(&volume.layout, bytes.get(offset..).ok_or(EIO)?).map_err(|_| EIO)
}

/// Returns the number of sectors that an inode owns. `map` is its mapping, which is locked.
///
/// # Errors
///
/// `EFSCORRUPTED` when the mapping is damaged, `EIO`.
pub(crate) fn used(inode: &Inode<Volume>, map: &Root) -> Result<u64> {
    let mut blocks = 0u64;
    scan::for_each_owned(inode, map, &mut |_, len, owner| {
        if owner.kind != OwnerKind::Staged {
            blocks += u64::from(len);
        }
        Ok(())
    })?;
    Ok(blocks << (inode.super_block().volume()?.layout.block_bits - 9))
}

/// Sets the count of an inode to the blocks that it owns. Returns whether it was wrong.
///
/// # Errors
///
/// As [`used`], and `EROFS`; nothing was changed then.
pub(crate) fn repair(inode: &Inode<Volume>) -> Result<bool> {
    let sb = inode.super_block();
    let volume = sb.volume()?;
    // Nodes are read before the handle is started.
    drop(scan::lock_warm_map(inode)?);
    let _pin = inode::pin(sb, inode.number())?;
    let _write = sb.internal_write();
    let handle = volume.begin_internal(inode::STORE_CREDITS, 0)?;
    let map = inode.data()?.root.write();
    let (right, counted) = (used(inode, &map)?, inode.sectors());
    if right != counted {
        if !inode.add_sectors(right as i64 - counted as i64) {
            return Err(EIO);
        }
        inode::store(&handle, inode, Part::Attributes)?;
    }
    drop(map);
    handle.stop()?;
    Ok(right != counted)
}
