// SPDX-License-Identifier: GPL-2.0

//! Storage for the trees of tests.

use crate::engine::{btree::Store, bulk::Sink, Error, Result};
use kernel::prelude::*;

/// Block size in bytes; small, so that trees have several levels.
pub(super) const BLOCK: usize = 1024;

/// Blocks in memory, numbered from 1, for a tree with checksums as on disk.
pub(super) struct Memory(pub(super) KVVec<Option<KVec<u8>>>);

impl Memory {
    pub(super) fn get(&mut self, block: u32) -> Result<&mut KVec<u8>> {
        let place = self.0.get_mut((block as usize).wrapping_sub(1));
        place.and_then(Option::as_mut).ok_or(Error::Io)
    }

    pub(super) fn flip(&mut self, block: u32, at: usize) -> Result {
        *self.get(block)?.get_mut(at).ok_or(Error::Io)? ^= 0x10;
        Ok(())
    }
}

impl Store for Memory {
    type Read<'a> = &'a [u8];
    const SEALED: bool = true;

    fn read(&self, block: u32) -> Result<&[u8]> {
        let place = self.0.get((block as usize).wrapping_sub(1));
        place.and_then(Option::as_deref).ok_or(Error::Io)
    }

    fn modify(&mut self, block: u32, change: &mut dyn FnMut(&mut [u8])) -> Result {
        change(self.get(block)?);
        Ok(())
    }

    fn modify_pair(&mut self, blocks: [u32; 2], change: &mut dyn FnMut(&mut [u8], &mut [u8])) -> Result {
        let mut first = core::mem::take(self.get(blocks[0])?);
        let done = self.get(blocks[1]).map(|second| change(&mut first, second));
        *self.get(blocks[0])? = first;
        done
    }

    fn alloc(&mut self) -> Result<u32> {
        let bytes = KVec::from_elem(0xaa, BLOCK, GFP_KERNEL)?;
        if let Some(index) = self.0.iter().position(Option::is_none) {
            if let Some(place) = self.0.get_mut(index) {
                *place = Some(bytes);
            }
            return Ok(index as u32 + 1);
        }
        self.0.push(Some(bytes), GFP_KERNEL)?;
        Ok(self.0.len() as u32)
    }

    fn free(&mut self, block: u32) -> Result {
        let place = self.0.get_mut((block as usize).wrapping_sub(1));
        place.and_then(Option::take).map(drop).ok_or(Error::Io)
    }

    fn block_size(&self) -> usize {
        BLOCK
    }
}

impl Sink for Memory {
    fn claim(&mut self) -> Result<u32> {
        self.alloc()
    }

    fn write(&mut self, block: u32, bytes: &[u8]) -> Result {
        self.get(block)?.copy_from_slice(bytes);
        Ok(())
    }

    fn block_size(&self) -> usize {
        BLOCK
    }
}
