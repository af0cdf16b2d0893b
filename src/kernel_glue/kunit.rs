// SPDX-License-Identifier: GPL-2.0

//! KUnit suites of this layer: locks, threads, the static key, access control lists, the structures
//! of ioctls. The others are in `src/kunit`, which also describes the common rules.

use super::pause;
use kernel::{
    prelude::*,
    time::{Delta, Instant, Monotonic},
};

/// Waits for a condition. Returns false if it does not become true within a time that is sufficient
/// for any machine.
pub(crate) fn wait_until(is_so: impl Fn() -> bool) -> bool {
    let since: Instant<Monotonic> = Instant::now();
    while !is_so() {
        if since.elapsed() > Delta::from_secs(30) {
            return false;
        }
        pause(1);
    }
    true
}

#[kunit_tests(rext4_locks)]
mod locks {
    use super::wait_until;
    use crate::kernel_glue::{pause, run_parallel, RwLock};
    use kernel::{
        prelude::*,
        static_lock_class,
        sync::atomic::{Atomic, Relaxed},
    };

    #[test]
    fn readers_share() -> Result {
        let lock = KBox::pin_init(RwLock::new(5, c"kunit_readers", static_lock_class!()), GFP_KERNEL)?;
        let inside = Atomic::new(0u32);
        let met = Atomic::new(0u32);
        run_parallel(3, &|| {
            let value = lock.read();
            inside.fetch_add(1, Relaxed);
            // Each reader holds the lock until all of them do.
            if wait_until(|| inside.load(Relaxed) == 3) && *value == 5 {
                met.fetch_add(1, Relaxed);
            }
        })?;
        assert_eq!(met.load(Relaxed), 3);
        Ok(())
    }

    #[test]
    fn writer_waits_for_reader() -> Result {
        let lock = KBox::pin_init(RwLock::new(1, c"kunit_writer", static_lock_class!()), GFP_KERNEL)?;
        let tickets = Atomic::new(0u32);
        let reading = Atomic::new(false);
        let wanted = Atomic::new(false);
        let seen = Atomic::new(0i32);
        run_parallel(2, &|| {
            if tickets.fetch_add(1, Relaxed) == 0 {
                let value = lock.read();
                reading.store(true, Relaxed);
                let _ = wait_until(|| wanted.load(Relaxed));
                pause(100);
                seen.store(*value, Relaxed);
            } else {
                let _ = wait_until(|| reading.load(Relaxed));
                wanted.store(true, Relaxed);
                *lock.write() = 2;
            }
        })?;
        assert!(wanted.load(Relaxed));
        assert_eq!(seen.load(Relaxed), 1);
        assert_eq!(*lock.read(), 2);
        Ok(())
    }

    #[test]
    fn reader_waits_for_writer() -> Result {
        let lock = KBox::pin_init(RwLock::new(1, c"kunit_reader", static_lock_class!()), GFP_KERNEL)?;
        let tickets = Atomic::new(0u32);
        let writing = Atomic::new(false);
        let wanted = Atomic::new(false);
        let seen = Atomic::new(0i32);
        run_parallel(2, &|| {
            if tickets.fetch_add(1, Relaxed) == 0 {
                let mut value = lock.write();
                *value = 2;
                writing.store(true, Relaxed);
                let _ = wait_until(|| wanted.load(Relaxed));
                pause(100);
                *value = 3;
            } else {
                let _ = wait_until(|| writing.load(Relaxed));
                wanted.store(true, Relaxed);
                seen.store(*lock.read(), Relaxed);
            }
        })?;
        assert_eq!(seen.load(Relaxed), 3);
        Ok(())
    }

    #[test]
    fn writers_take_turns() -> Result {
        const EACH: u32 = 300;
        let lock = KBox::pin_init(
            RwLock::new((0u32, 0u32), c"kunit_writers", static_lock_class!()),
            GFP_KERNEL,
        )?;
        let tickets = Atomic::new(0u32);
        let torn = Atomic::new(0u32);
        run_parallel(4, &|| {
            let writes = tickets.fetch_add(1, Relaxed) % 2 == 0;
            for round in 0..EACH {
                if writes {
                    let mut value = lock.write();
                    value.0 += 1;
                    // From time to time, let another thread run in between.
                    if round % 100 == 0 {
                        pause(1);
                    }
                    value.1 += 1;
                } else {
                    let value = lock.read();
                    torn.fetch_add(u32::from(value.0 != value.1), Relaxed);
                }
            }
        })?;
        assert_eq!(torn.load(Relaxed), 0);
        assert_eq!(*lock.read(), (2 * EACH, 2 * EACH));
        Ok(())
    }
}

#[kunit_tests(rext4_pinned)]
mod pinned {
    use crate::kernel_glue::Pinned;
    use kernel::{
        new_mutex,
        prelude::*,
        sync::{
            atomic::{Atomic, Relaxed},
            Arc,
        },
    };

    /// Counts in how often it was dropped.
    struct Dropped(Arc<Atomic<u32>>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn locks_are_apart_and_dropped_once() -> Result {
        const COUNT: usize = 1000;
        let dropped = Arc::new(Atomic::new(0u32), GFP_KERNEL)?;
        let locks = Pinned::new(COUNT, || new_mutex!((0usize, Dropped(dropped.clone()))))?;
        assert_eq!(locks.len(), COUNT);
        for (number, lock) in locks.iter().enumerate() {
            lock.lock().0 = number;
        }
        for (number, lock) in locks.iter().enumerate() {
            assert_eq!(lock.lock().0, number);
        }
        assert_eq!(dropped.load(Relaxed), 0);
        drop(locks);
        assert_eq!(dropped.load(Relaxed), COUNT as u32);
        assert!(Pinned::new(0, || new_mutex!(()))?.is_empty());
        Ok(())
    }
}

#[kunit_tests(rext4_tasks)]
mod tasks {
    use super::{super::bindings, wait_until};
    use crate::kernel_glue::{pause, processors, run_parallel, Background, NoReclaim, Task};
    use kernel::{
        current, new_mutex,
        prelude::*,
        sync::{
            atomic::{Atomic, Relaxed},
            Arc,
        },
    };

    #[test]
    fn parallel_runs_so_often() -> Result {
        for count in [0, 1, 2, 3, 8, 33] {
            let runs = Atomic::new(0u32);
            run_parallel(count, &|| {
                runs.fetch_add(1, Relaxed);
            })?;
            // The calling thread always takes part.
            assert_eq!(runs.load(Relaxed), count.max(1));
        }
        assert!(processors() >= 1);
        Ok(())
    }

    #[test]
    fn parallel_runs_at_once() -> Result {
        const COUNT: u32 = 4;
        let inside = Atomic::new(0u32);
        let met = Atomic::new(0u32);
        let pids = KBox::pin_init(new_mutex!(KVec::new()), GFP_KERNEL)?;
        let failed = Atomic::new(false);
        run_parallel(COUNT, &|| {
            inside.fetch_add(1, Relaxed);
            // No thread continues before all have arrived.
            met.fetch_add(u32::from(wait_until(|| inside.load(Relaxed) == COUNT)), Relaxed);
            let mut pids = pids.lock();
            let pid = current!().pid();
            if pids.contains(&pid) || pids.push(pid, GFP_KERNEL).is_err() {
                failed.store(true, Relaxed);
            }
        })?;
        assert_eq!(met.load(Relaxed), COUNT);
        assert!(!failed.load(Relaxed));
        assert!(pids.lock().contains(&current!().pid()));
        Ok(())
    }

    #[test]
    fn parallel_waits_for_all() -> Result {
        let done = Atomic::new(0u32);
        let tickets = Atomic::new(0u32);
        run_parallel(3, &|| {
            if tickets.fetch_add(1, Relaxed) > 0 {
                pause(50);
            }
            done.fetch_add(1, Relaxed);
        })?;
        assert_eq!(done.load(Relaxed), 3);
        Ok(())
    }

    /// Returns true if allocations of the current task must not recurse into file systems.
    fn is_flagged() -> bool {
        // SAFETY: The current task is live, and no one else changes its flags.
        let flags = unsafe { (*current!().as_ptr()).flags };
        flags & bindings::PF_MEMALLOC_NOFS != 0
    }

    #[test]
    fn no_reclaim_nests() {
        assert!(!is_flagged());
        {
            let _outer = NoReclaim::new();
            assert!(is_flagged());
            {
                let _inner = NoReclaim::new();
                assert!(is_flagged());
            }
            assert!(is_flagged());
        }
        assert!(!is_flagged());
        drop(NoReclaim::new());
        assert!(!is_flagged());
    }

    #[test]
    fn no_reclaim_is_the_tasks_own() -> Result {
        let inside = Atomic::new(0u32);
        let flagged = Atomic::new(0u32);
        let no_reclaim = NoReclaim::new();
        run_parallel(3, &|| {
            inside.fetch_add(1, Relaxed);
            let _ = wait_until(|| inside.load(Relaxed) == 3);
            flagged.fetch_add(u32::from(is_flagged()), Relaxed);
        })?;
        drop(no_reclaim);
        // Only the caller: other threads need their own scope.
        assert_eq!(flagged.load(Relaxed), 1);
        assert!(!is_flagged());
        Ok(())
    }

    /// Counts its runs; each run waits until it is released.
    struct Counter {
        begun: Atomic<u32>,
        ended: Atomic<u32>,
        at_once: Atomic<u32>,
        most: Atomic<u32>,
        go: Atomic<bool>,
        slow: bool,
    }

    impl Counter {
        fn new(go: bool, slow: bool) -> Result<Arc<Counter>> {
            let counter = Counter {
                begun: Atomic::new(0),
                ended: Atomic::new(0),
                at_once: Atomic::new(0),
                most: Atomic::new(0),
                go: Atomic::new(go),
                slow,
            };
            Ok(Arc::new(counter, GFP_KERNEL)?)
        }
    }

    impl Task for Counter {
        fn run(&self) {
            let now = self.at_once.fetch_add(1, Relaxed) + 1;
            if now > self.most.load(Relaxed) {
                self.most.store(now, Relaxed);
            }
            self.begun.fetch_add(1, Relaxed);
            let _ = wait_until(|| self.go.load(Relaxed));
            if self.slow {
                pause(150);
            }
            self.at_once.fetch_sub(1, Relaxed);
            self.ended.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn background_runs_when_started() -> Result {
        let counter = Counter::new(true, false)?;
        let background = Background::new(counter.clone())?;
        pause(20);
        assert_eq!(counter.begun.load(Relaxed), 0);
        for run in 1..=3 {
            background.start();
            assert!(wait_until(|| counter.ended.load(Relaxed) == run));
        }
        drop(background);
        assert_eq!(counter.ended.load(Relaxed), 3);
        Ok(())
    }

    #[test]
    fn background_runs_again() -> Result {
        let counter = Counter::new(false, false)?;
        let background = Background::new(counter.clone())?;
        background.start();
        assert!(wait_until(|| counter.begun.load(Relaxed) == 1));
        // However often it is started while it is running, it runs once more, and not concurrently.
        for _ in 0..5 {
            background.start();
        }
        pause(50);
        assert_eq!(counter.begun.load(Relaxed), 1);
        counter.go.store(true, Relaxed);
        assert!(wait_until(|| counter.ended.load(Relaxed) == 2));
        pause(50);
        assert_eq!(counter.begun.load(Relaxed), 2);
        assert_eq!(counter.most.load(Relaxed), 1);
        Ok(())
    }

    #[test]
    fn background_is_waited_for() -> Result {
        let counter = Counter::new(true, true)?;
        let background = Background::new(counter.clone())?;
        background.start();
        assert!(wait_until(|| counter.begun.load(Relaxed) == 1));
        drop(background);
        assert_eq!(counter.ended.load(Relaxed), 1);
        // No work is pending, and no reference is left.
        assert!(Arc::into_unique_or_drop(counter).is_some());
        Ok(())
    }

    #[test]
    fn background_that_is_dropped_at_once() -> Result {
        for _ in 0..50 {
            let counter = Counter::new(true, false)?;
            let background = Background::new(counter.clone())?;
            background.start();
            drop(background);
            assert_eq!(counter.begun.load(Relaxed), counter.ended.load(Relaxed));
            assert!(Arc::into_unique_or_drop(counter).is_some());
        }
        Ok(())
    }
}

#[kunit_tests(rext4_hooks)]
mod hooks {
    use crate::kernel_glue::{run_parallel, Hooks};
    use kernel::prelude::*;

    /// Another location that is patched: here the branch cannot be inlined.
    #[inline(never)]
    fn are_on_elsewhere() -> bool {
        Hooks::are_on()
    }

    fn are(on: bool) -> bool {
        Hooks::are_on() == on && are_on_elsewhere() == on
    }

    #[test]
    fn branch_opens_and_closes() {
        // The module was just loaded, so nothing is being watched.
        assert!(are(false));
        let hooks = Hooks::new();
        assert!(are(true));
        drop(hooks);
        Hooks::flush();
        assert!(are(false));
    }

    #[test]
    fn branch_is_open_for_the_last() {
        let (first, second) = (Hooks::new(), Hooks::new());
        assert!(are(true));
        drop(first);
        assert!(are(true));
        let third = Hooks::new();
        drop(second);
        assert!(are(true));
        drop(third);
        Hooks::flush();
        assert!(are(false));
    }

    #[test]
    fn branch_counts_in_many_threads() -> Result {
        run_parallel(4, &|| {
            for _ in 0..5 {
                drop(Hooks::new());
            }
        })?;
        Hooks::flush();
        assert!(are(false));
        Ok(())
    }
}

#[kunit_tests(rext4_abi)]
mod abi {
    use super::super::bindings;
    use crate::kernel_glue::abi::{
        Fsmap, FsmapHead, FsmapHeadFixed, RegionInfo, ScrubMetadata, ScrubProgress,
    };
    use core::mem::offset_of;
    use kernel::ioctl::{_IOC_SIZE, _IOR, _IOWR};

    const TYPE: u32 = b'r' as u32;

    #[test]
    fn sizes_are_those_of_c() {
        // The ioctl number contains the size according to the C compiler.
        let size = |number| _IOC_SIZE(number);
        assert_eq!(
            size(bindings::REXT4_CALL_SCRUB_METADATA),
            size_of::<ScrubMetadata>()
        );
        assert_eq!(
            size(bindings::REXT4_CALL_SCRUB_PROGRESS),
            size_of::<ScrubProgress>()
        );
        assert_eq!(size(bindings::REXT4_CALL_REGION_INFO), size_of::<RegionInfo>());
    }

    #[test]
    fn numbers_are_those_of_c() {
        assert_eq!(
            bindings::REXT4_CALL_SCRUB_METADATA,
            _IOWR::<ScrubMetadata>(TYPE, 0x80)
        );
        assert_eq!(
            bindings::REXT4_CALL_SCRUB_PROGRESS,
            _IOR::<ScrubProgress>(TYPE, 0x81)
        );
        assert_eq!(bindings::REXT4_CALL_REGION_INFO, _IOWR::<RegionInfo>(TYPE, 0x83));
    }

    #[test]
    fn sizes_stay_what_they_were() {
        // Existing programs depend on these sizes.
        assert_eq!(size_of::<ScrubMetadata>(), 136);
        assert_eq!(size_of::<ScrubProgress>(), 72);
        assert_eq!(size_of::<RegionInfo>(), 88);
        assert_eq!(size_of::<Fsmap>(), 64);
        assert_eq!(size_of::<FsmapHead>(), 192);
    }

    #[test]
    fn no_padding() {
        // Structures copied to programs must not contain uninitialized bytes: the last field ends
        // at the end of the structure.
        assert_eq!(offset_of!(ScrubMetadata, sm_inodes), 24);
        assert_eq!(
            offset_of!(ScrubMetadata, sm_reserved) + 16,
            size_of::<ScrubMetadata>()
        );
        assert_eq!(offset_of!(ScrubProgress, sp_done), 16);
        assert_eq!(
            offset_of!(ScrubProgress, sp_reserved) + 32,
            size_of::<ScrubProgress>()
        );
        assert_eq!(offset_of!(RegionInfo, ri_start), 16);
        assert_eq!(offset_of!(RegionInfo, ri_reserved) + 16, size_of::<RegionInfo>());
        assert_eq!(
            offset_of!(FsmapHeadFixed, fmh_keys),
            offset_of!(FsmapHead, fmh_keys)
        );
        assert_eq!(
            offset_of!(FsmapHeadFixed, fmh_reserved),
            offset_of!(FsmapHead, fmh_reserved)
        );
    }
}

#[kunit_tests(rext4_acl)]
mod acl {
    use crate::kernel_glue::{corrupted, AccessList, AclEntry};
    use kernel::prelude::*;

    /// The owner, a named user, the group, the mask, others.
    const TAGS: [u16; 5] = [0x1, 0x2, 0x4, 0x10, 0x20];

    fn entries(tags: impl IntoIterator<Item = u16>) -> Result<KVec<AclEntry>> {
        let mut entries = KVec::new();
        for tag in tags {
            let entry = AclEntry {
                tag,
                permissions: 6,
                id: if tag == 0x2 { 1000 } else { 0 },
            };
            entries.push(entry, GFP_KERNEL)?;
        }
        Ok(entries)
    }

    #[test]
    fn reference_keeps_list() -> Result {
        let list = AccessList::new(&entries(TAGS)?)?;
        let other = list.clone();
        drop(list);
        let found = other.entries()?;
        assert_eq!(found.len(), TAGS.len());
        for (entry, tag) in found.iter().zip(TAGS) {
            assert_eq!(entry.tag, tag);
            assert_eq!(entry.permissions, 6);
            assert_eq!(entry.id, if tag == 0x2 { 1000 } else { 0 });
        }
        Ok(())
    }

    #[test]
    fn invalid_lists_are_refused() -> Result {
        for tags in [&TAGS[1..], &TAGS[..4], &[0x1, 0x1, 0x4, 0x20], &[0x8; 3]] {
            assert_eq!(
                AccessList::new(&entries(tags.iter().copied())?).err(),
                Some(corrupted())
            );
        }
        let many = entries((0..1 << 16).map(|_| 0x2u16))?;
        assert_eq!(AccessList::new(&many).err(), Some(corrupted()));
        Ok(())
    }
}
