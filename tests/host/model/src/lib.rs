// SPDX-License-Identifier: GPL-2.0

//! Scans, checks and rebuilds under schedules that a checker chooses.
//!
//! The cursor, the collections, the loader and the trees are the engine's own, as they stand. Around them [`volume`] puts
//! what the module puts around them: inodes behind locks, a bitmap, regions' locks, workers, watchers. All of these are
//! made of shuttle's locks and threads, so that each time a lock or an atomic is touched shuttle decides who goes on.
//!
//! A locking rule is worth what its breach costs: each [`volume::Breach`] takes one rule away, and the checker must find
//! a schedule in which the rebuilt tree is not the truth, or in which the engine says that something is wrong.

#![deny(unsafe_code)]
#![allow(dead_code)]

#[path = "../../../../src/engine/mod.rs"]
mod engine;
#[path = "../../../../src/format/mod.rs"]
mod format;
#[path = "../../../../src/sort.rs"]
mod sort;

/// What the pure layers take from the layer that talks to C.
mod kernel_glue {
    /// Continues the bare crc32c register, which unlike the usual checksum is inverted at neither end.
    pub(crate) fn crc32c(seed: u32, data: &[u8]) -> u32 {
        !crc32c::crc32c_append(!seed, data)
    }
}

#[cfg(test)]
mod disk;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod volume;
