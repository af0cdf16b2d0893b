// SPDX-License-Identifier: GPL-2.0

//! Reference counts, changed in the tree and recounted from owners, compared with one counter per
//! block.

use crate::{
    engine::{
        btree::BTree,
        record::Record,
        recount::Counter,
        refcount::{Count, Turn, STAGED},
        Error,
    },
    engine_tests::{Disk, TREE},
};
use proptest::prelude::*;

/// Number of blocks in the model.
const BLOCKS: u32 = 300;

/// The number of owners of each block, and the staged blocks.
struct Model {
    owners: Vec<u32>,
    staged: Vec<u32>,
}

impl Model {
    fn new() -> Model {
        Model {
            owners: vec![1; BLOCKS as usize],
            staged: vec![0; BLOCKS as usize],
        }
    }

    fn half(&mut self, start: u32) -> &mut Vec<u32> {
        if start & STAGED == 0 {
            &mut self.owners
        } else {
            &mut self.staged
        }
    }

    /// Applies a change. Returns false if it is impossible.
    fn turn(&mut self, turn: &Turn) -> bool {
        let least = u32::from(turn.start & STAGED == 0);
        let first = (turn.start & !STAGED) as usize;
        let blocks = &mut self.half(turn.start)[first..first + turn.len as usize];
        if least == 0 && blocks.iter().any(|&count| (count == 0) != turn.up) {
            return false;
        }
        for count in blocks {
            *count = if turn.up {
                *count + 1
            } else {
                (*count - 1).max(least)
            };
        }
        true
    }

    fn records(&self) -> Vec<Count> {
        let mut all = canonical(&self.owners, 2, 0);
        all.extend(canonical(&self.staged, 1, STAGED));
        all
    }
}

/// Returns the records for these counts. Blocks with fewer than `least` owners have none.
fn canonical(counts: &[u32], least: u32, base: u32) -> Vec<Count> {
    let mut all: Vec<Count> = Vec::new();
    for (block, &count) in (base..).zip(counts) {
        if count < least {
            continue;
        }
        match all.last_mut() {
            Some(last) if last.end() == block && last.count == count => last.len += 1,
            _ => all.push(Count {
                start: block,
                len: 1,
                count,
            }),
        }
    }
    all
}

fn records(tree: &BTree<'_, Disk, Count>) -> Vec<Count> {
    let mut all = Vec::new();
    tree.overlapping(0, u32::MAX, &mut |record| {
        all.push(*record);
        Ok(true)
    })
    .unwrap();
    all
}

prop_compose! {
    fn turn()(
        start in 0..BLOCKS, len in 1u32..60, up in prop::bool::weighted(0.6), staged in prop::bool::weighted(0.3),
    ) -> Turn {
        Turn { start: start | if staged { STAGED } else { 0 }, len: len.min(BLOCKS - start), up }
    }
}

proptest! {
    #[test]
    fn counts_follow_their_owners(turns in prop::collection::vec(turn(), 1..200)) {
        let mut disk = Disk::new(128);
        let mut root = BTree::<_, Count>::create(&mut disk, TREE).unwrap().root;
        let mut model = Model::new();
        for turn in &turns {
            let before = disk.clone();
            let mut tree = BTree::<_, Count>::open(&mut disk, TREE, root);
            let outcome = tree.turn(turn);
            let after = tree.root;
            if model.turn(turn) {
                prop_assert_eq!(outcome, Ok(()));
                root = after;
            } else {
                // Detected before anything changed.
                prop_assert!(matches!(outcome, Err(Error::Mismatch(_))));
                prop_assert_eq!(after, root);
                prop_assert_eq!(&disk.blocks, &before.blocks);
            }
            let tree = BTree::<_, Count>::open(&mut disk, TREE, root);
            prop_assert_eq!(records(&tree), model.records());
        }
        let tree = BTree::<_, Count>::open(&mut disk, TREE, root);
        prop_assert_eq!(tree.check().unwrap().nodes as usize, disk.blocks.len());

        // Query the counts of an arbitrary part.
        let tree = BTree::<_, Count>::open(&mut disk, TREE, root);
        for turn in turns.iter().filter(|turn| turn.start & STAGED == 0) {
            let mut at = turn.start;
            let mut before = None;
            tree.each_count(turn.start, turn.len, &mut |start, len, count| {
                assert_eq!(start, at);
                assert!(len > 0 && before != Some(count));
                assert!((start..start + len).all(|block| model.owners[block as usize] == count));
                at += len;
                before = Some(count);
                Ok(true)
            })
            .unwrap();
            prop_assert_eq!(at, turn.start + turn.len);
            let shared = model.owners[turn.start as usize..at as usize].iter().any(|&count| count > 1);
            prop_assert_eq!(tree.has_counts(turn.start, at - 1).unwrap(), shared);
        }
    }

    #[test]
    fn a_sweep_finds_what_owners_make(
        owners in prop::collection::vec((0..BLOCKS, 1u32..40), 0..120),
        borders in prop::collection::btree_set(1..BLOCKS, 0..6),
    ) {
        let mut counts = vec![0; BLOCKS as usize];
        let mut owners: Vec<_> = owners.into_iter().map(|(start, len)| (start, len.min(BLOCKS - start))).collect();
        owners.sort();
        for &(start, len) in &owners {
            counts[start as usize..(start + len) as usize].iter_mut().for_each(|count| *count += 1);
        }
        // Recount in parts, which are appended to a tree one after the other.
        let mut disk = Disk::new(128);
        let mut root = BTree::<_, Count>::create(&mut disk, TREE).unwrap().root;
        let ends: Vec<u32> = borders.into_iter().chain([BLOCKS]).collect();
        let mut from = 0;
        let mut most = 0;
        for to in ends {
            let mut found = Vec::new();
            let mut sweep = Counter::new(from, to);
            for &(start, len) in &owners {
                sweep.push(start, start + len - 1, &mut |record| { found.push(record); Ok(()) }).unwrap();
            }
            most = most.max(sweep.most());
            sweep.finish(&mut |record| { found.push(record); Ok(()) }).unwrap();
            prop_assert_eq!(&found, &canonical(&counts[from as usize..to as usize], 2, from));
            let mut tree = BTree::<_, Count>::open(&mut disk, TREE, root);
            for record in &found {
                tree.append(record).unwrap();
            }
            root = tree.root;
            from = to;
        }
        prop_assert_eq!(most, counts.iter().copied().max().unwrap());
        let tree = BTree::<_, Count>::open(&mut disk, TREE, root);
        tree.check().unwrap();
        prop_assert_eq!(records(&tree), canonical(&counts, 2, 0));
    }

    #[test]
    fn any_failure_is_told(
        turns in prop::collection::vec(turn(), 1..100), room in 0usize..20, changes in 0usize..200,
    ) {
        let mut disk = Disk::new(128);
        let root = BTree::<_, Count>::create(&mut disk, TREE).unwrap().root;
        disk.limit = room + 1;
        disk.changes_left = changes;
        let mut tree = BTree::<_, Count>::open(&mut disk, TREE, root);
        let mut model = Model::new();
        for turn in &turns {
            let right = model.turn(turn);
            match tree.turn(turn) {
                Ok(()) => prop_assert!(right),
                Err(Error::Mismatch(_)) if !right => (),
                Err(_) => return Ok(()),
            }
        }
        prop_assert_eq!(records(&tree), model.records());
    }
}

#[test]
fn records_that_cannot_be_are_refused() {
    let bytes = |start: u32, len: u32, count: u32| {
        let mut bytes = [0; 12];
        Count { start, len, count }.store(&mut bytes);
        bytes
    };
    let good =
        |start, len, count| Count::load(&bytes(start, len, count)) == Some(Count { start, len, count });
    assert!(good(0, 1, 2) && good(5, 100, u32::MAX) && good(STAGED, 7, 1) && good(STAGED - 7, 7, 2));
    for (start, len, count) in [
        (0, 0, 2),
        (0, 1, 0),
        (0, 1, 1),
        (STAGED, 1, 0),
        (STAGED, 1, 2),
        (STAGED - 7, 8, 2),
        (u32::MAX, 2, 1),
        (u32::MAX, 1, 1),
    ] {
        assert_eq!(
            Count::load(&bytes(start, len, count)),
            None,
            "{start:#x} {len} {count}"
        );
    }
    assert_eq!(Count::load(&[0; 11]), None);
}

#[test]
fn a_count_does_not_run_over() {
    let mut disk = Disk::new(128);
    let mut tree = BTree::<_, Count>::create(&mut disk, TREE).unwrap();
    let most = Count {
        start: 5,
        len: 2,
        count: u32::MAX,
    };
    tree.insert(&most).unwrap();
    let turn = |up| Turn { start: 4, len: 4, up };
    assert_eq!(tree.turn(&turn(true)), Err(Error::Mismatch("too many owners")));
    assert_eq!(records(&tree), [most]);
    tree.turn(&turn(false)).unwrap();
    assert_eq!(records(&tree)[0].count, u32::MAX - 1);
}
