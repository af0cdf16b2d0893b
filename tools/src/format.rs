// SPDX-License-Identifier: GPL-2.0

//! The structures of `docs/on-disk.md` as bytes, and the superblock fields that they depend on.
//!
//! Reading is total: a field beyond the end of its bytes reads as zero, and the reader of a
//! structure checks it. Checks that need only the structure itself are here, others are in
//! [`crate::survey`].

use crate::tree_layout::{
    FILE_VERSION, GOOD, MAP_HEADER, MAP_MAGIC, REFCOUNT_MAGIC, RMAP_MAGIC, STALE, UNSETTLED,
};
pub(crate) use crate::tree_layout::{HEADER_SIZE, MAP_ENTRY, MAP_FIXED as FIXED, NODE_HEADER, REGION_SIZE};
use anyhow::{ensure, Result};

/// Size of the superblock in bytes, and its offset on the volume.
pub const SUPER_SIZE: usize = 1024;

/// The two kinds of trees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Tree {
    /// The reverse map: owners of blocks
    #[default]
    Rmap,
    /// The reference counts of shared blocks
    Refcount,
}

impl Tree {
    /// Path of the file on the volume.
    pub fn path(self) -> &'static str {
        match self {
            Tree::Rmap => "/.rext4/rmap",
            Tree::Refcount => "/.rext4/refcount",
        }
    }

    fn magic(self) -> &'static [u8; 8] {
        match self {
            Tree::Rmap => &RMAP_MAGIC,
            Tree::Refcount => &REFCOUNT_MAGIC,
        }
    }
}

const COMPAT_ORPHAN_FILE: u32 = 0x1000;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_FLEX_BG: u32 = 0x200;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
const RO_COMPAT_SHARED_BLOCKS: u32 = 0x4000;
const RO_COMPAT_ORPHAN_PRESENT: u32 = 0x10000;

/// Continues a raw crc32c, which unlike the usual one is not inverted at either end.
pub fn crc(seed: u32, data: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, data)
}

/// Continues a raw crc32c over `data`, with the four bytes at `hole` taken as zero.
fn crc_with_hole(seed: u32, data: &[u8], hole: usize) -> u32 {
    let sum = crc(seed, data.get(..hole).unwrap_or(data));
    let sum = crc(sum, &[0; 4]);
    crc(sum, data.get(hole + 4..).unwrap_or(&[]))
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk::<N>())
        .copied()
        .unwrap_or([0; N])
}

/// Reads a u16.
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes_at(bytes, at))
}

/// Reads a u32.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(bytes, at))
}

/// Reads a u64.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(bytes, at))
}

/// Writes bytes; does nothing if they do not fit.
pub fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// Stores the checksum of `bytes` at `hole`.
pub fn seal(seed: u32, bytes: &mut [u8], hole: usize) {
    let sum = crc_with_hole(seed, bytes, hole);
    put(bytes, hole, &sum.to_le_bytes());
}

/// Returns true if the checksum at `hole` is right.
pub fn is_sealed(seed: u32, bytes: &[u8], hole: usize) -> bool {
    u32_at(bytes, hole) == crc_with_hole(seed, bytes, hole)
}

/// The superblock fields that every writer changes, as repeated in the header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Stamp {
    pub mtime: u64,
    pub wtime: u64,
    pub lastcheck: u64,
    pub kbytes_written: u64,
    pub free_blocks: u64,
    pub free_inodes: u32,
    pub mnt_count: u32,
}

impl Stamp {
    fn load(bytes: &[u8]) -> Stamp {
        Stamp {
            mtime: u64_at(bytes, 0),
            wtime: u64_at(bytes, 8),
            lastcheck: u64_at(bytes, 16),
            kbytes_written: u64_at(bytes, 24),
            free_blocks: u64_at(bytes, 32),
            free_inodes: u32_at(bytes, 40),
            mnt_count: u32_at(bytes, 44),
        }
    }

    #[cfg(test)]
    pub fn store(&self, bytes: &mut [u8]) {
        let wide = [
            self.mtime,
            self.wtime,
            self.lastcheck,
            self.kbytes_written,
            self.free_blocks,
        ];
        for (index, value) in wide.iter().enumerate() {
            put(bytes, index * 8, &value.to_le_bytes());
        }
        put(bytes, 40, &self.free_inodes.to_le_bytes());
        put(bytes, 44, &self.mnt_count.to_le_bytes());
    }

    /// Returns the first field that shows that another implementation has written to the volume
    /// since this stamp: its name, old and new value. While the volume is in use, only fields are
    /// compared that rext4 does not change then.
    pub fn differs(&self, now: &Stamp, in_use: bool) -> Option<(&'static str, u64, u64)> {
        let always = [
            ("s_mtime", self.mtime, now.mtime),
            ("s_wtime", self.wtime, now.wtime),
            ("s_lastcheck", self.lastcheck, now.lastcheck),
            ("s_mnt_count", self.mnt_count.into(), now.mnt_count.into()),
        ];
        let closed = [
            ("s_kbytes_written", self.kbytes_written, now.kbytes_written),
            ("s_free_blocks_count", self.free_blocks, now.free_blocks),
            (
                "s_free_inodes_count",
                self.free_inodes.into(),
                now.free_inodes.into(),
            ),
        ];
        let closed = if in_use { &[] } else { closed.as_slice() };
        always
            .iter()
            .chain(closed)
            .find(|(_, then, now)| then != now)
            .copied()
    }
}

/// The parameters of a volume that a tree file depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// Which of the two files.
    pub tree: Tree,
    /// Block size in bytes.
    pub block_size: u32,
    /// The first block of region 0.
    pub first: u32,
    /// Blocks of the volume.
    pub blocks: u64,
    /// Blocks per region.
    pub region_blocks: u32,
    /// UUID of the volume.
    pub uuid: [u8; 16],
    /// Initial value of checksums in the file.
    pub seed: u32,
    /// The stamp from the current superblock.
    pub stamp: Stamp,
    /// The journal has to be replayed.
    pub needs_recovery: bool,
    /// The volume may have shared blocks.
    pub shared_blocks: bool,
    /// A mount uses the volume, or used it when it crashed, and recovery has not run since. Without
    /// an orphan file the journal that has to be replayed tells.
    pub orphan_present: bool,
}

impl Volume {
    /// Reads a superblock.
    pub fn load(bytes: &[u8]) -> Result<Volume> {
        ensure!(bytes.len() >= SUPER_SIZE, "the superblock is truncated");
        ensure!(
            u16_at(bytes, 56) == 0xef53,
            "no ext4 volume: the superblock's magic is missing"
        );
        let incompat = u32_at(bytes, 96);
        let ro_compat = u32_at(bytes, 100);
        let has = |flag| incompat & flag != 0;
        if ro_compat & RO_COMPAT_METADATA_CSUM != 0 {
            let sum = crc(!0, bytes.get(..1020).unwrap_or(&[]));
            ensure!(
                sum == u32_at(bytes, 1020),
                "the superblock's checksum does not match"
            );
        }
        let log = u32_at(bytes, 24);
        ensure!(log <= 6, "the superblock's block size is beyond 64 KiB");
        let high = |at| {
            if has(INCOMPAT_64BIT) {
                u64::from(u32_at(bytes, at)) << 32
            } else {
                0
            }
        };
        // The upper eight bits of times are stored separately.
        let time = |low, high: usize| {
            u64::from(u32_at(bytes, low)) | (u64::from(bytes.get(high).copied().unwrap_or(0)) << 32)
        };
        let mut uuid = [0; 16];
        uuid.copy_from_slice(bytes.get(104..120).unwrap_or(&[0; 16]));
        let flex = if has(INCOMPAT_FLEX_BG) {
            bytes.get(0x174).copied().unwrap_or(0)
        } else {
            0
        };
        let groups = match flex {
            0 => 16,
            bits => 1u32.checked_shl(bits.into()).unwrap_or(u32::MAX),
        };
        let volume = Volume {
            tree: Tree::Rmap,
            block_size: 1024 << log,
            first: u32_at(bytes, 20),
            blocks: u64::from(u32_at(bytes, 4)) | high(0x150),
            region_blocks: u32_at(bytes, 32).saturating_mul(groups).min(1 << 28),
            uuid,
            seed: if has(INCOMPAT_CSUM_SEED) {
                u32_at(bytes, 0x270)
            } else {
                crc(!0, &uuid)
            },
            stamp: Stamp {
                mtime: time(44, 0x275),
                wtime: time(48, 0x274),
                lastcheck: time(64, 0x277),
                kbytes_written: u64_at(bytes, 0x178),
                free_blocks: u64::from(u32_at(bytes, 12)) | (u64::from(u32_at(bytes, 0x158)) << 32),
                free_inodes: u32_at(bytes, 16),
                mnt_count: u16_at(bytes, 52).into(),
            },
            needs_recovery: has(INCOMPAT_RECOVER),
            shared_blocks: ro_compat & RO_COMPAT_SHARED_BLOCKS != 0,
            orphan_present: match u32_at(bytes, 92) & COMPAT_ORPHAN_FILE {
                0 => has(INCOMPAT_RECOVER),
                _ => ro_compat & RO_COMPAT_ORPHAN_PRESENT != 0,
            },
        };
        ensure!(volume.region_blocks > 0, "the superblock has groups of no blocks");
        ensure!(
            volume.blocks > u64::from(volume.first),
            "the superblock has no blocks"
        );
        ensure!(
            volume.blocks.div_ceil(u64::from(volume.region_blocks)) < u64::from(u32::MAX),
            "the superblock has too many blocks"
        );
        Ok(volume)
    }

    /// Returns the parameters for the given tree file.
    pub fn with(mut self, tree: Tree) -> Volume {
        if (self.tree, tree) == (Tree::Rmap, Tree::Refcount) {
            self.seed = crc(self.seed, tree.magic());
            self.tree = tree;
        }
        self
    }

    /// Number of regions.
    pub fn regions(&self) -> u32 {
        let blocks = self.blocks - u64::from(self.first);
        u32::try_from(blocks.div_ceil(u64::from(self.region_blocks))).unwrap_or(u32::MAX)
    }

    /// First block of a region.
    pub fn region_start(&self, region: u32) -> u64 {
        u64::from(self.first) + u64::from(region) * u64::from(self.region_blocks)
    }

    /// Length of a region; the last one may be shorter.
    pub fn region_len(&self, region: u32) -> u32 {
        let left = self.blocks.saturating_sub(self.region_start(region));
        u32::try_from(left).unwrap_or(u32::MAX).min(self.region_blocks)
    }

    /// Blocks of the tree file per space map.
    pub fn chunk(&self) -> u32 {
        (self.block_size - NODE_HEADER as u32) / MAP_ENTRY as u32
    }

    /// Region table entries per block.
    pub fn regions_per_block(&self) -> u32 {
        self.block_size / REGION_SIZE as u32
    }

    /// Blocks of the region table.
    pub fn table_blocks(&self) -> u32 {
        self.regions().div_ceil(self.regions_per_block())
    }
}

/// The header of a tree file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Blocks of the file in use.
    pub blocks: u32,
    /// First block of the region table in the file.
    pub table: u32,
    /// Last generation assigned to a tree.
    pub generation: u32,
    /// The volume is mounted, or was when the machine crashed.
    pub in_use: bool,
    /// The stamp.
    pub stamp: Stamp,
}

impl Header {
    /// Reads and checks the header of a volume's tree file.
    pub fn load(volume: &Volume, bytes: &[u8]) -> Result<Header> {
        let (head, rest) = bytes.split_at_checked(HEADER_SIZE).unwrap_or((&[], bytes));
        ensure!(head.starts_with(volume.tree.magic()), "bad magic");
        ensure!(is_sealed(volume.seed, head, 8), "checksum mismatch");
        let version = u32_at(head, 12);
        ensure!(version == FILE_VERSION, "unknown version {version}");
        ensure!(
            head.get(16..32) == Some(&volume.uuid),
            "it belongs to another volume"
        );
        for (at, what, is) in [
            (32, "block size", volume.block_size),
            (36, "first block", volume.first),
            (40, "blocks of a region", volume.region_blocks),
            (44, "regions", volume.regions()),
        ] {
            let said = u32_at(head, at);
            ensure!(said == is, "{what}: it has {said}, the volume has {is}");
        }
        let state = u32_at(head, 60);
        ensure!(state <= 1, "unknown state {state}");
        let zero = head
            .get(112..)
            .unwrap_or(&[])
            .iter()
            .chain(rest)
            .all(|byte| *byte == 0);
        ensure!(zero, "reserved bytes are not zero");
        Ok(Header {
            blocks: u32_at(head, 48),
            table: u32_at(head, 52),
            generation: u32_at(head, 56),
            in_use: state == 1,
            stamp: Stamp::load(head.get(64..).unwrap_or(&[])),
        })
    }

    #[cfg(test)]
    pub fn store(&self, volume: &Volume, bytes: &mut [u8]) {
        bytes.fill(0);
        put(bytes, 0, volume.tree.magic());
        put(bytes, 16, &volume.uuid);
        let words = [
            (12, FILE_VERSION),
            (32, volume.block_size),
            (36, volume.first),
            (40, volume.region_blocks),
            (44, volume.regions()),
            (48, self.blocks),
            (52, self.table),
            (56, self.generation),
            (60, u32::from(self.in_use)),
        ];
        for (at, word) in words {
            put(bytes, at, &word.to_le_bytes());
        }
        self.stamp.store(&mut bytes[64..112]);
        seal(volume.seed, &mut bytes[..HEADER_SIZE], 8);
    }
}

/// An entry of the region table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The tree is good; otherwise it is stale.
    pub good: bool,
    /// Blocks that lost their last owner while the tree was stale may still be in use.
    pub unsettled: bool,
    /// Generation of the tree.
    pub generation: u32,
    /// Block of the root node in the file.
    pub root: u32,
    /// Level of the root, 0 for a leaf.
    pub level: u16,
    /// Blocks of other generations may exist.
    pub reap: bool,
}

impl Region {
    /// Reads and checks the entry of a region.
    pub fn load(volume: &Volume, region: u32, bytes: &[u8]) -> Result<Region> {
        ensure!(is_sealed(volume.seed, bytes, 0), "checksum mismatch");
        let said = u32_at(bytes, 4);
        ensure!(said == region, "it is the entry of region {said}");
        let state = u32_at(bytes, 8);
        ensure!(state <= UNSETTLED, "unknown state {state}");
        let reap = u16_at(bytes, 22);
        ensure!(reap <= 1, "unknown reap flag {reap}");
        ensure!(u64_at(bytes, 24) == 0, "reserved bytes are not zero");
        Ok(Region {
            good: state != STALE,
            unsettled: state == UNSETTLED,
            generation: u32_at(bytes, 12),
            root: u32_at(bytes, 16),
            level: u16_at(bytes, 20),
            reap: reap == 1,
        })
    }

    /// Writes the entry with its checksum.
    pub fn store(&self, volume: &Volume, region: u32, bytes: &mut [u8]) {
        bytes.fill(0);
        put(bytes, 4, &region.to_le_bytes());
        let state = match (self.good, self.unsettled) {
            (false, _) => STALE,
            (true, false) => GOOD,
            (true, true) => UNSETTLED,
        };
        put(bytes, 8, &state.to_le_bytes());
        put(bytes, 12, &self.generation.to_le_bytes());
        put(bytes, 16, &self.root.to_le_bytes());
        put(bytes, 20, &self.level.to_le_bytes());
        put(bytes, 22, &u16::from(self.reap).to_le_bytes());
        seal(volume.seed, bytes, 0);
    }
}

/// Checks a space map read from a block of the file.
pub fn check_map(volume: &Volume, block: u32, bytes: &[u8]) -> Result<()> {
    ensure!(u32_at(bytes, 0) == MAP_MAGIC, "bad magic");
    ensure!(is_sealed(volume.seed, bytes, 4), "checksum mismatch");
    let said = u32_at(bytes, 8);
    ensure!(said == block, "it is the map of block {said}");
    ensure!(bytes.get(12..32) == Some(&[0; 20]), "reserved bytes are not zero");
    Ok(())
}

/// Returns a space map entry: region plus one and generation; or zero; or [`FIXED`].
pub fn map_entry(bytes: &[u8], index: usize) -> (u32, u32) {
    let at = MAP_HEADER + index * MAP_ENTRY;
    (u32_at(bytes, at), u32_at(bytes, at + 4))
}

/// Initializes a space map.
#[cfg(test)]
pub fn start_map(bytes: &mut [u8], block: u32) {
    bytes.fill(0);
    put(bytes, 0, &MAP_MAGIC.to_le_bytes());
    put(bytes, 8, &block.to_le_bytes());
}
