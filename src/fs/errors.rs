// SPDX-License-Identifier: GPL-2.0

//! What is done when something on disk turns out to be damaged.
//!
//! Damage is noted in memory where it is found, which may be deep inside a handle with any lock held. A task in the
//! background then brings the notes to the superblock, where e2fsck finds them, and the end of the mount those that are
//! left. Unless the mount is to go on, the journal is aborted at once, so that nothing that was made of damaged structures
//! gets to the disk; the task makes the volume read-only, or panics.
//!
//! Times and counts in the superblock are left alone meanwhile: they tell whether somebody else wrote to the volume.

use super::{super_block, Volume};
use crate::{
    format::superblock::{RawSuper, STATE_ERRORS},
    kernel_glue::{corrupted, now, Background, InodeRef, SuperBlock, Task},
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, SpinLock,
    },
};

/// What a mount does when it comes upon damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Notes it and goes on.
    Continue = 1,
    /// Lets nothing more be written.
    ReadOnly = 2,
    /// Stops the machine.
    Panic = 3,
}

impl Action {
    /// The one of this name.
    pub(super) fn of_name(name: &[u8]) -> Option<Action> {
        Some(match name {
            b"continue" => Action::Continue,
            b"remount-ro" => Action::ReadOnly,
            b"panic" => Action::Panic,
            _ => return None,
        })
    }

    /// The one of this `s_errors`, in which what is not known is taken with care.
    pub(super) fn of_number(number: u32) -> Action {
        match number {
            1 => Action::Continue,
            3 => Action::Panic,
            _ => Action::ReadOnly,
        }
    }

    /// The mount option.
    pub(super) fn option(self) -> &'static CStr {
        match self {
            Action::Continue => c"errors=continue",
            Action::ReadOnly => c"errors=remount-ro",
            Action::Panic => c"errors=panic",
        }
    }
}

/// One damage: when, and which inode and block, 0 where that is not known.
#[derive(Clone, Copy)]
struct Event {
    time: i64,
    ino: u32,
    block: u64,
}

/// Damage that the superblock does not tell of yet, oldest and newest, and how often there was any.
#[derive(Clone, Copy)]
struct Notes {
    first: Event,
    last: Event,
    count: u32,
}

/// What a volume knows of its damage.
pub(super) struct Errors {
    action: Atomic<u32>,
    /// There was some, in this mount or an earlier one.
    known: Atomic<bool>,
    notes: Pin<KBox<SpinLock<Option<Notes>>>>,
    task: Pin<KBox<SpinLock<Option<Background<Writer>>>>>,
}

impl Errors {
    pub(super) fn new(action: Action) -> Result<Errors> {
        Ok(Errors {
            action: Atomic::new(action as u32),
            known: Atomic::new(false),
            notes: KBox::pin_init(kernel::new_spinlock!(None, "Errors::notes"), GFP_KERNEL)?,
            task: KBox::pin_init(kernel::new_spinlock!(None, "Errors::task"), GFP_KERNEL)?,
        })
    }

    pub(super) fn action(&self) -> Action {
        Action::of_number(self.action.load(Relaxed))
    }

    /// Whether there is damage.
    pub(super) fn are_known(&self) -> bool {
        self.known.load(Relaxed)
    }

    /// The superblock tells of damage.
    pub(super) fn set_known(&self) {
        self.known.store(true, Relaxed);
    }

    pub(super) fn set_action(&self, action: Action) {
        self.action.store(action as u32, Relaxed);
    }
}

/// Brings notes to the superblock, and does what cannot be done where damage is found.
struct Writer {
    /// Keeps the superblock; the task ends before the volume is unmounted.
    root: InodeRef<Volume>,
}

impl Task for Writer {
    fn run(&self) {
        let sb = self.root.super_block();
        let Ok(volume) = sb.volume() else { return };
        {
            let _writing = sb.internal_write();
            write(volume, sb);
        }
        match volume.errors.action() {
            Action::Continue => (),
            Action::Panic => sb.panic(),
            Action::ReadOnly => {
                if !sb.is_read_only() {
                    pr_crit!("{}: read-only from now on\n", sb.name());
                    sb.set_read_only();
                }
            }
        }
    }
}

/// Notes damage, and has done about it what the mount says. May be called with any lock held, but not in an interrupt.
///
/// A volume that is not mounted writable is left as it is.
pub(super) fn note(sb: &SuperBlock<Volume>, ino: u32, block: u64) {
    let Ok(volume) = sb.volume() else { return };
    let Ok(journal) = volume.journal() else { return };
    let errors = &volume.errors;
    errors.set_known();
    if errors.action() != Action::Continue && !journal.is_aborted() {
        journal.abort(corrupted());
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

/// Makes the task; called when the volume became writable.
pub(super) fn start(volume: &Volume, root: InodeRef<Volume>) -> Result {
    let task = Background::new(Arc::new(Writer { root }, GFP_KERNEL)?)?;
    let old = volume.errors.task.lock().replace(task);
    drop(old);
    // What was found before there was a task.
    if let (true, Some(task)) = (volume.errors.notes.lock().is_some(), &*volume.errors.task.lock()) {
        task.start();
    }
    Ok(())
}

/// Ends the task; what it has not written the caller writes.
pub(super) fn stop(volume: &Volume) {
    let task = volume.errors.task.lock().take();
    // Outside of the lock: it is waited for.
    drop(task);
}

/// Brings the notes to the superblock on disk.
pub(super) fn write(volume: &Volume, sb: &SuperBlock<Volume>) {
    if volume.errors.notes.lock().is_none() {
        return;
    }
    if let Err(error) = super_block::rewrite(volume, sb, |raw| take(volume, raw)) {
        pr_err!(
            "{}: the superblock could not be written: error {}\n",
            sb.name(),
            error.to_errno()
        );
    }
}

/// Puts the notes into a superblock.
pub(super) fn take(volume: &Volume, raw: &mut RawSuper) {
    if let Some(Notes { first, last, count }) = volume.errors.notes.lock().take() {
        raw.state.set(raw.state.get() | STATE_ERRORS);
        raw.note_error(true, first.time, first.ino, first.block);
        raw.note_error(false, last.time, last.ino, last.block);
        raw.error_count.set(raw.error_count.get().saturating_add(count));
    }
}
