// SPDX-License-Identifier: GPL-2.0

//! Checking a tree leaf by leaf finds the same errors as checking it as a whole, and tolerates
//! changes between its steps.

use crate::{
    engine::{
        btree::{BTree, Root, Store},
        node::{Entry, Node},
        record::{Kind, Record, Rmap, RmapKey},
        Error, Result,
    },
    engine_tests::{rmap, tall, Disk, TREE},
};
use proptest::prelude::*;
use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
};

/// Checks a whole tree step by step. Returns the number of steps, which never exceeds the number of
/// nodes.
fn walk(disk: &mut Disk, root: Root) -> Result<usize> {
    let most = disk.blocks.len();
    let tree = BTree::<_, Rmap>::open(disk, TREE, root);
    let (mut from, mut steps) = (None, 0);
    loop {
        steps += 1;
        assert!(steps <= most, "runs in circles");
        let next = tree.check_step(from)?;
        if next.is_none() {
            return Ok(steps);
        }
        assert!(from < next, "goes back");
        from = next;
    }
}

fn leaves(disk: &Disk) -> usize {
    disk.blocks
        .values()
        .filter(|bytes| Node(&bytes[..]).level() == 0)
        .count()
}

proptest! {
    #[test]
    fn a_good_tree_takes_a_step_a_leaf(count in 0u32..1000) {
        let (mut disk, root) = tall(count);
        prop_assert_eq!(walk(&mut disk, root), Ok(leaves(&disk)));
    }

    #[test]
    fn steps_find_what_the_whole_check_finds(
        count in 1u32..600,
        damage in prop::collection::vec((any::<prop::sample::Index>(), 0usize..160, any::<u8>()), 1..3),
    ) {
        let (mut disk, root) = tall(count);
        for (which, at, byte) in damage {
            let block = *which.get(&disk.blocks.keys().copied().collect::<Vec<_>>());
            let bytes = disk.blocks.get_mut(&block).unwrap();
            bytes[at] = byte;
            Node(&mut bytes[..]).seal(&TREE);
        }
        let whole = BTree::<_, Rmap>::open(&mut disk, TREE, root).check();
        let steps = walk(&mut disk, root);
        prop_assert_eq!(whole.is_err(), steps.is_err(), "{:?}, {:?}", whole, steps);
    }

    #[test]
    fn changes_between_steps_are_no_damage(
        count in 100u32..600,
        changes in prop::collection::vec((rmap(), 0u32..100_000, any::<bool>()), 0..600),
        every in 1usize..8,
    ) {
        let (mut disk, mut root) = tall(count);
        let mut changes = changes.into_iter();
        let mut from: Option<RmapKey> = None;
        loop {
            let mut tree = BTree::<_, Rmap>::open(&mut disk, TREE, root);
            let next = tree.check_step(from).unwrap();
            prop_assert!(next.is_none() || from < next);
            if next.is_none() {
                break;
            }
            from = next;
            for (record, near, add) in changes.by_ref().take(every) {
                let record = Rmap { start: near, ..record };
                if add {
                    let _ = tree.add_owner(record);
                    continue;
                }
                let mut found = None;
                tree.overlapping(near, u32::MAX, &mut |record| { found = Some(*record); Ok(false) }).unwrap();
                if let Some(found) = found {
                    tree.remove_owner(found).unwrap();
                }
            }
            root = tree.root;
        }
        BTree::<_, Rmap>::open(&mut disk, TREE, root).check().unwrap();
    }
}

/// Applies each kind of damage to each node of a tree of several levels, one at a time.
#[test]
fn each_damage_at_each_node_is_called_by_its_name() {
    let (disk, root) = tall(150);
    assert!(root.level >= 2);
    let stride = |level: u16| if level == 0 { 16 } else { 24 };
    let change_of = |name: &str, bytes: &mut Vec<u8>| -> bool {
        let node = Node(&bytes[..]);
        let (level, count) = (node.level(), node.count());
        let step = stride(level);
        let flip = |bytes: &mut Vec<u8>, at: usize| {
            bytes[at] ^= 1;
            true
        };
        match name {
            // The second-to-last word of an entry; the first byte of the second entry, whose
            // child's keys are then too low.
            "wrong high block" => level > 0 && flip(bytes, 32 + 16),
            "wrong low key" => level > 0 && count > 1 && flip(bytes, 32 + step),
            "left sibling" => flip(bytes, 24),
            "right sibling" => flip(bytes, 28),
            "keys out of order" => {
                // Swap the last two records.
                let end = 32 + count * step;
                level == 0 && count > 2 && {
                    let (first, second) = bytes[end - 2 * step..end].split_at_mut(step);
                    first.swap_with_slice(second);
                    true
                }
            }
            "empty node" => {
                bytes[22] = 0;
                true
            }
            "wrong level" => flip(bytes, 20),
            "bad record" => {
                // A record of zero blocks.
                level == 0 && {
                    bytes[32 + 4..32 + 8].fill(0);
                    true
                }
            }
            "stale generation" => flip(bytes, 16),
            "node of another region" => flip(bytes, 12),
            "node of another block" => flip(bytes, 8),
            "bad magic" => flip(bytes, 0),
            _ => unreachable!(),
        }
    };
    for name in [
        "wrong high block",
        "wrong low key",
        "left sibling",
        "right sibling",
        "keys out of order",
        "empty node",
        "wrong level",
        "bad record",
        "stale generation",
        "node of another region",
        "node of another block",
        "bad magic",
    ] {
        let mut seen = 0;
        for &block in disk.blocks.keys() {
            let mut disk = disk.clone();
            let bytes = disk.blocks.get_mut(&block).unwrap();
            if !change_of(name, bytes) {
                continue;
            }
            Node(&mut bytes[..]).seal(&TREE);
            seen += 1;
            let whole = BTree::<_, Rmap>::open(&mut disk, TREE, root).check();
            assert!(whole.is_err(), "{name} at {block}");
            let found = walk(&mut disk, root);
            let expected = match name {
                "left sibling" | "right sibling" => "wrong sibling",
                name => name,
            };
            match found {
                Err(Error::Corrupt { what, .. }) => assert_eq!(what, expected, "at {block}"),
                other => panic!("{name} at {block}: {other:?}"),
            }
        }
        assert!(seen > 3, "{name}");
    }
}

/// Returns a record of one block.
fn one(start: u32) -> Rmap {
    Rmap {
        start,
        len: 1,
        owner: 5,
        offset: 0,
        kind: Kind::Data,
        unwritten: false,
    }
}

/// Returns a tree in which all entries of a node point to the same child, and have the first blocks
/// `lows`.
fn tangled(levels: u16, lows: &dyn Fn(u32) -> u32) -> (Disk, Root) {
    let mut disk = Disk::new(160);
    let leaf = disk.alloc().unwrap();
    let bytes = disk.blocks.get_mut(&leaf).unwrap();
    let mut node = Node(&mut bytes[..]);
    node.init(&TREE, leaf, 0);
    node.insert_record(0, &one(lows(0))).unwrap();
    node.seal(&TREE);
    let mut child = leaf;
    for level in 1..=levels {
        let block = disk.alloc().unwrap();
        let bytes = disk.blocks.get_mut(&block).unwrap();
        let mut node = Node(&mut bytes[..]);
        node.init(&TREE, block, level);
        for index in 0..5 {
            let entry = Entry {
                low: one(lows(index)).key(),
                high: u32::MAX,
                child,
            };
            node.insert_entry::<Rmap>(index as usize, &entry).unwrap();
        }
        node.seal(&TREE);
        child = block;
    }
    let root = Root {
        block: child,
        level: levels,
    };
    (disk, root)
}

#[test]
fn no_node_is_visited_twice() {
    // With ascending keys, and with equal ones.
    for lows in [&(|index: u32| 10 + index) as &dyn Fn(u32) -> u32, &|_| 10] {
        let (mut disk, root) = tangled(9, lows);
        disk.reads_left = Cell::new(200);
        let tree = BTree::<_, Rmap>::open(&mut disk, TREE, root);
        let outcome = tree.overlapping(0, u32::MAX, &mut |_| Ok(true));
        assert!(matches!(outcome, Err(Error::Corrupt { .. })), "{outcome:?}");
    }
}

/// Two pointers that lead to one node are not treated as two nodes.
#[test]
fn a_node_is_not_its_own_sibling() {
    let mut refused = 0;
    for levels in 1..4 {
        for lows in [&(|index: u32| 10 + index) as &dyn Fn(u32) -> u32, &|_| 10] {
            let (mut disk, root) = tangled(levels, lows);
            let mut tree = BTree::<_, Rmap>::open(&mut disk, TREE, root);
            for start in (20..60).step_by(2) {
                // What is wrong may be found before two nodes are changed together.
                refused += u32::from(tree.add_owner(one(start)).is_err());
            }
            for start in (10..60).rev() {
                refused += u32::from(tree.remove_owner(one(start)).is_err());
            }
        }
    }
    assert!(refused > 0);
}

#[test]
fn keys_out_of_order_across_leaves_are_found() {
    let mut disk = Disk::new(160);
    let record = |start: u32| Rmap {
        start,
        len: 1,
        owner: 1,
        offset: 0,
        kind: Kind::Mapping,
        unwritten: false,
    };
    let mut tree = BTree::<_, Rmap>::create(&mut disk, TREE).unwrap();
    for i in 0..20 {
        tree.insert(&record(i)).unwrap();
    }
    let root = tree.root;
    let mut block = 0;
    for (number, bytes) in &disk.blocks {
        let node = Node(&bytes[..]);
        if node.level() == 0 && node.siblings().0 == 0 {
            block = *number;
        }
    }
    // Seven keys of the first leaf stay the same, the eighth is moved beyond the first key of the
    // next leaf.
    let bytes = disk.blocks.get_mut(&block).unwrap();
    Node(&mut bytes[..]).set_record::<Rmap>(7, &record(12)).unwrap();
    Node(&mut bytes[..]).seal(&TREE);
    let parent = disk.blocks.get_mut(&root.block).unwrap();
    parent[32 + 16..32 + 20].copy_from_slice(&12u32.to_le_bytes());
    Node(&mut parent[..]).seal(&TREE);
    let whole = BTree::<_, Rmap>::open(&mut disk, TREE, root).check();
    let expected = "keys out of order";
    assert!(matches!(whole, Err(Error::Corrupt { what, .. }) if what == expected));
    assert_eq!(
        walk(&mut disk, root),
        Err(Error::Corrupt {
            block,
            what: expected
        })
    );
}

/// A store of cached buffers that remembers which checksums have been verified.
struct Cache {
    disk: Disk,
    checked: RefCell<HashSet<u32>>,
}

struct Cached<'a> {
    block: u32,
    bytes: &'a [u8],
}

impl AsRef<[u8]> for Cached<'_> {
    fn as_ref(&self) -> &[u8] {
        self.bytes
    }
}

impl Store for Cache {
    type Read<'a> = Cached<'a>;
    const SEALED: bool = true;

    fn read(&self, block: u32) -> Result<Cached<'_>> {
        let bytes = self.disk.read(block)?;
        Ok(Cached { block, bytes })
    }

    fn modify(&mut self, block: u32, change: &mut dyn FnMut(&mut [u8])) -> Result {
        self.disk.modify(block, change)
    }

    fn modify_pair(&mut self, blocks: [u32; 2], change: &mut dyn FnMut(&mut [u8], &mut [u8])) -> Result {
        self.disk.modify_pair(blocks, change)
    }

    fn alloc(&mut self) -> Result<u32> {
        self.disk.alloc()
    }

    fn free(&mut self, block: u32) -> Result {
        self.disk.free(block)
    }

    fn block_size(&self) -> usize {
        Store::block_size(&self.disk)
    }

    fn is_checked(&self, read: &Cached<'_>) -> bool {
        self.checked.borrow().contains(&read.block)
    }

    fn set_checked(&self, read: &Cached<'_>) {
        self.checked.borrow_mut().insert(read.block);
    }
}

#[test]
fn a_checksum_is_summed_once_a_buffer() {
    let (disk, root) = tall(150);
    let mut cache = Cache {
        disk,
        checked: RefCell::default(),
    };
    let what = |cache: &mut Cache| match BTree::<_, Rmap>::open(cache, TREE, root).check() {
        Ok(_) => "sound",
        Err(Error::Corrupt { what, .. }) => what,
        Err(error) => panic!("{error:?}"),
    };
    assert_eq!(what(&mut cache), "sound");
    assert_eq!(cache.checked.borrow().len(), cache.disk.blocks.len());
    // A verified checksum is not verified again until the buffer is read again, but the node's
    // identity is.
    cache.disk.blocks.get_mut(&root.block).unwrap()[4] ^= 1;
    assert_eq!(what(&mut cache), "sound");
    cache.checked.borrow_mut().clear();
    assert_eq!(what(&mut cache), "checksum mismatch");
    assert!(
        !cache.checked.borrow().contains(&root.block),
        "a wrong one is remembered"
    );
    cache.disk.blocks.get_mut(&root.block).unwrap()[4] ^= 1;
    assert_eq!(what(&mut cache), "sound");
    cache.disk.blocks.get_mut(&root.block).unwrap()[16] ^= 1;
    assert_eq!(what(&mut cache), "stale generation");
    cache.disk.blocks.get_mut(&root.block).unwrap()[16] ^= 1;
    // Modified nodes get a valid checksum nevertheless.
    let mut tree = BTree::<_, Rmap>::open(&mut cache, TREE, root);
    for start in 0..100 {
        let owner = 9;
        let _ = tree.add_owner(Rmap {
            start: start * 3,
            len: 1,
            owner,
            offset: 0,
            kind: Kind::Mapping,
            unwritten: false,
        });
    }
    let root = tree.root;
    cache.checked.borrow_mut().clear();
    BTree::<_, Rmap>::open(&mut cache, TREE, root).check().unwrap();
}
