// SPDX-License-Identifier: GPL-2.0

//! Reference counts compared with the reverse map that they are derived from.
//!
//! The volume is a list of blocks, each with the files that own it. Runs of blocks are allocated,
//! shared, dropped, staged and adopted, and both trees are updated in memory as the index on disk
//! would be. Owners, counts and free blocks according to the trees must equal those obtained by
//! looking at every block of the list.

use kernel::prelude::*;

#[kunit_tests(rext4_counts)]
mod tests {
    use super::super::{memory::Memory, Random};
    use crate::engine::{
        btree::{BTree, Root},
        node::Tree,
        parked::Parked,
        rebuild::{apply, Update},
        record::{Kind, Record, Rmap},
        recount::{counted_part, part},
        refcount::{Count, Turn, STAGED},
        Error, Result,
    };
    use kernel::prelude::{Result as KernelResult, *};

    /// Number of blocks in the region.
    const BLOCKS: u32 = 256;
    /// Number of files; their inode numbers start at 1.
    const FILES: u32 = 6;
    /// Maximum number of blocks changed at a time.
    const MOST: u32 = 24;
    const TREE: Tree = Tree {
        seed: 0x5eed,
        region: 1,
        generation: 4,
    };

    /// The expected state of a block.
    #[derive(Clone, Copy, Default)]
    struct Block {
        /// A bitmask of the files that own it.
        owners: u8,
        /// The file that it is staged for, 0 for none.
        staged: u32,
        used: bool,
    }

    impl Block {
        fn has(&self, ino: u32) -> bool {
            self.owners & 1 << ino != 0
        }
    }

    /// A tree in memory.
    struct Index {
        memory: Memory,
        root: Root,
    }

    impl Index {
        fn new<R: Record>() -> Result<Index> {
            let mut memory = Memory(KVVec::new());
            let root = BTree::<'_, _, R>::create(&mut memory, TREE)?.root;
            Ok(Index { memory, root })
        }

        fn with<R: Record, T>(
            &mut self,
            work: impl FnOnce(&mut BTree<'_, Memory, R>) -> Result<T>,
        ) -> Result<T> {
            let mut tree = BTree::open(&mut self.memory, TREE, self.root);
            let done = work(&mut tree);
            self.root = tree.root;
            done
        }

        fn all<R: Record>(&mut self) -> Result<KVVec<R>> {
            let mut found = KVVec::new();
            self.with(|tree: &mut BTree<'_, Memory, R>| {
                tree.overlapping(0, u32::MAX, &mut |record| {
                    found.push(*record, GFP_KERNEL)?;
                    Ok(true)
                })
            })?;
            Ok(found)
        }
    }

    /// A new tree of counts under construction; it covers the blocks before `next`.
    struct Build {
        index: Index,
        next: u32,
    }

    struct World {
        blocks: KVVec<Block>,
        owners: Index,
        counts: Index,
        build: Option<Build>,
        parked: Parked,
        random: Random,
        /// How often the counts and the reverse map disagreed about the blocks left without an
        /// owner.
        disagreed: u32,
    }

    fn record(ino: u32, start: u32, len: u32, kind: Kind) -> Rmap {
        Rmap {
            start,
            len,
            owner: ino,
            // Every block has the same offset in all files.
            offset: if kind == Kind::Data { start + 100 } else { 0 },
            kind,
            unwritten: false,
        }
    }

    impl World {
        fn new(seed: u32) -> Result<World> {
            Ok(World {
                blocks: KVVec::from_elem(Block::default(), BLOCKS as usize, GFP_KERNEL)?,
                owners: Index::new::<Rmap>()?,
                counts: Index::new::<Count>()?,
                build: None,
                parked: Parked::default(),
                random: Random(seed),
                disagreed: 0,
            })
        }

        /// Returns a run from a random block on whose blocks all satisfy `fits`. It is empty if the
        /// first one does not.
        fn run(&mut self, fits: impl Fn(&Block) -> bool) -> (u32, u32) {
            let start = self.random.below(BLOCKS);
            let most = 1 + self.random.below(MOST);
            self.run_at(start, most, fits)
        }

        /// Returns the run from `start` on whose blocks all satisfy `fits`.
        fn run_at(&self, start: u32, most: u32, fits: impl Fn(&Block) -> bool) -> (u32, u32) {
            let blocks = self.blocks.iter().skip(start as usize).take(most as usize);
            (start, blocks.take_while(|block| fits(block)).count() as u32)
        }

        fn each(&mut self, (start, len): (u32, u32), change: impl Fn(&mut Block)) {
            let blocks = self.blocks.iter_mut().skip(start as usize).take(len as usize);
            blocks.for_each(change);
        }

        fn update(&mut self, updates: &[Update]) -> Result {
            self.owners.with(|tree| apply(tree, updates))
        }

        fn turn(&mut self, start: u32, len: u32, up: bool) -> Result {
            let turn = Turn { start, len, up };
            if let Some(build) = &mut self.build {
                if let Some(part) = counted_part(&turn, build.next) {
                    build
                        .index
                        .with(|tree: &mut BTree<'_, Memory, Count>| tree.turn(&part))?;
                }
            }
            self.counts
                .with(|tree: &mut BTree<'_, Memory, Count>| tree.turn(&turn))
        }

        /// Returns the parts of a run that have no owner according to the reverse map.
        fn unowned(&mut self, run: (u32, u32)) -> Result<KVVec<(u32, u32)>> {
            let mut found = KVVec::new();
            self.owners.with(|tree| {
                tree.unowned(run, &mut |start, len| Ok(found.push((start, len), GFP_KERNEL)?))
            })?;
            Ok(found)
        }

        fn free(&mut self, lost: &[(u32, u32)]) {
            for &run in lost {
                self.each(run, |block| block.used = false);
            }
        }

        fn share(&mut self, ino: u32, run: (u32, u32)) -> Result {
            self.update(&[Update::Add(record(ino, run.0, run.1, Kind::Data))])?;
            self.turn(run.0, run.1, true)?;
            self.each(run, |block| block.owners |= 1 << ino);
            Ok(())
        }

        /// Removes a file as the owner of blocks. `known`: the counts are used to find those that
        /// have no owner left.
        fn leave(&mut self, ino: u32, run: (u32, u32), known: bool) -> Result {
            let mut lost: KVVec<(u32, u32)> = KVVec::new();
            self.counts.with(|tree: &mut BTree<'_, Memory, Count>| {
                tree.each_count(run.0, run.1, &mut |start, len, count| {
                    if count == 1 {
                        lost.push((start, len), GFP_KERNEL)?;
                    }
                    Ok(true)
                })
            })?;
            self.parked.unpark(run.0, run.1).map_err(|_| Error::NoMemory)?;
            self.update(&[Update::Remove(record(ino, run.0, run.1, Kind::Data))])?;
            self.each(run, |block| block.owners &= !(1 << ino));
            if known {
                self.disagreed += u32::from(*self.unowned(run)? != *lost);
                self.free(&lost);
            } else {
                self.parked.park(run.0, run.1).map_err(|_| Error::NoMemory)?;
            }
            self.turn(run.0, run.1, false)
        }

        /// Allocates free blocks to a file, or stages them for it.
        fn take(&mut self, ino: u32, run: (u32, u32), staged: bool) -> Result {
            let kind = if staged { Kind::Cow } else { Kind::Data };
            self.update(&[Update::Add(record(ino, run.0, run.1, kind))])?;
            if staged {
                self.turn(STAGED | run.0, run.1, true)?;
            }
            self.each(run, |block| {
                block.used = true;
                match staged {
                    true => block.staged = ino,
                    false => block.owners |= 1 << ino,
                }
            });
            Ok(())
        }

        /// Adopts staged blocks as data, or frees them.
        fn unstage(&mut self, ino: u32, run: (u32, u32), adopt: bool) -> Result {
            let old = Update::Remove(record(ino, run.0, run.1, Kind::Cow));
            let new = Update::Add(record(ino, run.0, run.1, Kind::Data));
            let updates = [old, new];
            self.update(updates.get(..1 + usize::from(adopt)).unwrap_or_default())?;
            self.turn(STAGED | run.0, run.1, false)?;
            self.each(run, |block| {
                block.staged = 0;
                block.used = adopt;
                block.owners |= if adopt { 1 << ino } else { 0 };
            });
            Ok(())
        }

        /// Frees parked blocks that have no owner.
        fn settle(&mut self) -> Result {
            while let Some(run) = self.parked.take() {
                let lost = self.unowned(run)?;
                self.free(&lost);
            }
            Ok(())
        }

        fn step(&mut self) -> Result {
            let ino = 1 + self.random.below(FILES);
            let coin = self.random.below(4) == 0;
            match self.random.below(6) {
                0 => match self.run(|block| !block.used) {
                    (_, 0) => Ok(()),
                    run => self.take(ino, run, coin),
                },
                1 | 2 => match self.run(|block| block.owners != 0 && !block.has(ino)) {
                    (_, 0) => Ok(()),
                    run => self.share(ino, run),
                },
                3 | 4 => match self.run(|block| block.has(ino)) {
                    (_, 0) => Ok(()),
                    run => self.leave(ino, run, !coin),
                },
                _ if coin => self.settle(),
                _ => match self.run(|block| block.staged == ino) {
                    (_, 0) => Ok(()),
                    run => {
                        let adopt = self.random.below(2) == 0;
                        self.unstage(ino, run, adopt)
                    }
                },
            }
        }

        fn steps(&mut self, count: u32) -> Result {
            (0..count).try_for_each(|_| self.step())
        }

        /// Returns the counts found by looking at every block.
        fn wanted(&self) -> Result<KVVec<Count>> {
            let mut found: KVVec<Count> = KVVec::new();
            for base in [0, STAGED] {
                for (start, block) in (base..).zip(self.blocks.iter()) {
                    let count = match base {
                        0 => block.owners.count_ones(),
                        _ => u32::from(block.staged != 0),
                    };
                    let next = Count { start, len: 1, count };
                    if count <= u32::from(base == 0) {
                        continue;
                    }
                    match found.last_mut() {
                        Some(last) if last.continues(&next) => last.len += 1,
                        _ => found.push(next, GFP_KERNEL)?,
                    }
                }
            }
            Ok(found)
        }

        /// Returns the number of used blocks that have no owner and are not parked.
        fn leaked(&mut self) -> usize {
            let unknown: KVVec<(u32, u32)> = core::iter::from_fn(|| self.parked.take())
                .try_fold(KVVec::new(), |mut all, run| {
                    all.push(run, GFP_KERNEL)?;
                    KernelResult::<_>::Ok(all)
                })
                .unwrap_or_default();
            let parked = |at: u32| unknown.iter().any(|run| run.0 <= at && at - run.0 < run.1);
            let blocks = (0..).zip(self.blocks.iter());
            let wrong = blocks.filter(|(at, block)| {
                let has = block.owners != 0 || block.staged != 0;
                has && !block.used || !has && block.used && !parked(*at)
            });
            let wrong = wrong.count();
            for &(start, len) in unknown.iter() {
                if self.parked.park(start, len).is_err() {
                    return usize::MAX;
                }
            }
            wrong
        }

        /// Recounts the next part into the new tree. Returns whether there are more parts.
        fn sweep(&mut self, at_once: usize) -> Result<bool> {
            let build = self.build.as_mut().ok_or(Error::Io)?;
            let from = build.next;
            let next = self.owners.with(|tree| part(tree, from, at_once))?;
            build.index.with(|tree| {
                let mut counts = next.counts.iter();
                counts.try_for_each(|count| tree.append(count))
            })?;
            build.next = next.end();
            Ok(next.next.is_some())
        }

        fn begin_build(&mut self) -> Result {
            self.build = Some(Build {
                index: Index::new::<Count>()?,
                next: 0,
            });
            Ok(())
        }
    }

    /// Converts the result for the end of a test.
    fn done(outcome: Result) -> KernelResult {
        outcome.map_err(|_| EIO)
    }

    #[test]
    fn counts_follow_owners() -> KernelResult {
        for seed in [1, 77] {
            let mut world = World::new(seed).map_err(|_| EIO)?;
            let (mut wrong, mut leaked, mut shared) = (0, 0, 0);
            for _ in 0..6 {
                done(world.steps(50))?;
                let (found, wanted) = (world.counts.all::<Count>(), world.wanted());
                wrong += u32::from(found.map_err(|_| EIO)? != wanted.map_err(|_| EIO)?);
                leaked += world.leaked();
                shared += world
                    .blocks
                    .iter()
                    .filter(|block| block.owners.count_ones() > 1)
                    .count();
            }
            assert_eq!(wrong, 0);
            assert_eq!(leaked, 0);
            assert_eq!(world.disagreed, 0);
            assert!(shared > 100);
            // Once parked blocks are freed and all files have dropped their blocks, no block is in
            // use.
            done(world.settle())?;
            for ino in 1..=FILES {
                for staged in [true, false] {
                    let has = |block: &Block| match staged {
                        true => block.staged == ino,
                        false => block.has(ino),
                    };
                    let mut at = 0;
                    while at < BLOCKS {
                        let run = world.run_at(at, BLOCKS, has);
                        match (run.1, staged) {
                            (0, _) => {}
                            (_, true) => done(world.unstage(ino, run, false))?,
                            (_, false) => done(world.leave(ino, run, true))?,
                        }
                        at += run.1.max(1);
                    }
                }
            }
            assert_eq!(world.counts.all::<Count>().map_err(|_| EIO)?.len(), 0);
            assert_eq!(world.blocks.iter().filter(|block| block.used).count(), 0);
            assert_eq!(world.disagreed, 0);
        }
        Ok(())
    }

    #[test]
    fn counts_are_swept_under_changes() -> KernelResult {
        for (seed, at_once) in [(6, 3), (7, 10)] {
            let mut world = World::new(seed).map_err(|_| EIO)?;
            done(world.steps(250))?;
            done(world.begin_build())?;
            let mut pieces = 1;
            while world.sweep(at_once).map_err(|_| EIO)? {
                pieces += 1;
                done(world.steps(4))?;
            }
            assert!(pieces > 2);
            // The new tree is also kept up to date after its last part.
            done(world.steps(30))?;
            let mut build = world.build.take().ok_or(EIO)?;
            let swept = build.index.all::<Count>().map_err(|_| EIO)?;
            assert!(!swept.is_empty());
            assert!(swept == world.wanted().map_err(|_| EIO)?);
        }
        Ok(())
    }

    #[test]
    fn a_wrong_count_is_noticed() -> KernelResult {
        let mut world = World::new(1).map_err(|_| EIO)?;
        done(world.take(1, (10, 20), false))?;
        done(world.share(2, (10, 20)))?;
        // One too low: the remaining owner's blocks would count as free.
        done(world.turn(15, 3, false))?;
        done(world.leave(2, (12, 10), true))?;
        assert_eq!(world.disagreed, 1);
        // Decrementing the count of a single owner succeeds; staging blocks that are staged and
        // adopting blocks that are not must fail.
        assert!(world.turn(100, 1, false).is_ok());
        assert!(world.turn(STAGED | 100, 1, false).is_err());
        let mut world = World::new(1).map_err(|_| EIO)?;
        done(world.take(1, (10, 20), true))?;
        assert!(world.turn(STAGED | 29, 1, true).is_err());
        // Two files may not have the same blocks staged.
        done(world.update(&[Update::Add(record(2, 5, 6, Kind::Cow))]))?;
        let swept = world.owners.with(|tree| part(tree, 0, 100)).err();
        assert!(matches!(swept, Some(Error::Mismatch(_))));
        Ok(())
    }

    #[test]
    fn parked_runs_shrink() -> KernelResult {
        let mut parked = Parked::default();
        parked.park(10, 10)?;
        parked.park(30, 10)?;
        // In the middle of a run, across the end of one and the start of another, and outside of
        // all.
        parked.unpark(12, 3)?;
        parked.unpark(18, 14)?;
        parked.unpark(20, 10)?;
        parked.unpark(0, 10)?;
        let mut left = 0;
        let mut blocks = [false; 50];
        while let Some((start, len)) = parked.take() {
            for place in blocks.iter_mut().skip(start as usize).take(len as usize) {
                left += usize::from(!*place);
                *place = true;
            }
        }
        let is_right = |at: usize| matches!(at, 10..=11 | 15..=17 | 32..=39);
        assert_eq!(
            (0..50)
                .filter(|&at| blocks.get(at) != Some(&is_right(at)))
                .count(),
            0
        );
        assert_eq!(left, 13);
        Ok(())
    }
}
