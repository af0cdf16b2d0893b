// SPDX-License-Identifier: GPL-2.0

//! What programs ask for: `include/uapi/rext4.h`, and `FS_IOC_GETFSMAP`.

use super::{
    fsmap, refcount,
    run::{run, Report, Request},
    Beside, Scrubber,
};
use crate::{
    fs::Volume,
    kernel_glue::{
        abi::{self, value, FsmapHead, RegionInfo, ScrubMetadata, ScrubProgress},
        canceled, is_admin, no_such_ioctl, unsupported, Inode, Ioctl, SuperBlock,
    },
    trees::index::RmapIndex,
};
use kernel::{
    ioctl::{_IO, _IOR, _IOWR},
    prelude::*,
    sync::atomic::Relaxed,
};

const TYPE: u32 = b'r' as u32;
const SCRUB_METADATA: u32 = _IOWR::<ScrubMetadata>(TYPE, 0x80);
const SCRUB_PROGRESS: u32 = _IOR::<ScrubProgress>(TYPE, 0x81);
const SCRUB_CANCEL: u32 = _IO(TYPE, 0x82);
const REGION_INFO: u32 = _IOWR::<RegionInfo>(TYPE, 0x83);
const GETFSMAP: u32 = _IOWR::<FsmapHead>(b'X' as u32, 59);

/// Answers a call.
pub(super) fn call(inode: &Inode<Volume>, call: Ioctl<'_>) -> Result {
    let answer = match call.command {
        SCRUB_METADATA => scrub,
        SCRUB_PROGRESS => progress,
        SCRUB_CANCEL => cancel,
        REGION_INFO => region_info,
        GETFSMAP => fsmap::call,
        _ => return Err(no_such_ioctl()),
    };
    if !is_admin() {
        return Err(EPERM);
    }
    answer(inode.super_block(), call.argument)
}

/// Has `then` run with the volume's reverse map, which may be changed. Fails with `EROFS` on a read-only mount, with
/// `EOPNOTSUPP` when there is no reverse map in use.
fn with_index<T>(
    sb: &SuperBlock<Volume>,
    then: impl FnOnce(&RmapIndex, &Scrubber) -> Result<T>,
) -> Result<T> {
    if sb.is_read_only() {
        return Err(EROFS);
    }
    Beside::with(sb, then).ok_or_else(unsupported)?
}

/// Has `then` run with the volume's reverse map, to ask it. Fails with `EROFS` when a read-only mount has none to be
/// believed, with `EOPNOTSUPP` when there is no reverse map in use.
pub(super) fn ask_index<T>(sb: &SuperBlock<Volume>, then: impl FnOnce(&RmapIndex) -> Result<T>) -> Result<T> {
    let none = || if sb.is_read_only() { EROFS } else { unsupported() };
    Beside::with(sb, |index, _| then(index)).ok_or_else(none)?
}

fn scrub(sb: &SuperBlock<Volume>, argument: usize) -> Result {
    let mut call: ScrubMetadata = abi::read(argument)?;
    let repair = call.sm_flags & value::REXT4_SCRUB_IFLAG_REPAIR != 0;
    let force = call.sm_flags & value::REXT4_SCRUB_IFLAG_FORCE_REBUILD != 0;
    let odd = call.sm_flags & !value::REXT4_SCRUB_FLAGS_IN != 0
        || call.sm_reserved.iter().any(|&word| word != 0)
        || force && !repair;
    if odd {
        return Err(EINVAL);
    }
    match call.sm_type {
        value::REXT4_SCRUB_TYPE_PROBE => return with_index(sb, |_, _| Ok(())),
        value::REXT4_SCRUB_TYPE_RMAP | value::REXT4_SCRUB_TYPE_REFCOUNT => (),
        _ => return Err(EINVAL),
    }
    let report = with_index(sb, |index, scrubber| {
        let region = match call.sm_region {
            value::REXT4_SCRUB_ALL_REGIONS => None,
            region if region < index.regions() => Some(region),
            _ => return Err(EINVAL),
        };
        let request = Request {
            region,
            repair,
            force,
            memory: (call.sm_memory_limit != 0).then_some(u64::from(call.sm_memory_limit) << 10),
            background: false,
        };
        match call.sm_type {
            value::REXT4_SCRUB_TYPE_REFCOUNT => refcount::run(index, scrubber, &request),
            _ => run(index, scrubber, &request),
        }
    })?;
    call.sm_flags |= flags(&report, repair);
    call.sm_bad_regions = report.bad;
    call.sm_rebuilt_regions = report.rebuilt;
    call.sm_inodes = report.inodes;
    call.sm_records = report.records;
    call.sm_blocks = report.blocks;
    call.sm_live_updates = report.updates;
    call.sm_memory = report.memory;
    call.sm_scan_ns = report.scan_ns;
    call.sm_check_ns = report.check_ns;
    call.sm_load_ns = report.load_ns;
    call.sm_reap_ns = report.reap_ns;
    call.sm_stall_ns = report.stall_ns;
    call.sm_spilled = report.spilled;
    abi::write(argument, &call)
}

/// What was found, for a program.
fn flags(report: &Report, repair: bool) -> u32 {
    let mut flags = 0;
    if report.bad > 0 {
        flags |= value::REXT4_SCRUB_OFLAG_CORRUPT;
    }
    if report.stale > 0 {
        flags |= value::REXT4_SCRUB_OFLAG_INCOMPLETE;
    }
    if repair && report.bad == 0 && report.rebuilt == 0 {
        flags |= value::REXT4_SCRUB_OFLAG_NO_REPAIR_NEEDED;
    }
    flags
}

fn progress(sb: &SuperBlock<Volume>, argument: usize) -> Result {
    let mut answer = ScrubProgress::default();
    with_index(sb, |_, scrubber| {
        let progress = &scrubber.progress;
        answer.sp_type = progress.kind.load(Relaxed);
        answer.sp_phase = progress.phase.load(Relaxed);
        answer.sp_flags = progress.flags.load(Relaxed);
        answer.sp_done = progress.done.load(Relaxed);
        answer.sp_total = progress.total.load(Relaxed);
        answer.sp_records = progress.records.load(Relaxed);
        Ok(())
    })?;
    abi::write(argument, &answer)
}

fn cancel(sb: &SuperBlock<Volume>, _argument: usize) -> Result {
    with_index(sb, |_, scrubber| {
        if scrubber.busy.try_lock().is_some() {
            return Err(ENOENT);
        }
        scrubber.cancel(canceled());
        // Had by who gets it next: whoever ran is done then.
        drop(scrubber.busy.lock());
        Ok(())
    })
}

fn region_info(sb: &SuperBlock<Volume>, argument: usize) -> Result {
    let asked: RegionInfo = abi::read(argument)?;
    if asked.ri_reserved.iter().any(|&word| word != 0) {
        return Err(EINVAL);
    }
    let answer = ask_index(sb, |index| {
        let region = asked.ri_region;
        if region >= index.regions() {
            return Err(EINVAL);
        }
        let (entry, counted) = {
            let state = index.lock(region)?;
            (state.rmap, state.refcount)
        };
        let name = |good| match good {
            true => value::REXT4_REGION_GOOD,
            false => value::REXT4_REGION_STALE,
        };
        let (count_state, (count_blocks, count_free)) = match index.counts() {
            Some(counts) => (name(counted.good), counts.file.blocks()),
            None => (value::REXT4_REGION_NONE, (0, 0)),
        };
        let frame = &index.rmap.file.frame;
        let (blocks, free) = index.rmap.file.blocks();
        let start = index.start_of(region);
        let end = (start + u64::from(frame.region_blocks)).min(sb.volume()?.layout().blocks);
        Ok(RegionInfo {
            ri_region: region,
            ri_state: name(entry.good),
            ri_regions: index.regions(),
            ri_generation: entry.generation,
            ri_start: start,
            ri_blocks: end - start,
            ri_level: entry.level.into(),
            ri_root: entry.root,
            ri_file_blocks: blocks,
            ri_free_blocks: free,
            ri_block_size: frame.block_size,
            ri_inode: index.rmap.file.ino(),
            ri_count_state: count_state,
            ri_count_generation: counted.generation,
            ri_count_blocks: count_blocks,
            ri_count_free_blocks: count_free,
            ri_reserved: [0; 2],
        })
    })?;
    abi::write(argument, &answer)
}
