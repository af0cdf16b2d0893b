// SPDX-License-Identifier: GPL-2.0

//! Model checking of scans, checks and rebuilds: shuttle explores thread schedules.
//!
//! The cursor, the collections, the loader and the trees are the unmodified engine. [`volume`]
//! models the module around them: inodes behind locks, a bitmap, the regions' locks, workers,
//! watchers. All of these use shuttle's locks and threads, so that at every access to a lock or an
//! atomic shuttle decides which thread continues.
//!
//! A locking rule matters only if breaking it can be observed: each [`volume::Breach`] removes one
//! rule, and the checker must find a schedule in which the rebuilt tree is wrong, or in which the
//! engine reports an error.

#![deny(unsafe_code)]

include!("../../layers.rs");

#[cfg(test)]
mod disk;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod volume;
