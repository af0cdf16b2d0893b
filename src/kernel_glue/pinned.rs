// SPDX-License-Identifier: GPL-2.0

//! Many values that must stay where they are made, such as locks, in one allocation.

use core::ops::Deref;
use kernel::prelude::*;

/// Values that stay where they are until all of them are dropped.
///
/// # Invariants
///
/// The values are pinned: the vector neither grows nor gives out unique references.
pub(crate) struct Pinned<T>(KVVec<T>);

impl<T> Pinned<T> {
    /// Makes `count` values, each in its final place.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new<I: PinInit<T>>(count: usize, make: impl Fn() -> I) -> Result<Self> {
        let mut values = KVVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            let place = values
                .spare_capacity_mut()
                .first_mut()
                .ok_or(ENOMEM)?
                .as_mut_ptr();
            // SAFETY: The place is valid for writes and holds no value yet. The vector has all its
            // room already, so that the value stays there, and by the type invariant nobody moves
            // it until it is dropped.
            let Ok(()) = unsafe { make().__pinned_init(place) };
            // SAFETY: There is room for it, and the value was made just now.
            unsafe { values.inc_len(1) };
        }
        // INVARIANT: The vector is not touched any more but to be read and dropped.
        Ok(Pinned(values))
    }
}

impl<T> Deref for Pinned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}
