// SPDX-License-Identifier: GPL-2.0

//! Runs of blocks with their owners, in the form of `FS_IOC_GETFSMAP`, and those of the fixed
//! metadata.

use crate::{
    fs::{scan, Volume},
    kernel_glue::{abi::value, SuperBlock},
};
use kernel::prelude::*;

use value::{
    REXT4_OWNER_BLKBM as BLOCK_BITMAP, REXT4_OWNER_FS as SUPERBLOCK, REXT4_OWNER_GDT as DESCRIPTORS,
    REXT4_OWNER_INOBM as INODE_BITMAP, REXT4_OWNER_INODES as INODES, REXT4_OWNER_RESV_GDT as RESERVED,
};
pub(super) use value::{REXT4_OWNER_FREE as FREE, REXT4_OWNER_UNKNOWN as UNKNOWN};

/// A run of blocks and its owner. Units are blocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Run {
    pub(super) start: u64,
    pub(super) owner: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) flags: u32,
}

impl Run {
    pub(super) fn special(start: u64, len: u64, owner: u64) -> Run {
        Run {
            start,
            owner,
            offset: 0,
            len,
            flags: value::FMR_OF_SPECIAL_OWNER,
        }
    }

    /// Returns the first block after the run.
    pub(super) fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// Lists all fixed metadata of the volume in block order.
pub(super) fn fixed(sb: &SuperBlock<Volume>) -> Result<KVVec<Run>> {
    let layout = sb.volume()?.layout();
    let mut runs = KVVec::new();
    if layout.first_data_block > 0 {
        runs.push(
            Run::special(0, layout.first_data_block.into(), SUPERBLOCK),
            GFP_KERNEL,
        )?;
    }
    for number in 0..layout.groups {
        let [copy, block_bitmap, inode_bitmap, table] = scan::fixed_of_group(sb, number)?;
        if copy.1 > 0 {
            let mut start = copy.0;
            let end = start + u64::from(copy.1);
            let supers = u64::from(layout.has_super(number));
            let descs = u64::from(layout.leading_descs(number));
            for (len, owner) in [(supers, SUPERBLOCK), (descs, DESCRIPTORS)] {
                if len > 0 {
                    runs.push(Run::special(start, len, owner), GFP_KERNEL)?;
                }
                start += len;
            }
            if start < end {
                runs.push(Run::special(start, end - start, RESERVED), GFP_KERNEL)?;
            }
        }
        for ((start, len), owner) in [
            (block_bitmap, BLOCK_BITMAP),
            (inode_bitmap, INODE_BITMAP),
            (table, INODES),
        ] {
            runs.push(Run::special(start, len.into(), owner), GFP_KERNEL)?;
        }
    }
    crate::sort::by_key(&mut runs, |run| *run);
    // Merge adjacent runs of the same kind.
    let mut merged: KVVec<Run> = KVVec::with_capacity(runs.len(), GFP_KERNEL)?;
    for run in runs.iter() {
        match merged.last_mut() {
            Some(last) if last.end() == run.start && last.owner == run.owner => last.len += run.len,
            _ => merged.push(*run, GFP_KERNEL)?,
        }
    }
    Ok(merged)
}
