// SPDX-License-Identifier: GPL-2.0

//! Records in memory, in order, few bytes each.
//!
//! While a scan collects what a tree must hold, writers go on adding and removing owners anywhere. The shadow is the
//! engine's own B+tree over pages in memory: its leaves hold nothing but 16-byte records, appending in order leaves them
//! full, and overlap queries let the same code that keeps the tree on disk keep this one. Its nodes carry no checksums.
//!
//! A budget of bytes bounds it: what does not fit is refused with [`Error::NoMemory`], and what was there stays.

use super::{
    btree::{BTree, Root, Store},
    node::Tree,
    record::Rmap,
    Error, Result,
};
use kernel::prelude::*;

/// Bytes of a page.
const PAGE: usize = 4096;

/// Pages in memory.
struct Pages {
    /// By number, from 1 on; `None` is free.
    pages: KVVec<Option<KVec<u8>>>,
    free: KVVec<u32>,
    budget: usize,
}

impl Pages {
    fn bytes(&self) -> usize {
        let held = self.pages.len() - self.free.len();
        held * PAGE + self.pages.capacity() * size_of::<Option<KVec<u8>>>() + self.free.capacity() * 4
    }

    fn page(&mut self, block: u32) -> Result<&mut KVec<u8>> {
        let index = (block as usize).wrapping_sub(1);
        self.pages
            .get_mut(index)
            .and_then(Option::as_mut)
            .ok_or(Error::Io)
    }
}

impl Store for Pages {
    type Read<'a> = &'a [u8];
    const SEALED: bool = false;

    fn read(&self, block: u32) -> Result<&[u8]> {
        let index = (block as usize).wrapping_sub(1);
        self.pages.get(index).and_then(Option::as_deref).ok_or(Error::Io)
    }

    fn modify(&mut self, block: u32, change: &mut dyn FnMut(&mut [u8])) -> Result {
        change(self.page(block)?);
        Ok(())
    }

    fn modify_pair(&mut self, blocks: [u32; 2], change: &mut dyn FnMut(&mut [u8], &mut [u8])) -> Result {
        let mut first = core::mem::take(self.page(blocks[0])?);
        let done = self.page(blocks[1]).map(|second| change(&mut first, second));
        *self.page(blocks[0])? = first;
        done
    }

    fn alloc(&mut self) -> Result<u32> {
        if self.bytes() + PAGE > self.budget {
            return Err(Error::NoMemory);
        }
        let page = KVec::from_elem(0, PAGE, GFP_KERNEL)?;
        if let Some(block) = self.free.pop() {
            if let Some(place) = self.pages.get_mut((block as usize).wrapping_sub(1)) {
                *place = Some(page);
            }
            return Ok(block);
        }
        // So that giving a page back never has to allocate.
        self.free
            .reserve(self.pages.len() + 1 - self.free.len(), GFP_KERNEL)?;
        self.pages.push(Some(page), GFP_KERNEL)?;
        u32::try_from(self.pages.len()).map_err(|_| Error::NoSpace)
    }

    fn free(&mut self, block: u32) -> Result {
        let index = (block as usize).wrapping_sub(1);
        let page = self.pages.get_mut(index).ok_or(Error::Io)?;
        if page.take().is_none() {
            return Err(Error::Io);
        }
        self.free.push(block, GFP_KERNEL)?;
        Ok(())
    }

    fn block_size(&self) -> usize {
        PAGE
    }
}

/// The records that a tree must hold, as far as they are known.
pub(crate) struct Shadow {
    pages: Pages,
    root: Root,
}

/// The tree that the pages hold; nothing of it is ever written, so that one will do for all.
const TREE: Tree = Tree {
    seed: 0,
    region: 0,
    generation: 0,
};

impl Shadow {
    /// An empty one that may take up to `budget` bytes.
    pub(crate) fn new(budget: usize) -> Result<Shadow> {
        let mut pages = Pages {
            pages: KVVec::new(),
            free: KVVec::new(),
            budget,
        };
        let root = BTree::<_, Rmap>::create(&mut pages, TREE)?.root;
        Ok(Shadow { pages, root })
    }

    fn change(&mut self, change: impl FnOnce(&mut BTree<'_, Pages, Rmap>) -> Result) -> Result {
        let mut tree = BTree::open(&mut self.pages, TREE, self.root);
        let outcome = change(&mut tree);
        self.root = tree.root;
        outcome
    }

    /// Adds an owner; see [`BTree::add_owner`].
    pub(crate) fn add_owner(&mut self, record: Rmap) -> Result {
        self.change(|tree| tree.add_owner(record))
    }

    /// Removes an owner; see [`BTree::remove_owner`].
    pub(crate) fn remove_owner(&mut self, part: Rmap) -> Result {
        self.change(|tree| tree.remove_owner(part))
    }

    /// Hands `visit` every record in order, until it answers `false`.
    pub(crate) fn walk(&mut self, visit: &mut dyn FnMut(&Rmap) -> Result<bool>) -> Result {
        BTree::open(&mut self.pages, TREE, self.root).overlapping(0, u32::MAX, visit)
    }

    /// Hands `visit` every record that starts at `block` or behind it, in order, until it answers `false`.
    pub(crate) fn walk_from(&mut self, block: u32, visit: &mut dyn FnMut(&Rmap) -> Result<bool>) -> Result {
        BTree::open(&mut self.pages, TREE, self.root).overlapping(block, u32::MAX, &mut |record: &Rmap| {
            if record.start < block {
                return Ok(true);
            }
            visit(record)
        })
    }

    /// Counts the records.
    pub(crate) fn count(&mut self) -> Result<u64> {
        let mut records = 0;
        self.walk(&mut |_| {
            records += 1;
            Ok(true)
        })?;
        Ok(records)
    }

    /// Bytes taken, everything included.
    pub(crate) fn bytes(&self) -> usize {
        self.pages.bytes()
    }
}
