// SPDX-License-Identifier: GPL-2.0

//! The records that a scan found, in key order: the part of a shadow that no longer changes.
//!
//! The sorted lanes of all workers are merged into one list of chunks. If a lane's next chunk lies
//! entirely before the next records of all other lanes, the chunk is moved without copying. This is
//! the common case, since each worker scans its own ranges of inodes. Records that do not fit in
//! memory are stored in the file of a [`Pool`]: runs spilled during the scan are read in windows
//! while they are merged, and chunks of the result that do not fit are written to the file again.
//!
//! After the merge, records stay in place. Changes are kept separately ([`super::shadow`]). A
//! record affected by a change is *lifted* into the shadow's tree and hidden here, by means of the
//! one bit of a stored record that is always zero on disk.

use super::{
    append::{bytes_of, unpack, Lane, Packed, CHUNK, CHUNK_BYTES},
    record::{Record, Rmap},
    Error, Result,
};
use crate::{format::tree_layout::HIDDEN, sort};
use kernel::{prelude::*, sync::Arc};

/// Provides memory, and a file for records that exceed it. Shared by all shadows of a scan.
pub(crate) trait Pool: Send + Sync {
    /// Reserves `bytes` of memory; returns `false` if they are not available.
    fn take(&self, bytes: usize) -> bool;
    /// Releases memory reserved by [`Pool::take`].
    fn give(&self, bytes: usize);
    /// Reserves `bytes` in the file, and returns their offset.
    fn extend(&self, bytes: usize) -> Result<u64>;
    /// Reads from offset `at` of the file.
    fn read(&self, at: u64, bytes: &mut [u8]) -> Result;
    /// Writes at offset `at` of the file.
    fn write(&self, at: u64, bytes: &[u8]) -> Result;
}

/// Number of records read at once from a run in the file.
const WINDOW: usize = 256;
/// The byte of a stored record that contains [`HIDDEN`] (the most significant byte of its second
/// word), and the bit within it.
const HIDDEN_AT: (usize, u8) = (7, (HIDDEN >> 24) as u8);

fn is_hidden(packed: &Packed) -> bool {
    packed
        .get(HIDDEN_AT.0)
        .is_some_and(|byte| byte & HIDDEN_AT.1 != 0)
}

/// Returns a record's start block and its owner.
fn place(packed: &Packed) -> (u32, u32) {
    let first = Rmap::words(packed)[0];
    ((first >> 32) as u32, first as u32)
}

/// A sorted run of records in the file.
#[derive(Clone, Copy)]
pub(super) struct Run {
    at: u64,
    len: usize,
}

impl Run {
    /// Sorts a lane and writes it to the file.
    pub(super) fn write(lane: Lane, pool: &dyn Pool) -> Result<Run> {
        let len = lane.len();
        let at = pool.extend(len * Rmap::SIZE)?;
        let mut to = at;
        for chunk in lane.into_chunks()?.iter() {
            pool.write(to, chunk.as_flattened())?;
            to += (chunk.len() * Rmap::SIZE) as u64;
        }
        Ok(Run { at, len })
    }
}

/// A contiguous group of records to be merged into the base.
struct Part {
    home: Home,
    /// Number of records.
    len: usize,
}

/// A sorted sequence of records to be merged into the base.
struct Source {
    now: KVVec<Packed>,
    position: usize,
    /// Bytes reserved for `now`, if it is a separate chunk.
    taken: usize,
    /// The parts that follow `now`.
    parts: KVVec<Part>,
    next: usize,
}

impl Source {
    fn new(parts: KVVec<Part>) -> Source {
        Source {
            now: KVVec::new(),
            position: 0,
            taken: 0,
            parts,
            next: 0,
        }
    }

    /// Sorts a lane and returns a source of its records.
    fn of_lane(lane: Lane) -> Result<Source> {
        let chunks = lane.into_chunks()?;
        let mut parts = KVVec::with_capacity(chunks.len(), GFP_KERNEL)?;
        for chunk in chunks {
            let part = Part {
                len: chunk.len(),
                home: Home::Memory(chunk),
            };
            parts.push(part, GFP_KERNEL)?;
        }
        Ok(Source::new(parts))
    }

    /// Returns a source of the records of a run in the file.
    fn of_run(run: Run) -> Result<Source> {
        let mut parts = KVVec::new();
        let part = Part {
            home: Home::File(run.at),
            len: run.len,
        };
        parts.push(part, GFP_KERNEL)?;
        Ok(Source::new(parts))
    }

    fn head(&self) -> Option<[u64; 2]> {
        self.now.get(self.position).map(Rmap::words)
    }

    /// Heap order of the sources: by their next key, exhausted ones last.
    fn goes_before(&self, other: &Source) -> bool {
        self.head().unwrap_or([u64::MAX; 2]) < other.head().unwrap_or([u64::MAX; 2])
    }

    /// Loads the next part once all records of the current one are consumed, and releases the
    /// current one's memory.
    fn advance(&mut self, pool: Option<&dyn Pool>, give: &mut dyn FnMut(usize)) -> Result {
        while self.position >= self.now.len() {
            self.position = 0;
            let taken = core::mem::take(&mut self.taken);
            if taken > 0 {
                self.now = KVVec::new();
                give(taken);
            }
            let Some(part) = self.parts.get_mut(self.next) else {
                self.now.clear();
                return Ok(());
            };
            match &mut part.home {
                Home::Memory(records) => {
                    self.taken = bytes_of(records);
                    self.now = core::mem::take(records);
                    self.next += 1;
                }
                Home::File(at) => {
                    let count = part.len.min(WINDOW);
                    read(pool, *at, count, &mut self.now)?;
                    *at += (count * Rmap::SIZE) as u64;
                    part.len -= count;
                    self.next += usize::from(part.len == 0);
                }
            }
        }
        Ok(())
    }
}

fn read(pool: Option<&dyn Pool>, at: u64, count: usize, into: &mut KVVec<Packed>) -> Result {
    into.clear();
    for _ in 0..count {
        into.push(Packed::default(), GFP_KERNEL)?;
    }
    pool.ok_or(Error::Io)?.read(at, into.as_flattened_mut())
}

/// Where the records of a chunk are stored.
enum Home {
    Memory(KVVec<Packed>),
    /// In the file, at this offset.
    File(u64),
}

struct Chunk {
    home: Home,
    count: usize,
    last: [u64; 2],
    /// The last block covered by any record of this chunk.
    reach: u32,
    /// The last block covered by any record of this chunk or of the chunks before it.
    reach_so_far: u32,
    hidden: usize,
}

/// Position of a record: index of its chunk, and index within the chunk.
pub(super) type Place = (usize, usize);

/// The records that a scan found, in key order.
pub(super) struct Base {
    pool: Option<Arc<dyn Pool>>,
    chunks: KVVec<Chunk>,
    len: u64,
    hidden: u64,
    /// True if a record starts before another one ends.
    overlap: bool,
    /// The chunk that was last read from the file: its index and its records.
    window: (usize, KVVec<Packed>),
}

impl Base {
    pub(super) const fn new(pool: Option<Arc<dyn Pool>>) -> Base {
        Base {
            pool,
            chunks: KVVec::new(),
            len: 0,
            hidden: 0,
            overlap: false,
            window: (usize::MAX, KVVec::new()),
        }
    }

    /// Number of records that are not hidden.
    pub(super) fn len(&self) -> u64 {
        self.len - self.hidden
    }

    /// Returns true if a record may start before another one ends.
    pub(super) fn overlaps(&self) -> bool {
        self.overlap
    }

    /// Merges lanes, which are sorted first, and runs. `room` says whether the given number of
    /// additional bytes may be taken; the memory of the sources is released as they are consumed.
    pub(super) fn merge(
        &mut self,
        lanes: KVVec<Lane>,
        runs: KVVec<Run>,
        room: &mut dyn FnMut(usize) -> bool,
        give: &mut dyn FnMut(usize),
    ) -> Result {
        let pool = self.pool.clone();
        let pool = pool.as_deref();
        let mut sources = KVVec::with_capacity(lanes.len() + runs.len(), GFP_KERNEL)?;
        for lane in lanes {
            sources.push(Source::of_lane(lane)?, GFP_KERNEL)?;
        }
        for run in runs {
            sources.push(Source::of_run(run)?, GFP_KERNEL)?;
        }
        for source in sources.iter_mut() {
            source.advance(pool, give)?;
        }
        let mut out: KVVec<Packed> = KVVec::new();
        let mut before = None;
        for root in (0..sources.len() / 2).rev() {
            sort::sift_down(&mut sources, root, Source::goes_before);
        }
        loop {
            // The smallest next key of all other sources.
            let limit = sources.get(1..3.min(sources.len()).max(1));
            let limit = limit.and_then(|heads| heads.iter().filter_map(Source::head).min());
            let Some(source) = sources.first_mut().filter(|source| source.head().is_some()) else {
                break;
            };
            let left = source.now.get(source.position..).unwrap_or_default();
            let count = match limit {
                Some(limit) if left.last().map(Rmap::words) > Some(limit) => left
                    .iter()
                    .take_while(|packed| Rmap::words(packed) <= limit)
                    .count(),
                _ => left.len(),
            };
            if source.taken > 0
                && source.position == 0
                && count == left.len()
                && (out.is_empty() || out.len() >= CHUNK / 2)
            {
                self.add(core::mem::take(&mut out), false, &mut before, room)?;
                source.taken = 0;
                self.add(core::mem::take(&mut source.now), true, &mut before, room)?;
            } else {
                if out.capacity() == 0 {
                    out = KVVec::with_capacity(CHUNK, GFP_KERNEL)?;
                }
                let count = count.min(CHUNK - out.len());
                out.extend_from_slice(left.get(..count).unwrap_or_default(), GFP_KERNEL)?;
                source.position += count;
                if out.len() == CHUNK {
                    self.add(core::mem::take(&mut out), false, &mut before, room)?;
                }
            }
            source.advance(pool, give)?;
            sort::sift_down(&mut sources, 0, Source::goes_before);
        }
        self.add(out, false, &mut before, room)
    }

    /// Appends a chunk. `counted` says that its memory is already accounted for.
    fn add(
        &mut self,
        records: KVVec<Packed>,
        counted: bool,
        before: &mut Option<Packed>,
        room: &mut dyn FnMut(usize) -> bool,
    ) -> Result {
        let Some(last) = records.last().map(Rmap::words) else {
            return Ok(());
        };
        let count = records.len();
        let before_chunk = self.chunks.last().map_or(0, |chunk| chunk.reach_so_far);
        let (mut reach, mut reach_so_far) = (0, before_chunk);
        let mut earlier = before.take();
        for packed in records.iter() {
            let (start, owner) = place(packed);
            if let Some(one) = earlier.filter(|_| start <= reach_so_far.saturating_add(1)) {
                self.overlap |= start <= reach_so_far;
                // This detects only records with no other owner's record between them. Callers that
                // follow the appenders' rule do not depend on it.
                if place(&one).1 == owner {
                    let (one, next) = (unpack(&one)?, unpack(packed)?);
                    if one.clashes(&next) || one.continues(&next) {
                        return Err(Error::Mismatch("an owner was appended in pieces"));
                    }
                }
            }
            reach = reach.max(Rmap::last_in(packed).ok_or(Error::Mismatch("no record"))?);
            reach_so_far = reach_so_far.max(reach);
            earlier = Some(*packed);
        }
        *before = earlier;
        let home = if counted || room(CHUNK_BYTES) {
            Home::Memory(records)
        } else {
            let pool = self.pool.as_deref().ok_or(Error::NoMemory)?;
            let at = pool.extend(count * Rmap::SIZE)?;
            pool.write(at, records.as_flattened())?;
            Home::File(at)
        };
        let chunk = Chunk {
            home,
            count,
            last,
            reach,
            reach_so_far,
            hidden: 0,
        };
        self.chunks.push(chunk, GFP_KERNEL)?;
        self.len += count as u64;
        Ok(())
    }

    /// Returns the records of a chunk.
    fn records(&mut self, index: usize) -> Result<&[Packed]> {
        let chunk = self.chunks.get(index).ok_or(Error::Io)?;
        match &chunk.home {
            Home::Memory(records) => Ok(records),
            Home::File(at) => {
                if self.window.0 != index {
                    self.window.0 = usize::MAX;
                    read(self.pool.as_deref(), *at, chunk.count, &mut self.window.1)?;
                    self.window.0 = index;
                }
                Ok(&self.window.1)
            }
        }
    }

    /// Returns the position of the first record whose key is at least `key`.
    pub(super) fn lower_bound(&mut self, key: [u64; 2]) -> Result<Place> {
        let chunk = self.chunks.partition_point(|chunk| chunk.last < key);
        if chunk == self.chunks.len() {
            return Ok((chunk, 0));
        }
        let records = self.records(chunk)?;
        Ok((chunk, records.partition_point(|packed| Rmap::words(packed) < key)))
    }

    /// Advances `at` past hidden records, and returns true if no record is left.
    pub(super) fn is_end(&mut self, at: &mut Place) -> Result<bool> {
        while let Some(chunk) = self.chunks.get(at.0) {
            let (count, hidden) = (chunk.count, chunk.hidden);
            if hidden > 0 && at.1 < count {
                let from = at.1;
                let records = self.records(at.0)?.get(from..).unwrap_or_default();
                at.1 += records.iter().take_while(|packed| is_hidden(packed)).count();
            }
            if at.1 < count {
                return Ok(false);
            }
            *at = (at.0 + 1, 0);
        }
        Ok(true)
    }

    /// Returns some of the visible records at `at` whose keys are less than `limit`, and advances
    /// `at` past them. Returns an empty slice if there are none.
    pub(super) fn next(&mut self, at: &mut Place, limit: Option<[u64; 2]>) -> Result<&[Packed]> {
        if self.is_end(at)? {
            return Ok(&[]);
        }
        let (index, from) = *at;
        let (last, hidden) = self
            .chunks
            .get(index)
            .map_or(([0; 2], 0), |chunk| (chunk.last, chunk.hidden));
        let records = self.records(index)?.get(from..).unwrap_or_default();
        let mut count = match limit {
            Some(limit) if last >= limit => records.partition_point(|packed| Rmap::words(packed) < limit),
            _ => records.len(),
        };
        let part = records.get(..count).unwrap_or_default();
        if hidden > 0 {
            count = part.iter().take_while(|packed| !is_hidden(packed)).count();
        }
        at.1 += count;
        Ok(self.records(index)?.get(from..from + count).unwrap_or_default())
    }

    /// Visits every visible record that covers any of the blocks from `first` to `last`, in no
    /// particular order.
    pub(super) fn overlapping(
        &mut self,
        first: u32,
        last: u32,
        visit: &mut dyn FnMut(Place, &Rmap) -> Result,
    ) -> Result {
        let behind = match last.checked_add(1) {
            Some(behind) => self.lower_bound(Rmap::key_from(behind).words())?,
            None => (self.chunks.len(), 0),
        };
        let overlap = self.overlap;
        // Look at all records of each chunk, except in the last one, which is looked at up to
        // `behind`.
        let mut end = Some(behind.1);
        for index in (0..=behind.0).rev() {
            let Some(chunk) = self.chunks.get(index) else {
                end = None;
                continue;
            };
            if chunk.reach_so_far < first {
                return Ok(());
            }
            let within = ..end.take().unwrap_or(chunk.count);
            // `reach_so_far` may be due to a long record in a much earlier chunk.
            if chunk.reach < first {
                continue;
            }
            let records = self.records(index)?;
            for (at, packed) in records.get(within).unwrap_or_default().iter().enumerate().rev() {
                let reaches = Rmap::last_in(packed).is_some_and(|last| last >= first);
                if reaches && !is_hidden(packed) {
                    visit((index, at), &unpack(packed)?)?;
                }
                // Without overlaps, all earlier records end before this one does.
                if !overlap && !reaches {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Hides a record.
    pub(super) fn hide(&mut self, (index, at): Place) -> Result {
        self.records(index)?;
        let chunk = self.chunks.get_mut(index).ok_or(Error::Io)?;
        let (records, file) = match &mut chunk.home {
            Home::Memory(records) => (records, None),
            Home::File(place) => (&mut self.window.1, Some(*place)),
        };
        let packed = records.get_mut(at).ok_or(Error::Io)?;
        let mut changed = *packed;
        if let Some(byte) = changed.get_mut(HIDDEN_AT.0) {
            *byte |= HIDDEN_AT.1;
        }
        if let Some(place) = file {
            let pool = self.pool.as_deref().ok_or(Error::Io)?;
            pool.write(place + (at * Rmap::SIZE) as u64, &changed)?;
        }
        *packed = changed;
        chunk.hidden += 1;
        self.hidden += 1;
        Ok(())
    }
}
