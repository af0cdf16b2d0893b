// SPDX-License-Identifier: GPL-2.0

//! The tables of function pointers for the VFS, the page cache and iomap, generated from
//! [`Operations`].
//!
//! Each function converts C pointers to borrowed types, calls the trait, and converts the result to
//! an errno.
//!
//! C headers: [`include/linux/fs.h`](srctree/include/linux/fs.h),
//! [`include/linux/iomap.h`](srctree/include/linux/iomap.h)

use super::{
    bindings,
    inode::Inode,
    mount::{alloc_inode, destroy_inode, free_inode},
    namespace::name_of,
    operations::{FileSystem, Operations},
    super_block::{HeldWriters, SuperBlock},
};
use core::{marker::PhantomData, ptr, ptr::NonNull};
use kernel::{
    error::{from_result, to_result, Error},
    prelude::*,
    seq_file::{seq_print, SeqFile},
};

/// The location of a part of a file. All values are in bytes.
#[allow(missing_docs)]
pub(crate) struct Mapping {
    /// The file offset at which the part starts, at or before the requested one.
    pub(crate) position: u64,
    pub(crate) length: u64,
    pub(crate) place: Place,
    /// The blocks are shared; or, for a target, they replace shared ones.
    pub(crate) shared: bool,
}

/// The blocks of a [`Mapping`].
pub(crate) enum Place {
    /// None: reads as zeroes.
    Hole,
    /// Allocated at this byte offset of the device, but reads as zeroes.
    Unwritten(u64),
    /// The data is at this byte offset of the device.
    Written(u64),
}

/// A change that is about to be made to bytes of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// A buffered write; the inode is locked.
    Write,
    /// A write fault; the page is locked.
    Fault,
    /// A direct write; the inode is locked, possibly shared.
    Direct,
    /// Zeroing; the inode is locked.
    Zero,
    /// Replacing shared blocks without changing the contents; the inode is locked.
    Unshare,
}

/// The destination of a change.
pub(crate) struct Target {
    /// Where to write.
    pub(crate) place: Mapping,
    /// The current location of the bytes, if it is a different one.
    pub(crate) old: Option<Mapping>,
}

/// Bytes of a file that have been written to disk.
#[derive(Clone, Copy)]
pub(crate) struct Written {
    /// File offset in bytes.
    pub(crate) start: u64,
    /// Length in bytes.
    pub(crate) length: u64,
    /// The end of the file is at least here, in bytes.
    pub(crate) end: u64,
    /// Some of the blocks were unwritten.
    pub(crate) unwritten: bool,
    /// Some of the blocks were staged.
    pub(crate) staged: bool,
    /// It was a direct write.
    pub(crate) direct: bool,
}

/// Takes the entries of a directory as it is read.
pub(crate) struct DirEmitter<'a> {
    context: &'a mut bindings::dir_context,
    /// Positions have 31 bits, so that of a hash they hold the first half only.
    narrow: bool,
    /// See [`passed`](Self::passed).
    passed: u64,
}

impl DirEmitter<'_> {
    /// Returns the position to continue from.
    pub(crate) fn position(&self) -> u64 {
        self.context.pos.max(0) as u64
    }

    /// Sets the position to continue from.
    pub(crate) fn set_position(&mut self, position: u64) {
        let position = i64::try_from(position).unwrap_or(i64::MAX);
        if position != self.context.pos {
            self.passed = 0;
        }
        self.context.pos = position;
    }

    /// Returns the position as the two halves of a hash, of which the lowest bit is not used, or
    /// `None` at the end.
    pub(crate) fn hash_position(&self) -> Option<(u32, u32)> {
        let position = self.position();
        if position >= Self::end(self.narrow) {
            return None;
        }
        Some(match self.narrow {
            true => ((position << 1) as u32, 0),
            false => ((position >> 32 << 1) as u32, position as u32),
        })
    }

    /// Sets the position to the two halves of a hash.
    pub(crate) fn set_hash_position(&mut self, major: u32, minor: u32) {
        self.set_position(match self.narrow {
            true => u64::from(major >> 1),
            false => u64::from(major >> 1) << 32 | u64::from(minor),
        });
    }

    /// Sets the position to the end of a directory whose positions are hashes.
    pub(crate) fn set_end(&mut self) {
        self.set_position(Self::end(self.narrow));
    }

    fn end(narrow: bool) -> u64 {
        match narrow {
            true => (1 << 31) - 1,
            false => (1 << 63) - 1,
        }
    }

    /// Returns the number that [`set_passed`](Self::set_passed) left in the open directory, or 0 if
    /// the position has changed since. It tells entries of one position apart. On a 32-bit kernel
    /// only the lower half of the numbers is kept.
    pub(crate) fn passed(&self) -> u64 {
        self.passed
    }

    /// Notes which entries of the position were emitted.
    pub(crate) fn set_passed(&mut self, passed: u64) {
        self.passed = passed;
    }

    /// Emits an entry. Returns false if there is no room for it. `file_type` is a `DT_*` value.
    pub(crate) fn emit(&mut self, name: &[u8], ino: u32, file_type: u32) -> bool {
        // SAFETY: The context is live and the name is a live slice.
        unsafe {
            bindings::rext4_dir_emit(
                self.context,
                name.as_ptr().cast(),
                name.len() as c_int,
                u64::from(ino),
                file_type,
            )
        }
    }
}

/// An ioctl call.
pub(crate) struct Ioctl<'a> {
    /// The ioctl number.
    pub(crate) command: u32,
    /// The argument, an address of the caller or a number.
    pub(crate) argument: usize,
    /// The file that it was called on.
    pub(crate) file: OpenFile<'a>,
}

/// A borrowed open file or directory.
pub(crate) struct OpenFile<'a>(NonNull<bindings::file>, PhantomData<&'a ()>);

impl OpenFile<'_> {
    /// The C file.
    pub(super) fn as_ptr(&self) -> *mut bindings::file {
        self.0.as_ptr()
    }

    /// Returns a number that identifies it among the open files.
    pub(crate) fn id(&self) -> usize {
        self.0.as_ptr() as usize
    }

    /// Makes it share all blocks of the file that the caller has open as this descriptor, on a
    /// volume whose writers are held.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the file is on another volume, or as `FICLONE`.
    pub(crate) fn clone_held<V: FileSystem>(&self, held: &HeldWriters<V>, descriptor: u32) -> Result {
        // SAFETY: The file is open while it is borrowed, so its inode is live.
        if !held.are_of(unsafe { (*(*self.0.as_ptr()).f_inode).i_sb }) {
            return Err(EINVAL);
        }
        // SAFETY: The file is open while it is borrowed.
        to_result(unsafe { bindings::rext4_clone_held(self.0.as_ptr(), descriptor) })
    }
}

/// The tables for one file system type.
pub(super) struct Tables<V>(PhantomData<V>);

impl<V: Operations> Tables<V> {
    pub(super) const SUPER: &'static bindings::super_operations = &bindings::super_operations {
        alloc_inode: Some(alloc_inode::<V>),
        destroy_inode: Some(destroy_inode::<V>),
        free_inode: Some(free_inode),
        dirty_inode: Some(Self::dirty_inode),
        write_inode: Some(Self::write_inode),
        evict_inode: Some(Self::evict_inode),
        sync_fs: Some(Self::sync_fs),
        freeze_fs: Some(Self::freeze_fs),
        unfreeze_fs: Some(Self::unfreeze_fs),
        put_super: Some(Self::put_super),
        shutdown: Some(Self::shutdown),
        statfs: Some(Self::statfs),
        show_options: Some(Self::show_options),
        ..pin_init::zeroed()
    };

    pub(super) const DIR_INODE: &'static bindings::inode_operations = &bindings::inode_operations {
        lookup: Some(Self::lookup),
        create: Some(Self::create),
        mknod: Some(Self::mknod),
        mkdir: Some(Self::mkdir),
        symlink: Some(Self::symlink),
        link: Some(Self::link),
        unlink: Some(Self::unlink),
        rmdir: Some(Self::unlink),
        rename: Some(Self::rename),
        tmpfile: Some(Self::tmpfile),
        setattr: Some(Self::setattr),
        getattr: Some(Self::getattr),
        fileattr_get: Some(Self::fileattr_get),
        fileattr_set: Some(Self::fileattr_set),
        listxattr: Some(Self::list_attributes),
        get_inode_acl: Some(Self::get_access_list),
        set_acl: Some(Self::set_access_list),
        ..pin_init::zeroed()
    };

    pub(super) const DIR: &'static bindings::file_operations = &bindings::file_operations {
        llseek: Some(Self::seek_dir),
        read: Some(bindings::generic_read_dir),
        iterate_shared: Some(Self::iterate),
        release: if V::HAS_CLOSED {
            Some(Self::release_dir)
        } else {
            None
        },
        fsync: Some(Self::fsync),
        setlease: Some(bindings::rext4_setlease),
        unlocked_ioctl: if V::HAS_IOCTL { Some(Self::ioctl) } else { None },
        compat_ioctl: if V::HAS_IOCTL { Some(Self::ioctl) } else { None },
        ..pin_init::zeroed()
    };

    pub(super) const SPECIAL_INODE: &'static bindings::inode_operations = &bindings::inode_operations {
        getattr: Some(Self::getattr),
        setattr: Some(Self::setattr),
        listxattr: Some(Self::list_attributes),
        get_inode_acl: Some(Self::get_access_list),
        set_acl: Some(Self::set_access_list),
        ..pin_init::zeroed()
    };

    pub(super) const SYMLINK_INODE: &'static bindings::inode_operations = &bindings::inode_operations {
        get_link: Some(Self::get_link),
        getattr: Some(Self::getattr),
        setattr: Some(Self::setattr),
        listxattr: Some(Self::list_attributes),
        ..pin_init::zeroed()
    };

    pub(super) const FILE_INODE: &'static bindings::inode_operations = &bindings::inode_operations {
        fiemap: Some(Self::fiemap),
        getattr: Some(Self::getattr),
        fileattr_get: Some(Self::fileattr_get),
        fileattr_set: Some(Self::fileattr_set),
        setattr: Some(Self::setattr),
        listxattr: Some(Self::list_attributes),
        get_inode_acl: Some(Self::get_access_list),
        set_acl: Some(Self::set_access_list),
        ..pin_init::zeroed()
    };

    pub(super) const FILE: &'static bindings::file_operations = &bindings::file_operations {
        open: Some(Self::open),
        release: if V::HAS_RELEASE { Some(Self::release) } else { None },
        llseek: Some(Self::seek),
        read_iter: Some(Self::read_iter),
        write_iter: Some(Self::write_iter),
        splice_read: Some(Self::splice_read),
        splice_write: Some(bindings::iter_file_splice_write),
        fallocate: if V::HAS_RESERVE {
            Some(Self::fallocate)
        } else {
            None
        },
        remap_file_range: if V::HAS_REMAP {
            Some(Self::remap_file_range)
        } else {
            None
        },
        mmap_prepare: Some(Self::mmap_prepare),
        fsync: Some(Self::fsync),
        setlease: Some(bindings::rext4_setlease),
        unlocked_ioctl: if V::HAS_IOCTL { Some(Self::ioctl) } else { None },
        compat_ioctl: if V::HAS_IOCTL { Some(Self::ioctl) } else { None },
        ..pin_init::zeroed()
    };

    pub(super) const MAPPING: &'static bindings::address_space_operations =
        &bindings::address_space_operations {
            read_folio: Some(Self::read_folio),
            readahead: Some(Self::readahead),
            writepages: Some(Self::writepages),
            dirty_folio: Some(bindings::iomap_dirty_folio),
            // Absent in kernels without page migration.
            #[cfg(CONFIG_MIGRATION)]
            migrate_folio: Some(bindings::filemap_migrate_folio),
            is_partially_uptodate: Some(bindings::iomap_is_partially_uptodate),
            error_remove_folio: Some(bindings::generic_error_remove_folio),
            bmap: Some(Self::bmap),
            swap_activate: Some(Self::swap_activate),
            release_folio: Some(bindings::iomap_release_folio),
            invalidate_folio: Some(bindings::iomap_invalidate_folio),
            ..pin_init::zeroed()
        };

    const READ_IOMAP: &'static bindings::iomap_ops = &bindings::iomap_ops {
        iomap_begin: Some(Self::iomap_begin),
        iomap_end: None,
        iomap_next: None,
    };

    /// # Safety
    ///
    /// Must be called as the VFS calls it: when the last mount went, with a superblock that was
    /// filled.
    unsafe extern "C" fn put_super(sb: *mut bindings::super_block) {
        // SAFETY: The superblock is of our type and live.
        super::super_block::stop(unsafe { SuperBlock::<V>::from_ptr(sb) });
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with an entry of a mounted volume and a file that takes
    /// the answer.
    unsafe extern "C" fn show_options(
        file: *mut kernel::bindings::seq_file,
        dentry: *mut bindings::dentry,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The dentry belongs to one of our volumes.
            let sb = unsafe { SuperBlock::<V>::from_ptr((*dentry).d_sb) };
            // SAFETY: The file is live during the call, and belongs to this task.
            let file = unsafe { SeqFile::from_raw(file) };
            sb.volume()?
                .show_options(&mut |option| seq_print!(file, ",{}", option));
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with an entry of a mounted volume and room for the
    /// answer.
    unsafe extern "C" fn statfs(dentry: *mut bindings::dentry, out: *mut kernel::bindings::kstatfs) -> c_int {
        from_result(|| {
            // SAFETY: The dentry belongs to one of our volumes.
            let sb = unsafe { SuperBlock::<V>::from_ptr((*dentry).d_sb) };
            let found = sb.volume()?.statistics()?;
            // SAFETY: The out-pointer is valid for writes.
            let out = unsafe { &mut *out.cast::<bindings::kstatfs>() };
            out.f_type = V::MAGIC as isize;
            out.f_bsize = found.block_size as isize;
            out.f_frsize = found.block_size as isize;
            out.f_blocks = found.blocks;
            out.f_bfree = found.free_blocks;
            out.f_bavail = found.available_blocks;
            out.f_files = found.inodes;
            out.f_ffree = found.free_inodes;
            out.f_namelen = found.name_length as isize;
            out.f_fsid.val = [found.id as i32, (found.id >> 32) as i32];
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with a directory of ours, locked, and an entry that
    /// names something in it.
    unsafe extern "C" fn lookup(
        dir: *mut bindings::inode,
        dentry: *mut bindings::dentry,
        _flags: u32,
    ) -> *mut bindings::dentry {
        // SAFETY: The name of a dentry does not change while its directory is locked.
        let (dir, name) = unsafe { (Inode::<V>::from_ptr(dir), name_of(dentry)) };
        let found = V::lookup(dir, name).and_then(|found| match found {
            Some(inode) => inode.into_raw_of(dir.super_block()),
            None => Ok(ptr::null_mut()),
        });
        match found {
            Ok(inode) => {
                // SAFETY: This takes the reference to the inode, if there is one.
                unsafe { bindings::d_splice_alias(inode, dentry) }
            }
            Err(error) => error.to_ptr(),
        }
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with an open directory of ours, whose position the
    /// caller has locked.
    unsafe extern "C" fn seek_dir(file: *mut bindings::file, offset: i64, whence: c_int) -> i64 {
        // SAFETY: The file is open, so its inode is live. The caller has locked the position and
        // the number that belongs to it.
        unsafe {
            let before = (*file).f_pos;
            let position = if V::has_hash_positions(Inode::from_ptr((*file).f_inode)) {
                let end = DirEmitter::end(bindings::rext4_dir_is_narrow(file)) as i64;
                bindings::generic_file_llseek_size(file, offset, whence, end, end)
            } else {
                bindings::generic_file_llseek(file, offset, whence)
            };
            if position != before {
                (*file).private_data = ptr::null_mut();
            }
            position
        }
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with an open directory of ours, locked shared.
    unsafe extern "C" fn iterate(file: *mut bindings::file, context: *mut bindings::dir_context) -> c_int {
        from_result(|| {
            // SAFETY: The file is open, so its inode is live; the context is ours during the call.
            let (dir, context) = unsafe { (Inode::<V>::from_ptr((*file).f_inode), &mut *context) };
            // SAFETY: The file is open, and the caller has locked its position, to which the number
            // belongs.
            let (narrow, passed) =
                unsafe { (bindings::rext4_dir_is_narrow(file), (*file).private_data as usize) };
            let mut out = DirEmitter {
                context,
                narrow,
                passed: passed as u64,
            };
            let read = V::read_dir(dir, &mut out);
            let passed = out.passed as usize;
            // SAFETY: As above. The number is never used as an address.
            unsafe { (*file).private_data = ptr::without_provenance_mut(passed) };
            read?;
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with a symbolic link of ours; without an entry it must
    /// not sleep.
    unsafe extern "C" fn get_link(
        dentry: *mut bindings::dentry,
        inode: *mut bindings::inode,
        done: *mut bindings::delayed_call,
    ) -> *const c_char {
        let target = if dentry.is_null() {
            Err(ECHILD)
        } else {
            // SAFETY: The inode is live and one of ours.
            V::link_target(unsafe { Inode::from_ptr(inode) })
        };
        match target.and_then(|mut text| text.push(0, GFP_KERNEL).map(|()| text).map_err(Error::from)) {
            Ok(text) => {
                let (text, ..) = text.into_raw_parts();
                // SAFETY: The text was allocated by kmalloc, and ownership passes to the VFS.
                unsafe { bindings::rext4_set_delayed_free(done, text.cast()) };
                text.cast()
            }
            Err(error) => error.to_ptr(),
        }
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with an open file or directory of ours.
    unsafe extern "C" fn ioctl(file: *mut bindings::file, command: u32, argument: usize) -> isize {
        // SAFETY: The file is open, so its inode is live.
        let inode = unsafe { Inode::<V>::from_ptr((*file).f_inode) };
        let Some(file) = NonNull::new(file) else {
            return EINVAL.to_errno() as isize;
        };
        let call = Ioctl {
            command,
            argument,
            file: OpenFile(file, PhantomData),
        };
        match V::ioctl(inode, call) {
            Ok(()) => 0,
            Err(error) => error.to_errno() as isize,
        }
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with a directory of ours that is closed for the last
    /// time.
    unsafe extern "C" fn release_dir(inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        if let Some(file) = NonNull::new(file) {
            // SAFETY: The file is still open, so its inode is live.
            V::closed(unsafe { Inode::from_ptr(inode) }, &OpenFile(file, PhantomData));
        }
        0
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with an open file of ours.
    unsafe extern "C" fn seek(file: *mut bindings::file, offset: i64, whence: c_int) -> i64 {
        // SAFETY: The file is open, so its inode is live. It is locked shared while its mapping is
        // walked.
        unsafe {
            let inode = (*file).f_inode;
            let walk = match whence as u32 {
                bindings::SEEK_HOLE => bindings::iomap_seek_hole,
                bindings::SEEK_DATA => bindings::iomap_seek_data,
                _ => return bindings::generic_file_llseek(file, offset, whence),
            };
            bindings::rext4_inode_lock_shared(inode);
            let found = walk(inode, offset, Self::iomap());
            bindings::rext4_inode_unlock_shared(inode);
            if found < 0 {
                return found;
            }
            bindings::vfs_setpos(file, found, (*(*inode).i_sb).s_maxbytes)
        }
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with a file of ours and a request it prepared.
    unsafe extern "C" fn fiemap(
        inode: *mut bindings::inode,
        request: *mut kernel::bindings::fiemap_extent_info,
        start: u64,
        length: u64,
    ) -> c_int {
        // SAFETY: The inode and the request are live. The inode is locked shared while its mapping
        // is walked.
        unsafe {
            bindings::rext4_inode_lock_shared(inode);
            let done = bindings::iomap_fiemap(inode, request.cast(), start, length, Self::iomap());
            bindings::rext4_inode_unlock_shared(inode);
            done
        }
    }

    /// # Safety
    ///
    /// Must be called as the page cache calls it: with a locked folio of a file of ours.
    unsafe extern "C" fn read_folio(_file: *mut bindings::file, folio: *mut bindings::folio) -> c_int {
        // SAFETY: The folio is locked and belongs to one of our files.
        unsafe { bindings::rext4_bio_read_folio(folio, Self::iomap()) };
        0
    }

    /// # Safety
    ///
    /// Must be called as the page cache calls it: with a request for a file of ours.
    unsafe extern "C" fn readahead(request: *mut bindings::readahead_control) {
        // SAFETY: The request is live during the call.
        unsafe { bindings::rext4_bio_readahead(request, Self::iomap()) };
    }

    /// # Safety
    ///
    /// Must be called as the VFS calls it: with the mapping of a file of ours.
    unsafe extern "C" fn bmap(mapping: *mut bindings::address_space, block: u64) -> u64 {
        // SAFETY: The mapping is live.
        unsafe {
            let inode = Inode::<V>::from_ptr((*mapping).host);
            // Report shared blocks as unmapped, because the caller may be about to write to them.
            let position = block
                .checked_shl((*inode.as_ptr()).i_blkbits.into())
                .unwrap_or(u64::MAX);
            if V::report(inode, position, 1).is_ok_and(|found| found.shared) {
                return 0;
            }
            bindings::iomap_bmap(mapping, block, Self::iomap())
        }
    }

    pub(super) fn iomap() -> *const bindings::iomap_ops {
        Self::READ_IOMAP
    }

    /// # Safety
    ///
    /// Must be called as iomap calls it: with an inode of ours and room for the answer.
    pub(super) unsafe extern "C" fn iomap_begin(
        inode: *mut bindings::inode,
        position: i64,
        length: i64,
        flags: u32,
        out: *mut bindings::iomap,
        _source: *mut bindings::iomap,
    ) -> c_int {
        from_result(|| {
            // SAFETY: The inode is live and one of ours.
            let inode = unsafe { Inode::<V>::from_ptr(inode) };
            let (position, length) = (position.max(0) as u64, length.max(0) as u64);
            // Read before the mapping is looked up: if it changes in between, the result is
            // outdated at once.
            let version = V::map_version(inode);
            let found = if flags & bindings::IOMAP_REPORT != 0 {
                V::report(inode, position, length)?
            } else {
                V::map(inode, position, length)?
            };
            // SAFETY: There is room for the answer, as the caller promises.
            Self::answer(unsafe { &mut *out }, inode, position, &found, version)?;
            Ok(0)
        })
    }

    /// Passes the mapping of byte `asked` of a file to iomap.
    ///
    /// # Errors
    ///
    /// `EIO` for a mapping that does not contain this byte.
    pub(super) fn answer(
        out: &mut bindings::iomap,
        inode: &Inode<V>,
        asked: u64,
        found: &Mapping,
        version: u64,
    ) -> Result {
        let end = found.position.checked_add(found.length).ok_or(EIO)?;
        if !(found.position..end).contains(&asked) || i64::try_from(end).is_err() {
            return Err(EIO);
        }
        let (kind, address) = match found.place {
            Place::Hole => (bindings::IOMAP_HOLE, u64::MAX),
            Place::Unwritten(address) => (bindings::IOMAP_UNWRITTEN, address),
            Place::Written(address) => (bindings::IOMAP_MAPPED, address),
        };
        out.type_ = kind as u16;
        out.flags = if found.shared {
            bindings::IOMAP_F_SHARED as u16
        } else {
            0
        };
        out.addr = address;
        out.offset = found.position as i64;
        out.length = found.length;
        out.validity_cookie = version;
        out.bdev = inode.super_block().device();
        Ok(())
    }
}
