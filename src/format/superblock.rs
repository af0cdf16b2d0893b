// SPDX-License-Identifier: GPL-2.0

//! The superblock, the feature sets, and the layout of the volume that follows from them.
//!
//! [`RawSuper`] is the 1024 bytes at offset 1024 of the volume. [`Layout::read`] checks everything
//! that other computations depend on and converts it to native integers. [`Features::unsupported`]
//! names the features that prevent a mount.
//!
//! Source: `Documentation/filesystems/ext4/super.rst`, `blockgroup.rst`.

use super::{
    csum::{self, crc32c},
    ensure, Checked, Corrupt,
};
use core::ops::Range;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Offset of the superblock on the volume, in bytes.
pub(crate) const OFFSET: usize = 1024;
/// Size of the superblock in bytes.
pub(crate) const SIZE: usize = 1024;
/// `s_magic`.
pub(crate) const MAGIC: u16 = 0xef53;

/// `s_state`: unmounted cleanly.
pub(crate) const STATE_VALID: u16 = 1;
/// `s_default_mount_opts`: the volume's default mount options.
pub(crate) mod default_options {
    /// Mask of the journaling mode.
    pub(crate) const DATA: u32 = 0x60;
    /// `data=journal`
    pub(crate) const DATA_JOURNAL: u32 = 0x20;
    /// `data=writeback`
    pub(crate) const DATA_WRITEBACK: u32 = 0x60;
    /// `discard`
    pub(crate) const DISCARD: u32 = 0x400;
    /// `nobarrier`
    pub(crate) const NO_BARRIER: u32 = 0x100;
}

/// `s_state`: errors were found.
pub(crate) const STATE_ERRORS: u16 = 2;

/// `s_flags`: hashes of names take bytes as signed.
pub(crate) const FLAG_SIGNED_HASH: u32 = 1;
/// `s_flags`: hashes of names take bytes as unsigned.
pub(crate) const FLAG_UNSIGNED_HASH: u32 = 2;

/// The superblock on disk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
#[allow(missing_docs)]
pub(crate) struct RawSuper {
    pub(crate) inodes_count: U32,
    pub(crate) blocks_count_lo: U32,
    pub(crate) r_blocks_count_lo: U32,
    pub(crate) free_blocks_count_lo: U32,
    pub(crate) free_inodes_count: U32,
    pub(crate) first_data_block: U32,
    pub(crate) log_block_size: U32,
    pub(crate) log_cluster_size: U32,
    pub(crate) blocks_per_group: U32,
    pub(crate) clusters_per_group: U32,
    pub(crate) inodes_per_group: U32,
    pub(crate) mtime: U32,
    pub(crate) wtime: U32,
    pub(crate) mnt_count: U16,
    pub(crate) max_mnt_count: U16,
    pub(crate) magic: U16,
    pub(crate) state: U16,
    pub(crate) errors: U16,
    pub(crate) minor_rev_level: U16,
    pub(crate) lastcheck: U32,
    pub(crate) checkinterval: U32,
    pub(crate) creator_os: U32,
    pub(crate) rev_level: U32,
    pub(crate) def_resuid: U16,
    pub(crate) def_resgid: U16,
    pub(crate) first_ino: U32,
    pub(crate) inode_size: U16,
    pub(crate) block_group_nr: U16,
    pub(crate) feature_compat: U32,
    pub(crate) feature_incompat: U32,
    pub(crate) feature_ro_compat: U32,
    pub(crate) uuid: [u8; 16],
    pub(crate) volume_name: [u8; 16],
    pub(crate) last_mounted: [u8; 64],
    pub(crate) algorithm_usage_bitmap: U32,
    pub(crate) prealloc_blocks: u8,
    pub(crate) prealloc_dir_blocks: u8,
    pub(crate) reserved_gdt_blocks: U16,
    pub(crate) journal_uuid: [u8; 16],
    pub(crate) journal_inum: U32,
    pub(crate) journal_dev: U32,
    pub(crate) last_orphan: U32,
    pub(crate) hash_seed: [U32; 4],
    pub(crate) def_hash_version: u8,
    pub(crate) jnl_backup_type: u8,
    pub(crate) desc_size: U16,
    pub(crate) default_mount_opts: U32,
    pub(crate) first_meta_bg: U32,
    pub(crate) mkfs_time: U32,
    pub(crate) jnl_blocks: [U32; 17],
    pub(crate) blocks_count_hi: U32,
    pub(crate) r_blocks_count_hi: U32,
    pub(crate) free_blocks_count_hi: U32,
    pub(crate) min_extra_isize: U16,
    pub(crate) want_extra_isize: U16,
    pub(crate) flags: U32,
    pub(crate) raid_stride: U16,
    pub(crate) mmp_update_interval: U16,
    pub(crate) mmp_block: U64,
    pub(crate) raid_stripe_width: U32,
    pub(crate) log_groups_per_flex: u8,
    pub(crate) checksum_type: u8,
    pub(crate) encryption_level: u8,
    pub(crate) reserved_pad: u8,
    pub(crate) kbytes_written: U64,
    pub(crate) snapshot_inum: U32,
    pub(crate) snapshot_id: U32,
    pub(crate) snapshot_r_blocks_count: U64,
    pub(crate) snapshot_list: U32,
    pub(crate) error_count: U32,
    pub(crate) first_error_time: U32,
    pub(crate) first_error_ino: U32,
    pub(crate) first_error_block: U64,
    pub(crate) first_error_func: [u8; 32],
    pub(crate) first_error_line: U32,
    pub(crate) last_error_time: U32,
    pub(crate) last_error_ino: U32,
    pub(crate) last_error_line: U32,
    pub(crate) last_error_block: U64,
    pub(crate) last_error_func: [u8; 32],
    pub(crate) mount_opts: [u8; 64],
    pub(crate) usr_quota_inum: U32,
    pub(crate) grp_quota_inum: U32,
    pub(crate) overhead_clusters: U32,
    pub(crate) backup_bgs: [U32; 2],
    pub(crate) encrypt_algos: [u8; 4],
    pub(crate) encrypt_pw_salt: [u8; 16],
    pub(crate) lpf_ino: U32,
    pub(crate) prj_quota_inum: U32,
    pub(crate) checksum_seed: U32,
    pub(crate) wtime_hi: u8,
    pub(crate) mtime_hi: u8,
    pub(crate) mkfs_time_hi: u8,
    pub(crate) lastcheck_hi: u8,
    pub(crate) first_error_time_hi: u8,
    pub(crate) last_error_time_hi: u8,
    pub(crate) first_error_errcode: u8,
    pub(crate) last_error_errcode: u8,
    pub(crate) encoding: U16,
    pub(crate) encoding_flags: U16,
    pub(crate) orphan_file_inum: U32,
    pub(crate) def_resuid_hi: U16,
    pub(crate) def_resgid_hi: U16,
    pub(crate) reserved: [U32; 93],
    pub(crate) checksum: U32,
}

const _: () = assert!(core::mem::size_of::<RawSuper>() == SIZE);

/// `s_first_error_errcode`, `s_last_error_errcode`: damaged metadata was found.
const CODE_CORRUPTED: u8 = 5;
/// Function name recorded with an error.
const FUNCTION: &[u8] = b"rext4";

impl RawSuper {
    /// Records an error as the `first` one, unless there is one already, or as the last one. `time`
    /// is in seconds since 1970; inode and block may be 0.
    pub(crate) fn note_error(&mut self, first: bool, time: i64, ino: u32, block: u64) {
        let mut function = [0; 32];
        for (byte, &letter) in function.iter_mut().zip(FUNCTION) {
            *byte = letter;
        }
        let (low, high) = (U32::new(time as u32), (time >> 32) as u8);
        let (ino, block, line) = (U32::new(ino), U64::new(block), U32::new(0));
        if !first {
            (self.last_error_time, self.last_error_time_hi) = (low, high);
            (self.last_error_ino, self.last_error_block) = (ino, block);
            (self.last_error_func, self.last_error_line) = (function, line);
            self.last_error_errcode = CODE_CORRUPTED;
        } else if self.first_error_time.get() == 0 && self.first_error_time_hi == 0 {
            (self.first_error_time, self.first_error_time_hi) = (low, high);
            (self.first_error_ino, self.first_error_block) = (ino, block);
            (self.first_error_func, self.first_error_line) = (function, line);
            self.first_error_errcode = CODE_CORRUPTED;
        }
    }

    /// Records which bytes hashes of names take, as stock ext4 does, if nothing says so yet.
    pub(crate) fn note_hash(&mut self) {
        let flags = self.flags.get();
        let unknown = flags & (FLAG_SIGNED_HASH | FLAG_UNSIGNED_HASH) == 0;
        if unknown && self.feature_compat.get() & compat::DIR_INDEX != 0 {
            self.flags.set(flags | FLAG_UNSIGNED_HASH);
        }
    }
}

/// A feature bit and its name in e2fsprogs.
type Named = (u32, &'static str);

macro_rules! features {
    ($(#[$doc:meta])* $table:ident: $($name:ident = $bit:literal, $text:literal;)*) => {
        $(#[doc = $text] #[allow(dead_code)] pub(crate) const $name: u32 = $bit;)*
        $(#[$doc])* pub(crate) const $table: &[Named] = &[$(($bit, $text)),*];
    };
}

/// Compatible features; only those that rext4 uses.
pub(crate) mod compat {
    /// `has_journal`
    pub(crate) const HAS_JOURNAL: u32 = 0x4;
    /// `dir_index`
    pub(crate) const DIR_INDEX: u32 = 0x20;
    /// `ext_attr`
    pub(crate) const EXT_ATTR: u32 = 0x8;
    /// `resize_inode`
    pub(crate) const RESIZE_INODE: u32 = 0x10;
    /// `sparse_super2`
    pub(crate) const SPARSE_SUPER2: u32 = 0x200;
    /// `fast_commit`
    pub(crate) const FAST_COMMIT: u32 = 0x400;
    /// `orphan_file`
    pub(crate) const ORPHAN_FILE: u32 = 0x1000;
}

/// Incompatible features: a volume with an unsupported one is not mounted.
pub(crate) mod incompat {
    use super::Named;
    features! {
        /// All features that have a name.
        NAMES:
        COMPRESSION = 0x1, "compression";
        FILETYPE = 0x2, "filetype";
        RECOVER = 0x4, "needs_recovery";
        JOURNAL_DEV = 0x8, "journal_dev";
        META_BG = 0x10, "meta_bg";
        EXTENTS = 0x40, "extent";
        B64BIT = 0x80, "64bit";
        MMP = 0x100, "mmp";
        FLEX_BG = 0x200, "flex_bg";
        EA_INODE = 0x400, "ea_inode";
        DIRDATA = 0x1000, "dirdata";
        CSUM_SEED = 0x2000, "metadata_csum_seed";
        LARGEDIR = 0x4000, "large_dir";
        INLINE_DATA = 0x8000, "inline_data";
        ENCRYPT = 0x10000, "encrypt";
        CASEFOLD = 0x20000, "casefold";
    }
    /// Features that a mount supports.
    pub(crate) const SUPPORTED: u32 =
        FILETYPE | RECOVER | META_BG | EXTENTS | B64BIT | FLEX_BG | CSUM_SEED | LARGEDIR;
}

/// Read-only compatible features: a volume with an unsupported one is not mounted writable.
pub(crate) mod ro_compat {
    use super::Named;
    features! {
        /// All features that have a name.
        NAMES:
        SPARSE_SUPER = 0x1, "sparse_super";
        LARGE_FILE = 0x2, "large_file";
        BTREE_DIR = 0x4, "btree_dir";
        HUGE_FILE = 0x8, "huge_file";
        GDT_CSUM = 0x10, "uninit_bg";
        DIR_NLINK = 0x20, "dir_nlink";
        EXTRA_ISIZE = 0x40, "extra_isize";
        HAS_SNAPSHOT = 0x80, "has_snapshot";
        QUOTA = 0x100, "quota";
        BIGALLOC = 0x200, "bigalloc";
        METADATA_CSUM = 0x400, "metadata_csum";
        REPLICA = 0x800, "replica";
        READONLY = 0x1000, "read-only";
        PROJECT = 0x2000, "project";
        SHARED_BLOCKS = 0x4000, "shared_blocks";
        VERITY = 0x8000, "verity";
        ORPHAN_PRESENT = 0x10000, "orphan_present";
    }
    /// Features that a writable mount supports.
    pub(crate) const SUPPORTED: u32 = SPARSE_SUPER
        | LARGE_FILE
        | HUGE_FILE
        | GDT_CSUM
        | DIR_NLINK
        | EXTRA_ISIZE
        | METADATA_CSUM
        | SHARED_BLOCKS
        | ORPHAN_PRESENT;
    /// Features that change the unit of block numbers, so that a read-only mount has to support
    /// them, too.
    pub(crate) const NEEDED_TO_READ: u32 = BIGALLOC;
}

/// The three feature words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features {
    /// [`compat`] bits.
    pub(crate) compat: u32,
    /// [`incompat`] bits.
    pub(crate) incompat: u32,
    /// [`ro_compat`] bits.
    pub(crate) ro_compat: u32,
}

impl Features {
    /// The feature words of a superblock.
    pub(crate) fn of(raw: &RawSuper) -> Features {
        Features {
            compat: raw.feature_compat.get(),
            incompat: raw.feature_incompat.get(),
            ro_compat: raw.feature_ro_compat.get(),
        }
    }

    /// Returns true if a [`compat`] bit is set.
    pub(crate) fn compat(&self, bit: u32) -> bool {
        self.compat & bit != 0
    }

    /// Returns true if an [`incompat`] bit is set.
    pub(crate) fn incompat(&self, bit: u32) -> bool {
        self.incompat & bit != 0
    }

    /// Returns true if a [`ro_compat`] bit is set.
    pub(crate) fn ro_compat(&self, bit: u32) -> bool {
        self.ro_compat & bit != 0
    }

    /// Returns the features that prevent a mount (a writable one unless `read_only`): name, if
    /// known, and bit.
    pub(crate) fn unsupported(&self, read_only: bool) -> impl Iterator<Item = (Option<&'static str>, u32)> {
        let incompat = self.incompat & !incompat::SUPPORTED;
        let ro_compat = self.ro_compat
            & if read_only {
                ro_compat::NEEDED_TO_READ
            } else {
                !ro_compat::SUPPORTED
            };
        bits(incompat, incompat::NAMES).chain(bits(ro_compat, ro_compat::NAMES))
    }
}

fn bits(word: u32, names: &'static [Named]) -> impl Iterator<Item = (Option<&'static str>, u32)> {
    (0..32)
        .map(|shift| 1u32 << shift)
        .filter(move |bit| word & bit != 0)
        .map(move |bit| {
            (
                names
                    .iter()
                    .find(|(named, _)| *named == bit)
                    .map(|(_, name)| *name),
                bit,
            )
        })
}

/// Layout of the volume.
///
/// Block numbers are file system blocks from the start of the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// The feature words at the time the layout was read.
    pub(crate) features: Features,
    /// Block size in bytes: 1024, 2048 or 4096.
    pub(crate) block_size: u32,
    /// log2 of `block_size`.
    pub(crate) block_bits: u8,
    /// Number of blocks of the volume.
    pub(crate) blocks: u64,
    /// First block of group 0: 1 with blocks of 1 KiB, else 0.
    pub(crate) first_data_block: u32,
    /// Blocks per group; the last group may have fewer.
    pub(crate) blocks_per_group: u32,
    /// Number of groups.
    pub(crate) groups: u32,
    /// Number of inodes of the volume.
    pub(crate) inodes: u32,
    /// Inodes per group.
    pub(crate) inodes_per_group: u32,
    /// First inode that is not reserved.
    pub(crate) first_inode: u32,
    /// Inode size in bytes.
    pub(crate) inode_size: u16,
    /// Group descriptor size in bytes.
    pub(crate) desc_size: u16,
    /// Number of blocks of one copy of the descriptor table.
    pub(crate) desc_blocks: u32,
    /// Number of blocks reserved after the descriptor table for its growth.
    pub(crate) reserved_gdt_blocks: u16,
    /// With meta_bg: the first block of the descriptor table that is stored in the groups that it
    /// describes instead of after the superblock.
    pub(crate) first_meta_bg: Option<u32>,
    /// With sparse_super2: the groups besides group 0 with copies of superblock and descriptors, 0
    /// for none.
    pub(crate) backup_groups: Option<[u32; 2]>,
    /// log2 of the number of groups in a flex group.
    pub(crate) flex_bits: u8,
    /// Initial value of metadata checksums.
    pub(crate) seed: u32,
    /// `s_uuid`.
    pub(crate) uuid: [u8; 16],
    /// Inode of the journal, 0 for none.
    pub(crate) journal_inode: u32,
    /// Inode of the orphan file, 0 for none.
    pub(crate) orphan_inode: u32,
    /// Seed of the hashes of names.
    pub(crate) hash_seed: [u32; 4],
    /// Version of the hash of new indexes of directories.
    pub(crate) hash_version: u8,
    /// Hashes take the bytes of names as unsigned.
    pub(crate) hash_unsigned: bool,
}

/// Why [`Layout::grown`] has no room for descriptors.
pub(crate) const NOT_RESERVED: Corrupt = Corrupt("no blocks are reserved for so many descriptors");

impl Layout {
    /// Reads the layout and checks every field that other values are computed from.
    ///
    /// `device_bytes` is the size of the device in bytes; a volume that is larger is refused.
    pub(crate) fn read(raw: &RawSuper, device_bytes: u64) -> Checked<Layout> {
        ensure(raw.magic.get() == MAGIC, "bad magic")?;
        // A superblock of revision 0 has no fields for values that became variable later.
        let is_old = match raw.rev_level.get() {
            0 => true,
            1 => false,
            _ => return Err(Corrupt("revision of the superblock is not known")),
        };
        let features = Features::of(raw);
        if features.ro_compat(ro_compat::METADATA_CSUM) {
            ensure(raw.checksum_type == 1, "unknown checksum type")?;
            ensure(
                raw.checksum.get() == checksum(raw),
                "superblock checksum mismatch",
            )?;
        }
        let log = raw.log_block_size.get();
        ensure(log <= 2, "block size is not 1, 2 or 4 KiB")?;
        let block_bits = 10 + log as u8;
        let block_size = 1u32 << block_bits;

        let mut blocks = u64::from(raw.blocks_count_lo.get());
        if features.incompat(incompat::B64BIT) {
            blocks |= u64::from(raw.blocks_count_hi.get()) << 32;
        }
        ensure(
            blocks <= device_bytes >> block_bits,
            "volume is larger than its device",
        )?;
        let first_data_block = raw.first_data_block.get();
        ensure(
            first_data_block == u32::from(block_bits == 10),
            "bad first data block",
        )?;
        let blocks_per_group = raw.blocks_per_group.get();
        ensure(
            blocks_per_group >= 8 && blocks_per_group <= block_size * 8 && blocks_per_group % 8 == 0,
            "bad blocks per group",
        )?;
        ensure(blocks > u64::from(first_data_block), "no blocks")?;
        let groups = (blocks - u64::from(first_data_block)).div_ceil(u64::from(blocks_per_group));
        let groups = u32::try_from(groups).map_err(|_| Corrupt("too many groups"))?;

        let inode_size = if is_old { 128 } else { raw.inode_size.get() };
        ensure(
            inode_size >= 128 && u32::from(inode_size) <= block_size && inode_size.is_power_of_two(),
            "bad inode size",
        )?;
        let inodes_per_group = raw.inodes_per_group.get();
        let inodes_per_block = block_size / u32::from(inode_size);
        ensure(
            inodes_per_group >= inodes_per_block && inodes_per_group <= block_size * 8,
            "bad inodes per group",
        )?;
        let inodes = raw.inodes_count.get();
        ensure(
            u64::from(inodes_per_group) * u64::from(groups) == u64::from(inodes),
            "inode count does not match the groups",
        )?;
        let first_inode = if is_old { 11 } else { raw.first_ino.get() };
        ensure((11..=inodes).contains(&first_inode), "bad first inode")?;

        let desc_size = if features.incompat(incompat::B64BIT) {
            raw.desc_size.get()
        } else {
            32
        };
        ensure(
            desc_size >= 32 && u32::from(desc_size) <= block_size && desc_size.is_power_of_two(),
            "bad descriptor size",
        )?;
        let desc_blocks = groups.div_ceil(block_size / u32::from(desc_size));
        let reserved_gdt_blocks = raw.reserved_gdt_blocks.get();
        ensure(
            u32::from(reserved_gdt_blocks) <= block_size / 4,
            "bad reserved descriptor blocks",
        )?;
        let first_meta_bg = features
            .incompat(incompat::META_BG)
            .then(|| raw.first_meta_bg.get());
        ensure(
            first_meta_bg.is_none_or(|first| first <= desc_blocks),
            "bad first meta block group",
        )?;
        let flex_bits = if features.incompat(incompat::FLEX_BG) {
            raw.log_groups_per_flex
        } else {
            0
        };
        ensure(flex_bits < 32, "bad flex group size")?;
        let seed = if features.incompat(incompat::CSUM_SEED) {
            raw.checksum_seed.get()
        } else {
            crc32c(csum::START, &raw.uuid)
        };
        Ok(Layout {
            features,
            block_size,
            block_bits,
            blocks,
            first_data_block,
            blocks_per_group,
            groups,
            inodes,
            inodes_per_group,
            first_inode,
            inode_size,
            desc_size,
            desc_blocks,
            reserved_gdt_blocks,
            first_meta_bg,
            backup_groups: features
                .compat(compat::SPARSE_SUPER2)
                .then(|| raw.backup_bgs.map(|group| group.get())),
            flex_bits,
            seed,
            uuid: raw.uuid,
            journal_inode: if features.compat(compat::HAS_JOURNAL) {
                raw.journal_inum.get()
            } else {
                0
            },
            orphan_inode: if features.compat(compat::ORPHAN_FILE) {
                raw.orphan_file_inum.get()
            } else {
                0
            },
            hash_seed: raw.hash_seed.map(|word| word.get()),
            hash_version: raw.def_hash_version,
            // Without either flag they are the machine's `char`, which is unsigned in the kernel.
            hash_unsigned: raw.flags.get() & (FLAG_SIGNED_HASH | FLAG_UNSIGNED_HASH) != FLAG_SIGNED_HASH,
        })
    }

    /// Returns true if metadata has crc32c checksums.
    pub(crate) fn has_metadata_csum(&self) -> bool {
        self.features.ro_compat(ro_compat::METADATA_CSUM)
    }

    /// First block of a group.
    pub(crate) fn group_start(&self, group: u32) -> u64 {
        u64::from(self.first_data_block) + u64::from(group) * u64::from(self.blocks_per_group)
    }

    /// Length of a group in blocks.
    pub(crate) fn group_blocks(&self, group: u32) -> u32 {
        let left = self.blocks.saturating_sub(self.group_start(group));
        u32::try_from(left).unwrap_or(u32::MAX).min(self.blocks_per_group)
    }

    /// Returns the group of a block, or `None` if the block is before the first group or beyond the
    /// end of the volume.
    pub(crate) fn group_of_block(&self, block: u64) -> Option<u32> {
        let within = block.checked_sub(u64::from(self.first_data_block))?;
        if block >= self.blocks {
            return None;
        }
        u32::try_from(within.checked_div(u64::from(self.blocks_per_group))?).ok()
    }

    /// Returns the groups that a range of blocks extends over, or `None` if it is empty or not on
    /// the volume.
    pub(crate) fn groups_of(&self, blocks: &Range<u64>) -> Option<Range<u32>> {
        let last = blocks.end.checked_sub(1).filter(|last| blocks.start <= *last)?;
        Some(self.group_of_block(blocks.start)?..self.group_of_block(last)?.saturating_add(1))
    }

    /// Returns true if a run of blocks is on the volume, after the superblock's own block.
    pub(crate) fn contains(&self, start: u64, len: u32) -> bool {
        start > u64::from(self.first_data_block)
            && start
                .checked_add(u64::from(len))
                .is_some_and(|end| end <= self.blocks)
    }

    /// Returns true if a group has a copy of superblock and descriptors.
    pub(crate) fn has_super(&self, group: u32) -> bool {
        if let (1.., Some(groups)) = (group, self.backup_groups) {
            return groups.contains(&group);
        }
        if group <= 1 || !self.features.ro_compat(ro_compat::SPARSE_SUPER) {
            return true;
        }
        [3u64, 5, 7].iter().any(|&base| {
            let mut power = base;
            while power < u64::from(group) {
                power *= base;
            }
            power == u64::from(group)
        })
    }

    /// Returns the layout of the volume once it has `blocks` blocks, at least as many as it has.
    /// Blocks reserved for descriptors become descriptors as far as the new groups need them.
    pub(crate) fn grown(&self, blocks: u64) -> Checked<Layout> {
        let most = Corrupt("too many groups");
        ensure(blocks >= self.blocks, "a mounted volume cannot shrink")?;
        ensure(
            blocks <= u64::from(u32::MAX) || self.features.incompat(incompat::B64BIT),
            "block numbers have 32 bits",
        )?;
        let groups =
            (blocks - u64::from(self.first_data_block)).div_ceil(u64::from(self.blocks_per_group.max(1)));
        let groups = u32::try_from(groups).map_err(|_| most)?;
        let inodes = groups.checked_mul(self.inodes_per_group).ok_or(most)?;
        let desc_blocks = groups.div_ceil(self.descs_per_block().get());
        let reserved_gdt_blocks = match self.first_meta_bg {
            Some(_) => self.reserved_gdt_blocks,
            None => u16::try_from(desc_blocks - self.desc_blocks)
                .ok()
                .and_then(|more| self.reserved_gdt_blocks.checked_sub(more))
                .ok_or(NOT_RESERVED)?,
        };
        Ok(Layout {
            blocks,
            groups,
            inodes,
            desc_blocks,
            reserved_gdt_blocks,
            ..*self
        })
    }

    /// Number of descriptors per block.
    pub(crate) fn descs_per_block(&self) -> core::num::NonZero<u32> {
        super::divisor(self.block_size / u32::from(self.desc_size).max(1))
    }

    /// Returns the block that holds the descriptor of a group, and the offset in it.
    pub(crate) fn desc_location(&self, group: u32) -> (u64, usize) {
        let per_block = self.descs_per_block();
        let number = group / per_block;
        let block = match self.first_meta_bg {
            Some(first) if number >= first => {
                let first_group = number * per_block.get();
                self.group_start(first_group) + u64::from(self.has_super(first_group))
            }
            _ => u64::from(self.first_data_block) + 1 + u64::from(number),
        };
        (block, (group % per_block) as usize * usize::from(self.desc_size))
    }

    /// Returns the number of blocks at the start of a group that are taken by copies of the
    /// superblock and of descriptors, and by blocks reserved for more descriptors. The copy of the
    /// superblock comes first, then [`leading_descs`](Self::leading_descs) blocks of descriptors.
    pub(crate) fn leading_blocks(&self, group: u32) -> u32 {
        let reserved = match self.first_meta_bg {
            Some(first) if group / self.descs_per_block() >= first => 0,
            _ if self.has_super(group) => u32::from(self.reserved_gdt_blocks),
            _ => 0,
        };
        u32::from(self.has_super(group)) + self.leading_descs(group) + reserved
    }

    /// Returns the number of descriptor blocks at the start of a group, after the copy of the
    /// superblock if there is one.
    pub(crate) fn leading_descs(&self, group: u32) -> u32 {
        let per_block = self.descs_per_block();
        match self.first_meta_bg {
            Some(first) if group / per_block >= first => {
                // The descriptors of these groups are stored in the first, the second and the last
                // of them.
                let within = group % per_block;
                u32::from(within <= 1 || within == per_block.get() - 1)
            }
            Some(first) if self.has_super(group) => first,
            None if self.has_super(group) => self.desc_blocks,
            _ => 0,
        }
    }

    /// Returns the group of an inode and its index in the group, or `None` if the number is out of
    /// range.
    pub(crate) fn locate_inode(&self, ino: u32) -> Option<(u32, u32)> {
        if ino == 0 || ino > self.inodes {
            return None;
        }
        let each = self.inodes_per_group.max(1);
        Some(((ino - 1) / each, (ino - 1) % each))
    }

    /// Number of blocks of a group's inode table.
    pub(crate) fn inode_table_blocks(&self) -> u32 {
        let bytes = u64::from(self.inodes_per_group) * u64::from(self.inode_size);
        (bytes.saturating_add(u64::from(self.block_size) - 1) >> self.block_bits) as u32
    }
}

/// Computes the checksum of a superblock.
pub(crate) fn checksum(raw: &RawSuper) -> u32 {
    use zerocopy::IntoBytes;
    let bytes = raw.as_bytes();
    crc32c(csum::START, bytes.get(..SIZE - 4).unwrap_or(bytes))
}

/// Continues a volume's seed with an inode number and its generation: the initial value of the
/// checksums of the inode's metadata.
pub(crate) fn inode_seed(seed: u32, ino: u32, generation: u32) -> u32 {
    let both = (u64::from(generation) << 32) | u64::from(ino);
    crc32c(seed, &both.to_le_bytes())
}
