// SPDX-License-Identifier: GPL-2.0

//! The scrub type of the link counts: that of each inode is compared with the entries that lead to
//! it.
//!
//! **Check.** A file must have as many links as it has names; a directory one for its name, one for
//! `.`, and one for the `..` of each subdirectory. The entries are counted once for all regions
//! ([`super::names`]). Entries and link counts change in one handle, so an inode that differs is
//! compared again with its lock held and between two handles, when no change is half done.
//!
//! **Repair.** With its lock held, the inode gets the number of its entries, but never 0. If a
//! directory could not be read, counts are only raised. An inode in use without a name and a name
//! that leads to a free inode are reported and left to e2fsck.

use super::{
    inodes::{for_each_used, Slots},
    names::Names,
    report::{nanoseconds, Verdict},
    run::{Needs, RegionScrub, ScrubType},
};
use crate::{
    format::inode::ROOT,
    fs::{
        directories::{self, Links},
        scan::{self, Next},
    },
    kernel_glue::{abi::value, corrupted, NoReclaim},
};
use kernel::{
    prelude::*,
    time::{Instant, Monotonic},
};

/// Number of inodes that are logged per region; the others are only counted.
const LOGGED: u32 = 16;

/// The entry in the table of types.
pub(super) static TYPE: ScrubType = ScrubType {
    number: value::REXT4_SCRUB_TYPE_LINKS,
    name: "links",
    needs: Needs::Names,
    trees: None,
    check,
    repair,
};

/// The findings of a region.
#[derive(Default)]
struct Findings {
    /// Inodes with a wrong count: the inode, its count, and the right one.
    wrong: KVVec<(u32, u32, u32)>,
    /// Number of inodes without a name, and of names without an inode.
    lost: u32,
    /// An inode or its entries could not be read.
    unread: bool,
}

/// The judgement of an inode.
enum Judged {
    Good,
    Wrong { counted: u32, right: u32 },
    Lost(&'static str),
    Unknown,
}

/// Compares the links of an inode with the entries that lead to it.
fn judge(names: &Names, ino: u32, links: Links) -> Judged {
    let mut count = names.of(ino);
    if ino == ROOT {
        // Its `..` stands for the name that it does not have.
        count.names += 1;
        count.dots = count.dots.saturating_sub(1);
    }
    let right = match links.is_directory {
        true => count.names + count.dots,
        false => count.names,
    };
    let right = directories::limit_links(right, links);
    match (links.count, count.names) {
        (counted, 1..) if counted == right => Judged::Good,
        (0, 0) => Judged::Good,
        (_, 0) if names.are_unread() => Judged::Unknown,
        (_, 0) => Judged::Lost("is in use but has no name"),
        (0, _) => Judged::Lost("has a name but no links"),
        (_, 2..) if links.is_directory => Judged::Lost("is a directory with several names"),
        (counted, _) if names.are_unread() && counted > right => Judged::Unknown,
        (counted, _) => match right {
            0 => Judged::Lost("has more names than links can count"),
            right => Judged::Wrong { counted, right },
        },
    }
}

/// Compares an inode that is in use, exactly.
fn judge_exactly(part: &RegionScrub<'_>, names: &Names, ino: u32) -> Result<Judged> {
    let sb = part.index.super_block();
    let Some(inode) = scan::get(sb, ino)? else {
        // It is gone, or has no links; of those, only one with names is damaged.
        return between(part, || {
            Ok(match directories::stored_links(sb, ino)? {
                links if links.count == 0 && names.of(ino).names > 0 => judge(names, ino, links),
                _ => Judged::Good,
            })
        });
    };
    let inode = inode.lock();
    between(part, || Ok(judge(names, ino, directories::links(&inode)?)))
}

/// Calls `act` between two handles.
fn between<T>(part: &RegionScrub<'_>, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let journal = part.index.super_block().volume()?.journal()?;
    journal.between_handles(|| {
        // Reclaim could start a handle.
        let _no_reclaim = NoReclaim::new();
        act()
    })
}

impl Findings {
    fn of(part: &RegionScrub<'_>, names: &Names) -> Result<Findings> {
        let sb = part.index.super_block();
        let per_group = sb.volume()?.inodes_per_group();
        let groups = part.groups()?;
        let mut findings = Findings {
            unread: names.are_unread(),
            ..Findings::default()
        };
        let mut next = groups.start * per_group + 1;
        let end = groups.end * per_group;
        for_each_used(sb, groups, &mut |run| {
            let (first, last) = match run {
                Slots::Used(first, last) => (first, last),
                Slots::Unread(last) => {
                    findings.unread = true;
                    next = last + 1;
                    return Ok(());
                }
            };
            findings.look_at_free(part, names, next, first)?;
            for ino in first..=last {
                part.may_go_on()?;
                findings.look_at(part, names, ino)?;
            }
            next = last + 1;
            Ok(())
        })?;
        findings.look_at_free(part, names, next, end + 1)?;
        Ok(findings)
    }

    /// Looks at an inode in use.
    fn look_at(&mut self, part: &RegionScrub<'_>, names: &Names, ino: u32) -> Result {
        let sb = part.index.super_block();
        if !scan::is_ordinary(sb, ino)? {
            return Ok(());
        }
        let stored = directories::stored_links(sb, ino);
        if stored.is_ok_and(|links| matches!(judge(names, ino, links), Judged::Good)) {
            return Ok(());
        }
        match judge_exactly(part, names, ino) {
            Ok(Judged::Good) => Ok(()),
            Ok(Judged::Wrong { counted, right }) => Ok(self.wrong.push((ino, counted, right), GFP_KERNEL)?),
            Ok(Judged::Lost(what)) => {
                self.note_lost(part, ino, what);
                Ok(())
            }
            Err(ENOMEM) => Err(ENOMEM),
            Ok(Judged::Unknown) | Err(_) => {
                self.unread = true;
                Ok(())
            }
        }
    }

    /// Looks for names of free inodes, from `first` to before `end`.
    fn look_at_free(&mut self, part: &RegionScrub<'_>, names: &Names, first: u32, end: u32) -> Result {
        let sb = part.index.super_block();
        for ino in first..end {
            if names.of(ino).names == 0 {
                continue;
            }
            part.may_go_on()?;
            let is_free = between(part, || {
                let mut bitmap = Ok(());
                let next = scan::next_used(sb, ino, ino, &mut bitmap, &mut |_, _| ())?;
                bitmap?;
                Ok(next == Next::Nothing && names.of(ino).names > 0)
            });
            match is_free {
                Ok(true) => self.note_lost(part, ino, "is free but has a name"),
                Ok(false) => (),
                Err(ENOMEM) => return Err(ENOMEM),
                Err(_) => self.unread = true,
            }
        }
        Ok(())
    }

    fn note_lost(&mut self, part: &RegionScrub<'_>, ino: u32, what: &str) {
        if self.lost < LOGGED {
            pr_err!(
                "{}: links: inode {ino} {what}; nothing is changed, run e2fsck\n",
                part.index.super_block().name()
            );
        }
        self.lost += 1;
    }
}

fn check(part: &mut RegionScrub<'_>) -> Result<Verdict> {
    let sb = part.index.super_block();
    let names = part.names.ok_or(EINVAL)?;
    let findings = {
        let _checking = scan::Checking::begin(sb.volume()?)?;
        Findings::of(part, names)?
    };
    part.report.xfail |= findings.unread;
    part.report.xcorrupt |= findings.lost > 0;
    part.report.incomplete |= findings.unread || findings.lost > 0;
    for &(ino, counted, right) in findings.wrong.iter().take(LOGGED as usize) {
        pr_err!(
            "{}: links: inode {ino}: link count is {counted}, should be {right}\n",
            sb.name()
        );
    }
    Ok(match findings {
        Findings { wrong, .. } if !wrong.is_empty() => Verdict::Corrupt,
        Findings { lost: 1.., .. } => Verdict::CrossCorrupt,
        Findings { unread: true, .. } => Verdict::CrossFailed,
        _ => Verdict::Good,
    })
}

/// Corrects the link counts of a region. Those that were corrected before a failure stay corrected.
///
/// # Errors
///
/// `EFSCORRUPTED` when some are wrong afterwards, `EIO`, `ENOMEM`, `EROFS`.
fn repair(part: &mut RegionScrub<'_>) -> Result {
    let begun = Instant::<Monotonic>::now();
    let sb = part.index.super_block();
    let names = part.names.ok_or(EINVAL)?;
    let _checking = scan::Checking::begin(sb.volume()?)?;
    let mut repaired = 0u64;
    for &(ino, ..) in Findings::of(part, names)?.wrong.iter() {
        part.may_go_on()?;
        let Some(inode) = scan::get(sb, ino)? else {
            continue;
        };
        let _write = sb.internal_write();
        let inode = inode.lock();
        // Entries that lead to it change only with its lock held.
        let judged = between(part, || Ok(judge(names, ino, directories::links(&inode)?)))?;
        if let Judged::Wrong { right, .. } = judged {
            directories::set_links(&inode, right)?;
            repaired += 1;
        }
    }
    part.report.blocks += repaired;
    part.report.load_ns += nanoseconds(begun.elapsed());
    pr_warn!(
        "{}: links: region {}: link counts of {repaired} inodes corrected\n",
        sb.name(),
        part.region
    );
    match Findings::of(part, names)?.wrong.is_empty() {
        true => Ok(()),
        false => Err(corrupted()),
    }
}
