// SPDX-License-Identifier: GPL-2.0

//! ext4 on top of the VFS: what a mounted volume is, and how it answers what is asked of it.
//!
//! - [`super_block`] — reading the volume, its journal, and mounting
//! - [`inode`] — reading inodes and what is kept of them
//! - [`mapping`] — from a block of a file to a block of the volume, by [`extents`] or by [`indirect`] blocks
//! - [`dir`] — finding and listing names
//! - [`symlink`] — targets of symbolic links

mod dir;
mod extents;
mod indirect;
mod inode;
mod mapping;
mod super_block;
mod symlink;

use crate::{
    format::{superblock::Layout, Corrupt},
    kernel_glue::{corrupted, DirEmitter, FileSystem, Inode, InodeRef, Journal, Mapping, SuperBlock},
};
use kernel::{new_mutex, prelude::*, sync::Mutex};

/// A mounted volume.
pub(crate) struct Volume {
    /// Where everything is. Fixed while mounted.
    layout: Layout,
    /// What the mount was asked for.
    options: super_block::Options,
    /// The journal, while the volume is alive and has one that was needed.
    journal: Pin<KBox<Mutex<Option<Journal>>>>,
    /// Free blocks and inodes, and the blocks that files can never have, as found at mount.
    counts: Pin<KBox<Mutex<super_block::Counts>>>,
    /// The device, for `statfs`.
    device_id: u64,
}

impl Volume {
    fn new(layout: Layout, options: super_block::Options, device_id: u64) -> Result<Volume> {
        Ok(Volume {
            layout,
            options,
            journal: KBox::pin_init(new_mutex!(None, "Volume::journal"), GFP_KERNEL)?,
            counts: KBox::pin_init(
                new_mutex!(super_block::Counts::default(), "Volume::counts"),
                GFP_KERNEL,
            )?,
            device_id,
        })
    }
}

/// Says what is wrong with an inode or a block that it owns, and makes an errno of it.
fn corrupt_inode(sb: &SuperBlock<Volume>, ino: u32, block: Option<u64>, what: Corrupt) -> Error {
    match block {
        Some(block) => pr_err!("{}: inode {ino}: block {block}: {}\n", sb.name(), what.0),
        None => pr_err!("{}: inode {ino}: {}\n", sb.name(), what.0),
    }
    corrupted()
}

impl FileSystem for Volume {
    const NAME: &'static CStr = c"rext4";
    const MAGIC: u64 = 0xef53;

    type InodeData = inode::Data;
    type Options = super_block::Options;

    fn option(options: &mut Self::Options, key: &CStr, value: Option<&CStr>) -> Result<bool> {
        options.take(key, value)
    }

    fn open(sb: &SuperBlock<Self>, options: &Self::Options) -> Result<Self> {
        super_block::open(sb, options)
    }

    fn start(&self, sb: &SuperBlock<Self>) -> Result<InodeRef<Self>> {
        super_block::start(self, sb)
    }

    fn stop(&self) {
        // Dropped outside the lock: putting the journal to rest waits for its thread.
        let journal = self.journal.lock().take();
        drop(journal);
    }

    fn reconfigure(&self, sb: &SuperBlock<Self>, options: &Self::Options, read_only: bool) -> Result {
        super_block::reconfigure(self, sb, options, read_only)
    }

    fn statistics(&self) -> Result<crate::kernel_glue::Statistics> {
        super_block::statistics(self)
    }

    fn lookup(dir: &Inode<Self>, name: &[u8]) -> Result<Option<InodeRef<Self>>> {
        dir::lookup(dir, name)
    }

    fn read_dir(dir: &Inode<Self>, out: &mut DirEmitter<'_>) -> Result {
        dir::read(dir, out)
    }

    fn link_target(inode: &Inode<Self>) -> Result<KVec<u8>> {
        symlink::target(inode)
    }

    fn map(inode: &Inode<Self>, position: u64, length: u64) -> Result<Mapping> {
        mapping::of_bytes(inode, position, length)
    }
}
