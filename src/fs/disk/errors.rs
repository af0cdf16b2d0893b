// SPDX-License-Identifier: GPL-2.0

//! Handling of damaged metadata.
//!
//! An error is recorded in memory when it is found, possibly deep inside a handle and with any lock
//! held. A background task then writes it to the superblock, where e2fsck looks for it; errors left
//! at unmount are written then. Unless the mount continues after errors, the journal is aborted at
//! once, so that nothing derived from damaged structures reaches the disk; the task makes the
//! volume read-only, or panics.
//!
//! An error found by a check ([`Checking`]) is only recorded in the superblock: it existed before,
//! and looking for errors is no reason to stop a volume in use.
//!
//! Times and counts in the superblock are not updated by this, since they indicate whether another
//! driver has written to the volume.

use crate::{
    format::{
        superblock::{RawSuper, STATE_ERRORS},
        Corrupt,
    },
    fs::{
        disk::super_disk,
        state::{Action, Event, Notes, Volume, Writer},
    },
    kernel_glue::{bad_checksum, corrupted, now, Background, InodeRef, SuperBlock, Task},
};
use kernel::{
    alloc::flags::GFP_ATOMIC,
    prelude::*,
    sync::{atomic::Relaxed, Arc},
};

impl Task for Writer {
    fn run(&self) {
        let sb = self.root.super_block();
        let Ok(volume) = sb.volume() else { return };
        {
            let _writing = sb.internal_write();
            write(volume, sb);
        }
        if volume.errors.acts.load(Relaxed) && volume.errors.action() == Action::Panic {
            sb.panic();
        }
        if volume.is_stopped() && !volume.errors.told.xchg(true, Relaxed) {
            pr_crit!("{}: the volume is now read-only\n", sb.name());
        }
    }
}

/// Guard for a task that runs a check: while it exists, errors found by the task are recorded, but
/// the action of `errors=` is not taken.
#[must_use]
pub(crate) struct Checking<'a> {
    volume: &'a Volume,
    pid: i32,
}

impl<'a> Checking<'a> {
    /// Starts a check by the current task, which must also drop the guard. Fails with `ENOMEM`.
    pub(crate) fn begin(volume: &'a Volume) -> Result<Self> {
        let pid = kernel::current!().pid();
        volume.errors.checkers.lock().push(pid, GFP_ATOMIC)?;
        Ok(Checking { volume, pid })
    }
}

impl Drop for Checking<'_> {
    fn drop(&mut self) {
        let mut checkers = self.volume.errors.checkers.lock();
        if let Some(place) = checkers.iter().position(|&checker| checker == self.pid) {
            let last = checkers.len() - 1;
            checkers.swap(place, last);
            checkers.truncate(last);
        }
    }
}

/// Records an error, and takes the action requested by the mount. May be called with any lock held,
/// but not in interrupt context.
///
/// Does nothing if the volume is not mounted writable.
pub(in crate::fs) fn note(sb: &SuperBlock<Volume>, ino: u32, block: u64) {
    let Ok(volume) = sb.volume() else { return };
    if volume.check_alive().is_err() {
        return;
    }
    sb.report_damage(ino);
    let Ok(journal) = volume.journal() else { return };
    let errors = &volume.errors;
    errors.set_known();
    let pid = kernel::current!().pid();
    let checks = errors.checkers.lock().iter().any(|&checker| checker == pid);
    if !checks {
        errors.acts.store(true, Relaxed);
        if errors.action() != Action::Continue {
            if !journal.is_aborted() {
                journal.abort(corrupted());
            }
            volume.stop();
        }
    }
    let event = Event {
        time: now(),
        ino,
        block,
    };
    {
        let mut notes = errors.notes.lock();
        let before = *notes;
        *notes = Some(Notes {
            first: before.map_or(event, |before| before.first),
            last: event,
            count: before.map_or(0, |before| before.count).saturating_add(1),
        });
    }
    if let Some(task) = &*errors.task.lock() {
        task.start();
    }
}

/// Stops all writing, as requested by a mount option.
pub(in crate::fs) fn abort(sb: &SuperBlock<Volume>) {
    let Ok(volume) = sb.volume() else { return };
    if let Ok(journal) = volume.journal() {
        journal.abort(EIO);
        volume.stop();
        note(sb, 0, 0);
    }
}

/// Creates the background task, when the volume becomes writable.
pub(in crate::fs) fn start(volume: &Volume, root: InodeRef<Volume>) -> Result {
    let task = Background::new(Arc::new(Writer { root }, GFP_KERNEL)?)?;
    let old = volume.errors.task.lock().replace(task);
    drop(old);
    // Errors found before the task existed.
    if let (true, Some(task)) = (volume.errors.notes.lock().is_some(), &*volume.errors.task.lock()) {
        task.start();
    }
    Ok(())
}

/// Ends the background task. The caller writes the remaining errors.
pub(in crate::fs) fn stop(volume: &Volume) {
    let task = volume.errors.task.lock().take();
    // Dropped without holding the lock, because this waits for the task.
    drop(task);
}

/// Writes the recorded errors to the superblock on disk.
pub(in crate::fs) fn write(volume: &Volume, sb: &SuperBlock<Volume>) {
    if volume.errors.notes.lock().is_none() {
        return;
    }
    if let Err(error) = super_disk::rewrite(volume, sb, |raw| take(volume, raw)) {
        pr_err!(
            "{}: the superblock could not be written: error {}\n",
            sb.name(),
            error.to_errno()
        );
    }
}

/// Stores the recorded errors in a superblock.
pub(in crate::fs) fn take(volume: &Volume, raw: &mut RawSuper) {
    if let Some(Notes { first, last, count }) = volume.errors.notes.lock().take() {
        raw.state.set(raw.state.get() | STATE_ERRORS);
        raw.note_error(true, first.time, first.ino, first.block);
        raw.note_error(false, last.time, last.ino, last.block);
        raw.error_count.set(raw.error_count.get().saturating_add(count));
    }
}

/// Logs the defect of an inode or of a block that it owns, and returns the errno.
pub(in crate::fs) fn corrupt_inode(
    sb: &SuperBlock<Volume>,
    ino: u32,
    block: Option<u64>,
    what: Corrupt,
) -> Error {
    match block {
        Some(block) => pr_err!("{}: inode {ino}: block {block}: {}\n", sb.name(), what.0),
        None => pr_err!("{}: inode {ino}: {}\n", sb.name(), what.0),
    }
    note(sb, ino, block.unwrap_or(0));
    errno(what)
}

/// Returns the errno for damage: like stock ext4, `EFSBADCRC` for a wrong checksum and
/// `EFSCORRUPTED` otherwise.
pub(in crate::fs) fn errno(what: Corrupt) -> Error {
    match what.is_checksum() {
        true => bad_checksum(),
        false => corrupted(),
    }
}
