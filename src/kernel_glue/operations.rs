// SPDX-License-Identifier: GPL-2.0

//! The operations of a file system, one trait per kind of object.
//!
//! [`Tables`](super::vfs::Tables) generates the tables of function pointers from these traits.
//! Methods with a default are optional; the table has no pointer for those that are not
//! implemented.
//!
//! C headers: [`include/linux/fs.h`](srctree/include/linux/fs.h),
//! [`include/linux/iomap.h`](srctree/include/linux/iomap.h)

use super::{
    acl::AccessList,
    inode::{Blank, Inode, InodeRef, Locked, NewInode},
    namespace::{Make, Rename},
    remap::Remap,
    reserve::{Reserve, Shift},
    status::Status,
    super_block::{NewSuperBlock, Statistics, SuperBlock},
    vfs::{Change, DirEmitter, Ioctl, Mapping, OpenFile, Target, Written},
    xattr::{AttributeSpace, SetMode},
};
use kernel::{build_error, error::VTABLE_DEFAULT_ERROR, prelude::*, sync::aref::ARef};

/// A file system; the type represents its mounted volumes. These methods mount and unmount them.
pub(crate) trait FileSystem: Sized + Send + Sync + 'static {
    /// The name of the file system type, as in `mount -t`.
    const NAME: &'static CStr;

    /// `s_magic`.
    const MAGIC: u64;

    /// The file system's own data for each inode.
    type InodeData: Send + Sync;

    /// The mount options.
    type Options: Default + Clone + Send;

    /// Applies one mount option. Returns false for an unknown option.
    fn option(options: &mut Self::Options, key: &CStr, value: Option<&CStr>) -> Result<bool>;

    /// Reads the volume on `sb`'s device and sets the superblock's block size.
    fn open(sb: &mut NewSuperBlock<'_, Self>, options: &Self::Options) -> Result<Pin<KBox<Self>>>;

    /// Makes the volume usable (journal, recovery), and returns its root directory.
    fn start(&self, sb: &SuperBlock<Self>) -> Result<InodeRef<Self>>;

    /// Releases everything that [`start`](Self::start) acquired. Also called if it failed halfway.
    fn stop(&self, sb: &SuperBlock<Self>);

    /// Changes a mounted volume to these options and to `read_only`, if that is permitted.
    fn reconfigure(&self, sb: &SuperBlock<Self>, options: &Self::Options, read_only: bool) -> Result;
}

/// Operations on a mounted volume, and on the inodes cached by the VFS (`struct super_operations`).
#[vtable]
pub(crate) trait SuperOperations: FileSystem {
    /// Calls back with the volume's mount options.
    fn show_options(&self, out: &mut dyn FnMut(&CStr));

    /// Returns size and usage of the volume.
    fn statistics(&self) -> Result<Statistics>;

    /// Starts writing all metadata to disk; with `wait`, waits for completion.
    fn sync(&self, sb: &SuperBlock<Self>, wait: bool) -> Result;

    /// Brings the volume on disk to a state that needs no recovery, or back to the state in use.
    fn freeze(&self, sb: &SuperBlock<Self>, frozen: bool) -> Result;

    /// Fails with `EIO` once the volume was shut down. From then on nothing is written to it, and
    /// no file is read.
    fn check_alive(&self) -> Result;

    /// Fails with the same error, and with `EROFS` once the volume has become read-only because
    /// of an error. From then on nothing is written to it.
    fn check_writes(&self) -> Result;

    /// Shuts the volume down, because its device was removed.
    fn device_gone(&self, sb: &SuperBlock<Self>);

    /// Writes the VFS's fields of an inode into the journal.
    fn store(inode: &Inode<Self>) -> Result;

    /// Waits until the changes of an inode's metadata are on disk. Its data already is.
    fn sync_inode(inode: &Inode<Self>) -> Result;

    /// Frees an inode without names and users.
    fn evict(inode: &Locked<Self>);

    /// Returns true if [`forget`](Self::forget) has to be called.
    fn needs_forget(inode: &Inode<Self>) -> bool;

    /// Releases the resources of an inode that is being evicted, if
    /// [`needs_forget`](Self::needs_forget) returns true.
    fn forget(inode: &Inode<Self>);
}

/// Operations on names and attributes (`struct inode_operations`).
#[vtable]
pub(crate) trait InodeOperations: FileSystem {
    /// Looks up a name in a directory. The directory is locked shared.
    fn lookup(dir: &Inode<Self>, name: &[u8]) -> Result<Option<InodeRef<Self>>>;

    /// Creates an inode from `blank` and `make`, with a name in `dir`.
    fn create(dir: &Locked<Self>, name: &[u8], blank: Blank<Self>, make: &Make<'_>)
        -> Result<NewInode<Self>>;

    /// Creates an inode from `blank` and `make`, without a name. `dir` is the directory in which it
    /// was requested.
    fn tmpfile(dir: &Inode<Self>, blank: Blank<Self>, make: &Make<'_>) -> Result<NewInode<Self>>;

    /// Adds another name in `dir` to an inode that is not a directory.
    fn link(inode: &Locked<Self>, dir: &Locked<Self>, name: &[u8]) -> Result;

    /// Removes the name of an inode, which must be empty if it is a directory, from `dir`.
    fn unlink(dir: &Locked<Self>, name: &[u8], inode: &Locked<Self>) -> Result;

    /// Renames an inode.
    fn rename(rename: &Rename<'_, Self>) -> Result;

    /// Returns the target of a symbolic link, without a terminator.
    fn link_target(inode: &Inode<Self>) -> Result<KVec<u8>>;

    /// Changes the size of a file, in bytes.
    fn resize(inode: &Locked<Self>, size: u64) -> Result;

    /// Returns the access control list of an inode, or the default list of a directory, if there is
    /// one.
    fn access_list(inode: &Inode<Self>, default: bool) -> Result<Option<ARef<AccessList>>>;

    /// Sets or removes the access control list of an inode, or the default list of a directory,
    /// together with the corresponding mode. The inode is locked.
    fn set_access_list(
        inode: &Locked<Self>,
        default: bool,
        list: Option<&AccessList>,
        mode: Option<u16>,
    ) -> Result;

    /// Waits until recently freed blocks can be allocated, after an operation failed with `ENOSPC`.
    /// Returns false if there are none.
    fn wait_for_space(inode: &Inode<Self>) -> Result<bool>;

    /// Returns the attributes of an inode for `statx`.
    fn status(inode: &Inode<Self>) -> Status;

    /// Sets the flags of an inode (`FS_*_FL`), and its project.
    fn set_flags(inode: &Locked<Self>, flags: u32, project: u32) -> Result;
}

/// Operations on open files and directories (`struct file_operations`).
#[vtable]
pub(crate) trait FileOperations: FileSystem {
    /// Emits a directory's entries from `out`'s position on. The directory is locked shared.
    fn read_dir(dir: &Inode<Self>, out: &mut DirEmitter<'_>) -> Result;

    /// Returns true if positions in a directory are hashes, which may exceed the largest file size.
    fn has_hash_positions(dir: &Inode<Self>) -> bool;

    /// Returns the maximum size of this file in bytes.
    fn max_size(inode: &Inode<Self>) -> u64;

    /// Frees the blocks beyond the end of a file, after a write that failed or was short.
    fn trim(inode: &Locked<Self>) -> Result;

    /// Called before a program writes to a file, with no lock held. May sleep.
    fn before_write(inode: &Inode<Self>);

    /// Changes the allocation of a range of bytes of a file.
    fn reserve(_inode: &Locked<Self>, _how: Reserve, _position: u64, _length: u64) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Removes a range from a file, or inserts a hole, and moves the contents that follow. The
    /// inode is locked, and no direct I/O is in progress.
    fn shift(_inode: &Locked<Self>, _how: Shift, _position: u64, _length: u64) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Makes a file share blocks of another, or of itself. Returns the number of bytes that it
    /// shares.
    fn remap(_call: &Remap<'_, Self>) -> Result<u64> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Handles an ioctl on an open file or directory.
    fn ioctl(_inode: &Inode<Self>, _call: Ioctl<'_>) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Called when the last writer has closed a file.
    fn release(_inode: &Inode<Self>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Called when an open directory is closed.
    fn closed(_inode: &Inode<Self>, _file: &OpenFile<'_>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// Writeback of the page cache (`struct address_space_operations`).
#[vtable]
pub(crate) trait AddressSpaceOperations: FileSystem {
    /// Returns where dirty data in the page cache at byte `position` of a file is to be written to.
    fn write_back(inode: &Inode<Self>, position: u64, length: u64) -> Result<Mapping>;

    /// Records that bytes of a file were written to disk.
    fn written(inode: &Inode<Self>, what: Written) -> Result;

    /// Prepares a file for use as a swap file: its mapping must be final on disk.
    fn before_swap(inode: &Locked<Self>) -> Result;

    /// Returns the size of the file on disk in bytes. May be called in interrupt context.
    fn disk_size(inode: &Inode<Self>) -> u64;
}

/// The mapping of files to blocks (`struct iomap_ops`).
#[vtable]
pub(crate) trait IomapOperations: FileSystem {
    /// Returns the mapping of byte `position` of a file, and the range around it for which it
    /// holds.
    fn map(inode: &Inode<Self>, position: u64, length: u64) -> Result<Mapping>;

    /// Returns the mapping of byte `position` of a file, the range around it for which it holds,
    /// and whether the blocks are shared.
    fn report(inode: &Inode<Self>, position: u64, length: u64) -> Result<Mapping>;

    /// Returns where a change of these bytes of a file, or at least the first of them, is to be
    /// written to; `None` if [`allocate`](Self::allocate) has to be called first.
    fn target(inode: &Inode<Self>, position: u64, length: u64, change: Change) -> Result<Option<Target>>;

    /// Ensures that the first of these bytes of a file, and more if that is cheap, have blocks to
    /// be written to. Fails with `ENOTBLK` if the write must go through the page cache.
    fn allocate(inode: &Inode<Self>, position: u64, length: u64, change: Change) -> Result;

    /// Returns the version of a file's mapping, which changes with every change of it.
    fn map_version(inode: &Inode<Self>) -> u64;
}

/// Extended attributes (`struct xattr_handler`).
#[vtable]
pub(crate) trait XattrOperations: FileSystem {
    /// Returns the value of an attribute. Fails with `ENODATA` if it does not exist.
    fn attribute(inode: &Inode<Self>, space: AttributeSpace, name: &[u8]) -> Result<KVec<u8>>;

    /// Calls back with the names of all attributes.
    fn attributes(inode: &Inode<Self>, out: &mut dyn FnMut(AttributeSpace, &[u8]) -> Result) -> Result;

    /// Sets or removes an attribute. The inode is locked.
    ///
    /// Fails with `EEXIST` or `ENODATA` if the attribute exists or does not exist, contrary to
    /// `mode`.
    fn set_attribute(
        inode: &Inode<Self>,
        space: AttributeSpace,
        name: &[u8],
        value: Option<&[u8]>,
        mode: SetMode,
    ) -> Result;
}

/// Finding inodes by handles (`struct export_operations`).
#[vtable]
pub(crate) trait ExportOperations: FileSystem {
    /// Returns the inode with this number and generation. Generation 0 matches any. Fails with
    /// `ESTALE` if there is none.
    fn by_handle(sb: &SuperBlock<Self>, ino: u64, generation: u32) -> Result<InodeRef<Self>>;

    /// Returns the parent of a directory.
    fn parent(dir: &Inode<Self>) -> Result<InodeRef<Self>>;
}

/// All traits from which [`Tables`](super::vfs::Tables) are generated.
pub(crate) trait Operations:
    SuperOperations
    + InodeOperations
    + FileOperations
    + AddressSpaceOperations
    + IomapOperations
    + XattrOperations
    + ExportOperations
{
}

impl<V> Operations for V where
    V: SuperOperations
        + InodeOperations
        + FileOperations
        + AddressSpaceOperations
        + IomapOperations
        + XattrOperations
        + ExportOperations
{
}
