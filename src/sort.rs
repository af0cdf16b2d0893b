// SPDX-License-Identifier: GPL-2.0

//! Sorting with next to no stack.
//!
//! The standard library's quicksort keeps small arrays on the stack of each of its nested calls, which is more than a kernel
//! stack has. This is a heap sort: in place, no recursion, n log n at worst; what is in order already is left alone.

/// Sorts by a key. Equal ones end in any order.
pub(crate) fn by_key<T: Copy, K: Ord>(items: &mut [T], key: impl Fn(&T) -> K) {
    if items.is_sorted_by_key(&key) {
        return;
    }
    let sink = |items: &mut [T], from: usize| {
        let mut root = from;
        loop {
            let mut child = 2 * root + 1;
            if child >= items.len() {
                return;
            }
            if child + 1 < items.len() && key(&items[child]) < key(&items[child + 1]) {
                child += 1;
            }
            if key(&items[root]) >= key(&items[child]) {
                return;
            }
            items.swap(root, child);
            root = child;
        }
    };
    for root in (0..items.len() / 2).rev() {
        sink(items, root);
    }
    for end in (1..items.len()).rev() {
        items.swap(0, end);
        sink(&mut items[..end], 0);
    }
}
