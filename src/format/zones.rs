// SPDX-License-Identifier: GPL-2.0

//! Sorted ranges of blocks that files cannot own, for fast lookups whether a run of blocks overlaps
//! any.

/// A range of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Zone {
    /// First block.
    pub(crate) start: u64,
    /// Block after the last one.
    pub(crate) end: u64,
}

/// Sorts zones and merges those that overlap or touch. Returns how many are left at the front.
pub(crate) fn merge(zones: &mut [Zone]) -> usize {
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

/// Passes the parts of `start..end` outside of all zones, which [`merge`] has sorted, to a closure
/// in order.
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

/// Returns true if any of `len` blocks from `start` is in one of the zones, which [`merge`] has
/// sorted.
pub(crate) fn meets(zones: &[Zone], start: u64, len: u32) -> bool {
    let first = zones.partition_point(|zone| zone.end <= start);
    zones
        .get(first)
        .is_some_and(|zone| len > 0 && zone.start < start.saturating_add(u64::from(len)))
}
