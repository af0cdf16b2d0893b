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

/// Returns the first clear bit in `from..end`.
pub(crate) fn next_clear(bitmap: &[u8], from: u32, end: u32) -> Option<u32> {
    let mut bit = from;
    while bit < end {
        if bit % 8 == 0 && bitmap.get(bit as usize / 8).copied().unwrap_or(0xff) == 0xff {
            bit += 8;
            continue;
        }
        if !is_set(bitmap, bit) {
            return Some(bit);
        }
        bit += 1;
    }
    None
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
    let mut bit = from;
    while bit < stop {
        if bit % 8 == 0 && stop - bit >= 8 && bitmap.get(bit as usize / 8) == Some(&0) {
            bit += 8;
        } else if is_set(bitmap, bit) {
            break;
        } else {
            bit += 1;
        }
    }
    bit.saturating_sub(from)
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
