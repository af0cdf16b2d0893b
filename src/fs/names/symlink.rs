// SPDX-License-Identifier: GPL-2.0

//! Targets of symbolic links: up to 59 bytes are stored in the inode itself, longer ones in a
//! block.

use crate::{
    format::{inode::BLOCK_BYTES, Corrupt},
    fs::{disk::errors::corrupt_inode, map::mapping, state::Volume},
    kernel_glue::Inode,
};
use kernel::prelude::*;

/// Returns the target of a link, without a terminator.
pub(in crate::fs) fn target(inode: &Inode<Volume>) -> Result<KVec<u8>> {
    let bad = |what| corrupt_inode(inode.super_block(), inode.number(), None, Corrupt(what));
    let size = usize::try_from(inode.size()).map_err(|_| bad("symbolic link too long"))?;
    let mut text = KVec::new();
    if size < BLOCK_BYTES {
        let root = inode.data()?.root.read();
        text.extend_from_slice(root.get(..size).ok_or(EIO)?, GFP_KERNEL)?;
    } else {
        let Some((_, block)) = mapping::read_block(inode, 0)? else {
            return Err(bad("symbolic link without a block"));
        };
        let bytes = block.bytes()?;
        let bytes = bytes.get(..size).ok_or_else(|| bad("symbolic link too long"))?;
        text.extend_from_slice(bytes, GFP_KERNEL)?;
    }
    if text.is_empty() || text.contains(&0) {
        return Err(bad("bad symbolic link"));
    }
    Ok(text)
}
