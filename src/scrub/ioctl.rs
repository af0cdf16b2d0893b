// SPDX-License-Identifier: GPL-2.0

//! The ioctls of `include/uapi/rext4.h`, and `FS_IOC_GETFSMAP`.

use super::{
    fsmap,
    report::{Report, Request},
    run,
    scrubber::{with_readable, with_writable},
    types,
};
use crate::{
    fs::Volume,
    kernel_glue::{
        abi::{self, value, FsmapHead, RegionInfo, ScrubMetadata, ScrubProgress},
        canceled, is_admin, is_interrupted, no_such_ioctl, pause, restart, Inode, Ioctl, SuperBlock,
    },
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

/// Handles an ioctl.
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

/// Runs a check, or a check and repair. Unless it fails before anything was started, the findings
/// and results are copied back to the caller even if it fails.
fn scrub(sb: &SuperBlock<Volume>, argument: usize) -> Result {
    let mut call: ScrubMetadata = abi::read(argument)?;
    let repair = call.sm_flags & value::REXT4_SCRUB_IFLAG_REPAIR != 0;
    let force = call.sm_flags & value::REXT4_SCRUB_IFLAG_FORCE_REBUILD != 0;
    let odd = call.sm_flags & !value::REXT4_SCRUB_FLAGS_IN != 0
        || call.sm_reserved0 != 0
        || call.sm_reserved.iter().any(|&word| word != 0)
        || force && !repair;
    if odd {
        return Err(EINVAL);
    }
    if call.sm_type == value::REXT4_SCRUB_TYPE_PROBE {
        return with_writable(sb, |_, _| Ok(()));
    }
    let kind = types::of_number(call.sm_type).ok_or(EINVAL)?;
    let mut report = Report::default();
    let mut once = || {
        report = Report::default();
        with_writable(sb, |index, scrubber| {
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
            let done = run::run(index, scrubber, kind, &request, &mut report);
            while done == Err(restart()) && scrubber.grows.load(Relaxed) {
                if is_interrupted() {
                    return Err(EINTR);
                }
                pause(10);
            }
            done
        })
    };
    let outcome = loop {
        match once() {
            // The volume has grown meanwhile.
            Err(error) if error == restart() => (),
            outcome => break outcome,
        }
    };
    if report.begun {
        report.store(&mut call);
        abi::write(argument, &call)?;
    }
    outcome
}

fn progress(sb: &SuperBlock<Volume>, argument: usize) -> Result {
    let mut answer = ScrubProgress::default();
    with_writable(sb, |_, scrubber| {
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
    with_writable(sb, |_, scrubber| {
        if scrubber.busy.try_lock().is_some() {
            return Err(ENOENT);
        }
        scrubber.cancel(canceled());
        // Once we hold the lock, the cancelled run has ended.
        drop(scrubber.busy.lock());
        Ok(())
    })
}

fn region_info(sb: &SuperBlock<Volume>, argument: usize) -> Result {
    let asked: RegionInfo = abi::read(argument)?;
    if asked.ri_reserved.iter().any(|&word| word != 0) {
        return Err(EINVAL);
    }
    let answer = with_readable(sb, |index, _| {
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
