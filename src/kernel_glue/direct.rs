// SPDX-License-Identifier: GPL-2.0

//! Direct I/O (`O_DIRECT`), through iomap.
//!
//! A request that must not wait (`RWF_NOWAIT`) is served from the page cache or fails with
//! `EAGAIN`; programs then repeat it in a thread that may wait.
//!
//! Whole blocks within the size on disk are written with the inode locked shared, so that several
//! writers run in parallel. A write that extends the file, or that writes parts of blocks, runs
//! alone: the rest of a new block is zeroed on disk, and must not be written at the same time. If
//! only the page cache can serve a write (part of a shared block, an extent that must not be
//! split), the rest of it goes through the page cache and is then written to disk.
//!
//! C header: [`include/linux/iomap.h`](srctree/include/linux/iomap.h)

use super::{
    bindings,
    inode::{Inode, Locked},
    operations::Operations,
    vfs::{Tables, Written},
};
use core::ptr;
use kernel::{error::from_result, prelude::*};

impl<V: Operations> Tables<V> {
    const DIRECT_WRITE: &'static bindings::iomap_dio_ops = &bindings::iomap_dio_ops {
        end_io: Some(Self::direct_done),
        submit_io: None,
        bio_set: ptr::null_mut(),
    };

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with a file of ours that is being opened.
    pub(super) unsafe extern "C" fn open(inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: Both are live.
        unsafe {
            if let Err(error) = Self::check_access(file) {
                return error.to_errno();
            }
            bindings::rext4_file_allow(file);
            bindings::generic_file_open(inode, file)
        }
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with a file of ours that is being closed.
    pub(super) unsafe extern "C" fn release(inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: Both are live.
        unsafe {
            if bindings::rext4_file_is_last_writer(file) {
                V::release(Inode::from_ptr(inode));
            }
        }
        0
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with an open file of ours and room for the bytes.
    pub(super) unsafe extern "C" fn read_iter(
        request: *mut bindings::kiocb,
        to: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: The file is open, so its inode is live; it is locked while mappings are looked
        // up.
        unsafe {
            let file = (*request).ki_filp;
            if let Err(error) = Self::check_alive(Inode::from_ptr((*file).f_inode)) {
                return error.to_errno() as isize;
            }
            if (*request).ki_flags as u32 & bindings::IOCB_DIRECT == 0 {
                return bindings::generic_file_read_iter(request, to);
            }
            // Finding its blocks may take locks and read from the disk.
            if (*request).ki_flags & bindings::REXT4_IOCB_NOWAIT != 0 {
                return EAGAIN.to_errno() as isize;
            }
            bindings::rext4_file_accessed(file);
            bindings::rext4_inode_lock_shared((*file).f_inode);
            let done = bindings::iomap_dio_rw(request, to, Self::iomap(), ptr::null(), 0, ptr::null_mut(), 0);
            bindings::rext4_inode_unlock_shared((*file).f_inode);
            done
        }
    }

    /// Writes directly, and through the page cache where that is not possible.
    ///
    /// # Safety
    ///
    /// As for [`Self::write_iter`], with the inode unlocked.
    pub(super) unsafe fn write_direct(
        request: *mut bindings::kiocb,
        from: *mut bindings::iov_iter,
        inode: *mut bindings::inode,
    ) -> isize {
        // SAFETY: The caller guarantees the arguments. The inode is locked around each call that
        // requires it.
        unsafe {
            let this = Inode::<V>::from_ptr(inode);
            bindings::rext4_inode_lock(inode);
            let unlocked = |done| {
                bindings::rext4_inode_unlock(inode);
                done
            };
            let checked = Self::check_write(request, from);
            if checked <= 0 {
                return unlocked(checked);
            }
            let start = (*request).ki_pos.max(0) as u64;
            let parts = |unit: u64| (start | checked as u64) & (unit - 1) != 0;
            if parts(bindings::rext4_sector_bytes(inode).into()) {
                return unlocked(EINVAL.to_errno() as isize);
            }
            let size = this.size();
            // A write beyond the size on disk must record a new size. That starts a handle, which
            // is not always possible in the completion of an asynchronous write, since it may run
            // in interrupt context.
            let end = size.min(V::disk_size(this));
            let write = |flags| match bindings::iomap_dio_rw(
                request,
                from,
                Self::write_iomap(),
                Self::DIRECT_WRITE,
                flags,
                ptr::null_mut(),
                0,
            ) {
                error if error == ENOTBLK.to_errno() as isize => 0,
                done => done,
            };
            let left = || bindings::rext4_iter_count(from) > 0;
            let done;
            if start + checked as u64 > end || parts(1 << (*inode).i_blkbits) {
                this.wait_direct();
                // The size on disk must not include cached data that has not been written back.
                let ready = match start > size {
                    true => Locked::<V>::from_ptr(inode).zero_for_resize(size, start),
                    false => Ok(()),
                }
                .and_then(|()| this.write_out(V::disk_size(this)..start));
                if let Err(error) = ready {
                    return unlocked(error.to_errno() as isize);
                }
                done = write(bindings::IOMAP_DIO_FORCE_WAIT);
                if done < 0 || !left() {
                    Self::trim(Locked::from_ptr(inode), start + checked as u64);
                }
            } else {
                bindings::rext4_inode_downgrade(inode);
                done = write(0);
                bindings::rext4_inode_unlock_shared(inode);
                if done < 0 || !left() {
                    return done;
                }
                bindings::rext4_inode_lock(inode);
            }
            if done < 0 || !left() {
                return unlocked(done);
            }
            this.wait_direct();
            let position = (*request).ki_pos.max(0) as u64;
            let more = Self::write_cached(request, from, inode);
            if more <= 0 {
                return unlocked(if done > 0 { done } else { more });
            }
            if let Err(error) = this.write_out(position..position + more as u64) {
                return unlocked(error.to_errno() as isize);
            }
            // The direct part was synced by iomap if required.
            let more = bindings::rext4_write_sync(request, unlocked(more));
            if more < 0 {
                return more;
            }
            done + more
        }
    }

    /// # Safety
    ///
    /// Must be called as iomap calls it: with a write of [`Self::write_direct`] whose I/O is done.
    /// If the write went to unwritten or staged blocks, or beyond the size on disk, this must be in
    /// a task that may sleep; otherwise it may be in interrupt context.
    unsafe extern "C" fn direct_done(
        request: *mut bindings::kiocb,
        size: isize,
        error: c_int,
        flags: u32,
    ) -> c_int {
        if error != 0 || size <= 0 {
            return error;
        }
        from_result(|| {
            // SAFETY: The file stays open until the write is complete, so its inode is live.
            let (inode, start) = unsafe {
                (
                    Inode::<V>::from_ptr((*(*request).ki_filp).f_inode),
                    (*request).ki_pos.max(0) as u64,
                )
            };
            let what = Written {
                start,
                length: size as u64,
                end: start + size as u64,
                unwritten: flags & bindings::IOMAP_DIO_UNWRITTEN != 0,
                staged: flags & bindings::IOMAP_DIO_COW != 0,
                direct: true,
            };
            // The size on disk cannot have been reduced: truncation waits for direct writes.
            if what.unwritten || what.staged || what.end > V::disk_size(inode) {
                V::written(inode, what)?;
            }
            Ok(0)
        })
    }
}
