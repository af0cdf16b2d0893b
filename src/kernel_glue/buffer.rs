// SPDX-License-Identifier: GPL-2.0

//! Metadata blocks in the block device's cache (`struct buffer_head`).
//!
//! C header: [`include/linux/buffer_head.h`](srctree/include/linux/buffer_head.h)

use super::{bindings, FileSystem, SuperBlock};
use core::{
    ops::Deref,
    ptr::{self, NonNull},
};
use kernel::{error::to_result, prelude::*};

/// A reference to a block that has been read; given back on drop.
///
/// # Invariants
///
/// `0` points to a buffer that is up to date and of which one reference is ours.
#[repr(transparent)]
pub(crate) struct Buffer(NonNull<bindings::buffer_head>);

// SAFETY: A buffer's reference count is atomic, and its reference may be given back from any thread.
unsafe impl Send for Buffer {}
// SAFETY: A shared `Buffer` only gives out the bytes and the block number.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Reads a block (of the volume, in file system blocks), waiting for the disk if it is not cached.
    ///
    /// Fails with `EIO` when it cannot be read or there is no memory for it.
    pub(crate) fn read<V: FileSystem>(sb: &SuperBlock<V>, block: u64) -> Result<Buffer> {
        // SAFETY: `sb` is a live superblock whose block size has been set.
        let bh = unsafe { bindings::rext4_sb_bread(sb.as_ptr(), block) };
        // INVARIANT: The helper returns an up-to-date buffer and a reference to it, or null.
        NonNull::new(bh).map(Buffer).ok_or(EIO)
    }

    /// The C buffer.
    pub(super) fn as_ptr(&self) -> *mut bindings::buffer_head {
        self.0.as_ptr()
    }

    /// Where its bytes start.
    pub(super) fn bytes(&self) -> *mut u8 {
        // SAFETY: By the type invariant the buffer is live.
        unsafe { self.0.as_ref().b_data.cast() }
    }

    /// The block's number on the volume.
    pub(crate) fn number(&self) -> u64 {
        // SAFETY: By the type invariant the buffer is live, and its place does not change.
        unsafe { self.0.as_ref().b_blocknr }
    }

    /// Copies a bitmap, with those bits set as well that were set when it was last committed, as long as a later state is
    /// not on disk. Blocks freed since then must not be allocated before the free has committed.
    pub(crate) fn copy_with_committed(&self, out: &mut [u8]) {
        let len = out.len().min(self.len());
        // SAFETY: By the type invariant the buffer is live; the helper looks under the lock of its journal head.
        unsafe { bindings::rext4_bitmap_with_committed(self.0.as_ptr(), out.as_mut_ptr(), len) };
    }

    /// Whether [`set_verified`](Self::set_verified) was called since the block came into the cache.
    pub(crate) fn is_verified(&self) -> bool {
        // SAFETY: By the type invariant the buffer is live; its state bits are atomic.
        unsafe { bindings::rext4_buffer_verified(self.0.as_ptr()) }
    }

    /// Notes that the block's contents were checked and need not be again while it stays in the cache.
    pub(crate) fn set_verified(&self) {
        // SAFETY: By the type invariant the buffer is live; its state bits are atomic.
        unsafe { bindings::rext4_buffer_set_verified(self.0.as_ptr()) };
    }

    /// Copies bytes of the block from `offset` on. For blocks of which others may change other bytes at the same time; the
    /// caller holds the lock of these.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the block has fewer bytes.
    pub(crate) fn copy(&self, offset: usize, out: &mut [u8]) -> Result {
        let end = offset.checked_add(out.len()).ok_or(EINVAL)?;
        if end > self.len() {
            return Err(EINVAL);
        }
        // SAFETY: By the type invariant the buffer is live, and the range was checked against its size. No reference to
        // its bytes is made, so that others may change it meanwhile.
        unsafe { bindings::rext4_buffer_copy(self.0.as_ptr(), offset, out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    /// The number of bytes.
    pub(crate) fn len(&self) -> usize {
        // SAFETY: By the type invariant the buffer is live, and its size does not change.
        unsafe { self.0.as_ref().b_size }
    }

    /// Whether the block is on this device.
    pub(super) fn is_on(&self, device: *mut bindings::block_device) -> bool {
        // SAFETY: By the type invariant the buffer is live, and its device does not change.
        unsafe { ptr::eq(self.0.as_ref().b_bdev, device) }
    }

    /// Starts to write blocks that were [filled](FreshBuffer::fill), those that lie side by side together;
    /// [`Buffer::wait`] says when the disk has one.
    pub(crate) fn submit(filled: &[Buffer]) {
        // SAFETY: A `Buffer` is but the pointer, and by the type invariant each of them is live.
        unsafe { bindings::rext4_buffers_submit(filled.as_ptr().cast(), filled.len()) };
    }

    /// Waits until the submitted block is written. Fails with `EIO`.
    pub(crate) fn wait(&self) -> Result {
        // SAFETY: By the type invariant the buffer is live.
        to_result(unsafe { bindings::rext4_buffer_wait(self.0.as_ptr()) })
    }

    /// Overwrites bytes of the block from `offset` on and waits until the disk has it. Not journaled: only for
    /// blocks that no handle has open.
    pub(crate) fn write_now(&mut self, offset: usize, bytes: &[u8]) -> Result {
        let end = offset.checked_add(bytes.len()).ok_or(EINVAL)?;
        if end > self.len() {
            return Err(EINVAL);
        }
        // SAFETY: By the type invariant the buffer is live, and the range was checked against its size. The helper takes
        // the buffer's lock, and no reference to its bytes is made.
        to_result(unsafe {
            bindings::rext4_buffer_write_now(self.0.as_ptr(), offset, bytes.as_ptr(), bytes.len())
        })
    }
}

/// A block that was just allocated, or is about to be written whole. It was not read, and has no contents: it becomes a
/// [`Buffer`] by [`Handle::create`](super::Handle::create), [`Handle::renew`](super::Handle::renew) or
/// [`fill`](Self::fill).
///
/// # Invariants
///
/// `0` is a buffer, except that it need not be up to date.
pub(crate) struct FreshBuffer(Buffer);

impl FreshBuffer {
    /// A block (of the volume) that is not read.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, also for a block behind the end of the device.
    pub(crate) fn new<V: FileSystem>(sb: &SuperBlock<V>, block: u64) -> Result<FreshBuffer> {
        // SAFETY: `sb` is a live superblock whose block size has been set.
        let bh = unsafe { bindings::rext4_sb_getblk(sb.as_ptr(), block) };
        // INVARIANT: A reference is ours.
        NonNull::new(bh).map(|bh| FreshBuffer(Buffer(bh))).ok_or(ENOMEM)
    }

    /// The block's number on the volume.
    pub(crate) fn number(&self) -> u64 {
        self.0.number()
    }

    /// Fills the block, past the journal; to be written by [`Buffer::submit`].
    ///
    /// # Errors
    ///
    /// `EINVAL` when these are not as many bytes as the block has.
    pub(crate) fn fill(self, bytes: &[u8]) -> Result<Buffer> {
        if bytes.len() != self.0.len() {
            return Err(EINVAL);
        }
        // SAFETY: By the type invariant the buffer is live, and there are as many bytes as it takes.
        unsafe { bindings::rext4_buffer_fill(self.0.as_ptr(), bytes.as_ptr()) };
        // INVARIANT: It was made up to date.
        Ok(self.0)
    }

    /// The buffer, which has no contents yet.
    pub(super) fn into_raw(self) -> Buffer {
        self.0
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: By the type invariant the buffer is live and up to date, so that `b_data` has `b_size` bytes. They change
        // only under the lock of the structure that the block holds, which the reader has taken; a block that holds several
        // structures under different locks is read by `copy`. Nothing but that convention keeps a caller without the lock out.
        unsafe {
            let bh = self.0.as_ref();
            core::slice::from_raw_parts(bh.b_data.cast(), bh.b_size)
        }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        // SAFETY: By the type invariant the buffer is live.
        unsafe { bindings::rext4_get_bh(self.0.as_ptr()) };
        // INVARIANT: The buffer is as it was, and the reference is a new one.
        Buffer(self.0)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: By the type invariant one reference is ours to give back.
        unsafe { bindings::rext4_brelse(self.0.as_ptr()) };
    }
}
