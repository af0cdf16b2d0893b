// SPDX-License-Identifier: GPL-2.0

//! The sort, compared with the standard library's.

use crate::sort;
use proptest::prelude::*;

proptest! {
    #[test]
    fn sorts_as_the_standard_library_does(mut items in prop::collection::vec(any::<u16>(), 0..2000)) {
        let mut wanted = items.clone();
        wanted.sort_unstable();
        sort::by_key(&mut items, |item| *item);
        prop_assert_eq!(&items, &wanted);
        sort::by_key(&mut items, |item| core::cmp::Reverse(*item));
        wanted.reverse();
        prop_assert_eq!(items, wanted);
    }
}
