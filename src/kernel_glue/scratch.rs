// SPDX-License-Identifier: GPL-2.0

//! An unlinked tmpfs file, whose pages can be swapped out, for data that does not fit into memory.
//!
//! C header: [`include/linux/shmem_fs.h`](srctree/include/linux/shmem_fs.h)

use super::bindings;
use kernel::{
    error::{from_err_ptr, to_result},
    prelude::*,
};

/// An unlinked tmpfs file, freed when it is dropped.
///
/// # Invariants
///
/// The pointer is an open file that was created by `rext4_scratch_open` and is owned by this value.
pub(crate) struct Scratch(*mut bindings::file);

// SAFETY: A file may be used and closed by any thread.
unsafe impl Send for Scratch {}
// SAFETY: Its pages are locked while they are read or written.
unsafe impl Sync for Scratch {}

impl Scratch {
    /// Creates an empty file. Fails with `ENOMEM`, or with `EOPNOTSUPP` if the kernel does not
    /// support tmpfs.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: No precondition.
        let file = from_err_ptr(unsafe { bindings::rext4_scratch_open() })?;
        // INVARIANT: It was just created for us.
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
        // SAFETY: By the type invariant the file is open, and the buffer has this length.
        to_result(unsafe { bindings::rext4_scratch_copy(self.0, at, to, count, false) })
    }

    /// Writes anywhere. Fails with `ENOMEM`, or with `EFBIG` behind the largest file.
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> Result {
        Self::check(at, bytes.len())?;
        let (from, count) = (bytes.as_ptr().cast_mut().cast(), bytes.len());
        // SAFETY: By the type invariant the file is open, and the buffer, which is only read, has
        // this length.
        to_result(unsafe { bindings::rext4_scratch_copy(self.0, at, from, count, true) })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: By the type invariant we own the file, which is not used any more.
        unsafe { bindings::rext4_scratch_close(self.0) };
    }
}
