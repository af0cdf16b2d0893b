// SPDX-License-Identifier: GPL-2.0

//! A tree's file in memory.

use crate::engine::{btree::Store, bulk::Sink, Error, Result};
use std::collections::BTreeMap;

/// Block size in bytes; small, so that a few records make a tree.
const SIZE: usize = 160;

/// The blocks, by number.
#[derive(Default)]
pub(crate) struct Disk {
    blocks: BTreeMap<u32, Vec<u8>>,
    last: u32,
}

impl Store for Disk {
    type Read<'a> = &'a [u8];
    const SEALED: bool = true;

    fn read(&self, block: u32) -> Result<&[u8]> {
        self.blocks.get(&block).map(|bytes| &bytes[..]).ok_or(Error::Io)
    }

    fn modify(&mut self, block: u32, change: &mut dyn FnMut(&mut [u8])) -> Result {
        change(self.blocks.get_mut(&block).ok_or(Error::Io)?);
        Ok(())
    }

    fn modify_pair(&mut self, blocks: [u32; 2], change: &mut dyn FnMut(&mut [u8], &mut [u8])) -> Result {
        let mut first = self.blocks.remove(&blocks[0]).ok_or(Error::Io)?;
        change(&mut first, self.blocks.get_mut(&blocks[1]).ok_or(Error::Io)?);
        self.blocks.insert(blocks[0], first);
        Ok(())
    }

    fn alloc(&mut self) -> Result<u32> {
        self.last += 1;
        self.blocks.insert(self.last, vec![0; SIZE]);
        Ok(self.last)
    }

    fn free(&mut self, block: u32) -> Result {
        self.blocks.remove(&block).map(drop).ok_or(Error::Io)
    }

    fn block_size(&self) -> usize {
        SIZE
    }
}

impl Sink for Disk {
    fn claim(&mut self) -> Result<u32> {
        self.alloc()
    }

    fn write(&mut self, block: u32, bytes: &[u8]) -> Result {
        self.modify(block, &mut |place| place.copy_from_slice(bytes))
    }

    fn block_size(&self) -> usize {
        SIZE
    }
}
