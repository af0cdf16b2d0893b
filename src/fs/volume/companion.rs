// SPDX-License-Identifier: GPL-2.0

//! What the layers above keep beside a volume, and when they are told of it.
//!
//! The file system knows nothing of what stands on it; it tells whoever called [`set`] when the module came up.

use crate::{
    format::tree_file::{Left, Stamp},
    fs::state::Volume,
    kernel_glue::{Inode, Ioctl, SuperBlock},
};
use kernel::{prelude::*, sync::SetOnce};

/// Who is told.
pub(crate) trait Companion: Sync {
    /// The volume becomes writable: the journal is open, and nothing but the superblock was changed yet. `before` is how
    /// that had been left, `now` its stamp while the volume is in use.
    fn opened(&self, sb: &SuperBlock<Volume>, before: &Left, now: &Stamp);

    /// The volume is mounted read-only, and its superblock was left so.
    fn opened_read_only(&self, sb: &SuperBlock<Volume>, left: &Left);

    /// The volume is writable and may be worked on in the background. Fails when it may not be written as it is.
    fn ready(&self, sb: &SuperBlock<Volume>) -> Result;

    /// The volume is about to be closed: work in the background is to end.
    fn closing(&self, sb: &SuperBlock<Volume>);

    /// The last that may be written before the journal is closed. The superblock will be left with this stamp; `clean`
    /// tells whether it will be left as it should.
    fn closed(&self, sb: &SuperBlock<Volume>, stamp: &Stamp, clean: bool);

    /// An ioctl on a file or directory of the volume that the file system itself does not know.
    fn ioctl(&self, inode: &Inode<Volume>, call: Ioctl<'_>) -> Result;
}

static COMPANION: SetOnce<&'static dyn Companion> = SetOnce::new();

/// Names the one who is told. Called once, before anything can be mounted.
pub(crate) fn set(companion: &'static dyn Companion) {
    COMPANION.populate(companion);
}

/// The one who is told, if there is one.
pub(in crate::fs) fn get() -> Option<&'static dyn Companion> {
    COMPANION.as_ref().copied()
}
