// SPDX-License-Identifier: GPL-2.0

//! Reading a volume's superblock, replaying its journal, and mounting it.
//!
//! [`open`] finds the superblock with whatever block size the device takes, checks it and refuses what cannot be
//! handled, each feature by its name. [`start`] then replays the journal when the last mount did not end cleanly, reads
//! every group descriptor once, and finds the root directory.
//!
//! A writable mount keeps the journal open, notes on disk that the volume is in use, and takes that back at its end.
//!
//! Source: `Documentation/filesystems/ext4/super.rst`, `journal.rst`.

use crate::{
    format::{
        self,
        superblock::{self, compat, incompat, ro_compat, Layout, RawSuper},
        tree_file::{Left, Stamp},
        zones::{self, Zone},
    },
    fs::{
        alloc::balloc,
        data::cow,
        disk::{
            errors, groups, inode,
            super_disk::{self, location, read_raw, refuse},
        },
        names::{dir, orphan},
        state::{Action, Counts, Options, Volume},
        volume::{companion, recovery, scan, system},
    },
    kernel_glue::{
        corrupted, now, unsupported, Buffer, InodeRef, NewSuperBlock, Statistics, SuperBlock, UnloadedJournal,
    },
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{Full, Relaxed},
        Arc,
    },
};

impl Options {
    /// Takes one option; answers whether it is known.
    pub(in crate::fs) fn take(&mut self, key: &CStr, value: Option<&CStr>) -> Result<bool> {
        match key.to_bytes() {
            b"norecovery" | b"noload" if value.is_none() => self.no_recovery = true,
            b"auto_da_alloc" if value.is_none() => self.no_auto_da_alloc = false,
            b"noauto_da_alloc" if value.is_none() => self.no_auto_da_alloc = true,
            b"errors" => {
                let action = value.and_then(|value| Action::of_name(value.to_bytes()));
                self.on_error = Some(action.ok_or(EINVAL)?);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// Reads the volume on `sb`'s device.
pub(in crate::fs) fn open(sb: &NewSuperBlock<'_, Volume>, options: &Options) -> Result<Volume> {
    // A device with sectors larger than 1 KiB does not take the smallest block size.
    let mut block_size = 1024;
    while sb.set_block_size(block_size).is_err() {
        block_size *= 2;
        if block_size > 4096 {
            pr_err!("{}: the device's sectors are larger than 4 KiB\n", sb.name());
            return Err(EINVAL);
        }
    }
    let (block, offset) = location(block_size);
    let raw = read_raw(sb, &Buffer::read(sb, block)?, offset)?;
    let layout = Layout::read(&raw, sb.device_bytes()).map_err(|what| refuse(sb, what))?;
    let on_error = u32::from(raw.errors.get());
    drop(raw);
    let on_error = options.on_error.unwrap_or(Action::of_number(on_error));
    check_features(sb, &layout, sb.is_read_only())?;
    if sb.set_block_size(layout.block_size).is_err() {
        pr_err!(
            "{}: blocks of {} bytes are smaller than the device's sectors\n",
            sb.name(),
            layout.block_size
        );
        return Err(EINVAL);
    }
    let coarse = !format::inode::has_extra_times(layout.inode_size);
    let huge_file = layout.features.ro_compat(ro_compat::HUGE_FILE);
    sb.set_limits(
        i64::from(i32::MIN),
        i64::from(i32::MAX) + if coarse { 0 } else { 3 << 32 },
        coarse,
        format::inode::max_size(layout.block_bits.into(), huge_file),
    );
    Volume::new(layout, *options, on_error, sb)
}

/// Refuses a volume with features that cannot be handled, naming each.
fn check_features(sb: &SuperBlock<Volume>, layout: &Layout, read_only: bool) -> Result {
    let mut refused = false;
    for (name, bit) in layout.features.unsupported(read_only) {
        match name {
            Some(name) => pr_err!("{}: the feature {name} is not supported\n", sb.name()),
            None => pr_err!(
                "{}: an unknown feature (bit {bit:#x}) is not supported\n",
                sb.name()
            ),
        }
        refused = true;
    }
    if refused {
        return Err(unsupported());
    }
    if read_only {
        return Ok(());
    }
    // What a writable mount cannot do without.
    for (there, name) in [(layout.journal_inode != 0, "has_journal")] {
        if !there {
            pr_err!(
                "{}: without the feature {name} volumes are mounted read-only\n",
                sb.name()
            );
            return Err(EROFS);
        }
    }
    if layout.features.compat(compat::FAST_COMMIT) {
        pr_warn!("{}: fast commits are not used\n", sb.name());
    }
    Ok(())
}

/// Brings the volume to life and answers with its root directory.
pub(in crate::fs) fn start(volume: &Volume, sb: &SuperBlock<Volume>) -> Result<InodeRef<Volume>> {
    let layout = &volume.layout;
    if layout.features.incompat(incompat::RECOVER) {
        recovery::recover(volume, sb)?;
    }
    read_groups(volume, sb)?;
    list_fixed(volume, sb)?;
    let root = inode::get(sb, format::inode::ROOT)?;
    if !root.is_directory() {
        pr_err!("{}: the root is not a directory\n", sb.name());
        return Err(corrupted());
    }
    if let Ok(Some(found)) = dir::find(&root, dir::SYSTEM_DIR) {
        let own = system::is_own_dir(&found);
        volume.has_system_dir.store(own, Relaxed);
        volume.foreign_system_dir.store(!own, Relaxed);
    }
    if sb.is_read_only() {
        open_index(volume, sb);
    } else {
        go_writable(volume, sb)?;
    }
    Ok(root)
}

/// Has the owners of blocks be known that nobody is going to change.
fn open_index(volume: &Volume, sb: &SuperBlock<Volume>) {
    let (block, offset) = location(volume.layout.block_size);
    let raw = Buffer::read(sb, block).and_then(|buffer| read_raw(sb, &buffer, offset));
    // What lies in a journal that was not replayed may be anything.
    if let (Some(companion), Ok(raw)) = (companion::get(), raw) {
        if raw.feature_incompat.get() & incompat::RECOVER == 0 {
            companion.opened_read_only(sb, &Left::of(&raw));
        }
    }
}

/// Writes down when the superblock was written, and how full the volume is.
fn stamp(volume: &Volume, raw: &mut RawSuper, time: i64) {
    let counts = *volume.counts.lock();
    raw.wtime.set(time as u32);
    raw.wtime_hi = (time >> 32) as u8;
    raw.free_blocks_count_lo.set(counts.free_blocks as u32);
    if volume.layout.features.incompat(incompat::B64BIT) {
        raw.free_blocks_count_hi.set((counts.free_blocks >> 32) as u32);
    }
    raw.free_inodes_count.set(counts.free_inodes as u32);
}

/// Opens the journal for writing, notes on disk that the volume is in use, and frees what a crash left.
fn go_writable(volume: &Volume, sb: &SuperBlock<Volume>) -> Result {
    let layout = &volume.layout;
    if sb.device_is_read_only() {
        return Err(EROFS);
    }
    let (block, offset) = location(layout.block_size);
    let raw = read_raw(sb, &Buffer::read(sb, block)?, offset)?;
    if raw.state.get() & superblock::STATE_ERRORS != 0 {
        volume.errors.set_known();
        pr_warn!("{}: the volume has errors; e2fsck is recommended\n", sb.name());
    }
    // What was good enough to be asked.
    volume.attach_index(None);
    let journal = UnloadedJournal::open(inode::get(sb, layout.journal_inode)?)?.load(
        layout.features.incompat(incompat::B64BIT),
        layout.has_metadata_csum(),
    )?;
    let journal = Arc::new(journal, GFP_KERNEL)?;
    let has_orphan_file = orphan::load(sb)?;
    let before = Left::of(&raw);
    let mut used = before.stamp;
    super_disk::rewrite(volume, sb, |raw| {
        let time = now();
        raw.state.set(raw.state.get() & !superblock::STATE_VALID);
        raw.mnt_count.set(raw.mnt_count.get().wrapping_add(1));
        raw.mtime.set(time as u32);
        raw.mtime_hi = (time >> 32) as u8;
        raw.feature_incompat
            .set(raw.feature_incompat.get() | incompat::RECOVER);
        if has_orphan_file {
            raw.feature_ro_compat
                .set(raw.feature_ro_compat.get() | ro_compat::ORPHAN_PRESENT);
        }
        stamp(volume, raw, time);
        used = Stamp::of(raw);
    })?;
    *volume.journal.lock() = Some(journal);
    errors::start(volume, inode::get(sb, format::inode::ROOT)?)?;
    if let Some(companion) = companion::get() {
        companion.opened(sb, &before, &used);
    }
    if volume.shares() && volume.index().is_none() {
        pr_err!(
            "{}: without a reverse map a volume with shared blocks is mounted read-only\n",
            sb.name()
        );
        return Err(EROFS);
    }
    recovery::process_orphans(sb)?;
    match companion::get() {
        Some(companion) => companion.ready(sb),
        None => Ok(()),
    }
}

/// Brings the volume on disk to a clean state and closes the journal. `sb` stays mounted.
///
/// Whatever fails, all that the writable mount holds is given back, and only the writing that depends on what failed is
/// left out. Returns the first error.
fn go_read_only(volume: &Volume, sb: &SuperBlock<Volume>) -> Result {
    let Ok(journal) = volume.journal() else {
        return Ok(());
    };
    if let Some(companion) = companion::get() {
        companion.closing(sb);
    }
    errors::stop(volume);
    let (block, offset) = location(volume.layout.block_size);
    let found = Buffer::read(sb, block).and_then(|buffer| read_raw(sb, &buffer, offset));
    // The blocks it writes count as written to the volume. Whether it succeeds is seen below.
    let _ = journal.flush();
    // The superblock must be left with the very stamp that the companion is told.
    let time = now();
    let before = found.as_ref().map_or(0, |raw| raw.kbytes_written.get());
    let kbytes = count_written(volume, sb, before);
    let found = found.map(|mut raw| {
        if let Some(companion) = companion::get() {
            stamp(volume, &mut raw, time);
            raw.kbytes_written.set(kbytes);
            companion.closed(sb, &Stamp::of(&raw), !journal.is_aborted());
        }
    });
    // The index has inodes. It goes also when the companion could not be told.
    volume.attach_index(None);
    drop(journal);
    // Taken out of the lock: destroying the journal waits for its thread.
    let Some(journal) = volume.journal.lock().take() else {
        return Ok(());
    };
    let flushed = match journal.is_aborted() {
        true => Err(EIO),
        false => journal.flush(),
    };
    let empty = orphan::unload(volume);
    drop(journal);
    errors::write(volume, sb);
    found.and(flushed)?;
    super_disk::rewrite(volume, sb, |raw| {
        raw.state.set(raw.state.get() | superblock::STATE_VALID);
        raw.feature_incompat
            .set(raw.feature_incompat.get() & !incompat::RECOVER);
        if empty {
            raw.feature_ro_compat
                .set(raw.feature_ro_compat.get() & !ro_compat::ORPHAN_PRESENT);
        }
        stamp(volume, raw, time);
        raw.kbytes_written.set(kbytes);
    })
}

/// The kilobytes that were ever written to the volume, of which `before` had been when they were last counted.
fn count_written(volume: &Volume, sb: &SuperBlock<Volume>, before: u64) -> u64 {
    let now = sb.sectors_written();
    let since = now.wrapping_sub(volume.sectors_counted.xchg(now, Full));
    before.wrapping_add(since / 2)
}

/// Gives back what [`start`] took.
pub(in crate::fs) fn stop(volume: &Volume, sb: &SuperBlock<Volume>) {
    if let Err(error) = go_read_only(volume, sb) {
        pr_err!(
            "{}: the volume could not be left clean: error {}\n",
            sb.name(),
            error.to_errno()
        );
    }
    // It has inodes, which must be gone before the volume is.
    volume.attach_index(None);
}

/// Brings the volume on disk to a state that needs no recovery, for as long as nobody may write.
pub(in crate::fs) fn freeze(volume: &Volume, sb: &SuperBlock<Volume>, frozen: bool) -> Result {
    let Ok(journal) = volume.journal() else {
        return Ok(());
    };
    if frozen {
        // What is on disk has nothing in it then that only we know of.
        cow::drop_idle(sb, false)?;
        journal.flush()?;
    }
    super_disk::rewrite_at_rest(volume, sb, |raw| {
        let others = raw.feature_incompat.get() & !incompat::RECOVER;
        let recover = if frozen { 0 } else { incompat::RECOVER };
        // Times and counts stay: they tell whether somebody else wrote to the volume.
        raw.feature_incompat.set(others | recover);
    })
}

/// Reads every group's descriptor, so that a broken one is known before anything rests on it, and counts.
fn read_groups(volume: &Volume, sb: &SuperBlock<Volume>) -> Result {
    let layout = &volume.layout;
    let (block, offset) = location(layout.block_size);
    let raw = read_raw(sb, &Buffer::read(sb, block)?, offset)?;
    let mut counts = Counts::default();
    let mut tables = KVVec::with_capacity(layout.groups as usize, GFP_KERNEL)?;
    for number in 0..layout.groups {
        let found = groups::group(volume, sb, number)?;
        tables.push(found.inode_table, GFP_KERNEL)?;
        counts.free_blocks += u64::from(found.free_blocks);
        counts.free_inodes += u64::from(found.free_inodes);
    }
    // mke2fs writes down what the volume itself takes; without that, count the fixed metadata.
    counts.overhead = match u64::from(raw.overhead_clusters.get()) {
        noted if noted > 0 && noted < layout.blocks => noted,
        _ => fixed_metadata(layout),
    };
    let high = u64::from(raw.r_blocks_count_hi.get()) << 32;
    let wide = layout.features.incompat(incompat::B64BIT);
    counts.reserved = u64::from(raw.r_blocks_count_lo.get()) | if wide { high } else { 0 };
    let wide = |low: u16, high: u16| u32::from(high) << 16 | u32::from(low);
    counts.reserved_for = (
        wide(raw.def_resuid.get(), raw.def_resuid_hi.get()),
        wide(raw.def_resgid.get(), raw.def_resgid_hi.get()),
    );
    *volume.counts.lock() = counts;
    volume.inode_tables.populate(tables);
    if sb.is_read_only()
        && (layout.features.ro_compat(ro_compat::ORPHAN_PRESENT) || raw.last_orphan.get() != 0)
    {
        pr_info!(
            "{}: deleted files are left for the next writable mount to free\n",
            sb.name()
        );
    }
    Ok(())
}

/// Blocks of superblocks, descriptors, bitmaps and inode tables.
fn fixed_metadata(layout: &Layout) -> u64 {
    let copies = (0..layout.groups)
        .filter(|&group| layout.has_super(group))
        .count() as u64;
    let copy = 1 + u64::from(layout.desc_blocks) + u64::from(layout.reserved_gdt_blocks);
    let each = 2 + u64::from(layout.inode_table_blocks());
    u64::from(layout.first_data_block) + copies * copy + u64::from(layout.groups) * each
}

/// Whether a mounted volume may change to these options.
pub(in crate::fs) fn reconfigure(
    volume: &Volume,
    sb: &SuperBlock<Volume>,
    options: &Options,
    read_only: bool,
) -> Result {
    if options.no_recovery && !volume.options.no_recovery {
        pr_err!(
            "{}: norecovery takes effect only when a volume is mounted\n",
            sb.name()
        );
        return Err(EINVAL);
    }
    if let Some(action) = options.on_error {
        volume.errors.set_action(action);
    }
    match (sb.is_read_only(), read_only) {
        (true, false) if volume.journal().is_ok() => {
            pr_err!(
                "{}: damage was found; unmount the volume and run e2fsck\n",
                sb.name()
            );
            Err(EROFS)
        }
        (true, false) => {
            check_features(sb, &volume.layout, false)?;
            go_writable(volume, sb).inspect_err(|_| stop(volume, sb))
        }
        (false, true) => {
            cow::drop_idle(sb, false)?;
            go_read_only(volume, sb)?;
            open_index(volume, sb);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Hands out the options that the volume is mounted with.
pub(in crate::fs) fn show_options(volume: &Volume, out: &mut dyn FnMut(&CStr)) {
    if volume.options.no_recovery {
        out(c"norecovery");
    }
    if volume.options.no_auto_da_alloc {
        out(c"noauto_da_alloc");
    }
    out(volume.errors.action().option());
}

/// What `statfs` reports.
pub(in crate::fs) fn statistics(volume: &Volume) -> Result<Statistics> {
    let layout = &volume.layout;
    let counts = *volume.counts.lock();
    Ok(Statistics {
        block_size: layout.block_size,
        blocks: layout.blocks.saturating_sub(counts.overhead),
        free_blocks: counts.free_blocks,
        available_blocks: counts
            .free_blocks
            .saturating_sub(counts.reserved)
            .saturating_sub(balloc::kept_for_nodes(volume)),
        inodes: u64::from(layout.inodes),
        free_inodes: counts.free_inodes,
        name_length: format::dir::NAME_LEN as u32,
        id: volume.device_id,
    })
}

/// Lists them; the descriptors have been read once.
fn list_fixed(volume: &Volume, sb: &SuperBlock<Volume>) -> Result {
    let layout = &volume.layout;
    let mut zones: KVVec<Zone> = KVVec::new();
    let mut add = |start: u64, len: u32| -> Result {
        let end = start.saturating_add(u64::from(len));
        match zones.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => zones.push(Zone { start, end }, GFP_KERNEL)?,
        }
        Ok(())
    };
    for number in 0..layout.groups {
        let group = groups::group(volume, sb, number)?;
        for (start, len) in groups::fixed_blocks(volume, number, &group) {
            add(start, len)?;
        }
    }
    if layout.journal_inode != 0 {
        // Without its journal a volume can still be read, and who wants to write it will find out.
        if let Ok(journal) = inode::get(sb, layout.journal_inode) {
            let map = scan::lock_map(&journal)?;
            let listed = scan::for_each_owned(&journal, &map, &mut |start, len, _| add(start, len));
            drop(map);
            if listed.is_err() && !sb.is_read_only() {
                return listed;
            }
        }
    }
    let kept = zones::merge(&mut zones);
    zones.truncate(kept);
    volume.fixed.populate(zones);
    Ok(())
}
