// SPDX-License-Identifier: GPL-2.0

//! Records that come from a scan: collected by each worker for itself, and sorted when the scan is over.
//!
//! A worker fills an [`Appender`] of its own, with no lock held but the inode's, and once in many records has the shadow
//! that it belongs to take account of what it has. Nothing is ordered until all is there. Then the worker sorts its
//! [`Lane`] where it lies, by halving ranges at the highest bit in which their keys differ, down to what lies in one chunk;
//! the shadow merges what all workers have ([`super::base`]). So a record takes its 16 bytes, and no more at any time.
//!
//! No two records of an owner continue each other, or say the same, as long as all that an inode has goes through one
//! appender at one go, its data in file order: then a record can only continue the one before it. What is not data is
//! little, and is sorted and joined at the end of its inode.

use super::{
    record::{Kind, Record, Rmap},
    Error, Result,
};
use crate::sort;
use kernel::prelude::*;

/// Records of a chunk.
pub(super) const CHUNK: usize = 1024;
/// Bytes that a chunk takes.
pub(super) const CHUNK_BYTES: usize = CHUNK * Rmap::SIZE + size_of::<KVVec<Packed>>() * 2;
/// Records that an appender gathers before it had better be looked at.
const FULL: usize = 4096;

/// A record as it is stored.
pub(super) type Packed = [u8; Rmap::SIZE];

pub(super) fn pack(record: &Rmap) -> Packed {
    let mut bytes = [0; Rmap::SIZE];
    record.store(&mut bytes);
    bytes
}

pub(super) fn unpack(packed: &Packed) -> Result<Rmap> {
    Rmap::load(packed).ok_or(Error::Mismatch("no record"))
}

/// What a worker collects. It belongs to one shadow, which counts the ones that are out.
pub(crate) struct Appender {
    pub(super) lane: Lane,
    /// Bytes of it when the shadow was last told.
    pub(super) told: usize,
    /// Bytes of it that the shadow has taken from its budget.
    pub(super) charged: usize,
    owner: u32,
    /// The owner's last data, which more may continue.
    data: Option<Rmap>,
    /// What the owner has besides data.
    others: KVVec<Rmap>,
}

impl Appender {
    pub(super) fn new() -> Appender {
        Appender {
            lane: Lane::new(),
            told: 0,
            charged: 0,
            owner: 0,
            data: None,
            others: KVVec::new(),
        }
    }

    /// Takes in what a visit of an inode finds: all that the inode has, at one go, data in file order. The caller holds
    /// the inode's lock until that is done and the inode is marked as visited, as for [`super::scan::Cursor::visited`];
    /// what was taken in may be moved to the shadow at any time later.
    ///
    /// Fails with [`Error::Mismatch`] when data is out of order, or when what is no data is found twice.
    pub(crate) fn push(&mut self, record: Rmap) -> Result {
        if record.owner != self.owner {
            self.end_owner()?;
            self.owner = record.owner;
        }
        if record.kind != Kind::Data {
            return Ok(self.others.push(record, GFP_KERNEL)?);
        }
        if let Some(last) = &mut self.data {
            if last.continues(&record) {
                last.len += record.len;
                return Ok(());
            }
            if u64::from(last.offset) + u64::from(last.len) > u64::from(record.offset) {
                return Err(Error::Mismatch("data out of file order"));
            }
        }
        match self.data.replace(record) {
            None => Ok(()),
            Some(before) => self.put(&before),
        }
    }

    /// Whether so much has gathered since the shadow was last told that it had better be told.
    pub(crate) fn is_full(&self) -> bool {
        self.lane.bytes() >= self.told + FULL * Rmap::SIZE
    }

    fn put(&mut self, record: &Rmap) -> Result {
        self.lane.push(pack(record))
    }

    /// Takes in what is left of the last owner, and sorts all: what else [`super::shadow::Shadow::close`] would do, with its
    /// lock held.
    pub(crate) fn finish(&mut self) -> Result {
        self.end_owner()?;
        self.lane.sort();
        Ok(())
    }

    /// Packs what is left of the last owner.
    pub(super) fn end_owner(&mut self) -> Result {
        if let Some(data) = self.data.take() {
            self.put(&data)?;
        }
        sort::by_key(&mut self.others, |record| (record.kind, record.start));
        let mut others = core::mem::take(&mut self.others);
        let mut joined: Option<Rmap> = None;
        for record in others.iter() {
            if let Some(last) = &mut joined {
                if last.clashes(record) {
                    return Err(Error::Mismatch("the owner has these blocks already"));
                }
                if last.continues(record) {
                    last.len += record.len;
                    continue;
                }
            }
            if let Some(done) = joined.replace(*record) {
                self.put(&done)?;
            }
        }
        if let Some(done) = joined {
            self.put(&done)?;
        }
        others.clear();
        self.others = others;
        Ok(())
    }
}

/// Records in chunks.
pub(super) struct Lane {
    /// All full but the last.
    chunks: KVVec<KVVec<Packed>>,
    len: usize,
    /// The greatest key; `None` when they are not in order.
    last: Option<[u64; 2]>,
}

impl Lane {
    pub(super) const fn new() -> Lane {
        Lane {
            chunks: KVVec::new(),
            len: 0,
            last: Some([0; 2]),
        }
    }

    /// Records.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes that this takes.
    pub(super) fn bytes(&self) -> usize {
        self.chunks.len() * CHUNK_BYTES
    }

    fn push(&mut self, packed: Packed) -> Result {
        if self.len % CHUNK == 0 {
            self.chunks
                .push(KVVec::with_capacity(CHUNK, GFP_KERNEL)?, GFP_KERNEL)?;
        }
        let chunk = self.chunks.last_mut().ok_or(Error::NoMemory)?;
        chunk.push(packed, GFP_KERNEL)?;
        self.len += 1;
        let key = Rmap::words(&packed);
        self.last = self.last.filter(|last| *last <= key).map(|_| key);
        Ok(())
    }

    /// Its chunks, sorted.
    pub(super) fn into_chunks(mut self) -> KVVec<KVVec<Packed>> {
        self.sort();
        self.chunks
    }

    fn get(&self, index: usize) -> Packed {
        let chunk = self.chunks.get(index / CHUNK);
        chunk
            .and_then(|chunk| chunk.get(index % CHUNK))
            .copied()
            .unwrap_or_default()
    }

    fn set(&mut self, index: usize, packed: Packed) {
        let chunk = self.chunks.get_mut(index / CHUNK);
        if let Some(place) = chunk.and_then(|chunk| chunk.get_mut(index % CHUNK)) {
            *place = packed;
        }
    }

    /// Sorts all by their keys, where they lie.
    pub(super) fn sort(&mut self) {
        if self.last.is_some() {
            return;
        }
        // Nothing comes any more.
        self.last = Some([u64::MAX; 2]);
        // The larger half waits each time, so that a range that waits is at most half of the one that waits below it.
        let mut waiting = [(0, 0); usize::BITS as usize];
        let mut count = 0;
        let mut range = (0, self.len);
        loop {
            if let Some(middle) = self.halve(range) {
                let (first, second) = ((range.0, middle), (middle, range.1));
                let first_is_less = middle - range.0 < range.1 - middle;
                let (small, large) = if first_is_less {
                    (first, second)
                } else {
                    (second, first)
                };
                if let Some(place) = waiting.get_mut(count) {
                    *place = large;
                    count += 1;
                }
                range = small;
            } else {
                let Some(next) = count.checked_sub(1) else {
                    return;
                };
                count = next;
                range = waiting.get(count).copied().unwrap_or_default();
            }
        }
    }

    /// Parts a range by the highest bit in which its keys differ and answers with where the upper part starts. Sorts it
    /// instead if it lies in one chunk.
    fn halve(&mut self, (start, end): (usize, usize)) -> Option<usize> {
        let last = end.checked_sub(1).filter(|&last| last > start)?;
        if start / CHUNK == last / CHUNK {
            let chunk = self.chunks.get_mut(start / CHUNK)?;
            let range = start % CHUNK..last % CHUNK + 1;
            sort::by_key(chunk.get_mut(range)?, Rmap::words);
            return None;
        }
        let any = Rmap::words(&self.get(start));
        let (mut differ, mut before, mut sorted) = ([0; 2], any, true);
        for index in start..end {
            let key = Rmap::words(&self.get(index));
            differ = [differ[0] | (key[0] ^ any[0]), differ[1] | (key[1] ^ any[1])];
            sorted &= before <= key;
            before = key;
        }
        if sorted {
            return None;
        }
        let which = usize::from(differ[0] == 0);
        let bit = differ[which].checked_ilog2()?;
        let (mut low, mut high) = (start, end);
        while low < high {
            let packed = self.get(low);
            if (Rmap::words(&packed)[which] >> bit) & 1 == 0 {
                low += 1;
            } else {
                high -= 1;
                self.set(low, self.get(high));
                self.set(high, packed);
            }
        }
        Some(low)
    }
}
