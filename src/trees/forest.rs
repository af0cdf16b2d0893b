// SPDX-License-Identifier: GPL-2.0

//! A forest: all trees of one kind of record, one per region, in one tree file.
//!
//! [`Forest`] serves both the reverse map and the reference counts. It opens the file, decides
//! whether its trees can be trusted, gives access to a region's tree, and marks a tree stale that
//! cannot be kept up to date.

use super::{
    cost,
    file::TreeFile,
    region::{LockedRegion, RegionState},
    store::Nodes,
};
use crate::{
    engine::{
        self,
        btree::{BTree, Root},
        node::{Tree as TreeId, MAX_LEVELS},
        record::{Record, Rmap},
        refcount::Count,
    },
    format::tree_file::{Frame, Kind, Left, Region},
    fs::Volume,
    kernel_glue::{corrupted, Handle, SuperBlock},
};
use core::marker::PhantomData;
use kernel::{
    prelude::*,
    sync::atomic::{Atomic, Relaxed},
};

/// A kind of record of which each region has a tree.
pub(crate) trait Indexed: Record {
    /// The kind of file that holds the trees.
    const KIND: Kind;
    /// Returns the region's entry in the region table of that file.
    fn entry(state: &RegionState) -> &Region;
    /// Returns the same entry for modification.
    fn entry_mut(state: &mut RegionState) -> &mut Region;
}

impl Indexed for Rmap {
    const KIND: Kind = Kind::Rmap;

    fn entry(state: &RegionState) -> &Region {
        &state.rmap
    }

    fn entry_mut(state: &mut RegionState) -> &mut Region {
        &mut state.rmap
    }
}

impl Indexed for Count {
    const KIND: Kind = Kind::Refcount;

    fn entry(state: &RegionState) -> &Region {
        &state.refcount
    }

    fn entry_mut(state: &mut RegionState) -> &mut Region {
        &mut state.refcount
    }
}

/// The tree of a region.
pub(crate) type Tree<'s, 'a, R> = BTree<'s, Nodes<'a>, R>;

/// Returns the root in an entry of the region table.
pub(super) fn root_of(entry: &Region) -> Root {
    Root {
        block: entry.root,
        level: entry.level,
    }
}

/// Converts an error of the engine about a region's tree to an errno, and logs it.
fn log_error(sb: &SuperBlock<Volume>, kind: Kind, region: u32, error: engine::Error) -> Error {
    let (name, tree) = (sb.name(), kind.name());
    match error {
        engine::Error::Corrupt { block, what } => {
            pr_err!("{name}: {tree}: region {region}: block {block} of the file: {what}\n");
            corrupted()
        }
        engine::Error::Mismatch(what) => {
            pr_err!("{name}: {tree}: region {region}: {what}\n");
            corrupted()
        }
        engine::Error::NoMemory => ENOMEM,
        engine::Error::NoSpace => ENOSPC,
        engine::Error::Io => {
            pr_err!("{name}: {tree}: region {region}: a block cannot be read or written\n");
            EIO
        }
    }
}

/// All trees of one kind of record.
pub(crate) struct Forest<R> {
    /// The file that holds them.
    pub(crate) file: Pin<KBox<TreeFile>>,
    /// The highest level that any root has had; credits must suffice for it.
    level: Atomic<u32>,
    /// True if the file matches the state of the superblock, so that its entries can be trusted.
    trusted: bool,
    /// The file lost blocks when it was opened, of which the reverse map was not told.
    pub(super) emptied: bool,
    records: PhantomData<R>,
}

impl<R: Indexed> Forest<R> {
    fn of(file: Pin<KBox<TreeFile>>, trusted: bool) -> Self {
        Forest {
            file,
            level: Atomic::new(0),
            trusted,
            emptied: false,
            records: PhantomData,
        }
    }

    /// Opens the file of the trees, or creates it. `volume` is the frame of the volume's reverse
    /// map. `before` is the state of the superblock before the mount, or `None` if the volume is in
    /// use already. If it does not match the stamp in the file, another driver has written to the
    /// volume, and no tree in the file is trusted.
    ///
    /// # Errors
    ///
    /// `ENOSPC`, `ENOMEM`, `EIO`; `EFSCORRUPTED` when a file of that name was not created by this
    /// module. Must not be called with a handle open.
    pub(super) fn open(sb: &SuperBlock<Volume>, volume: &Frame, before: Option<&Left>) -> Result<Self> {
        let opened = TreeFile::open(sb, volume.of_kind(R::KIND))?;
        let trusted = match (&opened.found, before) {
            (Some(header), Some(before)) => header.stamp.holds(before, header.in_use),
            _ => false,
        };
        if opened.found.is_some() && before.is_some() && !trusted {
            pr_info!(
                "{}: {}: the volume was written by others; the trees will be rebuilt\n",
                sb.name(),
                R::KIND.name()
            );
        }
        Ok(Forest {
            emptied: opened.emptied,
            ..Self::of(opened.file, trusted)
        })
    }

    /// Opens the file of the trees for reading; returns `None` if there is none that can be
    /// trusted. `left` is the state of the superblock.
    ///
    /// # Errors
    ///
    /// `EFSCORRUPTED`, `ENOMEM`, `EIO`.
    pub(super) fn open_read_only(
        sb: &SuperBlock<Volume>,
        volume: &Frame,
        left: &Left,
    ) -> Result<Option<Self>> {
        let file = TreeFile::open_read_only(sb, volume.of_kind(R::KIND), left)?;
        Ok(file.map(|file| Self::of(file, true)))
    }

    /// Returns true if the tree of an entry can be trusted.
    fn is_sound(&self, entry: &Region) -> bool {
        self.trusted && usize::from(entry.level) < MAX_LEVELS
    }

    /// Reads a region's entry without modifying anything. An entry that cannot be read counts as
    /// stale.
    pub(super) fn peek(&self, region: u32) -> Region {
        let entry = self.file.region(region).unwrap_or_default();
        Region {
            good: entry.good && self.is_sound(&entry),
            ..entry
        }
    }

    /// Reads a region's entry. If its tree cannot be trusted, or is rejected by `believe`, the
    /// region becomes stale, also on disk.
    ///
    /// # Errors
    ///
    /// `EIO`, `EROFS`. Must not be called with a handle or a region lock held.
    pub(super) fn load(&self, region: u32, believe: impl FnOnce(&Region) -> bool) -> Result<Region> {
        let found = self.file.region(region);
        let mut is_news = found.is_err();
        let mut entry = found.unwrap_or(Region {
            reap: true,
            ..Region::default()
        });
        if entry.good && !(self.is_sound(&entry) && believe(&entry)) {
            entry.good = false;
            entry.reap = true;
            let handle = self.super_block().volume()?.begin_internal(cost::ENTRY, 0)?;
            self.file.store_region(&handle, region, &entry)?;
            handle.stop()?;
            // If the whole file is not trusted, this has been logged once for all regions.
            is_news |= self.trusted;
        }
        if is_news {
            self.log_stale(region);
        }
        if entry.good {
            self.note_level(entry.level);
        }
        Ok(entry)
    }

    /// Returns the volume.
    pub(crate) fn super_block(&self) -> &SuperBlock<Volume> {
        self.file.super_block()
    }

    /// Returns the highest level that any root has had.
    pub(super) fn level(&self) -> u16 {
        self.level.load(Relaxed) as u16
    }

    pub(super) fn note_level(&self, level: u16) {
        if u32::from(level) > self.level.load(Relaxed) {
            self.level.store(level.into(), Relaxed);
        }
    }

    /// Converts an error of the engine about a region's tree to an errno, and logs it.
    pub(crate) fn report(&self, region: u32, error: engine::Error) -> Error {
        log_error(self.super_block(), R::KIND, region, error)
    }

    /// Calls `look` with a region's tree.
    pub(crate) fn look<T>(
        &self,
        region: &LockedRegion<'_>,
        look: impl FnOnce(&Tree<'_, '_, R>) -> engine::Result<T>,
    ) -> engine::Result<T> {
        let (id, root) = self.tree_of(region);
        look(&BTree::open(&mut Nodes::new(&self.file, None, id), id, root))
    }

    /// Like [`Forest::look`], for checks: a node that is not allocated to the tree in the space
    /// maps is an error.
    pub(crate) fn look_strictly<T>(
        &self,
        region: &LockedRegion<'_>,
        look: impl FnOnce(&Tree<'_, '_, R>) -> T,
    ) -> T {
        let (id, root) = self.tree_of(region);
        look(&BTree::open(
            &mut Nodes::new(&self.file, None, id).strict(),
            id,
            root,
        ))
    }

    fn tree_of(&self, region: &LockedRegion<'_>) -> (TreeId, Root) {
        let entry = R::entry(region);
        let id = self.file.tree(region.number(), entry.generation);
        (id, root_of(entry))
    }

    /// Modifies a tree as part of the handle. Returns its root, the result, and whether blocks of
    /// the file were allocated.
    pub(super) fn change_tree(
        &self,
        handle: &Handle,
        id: TreeId,
        root: Root,
        change: impl FnOnce(&mut Tree<'_, '_, R>) -> engine::Result,
    ) -> (Root, engine::Result, bool) {
        let mut nodes = Nodes::new(&self.file, Some(handle), id);
        let mut tree = BTree::open(&mut nodes, id, root);
        let outcome = change(&mut tree);
        let root = tree.root;
        self.note_level(root.level);
        (root, outcome, nodes.has_taken())
    }

    /// Creates an empty tree of a new generation, without installing it. Costs
    /// [`cost::EMPTY_TREE`].
    pub(super) fn create_tree(&self, handle: &Handle, region: u32) -> Result<(u32, Root)> {
        let generation = self.file.next_generation(handle)?;
        let id = self.file.tree(region, generation);
        let mut nodes = Nodes::new(&self.file, Some(handle), id);
        let tree: engine::Result<Tree<'_, '_, R>> = BTree::create(&mut nodes, id);
        let root = tree.map_err(|error| self.report(region, error))?.root;
        Ok((generation, root))
    }

    /// Stores a region's entry and, if this succeeds, updates it in memory. Costs [`cost::ENTRY`].
    pub(super) fn store_entry(
        &self,
        handle: &Handle,
        region: &mut LockedRegion<'_>,
        entry: Region,
    ) -> Result {
        self.file.store_region(handle, region.number(), &entry)?;
        *R::entry_mut(region) = entry;
        Ok(())
    }

    /// Makes a tree the region's current tree. Costs [`cost::ENTRY`].
    pub(super) fn install(
        &self,
        handle: &Handle,
        region: &mut LockedRegion<'_>,
        generation: u32,
        root: Root,
        unsettled: bool,
    ) -> Result {
        let entry = Region {
            good: true,
            unsettled,
            generation,
            root: root.block,
            level: root.level,
            reap: true,
        };
        self.note_level(root.level);
        self.store_entry(handle, region, entry)
    }

    /// Marks a region's tree stale: it is no longer updated. If its entry cannot be stored, the
    /// next mount trusts no entry of the file. Costs [`cost::MARK_STALE`].
    ///
    /// # Errors
    ///
    /// `EIO` or `EROFS` when neither can be stored.
    pub(super) fn mark_stale(&self, handle: &Handle, region: &mut LockedRegion<'_>) -> Result {
        let number = region.number();
        let entry = R::entry_mut(region);
        entry.good = false;
        entry.reap = true;
        let entry = *entry;
        if self.file.store_region(handle, number, &entry).is_err() {
            self.file.spoil(handle)?;
        }
        self.log_stale(number);
        Ok(())
    }

    fn log_stale(&self, region: u32) {
        pr_warn!(
            "{}: {}: region {region} is stale and will be rebuilt\n",
            self.super_block().name(),
            R::KIND.name()
        );
    }
}
