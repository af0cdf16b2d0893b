// SPDX-License-Identifier: GPL-2.0

//! Bitmaps: bit `n` is bit `n % 8` of byte `n / 8`; a set bit means in use.

/// Returns true if a bit is set. Bits beyond the end of the bitmap count as set.
pub(crate) fn is_set(bitmap: &[u8], bit: u32) -> bool {
    bitmap
        .get(bit as usize / 8)
        .is_none_or(|byte| (byte >> (bit % 8)) & 1 != 0)
}

/// Sets or clears `len` bits starting at `start`. Returns how many of them changed.
pub(crate) fn assign(bitmap: &mut [u8], start: u32, len: u32, value: bool) -> u32 {
    let mut changed = 0;
    let (mut bit, end) = (start, start.saturating_add(len));
    while bit < end {
        let Some(byte) = bitmap.get_mut(bit as usize / 8) else {
            break;
        };
        let run = (8 - bit % 8).min(end - bit);
        let mask = (0xffu8 >> (8 - run)) << (bit % 8);
        let new = if value { *byte | mask } else { *byte & !mask };
        changed += (*byte ^ new).count_ones();
        *byte = new;
        bit += run;
    }
    changed
}

/// Returns 64 bits, from bit `64 * index` on. Bits beyond the end of the bitmap count as set.
fn word(bitmap: &[u8], index: usize) -> u64 {
    let rest = bitmap.get(index.saturating_mul(8)..).unwrap_or(&[]);
    match rest.first_chunk() {
        Some(bytes) => u64::from_le_bytes(*bytes),
        None => {
            let mut bytes = [0xff; 8];
            for (to, from) in bytes.iter_mut().zip(rest) {
                *to = *from;
            }
            u64::from_le_bytes(bytes)
        }
    }
}

/// Returns the first bit in `from..end` that is set or, with all bits of `flip` set, clear; `end`
/// if there is none.
fn next(bitmap: &[u8], from: u32, end: u32, flip: u64) -> u32 {
    let mut at = from;
    while at < end {
        let found = (word(bitmap, at as usize / 64) ^ flip) >> (at % 64);
        if found != 0 {
            return at.saturating_add(found.trailing_zeros()).min(end);
        }
        at = (at | 63).saturating_add(1);
    }
    end
}

/// Returns the first clear bit in `from..end`.
pub(crate) fn next_clear(bitmap: &[u8], from: u32, end: u32) -> Option<u32> {
    let end = end.min(u32::try_from(bitmap.len().saturating_mul(8)).unwrap_or(u32::MAX));
    let bit = next(bitmap, from, end, u64::MAX);
    (bit < end).then_some(bit)
}

/// Counts the clear bits among the first `end`.
pub(crate) fn count_clear(bitmap: &[u8], end: u32) -> u32 {
    let whole = end as usize / 8;
    let clear: u32 = bitmap.iter().take(whole).map(|byte| byte.count_zeros()).sum();
    let rest = (whole as u32 * 8..end).filter(|&bit| !is_set(bitmap, bit));
    clear + rest.count() as u32
}

/// Counts clear bits starting at `from`, at most `most` and none at or beyond `end`.
pub(crate) fn clear_run(bitmap: &[u8], from: u32, end: u32, most: u32) -> u32 {
    let stop = end.min(from.saturating_add(most));
    next(bitmap, from, stop, 0).saturating_sub(from)
}

/// Returns the length of the longest run of clear bits before `end`.
pub(crate) fn longest_run(bitmap: &[u8], end: u32) -> u32 {
    find_run(bitmap, 0, end, u32::MAX).map_or(0, |(_, len)| len)
}

/// Sets the bits of a bitmap that are set in another one.
pub(crate) fn merge(bitmap: &mut [u8], other: &[u8]) {
    for (to, from) in bitmap.chunks_mut(8).zip(other.chunks(8)) {
        match (to.first_chunk_mut::<8>(), from.first_chunk::<8>()) {
            (Some(to), Some(from)) => {
                *to = (u64::from_ne_bytes(*to) | u64::from_ne_bytes(*from)).to_ne_bytes();
            }
            _ => to.iter_mut().zip(from).for_each(|(to, from)| *to |= from),
        }
    }
}

/// Returns the best run of at most `want` clear bits within `from..end`: the first of that length,
/// or else the longest.
pub(crate) fn find_run(bitmap: &[u8], from: u32, end: u32, want: u32) -> Option<(u32, u32)> {
    let mut best: Option<(u32, u32)> = None;
    let mut at = from;
    while let Some(start) = next_clear(bitmap, at, end) {
        let len = clear_run(bitmap, start, end, want);
        if len >= want {
            return Some((start, len));
        }
        if best.is_none_or(|(_, longest)| len > longest) {
            best = Some((start, len));
        }
        at = start.saturating_add(len.max(1));
    }
    best
}
