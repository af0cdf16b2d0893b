// SPDX-License-Identifier: GPL-2.0

//! What lies where on disk, and what is done about damage.

pub(in crate::fs) mod errors;
pub(in crate::fs) mod fixed;
pub(in crate::fs) mod groups;
pub(in crate::fs) mod inode;
pub(in crate::fs) mod super_disk;
