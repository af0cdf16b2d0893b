// SPDX-License-Identifier: GPL-2.0

//! Reading inodes.
//!
//! [`get`] answers from the inode cache, or reads the inode from its group's table, checks it, and keeps beside it what
//! the VFS has no room for: [`Data`].

use super::{corrupt_inode, super_block, Volume};
use crate::{
    format::{
        self,
        inode::{flags, Time, BLOCK_BYTES},
        superblock::inode_seed,
        Corrupt,
    },
    kernel_glue::{
        corrupted, stale, unsupported, Buffer, InodeFields, InodeRef, RwLock, SuperBlock, Timestamp,
    },
};
use kernel::{
    prelude::*,
    sync::atomic::{Atomic, Relaxed},
};

/// What is kept of an inode beside what the VFS keeps.
pub(crate) struct Data {
    /// `i_block`: the root of its block mapping, or a short symlink's target. The lock guards the whole mapping: held to
    /// write by who changes it, inside a handle, and to read by who walks it.
    pub(super) root: RwLock<[u8; BLOCK_BYTES]>,
    /// `i_flags` as on disk.
    flags: Atomic<u32>,
    /// The size that the disk knows, in bytes: of a file, up to where its data is known to be there.
    disk_size: Atomic<u64>,
    /// The block of its extended attributes, 0 for none.
    pub(super) attributes: u64,
    /// The last transaction that changed it.
    transaction: Atomic<u32>,
    /// The register from which checksums of the blocks it owns start.
    pub(super) seed: u32,
}

impl Data {
    /// Whether its blocks are mapped by extents, not by indirect blocks.
    pub(super) fn has_extents(&self) -> bool {
        self.flags() & flags::EXTENTS != 0
    }

    /// `i_flags` as on disk.
    pub(super) fn flags(&self) -> u32 {
        self.flags.load(Relaxed)
    }

    /// Sets `i_flags`; the inode, locked, must be stored then.
    pub(super) fn set_flags(&self, flags: u32) {
        self.flags.store(flags, Relaxed);
    }

    /// The size that the disk knows, in bytes.
    pub(super) fn disk_size(&self) -> u64 {
        self.disk_size.load(Relaxed)
    }

    /// Sets the size that the disk knows; the inode must be stored in the same handle. Under the lock of the mapping.
    pub(super) fn set_disk_size(&self, bytes: u64) {
        self.disk_size.store(bytes, Relaxed);
    }

    /// The last transaction that changed it.
    pub(super) fn transaction(&self) -> u32 {
        self.transaction.load(Relaxed)
    }
}

/// The inode of this number.
///
/// Fails with `ESTALE` when the inode is not in use, with `EFSCORRUPTED` when it cannot be right, with `EOPNOTSUPP` when
/// it is of a kind that is not handled, and with `EIO` or `ENOMEM`.
pub(super) fn get(sb: &SuperBlock<Volume>, ino: u32) -> Result<InodeRef<Volume>> {
    sb.inode(ino, || read(sb, ino))
}

fn read(sb: &SuperBlock<Volume>, ino: u32) -> Result<(InodeFields, Data)> {
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let (group, index) = layout.locate_inode(ino).ok_or_else(|| {
        pr_err!("{}: there can be no inode {ino}\n", sb.name());
        corrupted()
    })?;
    let table = super_block::group(volume, sb, group)?.inode_table;
    let byte = u64::from(index) * u64::from(layout.inode_size);
    let block = table + byte / u64::from(layout.block_size);
    let buffer = Buffer::read(sb, block).inspect_err(|_| {
        pr_err!("{}: inode {ino}: block {block} cannot be read\n", sb.name());
    })?;
    let bytes = buffer
        .get((byte % u64::from(layout.block_size)) as usize..)
        .ok_or(EIO)?;
    if format::inode::is_free(bytes) {
        return Err(stale());
    }
    let found =
        format::inode::read(layout, ino, bytes).map_err(|what| corrupt_inode(sb, ino, Some(block), what))?;
    if found.flags & flags::REFUSED != 0 {
        pr_err!(
            "{}: inode {ino}: flags {:#x} are not supported\n",
            sb.name(),
            found.flags & flags::REFUSED
        );
        return Err(unsupported());
    }
    if !matches!(found.file_type() >> 12, 1 | 2 | 4 | 6 | 8 | 10 | 12) && ino >= layout.first_inode {
        return Err(corrupt_inode(sb, ino, Some(block), Corrupt("bad file type")));
    }
    let flag = |bit: u32| found.flags & bit != 0;
    let fields = InodeFields {
        mode: found.mode,
        uid: found.uid,
        gid: found.gid,
        links: found.links,
        size: found.size,
        sectors: found.sectors,
        generation: found.generation,
        atime: timestamp(found.atime),
        ctime: timestamp(found.ctime),
        mtime: timestamp(found.mtime),
        sync: flag(flags::SYNC),
        append: flag(flags::APPEND),
        immutable: flag(flags::IMMUTABLE),
        noatime: flag(flags::NOATIME),
        dirsync: flag(flags::DIRSYNC),
        device: device(&found.block),
    };
    let data = Data {
        root: RwLock::new(found.block, c"rext4_map_lock", kernel::static_lock_class!())?,
        flags: Atomic::new(found.flags),
        disk_size: Atomic::new(found.size),
        attributes: found.file_acl,
        transaction: Atomic::new(0),
        seed: inode_seed(layout.seed, ino, found.generation),
    };
    Ok((fields, data))
}

fn timestamp(time: Time) -> Timestamp {
    Timestamp {
        seconds: time.seconds,
        nanoseconds: time.nanoseconds,
    }
}

/// The device that a device's inode names: the first word holds 8 bits each of major and minor, or else the second one
/// 12 and 20.
fn device(block: &[u8; BLOCK_BYTES]) -> u32 {
    let [a, b, c, d, e, f, g, h, ..] = *block;
    let (short, long) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
    let (major, minor) = if short != 0 {
        (short >> 8 & 0xff, short & 0xff)
    } else {
        (long >> 8 & 0xfff, long & 0xff | long >> 12 & 0xfff00)
    };
    major << 20 | minor
}
