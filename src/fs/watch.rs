// SPDX-License-Identifier: GPL-2.0

//! The interface to a watcher of names.
//!
//! The layer above implements [`NameWatcher`]; the file system calls it where entries of
//! directories change.

use kernel::sync::Arc;

/// Receives every change of an entry of a directory.
pub(crate) trait NameWatcher: Send + Sync {
    /// An entry of directory `dir` that leads to inode `ino` was added, or else removed; `dot` says
    /// that it is `.` or `..`. Called in the handle of the change, with the directory locked, or
    /// before others can have it.
    fn changed(&self, dir: u32, ino: u32, dot: bool, added: bool);
}

/// A volume's watcher of names, if there is one.
pub(in crate::fs) type Watcher = Option<Arc<dyn NameWatcher>>;
