// SPDX-License-Identifier: GPL-2.0

//! Comparing a tree with collected records: equal ones are found equal while both change, and every
//! difference is found.

use crate::{
    engine::{
        btree::BTree,
        compare::{Comparison, Step, Trouble},
        delta::Update,
        node::Node,
        rebuild::{apply, load},
        record::{Kind, Record, Rmap},
        shadow::Shadow,
    },
    engine_tests::{rmap, Disk, Truth, TREE},
    shadow_tests::{filled, part_of},
};
use proptest::prelude::*;

/// Returns a shadow with these records, most of them appended, and the tree loaded from it.
fn both(truth: &Truth) -> (Shadow, Disk, crate::engine::btree::Root) {
    let mut all = truth.records();
    all.sort_by_key(|record| {
        (
            record.owner,
            record.kind != Kind::Data,
            record.offset,
            record.start,
        )
    });
    // The same place of a file twice, which no file has, comes as a change.
    let (mut gathered, mut left): (Vec<Rmap>, Vec<Rmap>) = Default::default();
    for record in all {
        let fits = gathered.last().is_none_or(|last| {
            (last.owner, last.kind) != (record.owner, Kind::Data) || last.offset + last.len <= record.offset
        });
        if fits { &mut gathered } else { &mut left }.push(record);
    }
    let mut shadow = filled(&gathered).unwrap();
    for record in left {
        shadow.add_owner(record).unwrap();
    }
    let mut disk = Disk::new(256);
    let root = load(&mut shadow, &mut disk, TREE, 10).unwrap();
    (shadow, disk, root)
}

/// Runs a comparison to the end.
fn whole(tree: &BTree<'_, Disk, Rmap>, shadow: &mut Shadow, leaves: usize) -> Result<Step, Trouble> {
    let mut comparison = Comparison::new();
    loop {
        match comparison.step(tree, shadow, leaves)? {
            Step::Equal(Some(_)) => (),
            end => return Ok(end),
        }
    }
}

fn data() -> impl Strategy<Value = Truth> {
    prop::collection::vec(rmap(), 0..300).prop_map(|records| {
        let mut truth = Truth::default();
        for record in records {
            truth.add(&record);
        }
        truth
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_kept_up_stays_equal(
        truth in data(),
        changes in prop::collection::vec((rmap(), any::<bool>(), 0u32..40), 0..200),
        each in 0usize..40,
        leaves in 1usize..5,
    ) {
        let mut truth = truth;
        let (mut shadow, mut disk, mut root) = both(&truth);
        let mut changes = changes.into_iter();
        let mut comparison = Comparison::new();
        let mut before = None;
        loop {
            let mut tree = BTree::open(&mut disk, TREE, root);
            for (record, add, skip) in changes.by_ref().take(each) {
                let update = if add {
                    if !truth.add(&record) {
                        continue;
                    }
                    Update::Add(record)
                } else {
                    let Some(part) = part_of(&truth, &record, skip) else { continue };
                    prop_assert!(truth.remove(&part));
                    Update::Remove(part)
                };
                shadow.apply(&update).unwrap();
                apply(&mut tree, &[update]).unwrap();
            }
            root = tree.root;
            match comparison.step(&tree, &mut shadow, leaves) {
                Ok(Step::Equal(Some(next))) => {
                    // After the tree has shrunk, a step may start with records that were compared
                    // before.
                    prop_assert!(before <= Some(next));
                    before = Some(next);
                }
                end => {
                    prop_assert_eq!(end, Ok(Step::Equal(None)));
                    break;
                }
            }
        }
    }

    #[test]
    fn what_differs_is_found(
        truth in data(),
        other in rmap(),
        which in any::<prop::sample::Index>(),
        change in 0usize..3,
        leaves in 1usize..5,
    ) {
        let (mut shadow, mut disk, root) = both(&truth);
        let all = truth.records();
        let mut tree = BTree::open(&mut disk, TREE, root);
        prop_assert_eq!(whole(&tree, &mut shadow, leaves), Ok(Step::Equal(None)));
        // One record too many, one missing, or one replaced.
        let there = (!all.is_empty()).then(|| all[which.index(all.len().max(1))]);
        match (change, there) {
            (0, _) | (_, None) => {
                prop_assume!(tree.insert(&other).is_ok());
                let found = whole(&tree, &mut shadow, leaves);
                prop_assert!(matches!(found, Ok(Step::Different(Some(_), _))), "{:?}", found);
                return Ok(());
            }
            (1, Some(there)) => drop(tree.delete(there.key()).unwrap()),
            (_, Some(there)) => tree.replace(there.key(), &Rmap { len: there.len + 1, ..there }).unwrap(),
        }
        let found = whole(&tree, &mut shadow, leaves);
        prop_assert!(matches!(found, Ok(Step::Different(_, Some(_)))), "{:?}", found);
    }

    /// The leaves to be read ahead are all leaves, from left to right.
    #[test]
    fn what_is_compared_next_is_known(truth in data(), leaves in 1usize..5) {
        let (mut shadow, mut disk, root) = both(&truth);
        let tree = BTree::<_, Rmap>::open(&mut disk, TREE, root);
        let mut comparison = Comparison::new();
        let mut ahead = Vec::new();
        let end = loop {
            let before = ahead.len();
            comparison.ahead(&tree, leaves, &mut |block| { ahead.push(block); Ok(()) }).unwrap();
            prop_assert!((1..=leaves).contains(&(ahead.len() - before)));
            match comparison.step(&tree, &mut shadow, leaves) {
                Ok(Step::Equal(Some(_))) => (),
                end => break end,
            }
        };
        prop_assert_eq!(end, Ok(Step::Equal(None)));
        // Each one is the right sibling of the previous one.
        let mut right = ahead[0];
        for block in ahead {
            prop_assert_eq!(block, right);
            right = Node(&disk.blocks[&block]).siblings().1;
        }
        prop_assert_eq!(right, 0);
    }

    #[test]
    fn a_bad_leaf_is_not_taken_for_a_difference(truth in data(), which in any::<prop::sample::Index>(), byte in 0usize..256) {
        let (mut shadow, mut disk, root) = both(&truth);
        let blocks: Vec<u32> = disk.blocks.keys().copied().collect();
        let block = blocks[which.index(blocks.len())];
        disk.blocks.get_mut(&block).unwrap()[byte] ^= 0x10;
        let tree = BTree::open(&mut disk, TREE, root);
        prop_assert!(matches!(whole(&tree, &mut shadow, 3), Err(Trouble::Tree(_))));
    }
}
