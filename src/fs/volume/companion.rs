// SPDX-License-Identifier: GPL-2.0

//! Notifies the layers above about volumes.
//!
//! The file system knows nothing about these layers; it calls the [`Companion`] registered by
//! [`set`] when the module is loaded.

use crate::{
    format::tree_file::{Left, Stamp},
    fs::state::Volume,
    kernel_glue::{Inode, Ioctl, SuperBlock},
};
use kernel::{prelude::*, sync::SetOnce};

/// Receives the notifications.
pub(crate) trait Companion: Sync {
    /// The volume is becoming writable: the journal is open, and only the superblock has been
    /// changed. `before` is the previous state of the superblock, `now` its stamp while the volume
    /// is in use.
    fn opened(&self, sb: &SuperBlock<Volume>, before: &Left, now: &Stamp);

    /// The volume has been mounted read-only. `left` is the state of its superblock.
    fn opened_read_only(&self, sb: &SuperBlock<Volume>, left: &Left);

    /// The volume is writable, and background work may start. Fails if the volume must not be
    /// written in its current state.
    fn ready(&self, sb: &SuperBlock<Volume>) -> Result;

    /// The volume is about to be closed; background work must end.
    fn closing(&self, sb: &SuperBlock<Volume>);

    /// The last opportunity to write before the journal is closed. The superblock will be left with
    /// this stamp; `clean` says whether it will be left clean.
    fn closed(&self, sb: &SuperBlock<Volume>, stamp: &Stamp, clean: bool);

    /// Calls `grow`, which makes the volume at most `blocks` blocks long. No check or repair runs
    /// meanwhile; those that were running start again.
    ///
    /// # Errors
    ///
    /// Those of `grow`; `EOPNOTSUPP` if the trees cannot follow.
    fn grow(&self, sb: &SuperBlock<Volume>, blocks: u64, grow: &mut dyn FnMut() -> Result) -> Result;

    /// Handles an ioctl on a file or directory of the volume that the file system does not know.
    fn ioctl(&self, inode: &Inode<Volume>, call: Ioctl<'_>) -> Result;
}

static COMPANION: SetOnce<&'static dyn Companion> = SetOnce::new();

/// Registers the companion. Must be called once, before anything is mounted.
pub(crate) fn set(companion: &'static dyn Companion) {
    COMPANION.populate(companion);
}

/// Returns the companion, if one is registered.
pub(in crate::fs) fn get() -> Option<&'static dyn Companion> {
    COMPANION.as_ref().copied()
}
