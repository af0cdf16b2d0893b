// SPDX-License-Identifier: GPL-2.0

//! The records that a scan collected for one region, in order, kept up to date with later changes.
//!
//! Before a tree is compared with them or built from them, they are checked against everything else
//! that is known about the blocks:
//!
//! - a block with several owners that must not be shared means damaged inodes;
//! - a block that has an owner but is fixed metadata, or is free in its block bitmap, means damaged
//!   inodes or a damaged bitmap. The allocator would allocate a block of the latter kind a second
//!   time.
//!
//! No tree can be right about such blocks, so their region is neither judged nor rebuilt. Both
//! claims are logged.
//!
//! In a handle, a block is freed or allocated in its bitmap slightly before or after the change of
//! its owner is reported. A record on a free block is therefore checked again after a commit, which
//! waits for all handles that were open: if no change of the block was reported meanwhile and it is
//! still free, record and bitmap contradict each other.

use super::scan::Scan;
use crate::{
    engine::{
        parked::Unowned,
        rebuild::{Rebuild, Update},
        record::{Kind, Record, Rmap},
        shadow::Shadow,
        Error as EngineError, Result as EngineResult,
    },
    format::bitmap,
    fs::{scan, Volume},
    kernel_glue::SuperBlock,
    trees::index::RmapIndex,
};
use kernel::{fmt, prelude::*, sync::Mutex};

/// Number of regular files remembered while overlaps are checked.
const REMEMBERED: usize = 256;
/// Number of contradictions that are logged per region; the others are only counted.
const LOGGED: u32 = 8;

/// Formats a record for the log, with blocks relative to the start of the volume; `None` is
/// "nothing".
pub(super) struct Claim {
    /// The first block of the record's region.
    pub(super) start: u64,
    pub(super) record: Option<Rmap>,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(record) = self.record else {
            return f.write_str("nothing");
        };
        let first = self.start + u64::from(record.start);
        let last = self.start + u64::from(record.last());
        f.write_fmt(fmt!("blocks {first}-{last} of inode {}", record.owner))?;
        match (record.kind, record.unwritten) {
            (Kind::Data, false) => f.write_fmt(fmt!(" as data from file block {} on", record.offset)),
            (Kind::Data, true) => {
                f.write_fmt(fmt!(" as unwritten data from file block {} on", record.offset))
            }
            (Kind::Mapping, _) => f.write_str(" as mapping metadata"),
            (Kind::Xattr, _) => f.write_str(" as extended attributes"),
            (Kind::Cow, _) => f.write_str(" as CoW staging"),
        }
    }
}

/// Finds blocks with more owners than permitted. Only data of users' regular files can be shared,
/// if the volume has the feature, and blocks of extended attributes. Tree files and the orphan file
/// never share blocks.
struct Overlaps<'a> {
    sb: &'a SuperBlock<Volume>,
    /// The first block of the region on the volume.
    start: u64,
    shares: bool,
    /// For each kind, the record seen so far that extends farthest.
    farthest: [Option<Rmap>; 4],
    /// The tree files.
    own: [Option<u32>; 2],
    /// Regular files, by their numbers.
    regular: KVec<u32>,
    found: u32,
}

impl Overlaps<'_> {
    /// Processes the next record in order.
    fn take(&mut self, record: &Rmap) -> EngineResult {
        for kind in 0..self.farthest.len() {
            let other = self.farthest.get(kind).copied().flatten();
            let Some(other) = other.filter(|other| other.last() >= record.start) else {
                continue;
            };
            let legal = match (other.kind, record.kind) {
                (Kind::Xattr, Kind::Xattr) => true,
                (Kind::Data, Kind::Data) => {
                    self.shares && self.may_share(other.owner)? && self.may_share(record.owner)?
                }
                _ => false,
            };
            if !legal {
                self.found += 1;
                if self.found <= LOGGED {
                    let claim = |record| Claim {
                        start: self.start,
                        record: Some(record),
                    };
                    pr_err!(
                        "{}: rmap: blocks have two owners but must not be shared: {}; {}\n",
                        self.sb.name(),
                        claim(other),
                        claim(*record)
                    );
                }
            }
        }
        if let Some(place) = self.farthest.get_mut(record.kind as usize) {
            if place.is_none_or(|other| other.last() < record.last()) {
                *place = Some(*record);
            }
        }
        Ok(())
    }

    /// Returns true if blocks of this inode may have other owners as well.
    fn may_share(&mut self, ino: u32) -> EngineResult<bool> {
        if self.own.contains(&Some(ino)) || !scan::is_ordinary(self.sb, ino).map_err(|_| EngineError::Io)? {
            return Ok(false);
        }
        let place = ino as usize % REMEMBERED;
        if self.regular.get(place) == Some(&ino) {
            return Ok(true);
        }
        let inode = scan::get(self.sb, ino).map_err(|_| EngineError::Io)?;
        // The blocks of a deleted inode cannot be judged any more.
        let regular = inode.is_none_or(|inode| inode.is_file());
        if let Some(place) = self.regular.get_mut(place).filter(|_| regular) {
            *place = ino;
        }
        Ok(regular)
    }
}

/// Maximum number of records on free blocks that are checked again.
const MISPLACED: usize = 256;
/// Maximum number of checks while they keep changing.
const TRIES: u32 = 3;

/// A record that covers a block marked free in its bitmap.
struct Misplaced {
    record: Rmap,
    /// The first such block on the volume.
    block: u64,
    /// True if its owners changed since the last check.
    changed: bool,
}

/// The block bitmaps of a region, loaded one at a time.
struct Bitmaps<'a> {
    sb: &'a SuperBlock<Volume>,
    /// The first block of the region on the volume.
    start: u64,
    /// The group of the loaded bitmap; `None` before the first.
    group: Option<u32>,
    /// The bitmap; empty if it cannot be read.
    bits: KVec<u8>,
}

impl<'a> Bitmaps<'a> {
    fn new(index: &'a RmapIndex, region: u32) -> Self {
        Bitmaps {
            sb: index.super_block(),
            start: index.start_of(region),
            group: None,
            bits: KVec::new(),
        }
    }

    /// Counts a record on fixed metadata in `fixed`, and adds a record on a free block to `free`.
    fn look_at(
        &mut self,
        record: &Rmap,
        unread: &mut bool,
        fixed: &mut u32,
        free: &mut KVVec<Misplaced>,
    ) -> Result {
        let start = self.start + u64::from(record.start);
        if scan::meets_fixed(self.sb, start, record.len)? && !scan::may_have_fixed(self.sb, record.owner)? {
            *fixed += 1;
            if *fixed <= LOGGED {
                let claim = Claim {
                    start: self.start,
                    record: Some(*record),
                };
                pr_err!("{}: rmap: fixed metadata is part of {claim}\n", self.sb.name());
            }
        } else if let Some(block) = self.first_free(record, unread)? {
            if free.len() < MISPLACED {
                let found = Misplaced {
                    record: *record,
                    block,
                    changed: false,
                };
                free.push(found, GFP_KERNEL)?;
            }
        }
        Ok(())
    }

    /// Returns the first block of a record that is free in its bitmap. Sets `unread` if a bitmap
    /// cannot be read.
    fn first_free(&mut self, record: &Rmap, unread: &mut bool) -> Result<Option<u64>> {
        let layout = self.sb.volume()?.layout();
        let mut block = self.start + u64::from(record.start);
        let end = block + u64::from(record.len);
        while block < end {
            let group = layout.group_of_block(block).ok_or(EINVAL)?;
            if self.group != Some(group) {
                self.group = Some(group);
                match scan::copy_bitmap(self.sb, group, &mut self.bits) {
                    Ok(()) => (),
                    Err(ENOMEM) => return Err(ENOMEM),
                    Err(_) => {
                        self.bits.clear();
                        *unread = true;
                    }
                }
            }
            let first = layout.group_start(group);
            let behind = (first + u64::from(layout.group_blocks(group))).min(end);
            if !self.bits.is_empty() {
                let (from, to) = ((block - first) as u32, (behind - first) as u32);
                if let Some(bit) = bitmap::next_clear(&self.bits, from, to) {
                    return Ok(Some(first + u64::from(bit)));
                }
            }
            if behind <= block {
                return Err(EINVAL);
            }
            block = behind;
        }
        Ok(None)
    }
}

/// The records that a scan collected for a region.
pub(super) struct Collected<'a> {
    index: &'a RmapIndex,
    pub(super) region: u32,
    /// Receives the changes made since.
    pub(super) changes: &'a Mutex<Rebuild>,
    pub(super) shadow: Shadow,
    /// True if blocks could be shared when it was taken.
    shares: bool,
}

impl<'a> Collected<'a> {
    /// Takes the records that a completed scan collected for a region. Later changes are collected
    /// separately.
    pub(super) fn take(index: &'a RmapIndex, scan: &'a Scan, region: u32) -> Result<Self> {
        scan.outcome_of(region)?;
        let changes = scan.region(region).ok_or(EINVAL)?;
        let shares = index.super_block().volume()?.shares();
        let shadow = {
            let _state = index.lock(region)?;
            let sealed = changes.lock().seal();
            sealed.map_err(|error| index.rmap.report(region, error))?
        };
        let mut collected = Collected {
            index,
            region,
            changes,
            shadow,
            shares,
        };
        // Merging takes its time; no lock that writers want is held.
        let filled = scan.fill(region, &mut collected.shadow);
        filled.map_err(|error| collected.refuse(error))?;
        Ok(collected)
    }

    /// Converts an error of the engine about the collected records to an errno, and logs it.
    pub(super) fn refuse(&self, error: EngineError) -> Error {
        self.index.rmap.report(self.region, error)
    }

    /// Counts records on blocks that have another owner but must not be shared. The first ones are
    /// logged with both claims.
    fn overlaps(&mut self) -> Result<u32> {
        let overlaps = self.shadow.overlaps();
        if !overlaps.map_err(|error| self.refuse(error))? {
            return Ok(0);
        }
        let sb = self.index.super_block();
        let mut overlaps = Overlaps {
            sb,
            start: self.index.start_of(self.region),
            // The feature may have been set or cleared since.
            shares: self.shares || sb.volume()?.shares(),
            own: [
                Some(self.index.rmap.file.ino()),
                self.index.counts().map(|counts| counts.file.ino()),
            ],
            farthest: [None; 4],
            regular: KVec::from_elem(0, REMEMBERED, GFP_KERNEL)?,
            found: 0,
        };
        let walked = self.shadow.walk(&mut |record| {
            overlaps.take(record)?;
            Ok(true)
        });
        walked.map_err(|error| self.refuse(error))?;
        let more = overlaps.found.saturating_sub(LOGGED);
        if more > 0 {
            pr_err!(
                "{}: rmap: region {}: {more} more findings of this kind\n",
                sb.name(),
                self.region
            );
        }
        Ok(overlaps.found)
    }

    /// Counts the contradictions between the collected records, the fixed metadata and the block
    /// bitmaps. The first ones are logged with both claims. Sets `unread` if a bitmap cannot be
    /// read.
    pub(super) fn contradictions(&mut self, unread: &mut bool) -> Result<u32> {
        let overlaps = self.overlaps()?;
        let sb = self.index.super_block();
        let _checking = scan::Checking::begin(sb.volume()?)?;
        let (fixed, mut free) = self.misplaced(unread)?;
        for _ in 0..TRIES {
            if free.is_empty() {
                break;
            }
            sb.volume()?.journal()?.commit(true)?;
            free = self.still_free(free)?;
        }
        let start = self.index.start_of(self.region);
        // Records that changed before every check are in use, not damaged.
        let free = free.iter().filter(|found| !found.changed);
        let mut found = 0;
        for Misplaced { record, block, .. } in free {
            found += 1;
            if found <= LOGGED {
                let record = Some(*record);
                pr_err!(
                    "{}: rmap: block {block} is free in the block bitmap but part of {}\n",
                    sb.name(),
                    Claim { start, record }
                );
            }
        }
        if found > 0 || fixed > 0 {
            // The bitmap can be repaired from the inodes, but not which of two owners is right.
            let remedy = match fixed {
                0 => "repair the block bitmaps by a scrub",
                _ => "run e2fsck",
            };
            pr_err!(
                "{}: rmap: region {} is not checked: {found} records on free blocks, {fixed} on fixed metadata; {remedy}\n",
                sb.name(),
                self.region
            );
        }
        Ok(overlaps + fixed + found)
    }

    /// Checks all records against fixed metadata and block bitmaps. Returns the number of records
    /// on fixed metadata, and the records on free blocks.
    fn misplaced(&mut self, unread: &mut bool) -> Result<(u32, KVVec<Misplaced>)> {
        let mut beside = Bitmaps::new(self.index, self.region);
        let (mut fixed, mut free) = (0, KVVec::new());
        let mut failed = Ok(());
        let walked = self.shadow.walk(&mut |record| {
            failed = beside.look_at(record, unread, &mut fixed, &mut free);
            Ok(failed.is_ok())
        });
        failed?;
        walked.map_err(|error| self.refuse(error))?;
        Ok((fixed, free))
    }

    /// Returns those of the records that are still on free blocks after all handles that were open
    /// at the first check have ended.
    fn still_free(&mut self, before: KVVec<Misplaced>) -> Result<KVVec<Misplaced>> {
        let updates = self.updates()?;
        self.apply(&updates)?;
        let mut beside = Bitmaps::new(self.index, self.region);
        let mut free = KVVec::new();
        for found in before.iter() {
            let record = found.record;
            let changed = updates.iter().any(|update| {
                let (Update::Add(other) | Update::Remove(other)) = update;
                other.start <= record.last() && record.start <= other.last()
            });
            if changed {
                // Check the records that are there now, again with two looks.
                let mut now = KVVec::new();
                let walked = self.shadow.walk_from(record.start, &mut |other| {
                    let here = other.start <= record.last();
                    if here {
                        now.push(*other, GFP_KERNEL)?;
                    }
                    Ok(here)
                });
                walked.map_err(|error| self.refuse(error))?;
                for record in now.iter() {
                    if let Some(block) = beside.first_free(record, &mut false)? {
                        let (record, changed) = (*record, true);
                        let found = Misplaced {
                            record,
                            block,
                            changed,
                        };
                        free.push(found, GFP_KERNEL)?;
                    }
                }
            } else if let Some(block) = beside.first_free(&record, &mut false)? {
                let changed = false;
                let found = Misplaced {
                    record,
                    block,
                    changed,
                };
                free.push(found, GFP_KERNEL)?;
            }
        }
        Ok(free)
    }

    /// Frees the parked blocks that have no owner among the collected records, if the region's
    /// reverse map is stale. All inodes must have been read.
    ///
    /// On a full volume this may be what makes room for a new tree.
    pub(super) fn free_parked(&mut self) -> Result {
        let parked = self.index.parked_while_stale(self.region)?;
        if parked.is_empty() {
            return Ok(());
        }
        // The records must not be older than the list.
        self.catch_up()?;
        let mut unowned = Unowned::new(&parked);
        let walked = self.shadow.walk(&mut |record| Ok(unowned.pass(record)?));
        walked.map_err(|error| self.refuse(error))?;
        let lost = unowned.finish()?;
        let freed = self.index.free_parked_by_scan(self.region, &lost)?;
        if freed > 0 {
            pr_info!(
                "{}: rmap: region {}: {freed} blocks were freed that lost their last owner while it was stale\n",
                self.index.super_block().name(),
                self.region
            );
        }
        Ok(())
    }

    /// Takes the changes collected so far, oldest first.
    pub(super) fn updates(&self) -> Result<KVVec<Update>> {
        take(self.index, self.changes, self.region)
    }

    /// Applies the changes collected so far. More may arrive meanwhile unless the region is locked.
    pub(super) fn catch_up(&mut self) -> Result {
        let updates = self.updates()?;
        self.apply(&updates)
    }

    pub(super) fn apply(&mut self, updates: &[Update]) -> Result {
        for update in updates {
            let applied = self.shadow.apply(update);
            applied.map_err(|error| self.refuse(error))?;
        }
        Ok(())
    }

    /// Returns the number of records.
    pub(super) fn count(&mut self) -> Result<u64> {
        let count = self.shadow.count();
        count.map_err(|error| self.refuse(error))
    }
}

/// Takes the collected changes of a region, oldest first.
pub(super) fn take(index: &RmapIndex, changes: &Mutex<Rebuild>, region: u32) -> Result<KVVec<Update>> {
    let taken = changes.lock().take();
    index.caught_up();
    taken.map_err(|error| index.rmap.report(region, error))
}
