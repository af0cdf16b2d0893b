// SPDX-License-Identifier: GPL-2.0

//! The index of a hashed directory: walking it to the leaf for a hash, and making room in it.
//!
//! Room for a name is made in steps. Each step appends one block and leaves an index that is
//! complete: it splits the leaf, or a full node above it, or moves the entries of a full root into
//! a new node. After each step the index is walked again. The new contents are prepared before the
//! block is allocated.
//!
//! A damaged index is logged, and its directory is searched without it.

use crate::{
    format::{
        dir_edit::{self, Room},
        htree::{self, Hasher, Index},
        inode::flags,
        superblock::compat,
        Corrupt,
    },
    fs::{
        disk::inode::{self, Part},
        names::dir_block::{self, bad, blank, copy, grow, read_index, read_leaf},
        state::Volume,
    },
    kernel_glue::{Buffer, Handle, Inode, Locked, SuperBlock},
};
use kernel::prelude::*;

/// Blocks of the journal that a step may write besides those of [`dir_block::append`].
pub(in crate::fs) const STEP_CREDITS: u32 = 3;

/// Levels of index blocks at most, with the root.
const LEVELS: usize = 3;

/// Why an index could not be walked.
enum Failure {
    /// This block of it is damaged.
    Damaged(u32, Corrupt),
    Other(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Other(error)
    }
}

type Walked<T> = core::result::Result<T, Failure>;

/// An index block on the way to a leaf.
struct Frame<'a> {
    /// Number of the block in the directory.
    number: u32,
    block: Buffer<'a>,
    /// The entry that leads down.
    step: usize,
}

/// The way to a leaf.
pub(in crate::fs) struct Path<'a> {
    /// From the root down; the first `levels` are set.
    frames: [Option<Frame<'a>>; LEVELS],
    /// Levels of index blocks, with the root.
    levels: usize,
    /// The hash function of the index.
    pub(in crate::fs) hasher: Hasher,
    /// Number of the leaf in the directory.
    pub(in crate::fs) leaf: u32,
    /// Leaves passed by [`advance`].
    passed: u32,
}

impl<'a> Path<'a> {
    fn frame(&self, level: usize) -> Result<&Frame<'a>> {
        self.frames.get(level).and_then(Option::as_ref).ok_or(EIO)
    }

    fn frame_mut(&mut self, level: usize) -> Result<&mut Frame<'a>> {
        self.frames.get_mut(level).and_then(Option::as_mut).ok_or(EIO)
    }

    fn set(&mut self, level: usize, frame: Frame<'a>) -> Result {
        *self.frames.get_mut(level).ok_or(EIO)? = Some(frame);
        Ok(())
    }

    /// Checks that block `child`, to which block `number` leads, is none of the first `levels` of
    /// the way.
    fn check(&self, levels: usize, number: u32, child: u32) -> Walked<u32> {
        let mut above = self.frames.iter().flatten().take(levels);
        match child == 0 || above.any(|frame| frame.number == child) {
            true => Err(Failure::Damaged(number, Corrupt("directory index has a cycle"))),
            false => Ok(child),
        }
    }
}

/// Returns true if a directory has an index that may be used.
pub(in crate::fs) fn is_usable(dir: &Inode<Volume>) -> Result<bool> {
    let layout = &dir.super_block().volume()?.layout;
    Ok(dir_block::is_indexed(dir)? && layout.features.compat(compat::DIR_INDEX))
}

/// Returns `None` if the index is damaged, after logging that.
fn logged<T>(dir: &Inode<Volume>, walked: Walked<T>) -> Result<Option<T>> {
    match walked {
        Ok(found) => Ok(Some(found)),
        Err(Failure::Other(error)) => Err(error),
        Err(Failure::Damaged(block, Corrupt(what))) => {
            if dir.data()?.is_first_index_damage() {
                pr_warn!(
                    "{}: inode {}: {what} (block {block} of the directory); searching without the index, run e2fsck\n",
                    dir.super_block().name(),
                    dir.number()
                );
            }
            Ok(None)
        }
    }
}

/// Walks to the leaf for a hash, which `hash` computes with the hash function of the index. If
/// several leaves have names of this hash, it is the first one. Returns `None` if the index is
/// damaged.
pub(in crate::fs) fn probe(
    dir: &Inode<Volume>,
    hash: impl FnOnce(&Hasher) -> u32,
) -> Result<Option<Path<'_>>> {
    logged(dir, walk(dir, hash))
}

fn walk(dir: &Inode<Volume>, hash: impl FnOnce(&Hasher) -> u32) -> Walked<Path<'_>> {
    let layout = &dir.super_block().volume()?.layout;
    let mut block = read_index(dir, 0)?;
    let damaged = |number| move |what| Failure::Damaged(number, what);
    let root = htree::read_root(layout, &block.bytes()?).map_err(damaged(0))?;
    let hasher = Hasher::new(layout, root.version).ok_or(EIO)?;
    let hash = hash(&hasher);
    let mut path = Path {
        frames: [const { None }; LEVELS],
        levels: usize::from(root.levels) + 1,
        hasher,
        leaf: 0,
        passed: 0,
    };
    let mut number = 0;
    for level in 0..path.levels {
        let (step, child) = {
            let bytes = block.bytes()?;
            let index = Index::read(layout, &bytes, level == 0).map_err(damaged(number))?;
            let step = index.find(hash);
            (step, index.child(step))
        };
        path.set(level, Frame { number, block, step })?;
        let child = path.check(level + 1, number, child)?;
        if level + 1 == path.levels {
            path.leaf = child;
            break;
        }
        block = read_index(dir, child)?;
        number = child;
    }
    Ok(path)
}

/// The result of [`advance`].
pub(in crate::fs) enum Next {
    /// A leaf, whose entry has this hash, with the bit of a continuation.
    Leaf(u32),
    /// There is no further leaf, or none of the hash.
    End,
    /// The index is damaged; that was logged.
    Damaged,
}

/// Moves on to the next leaf; with `only`, if that one has names of this hash as well.
pub(in crate::fs) fn advance<'a>(
    dir: &'a Inode<Volume>,
    path: &mut Path<'a>,
    only: Option<u32>,
) -> Result<Next> {
    let walked = step(dir, path, only);
    Ok(match logged(dir, walked)? {
        Some(Some(hash)) => Next::Leaf(hash),
        Some(None) => Next::End,
        None => Next::Damaged,
    })
}

fn step<'a>(dir: &'a Inode<Volume>, path: &mut Path<'a>, only: Option<u32>) -> Walked<Option<u32>> {
    let layout = &dir.super_block().volume()?.layout;
    let read = |frame: &Frame<'_>, level| -> Walked<Option<(usize, u32, u32)>> {
        let bytes = frame.block.bytes()?;
        let index =
            Index::read(layout, &bytes, level == 0).map_err(|what| Failure::Damaged(frame.number, what))?;
        let next = frame.step + 1;
        Ok((next < index.len()).then(|| (next, index.hash(next), index.child(next))))
    };
    // The lowest block on the way that has an entry behind.
    let mut level = path.levels;
    let (next, hash, child) = loop {
        let Some(above) = level.checked_sub(1) else {
            return Ok(None);
        };
        level = above;
        if let Some(found) = read(path.frame(level)?, level)? {
            break found;
        }
    };
    if only.is_some_and(|only| hash & !1 != only) {
        return Ok(None);
    }
    let frame = path.frame_mut(level)?;
    frame.step = next;
    let mut number = frame.number;
    path.passed += 1;
    if path.passed > dir_block::blocks(dir)? {
        return Err(Failure::Damaged(number, Corrupt("directory index has a cycle")));
    }
    let mut child = path.check(level + 1, number, child)?;
    while level + 1 < path.levels {
        level += 1;
        let block = read_index(dir, child)?;
        number = child;
        let below = {
            let bytes = block.bytes()?;
            let index = Index::read(layout, &bytes, false).map_err(|what| Failure::Damaged(number, what))?;
            index.child(0)
        };
        let step = 0;
        path.set(level, Frame { number, block, step })?;
        child = path.check(level + 1, number, below)?;
    }
    path.leaf = child;
    Ok(Some(hash))
}

/// The leaf for a new name.
pub(in crate::fs) enum Leaf<'a> {
    /// It has room.
    Roomy { block: Buffer<'a>, room: Room },
    /// It has none.
    Full(Full<'a>),
}

/// A full leaf, with the way to it.
pub(in crate::fs) struct Full<'a> {
    path: Path<'a>,
    leaf: Buffer<'a>,
    /// The level to split first: that of the leaf, or of the highest of the full nodes above it.
    /// Level 0, the root, is not split but made a level deeper.
    level: usize,
}

/// Finds the leaf for a new name. Returns `None` if the index is damaged.
///
/// # Errors
///
/// `ENOSPC` if the index is full and may have no more levels; `EFSCORRUPTED`, `EFSBADCRC`, `EIO`.
pub(in crate::fs) fn leaf<'a>(dir: &'a Inode<Volume>, name: &[u8]) -> Result<Option<Leaf<'a>>> {
    let sb = dir.super_block();
    let layout = &sb.volume()?.layout;
    let Some(path) = probe(dir, |hasher| hasher.hash(name).major)? else {
        return Ok(None);
    };
    let (_, block) = read_leaf(dir, path.leaf)?;
    let room = dir_edit::find_room(layout, &block.bytes()?, name).map_err(|what| bad(dir, what))?;
    if let Some(room) = room {
        return Ok(Some(Leaf::Roomy { block, room }));
    }
    let mut level = path.levels;
    while let Some(above) = level.checked_sub(1) {
        let bytes = path.frame(above)?.block.bytes()?;
        let index = Index::read(layout, &bytes, above == 0);
        if !index.map_err(|what| bad(dir, what))?.is_full() {
            break;
        }
        level = above;
    }
    if level == 0 && path.levels >= htree::max_levels(layout) {
        if SuperBlock::<Volume>::may_log() {
            pr_warn!(
                "{}: inode {}: the index of the directory is full ({} levels)\n",
                sb.name(),
                dir.number(),
                path.levels
            );
        }
        return Err(ENOSPC);
    }
    let leaf = block;
    Ok(Some(Leaf::Full(Full { path, leaf, level })))
}

impl Full<'_> {
    /// Steps that it takes until the leaf has room, each of which appends a block.
    pub(in crate::fs) fn steps(&self) -> u32 {
        // The leaf, and each full node. A full root gets a node below it that has room.
        1 + (self.path.levels - self.level) as u32
    }

    /// Does the first step.
    ///
    /// # Errors
    ///
    /// `ENOSPC`, `ENOMEM` and the errors of [`dir_block::append`]: nothing was changed.
    pub(in crate::fs) fn make_room(mut self, handle: &Handle, dir: &Locked<Volume>) -> Result {
        match self.level {
            level if level == self.path.levels => split_leaf(handle, dir, &mut self.path, &mut self.leaf),
            0 => deepen(handle, dir, self.path.frame_mut(0)?),
            level => split_node(handle, dir, &mut self.path, level),
        }
    }
}

fn split_leaf<'a>(
    handle: &Handle,
    dir: &Locked<Volume>,
    path: &mut Path<'a>,
    leaf: &mut Buffer<'a>,
) -> Result {
    let layout = &dir.super_block().volume()?.layout;
    let seed = dir.data()?.seed;
    let number = dir_block::blocks(dir)?;
    let last = path.levels.saturating_sub(1);
    let hasher = path.hasher;
    let frame = path.frame_mut(last)?;
    let (mut low, mut high, mut parent) = (blank(dir)?, blank(dir)?, copy(&frame.block)?);
    let names = leaf.bytes()?;
    let mut scratch = KVec::from_elem(htree::Slot::default(), htree::max_names(&names), GFP_KERNEL)?;
    htree::split(layout, &hasher, &names, &mut scratch, &mut low, &mut high)
        .and_then(|hash| htree::insert(layout, &mut parent, last == 0, frame.step + 1, hash, number))
        .and_then(|()| dir_edit::seal(layout, &mut low, seed))
        .and_then(|()| dir_edit::seal(layout, &mut high, seed))
        .and_then(|()| htree::seal(layout, &mut parent, seed))
        .map_err(|what| bad(dir, what))?;
    drop(names);
    let others = &mut [(leaf, &*low), (&mut frame.block, &*parent)];
    grow(handle, dir, &high, others)
}

/// Moves the upper half of the entries of the index block on a level to a new node.
fn split_node(handle: &Handle, dir: &Locked<Volume>, path: &mut Path<'_>, level: usize) -> Result {
    let layout = &dir.super_block().volume()?.layout;
    let seed = dir.data()?.seed;
    let number = dir_block::blocks(dir)?;
    let (above, below) = path.frames.split_at_mut_checked(level).ok_or(EIO)?;
    let parent = above.last_mut().and_then(Option::as_mut).ok_or(EIO)?;
    let node = below.first_mut().and_then(Option::as_mut).ok_or(EIO)?;
    let (mut low, mut high, mut entries) = (copy(&node.block)?, blank(dir)?, copy(&parent.block)?);
    let bytes = node.block.bytes()?;
    Index::read(layout, &bytes, false)
        .and_then(|index| {
            let half = index.len() / 2;
            htree::start_node(layout, &mut high, &index, half)?;
            htree::truncate(layout, &mut low, false, half)?;
            let hash = index.hash(half);
            htree::insert(layout, &mut entries, level == 1, parent.step + 1, hash, number)?;
            htree::seal(layout, &mut low, seed)?;
            htree::seal(layout, &mut high, seed)?;
            htree::seal(layout, &mut entries, seed)
        })
        .map_err(|what| bad(dir, what))?;
    drop(bytes);
    let others = &mut [(&mut node.block, &*low), (&mut parent.block, &*entries)];
    grow(handle, dir, &high, others)
}

/// Moves all entries of the root to a new node.
fn deepen(handle: &Handle, dir: &Locked<Volume>, root: &mut Frame<'_>) -> Result {
    let layout = &dir.super_block().volume()?.layout;
    let seed = dir.data()?.seed;
    let number = dir_block::blocks(dir)?;
    let (mut top, mut node) = (copy(&root.block)?, blank(dir)?);
    let bytes = root.block.bytes()?;
    Index::read(layout, &bytes, true)
        .and_then(|index| htree::start_node(layout, &mut node, &index, 0))
        .and_then(|()| htree::deepen(layout, &mut top, number))
        .and_then(|()| htree::seal(layout, &mut top, seed))
        .and_then(|()| htree::seal(layout, &mut node, seed))
        .map_err(|what| bad(dir, what))?;
    drop(bytes);
    grow(handle, dir, &node, &mut [(&mut root.block, &*top)])
}

/// Returns true if a full directory without an index is to get one.
pub(in crate::fs) fn is_wanted(dir: &Inode<Volume>) -> Result<bool> {
    let layout = &dir.super_block().volume()?.layout;
    Ok(dir_block::blocks(dir)? == 1
        && layout.features.compat(compat::DIR_INDEX)
        && Hasher::default_of(layout).is_some())
}

/// Makes an index for a directory of one block, whose names become its only leaf.
pub(in crate::fs) fn convert(handle: &Handle, dir: &Locked<Volume>) -> Result {
    let layout = &dir.super_block().volume()?.layout;
    let data = dir.data()?;
    let (_, mut block) = dir_block::read_block(dir, 0)?;
    let (mut root, mut leaf) = (blank(dir)?, blank(dir)?);
    let bytes = block.bytes()?;
    htree::convert(layout, &bytes, &mut root, &mut leaf)
        .and_then(|()| dir_edit::seal(layout, &mut leaf, data.seed))
        .and_then(|()| htree::seal(layout, &mut root, data.seed))
        .map_err(|what| bad(dir, what))?;
    drop(bytes);
    grow(handle, dir, &leaf, &mut [(&mut block, &*root)])?;
    data.set_flags(data.flags() | flags::INDEX);
    inode::store(handle, dir, Part::Attributes).inspect_err(|&error| handle.abort(error))
}
