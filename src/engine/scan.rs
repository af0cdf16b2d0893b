// SPDX-License-Identifier: GPL-2.0

//! The cursor of a scan over all inodes, while other tasks change them.
//!
//! The inodes are divided into ranges. Workers take ranges and walk each in order. The mark of a
//! range says how far its worker has come: every inode below it has been visited. A live update of
//! an inode must be passed to the scan if and only if the inode has been visited; otherwise the
//! scan will see the new state when it gets there. Progress and completion are derived from the
//! marks alone.
//!
//! This is exact because the mark is moved past an inode under the lock that also protects changes
//! of its mapping and the resulting updates ([`Cursor::visited`]). Free inodes are passed under the
//! lock that is needed to allocate them. An update sent under that lock therefore happens either
//! entirely before or entirely after the visit.
//!
//! An update that cannot be recorded poisons the scan: it ends with an error, and the metadata that
//! it was to repair stays unchanged. A mark that would skip an inode poisons it as well.

use core::num::NonZero;
use kernel::{
    alloc::AllocError,
    prelude::*,
    sync::atomic::{Acquire, Atomic, Relaxed, Release},
};

/// A range of inodes and how far its worker has come.
struct Range {
    /// The first inode that has not been visited.
    mark: Atomic<u32>,
}

/// The cursor.
pub(crate) struct Cursor {
    ranges: KVVec<Range>,
    /// Number of inodes per range.
    width: NonZero<u32>,
    /// The last inode.
    last: u32,
    /// The next range not yet taken by a worker.
    next: Atomic<u32>,
    poisoned: Atomic<bool>,
}

/// A range for a worker to walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    /// The first inode.
    pub(crate) first: u32,
    /// The last inode.
    pub(crate) last: u32,
}

impl Cursor {
    /// Returns a cursor over the inodes 1 to `last`, in ranges of `width` inodes.
    pub(crate) fn new(last: u32, width: u32) -> Result<Cursor, AllocError> {
        let width = NonZero::new(width).unwrap_or(NonZero::<u32>::MIN);
        let count = last.div_ceil(width.get());
        let mut ranges = KVVec::with_capacity(count as usize, GFP_KERNEL)?;
        for index in 0..count {
            ranges.push(
                Range {
                    mark: Atomic::new(index * width.get() + 1),
                },
                GFP_KERNEL,
            )?;
        }
        Ok(Cursor {
            ranges,
            width,
            last,
            next: Atomic::new(0),
            poisoned: Atomic::new(false),
        })
    }

    /// Takes the next range; `None` if none is left or the scan is poisoned.
    pub(crate) fn take(&self) -> Option<Work> {
        if self.is_poisoned() {
            return None;
        }
        let count = self.ranges.len() as u32;
        let mut next = self.next.load(Relaxed);
        while next < count {
            match self.next.cmpxchg(next, next + 1, Relaxed) {
                Ok(index) => return Some(self.work(index)),
                Err(found) => next = found,
            }
        }
        None
    }

    /// Returns the inodes of a range.
    fn work(&self, index: u32) -> Work {
        let width = self.width.get();
        let first = index * width + 1;
        Work {
            first,
            last: first.saturating_add(width - 1).min(self.last),
        }
    }

    /// Marks `ino`, the next one of its range, as visited. The caller holds the lock under which
    /// the inode's updates are sent. Marking an inode again has no effect; skipping one poisons the
    /// scan.
    pub(crate) fn visited(&self, ino: u32) {
        self.passed(ino, ino);
    }

    /// Marks all inodes from `first` to `last`, which must be in one range, as visited. The caller
    /// holds the lock under which its updates are sent or, for free inodes, the lock that is needed
    /// to allocate them.
    pub(crate) fn passed(&self, first: u32, last: u32) {
        let Some(range) = self.range(first) else {
            return;
        };
        // Only the range's worker moves its mark.
        let mark = range.mark.load(Relaxed);
        let within = self.range(last).is_some_and(|other| core::ptr::eq(other, range));
        if first > mark || !within {
            self.poison();
        } else if last >= mark {
            range.mark.store(last.saturating_add(1), Release);
        }
    }

    /// Returns true if an update of `ino` must be passed to the scan. Locking as for
    /// [`Cursor::visited`].
    pub(crate) fn wants_update(&self, ino: u32) -> bool {
        !self.is_poisoned()
            && self
                .range(ino)
                .is_some_and(|range| ino < range.mark.load(Acquire))
    }

    fn range(&self, ino: u32) -> Option<&Range> {
        let index = ino.checked_sub(1)? / self.width;
        self.ranges.get(index as usize).filter(|_| ino <= self.last)
    }

    /// Ends the scan with an error, because an update or a visit was lost.
    pub(crate) fn poison(&self) {
        self.poisoned.store(true, Release);
    }

    /// Returns true once [`Cursor::poison`] was called.
    pub(crate) fn is_poisoned(&self) -> bool {
        self.poisoned.load(Acquire)
    }

    /// Iterates over the ranges and their marks.
    fn marks(&self) -> impl Iterator<Item = (Work, u32)> + '_ {
        (0u32..)
            .zip(self.ranges.iter())
            .map(|(index, range)| (self.work(index), range.mark.load(Acquire)))
    }

    /// Returns the number of visited inodes and of all inodes. Looks at every range.
    #[allow(dead_code, reason = "tests use it")]
    pub(crate) fn progress(&self) -> (u64, u64) {
        let visited = self
            .marks()
            .map(|(work, mark)| u64::from(mark - work.first))
            .sum();
        (visited, u64::from(self.last))
    }

    /// Returns true once every inode has been visited. Stops at the first range that is not
    /// finished.
    pub(crate) fn is_complete(&self) -> bool {
        !self.is_poisoned() && self.marks().all(|(work, mark)| mark > work.last)
    }
}
