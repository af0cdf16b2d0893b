// SPDX-License-Identifier: GPL-2.0

//! Access control lists, which are attributes in namespaces of their own, with empty names.

use crate::{
    format::acl,
    fs::{
        disk::inode::{self, Part},
        names::xattr,
        state::Volume,
    },
    kernel_glue::{
        corrupted, no_data, AccessList, AclEntry, AttributeSpace, Handle, Inherited, Inode, Locked, SetMode,
    },
};
use kernel::{prelude::*, sync::aref::ARef};

/// Returns an inode's access control list, or a directory's default list for new entries.
pub(in crate::fs) fn get(inode: &Inode<Volume>, default: bool) -> Result<Option<ARef<AccessList>>> {
    let value = match xattr::get(inode, space_of(default), b"") {
        Err(error) if error == no_data() => return Ok(None),
        found => found?,
    };
    let bad = |what| inode::bad(inode.super_block(), inode.number(), what);
    let mut entries = KVec::new();
    for entry in acl::entries(&value).map_err(bad)? {
        let entry = entry.map_err(bad)?;
        let entry = AclEntry {
            tag: entry.tag,
            permissions: entry.permissions,
            id: entry.id.unwrap_or(0),
        };
        entries.push(entry, GFP_KERNEL)?;
    }
    if entries.is_empty() {
        return Ok(None);
    }
    let list = AccessList::new(&entries);
    if list.as_ref().err() == Some(&corrupted()) {
        return Err(bad(crate::format::Corrupt("bad access list")));
    }
    list.map(Some)
}

/// Sets or removes an access control list, and the mode that corresponds to it, in one handle. The
/// inode is locked.
///
/// Fails as [`xattr::set`] does.
pub(in crate::fs) fn set(
    inode: &Locked<Volume>,
    default: bool,
    list: Option<&AccessList>,
    mode: Option<u16>,
) -> Result {
    let value = list.map(encode).transpose()?;
    let handle = xattr::begin(inode)?;
    let space = space_of(default);
    let mut done = xattr::change(&handle, inode, space, b"", value.as_deref(), SetMode::Any);
    if let (Ok(()), Some(mode)) = (done, mode) {
        inode.set_mode(mode);
        inode.touch(false);
        done = inode::store(&handle, inode, Part::Attributes);
    }
    handle.stop()?;
    done
}

/// Sets the access control lists that a new inode inherits, in the handle that creates it.
pub(in crate::fs) fn inherit(handle: &Handle, new: &Inode<Volume>, lists: &Inherited) -> Result {
    for (default, list) in [(true, &lists.default), (false, &lists.access)] {
        if let Some(list) = list {
            let value = encode(list)?;
            xattr::change(handle, new, space_of(default), b"", Some(&value), SetMode::New)?;
        }
    }
    Ok(())
}

fn space_of(default: bool) -> AttributeSpace {
    match default {
        true => AttributeSpace::AclDefault,
        false => AttributeSpace::AclAccess,
    }
}

/// Encodes a list as the value of its attribute.
fn encode(list: &AccessList) -> Result<KVec<u8>> {
    let mut value = KVec::new();
    value.extend_from_slice(&acl::HEADER, GFP_KERNEL)?;
    for entry in list.entries()? {
        let entry = acl::Entry {
            tag: entry.tag,
            permissions: entry.permissions,
            id: Some(entry.id),
        };
        let (bytes, len) = entry.encode();
        value.extend_from_slice(bytes.get(..len).ok_or(EINVAL)?, GFP_KERNEL)?;
    }
    Ok(value)
}
