// SPDX-License-Identifier: GPL-2.0

//! The trees that are kept for a volume, in files of the system directory: the reverse map and the
//! reference counts.
//!
//! Each file uses only those before it:
//!
//! - [`cost`] — how many journal blocks each change may use
//! - [`file`] — a tree file: its blocks, its header, and the space maps that say which tree each
//!   block belongs to
//! - [`store`] — access to the nodes of one region's tree, in a transaction or staged outside of it
//! - [`region`] — the layout of the regions, and the state of each under its lock
//! - [`forest`] — all trees of one kind of record; serves both kinds
//! - [`index`] — both forests of a volume: opening, closing, watchers, stale trees
//! - [`change`] — changing the owners in one region, and the counts accordingly
//! - [`sharing`] — which blocks are shared, and which have lost their last owner
//! - [`freeing`] — freeing blocks that were parked, staged, or lost by a crash
//! - [`recount`] — deriving the counts of a region from its reverse map
//! - [`owners`] — the interface through which the file system reports changes of owners

pub(crate) mod cost;
pub(crate) mod file;
pub(crate) mod forest;
pub(crate) mod index;
pub(crate) mod recount;
pub(crate) mod region;
pub(crate) mod store;

mod change;
mod freeing;
mod owners;
mod sharing;
