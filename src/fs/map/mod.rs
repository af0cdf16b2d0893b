// SPDX-License-Identifier: GPL-2.0

//! From a block of a file to a block of the volume, and changing that mapping.

pub(in crate::fs) mod change;
pub(in crate::fs) mod extent_tree;
pub(in crate::fs) mod extents;
pub(in crate::fs) mod indirect;
pub(in crate::fs) mod indirect_edit;
pub(in crate::fs) mod mapping;
pub(in crate::fs) mod node;
pub(in crate::fs) mod run;
