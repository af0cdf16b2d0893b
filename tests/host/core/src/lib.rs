// SPDX-License-Identifier: GPL-2.0

//! The pure layers of rext4, compiled for the host unchanged, so that their tests run in
//! milliseconds.

#![deny(unsafe_code)]
#![allow(dead_code)]

#[path = "../../../../src/engine/mod.rs"]
mod engine;
#[path = "../../../../src/format/mod.rs"]
mod format;
#[path = "../../../../src/sort.rs"]
mod sort;

/// The functions that the pure layers use from the glue layer.
mod kernel_glue {
    /// Continues a raw crc32c, without the inversions of the usual checksum at start and end.
    pub(crate) fn crc32c(seed: u32, data: &[u8]) -> u32 {
        !crc32c::crc32c_append(!seed, data)
    }
}

pub mod fuzz;

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
