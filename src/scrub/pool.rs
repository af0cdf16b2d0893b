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
    /// Maximum of `taken`.
    peak: Atomic<u64>,
    /// `None` if the kernel does not support tmpfs.
    file: Option<Scratch>,
    /// Current length of the file.
    end: Atomic<u64>,
}

impl Memory {
    /// Creates a pool of `limit` bytes of memory, with a file.
    pub(super) fn new(limit: u64) -> Memory {
        Memory {
            file: Scratch::new().ok(),
            ..Self::without_file(limit)
        }
    }

    /// Creates a pool of `limit` bytes of memory, without a file.
    pub(super) fn without_file(limit: u64) -> Memory {
        Memory {
            limit,
            taken: Atomic::new(0),
            peak: Atomic::new(0),
            file: None,
            end: Atomic::new(0),
        }
    }

    /// Returns the maximum number of bytes in use at any time.
    pub(super) fn peak(&self) -> u64 {
        self.peak.load(Relaxed)
    }

    /// Returns how much of the second half of the memory is in use, on a scale of 0 to `most`.
    pub(super) fn strain(&self, most: u32) -> u32 {
        let half = (self.limit / 2).max(1);
        let over = self.taken.load(Relaxed).saturating_sub(half).min(half);
        (over * u64::from(most) / half) as u32
    }

    /// Returns the maximum number of bytes.
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
        let taken = self.taken.fetch_add(bytes, Relaxed).saturating_add(bytes);
        if taken > self.limit {
            self.taken.fetch_sub(bytes, Relaxed);
            return false;
        }
        let mut peak = self.peak();
        while let Err(found) = match taken > peak {
            true => self.peak.cmpxchg(peak, taken, Relaxed).map(|_| ()),
            false => Ok(()),
        } {
            peak = found;
        }
        true
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
