// SPDX-License-Identifier: GPL-2.0

//! The journal of a volume (`journal_t` of jbd2), and the handles through which metadata is written.
//!
//! A [`Handle`] opens blocks for writing: [`BufferMut`] gives their bytes, and makes the block part of the transaction
//! when it goes. Checksums are the writer's business, while the guard lives.
//!
//! C header: [`include/linux/jbd2.h`](srctree/include/linux/jbd2.h)

use super::{
    bindings, buffer::FreshBuffer, super_block::CountedJournal, Buffer, FileSystem, InodeRef, SuperBlock,
};
use core::{
    mem::ManuallyDrop,
    ops::{Deref, DerefMut, Range},
    ptr::NonNull,
};
use kernel::{
    error::{from_err_ptr, to_result},
    prelude::*,
    sync::Arc,
};

/// A journal that lies in an inode of the volume, not looked into yet. It can only be [loaded](Self::load).
pub(crate) struct UnloadedJournal(Journal);

impl UnloadedJournal {
    /// Opens the journal in `inode` without looking into it yet.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an inode without blocks, or `ENOMEM`.
    pub(crate) fn open<V: FileSystem>(inode: InodeRef<V>) -> Result<UnloadedJournal> {
        let counted = inode.super_block().count_journal();
        let inode = inode.into_raw();
        // SAFETY: `inode` is live and ours; its mapping has `bmap`.
        match from_err_ptr(unsafe { bindings::jbd2_journal_init_inode(inode) }) {
            // INVARIANT: jbd2 made it and took the inode's reference; the pointer is not null when it is no error.
            Ok(journal) => {
                let raw = NonNull::new(journal).ok_or(EINVAL)?;
                Ok(UnloadedJournal(Journal {
                    raw,
                    _counted: counted,
                }))
            }
            Err(error) => {
                // SAFETY: The reference stays ours when jbd2 fails.
                unsafe { bindings::iput(inode) };
                Err(error)
            }
        }
    }

    /// Replays the transactions that a crash left in the journal, and makes it ready to be written.
    ///
    /// `wide` says that the volume has 64-bit block numbers, `checksums` that its metadata carries checksums; the
    /// journal then does, too. Fails with `EFSCORRUPTED` or `EIO` when the journal is damaged or the device does not
    /// obey.
    pub(crate) fn load(self, wide: bool, checksums: bool) -> Result<Journal> {
        let journal = self.0;
        // SAFETY: By the type invariant the journal is live, and nobody else uses it before it is loaded.
        unsafe {
            bindings::rext4_journal_set_barrier(journal.raw.as_ptr());
            to_result(bindings::jbd2_journal_load(journal.raw.as_ptr()))?;
            let wanted = if wide {
                bindings::JBD2_FEATURE_INCOMPAT_64BIT
            } else {
                0
            } | if checksums {
                bindings::JBD2_FEATURE_INCOMPAT_CSUM_V3
            } else {
                0
            };
            // It returns 0 when the journal's own format is too old to have features.
            if bindings::jbd2_journal_set_features(journal.raw.as_ptr(), 0, 0, wanted as usize) == 0
                && wanted != 0
            {
                return Err(super::unsupported());
            }
        }
        Ok(journal)
    }
}

/// A journal that lies in an inode of the volume. Dropping it commits the running transaction, checkpoints, and stops its thread.
///
/// # Invariants
///
/// `raw` points to a live journal that is ours to destroy. Outside [`UnloadedJournal`] it is loaded.
pub(crate) struct Journal {
    raw: NonNull<bindings::journal_s>,
    /// Keeps the superblock.
    _counted: CountedJournal,
}

// SAFETY: A journal has locks of its own for all that is done through it.
unsafe impl Send for Journal {}
// SAFETY: As for `Send`.
unsafe impl Sync for Journal {}

impl Journal {
    /// Commits all, writes all of it to its place on the volume, and leaves an empty journal on disk.
    pub(crate) fn flush(&self) -> Result {
        // SAFETY: By the type invariant the journal is live; no update is let in while it is flushed.
        unsafe {
            bindings::jbd2_journal_lock_updates(self.raw.as_ptr());
            let flushed = to_result(bindings::jbd2_journal_flush(self.raw.as_ptr(), 0));
            bindings::jbd2_journal_unlock_updates(self.raw.as_ptr());
            flushed
        }
    }

    /// Starts the commit of the running transaction; with `wait` also waits until the disk has it.
    ///
    /// Must not be called with a handle open when waiting.
    pub(crate) fn commit(&self, wait: bool) -> Result {
        // SAFETY: By the type invariant the journal is live.
        unsafe {
            if wait {
                to_result(bindings::jbd2_journal_force_commit(self.raw.as_ptr()))
            } else {
                let mut tid = 0;
                bindings::jbd2_journal_start_commit(self.raw.as_ptr(), &mut tid);
                Ok(())
            }
        }
    }

    /// Waits until transaction `tid` is on disk, starting its commit if need be. Must not be called with a handle open.
    pub(crate) fn wait_for(&self, tid: u32) -> Result {
        // SAFETY: By the type invariant the journal is live.
        to_result(unsafe { bindings::jbd2_complete_transaction(self.raw.as_ptr(), tid) })
    }

    /// The newest transaction that something read now can have been changed by.
    pub(crate) fn newest(&self) -> u32 {
        // SAFETY: By the type invariant the journal is live.
        unsafe { bindings::rext4_journal_newest_tid(self.raw.as_ptr()) }
    }

    /// Whether transaction `tid` will flush the device's cache when it commits, so that nobody else need do so.
    pub(crate) fn will_flush_device(&self, tid: u32) -> bool {
        // SAFETY: By the type invariant the journal is live.
        unsafe { bindings::jbd2_trans_will_send_data_barrier(self.raw.as_ptr(), tid) != 0 }
    }

    /// Blocks that one handle can have at most.
    pub(crate) fn room(&self) -> u32 {
        // SAFETY: By the type invariant the journal is live.
        unsafe { bindings::rext4_journal_room(self.raw.as_ptr()) }
    }

    /// Stops all writing of metadata, for good: committed transactions stay, and no new one is accepted.
    pub(crate) fn abort(&self, error: Error) {
        // SAFETY: By the type invariant the journal is live.
        unsafe { bindings::jbd2_journal_abort(self.raw.as_ptr(), error.to_errno()) };
    }

    /// The name of its device and its inode's number, for messages: as jbd2 names it in its own.
    fn name(&self) -> &CStr {
        // SAFETY: By the type invariant the journal is live; its name is terminated and does not change.
        unsafe { CStr::from_char_ptr((*self.raw.as_ptr()).j_devname.as_ptr().cast()) }
    }

    /// Whether it was aborted.
    pub(crate) fn is_aborted(&self) -> bool {
        // SAFETY: By the type invariant the journal is live.
        unsafe { bindings::rext4_journal_is_aborted(self.raw.as_ptr()) }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the journal is live.
        let name = unsafe { (*self.raw.as_ptr()).j_devname };
        // SAFETY: By the type invariant the journal is ours to destroy, and this is its end.
        let error = unsafe { bindings::jbd2_journal_destroy(self.raw.as_ptr()) };
        if error != 0 {
            // SAFETY: The copy of the name is terminated.
            let name = unsafe { CStr::from_char_ptr(name.as_ptr().cast()) };
            pr_err!("{name}: the journal could not be closed cleanly: error {error}\n");
        }
    }
}

/// Blocks that a handle reserves room for.
#[derive(Clone, Copy)]
pub(crate) struct Credits {
    /// Blocks that may be written.
    pub(crate) blocks: u32,
    /// Blocks that may be revoked.
    pub(crate) revokes: u32,
}

/// A part of a running transaction: all that is written through it reaches the disk together, or not at all.
///
/// A handle belongs to the thread that started it. Starting another while one is open joins the outer one, whose room
/// must then do for both. It ends on drop.
pub(crate) struct Handle {
    raw: NonNull<bindings::handle_t>,
    /// Keeps the journal.
    journal: Arc<Journal>,
}

impl Handle {
    /// Starts a handle, waiting for room in the journal if there is none.
    ///
    /// Fails with `EROFS` when the journal was aborted, with `ENOSPC` when it can never have that much room, and with
    /// `EDEADLK` in a handle of another volume.
    pub(crate) fn start(journal: Arc<Journal>, credits: Credits) -> Result<Handle> {
        let (blocks, revokes) = (
            i32::try_from(credits.blocks).map_err(|_| EINVAL)?,
            i32::try_from(credits.revokes).map_err(|_| EINVAL)?,
        );
        // SAFETY: The journal is live and loaded by its invariant.
        let raw =
            from_err_ptr(unsafe { bindings::rext4_handle_start(journal.raw.as_ptr(), blocks, revokes) })?;
        Ok(Handle {
            raw: NonNull::new(raw).ok_or(EINVAL)?,
            journal,
        })
    }

    /// Ends the handle. Fails with `EIO` or `EROFS` when the journal was aborted meanwhile.
    pub(crate) fn stop(self) -> Result {
        let this = ManuallyDrop::new(self);
        // SAFETY: The handle is live, and ends here; its journal is taken out once.
        unsafe {
            let stopped = to_result(bindings::jbd2_journal_stop(this.raw.as_ptr()));
            drop(core::ptr::read(&this.journal));
            stopped
        }
    }

    /// Blocks that may still be written.
    pub(crate) fn blocks_left(&self) -> u32 {
        // SAFETY: The handle is live, and this thread's.
        u32::try_from(unsafe { bindings::rext4_handle_credits(self.raw.as_ptr()) }).unwrap_or(0)
    }

    /// Blocks that may still be revoked.
    pub(crate) fn revokes_left(&self) -> u32 {
        // SAFETY: The handle is live, and this thread's.
        u32::try_from(unsafe { bindings::rext4_handle_revokes(self.raw.as_ptr()) }).unwrap_or(0)
    }

    /// Asks for room for more blocks, without waiting. Returns false if there was none.
    pub(crate) fn extend(&self, credits: Credits) -> Result<bool> {
        // SAFETY: The handle is live, and this thread's.
        let answer = unsafe {
            bindings::jbd2_journal_extend(
                self.raw.as_ptr(),
                i32::try_from(credits.blocks).map_err(|_| EINVAL)?,
                i32::try_from(credits.revokes).map_err(|_| EINVAL)?,
            )
        };
        if answer < 0 {
            to_result(answer)?;
        }
        Ok(answer == 0)
    }

    /// The transaction that the handle is part of.
    pub(crate) fn transaction(&self) -> u32 {
        // SAFETY: The handle is live, and this thread's.
        unsafe { bindings::rext4_handle_tid(self.raw.as_ptr()) }
    }

    /// Makes the end of the handle wait for the commit (synchronous directories and files).
    pub(crate) fn set_sync(&self) {
        // SAFETY: The handle is live, and this thread's.
        unsafe { bindings::rext4_handle_set_sync(self.raw.as_ptr()) };
    }

    /// Fails with `EINVAL` for a block of another volume.
    fn check(&self, buffer: &Buffer) -> Result {
        // SAFETY: By its invariant the journal is live, and its device does not change.
        let device = unsafe { (*self.journal.raw.as_ptr()).j_fs_dev };
        match buffer.is_on(device) {
            true => Ok(()),
            false => Err(EINVAL),
        }
    }

    /// Opens a block for writing. It is part of the transaction when the guard is dropped.
    pub(crate) fn write<'a>(&'a self, buffer: &'a mut Buffer) -> Result<BufferMut<'a>> {
        let whole = 0..buffer.len();
        self.write_part(buffer, whole)
    }

    /// Opens a range of bytes of a block for writing: for blocks of which others may write other parts at the same time.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a range that is not in the block, and for a block of another volume.
    pub(crate) fn write_part<'a>(
        &'a self,
        buffer: &'a mut Buffer,
        range: Range<usize>,
    ) -> Result<BufferMut<'a>> {
        self.check(buffer)?;
        if range.start > range.end || range.end > buffer.len() {
            return Err(EINVAL);
        }
        // SAFETY: The handle is live and this thread's, and the buffer is live and of the journal's device.
        to_result(unsafe { bindings::jbd2_journal_get_write_access(self.raw.as_ptr(), buffer.as_ptr()) })?;
        Ok(BufferMut {
            handle: self,
            buffer: Opened::Borrowed(buffer),
            range,
        })
    }

    /// Opens a bitmap for writing, and has jbd2 keep the committed state of it until the transaction has committed:
    /// [`Buffer::copy_with_committed`].
    pub(crate) fn write_bitmap<'a>(&'a self, buffer: &'a mut Buffer) -> Result<BufferMut<'a>> {
        self.check(buffer)?;
        // SAFETY: The handle is live and this thread's, and the buffer is live and of the journal's device.
        to_result(unsafe { bindings::jbd2_journal_get_undo_access(self.raw.as_ptr(), buffer.as_ptr()) })?;
        let range = 0..buffer.len();
        Ok(BufferMut {
            handle: self,
            buffer: Opened::Borrowed(buffer),
            range,
        })
    }

    /// Opens a block that was just allocated and zeroes it, whatever it held; it is not read.
    pub(crate) fn create(&self, fresh: FreshBuffer) -> Result<BufferMut<'_>> {
        let buffer = fresh.into_raw();
        self.check(&buffer)?;
        // SAFETY: The handle is live and this thread's, and the buffer is live and of the journal's device.
        let result = to_result(unsafe { bindings::rext4_create_access(self.raw.as_ptr(), buffer.as_ptr()) });
        // jbd2 aborts without a word when a transaction still holds the block.
        result.inspect_err(|_| {
            let (name, block) = (self.journal.name(), buffer.number());
            pr_err!("{name}: block {block} could not be opened as new\n");
        })?;
        Ok(self.created(buffer))
    }

    /// Opens a block that is written whole and zeroes it; it is not read. Unlike with [`create`](Self::create) it may have
    /// held metadata of late that was not revoked, and be part of a transaction that is being committed.
    pub(crate) fn renew(&self, fresh: FreshBuffer) -> Result<BufferMut<'_>> {
        let buffer = fresh.into_raw();
        self.check(&buffer)?;
        // SAFETY: The handle is live and this thread's, and the buffer is live and of the journal's device.
        to_result(unsafe { bindings::rext4_renew_access(self.raw.as_ptr(), buffer.as_ptr()) })?;
        Ok(self.created(buffer))
    }

    /// A buffer that was given contents, and write access.
    fn created(&self, buffer: Buffer) -> BufferMut<'_> {
        let range = 0..buffer.len();
        BufferMut {
            handle: self,
            buffer: Opened::Owned(buffer),
            range,
        }
    }

    /// Notes that a metadata block was freed: it is neither written any more nor replayed after a crash.
    pub(crate) fn revoke<V: FileSystem>(&self, sb: &SuperBlock<V>, block: u64) -> Result {
        // SAFETY: The handle is live and this thread's, and the superblock is live.
        to_result(unsafe { bindings::rext4_revoke(self.raw.as_ptr(), sb.as_ptr(), block) })
    }

    /// Whether the journal was aborted.
    pub(crate) fn is_aborted(&self) -> bool {
        self.journal.is_aborted()
    }

    /// Aborts the journal: for when metadata was changed half way and cannot be put right.
    pub(crate) fn abort(&self, error: Error) {
        self.journal.abort(error);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: The handle is live, and ends here. Its error is that of the journal, which whoever comes next meets.
        unsafe { bindings::jbd2_journal_stop(self.raw.as_ptr()) };
    }
}

/// The block of a [`BufferMut`].
enum Opened<'a> {
    Borrowed(&'a mut Buffer),
    Owned(Buffer),
}

impl Deref for Opened<'_> {
    type Target = Buffer;

    fn deref(&self) -> &Buffer {
        match self {
            Opened::Borrowed(buffer) => buffer,
            Opened::Owned(buffer) => buffer,
        }
    }
}

/// Bytes of a block, open for writing within a handle.
///
/// # Invariants
///
/// The handle has write access to the buffer, and the range lies in it.
#[must_use]
pub(crate) struct BufferMut<'a> {
    handle: &'a Handle,
    buffer: Opened<'a>,
    range: Range<usize>,
}

impl BufferMut<'_> {
    /// Makes the block part of the transaction, and returns it.
    pub(crate) fn into_buffer(self) -> Buffer {
        Buffer::clone(&self.buffer)
    }

    /// Of a bitmap: keeps the `len` bits from `start` on set in the committed state that
    /// [`Buffer::copy_with_committed`] shows, for blocks freed now. Bits beyond the block are passed over.
    pub(crate) fn hold_freed(&self, start: u32, len: u32) {
        let bits = self.buffer.len().saturating_mul(8);
        if (start as usize).saturating_add(len as usize) <= bits {
            // SAFETY: The buffer is live, the bits lie in it, and the helper takes the lock of its journal head.
            unsafe { bindings::rext4_bitmap_hold_freed(self.buffer.as_ptr(), start, len) };
        }
    }
}

impl Deref for BufferMut<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: By the type invariant the range lies in the buffer, which is live. The lock of the structure in these
        // bytes keeps others off them.
        unsafe { core::slice::from_raw_parts(self.buffer.bytes().add(self.range.start), self.range.len()) }
    }
}

impl DerefMut for BufferMut<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: As for `deref`.
        unsafe {
            core::slice::from_raw_parts_mut(self.buffer.bytes().add(self.range.start), self.range.len())
        }
    }
}

impl Drop for BufferMut<'_> {
    fn drop(&mut self) {
        // SAFETY: The handle is live and has write access to the buffer.
        let error =
            unsafe { bindings::jbd2_journal_dirty_metadata(self.handle.raw.as_ptr(), self.buffer.as_ptr()) };
        if error != 0 {
            // The change is in memory and would never reach the disk with the rest of its transaction.
            let (name, block) = (self.handle.journal.name(), self.buffer.number());
            pr_err!("{name}: block {block} could not be made part of a transaction: error {error}\n");
            self.handle.abort(EIO);
        }
    }
}
