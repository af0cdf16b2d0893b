// SPDX-License-Identifier: GPL-2.0

//! Inodes on disk.
//!
//! [`RawInode`] is the 128 bytes that every inode has; larger inodes have extra fields with the
//! high parts of times and checksum. [`read`] checks an inode and returns its fields; times have
//! 34-bit seconds.
//!
//! Source: `Documentation/filesystems/ext4/inodes.rst`.

use super::{
    csum::crc32c,
    ensure,
    superblock::{inode_seed, ro_compat, Layout},
    Checked, Corrupt,
};
use zerocopy::little_endian::{U16, U32};
use zerocopy::FromBytes;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The root directory.
pub(crate) const ROOT: u32 = 2;
/// The default inode of the journal.
pub(crate) const JOURNAL: u32 = 8;
/// The inode that owns the bad blocks, if there are any.
pub(crate) const BAD_BLOCKS: u32 = 1;
/// The inode that owns the blocks reserved for growing the descriptor table.
pub(crate) const RESIZE: u32 = 7;

/// Size in bytes of the part that every inode has.
pub(crate) const GOOD_OLD_SIZE: usize = 128;
/// Size in bytes of `i_block`.
pub(crate) const BLOCK_BYTES: usize = 60;

/// The `i_flags` that rext4 uses.
#[allow(missing_docs)]
pub(crate) mod flags {
    pub(crate) const SYNC: u32 = 0x8;
    pub(crate) const IMMUTABLE: u32 = 0x10;
    pub(crate) const APPEND: u32 = 0x20;
    pub(crate) const NOATIME: u32 = 0x80;
    pub(crate) const ENCRYPT: u32 = 0x800;
    pub(crate) const INDEX: u32 = 0x1000;
    pub(crate) const DIRSYNC: u32 = 0x10000;
    pub(crate) const HUGE_FILE: u32 = 0x40000;
    pub(crate) const EXTENTS: u32 = 0x80000;
    pub(crate) const VERITY: u32 = 0x100000;
    pub(crate) const EA_INODE: u32 = 0x200000;
    pub(crate) const INLINE_DATA: u32 = 0x10000000;
    pub(crate) const CASEFOLD: u32 = 0x40000000;
    pub(crate) const NODUMP: u32 = 0x40;
    pub(crate) const JOURNAL_DATA: u32 = 0x4000;
    pub(crate) const TOPDIR: u32 = 0x20000;
    pub(crate) const PROJINHERIT: u32 = 0x20000000;
    /// Flags that only say how the data is to be stored, for features that rext4 does not have:
    /// secure deletion, undeletion, compression, tail merging, DAX, and one that has no meaning any
    /// more.
    const HINTS: u32 = 0x7 | 0x8000 | 0x400000 | 0x2000000;
    /// Flags that programs may change.
    pub(crate) const CHANGEABLE: u32 = HINTS
        | SYNC
        | IMMUTABLE
        | APPEND
        | NODUMP
        | NOATIME
        | JOURNAL_DATA
        | DIRSYNC
        | TOPDIR
        | EXTENTS
        | PROJINHERIT
        | CASEFOLD;
    /// Flags that programs may see: those, and those of dirty, compressed, encrypted, hashed and
    /// verity inodes and of inline data.
    pub(crate) const VISIBLE: u32 = CHANGEABLE | 0x700 | ENCRYPT | INDEX | VERITY | INLINE_DATA;
    /// Flags that only directories have.
    const DIRECTORY: u32 = DIRSYNC | TOPDIR | CASEFOLD | PROJINHERIT;
    /// Flags that new inodes inherit from their directory, where they may have them.
    const INHERITED: u32 =
        HINTS & !0x400000 | 0x400 | SYNC | NODUMP | NOATIME | JOURNAL_DATA | DIRSYNC | PROJINHERIT | CASEFOLD;

    /// Returns those of `flags` that an inode of this mode may have.
    pub(crate) fn allowed(mode: u16, flags: u32) -> u32 {
        match mode & 0o170000 {
            0o040000 => flags,
            0o100000 => flags & !DIRECTORY,
            _ => flags & (NODUMP | NOATIME),
        }
    }

    /// Returns the flags that a new inode of this mode gets from a directory with these.
    pub(crate) fn inherited(mode: u16, directory: u32) -> u32 {
        allowed(mode, directory & INHERITED)
    }

    /// Flags of inodes that are not supported.
    pub(crate) const REFUSED: u32 = ENCRYPT | VERITY | EA_INODE | INLINE_DATA | CASEFOLD;
}

/// The part that every inode has.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
#[allow(missing_docs)]
pub(crate) struct RawInode {
    pub(crate) mode: U16,
    pub(crate) uid_lo: U16,
    pub(crate) size_lo: U32,
    pub(crate) atime: U32,
    pub(crate) ctime: U32,
    pub(crate) mtime: U32,
    pub(crate) dtime: U32,
    pub(crate) gid_lo: U16,
    pub(crate) links: U16,
    pub(crate) blocks_lo: U32,
    pub(crate) flags: U32,
    pub(crate) version: U32,
    pub(crate) block: [u8; BLOCK_BYTES],
    pub(crate) generation: U32,
    pub(crate) file_acl_lo: U32,
    pub(crate) size_hi: U32,
    pub(crate) obso_faddr: U32,
    pub(crate) blocks_hi: U16,
    pub(crate) file_acl_hi: U16,
    pub(crate) uid_hi: U16,
    pub(crate) gid_hi: U16,
    pub(crate) checksum_lo: U16,
    pub(crate) reserved: U16,
}

/// The extra fields, of which `extra_size` bytes are in use.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Default)]
#[repr(C)]
#[allow(missing_docs)]
pub(crate) struct RawExtra {
    pub(crate) extra_size: U16,
    pub(crate) checksum_hi: U16,
    pub(crate) ctime_extra: U32,
    pub(crate) mtime_extra: U32,
    pub(crate) atime_extra: U32,
    pub(crate) crtime: U32,
    pub(crate) crtime_extra: U32,
    pub(crate) version_hi: U32,
    pub(crate) projid: U32,
}

const EXTRA: usize = core::mem::size_of::<RawExtra>();
/// Offsets of the halves of the checksum.
const CHECKSUM_LO: usize = 124;
const CHECKSUM_HI: usize = 130;
const _: () = assert!(core::mem::size_of::<RawInode>() == GOOD_OLD_SIZE && EXTRA == 32);

/// A point in time: seconds since 1970 and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

impl Time {
    /// Decodes the 32 bits that every inode has and the extra word: 30 bits of nanoseconds and 2
    /// more bits of seconds.
    fn decode(seconds: u32, extra: u32) -> Time {
        Time {
            seconds: i64::from(seconds as i32) + (i64::from(extra & 3) << 32),
            nanoseconds: (extra >> 2).min(999_999_999),
        }
    }

    /// Encodes the time into one word, where there is no room for more. Seconds beyond 32 bits are
    /// clamped.
    pub(crate) fn encode_short(&self) -> u32 {
        self.seconds.clamp(i32::MIN.into(), i32::MAX.into()) as i32 as u32
    }

    /// Encodes the time into its two words. Seconds beyond 34 bits are clamped.
    pub(crate) fn encode(&self) -> (u32, u32) {
        let seconds = self
            .seconds
            .clamp(i64::from(i32::MIN), (3i64 << 32) + i64::from(i32::MAX));
        let epoch = ((seconds - i64::from(seconds as i32)) >> 32) as u32 & 3;
        (seconds as u32, (self.nanoseconds << 2) | epoch)
    }
}

/// The fields of an inode in native form. Sizes are in bytes, `blocks` in 512-byte sectors.
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub(crate) struct Inode {
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) links: u32,
    pub(crate) sectors: u64,
    pub(crate) flags: u32,
    pub(crate) generation: u32,
    pub(crate) file_acl: u64,
    /// The deletion time. `None` leaves the field unchanged, since the legacy orphan list links
    /// inodes through it.
    pub(crate) dtime: Option<u32>,
    pub(crate) atime: Time,
    pub(crate) ctime: Time,
    pub(crate) mtime: Time,
    /// Root of the block mapping, or the target of a short symlink.
    pub(crate) block: [u8; BLOCK_BYTES],
}

impl Inode {
    /// Returns the type bits of the mode.
    pub(crate) fn file_type(&self) -> u16 {
        self.mode & 0o170000
    }
}

/// Returns true unless the inode number is reserved for the file system itself, so that no name may
/// refer to it: all inodes below `first_inode` except the root, the journal and the orphan file.
pub(crate) fn is_ordinary(layout: &Layout, ino: u32) -> bool {
    let own = [layout.journal_inode, layout.orphan_inode];
    (ino == ROOT || (layout.first_inode..=layout.inodes).contains(&ino)) && !own.contains(&ino)
}

/// Returns true if the inode is free: no links and no mode.
pub(crate) fn is_free(bytes: &[u8]) -> bool {
    RawInode::ref_from_prefix(bytes).is_ok_and(|(raw, _)| raw.links.get() == 0 && raw.mode.get() == 0)
}

/// Returns true if an inode has links. If the inode table is not known to be `written`, it may
/// contain anything, so only an inode with a valid checksum of this volume counts.
pub(crate) fn has_names(layout: &Layout, ino: u32, bytes: &[u8], written: bool) -> bool {
    let Ok((raw, _)) = RawInode::ref_from_prefix(bytes) else {
        return false;
    };
    let is_sealed = || layout.has_metadata_csum() && outline(layout, ino, bytes, true).is_ok();
    raw.links.get() != 0 && (written || is_sealed())
}

/// The fields of a checked inode that determine which blocks it owns.
pub(crate) struct Outline<'a> {
    raw: &'a RawInode,
    extra: RawExtra,
    /// Size in bytes.
    pub(crate) size: u64,
    /// The extended attribute block, 0 for none.
    pub(crate) file_acl: u64,
}

impl<'a> Outline<'a> {
    /// Type and permissions.
    pub(crate) fn mode(&self) -> u16 {
        self.raw.mode.get()
    }

    /// Link count.
    pub(crate) fn links(&self) -> u32 {
        self.raw.links.get().into()
    }

    /// `i_flags`.
    pub(crate) fn flags(&self) -> u32 {
        self.raw.flags.get()
    }

    /// Root of the block mapping, or the target of a short symlink.
    pub(crate) fn block(&self) -> &'a [u8; BLOCK_BYTES] {
        &self.raw.block
    }

    /// `i_dtime`: the deletion time, or the next inode of the legacy orphan list.
    pub(crate) fn dtime(&self) -> u32 {
        self.raw.dtime.get()
    }
}

/// Reads inode `ino` from its `inode_size` bytes and checks everything that does not depend on
/// other blocks.
pub(crate) fn read(layout: &Layout, ino: u32, bytes: &[u8]) -> Checked<Inode> {
    let outline = outline(layout, ino, bytes, true)?;
    let Outline { raw, extra, .. } = outline;
    let time = |seconds: U32, more: U32, end: usize| {
        Time::decode(seconds.get(), if fits(&extra, end) { more.get() } else { 0 })
    };
    Ok(Inode {
        mode: outline.mode(),
        uid: (u32::from(raw.uid_hi.get()) << 16) | u32::from(raw.uid_lo.get()),
        gid: (u32::from(raw.gid_hi.get()) << 16) | u32::from(raw.gid_lo.get()),
        size: outline.size,
        links: outline.links(),
        sectors: raw_sectors(layout, raw),
        flags: outline.flags(),
        generation: raw.generation.get(),
        file_acl: outline.file_acl,
        dtime: Some(raw.dtime.get()),
        ctime: time(raw.ctime, extra.ctime_extra, GOOD_OLD_SIZE + 8),
        mtime: time(raw.mtime, extra.mtime_extra, GOOD_OLD_SIZE + 12),
        atime: time(raw.atime, extra.atime_extra, GOOD_OLD_SIZE + 16),
        block: raw.block,
    })
}

/// Returns the number of 512-byte sectors that an inode counts.
pub(crate) fn sectors(layout: &Layout, bytes: &[u8]) -> Checked<u64> {
    let (raw, _) = RawInode::ref_from_prefix(bytes).map_err(|_| Corrupt("inode cut short"))?;
    Ok(raw_sectors(layout, raw))
}

fn raw_sectors(layout: &Layout, raw: &RawInode) -> u64 {
    let mut sectors = u64::from(raw.blocks_lo.get());
    if layout.features.ro_compat(ro_compat::HUGE_FILE) {
        sectors |= u64::from(raw.blocks_hi.get()) << 32;
        if raw.flags.get() & flags::HUGE_FILE != 0 {
            sectors <<= layout.block_bits - 9;
        }
    }
    sectors
}

/// Returns when an inode was made, if it has room for that. Its bytes were checked by [`read`].
pub(crate) fn made(layout: &Layout, bytes: &[u8]) -> Option<Time> {
    let extra = extra(layout, bytes.get(GOOD_OLD_SIZE..usize::from(layout.inode_size))?).ok()?;
    let more = if fits(&extra, GOOD_OLD_SIZE + 24) {
        extra.crtime_extra.get()
    } else {
        0
    };
    fits(&extra, GOOD_OLD_SIZE + 20).then(|| Time::decode(extra.crtime.get(), more))
}

/// Checks inode `ino` as [`read`] does, the checksum only on request, and reads only the fields of
/// [`Outline`].
pub(crate) fn outline<'a>(layout: &Layout, ino: u32, bytes: &'a [u8], sealed: bool) -> Checked<Outline<'a>> {
    let bytes = bytes
        .get(..usize::from(layout.inode_size))
        .ok_or(Corrupt("inode cut short"))?;
    let (raw, rest) = RawInode::ref_from_prefix(bytes).map_err(|_| Corrupt("inode cut short"))?;
    let extra = extra(layout, rest)?;
    if sealed && layout.has_metadata_csum() {
        let sum = checksum(layout, ino, bytes, &extra)?;
        let wide = fits(&extra, CHECKSUM_HI + 2);
        let found = u32::from(raw.checksum_lo.get())
            | if wide {
                u32::from(extra.checksum_hi.get()) << 16
            } else {
                0
            };
        ensure(
            found == if wide { sum } else { sum & 0xffff },
            "inode checksum mismatch",
        )?;
    }
    let is_dir_or_file = matches!(raw.mode.get() & 0o170000, 0o100000 | 0o040000);
    let size = u64::from(raw.size_lo.get())
        | if is_dir_or_file {
            u64::from(raw.size_hi.get()) << 32
        } else {
            0
        };
    ensure(size <= i64::MAX as u64, "negative size")?;
    let file_acl = (u64::from(raw.file_acl_hi.get()) << 32) | u64::from(raw.file_acl_lo.get());
    ensure(
        file_acl == 0 || layout.contains(file_acl, 1),
        "attribute block is off the volume",
    )?;
    Ok(Outline {
        raw,
        extra,
        size,
        file_acl,
    })
}

/// Returns the extra fields with `extra_size` checked; zeroes if the inode has none.
fn extra(layout: &Layout, rest: &[u8]) -> Checked<RawExtra> {
    let Ok((found, _)) = RawExtra::read_from_prefix(rest) else {
        return Ok(RawExtra::default());
    };
    let used = found.extra_size.get();
    ensure(
        used % 4 == 0 && GOOD_OLD_SIZE + usize::from(used) <= usize::from(layout.inode_size),
        "bad extra inode size",
    )?;
    Ok(found)
}

/// Returns true if the extra fields in use extend to byte `end` of the inode.
fn fits(extra: &RawExtra, end: usize) -> bool {
    GOOD_OLD_SIZE + usize::from(extra.extra_size.get()) >= end
}

/// Computes the checksum of an inode, with the checksum fields taken as zero. Only the low half is
/// stored if the extra fields are too short.
fn checksum(layout: &Layout, ino: u32, bytes: &[u8], extra: &RawExtra) -> Checked<u32> {
    let short = Corrupt("inode cut short");
    let (raw, _) = RawInode::ref_from_prefix(bytes).map_err(|_| short)?;
    let sum = inode_seed(layout.seed, ino, raw.generation.get());
    let sum = crc32c(sum, bytes.get(..CHECKSUM_LO).ok_or(short)?);
    // The bytes around the two halves are copied and summed in one call, which is faster than
    // several short ones.
    let [third, fourth] = raw.reserved.to_bytes();
    let [fifth, sixth] = extra.extra_size.to_bytes();
    let around = [0, 0, third, fourth, fifth, sixth, 0, 0];
    let end = if fits(extra, CHECKSUM_HI + 2) {
        CHECKSUM_HI + 2
    } else {
        GOOD_OLD_SIZE
    };
    let sum = crc32c(sum, around.get(..end - CHECKSUM_LO).ok_or(short)?);
    Ok(crc32c(sum, bytes.get(end..).ok_or(short)?))
}

/// Writes an inode's fields and checksum. `block` is written only if given; bytes that are not in
/// the fields are left unchanged.
///
/// Fails if the number of sectors exceeds 32 bits or, with the feature `huge_file`, 48 bits of
/// blocks.
pub(crate) fn write(layout: &Layout, ino: u32, inode: &Inode, block: bool, bytes: &mut [u8]) -> Checked<()> {
    let short = Corrupt("inode cut short");
    let bytes = bytes.get_mut(..usize::from(layout.inode_size)).ok_or(short)?;
    let huge_file = layout.features.ro_compat(ro_compat::HUGE_FILE);
    // Above 48 bits of sectors the field counts blocks, and a flag says so.
    let (count, in_blocks) = match inode.sectors < 1 << 48 {
        true => (inode.sectors, 0),
        false => (inode.sectors >> (layout.block_bits - 9), flags::HUGE_FILE),
    };
    let most = if huge_file {
        (1 << 48) - 1
    } else {
        u64::from(u32::MAX)
    };
    ensure(count <= most, "inode has too many sectors")?;
    let (raw, rest) = RawInode::mut_from_prefix(bytes).map_err(|_| short)?;
    raw.mode.set(inode.mode);
    raw.uid_lo.set(inode.uid as u16);
    raw.uid_hi.set((inode.uid >> 16) as u16);
    raw.gid_lo.set(inode.gid as u16);
    raw.gid_hi.set((inode.gid >> 16) as u16);
    raw.size_lo.set(inode.size as u32);
    raw.size_hi.set((inode.size >> 32) as u32);
    raw.links.set(inode.links as u16);
    raw.blocks_lo.set(count as u32);
    // Without the feature, these bits have another meaning.
    if huge_file {
        raw.blocks_hi.set((count >> 32) as u16);
    }
    raw.flags.set(inode.flags & !flags::HUGE_FILE | in_blocks);
    raw.generation.set(inode.generation);
    raw.file_acl_lo.set(inode.file_acl as u32);
    raw.file_acl_hi.set((inode.file_acl >> 32) as u16);
    if let Some(dtime) = inode.dtime {
        raw.dtime.set(dtime);
    }
    if block {
        raw.block = inode.block;
    }
    // A time without room for its high part is clamped to 32 bits.
    let used = RawExtra::read_from_prefix(rest).map_or(RawExtra::default(), |(extra, _)| extra);
    let encode = |time: Time, end: usize| match rest.len() >= EXTRA && fits(&used, end) {
        true => time.encode(),
        false => (time.encode_short(), 0),
    };
    let (ctime, ctime_extra) = encode(inode.ctime, GOOD_OLD_SIZE + 8);
    let (mtime, mtime_extra) = encode(inode.mtime, GOOD_OLD_SIZE + 12);
    let (atime, atime_extra) = encode(inode.atime, GOOD_OLD_SIZE + 16);
    raw.ctime.set(ctime);
    raw.mtime.set(mtime);
    raw.atime.set(atime);
    if let Ok((extra, _)) = RawExtra::mut_from_prefix(rest) {
        let used = *extra;
        if fits(&used, GOOD_OLD_SIZE + 8) {
            extra.ctime_extra.set(ctime_extra);
        }
        if fits(&used, GOOD_OLD_SIZE + 12) {
            extra.mtime_extra.set(mtime_extra);
        }
        if fits(&used, GOOD_OLD_SIZE + 16) {
            extra.atime_extra.set(atime_extra);
        }
    }
    seal(layout, ino, bytes)
}

/// Returns true if inodes of this size have room for the high parts of their times.
pub(crate) fn has_extra_times(inode_size: u16) -> bool {
    usize::from(inode_size) >= GOOD_OLD_SIZE + 20
}

/// Returns the maximum size in bytes of a file with extents: 2^32 - 1 blocks, limited by what
/// `i_blocks` can count.
pub(crate) fn max_size(block_bits: u32, huge_file: bool) -> u64 {
    let counted = match huge_file {
        true => u64::from(u32::MAX),
        false => u64::from(u32::MAX) >> (block_bits - 9),
    };
    counted << block_bits
}

/// Copies the bytes after the extra fields in use from one inode to another, whose extra fields
/// have the same size.
pub(crate) fn copy_body(from: &[u8], to: &mut [u8]) -> Checked<()> {
    let short = Corrupt("inode cut short");
    let Some(&[low, high]) = to.get(GOOD_OLD_SIZE..GOOD_OLD_SIZE + 2) else {
        return Ok(());
    };
    let start = GOOD_OLD_SIZE + usize::from(u16::from_le_bytes([low, high]));
    let (from, to) = (from.get(start..).ok_or(short)?, to.get_mut(start..).ok_or(short)?);
    ensure(from.len() == to.len(), "inode cut short")?;
    to.copy_from_slice(from);
    Ok(())
}

/// Initializes a new inode: all zero except for the size of the extra fields and the creation time.
pub(crate) fn clear(layout: &Layout, made: Time, bytes: &mut [u8]) -> Checked<()> {
    let bytes = bytes
        .get_mut(..usize::from(layout.inode_size))
        .ok_or(Corrupt("inode cut short"))?;
    bytes.fill(0);
    if let Some(rest) = bytes.get_mut(GOOD_OLD_SIZE..) {
        if let Ok((extra, _)) = RawExtra::mut_from_prefix(rest) {
            extra.extra_size.set(EXTRA as u16);
            let (seconds, more) = made.encode();
            extra.crtime.set(seconds);
            extra.crtime_extra.set(more);
        }
    }
    Ok(())
}

/// Sets `i_dtime` in a stored inode and updates the checksum.
pub(crate) fn set_dtime(layout: &Layout, ino: u32, dtime: u32, bytes: &mut [u8]) -> Checked<()> {
    let (raw, _) = RawInode::mut_from_prefix(bytes).map_err(|_| Corrupt("inode cut short"))?;
    raw.dtime.set(dtime);
    seal(layout, ino, bytes)
}

/// Updates the checksum of an inode.
pub(crate) fn seal(layout: &Layout, ino: u32, bytes: &mut [u8]) -> Checked<()> {
    if !layout.has_metadata_csum() {
        return Ok(());
    }
    let short = Corrupt("inode cut short");
    let bytes = bytes.get_mut(..usize::from(layout.inode_size)).ok_or(short)?;
    let extra = extra(layout, bytes.get(GOOD_OLD_SIZE..).unwrap_or_default())?;
    let sum = checksum(layout, ino, bytes, &extra)?.to_le_bytes();
    let wide = fits(&extra, CHECKSUM_HI + 2);
    bytes
        .get_mut(CHECKSUM_LO..CHECKSUM_LO + 2)
        .ok_or(short)?
        .copy_from_slice(&sum[..2]);
    if wide {
        bytes
            .get_mut(CHECKSUM_HI..CHECKSUM_HI + 2)
            .ok_or(short)?
            .copy_from_slice(&sum[2..]);
    }
    Ok(())
}
