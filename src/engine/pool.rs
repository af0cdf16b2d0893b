// SPDX-License-Identifier: GPL-2.0

//! Memory with a limit, and a file for what does not fit.

use super::{Error, Result};

/// The source of memory for a scan, and the file for records that do not fit.
pub(crate) trait Pool: Send + Sync {
    /// Reserves `bytes` of memory; returns `false` if they are not available.
    fn take(&self, bytes: usize) -> bool;
    /// Releases memory reserved by [`Pool::take`].
    fn give(&self, bytes: usize);
    /// Reserves `bytes` in the file, and returns their offset.
    fn extend(&self, bytes: usize) -> Result<u64>;
    /// Reads from offset `at` of the file.
    fn read(&self, at: u64, bytes: &mut [u8]) -> Result;
    /// Writes at offset `at` of the file.
    fn write(&self, at: u64, bytes: &[u8]) -> Result;
}

/// Unlimited memory, and no file.
impl Pool for () {
    fn take(&self, _: usize) -> bool {
        true
    }

    fn give(&self, _: usize) {}

    fn extend(&self, _: usize) -> Result<u64> {
        Err(Error::NoMemory)
    }

    fn read(&self, _: u64, _: &mut [u8]) -> Result {
        Err(Error::Io)
    }

    fn write(&self, _: u64, _: &[u8]) -> Result {
        Err(Error::Io)
    }
}
