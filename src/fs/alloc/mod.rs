// SPDX-License-Identifier: GPL-2.0

//! Which blocks and inodes are free, taking them and giving them back. Every change of owner goes through [`space`].

pub(in crate::fs) mod balloc;
pub(crate) mod bitmaps;
pub(in crate::fs) mod freed;
pub(in crate::fs) mod ialloc;
pub(crate) mod space;
pub(in crate::fs) mod trim;
