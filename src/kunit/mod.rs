// SPDX-License-Identifier: GPL-2.0

//! KUnit suites: what only the kernel can test without a volume.
//!
//! `tests/host` tries the pure layers at length. Here they run on what they rest on in the kernel, its allocators, its
//! crc32c, its locks and threads:
//!
//! - [`engine`] — a rebuild in memory while another thread changes owners
//! - [`scan`] — the scan's cursor between threads that visit and threads that change
//! - [`tree_file`] — header, region table and space map with the kernel's checksum
//! - [`counts`] — counts of owners that change with the reverse map, and are swept out of it meanwhile
//! - [`rmap`] — how blocks are cut at the borders of regions
//!
//! The suites of the layer that talks to C lie there (`kernel_glue/kunit.rs`).
//!
//! They run when the module is inserted into a kernel with KUnit built in, and are not compiled for any other. Inserting
//! succeeds whatever they find: `tests/vm/kunit.sh` reads the results, and knows which suites there must be.
//!
//! An assertion that fails ends the test's thread where it stands, destructors left out; in a thread that is not the
//! test's it only prints. So nothing is asserted in what runs in several threads at once: they note what they saw, and
//! the test judges when all are through.

mod counts;
mod engine;
mod memory;
mod rmap;
mod scan;
mod tree_file;

/// Numbers that look random and are the same in each run.
struct Random(u32);

impl Random {
    /// A number below `below`.
    fn below(&mut self, below: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 % below.max(1)
    }
}
