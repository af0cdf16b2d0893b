// SPDX-License-Identifier: GPL-2.0

//! The shadow with what a scan gathers, against a naive model: live updates of what was visited go
//! around it.

use crate::{
    allocated,
    engine::{
        gather::{Gathered, Gatherer, Merge},
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
    /// A worker turns its entries into a run.
    Spill(usize),
    /// A worker is done, and another one takes its place.
    Turn(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        5 => rmap().prop_map(Event::Add),
        4 => (rmap(), 0u32..40).prop_map(|(record, skip)| Event::Remove(record, skip)),
        1 => (0usize..2, 1u32..20).prop_map(|(worker, piece)| Event::Visit(worker, piece)),
        1 => (0usize..2).prop_map(Event::Spill),
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
    /// The least that was left at any time.
    least_left: AtomicUsize,
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
            least_left: AtomicUsize::new(memory),
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
        self.least_left.fetch_min(*left, Ordering::Relaxed);
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

/// Pushes a record of a region, and makes a run when the buffer is full.
fn push(gathered: &mut Gathered, gatherer: &mut Gatherer, region: u32, record: Rmap) -> Result<(), Error> {
    gatherer.push(region, record)?;
    match gatherer.is_full() {
        true => gathered.add(gatherer.spill()?),
        false => Ok(()),
    }
}

/// A worker is done.
fn finish(gathered: &mut Gathered, mut gatherer: Gatherer) -> Result<(), Error> {
    match gatherer.finish()? {
        Some(run) => gathered.add(run),
        None => Ok(()),
    }
}

/// Returns what two workers gather that alternate between ranges of inodes. All records are of the
/// region that `region` says.
fn in_turns(
    all: &[Rmap],
    pool: &Arc<Drive>,
    memory: u64,
    region: impl Fn(&Rmap) -> u32,
) -> Result<Merge, Error> {
    let mut gathered = Gathered::new(pool.clone(), 2, memory);
    let mut gatherers = [gathered.gatherer(), gathered.gatherer()];
    for (turn, range) in all.chunks(3000).enumerate() {
        for record in range {
            push(&mut gathered, &mut gatherers[turn % 2], region(record), *record)?;
        }
    }
    for gatherer in gatherers {
        finish(&mut gathered, gatherer)?;
    }
    gathered.merge()
}

/// An empty shadow that changes may take much of.
pub(crate) fn awaiting(pool: &Arc<Drive>) -> Shadow {
    Shadow::awaiting(1 << 30, pool.clone(), Drive::new(1 << 30))
}

/// A shadow of one region, for which this was gathered, file after file.
pub(crate) fn filled(all: &[Rmap]) -> Result<Shadow, Error> {
    filled_from(all, &Drive::new(1 << 30), 1 << 30)
}

fn filled_from(all: &[Rmap], pool: &Arc<Drive>, memory: u64) -> Result<Shadow, Error> {
    let mut shadow = awaiting(pool);
    let mut merge = in_turns(all, pool, memory, |_| 0)?;
    shadow.fill(&mut merge, 0)?;
    Ok(shadow)
}

#[test]
fn what_does_not_fit_goes_to_the_file() {
    let mut all = found(200_000);
    for (memory, spills) in [(64 << 20, false), (1 << 20, true), (0, true)] {
        let pool = Drive::new(memory);
        let mut shadow = filled_from(&all, &pool, memory as u64).unwrap();
        assert_eq!(shadow.count(), Ok(200_000));
        assert_eq!(!pool.file.lock().unwrap().is_empty(), spills);
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
    let mut shadow = filled_from(&all, &pool, 0).unwrap();
    assert_eq!(shadow.count(), Ok(100_001));
    for at in [1_000, 50_000, 99_999] {
        let before = pool.reads.load(Ordering::Relaxed);
        shadow.remove_owner(data(2, 2 * at, at, 1)).unwrap();
        let reads = pool.reads.load(Ordering::Relaxed) - before;
        assert!(reads < 8, "{reads} reads for block {at}");
    }
}

/// Nothing can be read before it is filled, which happens once.
#[test]
fn reading_waits_for_what_is_gathered() {
    let all = found(9000);
    let pool = Drive::new(1 << 24);
    let mut merge = in_turns(&all, &pool, 1 << 24, |_| 0).unwrap();
    let mut shadow = awaiting(&pool);
    assert!(matches!(shadow.count(), Err(Error::Mismatch(_))));
    assert!(matches!(shadow.walk(&mut |_| Ok(true)), Err(Error::Mismatch(_))));
    // That was an error of the reader, not of what was gathered.
    shadow.fill(&mut merge, 0).unwrap();
    assert_eq!(shadow.count(), Ok(9000));
    assert!(matches!(shadow.fill(&mut merge, 0), Err(Error::Mismatch(_))));
}

#[test]
fn a_file_that_fails_spoils_and_does_not_lie() {
    let all = found(60_000);
    let pool = Drive::new(0);
    pool.broken.store(true, Ordering::Relaxed);
    assert_eq!(in_turns(&all, &pool, 0, |_| 0).err(), Some(Error::Io));
    pool.broken.store(false, Ordering::Relaxed);
    let mut merge = in_turns(&all, &pool, 0, |_| 0).unwrap();
    let mut shadow = awaiting(&pool);
    pool.broken.store(true, Ordering::Relaxed);
    assert_eq!(shadow.fill(&mut merge, 0), Err(Error::Io));
    pool.broken.store(false, Ordering::Relaxed);
    assert_eq!(shadow.count(), Err(Error::Io));
}

/// Each region gets its own records, regions that were not requested are skipped, and none is
/// filled twice.
#[test]
fn regions_come_in_order() {
    let all = found(50_000);
    let region = |record: &Rmap| record.start / 16 % 300;
    for memory in [64 << 20, 100 << 10, 0] {
        let pool = Drive::new(memory);
        let mut merge = in_turns(&all, &pool, memory as u64, region).unwrap();
        for number in (0..300).filter(|number| number % 7 != 3) {
            let mut shadow = awaiting(&pool);
            shadow.fill(&mut merge, number).unwrap();
            let mut wanted: Vec<_> = all.iter().filter(|r| region(r) == number).copied().collect();
            wanted.sort_by_key(|record| record.key());
            assert_eq!(contents(&mut shadow), wanted, "region {number}");
        }
        assert!(matches!(
            awaiting(&pool).fill(&mut merge, 5),
            Err(Error::Mismatch(_))
        ));
        drop(merge);
        assert_eq!(*pool.left.lock().unwrap(), memory, "all memory was given back");
    }
}

/// The memory of a scan follows from its limit alone, however many regions, workers and records
/// there are: in bytes that are allocated, not only in those that are accounted for.
#[test]
fn a_scan_keeps_to_its_limit() {
    const REGIONS: u32 = 8192;
    let limit = 4 << 20;
    for workers in [1, 16] {
        let pool = Drive::new(limit);
        let before = allocated();
        let mut gathered = Gathered::new(pool.clone(), workers, limit as u64);
        let mut gatherers: Vec<_> = (0..workers).map(|_| gathered.gatherer()).collect();
        let mut peak = 0;
        let mut now = |pool: &Drive| {
            peak = peak.max(allocated() - before - pool.file.lock().unwrap().capacity() as isize);
        };
        for file in 0..60_000 {
            for piece in 0..20 {
                // A file that lies in pieces all over the volume.
                let region = (file * 7919 + piece * 1237) % REGIONS;
                let record = data(file + 11, file * 40 + piece * 2, piece * 2, 1);
                push(
                    &mut gathered,
                    &mut gatherers[file as usize % workers],
                    region,
                    record,
                )
                .unwrap();
            }
            if file % 64 == 0 {
                now(&pool);
            }
        }
        for gatherer in gatherers {
            finish(&mut gathered, gatherer).unwrap();
        }
        let mut merge = gathered.merge().unwrap();
        let mut count = 0;
        for region in 0..REGIONS {
            let mut shadow = awaiting(&pool);
            shadow.fill(&mut merge, region).unwrap();
            count += shadow.count().unwrap();
            now(&pool);
        }
        assert_eq!(count, 1_200_000);
        let accounted = limit - pool.least_left.load(Ordering::Relaxed);
        println!("{workers} workers: {accounted} bytes accounted for, {peak} allocated, of {limit}");
        assert!(accounted <= limit);
        // What is needed to sort a buffer and to hand a chunk over, whatever there is.
        assert!(
            peak <= limit as isize + (512 << 10),
            "{workers} workers: {peak} bytes"
        );
    }
}

/// More runs than there is memory for windows onto them are merged into one, again and again.
#[test]
fn many_runs_become_one() {
    let all = found(100_000);
    let pool = Drive::new(0);
    let mut shadow = filled_from(&all, &pool, 0).unwrap();
    // 100 buffers of the least size, of which 16 lie in the file at a time.
    let mut sorted = all.clone();
    sorted.sort_by_key(|record| record.key());
    assert_eq!(contents(&mut shadow), sorted);
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
        let pool = Drive::new(if spilled { 0 } else { 1 << 30 });
        let mut shadow = awaiting(&pool);
        let mut gathered = Gathered::new(pool.clone(), 2, 1 << 20);
        let mut gatherers = [gathered.gatherer(), gathered.gatherer()];
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
                        push(&mut gathered, &mut gatherers[worker], 0, record).unwrap();
                    }
                }
                Event::Visit(..) => (),
                Event::Spill(worker) => {
                    let run = gatherers[worker].spill().unwrap();
                    gathered.add(run).unwrap();
                }
                Event::Turn(worker) => {
                    let next = gathered.gatherer();
                    finish(&mut gathered, std::mem::replace(&mut gatherers[worker], next)).unwrap();
                }
            }
        }
        for owner in visited + 1..=OWNERS {
            for record in visit(&truth, owner, piece) {
                push(&mut gathered, &mut gatherers[0], 0, record).unwrap();
            }
        }
        for gatherer in gatherers {
            finish(&mut gathered, gatherer).unwrap();
        }
        shadow.fill(&mut gathered.merge().unwrap(), 0).unwrap();
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
        let pool = Drive::new(1 << 24);
        fail_after(Some(limit));
        let run = || {
            let mut shadow = filled_from(&all, &pool, 1 << 24)?;
            shadow.remove_owner(all[5])?;
            shadow.count()
        };
        let outcome = run();
        fail_after(None);
        match outcome {
            Ok(count) => prop_assert_eq!(count, 8999),
            Err(error) => prop_assert_eq!(error, Error::NoMemory),
        }
        prop_assert_eq!(*pool.left.lock().unwrap(), 1 << 24, "all memory was given back");
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

#[test]
fn what_was_never_there_is_told_in_the_end() {
    let all = [data(1, 0, 0, 8), data(2, 100, 0, 8)];
    let gathered = |all: &[Rmap]| {
        let pool = Drive::new(1 << 20);
        (awaiting(&pool), in_turns(all, &pool, 1 << 20, |_| 0).unwrap())
    };
    let told = |shadow: &mut Shadow, merge: &mut Merge| {
        let first = shadow.fill(merge, 0).unwrap_err();
        assert!(matches!(first, Error::Mismatch(_)));
        assert_eq!(shadow.walk(&mut |_| Ok(true)), Err(first));
        assert_eq!(shadow.add_owner(data(9, 900, 0, 1)), Err(first));
    };
    let (mut shadow, mut merge) = gathered(&all);
    shadow.remove_owner(data(3, 0, 0, 8)).unwrap();
    told(&mut shadow, &mut merge);
    let (mut shadow, mut merge) = gathered(&all);
    shadow.add_owner(data(1, 4, 4, 1)).unwrap();
    told(&mut shadow, &mut merge);
    // What was removed already is known at once.
    let (mut shadow, mut merge) = gathered(&all);
    shadow.remove_owner(data(1, 2, 2, 4)).unwrap();
    assert!(shadow.remove_owner(data(1, 3, 3, 1)).is_err());
    told(&mut shadow, &mut merge);
    // An owner that has blocks twice, against the rule.
    for second in [data(1, 0, 0, 8), data(1, 4, 4, 8)] {
        let (mut shadow, mut merge) = gathered(&[data(1, 0, 0, 8), data(2, 100, 0, 8), second]);
        told(&mut shadow, &mut merge);
    }
    // A record that is continued in another run is joined nevertheless.
    let mut shadow = filled(&[data(1, 0, 0, 8), data(2, 100, 0, 8), data(1, 8, 8, 2)]).unwrap();
    assert_eq!(contents(&mut shadow), [data(1, 0, 0, 10), data(2, 100, 0, 8)]);
}

#[test]
fn a_gatherer_takes_no_disorder() {
    let mut gatherer = Gathered::new(Drive::new(1 << 20), 1, 1 << 20).gatherer();
    gatherer.push(0, data(1, 100, 50, 8)).unwrap();
    assert!(matches!(
        gatherer.push(0, data(1, 0, 57, 8)),
        Err(Error::Mismatch(_))
    ));
}

/// A node that a mapping reaches twice is reported as blocks with several owners, whichever worker
/// found it.
#[test]
fn a_node_that_is_there_twice_overlaps() {
    let mapping = |start, len| Rmap {
        kind: Kind::Mapping,
        ..data(1, start, 0, len)
    };
    for all in [[mapping(10, 2), mapping(11, 1)], [mapping(10, 1), mapping(10, 1)]] {
        assert_eq!(filled(&all).unwrap().overlaps(), Ok(true));
    }
    assert_eq!(
        filled(&[mapping(11, 1), mapping(10, 1)]).unwrap().overlaps(),
        Ok(false)
    );
}

/// An inode with more nodes than are kept apart has one record of those that lie together.
#[test]
fn nodes_that_lie_together_are_one_record() {
    let mut all: Vec<_> = (0..5000)
        .map(|at| Rmap {
            kind: Kind::Mapping,
            ..data(1, at * 7 % 5000, 0, 1)
        })
        .collect();
    let mut shadow = filled(&all).unwrap();
    assert_eq!(shadow.count(), Ok(1));
    all.push(data(1, 5000, 0, 1));
    assert_eq!(filled(&all).unwrap().count(), Ok(2));
}

/// Records in adversarial order are sorted, across chunks and within, including records that differ
/// only in their offset.
#[test]
fn gathered_records_are_sorted_whatever_their_order() {
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
        let mut shadow = filled(&first).unwrap();
        let mut truth = Truth::default();
        assert!(all.iter().all(|record| truth.add(record)));
        assert_eq!(contents(&mut shadow), truth.records(), "{name}");
    }
}
