// SPDX-License-Identifier: GPL-2.0

//! Mounting: reading the superblock, replaying the journal, and changing between read-only and
//! writable.
//!
//! [`open`] reads the superblock with whatever block size the device supports, checks it, and
//! rejects unsupported features, each by its name. [`start`] then replays the journal if the last
//! mount did not end cleanly, reads every group descriptor once, and gets the root directory.
//!
//! A writable mount keeps the journal open and marks the volume as in use on disk, until it ends.
//!
//! Source: `Documentation/filesystems/ext4/super.rst`, `journal.rst`.

use crate::{
    format::{
        self,
        superblock::{self, compat, incompat, ro_compat, Features, Layout, RawSuper},
        tree_file::{Left, Stamp},
    },
    fs::{
        alloc::{balloc, trim},
        data::cow,
        disk::{
            errors, inode,
            super_disk::{self, location, read_raw, refuse},
        },
        names::{dir, orphan},
        state::{DataMode, Options, Volume, MOST_GROUPS},
        volume::{companion, load, recovery, system},
    },
    kernel_glue::{
        corrupted, now, stale, unsupported, Buffer, InodeRef, Journal, NewSuperBlock, Statistics, SuperBlock,
        UnloadedJournal,
    },
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{Full, Relaxed, Release},
        Arc,
    },
};

/// Reads the volume on `sb`'s device.
pub(in crate::fs) fn open(
    sb: &mut NewSuperBlock<'_, Volume>,
    options: &Options,
) -> Result<Pin<KBox<Volume>>> {
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
    // Check the features first: unsupported ones may change the meaning of other fields.
    if raw.magic.get() == superblock::MAGIC {
        check_features(sb, &Features::of(&raw), sb.is_read_only())?;
    }
    let layout = Layout::read(&raw, sb.device_bytes()).map_err(|what| refuse(sb, what))?;
    if raw.rev_level.get() == 0 && layout.features != Features::default() {
        pr_warn!(
            "{}: a superblock of revision 0 has features; e2fsck is recommended\n",
            sb.name()
        );
    }
    let options = options.over(Options::of_superblock(sb, &raw));
    options.check(sb, sb.is_read_only())?;
    options.log_without_effect(sb);
    drop(raw);
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
    sb.set_identity(&layout.uuid);
    KBox::pin_init(Volume::new(layout, options, sb.sectors_written()), GFP_KERNEL)
}

/// Rejects a volume with unsupported features, naming each.
fn check_features(sb: &SuperBlock<Volume>, features: &Features, read_only: bool) -> Result {
    let mut refused = false;
    for (name, bit) in features.unsupported(read_only) {
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
    Ok(())
}

/// Fails if the volume lacks something that is needed for writing.
fn check_writable(sb: &SuperBlock<Volume>, layout: &Layout) -> Result {
    let features = &layout.features;
    if features.compat(compat::HAS_JOURNAL) && layout.journal_inode == 0 {
        pr_err!(
            "{}: a volume with its journal on another device is mounted read-only\n",
            sb.name()
        );
        return Err(EROFS);
    }
    if layout.groups > MOST_GROUPS {
        pr_err!("{}: too many groups for a writable mount\n", sb.name());
        return Err(EROFS);
    }
    if features.compat(compat::FAST_COMMIT) {
        pr_warn!("{}: fast commits are not used\n", sb.name());
    }
    Ok(())
}

/// Activates the volume and returns its root directory.
pub(in crate::fs) fn start(volume: &Volume, sb: &SuperBlock<Volume>) -> Result<InodeRef<Volume>> {
    let layout = &volume.layout;
    if layout.features.incompat(incompat::RECOVER) {
        match recovery::recover(volume, sb) {
            Err(error) if sb.is_read_only() && (error == corrupted() || error == EIO || error == stale()) => {
                // Most files can be read nevertheless.
                pr_err!(
                    "{}: the journal cannot be replayed: error {}; the contents may be inconsistent\n",
                    sb.name(),
                    error.to_errno()
                );
            }
            recovered => recovered?,
        }
    }
    load::read_groups(volume, sb, !sb.is_read_only())?;
    load::list_fixed(volume, sb)?;
    let root = inode::get(sb, format::inode::ROOT)?;
    if !root.is_directory() {
        pr_err!("{}: the root is not a directory\n", sb.name());
        return Err(corrupted());
    }
    if let Ok(Some(found)) = dir::find(&root, dir::SYSTEM_DIR) {
        let own = system::is_own_dir(&found);
        volume.has_system_dir.store(own, Relaxed);
        volume.foreign_system_dir.store(!own, Relaxed);
        if own {
            // Files that cannot be found cannot be used either.
            let _ = system::note_inodes(&found);
        }
    }
    if sb.is_read_only() {
        if let Err(error) = free_orphans(volume, sb) {
            pr_err!(
                "{}: deleted files stay allocated until the volume is mounted writable: error {}\n",
                sb.name(),
                error.to_errno()
            );
        }
        open_index(volume, sb);
    } else {
        go_writable(volume, sb)?;
    }
    Ok(root)
}

/// Frees the orphans that a crash left on a volume that is being mounted read-only, if the volume
/// could be mounted writable. Like the replay of the journal, this is part of the recovery.
fn free_orphans(volume: &Volume, sb: &SuperBlock<Volume>) -> Result {
    let could_write = volume.layout.features.unsupported(false).next().is_none()
        && !sb.device_is_read_only()
        && !volume.is_damaged()
        && !volume.shares();
    if !volume.replayed.load(Relaxed) || !could_write {
        return Ok(());
    }
    orphan::load(sb)?;
    let found = orphan::all(volume);
    orphan::unload(volume);
    if found?.is_empty() {
        return Ok(());
    }
    load::read_groups(volume, sb, true)?;
    let done = go_writable(volume, sb);
    done.and(go_read_only(volume, sb))
}

/// Opens the reverse map read-only, so that owner queries work on a read-only mount.
fn open_index(volume: &Volume, sb: &SuperBlock<Volume>) {
    let (block, offset) = location(volume.layout.block_size);
    let raw = Buffer::read(sb, block).and_then(|buffer| read_raw(sb, &buffer, offset));
    // If the journal was not replayed, the contents of the trees are undefined.
    if let (Some(companion), Ok(raw)) = (companion::get(), raw) {
        if raw.feature_incompat.get() & incompat::RECOVER == 0 {
            companion.opened_read_only(sb, &Left::of(&raw, volume.replayed.load(Relaxed)));
        }
    }
}

/// Updates the write time and the free counts in the superblock.
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

/// Makes the volume writable: opens the journal, marks the volume as in use on disk, and processes
/// orphans.
fn go_writable(volume: &Volume, sb: &SuperBlock<Volume>) -> Result {
    let layout = &volume.layout;
    if sb.device_is_read_only() {
        return Err(EROFS);
    }
    check_writable(sb, layout)?;
    let (block, offset) = location(layout.block_size);
    let raw = read_raw(sb, &Buffer::read(sb, block)?, offset)?;
    if raw.feature_incompat.get() & incompat::RECOVER != 0 {
        // Replaying it now would change blocks that have already been read.
        pr_err!(
            "{}: the journal was not replayed; unmount the volume and mount it without norecovery\n",
            sb.name()
        );
        return Err(EINVAL);
    }
    // A read-only index is not updated by changes.
    volume.attach_index(None);
    let journal = open_journal(volume, sb)?;
    recommend_check(volume, sb, &raw, carry_error(volume, sb, &journal)?);
    let has_orphan_file = orphan::load(sb)?;
    let logged = journal.is_present();
    let mut used = Stamp::default();
    let mut state = 0;
    super_disk::rewrite(volume, sb, |raw| {
        let time = now();
        state = raw.state.get();
        if logged {
            // The volume stays valid, since replaying the journal is sufficient after a crash.
            raw.feature_incompat
                .set(raw.feature_incompat.get() | incompat::RECOVER);
        } else {
            raw.state.set(state & !superblock::STATE_VALID);
        }
        raw.mnt_count.set(raw.mnt_count.get().wrapping_add(1));
        raw.mtime.set(time as u32);
        raw.mtime_hi = (time >> 32) as u8;
        if has_orphan_file {
            raw.feature_ro_compat
                .set(raw.feature_ro_compat.get() | ro_compat::ORPHAN_PRESENT);
        }
        raw.note_hash();
        stamp(volume, raw, time);
        used = Stamp::of(raw);
    })?;
    volume.state_before.store(state.into(), Relaxed);
    volume.writable.store(true, Release);
    // From now on, `stop` undoes what this mount does.
    let replayed = volume.replayed.xchg(false, Full);
    errors::start(volume, inode::get(sb, format::inode::ROOT)?)?;
    trim::start(volume, inode::get(sb, format::inode::ROOT)?)?;
    trim::set_online(volume, sb, volume.options().discard == Some(true));
    // Without a journal nothing puts the trees right after a crash, so that no stamp is to be
    // trusted then.
    let before = if logged || state & superblock::STATE_VALID != 0 {
        Left::of(&raw, replayed)
    } else {
        Left {
            stamp: Stamp::default(),
            is_in_use: false,
        }
    };
    if let Some(companion) = companion::get() {
        companion.opened(sb, &before, &used);
    }
    choose_reflink(volume, sb);
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

/// Decides whether blocks may become shared if none are.
///
/// Stock ext4 does not write to a volume with the feature `shared_blocks`, and many programs share
/// blocks on their own when they copy files. Sharing therefore requires an option: of this mount,
/// in the superblock, of the module, or of an earlier mount, whose reference counts still exist.
fn choose_reflink(volume: &Volume, sb: &SuperBlock<Volume>) {
    let chosen = volume.options().reflink.unwrap_or_else(|| {
        *crate::module_parameters::reflink.value() != 0
            || matches!(system::find(sb, REFERENCE_COUNTS), Ok(Some(_)))
    });
    volume.shared.allowed.store(chosen, Relaxed);
}

/// The file of the reference counts.
const REFERENCE_COUNTS: &[u8] = b"refcount";

/// Opens the journal, or returns the one opened by an earlier writable mount of the volume.
///
/// Fails with `EROFS` if it was aborted, and as [`Journal::load`] does.
fn open_journal(volume: &Volume, sb: &SuperBlock<Volume>) -> Result<Arc<Journal>> {
    let layout = &volume.layout;
    if let Some(journal) = volume.journal.lock().clone() {
        return match journal.is_aborted() {
            true => Err(EROFS),
            false => Ok(journal),
        };
    }
    let options = volume.options();
    let journal = if layout.journal_inode == 0 || options.no_recovery {
        Journal::absent(sb)?
    } else {
        UnloadedJournal::open(inode::get(sb, layout.journal_inode)?)?.load(
            layout.features.incompat(incompat::B64BIT),
            layout.has_metadata_csum(),
        )?
    };
    options.tune(&journal);
    let journal = Arc::new(journal, GFP_KERNEL)?;
    *volume.journal.lock() = Some(journal.clone());
    Ok(journal)
}

/// Records in the superblock that an earlier mount aborted the journal, and clears the error in the
/// journal. Returns whether there was one.
fn carry_error(volume: &Volume, sb: &SuperBlock<Volume>, journal: &Journal) -> Result<bool> {
    let Some(error) = journal.recorded_error() else {
        return Ok(false);
    };
    pr_err!(
        "{}: an earlier mount aborted the journal: error {}\n",
        sb.name(),
        error.to_errno()
    );
    super_disk::rewrite(volume, sb, |raw| {
        raw.state.set(raw.state.get() | superblock::STATE_ERRORS);
    })?;
    journal.clear_error();
    Ok(true)
}

/// Logs why the volume should be checked before it is written to, if there is a reason.
fn recommend_check(volume: &Volume, sb: &SuperBlock<Volume>, raw: &RawSuper, aborted: bool) {
    let state = raw.state.get();
    let has_errors = aborted || state & superblock::STATE_ERRORS != 0;
    if has_errors {
        volume.errors.set_known();
    }
    let lastcheck = i64::from(raw.lastcheck.get()) | (i64::from(raw.lastcheck_hi) << 32);
    let most = raw.max_mnt_count.get() as i16;
    let why = if has_errors {
        "the volume has errors"
    } else if state & superblock::STATE_VALID == 0 {
        "the volume was not unmounted cleanly and has no journal"
    } else if most > 0 && raw.mnt_count.get() >= most as u16 {
        "the maximum mount count has been reached"
    } else if raw.checkinterval.get() != 0
        && lastcheck.saturating_add(raw.checkinterval.get().into()) <= now()
    {
        "the check interval has elapsed"
    } else {
        return;
    };
    pr_warn!("{}: {why}; e2fsck is recommended\n", sb.name());
}

/// Ends a writable mount: leaves the volume clean on disk, and permits no more handles. `sb` stays
/// mounted, and the journal stays open.
///
/// On failure, all resources of the writable mount are released nevertheless, and only writes that
/// depend on the failed one are omitted. Returns the first error.
fn go_read_only(volume: &Volume, sb: &SuperBlock<Volume>) -> Result {
    let Ok(journal) = volume.journal() else {
        return Ok(());
    };
    if let Some(companion) = companion::get() {
        companion.closing(sb);
    }
    errors::stop(volume);
    let ended = balloc::end_windows(sb);
    if volume.check_alive().is_err() {
        // The disk stays as it is.
        trim::stop(volume, sb, false);
        volume.attach_index(None);
        volume.writable.store(false, Release);
        orphan::unload(volume);
        return Ok(());
    }
    let (block, offset) = location(volume.layout.block_size);
    let found = Buffer::read(sb, block).and_then(|buffer| read_raw(sb, &buffer, offset));
    // The blocks written by the flush count as written to the volume. Errors are detected below.
    let _ = journal.flush();
    trim::stop(volume, sb, true);
    // The superblock must contain the same stamp that the companion receives.
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
    // The index holds inodes. It is detached even if the companion could not be notified.
    volume.attach_index(None);
    let flushed = journal.flush_and(|| volume.writable.store(false, Release));
    let flushed = match journal.is_aborted() {
        true => Err(EIO),
        false => flushed,
    };
    let empty = orphan::unload(volume);
    errors::write(volume, sb);
    found.and(flushed).and(ended)?;
    super_disk::rewrite(volume, sb, |raw| {
        let valid = volume.state_before.load(Relaxed) as u16 & superblock::STATE_VALID;
        raw.state.set(raw.state.get() | valid);
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

/// Returns the number of kilobytes ever written to the volume; `before` is the number at the last
/// update.
fn count_written(volume: &Volume, sb: &SuperBlock<Volume>, before: u64) -> u64 {
    let now = sb.sectors_written();
    let since = now.wrapping_sub(volume.sectors_counted.xchg(now, Full));
    before.wrapping_add(since / 2)
}

/// Logs that the volume was not left clean.
fn unclean(sb: &SuperBlock<Volume>, error: Error) {
    pr_err!(
        "{}: the volume could not be left clean: error {}\n",
        sb.name(),
        error.to_errno()
    );
}

/// Releases everything that [`start`] acquired.
pub(in crate::fs) fn stop(volume: &Volume, sb: &SuperBlock<Volume>) {
    if let Err(error) = go_read_only(volume, sb) {
        unclean(sb, error);
    }
    SuperBlock::<Volume>::log_left_out();
    // The index and the blocks of the orphan file keep inodes, which must be gone before the volume
    // is. The blocks are also in memory if the volume failed to become writable.
    volume.attach_index(None);
    orphan::unload(volume);
    // Out of the lock: destroying the journal waits for its thread.
    let journal = volume.journal.lock().take();
    drop(journal);
}

/// Brings the volume on disk to a state that needs no recovery while it is frozen, or marks it as
/// in use again.
pub(in crate::fs) fn freeze(volume: &Volume, sb: &SuperBlock<Volume>, frozen: bool) -> Result {
    let Ok(journal) = volume.journal() else {
        return Ok(());
    };
    if frozen {
        // Staged blocks are known only in memory.
        cow::drop_idle(sb, false)?;
        balloc::end_windows(sb)?;
        journal.flush()?;
    }
    if !journal.is_present() || volume.check_alive().is_err() {
        return Ok(());
    }
    super_disk::rewrite_at_rest(volume, sb, |raw| {
        let others = raw.feature_incompat.get() & !incompat::RECOVER;
        let recover = if frozen { 0 } else { incompat::RECOVER };
        // Times and counts are not updated, since they indicate whether another driver has written
        // to the volume.
        raw.feature_incompat.set(others | recover);
    })
}

/// Changes the options of a mounted volume, if that is permitted.
pub(in crate::fs) fn reconfigure(
    volume: &Volume,
    sb: &SuperBlock<Volume>,
    options: &Options,
    read_only: bool,
) -> Result {
    let before = volume.options();
    if options.no_recovery && !before.no_recovery {
        pr_err!(
            "{}: norecovery takes effect only when a volume is mounted\n",
            sb.name()
        );
        return Err(EINVAL);
    }
    let options = options.over(before);
    options.check(sb, read_only)?;
    let data = |options: &Options| options.data.unwrap_or(DataMode::Ordered);
    if data(&options) != data(&before) && volume.is_writable() {
        pr_err!("{}: the data mode cannot be changed while mounted\n", sb.name());
        return Err(EINVAL);
    }
    options.log_without_effect(sb);
    apply(volume, sb, options);
    let changed = change_access(volume, sb, read_only);
    if changed.is_err() {
        apply(volume, sb, before);
    } else if options.abort {
        pr_err!("{}: aborted, as requested by a mount option\n", sb.name());
        errors::abort(sb);
    }
    changed
}

/// Applies options to a mounted volume.
fn apply(volume: &Volume, sb: &SuperBlock<Volume>, options: Options) {
    *volume.options.lock() = options;
    if let Some(action) = options.on_error {
        volume.errors.set_action(action);
    }
    volume.counts.lock().asked_reserve = (options.reserve_uid, options.reserve_gid);
    if let Ok(journal) = volume.journal() {
        options.tune(&journal);
        trim::set_online(volume, sb, options.discard == Some(true));
        choose_reflink(volume, sb);
    }
}

/// Makes a mounted volume writable or read-only, if it is not already.
fn change_access(volume: &Volume, sb: &SuperBlock<Volume>, read_only: bool) -> Result {
    if sb.is_read_only() != read_only && volume.check_alive().is_err() {
        return Err(EROFS);
    }
    if volume.is_stopped() && (sb.is_read_only(), read_only) != (true, true) {
        pr_err!(
            "{}: damage was found; unmount the volume and run e2fsck\n",
            sb.name()
        );
        return Err(EROFS);
    }
    match (sb.is_read_only(), read_only) {
        (true, false) if volume.is_writable() => {
            pr_err!(
                "{}: damage was found; unmount the volume and run e2fsck\n",
                sb.name()
            );
            Err(EROFS)
        }
        (true, false) => {
            check_features(sb, &volume.layout.features, false)?;
            // A read-only mount may have accepted invalid descriptors.
            load::read_groups(volume, sb, true)?;
            go_writable(volume, sb).inspect_err(|_| {
                if let Err(error) = go_read_only(volume, sb) {
                    unclean(sb, error);
                }
                open_index(volume, sb);
            })
        }
        (false, true) => {
            if volume.journal().is_ok_and(|journal| !journal.is_aborted()) {
                // The VFS leaves this to the file system.
                sb.sync_all()?;
                cow::drop_idle(sb, false)?;
            }
            // Everything possible was made read-only, even if the volume cannot be marked clean.
            if let Err(error) = go_read_only(volume, sb) {
                unclean(sb, error);
            }
            open_index(volume, sb);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Calls back with the effective options.
pub(in crate::fs) fn show_options(volume: &Volume, out: &mut dyn FnMut(&CStr)) -> Result {
    volume.options().show(volume.errors.action(), out)?;
    if volume.is_stopped() {
        out(c"emergency_ro");
    }
    if volume.check_alive().is_err() {
        out(c"shutdown");
    }
    Ok(())
}

/// Returns the identifier of a volume with this UUID for `statfs`, the same as stock ext4's.
fn id_of(uuid: &[u8; 16]) -> u64 {
    let (low, high) = uuid.split_at(8);
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0u64, |sum, &byte| sum << 8 | u64::from(byte))
    };
    number(low) ^ number(high)
}

/// Returns the values for `statfs`.
pub(in crate::fs) fn statistics(volume: &Volume) -> Result<Statistics> {
    let layout = &volume.layout;
    let mut counts = *volume.counts.lock();
    counts.free_blocks += volume.windows.lock().blocks;
    Ok(Statistics {
        block_size: layout.block_size,
        blocks: match volume.options().minix_df {
            Some(true) => layout.blocks,
            _ => layout.blocks.saturating_sub(counts.overhead),
        },
        free_blocks: counts.free_blocks,
        available_blocks: counts
            .free_blocks
            .saturating_sub(counts.reserved)
            .saturating_sub(balloc::kept_for_nodes(volume)),
        inodes: u64::from(layout.inodes),
        free_inodes: counts.free_inodes,
        name_length: format::dir::NAME_LEN as u32,
        id: id_of(&layout.uuid),
    })
}
