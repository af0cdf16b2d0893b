// SPDX-License-Identifier: GPL-2.0

//! The names of all directories, and the link counts of inodes, under check and repair.

pub(crate) use crate::fs::watch::NameWatcher;

use crate::{
    format::{
        dir::Entries,
        inode::{is_free, RawInode},
        superblock::ro_compat,
        Corrupt,
    },
    fs::{
        disk::{
            errors::corrupt_inode,
            inode::{self, Part},
        },
        names::{
            dir_block::{blocks, walk_block},
            namei::MAX_LINKS,
        },
        state::Volume,
    },
    kernel_glue::{Inode, Locked, SuperBlock},
};
use kernel::prelude::*;
use zerocopy::FromBytes;

/// Returns whether the slot of an inode is that of a directory. The answer may be outdated at once.
///
/// # Errors
///
/// `EINVAL` for an invalid number, `EIO` when the slot cannot be read.
pub(crate) fn is_directory(sb: &SuperBlock<Volume>, ino: u32) -> Result<bool> {
    Ok(stored_links(sb, ino)?.is_directory)
}

/// Calls `pass` if the slot of an inode is not that of a directory, before anyone can make one of
/// it.
///
/// # Errors
///
/// As [`is_directory`].
pub(crate) fn pass_other(sb: &SuperBlock<Volume>, ino: u32, pass: impl FnOnce()) -> Result {
    with_slot(sb, ino, |links| {
        if !links.is_directory {
            pass();
        }
    })
}

/// The links of an inode.
#[derive(Clone, Copy)]
pub(crate) struct Links {
    pub(crate) count: u32,
    pub(crate) is_directory: bool,
    /// The count of a directory is 1 if it has too many subdirectories (`dir_nlink`).
    is_capped: bool,
}

/// Returns the link count for `links` entries that lead to the inode; 0 if they cannot be counted.
pub(crate) fn limit_links(links: u32, of: Links) -> u32 {
    match links {
        ..=MAX_LINKS => links,
        _ if of.is_directory && of.is_capped => 1,
        _ => 0,
    }
}

/// Returns the links of an inode in memory.
pub(crate) fn links(inode: &Inode<Volume>) -> Result<Links> {
    Ok(Links {
        count: inode.links(),
        is_directory: inode.is_directory(),
        is_capped: is_capped(inode.super_block())?,
    })
}

/// Returns the links of an inode according to its slot. A free inode has none and is no directory.
///
/// # Errors
///
/// `EINVAL` for an invalid number, `EIO` when the slot cannot be read.
pub(crate) fn stored_links(sb: &SuperBlock<Volume>, ino: u32) -> Result<Links> {
    with_slot(sb, ino, |links| links)
}

fn is_capped(sb: &SuperBlock<Volume>) -> Result<bool> {
    Ok(sb.volume()?.layout.features.ro_compat(ro_compat::DIR_NLINK))
}

/// Calls `then` with the links in a slot, whose block of the table is locked.
fn with_slot<T>(sb: &SuperBlock<Volume>, ino: u32, then: impl FnOnce(Links) -> T) -> Result<T> {
    inode::with_slot(sb, ino, |_, slot| {
        let (raw, _) = RawInode::ref_from_prefix(slot).map_err(|_| EIO)?;
        Ok(then(Links {
            count: raw.links.get().into(),
            is_directory: !is_free(slot) && raw.mode.get() >> 12 == 4,
            is_capped: is_capped(sb)?,
        }))
    })
}

/// Sets the link count of an inode in use, and stores it.
///
/// # Errors
///
/// `EINVAL` for 0, `EIO`, `EROFS`; nothing was changed then.
pub(crate) fn set_links(inode: &Locked<Volume>, links: u32) -> Result {
    let sb = inode.super_block();
    if links == 0 || inode.links() == 0 {
        return Err(EINVAL);
    }
    let _pin = inode::pin(sb, inode.number())?;
    let handle = sb.volume()?.begin_internal(inode::STORE_CREDITS, 0)?;
    let before = inode.links();
    inode.set_links(links);
    inode::store(&handle, inode, Part::Attributes).inspect_err(|_| inode.set_links(before))?;
    handle.stop()
}

/// Calls `out` with the inode of each entry of a directory, and the name.
///
/// # Errors
///
/// `EFSCORRUPTED` when a block of the directory is damaged, `EIO`, `EINTR`, and errors of `out`.
pub(crate) fn for_each_name(dir: &Locked<Volume>, out: &mut dyn FnMut(u32, &[u8]) -> Result) -> Result {
    let sb = dir.super_block();
    let layout = &sb.volume()?.layout;
    for number in 0..blocks(dir)? {
        let (place, block) = walk_block(dir, number)?;
        let bad = |what| corrupt_inode(sb, dir.number(), Some(place), what);
        for entry in Entries::new(layout, &block.bytes()?) {
            let entry = entry.map_err(bad)?;
            if entry.inode == 0 {
                continue;
            }
            if !entry.has_valid_name() {
                return Err(bad(Corrupt("bad directory name")));
            }
            out(entry.inode, entry.name)?;
        }
    }
    Ok(())
}
