// SPDX-License-Identifier: GPL-2.0

//! Bitmaps beside a vector of booleans.

use crate::format::bitmap;
use proptest::prelude::*;

/// Bits of the bitmaps under test.
const BITS: usize = 203;

fn bytes(bits: &[bool]) -> Vec<u8> {
    let mut bytes = vec![0; bits.len().div_ceil(8)];
    for (bit, _) in bits.iter().enumerate().filter(|(_, &set)| set) {
        bytes[bit / 8] |= 1 << (bit % 8);
    }
    bytes
}

proptest! {
    #[test]
    fn assign_changes_the_run_alone(
        bits in prop::collection::vec(any::<bool>(), BITS), start in 0..BITS, len in 0..BITS, value: bool,
    ) {
        let len = len.min(BITS - start);
        let (mut found, mut wanted) = (bytes(&bits), bits.clone());
        wanted[start..start + len].fill(value);
        let changed = bits.iter().zip(&wanted).filter(|(before, after)| before != after).count();
        prop_assert_eq!(bitmap::assign(&mut found, start as u32, len as u32, value) as usize, changed);
        prop_assert_eq!(found, bytes(&wanted));
    }

    #[test]
    fn clear_bits_are_counted_up_to_the_end(bits in prop::collection::vec(any::<bool>(), BITS), end in 0..=BITS) {
        let wanted = bits[..end].iter().filter(|&&set| !set).count();
        prop_assert_eq!(bitmap::count_clear(&bytes(&bits), end as u32) as usize, wanted);
    }
}

#[test]
fn nothing_changes_beyond_the_bitmap() {
    let mut bits = [0u8; 2];
    assert_eq!(bitmap::assign(&mut bits, 10, 100, true), 6);
    assert_eq!(bits, [0, 0xfc]);
}
