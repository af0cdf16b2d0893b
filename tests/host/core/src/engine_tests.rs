// SPDX-License-Identifier: GPL-2.0

//! The engine's structures, each compared with a naive model.

use crate::engine::{
    btree::{BTree, Root, Store},
    bulk::{Geometry, Loader, Sink},
    node::{Node, Tree},
    record::{Kind, Record, Rmap, RmapKey},
    shadow::Shadow,
    Error, Result,
};
use kernel::alloc::fail_after;
use proptest::prelude::*;
use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, HashSet},
};

pub(crate) const TREE: Tree = Tree {
    seed: 77,
    region: 3,
    generation: 9,
};

/// Maximum number of nodes that one insertion or deletion modifies in a tree whose root has this
/// level: at each level below the root the node, a new or removed sibling and the sibling's
/// sibling; the root, its new sibling and a new root.
fn nodes_touched(level: u16) -> u32 {
    u32::from(level) * 3 + 3
}

/// A tree's file in memory, with small blocks so that trees have several levels.
#[derive(Clone)]
pub(crate) struct Disk {
    pub(crate) blocks: BTreeMap<u32, Vec<u8>>,
    size: usize,
    /// Maximum number of blocks in use.
    pub(crate) limit: usize,
    /// A block whose reads fail.
    pub(crate) unreadable: Option<u32>,
    /// Number of reads until all reads fail.
    pub(crate) reads_left: Cell<usize>,
    /// Number of modifications until all fail.
    pub(crate) changes_left: usize,
    /// Blocks that were modified or freed.
    pub(crate) touched: HashSet<u32>,
}

impl Disk {
    pub(crate) fn new(size: usize) -> Disk {
        Disk {
            blocks: BTreeMap::new(),
            size,
            limit: usize::MAX,
            unreadable: None,
            reads_left: Cell::new(usize::MAX),
            changes_left: usize::MAX,
            touched: HashSet::new(),
        }
    }

    fn take_change(&mut self) -> Result {
        self.changes_left = self.changes_left.checked_sub(1).ok_or(Error::Io)?;
        Ok(())
    }
}

impl Store for Disk {
    type Read<'a> = &'a [u8];
    const SEALED: bool = true;

    fn read(&self, block: u32) -> Result<&[u8]> {
        self.reads_left
            .set(self.reads_left.get().checked_sub(1).ok_or(Error::Io)?);
        let readable = Some(block).filter(|&block| self.unreadable != Some(block));
        readable
            .and_then(|block| self.blocks.get(&block))
            .map(|bytes| &bytes[..])
            .ok_or(Error::Io)
    }

    fn modify(&mut self, block: u32, change: &mut dyn FnMut(&mut [u8])) -> Result {
        self.take_change()?;
        self.touched.insert(block);
        change(self.blocks.get_mut(&block).ok_or(Error::Io)?);
        Ok(())
    }

    fn modify_pair(&mut self, blocks: [u32; 2], change: &mut dyn FnMut(&mut [u8], &mut [u8])) -> Result {
        assert_ne!(blocks[0], blocks[1]);
        self.take_change()?;
        self.touched.extend(blocks);
        let mut first = self.blocks.remove(&blocks[0]).ok_or(Error::Io)?;
        change(&mut first, self.blocks.get_mut(&blocks[1]).ok_or(Error::Io)?);
        self.blocks.insert(blocks[0], first);
        Ok(())
    }

    fn alloc(&mut self) -> Result<u32> {
        if self.blocks.len() >= self.limit {
            return Err(Error::NoSpace);
        }
        let block = (1..).find(|block| !self.blocks.contains_key(block)).unwrap();
        self.blocks.insert(block, vec![0xaa; self.size]);
        Ok(block)
    }

    fn free(&mut self, block: u32) -> Result {
        self.touched.insert(block);
        self.blocks.remove(&block).map(drop).ok_or(Error::Io)
    }

    fn block_size(&self) -> usize {
        self.size
    }
}

impl Sink for Disk {
    fn claim(&mut self) -> Result<u32> {
        self.alloc()
    }

    fn write(&mut self, block: u32, bytes: &[u8]) -> Result {
        assert!(self.touched.insert(block), "block {block} is written twice");
        *self.blocks.get_mut(&block).unwrap() = bytes.to_vec();
        Ok(())
    }

    fn block_size(&self) -> usize {
        self.size
    }
}

pub(crate) fn records(tree: &BTree<'_, Disk, Rmap>) -> Vec<Rmap> {
    let mut all = Vec::new();
    tree.overlapping(0, u32::MAX, &mut |record| {
        all.push(*record);
        Ok(true)
    })
    .unwrap();
    all
}

/// Returns all records of a shadow.
pub(crate) fn contents(shadow: &mut Shadow) -> Vec<Rmap> {
    let mut all = Vec::new();
    shadow
        .walk(&mut |record| {
            all.push(*record);
            Ok(true)
        })
        .unwrap();
    all
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![4 => Just(Kind::Data), 1 => Just(Kind::Mapping), 1 => Just(Kind::Xattr), 1 => Just(Kind::Cow)]
}

prop_compose! {
    pub(crate) fn rmap()(start in 0u32..500, len in 1u32..40, owner in 1u32..6, offset in 0u32..50, kind in kind(),
              unwritten in any::<bool>()) -> Rmap {
        let data = kind == Kind::Data;
        Rmap { start, len, owner, kind, offset: if data { offset } else { 0 }, unwritten: unwritten && data }
    }
}

/// One block of one owner.
type Claim = (u32, Kind, bool, i64, u32);

/// The owners of each block.
#[derive(Default, Clone, PartialEq, Debug)]
pub(crate) struct Truth(BTreeSet<Claim>);

impl Truth {
    fn claims(record: &Rmap) -> impl Iterator<Item = Claim> {
        let record = *record;
        // Contiguous data blocks of a file have a constant distance between file offset and block.
        let place = if record.kind == Kind::Data {
            i64::from(record.offset) - i64::from(record.start)
        } else {
            0
        };
        (record.start..=record.last())
            .map(move |block| (record.owner, record.kind, record.unwritten, place, block))
    }

    /// Adds an owner. Returns false if it already has one of the blocks at this offset, written or
    /// not.
    pub(crate) fn add(&mut self, record: &Rmap) -> bool {
        let clash = Self::claims(record).any(|claim| {
            [false, true]
                .into_iter()
                .any(|state| self.0.contains(&(claim.0, claim.1, state, claim.3, claim.4)))
        });
        if !clash {
            self.0.extend(Self::claims(record));
        }
        !clash
    }

    /// Removes an owner. Returns false if it lacks one of the blocks.
    pub(crate) fn remove(&mut self, record: &Rmap) -> bool {
        let all = Self::claims(record).all(|claim| self.0.contains(&claim));
        if all {
            for claim in Self::claims(record) {
                self.0.remove(&claim);
            }
        }
        all
    }

    /// Returns the minimal set of records with these contents.
    pub(crate) fn records(&self) -> Vec<Rmap> {
        let mut all: Vec<Rmap> = Vec::new();
        for &(owner, kind, unwritten, place, block) in &self.0 {
            let offset = if kind == Kind::Data {
                u32::try_from(i64::from(block) + place).unwrap()
            } else {
                0
            };
            let next = Rmap {
                start: block,
                len: 1,
                owner,
                offset,
                kind,
                unwritten,
            };
            match all.last_mut() {
                Some(last) if last.continues(&next) => last.len += 1,
                _ => all.push(next),
            }
        }
        all.sort_by_key(|record| record.key());
        all
    }
}

proptest! {
    #[test]
    fn a_record_survives_being_stored(record in rmap()) {
        let mut bytes = [0; Rmap::SIZE];
        record.store(&mut bytes);
        prop_assert_eq!(Rmap::load(&bytes), Some(record));
        let mut bytes = [0; Rmap::KEY_SIZE];
        Rmap::store_key(record.key(), &mut bytes);
        prop_assert_eq!(Rmap::load_key(&bytes), Some(record.key()));
    }

    #[test]
    fn what_loads_is_sound(bytes in any::<[u8; 16]>()) {
        if let Some(record) = Rmap::load(&bytes) {
            prop_assert!(record.len > 0 && record.last() >= record.start);
            let _ = record.without(&record);
        }
    }

    #[test]
    fn what_is_cut_out_and_what_is_left_make_the_whole(whole in rmap(), skip in 0u32..40, len in 1u32..40) {
        let skip = skip % whole.len;
        let len = len.min(whole.len - skip);
        let offset = if whole.kind == Kind::Data { whole.offset + skip } else { 0 };
        let part = Rmap { start: whole.start + skip, len, offset, ..whole };
        prop_assert!(whole.covers(&part));
        let (head, tail) = whole.without(&part);
        let mut joined = head.unwrap_or(part);
        for next in [head.map(|_| part), tail].into_iter().flatten() {
            prop_assert!(joined.continues(&next));
            joined.len += next.len;
        }
        prop_assert_eq!(joined, whole);
    }

    #[test]
    fn the_tree_holds_what_an_ordered_map_holds(
        operations in prop::collection::vec((rmap(), any::<bool>()), 1..400),
        queries in prop::collection::vec((0u32..560, 0u32..60), 5),
        size in prop_oneof![Just(160usize), Just(256), Just(512)],
    ) {
        let mut disk = Disk::new(size);
        let mut tree = BTree::<_, Rmap>::create(&mut disk, TREE).unwrap();
        let mut model: BTreeMap<RmapKey, Rmap> = BTreeMap::new();
        for (record, insert) in operations {
            if insert || model.is_empty() {
                let expected = model.contains_key(&record.key());
                prop_assert_eq!(tree.insert(&record).is_err(), expected);
                model.entry(record.key()).or_insert(record);
            } else {
                // Usually an existing record; otherwise the nearest one.
                let key = model.range(record.key()..).next().or(model.iter().next_back()).map(|(key, _)| *key).unwrap();
                prop_assert_eq!(tree.delete(key).unwrap(), model.remove(&key).unwrap());
                prop_assert!(tree.delete(key).is_err());
            }
            prop_assert_eq!(tree.get(record.key()).unwrap(), model.get(&record.key()).copied());
        }
        let shape = tree.check().unwrap();
        prop_assert_eq!(shape.records, model.len() as u64);
        prop_assert_eq!(records(&tree), model.values().copied().collect::<Vec<_>>());
        for (first, len) in queries {
            let mut found = Vec::new();
            tree.overlapping(first, first + len, &mut |record| { found.push(*record); Ok(true) }).unwrap();
            let expected: Vec<Rmap> =
                model.values().filter(|r| r.start <= first + len && r.last() >= first).copied().collect();
            prop_assert_eq!(found, expected);
        }
        // Nothing is lost or leaked: the blocks in use are exactly the tree's nodes.
        prop_assert_eq!(disk.blocks.len() as u64, shape.nodes);
    }

    #[test]
    fn owners_are_kept_as_few_records(operations in prop::collection::vec((rmap(), any::<bool>(), 0u32..40), 1..150)) {
        let mut disk = Disk::new(256);
        let mut tree = BTree::<_, Rmap>::create(&mut disk, TREE).unwrap();
        let mut truth = Truth::default();
        for (record, add, skip) in operations {
            if add {
                prop_assert_eq!(tree.add_owner(record).is_ok(), truth.add(&record));
            } else {
                // Part of an existing record, or a record that does not exist.
                let mut part = record;
                if let Some(whole) = truth.records().into_iter().find(|whole| whole.start >= record.start) {
                    let skip = skip % whole.len;
                    let offset = if whole.kind == Kind::Data { whole.offset + skip } else { 0 };
                    part = Rmap { start: whole.start + skip, len: record.len.min(whole.len - skip), offset, ..whole };
                }
                prop_assert_eq!(tree.remove_owner(part).is_ok(), truth.remove(&part));
            }
            prop_assert_eq!(records(&tree), truth.records());
        }
        tree.check().unwrap();
    }

    #[test]
    fn a_full_disk_changes_nothing(count in 1usize..120, limit in 1usize..12) {
        let mut disk = Disk::new(160);
        let mut tree = BTree::<_, Rmap>::create(&mut disk, TREE).unwrap();
        let mut root = tree.root;
        let mut kept = Vec::new();
        for index in 0..count as u32 {
            let record = Rmap { start: index * 7919 % 1000, len: 1, owner: 1, offset: index, kind: Kind::Data, unwritten: false };
            disk.limit = limit;
            let before = disk.blocks.clone();
            let mut tree = BTree::<_, Rmap>::open(&mut disk, TREE, root);
            let outcome = tree.insert(&record);
            root = tree.root;
            match outcome {
                Ok(()) => kept.push(record),
                Err(error) => {
                    prop_assert_eq!(error, Error::NoSpace);
                    prop_assert_eq!(&disk.blocks, &before);
                }
            }
        }
        tree = BTree::open(&mut disk, TREE, root);
        kept.sort_by_key(|record| record.key());
        tree.check().unwrap();
        prop_assert_eq!(records(&tree), kept);
    }

    #[test]
    fn one_change_touches_a_bounded_number_of_nodes(seeds in prop::collection::vec((any::<u32>(), any::<bool>()), 1..300)) {
        let mut disk = Disk::new(160);
        let mut root = BTree::<_, Rmap>::create(&mut disk, TREE).unwrap().root;
        let mut there = Vec::new();
        for (seed, add) in seeds {
            disk.touched.clear();
            let level = root.level;
            let mut tree = BTree::<_, Rmap>::open(&mut disk, TREE, root);
            if add || there.is_empty() {
                let record = Rmap { start: seed >> 1, len: 1, owner: 1, offset: 0, kind: Kind::Mapping, unwritten: false };
                if tree.insert(&record).is_ok() {
                    there.push(record.key());
                }
            } else {
                let key = there.swap_remove(seed as usize % there.len());
                tree.delete(key).unwrap();
            }
            root = tree.root;
            prop_assert!(disk.touched.len() as u32 <= nodes_touched(level), "{} at level {level}", disk.touched.len());
        }
    }

    #[test]
    fn bulk_loading_makes_a_sound_tree(count in 0u64..3000, slack in 0u32..50, size in prop_oneof![Just(256usize), Just(1024)]) {
        let all: Vec<Rmap> = (0..count as u32)
            .map(|i| Rmap { start: i * 3, len: 1 + i % 9, owner: i % 7 + 1, offset: i, kind: Kind::Data, unwritten: false })
            .collect();
        let mut disk = Disk::new(size);
        let geometry = Geometry::new::<Rmap>(size, count, slack).unwrap();
        let mut loader = Loader::new(&mut disk, TREE, geometry).unwrap();
        for record in &all {
            loader.push(record).unwrap();
        }
        let extra = Rmap { start: u32::MAX, len: 1, owner: 1, offset: 0, kind: Kind::Cow, unwritten: false };
        prop_assert!(loader.push(&extra).is_err());
        let root = loader.finish().unwrap();
        prop_assert_eq!(disk.blocks.len() as u64, geometry.blocks());
        let tree = BTree::<_, Rmap>::open(&mut disk, TREE, root);
        let shape = tree.check().unwrap();
        prop_assert_eq!((shape.records, shape.nodes), (count, geometry.blocks()));
        prop_assert_eq!(records(&tree), all);
    }

    #[test]
    fn the_loader_takes_neither_disorder_nor_a_wrong_count(count in 2u64..500, wrong in 0u64..500) {
        let record = |i: u64| Rmap { start: i as u32, len: 1, owner: 1, offset: 0, kind: Kind::Data, unwritten: false };
        let geometry = Geometry::new::<Rmap>(256, count, 0).unwrap();
        let mut disk = Disk::new(256);
        let mut loader = Loader::new(&mut disk, TREE, geometry).unwrap();
        for i in 0..wrong % count {
            loader.push(&record(i)).unwrap();
        }
        prop_assert!(matches!(loader.finish(), Err(Error::Mismatch(_))));
        let mut disk = Disk::new(4096);
        let geometry = Geometry::new::<Rmap>(4096, count, 0).unwrap();
        let mut loader = Loader::new(&mut disk, TREE, geometry).unwrap();
        loader.push(&record(5)).unwrap();
        prop_assert_eq!(loader.push(&record(5)), Err(Error::Mismatch("records out of order")));
    }

    #[test]
    fn a_flipped_byte_anywhere_is_found(count in 1u32..400, which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let (mut disk, root) = tall(count);
        let block = *which.get(&disk.blocks.keys().copied().collect::<Vec<_>>());
        let bytes = disk.blocks.get_mut(&block).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let found = BTree::<_, Rmap>::open(&mut disk, TREE, root).check();
        let is_found = matches!(found, Err(Error::Corrupt { block: b, .. }) if b == block);
        prop_assert!(is_found, "{:?}", found);
    }

    #[test]
    fn damage_under_a_good_checksum_never_panics(count in 1u32..400, damage in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..6), probe in rmap()) {
        let (mut disk, root) = tall(count);
        for (which, at, byte) in damage {
            let block = *which.get(&disk.blocks.keys().copied().collect::<Vec<_>>());
            let bytes = disk.blocks.get_mut(&block).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            Node(&mut bytes[..]).seal(&TREE);
        }
        let mut tree = BTree::<_, Rmap>::open(&mut disk, TREE, root);
        let _ = tree.check();
        let _ = tree.overlapping(0, u32::MAX, &mut |_| Ok(true));
        let _ = tree.get(probe.key());
        let _ = tree.add_owner(probe);
        let _ = tree.remove_owner(probe);
        let _ = tree.delete(probe.key());
    }

    #[test]
    fn random_nodes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut disk = Disk::new(bytes.len());
        let mut bytes = bytes;
        if bytes.len() >= 32 {
            // A header that is valid enough for the contents to be parsed.
            bytes[0..4].copy_from_slice(&0x3178_7472u32.to_le_bytes());
            bytes[8..12].copy_from_slice(&1u32.to_le_bytes());
            bytes[12..16].copy_from_slice(&TREE.region.to_le_bytes());
            bytes[16..20].copy_from_slice(&TREE.generation.to_le_bytes());
            Node(&mut bytes[..]).seal(&TREE);
        }
        let level = if bytes.len() >= 32 { Node(&bytes[..]).level() % 10 } else { 0 };
        disk.blocks.insert(1, bytes);
        let tree = BTree::<_, Rmap>::open(&mut disk, TREE, Root { block: 1, level });
        let _ = tree.check();
        let _ = tree.overlapping(0, u32::MAX, &mut |_| Ok(true));
    }

    #[test]
    fn the_shadow_holds_the_truth(operations in prop::collection::vec((rmap(), any::<bool>()), 1..200)) {
        let mut shadow = Shadow::new(1 << 20);
        let mut truth = Truth::default();
        for (record, add) in operations {
            if add {
                prop_assert_eq!(shadow.add_owner(record).is_ok(), truth.add(&record));
            } else {
                prop_assert_eq!(shadow.remove_owner(record).is_ok(), truth.remove(&record));
            }
        }
        let all = contents(&mut shadow);
        prop_assert_eq!(all.len() as u64, shadow.count().unwrap());
        prop_assert_eq!(all, truth.records());
    }
}

/// Returns a tree of several levels and its root.
pub(crate) fn tall(count: u32) -> (Disk, Root) {
    let mut disk = Disk::new(160);
    let mut tree = BTree::<_, Rmap>::create(&mut disk, TREE).unwrap();
    for i in 0..count {
        let start = i.wrapping_mul(2_654_435_761) % 100_000;
        let _ = tree.insert(&Rmap {
            start,
            len: 2,
            owner: 1,
            offset: i,
            kind: Kind::Data,
            unwritten: false,
        });
    }
    let root = tree.root;
    (disk, root)
}

#[test]
fn damage_is_called_by_its_name() {
    let named = |change: &dyn Fn(&mut Disk, Root) -> u32| {
        let (mut disk, root) = tall(300);
        let block = change(&mut disk, root);
        Node(&mut disk.blocks.get_mut(&block).unwrap()[..]).seal(&TREE);
        match BTree::<_, Rmap>::open(&mut disk, TREE, root).check() {
            Err(Error::Corrupt { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    };
    let leaf = |disk: &Disk| {
        *disk
            .blocks
            .iter()
            .find(|(_, bytes)| {
                let n = Node(&bytes[..]);
                n.level() == 0 && n.siblings().0 != 0
            })
            .unwrap()
            .0
    };
    // Two records of a leaf in the wrong order.
    let swapped = named(&|disk, _| {
        let block = leaf(disk);
        let bytes = disk.blocks.get_mut(&block).unwrap();
        let (first, second) = bytes[32..].split_at_mut(16);
        first.swap_with_slice(&mut second[..16]);
        block
    });
    assert!(
        ["wrong low key", "keys out of order"].contains(&swapped),
        "{swapped}"
    );
    assert_eq!(
        named(&|disk, _| {
            let b = leaf(disk);
            disk.blocks.get_mut(&b).unwrap()[24] ^= 1;
            b
        }),
        "wrong sibling"
    );
    assert_eq!(
        named(&|disk, _| {
            let b = leaf(disk);
            disk.blocks.get_mut(&b).unwrap()[16] ^= 1;
            b
        }),
        "stale generation"
    );
    assert_eq!(
        named(&|disk, _| {
            let b = leaf(disk);
            disk.blocks.get_mut(&b).unwrap()[12] ^= 1;
            b
        }),
        "node of another region"
    );
    assert_eq!(
        named(&|disk, _| {
            let b = leaf(disk);
            disk.blocks.get_mut(&b).unwrap()[8] ^= 1;
            b
        }),
        "node of another block"
    );
    assert_eq!(
        named(&|disk, _| {
            let b = leaf(disk);
            disk.blocks.get_mut(&b).unwrap()[22] = 0;
            b
        }),
        "empty node"
    );
    assert_eq!(
        named(&|disk, root| {
            disk.blocks.get_mut(&root.block).unwrap()[20] = 9;
            root.block
        }),
        "wrong level"
    );
    assert_eq!(
        named(&|disk, root| {
            disk.blocks.get_mut(&root.block).unwrap()[32 + 16] ^= 1;
            root.block
        }),
        "wrong high block"
    );
    assert_eq!(
        named(&|disk, root| {
            disk.blocks.get_mut(&root.block).unwrap()[32 + 24 + 4] ^= 1;
            root.block
        }),
        "wrong low key"
    );
    assert_eq!(
        named(&|disk, root| {
            disk.blocks.get_mut(&root.block).unwrap()[0] ^= 1;
            root.block
        }),
        "bad magic"
    );
}

#[test]
fn a_shadow_over_its_budget_keeps_what_it_has() {
    let mut shadow = Shadow::new(64 << 10);
    let record = |i: u32| Rmap {
        start: i * 2,
        len: 1,
        owner: 1,
        offset: 0,
        kind: Kind::Mapping,
        unwritten: false,
    };
    let held = (0..).find(|&i| match shadow.add_owner(record(i)) {
        Ok(()) => false,
        Err(error) => {
            assert_eq!(error, Error::NoMemory);
            true
        }
    });
    let held = held.unwrap();
    assert!(shadow.bytes() <= 64 << 10);
    assert!(held > 2000, "only {held} records in 64 KiB");
    assert_eq!(shadow.count().unwrap(), u64::from(held));
    shadow.remove_owner(record(0)).unwrap();
    assert_eq!(shadow.count().unwrap(), u64::from(held) - 1);
}

#[test]
fn no_memory_at_any_point_changes_nothing() {
    let record = |i: u32| Rmap {
        start: i * 7919 % 60_000,
        len: 1,
        owner: 1,
        offset: 0,
        kind: Kind::Xattr,
        unwritten: false,
    };
    let mut failures = 0;
    for limit in 0..32 {
        fail_after(None);
        let mut shadow = Shadow::new(1 << 24);
        fail_after(Some(limit));
        let mut held = Vec::new();
        for i in 0..2500 {
            match shadow.add_owner(record(i)) {
                Ok(()) => held.push(record(i)),
                Err(error) => {
                    assert_eq!(error, Error::NoMemory);
                    failures += 1;
                    break;
                }
            }
        }
        fail_after(None);
        let mut truth = Truth::default();
        assert!(held.iter().all(|record| truth.add(record)));
        assert_eq!(contents(&mut shadow), truth.records());
    }
    assert!(failures > 10, "{failures}");
}
