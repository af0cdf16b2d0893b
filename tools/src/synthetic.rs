// SPDX-License-Identifier: GPL-2.0

//! A tree file in memory, for tests: header, space maps, region table, and a tree for each of its
//! three regions.
//!
//! Region 0 has a tree of two levels, region 1 a single leaf, region 2 an empty one. Nodes hold few
//! records and are scattered over the file, so that two space maps and all siblings are involved.

use crate::{
    format::{
        put, seal, start_map, Header, Region, Stamp, Tree, Volume, FIXED, MAP_ENTRY, NODE_HEADER, REGION_SIZE,
    },
    image::TreeFile,
    node::{summary, Entry, Kind, Node, Record},
};
use anyhow::{Context, Result};

/// Blocks of the file in use, and the space maps among them.
const BLOCKS: u32 = 200;
const MAPS: [u32; 2] = [1, 125];
/// First block of the region table.
pub const TABLE: u32 = 2;
/// Generation of all trees.
pub const GENERATION: u32 = 7;
/// Records per leaf.
const PER_LEAF: usize = 10;

/// The volume that the file belongs to.
pub fn volume() -> Volume {
    Volume {
        tree: Tree::Rmap,
        block_size: 1024,
        first: 1,
        blocks: 20001,
        region_blocks: 8192,
        uuid: *b"an ext4 volume's",
        seed: 0x1234_5678,
        stamp: Stamp {
            mtime: 1,
            wtime: 2,
            lastcheck: 3,
            kbytes_written: 4,
            free_blocks: 5,
            free_inodes: 6,
            mnt_count: 7,
        },
        needs_recovery: false,
        shared_blocks: false,
        orphan_present: true,
    }
}

/// The blocks of a file; one more than are in use.
#[derive(Clone, PartialEq, Eq)]
pub struct Memory(pub Vec<Vec<u8>>);

impl TreeFile for Memory {
    fn blocks(&self) -> u32 {
        self.0.len() as u32
    }

    fn physical(&self, block: u32) -> Option<u64> {
        (block < self.blocks()).then_some(5000 + u64::from(block))
    }

    fn read(&self, block: u32) -> Result<Vec<u8>> {
        self.0.get(block as usize).cloned().context("no such block")
    }

    fn write(&mut self, block: u32, bytes: &[u8]) -> Result<()> {
        *self.0.get_mut(block as usize).context("no such block")? = bytes.to_vec();
        Ok(())
    }
}

/// Returns a data record.
pub fn data(start: u32, len: u32, owner: u32, offset: u32) -> Record {
    Record {
        start,
        len,
        kind: Kind::Data,
        unwritten: false,
        owner,
        offset,
    }
}

/// Returns the records of each region.
pub fn records() -> [Vec<Record>; 3] {
    let mut first = Vec::new();
    for index in 0..47 {
        let mut record = data(100 + index * 20, 10, 12 + index % 5, index * 10);
        match index % 9 {
            3 => record.unwritten = true,
            5 => (record.kind, record.offset) = (Kind::Mapping, 0),
            7 => (record.kind, record.offset) = (Kind::Xattr, 0),
            _ => (),
        }
        first.push(record);
    }
    let second = vec![data(0, 5, 20, 0), data(5, 5, 21, 5), data(50, 1, 20, 9)];
    [first, second, Vec::new()]
}

/// Returns the output that [`crate::dump`] has to print.
pub fn text() -> String {
    text_of(&volume())
}

/// Returns that output for another volume.
pub fn text_of(volume: &Volume) -> String {
    let mut text = String::new();
    for (region, records) in (0u32..).zip(records()) {
        for record in records {
            let start = volume.region_start(region) + u64::from(record.start);
            let kind = record.kind_name();
            text += &format!(
                "{start} {} {kind} {} {}\n",
                record.len, record.owner, record.offset
            );
        }
    }
    text
}

/// Returns the file.
pub fn file() -> Memory {
    file_of(&volume())
}

/// Returns a file for another volume, which must have the same block size and three regions at
/// least as long.
pub fn file_of(volume: &Volume) -> Memory {
    assert_eq!(volume.regions(), 3);
    file_with(volume, &records())
}

/// Returns a file with the given records for each region; a tree has at most two levels.
pub fn file_with(volume: &Volume, records: &[Vec<Record>]) -> Memory {
    assert_eq!(
        (volume.block_size, volume.regions()),
        (1024, records.len() as u32)
    );
    let size = volume.block_size as usize;
    let mut file = Memory(vec![vec![0; size]; BLOCKS as usize + 1]);
    for map in MAPS {
        start_map(&mut file.0[map as usize], map);
    }
    for block in [0, MAPS[0], MAPS[1], TABLE] {
        give_on(volume, &mut file, block, FIXED, 0);
    }
    let mut next = TABLE;
    let mut alloc = move || loop {
        next = (next + 37) % BLOCKS;
        if next > TABLE && !MAPS.contains(&next) {
            return next;
        }
    };
    let mut table = vec![0; size];
    for (region, records) in (0u32..).zip(records) {
        let (root, level) = tree(volume, &mut file, region, records, &mut alloc);
        let entry = Region {
            good: true,
            unsettled: false,
            generation: GENERATION,
            root,
            level,
            reap: false,
        };
        let at = region as usize * REGION_SIZE;
        entry.store(volume, region, &mut table[at..at + REGION_SIZE]);
    }
    file.0[TABLE as usize] = table;
    let header = Header {
        blocks: BLOCKS,
        table: TABLE,
        generation: GENERATION,
        in_use: false,
        stamp: volume.stamp,
    };
    header.store(volume, &mut file.0[0]);
    file
}

/// Changes the space map entry of a block.
pub fn give(file: &mut Memory, block: u32, owner: u32, generation: u32) {
    give_on(&volume(), file, block, owner, generation);
}

fn give_on(volume: &Volume, file: &mut Memory, block: u32, owner: u32, generation: u32) {
    let map = block / volume.chunk() * volume.chunk() + 1;
    let at = NODE_HEADER + (block % volume.chunk()) as usize * MAP_ENTRY;
    let bytes = &mut file.0[map as usize];
    put(bytes, at, &owner.to_le_bytes());
    put(bytes, at + 4, &generation.to_le_bytes());
    seal(volume.seed, bytes, 4);
}

/// Builds a tree bottom-up; returns the block and level of its root.
fn tree(
    volume: &Volume,
    file: &mut Memory,
    region: u32,
    records: &[Record],
    alloc: &mut impl FnMut() -> u32,
) -> (u32, u16) {
    let mut leaves: Vec<&[Record]> = records.chunks(PER_LEAF).collect();
    if leaves.is_empty() {
        leaves.push(&[]);
    }
    let blocks: Vec<u32> = leaves.iter().map(|_| alloc()).collect();
    let mut entries = Vec::new();
    for (index, records) in leaves.iter().enumerate() {
        let mut node = Node::new(volume.block_size, blocks[index], region, GENERATION, 0);
        node.set_records(records);
        let left = index.checked_sub(1).map_or(0, |left| blocks[left]);
        node.set_siblings(left, blocks.get(index + 1).copied().unwrap_or(0));
        store(volume, file, region, node, blocks[index]);
        if let Some((low, high)) = summary(records) {
            entries.push(Entry {
                low,
                high,
                child: blocks[index],
            });
        }
    }
    if blocks.len() == 1 {
        return (blocks[0], 0);
    }
    let root = alloc();
    let mut node = Node::new(volume.block_size, root, region, GENERATION, 1);
    assert!(entries.len() <= node.capacity());
    node.set_entries(&entries);
    store(volume, file, region, node, root);
    (root, 1)
}

fn store(volume: &Volume, file: &mut Memory, region: u32, mut node: Node, block: u32) {
    node.seal(volume.seed);
    file.0[block as usize] = node.0;
    give_on(volume, file, block, region + 1, GENERATION);
}
