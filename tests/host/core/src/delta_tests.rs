// SPDX-License-Identifier: GPL-2.0

//! The delta: coalescing does not change its effect, its size is bounded, and it can be caught up
//! with.

use crate::{
    engine::{
        btree::BTree,
        delta::{Delta, MOST_LAG},
        rebuild::{apply, Rebuild, Update},
        record::{Kind, Rmap},
        Error,
    },
    engine_tests::{records, rmap, Disk, Truth, TREE},
};
use proptest::prelude::*;

fn data(owner: u32, start: u32, len: u32) -> Rmap {
    Rmap {
        start,
        len,
        owner,
        offset: start,
        kind: Kind::Data,
        unwritten: false,
    }
}

fn left(updates: &[Update]) -> Vec<Update> {
    let mut delta = Delta::new(1 << 20);
    for update in updates {
        delta.push(*update).unwrap();
    }
    delta.take().to_vec()
}

proptest! {
    #[test]
    fn what_gathers_comes_to_the_truth(
        there in prop::collection::vec(rmap(), 0..40),
        // Few distinct runs and owners, so that the same ones are added and removed repeatedly.
        changes in prop::collection::vec((1u32..4, 0u32..12, 1u32..4, any::<bool>(), prop::bool::weighted(0.05)), 1..400),
    ) {
        let mut disk = Disk::new(256);
        let mut tree = BTree::<_, Rmap>::create(&mut disk, TREE).unwrap();
        let mut truth = Truth::default();
        for record in there {
            if truth.add(&record) {
                tree.add_owner(record).unwrap();
            }
        }
        let mut delta = Delta::new(1 << 20);
        let mut count = 0usize;
        for (owner, slot, slots, add, take) in changes {
            let record = data(owner, 1000 + slot * 4, slots * 4);
            if add && truth.add(&record) {
                delta.push(Update::Add(record)).unwrap();
                count += 1;
            } else if !add && truth.remove(&record) {
                delta.push(Update::Remove(record)).unwrap();
                count += 1;
            }
            if take {
                let gathered = delta.take();
                prop_assert!(gathered.len() <= count);
                count = 0;
                apply(&mut tree, &gathered).unwrap();
                prop_assert_eq!(records(&tree), truth.records());
            }
        }
        apply(&mut tree, &delta.take()).unwrap();
        prop_assert_eq!(records(&tree), truth.records());
    }
}

#[test]
fn what_came_and_went_is_forgotten() {
    use Update::{Add, Remove};
    let (a, b, other) = (data(1, 0, 8), data(1, 100, 8), data(2, 0, 8));
    assert_eq!(left(&[Add(a), Remove(a)]), []);
    assert_eq!(
        left(&[Add(a), Add(b), Add(other), Remove(a)]),
        [Add(b), Add(other)]
    );
    assert_eq!(left(&[Add(a), Add(b), Remove(b), Remove(a)]), []);
    // Blocks removed and added again may have belonged to a different record before.
    assert_eq!(left(&[Remove(a), Add(a)]), [Remove(a), Add(a)]);
    // A removal of a part in between.
    let part = data(1, 0, 4);
    let all = [Add(a), Remove(part), Add(part), Remove(a)];
    assert_eq!(left(&all), all);
    // Beyond the number of changes that are looked back at.
    let mut far = vec![Add(a)];
    far.extend((0..40).map(|i| Add(data(3, i * 10, 1))));
    far.push(Remove(a));
    assert_eq!(left(&far), far);
}

#[test]
fn what_continues_what_came_is_one() {
    use Update::{Add, Remove};
    // Two files are written alternately, and one of them is deleted.
    let mut all = Vec::new();
    for i in 0..100 {
        all.push(Add(data(1, i * 4, 4)));
        all.push(Add(data(2, 1000 + i * 4, 4)));
    }
    assert_eq!(left(&all), [Add(data(1, 0, 400)), Add(data(2, 1000, 400))]);
    all.push(Remove(data(1, 0, 400)));
    assert_eq!(left(&all), [Add(data(2, 1000, 400))]);
}

#[test]
fn a_delta_keeps_to_its_budget() {
    let budget = 64 << 10;
    let mut delta = Delta::new(budget);
    let mut held = 0u32;
    let error = loop {
        match delta.push(Update::Add(data(1, held * 2, 1))) {
            Ok(()) => held += 1,
            Err(error) => break error,
        }
        assert_eq!(
            delta.lag() > 0,
            held as usize > budget / (4 * size_of::<Update>())
        );
    };
    assert_eq!(error, Error::NoMemory);
    assert!(held > 1000, "only {held} updates in 64 KiB");
    let taken = delta.take();
    assert!(taken.capacity() * size_of::<Update>() <= budget);
    assert_eq!(taken.len(), held as usize);
    assert!(delta.lag() == 0 && delta.is_close());

    let mut rebuild = Rebuild::new(1 << 20);
    rebuild.set_delta_budget(budget);
    assert_eq!(rebuild.lag(), 0);
    rebuild.seal().unwrap();
    let refused = (0..).find(|i| rebuild.update(Update::Add(data(1, i * 2, 1))).is_err());
    assert_eq!(refused, Some(held));
    // A spoiled rebuild delays no one.
    assert_eq!(rebuild.lag(), 0);
    assert_eq!(rebuild.take().err(), Some(Error::NoMemory));
}

/// The changes collected while a tree is loaded are not compared with the small last round of a
/// comparison.
#[test]
fn no_task_waits_for_a_tree_to_be_loaded() {
    let mut rebuild = Rebuild::new(1 << 20);
    rebuild.seal().unwrap();
    let mut next = 0;
    let mut write = |rebuild: &mut Rebuild, count: u32| {
        for _ in 0..count {
            next += 2;
            rebuild.update(Update::Add(data(1, next, 1))).unwrap();
        }
    };
    write(&mut rebuild, 3);
    assert_eq!(rebuild.take().unwrap().len(), 3);
    write(&mut rebuild, 1000);
    assert_eq!(rebuild.lag(), MOST_LAG);
    rebuild.begin_rounds();
    assert_eq!(rebuild.lag(), 0);
    write(&mut rebuild, 1000);
    assert_eq!(rebuild.lag(), 0);
    assert_eq!(rebuild.take().unwrap().len(), 2000);
    write(&mut rebuild, 999);
    assert_eq!(rebuild.lag(), 0);
    write(&mut rebuild, 1);
    assert_eq!(rebuild.lag(), 1);
}

/// Writers wait after each change for as long as the delta lags: it is caught up with regardless of
/// their number, and fewer writers wait for a shorter time.
#[test]
fn more_writers_wait_longer() {
    // Number of changes that the tree applies during one unit of waiting.
    const PACE: u32 = 5;
    for writers in [1u32, 4, 16, 64] {
        let mut delta = Delta::new(32 << 20);
        let mut next = 0u32;
        let mut write = |delta: &mut Delta| {
            next += 2;
            delta.push(Update::Add(data(1, next, 1))).unwrap();
            assert!(delta.lag() <= MOST_LAG);
        };
        (0..1000).for_each(|_| write(&mut delta));
        let mut waits = vec![0u32; writers as usize];
        let (mut rounds, mut longest) = (0, 0);
        while !delta.is_close() {
            rounds += 1;
            assert!(rounds < 50, "{writers} writers are not caught up with");
            let round = delta.take().len() as u32;
            for _ in 0..round / PACE {
                for wait in &mut waits {
                    if *wait > 0 {
                        *wait -= 1;
                        continue;
                    }
                    write(&mut delta);
                    *wait = delta.lag();
                    longest = longest.max(*wait);
                }
            }
        }
        // A single writer is not too fast, and a few need not wait for long.
        let bound = [0, 4, MOST_LAG, MOST_LAG][writers.ilog2() as usize / 2];
        assert!(longest <= bound, "{writers} writers waited for {longest}");
        assert_eq!(longest > 0, writers > 1);
    }
}

/// Writers are twice as fast as the tree: if they wait while the delta lags, it catches up; if they
/// do not, it never does.
#[test]
fn who_waits_lets_the_tree_catch_up() {
    for waits in [true, false] {
        let mut delta = Delta::new(32 << 20);
        let mut next = 0u32;
        let mut write = |delta: &mut Delta, count: usize| {
            for _ in 0..count {
                if waits && delta.lag() > 0 {
                    return;
                }
                next += 2;
                delta.push(Update::Add(data(1, next, 1))).unwrap();
            }
        };
        // While the tree is loaded, there is no previous round to compare with.
        write(&mut delta, 20_000);
        let mut rounds = 0;
        while !delta.is_close() && rounds < 20 {
            let round = delta.take().len();
            rounds += 1;
            write(&mut delta, (round * 2).min(50_000));
        }
        assert_eq!(delta.is_close(), waits, "after {rounds} rounds");
        assert!(!waits || rounds <= 10, "{rounds} rounds");
    }
}
