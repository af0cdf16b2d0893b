// SPDX-License-Identifier: GPL-2.0

//! Access to the nodes of one region's tree, for the engine.
//!
//! [`Nodes`] are the nodes of a tree that changes inside a handle, or is only read if there is
//! none. [`Staged`] are the nodes of a staged tree: each is written once, without journaling, to
//! blocks allocated by [`TreeFile::claim`]. A small tree is built from [`Nodes`] directly.

use super::file::TreeFile;
use crate::{
    engine::{
        btree::Store,
        bulk::Sink,
        node::{Node, Tree},
        Error, Result,
    },
    kernel_glue::{Buffer, Bytes, Handle},
};
use core::cell::RefCell;
use kernel::prelude::*;

/// Number of nodes written together. Most of them are contiguous on the volume, so they form large
/// requests.
const TOGETHER: usize = 256;

/// The nodes of a region's tree.
pub(crate) struct Nodes<'a> {
    file: &'a TreeFile,
    handle: Option<&'a Handle>,
    tree: Tree,
    /// Look up each node in the space maps.
    strict: bool,
    /// True once a block of the file was allocated.
    taken: bool,
    /// The nodes read last. A change reads the same few nodes repeatedly.
    recent: RefCell<Recent<'a>>,
}

/// Some nodes with their block in the file, and the slot to be replaced next.
#[derive(Default)]
struct Recent<'a> {
    nodes: [Option<(u32, Buffer<'a>)>; 8],
    next: usize,
}

impl<'a> Recent<'a> {
    fn find(&self, block: u32) -> Option<Buffer<'a>> {
        let mut nodes = self.nodes.iter().flatten();
        nodes
            .find(|(number, _)| *number == block)
            .map(|(_, buffer)| buffer.clone())
    }

    fn keep(&mut self, block: u32, buffer: &Buffer<'a>) {
        if let Some(place) = self.nodes.get_mut(self.next) {
            *place = Some((block, buffer.clone()));
        }
        self.next = (self.next + 1) % self.nodes.len();
    }
}

impl<'a> Nodes<'a> {
    /// Returns access to the nodes of `tree`, read-only without a handle.
    pub(crate) fn new(file: &'a TreeFile, handle: Option<&'a Handle>, tree: Tree) -> Self {
        Nodes {
            file,
            handle,
            tree,
            strict: false,
            taken: false,
            recent: RefCell::default(),
        }
    }

    /// Returns true if blocks of the file were allocated.
    pub(crate) fn has_taken(&self) -> bool {
        self.taken
    }

    /// Returns access for a check: a node that is not allocated to the tree in the space maps is an
    /// error.
    pub(crate) fn strict(self) -> Self {
        Nodes { strict: true, ..self }
    }

    fn handle(&self) -> Result<&'a Handle> {
        self.handle.ok_or(Error::Io)
    }

    fn buffer(&self, block: u32) -> Result<Buffer<'a>> {
        if let Some(buffer) = self.recent.borrow().find(block) {
            return Ok(buffer);
        }
        if self.file.frame.is_fixed(block) {
            return Err(Error::Corrupt {
                block,
                what: "no node can be here",
            });
        }
        if self.strict {
            let Tree {
                region, generation, ..
            } = self.tree;
            let known = self.file.is_node(block, region, generation);
            if !known.map_err(|_| Error::Io)? {
                return Err(Error::Corrupt {
                    block,
                    what: "the space map does not know the node",
                });
            }
        }
        let buffer = self.file.read(block).map_err(|_| Error::Io)?;
        self.recent.borrow_mut().keep(block, &buffer);
        Ok(buffer)
    }
}

impl Store for Nodes<'_> {
    type Read<'b>
        = Bytes<'b>
    where
        Self: 'b;
    const SEALED: bool = true;

    fn read(&self, block: u32) -> Result<Bytes<'_>> {
        self.buffer(block)?.into_bytes().map_err(|_| Error::Io)
    }

    fn modify(&mut self, block: u32, change: &mut dyn FnMut(&mut [u8])) -> Result {
        let mut buffer = self.buffer(block)?;
        let mut bytes = self.handle()?.write(&mut buffer).map_err(|_| Error::Io)?;
        change(&mut bytes);
        Ok(())
    }

    fn modify_pair(&mut self, blocks: [u32; 2], change: &mut dyn FnMut(&mut [u8], &mut [u8])) -> Result {
        if blocks[0] == blocks[1] {
            return Err(Error::Corrupt {
                block: blocks[0],
                what: "node is its own neighbour",
            });
        }
        let handle = self.handle()?;
        let mut first = self.buffer(blocks[0])?;
        let mut second = self.buffer(blocks[1])?;
        let mut first = handle.write(&mut first).map_err(|_| Error::Io)?;
        let mut second = handle.write(&mut second).map_err(|_| Error::Io)?;
        change(&mut first, &mut second);
        Ok(())
    }

    fn alloc(&mut self) -> Result<u32> {
        let handle = self.handle()?;
        let block = self.file.take(handle, self.tree.region, self.tree.generation)?;
        self.taken = true;
        let fresh = self.file.fresh(block).map_err(|_| Error::Io)?;
        let mut bytes = handle.renew(fresh).map_err(|_| Error::Io)?;
        // Make it valid for reads until the engine fills it.
        Node(&mut *bytes).init(&self.tree, block, 0);
        Node(&mut *bytes).seal(&self.tree);
        Ok(block)
    }

    fn free(&mut self, block: u32) -> Result {
        self.file
            .give(self.handle()?, block, self.tree.region, self.tree.generation)
    }

    fn block_size(&self) -> usize {
        self.file.frame.block_size as usize
    }

    fn is_checked(&self, read: &Bytes<'_>) -> bool {
        !self.strict && read.is_verified()
    }

    fn set_checked(&self, read: &Bytes<'_>) {
        read.set_verified();
    }
}

/// Builds a tree as part of the handle: each node costs the credits of [`Store::alloc`] plus one.
impl Sink for Nodes<'_> {
    fn claim(&mut self) -> Result<u32> {
        self.alloc()
    }

    fn write(&mut self, block: u32, bytes: &[u8]) -> Result {
        self.modify(block, &mut |to| to.copy_from_slice(bytes))
    }

    fn block_size(&self) -> usize {
        Store::block_size(self)
    }
}

/// The nodes of a staged tree.
pub(crate) struct Staged<'a> {
    file: &'a TreeFile,
    blocks: KVVec<u32>,
    next: usize,
    /// Buffers that are filled but not yet submitted,
    filled: KVec<Buffer<'a>>,
    /// and buffers being written.
    written: KVec<Buffer<'a>>,
}

impl<'a> Staged<'a> {
    /// Returns a sink that writes nodes to these claimed blocks, in this order.
    pub(crate) fn new(file: &'a TreeFile, blocks: KVVec<u32>) -> Result<Self> {
        let most = blocks.len().min(TOGETHER);
        Ok(Staged {
            file,
            blocks,
            next: 0,
            filled: KVec::with_capacity(most, GFP_KERNEL)?,
            written: KVec::with_capacity(most, GFP_KERNEL)?,
        })
    }

    /// Submits the filled buffers, and waits for the buffers submitted before.
    fn push_out(&mut self) -> Result {
        Buffer::submit(&self.filled);
        core::mem::swap(&mut self.filled, &mut self.written);
        let mut done = Ok(());
        for buffer in self.filled.drain_all() {
            if buffer.wait().is_err() {
                done = Err(Error::Io);
            }
        }
        done
    }

    /// Waits until all nodes are on stable storage.
    pub(crate) fn finish(mut self) -> Result {
        // Wait for all I/O even if the first part failed.
        let last = self.push_out();
        self.push_out().and(last)?;
        self.file.super_block().flush_device().map_err(|_| Error::Io)
    }
}

impl Sink for Staged<'_> {
    fn claim(&mut self) -> Result<u32> {
        let block = *self.blocks.get(self.next).ok_or(Error::NoSpace)?;
        self.next += 1;
        Ok(block)
    }

    fn write(&mut self, block: u32, bytes: &[u8]) -> Result {
        let fresh = self.file.fresh(block).map_err(|_| Error::Io)?;
        let buffer = fresh.fill(bytes).map_err(|_| Error::Io)?;
        self.filled.push(buffer, GFP_KERNEL)?;
        if self.filled.len() >= TOGETHER {
            self.push_out()?;
        }
        Ok(())
    }

    fn block_size(&self) -> usize {
        self.file.frame.block_size as usize
    }
}
