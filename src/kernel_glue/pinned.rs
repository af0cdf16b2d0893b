// SPDX-License-Identifier: GPL-2.0

//! Many values that must not move, such as locks, in one allocation.

use core::ops::Deref;
use kernel::prelude::*;

/// Values that do not move until all of them are dropped.
///
/// # Invariants
///
/// The values are pinned: the vector neither grows nor gives out unique references.
pub(crate) struct Pinned<T>(KVVec<T>);

impl<T> Pinned<T> {
    /// Creates `count` values, each in its final place.
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
            // SAFETY: The place is valid for writes and holds no value yet. The vector has its full
            // capacity already, so the value stays there, and by the type invariant no one moves it
            // until it is dropped.
            let Ok(()) = unsafe { make().__pinned_init(place) };
            // SAFETY: There is room for it, and the value was just initialized.
            unsafe { values.inc_len(1) };
        }
        // INVARIANT: From now on, the vector is only read and dropped.
        Ok(Pinned(values))
    }
}

impl<T> Deref for Pinned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}
