// SPDX-License-Identifier: GPL-2.0

//! A model of a volume for scans and rebuilds, with the module's locks around the engine.
//!
//! An inode's mapping has a lock, held shared to visit it and exclusively to change it. Inside it
//! nests the region's lock, under which the region's tree is changed and its watcher is informed,
//! and inside that the collection's lock. The inode bitmap has its own lock, under which inodes are
//! allocated, and free inodes are passed by the scan.

use crate::{
    disk::Disk,
    engine::{
        btree::{BTree, Root},
        gather::Gathered,
        node::Tree,
        rebuild::{apply, load, Rebuild, Update},
        record::{Kind, Record, Rmap},
        scan::Cursor,
        shadow::Shadow,
    },
};
use shuttle::{
    rand::Rng,
    sync::{Arc, Mutex, RwLock},
    thread,
};

/// Number of inodes of the volume.
pub(crate) const INODES: u32 = 4;
/// Number of inodes per range of the cursor.
const WIDTH: u32 = 2;
/// Number of places in a file that can have blocks; far enough apart that no two can be merged into
/// one record.
const SLOTS: u32 = 2;
const BUDGET: usize = 1 << 20;
const TREE: Tree = Tree {
    seed: 5,
    region: 0,
    generation: 1,
};

/// A locking rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breach {
    /// None.
    None,
    /// An inode is marked as visited after its lock was dropped.
    MarkOutside,
    /// An inode is marked as visited before it is read.
    MarkBefore,
    /// Free inodes are passed after the bitmap's lock was dropped.
    PassOutside,
    /// A change is reported after the inode's lock was dropped.
    TellOutside,
    /// The last changes are taken before the region is locked for the install.
    RestOutside,
    /// The watcher is removed before the new tree is installed.
    LeaveEarly,
}

/// A region, protected by its lock.
struct Region {
    disk: Disk,
    /// The root of its tree; `None` while it is stale.
    root: Option<Root>,
    watched: bool,
}

impl Region {
    fn apply(&mut self, update: Update) {
        let Some(root) = self.root else { return };
        let mut tree = BTree::open(&mut self.disk, TREE, root);
        apply(&mut tree, &[update]).expect("the tree is kept up");
        self.root = Some(tree.root);
    }

    fn records(&mut self) -> Vec<Rmap> {
        let root = self.root.expect("the tree is there");
        let mut all = Vec::new();
        let tree = BTree::<_, Rmap>::open(&mut self.disk, TREE, root);
        tree.check().expect("the tree is sound");
        tree.overlapping(0, u32::MAX, &mut |record| {
            all.push(*record);
            Ok(true)
        })
        .expect("the tree can be read");
        all
    }
}

/// The volume, and a scan of it.
pub(crate) struct Volume {
    files: Vec<RwLock<Vec<Rmap>>>,
    bitmap: Mutex<Vec<bool>>,
    region: Mutex<Region>,
    cursor: Cursor,
    collection: Mutex<Rebuild>,
    gathered: Mutex<Gathered>,
    breach: Breach,
}

impl Volume {
    /// Creates a volume on which every other inode is in use and has some blocks. Its tree is stale
    /// or good.
    pub(crate) fn new(breach: Breach, stale: bool) -> Arc<Volume> {
        let mut disk = Disk::default();
        let root = BTree::<_, Rmap>::create(&mut disk, TREE).expect("memory").root;
        let memory = std::sync::Arc::new(());
        let volume = Arc::new(Volume {
            files: (0..INODES).map(|_| RwLock::new(Vec::new())).collect(),
            bitmap: Mutex::new((0..INODES).map(|index| index % 2 == 0).collect()),
            region: Mutex::new(Region {
                disk,
                root: Some(root),
                watched: false,
            }),
            cursor: Cursor::new(INODES, WIDTH).expect("memory"),
            collection: Mutex::new(Rebuild::awaiting(BUDGET, memory.clone(), memory.clone())),
            gathered: Mutex::new(Gathered::new(memory, 2, BUDGET as u64)),
            breach,
        });
        for ino in (1..=INODES).step_by(2) {
            volume.change(ino, 0);
        }
        let mut region = volume.region.lock().unwrap();
        region.watched = true;
        if stale {
            region.root = None;
        }
        drop(region);
        volume
    }

    /// Adds blocks to a file at one of its places, or removes them. Does nothing if the inode is
    /// free.
    fn change(&self, ino: u32, slot: u32) {
        let record = Rmap {
            start: (ino * SLOTS + slot) * 8,
            len: 3,
            owner: ino,
            offset: slot * 8,
            kind: Kind::Data,
            unwritten: false,
        };
        let mut file = self.files[ino as usize - 1].write().unwrap();
        let update = if file.contains(&record) {
            file.retain(|other| *other != record);
            Update::Remove(record)
        } else {
            if !self.bitmap.lock().unwrap()[ino as usize - 1] {
                return;
            }
            file.push(record);
            Update::Add(record)
        };
        let held = (self.breach != Breach::TellOutside).then_some(file);
        let mut region = self.region.lock().unwrap();
        if region.watched && self.cursor.wants_update(ino) {
            let told = self.collection.lock().unwrap().update(update);
            told.expect("a change is taken in");
        }
        region.apply(update);
        drop(region);
        drop(held);
    }

    /// Allocates a free inode and adds blocks to it.
    fn create(&self, ino: u32) {
        self.bitmap.lock().unwrap()[ino as usize - 1] = true;
        self.change(ino, 1);
    }

    /// A writing task.
    pub(crate) fn writer(&self, operations: u32) {
        for _ in 0..operations {
            let mut random = shuttle::rand::thread_rng();
            let (ino, slot) = (random.gen_range(1..=INODES), random.gen_range(0..SLOTS));
            if random.gen_bool(0.3) {
                self.create(ino);
            } else {
                self.change(ino, slot);
            }
        }
    }

    /// Passes free inodes up to the first one in use, under the lock that is needed to allocate
    /// them.
    fn next_used(&self, from: u32, last: u32) -> u32 {
        let bitmap = self.bitmap.lock().unwrap();
        let used = (from..=last)
            .find(|&ino| bitmap[ino as usize - 1])
            .unwrap_or(last + 1);
        let held = (self.breach != Breach::PassOutside).then_some(bitmap);
        if from < used {
            self.cursor.passed(from, used - 1);
        }
        drop(held);
        used
    }

    /// A worker of the scan.
    fn worker(&self) {
        let mut gatherer = self.gathered.lock().unwrap().gatherer();
        while let Some(work) = self.cursor.take() {
            let mut next = self.next_used(work.first, work.last);
            while next <= work.last {
                if self.breach == Breach::MarkBefore {
                    self.cursor.visited(next);
                }
                let file = self.files[next as usize - 1].read().unwrap();
                let mut records = file.clone();
                records.sort_by_key(|record| record.offset);
                for record in records {
                    gatherer.push(0, record).expect("in file order");
                }
                let held = (self.breach != Breach::MarkOutside).then_some(file);
                self.cursor.visited(next);
                drop(held);
                next = self.next_used(next + 1, work.last);
            }
            let run = gatherer.spill().expect("memory");
            self.gathered.lock().unwrap().add(run).expect("memory");
        }
        if let Some(run) = gatherer.finish().expect("memory") {
            self.gathered.lock().unwrap().add(run).expect("memory");
        }
    }

    /// Scans all inodes with two workers, one of which is this thread.
    fn scan(self: &Arc<Self>) {
        let other = self.clone();
        let worker = thread::spawn(move || other.worker());
        self.worker();
        worker.join().unwrap();
        assert!(self.cursor.is_complete());
    }

    /// Returns the records of all files, in order.
    fn truth(&self) -> Vec<Rmap> {
        let mut all: Vec<Rmap> = Vec::new();
        for file in &self.files {
            all.extend(file.read().unwrap().iter());
        }
        all.sort_by_key(|record| record.key());
        all
    }

    /// Scans next to writers. Returns the collected records.
    fn scanned(self: &Arc<Self>) -> Shadow {
        self.scan();
        let mut shadow = {
            let _region = self.region.lock().unwrap();
            let sealed = self.collection.lock().unwrap().seal();
            sealed.expect("it is sealed once")
        };
        let mut merge = self.gathered.lock().unwrap().merge().expect("memory");
        shadow.fill(&mut merge, 0).expect("what was gathered is sound");
        shadow
    }

    /// Scans and builds a new tree, next to writers.
    pub(crate) fn rebuild(self: &Arc<Self>) {
        let mut shadow = self.scanned();
        let mut disk = Disk::default();
        let mut root = load(&mut shadow, &mut disk, TREE, 10).expect("room");
        let mut catch_up = |disk: &mut Disk| {
            let updates = self.collection.lock().unwrap().take().expect("sealed");
            let mut tree = BTree::open(disk, TREE, root);
            apply(&mut tree, &updates).expect("changes fit the tree");
            root = tree.root;
        };
        catch_up(&mut disk);
        if self.breach == Breach::LeaveEarly {
            self.region.lock().unwrap().watched = false;
        }
        if self.breach == Breach::RestOutside {
            catch_up(&mut disk);
        }
        let mut region = self.region.lock().unwrap();
        if self.breach != Breach::RestOutside {
            catch_up(&mut disk);
        }
        region.disk = disk;
        region.root = Some(root);
        region.watched = false;
    }

    /// Scans and compares the existing tree, next to writers.
    pub(crate) fn check(self: &Arc<Self>) {
        let mut shadow = self.scanned();
        let mut region = self.region.lock().unwrap();
        let updates = self.collection.lock().unwrap().take().expect("sealed");
        for update in updates.iter() {
            shadow.apply(update).expect("changes fit what was collected");
        }
        let mut wanted = Vec::new();
        let walked = shadow.walk(&mut |record| {
            wanted.push(*record);
            Ok(true)
        });
        walked.expect("it can be read");
        assert_eq!(region.records(), wanted, "the tree is not what the scan found");
        region.watched = false;
    }

    /// Checks that the tree matches the files once all writers have ended.
    pub(crate) fn judge(&self) {
        let found = self.region.lock().unwrap().records();
        assert_eq!(found, self.truth(), "the tree is not what the files say");
    }
}
