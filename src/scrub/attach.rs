// SPDX-License-Identifier: GPL-2.0

//! Attaches the trees and their scrubber to volumes at mount, and detaches them at unmount.

use super::{
    ioctl,
    scrubber::{with, Scrubber},
    upkeep::{refresh, settle, Upkeep},
};
use crate::{
    format::tree_file::{Left, Stamp},
    fs::{companion::Companion, scan, sharing, Volume},
    kernel_glue::{unsupported, Background, Inode, Ioctl, SuperBlock},
    trees::{index::RmapIndex, region::frame},
};
use kernel::{
    prelude::*,
    sync::{atomic::Relaxed, Arc},
};

/// Attaches the trees to each mounted volume.
pub(crate) struct Beside;

impl Beside {
    fn open(sb: &SuperBlock<Volume>, before: &Left, now: &Stamp) -> Result {
        let scrubber = Scrubber::new()?;
        let index = RmapIndex::open(sb, before, now, scrubber.clone())?;
        let index = Arc::new(index, GFP_KERNEL)?;
        let task = Arc::new(Upkeep::new(index.clone(), scrubber.clone()), GFP_KERNEL)?;
        let background = Arc::new(Background::new(task)?, GFP_KERNEL)?;
        let volume = sb.volume()?;
        volume.attach_index(Some(index.clone()));
        if let Err(error) = index.start(before) {
            volume.attach_index(None);
            return Err(error);
        }
        scrubber.set_background(Some(background));
        Ok(())
    }

    /// Grows a volume that has more regions afterwards. The region tables are made anew, and all
    /// trees rebuilt in the background; until then there is no index.
    fn grow_regions(index: &RmapIndex, scrubber: &Scrubber, grow: &mut dyn FnMut() -> Result) -> Result {
        let sb = index.super_block();
        let volume = sb.volume()?;
        // Which blocks are shared would not be known until the trees are rebuilt.
        let Ok(_unshared) = sharing::forbid(volume) else {
            pr_err!(
                "{}: a volume with shared blocks does not get more regions while mounted; unmount it and use resize2fs\n",
                sb.name()
            );
            return Err(unsupported());
        };
        let busy = scrubber.interrupt()?;
        scrubber.closing.store(true, Relaxed);
        drop(busy);
        // This waits for a running background task to finish.
        drop(scrubber.set_background(None));
        volume.attach_index(None);
        // Afterwards, no handle is left that changes the old trees.
        volume.journal()?.flush_and(|| ())?;
        let done = grow();
        let never = Left {
            stamp: Stamp::default(),
            is_in_use: false,
        };
        warn_without_map(sb, Self::open(sb, &never, &index.stamp()));
        with(sb, |_, scrubber| scrubber.kick_upkeep());
        done
    }

    /// Opens the trees of a read-only mount, for owner queries.
    fn open_read_only(sb: &SuperBlock<Volume>, left: &Left) -> Result {
        let scrubber = Scrubber::new()?;
        if let Some(index) = RmapIndex::open_read_only(sb, left, scrubber)? {
            sb.volume()?.attach_index(Some(Arc::new(index, GFP_KERNEL)?));
        }
        Ok(())
    }
}

/// Grows a volume that has the same regions afterwards.
fn grow_within(scrubber: &Scrubber, grow: &mut dyn FnMut() -> Result) -> Result {
    let busy = scrubber.interrupt()?;
    let done = grow().and(scrubber.forget_fixed());
    drop(busy);
    scrubber.kick_upkeep();
    done
}

/// Logs that the reverse map could not be opened. The mount continues without it.
fn warn_without_map(sb: &SuperBlock<Volume>, opened: Result) {
    if let Err(error) = opened {
        pr_warn!(
            "{}: rmap: mounted without a reverse map: error {}\n",
            sb.name(),
            error.to_errno()
        );
    }
}

/// Frees blocks without an owner in regions that an earlier mount left stale or unsettled, and
/// returns their number. Blocks that were staged at a crash, or had lost their last owner, can be
/// found in no other way. No owners may be changing at the same time, and the rebuild must have
/// found nothing doubtful.
///
/// Nothing is freed on a volume with recorded errors, because blocks may have lost an owner that
/// e2fsck can still recover. Nor is it if an inode is in use in the part of a table that is marked
/// as never used, because the scan has not seen it. An error is confined to its region, whose
/// blocks are then freed at a later attempt.
fn free_unowned(index: &RmapIndex) -> u64 {
    let sb = index.super_block();
    let mut proven = None;
    let mut freed = 0;
    let mut outcome = Ok(());
    for region in (0..index.regions()).filter(|&region| index.owes(region).unwrap_or(false)) {
        let done = index.free_unowned(region, &mut || {
            if let Some(proven) = proven {
                return Ok(proven);
            }
            let _checking = scan::Checking::begin(sb.volume()?)?;
            let sound = !sb.volume()?.is_damaged() && !scan::has_hidden_inodes(sb)?;
            if !sound {
                pr_err!(
                    "{}: blocks in use without an owner are not freed, because the volume has errors; run e2fsck\n",
                    sb.name()
                );
            }
            proven = Some(sound);
            Ok(sound)
        });
        match done {
            Ok(blocks) => freed += blocks,
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
    if let Err(error) = outcome {
        pr_warn!(
            "{}: rmap: not all blocks without an owner were freed: error {}\n",
            sb.name(),
            error.to_errno()
        );
    }
    freed
}

/// Returns whether both trees of all regions are good.
fn is_known(index: &RmapIndex) -> Result<bool> {
    for region in 0..index.regions() {
        let state = index.lock(region)?;
        if !state.rmap.good || !state.refcount.good {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns true if an error concerns more than the region in which it occurred.
fn is_fatal(sb: &SuperBlock<Volume>, error: Error) -> bool {
    let journal = sb.volume().and_then(Volume::journal);
    error == ENOMEM || journal.map_or(true, |journal| journal.is_aborted())
}

/// Makes the trees ready for writers, before there are any.
///
/// On a volume with shared blocks, all owners must be known before a block can be freed, so stale
/// trees are rebuilt here. Fails if that is not possible.
fn make_ready(sb: &SuperBlock<Volume>, index: &RmapIndex, scrubber: &Scrubber) -> Result {
    let mut doubts = false;
    if sb.volume()?.shares() {
        let refreshed = refresh(index, scrubber);
        if !is_known(index)? {
            pr_err!(
                "{}: the owners of some blocks are unknown, so the volume can only be mounted read-only\n",
                sb.name()
            );
            return Err(refreshed.outcome.err().unwrap_or(EROFS));
        }
        doubts = refreshed.doubts;
    }
    let mut freed = 0u64;
    for region in 0..index.regions() {
        let mut staged = match index.free_staged(region) {
            Err(error) if !is_fatal(sb, error) => {
                pr_err!(
                    "{}: rmap: region {region}: blocks that were staged at a crash were not freed: error {}\n",
                    sb.name(),
                    error.to_errno()
                );
                continue;
            }
            staged => staged?,
        };
        if staged.is_none() {
            // A tree could not be read and is now stale. Use the rebuilt one.
            let refreshed = refresh(index, scrubber);
            doubts |= refreshed.doubts;
            refreshed.outcome?;
            staged = index.free_staged(region)?;
        }
        freed += u64::from(staged.unwrap_or(0));
    }
    if doubts {
        pr_err!(
            "{}: blocks in use without an owner are not freed, because inodes are damaged; run e2fsck\n",
            sb.name()
        );
    } else {
        freed += free_unowned(index);
    }
    if freed > 0 {
        pr_info!(
            "{}: {freed} blocks left over from a crash were freed\n",
            sb.name()
        );
    }
    scrubber.kick_upkeep();
    Ok(())
}

impl Companion for Beside {
    fn opened(&self, sb: &SuperBlock<Volume>, before: &Left, now: &Stamp) {
        // If the stamp of this mount cannot be stored, the next mount finds the trees stale.
        warn_without_map(sb, Self::open(sb, before, now));
    }

    fn opened_read_only(&self, sb: &SuperBlock<Volume>, left: &Left) {
        warn_without_map(sb, Self::open_read_only(sb, left));
    }

    fn ready(&self, sb: &SuperBlock<Volume>) -> Result {
        with(sb, |index, scrubber| make_ready(sb, index, scrubber)).unwrap_or(Ok(()))
    }

    fn closing(&self, sb: &SuperBlock<Volume>) {
        with(sb, |index, scrubber| {
            let alive = sb.volume().and_then(Volume::check_alive).is_ok();
            let mut done = Ok(());
            if alive && index.has_parked().unwrap_or(false) {
                done = refresh(index, scrubber).outcome;
            }
            scrubber.closing.store(true, Relaxed);
            // This waits for a running background task to finish.
            drop(scrubber.set_background(None));
            drop(scrubber.busy.lock());
            if !alive {
                return;
            }
            if let Err(error) = done.and_then(|()| settle(index)) {
                pr_err!(
                    "{}: refcount: some blocks could not be freed: error {}\n",
                    sb.name(),
                    error.to_errno()
                );
            }
        });
    }

    fn closed(&self, sb: &SuperBlock<Volume>, stamp: &Stamp, clean: bool) {
        if clean {
            let stamped = with(sb, |index, _| index.close(stamp));
            if let Some(Err(error)) = stamped {
                pr_warn!(
                    "{}: rmap: could not be closed and will be rebuilt: error {}\n",
                    sb.name(),
                    error.to_errno()
                );
            }
        }
        if let Ok(volume) = sb.volume() {
            volume.attach_index(None);
        }
    }

    fn grow(&self, sb: &SuperBlock<Volume>, blocks: u64, grow: &mut dyn FnMut() -> Result) -> Result {
        let layout = *sb.volume()?.layout();
        let larger = layout.grown(blocks).map_err(|_| EINVAL)?;
        with(sb, |index, scrubber| {
            let done = match frame(&larger) == frame(&layout) {
                true => grow_within(scrubber, grow),
                false => Self::grow_regions(index, scrubber, grow),
            };
            scrubber.grows.store(false, Relaxed);
            done
        })
        .unwrap_or_else(grow)
    }

    fn ioctl(&self, inode: &Inode<Volume>, call: Ioctl<'_>) -> Result {
        ioctl::call(inode, call)
    }
}
