// SPDX-License-Identifier: GPL-2.0

//! Binary heaps over slices, and sorting with next to no stack.
//!
//! The standard library's quicksort keeps small arrays on the stack of each nested call, which
//! exceeds a kernel stack. [`by_key`] is a heap sort: in place, without recursion, O(n log n) in
//! the worst case. A slice that is already sorted is left alone.

/// Moves the item at `from` down a binary heap until no child of it belongs before it.
pub(crate) fn sift_down<T>(heap: &mut [T], from: usize, before: impl Fn(&T, &T) -> bool) {
    let mut root = from;
    loop {
        let left = 2 * root + 1;
        let Some(mut child) = heap.get(left).map(|_| left) else {
            return;
        };
        if let (Some(one), Some(other)) = (heap.get(left), heap.get(left + 1)) {
            if before(other, one) {
                child = left + 1;
            }
        }
        match (heap.get(child), heap.get(root)) {
            (Some(below), Some(above)) if before(below, above) => heap.swap(root, child),
            _ => return,
        }
        root = child;
    }
}

/// Moves the item at `from` up a binary heap until it does not belong before its parent.
pub(crate) fn sift_up<T>(heap: &mut [T], from: usize, before: impl Fn(&T, &T) -> bool) {
    let mut index = from;
    while index > 0 {
        let above = (index - 1) / 2;
        match (heap.get(index), heap.get(above)) {
            (Some(one), Some(parent)) if before(one, parent) => heap.swap(above, index),
            _ => return,
        }
        index = above;
    }
}

/// Sorts by a key. The order of items with equal keys is not defined.
pub(crate) fn by_key<T: Copy, K: Ord>(items: &mut [T], key: impl Fn(&T) -> K) {
    if items.is_sorted_by_key(&key) {
        return;
    }
    let greater = |one: &T, other: &T| key(one) > key(other);
    for root in (0..items.len() / 2).rev() {
        sift_down(items, root, greater);
    }
    for end in (1..items.len()).rev() {
        items.swap(0, end);
        if let Some(rest) = items.get_mut(..end) {
            sift_down(rest, 0, greater);
        }
    }
}
