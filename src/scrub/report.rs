// SPDX-License-Identifier: GPL-2.0

//! The request for a check or repair, and its findings and results.

use crate::kernel_glue::abi::{value, ScrubMetadata};
use kernel::time::Delta;

/// The request.
pub(super) struct Request {
    /// The region to check, or all if `None`.
    pub(super) region: Option<u32>,
    /// Repair regions that are wrong or stale.
    pub(super) repair: bool,
    /// With `repair`: also rebuild regions that are right.
    pub(super) force: bool,
    /// Bytes of memory for collected records; `None` for the module parameter's value.
    pub(super) memory: Option<u64>,
    /// Started in the background: only stale regions are repaired.
    pub(super) background: bool,
}

impl Request {
    /// The request of the background task: rebuild all stale regions.
    pub(super) const UPKEEP: Request = Request {
        region: None,
        repair: true,
        force: false,
        memory: None,
        background: true,
    };

    /// Returns true if this region is included.
    pub(super) fn picks(&self, region: u32) -> bool {
        self.region.is_none_or(|only| only == region)
    }
}

/// The result of checking one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The tree is right.
    Good,
    /// The tree is right, but a repair would improve it.
    Preen,
    /// The tree is wrong.
    Corrupt,
    /// The tree was stale before the check or became stale during it, so it is neither right nor
    /// wrong.
    Stale,
    /// Not judged: the metadata that it is compared with is stale.
    Unknown,
    /// Not judged: the metadata that it is compared with could not be read.
    CrossFailed,
    /// Not judged: the metadata that it is compared with is damaged or contradicts itself.
    CrossCorrupt,
}

/// The findings and results, valid whenever and however the run ends. Times are in nanoseconds.
#[derive(Default)]
pub(super) struct Report {
    /// The run has started; otherwise there are no results.
    pub(super) begun: bool,
    /// Part of the request was not checked, or is still not in order.
    pub(super) incomplete: bool,
    /// A repair would improve something.
    pub(super) preen: bool,
    /// Metadata needed for a comparison could not be read.
    pub(super) xfail: bool,
    /// Metadata needed for a comparison is damaged or contradicts itself.
    pub(super) xcorrupt: bool,
    /// Number of regions found to be wrong.
    pub(super) bad: u32,
    /// Number of regions whose check or repair failed.
    pub(super) failed: u32,
    /// Number of regions whose tree was rebuilt.
    pub(super) rebuilt: u32,
    pub(super) inodes: u64,
    pub(super) records: u64,
    pub(super) blocks: u64,
    pub(super) updates: u64,
    /// Bytes of memory used for collected records.
    pub(super) memory: u64,
    /// Bytes written to the file because they did not fit into memory.
    pub(super) spilled: u64,
    pub(super) scan_ns: u64,
    pub(super) check_ns: u64,
    pub(super) load_ns: u64,
    pub(super) reap_ns: u64,
    pub(super) stall_ns: u64,
}

impl Report {
    /// Records how long a region was locked. The longest time is kept.
    pub(super) fn note_stall(&mut self, time: Delta) {
        self.stall_ns = self.stall_ns.max(nanoseconds(time));
    }

    /// Records the result of a region's check.
    pub(super) fn note(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Preen => self.preen = true,
            Verdict::Corrupt => self.bad += 1,
            Verdict::Good | Verdict::Stale | Verdict::Unknown => (),
            Verdict::CrossFailed => self.xfail = true,
            Verdict::CrossCorrupt => self.xcorrupt = true,
        }
    }

    /// Returns the corresponding flags of the header. `repair` says whether a repair was requested.
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

    /// Stores the report in the structure that is returned to the caller.
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

/// Converts a time to nanoseconds.
pub(super) fn nanoseconds(time: Delta) -> u64 {
    time.as_nanos().max(0) as u64
}
