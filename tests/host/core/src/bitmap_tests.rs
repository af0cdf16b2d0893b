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

    #[test]
    fn runs_of_clear_bits_are_found(
        pieces in prop::collection::vec((any::<bool>(), 1..150usize), 1..12),
        from in 0..400usize, end in 0..400usize, most in 1..200u32,
    ) {
        let bits: Vec<bool> = pieces.iter().flat_map(|&(set, len)| vec![set; len]).take(400).collect();
        let all = bytes(&bits);
        // The padding of the last byte is clear, and bits behind that count as set.
        let is_clear = |bit: usize| bit < all.len() * 8 && !bits.get(bit).copied().unwrap_or(false);
        let first = (from..end).find(|&bit| is_clear(bit));
        prop_assert_eq!(bitmap::next_clear(&all, from as u32, end as u32), first.map(|bit| bit as u32));
        let run = |bit: usize| (bit..end).take_while(|&bit| is_clear(bit)).take(most as usize).count() as u32;
        prop_assert_eq!(bitmap::clear_run(&all, from as u32, end as u32, most), run(from));
        let runs: Vec<(u32, u32)> = (from..end)
            .filter(|&bit| is_clear(bit) && (bit == from || !is_clear(bit - 1)))
            .map(|bit| (bit as u32, run(bit)))
            .collect();
        let longest = runs.iter().map(|&(_, len)| len).max();
        let best = runs.iter().find(|&&(_, len)| Some(len) == longest).copied();
        prop_assert_eq!(bitmap::find_run(&all, from as u32, end as u32, most), best);
        if from == 0 && longest.is_none_or(|len| len < most) {
            prop_assert_eq!(bitmap::longest_run(&all, end as u32), longest.unwrap_or(0));
        }
    }

    #[test]
    fn merged_bits_are_those_of_both(
        bits in prop::collection::vec(any::<bool>(), BITS), other in prop::collection::vec(any::<bool>(), BITS),
    ) {
        let mut found = bytes(&bits);
        bitmap::merge(&mut found, &bytes(&other));
        let wanted: Vec<bool> = bits.iter().zip(&other).map(|(first, second)| first | second).collect();
        prop_assert_eq!(found, bytes(&wanted));
    }
}

#[test]
fn nothing_changes_beyond_the_bitmap() {
    let mut bits = [0u8; 2];
    assert_eq!(bitmap::assign(&mut bits, 10, 100, true), 6);
    assert_eq!(bits, [0, 0xfc]);
}
