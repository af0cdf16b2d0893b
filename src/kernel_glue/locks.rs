// SPDX-License-Identifier: GPL-2.0

//! A sleeping lock that can be held by many readers or one writer (`struct rw_semaphore`).
//!
//! C header: [`include/linux/rwsem.h`](srctree/include/linux/rwsem.h)

use super::bindings;
use core::{
    cell::UnsafeCell,
    marker::PhantomData,
    ops::{Deref, DerefMut},
};
use kernel::{prelude::*, sync::LockClassKey, types::Opaque};

/// A value protected by a read-write semaphore.
///
/// # Invariants
///
/// The semaphore is initialized and pinned.
#[pin_data]
pub(crate) struct RwLock<T> {
    #[pin]
    semaphore: Opaque<bindings::rw_semaphore>,
    value: UnsafeCell<T>,
}

// SAFETY: Sending the lock sends the value, and nothing else.
unsafe impl<T: Send> Send for RwLock<T> {}
// SAFETY: The semaphore gives access to one writer or many readers, on any thread.
unsafe impl<T: Send + Sync> Sync for RwLock<T> {}

impl<T> RwLock<T> {
    /// Creates a lock around `value`. `key` is the lockdep class, a `static_lock_class!()`.
    pub(crate) fn new(value: T, name: &'static CStr, key: Pin<&'static LockClassKey>) -> impl PinInit<Self> {
        let init = move |slot: *mut bindings::rw_semaphore| {
            // SAFETY: The semaphore is new and at its final location; name and key are static.
            unsafe { bindings::__init_rwsem(slot, name.as_char_ptr().cast(), key.as_ptr().cast()) };
        };
        // INVARIANT: The semaphore is initialized here.
        pin_init!(Self {
            semaphore <- Opaque::ffi_init(init),
            value: UnsafeCell::new(value),
        })
    }

    /// Locks it shared. Sleeps while a writer holds it.
    pub(crate) fn read(&self) -> ReadGuard<'_, T> {
        // SAFETY: The semaphore is initialized by the type invariant.
        unsafe { bindings::down_read(self.semaphore.get()) };
        ReadGuard(self, PhantomData)
    }

    /// Locks it exclusively. Sleeps while anyone else holds it.
    pub(crate) fn write(&self) -> WriteGuard<'_, T> {
        // SAFETY: The semaphore is initialized by the type invariant.
        unsafe { bindings::down_write(self.semaphore.get()) };
        WriteGuard(self, PhantomData)
    }
}

/// Shared access to the value of an [`RwLock`].
pub(crate) struct ReadGuard<'a, T>(&'a RwLock<T>, PhantomData<*mut ()>);

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: The semaphore is held shared, so there is no writer.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> Drop for ReadGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: The semaphore is held shared by this thread.
        unsafe { bindings::up_read(self.0.semaphore.get()) };
    }
}

/// Exclusive access to the value of an [`RwLock`].
pub(crate) struct WriteGuard<'a, T>(&'a RwLock<T>, PhantomData<*mut ()>);

impl<T> Deref for WriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: The semaphore is held exclusively.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for WriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: The semaphore is held exclusively.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for WriteGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: The semaphore is held exclusively by this thread.
        unsafe { bindings::up_write(self.0.semaphore.get()) };
    }
}
