// SPDX-License-Identifier: GPL-2.0

//! How fast the shadow takes what a scan finds, and in how many bytes. Measures only when asked:
//!
//! ```text
//! cargo test --release -- --ignored --nocapture shadow_bench
//! ```

use crate::engine::{
    record::{Kind, Rmap},
    shadow::Shadow,
};
use std::time::Instant;

/// What a scan finds: runs of a few extents an inode, in order of inodes, as a volume that has been used for some time
/// has them. `spread` says how far an extent may lie from where the order of inodes would put it; 0 for not at all.
pub(crate) fn found(count: u32, spread: u32) -> Vec<Rmap> {
    let mut state = 1u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 4
    };
    // No two of them at the same place: each extent has a slot of 16 blocks.
    let mut slots: Vec<u32> = (0..count).collect();
    if spread > 0 {
        for at in 0..count {
            let other = (at + random() % spread) % count;
            slots.swap(at as usize, other as usize);
        }
    }
    (0u32..)
        .zip(slots)
        .map(|(index, slot)| Rmap {
            start: slot * 16,
            len: 1 + random() % 15,
            owner: 11 + index / 4,
            offset: index % 4 * 1000,
            kind: Kind::Data,
            unwritten: false,
        })
        .collect()
}

fn measure(name: &str, all: &[Rmap], append: bool) {
    let start = Instant::now();
    let mut shadow = Shadow::new(1 << 30).unwrap();
    let mut appender = append.then(|| shadow.appender());
    for record in all {
        match &mut appender {
            None => shadow.add_owner(*record).unwrap(),
            Some(appender) => {
                appender.push(*record).unwrap();
                if appender.is_full() {
                    shadow.absorb(appender).unwrap();
                }
            }
        }
    }
    if let Some(appender) = appender {
        shadow.close(appender).unwrap();
    }
    let took = start.elapsed();
    let mut bytes = shadow.bytes();
    // The first who asks has what was appended sorted and loaded.
    let start = Instant::now();
    shadow.walk(&mut |_| Ok(false)).unwrap();
    let settled = start.elapsed();
    bytes = bytes.max(shadow.bytes());
    let start = Instant::now();
    let mut count = 0;
    shadow
        .walk(&mut |_| {
            count += 1;
            Ok(true)
        })
        .unwrap();
    let walked = start.elapsed();
    assert_eq!(count, all.len());
    let each = |time: std::time::Duration| time.as_nanos() as usize / all.len();
    println!(
        "{name}, {}: {} ns to take, {} ns to settle, {} ns to walk, {:.2} bytes, a record",
        if append { "appended" } else { "added" },
        each(took),
        each(settled),
        each(walked),
        bytes as f64 / all.len() as f64
    );
}

#[test]
#[ignore = "measures"]
fn shadow_bench() {
    for append in [false, true] {
        measure("in order", &found(1_000_000, 0), append);
        measure("nearly in order", &found(1_000_000, 1000), append);
        measure("in random order", &found(1_000_000, 1_000_000), append);
    }
}
