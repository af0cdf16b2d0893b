// SPDX-License-Identifier: GPL-2.0

//! A forest: the trees of one kind of record, one for each region, in one tree file.
//!
//! [`Forest`] serves the reverse map and the reference counts alike. It opens the file, decides whether its trees can be
//! trusted, lets callers look into a region's tree and change it, and marks a tree stale that cannot be kept up.

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

/// A record of which each region has a tree.
pub(crate) trait Indexed: Record {
    /// The file that holds the trees.
    const KIND: Kind;
    /// The region's entry of that file's region table.
    fn entry(state: &RegionState) -> &Region;
    /// The same entry, to be changed.
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

/// The root that an entry of a region table leads to.
pub(super) fn root_of(entry: &Region) -> Root {
    Root {
        block: entry.root,
        level: entry.level,
    }
}

/// Turns an error of the engine about a region's tree into an errno, and logs what is wrong.
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

/// The trees of one kind of record.
pub(crate) struct Forest<R> {
    /// The file that holds them.
    pub(crate) file: TreeFile,
    /// The highest level that any root has had: credits must suffice for it.
    level: Atomic<u32>,
    /// Whether the file is as the superblock was left, so that its entries can be believed.
    trusted: bool,
    records: PhantomData<R>,
}

impl<R: Indexed> Forest<R> {
    fn of(file: TreeFile, trusted: bool) -> Self {
        Forest {
            file,
            level: Atomic::new(0),
            trusted,
            records: PhantomData,
        }
    }

    /// Opens the file of the trees, or creates it. `volume` is the frame of the volume's reverse map, `before` is how the
    /// superblock was left before it was mounted, or `None` when the volume is in use already. If that does not match the
    /// stamp in the file, somebody else wrote to the volume, and no tree in the file is trusted.
    ///
    /// # Errors
    ///
    /// `ENOSPC`, `ENOMEM`, `EIO`; `EFSCORRUPTED` when a file of that name is not ours. Must not be called with a handle open.
    pub(super) fn open(sb: &SuperBlock<Volume>, volume: &Frame, before: Option<&Left>) -> Result<Self> {
        let opened = TreeFile::open(sb, volume.of_kind(R::KIND))?;
        let trusted = match (&opened.found, before) {
            (Some(header), Some(before)) => header.stamp.holds(before, header.in_use),
            _ => false,
        };
        if opened.found.is_some() && before.is_some() && !trusted {
            pr_info!(
                "{}: {}: the volume was written by others, the trees are rebuilt\n",
                sb.name(),
                R::KIND.name()
            );
        }
        Ok(Self::of(opened.file, trusted))
    }

    /// Opens the file of the trees for reading; `None` when there is none, or none that can be trusted. `left` is how the
    /// superblock was left.
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

    /// Whether the tree of an entry that was read can be believed.
    fn is_sound(&self, entry: &Region) -> bool {
        self.trusted && usize::from(entry.level) < MAX_LEVELS
    }

    /// Reads a region's entry without changing anything; an entry that cannot be read is stale.
    pub(super) fn peek(&self, region: u32) -> Region {
        let entry = self.file.region(region).unwrap_or_default();
        Region {
            good: entry.good && self.is_sound(&entry),
            ..entry
        }
    }

    /// Reads a region's entry; if its tree cannot be believed, or not by `believe`, it is stale from now on, on disk as well.
    ///
    /// # Errors
    ///
    /// `EIO`, `EROFS`. Must not be called with a handle or a region's lock held.
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
            // Of a file that is not trusted it was said of all regions at once.
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

    /// The volume.
    pub(crate) fn super_block(&self) -> &SuperBlock<Volume> {
        self.file.super_block()
    }

    /// The highest level that any root has had.
    pub(super) fn level(&self) -> u16 {
        self.level.load(Relaxed) as u16
    }

    pub(super) fn note_level(&self, level: u16) {
        if u32::from(level) > self.level.load(Relaxed) {
            self.level.store(level.into(), Relaxed);
        }
    }

    /// Turns an error of the engine about a region's tree into an errno, and logs what is wrong.
    pub(crate) fn report(&self, region: u32, error: engine::Error) -> Error {
        log_error(self.super_block(), R::KIND, region, error)
    }

    /// Looks into a region's tree.
    pub(crate) fn look<T>(
        &self,
        region: &LockedRegion<'_>,
        look: impl FnOnce(&Tree<'_, '_, R>) -> engine::Result<T>,
    ) -> engine::Result<T> {
        let (id, root) = self.tree_of(region);
        look(&BTree::open(&mut Nodes::new(&self.file, None, id), id, root))
    }

    /// Looks into a region's tree to check it: a node that the space maps do not know is an error.
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

    /// Changes a tree, as part of the handle. Returns its root, the outcome, and whether blocks of the file were taken.
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

    /// Creates an empty tree of a new generation, which is not the region's yet. Costs [`cost::EMPTY_TREE`].
    pub(super) fn create_tree(&self, handle: &Handle, region: u32) -> Result<(u32, Root)> {
        let generation = self.file.next_generation(handle)?;
        let id = self.file.tree(region, generation);
        let mut nodes = Nodes::new(&self.file, Some(handle), id);
        let tree: engine::Result<Tree<'_, '_, R>> = BTree::create(&mut nodes, id);
        let root = tree.map_err(|error| self.report(region, error))?.root;
        Ok((generation, root))
    }

    /// Stores a region's entry and, once that is done, makes it the region's. Costs [`cost::ENTRY`].
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

    /// Makes a tree the region's. Costs [`cost::ENTRY`].
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

    /// Marks a region's tree stale: it is not kept up any more. If its entry cannot be stored, no entry of the file is
    /// believed after this mount. Costs [`cost::MARK_STALE`].
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
