// SPDX-License-Identifier: GPL-2.0

//! Changes of owners: they happen entirely or not at all, whatever fails, and touch few nodes.

use crate::{
    engine::{
        btree::BTree,
        owners::owner_nodes_touched,
        record::{Kind, Record, Rmap},
        Error,
    },
    engine_tests::{records, rmap, Disk, Truth, TREE},
};
use proptest::prelude::*;

/// A change derived from a random record: the record is added, or part of the existing record at or
/// after it is removed.
#[derive(Clone, Copy, Debug)]
struct Step {
    record: Rmap,
    add: bool,
    skip: u32,
}

prop_compose! {
    fn step()(record in rmap(), add in prop::bool::weighted(0.6), skip in 0u32..40) -> Step {
        Step { record, add, skip }
    }
}

impl Step {
    /// Returns whether this step adds or removes, and the record.
    fn what(&self, truth: &Truth) -> (bool, Rmap) {
        let whole = truth
            .records()
            .into_iter()
            .find(|whole| whole.start >= self.record.start);
        match whole.filter(|_| !self.add) {
            None => (true, self.record),
            Some(whole) => {
                let skip = self.skip % whole.len;
                let offset = if whole.kind == Kind::Data {
                    whole.offset + skip
                } else {
                    0
                };
                let part = Rmap {
                    start: whole.start + skip,
                    len: self.record.len.min(whole.len - skip),
                    offset,
                    ..whole
                };
                (false, part)
            }
        }
    }
}

fn change(tree: &mut BTree<'_, Disk, Rmap>, add: bool, record: Rmap) -> crate::engine::Result {
    if add {
        tree.add_owner(record)
    } else {
        tree.remove_owner(record)
    }
}

fn follow(truth: &mut Truth, add: bool, record: &Rmap) -> bool {
    if add {
        truth.add(record)
    } else {
        truth.remove(record)
    }
}

proptest! {
    #[test]
    fn a_full_disk_leaves_the_owners_as_they_were(
        steps in prop::collection::vec((step(), 0usize..3), 1..150),
        size in prop_oneof![Just(160usize), Just(256)],
    ) {
        let mut disk = Disk::new(size);
        let mut root = BTree::<_, Rmap>::create(&mut disk, TREE).unwrap().root;
        let mut truth = Truth::default();
        for (step, room) in steps {
            let (add, record) = step.what(&truth);
            let mut wanted = truth.clone();
            let fits = follow(&mut wanted, add, &record);
            let before = disk.blocks.clone();
            disk.limit = before.len() + room;
            let mut tree = BTree::<_, Rmap>::open(&mut disk, TREE, root);
            let outcome = change(&mut tree, add, record);
            let after = tree.root;
            match outcome {
                Ok(()) => {
                    prop_assert!(fits);
                    truth = wanted;
                    root = after;
                }
                Err(error) => {
                    prop_assert_eq!(matches!(error, Error::Mismatch(_)), !fits, "{:?}", error);
                    prop_assert_eq!(after, root);
                    prop_assert_eq!(&disk.blocks, &before);
                }
            }
        }
        let tree = BTree::<_, Rmap>::open(&mut disk, TREE, root);
        prop_assert_eq!(tree.check().unwrap().nodes as usize, disk.blocks.len());
        let tree = BTree::<_, Rmap>::open(&mut disk, TREE, root);
        prop_assert_eq!(records(&tree), truth.records());
    }

    #[test]
    fn an_unreadable_node_leaves_the_owners_as_they_were(
        steps in prop::collection::vec((step(), any::<prop::sample::Index>()), 1..150),
    ) {
        let mut disk = Disk::new(160);
        let mut root = BTree::<_, Rmap>::create(&mut disk, TREE).unwrap().root;
        let mut truth = Truth::default();
        for (step, which) in steps {
            let (add, record) = step.what(&truth);
            let before = disk.blocks.clone();
            disk.unreadable = Some(*which.get(&before.keys().copied().collect::<Vec<_>>()));
            let mut tree = BTree::<_, Rmap>::open(&mut disk, TREE, root);
            let outcome = change(&mut tree, add, record);
            let after = tree.root;
            disk.unreadable = None;
            if outcome.is_ok() {
                root = after;
                prop_assert!(follow(&mut truth, add, &record));
            } else {
                prop_assert_eq!(after, root);
                prop_assert_eq!(&disk.blocks, &before);
            }
        }
        let tree = BTree::<_, Rmap>::open(&mut disk, TREE, root);
        tree.check().unwrap();
        prop_assert_eq!(records(&tree), truth.records());
    }

    /// After a rejected change the contents are unspecified, but an error must be returned, and
    /// nothing may panic afterwards.
    #[test]
    fn a_change_that_the_store_refuses_is_told(
        steps in prop::collection::vec(step(), 1..150),
        left in 0usize..200,
    ) {
        let mut disk = Disk::new(160);
        let mut root = BTree::<_, Rmap>::create(&mut disk, TREE).unwrap().root;
        let mut truth = Truth::default();
        disk.changes_left = left;
        for step in &steps {
            let (add, record) = step.what(&truth);
            let mut tree = BTree::<_, Rmap>::open(&mut disk, TREE, root);
            let outcome = change(&mut tree, add, record);
            root = tree.root;
            match outcome {
                Ok(()) => prop_assert!(follow(&mut truth, add, &record)),
                Err(Error::Mismatch(_)) => (),
                Err(error) => {
                    prop_assert_eq!(error, Error::Io);
                    break;
                }
            }
            prop_assert_eq!(records(&tree), truth.records());
        }
        disk.changes_left = usize::MAX;
        let mut tree = BTree::<_, Rmap>::open(&mut disk, TREE, root);
        let _ = tree.check();
        for step in &steps {
            let (add, record) = step.what(&truth);
            let _ = change(&mut tree, add, record);
        }
    }

    #[test]
    fn a_change_of_owners_touches_a_bounded_number_of_nodes(
        steps in prop::collection::vec(step(), 1..300),
        size in prop_oneof![Just(160usize), Just(208), Just(256)],
    ) {
        let mut disk = Disk::new(size);
        let mut root = BTree::<_, Rmap>::create(&mut disk, TREE).unwrap().root;
        let mut truth = Truth::default();
        for step in steps {
            let (add, record) = step.what(&truth);
            let level = root.level;
            disk.touched.clear();
            let mut tree = BTree::<_, Rmap>::open(&mut disk, TREE, root);
            if change(&mut tree, add, record).is_ok() {
                prop_assert!(follow(&mut truth, add, &record));
            }
            root = tree.root;
            let touched = disk.touched.len() as u32;
            prop_assert!(touched <= owner_nodes_touched(level), "{touched} at level {level}");
        }
    }

    /// Records of one block each, enough for a tall tree, are replaced by records with arbitrary
    /// other keys.
    #[test]
    fn a_replaced_record_lies_where_its_key_belongs(
        moves in prop::collection::vec((any::<prop::sample::Index>(), 0u32..400, 1u32..30), 1..120),
        limits in prop::collection::vec(0usize..3, 120),
    ) {
        let record = |start: u32, len: u32| Rmap { start, len, owner: 1, offset: 0, kind: Kind::Mapping, unwritten: false };
        let mut disk = Disk::new(160);
        let mut tree = BTree::<_, Rmap>::create(&mut disk, TREE).unwrap();
        let mut model: std::collections::BTreeMap<_, _> = (0..200)
            .map(|i| record(i * 7 % 400, 1))
            .map(|record| (record.key(), record))
            .collect();
        for record in model.values() {
            tree.insert(record).unwrap();
        }
        let mut root = tree.root;
        for ((which, start, len), room) in moves.into_iter().zip(limits) {
            let old = *which.get(&model.keys().copied().collect::<Vec<_>>());
            let new = record(start, len);
            let before = disk.blocks.clone();
            disk.limit = before.len() + room;
            disk.touched.clear();
            let mut tree = BTree::<_, Rmap>::open(&mut disk, TREE, root);
            let outcome = tree.replace(old, &new);
            let level = std::mem::replace(&mut root, tree.root).level;
            let touched = disk.touched.len() as u32;
            if outcome.is_ok() {
                prop_assert!(old == new.key() || !model.contains_key(&new.key()));
                prop_assert!(old != new.key() || touched <= u32::from(level) + 1);
                prop_assert!(touched <= owner_nodes_touched(level));
                model.remove(&old);
                model.insert(new.key(), new);
            } else {
                let clash = old != new.key() && model.contains_key(&new.key());
                prop_assert_eq!(matches!(outcome, Err(Error::Mismatch(_))), clash);
                prop_assert_eq!(&disk.blocks, &before);
            }
            let tree = BTree::<_, Rmap>::open(&mut disk, TREE, root);
            tree.check().unwrap();
            prop_assert_eq!(records(&tree), model.values().copied().collect::<Vec<_>>());
        }
    }
}

/// The upper bound of modified nodes holds, on trees tall and wide enough for the worst case.
#[test]
fn the_bound_on_touched_nodes_is_true() {
    for size in [160usize, 208, 256] {
        let mut disk = Disk::new(size);
        let mut root = BTree::<_, Rmap>::create(&mut disk, TREE).unwrap().root;
        let mut owned: Vec<Rmap> = Vec::new();
        let mut state = size as u32;
        for round in 0..40_000u32 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let mut random = |below: u32| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) % below
            };
            let grow = round / 10_000 % 2 == 0;
            disk.touched.clear();
            let level = root.level;
            let mut tree = BTree::<_, Rmap>::open(&mut disk, TREE, root);
            if owned.is_empty() || random(10) < if grow { 7 } else { 3 } {
                let owner = 1 + random(2);
                let record = Rmap {
                    start: random(12_000),
                    len: 1 + random(300),
                    owner,
                    offset: random(30_000),
                    kind: Kind::Data,
                    unwritten: false,
                };
                if tree.add_owner(record).is_ok() {
                    owned.push(record);
                }
            } else {
                // The front is removed, and often later the rest.
                let at = random(owned.len() as u32) as usize;
                let whole = owned.swap_remove(at);
                let cut = 1 + random(whole.len);
                let part = Rmap { len: cut, ..whole };
                tree.remove_owner(part).unwrap();
                if cut < whole.len {
                    owned.push(Rmap {
                        start: whole.start + cut,
                        len: whole.len - cut,
                        offset: whole.offset + cut,
                        ..whole
                    });
                }
            }
            root = tree.root;
            let touched = disk.touched.len() as u32;
            assert!(
                touched <= owner_nodes_touched(level),
                "{touched} at level {level}"
            );
        }
        let tree = BTree::<_, Rmap>::open(&mut disk, TREE, root);
        tree.check().unwrap();
    }
}

/// A full leaf under a full root is split, and a leaf far away is merged with its sibling: the
/// worst case of the bound.
#[test]
fn the_bound_on_touched_nodes_is_reached() {
    let record = |start: u32| Rmap {
        start,
        len: 1,
        owner: 1,
        offset: 0,
        kind: Kind::Mapping,
        unwritten: false,
    };
    let mut disk = Disk::new(160);
    let mut tree = BTree::<_, Rmap>::create(&mut disk, TREE).unwrap();
    for i in 0..40 {
        tree.insert(&record(i * 10)).unwrap();
    }
    for start in [180, 190, 200, 210, 220, 230, 290, 300, 310] {
        tree.delete(record(start).key()).unwrap();
    }
    let root = tree.root;
    assert_eq!(root.level, 1);
    disk.touched.clear();
    let mut tree = BTree::<_, Rmap>::open(&mut disk, TREE, root);
    tree.replace(record(160).key(), &record(5)).unwrap();
    tree.check().unwrap();
    assert_eq!(disk.touched.len() as u32, owner_nodes_touched(1));
}

mod parked {
    use crate::engine::{
        parked::{Parked, Unowned},
        record::{Kind, Rmap},
    };
    use proptest::prelude::*;

    fn record(start: u32, len: u32) -> Rmap {
        Rmap {
            start,
            len,
            owner: 12,
            offset: start,
            kind: Kind::Data,
            unwritten: false,
        }
    }

    /// Runs that do not overlap, in order, made of the lengths of gaps and runs.
    fn runs(lengths: &[(u32, u32)]) -> Vec<(u32, u32)> {
        let mut at = 0;
        let place = |&(gap, len): &(u32, u32)| {
            let start = at + gap;
            at = start + len;
            (start, len)
        };
        lengths.iter().map(place).collect()
    }

    fn blocks(runs: &[(u32, u32)]) -> Vec<u32> {
        let mut all: Vec<u32> = runs.iter().flat_map(|&(start, len)| start..start + len).collect();
        all.sort();
        all
    }

    proptest! {
        #[test]
        fn unowned_blocks_are_those_that_no_record_covers(
            parked in proptest::collection::vec((0u32..5, 1u32..6), 0..12),
            mut records in proptest::collection::vec((0u32..60, 1u32..20), 0..8),
        ) {
            let parked = runs(&parked);
            records.sort();
            let mut unowned = Unowned::new(&parked);
            for &(start, len) in &records {
                if !unowned.pass(&record(start, len)).unwrap() {
                    break;
                }
            }
            let found = unowned.finish().unwrap();
            let covered = |block: u32| records.iter().any(|&(start, len)| (start..start + len).contains(&block));
            let wanted: Vec<u32> = blocks(&parked).into_iter().filter(|&block| !covered(block)).collect();
            prop_assert_eq!(blocks(&found), wanted);
        }

        #[test]
        fn what_is_subtracted_is_not_parked_any_more(
            parked in proptest::collection::vec((0u32..5, 1u32..6), 0..12),
            gone in proptest::collection::vec((0u32..9, 1u32..9), 0..8),
        ) {
            let (parked, gone) = (runs(&parked), runs(&gone));
            let mut left = Parked::default();
            for &(start, len) in parked.iter().rev() {
                left.park(start, len).unwrap();
            }
            left.subtract(&gone).unwrap();
            let gone = blocks(&gone);
            let wanted: Vec<u32> = blocks(&parked).into_iter().filter(|block| !gone.contains(block)).collect();
            prop_assert_eq!(blocks(&left.runs().unwrap()), wanted);
        }
    }
}
