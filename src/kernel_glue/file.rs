// SPDX-License-Identifier: GPL-2.0

//! Writing files: `write`, shared memory mappings, and writeback, all through iomap.
//!
//! Blocks are found when the page cache is written to: those of a hole are reserved in memory.
//! Writeback only looks them up; when its I/O is complete, a worker makes the file system record
//! that they are written, and the new size on disk. Writes to shared blocks are redirected to
//! staged blocks, which then replace them. A cached mapping contains the version of the inode's
//! mapping that it was derived from, and is looked up again when the version has changed.
//!
//! C headers: [`include/linux/iomap.h`](srctree/include/linux/iomap.h)

use super::{
    bindings,
    inode::{Inode, InodeLock, Locked},
    operations::{FileSystem, Operations},
    super_block::SuperBlock,
    unsupported,
    vfs::{Change, Tables, Written},
};
use core::{ops::Range, ptr};
use kernel::{
    error::{from_result, to_result},
    prelude::*,
};

impl<V: Operations> Locked<V> {
    /// Fails with `EINVAL` unless it is a regular file. The mappings of other inodes have no
    /// operations that would free what iomap attaches to folios.
    fn check_regular(&self) -> Result {
        match self.is_file() {
            true => Ok(()),
            false => Err(EINVAL),
        }
    }

    /// Zeroes the bytes affected by a change of the file's size from `old` to `new`, in the page
    /// cache or on disk: the rest of the last block if it shrinks, everything after the old end if
    /// it grows.
    pub(crate) fn zero_for_resize(&self, old: u64, new: u64) -> Result {
        self.check_regular()?;
        if new >= old {
            return self.zero(old..new);
        }
        let (end, _) = signed(&(new..old));
        // SAFETY: The inode is live, and locked by the type invariant.
        to_result(unsafe {
            bindings::iomap_truncate_page(
                self.as_ptr(),
                end,
                ptr::null_mut(),
                Tables::<V>::write_iomap(),
                Tables::<V>::WRITE,
                ptr::null_mut(),
            )
        })
    }

    /// Zeroes bytes through the page cache, unless they are zero already.
    pub(crate) fn zero(&self, bytes: Range<u64>) -> Result {
        self.check_regular()?;
        let (start, length) = signed(&bytes);
        // SAFETY: The inode is live, and locked by the type invariant.
        to_result(unsafe {
            bindings::iomap_zero_range(
                self.as_ptr(),
                start,
                length,
                ptr::null_mut(),
                Tables::<V>::write_iomap(),
                Tables::<V>::WRITE,
                ptr::null_mut(),
            )
        })
    }

    /// Gives the file its own blocks where these bytes are in shared ones, by marking them dirty in
    /// the page cache.
    pub(crate) fn unshare(&self, bytes: Range<u64>) -> Result {
        self.check_regular()?;
        let (start, length) = signed(&bytes);
        // SAFETY: The inode is live, and locked by the type invariant.
        to_result(unsafe {
            bindings::iomap_file_unshare(
                self.as_ptr(),
                start,
                length,
                Tables::<V>::write_iomap(),
                Tables::<V>::WRITE,
            )
        })
    }

    /// Drops these bytes from the page cache. They have been written back, or are discarded. Page
    /// faults must be blocked.
    pub(crate) fn drop_cache(&self, bytes: Range<u64>) {
        let (start, length) = signed(&bytes);
        if length > 0 {
            // SAFETY: The inode is live. If page faults are not blocked, pages may reappear.
            unsafe { bindings::truncate_pagecache_range(self.as_ptr(), start, start + length - 1) };
        }
    }
}

impl<V: FileSystem> Inode<V> {
    /// Returns true if the file is open for writing.
    pub(crate) fn has_writers(&self) -> bool {
        // SAFETY: The inode is live by its type invariant.
        unsafe { bindings::rext4_inode_has_writers(self.as_ptr()) }
    }

    /// Locks the file against all changes; returns `None` if it is locked, dirty or under I/O.
    pub(crate) fn lock_idle(&self) -> Option<(InodeLock<'_, V>, FaultLock<'_, V>)> {
        // SAFETY: The inode is live by its type invariant. Each guard is created after its lock is
        // taken.
        unsafe {
            let inode = bindings::rext4_inode_trylock(self.as_ptr()).then(|| InodeLock::locked(self))?;
            let faults = bindings::rext4_faults_trylock(self.as_ptr()).then(|| FaultLock(self))?;
            bindings::rext4_mapping_is_clean(self.as_ptr()).then_some((inode, faults))
        }
    }

    /// Waits for direct I/O to complete. The inode must be locked, so that no new I/O starts.
    pub(crate) fn wait_direct(&self) {
        // SAFETY: The inode is live by its type invariant.
        unsafe { bindings::inode_dio_wait(self.as_ptr()) };
    }

    /// Writes back the cached data in these bytes of the file, and waits for completion.
    pub(crate) fn write_out(&self, bytes: Range<u64>) -> Result {
        let Some(last) = bytes.end.checked_sub(1).filter(|&last| last >= bytes.start) else {
            return Ok(());
        };
        let (first, last) = (bytes.start.min(i64::MAX as u64), last.min(i64::MAX as u64));
        // SAFETY: The inode is live, and so is its mapping.
        to_result(unsafe {
            let mapping = (*self.as_ptr()).i_mapping;
            bindings::filemap_write_and_wait_range(mapping, first as i64, last as i64)
        })
    }

    /// Starts writeback of the file's cached data, without waiting.
    pub(crate) fn start_write_out(&self) -> Result {
        // SAFETY: The inode is live, and so is its mapping.
        to_result(unsafe { bindings::filemap_flush((*self.as_ptr()).i_mapping) })
    }

    /// Blocks page faults and reads from adding pages of the file to the page cache. The inode must
    /// be locked.
    pub(crate) fn lock_faults(&self) -> FaultLock<'_, V> {
        // SAFETY: The inode is live by its type invariant.
        unsafe { bindings::rext4_faults_lock(self.as_ptr()) };
        FaultLock(self)
    }
}

/// Returns start and length of a range of bytes as signed numbers.
fn signed(bytes: &Range<u64>) -> (i64, i64) {
    let most = i64::MAX as u64;
    let (start, end) = (bytes.start.min(most), bytes.end.min(most));
    (start as i64, end.saturating_sub(start) as i64)
}

impl<V: FileSystem> SuperBlock<V> {
    /// Zeroes blocks on the device, and waits for completion.
    pub(crate) fn zero_out(&self, start: u64, len: u32) -> Result {
        // SAFETY: The superblock is live, and so is its device.
        to_result(unsafe { bindings::rext4_zero_out(self.as_ptr(), start, u64::from(len)) })
    }
}

/// Keeps pages of a file from being added to the page cache until it is dropped
/// (`invalidate_lock`).
pub(crate) struct FaultLock<'a, V: FileSystem>(&'a Inode<V>);

impl<V: FileSystem> Drop for FaultLock<'_, V> {
    fn drop(&mut self) {
        // SAFETY: The inode is live, and this task holds the lock.
        unsafe { bindings::rext4_faults_unlock(self.0.as_ptr()) };
    }
}

impl<V: Operations> Tables<V> {
    const WRITE_IOMAP: &'static bindings::iomap_ops = &bindings::iomap_ops {
        iomap_begin: Some(Self::write_begin),
        iomap_end: None,
        iomap_next: None,
    };

    const WRITE: &'static bindings::iomap_write_ops = &bindings::iomap_write_ops {
        iomap_valid: Some(Self::is_valid),
        ..pin_init::zeroed()
    };

    const WRITEBACK: &'static bindings::iomap_writeback_ops = &bindings::iomap_writeback_ops {
        writeback_range: Some(Self::writeback_range),
        writeback_submit: Some(Self::writeback_submit),
    };

    const MEMORY: &'static bindings::vm_operations_struct = &bindings::vm_operations_struct {
        fault: Some(bindings::filemap_fault),
        map_pages: Some(bindings::filemap_map_pages),
        page_mkwrite: Some(Self::page_mkwrite),
        ..pin_init::zeroed()
    };

    pub(super) fn write_iomap() -> *const bindings::iomap_ops {
        Self::WRITE_IOMAP
    }

    /// # Safety
    ///
    /// Must be called as iomap calls it: with an inode of ours and room for the answer.
    unsafe extern "C" fn write_begin(
        inode: *mut bindings::inode,
        position: i64,
        length: i64,
        flags: u32,
        out: *mut bindings::iomap,
        source: *mut bindings::iomap,
    ) -> c_int {
        let change = if flags & bindings::IOMAP_FAULT != 0 {
            Change::Fault
        } else if flags & bindings::IOMAP_DIRECT != 0 {
            Change::Direct
        } else if flags & bindings::IOMAP_UNSHARE != 0 {
            Change::Unshare
        } else if flags & bindings::IOMAP_WRITE != 0 {
            Change::Write
        } else {
            Change::Zero
        };
        let (position, length) = (position.max(0) as u64, length.max(0) as u64);
        from_result(|| {
            // SAFETY: The inode is live and one of ours; iomap provides both mappings.
            let (inode, out, source) = unsafe { (Inode::<V>::from_ptr(inode), &mut *out, &mut *source) };
            loop {
                let version = V::map_version(inode);
                if let Some(target) = V::target(inode, position, length, change)? {
                    Self::answer(out, inode, position, &target.place, version)?;
                    // Whether a commit is needed to find the data is not tested: a flush always
                    // follows.
                    out.flags |= bindings::IOMAP_F_DIRTY as u16;
                    if let Some(old) = &target.old {
                        Self::answer(source, inode, position, old, version)?;
                    }
                    return Ok(0);
                }
                V::allocate(inode, position, length, change)?;
            }
        })
    }

    /// # Safety
    ///
    /// Must be called as iomap calls it: with an inode of ours and a mapping that was made for it.
    unsafe extern "C" fn is_valid(inode: *mut bindings::inode, map: *const bindings::iomap) -> bool {
        // SAFETY: The inode and the mapping are live.
        unsafe { V::map_version(Inode::from_ptr(inode)) == (*map).validity_cookie }
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with an open file of ours and the bytes to write.
    pub(super) unsafe extern "C" fn write_iter(
        request: *mut bindings::kiocb,
        from: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: The file is open, so its inode is live; it is locked around the write.
        unsafe {
            let inode = (*(*request).ki_filp).f_inode;
            if let Err(error) = Self::check_writes(Inode::from_ptr(inode)) {
                return error.to_errno() as isize;
            }
            if (*request).ki_flags & bindings::REXT4_IOCB_NOWAIT != 0 {
                // As stock ext4: writes through the page cache know no way not to wait, others may
                // have to.
                return match (*request).ki_flags as u32 & bindings::IOCB_DIRECT {
                    0 => unsupported().to_errno() as isize,
                    _ => EAGAIN.to_errno() as isize,
                };
            }
            V::before_write(Inode::from_ptr(inode));
            if (*request).ki_flags as u32 & bindings::IOCB_DIRECT != 0 {
                return Self::write_direct(request, from, inode);
            }
            bindings::rext4_inode_lock(inode);
            let mut done = Self::check_write(request, from);
            if done > 0 {
                done = Self::write_cached(request, from, inode);
            }
            bindings::rext4_inode_unlock(inode);
            if done > 0 {
                return bindings::rext4_write_sync(request, done);
            }
            done
        }
    }

    /// Checks a write and updates the file's times. Returns 0 if there is nothing to write.
    ///
    /// # Safety
    ///
    /// As for [`Self::write_iter`], with the inode locked.
    pub(super) unsafe fn check_write(request: *mut bindings::kiocb, from: *mut bindings::iov_iter) -> isize {
        // SAFETY: The caller guarantees the arguments.
        unsafe {
            // It may have become so since it was opened.
            if Inode::<V>::from_ptr((*(*request).ki_filp).f_inode).has_flag(bindings::S_IMMUTABLE) {
                return EPERM.to_errno() as isize;
            }
            let checked = bindings::generic_write_checks(request, from);
            if checked <= 0 {
                return checked;
            }
            // The limit of the volume may be higher than that of the file.
            let most = V::max_size(Inode::from_ptr((*(*request).ki_filp).f_inode));
            let left = most.saturating_sub((*request).ki_pos.max(0) as u64);
            if left == 0 {
                return EFBIG.to_errno() as isize;
            }
            bindings::rext4_iter_truncate(from, left);
            let checked = bindings::rext4_iter_count(from) as isize;
            let modified = bindings::file_modified((*request).ki_filp);
            if modified != 0 {
                return modified as isize;
            }
            checked
        }
    }

    /// Writes through the page cache.
    ///
    /// # Safety
    ///
    /// As for [`Self::write_iter`], with the inode locked.
    pub(super) unsafe fn write_cached(
        request: *mut bindings::kiocb,
        from: *mut bindings::iov_iter,
        inode: *mut bindings::inode,
    ) -> isize {
        // SAFETY: The caller guarantees the arguments.
        unsafe {
            let this = Locked::<V>::from_ptr(inode);
            let (end, position) = (this.size(), (*request).ki_pos.max(0) as u64);
            if position > end {
                if let Err(error) = this.zero_for_resize(end, position) {
                    return error.to_errno() as isize;
                }
            }
            let wanted = position.saturating_add(bindings::rext4_iter_count(from) as u64);
            let done = bindings::iomap_file_buffered_write(
                request,
                from,
                Self::write_iomap(),
                Self::WRITE,
                ptr::null_mut(),
            );
            Self::trim(this, wanted);
            done
        }
    }

    /// Frees the blocks that a write up to byte `wanted` of a file allocated beyond its end but did
    /// not use.
    pub(super) fn trim(inode: &Locked<V>, wanted: u64) {
        if wanted <= inode.size() {
            return;
        }
        if let Some(error) = V::trim(inode).err().filter(|_| SuperBlock::<V>::may_log()) {
            pr_err!(
                "{}: inode {}: blocks beyond its end could not be freed: error {}\n",
                inode.super_block().name(),
                inode.number(),
                error.to_errno()
            );
        }
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with an open file of ours and the description of a
    /// memory mapping of it.
    pub(super) unsafe extern "C" fn mmap_prepare(desc: *mut bindings::vm_area_desc) -> c_int {
        // SAFETY: The description and its file are live for the call, and the table for ever.
        unsafe {
            if let Err(error) = Self::check_access((*desc).file) {
                return error.to_errno();
            }
            let done = bindings::generic_file_mmap_prepare(desc);
            if done == 0 {
                (*desc).vm_ops = Self::MEMORY;
            }
            done
        }
    }

    /// # Safety
    ///
    /// Must be called as the memory manager calls it: with a fault on a page of a file of ours.
    unsafe extern "C" fn page_mkwrite(fault: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: The fault is live for the call, and so is the file that is mapped.
        let inode = unsafe { Inode::<V>::from_ptr((*(*(*fault).__bindgen_anon_1.vma).vm_file).f_inode) };
        if inode.has_flag(bindings::S_IMMUTABLE) || Self::check_writes(inode).is_err() {
            return bindings::vm_fault_reason_VM_FAULT_SIGBUS;
        }
        V::before_write(inode);
        // SAFETY: The fault is live for the call.
        unsafe { bindings::rext4_page_mkwrite(fault, Self::write_iomap()) }
    }

    /// # Safety
    ///
    /// Must be called as the page cache calls it: with the mapping of a file of ours.
    pub(super) unsafe extern "C" fn writepages(
        mapping: *mut bindings::address_space,
        control: *mut bindings::writeback_control,
    ) -> c_int {
        // SAFETY: The mapping and the request are live during the call, and so is the context.
        unsafe {
            if let Err(error) = Self::check_writes(Inode::from_ptr((*mapping).host)) {
                return error.to_errno();
            }
            let mut context: bindings::iomap_writepage_ctx = pin_init::zeroed();
            context.inode = (*mapping).host;
            context.wbc = control;
            context.ops = Self::WRITEBACK;
            bindings::iomap_writepages(&mut context)
        }
    }

    /// # Safety
    ///
    /// Must be called as iomap calls it: with the context of [`Self::writepages`] and a locked
    /// folio.
    unsafe extern "C" fn writeback_range(
        context: *mut bindings::iomap_writepage_ctx,
        folio: *mut bindings::folio,
        position: u64,
        length: u32,
        end: u64,
    ) -> isize {
        // SAFETY: The context and the folio are live during the call.
        unsafe {
            let map = &mut (*context).iomap;
            let inode = (*context).inode;
            let version = V::map_version(Inode::from_ptr(inode));
            let start = map.offset.max(0) as u64;
            if map.validity_cookie != version || position < start || position >= start + map.length {
                let this = Inode::<V>::from_ptr(inode);
                let told = V::write_back(this, position, u64::from(length))
                    .and_then(|found| Self::answer(map, this, position, &found, version));
                if let Err(error) = told {
                    return error.to_errno() as isize;
                }
            }
            // Skip holes: a page written to through a mapping is dirty as a whole, also beyond the
            // end of the file, where there are no blocks; if the file grows, it has zeroes there.
            // Blocks are allocated by later writes to it.
            bindings::iomap_add_to_ioend(context, folio, position as i64, end as i64, length)
        }
    }

    /// # Safety
    ///
    /// Must be called as iomap calls it: with the context of [`Self::writepages`].
    unsafe extern "C" fn writeback_submit(
        context: *mut bindings::iomap_writepage_ctx,
        error: c_int,
    ) -> c_int {
        // SAFETY: The context contains the ioend that is about to be submitted.
        unsafe {
            let ioend = (*context).wb_ctx.cast::<bindings::iomap_ioend>();
            let end = (*ioend).io_offset.max(0) as u64 + (*ioend).io_size as u64;
            let marked = bindings::IOMAP_IOEND_UNWRITTEN | bindings::IOMAP_IOEND_SHARED;
            let marked = u32::from((*ioend).io_flags) & marked != 0;
            let inode = Inode::<V>::from_ptr((*context).inode);
            if error == 0 && (marked || end > V::disk_size(inode)) {
                bindings::rext4_ioend_defer(ioend, inode.super_block().completions());
            }
            bindings::iomap_ioend_writeback_submit(context, error)
        }
    }

    /// # Safety
    ///
    /// Must be called as the volume's worker calls it: with writeback whose I/O is done.
    pub(super) unsafe extern "C" fn finish(ioend: *mut bindings::iomap_ioend, error: c_int) {
        // SAFETY: The inode is live as long as any of its pages is under writeback.
        unsafe {
            let inode = Inode::<V>::from_ptr((*ioend).io_inode);
            let mut error = error;
            if error == 0 {
                error = from_result(|| {
                    let flag = |flag| u32::from((*ioend).io_flags) & flag != 0;
                    let (start, length) = ((*ioend).io_offset.max(0) as u64, (*ioend).io_size as u64);
                    let what = Written {
                        start,
                        length,
                        end: (start + length).min(inode.size()),
                        unwritten: flag(bindings::IOMAP_IOEND_UNWRITTEN),
                        staged: flag(bindings::IOMAP_IOEND_SHARED),
                        direct: false,
                    };
                    V::written(inode, what)?;
                    Ok(0)
                });
                if error != 0 && Self::check_writes(inode).is_ok() && SuperBlock::<V>::may_log() {
                    let (name, number) = (inode.super_block().name(), inode.number());
                    pr_err!("{name}: inode {number}: written data could not be recorded: error {error}\n");
                }
            }
            bindings::iomap_finish_ioends(ioend, error);
        }
    }
}
