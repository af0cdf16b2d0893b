// SPDX-License-Identifier: GPL-2.0

//! Values and arrays that are replaced or become longer while others use them.
//!
//! [`Latest`] is a value of which a new version can be published at any time. References to earlier
//! versions remain valid, since these are freed only together with the whole. [`Growing`] is an
//! array of pinned values that becomes longer in few large segments; no value ever moves.

use super::Pinned;
use core::{ops::Deref, ptr::null_mut};
use kernel::{
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Relaxed, Release},
        SetOnce,
    },
};

/// One version of a value.
struct Version<T> {
    value: T,
    /// The version before this one; null for none.
    before: *mut Version<T>,
}

/// A value of which new versions can be published. Dereferences to the newest. Every version is
/// kept until the whole is dropped, so it is for values that seldom change.
///
/// # Invariants
///
/// `newest` is the head of a list of versions, each in an allocation of its own that belongs to
/// this list alone. A version that is in the list is not changed.
pub(crate) struct Latest<T> {
    newest: Atomic<*mut Version<T>>,
}

impl<T> Latest<T> {
    /// Returns a value with one version. Fails with `ENOMEM`.
    pub(crate) fn new(value: T) -> Result<Self> {
        let first = Version {
            value,
            before: null_mut(),
        };
        // INVARIANT: The list consists of this version, which was allocated for it.
        Ok(Latest {
            newest: Atomic::new(KBox::into_raw(KBox::new(first, GFP_KERNEL)?)),
        })
    }

    /// Allocates what [`Prepared::publish`] needs, so that publishing cannot fail. Fails with
    /// `ENOMEM`.
    pub(crate) fn prepare(&self, value: T) -> Result<Prepared<'_, T>> {
        let version = Version {
            value,
            before: null_mut(),
        };
        Ok(Prepared {
            of: self,
            version: KBox::new(version, GFP_KERNEL)?,
        })
    }
}

/// A version that was not published yet.
#[must_use]
pub(crate) struct Prepared<'a, T> {
    of: &'a Latest<T>,
    version: KBox<Version<T>>,
}

impl<T> Prepared<'_, T> {
    /// Makes this the newest version.
    pub(crate) fn publish(mut self) {
        let mut newest = self.of.newest.load(Relaxed);
        self.version.before = newest;
        let new = KBox::into_raw(self.version);
        loop {
            // INVARIANT: The new head refers to the former one, and is not in the list before the
            // exchange succeeds.
            match self.of.newest.cmpxchg(newest, new, Release) {
                Ok(_) => return,
                Err(found) => newest = found,
            }
            // SAFETY: It was allocated above, and nobody else knows it yet.
            unsafe { (*new).before = newest };
        }
    }
}

impl<T> Deref for Latest<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: By the type invariant the pointer is to a version that is neither changed nor
        // freed before the list is dropped, which the borrow of `self` rules out.
        unsafe { &(*self.newest.load(Acquire)).value }
    }
}

impl<T> Drop for Latest<T> {
    fn drop(&mut self) {
        let mut version = self.newest.load(Acquire);
        while !version.is_null() {
            // SAFETY: By the type invariant it was allocated as a box and belongs to this list. All
            // references to it have ended, since they borrow the list.
            let this = unsafe { KBox::from_raw(version) };
            version = this.before;
        }
    }
}

// SAFETY: The versions are owned values, of which shared references are handed out.
unsafe impl<T: Send + Sync> Send for Latest<T> {}
// SAFETY: As above; publishing is atomic.
unsafe impl<T: Send + Sync> Sync for Latest<T> {}

/// Number of times that an array can become longer. Each time it at least doubles.
const SEGMENTS: usize = 32;

/// An array of pinned values that can become longer.
pub(crate) struct Growing<T> {
    first: Pinned<T>,
    more: [SetOnce<Pinned<T>>; SEGMENTS],
}

impl<T> Growing<T> {
    /// Returns an array of these values.
    pub(crate) fn new(first: Pinned<T>) -> Self {
        Growing {
            first,
            more: [const { SetOnce::new() }; SEGMENTS],
        }
    }

    /// Returns a value.
    pub(crate) fn get(&self, mut index: usize) -> Option<&T> {
        if let Some(value) = self.first.get(index) {
            return Some(value);
        }
        index -= self.first.len();
        for segment in &self.more {
            let segment = segment.as_ref()?;
            if let Some(value) = segment.get(index) {
                return Some(value);
            }
            index -= segment.len();
        }
        None
    }

    /// Makes the array at least this long, with values made by `make`. Only one task at a time may
    /// do so; if several do, all but one fail.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; `EFBIG` if it cannot become longer; `EBUSY` if another task makes it longer.
    pub(crate) fn grow<I: PinInit<T>>(&self, count: usize, make: impl Fn() -> I) -> Result {
        let mut all = self.first.len();
        for segment in &self.more {
            if all >= count {
                return Ok(());
            }
            match segment.as_ref() {
                Some(segment) => all += segment.len(),
                None => {
                    let values = Pinned::new((count - all).max(all), make)?;
                    return match segment.populate(values) {
                        true => Ok(()),
                        false => Err(EBUSY),
                    };
                }
            }
        }
        match all >= count {
            true => Ok(()),
            false => Err(EFBIG),
        }
    }
}
