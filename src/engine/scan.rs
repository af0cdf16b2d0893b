// SPDX-License-Identifier: GPL-2.0

//! The cursor of a scan over all inodes, while others change what is being scanned.
//!
//! The inodes are cut into ranges. Workers take ranges and walk each in order; a range's mark says how far its worker has
//! come, and everything below the mark has been visited. A live update of an inode belongs to the scan exactly if the
//! inode has been visited: what the scan has not reached yet it will see for itself, in its new state. The marks are all
//! that is known: how far the scan is, and whether it is complete, follows from them.
//!
//! The rule that makes this exact: an inode's mark is moved while the lock is held under which its mapping is changed and
//! its updates are told ([`Cursor::visited`]). A free inode is passed while the lock is held under which it would come
//! into use. An update that is told under that lock therefore falls wholly before the visit or wholly after it.
//!
//! An update that cannot be kept poisons the scan: it ends with an error, and whatever it was for stays as it was. So does
//! a mark that would pass over an inode.

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
    /// Inodes of a range.
    width: NonZero<u32>,
    /// The last inode.
    last: u32,
    /// The next range that no worker has taken.
    next: Atomic<u32>,
    poisoned: Atomic<bool>,
}

/// A range that a worker walks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    /// The first inode.
    pub(crate) first: u32,
    /// The last inode.
    pub(crate) last: u32,
}

impl Cursor {
    /// A cursor over the inodes from 1 to `last`, in ranges of `width`.
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

    /// Takes the next range, until there is none or the scan is poisoned.
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

    /// The inodes of a range.
    fn work(&self, index: u32) -> Work {
        let width = self.width.get();
        let first = index * width + 1;
        Work {
            first,
            last: first.saturating_add(width - 1).min(self.last),
        }
    }

    /// Notes that `ino`, the next one of its range, has been visited. The caller holds the lock under which the inode's
    /// updates are told. To say it again changes nothing; to pass over an inode poisons the scan.
    pub(crate) fn visited(&self, ino: u32) {
        self.passed(ino, ino);
    }

    /// Notes that all inodes from `first` to `last` have been visited, which are of one range. Free ones are passed with the lock held under
    /// which they would come into use.
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

    /// Whether an update of `ino` must be told to the scan. The caller holds the lock as for [`Cursor::visited`].
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

    /// Ends the scan: something it should have known is lost.
    pub(crate) fn poison(&self) {
        self.poisoned.store(true, Release);
    }

    /// Whether [`Cursor::poison`] was called.
    pub(crate) fn is_poisoned(&self) -> bool {
        self.poisoned.load(Acquire)
    }

    /// Each range's inodes and its mark.
    fn marks(&self) -> impl Iterator<Item = (Work, u32)> + '_ {
        (0u32..)
            .zip(self.ranges.iter())
            .map(|(index, range)| (self.work(index), range.mark.load(Acquire)))
    }

    /// Inodes visited, and inodes in all. Looks at every range.
    #[allow(dead_code, reason = "tests use it")]
    pub(crate) fn progress(&self) -> (u64, u64) {
        let visited = self
            .marks()
            .map(|(work, mark)| u64::from(mark - work.first))
            .sum();
        (visited, u64::from(self.last))
    }

    /// Whether every inode has been visited. Looks at ranges up to the first that is not done.
    pub(crate) fn is_complete(&self) -> bool {
        !self.is_poisoned() && self.marks().all(|(work, mark)| mark > work.last)
    }
}
