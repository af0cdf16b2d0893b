// SPDX-License-Identifier: GPL-2.0

//! Reading inodes.
//!
//! [`get`] returns an inode from the inode cache, or reads it from its group's table and checks it.
//! State for which the VFS inode has no room is kept in [`Data`].

use crate::{
    format::{
        self,
        inode::{flags, Time, BLOCK_BYTES},
        superblock::{inode_seed, ro_compat},
        Corrupt,
    },
    fs::{
        disk::{
            errors::{self, corrupt_inode},
            groups, super_disk,
        },
        state::{OrphanPlace, Volume},
    },
    kernel_glue::{
        corrupted, now, stale, unsupported, Buffer, Handle, Inode, InodeFields, InodeRef, RwLock, SuperBlock,
        Timestamp,
    },
};
use kernel::{
    prelude::*,
    sync::atomic::{Acquire, Atomic, Full, Relaxed},
};

/// The state of an inode in addition to that of the VFS.
#[pin_data]
pub(crate) struct Data {
    /// `i_block`: the root of the block mapping, or the target of a short symlink. The lock
    /// protects the whole mapping. It is held exclusively, inside a handle, to change the mapping,
    /// and shared to walk it.
    #[pin]
    pub(in crate::fs) root: RwLock<[u8; BLOCK_BYTES]>,
    /// `i_flags` as on disk.
    flags: Atomic<u32>,
    /// The size on disk in bytes: the size up to which a file's data is known to be on disk.
    disk_size: Atomic<u64>,
    /// The extended attribute block, 0 for none. Changed with the mapping locked exclusively.
    attributes: Atomic<u64>,
    /// The last transaction that changed the inode.
    transaction: Atomic<u32>,
    /// The time of its creation, if the inode has room for it.
    made: Option<Time>,
    /// Counts changes of its mapping; starts at 1.
    version: Atomic<u64>,
    /// For a directory: the first block that may have room for a name.
    hint: Atomic<u32>,
    /// The place where it is recorded as an orphan: 0 if it is not, [`IN_LIST`], or its slot in the
    /// orphan file plus one.
    orphan: Atomic<u32>,
    /// The file was truncated to size 0 since its last writer closed it.
    emptied: Atomic<bool>,
    /// Blocks are staged for it; see [`crate::fs::data::cow`].
    staged: Atomic<bool>,
    /// Number of blocks reserved for data that is not on disk yet. Changed with the mapping locked
    /// exclusively.
    reserved: Atomic<u64>,
    /// Its count of sectors is known to be too small.
    miscounted: Atomic<bool>,
    /// Damage of its index, as a directory, has been logged.
    index_damaged: Atomic<bool>,
    /// Initial value of the checksums of the blocks it owns.
    pub(in crate::fs) seed: u32,
}

/// The inode is in the legacy orphan list.
const IN_LIST: u32 = u32::MAX;

/// The creation and the last change of an inode.
pub(in crate::fs) struct Since {
    /// The transaction of the last change.
    pub(in crate::fs) transaction: u32,
    /// The time of creation, if the inode has room for it.
    pub(in crate::fs) made: Option<Time>,
}

impl Data {
    /// Initializes the data of an inode: the root of its mapping, its flags `own`, its size and its
    /// attribute block, and the times and versions in `since`. `staged`: blocks are staged for it.
    /// `seed` is the initial value of the checksums of its blocks.
    pub(in crate::fs) fn new(
        root: [u8; BLOCK_BYTES],
        own: u32,
        size: u64,
        attributes: u64,
        since: Since,
        staged: bool,
        seed: u32,
    ) -> impl PinInit<Data> {
        pin_init!(Data {
            root <- RwLock::new(root, c"rext4_map_lock", kernel::static_lock_class!()),
            flags: Atomic::new(own),
            disk_size: Atomic::new(size),
            attributes: Atomic::new(attributes),
            transaction: Atomic::new(since.transaction),
            orphan: Atomic::new(0),
            hint: Atomic::new(0),
            made: since.made,
            version: Atomic::new(1),
            emptied: Atomic::new(false),
            staged: Atomic::new(staged),
            reserved: Atomic::new(0),
            miscounted: Atomic::new(false),
            index_damaged: Atomic::new(false),
            seed,
        })
    }

    /// Returns true if its blocks are mapped by extents, and false if by indirect blocks.
    pub(in crate::fs) fn has_extents(&self) -> bool {
        self.flags() & flags::EXTENTS != 0
    }

    /// Returns `i_flags` as on disk.
    pub(in crate::fs) fn flags(&self) -> u32 {
        self.flags.load(Relaxed)
    }

    /// Sets `i_flags`. The inode must be locked, and stored afterwards.
    pub(in crate::fs) fn set_flags(&self, flags: u32) {
        self.flags.store(flags, Relaxed);
    }

    /// Returns the size on disk in bytes.
    pub(in crate::fs) fn disk_size(&self) -> u64 {
        self.disk_size.load(Relaxed)
    }

    /// Sets the size on disk. The mapping must be locked, and the inode stored in the same handle.
    pub(in crate::fs) fn set_disk_size(&self, bytes: u64) {
        self.disk_size.store(bytes, Relaxed);
    }

    /// Returns the extended attribute block, 0 for none. It does not change while the mapping is
    /// locked.
    pub(in crate::fs) fn attributes(&self) -> u64 {
        self.attributes.load(Relaxed)
    }

    /// Sets the extended attribute block. The mapping must be locked, and the inode stored in the
    /// same handle.
    pub(in crate::fs) fn set_attributes(&self, block: u64) {
        self.attributes.store(block, Relaxed);
    }

    /// Returns the version of the mapping, which changes with every change of it.
    pub(in crate::fs) fn version(&self) -> u64 {
        self.version.load(Acquire)
    }

    /// Increments the version of the mapping. The mapping must be locked exclusively.
    pub(in crate::fs) fn new_version(&self) {
        self.version.fetch_add(1u64, Full);
    }

    /// For a directory: returns the first block that may have room for a name.
    pub(in crate::fs) fn hint(&self) -> u32 {
        self.hint.load(Relaxed)
    }

    /// Sets the first block that may have room for a name.
    pub(in crate::fs) fn set_hint(&self, block: u32) {
        self.hint.store(block, Relaxed);
    }

    /// Records that the file was truncated to size 0.
    pub(in crate::fs) fn set_emptied(&self) {
        self.emptied.store(true, Relaxed);
    }

    /// Returns true if the file was truncated to size 0 since the last call.
    pub(in crate::fs) fn take_emptied(&self) -> bool {
        self.emptied.load(Relaxed) && self.emptied.xchg(false, Relaxed)
    }

    /// Returns true if blocks are staged for it.
    pub(in crate::fs) fn has_staged(&self) -> bool {
        self.staged.load(Relaxed)
    }

    /// Records whether blocks are staged for it. The mapping must be locked exclusively.
    pub(in crate::fs) fn set_staged(&self, staged: bool) {
        self.staged.store(staged, Relaxed);
    }

    /// Returns the number of blocks reserved for data that is not on disk yet.
    pub(in crate::fs) fn reserved(&self) -> u64 {
        self.reserved.load(Relaxed)
    }

    /// Sets the number of reserved blocks. The mapping must be locked exclusively.
    pub(in crate::fs) fn set_reserved(&self, blocks: u64) {
        self.reserved.store(blocks, Relaxed);
    }

    /// Records that its count of sectors is too small. Returns true the first time.
    pub(in crate::fs) fn is_first_miscount(&self) -> bool {
        !self.miscounted.xchg(true, Relaxed)
    }

    /// Records that its index is damaged. Returns true the first time.
    pub(in crate::fs) fn is_first_index_damage(&self) -> bool {
        !self.index_damaged.xchg(true, Relaxed)
    }

    /// Returns where it is recorded as an orphan, if it is one.
    pub(in crate::fs) fn orphan(&self) -> Option<OrphanPlace> {
        match self.orphan.load(Relaxed) {
            0 => None,
            IN_LIST => Some(OrphanPlace::List),
            slot => Some(OrphanPlace::Slot(slot - 1)),
        }
    }

    /// Sets where it is recorded as an orphan.
    pub(in crate::fs) fn set_orphan(&self, place: Option<OrphanPlace>) {
        let orphan = match place {
            None => 0,
            Some(OrphanPlace::List) => IN_LIST,
            Some(OrphanPlace::Slot(slot)) => slot + 1,
        };
        self.orphan.store(orphan, Relaxed);
    }

    /// Returns the time of its creation, if the inode has room for it.
    pub(in crate::fs) fn made(&self) -> Option<Time> {
        self.made
    }

    /// Returns the last transaction that changed it.
    pub(in crate::fs) fn transaction(&self) -> u32 {
        self.transaction.load(Relaxed)
    }
}

/// Returns the inode with this number.
///
/// # Errors
///
/// `ESTALE` when the inode is free, `EFSCORRUPTED` when it is invalid, `EOPNOTSUPP` when it has
/// unsupported flags; `EIO`, `ENOMEM`.
pub(in crate::fs) fn get(sb: &SuperBlock<Volume>, ino: u32) -> Result<InodeRef<Volume>> {
    sb.inode(ino, || read(sb, ino))
}

/// Returns one of the file system's own inodes. Fails with `EFSCORRUPTED` if it is free.
pub(in crate::fs) fn get_special(sb: &SuperBlock<Volume>, ino: u32) -> Result<InodeRef<Volume>> {
    get(sb, ino).map_err(|error| match error == stale() {
        true => bad(sb, ino, Corrupt("special inode unallocated")),
        false => error,
    })
}

/// Returns the inode that a name or a file handle refers to.
///
/// Fails as [`get`] does, and with `EFSCORRUPTED` if it is one of the file system's own inodes.
pub(in crate::fs) fn get_named(sb: &SuperBlock<Volume>, ino: u32) -> Result<InodeRef<Volume>> {
    if !format::inode::is_ordinary(&sb.volume()?.layout, ino) {
        return Err(bad(sb, ino, Corrupt("illegal inode")));
    }
    get(sb, ino)
}

fn read(sb: &SuperBlock<Volume>, ino: u32) -> Result<(InodeFields, impl PinInit<Data>)> {
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let (group, index) = layout.locate_inode(ino).ok_or_else(|| {
        pr_err!("{}: invalid inode number {ino}\n", sb.name());
        errors::note(sb, ino, 0);
        corrupted()
    })?;
    let (block, offset) = place(volume, sb, group, index)?;
    let buffer = Buffer::read(sb, block).inspect_err(|_| {
        pr_err!("{}: inode {ino}: block {block} cannot be read\n", sb.name());
    })?;
    let (found, made) = {
        let _table = volume.lock_table(block)?;
        let bytes = buffer.bytes()?;
        let bytes = bytes.get(offset..).ok_or(EIO)?;
        if format::inode::is_free(bytes) {
            return Err(stale());
        }
        let found = format::inode::read(layout, ino, bytes)
            .map_err(|what| corrupt_inode(sb, ino, Some(block), what))?;
        (found, format::inode::made(layout, bytes))
    };
    // Deleted, but its blocks are not freed yet: only the task that frees orphans may access it.
    if found.links == 0 && ino >= layout.first_inode && !volume.frees_orphans() {
        return Err(stale());
    }
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
    if found.size > u64::from(u32::MAX) << layout.block_bits {
        return Err(corrupt_inode(sb, ino, Some(block), Corrupt("too large a size")));
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
    // The inode may have been changed, evicted and read again before the change is committed.
    let transaction = volume.journal().map_or(0, |journal| journal.newest());
    let seed = inode_seed(layout.seed, ino, found.generation);
    // It may have been evicted while the volume was frozen.
    let staged = volume.staging.lock().find(ino, 0).is_some();
    let data = Data::new(
        found.block,
        found.flags,
        found.size,
        found.file_acl,
        Since { transaction, made },
        staged,
        seed,
    );
    Ok((fields, data))
}

/// Logs the defect of an inode, and returns the errno.
pub(in crate::fs) fn bad(sb: &SuperBlock<Volume>, ino: u32, what: Corrupt) -> Error {
    corrupt_inode(sb, ino, None, what)
}

/// Returns the block of the inode table that contains inode `index` of a group, and the byte offset
/// in it.
pub(in crate::fs) fn place(
    volume: &Volume,
    sb: &SuperBlock<Volume>,
    group: u32,
    index: u32,
) -> Result<(u64, usize)> {
    let layout = &volume.layout;
    let table = groups::inode_table(volume, sb, group)?;
    let byte = u64::from(index) * u64::from(layout.inode_size);
    let within = byte & (u64::from(layout.block_size) - 1);
    Ok((table + (byte >> layout.block_bits), within as usize))
}

/// The part of an inode to write.
#[derive(Clone, Copy)]
pub(in crate::fs) enum Part<'a> {
    /// Everything except the root of the mapping, which is written when the mapping is changed.
    Attributes,
    /// Like `Attributes`, and also the in-inode extended attributes, from these bytes of a whole
    /// inode.
    Body(&'a [u8]),
    /// Everything including the root of the mapping. The caller holds the mapping's lock.
    Mapping(&'a [u8; BLOCK_BYTES]),
    /// Everything, into a slot with undefined contents.
    New(&'a [u8; BLOCK_BYTES]),
    /// The final state of a deleted inode, with the time of deletion.
    Deleted,
}

/// Number of journal credits for [`store`].
pub(in crate::fs) const STORE_CREDITS: u32 = 1;

/// Writes an inode to its block of the inode table.
///
/// If this fails for anything but plain attributes, the journal is aborted: blocks have changed
/// owners in this handle, and the inode on disk would still claim blocks that it lost.
pub(in crate::fs) fn store(handle: &Handle, inode: &Inode<Volume>, part: Part<'_>) -> Result {
    let stored = write(handle, inode, part);
    if let (Err(error), false) = (stored, matches!(part, Part::Attributes) || handle.is_aborted()) {
        pr_err!(
            "{}: inode {}: could not be stored after its blocks changed (error {}); the journal is aborted\n",
            inode.super_block().name(),
            inode.number(),
            error.to_errno()
        );
        handle.abort(error);
    }
    stored
}

fn write(handle: &Handle, inode: &Inode<Volume>, part: Part<'_>) -> Result {
    let sb = inode.super_block();
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let data = inode.data()?;
    let ino = inode.number();
    let (group, index) = layout.locate_inode(ino).ok_or(EIO)?;
    if inode.is_file() && data.disk_size() > i32::MAX as u64 {
        super_disk::note_large_files(handle, volume, sb)?;
    }
    let (block, offset) = place(volume, sb, group, index)?;
    let mut buffer = Buffer::read(sb, block)?;
    let _table = volume.lock_table(block)?;
    let mut bytes = handle.write_part(&mut buffer, offset..offset + usize::from(layout.inode_size))?;
    let [ctime, mtime, atime] = inode.times().map(|time| Time {
        seconds: time.seconds,
        nanoseconds: time.nanoseconds,
    });
    let root = match part {
        Part::Mapping(root) | Part::New(root) => Some(*root),
        Part::Attributes | Part::Body(_) | Part::Deleted => None,
    };
    let fields = format::inode::Inode {
        mode: inode.mode(),
        uid: inode.uid(),
        gid: inode.gid(),
        size: if inode.is_file() {
            data.disk_size()
        } else {
            inode.size()
        },
        links: inode.links(),
        sectors: inode.sectors(),
        flags: data.flags(),
        generation: inode.generation(),
        file_acl: data.attributes(),
        dtime: matches!(part, Part::Deleted).then(|| now() as u32),
        atime,
        ctime,
        mtime,
        block: root.unwrap_or([0; BLOCK_BYTES]),
    };
    let bad = |what| corrupt_inode(sb, ino, Some(block), what);
    if matches!(part, Part::New(_)) {
        format::inode::clear(layout, ctime, &mut bytes).map_err(bad)?;
    }
    if let Part::Body(body) = part {
        format::inode::copy_body(body, &mut bytes).map_err(bad)?;
    }
    format::inode::write(layout, ino, &fields, root.is_some(), &mut bytes).map_err(bad)?;
    data.transaction.store(handle.transaction(), Relaxed);
    Ok(())
}

/// The block of the inode table that holds an inode. While it is held it stays in memory, so that
/// storing the inode fails only with the journal: read it before the first change of an operation.
pub(in crate::fs) fn pin(sb: &SuperBlock<Volume>, ino: u32) -> Result<Buffer<'_>> {
    let volume = sb.volume()?;
    let (group, index) = volume.layout.locate_inode(ino).ok_or(EIO)?;
    let (block, _) = place(volume, sb, group, index)?;
    Buffer::read(sb, block).inspect_err(|_| {
        pr_err!("{}: inode {ino}: block {block} cannot be read\n", sb.name());
    })
}

/// Calls `look` with the slot of an inode, whose block of the inode table is locked, and with the
/// number of that block.
///
/// # Errors
///
/// `EINVAL` for an invalid number, `EIO` when the slot cannot be read, and errors of `look`.
pub(in crate::fs) fn with_slot<T>(
    sb: &SuperBlock<Volume>,
    ino: u32,
    look: impl FnOnce(u64, &[u8]) -> Result<T>,
) -> Result<T> {
    let volume = sb.volume()?;
    let (group, index) = volume.layout.locate_inode(ino).ok_or(EINVAL)?;
    let (block, offset) = place(volume, sb, group, index)?;
    let buffer = Buffer::read(sb, block)?;
    let _table = volume.lock_table(block)?;
    let bytes = buffer.bytes()?;
    look(block, bytes.get(offset..).ok_or(EIO)?)
}

/// Returns `i_dtime` of an inode, which is the next inode of the legacy orphan list if the inode is
/// in the list.
///
/// Fails with `EFSCORRUPTED` if the inode is invalid, and with `EIO` if it cannot be read.
pub(in crate::fs) fn dtime(sb: &SuperBlock<Volume>, ino: u32) -> Result<u32> {
    let volume = sb.volume()?;
    let (group, index) = volume.layout.locate_inode(ino).ok_or_else(corrupted)?;
    let (block, offset) = place(volume, sb, group, index)?;
    let buffer = pin(sb, ino)?;
    let _table = volume.lock_table(block)?;
    let bytes = buffer.bytes()?;
    let bytes = bytes.get(offset..).ok_or(EIO)?;
    let outline = format::inode::outline(&volume.layout, ino, bytes, true);
    Ok(outline.map_err(|_| corrupted())?.dtime())
}

/// Sets `i_dtime` of an inode on disk.
pub(in crate::fs) fn set_dtime(handle: &Handle, sb: &SuperBlock<Volume>, ino: u32, dtime: u32) -> Result {
    let volume = sb.volume()?;
    let layout = &volume.layout;
    let (group, index) = layout.locate_inode(ino).ok_or(EIO)?;
    let (block, offset) = place(volume, sb, group, index)?;
    let mut buffer = pin(sb, ino)?;
    let _table = volume.lock_table(block)?;
    let mut bytes = handle.write_part(&mut buffer, offset..offset + usize::from(layout.inode_size))?;
    format::inode::set_dtime(layout, ino, dtime, &mut bytes)
        .map_err(|what| corrupt_inode(sb, ino, Some(block), what))
}

pub(in crate::fs) fn timestamp(time: Time) -> Timestamp {
    Timestamp {
        seconds: time.seconds,
        nanoseconds: time.nanoseconds,
    }
}

/// Returns the device number of a device inode: the first word contains 8 bits each of major and
/// minor, or else the second one 12 and 20 bits.
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

/// The inverse of [`device`].
pub(in crate::fs) fn write_device(block: &mut [u8; BLOCK_BYTES], device: u32) {
    let (major, minor) = (device >> 20, device & 0xfffff);
    let (short, long) = if major < 256 && minor < 256 {
        (major << 8 | minor, 0)
    } else {
        (0, minor & 0xff | major << 8 | (minor & !0xff) << 12)
    };
    let [a, b, c, d] = short.to_le_bytes();
    let [e, f, g, h] = long.to_le_bytes();
    if let Some(words) = block.get_mut(..8) {
        words.copy_from_slice(&[a, b, c, d, e, f, g, h]);
    }
}

/// Returns true if the inode has a block mapping.
pub(in crate::fs) fn is_mapped(inode: &Inode<Volume>) -> Result<bool> {
    Ok(maps(inode.mode(), inode.size(), inode.data()?.has_extents()))
}

/// Returns true if an inode with this mode and size in bytes has a block mapping.
pub(in crate::fs) fn maps(mode: u16, size: u64, has_extents: bool) -> bool {
    let kind = mode & 0o170000;
    // The target of a short symlink is stored in place of the mapping.
    matches!(kind, 0o040000 | 0o100000) || (kind == 0o120000 && (has_extents || size >= BLOCK_BYTES as u64))
}

/// Returns the number of 512-byte sectors reserved for data of a file that is not on disk yet.
pub(in crate::fs) fn pending_sectors(inode: &Inode<Volume>) -> u64 {
    match (inode.super_block().volume(), inode.data()) {
        (Ok(volume), Ok(data)) => data.reserved() << (volume.layout.block_bits - 9),
        _ => 0,
    }
}

/// Returns the maximum size of a file in bytes, which is smaller with indirect blocks.
pub(in crate::fs) fn max_size(inode: &Inode<Volume>) -> u64 {
    let (Ok(volume), Ok(data)) = (inode.super_block().volume(), inode.data()) else {
        return 0;
    };
    let layout = &volume.layout;
    let huge_file = layout.features.ro_compat(ro_compat::HUGE_FILE);
    match data.has_extents() {
        true => format::inode::max_size(layout.block_bits.into(), huge_file),
        false => format::indirect::max_size(layout.block_bits.into(), huge_file),
    }
}
