// SPDX-License-Identifier: GPL-2.0

//! The part of the kernel crate that the pure layers use, for the host.
//!
//! Names and signatures are the kernel's; the implementations use the standard library. Allocations
//! can be made to fail with [`alloc::fail_after`], so that tests reach every out-of-memory path.

/// Arrays with fallible growth.
pub mod alloc {
    use std::{
        cell::Cell,
        ops::{Deref, DerefMut},
    };

    /// Out of memory.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct AllocError;

    /// Allocation flags; ignored here.
    #[derive(Clone, Copy)]
    pub struct Flags(());

    /// See the kernel's `GFP_KERNEL`.
    pub const GFP_KERNEL: Flags = Flags(());

    thread_local! {
        static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
    }

    /// Lets this many more allocations of this thread succeed and all later ones fail; `None` lets
    /// all succeed.
    pub fn fail_after(allocations: Option<u64>) {
        LEFT.set(allocations);
    }

    /// Counts one allocation against the limit of [`fail_after`].
    fn take() -> Result<(), AllocError> {
        match LEFT.get() {
            None => Ok(()),
            Some(0) => Err(AllocError),
            Some(left) => {
                LEFT.set(Some(left - 1));
                Ok(())
            }
        }
    }

    /// A growable array.
    #[derive(Debug, PartialEq, Eq)]
    pub struct KVec<T>(Vec<T>);

    /// In the kernel, an array that need not be physically contiguous. The same as [`KVec`] here.
    pub type KVVec<T> = KVec<T>;

    impl<T> Default for KVec<T> {
        fn default() -> Self {
            Self::new()
        }
    }

    impl<T> KVec<T> {
        /// Creates an empty array without allocating.
        pub const fn new() -> Self {
            KVec(Vec::new())
        }

        /// Creates an empty array with the given capacity.
        pub fn with_capacity(capacity: usize, _flags: Flags) -> Result<Self, AllocError> {
            if capacity > 0 {
                take()?;
            }
            Ok(KVec(Vec::with_capacity(capacity)))
        }

        /// Appends an element.
        pub fn push(&mut self, value: T, flags: Flags) -> Result<(), AllocError> {
            self.reserve(1, flags)?;
            self.0.push(value);
            Ok(())
        }

        /// Reserves capacity for `additional` more elements.
        pub fn reserve(&mut self, additional: usize, _flags: Flags) -> Result<(), AllocError> {
            if self.0.capacity() - self.0.len() < additional {
                take()?;
                self.0.reserve(additional);
            }
            Ok(())
        }

        /// Removes and returns the last element.
        pub fn pop(&mut self) -> Option<T> {
            self.0.pop()
        }

        /// Removes all elements.
        pub fn clear(&mut self) {
            self.0.clear();
        }

        /// Drops all elements from index `len` on.
        pub fn truncate(&mut self, len: usize) {
            self.0.truncate(len);
        }

        /// Returns the total capacity.
        pub fn capacity(&self) -> usize {
            self.0.capacity()
        }
    }

    impl<T: Clone> KVec<T> {
        /// Appends all elements of a slice.
        pub fn extend_from_slice(&mut self, other: &[T], flags: Flags) -> Result<(), AllocError> {
            self.reserve(other.len(), flags)?;
            self.0.extend_from_slice(other);
            Ok(())
        }

        /// Creates an array of `n` times `value`.
        pub fn from_elem(value: T, n: usize, flags: Flags) -> Result<Self, AllocError> {
            let mut vec = Self::with_capacity(n, flags)?;
            vec.0.resize(n, value);
            Ok(vec)
        }
    }

    impl<T> Deref for KVec<T> {
        type Target = [T];

        fn deref(&self) -> &[T] {
            &self.0
        }
    }

    impl<T> IntoIterator for KVec<T> {
        type Item = T;
        type IntoIter = std::vec::IntoIter<T>;

        fn into_iter(self) -> Self::IntoIter {
            self.0.into_iter()
        }
    }

    impl<T> DerefMut for KVec<T> {
        fn deref_mut(&mut self) -> &mut [T] {
            &mut self.0
        }
    }
}

/// Synchronization between threads.
pub mod sync {
    pub use std::sync::Arc;

    /// Atomics. With the feature `shuttle`, each access is a point at which that crate may switch
    /// to another thread.
    pub mod atomic {
        #[cfg(feature = "shuttle")]
        use shuttle::sync::atomic as cells;
        #[cfg(not(feature = "shuttle"))]
        use std::sync::atomic as cells;
        use std::sync::atomic::Ordering as Order;

        /// Later accesses are not reordered before this one.
        pub struct Acquire;
        /// Earlier accesses are not reordered after this one.
        pub struct Release;
        /// No ordering.
        pub struct Relaxed;

        /// The memory ordering of an access.
        pub trait Ordering {
            /// The standard library's equivalent.
            const ORDER: Order;
        }

        impl Ordering for Acquire {
            const ORDER: Order = Order::Acquire;
        }

        impl Ordering for Release {
            const ORDER: Order = Order::Release;
        }

        impl Ordering for Relaxed {
            const ORDER: Order = Order::Relaxed;
        }

        /// A type that an [`Atomic`] can hold.
        pub trait AtomicType: Copy {
            /// The storage of the value.
            type Cell;
            /// Creates a cell with this value.
            fn cell(self) -> Self::Cell;
            /// Reads a cell.
            fn load(cell: &Self::Cell, order: Order) -> Self;
            /// Writes a cell.
            fn store(self, cell: &Self::Cell, order: Order);
            /// Replaces the value of a cell if it is `old`.
            fn cmpxchg(cell: &Self::Cell, old: Self, new: Self, order: Order) -> Result<Self, Self>;
        }

        macro_rules! holds {
            ($type:ty, $cell:ident) => {
                impl AtomicType for $type {
                    type Cell = cells::$cell;

                    fn cell(self) -> Self::Cell {
                        cells::$cell::new(self)
                    }

                    fn load(cell: &Self::Cell, order: Order) -> Self {
                        cell.load(order)
                    }

                    fn store(self, cell: &Self::Cell, order: Order) {
                        cell.store(self, order);
                    }

                    fn cmpxchg(cell: &Self::Cell, old: Self, new: Self, order: Order) -> Result<Self, Self> {
                        cell.compare_exchange(old, new, order, Order::Relaxed)
                    }
                }
            };
        }
        holds!(bool, AtomicBool);
        holds!(u32, AtomicU32);

        /// A value shared between threads.
        pub struct Atomic<T: AtomicType>(T::Cell);

        impl<T: AtomicType> Atomic<T> {
            /// Creates an atomic with this value.
            pub fn new(value: T) -> Self {
                Atomic(value.cell())
            }

            /// Reads the value.
            pub fn load<O: Ordering>(&self, _: O) -> T {
                T::load(&self.0, O::ORDER)
            }

            /// Writes the value.
            pub fn store<O: Ordering>(&self, value: T, _: O) {
                value.store(&self.0, O::ORDER);
            }

            /// Replaces the value if it is `old`. Returns the previous value.
            pub fn cmpxchg<O: Ordering>(&self, old: T, new: T, _: O) -> Result<T, T> {
                T::cmpxchg(&self.0, old, new, O::ORDER)
            }
        }
    }
}

/// Imports needed by every file.
pub mod prelude {
    pub use crate::alloc::{Flags, KVVec, KVec, GFP_KERNEL};
}
