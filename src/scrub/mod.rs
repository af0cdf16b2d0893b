// SPDX-License-Identifier: GPL-2.0

//! Verifying and rebuilding what stands beside a volume, while the volume is in use.
//!
//! - [`run`] — one check, or check and repair, of any number of regions: the whole of it, in order
//! - [`scan`] — collecting what the trees must hold from all inodes
//! - [`pool`] — the memory that a scan may take, and the file beyond it
//! - [`rmap`] — comparing a region's tree with what was collected, and putting a new one in place
//! - [`refcount`] — comparing a region's reference counts with its reverse map, and sweeping new ones out of it
//! - [`ioctl`] — what programs ask for
//! - [`fsmap`] — who owns which block, answered from the reverse map
//!
//! A [`Scrubber`] belongs to a volume while that is mounted writable. It lets one check or repair run at a time, ends it
//! when somebody cancels it or the volume is closed, and does in the background what has to be done without being
//! asked for: trees that are stale are rebuilt, blocks that a crash or a rebuild left are freed, the tree file grows.

mod fsmap;
mod ioctl;
mod pool;
mod refcount;
mod rmap;
mod run;
mod scan;

use crate::{
    format::tree_file::{Left, Stamp},
    fs::{companion::Companion, Volume},
    kernel_glue::{abi::value, canceled, is_interrupted, now, Background, Inode, Ioctl, SuperBlock, Task},
    trees::index::{reserve, Keeper, RmapIndex},
};
use core::any::Any;
use kernel::{
    new_mutex, new_spinlock,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, Mutex, SpinLock,
    },
};

/// How far the check or repair that runs has come. What programs see of it.
pub(crate) struct Progress {
    /// What is looked at, as in the ioctl.
    kind: Atomic<u32>,
    phase: Atomic<u32>,
    flags: Atomic<u32>,
    done: Atomic<u64>,
    total: Atomic<u64>,
    records: Atomic<u64>,
}

impl Progress {
    /// Begins a phase of so many inodes or regions.
    fn enter(&self, phase: u32, total: u64) {
        self.done.store(0, Relaxed);
        self.total.store(total, Relaxed);
        self.phase.store(phase, Relaxed);
    }

    /// So many are done.
    fn advance(&self, by: u64) {
        self.done.fetch_add(by, Relaxed);
    }
}

/// What looks after the trees of a volume.
pub(crate) struct Scrubber {
    /// Held by the check or repair that runs.
    busy: Pin<KBox<Mutex<()>>>,
    progress: Progress,
    /// The errno with which the one that runs is to end; 0 while it may go on.
    end: Atomic<i32>,
    /// The one that runs, or is about to, was asked for by nobody.
    upkeep: Atomic<bool>,
    /// The volume is being closed: nothing may begin.
    closing: Atomic<bool>,
    background: Pin<KBox<SpinLock<Option<Background<Upkeep>>>>>,
}

impl Scrubber {
    fn new() -> Result<Scrubber> {
        Ok(Scrubber {
            busy: KBox::pin_init(new_mutex!((), "Scrubber::busy"), GFP_KERNEL)?,
            progress: Progress {
                kind: Atomic::new(value::REXT4_SCRUB_TYPE_RMAP),
                phase: Atomic::new(value::REXT4_SCRUB_PHASE_IDLE),
                flags: Atomic::new(0),
                done: Atomic::new(0),
                total: Atomic::new(0),
                records: Atomic::new(0),
            },
            end: Atomic::new(0),
            upkeep: Atomic::new(false),
            closing: Atomic::new(false),
            background: KBox::pin_init(new_spinlock!(None, "Scrubber::background"), GFP_KERNEL)?,
        })
    }

    /// Ends what runs with `error`, as soon as it looks.
    fn cancel(&self, error: Error) {
        self.end.store(error.to_errno(), Relaxed);
    }

    /// Whether what runs may go on. `asked` says that the current task is the one that asked for it, and may have a signal.
    ///
    /// Fails with `ECANCELED` or `EINTR`.
    fn may_go_on(&self, asked: bool) -> Result {
        if asked && is_interrupted() {
            self.cancel(EINTR);
        }
        if self.closing.load(Relaxed) {
            return Err(canceled());
        }
        match self.end.load(Relaxed) {
            0 => Ok(()),
            errno => Err(Error::from_errno(errno)),
        }
    }
}

impl Keeper for Scrubber {
    fn kick(&self) {
        if let Some(background) = &*self.background.lock() {
            background.start();
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// What is done in the background.
struct Upkeep {
    index: Arc<RmapIndex>,
    scrubber: Arc<Scrubber>,
    /// When it last failed, in seconds; what makes it fail may ask for it again at once.
    failed: Atomic<i64>,
}

/// Seconds for which nothing is tried again that failed.
const PATIENCE: i64 = 10;

/// How often the trees are looked at once more, when one went stale while another was made of it.
const TRIES: u32 = 3;

/// Does what is to be done about the trees without being asked for.
fn refresh(index: &RmapIndex, scrubber: &Scrubber) -> Result {
    for _ in 0..TRIES {
        match refresh_once(index, scrubber) {
            Err(EAGAIN) => (),
            done => return done,
        }
    }
    Err(EAGAIN)
}

fn refresh_once(index: &RmapIndex, scrubber: &Scrubber) -> Result {
    for file in [Some(&index.rmap.file), index.counts().map(|counts| &counts.file)]
        .into_iter()
        .flatten()
    {
        let (blocks, free) = file.blocks();
        if free < reserve(blocks) {
            file.grow(reserve(blocks))?;
        }
    }
    let request = run::Request {
        region: None,
        repair: true,
        force: false,
        memory: None,
        background: true,
    };
    let name = index.super_block().name();
    let mut stale = 0u32;
    let mut reap = false;
    for region in 0..index.regions() {
        let state = index.lock(region)?;
        stale += u32::from(!state.rmap.good);
        reap |= state.rmap.good && state.rmap.reap;
    }
    if stale > 0 {
        let report = run::run(index, scrubber, &request)?;
        pr_info!(
            "{name}: rmap: {} of {} regions rebuilt, {} records\n",
            report.rebuilt,
            index.regions(),
            report.records
        );
    } else if reap {
        let _busy = scrubber.busy.lock();
        run::reap(index, &|_| true)?;
    }
    if index.counts().is_some() {
        let report = refcount::run(index, scrubber, &request)?;
        if report.rebuilt > 0 {
            pr_info!(
                "{name}: refcount: {} of {} regions rebuilt, {} records\n",
                report.rebuilt,
                index.regions(),
                report.records
            );
        }
    }
    refcount::settle(index)
}

/// Frees blocks without an owner in regions that an earlier mount left stale or unsettled, and returns how many there
/// were. Blocks that were staged there at a crash, or had lost their last owner, are known from nothing else. Nobody may be
/// changing owners meanwhile.
///
/// On a volume that has errors nothing is freed: blocks may have lost an owner that e2fsck finds again.
fn free_unowned(index: &RmapIndex) -> u64 {
    let sb = index.super_block();
    let mut freed = 0;
    for region in (0..index.regions()).filter(|&region| index.owes(region).unwrap_or(false)) {
        if sb.volume().map_or(true, |volume| volume.is_damaged()) {
            break;
        }
        match index.free_unowned(region) {
            Ok(blocks) => freed += blocks,
            Err(error) => pr_warn!(
                "{}: region {region}: what nobody owns was not freed: error {}\n",
                sb.name(),
                error.to_errno()
            ),
        }
    }
    freed
}

/// Whether both trees of each region are good.
fn is_known(index: &RmapIndex) -> Result<bool> {
    for region in 0..index.regions() {
        let state = index.lock(region)?;
        if !state.rmap.good || !state.refcount.good {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Task for Upkeep {
    fn run(&self) {
        if now() < self.failed.load(Relaxed).saturating_add(PATIENCE) {
            return;
        }
        self.scrubber.upkeep.store(true, Relaxed);
        let done = refresh(&self.index, &self.scrubber);
        self.scrubber.upkeep.store(false, Relaxed);
        match done {
            Ok(()) => (),
            Err(error) if error == canceled() => (),
            Err(error) => {
                self.failed.store(now(), Relaxed);
                pr_err!(
                    "{}: rmap: could not be brought up to date: error {}\n",
                    self.index.super_block().name(),
                    error.to_errno()
                );
            }
        }
    }
}

/// Ties the trees to the volumes that come and go.
pub(crate) struct Beside;

impl Beside {
    fn open(sb: &SuperBlock<Volume>, before: &Left, now: &Stamp) -> Result {
        let scrubber = Arc::new(Scrubber::new()?, GFP_KERNEL)?;
        let index = RmapIndex::open(sb, before, now, scrubber.clone())?;
        let index = Arc::new(index, GFP_KERNEL)?;
        let task = Arc::new(
            Upkeep {
                index: index.clone(),
                scrubber: scrubber.clone(),
                failed: Atomic::new(i64::MIN),
            },
            GFP_KERNEL,
        )?;
        let background = Background::new(task)?;
        let volume = sb.volume()?;
        volume.attach_index(Some(index.clone()));
        if let Err(error) = index.start(before) {
            volume.attach_index(None);
            return Err(error);
        }
        *scrubber.background.lock() = Some(background);
        Ok(())
    }

    /// Has the trees of a volume that nobody writes answer who owns what.
    fn open_read_only(sb: &SuperBlock<Volume>, left: &Left) -> Result {
        let scrubber = Arc::new(Scrubber::new()?, GFP_KERNEL)?;
        if let Some(index) = RmapIndex::open_read_only(sb, left, scrubber)? {
            sb.volume()?.attach_index(Some(Arc::new(index, GFP_KERNEL)?));
        }
        Ok(())
    }

    /// Has `then` run with the volume's reverse map and its scrubber, if there is one.
    fn with<T>(sb: &SuperBlock<Volume>, then: impl FnOnce(&RmapIndex, &Scrubber) -> T) -> Option<T> {
        let index = sb.volume().ok()?.index()?;
        let index = index.as_any().downcast_ref::<RmapIndex>()?;
        let scrubber = index.keeper.as_any().downcast_ref::<Scrubber>()?;
        Some(then(index, scrubber))
    }
}

/// Says so when the reverse map could not be opened: the volume is mounted all the same.
fn warn_without_map(sb: &SuperBlock<Volume>, opened: Result) {
    if let Err(error) = opened {
        pr_warn!(
            "{}: rmap: mounted without a reverse map: error {}\n",
            sb.name(),
            error.to_errno()
        );
    }
}

impl Companion for Beside {
    fn opened(&self, sb: &SuperBlock<Volume>, before: &Left, now: &Stamp) {
        // Without the stamp of this mount what is there is stale for the next one.
        warn_without_map(sb, Self::open(sb, before, now));
    }

    fn opened_read_only(&self, sb: &SuperBlock<Volume>, left: &Left) {
        warn_without_map(sb, Self::open_read_only(sb, left));
    }

    fn ready(&self, sb: &SuperBlock<Volume>) -> Result {
        let made_ready = Self::with(sb, |index, scrubber| {
            if sb.volume()?.shares() {
                // Who owns what must be known before anything can be given back.
                let refreshed = refresh(index, scrubber);
                if !is_known(index)? {
                    pr_err!(
                        "{}: owners are not known of all blocks; a read-only mount works\n",
                        sb.name()
                    );
                    return Err(refreshed.err().unwrap_or(EROFS));
                }
            }
            let mut freed = 0u64;
            for region in 0..index.regions() {
                let mut staged = index.free_staged(region)?;
                if staged.is_none() {
                    // Made anew, the tree tells.
                    refresh(index, scrubber)?;
                    staged = index.free_staged(region)?;
                }
                freed += u64::from(staged.unwrap_or(0));
            }
            freed += free_unowned(index);
            if freed > 0 {
                pr_info!("{}: {freed} blocks that a crash left were freed\n", sb.name());
            }
            scrubber.kick();
            Ok(())
        });
        made_ready.unwrap_or(Ok(()))
    }

    fn closing(&self, sb: &SuperBlock<Volume>) {
        Self::with(sb, |index, scrubber| {
            let mut done = Ok(());
            if index.has_parked().unwrap_or(false) {
                done = refresh(index, scrubber);
            }
            scrubber.closing.store(true, Relaxed);
            // Out of the lock: this waits for the end of what runs.
            let background = scrubber.background.lock().take();
            drop(background);
            drop(scrubber.busy.lock());
            if let Err(error) = done.and_then(|()| refcount::settle(index)) {
                pr_err!(
                    "{}: refcount: not all could be given back: error {}\n",
                    sb.name(),
                    error.to_errno()
                );
            }
        });
    }

    fn closed(&self, sb: &SuperBlock<Volume>, stamp: &Stamp, clean: bool) {
        if clean {
            let stamped = Self::with(sb, |index, _| index.close(stamp));
            if let Some(Err(error)) = stamped {
                pr_warn!(
                    "{}: rmap: not closed, it will be rebuilt: error {}\n",
                    sb.name(),
                    error.to_errno()
                );
            }
        }
        if let Ok(volume) = sb.volume() {
            volume.attach_index(None);
        }
    }

    fn ioctl(&self, inode: &Inode<Volume>, call: Ioctl<'_>) -> Result {
        ioctl::call(inode, call)
    }
}
