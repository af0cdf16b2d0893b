// SPDX-License-Identifier: GPL-2.0

//! Hold: stops all writers, so that many files can be cloned at one point in time.
//!
//! `freeze_super()` also stops the journal, so the cloning task would deadlock. We take only the
//! write and page-fault levels, at which the VFS makes each change wait before it takes any lock.
//! Clones use a separate ioctl that does not take these levels. The hold is bound to an open
//! directory, so it ends at the latest with the program that took it.

use crate::{
    fs::state::Volume,
    kernel_glue::{is_admin, not_a_directory, Inode, Ioctl, OpenFile},
};
use kernel::{
    ioctl::{_IO, _IOW},
    prelude::*,
    sync::atomic::{Acquire, Release},
};

const HOLD: u32 = _IO(b'r' as u32, 0x90);
const RELEASE: u32 = _IO(b'r' as u32, 0x91);
const CLONE_HELD: u32 = _IOW::<c_int>(b'r' as u32, 0x92);

/// Handles an ioctl, if it is one of those for the hold.
pub(in crate::fs) fn call(inode: &Inode<Volume>, call: &Ioctl<'_>) -> Option<Result> {
    if !matches!(call.command, HOLD | RELEASE | CLONE_HELD) {
        return None;
    }
    Some(answer(inode, call))
}

fn answer(inode: &Inode<Volume>, call: &Ioctl<'_>) -> Result {
    if !is_admin() {
        return Err(EPERM);
    }
    let sb = inode.super_block();
    let volume = sb.volume()?;
    if call.command != CLONE_HELD && !inode.is_directory() {
        return Err(not_a_directory());
    }
    // Held while a clone is made, so that writers stay stopped meanwhile.
    let mut held = volume.held_by.lock();
    match (call.command, &*held) {
        (HOLD, Some(_)) => Err(EBUSY),
        (HOLD, None) => {
            volume.journal()?;
            *held = Some((call.file.id(), sb.hold_writers()?));
            volume.holder.store(call.file.id(), Release);
            Ok(())
        }
        (_, None) => Err(ENOENT),
        (RELEASE, Some(_)) => {
            *held = None;
            volume.holder.store(0, Release);
            Ok(())
        }
        (_, Some((_, writers))) => {
            let descriptor = u32::try_from(call.argument).map_err(|_| EBADF)?;
            call.file.clone_held(writers, descriptor)
        }
    }
}

/// Called when a directory is closed. Ends the hold that was taken through it.
pub(in crate::fs) fn closed(inode: &Inode<Volume>, file: &OpenFile<'_>) {
    let Ok(volume) = inode.super_block().volume() else {
        return;
    };
    // Do not take the lock here needlessly: it is held while a task waits for writers, and the
    // current task may be one of them. A directory through which a hold is being taken is open
    // meanwhile, so it is not the one being closed here.
    if volume.holder.load(Acquire) != file.id() {
        return;
    }
    let mut held = volume.held_by.lock();
    if held.as_ref().is_some_and(|(by, _)| *by == file.id()) {
        *held = None;
        volume.holder.store(0, Release);
    }
}
