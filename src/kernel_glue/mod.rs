// SPDX-License-Identifier: GPL-2.0

//! The one layer that talks to C.
//!
//! Every `unsafe` of the module is here, behind types that cannot be misused from outside: references are guards that
//! give back what they took, and the tables of function pointers that the VFS calls are made from one trait for each kind
//! of object, whose methods are safe.
//!
//! - [`bindings`] — bindings that bindgen generates, on top of the kernel crate's own
//! - [`super_block`] — registration, mounting, the superblock
//! - [`inode`] — inodes, and the file system's own data beside them
//! - [`operations`] — the operations of a file system, a trait for each kind of object
//! - [`vfs`] — the operation tables made from that
//! - [`file`], [`direct`], [`reserve`] — writing files, past the page cache too, and allocating in advance
//! - [`export`] — file handles
//! - [`remap`] — files that share blocks
//! - [`calls`] — calls of programs that are not plain reading and writing
//! - [`buffer`] — metadata blocks in the block device's cache
//! - [`journal`] — jbd2
//! - [`locks`] — the kernel's read-write semaphore
//! - [`pinned`] — many locks in one allocation
//! - [`acl`] — access lists
//! - [`abi`] — the structures that programs pass through ioctls
//! - [`hooks`] — the static key of the watchers of owner changes
//! - [`tasks`] — threads, background work, and allocating without file system reclaim
//! - [`namespace`] — the operations that change directories
//! - [`xattr`] — extended attributes
//! - [`status`] — what programs are told of inodes, and the flags that they set
//! - [`scratch`] — files that memory is spilled to
//! - `kunit` — tests of this layer

#![allow(unsafe_code)]

pub(crate) mod abi;
mod acl;
mod bindings;
pub(crate) mod buffer;
mod calls;
mod direct;
mod export;
mod file;
mod hooks;
pub(crate) mod inode;
pub(crate) mod journal;
#[cfg(CONFIG_KUNIT = "y")]
pub(crate) mod kunit;
mod locks;
mod namespace;
mod operations;
mod pinned;
mod remap;
mod reserve;
mod scratch;
mod status;
pub(crate) mod super_block;
mod tasks;
mod vfs;
mod xattr;

use kernel::prelude::*;

pub(crate) use acl::{AccessList, AclEntry, Inherited};
pub(crate) use buffer::{Buffer, Bytes, FreshBuffer, KeptBuffer};
pub(crate) use hooks::Hooks;
pub(crate) use inode::{Blank, Inode, InodeFields, InodeRef, Locked, NewInode, Timestamp};
pub(crate) use journal::{Credits, Handle, Journal, JournalTuning, UnloadedJournal};
pub(crate) use locks::{ReadGuard, RwLock, WriteGuard};
pub(crate) use namespace::{Make, Rename};
pub(crate) use operations::{
    AddressSpaceOperations, ExportOperations, FileOperations, FileSystem, InodeOperations, IomapOperations,
    SuperOperations, XattrOperations,
};
pub(crate) use pinned::Pinned;
pub(crate) use remap::{Remap, Remapping};
pub(crate) use reserve::{Reserve, Shift};
pub(crate) use scratch::Scratch;
pub(crate) use status::{Status, VfsFlags};
pub(crate) use super_block::{HeldWriters, NewSuperBlock, Registration, Statistics, SuperBlock};
pub(crate) use tasks::{
    insist, is_admin, is_dying, is_interrupted, is_reclaiming, pause, pause_briefly, processors,
    run_parallel, Background, NoReclaim, Task,
};
pub(crate) use vfs::{Change, DirEmitter, Ioctl, Mapping, OpenFile, Place, Target, Written};
pub(crate) use xattr::{AttributeSpace, SetMode};

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $code:ident;)*) => {
        $($(#[$doc])* pub(crate) fn $name() -> Error {
            Error::from_errno(-(bindings::$code as c_int))
        })*
    };
}

errnos! {
    /// Something on disk is damaged (`EFSCORRUPTED`).
    corrupted = EUCLEAN;
    /// A checksum of the superblock does not hold (`EFSBADCRC`).
    bad_checksum = EBADMSG;
    /// Something that is not handled.
    unsupported = EOPNOTSUPP;
    /// A name longer than a directory can hold.
    name_too_long = ENAMETOOLONG;
    /// A directory that is not empty.
    not_empty = ENOTEMPTY;
    /// More names than an inode can have.
    too_many_links = EMLINK;
    /// Something that must be a directory and is not.
    not_a_directory = ENOTDIR;
    /// A call that is not known.
    no_such_ioctl = ENOTTY;
    /// Cancelled.
    canceled = ECANCELED;
    /// An inode that is not in use.
    stale = ESTALE;
    /// A volume was shut down.
    shut_down = ESHUTDOWN;
    /// No attribute of this name.
    no_data = ENODATA;
}

/// Continues the bare crc32c register `seed` over `data`, with the processor's instructions where it has them.
pub(crate) fn crc32c(seed: u32, data: &[u8]) -> u32 {
    // SAFETY: The pointer and length are those of a live slice.
    unsafe { bindings::crc32c(seed, data.as_ptr().cast(), data.len()) }
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    // SAFETY: It may be called anywhere.
    unsafe { bindings::rext4_now() }
}

/// A random number.
pub(crate) fn random() -> u32 {
    // SAFETY: It may be called anywhere.
    unsafe { bindings::get_random_u32() }
}

/// Whether the current task may have the blocks that are kept for root, for this user and, unless it is root's, for this
/// group.
pub(crate) fn may_use_reserve(uid: u32, gid: u32) -> bool {
    // SAFETY: It may be called by any task.
    unsafe { bindings::rext4_may_use_reserve(uid, gid) }
}
