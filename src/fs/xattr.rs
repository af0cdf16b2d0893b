// SPDX-License-Identifier: GPL-2.0

//! Extended attributes: those in an inode and those in a block that it may share with others.
//!
//! Both are copied under the lock of the block they lie in, and looked at then: who reads an attribute never sees half of
//! a change, and holds no lock while it is checked.

use super::{corrupt_inode, fixed, inode, Volume};
use crate::{
    format::xattr::{index, Area},
    kernel_glue::{no_data, AttributeSpace, Buffer, Inode},
};
use kernel::prelude::*;

/// A namespace's number on disk.
fn index_of(space: AttributeSpace) -> u8 {
    match space {
        AttributeSpace::User => index::USER,
        AttributeSpace::Trusted => index::TRUSTED,
        AttributeSpace::Security => index::SECURITY,
        AttributeSpace::AclAccess => index::ACL_ACCESS,
        AttributeSpace::AclDefault => index::ACL_DEFAULT,
    }
}

/// The namespace of this number, if it is one that is handled.
fn space_of(number: u8) -> Option<AttributeSpace> {
    Some(match number {
        index::USER => AttributeSpace::User,
        index::TRUSTED => AttributeSpace::Trusted,
        index::SECURITY => AttributeSpace::Security,
        index::ACL_ACCESS => AttributeSpace::AclAccess,
        index::ACL_DEFAULT => AttributeSpace::AclDefault,
        _ => return None,
    })
}

/// Copies bytes of a block under its lock; the room is got before, since memory may be got by evicting inodes.
fn copy(volume: &Volume, buffer: &Buffer, offset: usize, len: usize) -> Result<KVec<u8>> {
    let mut bytes = KVec::from_elem(0, len, GFP_KERNEL)?;
    let _lock = volume.lock_table(buffer.number())?;
    let end = offset.checked_add(len).ok_or(EIO)?;
    bytes.copy_from_slice(buffer.get(offset..end).ok_or(EIO)?);
    Ok(bytes)
}

/// Hands each place of attributes that an inode has to `look`, until that answers something.
fn find<T>(inode: &Inode<Volume>, mut look: impl FnMut(&Area<'_>) -> Result<Option<T>>) -> Result<Option<T>> {
    let sb = inode.super_block();
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let ino = inode.number();
    let (group, number) = layout.locate_inode(ino).ok_or(EIO)?;
    let (table, offset) = inode::place(volume, sb, group, number)?;
    let bytes = copy(
        volume,
        &Buffer::read(sb, table)?,
        offset,
        usize::from(layout.inode_size),
    )?;
    let area = Area::in_inode(layout, &bytes).map_err(|what| corrupt_inode(sb, ino, Some(table), what))?;
    if let Some(area) = area {
        if let Some(found) = look(&area)? {
            return Ok(Some(found));
        }
    }
    let block = inode.data()?.attributes;
    if block == 0 {
        return Ok(None);
    }
    fixed::check(inode, block, 1)?;
    let buffer = Buffer::read(sb, block)?;
    let verified = buffer.is_verified();
    let bytes = copy(volume, &buffer, 0, buffer.len())?;
    let area = Area::in_block(layout, block, &bytes, !verified)
        .map_err(|what| corrupt_inode(sb, ino, Some(block), what))?;
    buffer.set_verified();
    look(&area)
}

/// The value of an attribute. Fails with `ENODATA` if there is none of this name.
pub(super) fn get(inode: &Inode<Volume>, space: AttributeSpace, name: &[u8]) -> Result<KVec<u8>> {
    let found = find(inode, |area| {
        let Some(found) = area.find(index_of(space), name) else {
            return Ok(None);
        };
        let mut value = KVec::with_capacity(found.len(), GFP_KERNEL)?;
        value.extend_from_slice(found, GFP_KERNEL)?;
        Ok(Some(value))
    })?;
    found.ok_or_else(no_data)
}

/// Hands out the names of all attributes.
pub(super) fn list(inode: &Inode<Volume>, out: &mut dyn FnMut(AttributeSpace, &[u8]) -> Result) -> Result {
    find(inode, |area| {
        for found in area.iter() {
            if let Some(space) = space_of(found.index) {
                out(space, found.name)?;
            }
        }
        Ok(None)
    })
    .map(|_: Option<()>| ())
}
