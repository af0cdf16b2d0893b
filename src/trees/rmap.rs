// SPDX-License-Identifier: GPL-2.0

//! The reverse map: a tree a region, kept in the same transactions as the block bitmaps.
//!
//! Every change of an owner comes in through [`OwnerIndex`], is cut at the borders of regions, and changes the tree of
//! each under that region's lock. A tree that cannot be kept up (a bad node, no block left for a new one) is marked
//! stale in the same transaction; the user's own operation goes on as if nothing were, and who rebuilds is told. What has
//! to be counted of owners is counted under the same lock ([`super::counts`]).
//!
//! Who wants to know of every change of a region hangs a [`Watcher`] there, under the same lock: so a change falls wholly
//! before it or wholly after it. As long as nobody watches anything, a static key keeps even the look for one out of the
//! way.

use super::{
    counts::{CountState, Counts},
    file::TreeFile,
    report,
    store::{change_credits, Nodes, RmapTree},
};
use crate::{
    engine::{
        self,
        btree::{BTree, Root},
        node::MAX_LEVELS,
        rebuild::Update,
        record::{Kind, Record, Rmap},
        refcount::{Turn, STAGED},
    },
    format::{
        superblock::Layout,
        tree_file::{Frame, Kind as FileKind, Region, Stamp},
    },
    fs::{
        space::{Owner, OwnerIndex, OwnerKind},
        Volume,
    },
    kernel_glue::{is_interrupted, pause, pause_briefly, Handle, Hooks, SuperBlock},
};
use core::any::Any;
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, Mutex, MutexGuard, SetOnce,
    },
};

/// Microseconds for which who has changed owners waits, times what a rebuild lags.
const THROTTLE: u32 = 1000;
/// How often, 10 ms apart, whoever is about to share blocks looks whether the reverse map is complete.
const PATIENCE: u32 = 3000;
/// Groups of a region on a volume without flex groups.
const GROUPS: u32 = 16;

/// Who is told of every change of a region.
pub(crate) trait Watcher: Send + Sync {
    /// A change of a region, whose lock is held, inside a handle. Answers how long whoever makes it had better wait
    /// afterwards ([`Rebuild::lag`](crate::engine::rebuild::Rebuild::lag)).
    fn changed(&self, region: u32, update: Update) -> u32;
}

/// What is done about a reverse map from above, when it asks for it. Called with locks held: it must not wait.
pub(crate) trait Keeper: Send + Sync {
    /// A region went stale, or the file is running out of free blocks.
    fn kick(&self);
    /// Itself, for who put it there.
    fn as_any(&self) -> &dyn Any;
}

/// A region, under its lock.
pub(crate) struct RegionState {
    /// Its entry of the region table.
    pub(crate) entry: Region,
    watcher: Option<Arc<dyn Watcher>>,
    /// What is known of how many owners its blocks have.
    pub(crate) counts: CountState,
}

impl RegionState {
    /// Its entry of the region table in the file of this kind.
    pub(crate) fn entry_of(&mut self, kind: FileKind) -> &mut Region {
        match kind {
            FileKind::Rmap => &mut self.entry,
            FileKind::Refcount => &mut self.counts.entry,
        }
    }
}

/// The reverse map of a volume that is mounted writable, and the reference counts.
pub(crate) struct RmapIndex {
    /// The file that holds the trees.
    pub(crate) file: TreeFile,
    regions: KVVec<Pin<KBox<Mutex<RegionState>>>>,
    /// Who is told when something is to be done about it.
    pub(crate) keeper: Arc<dyn Keeper>,
    /// The highest level that any root has had: what credits must do for.
    level: Atomic<u32>,
    /// How much a watcher lags behind the changes, until somebody has waited for it.
    lag: Atomic<u32>,
    /// The reference counts, once there is a file for them.
    pub(super) counts: SetOnce<Counts>,
    /// Regions that may have blocks with several owners.
    pub(super) sharing_regions: Atomic<i32>,
    /// The stamp that the superblock has while the volume is in use.
    pub(super) in_use: Stamp,
}

/// What must be true of the tree file of a volume.
pub(crate) fn frame(layout: &Layout) -> Frame {
    let groups = match layout.flex_bits {
        0 => GROUPS,
        bits => 1u32.checked_shl(bits.into()).unwrap_or(u32::MAX),
    };
    let region_blocks = layout.blocks_per_group.saturating_mul(groups).min(1 << 28);
    let blocks = layout.blocks.saturating_sub(u64::from(layout.first_data_block));
    Frame {
        kind: FileKind::Rmap,
        seed: layout.seed,
        uuid: layout.uuid,
        block_size: layout.block_size,
        first_block: layout.first_data_block,
        region_blocks,
        regions: u32::try_from(blocks.div_ceil(u64::from(region_blocks.max(1)))).unwrap_or(u32::MAX),
    }
}

/// What must be true of the file of the counts, beside that of the reverse map.
pub(super) fn counts_frame(frame: &Frame) -> Frame {
    Frame {
        kind: FileKind::Refcount,
        seed: FileKind::Refcount.seed(frame.seed),
        ..*frame
    }
}

/// Whether a tree that an entry of a region table leads to can be one.
pub(super) fn is_sound(entry: &Region) -> bool {
    usize::from(entry.level) < MAX_LEVELS
}

/// A region of which its entry of the region table is known.
fn region_state(entry: Region) -> Result<Pin<KBox<Mutex<RegionState>>>> {
    let state = RegionState {
        entry,
        watcher: None,
        counts: CountState::default(),
    };
    KBox::pin_init(new_mutex!(state, "RmapIndex::regions"), GFP_KERNEL)
}

/// The region that a block of the volume lies in, and where in it.
pub(crate) fn locate(frame: &Frame, block: u64) -> Option<(u32, u32)> {
    let block = block.checked_sub(u64::from(frame.first_block))?;
    let each = u64::from(frame.region_blocks.max(1));
    let region = u32::try_from(block / each).ok()?;
    (region < frame.regions).then_some((region, (block % each) as u32))
}

/// Cuts blocks of an owner at the borders of regions, and hands out each piece with its region.
pub(crate) fn cut(
    frame: &Frame,
    start: u64,
    len: u32,
    owner: Owner,
    out: &mut impl FnMut(u32, Rmap) -> Result,
) -> Result {
    let (kind, mut offset, unwritten) = match owner.kind {
        OwnerKind::Data { offset, unwritten } => (Kind::Data, offset, unwritten),
        OwnerKind::Mapping => (Kind::Mapping, 0, false),
        OwnerKind::Attributes => (Kind::Xattr, 0, false),
        OwnerKind::Staged => (Kind::Cow, 0, false),
    };
    let (mut start, mut left) = (start, len);
    while left > 0 {
        let (region, within) = locate(frame, start).ok_or(EINVAL)?;
        let part = left.min(frame.region_blocks - within);
        let record = Rmap {
            start: within,
            len: part,
            owner: owner.ino,
            offset,
            kind,
            unwritten,
        };
        out(region, record)?;
        start += u64::from(part);
        left -= part;
        if kind == Kind::Data {
            offset = offset.checked_add(part).ok_or(EFBIG)?;
        }
    }
    Ok(())
}

impl RmapIndex {
    /// Opens the volume's reverse map. `before` is the stamp that the superblock had when it was mounted: if it is not the
    /// one that was left, somebody else wrote to the volume, and every region is stale. `now` is what it has in use.
    ///
    /// Must not be called with a handle open.
    pub(crate) fn open(
        sb: &SuperBlock<Volume>,
        before: &Stamp,
        now: &Stamp,
        keeper: Arc<dyn Keeper>,
    ) -> Result<Self> {
        let frame = frame(sb.volume()?.layout());
        let opened = TreeFile::open(sb, frame)?;
        let trusted = match &opened.found {
            Some(header) => header.stamp.holds(before, header.in_use),
            None => false,
        };
        if opened.found.is_some() && !trusted {
            pr_info!(
                "{}: rmap: the volume was written by others, the map is rebuilt\n",
                sb.name()
            );
        }
        let file = opened.file;
        let mut regions = KVVec::with_capacity(frame.regions as usize, GFP_KERNEL)?;
        let mut highest = 0;
        for number in 0..frame.regions {
            let mut entry = file.region(number).unwrap_or(Region {
                reap: true,
                ..Region::default()
            });
            if entry.good && !(trusted && is_sound(&entry)) {
                entry.good = false;
                entry.reap = true;
                let handle = sb.volume()?.begin_internal(1, 0)?;
                file.store_region(&handle, number, &entry)?;
                handle.stop()?;
            }
            if entry.good {
                highest = highest.max(u32::from(entry.level));
            }
            regions.push(region_state(entry)?, GFP_KERNEL)?;
        }
        Ok(Self::of(file, regions, keeper, highest, *now))
    }

    /// An index of these regions, without counts. `level` is the highest level of their roots.
    fn of(
        file: TreeFile,
        regions: KVVec<Pin<KBox<Mutex<RegionState>>>>,
        keeper: Arc<dyn Keeper>,
        level: u32,
        in_use: Stamp,
    ) -> Self {
        RmapIndex {
            file,
            regions,
            keeper,
            level: Atomic::new(level),
            lag: Atomic::new(0),
            counts: SetOnce::new(),
            sharing_regions: Atomic::new(0),
            in_use,
        }
    }

    /// Opens the trees of a volume that is mounted read-only, to be asked and nothing else; `None` when there are none to
    /// believe. `stamp` is the superblock's.
    ///
    /// Fails with `EFSCORRUPTED`, `ENOMEM`, `EIO`.
    pub(crate) fn open_read_only(
        sb: &SuperBlock<Volume>,
        stamp: &Stamp,
        keeper: Arc<dyn Keeper>,
    ) -> Result<Option<Self>> {
        let frame = frame(sb.volume()?.layout());
        let Some(file) = TreeFile::open_read_only(sb, frame, stamp)? else {
            return Ok(None);
        };
        // What cannot be read is as if it were stale.
        let entry = |file: &TreeFile, region| {
            let entry = file.region(region).unwrap_or_default();
            Region {
                good: entry.good && is_sound(&entry),
                ..entry
            }
        };
        let counts = TreeFile::open_read_only(sb, counts_frame(&frame), stamp)?;
        let mut regions = KVVec::with_capacity(frame.regions as usize, GFP_KERNEL)?;
        for number in 0..frame.regions {
            let state = region_state(entry(&file, number))?;
            if let Some(counts) = &counts {
                state.lock().counts.entry = entry(counts, number);
            }
            regions.push(state, GFP_KERNEL)?;
        }
        let index = Self::of(file, regions, keeper, 0, *stamp);
        if let Some(file) = counts {
            index.counts.populate(Counts::of(file));
        }
        Ok(Some(index))
    }

    /// Opens the counts, if the volume has any, and notes that the trees are in use. `before` is as for [`RmapIndex::open`].
    ///
    /// The map must be attached to the volume: the file of the counts may take blocks, which have an owner then as any.
    pub(crate) fn start(&self, before: &Stamp) -> Result {
        let sb = self.file.super_block();
        let shares = sb.volume()?.shares();
        if shares || TreeFile::is_there(sb, FileKind::Refcount).unwrap_or(true) {
            match self.open_counts(Some(before), shares) {
                Err(error) if shares => return Err(error),
                Err(error) => pr_warn!(
                    "{}: refcount: not opened: error {}\n",
                    sb.name(),
                    error.to_errno()
                ),
                Ok(()) => (),
            }
        }
        self.file.stamp(true, self.in_use)
    }

    /// Writes down, with the superblock's stamp, that the trees are as the volume is left.
    pub(crate) fn close(&self, stamp: &Stamp) -> Result {
        if let Some(counts) = self.counts() {
            counts.file.stamp(false, *stamp)?;
        }
        self.file.stamp(false, *stamp)
    }

    /// Regions of the volume.
    pub(crate) fn regions(&self) -> u32 {
        self.regions.len() as u32
    }

    /// The first block of a region, on the volume.
    pub(crate) fn start_of(&self, region: u32) -> u64 {
        let frame = &self.file.frame;
        u64::from(frame.first_block) + u64::from(region) * u64::from(frame.region_blocks)
    }

    /// Locks a region. Inside a handle, or with no lock held under which one may be started.
    pub(crate) fn lock(&self, region: u32) -> Result<MutexGuard<'_, RegionState>> {
        Ok(self.regions.get(region as usize).ok_or(EINVAL)?.lock())
    }

    /// Has every change of a region told to `watcher` from now on, or to nobody. Whoever watches keeps [`Hooks`].
    pub(crate) fn watch(&self, region: u32, watcher: Option<Arc<dyn Watcher>>) -> Result {
        self.lock(region)?.watcher = watcher;
        Ok(())
    }

    /// Puts a tree in place of a region's old one, as part of the handle, and tells nobody of its changes any more.
    /// Takes one credit.
    pub(crate) fn put_in_place(
        &self,
        handle: &Handle,
        region: u32,
        state: &mut RegionState,
        generation: u32,
        root: Root,
    ) -> Result {
        let entry = Region {
            good: true,
            generation,
            root: root.block,
            level: root.level,
            reap: true,
        };
        self.file.store_region(handle, region, &entry)?;
        self.note_level(root.level);
        state.entry = entry;
        state.watcher = None;
        self.caught_up();
        Ok(())
    }

    /// The file of the trees of this kind, if there is one.
    pub(crate) fn file_of(&self, kind: FileKind) -> Option<&TreeFile> {
        match kind {
            FileKind::Rmap => Some(&self.file),
            FileKind::Refcount => self.counts().map(|counts| &counts.file),
        }
    }

    /// Notes that blocks of other generations of a region's tree of this kind are about to be there, or are gone. Takes one
    /// credit.
    pub(crate) fn set_reap(&self, handle: &Handle, region: u32, kind: FileKind, reap: bool) -> Result {
        let Some(file) = self.file_of(kind) else {
            return Ok(());
        };
        let mut state = self.lock(region)?;
        let entry = state.entry_of(kind);
        let new = Region { reap, ..*entry };
        file.store_region(handle, region, &new)?;
        *entry = new;
        Ok(())
    }

    /// A watcher has dealt with what came so far.
    pub(crate) fn caught_up(&self) {
        self.lag.store(0, Relaxed);
    }

    fn note_level(&self, level: u16) {
        if u32::from(level) > self.level.load(Relaxed) {
            self.level.store(level.into(), Relaxed);
        }
    }

    /// Marks a region's tree of this kind stale, as part of the handle: it is not kept up any more. Takes one credit, or two
    /// when its entry cannot be written, and no entry is to be believed after this mount.
    pub(crate) fn mark_stale(
        &self,
        handle: &Handle,
        region: u32,
        state: &mut RegionState,
        kind: FileKind,
    ) -> Result {
        let Some(file) = self.file_of(kind) else {
            return Ok(());
        };
        let entry = state.entry_of(kind);
        entry.good = false;
        entry.reap = true;
        if file.store_region(handle, region, entry).is_err() {
            file.spoil(handle)?;
        }
        if kind == FileKind::Refcount {
            self.note_sharing(state, true);
        }
        pr_warn!(
            "{}: {}: region {region} is stale and will be rebuilt\n",
            self.file.super_block().name(),
            kind.name()
        );
        self.keeper.kick();
        Ok(())
    }

    /// Has more blocks found for a file, of which some were just taken, if it has few left.
    pub(super) fn keep_reserve(&self, file: &TreeFile) {
        let (blocks, free) = file.blocks();
        if free < reserve(blocks) / 2 {
            self.keeper.kick();
        }
    }

    /// Looks into a region's tree, which is locked.
    pub(crate) fn with_tree<T>(
        &self,
        region: u32,
        state: &RegionState,
        look: impl FnOnce(&RmapTree<'_, '_>) -> engine::Result<T>,
    ) -> engine::Result<T> {
        look_into(&self.file, region, &state.entry, false, look)
    }

    /// Looks into a region's tree, which is locked, to check it: the space maps must know each node.
    pub(crate) fn with_strict_tree<T>(
        &self,
        region: u32,
        state: &RegionState,
        look: impl FnOnce(&RmapTree<'_, '_>) -> T,
    ) -> T {
        look_into(&self.file, region, &state.entry, true, look)
    }

    /// A change of owners within one region, and one of the counts that it comes with.
    pub(super) fn change(
        &self,
        handle: &Handle,
        region: u32,
        updates: &[Update],
        turn: Option<Turn>,
    ) -> Result {
        let mut state = self.lock(region)?;
        self.change_owners(handle, region, &mut state, updates)?;
        match turn {
            Some(turn) => self.turn(handle, region, &mut state, &turn),
            None => Ok(()),
        }
    }

    /// Changes the reverse map of a region, which is locked.
    fn change_owners(
        &self,
        handle: &Handle,
        region: u32,
        state: &mut RegionState,
        updates: &[Update],
    ) -> Result {
        if Hooks::are_on() {
            if let Some(watcher) = &state.watcher {
                for &update in updates {
                    let lag = watcher.changed(region, update);
                    if lag > 0 {
                        self.lag.store(lag, Relaxed);
                    }
                }
            }
        }
        if !state.entry.good {
            return Ok(());
        }
        let entry = state.entry;
        let wanted = (change_credits(entry.level) + 1) * updates.len() as u32 + 2;
        if !self.has_room(handle, wanted) {
            pr_warn!(
                "{}: rmap: no room in the transaction\n",
                self.file.super_block().name()
            );
            return self.mark_stale(handle, region, state, FileKind::Rmap);
        }
        let tree = self.file.tree(region, entry.generation);
        let mut nodes = Nodes::new(&self.file, Some(handle), tree);
        let mut btree: RmapTree<'_, '_> = BTree::open(&mut nodes, tree, root_of(&entry));
        let outcome = engine::rebuild::apply(&mut btree, updates);
        let root = btree.root;
        if let Err(error) = outcome {
            report(self.file.super_block(), region, error);
            return self.mark_stale(handle, region, state, FileKind::Rmap);
        }
        if root != root_of(&entry) {
            state.entry.root = root.block;
            state.entry.level = root.level;
            self.note_level(root.level);
            self.file.store_region(handle, region, &state.entry)?;
        }
        if nodes.has_taken() {
            self.keep_reserve(&self.file);
        }
        Ok(())
    }

    /// Cuts blocks of an owner at the borders of regions.
    pub(crate) fn cut(
        &self,
        start: u64,
        len: u32,
        owner: Owner,
        out: &mut impl FnMut(u32, Rmap) -> Result,
    ) -> Result {
        cut(&self.file.frame, start, len, owner, out)
    }
}

/// How the counts change when blocks come to be, or no longer are, set aside; not at all for any other record.
fn set_aside(record: &Rmap, up: bool) -> Option<Turn> {
    (record.kind == Kind::Cow).then_some(Turn {
        start: STAGED | record.start,
        len: record.len,
        up,
    })
}

/// Where the tree of a region starts.
pub(super) fn root_of(entry: &Region) -> Root {
    Root {
        block: entry.root,
        level: entry.level,
    }
}

/// Has `look` look into the tree that a region's entry of a file leads to; the region is locked. `strict`: the space maps
/// must know each node.
pub(super) fn look_into<R: Record, T>(
    file: &TreeFile,
    region: u32,
    entry: &Region,
    strict: bool,
    look: impl FnOnce(&BTree<'_, Nodes<'_>, R>) -> T,
) -> T {
    let tree = file.tree(region, entry.generation);
    let nodes = Nodes::new(file, None, tree);
    let mut nodes = if strict { nodes.strict() } else { nodes };
    look(&BTree::open(&mut nodes, tree, root_of(entry)))
}

/// Blocks of the file to be kept free, so that no change has to do without.
pub(crate) fn reserve(blocks: u32) -> u32 {
    (blocks / 16).clamp(32, 4096)
}

impl OwnerIndex for RmapIndex {
    fn credits(&self, changes: u32) -> u32 {
        let level = self.level.load(Relaxed) as u16;
        // A change may fall to two regions, and each may have to be marked as stale.
        let counts = self.counts().map_or(0, Counts::credits);
        changes
            .saturating_mul(change_credits(level) + 2 + counts)
            .saturating_add(4)
    }

    fn give_credits(&self, blocks: u32) -> u32 {
        self.counts().map_or(0, |counts| counts.give_credits(blocks))
    }

    fn add(&self, handle: &Handle, start: u64, len: u32, owner: Owner) -> Result {
        self.cut(start, len, owner, &mut |region, record| {
            self.change(handle, region, &[Update::Add(record)], set_aside(&record, true))
        })
    }

    fn remove(&self, handle: &Handle, start: u64, len: u32, owner: Owner) -> Result {
        self.cut(start, len, owner, &mut |region, record| {
            self.change(
                handle,
                region,
                &[Update::Remove(record)],
                set_aside(&record, false),
            )
        })
    }

    fn convert(&self, handle: &Handle, start: u64, len: u32, ino: u32, offset: u32) -> Result {
        let kind = OwnerKind::Data {
            offset,
            unwritten: true,
        };
        self.cut(start, len, Owner { ino, kind }, &mut |region, old| {
            let new = Rmap {
                unwritten: false,
                ..old
            };
            self.change(handle, region, &[Update::Remove(old), Update::Add(new)], None)
        })
    }

    fn adopt(&self, handle: &Handle, start: u64, len: u32, ino: u32, offset: u32) -> Result {
        let kind = OwnerKind::Data {
            offset,
            unwritten: false,
        };
        self.cut(start, len, Owner { ino, kind }, &mut |region, new| {
            let old = Rmap {
                offset: 0,
                kind: Kind::Cow,
                ..new
            };
            let updates = [Update::Remove(old), Update::Add(new)];
            self.change(handle, region, &updates, set_aside(&old, false))
        })
    }

    fn share(&self, handle: &Handle, start: u64, len: u32, owner: Owner) -> Result {
        self.cut(start, len, owner, &mut |region, record| {
            let turn = Turn {
                start: record.start,
                len: record.len,
                up: true,
            };
            self.change(handle, region, &[Update::Add(record)], Some(turn))
        })
    }

    fn leave(
        &self,
        handle: &Handle,
        start: u64,
        len: u32,
        owner: Owner,
        lost: &mut KVVec<(u64, u32)>,
    ) -> Result {
        self.cut(start, len, owner, &mut |region, record| {
            let mut state = self.lock(region)?;
            let before = lost.len();
            let mut known = self.lost_by_counts(handle, region, &mut state, &record, lost)?;
            self.change_owners(handle, region, &mut state, &[Update::Remove(record)])?;
            if known {
                let freed = lost.get(before..).unwrap_or_default();
                known = self.agrees(handle, region, &mut state, &record, freed)?;
            }
            if !known {
                lost.truncate(before);
                self.lost_by_owners(region, &mut state, &record, lost)?;
            }
            let turn = Turn {
                start: record.start,
                len: record.len,
                up: false,
            };
            self.turn(handle, region, &mut state, &turn)
        })
    }

    fn sharing(&self, start: u64, len: u32) -> Result<(u32, bool)> {
        self.look_up_sharing(start, len)
    }

    fn prepare_sharing(&self) -> Result {
        self.open_counts(None, false)?;
        // What cannot be done now is done later: until then more is taken for shared than is.
        for _ in 0..PATIENCE {
            let mut stale = false;
            for region in 0..self.regions() {
                stale |= !self.lock(region)?.entry.good;
            }
            if !stale {
                break;
            }
            if is_interrupted() {
                return Err(EINTR);
            }
            self.keeper.kick();
            pause(10);
        }
        Ok(())
    }

    fn shares(&self) -> bool {
        self.sharing_regions() > 0
    }

    fn throttle(&self) {
        // Once for each change: who makes none, or has waited, goes on.
        if self.lag.load(Relaxed) > 0 {
            pause_briefly(self.lag.xchg(0, Relaxed) * THROTTLE);
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
