// SPDX-License-Identifier: GPL-2.0

//! The trees that stand beside a volume, in files of the system directory: the reverse map and the reference counts.
//!
//! Each file uses only those before it:
//!
//! - [`cost`] — how many blocks of the journal each change may write
//! - [`file`] — a tree file: its blocks, its header, and the space maps that say which tree each block belongs to
//! - [`store`] — nodes of one region's tree for the engine, in a transaction or staged outside of it
//! - [`region`] — where regions lie, and the state of each under its lock
//! - [`forest`] — the trees of one kind of record, one for each region; serves both kinds
//! - [`index`] — both forests of a volume: opening, closing, watchers, stale trees
//! - [`change`] — a change of owners in one region, and of the counts that it implies
//! - [`sharing`] — which blocks have several owners, and which lost their last one
//! - [`freeing`] — freeing blocks that were parked, staged, or lost by a crash
//! - [`recount`] — deriving the counts of a region from its reverse map
//! - [`owners`] — the interface through which the file system reports changes of owners

pub(crate) mod cost;
pub(crate) mod file;
pub(crate) mod forest;
pub(crate) mod index;
pub(crate) mod region;
pub(crate) mod store;

mod change;
mod freeing;
mod owners;
mod recount;
mod sharing;
