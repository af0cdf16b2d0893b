// SPDX-License-Identifier: GPL-2.0

//! Walking the extent tree of an inode, from the root in the inode down to the leaf. Each node read
//! from disk is checked before it is used.

use crate::{
    format::{
        extent::{Found, Node},
        inode::BLOCK_BYTES,
        Corrupt,
    },
    fs::{
        disk::{errors::corrupt_inode, fixed},
        map::run::Run,
        state::Volume,
    },
    kernel_glue::{Buffer, Inode},
};
use kernel::prelude::*;

/// Returns the run that contains file block `block`. The caller holds the lock of the mapping,
/// whose root this is.
pub(in crate::fs) fn find_in(inode: &Inode<Volume>, root: &[u8; BLOCK_BYTES], block: u32) -> Result<Run> {
    let sb = inode.super_block();
    let layout = &sb.volume()?.layout;
    let data = inode.data()?;
    let bad = |block, what| corrupt_inode(sb, inode.number(), block, what);

    let mut node = Node::read(layout, root, None, None, (0, u32::MAX)).map_err(|what| bad(None, what))?;
    // The bytes that `node` borrows from, once below the root.
    let mut buffer;
    // The range of file blocks, inclusive, that the current node maps.
    let mut range = (0, u32::MAX);
    loop {
        if node.depth() == 0 {
            return Ok(match node.find(block) {
                Found::Mapped(extent) => {
                    if !layout.contains(extent.start, extent.len) {
                        return Err(bad(None, Corrupt("extent is off the volume")));
                    }
                    fixed::check(inode, extent.start, extent.len)?;
                    Run {
                        offset: extent.offset,
                        len: u64::from(extent.len),
                        start: Some((extent.start, !extent.unwritten)),
                    }
                }
                Found::Hole { end } => {
                    let end = end.min(u64::from(range.1) + 1);
                    Run {
                        offset: block,
                        len: end - u64::from(block),
                        start: None,
                    }
                }
            });
        }
        let Some((index, next)) = node.descend(block) else {
            return Ok(Run {
                offset: block,
                len: u64::from(u32::MAX - block) + 1,
                start: None,
            });
        };
        if index.offset > block {
            // Before the first mapped block.
            return Ok(Run {
                offset: block,
                len: u64::from(index.offset - block),
                start: None,
            });
        }
        range = (index.offset, next.map_or(range.1, |next| next - 1));
        let depth = node.depth() - 1;
        fixed::check(inode, index.child, 1)?;
        let read = Buffer::read(sb, index.child).inspect_err(|_| {
            pr_err!(
                "{}: inode {}: block {} cannot be read\n",
                sb.name(),
                inode.number(),
                index.child
            );
        })?;
        buffer = read.into_bytes()?;
        node = match buffer.is_verified() {
            true => Node::read_again(layout, &buffer, depth, range),
            false => Node::read(layout, &buffer, Some(depth), Some(data.seed), range),
        }
        .map_err(|what| bad(Some(index.child), what))?;
        buffer.set_verified();
    }
}
