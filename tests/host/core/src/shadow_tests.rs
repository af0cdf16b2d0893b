// SPDX-License-Identifier: GPL-2.0

//! The shadow with appenders, compared with a naive model: a scan appends records, and live updates
//! of visited inodes bypass the appenders.

use crate::{
    engine::{
        append::Appender,
        record::{Kind, Record, Rmap},
        shadow::{Pool, Shadow},
        Error,
    },
    engine_tests::{contents, rmap, Truth},
};
use kernel::alloc::fail_after;
use proptest::prelude::*;
use std::sync::{
    atomic::{AtomicBool, AtomicUsize, Ordering},
    Arc, Mutex,
};

const OWNERS: u32 = 6;

/// Returns the records of a scan: a few extents per inode, in inode order, anywhere on the volume.
fn found(count: u32) -> Vec<Rmap> {
    let mut state = 1u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 4
    };
    // Each extent has its own slot of 16 blocks, so no two of them are at the same place.
    let mut slots: Vec<u32> = (0..count).collect();
    for at in 0..count {
        let other = (at + random() % count) % count;
        slots.swap(at as usize, other as usize);
    }
    (0u32..)
        .zip(slots)
        .map(|(index, slot)| Rmap {
            start: slot * 16,
            len: 1 + random() % 15,
            owner: 11 + index / 4,
            offset: index % 4 * 1000,
            kind: Kind::Data,
            unwritten: false,
        })
        .collect()
}

/// Returns the records found by a visit of `owner`: its blocks, cut into pieces as extents may be,
/// data in file order.
fn visit(truth: &Truth, owner: u32, piece: u32) -> Vec<Rmap> {
    let mut all = Vec::new();
    for mut record in truth.records() {
        if record.owner != owner {
            continue;
        }
        while record.len > piece {
            let first = Rmap { len: piece, ..record };
            let (_, rest) = record.without(&first);
            all.push(first);
            record = rest.unwrap();
        }
        all.push(record);
    }
    // The other records are between the data, in any order.
    all.sort_by_key(|record| match record.kind {
        Kind::Data => (record.offset, 0),
        _ => (record.start / 7, u32::MAX - record.start),
    });
    let data: Vec<_> = all.iter().filter(|r| r.kind == Kind::Data).copied().collect();
    assert!(data.is_sorted_by_key(|record| record.offset));
    all
}

/// An event on a volume while it is being scanned.
#[derive(Clone, Debug)]
enum Event {
    /// Blocks gain an owner.
    Add(Rmap),
    /// An owner loses part of the record at or after these blocks, except for a number of blocks at
    /// its start.
    Remove(Rmap, u32),
    /// A worker visits its next inode, whose extents have this length.
    Visit(usize, u32),
    /// A worker hands over its full chunks.
    Absorb(usize),
    /// A worker closes its appender and opens another one.
    Turn(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        5 => rmap().prop_map(Event::Add),
        4 => (rmap(), 0u32..40).prop_map(|(record, skip)| Event::Remove(record, skip)),
        1 => (0usize..2, 1u32..20).prop_map(|(worker, piece)| Event::Visit(worker, piece)),
        1 => (0usize..2).prop_map(Event::Absorb),
        1 => (0usize..2).prop_map(Event::Turn),
    ]
}

/// Returns true if a file's data exists only once per file offset, which random records do not
/// ensure.
fn fits(truth: &Truth, record: &Rmap) -> bool {
    let end = |record: &Rmap| record.offset + record.len;
    record.kind != Kind::Data
        || truth.records().iter().all(|other| {
            (other.owner, other.kind) != (record.owner, record.kind)
                || end(other) <= record.offset
                || end(record) <= other.offset
        })
}

/// Returns part of the first record at or after `near`.
pub(crate) fn part_of(truth: &Truth, near: &Rmap, skip: u32) -> Option<Rmap> {
    let whole = truth
        .records()
        .into_iter()
        .find(|whole| whole.start >= near.start)?;
    let skip = skip % whole.len;
    let offset = if whole.kind == Kind::Data {
        whole.offset + skip
    } else {
        0
    };
    Some(Rmap {
        start: whole.start + skip,
        len: near.len.min(whole.len - skip),
        offset,
        ..whole
    })
}

/// A pool with a limited amount of memory, and a file.
pub(crate) struct Drive {
    left: Mutex<usize>,
    file: Mutex<Vec<u8>>,
    /// Makes reads and writes fail.
    broken: AtomicBool,
    /// Number of reads.
    reads: AtomicUsize,
}

impl Drive {
    pub(crate) fn new(memory: usize) -> Arc<Drive> {
        Arc::new(Drive {
            left: Mutex::new(memory),
            file: Mutex::new(Vec::new()),
            broken: AtomicBool::new(false),
            reads: AtomicUsize::new(0),
        })
    }

    fn works(&self) -> Result<(), Error> {
        match self.broken.load(Ordering::Relaxed) {
            true => Err(Error::Io),
            false => Ok(()),
        }
    }
}

impl Pool for Drive {
    fn take(&self, bytes: usize) -> bool {
        let mut left = self.left.lock().unwrap();
        let rest = left.checked_sub(bytes);
        *left = rest.unwrap_or(*left);
        rest.is_some()
    }

    fn give(&self, bytes: usize) {
        *self.left.lock().unwrap() += bytes;
    }

    fn extend(&self, bytes: usize) -> Result<u64, Error> {
        self.works()?;
        let mut file = self.file.lock().unwrap();
        let at = file.len();
        file.resize(at + bytes, 0);
        Ok(at as u64)
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.works()?;
        self.reads.fetch_add(1, Ordering::Relaxed);
        bytes.copy_from_slice(&self.file.lock().unwrap()[at as usize..][..bytes.len()]);
        Ok(())
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), Error> {
        self.works()?;
        self.file.lock().unwrap()[at as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

/// Returns a shadow to which two workers appended alternately, each a range of inodes at a time.
fn in_turns(all: &[Rmap], pool: &Arc<Drive>) -> Result<Shadow, Error> {
    let mut shadow = Shadow::with_pool(1 << 30, Some(pool.clone()));
    let mut appenders: Vec<_> = (0..2).map(|_| shadow.appender().unwrap()).collect();
    for (turn, range) in all.chunks(3000).enumerate() {
        let appender = &mut appenders[turn % 2];
        for record in range {
            appender.push(*record)?;
            if appender.is_full() {
                shadow.absorb(appender)?;
            }
        }
    }
    for appender in appenders {
        shadow.close(appender)?;
    }
    Ok(shadow)
}

#[test]
fn what_does_not_fit_goes_to_the_file() {
    let mut all = found(200_000);
    for (memory, spills) in [(64 << 20, false), (1 << 20, true), (0, true)] {
        let pool = Drive::new(memory);
        let mut shadow = in_turns(&all, &pool).unwrap();
        assert_eq!(shadow.count(), Ok(200_000));
        assert_eq!(!pool.file.lock().unwrap().is_empty(), spills);
        assert!(
            !spills || shadow.bytes() <= memory + (1 << 20),
            "{}",
            shadow.bytes()
        );
        all.sort_by_key(|record| record.key());
        assert_eq!(contents(&mut shadow), all);
        // Records in the file can be changed as well.
        for at in [5, 70_000, 199_990] {
            shadow.remove_owner(all[at]).unwrap();
            assert!(shadow.remove_owner(all[at]).is_err());
        }
        assert_eq!(shadow.count(), Ok(199_997));
        drop(shadow);
        assert_eq!(*pool.left.lock().unwrap(), memory, "all memory was given back");
        all.sort_by_key(|record| (record.owner, record.offset));
    }
}

/// A long record that shares blocks with others does not make every change look at all records
/// after it.
#[test]
fn a_long_shared_record_costs_little() {
    let mut all = vec![data(1, 0, 0, 1_000_000)];
    all.extend((0..100_000).map(|i| data(2, 2 * i, i, 1)));
    // All records are in the file.
    let pool = Drive::new(0);
    let mut shadow = in_turns(&all, &pool).unwrap();
    assert_eq!(shadow.count(), Ok(100_001));
    for at in [1_000, 50_000, 99_999] {
        let before = pool.reads.load(Ordering::Relaxed);
        shadow.remove_owner(data(2, 2 * at, at, 1)).unwrap();
        let reads = pool.reads.load(Ordering::Relaxed) - before;
        assert!(reads < 8, "{reads} reads for block {at}");
    }
}

/// Nothing can be read while an appender is open, and nothing can be appended after a read.
#[test]
fn reading_waits_for_the_appenders() {
    let all = found(9000);
    let mut shadow = Shadow::new(1 << 24);
    let mut appender = shadow.appender().unwrap();
    for record in &all {
        appender.push(*record).unwrap();
        if appender.is_full() {
            shadow.absorb(&mut appender).unwrap();
        }
    }
    assert!(matches!(shadow.settle(), Err(Error::Mismatch(_))));
    assert!(matches!(shadow.count(), Err(Error::Mismatch(_))));
    // The error was the reader's; the collected records are fine.
    shadow.close(appender).unwrap();
    assert_eq!(shadow.count(), Ok(9000));
    assert!(matches!(shadow.appender(), Err(Error::Mismatch(_))));
}

#[test]
fn a_file_that_fails_spoils_and_does_not_lie() {
    let all = found(60_000);
    let pool = Drive::new(0);
    pool.broken.store(true, Ordering::Relaxed);
    assert_eq!(in_turns(&all, &pool).err(), Some(Error::Io));
    pool.broken.store(false, Ordering::Relaxed);
    let mut shadow = in_turns(&all, &pool).unwrap();
    pool.broken.store(true, Ordering::Relaxed);
    assert_eq!(shadow.count(), Err(Error::Io));
    pool.broken.store(false, Ordering::Relaxed);
    assert_eq!(shadow.count(), Err(Error::Io));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_is_appended_and_updated_is_the_truth(
        events in prop::collection::vec(event(), 1..200),
        piece in 1u32..20,
        spilled in any::<bool>(),
        later in prop::collection::vec((rmap(), any::<bool>(), 0u32..40), 0..60),
    ) {
        let pool = spilled.then(|| Drive::new(0) as Arc<dyn Pool>);
        let mut shadow = Shadow::with_pool(4 << 20, pool);
        let mut appenders: Vec<Appender> = (0..2).map(|_| shadow.appender().unwrap()).collect();
        let mut truth = Truth::default();
        let mut visited = 0;
        for event in events {
            match event {
                Event::Add(record) => {
                    if fits(&truth, &record) && truth.add(&record) && record.owner <= visited {
                        shadow.add_owner(record).unwrap();
                    }
                }
                Event::Remove(near, skip) => {
                    if let Some(part) = part_of(&truth, &near, skip) {
                        prop_assert!(truth.remove(&part));
                        if part.owner <= visited {
                            shadow.remove_owner(part).unwrap();
                        }
                    }
                }
                Event::Visit(worker, piece) if visited < OWNERS => {
                    visited += 1;
                    for record in visit(&truth, visited, piece) {
                        appenders[worker].push(record).unwrap();
                    }
                }
                Event::Visit(..) => (),
                Event::Absorb(worker) => shadow.absorb(&mut appenders[worker]).unwrap(),
                Event::Turn(worker) => {
                    let next = shadow.appender().unwrap();
                    let mut back = std::mem::replace(&mut appenders[worker], next);
                    shadow.recall(&mut back).unwrap();
                    back.finish().unwrap();
                    shadow.close(back).unwrap();
                }
            }
        }
        for owner in visited + 1..=OWNERS {
            for record in visit(&truth, owner, piece) {
                appenders[0].push(record).unwrap();
            }
        }
        for appender in appenders {
            shadow.close(appender).unwrap();
        }
        prop_assert_eq!(contents(&mut shadow), truth.records());
        prop_assert_eq!(shadow.count().unwrap(), truth.records().len() as u64);
        let from = truth.records().first().map_or(0, |first| first.last() + 1);
        let mut behind = Vec::new();
        shadow.walk_from(from, &mut |record| { behind.push(*record); Ok(true) }).unwrap();
        prop_assert_eq!(behind, truth.records().into_iter().filter(|r| r.start >= from).collect::<Vec<_>>());
        // From now on it behaves like a tree.
        let new = Rmap { start: 5000, len: 3, owner: 9, offset: 0, kind: Kind::Data, unwritten: false };
        shadow.add_owner(new).unwrap();
        prop_assert!(shadow.add_owner(new).is_err());
        shadow.remove_owner(new).unwrap();
        prop_assert!(shadow.remove_owner(new).is_err());
        prop_assert_eq!(contents(&mut shadow), truth.records());
        for (record, add, skip) in later {
            let part = if add { Some(record) } else { part_of(&truth, &record, skip) };
            let Some(part) = part else { continue };
            let done = if add { shadow.add_owner(part) } else { shadow.remove_owner(part) };
            prop_assert_eq!(done.is_ok(), if add { truth.add(&part) } else { truth.remove(&part) });
            prop_assert_eq!(shadow.count().unwrap(), truth.records().len() as u64);
            let from = part.start;
            let mut behind = Vec::new();
            shadow.walk_from(from, &mut |record| { behind.push(*record); Ok(true) }).unwrap();
            prop_assert_eq!(behind, truth.records().into_iter().filter(|r| r.start >= from).collect::<Vec<_>>());
        }
        prop_assert_eq!(contents(&mut shadow), truth.records());
    }

    #[test]
    fn no_memory_spoils_and_does_not_lie(limit in 0u64..60) {
        fail_after(None);
        let all = found(9000);
        let mut shadow = Shadow::new(1 << 24);
        let mut appender = shadow.appender().unwrap();
        fail_after(Some(limit));
        let run = || {
            for record in &all {
                appender.push(*record)?;
                if appender.is_full() {
                    shadow.absorb(&mut appender)?;
                }
            }
            shadow.close(appender)?;
            shadow.remove_owner(all[5])?;
            shadow.count()
        };
        let outcome = run();
        fail_after(None);
        match outcome {
            Ok(count) => prop_assert_eq!(count, 8999),
            Err(error) => {
                prop_assert_eq!(error, Error::NoMemory);
                // A worker that fails does not close its appender, and without that nothing can be
                // sealed.
                prop_assert!(shadow.is_open() || shadow.count().is_err());
            }
        }
    }
}

fn data(owner: u32, start: u32, offset: u32, len: u32) -> Rmap {
    Rmap {
        start,
        len,
        owner,
        offset,
        kind: Kind::Data,
        unwritten: false,
    }
}

/// Returns a shadow to which these records were appended.
fn appended(all: &[Rmap]) -> Shadow {
    let mut shadow = Shadow::new(1 << 20);
    let mut appender = shadow.appender().unwrap();
    for record in all {
        appender.push(*record).unwrap();
    }
    shadow.close(appender).unwrap();
    shadow
}

#[test]
fn what_was_never_there_is_told_in_the_end() {
    let all = [data(1, 0, 0, 8), data(2, 100, 0, 8)];
    let told = |shadow: &mut Shadow| {
        let first = shadow.count().unwrap_err();
        assert!(matches!(first, Error::Mismatch(_)));
        assert_eq!(shadow.walk(&mut |_| Ok(true)), Err(first));
        assert_eq!(shadow.add_owner(data(9, 900, 0, 1)), Err(first));
    };
    let mut shadow = appended(&all);
    shadow.remove_owner(data(3, 0, 0, 8)).unwrap();
    told(&mut shadow);
    let mut shadow = appended(&all);
    shadow.add_owner(data(1, 4, 4, 1)).unwrap();
    told(&mut shadow);
    // A record that was removed before is detected at once.
    let mut shadow = appended(&all);
    shadow.remove_owner(data(1, 2, 2, 4)).unwrap();
    assert!(shadow.remove_owner(data(1, 3, 3, 1)).is_err());
    told(&mut shadow);
    // An owner appended in two visits, against the rule.
    for second in [data(1, 8, 8, 2), data(1, 0, 0, 8), data(1, 4, 4, 8)] {
        let mut shadow = appended(&[data(1, 0, 0, 8), data(2, 100, 0, 8), second]);
        told(&mut shadow);
    }
}

#[test]
fn an_appender_takes_no_disorder() {
    let mut shadow = Shadow::new(1 << 20);
    let mut appender = shadow.appender().unwrap();
    appender.push(data(1, 100, 50, 8)).unwrap();
    assert!(matches!(
        appender.push(data(1, 0, 57, 8)),
        Err(Error::Mismatch(_))
    ));
    let mut appender = shadow.appender().unwrap();
    let mapping = Rmap {
        kind: Kind::Mapping,
        offset: 0,
        ..data(1, 10, 0, 2)
    };
    appender.push(mapping).unwrap();
    appender.push(Rmap { start: 11, ..mapping }).unwrap();
    // Detected only at the end of the inode.
    assert!(matches!(appender.push(data(2, 0, 0, 1)), Err(Error::Mismatch(_))));
}

/// Records in adversarial order are sorted, across chunks and within, including records that differ
/// only in their offset.
#[test]
fn appended_records_are_sorted_whatever_their_order() {
    type Order = fn(u32) -> u32;
    let orders: [(&str, Order); 5] = [
        ("up", |i| i),
        ("down", |i| 9_999 - i),
        ("shuffled", |i| i * 7_919 % 10_000),
        ("few places", |i| i % 3),
        ("one place", |_| 5),
    ];
    for (name, order) in orders {
        let all: Vec<_> = (0..10_000)
            .map(|i| data(1 + i % 2, order(i) * 10, i * 20, 3))
            .collect();
        // All records of an owner in one visit.
        let mut first: Vec<_> = all.clone();
        first.sort_by_key(|record| record.owner);
        let mut shadow = appended(&first);
        let mut truth = Truth::default();
        assert!(all.iter().all(|record| truth.add(record)));
        assert_eq!(contents(&mut shadow), truth.records(), "{name}");
    }
}

/// A worker that finds few records for each of many regions uses little memory, all of it from the
/// budget.
#[test]
fn a_little_for_many_regions_takes_little() {
    const REGIONS: u32 = 2000;
    let memory = 4 << 20;
    let pool = Drive::new(memory);
    let mut shadows: Vec<_> = (0..REGIONS)
        .map(|_| Shadow::with_pool(1 << 30, Some(pool.clone())))
        .collect();
    for (region, shadow) in (0..).zip(shadows.iter_mut()) {
        let mut appender = shadow.appender().unwrap();
        for at in 0..10 {
            appender.push(data(region + 1, 3 * at, at, 1)).unwrap();
        }
        shadow.close(appender).unwrap();
    }
    let taken = memory - *pool.left.lock().unwrap();
    assert!(taken > 0 && taken < REGIONS as usize * 1000, "{taken} bytes");
    assert!(pool.file.lock().unwrap().is_empty(), "there was room");
    for shadow in &mut shadows {
        assert_eq!(shadow.count(), Ok(10));
    }
    drop(shadows);
    assert_eq!(*pool.left.lock().unwrap(), memory, "all memory was given back");
}

#[test]
fn what_is_appended_keeps_to_the_budget() {
    let all = found(100_000);
    for (bytes, enough) in [(18, true), (15, false)] {
        let budget = all.len() * bytes;
        let mut shadow = Shadow::new(budget);
        let mut appender = shadow.appender().unwrap();
        let outcome = all.iter().try_for_each(|record| {
            appender.push(*record).unwrap();
            if appender.is_full() {
                shadow.absorb(&mut appender)?;
                assert!(shadow.bytes() <= budget);
            }
            Ok(())
        });
        let outcome = outcome.and_then(|()| shadow.close(appender));
        assert_eq!(outcome, if enough { Ok(()) } else { Err(Error::NoMemory) });
        if enough {
            // The pages loaded while the appended records are released also fit.
            assert_eq!(shadow.count(), Ok(100_000));
            assert!(shadow.bytes() <= budget);
        }
    }
}
