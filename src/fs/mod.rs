// SPDX-License-Identifier: GPL-2.0

//! ext4 on top of the VFS.
//!
//! The code is divided into six wings, each of which uses only those before it (checked by
//! `tests/imports`):
//!
//! - [`disk`] — the layout of the volume: superblock, groups, inodes, fixed metadata; and the
//!   handling of damage
//! - [`alloc`] — allocating and freeing blocks and inodes; [`alloc::space`] is the only place where
//!   blocks change owners
//! - [`map`] — from a block of a file to a block of the volume, by extents or by indirect blocks
//! - [`names`] — directories, symbolic links, extended attributes, orphans
//! - [`data`] — the contents of files: writing, preallocation, truncation, copy-on-write, sharing
//! - [`volume`] — mounting, recovery, scanning all inodes, ioctls on the volume as a whole
//!
//! Below the wings are [`state`] (the [`Volume`] that they work on), [`owners`] and [`staging`];
//! above them is this file, which dispatches each VFS operation to its wing.

mod alloc;
mod data;
mod disk;
mod map;
mod names;
mod owners;
mod staging;
mod state;
mod volume;
mod watch;

pub(crate) use alloc::{bitmaps, space};
pub(crate) use data::sharing;
pub(crate) use state::Volume;
pub(crate) use volume::{companion, directories, inode_bitmaps, inode_blocks, scan, system};

use crate::kernel_glue::{
    insist, AccessList, AddressSpaceOperations, AttributeSpace, Blank, Change, DirEmitter, ExportOperations,
    FileOperations, FileSystem, Hooks, Inode, InodeOperations, InodeRef, Ioctl, IomapOperations, Locked,
    Make, Mapping, NewInode, NewSuperBlock, OpenFile, Remap, Rename, Reserve, SetMode, Shift, Status,
    SuperBlock, SuperOperations, Target, Written, XattrOperations,
};
use alloc::balloc;
use data::{cow, file, flags, reflink, reserve, shift, truncate};
use disk::inode;
use kernel::{
    prelude::*,
    sync::{aref::ARef, atomic::Relaxed},
};
use map::mapping;
use names::{acl, dir, handles, namei, readdir, symlink, xattr};
use volume::{calls, hold, shutdown, super_block};

impl FileSystem for Volume {
    const NAME: &'static CStr = c"rext4";
    const MAGIC: u64 = 0xef53;

    type InodeData = inode::Data;
    type Options = state::Options;

    fn option(options: &mut Self::Options, key: &CStr, value: Option<&CStr>) -> Result<bool> {
        options.take(key.to_bytes(), value.map(CStr::to_bytes))
    }

    fn open(sb: &mut NewSuperBlock<'_, Self>, options: &Self::Options) -> Result<Pin<KBox<Self>>> {
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
}

#[vtable]
impl SuperOperations for Volume {
    fn show_options(&self, out: &mut dyn FnMut(&CStr)) {
        if let Err(error) = super_block::show_options(self, out) {
            pr_err!("the mount options cannot be shown: error {}\n", error.to_errno());
        }
    }

    fn statistics(&self) -> Result<crate::kernel_glue::Statistics> {
        super_block::statistics(self)
    }

    fn sync(&self, sb: &SuperBlock<Self>, wait: bool) -> Result {
        self.check_journal()?;
        let Ok(journal) = self.journal() else {
            return Ok(());
        };
        if wait {
            // A frozen volume must not change.
            if let Some(_write) = sb.try_internal_write() {
                cow::drop_idle(sb, true)?;
            }
        }
        journal.commit(wait)?;
        if wait && self.options().has_barrier() {
            sb.flush_device()?;
        }
        // An aborted transaction counts as committed.
        self.check_journal()
    }

    fn freeze(&self, sb: &SuperBlock<Self>, frozen: bool) -> Result {
        super_block::freeze(self, sb, frozen)
    }

    fn check_alive(&self) -> Result {
        Volume::check_alive(self)
    }

    fn check_writes(&self) -> Result {
        Volume::check_writes(self)
    }

    fn device_gone(&self, sb: &SuperBlock<Self>) {
        shutdown::device_gone(self, sb);
    }

    fn store(inode: &Inode<Self>) -> Result {
        let handle = inode.super_block().volume()?.begin(inode::STORE_CREDITS, 0)?;
        inode::store(&handle, inode, inode::Part::Attributes)
    }

    fn sync_inode(inode: &Inode<Self>) -> Result {
        let sb = inode.super_block();
        let volume = sb.volume()?;
        volume.check_journal()?;
        let Ok(journal) = volume.journal() else {
            return Ok(());
        };
        let transaction = inode.data()?.transaction();
        let flushes = journal.will_flush_device(transaction);
        journal.wait_for(transaction)?;
        if !flushes && volume.options().has_barrier() {
            sb.flush_device()?;
        }
        // An aborted transaction counts as committed.
        volume.check_journal()
    }

    fn evict(inode: &Locked<Self>) {
        let alive = inode.super_block().volume().and_then(Volume::check_alive);
        if let Some(error) = insist(|| truncate::evict(inode))
            .err()
            .filter(|_| alive.is_ok() && SuperBlock::<Self>::may_log())
        {
            pr_err!(
                "{}: inode {}: could not be freed: error {}\n",
                inode.super_block().name(),
                inode.number(),
                error.to_errno()
            );
        }
    }

    fn needs_forget(inode: &Inode<Self>) -> bool {
        inode.data().is_ok_and(|data| data.has_staged())
    }

    fn forget(inode: &Inode<Self>) {
        cow::evict(inode);
    }
}

#[vtable]
impl InodeOperations for Volume {
    fn lookup(dir: &Inode<Self>, name: &[u8]) -> Result<Option<InodeRef<Self>>> {
        dir::lookup(dir, name)
    }

    fn create(
        dir: &Locked<Self>,
        name: &[u8],
        blank: Blank<Self>,
        make: &Make<'_>,
    ) -> Result<NewInode<Self>> {
        namei::create(dir, name, blank, make)
    }

    fn tmpfile(dir: &Inode<Self>, blank: Blank<Self>, make: &Make<'_>) -> Result<NewInode<Self>> {
        namei::tmpfile(dir, blank, make)
    }

    fn link(inode: &Locked<Self>, dir: &Locked<Self>, name: &[u8]) -> Result {
        namei::link(inode, dir, name)
    }

    fn unlink(dir: &Locked<Self>, name: &[u8], inode: &Locked<Self>) -> Result {
        namei::unlink(dir, name, inode)
    }

    fn rename(rename: &Rename<'_, Self>) -> Result {
        namei::rename(rename)
    }

    fn link_target(inode: &Inode<Self>) -> Result<KVec<u8>> {
        symlink::target(inode)
    }

    fn resize(inode: &Locked<Self>, size: u64) -> Result {
        truncate::resize(inode, size)
    }

    fn access_list(inode: &Inode<Self>, default: bool) -> Result<Option<ARef<AccessList>>> {
        acl::get(inode, default)
    }

    fn set_access_list(
        inode: &Locked<Self>,
        default: bool,
        list: Option<&AccessList>,
        mode: Option<u16>,
    ) -> Result {
        acl::set(inode, default, list, mode)
    }

    fn wait_for_space(inode: &Inode<Self>) -> Result<bool> {
        balloc::wait_for_frees(inode.super_block().volume()?)
    }

    fn status(inode: &Inode<Self>) -> Status {
        let (Ok(volume), Ok(data)) = (inode.super_block().volume(), inode.data()) else {
            return Status::default();
        };
        let hides = volume.has_system_dir.load(Relaxed) && inode.number() == crate::format::inode::ROOT;
        Status {
            flags: flags::get(inode).unwrap_or(0),
            made: data.made().map(inode::timestamp),
            pending_sectors: inode::pending_sectors(inode),
            hidden_links: u32::from(hides),
        }
    }

    fn set_flags(inode: &Locked<Self>, flags: u32, project: u32) -> Result {
        flags::set(inode, flags, project)
    }
}

#[vtable]
impl FileOperations for Volume {
    fn read_dir(dir: &Inode<Self>, out: &mut DirEmitter<'_>) -> Result {
        readdir::read(dir, out)
    }

    fn has_hash_positions(dir: &Inode<Self>) -> bool {
        readdir::is_by_hash(dir).unwrap_or(false)
    }

    fn max_size(inode: &Inode<Self>) -> u64 {
        inode::max_size(inode)
    }

    fn trim(inode: &Locked<Self>) -> Result {
        truncate::trim(inode)
    }

    fn before_write(inode: &Inode<Self>) {
        // Writing to preallocated blocks starts no handle, and the worker that completes the I/O
        // must not wait.
        if Hooks::are_on() {
            if let Ok(volume) = inode.super_block().volume() {
                volume.throttle();
            }
        }
    }

    fn reserve(inode: &Locked<Self>, how: Reserve, position: u64, length: u64) -> Result {
        reserve::reserve(inode, how, position, length)
    }

    fn shift(inode: &Locked<Self>, how: Shift, position: u64, length: u64) -> Result {
        shift::shift(inode, how, position, length)
    }

    fn remap(call: &Remap<'_, Self>) -> Result<u64> {
        reflink::remap(call)
    }

    fn ioctl(inode: &Inode<Self>, call: Ioctl<'_>) -> Result {
        if let Some(answer) = hold::call(inode, &call).or_else(|| calls::call(inode, &call)) {
            return answer;
        }
        companion::get()
            .ok_or_else(crate::kernel_glue::no_such_ioctl)?
            .ioctl(inode, call)
    }

    fn release(inode: &Inode<Self>) {
        if inode
            .super_block()
            .volume()
            .and_then(Volume::check_alive)
            .is_err()
        {
            return;
        }
        // On a frozen volume they stay until it is synced, or the inode leaves memory.
        let Some(_write) = inode.super_block().try_internal_write() else {
            return;
        };
        truncate::closed(inode);
        if let Some(error) = cow::release(inode)
            .err()
            .filter(|_| SuperBlock::<Self>::may_log())
        {
            pr_err!(
                "{}: inode {}: staged blocks could not be freed: error {}\n",
                inode.super_block().name(),
                inode.number(),
                error.to_errno()
            );
        }
    }

    fn closed(inode: &Inode<Self>, file: &OpenFile<'_>) {
        hold::closed(inode, file);
    }
}

#[vtable]
impl AddressSpaceOperations for Volume {
    fn write_back(inode: &Inode<Self>, position: u64, length: u64) -> Result<Mapping> {
        cow::write_back(inode, position, length)
    }

    fn written(inode: &Inode<Self>, what: Written) -> Result {
        file::written(inode, what)
    }

    fn before_swap(inode: &Locked<Self>) -> Result {
        cow::before_swap(inode)
    }

    fn disk_size(inode: &Inode<Self>) -> u64 {
        inode.data().map_or(0, |data| data.disk_size())
    }
}

#[vtable]
impl IomapOperations for Volume {
    fn map(inode: &Inode<Self>, position: u64, length: u64) -> Result<Mapping> {
        mapping::of_bytes(inode, position, length)
    }

    fn report(inode: &Inode<Self>, position: u64, length: u64) -> Result<Mapping> {
        mapping::report(inode, position, length)
    }

    fn target(inode: &Inode<Self>, position: u64, length: u64, change: Change) -> Result<Option<Target>> {
        file::target(inode, position, length, change)
    }

    fn allocate(inode: &Inode<Self>, position: u64, length: u64, change: Change) -> Result {
        file::allocate(inode, position, length, change)
    }

    fn map_version(inode: &Inode<Self>) -> u64 {
        inode.data().map_or(0, |data| data.version())
    }
}

#[vtable]
impl XattrOperations for Volume {
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
}

#[vtable]
impl ExportOperations for Volume {
    fn by_handle(sb: &SuperBlock<Self>, ino: u64, generation: u32) -> Result<InodeRef<Self>> {
        handles::by_handle(sb, ino, generation)
    }

    fn parent(dir: &Inode<Self>) -> Result<InodeRef<Self>> {
        handles::parent(dir)
    }
}
