// SPDX-License-Identifier: GPL-2.0

//! Windows: free blocks that are kept in memory for what is written next, so that files which grow
//! at the same time do not take turns in taking blocks.
//!
//! A file that is appended to has a window behind its last block, the larger the file is. Small
//! files that are made in the same group share one. The blocks of a window are reserved
//! ([`crate::fs::alloc::balloc`]) and count as free; nothing of them is on disk. They are given
//! back when the last writer closes the file, when other allocations find no blocks, and before the
//! volume is frozen or left. This file contains only the data structure.

use crate::{
    fs::state::{Volume, Window, Windows},
    kernel_glue::NoReclaim,
};
use kernel::prelude::*;

/// Whose window it is.
#[derive(Clone, Copy)]
pub(in crate::fs) enum Holder {
    /// An inode's.
    Inode(u32),
    /// That of the small files of a group.
    Group(u32),
}

impl Holder {
    fn key(self) -> u64 {
        match self {
            Holder::Inode(ino) => ino.into(),
            Holder::Group(group) => 1 << 32 | u64::from(group),
        }
    }
}

/// Takes up to `want` blocks out of a window. With a `goal`, only if they begin there. They stay
/// reserved.
pub(in crate::fs) fn take(
    volume: &Volume,
    holder: Holder,
    goal: Option<u64>,
    want: u32,
) -> Option<(u64, u32)> {
    let mut windows = volume.windows.lock();
    let window = windows.tree.get_mut(&holder.key())?;
    let start = window.start;
    if goal.is_some_and(|goal| goal != start) {
        return None;
    }
    let len = window.len.min(want);
    window.start += u64::from(len);
    window.len -= len;
    if window.len == 0 {
        windows.tree.remove(&holder.key());
    }
    windows.blocks = windows.blocks.saturating_sub(len.into());
    Some((start, len))
}

/// Makes reserved blocks the window of `holder`. Returns false if it has one already, and if there
/// is no memory.
pub(in crate::fs) fn put(volume: &Volume, holder: Holder, window: Window) -> bool {
    let _scope = NoReclaim::new();
    let mut windows = volume.windows.lock();
    // Another small file of the group may have made one meanwhile.
    let done = windows.tree.get(&holder.key()).is_none()
        && windows
            .tree
            .try_create_and_insert(holder.key(), window, GFP_KERNEL)
            .is_ok();
    if done {
        windows.blocks += u64::from(window.len);
    }
    done
}

/// Removes a window. Its blocks stay reserved.
pub(in crate::fs) fn remove(volume: &Volume, holder: Holder) -> Option<Window> {
    let mut windows = volume.windows.lock();
    let window = windows.tree.remove(&holder.key())?;
    windows.blocks = windows.blocks.saturating_sub(window.len.into());
    Some(window)
}

/// Removes all windows. Their blocks stay reserved.
pub(in crate::fs) fn remove_all(volume: &Volume) -> Windows {
    core::mem::take(&mut *volume.windows.lock())
}
