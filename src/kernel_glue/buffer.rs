// SPDX-License-Identifier: GPL-2.0

//! Metadata blocks in the block device's buffer cache (`struct buffer_head`).
//!
//! A [`Buffer`] keeps a block in memory. Several of them may refer to the same block, so its bytes
//! must be borrowed first. [`Bytes`] is a shared borrow for reading.
//! [`BufferMut`](super::handle::BufferMut), which a handle opens, is an exclusive borrow for
//! writing. The borrows are counted in the buffer head; a conflicting borrow waits. The locks of
//! the structures in a block already exclude each other, so waiting happens only for blocks that
//! hold several structures with a lock each.
//!
//! A buffer borrows its superblock. A [`KeptBuffer`] instead holds a reference to an inode of the
//! volume, which delays the unmount.
//!
//! C header: [`include/linux/buffer_head.h`](srctree/include/linux/buffer_head.h)

use super::{bindings, FileSystem, InodeRef, SuperBlock};
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::Deref,
    ptr::{self, NonNull},
};
use kernel::{error::to_result, prelude::*};

/// A reference to a block that has been read; released on drop.
///
/// # Invariants
///
/// `0` points to a buffer that is up to date and of which one reference is ours. Its superblock is
/// live for `'a`.
#[repr(transparent)]
pub(crate) struct Buffer<'a>(NonNull<bindings::buffer_head>, PhantomData<&'a ()>);

// SAFETY: A buffer's reference count is atomic, and a reference may be released by any thread.
unsafe impl Send for Buffer<'_> {}
// SAFETY: A shared `Buffer` gives out the block number, and its bytes only after a counted borrow.
unsafe impl Sync for Buffer<'_> {}

impl<'a> Buffer<'a> {
    /// Reads a block (of the volume, in file system blocks), waiting for the disk if it is not
    /// cached.
    ///
    /// Fails with `EIO` when it cannot be read or there is no memory for it.
    pub(crate) fn read<V: FileSystem>(sb: &'a SuperBlock<V>, block: u64) -> Result<Buffer<'a>> {
        // SAFETY: `sb` is a live superblock whose block size has been set.
        let bh = unsafe { bindings::rext4_sb_bread(sb.as_ptr(), block) };
        // INVARIANT: The helper returns an up-to-date buffer and a reference to it, or null; the
        // superblock is borrowed.
        NonNull::new(bh).map(|bh| Buffer(bh, PhantomData)).ok_or(EIO)
    }

    /// Borrows the bytes for reading. Waits while they are borrowed for writing.
    ///
    /// # Errors
    ///
    /// `EDEADLK` when they are still borrowed for writing after 30 seconds, for example because the
    /// current task itself holds that borrow.
    pub(crate) fn bytes(&self) -> Result<Bytes<'_>> {
        // SAFETY: By the type invariant the buffer is live.
        to_result(unsafe { bindings::rext4_contents_lock(self.as_ptr(), false) })?;
        // INVARIANT: The bytes were just borrowed, and the buffer lives while `self` is borrowed.
        Ok(Bytes {
            bh: self.0,
            owns: false,
            buffer: PhantomData,
        })
    }

    /// Borrows the bytes as [`bytes`](Self::bytes) does, and keeps the buffer for as long.
    ///
    /// # Errors
    ///
    /// `EDEADLK` as with [`bytes`](Self::bytes).
    pub(crate) fn into_bytes(self) -> Result<Bytes<'a>> {
        // SAFETY: By the type invariant the buffer is live.
        to_result(unsafe { bindings::rext4_contents_lock(self.as_ptr(), false) })?;
        // INVARIANT: The bytes were just borrowed, and the reference to the buffer is passed on.
        Ok(Bytes {
            bh: ManuallyDrop::new(self).0,
            owns: true,
            buffer: PhantomData,
        })
    }

    /// Turns this into a buffer that keeps its superblock, by a reference to an inode of the
    /// volume.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the inode is of another volume.
    pub(crate) fn keep<V: FileSystem>(self, keeper: &InodeRef<V>) -> Result<KeptBuffer<V>> {
        if !self.is_on(keeper.super_block().device()) {
            return Err(EINVAL);
        }
        // INVARIANT: The reference is passed on. Unmounting waits for the inode, so the superblock
        // is live until then.
        Ok(KeptBuffer {
            buffer: Buffer(ManuallyDrop::new(self).0, PhantomData),
            _keeper: keeper.clone(),
        })
    }

    /// Returns the C buffer.
    pub(super) fn as_ptr(&self) -> *mut bindings::buffer_head {
        self.0.as_ptr()
    }

    /// Returns the address of its bytes.
    pub(super) fn start(&self) -> *mut u8 {
        // SAFETY: By the type invariant the buffer is live, and its address does not change.
        unsafe { (*self.as_ptr()).b_data.cast() }
    }

    /// Returns the block's number on the volume.
    pub(crate) fn number(&self) -> u64 {
        // SAFETY: By the type invariant the buffer is live, and its number does not change.
        unsafe { (*self.as_ptr()).b_blocknr }
    }

    /// Copies a bitmap, with those bits set as well that were set when it was last committed, as
    /// long as a later state is not on disk. Blocks freed since then must not be allocated before
    /// the free has committed.
    ///
    /// # Errors
    ///
    /// `EDEADLK` as with [`bytes`](Self::bytes).
    pub(crate) fn copy_with_committed(&self, out: &mut [u8]) -> Result {
        let len = out.len().min(self.len());
        // SAFETY: By the type invariant the buffer is live. The helper borrows its bytes, and looks
        // at the committed ones under the lock of its journal head.
        to_result(unsafe { bindings::rext4_bitmap_with_committed(self.as_ptr(), out.as_mut_ptr(), len) })
    }

    /// Counts bits of a bitmap from `from` on, at most `most` and none at or beyond `end`, that are
    /// clear, and were so when it was last committed; see
    /// [`copy_with_committed`](Self::copy_with_committed).
    ///
    /// # Errors
    ///
    /// `EDEADLK` as with [`bytes`](Self::bytes).
    pub(crate) fn clear_run_with_committed(&self, from: u32, end: u32, most: u32) -> Result<u32> {
        let bits = u32::try_from(self.len().saturating_mul(8)).unwrap_or(u32::MAX);
        let stop = end.min(bits).min(from.saturating_add(most));
        if from >= stop {
            return Ok(0);
        }
        let mut found = 0;
        // SAFETY: By the type invariant the buffer is live, and the bits are within it. The helper
        // borrows its bytes, and looks at the committed ones under the lock of its journal head.
        to_result(unsafe { bindings::rext4_bitmap_next_used(self.as_ptr(), from, stop, &mut found) })?;
        Ok(found.saturating_sub(from))
    }

    /// Returns true if [`set_verified`](Self::set_verified) was called since the block was read
    /// into the cache.
    pub(crate) fn is_verified(&self) -> bool {
        // SAFETY: By the type invariant the buffer is live; its state bits are atomic.
        unsafe { bindings::rext4_buffer_verified(self.as_ptr()) }
    }

    /// Records that the block's contents have been verified, which is valid as long as the block
    /// stays cached.
    pub(crate) fn set_verified(&self) {
        // SAFETY: By the type invariant the buffer is live; its state bits are atomic.
        unsafe { bindings::rext4_buffer_set_verified(self.as_ptr()) };
    }

    /// Copies bytes of the block from `offset` on.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the block has fewer bytes, and `EDEADLK` as with [`bytes`](Self::bytes).
    pub(crate) fn copy(&self, offset: usize, out: &mut [u8]) -> Result {
        let end = offset.checked_add(out.len()).ok_or(EINVAL)?;
        if end > self.len() {
            return Err(EINVAL);
        }
        // SAFETY: By the type invariant the buffer is live, and the range was checked against its
        // size. The helper borrows the bytes for as long as it copies.
        to_result(unsafe { bindings::rext4_buffer_copy(self.as_ptr(), offset, out.as_mut_ptr(), out.len()) })
    }

    /// Returns the block size in bytes.
    pub(crate) fn len(&self) -> usize {
        // SAFETY: By the type invariant the buffer is live, and its size does not change.
        unsafe { (*self.as_ptr()).b_size }
    }

    /// Returns true if the block is on this device.
    pub(super) fn is_on(&self, device: *mut bindings::block_device) -> bool {
        // SAFETY: By the type invariant the buffer is live, and its device does not change.
        unsafe { ptr::eq((*self.as_ptr()).b_bdev, device) }
    }

    /// Starts writing blocks that were [filled](FreshBuffer::fill); adjacent ones are written
    /// together. [`Buffer::wait`] waits for one of them.
    pub(crate) fn submit(filled: &[Buffer<'_>]) {
        // SAFETY: A `Buffer` is a transparent wrapper of the pointer, and by the type invariant
        // each of them is live.
        unsafe { bindings::rext4_buffers_submit(filled.as_ptr().cast(), filled.len()) };
    }

    /// Waits until the submitted block is written. Fails with `EIO`.
    pub(crate) fn wait(&self) -> Result {
        // SAFETY: By the type invariant the buffer is live.
        to_result(unsafe { bindings::rext4_buffer_wait(self.as_ptr()) })
    }

    /// Overwrites bytes of the block from `offset` on, and waits until the block is on disk. This
    /// is not journaled, and only for blocks that no handle has open.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the block has fewer bytes, `EDEADLK` as with [`bytes`](Self::bytes), or `EIO`.
    pub(crate) fn write_now(&mut self, offset: usize, bytes: &[u8]) -> Result {
        let end = offset.checked_add(bytes.len()).ok_or(EINVAL)?;
        if end > self.len() {
            return Err(EINVAL);
        }
        // SAFETY: By the type invariant the buffer is live, and the range was checked against its
        // size. The helper borrows the bytes to write them.
        to_result(unsafe {
            bindings::rext4_buffer_write_now(self.as_ptr(), offset, bytes.as_ptr(), bytes.len())
        })
    }
}

/// A newly allocated block, or one that is about to be overwritten completely. It has not been read
/// and has no valid contents. It is turned into a [`Buffer`] by
/// [`Handle::create`](super::Handle::create), [`Handle::renew`](super::Handle::renew) or
/// [`fill`](Self::fill).
///
/// # Invariants
///
/// `0` is a buffer, except that it need not be up to date.
pub(crate) struct FreshBuffer<'a>(Buffer<'a>);

impl<'a> FreshBuffer<'a> {
    /// Returns a block (of the volume) without reading it.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, also for a block beyond the end of the device.
    pub(crate) fn new<V: FileSystem>(sb: &'a SuperBlock<V>, block: u64) -> Result<FreshBuffer<'a>> {
        // SAFETY: `sb` is a live superblock whose block size has been set.
        let bh = unsafe { bindings::rext4_sb_getblk(sb.as_ptr(), block) };
        // INVARIANT: A reference is ours, and the superblock is borrowed.
        NonNull::new(bh)
            .map(|bh| FreshBuffer(Buffer(bh, PhantomData)))
            .ok_or(ENOMEM)
    }

    /// Returns the block's number on the volume.
    pub(crate) fn number(&self) -> u64 {
        self.0.number()
    }

    /// Fills the block without journaling it. It has to be written by [`Buffer::submit`].
    ///
    /// # Errors
    ///
    /// `EINVAL` if the number of bytes is not the block size, and `EDEADLK` as with
    /// [`Buffer::bytes`].
    pub(crate) fn fill(self, bytes: &[u8]) -> Result<Buffer<'a>> {
        if bytes.len() != self.0.len() {
            return Err(EINVAL);
        }
        // SAFETY: By the type invariant the buffer is live, and the length was checked against its
        // size. The helper borrows its bytes to write them.
        to_result(unsafe { bindings::rext4_buffer_fill(self.0.as_ptr(), bytes.as_ptr()) })?;
        // INVARIANT: It was made up to date.
        Ok(self.0)
    }

    /// Returns the buffer, which has no valid contents yet.
    pub(super) fn into_raw(self) -> Buffer<'a> {
        self.0
    }
}

impl Clone for Buffer<'_> {
    fn clone(&self) -> Self {
        // SAFETY: By the type invariant the buffer is live.
        unsafe { bindings::rext4_get_bh(self.as_ptr()) };
        // INVARIANT: The reference is a new one.
        Buffer(self.0, PhantomData)
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant we own one reference, which is released once.
        unsafe { bindings::rext4_brelse(self.as_ptr()) };
    }
}

/// The bytes of a block, borrowed for reading until this is dropped.
///
/// # Invariants
///
/// `bh` points to an up-to-date buffer, which is live for `'a`. If `owns` is set, one reference to
/// it is ours. Its contents are borrowed for reading.
#[must_use]
pub(crate) struct Bytes<'a> {
    bh: NonNull<bindings::buffer_head>,
    owns: bool,
    buffer: PhantomData<&'a ()>,
}

impl Bytes<'_> {
    /// Returns the buffer, which must not be dropped.
    fn buffer(&self) -> ManuallyDrop<Buffer<'_>> {
        // INVARIANT: By the type invariant the buffer lives while `self` is borrowed; no reference
        // is given back.
        ManuallyDrop::new(Buffer(self.bh, PhantomData))
    }

    /// Returns true if the block's contents were verified; see [`Buffer::is_verified`].
    pub(crate) fn is_verified(&self) -> bool {
        self.buffer().is_verified()
    }

    /// Records that the block's contents were verified; see [`Buffer::set_verified`].
    pub(crate) fn set_verified(&self) {
        self.buffer().set_verified();
    }
}

impl Deref for Bytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: By the type invariant the buffer is live and up to date, so that `b_data` has
        // `b_size` bytes. Its contents are borrowed for reading, so no one in this module writes
        // them. A block that is up to date, or that could not be written, is never read again.
        unsafe {
            let bh = self.bh.as_ptr();
            core::slice::from_raw_parts((*bh).b_data.cast(), (*bh).b_size)
        }
    }
}

impl AsRef<[u8]> for Bytes<'_> {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Bytes<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the contents are borrowed for reading, which ends here. The
        // reference, if it is ours, is released after that.
        unsafe {
            bindings::rext4_contents_unlock(self.bh.as_ptr(), false);
            if self.owns {
                bindings::rext4_brelse(self.bh.as_ptr());
            }
        }
    }
}

/// A buffer that keeps its superblock.
///
/// # Invariants
///
/// The inode is of the buffer's volume.
pub(crate) struct KeptBuffer<V: FileSystem> {
    /// Dropped before the inode.
    buffer: Buffer<'static>,
    _keeper: InodeRef<V>,
}

impl<V: FileSystem> KeptBuffer<V> {
    /// Returns the buffer.
    pub(crate) fn buffer(&self) -> &Buffer<'_> {
        // A unique reference would allow swapping in a buffer that does not keep its superblock.
        &self.buffer
    }
}
