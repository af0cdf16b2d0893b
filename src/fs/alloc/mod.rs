// SPDX-License-Identifier: GPL-2.0

//! Allocating and freeing blocks and inodes. Every change of owners goes through [`space`].

pub(in crate::fs) mod balloc;
pub(crate) mod bitmaps;
pub(in crate::fs) mod freed;
pub(in crate::fs) mod ialloc;
pub(crate) mod space;
pub(in crate::fs) mod trim;
pub(in crate::fs) mod windows;
