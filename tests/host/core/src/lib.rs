// SPDX-License-Identifier: GPL-2.0

//! The pure layers of rext4, compiled for the host unchanged, so that their tests run in
//! milliseconds.

#![cfg_attr(not(test), deny(unsafe_code))]

include!("../../layers.rs");

pub mod fuzz;

/// Counts the bytes that each thread has allocated and not freed.
#[cfg(test)]
mod counting {
    use std::{
        alloc::{GlobalAlloc, Layout, System},
        cell::Cell,
    };

    thread_local! {
        static ALLOCATED: Cell<isize> = const { Cell::new(0) };
    }

    struct Counting;

    fn count(bytes: isize) {
        // A thread that ends frees after its variables are gone.
        let _ = ALLOCATED.try_with(|all| all.set(all.get() + bytes));
    }

    // SAFETY: All is done by the system's allocator.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            count(layout.size() as isize);
            // SAFETY: As the caller promises.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
            count(-(layout.size() as isize));
            // SAFETY: As the caller promises.
            unsafe { System.dealloc(ptr, layout) }
        }
    }

    #[global_allocator]
    static COUNTING: Counting = Counting;

    /// Bytes that this thread has allocated and not freed.
    pub(crate) fn allocated() -> isize {
        ALLOCATED.get()
    }
}
#[cfg(test)]
pub(crate) use counting::allocated;

#[cfg(test)]
mod bitmap_tests;
#[cfg(test)]
mod check_tests;
#[cfg(test)]
mod compare_tests;
#[cfg(test)]
mod delta_tests;
#[cfg(test)]
mod engine_tests;
#[cfg(test)]
mod format_tests;
#[cfg(test)]
mod htree_tests;
#[cfg(test)]
mod indirect_tests;
#[cfg(test)]
mod owners_tests;
#[cfg(test)]
mod refcount_tests;
#[cfg(test)]
mod scan_tests;
#[cfg(test)]
mod shadow_tests;
#[cfg(test)]
mod sort_tests;
#[cfg(test)]
mod xattr_tests;
