// SPDX-License-Identifier: GPL-2.0

//! Finding names in a directory.
//!
//! A name is found by the index of a hashed directory. A directory without an index, or with a
//! damaged one, is searched block by block, each of them a chain of entries; index blocks look like
//! blocks without names.

use crate::{
    format::{self, dir::NAME_LEN, Corrupt},
    fs::{
        disk::{errors::corrupt_inode, inode},
        names::{
            dir_block::{blocks, read_block, read_leaf, walk_block},
            htree::{self, Next},
        },
        state::Volume,
    },
    kernel_glue::{name_too_long, stale, Buffer, Inode, InodeRef},
};
use kernel::{prelude::*, sync::atomic::Relaxed};

/// The system directory, in the root directory; hidden while rext4 mounts the volume, unless a user
/// created it.
pub(in crate::fs) const SYSTEM_DIR: &[u8] = b".rext4";

pub(in crate::fs) fn is_hidden(dir: &Inode<Volume>, name: &[u8]) -> bool {
    let is_name = dir.number() == format::inode::ROOT && name == SYSTEM_DIR;
    let volume = dir.super_block().volume();
    is_name && volume.is_ok_and(|volume| !volume.foreign_system_dir.load(Relaxed))
}

/// Finds a name.
pub(in crate::fs) fn lookup(dir: &Inode<Volume>, name: &[u8]) -> Result<Option<InodeRef<Volume>>> {
    if name.len() > NAME_LEN {
        return Err(name_too_long());
    }
    if is_hidden(dir, name) {
        return Ok(None);
    }
    find(dir, name)
}

/// Looks up a name, including hidden ones.
pub(in crate::fs) fn find(dir: &Inode<Volume>, name: &[u8]) -> Result<Option<InodeRef<Volume>>> {
    let sb = dir.super_block();
    let Some(found) = locate(dir, name)? else {
        return Ok(None);
    };
    match inode::get_named(sb, found.inode) {
        // A name whose inode is not in use.
        Err(error) if error == stale() => {
            let what = Corrupt("a name for an inode that is free");
            Err(corrupt_inode(sb, dir.number(), Some(found.place), what))
        }
        got => got.map(Some),
    }
}

/// A name of a directory.
pub(in crate::fs) struct Found<'a> {
    /// Number in the directory of the block that holds it.
    pub(in crate::fs) number: u32,
    /// Number of this block on the volume.
    place: u64,
    /// The block.
    pub(in crate::fs) block: Buffer<'a>,
    /// The inode that it names.
    pub(in crate::fs) inode: u32,
}

/// Finds the block of a name: by the index, if there is one, else in all blocks.
pub(in crate::fs) fn locate<'a>(dir: &'a Inode<Volume>, name: &[u8]) -> Result<Option<Found<'a>>> {
    if matches!(name, b"." | b"..") {
        // They are in the first block only, which is no leaf of an index.
        return search(dir, 0, read_block(dir, 0)?, name);
    }
    if htree::is_usable(dir)? {
        if let Some(found) = locate_by_index(dir, name)? {
            return Ok(found);
        }
    }
    for number in 0..blocks(dir)? {
        if let Some(found) = search(dir, number, walk_block(dir, number)?, name)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Finds the block of a name by the index. Returns `None` if the index is damaged.
fn locate_by_index<'a>(dir: &'a Inode<Volume>, name: &[u8]) -> Result<Option<Option<Found<'a>>>> {
    let mut hash = 0;
    let probed = htree::probe(dir, |hasher| {
        hash = hasher.hash(name).major;
        hash
    })?;
    let Some(mut path) = probed else {
        return Ok(None);
    };
    loop {
        let leaf = read_leaf(dir, path.leaf)?;
        if let Some(found) = search(dir, path.leaf, leaf, name)? {
            return Ok(Some(Some(found)));
        }
        match htree::advance(dir, &mut path, Some(hash))? {
            Next::Leaf(_) => (),
            Next::End => return Ok(Some(None)),
            Next::Damaged => return Ok(None),
        }
    }
}

/// Looks for a name in a block.
fn search<'a>(
    dir: &'a Inode<Volume>,
    number: u32,
    (place, block): (u64, Buffer<'a>),
    name: &[u8],
) -> Result<Option<Found<'a>>> {
    let sb = dir.super_block();
    let inode = format::dir::find(&sb.volume()?.layout, &block.bytes()?, name)
        .map_err(|what| corrupt_inode(sb, dir.number(), Some(place), what))?
        .map(|entry| entry.inode);
    Ok(inode.map(|inode| Found {
        number,
        place,
        block,
        inode,
    }))
}
