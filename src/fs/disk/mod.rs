// SPDX-License-Identifier: GPL-2.0

//! The layout of the volume on disk, and the handling of damage.

pub(in crate::fs) mod errors;
pub(in crate::fs) mod fixed;
pub(in crate::fs) mod groups;
pub(in crate::fs) mod inode;
pub(in crate::fs) mod super_disk;
