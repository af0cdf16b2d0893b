// SPDX-License-Identifier: GPL-2.0

//! A run of blocks of a file, as every kind of mapping reports it.

/// A run of blocks of a file that lie together, or of blocks that are not there. In blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fs) struct Run {
    /// First block within the file: the one asked for, or before it.
    pub(in crate::fs) offset: u32,
    /// Blocks, at least enough to reach behind the one asked for.
    pub(in crate::fs) len: u64,
    /// First block on the volume, and whether it was ever written.
    pub(in crate::fs) start: Option<(u64, bool)>,
}
