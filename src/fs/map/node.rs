// SPDX-License-Identifier: GPL-2.0

//! The bytes of a node of a mapping: its root, which is in the inode, or a block.

use crate::{
    format::inode::BLOCK_BYTES,
    kernel_glue::{Buffer, Bytes},
};
use core::ops::Deref;
use kernel::prelude::*;

/// The bytes of a node, borrowed for reading.
pub(in crate::fs) enum NodeBytes<'a> {
    Root(&'a [u8; BLOCK_BYTES]),
    Block(Bytes<'a>),
}

impl<'a> NodeBytes<'a> {
    /// Returns the node on a level of the path from `root`, which is level 0, through `nodes`.
    pub(in crate::fs) fn on_level(
        root: &'a [u8; BLOCK_BYTES],
        nodes: &'a [Buffer<'_>],
        level: usize,
    ) -> Result<NodeBytes<'a>> {
        Ok(match level.checked_sub(1) {
            None => NodeBytes::Root(root),
            Some(below) => NodeBytes::Block(nodes.get(below).ok_or(EIO)?.bytes()?),
        })
    }
}

impl Deref for NodeBytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            NodeBytes::Root(bytes) => *bytes,
            NodeBytes::Block(bytes) => bytes,
        }
    }
}
