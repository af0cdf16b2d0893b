// SPDX-License-Identifier: GPL-2.0

//! Hashed directories: hashes against those that debugfs prints, the index of images that e2fsck
//! made, and splitting.

use crate::{
    format::{
        dir::{self, Entries},
        dir_edit,
        htree::{self, Hasher, Index},
        inode::{self, flags},
        superblock::{self, Layout},
    },
    format_tests::{Image, KINDS},
};
use proptest::prelude::*;
use std::{collections::BTreeMap, sync::OnceLock};

const LONG: &[u8] = b"a name of more than thirty-two bytes, so that it takes two rounds";
const BYTES: &[u8] = b"na\xc3\xafve caf\xc3\xa9 \xff\xfe";

fn layout() -> Layout {
    static LAYOUT: OnceLock<Layout> = OnceLock::new();
    let mut layout = *LAYOUT.get_or_init(|| Image::new(KINDS[0]).layout());
    layout.hash_seed = [0; 4];
    layout
}

#[test]
fn hashes_are_those_of_debugfs() {
    // As `debugfs -R 'dx_hash -h VERSION NAME'` prints them, VERSION from 0 to 5.
    let expected: &[(u8, bool, &[u8], u32, u32)] = &[
        (0, false, b"a", 0xe74b53e2, 0),
        (0, false, b"hello", 0x32252546, 0),
        (0, false, LONG, 0xe5431c6a, 0),
        (0, false, BYTES, 0xf20fb6ca, 0),
        (1, false, b"a", 0xd5fa7d7a, 0xacb48187),
        (1, false, b"hello", 0x1746da32, 0x420013b5),
        (1, false, LONG, 0x3c3a7174, 0x469c3e4a),
        (1, false, BYTES, 0x3428690e, 0x061d1a3d),
        (2, false, b"a", 0x6d0ea4c0, 0xc18922df),
        (2, false, b"hello", 0x6f5bb1a8, 0x231917c2),
        (2, false, LONG, 0x591247a0, 0xa5d55e98),
        (2, false, BYTES, 0x0700f50a, 0x6ef43a1d),
        (0, true, BYTES, 0xa8736828, 0),
        (1, true, BYTES, 0x12283c00, 0x694c5468),
        (2, true, BYTES, 0x6ead057a, 0x104db0c7),
    ];
    let mut layout = layout();
    for &(version, unsigned, name, major, minor) in expected {
        layout.hash_unsigned = unsigned;
        let hash = Hasher::new(&layout, version).unwrap().hash(name);
        assert_eq!(
            (hash.major, hash.minor),
            (major, minor),
            "version {version} {unsigned}"
        );
    }
    assert!(Hasher::new(&layout, 3).is_none());
}

#[test]
fn hashes_depend_on_the_seed() {
    // With `-s 01234567-89ab-cdef-0123-456789abcdef` and `-s 11234567-…`.
    let mut layout = layout();
    layout.hash_seed = [0x67452301, 0xefcdab89, 0x67452301, 0xefcdab89];
    let hash = Hasher::new(&layout, 1).unwrap().hash(b"hello");
    assert_eq!((hash.major, hash.minor), (0xa26e4a80, 0x97e5b7f7));
    layout.hash_seed[0] = 0x67452311;
    let hash = Hasher::new(&layout, 2).unwrap().hash(b"hello");
    assert_eq!((hash.major, hash.minor), (0x458d793e, 0x6a181bac));
}

#[test]
fn every_name_of_an_image_is_where_its_index_leads() {
    let mut indexes = 0;
    for kind in KINDS {
        let mut image = Image::new(kind);
        image.index_directories();
        let layout = image.layout();
        let ino = image.inode_of("/many");
        let found = inode::read(&layout, ino, image.inode_bytes(&layout, ino)).unwrap();
        if found.flags & flags::INDEX == 0 {
            continue;
        }
        indexes += 1;
        let seed = superblock::inode_seed(layout.seed, ino, found.generation);
        let blocks = image.blocks_of(&layout, ino);
        let block = |number: u32| {
            let place = blocks.iter().find(|(at, _)| *at == number).unwrap().1;
            image.block(&layout, place)
        };
        let root = htree::read_root(&layout, block(0)).unwrap();
        let hasher = Hasher::new(&layout, root.version).unwrap();
        let mut leaves = Vec::new();
        let mut nodes = vec![(0, usize::from(root.levels))];
        while let Some((number, levels)) = nodes.pop() {
            let bytes = block(number);
            htree::verify(&layout, bytes, seed).unwrap();
            let mut again = bytes.to_vec();
            htree::seal(&layout, &mut again, seed).unwrap();
            assert_eq!(bytes, again);
            let index = Index::read(&layout, bytes, number == 0).unwrap();
            for at in 0..index.len() {
                assert!(at < 2 || index.hash(at - 1) <= index.hash(at));
                match levels {
                    0 => leaves.push(index.child(at)),
                    _ => nodes.push((index.child(at), levels - 1)),
                }
            }
        }
        let mut names = 0;
        for &leaf in &leaves {
            for entry in Entries::new(&layout, block(leaf)) {
                let entry = entry.unwrap();
                if entry.inode == 0 {
                    continue;
                }
                let hash = hasher.hash(entry.name).major;
                let (mut number, mut levels) = (0, root.levels);
                loop {
                    let index = Index::read(&layout, block(number), number == 0).unwrap();
                    number = index.child(index.find(hash));
                    match levels {
                        0 => break,
                        _ => levels -= 1,
                    }
                }
                assert_eq!(number, leaf, "{:?}", String::from_utf8_lossy(entry.name));
                names += 1;
            }
        }
        assert_eq!(names, 700, "{kind:?}");
    }
    assert!(indexes > 0, "e2fsck made no hashed directory");
}

#[test]
fn a_search_passes_over_other_names_and_finds_damage() {
    let layout = layout();
    let mut block = vec![0; layout.block_size as usize];
    dir_edit::clear(&layout, &mut block).unwrap();
    for (ino, name) in [(11, "one"), (12, "two"), (13, "six")] {
        dir_edit::add(&layout, &mut block, name.as_bytes(), ino, 1).unwrap();
    }
    // An invalid name: it does no harm, but is not listed.
    block[8 + 1] = b'/';
    assert_eq!(dir::find(&layout, &block, b"one").unwrap(), None);
    assert_eq!(dir::find(&layout, &block, b"two").unwrap().unwrap().inode, 12);
    let valid: Vec<bool> = Entries::new(&layout, &block)
        .map(|entry| entry.unwrap().has_valid_name())
        .collect();
    assert_eq!(valid, [false, true, true]);
    // A length that leads into the next name, or out of the block.
    for len in [0u16, 8, 13, 1020] {
        block[12 + 4..12 + 6].copy_from_slice(&len.to_le_bytes());
        assert!(dir::find(&layout, &block, b"six").is_err(), "{len}");
        assert!(dir::find(&layout, &block, b"two").is_err(), "{len}");
    }
}

/// Names of a block as they are, sorted.
fn names(layout: &Layout, block: &[u8]) -> Vec<(Vec<u8>, u32, u8)> {
    let entries = Entries::new(layout, block).map(Result::unwrap);
    let mut names: Vec<_> = entries
        .filter(|entry| entry.inode != 0)
        .map(|entry| (entry.name.to_vec(), entry.inode, entry.file_type))
        .collect();
    names.sort();
    names
}

proptest! {
    #[test]
    fn a_full_leaf_is_split_by_hash(names_in in proptest::collection::hash_set("[a-zA-Z0-9]{1,255}", 50..90), version in 0u8..3) {
        let layout = layout();
        let size = layout.block_size as usize;
        let hasher = Hasher::new(&layout, version).unwrap();
        let mut block = vec![0; size];
        dir_edit::clear(&layout, &mut block).unwrap();
        let mut refused = None;
        for (ino, name) in names_in.iter().enumerate() {
            if !dir_edit::add(&layout, &mut block, name.as_bytes(), ino as u32 + 11, 1).unwrap() {
                refused = Some(name.as_bytes());
                break;
            }
        }
        let refused = refused.unwrap();
        let mut scratch = vec![Default::default(); htree::max_names(&block)];
        let (mut low, mut high) = (vec![0; size], vec![0; size]);
        let hash = htree::split(&layout, &hasher, &block, &mut scratch, &mut low, &mut high).unwrap();
        for half in [&mut low, &mut high] {
            dir_edit::seal(&layout, half, 7).unwrap();
            dir::verify(&layout, half, 7).unwrap();
            prop_assert!(dir_edit::find_room(&layout, half, refused).unwrap().is_some());
        }
        for (name, ino, _) in names(&layout, &block) {
            let entry = dir::find(&layout, &block, &name).unwrap().unwrap();
            prop_assert_eq!((entry.name, entry.inode), (&name[..], ino));
        }
        prop_assert_eq!(dir::find(&layout, &block, refused).unwrap(), None);
        let mut both = names(&layout, &low);
        both.extend(names(&layout, &high));
        both.sort();
        prop_assert_eq!(both, names(&layout, &block));
        for (name, ..) in names(&layout, &low) {
            prop_assert!(hasher.hash(&name).major <= hash & !1);
            prop_assert!(hash & 1 == 1 || hasher.hash(&name).major < hash);
        }
        for (name, ..) in names(&layout, &high) {
            prop_assert!(hasher.hash(&name).major >= hash & !1);
        }
    }
}

#[test]
fn an_index_grows_splits_and_keeps_its_entries() {
    let layout = layout();
    let size = layout.block_size as usize;
    let (mut linear, mut root, mut leaf) = (vec![0; size], vec![0; size], vec![0; size]);
    dir_edit::start(&layout, &mut linear, 12, 2).unwrap();
    for ino in 0..20 {
        dir_edit::add(
            &layout,
            &mut linear,
            format!("name {ino}").as_bytes(),
            20 + ino,
            1,
        )
        .unwrap();
    }
    htree::convert(&layout, &linear, &mut root, &mut leaf).unwrap();
    assert!(dir::is_index(&root, true));
    let mut all = names(&layout, &leaf);
    all.extend(names(&layout, &root));
    all.sort();
    assert_eq!(all, names(&layout, &linear));
    htree::seal(&layout, &mut root, 3).unwrap();
    htree::verify(&layout, &root, 3).unwrap();

    let mut expected = vec![(0, 1)];
    while !Index::read(&layout, &root, true).unwrap().is_full() {
        let hash = (expected.len() as u32 * 0x01ab_cdef) & !1;
        let at = Index::read(&layout, &root, true).unwrap().find(hash) + 1;
        htree::insert(&layout, &mut root, true, at, hash, 100 + expected.len() as u32).unwrap();
        expected.insert(at, (hash, 100 + expected.len() as u32));
    }
    assert!(htree::insert(&layout, &mut root, true, 1, 2, 3).is_err());
    let entries = |block: &[u8], first| -> Vec<(u32, u32)> {
        let index = Index::read(&layout, block, first).unwrap();
        (0..index.len())
            .map(|at| (index.hash(at), index.child(at)))
            .collect()
    };
    assert_eq!(entries(&root, true), expected);
    let mut node = vec![0; size];
    htree::start_node(&layout, &mut node, &Index::read(&layout, &root, true).unwrap(), 0).unwrap();
    assert!(dir::is_index(&node, false));
    assert_eq!(entries(&node, false), expected);
    htree::deepen(&layout, &mut root, 77).unwrap();
    assert_eq!(entries(&root, true), [(0, 77)]);
    assert_eq!(htree::read_root(&layout, &root).unwrap().levels, 1);
    let mut upper = vec![0; size];
    let half = expected.len() / 2;
    htree::start_node(
        &layout,
        &mut upper,
        &Index::read(&layout, &node, false).unwrap(),
        half,
    )
    .unwrap();
    htree::truncate(&layout, &mut node, false, half).unwrap();
    assert_eq!(entries(&node, false), expected[..half]);
    assert_eq!(entries(&upper, false)[1..], expected[half + 1..]);
    assert_eq!(entries(&upper, false)[0], (0, expected[half].1));
}

/// A directory in memory, which grows by the same steps as on a volume.
struct Model {
    layout: Layout,
    hasher: Hasher,
    blocks: Vec<Vec<u8>>,
}

impl Model {
    fn new(layout: Layout, version: u8) -> Model {
        let layout = Layout {
            hash_version: version,
            ..layout
        };
        let size = layout.block_size as usize;
        let (mut linear, mut root, mut leaf) = (vec![0; size], vec![0; size], vec![0; size]);
        dir_edit::start(&layout, &mut linear, 12, 2).unwrap();
        htree::convert(&layout, &linear, &mut root, &mut leaf).unwrap();
        Model {
            hasher: Hasher::default_of(&layout).unwrap(),
            layout,
            blocks: vec![root, leaf],
        }
    }

    fn index(&self, number: u32) -> Index<'_> {
        Index::read(&self.layout, &self.blocks[number as usize], number == 0).unwrap()
    }

    /// The index blocks on the way to the leaf for a hash, each with the entry that leads down, and
    /// the leaf.
    fn walk(&self, hash: u32) -> (Vec<(u32, usize)>, u32) {
        let levels = htree::read_root(&self.layout, &self.blocks[0]).unwrap().levels;
        let (mut way, mut number) = (Vec::new(), 0);
        for _ in 0..=levels {
            let index = self.index(number);
            let at = index.find(hash);
            way.push((number, at));
            number = index.child(at);
        }
        (way, number)
    }

    /// The leaves that may hold a name of a hash.
    fn leaves(&self, hash: u32) -> Vec<u32> {
        let (mut way, leaf) = self.walk(hash);
        let mut leaves = vec![leaf];
        loop {
            let mut level = way.len();
            let next = loop {
                let Some(above) = level.checked_sub(1) else {
                    return leaves;
                };
                level = above;
                let (number, at) = way[level];
                if at + 1 < self.index(number).len() {
                    break (number, at + 1);
                }
            };
            if self.index(next.0).hash(next.1) & !1 != hash {
                return leaves;
            }
            way.truncate(level);
            way.push(next);
            let mut child = self.index(next.0).child(next.1);
            let levels = htree::read_root(&self.layout, &self.blocks[0]).unwrap().levels;
            while way.len() <= usize::from(levels) {
                way.push((child, 0));
                child = self.index(child).child(0);
            }
            leaves.push(child);
        }
    }

    fn find(&self, name: &[u8]) -> Option<u32> {
        let leaves = self.leaves(self.hasher.hash(name).major).into_iter();
        let mut found = leaves.flat_map(|leaf| names(&self.layout, &self.blocks[leaf as usize]));
        found.find(|(found, ..)| found == name).map(|(_, ino, _)| ino)
    }

    fn remove(&mut self, name: &[u8]) -> bool {
        let mut leaves = self.leaves(self.hasher.hash(name).major).into_iter();
        leaves.any(|leaf| dir_edit::remove(&self.layout, &mut self.blocks[leaf as usize], name).unwrap())
    }

    fn add(&mut self, name: &[u8], ino: u32) {
        let (layout, size) = (self.layout, self.layout.block_size as usize);
        loop {
            let (way, leaf) = self.walk(self.hasher.hash(name).major);
            if dir_edit::add(&layout, &mut self.blocks[leaf as usize], name, ino, 1).unwrap() {
                return;
            }
            let fresh = self.blocks.len() as u32;
            let full = way
                .iter()
                .rev()
                .take_while(|(number, _)| self.index(*number).is_full());
            let level = way.len() - full.count();
            if level == way.len() {
                let (parent, at) = way[level - 1];
                let block = self.blocks[leaf as usize].clone();
                let mut scratch = vec![Default::default(); htree::max_names(&block)];
                let (mut low, mut high) = (vec![0; size], vec![0; size]);
                let hash =
                    htree::split(&layout, &self.hasher, &block, &mut scratch, &mut low, &mut high).unwrap();
                self.blocks[leaf as usize] = low;
                self.blocks.push(high);
                let parent_block = &mut self.blocks[parent as usize];
                htree::insert(&layout, parent_block, parent == 0, at + 1, hash, fresh).unwrap();
            } else if level > 0 {
                let ((parent, at), (node, _)) = (way[level - 1], way[level]);
                let mut high = vec![0; size];
                let index = self.index(node);
                let (half, hash) = (index.len() / 2, index.hash(index.len() / 2));
                htree::start_node(&layout, &mut high, &index, half).unwrap();
                htree::truncate(&layout, &mut self.blocks[node as usize], false, half).unwrap();
                self.blocks.push(high);
                let parent_block = &mut self.blocks[parent as usize];
                htree::insert(&layout, parent_block, parent == 0, at + 1, hash, fresh).unwrap();
            } else {
                let mut node = vec![0; size];
                htree::start_node(&layout, &mut node, &self.index(0), 0).unwrap();
                htree::deepen(&layout, &mut self.blocks[0], fresh).unwrap();
                self.blocks.push(node);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn a_directory_keeps_its_names(seed in any::<u64>(), version in 0u8..3, few in any::<bool>()) {
        let mut directory = Model::new(layout(), version);
        let mut expected = BTreeMap::new();
        let mut state = seed | 1;
        let mut random = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u32
        };
        for ino in 11..1511 {
            let pad = if few { 230 } else { random() as usize % 60 };
            let name = format!("{}{}", random() % 2000, "x".repeat(pad)).into_bytes();
            if expected.remove(&name).is_some() {
                prop_assert!(directory.remove(&name));
                prop_assert_eq!(directory.find(&name), None);
            } else {
                prop_assert!(!directory.remove(&name));
                directory.add(&name, ino);
                expected.insert(name, ino);
            }
        }
        for (name, ino) in &expected {
            prop_assert_eq!(directory.find(name), Some(*ino));
        }
        if few {
            let levels = htree::read_root(&directory.layout, &directory.blocks[0]).unwrap().levels;
            prop_assert!(levels > 0, "the index did not grow");
        }
    }
}
