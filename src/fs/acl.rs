// SPDX-License-Identifier: GPL-2.0

//! Access lists, which are attributes without a name in namespaces of their own.

use super::{inode, xattr, Volume};
use crate::{
    format::acl,
    kernel_glue::{corrupted, no_data, unsupported, AccessList, AclEntry, AttributeSpace, Inherited, Inode},
};
use kernel::prelude::*;

/// The access list of an inode, or the one that a directory has for what is made in it.
pub(super) fn get(inode: &Inode<Volume>, default: bool) -> Result<Option<AccessList>> {
    let space = match default {
        true => AttributeSpace::AclDefault,
        false => AttributeSpace::AclAccess,
    };
    let value = match xattr::get(inode, space, b"") {
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

/// Fails with `EOPNOTSUPP` if something new in `dir` has to get access lists, which cannot be written.
pub(super) fn check_inherited(dir: &Inode<Volume>, lists: &Inherited) -> Result {
    if lists.access.is_none() && lists.default.is_none() {
        return Ok(());
    }
    pr_err!(
        "{}: inode {}: writing access lists is not supported, and what is made in this directory gets one\n",
        dir.super_block().name(),
        dir.number()
    );
    Err(unsupported())
}
