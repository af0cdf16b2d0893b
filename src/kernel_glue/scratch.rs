// SPDX-License-Identifier: GPL-2.0

//! A file without a name whose pages can be swapped out, for data that does not fit into memory.
//!
//! C header: [`include/linux/shmem_fs.h`](srctree/include/linux/shmem_fs.h)

use super::bindings;
use kernel::{
    error::{from_err_ptr, to_result},
    prelude::*,
};

/// Such a file. Gone when it is dropped.
///
/// # Invariants
///
/// The pointer is that of an open file which `rext4_scratch_open` made, and is this value's own.
pub(crate) struct Scratch(*mut bindings::file);

// SAFETY: A file may be used and closed by any thread.
unsafe impl Send for Scratch {}
// SAFETY: Its pages are locked while they are read or written.
unsafe impl Sync for Scratch {}

impl Scratch {
    /// An empty one. Fails with `ENOMEM`, or with `EOPNOTSUPP` where the kernel has no such files.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: No precondition.
        let file = from_err_ptr(unsafe { bindings::rext4_scratch_open() })?;
        // INVARIANT: It was just opened for us.
        Ok(Scratch(file))
    }

    /// Fails with `EFBIG` for bytes that no file can have.
    fn check(at: u64, count: usize) -> Result {
        let end = at.checked_add(count as u64).ok_or(EFBIG)?;
        i64::try_from(end).map(|_| ()).map_err(|_| EFBIG)
    }

    /// Reads bytes that were written. Fails with `ENOMEM`, or with `EIO` when they are lost.
    pub(crate) fn read(&self, at: u64, bytes: &mut [u8]) -> Result {
        Self::check(at, bytes.len())?;
        let (to, count) = (bytes.as_mut_ptr().cast(), bytes.len());
        // SAFETY: The file is open by the type invariant, and the buffer is as long as we say.
        to_result(unsafe { bindings::rext4_scratch_copy(self.0, at, to, count, false) })
    }

    /// Writes anywhere. Fails with `ENOMEM`, or with `EFBIG` behind the largest file.
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> Result {
        Self::check(at, bytes.len())?;
        let (from, count) = (bytes.as_ptr().cast_mut().cast(), bytes.len());
        // SAFETY: The file is open by the type invariant, and the buffer, which is only read, is as long as we say.
        to_result(unsafe { bindings::rext4_scratch_copy(self.0, at, from, count, true) })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: The file is our own by the type invariant, and not used any more.
        unsafe { bindings::rext4_scratch_close(self.0) };
    }
}
