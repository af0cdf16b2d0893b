// SPDX-License-Identifier: GPL-2.0

//! What a check or repair is asked for, and what it found and did.

use crate::kernel_glue::abi::{value, ScrubMetadata};
use kernel::time::Delta;

/// What is asked for.
pub(super) struct Request {
    /// One region, or all.
    pub(super) region: Option<u32>,
    /// Repair what is wrong or stale.
    pub(super) repair: bool,
    /// With `repair`: rebuild what is right as well.
    pub(super) force: bool,
    /// Bytes of memory for what a scan collects; `None` for the module's parameter.
    pub(super) memory: Option<u64>,
    /// Started by the volume itself: only regions that are stale are looked at.
    pub(super) background: bool,
}

impl Request {
    /// What the background does: all stale regions are rebuilt.
    pub(super) const UPKEEP: Request = Request {
        region: None,
        repair: true,
        force: false,
        memory: None,
        background: true,
    };

    /// Whether this region is asked for.
    pub(super) fn picks(&self, region: u32) -> bool {
        self.region.is_none_or(|only| only == region)
    }
}

/// The outcome of one region's check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is right.
    Good,
    /// It is right and a repair would make it better.
    Preen,
    /// It is wrong.
    Corrupt,
    /// It was marked stale before the check or during it, so there is nothing to be right or wrong.
    Stale,
    /// It could not be judged: what it is compared with is stale.
    Unknown,
    /// It could not be judged: what it is compared with could not be read.
    CrossFailed,
    /// It could not be judged: what it is compared with is damaged or contradicts itself.
    CrossCorrupt,
}

/// What was found and done. It holds whenever the check or repair ends, however it ends. Times in nanoseconds.
#[derive(Default)]
pub(super) struct Report {
    /// The check or repair had its turn; before that there is nothing to tell.
    pub(super) begun: bool,
    /// Not all that was asked for was looked at, or is as it should be now.
    pub(super) incomplete: bool,
    /// A repair would make something better.
    pub(super) preen: bool,
    /// Something that is needed for a comparison could not be read.
    pub(super) xfail: bool,
    /// Something that is needed for a comparison is damaged or contradicts itself.
    pub(super) xcorrupt: bool,
    /// Regions that were found to be wrong.
    pub(super) bad: u32,
    /// Regions whose check or repair failed.
    pub(super) failed: u32,
    /// Regions that got a new tree.
    pub(super) rebuilt: u32,
    pub(super) inodes: u64,
    pub(super) records: u64,
    pub(super) blocks: u64,
    pub(super) updates: u64,
    /// Bytes.
    pub(super) memory: u64,
    /// Bytes that memory had no room for.
    pub(super) spilled: u64,
    pub(super) scan_ns: u64,
    pub(super) check_ns: u64,
    pub(super) load_ns: u64,
    pub(super) reap_ns: u64,
    pub(super) stall_ns: u64,
}

impl Report {
    /// Notes for how long a region was locked once.
    pub(super) fn note_stall(&mut self, time: Delta) {
        self.stall_ns = self.stall_ns.max(nanoseconds(time));
    }

    /// Notes the outcome of a region's check.
    pub(super) fn note(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Preen => self.preen = true,
            Verdict::Corrupt => self.bad += 1,
            Verdict::Good | Verdict::Stale | Verdict::Unknown => (),
            Verdict::CrossFailed => self.xfail = true,
            Verdict::CrossCorrupt => self.xcorrupt = true,
        }
    }

    /// The flags that the header has for it; `repair` tells that a repair was asked for.
    fn flags(&self, repair: bool) -> u32 {
        let mut flags = 0;
        for (is, flag) in [
            (self.bad > 0, value::REXT4_SCRUB_OFLAG_CORRUPT),
            (self.preen, value::REXT4_SCRUB_OFLAG_PREEN),
            (self.xfail, value::REXT4_SCRUB_OFLAG_XFAIL),
            (self.xcorrupt, value::REXT4_SCRUB_OFLAG_XCORRUPT),
            (self.incomplete, value::REXT4_SCRUB_OFLAG_INCOMPLETE),
        ] {
            if is {
                flags |= flag;
            }
        }
        if repair && flags & !value::REXT4_SCRUB_OFLAG_PREEN == 0 && self.rebuilt == 0 {
            flags |= value::REXT4_SCRUB_OFLAG_NO_REPAIR_NEEDED;
        }
        flags
    }

    /// Puts it into the structure that the caller gets back.
    pub(super) fn store(&self, call: &mut ScrubMetadata) {
        let repair = call.sm_flags & value::REXT4_SCRUB_IFLAG_REPAIR != 0;
        call.sm_flags |= self.flags(repair);
        call.sm_bad_regions = self.bad;
        call.sm_rebuilt_regions = self.rebuilt;
        call.sm_failed_regions = self.failed;
        call.sm_inodes = self.inodes;
        call.sm_records = self.records;
        call.sm_blocks = self.blocks;
        call.sm_live_updates = self.updates;
        call.sm_memory = self.memory;
        call.sm_scan_ns = self.scan_ns;
        call.sm_check_ns = self.check_ns;
        call.sm_load_ns = self.load_ns;
        call.sm_reap_ns = self.reap_ns;
        call.sm_stall_ns = self.stall_ns;
        call.sm_spilled = self.spilled;
    }
}

/// A time in nanoseconds.
pub(super) fn nanoseconds(time: Delta) -> u64 {
    time.as_nanos().max(0) as u64
}
