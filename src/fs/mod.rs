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
    kernel_glue::{
        corrupted, Blank, Credits, DirEmitter, FileSystem, Handle, Inode, InodeRef, Journal, Make, Mapping,
        NewInode, Rename, SuperBlock,
    },
};
use kernel::{
    new_mutex, new_spinlock,
    prelude::*,
    sync::{Arc, Mutex, MutexGuard, SpinLock},
};

/// A mounted volume.
pub(crate) struct Volume {
    /// Where everything is. Fixed while mounted.
    layout: Layout,
    /// What the mount was asked for.
    options: super_block::Options,
    /// The journal, while the volume is mounted writable.
    journal: Pin<KBox<SpinLock<Option<Arc<Journal>>>>>,
    /// One lock a block group, held while its bitmaps and its descriptor are looked at to be changed.
    groups: KVVec<Pin<KBox<Mutex<()>>>>,
    /// Locks for blocks of inode tables, which several inodes share: that of a block is found by its number.
    tables: KVec<Pin<KBox<Mutex<()>>>>,
    /// Free blocks and inodes, and the blocks that files can never have, as found at mount.
    counts: Pin<KBox<Mutex<super_block::Counts>>>,
    /// The device, for `statfs`.
    device_id: u64,
}

impl Volume {
    fn new(layout: Layout, options: super_block::Options, device_id: u64) -> Result<Volume> {
        let mut groups = KVVec::with_capacity(layout.groups as usize, GFP_KERNEL)?;
        for _ in 0..layout.groups {
            let lock = KBox::pin_init(new_mutex!((), "Volume::groups"), GFP_KERNEL)?;
            groups.push(lock, GFP_KERNEL)?;
        }
        let mut tables = KVec::with_capacity(TABLE_LOCKS, GFP_KERNEL)?;
        for _ in 0..TABLE_LOCKS {
            let lock = KBox::pin_init(new_mutex!((), "Volume::tables"), GFP_KERNEL)?;
            tables.push(lock, GFP_KERNEL)?;
        }
        Ok(Volume {
            layout,
            options,
            journal: KBox::pin_init(new_spinlock!(None, "Volume::journal"), GFP_KERNEL)?,
            groups,
            tables,
            counts: KBox::pin_init(
                new_mutex!(super_block::Counts::default(), "Volume::counts"),
                GFP_KERNEL,
            )?,
            device_id,
        })
    }

    /// The journal. Fails with `EROFS` while the volume is not mounted writable.
    pub(crate) fn journal(&self) -> Result<Arc<Journal>> {
        self.journal.lock().clone().ok_or(EROFS)
    }

    /// Starts a handle that may write so many blocks; see [`Handle::start`].
    pub(crate) fn begin(&self, blocks: u32, revokes: u32) -> Result<Handle> {
        Handle::start(self.journal()?, Credits { blocks, revokes })
    }

    /// Locks a block group: its two bitmaps and its descriptor. Taken inside a handle, one group at a time.
    pub(crate) fn lock_group(&self, group: u32) -> Result<MutexGuard<'_, ()>> {
        Ok(self.groups.get(group as usize).ok_or(EINVAL)?.lock())
    }

    /// Locks a block of an inode table against others who write inodes in it.
    fn lock_table(&self, block: u64) -> Result<MutexGuard<'_, ()>> {
        let lock = self.tables.get((block % TABLE_LOCKS as u64) as usize);
        Ok(lock.ok_or(EINVAL)?.lock())
    }
}

/// Locks for all blocks of inode tables.
const TABLE_LOCKS: usize = 64;

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

    fn stop(&self, _sb: &SuperBlock<Self>) {
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

    fn create(
        _dir: &Inode<Self>,
        _name: &[u8],
        _blank: Blank<Self>,
        _make: &Make<'_>,
    ) -> Result<NewInode<Self>> {
        Err(EROFS)
    }

    fn link(_inode: &Inode<Self>, _dir: &Inode<Self>, _name: &[u8]) -> Result {
        Err(EROFS)
    }

    fn unlink(_dir: &Inode<Self>, _name: &[u8], _inode: &Inode<Self>) -> Result {
        Err(EROFS)
    }

    fn rename(_rename: &Rename<'_, Self>) -> Result {
        Err(EROFS)
    }

    fn resize(_inode: &Inode<Self>, _size: u64) -> Result {
        Err(EROFS)
    }

    fn store(_inode: &Inode<Self>) -> Result {
        Err(EROFS)
    }

    fn evict(_inode: &Inode<Self>) {}

    fn sync_inode(_inode: &Inode<Self>) -> Result {
        Ok(())
    }

    fn sync(&self, _sb: &SuperBlock<Self>, _wait: bool) -> Result {
        Ok(())
    }

    fn freeze(&self, _sb: &SuperBlock<Self>, _frozen: bool) -> Result {
        Ok(())
    }

    fn map(inode: &Inode<Self>, position: u64, length: u64) -> Result<Mapping> {
        mapping::of_bytes(inode, position, length)
    }
}
