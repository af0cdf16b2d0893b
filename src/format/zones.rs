// SPDX-License-Identifier: GPL-2.0

//! Ranges of blocks that no file may have, kept in order so that one look tells whether a run of blocks meets any.

/// A range of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Zone {
    /// The first block.
    pub(crate) start: u64,
    /// The block behind the last one.
    pub(crate) end: u64,
}

/// Puts zones in order and makes one of those that meet or touch. Answers how many are left; they come first.
pub(crate) fn settle(zones: &mut [Zone]) -> usize {
    crate::sort::by_key(zones, |zone| zone.start);
    let mut kept = 0usize;
    for index in 0..zones.len() {
        let Some(&zone) = zones.get(index).filter(|zone| zone.start < zone.end) else {
            continue;
        };
        match kept.checked_sub(1).and_then(|last| zones.get_mut(last)) {
            Some(last) if zone.start <= last.end => last.end = last.end.max(zone.end),
            _ => {
                if let Some(place) = zones.get_mut(kept) {
                    *place = zone;
                }
                kept += 1;
            }
        }
    }
    kept
}

/// Hands out, in order, the parts of `start..end` that lie in none of the zones, which [`settle`] put in order.
pub(crate) fn outside<E>(
    zones: &[Zone],
    start: u64,
    end: u64,
    out: &mut dyn FnMut(u64, u64) -> Result<(), E>,
) -> Result<(), E> {
    let first = zones.partition_point(|zone| zone.end <= start);
    let mut at = start;
    for zone in zones.iter().skip(first).take_while(|zone| zone.start < end) {
        if at < zone.start {
            out(at, zone.start)?;
        }
        at = zone.end;
    }
    if at < end {
        out(at, end)?;
    }
    Ok(())
}

/// Whether any of `len` blocks from `start` on lies in one of the zones, which [`settle`] put in order.
pub(crate) fn meets(zones: &[Zone], start: u64, len: u32) -> bool {
    let first = zones.partition_point(|zone| zone.end <= start);
    zones
        .get(first)
        .is_some_and(|zone| len > 0 && zone.start < start.saturating_add(u64::from(len)))
}
