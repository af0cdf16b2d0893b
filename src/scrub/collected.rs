// SPDX-License-Identifier: GPL-2.0

//! What a scan collected for one region: all records in order, and the changes since.
//!
//! Before a tree is compared with it or made of it, it is compared with what else is known of the blocks:
//!
//! - a block with owners that must not share it is damage to inodes;
//! - a block that has an owner and is fixed metadata, or is free by its block bitmap, is damage to inodes or to the bitmap.
//!   The allocator would hand out the latter a second time.
//!
//! No tree can be right about such blocks, so their region is neither judged nor rebuilt. Both claims are logged.
//!
//! A block is freed or taken in its bitmap a little before or after its owner is told, in the same handle. A record on a
//! free block is therefore looked at a second time after a commit, which waits for all handles that were open: if no
//! change of the block was told meanwhile, and it is still free, the two contradict each other.

use super::scan::Scan;
use crate::{
    engine::{
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

/// Inodes remembered as regular files while overlaps are looked at.
const REMEMBERED: usize = 256;
/// Contradictions that are logged for a region; the rest is only counted.
const LOGGED: u32 = 8;

/// A record in words, with its blocks counted from the start of the volume; `None` is "nothing".
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
            (Kind::Data, false) => f.write_fmt(fmt!(" as its data from file block {} on", record.offset)),
            (Kind::Data, true) => f.write_fmt(fmt!(" as unwritten from file block {} on", record.offset)),
            (Kind::Mapping, _) => f.write_str(" as its mapping"),
            (Kind::Xattr, _) => f.write_str(" as its attributes"),
            (Kind::Cow, _) => f.write_str(" as staged for copy-on-write"),
        }
    }
}

/// Finds blocks that have more owners than they may: only data of regular files can be shared, on a volume with the
/// feature for that, and blocks of extended attributes.
struct Overlaps<'a> {
    sb: &'a SuperBlock<Volume>,
    /// The first block of the region, on the volume.
    start: u64,
    shares: bool,
    /// The record of each kind that reached farthest so far.
    farthest: [Option<Rmap>; 4],
    /// Regular files, by their numbers.
    regular: KVec<u32>,
    found: u32,
}

impl Overlaps<'_> {
    /// Takes the next record in order.
    fn take(&mut self, record: &Rmap) -> EngineResult {
        for kind in 0..self.farthest.len() {
            let other = self.farthest.get(kind).copied().flatten();
            let Some(other) = other.filter(|other| other.last() >= record.start) else {
                continue;
            };
            let legal = match (other.kind, record.kind) {
                (Kind::Xattr, Kind::Xattr) => true,
                (Kind::Data, Kind::Data) => {
                    self.shares && self.is_regular(other.owner)? && self.is_regular(record.owner)?
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
                        "{}: rmap: claimed twice and not to be shared: {}; {}\n",
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

    fn is_regular(&mut self, ino: u32) -> EngineResult<bool> {
        let place = ino as usize % REMEMBERED;
        if self.regular.get(place) == Some(&ino) {
            return Ok(true);
        }
        let inode = scan::get(self.sb, ino).map_err(|_| EngineError::Io)?;
        // One that is gone has left nothing to be judged.
        let regular = inode.is_none_or(|inode| inode.is_file());
        if let Some(place) = self.regular.get_mut(place).filter(|_| regular) {
            *place = ino;
        }
        Ok(regular)
    }
}

/// Records on free blocks that are looked at a second time at most.
const MISPLACED: usize = 256;
/// How often that is done while they change.
const TRIES: u32 = 3;

/// A record on a block that is free by its bitmap.
struct Misplaced {
    record: Rmap,
    /// The first such block, on the volume.
    block: u64,
    /// Its owners changed since the last look.
    changed: bool,
}

/// The block bitmaps of a region, one at a time.
struct Bitmaps<'a> {
    sb: &'a SuperBlock<Volume>,
    /// The first block of the region, on the volume.
    start: u64,
    /// The group whose bitmap this is; `None` before the first.
    group: Option<u32>,
    /// Empty when it cannot be read.
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

    /// Counts a record on fixed metadata in `fixed`, and adds one on a free block to `free`.
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
                pr_err!("{}: rmap: fixed metadata lies in {claim}\n", self.sb.name());
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

    /// The first block of a record that its bitmap calls free. `unread` is set when a bitmap cannot be read.
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

/// What a scan collected for a region.
pub(super) struct Collected<'a> {
    index: &'a RmapIndex,
    pub(super) region: u32,
    /// Where changes gather.
    pub(super) changes: &'a Mutex<Rebuild>,
    pub(super) shadow: Shadow,
    /// Blocks could be shared when it was taken.
    shares: bool,
}

impl<'a> Collected<'a> {
    /// Takes what a complete scan collected for a region. From now on changes gather behind it.
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
        // Sorting takes its time; no lock is held.
        let settled = collected.shadow.settle();
        settled.map_err(|error| collected.refuse(error))?;
        Ok(collected)
    }

    /// Makes an errno of the engine's error about what was collected.
    pub(super) fn refuse(&self, error: EngineError) -> Error {
        self.index.rmap.report(self.region, error)
    }

    /// Counts records on blocks that have another owner and must not; the first of them are logged with both claims.
    fn overlaps(&mut self) -> Result<u32> {
        let overlaps = self.shadow.overlaps();
        if !overlaps.map_err(|error| self.refuse(error))? {
            return Ok(0);
        }
        let sb = self.index.super_block();
        let mut overlaps = Overlaps {
            sb,
            start: self.index.start_of(self.region),
            // The feature may have come or gone since.
            shares: self.shares || sb.volume()?.shares(),
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
                "{}: rmap: region {}: {more} more of this kind\n",
                sb.name(),
                self.region
            );
        }
        Ok(overlaps.found)
    }

    /// Counts the contradictions between what was collected, the fixed metadata and the block bitmaps; the first of them
    /// are logged with both claims. `unread` is set when a bitmap cannot be read.
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
        // What changed each time that it was looked at is in use, not damaged.
        let free = free.iter().filter(|found| !found.changed);
        let mut found = 0;
        for Misplaced { record, block, .. } in free {
            found += 1;
            if found <= LOGGED {
                let record = Some(*record);
                pr_err!(
                    "{}: rmap: block {block} is free by the block bitmap and belongs to {}\n",
                    sb.name(),
                    Claim { start, record }
                );
            }
        }
        if found > 0 || fixed > 0 {
            pr_err!(
                "{}: rmap: region {} is left as it is: {found} records on free blocks, {fixed} on fixed metadata; run e2fsck\n",
                sb.name(),
                self.region
            );
        }
        Ok(overlaps + fixed + found)
    }

    /// Looks at all records beside fixed metadata and block bitmaps. Returns how many are on fixed metadata, and those
    /// on free blocks.
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

    /// Those of the records that lie on free blocks once more, after all handles ended that were open at the first look.
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
                // The records there now are looked at, from the first time on.
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

    /// Takes the gathered changes, oldest first.
    fn updates(&self) -> Result<KVVec<Update>> {
        take(self.index, self.changes, self.region)
    }

    /// Applies the gathered changes to what was collected. Those that come meanwhile are left, unless the region is
    /// locked.
    pub(super) fn catch_up(&mut self) -> Result {
        let updates = self.updates()?;
        self.apply(&updates)
    }

    fn apply(&mut self, updates: &[Update]) -> Result {
        for update in updates {
            let applied = self.shadow.apply(update);
            applied.map_err(|error| self.refuse(error))?;
        }
        Ok(())
    }

    /// How many records there are.
    pub(super) fn count(&mut self) -> Result<u64> {
        let count = self.shadow.count();
        count.map_err(|error| self.refuse(error))
    }
}

/// Takes the changes of a region that have gathered, oldest first.
pub(super) fn take(index: &RmapIndex, changes: &Mutex<Rebuild>, region: u32) -> Result<KVVec<Update>> {
    let taken = changes.lock().take();
    index.caught_up();
    taken.map_err(|error| index.rmap.report(region, error))
}
