// SPDX-License-Identifier: GPL-2.0

//! ext4 on top of the VFS: what a mounted volume is, and how it answers what is asked of it.
//!
//! - [`super_block`] — reading the volume, its journal, and mounting
//! - [`inode`] — reading inodes and what is kept of them
//! - [`mapping`] — from a block of a file to a block of the volume, by [`extents`] or by [`indirect`] blocks
//! - [`dir`] — finding and listing names
//! - [`symlink`] — targets of symbolic links
//! - [`namei`] — adding, removing and renaming names
//! - [`errors`] — what is done about damage
//! - [`fixed`] — the blocks that no file may have
//! - [`groups`], [`balloc`], [`ialloc`] — block groups, and taking blocks and inodes from them
//! - [`space`] — the one place through which blocks get and lose owners
//! - [`extent_tree`], [`change`], [`truncate`] — changing the mapping of a file
//! - [`file`], [`reserve`] — allocating blocks of files as they are written, and in advance
//! - [`reflink`], [`cow`] — files that share blocks, and writing to them
//! - [`scan`] — going over all inodes and what they own
//! - [`system`] — the file system's own files
//! - [`companion`] — telling the layers above when a volume comes and goes
//! - [`orphan`] — inodes that are deleted and not freed yet
//! - [`hold`] — holding off all writers while files are cloned
//! - [`xattr`], [`acl`] — extended attributes, and the access lists among them

mod acl;
mod balloc;
mod change;
pub(crate) mod companion;
mod cow;
mod dir;
mod errors;
mod extent_tree;
mod extents;
mod file;
mod fixed;
mod groups;
mod hold;
mod ialloc;
mod indirect;
mod inode;
mod mapping;
mod namei;
mod orphan;
mod reflink;
mod reserve;
pub(crate) mod scan;
pub(crate) mod space;
mod super_block;
mod symlink;
pub(crate) mod system;
mod truncate;
mod xattr;

use crate::{
    format::{
        superblock::{ro_compat, Layout},
        Corrupt,
    },
    kernel_glue::{
        corrupted, AccessList, AttributeSpace, Blank, Change, Credits, DirEmitter, FileSystem, Handle, Inode,
        InodeRef, Ioctl, Journal, Make, Mapping, NewInode, OpenFile, Remap, Rename, Reserve, SetMode,
        SuperBlock, Target, Written,
    },
};
use kernel::{
    new_mutex, new_spinlock,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, Mutex, MutexGuard, SetOnce, SpinLock,
    },
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
    /// Where each group's inode table starts, once the descriptors were read.
    inode_tables: SetOnce<KVVec<u64>>,
    /// The blocks that no file may have, in order, once they were listed.
    fixed: SetOnce<KVVec<crate::format::zones::Zone>>,
    /// The inodes that were deleted and are still to be freed.
    orphans: Pin<KBox<Mutex<orphan::Orphans>>>,
    /// Deleted inodes may be had: they are being freed after a crash.
    frees_orphans: Atomic<bool>,
    /// There is a directory of the file system's own files, which nobody sees.
    has_system_dir: Atomic<bool>,
    /// What was found damaged, and what is done about that.
    errors: errors::Errors,
    /// Held while the superblock is changed on disk.
    super_lock: Pin<KBox<Mutex<()>>>,
    /// The open directory on which somebody asked for all writers to be held, by its number.
    held_by: Pin<KBox<Mutex<Option<usize>>>>,
    /// What keeps an index of who owns which block.
    index: Pin<KBox<SpinLock<Index>>>,
    /// The blocks that are staged for inodes.
    staging: Pin<KBox<Mutex<cow::Staging>>>,
    /// What is known of blocks with several owners.
    shared: space::SharedBlocks,
    /// The device, for `statfs`.
    device_id: u64,
    /// The sectors that had been written to the device when the volume's count of that was last brought up to date.
    sectors_counted: Atomic<u64>,
}

/// An index of owners, if one is attached.
type Index = Option<Arc<dyn space::OwnerIndex>>;

impl Volume {
    fn new(
        layout: Layout,
        options: super_block::Options,
        on_error: errors::Action,
        sb: &SuperBlock<Volume>,
    ) -> Result<Volume> {
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
            inode_tables: SetOnce::new(),
            fixed: SetOnce::new(),
            orphans: KBox::pin_init(
                new_mutex!(orphan::Orphans::default(), "Volume::orphans"),
                GFP_KERNEL,
            )?,
            frees_orphans: Atomic::new(false),
            has_system_dir: Atomic::new(false),
            errors: errors::Errors::new(on_error)?,
            super_lock: KBox::pin_init(new_mutex!((), "Volume::super_lock"), GFP_KERNEL)?,
            held_by: KBox::pin_init(new_mutex!(None, "Volume::held_by"), GFP_KERNEL)?,
            index: KBox::pin_init(new_spinlock!(None, "Volume::index"), GFP_KERNEL)?,
            counts: KBox::pin_init(
                new_mutex!(super_block::Counts::default(), "Volume::counts"),
                GFP_KERNEL,
            )?,
            staging: KBox::pin_init(new_mutex!(cow::Staging::new(), "Volume::staging"), GFP_KERNEL)?,
            shared: space::SharedBlocks::new(layout.features.ro_compat(ro_compat::SHARED_BLOCKS))?,
            device_id: sb.device_id(),
            sectors_counted: Atomic::new(sb.sectors_written()),
        })
    }

    /// The journal. Fails with `EROFS` while the volume is not mounted writable.
    pub(crate) fn journal(&self) -> Result<Arc<Journal>> {
        self.journal.lock().clone().ok_or(EROFS)
    }

    /// Starts a handle that may write so many blocks; see [`Handle::start`].
    pub(crate) fn begin(&self, blocks: u32, revokes: u32) -> Result<Handle> {
        if let Some(index) = self.index() {
            index.throttle();
        }
        self.begin_internal(blocks, revokes)
    }

    /// The same for an index's own use, which must not wait for itself.
    pub(crate) fn begin_internal(&self, blocks: u32, revokes: u32) -> Result<Handle> {
        Handle::start(self.journal()?, Credits { blocks, revokes })
    }

    /// Locks a block group: its two bitmaps and its descriptor. Taken inside a handle, one group at a time.
    pub(crate) fn lock_group(&self, group: u32) -> Result<MutexGuard<'_, ()>> {
        Ok(self.groups.get(group as usize).ok_or(EINVAL)?.lock())
    }

    /// The index of who owns which block, if one is attached.
    pub(crate) fn index(&self) -> Index {
        self.index.lock().clone()
    }

    /// Attaches an index, or takes the one that is attached away.
    pub(crate) fn attach_index(&self, index: Index) {
        // The old one goes after the lock.
        let _old = core::mem::replace(&mut *self.index.lock(), index);
    }

    /// Where a group's inode table starts, once the descriptors were read.
    fn inode_table(&self, group: u32) -> Option<u64> {
        self.inode_tables.as_ref()?.get(group as usize).copied()
    }

    fn frees_orphans(&self) -> bool {
        self.frees_orphans.load(Relaxed)
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
    errors::note(sb, ino, block.unwrap_or(0));
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

    fn stop(&self, sb: &SuperBlock<Self>) {
        super_block::stop(self, sb);
    }

    fn reconfigure(&self, sb: &SuperBlock<Self>, options: &Self::Options, read_only: bool) -> Result {
        super_block::reconfigure(self, sb, options, read_only)
    }

    fn show_options(&self, out: &mut dyn FnMut(&CStr)) {
        super_block::show_options(self, out);
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

    fn hidden_links(dir: &Inode<Self>) -> u32 {
        let volume = dir.super_block().volume();
        let hidden = volume.is_ok_and(|volume| volume.has_system_dir.load(Relaxed));
        u32::from(hidden && dir.number() == crate::format::inode::ROOT)
    }

    fn link_target(inode: &Inode<Self>) -> Result<KVec<u8>> {
        symlink::target(inode)
    }

    fn wait_for_space(inode: &Inode<Self>) -> Result<bool> {
        balloc::wait_for_frees(inode.super_block().volume()?)
    }

    fn create(dir: &Inode<Self>, name: &[u8], blank: Blank<Self>, make: &Make<'_>) -> Result<NewInode<Self>> {
        namei::create(dir, name, blank, make)
    }

    fn link(inode: &Inode<Self>, dir: &Inode<Self>, name: &[u8]) -> Result {
        namei::link(inode, dir, name)
    }

    fn unlink(dir: &Inode<Self>, name: &[u8], inode: &Inode<Self>) -> Result {
        namei::unlink(dir, name, inode)
    }

    fn rename(rename: &Rename<'_, Self>) -> Result {
        namei::rename(rename)
    }

    fn resize(inode: &Inode<Self>, size: u64) -> Result {
        truncate::resize(inode, size)
    }

    fn store(inode: &Inode<Self>) -> Result {
        let handle = inode.super_block().volume()?.begin(inode::STORE_CREDITS, 0)?;
        inode::store(&handle, inode, inode::Part::Attributes)
    }

    fn evict(inode: &Inode<Self>) {
        if let Err(error) = truncate::evict(inode) {
            pr_err!(
                "{}: inode {}: could not be freed: error {}\n",
                inode.super_block().name(),
                inode.number(),
                error.to_errno()
            );
        }
    }

    fn sync_inode(inode: &Inode<Self>) -> Result {
        let sb = inode.super_block();
        let Ok(journal) = sb.volume()?.journal() else {
            return Ok(());
        };
        let transaction = inode.data()?.transaction();
        let flushes = journal.will_flush_device(transaction);
        journal.wait_for(transaction)?;
        if !flushes {
            sb.flush_device()?;
        }
        Ok(())
    }

    fn sync(&self, sb: &SuperBlock<Self>, wait: bool) -> Result {
        let Ok(journal) = self.journal() else {
            return Ok(());
        };
        if wait {
            cow::drop_idle(sb, true)?;
        }
        journal.commit(wait)?;
        if wait {
            sb.flush_device()?;
        }
        Ok(())
    }

    fn freeze(&self, sb: &SuperBlock<Self>, frozen: bool) -> Result {
        super_block::freeze(self, sb, frozen)
    }

    fn attribute(inode: &Inode<Self>, space: AttributeSpace, name: &[u8]) -> Result<KVec<u8>> {
        xattr::get(inode, space, name)
    }

    fn attributes(inode: &Inode<Self>, out: &mut dyn FnMut(AttributeSpace, &[u8]) -> Result) -> Result {
        xattr::list(inode, out)
    }

    fn set_attribute(
        inode: &Inode<Self>,
        space: AttributeSpace,
        name: &[u8],
        value: Option<&[u8]>,
        mode: SetMode,
    ) -> Result {
        xattr::set(inode, space, name, value, mode)
    }

    fn set_access_list(
        inode: &Inode<Self>,
        default: bool,
        list: Option<&AccessList>,
        mode: Option<u16>,
    ) -> Result {
        acl::set(inode, default, list, mode)
    }

    fn access_list(inode: &Inode<Self>, default: bool) -> Result<Option<AccessList>> {
        acl::get(inode, default)
    }

    fn closed(inode: &Inode<Self>, file: &OpenFile<'_>) {
        hold::closed(inode, file);
    }

    fn ioctl(inode: &Inode<Self>, call: Ioctl<'_>) -> Result {
        if let Some(answer) = hold::call(inode, &call) {
            return answer;
        }
        companion::get()
            .ok_or_else(crate::kernel_glue::no_such_ioctl)?
            .ioctl(inode, call)
    }

    fn target(inode: &Inode<Self>, position: u64, length: u64, change: Change) -> Result<Option<Target>> {
        file::target(inode, position, length, change)
    }

    fn allocate(inode: &Inode<Self>, position: u64, length: u64, change: Change) -> Result {
        file::allocate(inode, position, length, change)
    }

    fn write_back(inode: &Inode<Self>, position: u64, length: u64) -> Result<Mapping> {
        cow::write_back(inode, position, length)
    }

    fn release(inode: &Inode<Self>) {
        if let Err(error) = cow::release(inode) {
            pr_err!(
                "{}: inode {}: staged blocks could not be given back: error {}\n",
                inode.super_block().name(),
                inode.number(),
                error.to_errno()
            );
        }
    }

    fn forget(inode: &Inode<Self>) {
        cow::evict(inode);
    }

    fn needs_forget(inode: &Inode<Self>) -> bool {
        inode.data().is_ok_and(|data| data.has_staged())
    }

    fn remap(call: &Remap<'_, Self>) -> Result<u64> {
        reflink::remap(call)
    }

    fn reserve(inode: &Inode<Self>, how: Reserve, position: u64, length: u64) -> Result {
        reserve::reserve(inode, how, position, length)
    }

    fn map_version(inode: &Inode<Self>) -> u64 {
        inode.data().map_or(0, |data| data.version())
    }

    fn disk_size(inode: &Inode<Self>) -> u64 {
        inode.data().map_or(0, |data| data.disk_size())
    }

    fn written(inode: &Inode<Self>, what: Written) -> Result {
        file::written(inode, what)
    }

    fn map(inode: &Inode<Self>, position: u64, length: u64) -> Result<Mapping> {
        mapping::of_bytes(inode, position, length)
    }

    fn report(inode: &Inode<Self>, position: u64, length: u64) -> Result<Mapping> {
        mapping::report(inode, position, length)
    }
}
