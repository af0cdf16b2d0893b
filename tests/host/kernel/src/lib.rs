// SPDX-License-Identifier: GPL-2.0

//! What the pure layers use of the kernel crate, for the host.
//!
//! Only names and signatures are the kernel's: the bodies are the standard library's. An allocation can be made to fail
//! with [`alloc::fail_after`], so that tests reach every path that a full machine would take.

/// Growable arrays whose growth may fail.
pub mod alloc {
    use std::{
        cell::Cell,
        ops::{Deref, DerefMut},
    };

    /// There was no memory.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct AllocError;

    /// How an allocation may be served; means nothing here.
    #[derive(Clone, Copy)]
    pub struct Flags(());

    /// See `GFP_KERNEL` of the kernel.
    pub const GFP_KERNEL: Flags = Flags(());

    thread_local! {
        static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
    }

    /// Lets this many more allocations of this thread succeed, and no more after them; `None` lets all succeed.
    pub fn fail_after(allocations: Option<u64>) {
        LEFT.set(allocations);
    }

    /// Takes one allocation off what [`fail_after`] left.
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

    /// An array that grows.
    #[derive(Debug, PartialEq, Eq)]
    pub struct KVec<T>(Vec<T>);

    /// The same, also for sizes that need not be contiguous in physical memory.
    pub type KVVec<T> = KVec<T>;

    impl<T> Default for KVec<T> {
        fn default() -> Self {
            Self::new()
        }
    }

    impl<T> KVec<T> {
        /// Empty; allocates nothing.
        pub const fn new() -> Self {
            KVec(Vec::new())
        }

        /// Empty, with room.
        pub fn with_capacity(capacity: usize, _flags: Flags) -> Result<Self, AllocError> {
            if capacity > 0 {
                take()?;
            }
            Ok(KVec(Vec::with_capacity(capacity)))
        }

        /// Appends one.
        pub fn push(&mut self, value: T, flags: Flags) -> Result<(), AllocError> {
            self.reserve(1, flags)?;
            self.0.push(value);
            Ok(())
        }

        /// Makes room.
        pub fn reserve(&mut self, additional: usize, _flags: Flags) -> Result<(), AllocError> {
            if self.0.capacity() - self.0.len() < additional {
                take()?;
                self.0.reserve(additional);
            }
            Ok(())
        }

        /// Removes the last.
        pub fn pop(&mut self) -> Option<T> {
            self.0.pop()
        }

        /// Removes all.
        pub fn clear(&mut self) {
            self.0.clear();
        }

        /// Drops what lies behind `len`.
        pub fn truncate(&mut self, len: usize) {
            self.0.truncate(len);
        }

        /// Room in all.
        pub fn capacity(&self) -> usize {
            self.0.capacity()
        }
    }

    impl<T: Clone> KVec<T> {
        /// Appends all of a slice.
        pub fn extend_from_slice(&mut self, other: &[T], flags: Flags) -> Result<(), AllocError> {
            self.reserve(other.len(), flags)?;
            self.0.extend_from_slice(other);
            Ok(())
        }

        /// `n` times `value`.
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

/// What more than one thread may touch.
pub mod sync {
    pub use std::sync::Arc;

    /// Atomics. With the feature `shuttle` each access is a point at which that crate may let another thread run.
    pub mod atomic {
        #[cfg(feature = "shuttle")]
        use shuttle::sync::atomic as cells;
        #[cfg(not(feature = "shuttle"))]
        use std::sync::atomic as cells;
        use std::sync::atomic::Ordering as Order;

        /// Later accesses stay behind this one.
        pub struct Acquire;
        /// Earlier accesses stay before this one.
        pub struct Release;
        /// No order.
        pub struct Relaxed;

        /// How an access is ordered to others.
        pub trait Ordering {
            /// The same as the standard library says it.
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

        /// What an [`Atomic`] can hold.
        pub trait AtomicType: Copy {
            /// Where it lies.
            type Cell;
            /// A cell that holds it.
            fn cell(self) -> Self::Cell;
            /// Reads a cell.
            fn load(cell: &Self::Cell, order: Order) -> Self;
            /// Writes a cell.
            fn store(self, cell: &Self::Cell, order: Order);
            /// Replaces what a cell holds if that is `old`.
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

        /// A value that threads share.
        pub struct Atomic<T: AtomicType>(T::Cell);

        impl<T: AtomicType> Atomic<T> {
            /// Holds `value`.
            pub fn new(value: T) -> Self {
                Atomic(value.cell())
            }

            /// Reads it.
            pub fn load<O: Ordering>(&self, _: O) -> T {
                T::load(&self.0, O::ORDER)
            }

            /// Writes it.
            pub fn store<O: Ordering>(&self, value: T, _: O) {
                value.store(&self.0, O::ORDER);
            }

            /// Replaces it if it is `old`; answers with what was there.
            pub fn cmpxchg<O: Ordering>(&self, old: T, new: T, _: O) -> Result<T, T> {
                T::cmpxchg(&self.0, old, new, O::ORDER)
            }
        }
    }
}

/// What every file takes in.
pub mod prelude {
    pub use crate::alloc::{Flags, KVVec, KVec, GFP_KERNEL};
}
