// SPDX-License-Identifier: GPL-2.0

//! The operations of a file system, a trait for each kind of object that the kernel calls it for.
//!
//! The tables of function pointers are made from these in [`Tables`](super::vfs::Tables). Methods with a default need not
//! be implemented: the table then has no pointer for them.
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
use kernel::{build_error, error::VTABLE_DEFAULT_ERROR, prelude::*};

/// A file system: the type is that of its mounted volumes. These methods mount and unmount them.
pub(crate) trait FileSystem: Sized + Send + Sync + 'static {
    /// The name of the type, as `mount -t` has it.
    const NAME: &'static CStr;

    /// `s_magic`.
    const MAGIC: u64;

    /// The file system's own data beside each inode.
    type InodeData: Send + Sync;

    /// The mount options.
    type Options: Default + Clone + Send;

    /// Takes one mount option. Returns false for an option that it does not know.
    fn option(options: &mut Self::Options, key: &CStr, value: Option<&CStr>) -> Result<bool>;

    /// Reads the volume on `sb`'s device and sets the superblock's block size.
    fn open(sb: &mut NewSuperBlock<'_, Self>, options: &Self::Options) -> Result<Self>;

    /// Makes the volume usable (journal, recovery), and returns its root directory.
    fn start(&self, sb: &SuperBlock<Self>) -> Result<InodeRef<Self>>;

    /// Gives back everything that [`start`](Self::start) took; also called when it failed half way.
    fn stop(&self, sb: &SuperBlock<Self>);

    /// Whether a mounted volume may change to these options and to this `read_only`.
    fn reconfigure(&self, sb: &SuperBlock<Self>, options: &Self::Options, read_only: bool) -> Result;
}

/// Operations on a mounted volume, and on its inodes as the VFS caches them (`struct super_operations`).
#[vtable]
pub(crate) trait SuperOperations: FileSystem {
    /// Hands out the options that the volume is mounted with.
    fn show_options(&self, out: &mut dyn FnMut(&CStr));

    /// How large and how full the volume is.
    fn statistics(&self) -> Result<Statistics>;

    /// Starts to bring all metadata to disk, and with `wait` waits until it is there.
    fn sync(&self, sb: &SuperBlock<Self>, wait: bool) -> Result;

    /// Brings the volume on disk to a state that needs no recovery, or back to one that may be written.
    fn freeze(&self, sb: &SuperBlock<Self>, frozen: bool) -> Result;

    /// Fails with `EIO` once the volume was shut down: from then on nothing of it is written, and
    /// no file read.
    fn check_alive(&self) -> Result;

    /// The device is gone: shuts the volume down.
    fn device_gone(&self, sb: &SuperBlock<Self>);

    /// Writes the VFS's fields of an inode into the journal.
    fn store(inode: &Inode<Self>) -> Result;

    /// Waits until the changes of an inode's metadata are on disk. Its data is on disk already.
    fn sync_inode(inode: &Inode<Self>) -> Result;

    /// Frees an inode that has no name and no user left.
    fn evict(inode: &Locked<Self>);

    /// Whether there is anything to forget.
    fn needs_forget(inode: &Inode<Self>) -> bool;

    /// Gives back the resources of an inode that leaves memory, if [`needs_forget`](Self::needs_forget) returns true.
    fn forget(inode: &Inode<Self>);
}

/// Operations on names and attributes (`struct inode_operations`).
#[vtable]
pub(crate) trait InodeOperations: FileSystem {
    /// Finds a name in a directory. The directory is locked shared.
    fn lookup(dir: &Inode<Self>, name: &[u8]) -> Result<Option<InodeRef<Self>>>;

    /// Makes an inode from `blank` and `make`, with a name in `dir`.
    fn create(dir: &Locked<Self>, name: &[u8], blank: Blank<Self>, make: &Make<'_>)
        -> Result<NewInode<Self>>;

    /// Makes an inode of what `blank` and `make` say, without a name. `dir` is the directory that it
    /// was asked for in.
    fn tmpfile(dir: &Inode<Self>, blank: Blank<Self>, make: &Make<'_>) -> Result<NewInode<Self>>;

    /// Gives an inode that is no directory another name in `dir`.
    fn link(inode: &Locked<Self>, dir: &Locked<Self>, name: &[u8]) -> Result;

    /// Takes the name of an inode (a directory must be empty) out of `dir`.
    fn unlink(dir: &Locked<Self>, name: &[u8], inode: &Locked<Self>) -> Result;

    /// Renames.
    fn rename(rename: &Rename<'_, Self>) -> Result;

    /// The target of a symbolic link, without a terminator.
    fn link_target(inode: &Inode<Self>) -> Result<KVec<u8>>;

    /// Gives an inode another size, in bytes.
    fn resize(inode: &Locked<Self>, size: u64) -> Result;

    /// The access list of an inode, or the default one of a directory, if there is one.
    fn access_list(inode: &Inode<Self>, default: bool) -> Result<Option<AccessList>>;

    /// Sets or removes the access list of an inode, or the default one of a directory, and with it the mode that agrees
    /// with it. The inode is locked.
    fn set_access_list(
        inode: &Locked<Self>,
        default: bool,
        list: Option<&AccessList>,
        mode: Option<u16>,
    ) -> Result;

    /// Waits until space that was just freed can be allocated, after an operation failed with `ENOSPC`. Returns false if
    /// there is none to wait for.
    fn wait_for_space(inode: &Inode<Self>) -> Result<bool>;

    /// What programs are told of an inode.
    fn status(inode: &Inode<Self>) -> Status;

    /// Sets the flags of an inode to these, as programs see them (`FS_*_FL`), and its project.
    fn set_flags(inode: &Locked<Self>, flags: u32, project: u32) -> Result;
}

/// Operations on open files and directories (`struct file_operations`).
#[vtable]
pub(crate) trait FileOperations: FileSystem {
    /// Emits a directory's entries from `out`'s position on. The directory is locked shared.
    fn read_dir(dir: &Inode<Self>, out: &mut DirEmitter<'_>) -> Result;

    /// Returns true if positions in a directory are hashes, which may exceed the largest file size.
    fn has_hash_positions(dir: &Inode<Self>) -> bool;

    /// The most bytes that this file can have.
    fn max_size(inode: &Inode<Self>) -> u64;

    /// Frees the blocks behind the end of a file, after a write that failed or came out short.
    fn trim(inode: &Locked<Self>) -> Result;

    /// A program is about to write to a file; no lock is held. May wait.
    fn before_write(inode: &Inode<Self>);

    /// Changes how blocks lie behind a range of bytes of a file.
    fn reserve(_inode: &Locked<Self>, _how: Reserve, _position: u64, _length: u64) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Moves the contents of a file behind a range of bytes, or from it on. The inode is locked,
    /// and no direct I/O runs.
    fn shift(_inode: &Locked<Self>, _how: Shift, _position: u64, _length: u64) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Makes a file share blocks of another, or of itself. Returns the number of bytes that it shares.
    fn remap(_call: &Remap<'_, Self>) -> Result<u64> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Handles an ioctl on an open file or directory.
    fn ioctl(_inode: &Inode<Self>, _call: Ioctl<'_>) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The last one that could write to a file has closed it.
    fn release(_inode: &Inode<Self>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// An open directory is closed.
    fn closed(_inode: &Inode<Self>, _file: &OpenFile<'_>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// Writing the page cache back (`struct address_space_operations`).
#[vtable]
pub(crate) trait AddressSpaceOperations: FileSystem {
    /// Where byte `position` of a file, which is dirty in the page cache, is to be written to.
    fn write_back(inode: &Inode<Self>, position: u64, length: u64) -> Result<Mapping>;

    /// Notes that bytes of a file were written to disk.
    fn written(inode: &Inode<Self>, what: Written) -> Result;

    /// A file is about to be swapped to: its blocks must be the ones that its mapping tells, and
    /// stay so.
    fn before_swap(inode: &Locked<Self>) -> Result;

    /// Where the file ends on disk, in bytes.
    fn disk_size(inode: &Inode<Self>) -> u64;
}

/// The mapping of files to blocks (`struct iomap_ops`).
#[vtable]
pub(crate) trait IomapOperations: FileSystem {
    /// Where byte `position` of a file lies, and how far around it that holds.
    fn map(inode: &Inode<Self>, position: u64, length: u64) -> Result<Mapping>;

    /// Where byte `position` of a file lies, how far around it that holds, and whether the blocks are shared.
    fn report(inode: &Inode<Self>, position: u64, length: u64) -> Result<Mapping>;

    /// Where the first of these bytes of a file, or more of them, go when they are changed; `None` when
    /// [`allocate`](Self::allocate) is to see to that first.
    fn target(inode: &Inode<Self>, position: u64, length: u64, change: Change) -> Result<Option<Target>>;

    /// Sees to it that the first of these bytes of a file have blocks to which they can be written, all of them if that is
    /// easy. Fails with `ENOTBLK` where only the page cache can do it.
    fn allocate(inode: &Inode<Self>, position: u64, length: u64, change: Change) -> Result;

    /// Counts changes of a file's mapping.
    fn map_version(inode: &Inode<Self>) -> u64;
}

/// Extended attributes (`struct xattr_handler`).
#[vtable]
pub(crate) trait XattrOperations: FileSystem {
    /// The value of an attribute. Fails with `ENODATA` if there is none of this name.
    fn attribute(inode: &Inode<Self>, space: AttributeSpace, name: &[u8]) -> Result<KVec<u8>>;

    /// Hands out the names of all attributes.
    fn attributes(inode: &Inode<Self>, out: &mut dyn FnMut(AttributeSpace, &[u8]) -> Result) -> Result;

    /// Gives an attribute a value, or takes it away. The inode is locked.
    ///
    /// Fails with `EEXIST` or `ENODATA` when `mode` says that there must be none or one.
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
    /// The inode of this number and generation. A generation of 0 stands for any.
    ///
    /// Fails with `ESTALE` when there is none.
    fn by_handle(sb: &SuperBlock<Self>, ino: u64, generation: u32) -> Result<InodeRef<Self>>;

    /// The directory that a directory is in.
    fn parent(dir: &Inode<Self>) -> Result<InodeRef<Self>>;
}

/// All that the tables of [`Tables`](super::vfs::Tables) are made from.
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
