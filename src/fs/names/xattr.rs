// SPDX-License-Identifier: GPL-2.0

//! Extended attributes: those in an inode, and those in a block that it may share with other
//! inodes.
//!
//! Both are copied under the lock of their block and parsed afterwards, so a reader never sees a
//! partial change. The inode's mapping lock keeps the two places consistent, and keeps the block
//! assigned to the inode: it is held shared to look up an attribute, and exclusively to change one.
//!
//! As in stock ext4, a new value is stored in the inode if there is room, else in the block, and
//! removed from the other place, so that both drivers find room for the same attributes. A block
//! used by other inodes as well is not modified but replaced by a new one. Existing blocks are
//! never shared anew; that would need an index of their contents.

use crate::{
    format::{
        superblock::compat,
        xattr::{self, index, Area, Change, Changed},
        Corrupt,
    },
    fs::{
        alloc::{balloc, space},
        disk::{
            errors::corrupt_inode,
            fixed,
            inode::{self, Part},
        },
        owners::OwnerKind,
        state::Volume,
    },
    kernel_glue::{
        no_data, unsupported, AttributeSpace, Buffer, FreshBuffer, Handle, Inode, NoReclaim, SetMode,
    },
};
use kernel::prelude::*;

/// Number of journal credits for one [`change`]: the old attribute block and a new one, a bitmap
/// and a descriptor for each, and the inode.
pub(in crate::fs) const CREDITS: u32 = 2 * RELEASE_CREDITS + inode::STORE_CREDITS;
/// Maximum number of changes of owners in one [`change`]: of the old attribute block and a new one.
const CHANGES: u32 = 2;
/// Number of journal credits for [`release`]: the attribute block, a bitmap and a descriptor.
pub(in crate::fs) const RELEASE_CREDITS: u32 = 1 + balloc::ALLOCATE_CREDITS;
/// Maximum number of blocks that a change revokes: the old block or the new one.
pub(in crate::fs) const REVOKES: u32 = 2;

/// Returns the number of a namespace on disk.
fn index_of(space: AttributeSpace) -> u8 {
    match space {
        AttributeSpace::User => index::USER,
        AttributeSpace::Trusted => index::TRUSTED,
        AttributeSpace::Security => index::SECURITY,
        AttributeSpace::AclAccess => index::ACL_ACCESS,
        AttributeSpace::AclDefault => index::ACL_DEFAULT,
    }
}

/// Returns the namespace with this number, if it is supported.
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

/// Copies bytes of a block under its lock; the room is got before, since memory may be got by
/// evicting inodes.
fn copy(volume: &Volume, buffer: &Buffer<'_>, offset: usize, len: usize) -> Result<KVec<u8>> {
    let mut bytes = KVec::from_elem(0, len, GFP_KERNEL)?;
    let _lock = volume.lock_table(buffer.number())?;
    buffer.copy(offset, &mut bytes)?;
    Ok(bytes)
}

/// Returns the bytes of an inode, and the number of the block that contains it.
fn read_inode(inode: &Inode<Volume>) -> Result<(u64, KVec<u8>)> {
    let sb = inode.super_block();
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let (group, number) = layout.locate_inode(inode.number()).ok_or(EIO)?;
    let (table, offset) = inode::place(volume, sb, group, number)?;
    let buffer = Buffer::read(sb, table)?;
    let bytes = copy(volume, &buffer, offset, usize::from(layout.inode_size))?;
    Ok((table, bytes))
}

/// Reads an attribute block; verifies its checksum unless that was done before.
fn read_block(inode: &Inode<Volume>, block: u64) -> Result<KVec<u8>> {
    let sb = inode.super_block();
    let volume = sb.volume()?;
    fixed::check(inode, block, 1)?;
    let buffer = Buffer::read(sb, block)?;
    let verified = buffer.is_verified();
    let bytes = copy(volume, &buffer, 0, buffer.len())?;
    Area::in_block(&volume.layout, block, &bytes, !verified)
        .map_err(|what| corrupt_inode(sb, inode.number(), Some(block), what))?;
    buffer.set_verified();
    Ok(bytes)
}

/// Calls `look` for each place where the inode has attributes, until it returns a result.
fn find<T>(inode: &Inode<Volume>, mut look: impl FnMut(&Area<'_>) -> Result<Option<T>>) -> Result<Option<T>> {
    let sb = inode.super_block();
    let layout = &sb.volume()?.layout;
    let data = inode.data()?;
    let bad = |block, what| corrupt_inode(sb, inode.number(), Some(block), what);
    // Reclaim may need the mapping lock of this inode.
    let _no_reclaim = NoReclaim::new();
    let _map = data.root.read();
    let (table, bytes) = read_inode(inode)?;
    if let Some(area) = Area::in_inode(layout, &bytes).map_err(|what| bad(table, what))? {
        if let Some(found) = look(&area)? {
            return Ok(Some(found));
        }
    }
    let block = data.attributes();
    if block == 0 {
        return Ok(None);
    }
    let bytes = read_block(inode, block)?;
    let area = Area::in_block(layout, block, &bytes, false).map_err(|what| bad(block, what))?;
    look(&area)
}

/// Returns the value of an attribute. Fails with `ENODATA` if it does not exist.
pub(in crate::fs) fn get(inode: &Inode<Volume>, space: AttributeSpace, name: &[u8]) -> Result<KVec<u8>> {
    inode.super_block().volume()?.check_alive()?;
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

/// Lists the names of all attributes.
pub(in crate::fs) fn list(
    inode: &Inode<Volume>,
    out: &mut dyn FnMut(AttributeSpace, &[u8]) -> Result,
) -> Result {
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

/// Sets or removes an attribute, in a separate handle.
///
/// # Errors
///
/// `EEXIST` or `ENODATA` when the attribute exists or does not exist, contrary to `mode`; `ENOSPC`
/// when neither the inode nor a block has room for it, or no block is free.
pub(in crate::fs) fn set(
    inode: &Inode<Volume>,
    space: AttributeSpace,
    name: &[u8],
    value: Option<&[u8]>,
    mode: SetMode,
) -> Result {
    let handle = begin(inode)?;
    let done = change(&handle, inode, space, name, value, mode);
    handle.stop()?;
    done
}

/// Starts a handle for one [`change`] of an inode.
pub(in crate::fs) fn begin(inode: &Inode<Volume>) -> Result<Handle> {
    let volume = inode.super_block().volume()?;
    let handle = volume.begin(CREDITS + space::credits(volume, CHANGES), REVOKES)?;
    if inode.is_sync() {
        handle.set_sync();
    }
    Ok(handle)
}

/// The result of a change for one place of attributes.
enum New {
    /// It is unchanged.
    Same,
    /// It becomes empty.
    Nothing,
    /// It gets these contents.
    Bytes(KVec<u8>),
}

/// Like [`set`], within a handle. The inode must be locked, or not yet be known to others. It is
/// stored with a new change time, unless the attribute already has this value. On failure nothing
/// is changed, unless the journal is aborted.
pub(in crate::fs) fn change(
    handle: &Handle,
    inode: &Inode<Volume>,
    space: AttributeSpace,
    name: &[u8],
    value: Option<&[u8]>,
    mode: SetMode,
) -> Result {
    let sb = inode.super_block();
    let layout = &sb.volume()?.layout;
    let data = inode.data()?;
    let bad = |block, what| corrupt_inode(sb, inode.number(), Some(block), what);
    if !layout.features.compat(compat::EXT_ATTR) {
        return Err(unsupported());
    }
    let set = Change {
        index: index_of(space),
        name,
        value,
    };
    let remove = Change { value: None, ..set };
    let map = data.root.write();

    let (table, bytes) = read_inode(inode)?;
    let in_inode = Area::in_inode(layout, &bytes).map_err(|what| bad(table, what))?;
    let of_inode = in_inode.and_then(|area| area.find(set.index, name));
    let place = data.attributes();
    let block = match place {
        0 => KVec::new(),
        _ => read_block(inode, place)?,
    };
    let in_block = match place {
        0 => None,
        _ => Some(Area::in_block(layout, place, &block, false).map_err(|what| bad(place, what))?),
    };
    let of_block = in_block.and_then(|area| area.find(set.index, name));
    let found = of_inode.or(of_block);
    match (found, mode) {
        (Some(_), SetMode::New) => return Err(EEXIST),
        (None, SetMode::Existing) => return Err(no_data()),
        _ if found == value => return Ok(()),
        _ => (),
    }

    let change_inode = |change: &Change<'_>| -> Result<Option<New>> {
        let mut new = KVec::from_elem(0, bytes.len(), GFP_KERNEL)?;
        new.copy_from_slice(&bytes);
        let changed = change.in_inode(layout, &bytes, &mut new);
        Ok(match changed.map_err(|what| bad(table, what))? {
            Changed::NoRoom => None,
            Changed::Empty | Changed::Filled => Some(New::Bytes(new)),
        })
    };
    let change_block = |change: &Change<'_>| -> Result<Option<New>> {
        let mut new = KVec::from_elem(0, layout.block_size as usize, GFP_KERNEL)?;
        let changed = change.in_block(in_block, &mut new);
        Ok(match changed.map_err(|what| bad(place, what))? {
            Changed::NoRoom => None,
            Changed::Empty => Some(New::Nothing),
            Changed::Filled => Some(New::Bytes(new)),
        })
    };
    let (new_inode, new_block) = if value.is_none() {
        match of_inode {
            Some(_) => (change_inode(&remove)?, Some(New::Same)),
            None => (Some(New::Same), change_block(&remove)?),
        }
    } else if let Some(new_inode) = change_inode(&set)? {
        let new_block = match of_block {
            Some(_) => change_block(&remove)?,
            None => Some(New::Same),
        };
        (Some(new_inode), new_block)
    } else {
        let new_inode = match of_inode {
            Some(_) => change_inode(&remove)?,
            None => Some(New::Same),
        };
        (new_inode, change_block(&set)?)
    };
    let (Some(new_inode), Some(new_block)) = (new_inode, new_block) else {
        return Err(ENOSPC);
    };
    // Allocate first, since that may fail. With the inode's block in memory, storing the inode
    // fails only if the journal does.
    let _pin = inode::pin(sb, inode.number())?;
    match new_block {
        New::Same => (),
        New::Nothing => {
            release(handle, inode, place)?;
            data.set_attributes(0);
        }
        New::Bytes(new) => data.set_attributes(write_block(handle, inode, place, new)?),
    }
    inode.touch(false);
    match new_inode {
        New::Bytes(new) => inode::store(handle, inode, Part::Body(&new))?,
        New::Same | New::Nothing => inode::store(handle, inode, Part::Attributes)?,
    }
    drop(map);
    Ok(())
}

/// Writes an attribute block in place of the inode's block `old` (0 for none), or to a new block if
/// other inodes use the old one, too. Returns its location. The inode's mapping is locked
/// exclusively.
fn write_block(handle: &Handle, inode: &Inode<Volume>, old: u64, mut new: KVec<u8>) -> Result<u64> {
    let sb = inode.super_block();
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let bad = |block, what| corrupt_inode(sb, inode.number(), Some(block), what);
    if old != 0 {
        let mut buffer = Buffer::read(sb, old)?;
        let _lock = volume.lock_table(old)?;
        // The only holder stays the only one, since existing blocks are never shared anew.
        if xattr::holders(&buffer.bytes()?).map_err(|what| bad(old, what))? == 1 {
            xattr::seal(layout, old, &mut new).map_err(|what| bad(old, what))?;
            handle.write(&mut buffer)?.copy_from_slice(&new);
            return Ok(old);
        }
    }
    let (group, _) = layout.locate_inode(inode.number()).ok_or(EIO)?;
    let kind = OwnerKind::Attributes;
    let (place, _) = space::take(handle, inode, layout.group_start(group), 1, kind)?;
    if place == old {
        // It must not be zeroed.
        handle.abort(EIO);
        return Err(bad(old, Corrupt("block of attributes is free in the bitmap")));
    }
    xattr::seal(layout, place, &mut new).map_err(|what| bad(place, what))?;
    let fresh = match FreshBuffer::new(sb, place) {
        Ok(fresh) => fresh,
        Err(error) => {
            space::give(handle, inode, place, 1, kind, false)?;
            inode::store(handle, inode, Part::Attributes)?;
            return Err(error);
        }
    };
    {
        let _lock = volume.lock_table(place)?;
        handle.create(fresh)?.copy_from_slice(&new);
    }
    if old != 0 {
        if let Err(error) = release(handle, inode, old) {
            space::give(handle, inode, place, 1, kind, true)?;
            inode::store(handle, inode, Part::Attributes)?;
            return Err(error);
        }
    }
    Ok(place)
}

/// Drops an inode's reference to an attribute block, which others may use as well. The inode's
/// mapping is locked exclusively; the caller stores the inode with another block, or none.
pub(in crate::fs) fn release(handle: &Handle, inode: &Inode<Volume>, place: u64) -> Result {
    let sb = inode.super_block();
    let volume = sb.volume()?;
    let bad = |what| corrupt_inode(sb, inode.number(), Some(place), what);
    fixed::check(inode, place, 1)?;
    let mut buffer = Buffer::read(sb, place)?;
    {
        let _lock = volume.lock_table(place)?;
        let holders = xattr::holders(&buffer.bytes()?).map_err(bad)?;
        if holders > 1 {
            let mut bytes = handle.write(&mut buffer)?;
            xattr::set_holders(&mut bytes, holders - 1).map_err(bad)?;
            xattr::seal(&volume.layout, place, &mut bytes).map_err(bad)?;
            drop(bytes);
            return space::leave(handle, inode, place, 1, OwnerKind::Attributes);
        }
    }
    // A sole user stays the only one, since existing blocks are never shared anew.
    drop(buffer);
    space::give(handle, inode, place, 1, OwnerKind::Attributes, true)
}
