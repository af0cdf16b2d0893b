// SPDX-License-Identifier: GPL-2.0

//! Preallocating and freeing blocks of files, and moving contents within a file (`fallocate`).
//!
//! C header: [`include/linux/falloc.h`](srctree/include/linux/falloc.h)

use super::{
    bindings,
    inode::{Inode, Locked},
    operations::{FileSystem, Operations},
    unsupported,
    vfs::Tables,
};
use kernel::{
    error::{from_result, to_result},
    prelude::*,
};

/// A change of the allocation of a range of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reserve {
    /// Allocate blocks.
    Allocate {
        /// Do not change the file's size.
        keep_size: bool,
    },
    /// Free whole blocks; the range then reads as zeroes. The file's size does not change.
    Punch,
    /// Allocate blocks, and replace shared blocks by the file's own.
    Unshare {
        /// Do not change the file's size.
        keep_size: bool,
    },
    /// Zero the range, with blocks allocated.
    Zero {
        /// Do not change the file's size.
        keep_size: bool,
    },
}

/// Moving the contents of a file to other offsets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shift {
    /// Remove the range; the contents after it move to its start.
    Collapse,
    /// Insert a hole; the contents from its start on move behind it.
    Insert,
}

/// One call of `fallocate`.
#[derive(Clone, Copy)]
enum Request {
    Reserve(Reserve),
    Shift(Shift),
}

impl<V: FileSystem> Locked<V> {
    /// Fails with `EFBIG` or `ETXTBSY` if the file must not be extended to this size.
    pub(crate) fn check_size(&self, size: u64) -> Result {
        let size = i64::try_from(size).map_err(|_| EFBIG)?;
        // SAFETY: The inode is live, and by the type invariant no one else changes it.
        to_result(unsafe { bindings::inode_newsize_ok(self.as_ptr(), size) })
    }
}

impl<V: Operations> Tables<V> {
    /// # Safety
    ///
    /// Must be called as the VFS calls it: with a file of ours that is open for writing.
    pub(super) unsafe extern "C" fn fallocate(
        file: *mut bindings::file,
        mode: c_int,
        start: i64,
        length: i64,
    ) -> isize {
        let mode = mode as u32;
        let keep_size = mode & bindings::FALLOC_FL_KEEP_SIZE != 0;
        let how = match mode & !bindings::FALLOC_FL_KEEP_SIZE {
            bindings::FALLOC_FL_ALLOCATE_RANGE => Request::Reserve(Reserve::Allocate { keep_size }),
            bindings::FALLOC_FL_PUNCH_HOLE => Request::Reserve(Reserve::Punch),
            bindings::FALLOC_FL_ZERO_RANGE => Request::Reserve(Reserve::Zero { keep_size }),
            bindings::FALLOC_FL_UNSHARE_RANGE => Request::Reserve(Reserve::Unshare { keep_size }),
            bindings::FALLOC_FL_COLLAPSE_RANGE => Request::Shift(Shift::Collapse),
            bindings::FALLOC_FL_INSERT_RANGE => Request::Shift(Shift::Insert),
            _ => return unsupported().to_errno() as isize,
        };
        let done = from_result(|| -> Result<c_int> {
            // SAFETY: The file is open, so its inode is live.
            let inode = unsafe { Inode::<V>::from_ptr((*file).f_inode) };
            let inode = inode.lock();
            inode.wait_direct();
            // SAFETY: The file is open, and its inode locked.
            to_result(unsafe { bindings::file_modified(file) })?;
            let (start, length) = (start.max(0) as u64, length.max(0) as u64);
            match how {
                Request::Reserve(how) => V::reserve(&inode, how, start, length)?,
                Request::Shift(how) => V::shift(&inode, how, start, length)?,
            }
            // SAFETY: The file is open.
            if unsafe { bindings::rext4_file_is_sync(file) } {
                V::sync_inode(&inode)?;
            }
            Ok(0)
        });
        done as isize
    }
}
