// SPDX-License-Identifier: GPL-2.0

//! A change of an inode's mapping: a handle, the mapping locked exclusively, and the inode stored
//! at the end.

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

/// An inode's mapping, locked for a change. If this is dropped without [`end`](Self::end), nothing
/// may have been changed.
pub(in crate::fs) struct MapChange<'a> {
    // Dropped before the handle is stopped.
    root: WriteGuard<'a, extent_tree::Root>,
    handle: Handle,
    inode: &'a Inode<Volume>,
}

impl<'a> MapChange<'a> {
    /// Starts a handle with these credits, which must include the inode, and locks the mapping.
    pub(in crate::fs) fn begin(inode: &'a Inode<Volume>, credits: u32, revokes: u32) -> Result<Self> {
        Self::locked(inode, inode.super_block().volume()?.begin(credits, revokes)?)
    }

    /// Like [`begin`](Self::begin), for completing writeback: never waits for a rebuild.
    pub(in crate::fs) fn complete(inode: &'a Inode<Volume>, credits: u32, revokes: u32) -> Result<Self> {
        let volume = inode.super_block().volume()?;
        Self::locked(inode, volume.begin_internal(credits, revokes)?)
    }

    fn locked(inode: &'a Inode<Volume>, handle: Handle) -> Result<Self> {
        let root = inode.data()?.root.write();
        Ok(MapChange { root, handle, inode })
    }

    /// Returns the handle.
    pub(in crate::fs) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Returns the root of the mapping.
    pub(in crate::fs) fn root(&self) -> &extent_tree::Root {
        &self.root
    }

    /// Returns the handle, and the root for modification. Mappings looked up before become invalid.
    pub(in crate::fs) fn parts(&mut self) -> Result<(&Handle, &mut extent_tree::Root)> {
        self.inode.data()?.new_version();
        Ok((&self.handle, &mut self.root))
    }

    /// Stores the inode, even after an error, since entries may have moved to other nodes. Stops
    /// the handle, and returns `done`.
    pub(in crate::fs) fn end<T>(self, done: Result<T>) -> Result<T> {
        inode::store(&self.handle, self.inode, Part::Mapping(&self.root))?;
        drop(self.root);
        self.handle.stop()?;
        done
    }
}

/// Calls `once`, and a second time after `ENOSPC` if recently freed blocks become available
/// meanwhile. No handle may be open.
pub(in crate::fs) fn with_frees<T>(volume: &Volume, mut once: impl FnMut() -> Result<T>) -> Result<T> {
    match once() {
        Err(ENOSPC) if balloc::wait_for_frees(volume)? => once(),
        done => done,
    }
}
