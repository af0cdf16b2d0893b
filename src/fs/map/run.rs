// SPDX-License-Identifier: GPL-2.0

//! A run of blocks of a file, as reported by both kinds of mapping.

/// A run of file blocks that are contiguous on the volume, or of unmapped ones. Units are blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fs) struct Run {
    /// First block within the file, at or before the requested one.
    pub(in crate::fs) offset: u32,
    /// Number of blocks; reaches beyond the requested one.
    pub(in crate::fs) len: u64,
    /// First block on the volume, and whether the blocks are written.
    pub(in crate::fs) start: Option<(u64, bool)>,
}

impl Run {
    /// Returns the file block after the last one.
    pub(in crate::fs) fn end(&self) -> u64 {
        u64::from(self.offset).saturating_add(self.len)
    }

    /// Returns the number of blocks from file block `from` on.
    pub(in crate::fs) fn len_from(&self, from: u32) -> u64 {
        self.end().saturating_sub(from.into())
    }
}
