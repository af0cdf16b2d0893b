// SPDX-License-Identifier: GPL-2.0

//! A tree file: its blocks, its header, and the space maps that say which tree each block belongs
//! to.
//!
//! Its blocks are metadata. They are read and written through the device's buffer cache, never
//! through the file's page cache, and change only inside transactions, except for the nodes of a
//! staged tree ([`super::store::Staged`]).
//!
//! A freed block can be reallocated immediately, since its new contents are journaled as well and
//! supersede older contents in the journal. Staged nodes are not journaled, so [`TreeFile::claim`]
//! revokes the blocks that it allocates and waits for the commit before it returns them.
//!
//! The file grows in advance, outside of transactions ([`TreeFile::grow`]); allocating a block
//! never extends it.

use super::cost;
use crate::{
    engine::{self, node::Tree},
    format::{
        tree_file::{self, Frame, Header, Kind, Left, Region, Stamp, Use, REGION_SIZE, TABLE},
        Corrupt,
    },
    fs::{scan, space::OwnerKind, system, Volume},
    kernel_glue::{
        bad_checksum, corrupted, is_dying, Buffer, FreshBuffer, Handle, InodeRef, NoReclaim, RwLock,
        SuperBlock,
    },
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{Mutex, MutexGuard},
};

/// Number of blocks claimed in one transaction.
const CLAIM_AT_ONCE: usize = 64;
/// Number of space maps changed in one transaction.
const SWEEP_AT_ONCE: u32 = 8;

/// A run of the file's blocks that are contiguous on the volume.
#[derive(Clone, Copy)]
struct Piece {
    /// First block within the file.
    offset: u32,
    len: u32,
    /// First block on the volume.
    start: u64,
}

/// The state of space allocation in the file.
struct Space {
    header: Header,
    /// Number of free blocks among those in use.
    free: u32,
    /// The block at which the search for a free block starts.
    hint: u32,
    /// The contents of the file must not be trusted by the next mount.
    spoiled: bool,
}

/// An open tree file.
#[pin_data]
pub(crate) struct TreeFile {
    inode: InodeRef<Volume>,
    /// The properties that the file must have.
    pub(crate) frame: Frame,
    /// The mapping of its blocks, in file order.
    #[pin]
    pieces: RwLock<KVVec<Piece>>,
    #[pin]
    space: Mutex<Space>,
    /// Held while the file is extended.
    #[pin]
    growing: Mutex<()>,
}

/// An opened file and its header.
pub(crate) struct Opened {
    /// The file.
    pub(crate) file: Pin<KBox<TreeFile>>,
    /// The header; `None` if the file was created, so that no earlier contents count.
    pub(crate) found: Option<Header>,
    /// The file lost blocks without a change of owners being recorded, because its mapping was
    /// damaged.
    pub(crate) emptied: bool,
}

impl TreeFile {
    /// Returns true if the volume has a tree file of this kind, valid or not.
    pub(crate) fn is_there(sb: &SuperBlock<Volume>, kind: Kind) -> Result<bool> {
        Ok(system::find(sb, kind.name().as_bytes())?.is_some())
    }

    /// Opens the volume's tree file. Creates it if there is none, and recreates it if its contents
    /// are unusable or its own mapping is damaged.
    ///
    /// # Errors
    ///
    /// `EEXIST` when a file of this name exists that this module did not create; `ENOSPC`,
    /// `ENOMEM`, `EIO`. Must not be called with a handle open.
    pub(crate) fn open(sb: &SuperBlock<Volume>, frame: Frame) -> Result<Opened> {
        let inode = system::find_or_make(sb, frame.kind.name().as_bytes())?;
        let ino = inode.number();
        let opened = {
            // The contents of the file are derived from the inodes, so damage to it is no reason to
            // take the action that errors= asks for.
            let _checking = scan::Checking::begin(sb.volume()?)?;
            TreeFile::of(inode, frame)
        };
        let (file, emptied) = match opened {
            Err(error) if error == corrupted() || error == bad_checksum() || error == EIO => {
                pr_err!(
                    "{}: {}: the mapping of inode {ino} is damaged: the file is recreated; its former blocks stay in \
                     use until a scrub or e2fsck frees them\n",
                    sb.name(),
                    frame.kind.name()
                );
                let inode = system::find_or_make(sb, frame.kind.name().as_bytes())?;
                system::empty(&inode)?;
                (TreeFile::of(inode, frame)?, true)
            }
            opened => (opened?, false),
        };
        match file.load() {
            Ok(()) => {
                let found = Some(file.space.lock().header);
                return Ok(Opened { file, found, emptied });
            }
            Err(error) if error == ENOENT => (),
            Err(error) if error == corrupted() || error == bad_checksum() => {
                let kind = frame.kind.name();
                if !file.is_ours() {
                    return Err(system::refuse_foreign(sb, kind.as_bytes()));
                }
                pr_warn!("{}: {kind}: the file is recreated\n", sb.name());
            }
            Err(error) => return Err(error),
        }
        file.make()?;
        Ok(Opened {
            file,
            found: None,
            emptied,
        })
    }

    /// Opens the volume's tree file for reading; returns `None` if it does not exist, or if another
    /// driver has written to the volume since.
    ///
    /// # Errors
    ///
    /// `EFSCORRUPTED`, `ENOMEM`, `EIO`.
    pub(crate) fn open_read_only(
        sb: &SuperBlock<Volume>,
        frame: Frame,
        left: &Left,
    ) -> Result<Option<Pin<KBox<TreeFile>>>> {
        let Some(inode) = system::find(sb, frame.kind.name().as_bytes())? else {
            return Ok(None);
        };
        let file = TreeFile::of(inode, frame)?;
        match file.load() {
            Err(error) if error == ENOENT => return Ok(None),
            done => done?,
        }
        let header = file.space.lock().header;
        Ok(header.stamp.holds(left, header.in_use).then_some(file))
    }

    /// Returns the tree file in this inode. Nothing has been read yet.
    fn of(inode: InodeRef<Volume>, frame: Frame) -> Result<Pin<KBox<TreeFile>>> {
        let nothing = Header {
            blocks: 0,
            generation: 0,
            in_use: true,
            stamp: Stamp::default(),
        };
        let space = Space {
            header: nothing,
            free: 0,
            hint: 0,
            spoiled: false,
        };
        let file = pin_init!(TreeFile {
            inode,
            frame,
            pieces <- RwLock::new(KVVec::new(), c"rext4_tree_pieces", kernel::static_lock_class!()),
            space <- new_mutex!(space, "TreeFile::space"),
            growing <- new_mutex!((), "TreeFile::growing"),
        });
        let file = KBox::pin_init(file, GFP_KERNEL)?;
        file.find_pieces()?;
        Ok(file)
    }

    /// Returns the file's inode number.
    pub(crate) fn ino(&self) -> u32 {
        self.inode.number()
    }

    /// Returns the volume that contains the file.
    pub(crate) fn super_block(&self) -> &SuperBlock<Volume> {
        self.inode.super_block()
    }

    fn bad(&self, block: u32, what: Corrupt) -> Error {
        let name = self.super_block().name();
        let kind = self.frame.kind.name();
        pr_err!("{name}: {kind}: block {block} of the file: {}\n", what.0);
        corrupted()
    }

    /// Reads the mapping of the file's blocks.
    fn find_pieces(&self) -> Result {
        let mut found: KVVec<Piece> = KVVec::new();
        {
            let _no_reclaim = NoReclaim::new();
            let map = scan::lock_map(&self.inode)?;
            scan::for_each_owned(&self.inode, &map, &mut |start, len, owner| {
                if is_dying() {
                    return Err(EINTR);
                }
                if let OwnerKind::Data { offset, .. } = owner.kind {
                    found.push(Piece { offset, len, start }, GFP_KERNEL)?;
                }
                Ok(())
            })?;
        }
        let mut next = 0;
        for piece in found.iter() {
            if piece.offset != next {
                return Err(self.bad(next, Corrupt("the file has a hole")));
            }
            next = piece.offset.checked_add(piece.len).ok_or(EFBIG)?;
        }
        *self.pieces.write() = found;
        Ok(())
    }

    /// Returns the length of the file in blocks.
    fn file_blocks(&self) -> u32 {
        self.pieces.read().last().map_or(0, |last| last.offset + last.len)
    }

    /// Returns true if the contents show that this module created the file, however damaged it is:
    /// by the magic of the header, or by the first space map.
    fn is_ours(&self) -> bool {
        let map = self.frame.map_of(0).0;
        let has_header = self
            .read(0)
            .and_then(Buffer::into_bytes)
            .is_ok_and(|bytes| tree_file::has_magic(self.frame.kind, &bytes));
        has_header
            || self
                .read(map)
                .and_then(Buffer::into_bytes)
                .is_ok_and(|bytes| tree_file::check_map(&self.frame, map, &bytes).is_ok())
    }

    /// Returns the volume block that holds a block of the file.
    pub(crate) fn place(&self, block: u32) -> Result<u64> {
        let pieces = self.pieces.read();
        let index = pieces.partition_point(|piece| piece.offset <= block);
        let piece = index
            .checked_sub(1)
            .and_then(|index| pieces.get(index))
            .ok_or(EIO)?;
        let within = block - piece.offset;
        if within >= piece.len {
            return Err(EIO);
        }
        Ok(piece.start + u64::from(within))
    }

    /// Reads a block of the file.
    pub(crate) fn read(&self, block: u32) -> Result<Buffer<'_>> {
        Buffer::read(self.super_block(), self.place(block)?)
    }

    /// Starts reading blocks of the file, and waits for the first `now` of them. Errors are left to
    /// the later read of the block.
    pub(crate) fn read_soon(&self, blocks: &[u32], now: usize) {
        for run in blocks.chunk_by(|block, next| block.checked_add(1) == Some(*next)) {
            // They are contiguous on the volume as well, except where the file was extended.
            if let Some(Ok(first)) = run.first().map(|&first| self.place(first)) {
                self.super_block().read_ahead(first, run.len() as u32);
            }
        }
        for &block in blocks.iter().take(now) {
            let _ = self.read(block);
        }
    }

    /// Returns a buffer for a block of the file that is about to be overwritten completely.
    pub(crate) fn fresh(&self, block: u32) -> Result<FreshBuffer<'_>> {
        FreshBuffer::new(self.super_block(), self.place(block)?)
    }

    /// Returns the identity of a region's tree.
    pub(crate) fn tree(&self, region: u32, generation: u32) -> Tree {
        Tree {
            seed: self.frame.seed,
            region,
            generation,
        }
    }

    /// Reads the header and the space maps. Fails with `ENOENT` if the file is empty.
    fn load(&self) -> Result {
        let blocks = self.file_blocks();
        if blocks == 0 {
            return Err(ENOENT);
        }
        let header =
            Header::read(&self.frame, blocks, &self.read(0)?.bytes()?).map_err(|what| self.bad(0, what))?;
        let mut free = 0;
        let mut first = 0;
        while first < header.blocks {
            let map = self.map(self.frame.map_of(first).0)?.into_bytes()?;
            let len = self.frame.chunk().get().min(header.blocks - first);
            free += (0..len)
                .filter(|&entry| tree_file::use_of(&map, entry) == Use::Free)
                .count() as u32;
            first += len;
        }
        *self.space.lock() = Space {
            header,
            free,
            hint: 0,
            spoiled: false,
        };
        Ok(())
    }

    /// Reads and checks a space map.
    fn map(&self, block: u32) -> Result<Buffer<'_>> {
        let buffer = self.read(block)?;
        if !buffer.is_verified() {
            tree_file::check_map(&self.frame, block, &buffer.bytes()?)
                .map_err(|what| self.bad(block, what))?;
            buffer.set_verified();
        }
        Ok(buffer)
    }

    /// Initializes the file: all regions stale, no trees. The header is first replaced by one
    /// without contents, so that a crash halfway does not leave an old header with new contents.
    fn make(&self) -> Result {
        let regions = self.frame.regions;
        let table = self.frame.table_blocks();
        let blocks = (TABLE + table + 64)
            .checked_add(regions.saturating_mul(2))
            .ok_or(EFBIG)?;
        let volume = self.super_block().volume()?;
        if self.file_blocks() == 0 {
            system::grow(&self.inode, 1)?;
            self.find_pieces()?;
        }
        {
            // From now on the magic of the header identifies the file, even if the initialization
            // does not complete.
            let handle = volume.begin_internal(cost::HEADER, 0)?;
            let mut space = self.space.lock();
            space.header.blocks = 0;
            self.store_header(&handle, &space)?;
            drop(space);
            handle.stop()?;
        }
        let there = self.file_blocks();
        if there < blocks {
            system::grow(&self.inode, blocks - there)?;
            self.find_pieces()?;
        }
        let all = self.file_blocks();
        for block in TABLE..TABLE + table {
            let handle = volume.begin_internal(cost::ENTRY, 0)?;
            let mut bytes = handle.renew(self.fresh(block)?)?;
            let each = self.frame.regions_per_block().get();
            let first = (block - TABLE) * each;
            for (region, entry) in (first..regions).zip(bytes.chunks_exact_mut(REGION_SIZE)) {
                Region::default()
                    .store(&self.frame, region, entry)
                    .map_err(|what| self.bad(block, what))?;
            }
            drop(bytes);
            handle.stop()?;
        }
        {
            let mut space = self.space.lock();
            space.header.blocks = 0;
            space.free = 0;
            space.hint = 0;
        }
        self.take_in(all)
    }

    /// Starts to use blocks that the file has, up to block `all`: initializes their space maps,
    /// each in its own transaction.
    fn take_in(&self, all: u32) -> Result {
        let volume = self.super_block().volume()?;
        loop {
            let first = self.space.lock().header.blocks;
            if first >= all {
                return Ok(());
            }
            let (map, entry) = self.frame.map_of(first);
            let end = (first - entry).saturating_add(self.frame.chunk().get()).min(all);
            // A chunk whose space map would be beyond the end cannot be used yet.
            if end <= map {
                return Ok(());
            }
            let handle = volume.begin_internal(cost::SPACE_MAP + cost::HEADER, 0)?;
            let mut space = self.space.lock();
            if entry <= map - (first - entry) {
                let mut bytes = handle.renew(self.fresh(map)?)?;
                tree_file::start_map(&self.frame, map, &mut bytes);
                bytes.into_buffer().set_verified();
            }
            let fixed = (first..end).filter(|&block| self.frame.is_fixed(block)).count() as u32;
            space.header.blocks = end;
            space.free += end - first - fixed;
            self.store_header(&handle, &space)?;
            drop(space);
            handle.stop()?;
        }
    }

    /// Stores the header. Costs [`cost::HEADER`].
    fn store_header(&self, handle: &Handle, space: &Space) -> Result {
        let mut bytes = handle.renew(self.fresh(0)?)?;
        space
            .header
            .store(&self.frame, &mut bytes)
            .map_err(|what| self.bad(0, what))
    }

    /// Ensures that nothing in the file is trusted by the next mount, as part of the handle. Costs
    /// [`cost::HEADER`].
    pub(crate) fn spoil(&self, handle: &Handle) -> Result {
        let mut space = self.space.lock();
        space.header.stamp = Stamp::default();
        space.spoiled = true;
        self.store_header(handle, &space)
    }

    /// Stores whether a mount uses the file, and the corresponding stamp of the superblock.
    pub(crate) fn stamp(&self, in_use: bool, stamp: Stamp) -> Result {
        let _write = self.super_block().internal_write();
        let handle = self.super_block().volume()?.begin_internal(cost::HEADER, 0)?;
        let mut space = self.space.lock();
        if space.spoiled {
            return Ok(());
        }
        space.header.in_use = in_use;
        space.header.stamp = stamp;
        self.store_header(&handle, &space)?;
        drop(space);
        handle.stop()
    }

    /// Returns the number of the file's blocks in use, and how many of them are free.
    pub(crate) fn blocks(&self) -> (u32, u32) {
        let space = self.space.lock();
        (space.header.blocks, space.free)
    }

    /// Extends the file until `free` blocks are free. Must not be called with a handle or a region
    /// lock held.
    pub(crate) fn grow(&self, free: u32) -> Result {
        let _write = self.super_block().internal_write();
        let _growing = self.growing.lock();
        loop {
            let (blocks, has) = self.blocks();
            if has >= free {
                return Ok(());
            }
            // Grow in large steps. Each chunk includes a space map.
            let more = (free - has).max(blocks / 8).max(64);
            let more = more.saturating_add(more / self.frame.chunk()).saturating_add(2);
            let all = blocks.checked_add(more).ok_or(EFBIG)?;
            let there = self.file_blocks();
            if there < all {
                let grown = system::grow(&self.inode, all - there);
                self.find_pieces()?;
                grown?;
            }
            self.take_in(all)?;
        }
    }

    /// Reads a region's entry of the region table.
    pub(crate) fn region(&self, region: u32) -> Result<Region> {
        let (block, at) = self.frame.region_place(region);
        let buffer = self.read(block)?;
        let blocks = self.space.lock().header.blocks;
        // Entries of other regions in the same block may be changing concurrently.
        let mut entry = [0; REGION_SIZE];
        buffer.copy(at, &mut entry)?;
        Region::read(&self.frame, blocks, region, &entry).map_err(|what| self.bad(block, what))
    }

    /// Stores the entry of a region. The caller holds the region's lock. Costs [`cost::ENTRY`].
    pub(crate) fn store_region(&self, handle: &Handle, number: u32, region: &Region) -> Result {
        let (block, at) = self.frame.region_place(number);
        let mut buffer = self.read(block)?;
        let mut bytes = handle.write_part(&mut buffer, at..at + REGION_SIZE)?;
        region
            .store(&self.frame, number, &mut bytes)
            .map_err(|what| self.bad(block, what))
    }

    /// Returns a generation that no tree has had yet. Costs [`cost::GENERATION`].
    pub(crate) fn next_generation(&self, handle: &Handle) -> Result<u32> {
        let mut space = self.space.lock();
        space.header.generation = space.header.generation.wrapping_add(1).max(1);
        self.store_header(handle, &space)?;
        Ok(space.header.generation)
    }

    /// Allocates a free block near the previously allocated one. Costs [`cost::SPACE_MAP`].
    pub(crate) fn take(&self, handle: &Handle, region: u32, generation: u32) -> engine::Result<u32> {
        let io = |_| engine::Error::Io;
        let mut space = self.space.lock();
        let block = self
            .find_free(&mut space)
            .map_err(io)?
            .ok_or(engine::Error::NoSpace)?;
        self.set_use(handle, &mut space, block, Use::Node { region, generation })
            .map_err(io)?;
        Ok(block)
    }

    /// Finds the next free block, starting at the hint and wrapping around.
    fn find_free(&self, space: &mut MutexGuard<'_, Space>) -> Result<Option<u32>> {
        if space.free == 0 {
            return Ok(None);
        }
        let blocks = space.header.blocks;
        let mut at = space.hint.min(blocks);
        // One more than the number of chunks, since the search may start in the middle of the
        // first.
        for _ in 0..=blocks / self.frame.chunk() + 1 {
            if at >= blocks {
                at = 0;
            }
            let (map, entry) = self.frame.map_of(at);
            let bytes = self.map(map)?.into_bytes()?;
            let end = (at - entry).saturating_add(self.frame.chunk().get()).min(blocks);
            let found =
                (at..end).find(|&block| tree_file::use_of(&bytes, self.frame.map_of(block).1) == Use::Free);
            if let Some(block) = found {
                space.hint = block + 1;
                return Ok(Some(block));
            }
            at = end;
        }
        Err(self.bad(0, Corrupt("free blocks do not match the space maps")))
    }

    fn set_use(&self, handle: &Handle, space: &mut MutexGuard<'_, Space>, block: u32, what: Use) -> Result {
        let (map, entry) = self.frame.map_of(block);
        let mut buffer = self.map(map)?;
        let mut bytes = handle.write(&mut buffer)?;
        tree_file::set_use(&mut bytes, entry, what);
        tree_file::seal_map(&self.frame, &mut bytes);
        match what {
            Use::Free => space.free += 1,
            _ => space.free = space.free.saturating_sub(1),
        }
        Ok(())
    }

    /// Frees a block. Costs [`cost::SPACE_MAP`].
    ///
    /// Fails with [`engine::Error::Corrupt`] if the block does not belong to this tree.
    pub(crate) fn give(&self, handle: &Handle, block: u32, region: u32, generation: u32) -> engine::Result {
        let io = |_| engine::Error::Io;
        let mut space = self.space.lock();
        let (map, entry) = self.frame.map_of(block);
        let mine = Use::Node { region, generation };
        let is_mine = || -> Result<bool> { Ok(tree_file::use_of(&self.map(map)?.bytes()?, entry) == mine) };
        if block >= space.header.blocks || !is_mine().map_err(io)? {
            return Err(engine::Error::Corrupt {
                block,
                what: "freed node is not of this tree",
            });
        }
        self.set_use(handle, &mut space, block, Use::Free).map_err(io)
    }

    /// Returns true if a block holds a node of this tree according to the space maps.
    pub(crate) fn is_node(&self, block: u32, region: u32, generation: u32) -> Result<bool> {
        let space = self.space.lock();
        if block >= space.header.blocks {
            return Ok(false);
        }
        let (map, entry) = self.frame.map_of(block);
        Ok(tree_file::use_of(&self.map(map)?.bytes()?, entry) == Use::Node { region, generation })
    }

    /// Allocates `count` blocks for a tree that is written outside of transactions, and waits until
    /// this is on disk, so that journal replay cannot overwrite them with older contents.
    ///
    /// # Errors
    ///
    /// `ENOSPC`; blocks allocated by then are freed by [`TreeFile::reap`]. Must not be called with
    /// a handle or a region lock held.
    pub(crate) fn claim(&self, count: usize, region: u32, generation: u32) -> Result<KVVec<u32>> {
        let volume = self.super_block().volume()?;
        let mut blocks = KVVec::with_capacity(count, GFP_KERNEL)?;
        while blocks.len() < count {
            let _write = self.super_block().internal_write();
            let part = (count - blocks.len()).min(CLAIM_AT_ONCE);
            let handle = volume.begin_internal(cost::SPACE_MAP * part as u32, part as u32)?;
            for _ in 0..part {
                let block = self
                    .take(&handle, region, generation)
                    .map_err(|error| match error {
                        engine::Error::NoSpace => ENOSPC,
                        _ => EIO,
                    })?;
                handle.revoke(self.super_block(), self.place(block)?)?;
                blocks.push(block, GFP_KERNEL)?;
            }
            handle.stop()?;
        }
        volume.journal()?.commit(true)?;
        Ok(blocks)
    }

    /// Frees all nodes that belong to no tree, as determined by `dead` from their region and
    /// generation. Returns their number.
    ///
    /// Must not be called with a handle or a region lock held.
    pub(crate) fn reap(&self, dead: &dyn Fn(u32, u32) -> bool) -> Result<u32> {
        let volume = self.super_block().volume()?;
        let mut freed = 0;
        let mut first = 0;
        let is_dead = |what| match what {
            Use::Node { region, generation } => dead(region, generation),
            _ => false,
        };
        loop {
            let _write = self.super_block().internal_write();
            let handle = volume.begin_internal(cost::SPACE_MAP * SWEEP_AT_ONCE, 0)?;
            for _ in 0..SWEEP_AT_ONCE {
                let mut space = self.space.lock();
                let blocks = space.header.blocks;
                if first >= blocks {
                    drop(space);
                    handle.stop()?;
                    return Ok(freed);
                }
                let (map, _) = self.frame.map_of(first);
                let len = self.frame.chunk().get().min(blocks - first);
                let mut buffer = self.map(map)?;
                let uses = buffer.bytes()?;
                let has_dead = (0..len).any(|entry| is_dead(tree_file::use_of(&uses, entry)));
                drop(uses);
                if has_dead {
                    let mut bytes = handle.write(&mut buffer)?;
                    for entry in 0..len {
                        if is_dead(tree_file::use_of(&bytes, entry)) {
                            tree_file::set_use(&mut bytes, entry, Use::Free);
                            space.free += 1;
                            freed += 1;
                        }
                    }
                    tree_file::seal_map(&self.frame, &mut bytes);
                }
                first += len;
            }
            handle.stop()?;
        }
    }
}
