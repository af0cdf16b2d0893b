// SPDX-License-Identifier: GPL-2.0

//! The scan's cursor between threads that visit inodes and threads that change them.
//!
//! An inode is a counter that only increases. A visit reads it; a change increments it and, if the
//! cursor asks for the update, reports it. The value read by the visit plus the reported changes
//! must equal the final value: no change is lost or reported twice, however the threads interleave.

use kernel::prelude::*;

#[kunit_tests(rext4_scan)]
mod tests {
    use super::super::Random;
    use crate::{
        engine::scan::Cursor,
        kernel_glue::{kunit::wait_until, run_parallel, Pinned},
    };
    use kernel::{
        new_mutex,
        prelude::*,
        sync::{
            atomic::{Atomic, Relaxed},
            Mutex,
        },
    };

    const INODES: u32 = 700;
    /// Inodes per range; chosen so that it does not divide their number.
    const WIDTH: u32 = 64;
    /// Number of visiting threads, and of changing threads.
    const VISITORS: u32 = 2;

    #[derive(Default)]
    struct Number {
        value: u32,
        /// The value that the visit read.
        read: u32,
        visits: u32,
        /// Number of reported changes.
        told: u32,
    }

    struct World {
        numbers: Pinned<Mutex<Number>>,
        cursor: Cursor,
        tickets: Atomic<u32>,
        changes: Atomic<u32>,
        early: Atomic<bool>,
    }

    impl World {
        fn new() -> Result<World> {
            Ok(World {
                numbers: Pinned::new(INODES as usize, || new_mutex!(Number::default()))?,
                cursor: Cursor::new(INODES, WIDTH)?,
                tickets: Atomic::new(0),
                changes: Atomic::new(0),
                early: Atomic::new(false),
            })
        }

        fn number(&self, ino: u32) -> Option<&Mutex<Number>> {
            self.numbers.get((ino - 1) as usize)
        }

        fn visit_all(&self) {
            while let Some(work) = self.cursor.take() {
                for ino in work.first..=work.last {
                    if ino == INODES / 2 {
                        // Changes must happen both before and after this visit.
                        let changed = wait_until(|| self.changes.load(Relaxed) > 500);
                        self.early.store(changed, Relaxed);
                    }
                    if let Some(number) = self.number(ino) {
                        let mut number = number.lock();
                        number.read = number.value;
                        number.visits += 1;
                        self.cursor.visited(ino);
                    }
                }
            }
        }

        fn change_some(&self, seed: u32) {
            let mut random = Random(seed);
            // Continue after all inodes have been visited: from then on every change must be
            // reported.
            let mut late = 0;
            while late < 200 {
                late += u32::from(self.cursor.is_complete());
                let ino = 1 + random.below(INODES);
                if let Some(number) = self.number(ino) {
                    let mut number = number.lock();
                    number.value += 1;
                    number.told += u32::from(self.cursor.wants_update(ino));
                }
                self.changes.fetch_add(1, Relaxed);
            }
        }
    }

    #[test]
    fn every_change_is_read_or_told_once() -> Result {
        let world = World::new()?;
        run_parallel(2 * VISITORS, &|| match world.tickets.fetch_add(1, Relaxed) {
            ticket if ticket % 2 == 0 => world.visit_all(),
            ticket => world.change_some(7 + ticket),
        })?;
        assert!(world.early.load(Relaxed));
        assert!(world.cursor.is_complete());
        assert_eq!(world.cursor.progress(), (u64::from(INODES), u64::from(INODES)));
        let (mut wrong, mut read, mut told) = (0, 0, 0);
        for number in world.numbers.iter() {
            let number = number.lock();
            wrong += u32::from(number.visits != 1 || number.read + number.told != number.value);
            read += number.read;
            told += number.told;
        }
        assert_eq!(wrong, 0);
        // Both must have happened for the test to mean anything.
        assert!(read > 0);
        assert!(told > 0);
        Ok(())
    }

    #[test]
    fn poison_ends_all_visits() -> Result {
        let world = World::new()?;
        let visited = Atomic::new(0u32);
        run_parallel(2 * VISITORS, &|| {
            while let Some(work) = world.cursor.take() {
                for ino in work.first..=work.last {
                    world.cursor.visited(ino);
                    visited.fetch_add(1, Relaxed);
                }
                if work.first > INODES / 2 {
                    world.cursor.poison();
                }
            }
        })?;
        assert!(world.cursor.is_poisoned());
        assert!(!world.cursor.is_complete());
        assert!(!world.cursor.wants_update(1));
        // Ranges already taken are walked to their end, and no new one is started.
        assert!(visited.load(Relaxed) < INODES / 2 + WIDTH * (2 * VISITORS + 2));
        Ok(())
    }
}
