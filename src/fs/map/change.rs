// SPDX-License-Identifier: GPL-2.0

//! One change of an inode's mapping: a handle, the mapping locked to write in it, and the inode stored before it ends.

use crate::{
    fs::{
        alloc::balloc,
        disk::inode::{self, Part},
        map::extent_tree,
        state::Volume,
    },
    kernel_glue::{Handle, Inode, WriteGuard},
};
use kernel::prelude::*;

/// An inode's mapping, open for a change. When it is dropped and not [ended](Self::end), nothing may have been changed.
pub(in crate::fs) struct MapChange<'a> {
    // Unlocked before the handle ends.
    root: WriteGuard<'a, extent_tree::Root>,
    handle: Handle,
    inode: &'a Inode<Volume>,
}

impl<'a> MapChange<'a> {
    /// Starts a handle that may write so many blocks, the inode's among them, and revoke others, and locks the mapping.
    pub(in crate::fs) fn begin(inode: &'a Inode<Volume>, credits: u32, revokes: u32) -> Result<Self> {
        Self::locked(inode, inode.super_block().volume()?.begin(credits, revokes)?)
    }

    /// Like [`begin`](Self::begin), for writeback that is completed: never waits for a rebuild.
    pub(in crate::fs) fn complete(inode: &'a Inode<Volume>, credits: u32, revokes: u32) -> Result<Self> {
        let volume = inode.super_block().volume()?;
        Self::locked(inode, volume.begin_internal(credits, revokes)?)
    }

    fn locked(inode: &'a Inode<Volume>, handle: Handle) -> Result<Self> {
        let root = inode.data()?.root.write();
        Ok(MapChange { root, handle, inode })
    }

    /// The root of the mapping as it is.
    pub(in crate::fs) fn root(&self) -> &extent_tree::Root {
        &self.root
    }

    /// The handle, and the root to change: whoever read the mapping before has to read it again.
    pub(in crate::fs) fn parts(&mut self) -> Result<(&Handle, &mut extent_tree::Root)> {
        self.inode.data()?.new_version();
        Ok((&self.handle, &mut self.root))
    }

    /// Stores the inode, also when what was done went wrong: entries may have moved to other nodes all the same. Ends the
    /// handle, and answers with what was done.
    pub(in crate::fs) fn end<T>(self, done: Result<T>) -> Result<T> {
        inode::store(&self.handle, self.inode, Part::Mapping(&self.root))?;
        drop(self.root);
        self.handle.stop()?;
        done
    }
}

/// Does something that takes blocks once more after an `ENOSPC`, if blocks that were just freed can be had by then. No
/// handle may be open.
pub(in crate::fs) fn with_frees<T>(volume: &Volume, mut once: impl FnMut() -> Result<T>) -> Result<T> {
    match once() {
        Err(ENOSPC) if balloc::wait_for_frees(volume)? => once(),
        done => done,
    }
}
