// SPDX-License-Identifier: GPL-2.0

//! The scrub type of the block bitmaps: each bit is compared with the owners of its block, and each
//! group's checksum, padding and free count with its bitmap.
//!
//! **Check.** A block in use is one that an inode owns, by the scan, or that is fixed metadata. Two
//! kinds of differences are found:
//!
//! - A block in use that is free in the bitmap. The allocator would give it to another file.
//! - A block without an owner that is marked in use. It counts as a finding only if the region's
//!   reverse map has no owner of it either and every inode could be read: freeing a block that
//!   somebody owns destroys data, so no single source of information is enough.
//!
//! The bitmap of a block changes slightly before or after its owner, in the same handle. What
//! differs is therefore compared again after a commit, which waits for all handles that were open,
//! and blocks that changed owners in between are left out.
//!
//! **Repair.** The bits are corrected group by group, each in a handle of its own together with the
//! group's checksum and free count ([`crate::fs::bitmaps`]). The region is compared again
//! afterwards.
//!
//! This type comes before the others: a tree can be neither judged nor rebuilt while blocks of it
//! are free in a bitmap.

use super::{
    collected::{Claim, Collected},
    report::{nanoseconds, Verdict},
    run::{Needs, RegionScrub, ScrubType},
};
use crate::{
    engine::rebuild::Update,
    format::bitmap,
    fs::{bitmaps, scan},
    kernel_glue::{abi::value, corrupted},
};
use core::ops::Range;
use kernel::{
    prelude::*,
    time::{Instant, Monotonic},
};

/// Number of findings that are logged per region; the others are only counted.
const LOGGED: u32 = 8;

/// The entry in the table of types.
pub(super) static TYPE: ScrubType = ScrubType {
    number: value::REXT4_SCRUB_TYPE_BITMAP,
    name: "bitmap",
    needs: Needs::Inodes,
    trees: None,
    check,
    repair,
};

/// The blocks of a region, and the groups that they are in.
struct Extent {
    /// First block on the volume.
    start: u64,
    /// Length in blocks.
    blocks: u32,
    groups: Range<u32>,
}

impl Extent {
    fn of(part: &RegionScrub<'_>) -> Result<Extent> {
        let layout = part.index.super_block().volume()?.layout();
        let blocks = part.index.blocks_of(part.region)?;
        Ok(Extent {
            start: blocks.start,
            blocks: u32::try_from(blocks.end - blocks.start).map_err(|_| EFBIG)?,
            groups: layout.groups_of(&blocks).ok_or(EINVAL)?,
        })
    }

    /// Returns an array with a clear bit for each block.
    fn bits(&self) -> Result<KVVec<u8>> {
        Ok(KVVec::from_elem(0, self.blocks.div_ceil(8) as usize, GFP_KERNEL)?)
    }
}

/// The differences of a region.
#[derive(Default)]
struct Differences {
    /// A bit for each block of the region: in use, but free in the bitmap.
    unmarked: KVVec<u8>,
    /// A bit for each block of the region: marked in use, but without an owner.
    unowned: KVVec<u8>,
    /// Groups whose checksum, padding or free count is wrong, and whether it is the checksum.
    defects: KVVec<(u32, bool)>,
    /// A bitmap or descriptor could not be read.
    unread: bool,
    /// A descriptor is damaged.
    damaged: bool,
}

impl Differences {
    fn any(&self) -> bool {
        !self.defects.is_empty() || self.any_unowned() || self.unmarked.iter().any(|&byte| byte != 0)
    }

    fn any_unowned(&self) -> bool {
        self.unowned.iter().any(|&byte| byte != 0)
    }

    /// Keeps only the blocks that differed before as well and have not changed owners since.
    fn keep(&mut self, before: &Differences, updates: &[Update]) {
        for (now, then) in [
            (&mut self.unmarked, &before.unmarked),
            (&mut self.unowned, &before.unowned),
        ] {
            for (now, then) in now.iter_mut().zip(then.iter()) {
                *now &= then;
            }
            for update in updates {
                let (Update::Add(record) | Update::Remove(record)) = update;
                bitmap::assign(now, record.start, record.len, false);
            }
        }
    }
}

/// Compares the bitmaps of a region with the collected owners once.
fn look(part: &RegionScrub<'_>, extent: &Extent, collected: &mut Collected<'_>) -> Result<Differences> {
    let sb = part.index.super_block();
    let volume = sb.volume()?;
    let layout = volume.layout();
    let mut owned = extent.bits()?;
    bitmaps::mark_fixed(volume, extent.start, extent.blocks, &mut owned)?;
    let walked = collected.shadow.walk(&mut |record| {
        bitmap::assign(&mut owned, record.start, record.len, true);
        Ok(true)
    });
    walked.map_err(|error| collected.refuse(error))?;
    let mut found = Differences {
        unmarked: extent.bits()?,
        unowned: extent.bits()?,
        ..Differences::default()
    };
    let mut bits = KVec::new();
    for group in extent.groups.clone() {
        part.may_go_on()?;
        match bitmaps::read_any(sb, group, &mut bits) {
            Ok(state) if !state.is_sound() => {
                found.defects.push((group, !state.is_sealed), GFP_KERNEL)?;
            }
            Ok(_) => (),
            Err(ENOMEM) => return Err(ENOMEM),
            Err(error) => {
                found.unread |= error == EIO;
                found.damaged |= error != EIO;
                continue;
            }
        }
        let first = layout.group_start(group);
        let from = first.max(extent.start);
        let to = (first + u64::from(layout.group_blocks(group))).min(extent.start + u64::from(extent.blocks));
        // Groups begin and regions are cut at whole bytes of a bitmap.
        let in_group = ((from - first) / 8) as usize;
        let in_region = ((from - extent.start) / 8) as usize;
        let len = to.saturating_sub(from);
        let bytes = len.div_ceil(8) as usize;
        let marked = bits.get(in_group..in_group + bytes).ok_or(EINVAL)?;
        let range = in_region..in_region + bytes;
        let owned = owned.get(range.clone()).ok_or(EINVAL)?;
        let unmarked = found.unmarked.get_mut(range.clone()).ok_or(EINVAL)?;
        let unowned = found.unowned.get_mut(range).ok_or(EINVAL)?;
        for (at, (&marked, &owned)) in marked.iter().zip(owned).enumerate() {
            let left = len - 8 * at as u64;
            let mask = if left < 8 { (1u8 << left) - 1 } else { 0xff };
            if let (Some(unmarked), Some(unowned)) = (unmarked.get_mut(at), unowned.get_mut(at)) {
                *unmarked = owned & !marked & mask;
                *unowned = marked & !owned & mask;
            }
        }
    }
    Ok(found)
}

/// The findings of a region, which a repair corrects.
struct Findings {
    /// Blocks in use to be marked so, a bit for each block of the region.
    unmarked: KVVec<u8>,
    /// Blocks to be freed: first block on the volume and length.
    unowned: KVVec<(u64, u32)>,
    /// Groups whose checksum, padding or free count is to be corrected.
    defects: KVVec<u32>,
    /// For some blocks it is unknown whether they have an owner.
    unsure: bool,
    /// A bitmap or descriptor could not be read.
    unread: bool,
    /// A descriptor is damaged.
    damaged: bool,
}

impl Findings {
    /// Compares the bitmaps of a region with the collected owners, in two passes.
    fn of(part: &RegionScrub<'_>, extent: &Extent, collected: &mut Collected<'_>) -> Result<Findings> {
        let volume = part.index.super_block().volume()?;
        collected.catch_up()?;
        let mut found = look(part, extent, collected)?;
        if found.any() {
            volume.journal()?.commit(true)?;
            let updates = collected.updates()?;
            collected.apply(&updates)?;
            let before = core::mem::replace(&mut found, look(part, extent, collected)?);
            found.keep(&before, &updates);
        }
        let doubtful = found.any_unowned() || !found.defects.is_empty();
        let knows_all = doubtful && part.knows_all()?;
        let mut findings = Findings {
            unmarked: found.unmarked,
            unowned: KVVec::new(),
            defects: KVVec::new(),
            unsure: false,
            unread: found.unread,
            damaged: found.damaged,
        };
        for (bit, len) in Runs::of(&found.unowned, extent.blocks) {
            part.may_go_on()?;
            let known = knows_all
                && part
                    .index
                    .confirm_unowned(part.region, (bit, len), &mut findings.unowned)?;
            findings.unsure |= !known;
        }
        for &(group, checksum) in found.defects.iter() {
            // The bits of a bitmap with a wrong checksum are meaningless, so it can be repaired
            // only if all owners are known. Until then the group stays fenced.
            match checksum && !knows_all {
                true => findings.unsure = true,
                false => findings.defects.push(group, GFP_KERNEL)?,
            }
        }
        Ok(findings)
    }

    fn is_clean(&self) -> bool {
        self.unowned.is_empty() && self.defects.is_empty() && self.unmarked.iter().all(|&byte| byte == 0)
    }

    /// Returns the number of blocks marked free that are in use, and the number of those marked in
    /// use that have no owner.
    fn counts(&self) -> (u64, u64) {
        let unmarked = self
            .unmarked
            .iter()
            .map(|byte| u64::from(byte.count_ones()))
            .sum();
        let unowned = self.unowned.iter().map(|&(_, len)| u64::from(len)).sum();
        (unmarked, unowned)
    }

    /// Logs the findings, the first ones by their blocks.
    fn log(&self, part: &RegionScrub<'_>, extent: &Extent, collected: &mut Collected<'_>) -> Result {
        let name = part.index.super_block().name();
        let mut logged = 0;
        let walked = collected.shadow.walk(&mut |record| {
            let end = record.start.saturating_add(record.len);
            let unmarked = |bit: &u32| {
                self.unmarked
                    .get(*bit as usize / 8)
                    .is_some_and(|byte| byte & 1 << (bit % 8) != 0)
            };
            if let Some(bit) = (record.start..end).find(unmarked) {
                logged += 1;
                pr_err!(
                    "{name}: bitmap: block {} is free in the block bitmap but belongs to {}\n",
                    extent.start + u64::from(bit),
                    Claim {
                        start: extent.start,
                        record: Some(*record)
                    }
                );
            }
            Ok(logged < LOGGED)
        });
        walked.map_err(|error| collected.refuse(error))?;
        for &(start, len) in self.unowned.iter().take(LOGGED as usize) {
            pr_err!(
                "{name}: bitmap: blocks {start}-{} are marked in use but have no owner\n",
                start + u64::from(len) - 1
            );
        }
        let (unmarked, unowned) = self.counts();
        pr_err!(
            "{name}: bitmap: region {}: {unmarked} blocks in use are marked free, {unowned} blocks without an owner are marked in use, {} groups have a wrong checksum, padding or free count\n",
            part.region,
            self.defects.len()
        );
        Ok(())
    }
}

/// The runs of set bits of a bitmap: first bit and length.
struct Runs<'a> {
    bits: &'a [u8],
    at: u32,
    end: u32,
}

impl<'a> Runs<'a> {
    fn of(bits: &'a [u8], end: u32) -> Runs<'a> {
        Runs { bits, at: 0, end }
    }
}

impl Iterator for Runs<'_> {
    type Item = (u32, u32);

    fn next(&mut self) -> Option<(u32, u32)> {
        let start = self.at + bitmap::clear_run(self.bits, self.at, self.end, u32::MAX);
        if start >= self.end {
            return None;
        }
        self.at = bitmap::next_clear(self.bits, start, self.end).unwrap_or(self.end);
        Some((start, self.at - start))
    }
}

fn check(part: &mut RegionScrub<'_>) -> Result<Verdict> {
    let mut collected = part.collect()?;
    let extent = Extent::of(part)?;
    let findings = {
        let _checking = scan::Checking::begin(part.index.super_block().volume()?)?;
        Findings::of(part, &extent, &mut collected)?
    };
    part.report.xfail |= findings.unread;
    part.report.xcorrupt |= findings.damaged;
    part.report.incomplete |= findings.unsure || findings.unread || findings.damaged;
    part.report.records += collected.count()?;
    let verdict = match &findings {
        findings if !findings.is_clean() => {
            findings.log(part, &extent, &mut collected)?;
            Verdict::Corrupt
        }
        Findings { damaged: true, .. } => Verdict::CrossCorrupt,
        Findings { unread: true, .. } => Verdict::CrossFailed,
        Findings { unsure: true, .. } => Verdict::Unknown,
        _ => Verdict::Good,
    };
    part.collected = Some(collected);
    Ok(verdict)
}

/// Corrects the bitmaps of a region. Groups that were corrected before a failure stay corrected.
///
/// # Errors
///
/// `EFSCORRUPTED` when differences are left afterwards, `EIO`, `ENOMEM`, `EROFS`.
fn repair(part: &mut RegionScrub<'_>) -> Result {
    let begun = Instant::<Monotonic>::now();
    let mut collected = part.collected.take().ok_or(EINVAL)?;
    let extent = Extent::of(part)?;
    let sb = part.index.super_block();
    let volume = sb.volume()?;
    let layout = volume.layout();
    let _checking = scan::Checking::begin(volume)?;
    let findings = Findings::of(part, &extent, &mut collected)?;
    let mut groups = 0u64;
    for group in extent.groups.clone() {
        part.may_go_on()?;
        let first = layout.group_start(group);
        let behind = first + u64::from(layout.group_blocks(group));
        let (mut set, mut clear) = (KVVec::new(), KVVec::new());
        // A part of a run that is in this group, in bits of its bitmap.
        let clip = |start: u64, len: u32| {
            let (from, to) = (start.max(first), (start + u64::from(len)).min(behind));
            (from < to).then(|| ((from - first) as u32, (to - from) as u32))
        };
        let from = first.saturating_sub(extent.start).min(extent.blocks.into()) as u32;
        let to = behind.saturating_sub(extent.start).min(extent.blocks.into()) as u32;
        let runs = Runs {
            bits: &findings.unmarked,
            at: from,
            end: to,
        };
        for (bit, len) in runs {
            if let Some(run) = clip(extent.start + u64::from(bit), len) {
                set.push(run, GFP_KERNEL)?;
            }
        }
        for &(start, len) in findings.unowned.iter() {
            if let Some(run) = clip(start, len) {
                clear.push(run, GFP_KERNEL)?;
            }
        }
        if set.is_empty() && clear.is_empty() && !findings.defects.contains(&group) {
            continue;
        }
        let _write = sb.internal_write();
        let handle = volume.begin_internal(bitmaps::REPAIR_CREDITS, 0)?;
        bitmaps::repair(&handle, sb, group, &set, &clear)?;
        handle.stop()?;
        groups += 1;
    }
    part.report.blocks += groups;
    let (unmarked, unowned) = findings.counts();
    pr_warn!(
        "{}: bitmap: region {}: {groups} groups repaired, {unmarked} blocks marked in use, {unowned} blocks freed\n",
        sb.name(),
        part.region
    );
    let left = Findings::of(part, &extent, &mut collected)?;
    part.report.load_ns += nanoseconds(begun.elapsed());
    match left.is_clean() {
        true => Ok(()),
        false => Err(corrupted()),
    }
}
