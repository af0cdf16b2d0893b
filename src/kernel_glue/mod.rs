// SPDX-License-Identifier: GPL-2.0

//! The one layer that talks to C.
//!
//! Every `unsafe` of the module is here, behind types that cannot be misused from outside: references are guards that
//! give back what they took, and the tables of function pointers that the VFS calls are made from one trait,
//! [`FileSystem`], whose methods are safe.
//!
//! - [`bindings`] — what bindgen made of the headers, on top of the kernel crate's own
//! - [`super_block`] — registration, mounting, the superblock
//! - [`inode`] — inodes and what the file system keeps beside them
//! - [`vfs`] — the operation tables
//! - [`buffer`] — metadata blocks in the block device's cache
//! - [`journal`] — jbd2

#![allow(unsafe_code)]

mod bindings;
pub(crate) mod buffer;
pub(crate) mod inode;
pub(crate) mod journal;
pub(crate) mod super_block;
mod vfs;

use kernel::prelude::*;

pub(crate) use buffer::Buffer;
pub(crate) use inode::{Inode, InodeFields, InodeRef, Timestamp};
pub(crate) use journal::Journal;
pub(crate) use super_block::{FileSystem, Registration, Statistics, SuperBlock};
pub(crate) use vfs::{DirEmitter, Mapping, Place};

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $code:ident;)*) => {
        $($(#[$doc])* pub(crate) fn $name() -> Error {
            Error::from_errno(-(bindings::$code as c_int))
        })*
    };
}

errnos! {
    /// Something on disk is not what it must be (`EFSCORRUPTED`).
    corrupted = EUCLEAN;
    /// A checksum of the superblock does not hold (`EFSBADCRC`).
    bad_checksum = EBADMSG;
    /// Something that is not handled.
    unsupported = EOPNOTSUPP;
    /// A name longer than a directory can hold.
    name_too_long = ENAMETOOLONG;
    /// An inode that is not in use.
    stale = ESTALE;
}

/// Continues the bare crc32c register `seed` over `data`, with the processor's instructions where it has them.
pub(crate) fn crc32c(seed: u32, data: &[u8]) -> u32 {
    // SAFETY: The pointer and length are those of a live slice.
    unsafe { bindings::crc32c(seed, data.as_ptr().cast(), data.len()) }
}
