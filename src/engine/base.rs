// SPDX-License-Identifier: GPL-2.0

//! The records that a scan found, in key order: the part of a shadow that no longer changes.
//!
//! They are added in order ([`super::gather`]) and stored in chunks; chunks that do not fit in
//! memory are in a [`Pool`]'s file.
//!
//! The records do not move. Changes are kept separately ([`super::shadow`]): a record that a change
//! touches is *lifted*, which here means that it is hidden by setting the one bit of a stored
//! record that is zero on disk.

use super::{
    gather::{unpack, Packed},
    pool::Pool,
    record::{Kind, Record, Rmap},
    Error, Result,
};
use crate::format::tree_layout::HIDDEN;
use kernel::{prelude::*, sync::Arc};

/// Maximum number of records in a chunk.
pub(super) const CHUNK: usize = 1024;

/// Returns the size of a chunk in bytes, including its element in the list, which doubles as it
/// grows.
fn bytes_of(records: &KVVec<Packed>) -> usize {
    records.capacity() * Rmap::SIZE + 2 * size_of::<Chunk>()
}

/// The byte of a stored record that contains [`HIDDEN`] (the highest byte of its second word), and
/// the bit in that byte.
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
    /// The last record.
    before: Option<Packed>,
    /// A chunk of the file that was read: which, and its records.
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
            before: None,
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

    /// Appends records, which must be in order and behind all existing ones. `room` returns whether
    /// that many bytes of memory may be used for them.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] if an owner has the same blocks twice for the same purpose, which is
    /// found only if no other owner's record is in between.
    pub(super) fn add(&mut self, records: KVVec<Packed>, room: &mut dyn FnMut(usize) -> bool) -> Result {
        let Some(last) = records.last().map(Rmap::words) else {
            return Ok(());
        };
        let count = records.len();
        let before_chunk = self.chunks.last().map_or(0, |chunk| chunk.reach_so_far);
        let (mut reach, mut reach_so_far) = (0, before_chunk);
        let mut earlier = self.before.take();
        for packed in records.iter() {
            let (start, owner) = place(packed);
            if let Some(one) = earlier.filter(|_| start <= reach_so_far.saturating_add(1)) {
                self.overlap |= start <= reach_so_far;
                if place(&one).1 == owner {
                    let (one, next) = (unpack(&one)?, unpack(packed)?);
                    // Mapping nodes that are reached twice are damage of the inode, reported as an
                    // overlap.
                    let twice = one.kind != Kind::Mapping && one.clashes(&next);
                    if twice || one.continues(&next) {
                        return Err(Error::Mismatch("an owner was appended in pieces"));
                    }
                }
            }
            reach = reach.max(Rmap::last_in(packed).ok_or(Error::Mismatch("no record"))?);
            reach_so_far = reach_so_far.max(reach);
            earlier = Some(*packed);
        }
        self.before = earlier;
        let home = if room(bytes_of(&records)) {
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
