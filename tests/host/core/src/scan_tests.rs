// SPDX-License-Identifier: GPL-2.0

//! Whole rebuilds with threads: workers walk the inodes of a volume in memory while writers change
//! them. The new tree is loaded and catches up while they continue, and must equal the files'
//! contents at the end.

use crate::{
    engine::{
        btree::BTree,
        gather::Gathered,
        rebuild::{apply, load, Rebuild, Update},
        record::{Kind, Rmap},
        scan::Cursor,
        shadow::Shadow,
        Error,
    },
    engine_tests::{contents, records, Disk, Truth, TREE},
    shadow_tests::Drive,
};
use kernel::alloc::fail_after;
use std::{
    sync::{
        atomic::{AtomicBool, AtomicU32, Ordering},
        Barrier, Mutex, RwLock,
    },
    thread,
};

const INODES: u32 = 200;
/// Number of blocks per inode. No other inode uses them, so writers need no allocator.
const EACH: u32 = 64;

/// The files, each with the lock that protects its mapping.
struct Volume {
    files: Vec<Mutex<Vec<Rmap>>>,
}

impl Volume {
    fn new() -> Volume {
        Volume {
            files: (0..INODES).map(|_| Mutex::new(Vec::new())).collect(),
        }
    }

    /// Adds or removes a run of blocks of a file, and calls `hook` with the lock held.
    fn change(&self, ino: u32, slot: u32, hook: &dyn Fn(bool, Rmap)) {
        let record = Rmap {
            start: (ino - 1) * EACH + slot * 4,
            len: 3,
            owner: ino,
            offset: slot * 4,
            kind: Kind::Data,
            unwritten: false,
        };
        let mut file = self.files[ino as usize - 1].lock().unwrap();
        let add = !file.contains(&record);
        if add {
            file.push(record);
        } else {
            file.retain(|other| *other != record);
        }
        hook(add, record);
    }

    fn truth(&self) -> Vec<Rmap> {
        let mut truth = Truth::default();
        for file in &self.files {
            assert!(file.lock().unwrap().iter().all(|record| truth.add(record)));
        }
        truth.records()
    }
}

/// Applies a live update to the shadow.
fn live(cursor: &Cursor, shadow: &Mutex<Shadow>, add: bool, record: Rmap) {
    if !cursor.wants_update(record.owner) {
        return;
    }
    let mut shadow = shadow.lock().unwrap();
    let outcome = if add {
        shadow.add_owner(record)
    } else {
        shadow.remove_owner(record)
    };
    if outcome.is_err() {
        cursor.poison();
    }
}

/// Passes a live update to a rebuild.
fn tell(cursor: &Cursor, rebuild: &Mutex<Rebuild>, add: bool, record: Rmap) {
    if cursor.wants_update(record.owner) {
        let update = if add {
            Update::Add(record)
        } else {
            Update::Remove(record)
        };
        rebuild.lock().unwrap().update(update).unwrap();
    }
}

/// Runs `work` next to two writers, which change files at random with `region` held shared, and
/// call `hook`.
fn beside_writers(
    volume: &Volume,
    seed: u32,
    region: &RwLock<()>,
    hook: &(dyn Fn(bool, Rmap) + Sync),
    work: impl FnOnce(&AtomicBool),
) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for writer in 0..2u32 {
            let stop = &stop;
            scope.spawn(move || {
                let mut state = seed * 2 + writer + 1;
                while !stop.load(Ordering::Relaxed) {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let _region = region.read().unwrap();
                    volume.change((state >> 8) % INODES + 1, (state >> 20) % 16, hook);
                    thread::yield_now();
                }
            });
        }
        work(&stop);
        stop.store(true, Ordering::Relaxed);
    });
}

/// Walks all inodes with two threads, each of which runs `worker`.
fn with_workers(worker: &(dyn Fn() + Sync)) {
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(worker);
        }
    });
}

#[test]
fn a_scan_under_writers_finds_the_truth() {
    for round in 0..6u32 {
        let volume = Volume::new();
        let cursor = Cursor::new(INODES, 16).unwrap();
        let shadow = Mutex::new(Shadow::new(16 << 20));
        for ino in 1..=INODES {
            volume.change(ino, ino % 5, &|_, _| ());
        }
        let hook = |add, record| live(&cursor, &shadow, add, record);
        beside_writers(&volume, round, &RwLock::new(()), &hook, |_| {
            with_workers(&|| {
                while let Some(work) = cursor.take() {
                    for ino in work.first..=work.last {
                        let file = volume.files[ino as usize - 1].lock().unwrap();
                        for record in file.iter() {
                            shadow.lock().unwrap().add_owner(*record).unwrap();
                        }
                        cursor.visited(ino);
                        drop(file);
                        thread::yield_now();
                    }
                }
            });
        });
        assert!(cursor.is_complete(), "poisoned: {}", cursor.is_poisoned());
        assert_eq!(contents(&mut shadow.lock().unwrap()), volume.truth());
    }
}

/// Each worker gathers in a buffer of its own, which becomes a run only now and then.
#[test]
fn workers_that_gather_under_writers_find_the_truth() {
    for round in 0..8u32 {
        let volume = Volume::new();
        let cursor = Cursor::new(INODES, 16).unwrap();
        let pool = Drive::new(16 << 20);
        let rebuild = Mutex::new(Rebuild::awaiting(16 << 20, pool.clone(), pool.clone()));
        let gathered = Mutex::new(Gathered::new(pool, 4, 1 << 20));
        for ino in 1..=INODES {
            volume.change(ino, ino % 5, &|_, _| ());
        }
        let hook = |add, record| tell(&cursor, &rebuild, add, record);
        beside_writers(&volume, round, &RwLock::new(()), &hook, |_| {
            let turns = AtomicU32::new(0);
            with_workers(&|| {
                let mut gatherer = gathered.lock().unwrap().gatherer();
                while let Some(work) = cursor.take() {
                    for ino in work.first..=work.last {
                        let mut file = volume.files[ino as usize - 1].lock().unwrap();
                        file.sort_by_key(|record| record.offset);
                        for record in file.iter() {
                            gatherer.push(0, *record).unwrap();
                        }
                        cursor.visited(ino);
                        drop(file);
                        thread::yield_now();
                    }
                    if work.first % 3 == 0 {
                        let run = gatherer.spill().unwrap();
                        gathered.lock().unwrap().add(run).unwrap();
                    }
                    // In half of the rounds, some workers end early, and others continue.
                    if round % 2 == 1 && work.first % 5 == 0 {
                        let mut gathered = gathered.lock().unwrap();
                        let next = gathered.gatherer();
                        if let Some(run) = std::mem::replace(&mut gatherer, next).finish().unwrap() {
                            gathered.add(run).unwrap();
                        }
                        turns.fetch_add(1, Ordering::Relaxed);
                    }
                }
                if let Some(run) = gatherer.finish().unwrap() {
                    gathered.lock().unwrap().add(run).unwrap();
                }
            });
            assert_eq!(turns.into_inner() > 0, round % 2 == 1);
        });
        assert!(cursor.is_complete(), "poisoned: {}", cursor.is_poisoned());
        let mut shadow = rebuild.into_inner().unwrap().seal().unwrap();
        let mut merge = gathered.into_inner().unwrap().merge().unwrap();
        shadow.fill(&mut merge, 0).unwrap();
        assert_eq!(contents(&mut shadow), volume.truth());
    }
}

/// Lets a writer run between the end of the visit of inode 1 and its mark, which the lock prevents
/// otherwise; shows that the comparison above would detect it.
#[test]
fn a_mark_outside_the_lock_loses_an_update() {
    for inside in [true, false] {
        let volume = Volume::new();
        let cursor = Cursor::new(INODES, 16).unwrap();
        let shadow = Mutex::new(Shadow::new(16 << 20));
        volume.change(1, 0, &|_, _| ());
        let gate = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                gate.wait();
                volume.change(1, 1, &|add, record| live(&cursor, &shadow, add, record));
                gate.wait();
            });
            let file = volume.files[0].lock().unwrap();
            for record in file.iter() {
                shadow.lock().unwrap().add_owner(*record).unwrap();
            }
            if inside {
                cursor.visited(1);
            }
            drop(file);
            gate.wait();
            gate.wait();
            if !inside {
                cursor.visited(1);
            }
        });
        assert_eq!(contents(&mut shadow.lock().unwrap()) == volume.truth(), inside);
    }
}

#[test]
fn ranges_cover_every_inode_once() {
    for (last, width) in [(1, 1), (10, 3), (16, 16), (17, 16), (1000, 7), (5, 100)] {
        let cursor = Cursor::new(last, width).unwrap();
        let mut seen = Vec::new();
        while let Some(work) = cursor.take() {
            for ino in work.first..=work.last {
                assert!(!cursor.wants_update(ino));
                cursor.visited(ino);
                assert!(cursor.wants_update(ino));
                seen.push(ino);
            }
        }
        assert_eq!(seen, (1..=last).collect::<Vec<_>>());
        assert!(cursor.is_complete() && !cursor.wants_update(0) && !cursor.wants_update(last + 1));
        cursor.poison();
        assert!(!cursor.wants_update(1) && !cursor.is_complete() && cursor.take().is_none());
    }
}

#[test]
fn the_marks_tell_how_far_a_scan_is() {
    let cursor = Cursor::new(10, 4).unwrap();
    let (first, second, third) = (
        cursor.take().unwrap(),
        cursor.take().unwrap(),
        cursor.take().unwrap(),
    );
    assert_eq!(
        (first.first, second.first, third.first, third.last),
        (1, 5, 9, 10)
    );
    for ino in [9, 10, 5, 6, 7, 8] {
        cursor.visited(ino);
    }
    assert_eq!(cursor.progress(), (6, 10));
    // Visiting an inode again does not count, and does not move the mark back.
    for _ in 0..4 {
        cursor.visited(9);
    }
    assert_eq!(cursor.progress(), (6, 10));
    assert!(cursor.wants_update(10) && !cursor.is_complete());
    for ino in 1..=4 {
        assert!(!cursor.is_complete());
        cursor.visited(ino);
    }
    assert_eq!(cursor.progress(), (10, 10));
    assert!(cursor.is_complete());
    // Inode numbers outside of the range have no effect.
    cursor.visited(0);
    cursor.visited(11);
    assert!(cursor.is_complete());
}

#[test]
fn free_inodes_are_passed_at_once() {
    let cursor = Cursor::new(10, 4).unwrap();
    cursor.passed(1, 3);
    assert!(cursor.wants_update(3) && !cursor.wants_update(4));
    // The same inodes again, and some more.
    cursor.passed(2, 4);
    cursor.passed(1, 2);
    assert!(cursor.wants_update(4) && !cursor.is_poisoned());
    cursor.passed(5, 8);
    cursor.passed(9, 10);
    assert!(cursor.is_complete());
    for (first, last) in [(2, 3), (1, 5), (9, 11)] {
        let cursor = Cursor::new(10, 4).unwrap();
        cursor.passed(first, last);
        assert!(cursor.is_poisoned(), "{first} to {last}");
    }
}

#[test]
fn a_passed_over_inode_poisons_the_scan() {
    let cursor = Cursor::new(10, 4).unwrap();
    cursor.visited(5);
    assert!(!cursor.is_poisoned());
    cursor.visited(7);
    assert!(cursor.is_poisoned() && !cursor.wants_update(5));
    for ino in 1..=10 {
        cursor.visited(ino);
    }
    assert!(!cursor.is_complete());
}

/// The complete life of a rebuild (scan, load, catch up, install), with writers that stop only for
/// the install.
#[test]
fn a_rebuild_under_writers_ends_in_the_truth() {
    for round in 0..6u32 {
        let volume = Volume::new();
        let cursor = Cursor::new(INODES, 16).unwrap();
        let rebuild = Mutex::new(Rebuild::new(16 << 20));
        // Held shared by a change and exclusively by the install, like a region lock.
        let region = RwLock::new(());
        for ino in 1..=INODES {
            volume.change(ino, ino % 5, &|_, _| ());
        }
        let hook = |add, record| tell(&cursor, &rebuild, add, record);
        beside_writers(&volume, round, &region, &hook, |stop| {
            while let Some(work) = cursor.take() {
                for ino in work.first..=work.last {
                    let file = volume.files[ino as usize - 1].lock().unwrap();
                    for record in file.iter() {
                        rebuild.lock().unwrap().update(Update::Add(*record)).unwrap();
                    }
                    cursor.visited(ino);
                }
            }
            assert!(cursor.is_complete());
            let mut shadow = rebuild.lock().unwrap().seal().unwrap();
            assert!(rebuild.lock().unwrap().seal().is_err());
            let mut disk = Disk::new(512);
            let root = load(&mut shadow, &mut disk, TREE, 25).unwrap();
            drop(shadow);
            let mut tree = BTree::open(&mut disk, TREE, root);
            for _ in 0..50 {
                let gathered = rebuild.lock().unwrap().take().unwrap();
                apply(&mut tree, &gathered).unwrap();
                if rebuild.lock().unwrap().is_close() {
                    break;
                }
            }
            let swap = region.write().unwrap();
            let rest = rebuild.lock().unwrap().take().unwrap();
            apply(&mut tree, &rest).unwrap();
            tree.check().unwrap();
            assert_eq!(records(&tree), volume.truth());
            stop.store(true, Ordering::Relaxed);
            drop(swap);
        });
    }
}

#[test]
fn an_update_that_cannot_be_kept_spoils_the_rebuild() {
    let record = Rmap {
        start: 1,
        len: 1,
        owner: 1,
        offset: 0,
        kind: Kind::Data,
        unwritten: false,
    };
    let mut rebuild = Rebuild::new(1 << 20);
    rebuild.update(Update::Add(record)).unwrap();
    let error = rebuild.update(Update::Add(record)).unwrap_err();
    assert!(matches!(error, Error::Mismatch(_)));
    assert_eq!(rebuild.update(Update::Remove(record)), Err(error));
    assert_eq!(rebuild.seal().err(), Some(error));
    assert_eq!(rebuild.take().err(), Some(error));

    let mut rebuild = Rebuild::new(1 << 20);
    assert!(rebuild.take().is_err());
    rebuild.seal().unwrap();
    fail_after(Some(0));
    let outcome = rebuild.update(Update::Add(record));
    fail_after(None);
    assert_eq!(outcome, Err(Error::NoMemory));
    assert_eq!(rebuild.take().err(), Some(Error::NoMemory));
}
