// SPDX-License-Identifier: GPL-2.0

//! The scrub type of the inodes: the count of blocks of each is compared with the blocks that it
//! owns, by its mapping and its attributes.
//!
//! **Check.** An inode that is not in the cache is looked at in the inode table, whose lock
//! prevents it from being loaded, any other one with its mapping locked for reading. Its blocks and
//! their count change with the mapping locked exclusively, so the comparison is exact. An inode
//! that cannot be read is reported, and nothing is made of it.
//!
//! **Repair.** The inode is counted again and stored with its mapping locked exclusively.

use super::{
    inodes::{for_each_used, Slots},
    report::{nanoseconds, Verdict},
    run::{Needs, RegionScrub, ScrubType},
};
use crate::{
    fs::{inode_blocks, scan},
    kernel_glue::{abi::value, canceled, NoReclaim},
};
use kernel::{
    prelude::*,
    time::{Instant, Monotonic},
};

/// Number of inodes that are logged per region; the others are only counted.
const LOGGED: usize = 16;

/// The entry in the table of types.
pub(super) static TYPE: ScrubType = ScrubType {
    number: value::REXT4_SCRUB_TYPE_INODE,
    name: "inode",
    needs: Needs::InodeTables,
    trees: None,
    check,
    repair,
};

/// The findings of a region.
#[derive(Default)]
struct Findings {
    /// Inodes with a wrong count: the inode, its count of sectors, and the right one.
    miscounted: KVVec<(u32, u64, u64)>,
    inodes: u64,
    /// An inode could not be read from disk.
    unread: bool,
    /// An inode is damaged.
    damaged: bool,
}

impl Findings {
    fn of(part: &RegionScrub<'_>) -> Result<Findings> {
        let sb = part.index.super_block();
        let mut findings = Findings::default();
        for_each_used(sb, part.groups()?, &mut |run| {
            let (first, last) = match run {
                Slots::Used(first, last) => (first, last),
                Slots::Unread(_) => {
                    findings.unread = true;
                    return Ok(());
                }
            };
            let mut next = first;
            while next <= last {
                part.may_go_on()?;
                let peeked = {
                    let _no_reclaim = NoReclaim::new();
                    inode_blocks::peek(sb, next, last, &mut |ino, counted, right| {
                        findings.note(ino, counted, right)
                    })
                };
                let seen = match peeked {
                    Err(ENOMEM) => return Err(ENOMEM),
                    // The visit says what is wrong with which inode.
                    Err(_) => next,
                    Ok(seen) => seen,
                };
                findings.inodes += u64::from(seen - next);
                if seen == next {
                    findings.visit(part, next)?;
                }
                next = seen.max(next + 1);
            }
            Ok(())
        })?;
        Ok(findings)
    }

    fn note(&mut self, ino: u32, counted: u64, right: u64) -> Result {
        if counted != right {
            self.miscounted.push((ino, counted, right), GFP_KERNEL)?;
        }
        Ok(())
    }

    /// Looks at an inode through the cache.
    fn visit(&mut self, part: &RegionScrub<'_>, ino: u32) -> Result {
        let sb = part.index.super_block();
        if !inode_blocks::is_counted(sb, ino)? {
            return Ok(());
        }
        let looked = scan::get(sb, ino).and_then(|inode| {
            let Some(inode) = inode else {
                return Ok(None);
            };
            let map = scan::lock_warm_map(&inode)?;
            Ok(Some((inode.sectors(), inode_blocks::used(&inode, &map)?)))
        });
        match looked {
            Ok(None) => (),
            Ok(Some((counted, right))) => {
                self.inodes += 1;
                self.note(ino, counted, right)?;
            }
            Err(error) if error == ENOMEM || error == EINTR || error == canceled() => return Err(error),
            Err(error) => {
                self.unread |= error == EIO;
                self.damaged |= error != EIO;
                pr_err!(
                    "{}: inode: inode {ino} cannot be checked: error {}\n",
                    sb.name(),
                    error.to_errno()
                );
            }
        }
        Ok(())
    }
}

fn check(part: &mut RegionScrub<'_>) -> Result<Verdict> {
    let sb = part.index.super_block();
    let findings = {
        let _checking = scan::Checking::begin(sb.volume()?)?;
        Findings::of(part)?
    };
    part.report.inodes += findings.inodes;
    part.report.xfail |= findings.unread;
    part.report.xcorrupt |= findings.damaged;
    part.report.incomplete |= findings.unread || findings.damaged;
    for &(ino, counted, right) in findings.miscounted.iter().take(LOGGED) {
        pr_err!(
            "{}: inode: inode {ino}: i_blocks is {counted}, should be {right}\n",
            sb.name()
        );
    }
    if findings.miscounted.len() > LOGGED {
        pr_err!(
            "{}: inode: region {}: {} inodes have a wrong i_blocks\n",
            sb.name(),
            part.region,
            findings.miscounted.len()
        );
    }
    Ok(match findings {
        Findings { miscounted, .. } if !miscounted.is_empty() => Verdict::Corrupt,
        Findings { damaged: true, .. } => Verdict::CrossCorrupt,
        Findings { unread: true, .. } => Verdict::CrossFailed,
        _ => Verdict::Good,
    })
}

/// Corrects the inodes of a region. Those that were corrected before a failure stay corrected.
///
/// # Errors
///
/// `EIO`, `ENOMEM`, `EROFS`.
fn repair(part: &mut RegionScrub<'_>) -> Result {
    let begun = Instant::<Monotonic>::now();
    let sb = part.index.super_block();
    let _checking = scan::Checking::begin(sb.volume()?)?;
    let findings = Findings::of(part)?;
    let mut repaired = 0u64;
    for &(ino, ..) in findings.miscounted.iter() {
        part.may_go_on()?;
        if let Some(inode) = scan::get(sb, ino)? {
            repaired += u64::from(inode_blocks::repair(&inode)?);
        }
    }
    part.report.blocks += repaired;
    part.report.load_ns += nanoseconds(begun.elapsed());
    pr_warn!(
        "{}: inode: region {}: i_blocks of {repaired} inodes corrected\n",
        sb.name(),
        part.region
    );
    Ok(())
}
