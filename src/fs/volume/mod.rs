// SPDX-License-Identifier: GPL-2.0

//! Mounting and unmounting, recovery, scanning all inodes, and ioctls on the volume as a whole.

pub(in crate::fs) mod calls;
pub(crate) mod companion;
pub(crate) mod directories;
pub(in crate::fs) mod hold;
pub(crate) mod inode_bitmaps;
pub(crate) mod inode_blocks;
mod load;
pub(in crate::fs) mod options;
pub(in crate::fs) mod recovery;
pub(in crate::fs) mod resize;
pub(crate) mod scan;
pub(in crate::fs) mod shutdown;
pub(in crate::fs) mod super_block;
pub(crate) mod system;
