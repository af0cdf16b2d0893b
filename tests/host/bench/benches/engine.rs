// SPDX-License-Identifier: GPL-2.0

//! Benchmarks of the engine on the host, compared with ordered maps: the standard library's
//! `BTreeMap` and, where two workers share one map, crossbeam's lock-free `SkipMap`.
//!
//! `make bench-host` runs all benchmarks and writes docs/bench-host.md; `cargo bench -p rext4-bench
//! -- append` runs those whose name matches, as does `make bench-host BENCH_HOST=...`. Sizes are
//! 10^4 to 10^6 records; REXT4_BENCH_MAX sets the largest (10000000 takes most of an hour and 4
//! GB). Rates are in records per second.
//!
//! - `append`: a scan's records are collected and merged, in block order, in inode order (which is
//!   nearly block order), in random order, and in an order without any locality. `appender` uses
//!   one worker, `2 appenders` two workers that take ranges alternately; `add` adds the same
//!   records one at a time, as live updates do.
//! - `load`: collected records are loaded into a tree with checksums, as on disk, but in memory.
//! - `update`: owners are removed from and added to such a tree at random.
//! - `memory`: not a time, but the maximum number of bytes per record requested from the allocator
//!   while records are collected.
//!
//! The maps hold the same keys and values, 16 bytes each; they have no checksums and do not support
//! overlap queries.

include!("../../layers.rs");

use criterion::{
    criterion_group, criterion_main, BatchSize, BenchmarkId, Criterion, SamplingMode, Throughput,
};
use crossbeam_skiplist::SkipMap;
use engine::{
    btree::{BTree, Root, Store},
    bulk::Sink,
    gather::Gathered,
    node::Tree,
    rebuild::load,
    record::{Kind, Record, Rmap, RmapKey},
    shadow::Shadow,
    Error, Result,
};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::RefCell,
    collections::BTreeMap,
    hint::black_box,
    path::Path,
    sync::{
        atomic::{AtomicBool, AtomicIsize, Ordering::Relaxed},
        Arc, Mutex,
    },
    thread,
};

const BLOCK: usize = 4096;
/// Percentage of each node that stays free, as in the module.
const SLACK: u32 = 10;
/// Number of updates per iteration.
const UPDATES: usize = 1000;
const TREE: Tree = Tree {
    seed: 1,
    region: 0,
    generation: 1,
};

/// The system allocator, which counts bytes on request.
struct Counting {
    on: AtomicBool,
    bytes: AtomicIsize,
    most: AtomicIsize,
}

#[global_allocator]
static ALLOCATOR: Counting = Counting {
    on: AtomicBool::new(false),
    bytes: AtomicIsize::new(0),
    most: AtomicIsize::new(0),
};

impl Counting {
    fn count(&self, more: usize, less: usize) {
        if self.on.load(Relaxed) {
            let bytes = self.bytes.fetch_add(more as isize, Relaxed) + more as isize;
            self.most.fetch_max(bytes, Relaxed);
            self.bytes.fetch_sub(less as isize, Relaxed);
        }
    }

    /// Returns the maximum number of bytes allocated in addition while `call` runs.
    fn most_of<T>(&self, call: impl FnOnce() -> T) -> isize {
        self.bytes.store(0, Relaxed);
        self.most.store(0, Relaxed);
        self.on.store(true, Relaxed);
        let made = call();
        self.on.store(false, Relaxed);
        drop(made);
        self.most.load(Relaxed)
    }
}

// SAFETY: All calls are forwarded to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count(layout.size(), 0);
        // SAFETY: The caller's guarantees are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        self.count(0, layout.size());
        // SAFETY: The caller's guarantees are passed on.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both may exist for a moment.
        self.count(size, layout.size());
        // SAFETY: The caller's guarantees are passed on.
        unsafe { System.realloc(place, layout, size) }
    }
}

/// A reproducible pseudo-random generator.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u32) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (((self.0 >> 32) * u64::from(end)) >> 32) as u32
    }
}

/// Returns the records of a scan: four extents per inode, in inode order, each in the next of the
/// given slots of 16 blocks.
fn found(slots: Vec<u32>) -> Vec<Rmap> {
    let mut random = Random(1);
    (0u32..)
        .zip(slots)
        .map(|(index, slot)| Rmap {
            start: slot * 16,
            len: 1 + random.below(15),
            owner: 11 + index / 4,
            offset: index % 4 * 1000,
            kind: Kind::Data,
            unwritten: false,
        })
        .collect()
}

/// Returns the slots in order.
fn sorted(count: u32) -> Vec<u32> {
    (0..count).collect()
}

/// Returns the slots in an order in which each is at most `spread` positions away from its sorted
/// position.
fn spread(count: u32, spread: u32) -> Vec<u32> {
    let mut random = Random(1);
    let mut slots = sorted(count);
    for at in 0..count {
        slots.swap(at as usize, ((at + random.below(spread)) % count) as usize);
    }
    slots
}

/// Returns the slots in an order in which each is far from all recent ones, halfway between two
/// much earlier ones: the bit-reversal permutation.
fn adversarial(count: u32) -> Vec<u32> {
    let bits = count.next_power_of_two().ilog2();
    let reversed = |slot: u32| slot.reverse_bits() >> (32 - bits);
    (0..1 << bits)
        .map(reversed)
        .filter(|slot| *slot < count)
        .collect()
}

/// An order of records: its name, and a function that returns the slots of that many records.
type Order = (&'static str, fn(u32) -> Vec<u32>);
const ORDERS: [Order; 4] = [
    ("sorted", sorted),
    ("inodes", |count| spread(count, 1000)),
    ("random", |count| spread(count, count)),
    ("adversarial", adversarial),
];

/// Number of records that a worker takes at a time.
const RANGE: usize = 8192;

/// Distributes the records among workers, as a scan does.
fn by_workers<T: Send>(
    records: &[Rmap],
    workers: usize,
    work: &(dyn Fn(&mut dyn Iterator<Item = Rmap>) -> T + Sync),
) {
    let share = |worker: usize| {
        let ranges = records.chunks(RANGE).skip(worker).step_by(workers);
        work(&mut ranges.flatten().copied())
    };
    thread::scope(|scope| {
        for worker in 1..workers {
            scope.spawn(move || share(worker));
        }
        share(0);
    });
}

fn gathered(records: &[Rmap], workers: usize) -> Shadow {
    let pool = Arc::new(());
    let mut shadow = Shadow::awaiting(usize::MAX / 2, pool.clone(), pool.clone());
    let gathered = Mutex::new(Gathered::new(pool, workers, 256 << 20));
    by_workers(records, workers, &|share| {
        let mut gatherer = gathered.lock().unwrap().gatherer();
        for record in share {
            gatherer.push(0, record).unwrap();
            if gatherer.is_full() {
                let run = gatherer.spill().unwrap();
                gathered.lock().unwrap().add(run).unwrap();
            }
        }
        if let Some(run) = gatherer.finish().unwrap() {
            gathered.lock().unwrap().add(run).unwrap();
        }
    });
    let mut merge = gathered.into_inner().unwrap().merge().unwrap();
    shadow.fill(&mut merge, 0).unwrap();
    shadow
}

fn skips(records: &[Rmap], workers: usize) -> SkipMap<RmapKey, Rmap> {
    let map = SkipMap::new();
    by_workers(records, workers, &|share| {
        for record in share {
            map.insert(record.key(), record);
        }
    });
    map
}

fn added(records: &[Rmap]) -> Shadow {
    let mut shadow = Shadow::new(usize::MAX / 2);
    for record in records {
        shadow.add_owner(*record).unwrap();
    }
    shadow
}

fn map_of(records: &[Rmap]) -> BTreeMap<RmapKey, Rmap> {
    let mut map = BTreeMap::new();
    for record in records {
        map.insert(record.key(), *record);
    }
    map
}

/// A tree's blocks in memory, numbered from 1. Like the module's cached buffers, a block's checksum
/// is verified only at its first read.
#[derive(Clone)]
struct Memory {
    blocks: Vec<Vec<u8>>,
    free: Vec<u32>,
    checked: RefCell<Vec<bool>>,
}

/// A node that has been read.
struct Read<'a>(&'a [u8], u32);

impl AsRef<[u8]> for Read<'_> {
    fn as_ref(&self) -> &[u8] {
        self.0
    }
}

impl Memory {
    fn new() -> Memory {
        Memory {
            blocks: vec![Vec::new()],
            free: Vec::new(),
            checked: RefCell::new(vec![false]),
        }
    }

    fn block(&mut self, block: u32) -> Result<&mut Vec<u8>> {
        self.blocks.get_mut(block as usize).ok_or(Error::Io)
    }
}

impl Store for Memory {
    type Read<'a> = Read<'a>;
    const SEALED: bool = true;

    fn read(&self, block: u32) -> Result<Read<'_>> {
        let bytes = self.blocks.get(block as usize).ok_or(Error::Io)?;
        Ok(Read(bytes, block))
    }

    fn modify(&mut self, block: u32, change: &mut dyn FnMut(&mut [u8])) -> Result {
        change(self.block(block)?);
        Ok(())
    }

    fn modify_pair(&mut self, blocks: [u32; 2], change: &mut dyn FnMut(&mut [u8], &mut [u8])) -> Result {
        let mut first = std::mem::take(self.block(blocks[0])?);
        change(&mut first, self.block(blocks[1])?);
        *self.block(blocks[0])? = first;
        Ok(())
    }

    fn alloc(&mut self) -> Result<u32> {
        if let Some(block) = self.free.pop() {
            return Ok(block);
        }
        self.blocks.push(vec![0; BLOCK]);
        self.checked.get_mut().push(false);
        Ok(self.blocks.len() as u32 - 1)
    }

    fn free(&mut self, block: u32) -> Result {
        self.checked.get_mut()[block as usize] = false;
        self.free.push(block);
        Ok(())
    }

    fn block_size(&self) -> usize {
        BLOCK
    }

    fn is_checked(&self, read: &Read<'_>) -> bool {
        self.checked.borrow()[read.1 as usize]
    }

    fn set_checked(&self, read: &Read<'_>) {
        self.checked.borrow_mut()[read.1 as usize] = true;
    }
}

impl Sink for Memory {
    fn claim(&mut self) -> Result<u32> {
        self.alloc()
    }

    fn write(&mut self, block: u32, bytes: &[u8]) -> Result {
        self.block(block)?.copy_from_slice(bytes);
        Ok(())
    }

    fn block_size(&self) -> usize {
        BLOCK
    }
}

fn sizes() -> Vec<u32> {
    let most =
        std::env::var("REXT4_BENCH_MAX").map_or(1_000_000, |most| most.parse().expect("REXT4_BENCH_MAX"));
    (4..=7)
        .map(|power| 10u32.pow(power))
        .filter(|&size| size <= most)
        .collect()
}

fn append(criterion: &mut Criterion) {
    for (order, slots) in ORDERS {
        let mut group = criterion.benchmark_group(format!("append/{order}"));
        group.sample_size(10).sampling_mode(SamplingMode::Flat);
        for count in sizes() {
            let records = found(slots(count));
            group.throughput(Throughput::Elements(count.into()));
            let mut measure = |name: &str, call: &mut dyn FnMut()| {
                group.bench_function(BenchmarkId::new(name, count), |bencher| bencher.iter(&mut *call));
            };
            // Freeing is part of it, for each of them.
            measure("appender", &mut || drop(black_box(gathered(&records, 1))));
            measure("2 appenders", &mut || drop(black_box(gathered(&records, 2))));
            measure("add", &mut || drop(black_box(added(&records))));
            measure("BTreeMap", &mut || drop(black_box(map_of(&records))));
            measure("SkipMap by 2", &mut || drop(black_box(skips(&records, 2))));
        }
        group.finish();
    }
}

fn bulk_load(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("load");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    for count in sizes() {
        let records = found(sorted(count));
        let mut shadow = gathered(&records, 1);
        group.throughput(Throughput::Elements(count.into()));
        group.bench_function(BenchmarkId::new("load", count), |bencher| {
            bencher.iter(|| {
                let mut memory = Memory::new();
                black_box(load(&mut shadow, &mut memory, TREE, SLACK).unwrap());
            });
        });
        group.bench_function(BenchmarkId::new("BTreeMap", count), |bencher| {
            bencher.iter(|| {
                let all = records.iter().map(|record| (record.key(), *record));
                drop(black_box(all.collect::<BTreeMap<_, _>>()));
            });
        });
    }
    group.finish();
}

/// Removes owners at random places, and adds others there.
fn update_tree(memory: &mut Memory, mut root: Root, records: &[Rmap], random: &mut Random) -> Root {
    for _ in 0..UPDATES / 2 {
        let record = records[random.below(records.len() as u32) as usize];
        let mut tree = BTree::<_, Rmap>::open(memory, TREE, root);
        // It may have been removed already; then only the lookup is measured.
        if tree.get(record.key()).unwrap().is_some() {
            tree.remove_owner(record).unwrap();
        }
        let other = Rmap {
            owner: record.owner + (1 << 30),
            ..record
        };
        if tree.get(other.key()).unwrap().is_none() {
            tree.add_owner(other).unwrap();
        }
        root = tree.root;
    }
    root
}

fn update_map(map: &mut BTreeMap<RmapKey, Rmap>, records: &[Rmap], random: &mut Random) {
    for _ in 0..UPDATES / 2 {
        let record = records[random.below(records.len() as u32) as usize];
        map.remove(&record.key());
        let other = Rmap {
            owner: record.owner + (1 << 30),
            ..record
        };
        map.insert(other.key(), other);
    }
}

fn update(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("update");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::Elements(UPDATES as u64));
    for count in sizes() {
        let records = found(sorted(count));
        let mut memory = Memory::new();
        let root = load(&mut gathered(&records, 1), &mut memory, TREE, SLACK).unwrap();
        let mut random = Random(2);
        group.bench_function(BenchmarkId::new("tree", count), |bencher| {
            bencher.iter_batched_ref(
                || memory.clone(),
                |memory| black_box(update_tree(memory, root, &records, &mut random)),
                BatchSize::PerIteration,
            );
        });
        let map = map_of(&records);
        group.bench_function(BenchmarkId::new("BTreeMap", count), |bencher| {
            bencher.iter_batched_ref(
                || map.clone(),
                |map| update_map(map, &records, &mut random),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// Writes a list next to criterion's output: the method, the number of records, and the bytes per
/// record.
fn memory(_: &mut Criterion) {
    let Some(folder) = std::env::var_os("CRITERION_HOME") else {
        return;
    };
    let mut lines = String::new();
    for (order, slots) in ORDERS {
        for count in sizes() {
            let records = found(slots(count));
            let bytes = [
                ("appender", ALLOCATOR.most_of(|| gathered(&records, 1))),
                ("add", ALLOCATOR.most_of(|| added(&records))),
                ("BTreeMap", ALLOCATOR.most_of(|| map_of(&records))),
            ];
            for (name, most) in bytes {
                let each = most as f64 / f64::from(count);
                lines += &format!("{order} {name} {count} {each:.2}\n");
            }
        }
    }
    std::fs::write(Path::new(&folder).join("memory"), lines).expect("the list of bytes");
}

criterion_group!(benches, append, bulk_load, update, memory);
criterion_main!(benches);
