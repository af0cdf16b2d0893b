// SPDX-License-Identifier: GPL-2.0

//! Reading all group descriptors at mount: counts free blocks and inodes, and lists the blocks of
//! fixed metadata.
//!
//! A writable mount requires all descriptors to be valid. A read-only mount, which may be for
//! rescue, logs the invalid ones and omits their counts.

use crate::{
    format::{
        superblock::{incompat, ro_compat, Layout},
        zones::{self, Zone},
        Corrupt,
    },
    fs::{
        disk::{
            groups, inode,
            super_disk::{location, read_raw},
        },
        state::{Counts, Volume, MOST_GROUPS},
        volume::scan,
    },
    kernel_glue::{corrupted, is_dying, Buffer, Latest, SuperBlock},
};
use kernel::prelude::*;

/// Maximum number of invalid descriptors that are logged individually.
const MOST_LINES: u32 = 8;

/// Reads the descriptor and counts of every group. An invalid descriptor is an error if `strict` is
/// set, and is skipped otherwise.
///
/// Fails with `EFSCORRUPTED`, with `EIO` if a descriptor cannot be read, and with `EINTR` if the
/// task is killed.
pub(in crate::fs) fn read_groups(volume: &Volume, sb: &SuperBlock<Volume>, strict: bool) -> Result {
    let layout = &volume.layout;
    let (block, offset) = location(layout.block_size);
    let raw = read_raw(sb, &Buffer::read(sb, block)?, offset)?;
    let before = *volume.counts.lock();
    let mut counts = Counts {
        claims: before.claims,
        frees: before.frees,
        frees_committed: before.frees_committed,
        ..Counts::default()
    };
    let is_wide = layout.features.incompat(incompat::B64BIT);
    let wide_blocks = |low: u32, high: u32| u64::from(low) | if is_wide { u64::from(high) << 32 } else { 0 };
    let mut bad = 0u32;
    if layout.groups > MOST_GROUPS {
        counts.free_blocks = wide_blocks(raw.free_blocks_count_lo.get(), raw.free_blocks_count_hi.get());
        counts.free_inodes = raw.free_inodes_count.get().into();
    } else {
        for number in 0..layout.groups {
            if number % 1024 == 0 && is_dying() {
                return Err(EINTR);
            }
            let what = match groups::look_at(volume, sb, number) {
                Ok(Ok(found)) => {
                    counts.free_blocks += u64::from(found.free_blocks);
                    counts.free_inodes += u64::from(found.free_inodes);
                    continue;
                }
                Ok(Err(what)) => what,
                Err(_) => Corrupt("the descriptor cannot be read"),
            };
            if bad < MOST_LINES {
                pr_err!("{}: group {number}: {}\n", sb.name(), what.0);
            }
            bad += 1;
            if strict {
                return Err(corrupted());
            }
        }
    }
    if bad > 0 {
        pr_err!("{}: {bad} bad group descriptors: e2fsck is needed\n", sb.name());
    }
    // mke2fs records how many blocks metadata takes; if that is missing, count the fixed metadata.
    counts.overhead = match u64::from(raw.overhead_clusters.get()) {
        noted if noted > 0 && noted < layout.blocks => noted,
        _ if layout.groups > MOST_GROUPS => 0,
        _ => fixed_metadata(layout),
    };
    counts.reserved = wide_blocks(raw.r_blocks_count_lo.get(), raw.r_blocks_count_hi.get());
    let wide = |low: u16, high: u16| u32::from(high) << 16 | u32::from(low);
    counts.reserved_for = (
        wide(raw.def_resuid.get(), raw.def_resuid_hi.get()),
        wide(raw.def_resgid.get(), raw.def_resgid_hi.get()),
    );
    let options = volume.options();
    counts.asked_reserve = (options.reserve_uid, options.reserve_gid);
    *volume.counts.lock() = counts;
    if sb.is_read_only()
        && !strict
        && (layout.features.ro_compat(ro_compat::ORPHAN_PRESENT) || raw.last_orphan.get() != 0)
    {
        pr_info!(
            "{}: deleted files will be freed by the next writable mount\n",
            sb.name()
        );
    }
    Ok(())
}

/// Returns the number of blocks of superblocks, descriptors, bitmaps and inode tables.
fn fixed_metadata(layout: &Layout) -> u64 {
    let copies: u64 = (0..layout.groups)
        .map(|group| u64::from(layout.leading_blocks(group)))
        .sum();
    let each = 2 + u64::from(layout.inode_table_blocks());
    u64::from(layout.first_data_block) + copies + u64::from(layout.groups) * each
}

/// Lists the blocks of fixed metadata. Groups with invalid descriptors, which only a read-only
/// mount permits, are skipped.
pub(in crate::fs) fn list_fixed(volume: &Volume, sb: &SuperBlock<Volume>) -> Result {
    let layout = &volume.layout;
    if layout.groups > MOST_GROUPS {
        return Ok(());
    }
    let mut zones: KVVec<Zone> = KVVec::new();
    let mut add = |start: u64, len: u32| -> Result {
        // There may be millions of groups, and the mapping of a damaged journal may be very long.
        if is_dying() {
            return Err(EINTR);
        }
        let end = start.saturating_add(u64::from(len));
        match zones.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => zones.push(Zone { start, end }, GFP_KERNEL)?,
        }
        Ok(())
    };
    for number in 0..layout.groups {
        if let Ok(Ok(group)) = groups::look_at(volume, sb, number) {
            for (start, len) in groups::fixed_blocks(volume, number, &group) {
                add(start, len)?;
            }
        }
    }
    if layout.journal_inode != 0 {
        // A volume can be read without its journal.
        if let Ok(journal) = inode::get(sb, layout.journal_inode) {
            let listed = scan::lock_map(&journal)
                .and_then(|map| scan::for_each_owned(&journal, &map, &mut |start, len, _| add(start, len)));
            match listed {
                Err(error) if error == EINTR || !sb.is_read_only() => return Err(error),
                _ => (),
            }
        }
    }
    let kept = zones::merge(&mut zones);
    zones.truncate(kept);
    volume.fixed.populate(Latest::new(zones)?);
    Ok(())
}
