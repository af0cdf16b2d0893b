// SPDX-License-Identifier: GPL-2.0

//! Handles (`handle_t` of jbd2), through which metadata is written.
//!
//! A [`Handle`] opens blocks for writing. [`BufferMut`] gives access to their bytes, and adds the
//! block to the transaction when it is dropped. The writer must update checksums before that.
//!
//! C header: [`include/linux/jbd2.h`](srctree/include/linux/jbd2.h)

use super::{
    bindings,
    buffer::{FreshBuffer, KeptBuffer},
    journal::{Journal, Log, UNLOGGED_ROOM},
    Buffer, FileSystem, SuperBlock,
};
use core::{
    mem::ManuallyDrop,
    ops::{Deref, DerefMut, Range},
    ptr::NonNull,
};
use kernel::{
    error::{from_err_ptr, to_result},
    prelude::*,
    sync::{atomic::Relaxed, Arc},
};

/// The number of blocks that a handle reserves.
#[derive(Clone, Copy)]
pub(crate) struct Credits {
    /// Maximum number of blocks to be written.
    pub(crate) blocks: u32,
    /// Maximum number of blocks to be revoked.
    pub(crate) revokes: u32,
}

/// A part of the running transaction: everything written through it reaches the disk as a whole or
/// not at all.
///
/// A handle belongs to the thread that started it. Starting another one while one is open joins the
/// outer one, whose credits must suffice for both. It ends on drop.
pub(crate) struct Handle {
    raw: Raw,
    /// Keeps the journal alive.
    journal: Arc<Journal>,
}

/// # Invariants
///
/// A jbd2 handle is live and belongs to this handle's journal. Without a journal, this is counted
/// in the task's handles.
#[derive(Clone, Copy)]
enum Raw {
    Jbd2(NonNull<bindings::handle_t>),
    Unlogged(NonNull<bindings::rext4_unlogged>),
}

impl Handle {
    /// Starts a handle, waiting for room in the journal if necessary.
    ///
    /// # Errors
    ///
    /// `EROFS` when the journal was aborted, `ENOSPC` when the credits exceed the journal's
    /// capacity, and `EDEADLK` inside a handle of another volume.
    pub(crate) fn start(journal: Arc<Journal>, credits: Credits) -> Result<Handle> {
        let (blocks, revokes) = (
            i32::try_from(credits.blocks).map_err(|_| EINVAL)?,
            i32::try_from(credits.revokes).map_err(|_| EINVAL)?,
        );
        let raw = match &journal.log {
            Log::Jbd2(raw) => raw.as_ptr(),
            Log::Absent { unlogged, aborted } => {
                if aborted.load(Relaxed) {
                    return Err(EROFS);
                }
                // SAFETY: By the type invariant it is live.
                to_result(unsafe { bindings::rext4_unlogged_begin(unlogged.as_ptr()) })?;
                // INVARIANT: One more was counted just now.
                return Ok(Handle {
                    raw: Raw::Unlogged(*unlogged),
                    journal,
                });
            }
        };
        // SAFETY: The journal is live by its invariant, and was loaded before it became accessible.
        let raw = from_err_ptr(unsafe { bindings::rext4_handle_start(raw, blocks, revokes) })?;
        Ok(Handle {
            raw: Raw::Jbd2(NonNull::new(raw).ok_or(EINVAL)?),
            journal,
        })
    }

    /// Stops the handle. Fails with `EIO` or `EROFS` if the journal was aborted meanwhile.
    pub(crate) fn stop(self) -> Result {
        let this = ManuallyDrop::new(self);
        // SAFETY: The handle is live and not used after this. The journal reference is moved out
        // once.
        unsafe {
            let stopped = this.end();
            drop(core::ptr::read(&this.journal));
            stopped
        }
    }

    /// # Safety
    ///
    /// The handle must not be used again.
    unsafe fn end(&self) -> Result {
        match self.raw {
            // SAFETY: By the type invariant the handle is live, and the caller does not use it
            // afterwards.
            Raw::Jbd2(raw) => to_result(unsafe { bindings::jbd2_journal_stop(raw.as_ptr()) }),
            Raw::Unlogged(unlogged) => {
                // SAFETY: As above; the journal keeps what the pointer leads to.
                unsafe { bindings::rext4_unlogged_end(unlogged.as_ptr()) };
                Ok(())
            }
        }
    }

    fn jbd2(&self) -> Option<*mut bindings::handle_t> {
        match self.raw {
            Raw::Jbd2(raw) => Some(raw.as_ptr()),
            Raw::Unlogged(_) => None,
        }
    }

    /// Returns the number of blocks that can still be written.
    pub(crate) fn blocks_left(&self) -> u32 {
        let Some(raw) = self.jbd2() else {
            return UNLOGGED_ROOM;
        };
        // SAFETY: The handle is live and belongs to this thread.
        u32::try_from(unsafe { bindings::rext4_handle_credits(raw) }).unwrap_or(0)
    }

    /// Returns the number of blocks that can still be revoked.
    pub(crate) fn revokes_left(&self) -> u32 {
        let Some(raw) = self.jbd2() else {
            return UNLOGGED_ROOM;
        };
        // SAFETY: The handle is live and belongs to this thread.
        u32::try_from(unsafe { bindings::rext4_handle_revokes(raw) }).unwrap_or(0)
    }

    /// Requests credits for more blocks, without waiting. Returns false if there is no room.
    pub(crate) fn extend(&self, credits: Credits) -> Result<bool> {
        let Some(raw) = self.jbd2() else {
            return Ok(true);
        };
        // SAFETY: The handle is live and belongs to this thread.
        let answer = unsafe {
            bindings::jbd2_journal_extend(
                raw,
                i32::try_from(credits.blocks).map_err(|_| EINVAL)?,
                i32::try_from(credits.revokes).map_err(|_| EINVAL)?,
            )
        };
        if answer < 0 {
            to_result(answer)?;
        }
        Ok(answer == 0)
    }

    /// Returns the transaction that the handle is part of.
    pub(crate) fn transaction(&self) -> u32 {
        self.jbd2().map_or(0, |raw| {
            // SAFETY: The handle is live and belongs to this thread.
            unsafe { bindings::rext4_handle_tid(raw) }
        })
    }

    /// Makes the end of the handle wait for the commit (for synchronous directories and files).
    pub(crate) fn set_sync(&self) {
        if let Some(raw) = self.jbd2() {
            // SAFETY: The handle is live and belongs to this thread.
            unsafe { bindings::rext4_handle_set_sync(raw) };
        }
    }

    /// Fails with `EINVAL` for a block of another volume.
    fn check(&self, buffer: &Buffer<'_>) -> Result {
        match buffer.is_on(self.journal.device()) {
            true => Ok(()),
            false => Err(EINVAL),
        }
    }

    /// Opens a block for writing, and borrows its bytes exclusively. It becomes part of the
    /// transaction when the guard is dropped.
    ///
    /// # Errors
    ///
    /// As [`write_part`](Self::write_part).
    pub(crate) fn write<'h, 'a>(&'h self, buffer: &'h mut Buffer<'a>) -> Result<BufferMut<'h, 'a>> {
        let whole = 0..buffer.len();
        self.write_part(buffer, whole)
    }

    /// Opens a range of bytes of a block for writing, where other locks guard other parts of the
    /// block. The whole block stays borrowed until the guard is dropped, so keep that short.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a range that is not in the block and for a block of another volume; `EDEADLK`
    /// when the block's bytes are still borrowed after 30 seconds, for example by the current task
    /// itself; or the error of the journal.
    pub(crate) fn write_part<'h, 'a>(
        &'h self,
        buffer: &'h mut Buffer<'a>,
        range: Range<usize>,
    ) -> Result<BufferMut<'h, 'a>> {
        self.open(buffer, range)
    }

    /// Opens a kept block for writing, as [`write`](Self::write) does.
    ///
    /// # Errors
    ///
    /// As [`write_part`](Self::write_part).
    pub(crate) fn write_kept<'h, V: FileSystem>(
        &'h self,
        kept: &'h mut KeptBuffer<V>,
    ) -> Result<BufferMut<'h, 'h>> {
        let whole = 0..kept.buffer().len();
        self.open(kept.buffer(), whole)
    }

    fn open<'h, 'a>(&'h self, buffer: &'h Buffer<'a>, range: Range<usize>) -> Result<BufferMut<'h, 'a>> {
        self.check(buffer)?;
        if range.start > range.end || range.end > buffer.len() {
            return Err(EINVAL);
        }
        // SAFETY: The handle is live and belongs to this thread, and the buffer is live and of its
        // device.
        to_result(unsafe {
            match self.jbd2() {
                Some(raw) => bindings::rext4_write_access(raw, buffer.as_ptr()),
                None => bindings::rext4_contents_lock(buffer.as_ptr(), true),
            }
        })?;
        // INVARIANT: The handle has write access, the bytes were borrowed for writing, and the
        // range was checked.
        Ok(BufferMut {
            handle: self,
            buffer: Opened::Borrowed(buffer),
            range,
        })
    }

    /// Opens a bitmap for writing, and has jbd2 keep the committed state of it until the
    /// transaction has committed: [`Buffer::copy_with_committed`].
    ///
    /// # Errors
    ///
    /// As [`write_part`](Self::write_part).
    pub(crate) fn write_bitmap<'h, 'a>(&'h self, buffer: &'h mut Buffer<'a>) -> Result<BufferMut<'h, 'a>> {
        self.check(buffer)?;
        // SAFETY: The handle is live and belongs to this thread, and the buffer is live and of its
        // device.
        to_result(unsafe {
            match self.jbd2() {
                Some(raw) => bindings::rext4_undo_access(raw, buffer.as_ptr()),
                None => bindings::rext4_contents_lock(buffer.as_ptr(), true),
            }
        })?;
        let range = 0..buffer.len();
        // INVARIANT: As in `open`; the range is the whole block.
        Ok(BufferMut {
            handle: self,
            buffer: Opened::Borrowed(buffer),
            range,
        })
    }

    /// Opens a block that was just allocated, and zeroes it; it is not read.
    ///
    /// # Errors
    ///
    /// As [`write_part`](Self::write_part).
    pub(crate) fn create<'a>(&self, fresh: FreshBuffer<'a>) -> Result<BufferMut<'_, 'a>> {
        let buffer = fresh.into_raw();
        self.check(&buffer)?;
        // SAFETY: The handle is live and belongs to this thread. The buffer is live and on the
        // handle's device.
        let result = to_result(unsafe {
            match self.jbd2() {
                Some(raw) => bindings::rext4_create_access(raw, buffer.as_ptr()),
                None => bindings::rext4_unlogged_clear(buffer.as_ptr()),
            }
        });
        // jbd2 aborts silently if a transaction still uses the block.
        result.inspect_err(|_| {
            pr_err!(
                "{}: block {} could not be opened as new\n",
                &*self.journal.name,
                buffer.number()
            );
        })?;
        Ok(self.created(buffer))
    }

    /// Opens a block that will be overwritten completely, and zeroes it; it is not read. Unlike
    /// with [`create`](Self::create), it may recently have held metadata that was not revoked, and
    /// may be part of a transaction that is being committed.
    ///
    /// # Errors
    ///
    /// As [`write_part`](Self::write_part).
    pub(crate) fn renew<'a>(&self, fresh: FreshBuffer<'a>) -> Result<BufferMut<'_, 'a>> {
        let buffer = fresh.into_raw();
        self.check(&buffer)?;
        // SAFETY: The handle is live and belongs to this thread. The buffer is live and on the
        // handle's device.
        to_result(unsafe {
            match self.jbd2() {
                Some(raw) => bindings::rext4_renew_access(raw, buffer.as_ptr()),
                None => bindings::rext4_unlogged_clear(buffer.as_ptr()),
            }
        })?;
        Ok(self.created(buffer))
    }

    /// Returns the guard for a buffer that is up to date, has write access, and whose bytes are
    /// borrowed exclusively.
    fn created<'a>(&self, buffer: Buffer<'a>) -> BufferMut<'_, 'a> {
        let range = 0..buffer.len();
        // INVARIANT: Guaranteed by the caller; the range is the whole block.
        BufferMut {
            handle: self,
            buffer: Opened::Owned(buffer),
            range,
        }
    }

    /// Revokes a metadata block that was freed: it is no longer written, and not replayed after a
    /// crash.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a block of another volume, or the journal's error.
    pub(crate) fn revoke<V: FileSystem>(&self, sb: &SuperBlock<V>, block: u64) -> Result {
        if !core::ptr::eq(sb.device(), self.journal.device()) {
            return Err(EINVAL);
        }
        // SAFETY: The handle is live and belongs to this thread, and the superblock is live.
        to_result(unsafe {
            match self.jbd2() {
                Some(raw) => bindings::rext4_revoke(raw, sb.as_ptr(), block),
                None => {
                    bindings::rext4_unlogged_forget(sb.as_ptr(), block);
                    0
                }
            }
        })
    }

    /// Returns true if the journal was aborted.
    pub(crate) fn is_aborted(&self) -> bool {
        self.journal.is_aborted()
    }

    /// Aborts the journal, for use when metadata was changed partially and this cannot be undone.
    pub(crate) fn abort(&self, error: Error) {
        self.journal.abort(error);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: The handle is not used after this. An error stays recorded in the journal, and is
        // reported by the next handle.
        let _ = unsafe { self.end() };
    }
}

/// The block of a [`BufferMut`].
enum Opened<'h, 'a> {
    Borrowed(&'h Buffer<'a>),
    Owned(Buffer<'a>),
}

impl<'a> Deref for Opened<'_, 'a> {
    type Target = Buffer<'a>;

    fn deref(&self) -> &Buffer<'a> {
        match self {
            Opened::Borrowed(buffer) => buffer,
            Opened::Owned(buffer) => buffer,
        }
    }
}

/// Bytes of a block, borrowed exclusively for writing within a handle.
///
/// # Invariants
///
/// The handle has write access to the buffer, its contents are borrowed for writing, and the
/// range lies in it.
#[must_use]
pub(crate) struct BufferMut<'h, 'a> {
    handle: &'h Handle,
    buffer: Opened<'h, 'a>,
    range: Range<usize>,
}

impl<'a> BufferMut<'_, 'a> {
    /// Makes the block part of the transaction, and returns it.
    pub(crate) fn into_buffer(self) -> Buffer<'a> {
        Buffer::clone(&self.buffer)
    }

    /// For a bitmap: keeps `len` bits from `start` on set in the committed state returned by
    /// [`Buffer::copy_with_committed`], for blocks freed now. Bits beyond the block are ignored.
    pub(crate) fn hold_freed(&self, start: u32, len: u32) {
        let bits = self.buffer.len().saturating_mul(8);
        if (start as usize).saturating_add(len as usize) <= bits {
            // SAFETY: The buffer is live, the bits are within it, and the helper takes the lock of
            // its journal head.
            unsafe { bindings::rext4_bitmap_hold_freed(self.buffer.as_ptr(), start, len) };
        }
    }
}

impl Deref for BufferMut<'_, '_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: By the type invariant the range lies in the buffer, which is live, and no one
        // else has borrowed its bytes.
        unsafe { core::slice::from_raw_parts(self.buffer.start().add(self.range.start), self.range.len()) }
    }
}

impl DerefMut for BufferMut<'_, '_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: As for `deref`.
        unsafe {
            core::slice::from_raw_parts_mut(self.buffer.start().add(self.range.start), self.range.len())
        }
    }
}

impl Drop for BufferMut<'_, '_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the contents are borrowed for writing, which ends
        // here. The buffer is live.
        unsafe { bindings::rext4_contents_unlock(self.buffer.as_ptr(), true) };
        let Some(raw) = self.handle.jbd2() else {
            // SAFETY: The buffer is live and up to date.
            unsafe { bindings::mark_buffer_dirty(self.buffer.as_ptr()) };
            return;
        };
        // SAFETY: The handle is live and has write access to the buffer.
        let error = unsafe { bindings::jbd2_journal_dirty_metadata(raw, self.buffer.as_ptr()) };
        if error != 0 {
            // The change is in memory, but would not reach the disk with the rest of its
            // transaction.
            pr_err!(
                "{}: block {} could not be made part of a transaction: error {error}\n",
                &*self.handle.journal.name,
                self.buffer.number()
            );
            self.handle.abort(EIO);
        }
    }
}
