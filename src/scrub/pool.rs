// SPDX-License-Identifier: GPL-2.0

//! The memory that a scan may use for collected records, and the file for records that exceed it.

use crate::{
    engine::{self, shadow::Pool, Error as EngineError},
    kernel_glue::Scratch,
};
use kernel::sync::atomic::{Atomic, Relaxed};

/// A scan's memory, shared by all its regions.
pub(super) struct Memory {
    limit: u64,
    taken: Atomic<u64>,
    /// `None` if the kernel does not support tmpfs files.
    file: Option<Scratch>,
    /// Current length of the file.
    end: Atomic<u64>,
}

impl Memory {
    /// Creates a pool of `limit` bytes of memory.
    pub(super) fn new(limit: u64) -> Memory {
        Memory {
            limit,
            taken: Atomic::new(0),
            file: Scratch::new().ok(),
            end: Atomic::new(0),
        }
    }

    /// Returns the limit in bytes.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Returns the number of bytes in the file.
    pub(super) fn spilled(&self) -> u64 {
        self.end.load(Relaxed)
    }

    fn file(&self) -> engine::Result<&Scratch> {
        self.file.as_ref().ok_or(EngineError::NoMemory)
    }
}

impl Pool for Memory {
    fn take(&self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let fits = self.taken.fetch_add(bytes, Relaxed).saturating_add(bytes) <= self.limit;
        if !fits {
            self.taken.fetch_sub(bytes, Relaxed);
        }
        fits
    }

    fn give(&self, bytes: usize) {
        self.taken.fetch_sub(bytes as u64, Relaxed);
    }

    fn extend(&self, bytes: usize) -> engine::Result<u64> {
        self.file()?;
        Ok(self.end.fetch_add(bytes as u64, Relaxed))
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> engine::Result {
        self.file()?.read(at, bytes).map_err(|_| EngineError::NoMemory)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> engine::Result {
        self.file()?.write(at, bytes).map_err(|_| EngineError::NoMemory)
    }
}
