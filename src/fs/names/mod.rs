// SPDX-License-Identifier: GPL-2.0

//! Directories, links, extended attributes, and orphans.

pub(in crate::fs) mod acl;
pub(in crate::fs) mod dir;
pub(in crate::fs) mod dir_block;
pub(in crate::fs) mod handles;
pub(in crate::fs) mod htree;
pub(in crate::fs) mod insert;
pub(in crate::fs) mod namei;
pub(in crate::fs) mod orphan;
pub(in crate::fs) mod readdir;
pub(in crate::fs) mod symlink;
pub(in crate::fs) mod xattr;
