// SPDX-License-Identifier: GPL-2.0

//! Holding off all who would change something, so that many files can be cloned of which none changes meanwhile.
//!
//! A freeze cannot be had for that: it stops the journal, too, and who clones would wait for himself. Here only its first
//! stages are taken, at which the VFS has each change wait before it takes a lock; and clones come through a call of their
//! own, which does not pass there. The hold is bound to an open directory, so that it ends with the program that took it.

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

/// Answers a call, if it is one of these.
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
    // Held while a clone is made, so that writers stay held for as long.
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
        (_, Some(_)) => call
            .file
            .clone_held(u32::try_from(call.argument).map_err(|_| EBADF)?),
    }
}

/// A directory is closed; with it ends the hold that it was asked for on.
pub(in crate::fs) fn closed(inode: &Inode<Volume>, file: &OpenFile<'_>) {
    let Ok(volume) = inode.super_block().volume() else {
        return;
    };
    // The lock is held while somebody waits for writers, for whom this task may be one. A directory on which a hold is being
    // taken is open meanwhile, so that it is none that is closed here.
    if volume.holder.load(Acquire) != file.id() {
        return;
    }
    let mut held = volume.held_by.lock();
    if held.as_ref().is_some_and(|(by, _)| *by == file.id()) {
        *held = None;
        volume.holder.store(0, Release);
    }
}
