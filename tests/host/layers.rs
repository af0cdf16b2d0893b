// SPDX-License-Identifier: GPL-2.0

// The pure layers of rext4, unchanged, and what they use from the glue layer. Each crate here
// compiles them itself, since their items are private to a crate, and uses a part of them: whether
// something is used at all is checked when the module is built.

#[allow(dead_code)]
#[path = "../../src/engine/mod.rs"]
mod engine;
#[allow(dead_code)]
#[path = "../../src/format/mod.rs"]
mod format;
#[allow(dead_code)]
#[path = "../../src/sort.rs"]
mod sort;

/// The functions that the pure layers use from the glue layer.
mod kernel_glue {
    /// Continues a raw crc32c, without the inversions of the usual checksum at start and end.
    pub(crate) fn crc32c(seed: u32, data: &[u8]) -> u32 {
        !crc32c::crc32c_append(!seed, data)
    }
}
