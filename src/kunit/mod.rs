// SPDX-License-Identifier: GPL-2.0

//! KUnit suites: tests that need the kernel but no volume.
//!
//! `tests/host` tests the pure layers extensively. The suites here run them on top of the kernel's
//! allocators, crc32c, locks and threads:
//!
//! - [`engine`] — a rebuild in memory while another thread changes owners
//! - [`scan`] — the scan's cursor, with threads that visit and threads that change inodes
//! - [`tree_file`] — header, region table and space map with the kernel's checksum
//! - [`counts`] — reference counts that change with the reverse map while they are recounted from
//!   it
//! - [`rmap`] — how blocks are cut at region boundaries
//!
//! The suites of the layer that talks to C are in that layer (`kernel_glue/kunit.rs`).
//!
//! The suites are compiled only for kernels with built-in KUnit, and run when the module is loaded.
//! Loading succeeds whatever the results are: `tests/vm/kunit.sh` reads them, and knows which
//! suites must be present.
//!
//! A failed assertion terminates the test's thread on the spot, without running destructors; in any
//! other thread it only prints. Code that runs in several threads therefore asserts nothing: it
//! records what it sees, and the test evaluates that when all threads have finished.

mod counts;
mod engine;
mod memory;
mod rmap;
mod scan;
mod tree_file;

/// A reproducible pseudo-random generator (xorshift).
struct Random(u32);

impl Random {
    /// Returns a number less than `below`.
    fn below(&mut self, below: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 % below.max(1)
    }
}
