// SPDX-License-Identifier: GPL-2.0

//! The structures of a tree file other than tree nodes: the header, the region table and the space
//! maps.
//!
//! `docs/on-disk.md` describes the layout. As everywhere in the format, nothing read from disk is
//! trusted: a structure either passes all checks or is reported as [`Corrupt`].

pub(crate) use super::tree_layout::{HEADER_SIZE, REGION_SIZE};
use super::{
    csum::{crc32c, crc32c_with_hole},
    divisor, ensure,
    superblock::{compat, ro_compat, RawSuper},
    tree_layout::{
        FILE_VERSION, GOOD, MAP_ENTRY, MAP_FIXED, MAP_HEADER, MAP_MAGIC, REFCOUNT_MAGIC, RMAP_MAGIC, STALE,
        UNSETTLED,
    },
    Checked, Corrupt,
};
use core::num::NonZero;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The kind of records in the trees of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The reverse map.
    Rmap,
    /// The reference counts.
    Refcount,
}

impl Kind {
    /// The magic in the first eight bytes of the file.
    fn magic(self) -> [u8; 8] {
        match self {
            Kind::Rmap => RMAP_MAGIC,
            Kind::Refcount => REFCOUNT_MAGIC,
        }
    }

    /// The name of the file in the system directory.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Rmap => "rmap",
            Kind::Refcount => "refcount",
        }
    }

    /// Returns the initial value of the checksums in this file, given the volume's seed. It differs
    /// between the two files, so that a block of one is never accepted as part of the other.
    pub(crate) fn seed(self, volume: u32) -> u32 {
        match self {
            Kind::Rmap => volume,
            Kind::Refcount => crc32c(volume, &self.magic()),
        }
    }
}

/// First block of the region table within the file.
pub(crate) const TABLE: u32 = 2;
/// Index of the space map within its chunk, in blocks.
const MAP_AT: u32 = 1;

/// Superblock fields as of the last write by this module.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Stamp {
    mtime: U64,
    wtime: U64,
    lastcheck: U64,
    kbytes_written: U64,
    free_blocks: U64,
    free_inodes: U32,
    mnt_count: U32,
    zero: [U32; 4],
}

impl Stamp {
    /// Returns the stamp of a superblock.
    pub(crate) fn of(raw: &RawSuper) -> Stamp {
        let wide = |low: U32, high: u32| U64::new(u64::from(low.get()) | (u64::from(high) << 32));
        Stamp {
            mtime: wide(raw.mtime, raw.mtime_hi.into()),
            wtime: wide(raw.wtime, raw.wtime_hi.into()),
            lastcheck: wide(raw.lastcheck, raw.lastcheck_hi.into()),
            kbytes_written: raw.kbytes_written,
            free_blocks: wide(raw.free_blocks_count_lo, raw.free_blocks_count_hi.get()),
            free_inodes: raw.free_inodes_count,
            mnt_count: U32::new(raw.mnt_count.get().into()),
            zero: Default::default(),
        }
    }

    /// Returns true if no other driver can have written to the volume since its tree file received
    /// this stamp.
    ///
    /// While a volume is `in_use`, some fields are not kept up to date, and stock ext4 changes none
    /// of the others if it mounts read-only, replays the journal and frees orphans. It then clears
    /// `ORPHAN_PRESENT`, which rext4 has set, and `needs_recovery`.
    pub(crate) fn holds(&self, left: &Left, in_use: bool) -> bool {
        let now = &left.stamp;
        if !in_use {
            return self == now;
        }
        left.is_in_use
            && (self.mtime, self.wtime, self.lastcheck, self.mnt_count)
                == (now.mtime, now.wtime, now.lastcheck, now.mnt_count)
    }
}

/// The state of a superblock before the mount.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    /// Its stamp.
    pub(crate) stamp: Stamp,
    /// No driver has recovered the volume since a writable mount ended without an unmount: the
    /// superblock has the feature `ORPHAN_PRESENT`, or, on a volume without an orphan file, the
    /// journal has not been replayed.
    pub(crate) is_in_use: bool,
}

impl Left {
    /// Returns the state of a superblock. `replayed`: the journal was replayed since the volume was
    /// in use.
    pub(crate) fn of(raw: &RawSuper, replayed: bool) -> Left {
        let has_orphan_file = raw.feature_compat.get() & compat::ORPHAN_FILE != 0;
        Left {
            stamp: Stamp::of(raw),
            is_in_use: match has_orphan_file {
                true => raw.feature_ro_compat.get() & ro_compat::ORPHAN_PRESENT != 0,
                false => replayed,
            },
        }
    }
}

/// The header on disk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    checksum: U32,
    version: U32,
    uuid: [u8; 16],
    block_size: U32,
    first_block: U32,
    region_blocks: U32,
    regions: U32,
    blocks: U32,
    table: U32,
    generation: U32,
    state: U32,
    stamp: Stamp,
    zero: [U32; 32],
}

const _: () = assert!(core::mem::size_of::<RawHeader>() == HEADER_SIZE);

/// The properties that a tree file of this volume must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    /// The initial value of checksums.
    pub(crate) seed: u32,
    pub(crate) uuid: [u8; 16],
    /// In bytes.
    pub(crate) block_size: u32,
    pub(crate) first_block: u32,
    pub(crate) region_blocks: u32,
    pub(crate) regions: u32,
}

impl Frame {
    /// Returns the frame of the given kind of file on the same volume. `self` must be that of the
    /// reverse map.
    pub(crate) fn of_kind(&self, kind: Kind) -> Frame {
        Frame {
            kind,
            seed: kind.seed(self.seed),
            ..*self
        }
    }

    /// Number of region table entries per block.
    pub(crate) fn regions_per_block(&self) -> NonZero<u32> {
        divisor(self.block_size / REGION_SIZE as u32)
    }

    /// Number of blocks of the region table.
    pub(crate) fn table_blocks(&self) -> u32 {
        let each = self.regions_per_block();
        self.regions.saturating_add(each.get() - 1) / each
    }

    /// Number of blocks per chunk.
    pub(crate) fn chunk(&self) -> NonZero<u32> {
        divisor(self.block_size.saturating_sub(MAP_HEADER as u32) / MAP_ENTRY as u32)
    }

    /// Returns the block of the space map that contains the entry for `block`, and the index of
    /// that entry.
    pub(crate) fn map_of(&self, block: u32) -> (u32, u32) {
        let chunk = self.chunk();
        let entry = block % chunk;
        (block - entry + MAP_AT, entry)
    }

    /// Returns true if a block of the file can never hold a node.
    pub(crate) fn is_fixed(&self, block: u32) -> bool {
        block < TABLE + self.table_blocks() || self.map_of(block).0 == block
    }

    /// Returns the block within the file and the byte offset of a region's entry.
    pub(crate) fn region_place(&self, region: u32) -> (u32, usize) {
        let each = self.regions_per_block();
        (TABLE + region / each, (region % each) as usize * REGION_SIZE)
    }
}

/// The fields of a header that are not in the frame.
#[derive(Clone, Copy)]
pub(crate) struct Header {
    /// Number of blocks of the file in use.
    pub(crate) blocks: u32,
    /// The last generation assigned to a tree.
    pub(crate) generation: u32,
    /// Set while the file is in use by a mount, and still set after a crash.
    pub(crate) in_use: bool,
    /// The superblock fields that the trees correspond to.
    pub(crate) stamp: Stamp,
}

impl Header {
    /// Reads and checks a header. `file_blocks` is the length of the file.
    pub(crate) fn read(frame: &Frame, file_blocks: u32, bytes: &[u8]) -> Checked<Header> {
        let (raw, _) = RawHeader::ref_from_prefix(bytes).map_err(|_| Corrupt("tree header cut short"))?;
        ensure(raw.magic == frame.kind.magic(), "bad tree file magic")?;
        let body = bytes.get(..HEADER_SIZE).unwrap_or(&[]);
        let sum = crc32c_with_hole(frame.seed, body, 8, 4);
        ensure(raw.checksum.get() == sum, "tree header checksum mismatch")?;
        ensure(raw.version.get() == FILE_VERSION, "tree file of another version")?;
        ensure(raw.uuid == frame.uuid, "tree file of another volume")?;
        let same = raw.block_size.get() == frame.block_size
            && raw.first_block.get() == frame.first_block
            && raw.region_blocks.get() == frame.region_blocks
            && raw.regions.get() == frame.regions
            && raw.table.get() == TABLE;
        ensure(same, "tree file of a volume of another size")?;
        let blocks = raw.blocks.get();
        ensure(
            blocks > TABLE + frame.table_blocks() && blocks <= file_blocks,
            "tree file cut short",
        )?;
        ensure(raw.state.get() <= 1, "bad tree file state")?;
        Ok(Header {
            blocks,
            generation: raw.generation.get(),
            in_use: raw.state.get() == 1,
            stamp: raw.stamp,
        })
    }

    /// Writes a header with its checksum. Fails if the buffer is too short.
    pub(crate) fn store(&self, frame: &Frame, bytes: &mut [u8]) -> Checked<()> {
        let raw = RawHeader {
            magic: frame.kind.magic(),
            checksum: U32::new(0),
            version: U32::new(FILE_VERSION),
            uuid: frame.uuid,
            block_size: U32::new(frame.block_size),
            first_block: U32::new(frame.first_block),
            region_blocks: U32::new(frame.region_blocks),
            regions: U32::new(frame.regions),
            blocks: U32::new(self.blocks),
            table: U32::new(TABLE),
            generation: U32::new(self.generation),
            state: U32::new(self.in_use.into()),
            stamp: self.stamp,
            zero: Default::default(),
        };
        put(frame, bytes, raw.as_bytes(), 8)
    }
}

/// Returns true if these bytes start with the magic of this kind of file.
pub(crate) fn has_magic(kind: Kind, bytes: &[u8]) -> bool {
    bytes.starts_with(&kind.magic())
}

/// Copies a structure to the start of `bytes`, and stores its checksum at `hole`.
fn put(frame: &Frame, bytes: &mut [u8], raw: &[u8], hole: usize) -> Checked<()> {
    let room = bytes
        .get_mut(..raw.len())
        .ok_or(Corrupt("tree file block cut short"))?;
    room.copy_from_slice(raw);
    let sum = crc32c_with_hole(frame.seed, room, hole, 4);
    if let Some(field) = room.get_mut(hole..hole + 4) {
        field.copy_from_slice(&sum.to_le_bytes());
    }
    Ok(())
}

/// A region table entry on disk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawRegion {
    checksum: U32,
    region: U32,
    state: U32,
    generation: U32,
    root: U32,
    level: U16,
    reap: U16,
    zero: U64,
}

const _: () = assert!(core::mem::size_of::<RawRegion>() == REGION_SIZE);

/// The state of a region's tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Region {
    /// The tree is correct; otherwise it is stale and must be rebuilt.
    pub(crate) good: bool,
    /// The tree is correct, but blocks of the region that lost their last owner while it was stale
    /// may still be allocated.
    pub(crate) unsettled: bool,
    /// The generation of the tree.
    pub(crate) generation: u32,
    /// The block of the root.
    pub(crate) root: u32,
    /// The level of the root.
    pub(crate) level: u16,
    /// Blocks of other generations may exist and have to be freed.
    pub(crate) reap: bool,
}

impl Region {
    /// Reads and checks the entry of a region. `blocks` is the number of blocks of the file in use.
    pub(crate) fn read(frame: &Frame, blocks: u32, region: u32, bytes: &[u8]) -> Checked<Region> {
        let (raw, _) = RawRegion::ref_from_prefix(bytes).map_err(|_| Corrupt("region entry cut short"))?;
        let sum = crc32c_with_hole(frame.seed, bytes.get(..REGION_SIZE).unwrap_or(&[]), 0, 4);
        ensure(raw.checksum.get() == sum, "region entry checksum mismatch")?;
        ensure(raw.region.get() == region, "region entry of another region")?;
        let (good, unsettled) = match raw.state.get() {
            STALE => (false, false),
            GOOD => (true, false),
            UNSETTLED => (true, true),
            _ => return Err(Corrupt("bad region state")),
        };
        let root = raw.root.get();
        let level = raw.level.get();
        ensure(
            !good || root < blocks && !frame.is_fixed(root),
            "region's root is no node",
        )?;
        Ok(Region {
            good,
            unsettled,
            generation: raw.generation.get(),
            root,
            level,
            reap: raw.reap.get() != 0,
        })
    }

    /// Writes the entry of a region with its checksum.
    pub(crate) fn store(&self, frame: &Frame, region: u32, bytes: &mut [u8]) -> Checked<()> {
        let raw = RawRegion {
            checksum: U32::new(0),
            region: U32::new(region),
            state: U32::new(match (self.good, self.unsettled) {
                (false, _) => STALE,
                (true, false) => GOOD,
                (true, true) => UNSETTLED,
            }),
            generation: U32::new(self.generation),
            root: U32::new(self.root),
            level: U16::new(self.level),
            reap: U16::new(self.reap.into()),
            zero: U64::new(0),
        };
        put(frame, bytes, raw.as_bytes(), 0)
    }
}

/// The use of a block of a tree file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Free.
    Free,
    /// Header, region table or space map.
    Fixed,
    /// A node of a region's tree of this generation.
    Node {
        /// The region.
        region: u32,
        /// The generation of the tree.
        generation: u32,
    },
}

/// Checks a space map read from the given block of the file.
pub(crate) fn check_map(frame: &Frame, block: u32, bytes: &[u8]) -> Checked<()> {
    ensure(bytes.len() >= frame.block_size as usize, "space map cut short")?;
    let word = |at: usize| load(bytes, at).unwrap_or(0);
    ensure(word(0) == MAP_MAGIC, "bad space map magic")?;
    ensure(word(8) == block, "space map of another block")?;
    let sum = crc32c_with_hole(frame.seed, bytes, 4, 4);
    ensure(word(4) == sum, "space map checksum mismatch")
}

/// Initializes the space map at a block of the file, with checksum: all blocks of its chunk are
/// free, except fixed ones.
pub(crate) fn start_map(frame: &Frame, block: u32, bytes: &mut [u8]) {
    bytes.fill(0);
    for (at, word) in [(0, MAP_MAGIC), (8, block)] {
        save(bytes, at, word);
    }
    let first = block - MAP_AT;
    for entry in 0..frame.chunk().get() {
        if frame.is_fixed(first + entry) {
            set_use(bytes, entry, Use::Fixed);
        }
    }
    seal_map(frame, bytes);
}

/// Updates the checksum of a space map.
pub(crate) fn seal_map(frame: &Frame, bytes: &mut [u8]) {
    let sum = crc32c_with_hole(frame.seed, bytes, 4, 4);
    save(bytes, 4, sum);
}

/// Returns the use of a block according to a space map that has been checked. Entries beyond its
/// end count as fixed.
pub(crate) fn use_of(bytes: &[u8], entry: u32) -> Use {
    let at = MAP_HEADER + entry as usize * MAP_ENTRY;
    match (load(bytes, at), load(bytes, at + 4)) {
        (Some(0), Some(_)) => Use::Free,
        (Some(MAP_FIXED), _) | (None, _) | (_, None) => Use::Fixed,
        (Some(number), Some(generation)) => Use::Node {
            region: number - 1,
            generation,
        },
    }
}

/// Changes an entry of a space map. The checksum has to be updated afterwards.
pub(crate) fn set_use(bytes: &mut [u8], entry: u32, what: Use) {
    let (number, generation) = match what {
        Use::Free => (0, 0),
        Use::Fixed => (MAP_FIXED, 0),
        Use::Node { region, generation } => (region.saturating_add(1), generation),
    };
    let at = MAP_HEADER + entry as usize * MAP_ENTRY;
    save(bytes, at, number);
    save(bytes, at + 4, generation);
}

fn load(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(word.try_into().ok()?))
}

fn save(bytes: &mut [u8], at: usize, word: u32) {
    if let Some(place) = bytes.get_mut(at..at.saturating_add(4)) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}
