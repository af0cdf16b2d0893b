// SPDX-License-Identifier: GPL-2.0

//! Adding a name to a directory.
//!
//! [`plan`] looks for the place of the name before a handle is started. It finds damage, and tells
//! how many blocks the directory will grow by, so that the handle can reserve for them. [`add`]
//! then adds the name. The directory stays locked in between, so that the plan holds.
//!
//! In a directory with an index the name goes into the leaf for its hash ([`htree`]). Else it goes
//! into the first block with room behind the last one that had some. A directory that outgrows its
//! first block gets an index, if the volume has the feature; one that has outgrown it gets a block
//! more at the end.

use crate::{
    format::{
        dir::NAME_LEN,
        dir_edit::{self, Room},
        inode::flags,
        Corrupt,
    },
    fs::{
        disk::inode::{self, Part},
        names::{
            dir_block::{self, bad, APPEND_CREDITS},
            htree::{self, Leaf},
        },
        state::Volume,
    },
    kernel_glue::{name_too_long, Buffer, Handle, Inode, Locked},
};
use kernel::prelude::*;

/// Steps that making room for a name may take: a level more, each node and the leaf split, and some
/// to spare.
const MAX_STEPS: usize = 8;

/// The place of a new name.
enum Place<'a> {
    /// In a leaf of the index.
    Leaf { block: Buffer<'a>, room: Room },
    /// In a block of a directory that is not indexed.
    Block {
        number: u32,
        block: Buffer<'a>,
        room: Room,
    },
    /// In a new block at the end.
    End,
    /// In a leaf that is full.
    Full(htree::Full<'a>),
    /// In a leaf of the index that the directory gets.
    Index,
}

/// The place where a name will be added; valid as long as the directory does not change.
pub(in crate::fs) struct Plan<'a>(Place<'a>);

impl Plan<'_> {
    /// Returns the maximum number of blocks by which the directory grows.
    pub(in crate::fs) fn appends(&self) -> u32 {
        match &self.0 {
            Place::Leaf { .. } | Place::Block { .. } => 0,
            Place::End => 1,
            Place::Full(full) => full.steps(),
            // The names move to a leaf, which is full and split.
            Place::Index => 2,
        }
    }

    /// Blocks of the journal that [`add`] may write, besides those of the owners of new blocks.
    pub(in crate::fs) fn credits(&self) -> u32 {
        // The block of the name and the inode, and all blocks of each step.
        2 + self.appends() * (APPEND_CREDITS + htree::STEP_CREDITS)
    }
}

/// Finds the place of a new name. The directory must stay locked until the name is added.
///
/// # Errors
///
/// `ENAMETOOLONG`; `ENOSPC` if the index is full and may have no more levels; `EFSCORRUPTED`,
/// `EFSBADCRC` or `EIO` if a block that must be read for it cannot be used; `EINTR`.
pub(in crate::fs) fn plan<'a>(dir: &'a Inode<Volume>, name: &[u8]) -> Result<Plan<'a>> {
    if name.len() > NAME_LEN {
        return Err(name_too_long());
    }
    let layout = &dir.super_block().volume()?.layout;
    let indexed = dir_block::is_indexed(dir)?;
    if indexed {
        if htree::is_usable(dir)? {
            match htree::leaf(dir, name)? {
                Some(Leaf::Roomy { block, room }) => return Ok(Plan(Place::Leaf { block, room })),
                Some(Leaf::Full(full)) => return Ok(Plan(Place::Full(full))),
                None => (),
            }
        }
        // Index blocks would become blocks of names, whose checksum is elsewhere.
        if layout.has_metadata_csum() {
            return Err(bad(dir, Corrupt("directory index cannot be used")));
        }
    }
    let first = if indexed { 0 } else { dir.data()?.hint() };
    for number in first..dir_block::blocks(dir)? {
        let (_, block) = dir_block::walk_block(dir, number)?;
        let room = dir_edit::find_room(layout, &block.bytes()?, name).map_err(|what| bad(dir, what))?;
        if let Some(room) = room {
            return Ok(Plan(Place::Block { number, block, room }));
        }
    }
    match !indexed && htree::is_wanted(dir)? {
        true => Ok(Plan(Place::Index)),
        false => Ok(Plan(Place::End)),
    }
}

/// Adds a name where [`plan`] has found the place. The directory is stored with its new times.
///
/// Returns true if other names may have moved to other blocks.
///
/// # Errors
///
/// `ENOSPC`, `ENOMEM` and the errors of [`plan`]: the name was not added, and the directory is
/// whole, but it may have more blocks and another index. Other errors abort the journal.
pub(in crate::fs) fn add<'a>(
    handle: &Handle,
    dir: &'a Locked<Volume>,
    name: &[u8],
    plan: Plan<'a>,
    ino: u32,
    kind: u8,
) -> Result<bool> {
    let mut place = plan.0;
    for step in 0..MAX_STEPS {
        match place {
            Place::Full(full) => full.make_room(handle, dir)?,
            Place::Index => htree::convert(handle, dir)?,
            place => {
                put(handle, dir, name, place, ino, kind)?;
                dir.super_block()
                    .volume()?
                    .name_changed(dir.number(), ino, false, true);
                return Ok(step > 0);
            }
        }
        place = self::plan(dir, name)?.0;
    }
    Err(bad(dir, Corrupt("no room in a hashed directory after splitting")))
}

/// Adds a name for which there is room, or a block at the end with it.
fn put(handle: &Handle, dir: &Locked<Volume>, name: &[u8], place: Place<'_>, ino: u32, kind: u8) -> Result {
    let layout = &dir.super_block().volume()?.layout;
    let data = dir.data()?;
    let insert = |block: &mut Buffer<'_>, room| {
        dir_block::change(handle, dir, block, |bytes| {
            dir_edit::add_at(layout, bytes, room, name, ino, kind)
        })
        .inspect_err(|&error| handle.abort(error))
    };
    let hint = match place {
        Place::Leaf { mut block, room } => {
            insert(&mut block, room)?;
            None
        }
        Place::Block {
            number,
            mut block,
            room,
        } => {
            insert(&mut block, room)?;
            Some(number)
        }
        _ => {
            let mut bytes = dir_block::blank(dir)?;
            dir_edit::clear(layout, &mut bytes)
                .and_then(|()| dir_edit::add(layout, &mut bytes, name, ino, kind))
                .and_then(|_| dir_edit::seal(layout, &mut bytes, data.seed))
                .map_err(|what| bad(dir, what))?;
            dir_block::grow(handle, dir, &bytes, &mut [])?;
            Some(dir_block::blocks(dir)?.saturating_sub(1))
        }
    };
    if let Some(number) = hint {
        // An index that could not be used is no index any more.
        data.set_flags(data.flags() & !flags::INDEX);
        data.set_hint(number);
    }
    dir.touch(true);
    inode::store(handle, dir, Part::Attributes).inspect_err(|&error| handle.abort(error))
}
