// SPDX-License-Identifier: GPL-2.0

//! Fuzz targets for the pure layers: bytes from a disk, and sequences of operations.
//!
//! Each function accepts any bytes and must neither panic nor loop forever. Those that read
//! structures with checksums first compute valid ones for half of the inputs, since a fuzzer does
//! not guess checksums. The targets in `tests/host/fuzz` call these functions; the tests below pass
//! some random bytes to each, to keep them working.

use crate::{
    engine::{
        btree::{BTree, Root, Store},
        bulk::Sink,
        compare::{Comparison, Step},
        delta::{Delta, Update},
        gather::Gathered,
        node::{Node, Tree},
        rebuild::{apply, load},
        record::{Kind, Record, Rmap, RmapKey},
        shadow::Shadow,
        Error, Result,
    },
    format::{
        dir::{self, Entries},
        dir_edit, extent, extent_edit,
        group::Group,
        htree::{self, Hasher, Index},
        inode, orphan,
        superblock::{self, Features, Layout, RawSuper},
        tree_file::{self, Frame, Header, Region},
        xattr::Area,
    },
};
use std::{collections::BTreeSet, sync::Arc};
use zerocopy::{FromBytes, IntoBytes};

const TREE: Tree = Tree {
    seed: 1,
    region: 2,
    generation: 3,
};
/// Block size of the trees in bytes.
const BLOCK: usize = 256;

/// Consumes bytes from the front.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn word(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
}

/// Records: parsing, and operations on several of them.
pub fn record(data: &[u8]) {
    let mut input = Input(data);
    let mut before: Option<Rmap> = None;
    while let Some(bytes) = input.take::<{ Rmap::SIZE }>() {
        let _ = Rmap::load_key(&bytes);
        let Some(found) = Rmap::load(&bytes) else { continue };
        assert_eq!(Rmap::last_in(&bytes), Some(found.last()));
        let mut again = [0; Rmap::SIZE];
        found.store(&mut again);
        assert_eq!(Rmap::load(&again), Some(found));
        if let Some(before) = before {
            let (head, tail) = before.without(&found);
            if before.covers(&found) {
                let parts = [head, Some(found), tail];
                let len: u64 = parts.iter().flatten().map(|part| u64::from(part.len)).sum();
                assert_eq!(len, u64::from(before.len));
            }
            assert!(!(before.continues(&found) && before.clashes(&found)));
            assert_eq!(before.clashes(&found), found.clashes(&before));
        }
        before = Some(found);
    }
}

/// A tree's file; its first block is number 1.
struct Blocks(Vec<Vec<u8>>);

impl Blocks {
    fn index(block: u32) -> Result<usize> {
        (block as usize).checked_sub(1).ok_or(Error::Io)
    }
}

impl Store for Blocks {
    type Read<'a> = &'a [u8];
    const SEALED: bool = true;

    fn read(&self, block: u32) -> Result<&[u8]> {
        let bytes = self.0.get(Self::index(block)?).filter(|bytes| !bytes.is_empty());
        bytes.map(|bytes| &bytes[..]).ok_or(Error::Io)
    }

    fn modify(&mut self, block: u32, change: &mut dyn FnMut(&mut [u8])) -> Result {
        change(self.0.get_mut(Self::index(block)?).ok_or(Error::Io)?);
        Ok(())
    }

    fn modify_pair(&mut self, blocks: [u32; 2], change: &mut dyn FnMut(&mut [u8], &mut [u8])) -> Result {
        // If both blocks are the same, the tree is not sound, and an error is a valid result.
        let mut first = std::mem::take(self.0.get_mut(Self::index(blocks[0])?).ok_or(Error::Io)?);
        let second = self
            .0
            .get_mut(Self::index(blocks[1])?)
            .filter(|bytes| !bytes.is_empty());
        let done = second.map(|second| change(&mut first, second)).ok_or(Error::Io);
        self.0[Self::index(blocks[0])?] = first;
        done
    }

    fn alloc(&mut self) -> Result<u32> {
        if self.0.len() >= 4096 {
            return Err(Error::NoSpace);
        }
        self.0.push(vec![0; BLOCK]);
        Ok(self.0.len() as u32)
    }

    fn free(&mut self, block: u32) -> Result {
        self.0.get_mut(Self::index(block)?).ok_or(Error::Io)?.clear();
        Ok(())
    }

    fn block_size(&self) -> usize {
        BLOCK
    }
}

impl Sink for Blocks {
    fn claim(&mut self) -> Result<u32> {
        self.alloc()
    }

    fn write(&mut self, block: u32, bytes: &[u8]) -> Result {
        self.modify(block, &mut |place| place.copy_from_slice(bytes))
    }

    fn block_size(&self) -> usize {
        BLOCK
    }
}

/// Nodes from a disk: read individually, and as a tree that is searched, checked, compared and
/// modified.
pub fn node(data: &[u8]) {
    let mut input = Input(data);
    let (Some(level), Some(block), Some(key)) = (input.byte(), input.word(), input.take::<16>()) else {
        return;
    };
    let mut blocks = Blocks(Vec::new());
    for bytes in input.0.chunks(BLOCK) {
        let own = blocks.0.len() as u32 + 1;
        let _ = Node(bytes).check::<Rmap>(&TREE, own, None);
        let mut bytes = bytes.to_vec();
        bytes.resize(BLOCK, 0);
        // A valid header, except for level, count and siblings.
        let mut model = vec![0; BLOCK];
        Node(&mut model[..]).init(&TREE, own, 0);
        bytes[..20].copy_from_slice(&model[..20]);
        bytes[20] &= 3;
        bytes[21] = 0;
        bytes[23] = 0;
        // Siblings and children that mostly exist.
        for at in [24, 28] {
            bytes[at + 1..at + 4].fill(0);
        }
        Node(&mut bytes[..]).seal(&TREE);
        let node = Node(&bytes[..]);
        if node.check::<Rmap>(&TREE, own, None).is_ok() {
            for index in 0..node.count() + 2 {
                let _ = (
                    node.record::<Rmap>(index),
                    node.entry::<Rmap>(index),
                    node.key::<Rmap>(index),
                );
                let _ = node.reaching::<Rmap>(index, node.count(), block);
            }
            let _ = (node.summary::<Rmap>(), node.stored::<Rmap>());
        }
        blocks.0.push(bytes);
    }
    let root = Root {
        block: 1,
        level: u16::from(level % 4),
    };
    let key = Rmap::load_key(&key).unwrap_or(RmapKey {
        start: block,
        owner: 1,
        kind: 0,
        offset: 0,
    });
    let mut tree = BTree::<_, Rmap>::open(&mut blocks, TREE, root);
    let mut left = 10_000;
    let _ = tree.overlapping(block, block.saturating_add(100), &mut |_| {
        left -= 1;
        Ok(left > 0)
    });
    let (_, _, _) = (tree.get(key), tree.check(), tree.check_step(Some(key)));
    let mut from = None;
    for _ in 0..100 {
        match tree.check_step(from) {
            Ok(Some(next)) => {
                assert!(Some(next) > from, "a walk goes on");
                from = Some(next);
            }
            _ => break,
        }
    }
    let mut shadow = Shadow::new(1 << 20);
    let mut comparison = Comparison::new();
    for _ in 0..100 {
        if !matches!(comparison.step(&tree, &mut shadow, 3), Ok(Step::Equal(Some(_)))) {
            break;
        }
    }
    let new = Rmap {
        start: key.start.min(1 << 28),
        len: 3,
        owner: key.owner,
        offset: key.offset.min(1 << 28),
        kind: Kind::Data,
        unwritten: false,
    };
    let _ = (
        tree.insert(&new),
        tree.add_owner(new),
        tree.remove_owner(new),
        tree.delete(key),
    );
}

/// The structures of a tree file.
pub fn tree_file(data: &[u8]) {
    let mut input = Input(data);
    let (Some(sealed), Some(block), Some(blocks)) = (input.byte(), input.word(), input.word()) else {
        return;
    };
    let frame = Frame {
        kind: tree_file::Kind::Rmap,
        seed: 7,
        uuid: [3; 16],
        block_size: 1024,
        first_block: 1,
        region_blocks: 8192,
        regions: 5,
    };
    let mut bytes = input.0.to_vec();
    bytes.resize(1024, 0);
    if sealed & 1 != 0 {
        // With a valid checksum, it is not rejected at once.
        let header = Header::read(&frame, blocks, &bytes);
        let mut model = bytes.clone();
        if let Ok(header) = header {
            let _ = header.store(&frame, &mut model);
        }
        tree_file::seal_map(&frame, &mut bytes);
    }
    if let Ok(header) = Header::read(&frame, blocks, &bytes) {
        assert!(header.blocks <= blocks);
    }
    if let Ok(region) = Region::read(&frame, blocks, block % 5, &bytes) {
        let mut again = vec![0; 1024];
        assert!(region.store(&frame, block % 5, &mut again).is_ok());
        assert_eq!(Region::read(&frame, blocks, block % 5, &again).ok(), Some(region));
    }
    let _ = tree_file::check_map(&frame, block, &bytes);
    for entry in [0, 1, block, u32::MAX, frame.chunk().get()] {
        let found = tree_file::use_of(&bytes, entry);
        let mut changed = bytes.clone();
        tree_file::set_use(&mut changed, entry, found);
    }
    let (map, index) = frame.map_of(block);
    let _ = (frame.is_fixed(block), frame.region_place(block), map, index);
}

fn layout(bits: u32) -> Layout {
    Layout {
        features: Features {
            compat: bits,
            incompat: bits.rotate_left(11),
            ro_compat: bits.rotate_left(21),
        },
        block_size: 1024,
        block_bits: 10,
        blocks: 100_000,
        first_data_block: 1,
        blocks_per_group: 8192,
        groups: 13,
        inodes: 13 * 1024,
        inodes_per_group: 1024,
        first_inode: 11,
        inode_size: if bits & 1 == 0 { 256 } else { 128 },
        desc_size: if bits & 2 == 0 { 64 } else { 32 },
        desc_blocks: 1,
        reserved_gdt_blocks: 20,
        first_meta_bg: None,
        backup_groups: None,
        flex_bits: 4,
        seed: 5,
        uuid: [9; 16],
        journal_inode: 8,
        orphan_inode: 0,
        hash_seed: [0; 4],
        hash_version: 1,
        hash_unsigned: true,
    }
}

/// The structures of ext4 itself: superblock, descriptors, inodes, mappings, directories,
/// attributes, the orphan file.
pub fn format(data: &[u8]) {
    let mut input = Input(data);
    let (Some(what), Some(bits), Some(word)) = (input.byte(), input.word(), input.word()) else {
        return;
    };
    let layout = layout(bits);
    let mut bytes = input.0.to_vec();
    bytes.resize(1024, 0);
    match what % 8 {
        0 => {
            if let Ok((mut raw, _)) = RawSuper::read_from_prefix(&bytes) {
                let _ = Layout::read(&raw, u64::from(word) << 12);
                raw.magic.set(0xef53);
                raw.rev_level.set(1);
                raw.checksum_type = 1;
                let sum = superblock::checksum(&raw);
                raw.checksum.set(sum);
                if let Ok(layout) = Layout::read(&raw, u64::from(word) << 12) {
                    let last = layout.groups - 1;
                    assert!(layout.group_blocks(last) > 0);
                    assert!(layout.locate_inode(layout.inodes).is_some());
                    let _ = (
                        layout.has_super(last),
                        layout.desc_location(last),
                        layout.inode_table_blocks(),
                    );
                    let _ = layout.group_of_block(layout.blocks - 1);
                }
                raw.note_error(true, i64::from(word), bits, u64::from(word));
                let _ = raw.as_bytes().len();
            }
        }
        1 => {
            if let Ok(group) = Group::read(&layout, word % 13, &bytes) {
                let _ = group.store(&layout, word % 13, &mut bytes);
            }
        }
        2 => {
            let ino = word % layout.inodes + 1;
            let _ = inode::read(&layout, ino, &bytes);
            let _ = inode::seal(&layout, ino, &mut bytes);
            if let Ok(found) = inode::read(&layout, ino, &bytes) {
                let _ = inode::write(&layout, ino, &found, true, &mut bytes);
                let _ = extent::Node::read(&layout, &found.block, None, None, (0, u32::MAX));
            }
            let _ = Area::in_inode(&layout, &bytes).map(|area| area.map(|area| area.iter().count()));
        }
        3 => {
            let _ = extent_edit::seal(&layout, &mut bytes, 1);
            if let Ok(node) = extent::Node::read(&layout, &bytes, None, Some(1), (0, word)) {
                let _ = (node.extents().count(), node.indices().count());
                let _ = (node.find(bits), node.descend(bits));
            }
        }
        4 => {
            let entry = extent_edit::index_entry(bits, u64::from(word));
            let (index, len) = ((bits & 15) as usize, (word & 15) as usize);
            let _ = (
                extent_edit::count(&bytes),
                extent_edit::room(&bytes),
                extent_edit::get(&bytes, index),
            );
            let _ = extent_edit::insert(&mut bytes, index, &entry);
            let _ = extent_edit::convert(&mut bytes, index, word, word.saturating_add(9));
            let _ = extent_edit::remove(&mut bytes, index);
            let _ = extent_edit::truncate(&mut bytes, len);
        }
        5 => {
            let _ = (
                dir::verify(&layout, &bytes, 1),
                dir::is_index(&bytes, word & 1 == 0),
            );
            assert!(Entries::new(&layout, &bytes).count() <= bytes.len() / 8 + 1);
            let name = &word.to_le_bytes()[..(bits % 5) as usize];
            let _ = dir_edit::find_room(&layout, &bytes, name);
            let _ = dir_edit::remove(&layout, &mut bytes, name);
            let first = word & 1 == 0;
            let _ = (
                htree::read_root(&layout, &bytes),
                htree::verify(&layout, &bytes, 1),
            );
            if let Ok(index) = Index::read(&layout, &bytes, first) {
                let at = index.find(word);
                let _ = (index.child(at), index.hash(at), index.len(), index.is_full());
                let mut node = vec![0; bytes.len()];
                let _ = htree::start_node(&layout, &mut node, &index, at);
            }
            let (mut low, mut high) = (vec![0; bytes.len()], vec![0; bytes.len()]);
            let mut scratch = vec![Default::default(); htree::max_names(&bytes)];
            let hasher = Hasher::new(&layout, word as u8 % 3).unwrap();
            let _ = htree::split(&layout, &hasher, &bytes, &mut scratch, &mut low, &mut high);
            let _ = htree::convert(&layout, &bytes, &mut low, &mut high);
            let _ = htree::insert(&layout, &mut bytes, first, word as usize % 9, word, word);
            let _ = htree::deepen(&layout, &mut bytes, word);
            let _ = htree::truncate(&layout, &mut bytes, first, word as usize % 9);
            let _ = dir_edit::set_parent(&mut bytes, word);
            let _ = dir_edit::seal(&layout, &mut bytes, 1);
            let _ = htree::seal(&layout, &mut bytes, 1);
        }
        6 => {
            for sum in [false, true] {
                if let Ok(area) = Area::in_block(&layout, u64::from(word), &bytes, sum) {
                    let names: Vec<_> = area.iter().map(|one| (one.index, one.name.to_vec())).collect();
                    assert!(names
                        .iter()
                        .all(|(index, name)| area.find(*index, name).is_some()));
                }
            }
        }
        _ => {
            let _ = orphan::verify(&layout, u64::from(word), &bytes, 1);
            let _ = orphan::inodes(&bytes).count();
            let _ = orphan::set(&mut bytes, bits as usize, word);
            let _ = orphan::seal(&layout, u64::from(word), &mut bytes, 1);
        }
    }
}

/// One block of one owner.
type Claim = (u32, Kind, bool, i64, u32);

fn claims(record: &Rmap) -> impl Iterator<Item = Claim> {
    let record = *record;
    let place = match record.kind {
        Kind::Data => i64::from(record.offset) - i64::from(record.start),
        _ => 0,
    };
    (record.start..=record.last())
        .map(move |block| (record.owner, record.kind, record.unwritten, place, block))
}

/// Adds and removes owners as the input bytes say: in a tree, in a shadow that is partly appended,
/// and through a delta. Each must end up with the same contents as a set of blocks and owners.
pub fn operations(data: &[u8]) {
    let mut input = Input(data);
    let mut truth: BTreeSet<Claim> = BTreeSet::new();
    let mut next = || -> Option<(u8, Rmap)> {
        let [what, start, len, owner, offset, more] = input.take()?;
        let kind = match more & 7 {
            0 => Kind::Mapping,
            1 => Kind::Xattr,
            _ => Kind::Data,
        };
        let data = kind == Kind::Data;
        let record = Rmap {
            start: u32::from(start) + 256 * u32::from(more >> 6),
            len: 1 + u32::from(len & 31),
            owner: 1 + u32::from(owner & 3),
            offset: if data { u32::from(offset & 63) } else { 0 },
            kind,
            unwritten: data && more & 8 != 0,
        };
        Some((what, record))
    };
    let add = |truth: &mut BTreeSet<Claim>, record: &Rmap| {
        let clash = claims(record).any(|(owner, kind, _, place, block)| {
            [false, true]
                .iter()
                .any(|&state| truth.contains(&(owner, kind, state, place, block)))
        });
        if !clash {
            truth.extend(claims(record));
        }
        !clash
    };
    let remove = |truth: &mut BTreeSet<Claim>, record: &Rmap| {
        let all = claims(record).all(|claim| truth.contains(&claim));
        if all {
            truth.retain(|claim| !claims(record).any(|gone| gone == *claim));
        }
        all
    };
    let pool = Arc::new(());
    let mut shadow = Shadow::awaiting(4 << 20, pool.clone(), pool.clone());
    // What a scan finds: the files' data in order, each at one go.
    let mut gathered = Gathered::new(pool, 1, 1 << 20);
    let mut gatherer = gathered.gatherer();
    let mut found: Vec<Rmap> = Vec::new();
    while let Some((what, record)) = next() {
        if what & 0xf0 == 0 {
            break;
        }
        let end = |record: &Rmap| record.offset + record.len;
        let fits = found.iter().all(|other| {
            (other.owner, other.kind) != (record.owner, record.kind)
                || record.kind == Kind::Data && (end(other) <= record.offset || end(&record) <= other.offset)
        });
        if record.kind == Kind::Data && fits && add(&mut truth, &record) {
            found.push(record);
        }
    }
    found.sort_by_key(|record| (record.owner, record.offset));
    let mut before = 0;
    for record in found {
        // Between two files what there is may become a run.
        if record.owner != before && record.offset & 1 != 0 {
            gathered.add(gatherer.spill().expect("memory")).expect("room");
            assert!(shadow.count().is_err(), "it is not filled");
        }
        before = record.owner;
        gatherer.push(0, record).expect("in file order");
        if gatherer.is_full() {
            gathered.add(gatherer.spill().expect("memory")).expect("room");
        }
    }
    if let Some(run) = gatherer.finish().expect("memory") {
        gathered.add(run).expect("room");
    }
    shadow
        .fill(&mut gathered.merge().expect("memory"), 0)
        .expect("room");
    let mut blocks = Blocks(Vec::new());
    let mut root = load(&mut shadow, &mut blocks, TREE, 10).expect("room");
    let mut late = Blocks(Vec::new());
    let mut late_root = load(&mut shadow, &mut late, TREE, 0).expect("room");
    let mut delta = Delta::new(1 << 20);
    let mut comparison = Comparison::new();
    while let Some((what, record)) = next() {
        let mut tree = BTree::open(&mut blocks, TREE, root);
        let (update, good) = match what & 1 {
            0 => (Update::Add(record), add(&mut truth, &record)),
            _ => (Update::Remove(record), remove(&mut truth, &record)),
        };
        assert_eq!(shadow.apply(&update).is_ok(), good);
        assert_eq!(apply(&mut tree, &[update]).is_ok(), good);
        root = tree.root;
        if good {
            delta.push(update).expect("room");
        }
        if what & 0xe == 0 {
            let mut tree = BTree::open(&mut late, TREE, late_root);
            apply(&mut tree, &delta.take()).expect("what was right stays right");
            late_root = tree.root;
        }
        if what & 0x70 == 0 {
            let tree = BTree::open(&mut blocks, TREE, root);
            match comparison.step(&tree, &mut shadow, 1 + usize::from(what >> 7)) {
                Ok(Step::Equal(Some(_))) => (),
                Ok(Step::Equal(None)) => comparison = Comparison::new(),
                other => panic!("{other:?}"),
            }
        }
    }
    let mut tree = BTree::open(&mut late, TREE, late_root);
    apply(&mut tree, &delta.take()).expect("what was right stays right");
    late_root = tree.root;
    let mut all = Vec::new();
    let walked = shadow.walk(&mut |record| {
        all.push(*record);
        Ok(true)
    });
    walked.expect("it can be read");
    let held: BTreeSet<Claim> = all.iter().flat_map(claims).collect();
    assert_eq!(held, truth);
    assert_eq!(shadow.count(), Ok(all.len() as u64));
    for (blocks, root) in [(&mut blocks, root), (&mut late, late_root)] {
        let tree = BTree::<_, Rmap>::open(blocks, TREE, root);
        tree.check().expect("sound");
        let mut found = Vec::new();
        let walked = tree.overlapping(0, u32::MAX, &mut |record: &Rmap| {
            found.push(*record);
            Ok(true)
        });
        walked.expect("it can be read");
        assert_eq!(found, all);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..1400)) {
            super::record(&bytes);
            super::node(&bytes);
            super::tree_file(&bytes);
            super::format(&bytes);
            super::operations(&bytes);
        }
    }
}
