// SPDX-License-Identifier: GPL-2.0

//! An unlinked tmpfs file, whose pages can be swapped out, for data that does not fit into memory.
//!
//! C header: [`include/linux/shmem_fs.h`](srctree/include/linux/shmem_fs.h)

use super::bindings;
use core::ptr::NonNull;
use kernel::{
    error::{from_err_ptr, to_result},
    fs::File,
    prelude::*,
    sync::aref::ARef,
};

/// An unlinked tmpfs file, freed when it is dropped.
///
/// # Invariants
///
/// The file was created by `rext4_scratch_open`, and no one else refers to it.
pub(crate) struct Scratch(ARef<File>);

impl Scratch {
    /// Creates an empty file. Fails with `ENOMEM`, or with `EOPNOTSUPP` if the kernel does not
    /// support tmpfs.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: No precondition.
        let file = from_err_ptr(unsafe { bindings::rext4_scratch_open() })?;
        let file = NonNull::new(file.cast()).ok_or(ENOMEM)?;
        // SAFETY: The file is new, its reference is ours, and no task has a descriptor of it.
        // INVARIANT: It was just created for us.
        Ok(Scratch(unsafe { ARef::from_raw(file) }))
    }

    /// Fails with `EFBIG` for bytes beyond the maximum file size.
    fn check(at: u64, count: usize) -> Result {
        let end = at.checked_add(count as u64).ok_or(EFBIG)?;
        i64::try_from(end).map(|_| ()).map_err(|_| EFBIG)
    }

    /// Reads bytes that were written. Fails with `ENOMEM`, or with `EIO` if they were lost.
    pub(crate) fn read(&self, at: u64, bytes: &mut [u8]) -> Result {
        Self::check(at, bytes.len())?;
        let (to, count) = (bytes.as_mut_ptr().cast(), bytes.len());
        // SAFETY: By the type invariant the file is open, and the buffer has this length.
        to_result(unsafe { bindings::rext4_scratch_copy(self.0.as_ptr(), at, to, count, false) })
    }

    /// Writes at any offset. Fails with `ENOMEM`, or with `EFBIG` beyond the maximum file size.
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> Result {
        Self::check(at, bytes.len())?;
        let (from, count) = (bytes.as_ptr().cast_mut().cast(), bytes.len());
        // SAFETY: By the type invariant the file is open, and the buffer, which is only read, has
        // this length.
        to_result(unsafe { bindings::rext4_scratch_copy(self.0.as_ptr(), at, from, count, true) })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the file is a scratch file, which is not used any more. Its
        // reference is dropped after this.
        unsafe { bindings::rext4_scratch_end(self.0.as_ptr()) };
    }
}
