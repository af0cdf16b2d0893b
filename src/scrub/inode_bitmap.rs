// SPDX-License-Identifier: GPL-2.0

//! The scrub type of the inode bitmaps: each bit is compared with its slot of the inode table, and
//! each group's checksum, padding, counts and flags with both.
//!
//! **Check.** Two kinds of differences are found in the bits:
//!
//! - An inode in use that is free in the bitmap. The allocator refuses the group.
//! - An inode that is marked in use although its slot is free, it is not in memory, and it is no
//!   orphan. It counts as a finding only if the reverse map has no blocks of it and no directory
//!   has a name for it: an inode whose slot was overwritten looks the same.
//!
//! A group that differs is compared again between two handles, when no change is half done
//! ([`crate::fs::inode_bitmaps`]), so that the result is exact whatever programs do meanwhile.
//!
//! **Repair.** A group is corrected in one handle. The totals of the superblock follow from the
//! groups. The region is compared again afterwards.
//!
//! This type comes before those that scan inodes, which find them by these bitmaps.

use super::{
    inodes::{for_each_used, Slots},
    report::{nanoseconds, Verdict},
    run::{has_owner, Needs, RegionScrub, ScrubType},
};
use crate::{
    fs::{
        directories,
        inode_bitmaps::{self, InodeGroup},
        scan,
    },
    kernel_glue::{abi::value, corrupted, NoReclaim},
    trees::index::RmapIndex,
};
use core::cell::Cell;
use kernel::{
    prelude::*,
    time::{Instant, Monotonic},
};

/// Number of inodes that are logged per group; the others are only counted.
const LOGGED: usize = 8;

/// How often a region is repaired before it counts as failed.
const ROUNDS: u32 = 3;

/// The entry in the table of types.
pub(super) static TYPE: ScrubType = ScrubType {
    number: value::REXT4_SCRUB_TYPE_INODE_BITMAP,
    name: "inode-bitmap",
    needs: Needs::InodeTables,
    trees: None,
    check,
    repair,
};

/// The findings of a region.
#[derive(Default)]
struct Findings {
    groups: KVVec<(u32, InodeGroup)>,
    /// Number of inodes that are marked in use and look free, but may be in use,
    unsure: u32,
    /// and number of those that are.
    in_use: u32,
    /// Number of damaged inodes.
    unclear: u32,
    /// A bitmap or a part of a table could not be read.
    unread: bool,
    /// A descriptor is damaged.
    damaged: bool,
}

impl Findings {
    /// Compares the groups of a region.
    fn of(part: &RegionScrub<'_>) -> Result<Findings> {
        let sb = part.index.super_block();
        let volume = sb.volume()?;
        let mut findings = Findings::default();
        for group in part.groups()? {
            part.may_go_on()?;
            // Most groups agree at once, and have their tables in memory afterwards.
            let first = match inode_bitmaps::look(sb, group, &[]) {
                Ok(found) if !found.is_wrong() && found.unclear == 0 => continue,
                first => first.map(|_| ()),
            };
            let exact = volume.journal()?.between_handles(|| {
                // Reclaim could start a handle.
                let _no_reclaim = NoReclaim::new();
                first.and_then(|()| inode_bitmaps::look(sb, group, &inode_bitmaps::orphans(sb)?))
            });
            match exact {
                Ok(found) => {
                    findings.unclear += found.unclear;
                    if found.is_wrong() {
                        findings.groups.push((group, found), GFP_KERNEL)?;
                    }
                }
                Err(ENOMEM) => return Err(ENOMEM),
                Err(error) => {
                    findings.unread |= error == EIO;
                    findings.damaged |= error != EIO;
                }
            }
        }
        findings.keep_unused(part)?;
        Ok(findings)
    }

    /// Leaves out those unused inodes that own blocks or have a name.
    fn keep_unused(&mut self, part: &RegionScrub<'_>) -> Result {
        let mut suspects = KVVec::new();
        for &ino in self.groups.iter().flat_map(|(_, found)| found.unused.iter()) {
            suspects.push((ino, Cell::new(false)), GFP_KERNEL)?;
        }
        if suspects.is_empty() {
            return Ok(());
        }
        // They are in order, since groups and slots are.
        let suspect = |ino: u32| {
            if let Ok(at) = suspects.binary_search_by_key(&ino, |&(ino, _)| ino) {
                if let Some((_, in_use)) = suspects.get(at) {
                    in_use.set(true);
                }
            }
        };
        let knows_all = knows_owners(part, &suspect)? && knows_names(part, &suspect)?;
        for (ino, in_use) in suspects.iter().filter(|(_, in_use)| in_use.get() || !knows_all) {
            if self.unsure + self.in_use < LOGGED as u32 {
                pr_err!(
                    "{}: inode-bitmap: inode {ino} is marked in use and its slot is free, but {}; nothing is changed\n",
                    part.index.super_block().name(),
                    match in_use.get() {
                        true => "it owns blocks or has a name",
                        false => "not all owners and names are known",
                    }
                );
            }
            match in_use.get() {
                true => self.in_use += 1,
                false => self.unsure += 1,
            }
        }
        for (_, found) in self.groups.iter_mut() {
            found.unused.retain(|ino| {
                let at = suspects.binary_search_by_key(ino, |&(ino, _)| ino);
                let in_use = at.ok().and_then(|at| suspects.get(at));
                knows_all && in_use.is_some_and(|(_, in_use)| !in_use.get())
            });
        }
        self.groups.retain(|(_, found)| found.is_wrong());
        Ok(())
    }

    fn is_clean(&self) -> bool {
        self.groups.is_empty()
    }

    fn log(&self, part: &RegionScrub<'_>) {
        let name = part.index.super_block().name();
        for (group, found) in self.groups.iter() {
            for ino in found.unmarked.iter().take(LOGGED) {
                pr_err!("{name}: inode-bitmap: inode {ino} is free in the inode bitmap but in use\n");
            }
            for ino in found.unused.iter().take(LOGGED) {
                pr_err!("{name}: inode-bitmap: inode {ino} is marked in use but free\n");
            }
            pr_err!(
                "{name}: inode-bitmap: group {group}: {} inodes in use are marked free, {} free ones are marked in use\n",
                found.unmarked.len(),
                found.unused.len()
            );
            for (is, what) in [(found.is_unsealed, "checksum"), (found.is_unpadded, "padding")] {
                if is {
                    pr_err!("{name}: inode-bitmap: group {group}: wrong {what} of the inode bitmap\n");
                }
            }
            for (pair, what) in [
                (found.free, "free inodes"),
                (found.directories, "directories"),
                (found.never_used, "never used inodes"),
            ] {
                if let Some((stored, right)) = pair {
                    pr_err!("{name}: inode-bitmap: group {group}: counts {stored} {what}, has {right}\n");
                }
            }
        }
    }
}

/// Calls `owner` with the owner of each record of the reverse map. Returns false if some are not
/// known.
fn knows_owners(part: &RegionScrub<'_>, owner: &dyn Fn(u32)) -> Result<bool> {
    let index: &RmapIndex = part.index;
    for region in 0..index.regions() {
        part.may_go_on()?;
        if !index.lock(region)?.rmap.good {
            return Ok(false);
        }
        let all = has_owner(index, region, &|ino| {
            owner(ino);
            false
        })?;
        if all.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Calls `named` with the inode of each name. Returns false if some names are not known.
///
/// A name that leads to a free inode is neither made nor moved by anyone, so it does not matter
/// that names change meanwhile.
fn knows_names(part: &RegionScrub<'_>, named: &dyn Fn(u32)) -> Result<bool> {
    let sb = part.index.super_block();
    let groups = sb.volume()?.layout().groups;
    let mut knows_all = true;
    for_each_used(sb, 0..groups, &mut |run| {
        let Slots::Used(first, last) = run else {
            knows_all = false;
            return Ok(());
        };
        for ino in first..=last {
            part.may_go_on()?;
            if !directories::is_directory(sb, ino)? {
                continue;
            }
            let read = match scan::get(sb, ino) {
                Ok(Some(dir)) => directories::for_each_name(&dir.lock(), &mut |ino, _| {
                    named(ino);
                    Ok(())
                }),
                // It is gone.
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            match read {
                Err(error) if error == ENOMEM || error == EINTR => return Err(error),
                read => knows_all &= read.is_ok(),
            }
        }
        Ok(())
    })?;
    Ok(knows_all)
}

fn check(part: &mut RegionScrub<'_>) -> Result<Verdict> {
    let findings = {
        let _checking = scan::Checking::begin(part.index.super_block().volume()?)?;
        Findings::of(part)?
    };
    let contradicted = findings.in_use > 0 || findings.unclear > 0;
    let unsure = contradicted || findings.unsure > 0;
    part.report.xfail |= findings.unread;
    part.report.xcorrupt |= findings.damaged || contradicted;
    part.report.incomplete |= findings.unread || findings.damaged || unsure;
    Ok(match &findings {
        findings if !findings.is_clean() => {
            findings.log(part);
            Verdict::Corrupt
        }
        Findings { damaged: true, .. } => Verdict::CrossCorrupt,
        Findings { unread: true, .. } => Verdict::CrossFailed,
        _ if contradicted => Verdict::CrossCorrupt,
        _ if unsure => Verdict::Unknown,
        _ => Verdict::Good,
    })
}

/// Corrects the groups of a region. Those that were corrected before a failure stay corrected.
///
/// # Errors
///
/// `EFSCORRUPTED` when differences are left afterwards, `EIO`, `ENOMEM`, `EROFS`.
fn repair(part: &mut RegionScrub<'_>) -> Result {
    let begun = Instant::<Monotonic>::now();
    let sb = part.index.super_block();
    let volume = sb.volume()?;
    let _checking = scan::Checking::begin(volume)?;
    let mut groups = 0u64;
    let mut findings = Findings::of(part)?;
    for _ in 0..ROUNDS {
        if findings.is_clean() {
            break;
        }
        for (group, found) in findings.groups.iter() {
            part.may_go_on()?;
            let _write = sb.internal_write();
            let handle = volume.begin_internal(inode_bitmaps::REPAIR_CREDITS, 0)?;
            inode_bitmaps::repair(&handle, sb, *group, found)?;
            handle.stop()?;
            groups += 1;
        }
        findings = Findings::of(part)?;
    }
    part.report.blocks += groups;
    part.report.load_ns += nanoseconds(begun.elapsed());
    pr_warn!(
        "{}: inode-bitmap: region {}: {groups} groups repaired\n",
        sb.name(),
        part.region
    );
    match findings.is_clean() {
        true => Ok(()),
        false => Err(corrupted()),
    }
}
