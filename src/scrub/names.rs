// SPDX-License-Identifier: GPL-2.0

//! Counts the entries of all directories that lead to each inode, while others change them.
//!
//! [`Names`] watches the volume. A directory is visited with its lock held, under which its entries
//! change, and then the cursor moves past it ([`crate::engine::scan`]). A change of a directory
//! that was visited is counted when it happens, any other one is seen by the visit. An inode that
//! is no directory is passed with its block of the inode table locked, and a free one with its
//! group locked, so that a directory that is made there is known to be behind the cursor.
//!
//! `.` and `..` are counted apart from names. Entries of a directory that has been removed do not
//! count. The counts take eight bytes for each inode; if there is less memory, the inodes are
//! counted in several passes, some groups each time.

use super::scrubber::Scrubber;
use crate::{
    engine::scan::{Cursor, Work},
    fs::{
        directories::{self, NameWatcher},
        scan::{self, Next},
        Volume,
    },
    kernel_glue::{canceled, pause, Hooks, SuperBlock},
};
use core::ops::Range;
use kernel::{
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc,
    },
};

/// Maximum number of inodes per range.
const WIDTH: u32 = 2048;
/// Number of bytes that the counts of an inode take.
pub(super) const BYTES: u64 = 8;
/// How often a directory that is in use but cannot be had is retried.
const TRIES: u32 = 100;

/// The entries that lead to an inode.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    /// Names.
    pub(super) names: u32,
    /// `.` and `..`.
    pub(super) dots: u32,
}

/// The counts of the inodes of some groups.
pub(super) struct Names {
    cursor: Cursor,
    /// The groups.
    pub(super) groups: Range<u32>,
    /// The first inode.
    first: u32,
    counts: KVVec<(Atomic<i32>, Atomic<i32>)>,
    /// Some entries are not known.
    unread: Atomic<bool>,
    /// Number of directories that were visited, and of changes received.
    pub(super) visited: Atomic<u64>,
    pub(super) updates: Atomic<u64>,
}

/// A scan of names and the subscription to their changes, which ends when this is dropped.
pub(super) struct Watching<'a> {
    volume: &'a Volume,
    pub(super) names: Arc<Names>,
    _hooks: Hooks,
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        self.volume.watch_names(None);
    }
}

impl<'a> Watching<'a> {
    /// Subscribes to all changes. Counts the entries that lead to the inodes of these groups, which
    /// takes [`BYTES`] for each.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn begin(volume: &'a Volume, groups: Range<u32>) -> Result<Self> {
        let inodes = volume.inode_count();
        let each = volume.inodes_per_group();
        let first = groups.start.saturating_mul(each).saturating_add(1);
        let counted = groups.end.saturating_sub(groups.start).saturating_mul(each);
        let mut counts = KVVec::with_capacity(counted as usize, GFP_KERNEL)?;
        for _ in 0..counted {
            counts.push((Atomic::new(0), Atomic::new(0)), GFP_KERNEL)?;
        }
        // A range must not extend beyond the end of a group.
        let mut width = volume.inodes_per_group().max(1);
        while width > WIDTH && width % 2 == 0 {
            width /= 2;
        }
        let names = Names {
            cursor: Cursor::new(inodes, width)?,
            groups,
            first,
            counts,
            unread: Atomic::new(false),
            visited: Atomic::new(0),
            updates: Atomic::new(0),
        };
        let names = Arc::new(names, GFP_KERNEL)?;
        let hooks = Hooks::new();
        volume.watch_names(Some(names.clone()));
        Ok(Watching {
            volume,
            names,
            _hooks: hooks,
        })
    }
}

impl Names {
    /// Returns the counts of an inode of the groups.
    pub(super) fn of(&self, ino: u32) -> Count {
        let at = ino.checked_sub(self.first);
        let at = at.and_then(|at| self.counts.get(at as usize));
        at.map_or(Count { names: 0, dots: 0 }, |(names, dots)| Count {
            names: names.load(Relaxed).max(0) as u32,
            dots: dots.load(Relaxed).max(0) as u32,
        })
    }

    /// Returns true if some entries are not known, so that all counts may be too low.
    pub(super) fn are_unread(&self) -> bool {
        self.unread.load(Relaxed)
    }

    fn count(&self, ino: u32, dot: bool, by: i32) {
        let at = ino.checked_sub(self.first);
        let at = at.and_then(|at| self.counts.get(at as usize));
        if let Some((names, dots)) = at {
            let count = if dot { dots } else { names };
            count.fetch_add(by, Relaxed);
        }
    }

    /// Visits all directories.
    ///
    /// # Errors
    ///
    /// `EINTR` or `ECANCELED` when the scan is cancelled, `ENOMEM`.
    pub(super) fn run(&self, sb: &SuperBlock<Volume>, scrubber: &Scrubber, asked: bool) -> Result {
        let _checking = scan::Checking::begin(sb.volume()?)?;
        while let Some(work) = self.cursor.take() {
            self.range(sb, scrubber, work, asked)?;
        }
        match self.cursor.is_complete() {
            true => Ok(()),
            false => Err(EIO),
        }
    }

    fn range(&self, sb: &SuperBlock<Volume>, scrubber: &Scrubber, work: Work, asked: bool) -> Result {
        let _ = scan::read_slots(sb, work.first, work.last);
        let (mut next, mut tries) = (work.first, 0);
        while next <= work.last {
            scrubber.may_go_on(asked)?;
            let mut bitmap = Ok(());
            let found = scan::next_used(sb, next, work.last, &mut bitmap, &mut |first, last| {
                self.cursor.passed(first, last);
            });
            if bitmap.is_err() {
                self.unread.store(true, Relaxed);
            }
            let (first, last) = match found {
                Ok(Next::Nothing) => break,
                Ok(Next::Used(first, last)) => (first, last),
                Ok(Next::Doubtful(ino)) => (ino, ino),
                Err(ENOMEM) => return Err(ENOMEM),
                Err(_) => {
                    // The group's inodes can be neither loaded nor allocated.
                    self.unread.store(true, Relaxed);
                    self.cursor.passed(next, work.last);
                    break;
                }
            };
            next = first;
            while next <= last {
                scrubber.may_go_on(asked)?;
                if !self.visit(sb, next)? {
                    // It is being made or freed: look at the bitmap again.
                    tries += 1;
                    if tries <= TRIES {
                        pause(1);
                        break;
                    }
                    self.unread.store(true, Relaxed);
                    self.cursor.visited(next);
                }
                tries = 0;
                next += 1;
            }
        }
        scrubber.progress.advance(u64::from(work.last - work.first) + 1);
        Ok(())
    }

    /// Visits an inode. Returns false if it is being made or freed.
    fn visit(&self, sb: &SuperBlock<Volume>, ino: u32) -> Result<bool> {
        let mut passed = false;
        let looked = directories::pass_other(sb, ino, || {
            self.cursor.visited(ino);
            passed = true;
        });
        if passed {
            return Ok(true);
        }
        let read = looked.and_then(|()| scan::get(sb, ino)).and_then(|dir| {
            let Some(dir) = dir else {
                return Ok(false);
            };
            let dir = dir.lock();
            let read = match dir.links() {
                0 => Ok(()),
                _ => directories::for_each_name(&dir, &mut |ino, name| {
                    self.count(ino, matches!(name, b"." | b".."), 1);
                    Ok(())
                }),
            };
            self.cursor.visited(ino);
            self.visited.fetch_add(1, Relaxed);
            read.map(|()| true)
        });
        match read {
            Err(error) if [ENOMEM, EINTR, EROFS, canceled()].contains(&error) => Err(error),
            Err(error) => {
                pr_err!(
                    "{}: links: directory {ino} cannot be read, so its names are unknown: error {}\n",
                    sb.name(),
                    error.to_errno()
                );
                self.unread.store(true, Relaxed);
                // If it cannot be loaded, it does not change.
                self.cursor.visited(ino);
                Ok(true)
            }
            read => read,
        }
    }
}

impl NameWatcher for Names {
    fn changed(&self, dir: u32, ino: u32, dot: bool, added: bool) {
        if self.cursor.wants_update(dir) {
            self.updates.fetch_add(1, Relaxed);
            self.count(ino, dot, if added { 1 } else { -1 });
        }
    }
}
