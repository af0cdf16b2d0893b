// SPDX-License-Identifier: GPL-2.0

//! A rebuild in memory while another thread changes owners.
//!
//! The volume is a list of files, each with a table of its blocks. Two threads scan the files while
//! a third one adds and removes blocks. Then one thread loads the collected records into blocks of
//! memory and catches up, while the other continues. At the end the new tree must contain the same
//! records as a brute-force walk over all blocks yields, and no more of them.

use kernel::prelude::*;

#[kunit_tests(rext4_engine)]
mod tests {
    use super::super::{
        memory::{Memory, BLOCK},
        Random,
    };
    use crate::{
        engine::{
            btree::{BTree, Root},
            gather::{Gathered, Gatherer},
            node::Tree,
            rebuild::{apply, load, Rebuild, Update},
            record::{Kind, Rmap},
            scan::Cursor,
            shadow::Shadow,
            Error, Result,
        },
        kernel_glue::{kunit::wait_until, pause, run_parallel, Pinned},
    };
    use kernel::{
        new_mutex,
        prelude::{Result as KernelResult, *},
        sync::{
            atomic::{Atomic, Relaxed},
            Arc, Mutex,
        },
    };

    /// Number of files; their inode numbers start at 1.
    const FILES: u32 = 150;
    /// Number of files per range of the scan.
    const WIDTH: u32 = 8;
    /// Maximum number of blocks per file.
    const LENGTH: usize = 64;
    /// Number of blocks in the region.
    const BLOCKS: u32 = 8192;
    /// Number of changes before the middle of the scan, and before loading starts.
    const CHANGES: u32 = 250;
    /// Maximum number of changes in each phase. An emulated processor may be slow in the rest.
    const MOST: u32 = 2500;
    const TREE: Tree = Tree {
        seed: 0x0bad_cafe,
        region: 3,
        generation: 9,
    };

    /// A file: the location of its blocks, whether they are unwritten, and its mapping block.
    struct File {
        data: [Option<(u32, bool)>; LENGTH],
        mapping: Option<u32>,
    }

    fn data(ino: u32, offset: usize, start: u32, unwritten: bool) -> Rmap {
        Rmap {
            start,
            len: 1,
            owner: ino,
            offset: offset as u32,
            kind: Kind::Data,
            unwritten,
        }
    }

    fn mapping(ino: u32, start: u32) -> Rmap {
        Rmap {
            kind: Kind::Mapping,
            ..data(ino, 0, start, false)
        }
    }

    impl File {
        /// Calls `visit` for every single block, data in file order.
        fn for_each(&self, ino: u32, visit: &mut dyn FnMut(Rmap) -> Result) -> Result {
            for (offset, place) in self.data.iter().enumerate() {
                if let Some((start, unwritten)) = *place {
                    visit(data(ino, offset, start, unwritten))?;
                }
            }
            self.mapping.map_or(Ok(()), |start| visit(mapping(ino, start)))
        }

        /// Returns the longest run from `offset` on, of up to `most` blocks, that forms one record.
        fn run(&self, ino: u32, offset: usize, most: usize) -> Option<Rmap> {
            let (start, unwritten) = (*self.data.get(offset)?)?;
            let rest = self.data.get(offset..)?.iter().zip(start..).take(most);
            let len = rest.take_while(|(place, block)| **place == Some((*block, unwritten)));
            Some(Rmap {
                len: len.count() as u32,
                ..data(ino, offset, start, unwritten)
            })
        }

        /// Adds blocks to the file, or removes them.
        fn set(&mut self, record: &Rmap, there: bool) {
            let places = self.data.iter_mut().skip(record.offset as usize);
            for (place, block) in places.zip(record.start..).take(record.len as usize) {
                *place = there.then_some((block, record.unwritten));
            }
        }
    }

    /// Files, the blocks in use, and the rebuild that scans them. Locked in this order.
    #[pin_data]
    struct World {
        files: Pinned<Mutex<File>>,
        #[pin]
        used: Mutex<KVVec<bool>>,
        #[pin]
        rebuild: Mutex<Rebuild>,
        #[pin]
        gathered: Mutex<Gathered>,
        cursor: Cursor,
        /// Distributes the roles of a phase among its threads.
        tickets: Atomic<u32>,
        changes: Atomic<u32>,
        /// Set when the thread that others wait for has finished.
        done: Atomic<bool>,
        #[pin]
        failed: Mutex<Option<Error>>,
    }

    impl World {
        fn new() -> KernelResult<Pin<KBox<World>>> {
            let files = Pinned::new(FILES as usize, || {
                new_mutex!(File {
                    data: [None; LENGTH],
                    mapping: None,
                })
            })?;
            let used = KVVec::from_elem(false, BLOCKS as usize, GFP_KERNEL)?;
            let memory = Arc::new((), GFP_KERNEL)?;
            let rebuild = Rebuild::awaiting(8 << 20, memory.clone(), memory.clone());
            let gathered = Gathered::new(memory, 2, 1 << 20);
            let cursor = Cursor::new(FILES, WIDTH)?;
            let world = pin_init!(World {
                files,
                used <- new_mutex!(used),
                rebuild <- new_mutex!(rebuild),
                gathered <- new_mutex!(gathered),
                cursor,
                tickets: Atomic::new(0),
                changes: Atomic::new(0),
                done: Atomic::new(false),
                failed <- new_mutex!(None),
            });
            KBox::pin_init(world, GFP_KERNEL)
        }

        fn file(&self, ino: u32) -> Result<&Mutex<File>> {
            self.files.get((ino - 1) as usize).ok_or(Error::Io)
        }

        /// Records the first error and stops the other threads.
        fn note(&self, outcome: Result) {
            if let Err(error) = outcome {
                pr_err!("kunit: {error:?}\n");
                self.cursor.poison();
                self.done.store(true, Relaxed);
                let _ = self.failed.lock().get_or_insert(error);
            }
        }

        /// Passes a change of a locked file to the scan if the file has been visited.
        fn tell(&self, ino: u32, update: Update) -> Result {
            if self.cursor.wants_update(ino) {
                self.rebuild.lock().update(update)?;
            }
            Ok(())
        }

        fn give_back(&self, start: u32, len: u32) {
            let mut used = self.used.lock();
            for place in used.iter_mut().skip(start as usize).take(len as usize) {
                *place = false;
            }
        }

        /// Allocates up to `most` contiguous free blocks.
        fn take(&self, random: &mut Random, most: usize) -> Option<(u32, u32)> {
            let from = random.below(BLOCKS) as usize;
            let mut used = self.used.lock();
            let mut places = (0..used.len()).map(|step| (from + step) % used.len());
            let start = places.find(|&at| used.get(at) == Some(&false))?;
            let mut len = 0;
            for place in used.iter_mut().skip(start).take(most) {
                if *place {
                    break;
                }
                *place = true;
                len += 1;
            }
            Some((start as u32, len))
        }

        /// Makes a random change to a random file.
        fn change(&self, random: &mut Random) -> Result {
            let ino = 1 + random.below(FILES);
            let offset = random.below(LENGTH as u32) as usize;
            let most = 1 + random.below(6) as usize;
            let what = random.below(8);
            let mut file = self.file(ino)?.lock();
            if what == 0 {
                return self.change_mapping(ino, &mut file, random);
            }
            if let Some(record) = file.run(ino, offset, most) {
                self.tell(ino, Update::Remove(record))?;
                if what < 3 {
                    let other = Rmap {
                        unwritten: !record.unwritten,
                        ..record
                    };
                    file.set(&other, true);
                    return self.tell(ino, Update::Add(other));
                }
                file.set(&record, false);
                self.give_back(record.start, record.len);
                return Ok(());
            }
            let holes = file.data.iter().skip(offset).take(most);
            let most = holes.take_while(|place| place.is_none()).count();
            if let Some((start, len)) = self.take(random, most) {
                let record = Rmap {
                    len,
                    ..data(ino, offset, start, what == 3)
                };
                file.set(&record, true);
                self.tell(ino, Update::Add(record))?;
            }
            Ok(())
        }

        fn change_mapping(&self, ino: u32, file: &mut File, random: &mut Random) -> Result {
            match file.mapping.take() {
                Some(start) => {
                    self.tell(ino, Update::Remove(mapping(ino, start)))?;
                    self.give_back(start, 1);
                }
                None => {
                    if let Some((start, _)) = self.take(random, 1) {
                        file.mapping = Some(start);
                        self.tell(ino, Update::Add(mapping(ino, start)))?;
                    }
                }
            }
            Ok(())
        }

        /// Changes files until the other threads have finished, or [`MOST`] is reached.
        fn change_many(&self, seed: u32) -> Result {
            let mut random = Random(seed);
            for _ in 0..MOST {
                if self.done.load(Relaxed) {
                    break;
                }
                self.change(&mut random)?;
                self.changes.fetch_add(1, Relaxed);
                if self.rebuild.lock().lag() > 0 {
                    pause(1);
                }
            }
            Ok(())
        }

        fn scan_range(&self, first: u32, last: u32, gatherer: &mut Gatherer) -> Result {
            for ino in first..=last {
                if ino == FILES / 2 {
                    let changed = wait_until(|| self.changes.load(Relaxed) >= CHANGES);
                    changed.then_some(()).ok_or(Error::Mismatch("no changes"))?;
                }
                let file = self.file(ino)?.lock();
                file.for_each(ino, &mut |record| gatherer.push(0, record))?;
                self.cursor.visited(ino);
            }
            // Half of the ranges become runs at once, the others with the last.
            if first % (2 * WIDTH) == 1 {
                let run = gatherer.spill()?;
                self.gathered.lock().add(run)?;
            }
            Ok(())
        }

        fn scan(&self) -> Result {
            let mut gatherer = self.gathered.lock().gatherer();
            let mut outcome = Ok(());
            while let Some(work) = self.cursor.take().filter(|_| outcome.is_ok()) {
                outcome = self.scan_range(work.first, work.last, &mut gatherer);
            }
            outcome?;
            match gatherer.finish()? {
                Some(run) => self.gathered.lock().add(run),
                None => Ok(()),
            }
        }

        /// Returns the collected records, after all workers are done.
        fn sealed(&self) -> Result<Shadow> {
            let shadow = self.rebuild.lock().seal()?;
            self.filled(shadow)
        }

        fn filled(&self, mut shadow: Shadow) -> Result<Shadow> {
            let mut merge = self.gathered.lock().merge()?;
            shadow.fill(&mut merge, 0)?;
            Ok(shadow)
        }

        /// Loads a tree from the collected records, and catches up except for the last round.
        fn build(&self, memory: &mut Memory) -> Result<Root> {
            let shadow = self.rebuild.lock().seal()?;
            let before = self.changes.load(Relaxed);
            let mut shadow = self.filled(shadow)?;
            let changed = wait_until(|| self.changes.load(Relaxed) >= before + CHANGES);
            changed.then_some(()).ok_or(Error::Mismatch("no changes"))?;
            let mut root = load(&mut shadow, memory, TREE, 10)?;
            for _ in 0..100 {
                let updates = {
                    let mut rebuild = self.rebuild.lock();
                    if rebuild.is_close() {
                        break;
                    }
                    rebuild.take()?
                };
                root = self.apply(memory, root, &updates)?;
            }
            Ok(root)
        }

        fn apply(&self, memory: &mut Memory, root: Root, updates: &[Update]) -> Result<Root> {
            let mut tree = BTree::open(memory, TREE, root);
            apply(&mut tree, updates)?;
            Ok(tree.root)
        }

        /// Returns the records found by looking at every block.
        fn records(&self) -> Result<KVVec<Rmap>> {
            let mut blocks = KVVec::from_elem(None, BLOCKS as usize, GFP_KERNEL)?;
            for ino in 1..=FILES {
                self.file(ino)?.lock().for_each(ino, &mut |record| {
                    let place = blocks.get_mut(record.start as usize).ok_or(Error::Io)?;
                    match place.replace(record) {
                        None => Ok(()),
                        Some(_) => Err(Error::Mismatch("the test gave a block to two files")),
                    }
                })?;
            }
            let mut all: KVVec<Rmap> = KVVec::new();
            for record in blocks.iter().flatten() {
                if let Some(last) = all.last_mut() {
                    let next = Rmap {
                        start: last.start + last.len,
                        len: 1,
                        offset: if last.kind == Kind::Data {
                            last.offset + last.len
                        } else {
                            0
                        },
                        ..*last
                    };
                    if next == *record {
                        last.len += 1;
                        continue;
                    }
                }
                all.push(*record, GFP_KERNEL)?;
            }
            Ok(all)
        }
    }

    fn records_of(memory: &mut Memory, root: Root) -> Result<KVVec<Rmap>> {
        let mut all = KVVec::new();
        BTree::open(memory, TREE, root).overlapping(0, u32::MAX, &mut |record: &Rmap| {
            all.push(*record, GFP_KERNEL)?;
            Ok(true)
        })?;
        Ok(all)
    }

    /// Returns true if the tree is sound, including all checksums.
    fn is_sound(memory: &mut Memory, root: Root) -> bool {
        BTree::<_, Rmap>::open(memory, TREE, root).check().is_ok()
    }

    /// Returns a set of files that two threads scanned while a third one changed them.
    fn scanned() -> KernelResult<Pin<KBox<World>>> {
        let world = World::new()?;
        let mut random = Random(99);
        for _ in 0..FILES * 8 {
            world.change(&mut random).map_err(|_| EINVAL)?;
        }
        run_parallel(3, &|| match world.tickets.fetch_add(1, Relaxed) {
            0 => world.note(world.change_many(5)),
            _ => {
                world.note(world.scan());
                if world.cursor.is_complete() {
                    world.done.store(true, Relaxed);
                }
            }
        })?;
        world.done.store(false, Relaxed);
        Ok(world)
    }

    #[test]
    fn rebuild_while_owners_change() -> KernelResult {
        let world = scanned()?;
        assert!(world.failed.lock().is_none());
        assert!(world.cursor.is_complete());
        let built = KBox::pin_init(new_mutex!(None), GFP_KERNEL)?;
        let part = Atomic::new(0u32);
        run_parallel(2, &|| {
            if part.fetch_add(1, Relaxed) == 1 {
                return world.note(world.change_many(6));
            }
            let mut memory = Memory(KVVec::new());
            let outcome = world.build(&mut memory);
            world.done.store(true, Relaxed);
            world.note(outcome.map(|root| *built.lock() = Some((memory, root))));
        })?;
        assert!(world.failed.lock().is_none());
        let (mut memory, root) = built.lock().take().ok_or(EINVAL)?;
        let rest = world.rebuild.lock().take().map_err(|_| EINVAL)?;
        let applied = world.apply(&mut memory, root, &rest);
        assert!(applied.is_ok());
        let root = applied.unwrap_or(root);
        assert!(root.level > 0);
        assert!(is_sound(&mut memory, root));
        let found = records_of(&mut memory, root).map_err(|_| EINVAL)?;
        let wanted = world.records().map_err(|_| EINVAL)?;
        assert!(wanted.len() > 500);
        assert!(*found == *wanted);
        Ok(())
    }

    #[test]
    fn what_was_collected_is_loaded() -> KernelResult {
        let world = scanned()?;
        assert!(world.failed.lock().is_none());
        let mut shadow = world.sealed().map_err(|_| EINVAL)?;
        let wanted = world.records().map_err(|_| EINVAL)?;
        assert!(shadow.count() == Ok(wanted.len() as u64));
        let mut memory = Memory(KVVec::new());
        let root = load(&mut shadow, &mut memory, TREE, 10).map_err(|_| EINVAL)?;
        assert!(is_sound(&mut memory, root));
        let found = records_of(&mut memory, root).map_err(|_| EINVAL)?;
        assert!(*found == *wanted);
        // A flipped byte is detected in every node, wherever it is.
        let mut overlooked = 0;
        for block in 1..=memory.0.len() as u32 {
            for at in [block as usize * 31 % BLOCK, 0, BLOCK - 1] {
                memory.flip(block, at).map_err(|_| EINVAL)?;
                overlooked += u32::from(is_sound(&mut memory, root));
                memory.flip(block, at).map_err(|_| EINVAL)?;
            }
        }
        assert!(is_sound(&mut memory, root));
        assert_eq!(overlooked, 0);
        Ok(())
    }

    #[test]
    fn a_budget_that_is_too_small_spoils() -> KernelResult {
        let mut rebuild = Rebuild::new(64 << 10);
        let mut failed = Ok(());
        for at in 0..6000 {
            // No two of them make one.
            failed = rebuild.update(Update::Add(data(1, at * 2, at as u32 * 2, false)));
            if failed.is_err() {
                break;
            }
        }
        assert!(failed == Err(Error::NoMemory));
        assert!(rebuild.update(Update::Add(data(2, 0, 1, false))) == Err(Error::NoMemory));
        assert!(rebuild.seal().is_err());
        Ok(())
    }
}
