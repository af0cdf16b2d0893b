// SPDX-License-Identifier: GPL-2.0

//! The trees that stand beside a volume, in their files of the system directory.
//!
//! - [`file`] — a tree file: its blocks, its header, and the space maps that say whose each block is
//! - [`store`] — nodes of one region's tree as the engine wants them, in a transaction or staged outside of it
//! - [`rmap`] — the reverse map: a tree a region, kept in the same transactions as the block bitmaps, and the hooks for
//!   who watches it change
//! - [`counts`] — the reference counts: a tree a region, too
//! - [`sweep`] — making such a tree out of the region's reverse map

pub(crate) mod counts;
pub(crate) mod file;
pub(crate) mod rmap;
pub(crate) mod store;
pub(crate) mod sweep;

use crate::{
    engine,
    fs::Volume,
    kernel_glue::{corrupted, SuperBlock},
};
use kernel::prelude::*;

/// Makes an errno of the engine's error about a region's reverse map and says what is wrong, with the block in the tree file.
pub(crate) fn report(sb: &SuperBlock<Volume>, region: u32, error: engine::Error) -> Error {
    report_as(sb, "rmap", region, error)
}

/// The same of the tree of some name.
fn report_as(sb: &SuperBlock<Volume>, tree: &str, region: u32, error: engine::Error) -> Error {
    let name = sb.name();
    match error {
        engine::Error::Corrupt { block, what } => {
            pr_err!("{name}: {tree}: region {region}: block {block}: {what}\n");
            corrupted()
        }
        engine::Error::Mismatch(what) => {
            pr_err!("{name}: {tree}: region {region}: {what}\n");
            corrupted()
        }
        engine::Error::NoMemory => ENOMEM,
        engine::Error::NoSpace => ENOSPC,
        engine::Error::Io => {
            pr_err!("{name}: {tree}: region {region}: a block cannot be read or written\n");
            EIO
        }
    }
}
