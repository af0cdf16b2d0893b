// SPDX-License-Identifier: GPL-2.0

//! Online check and repair of the trees that are kept for a volume.
//!
//! Each file uses only those listed before it:
//!
//! - [`runs`] — runs of blocks with their owners, as reported to programs
//! - [`scrubber`] — one check or repair at a time per volume: its progress and cancellation
//! - [`report`] — the request, and the findings and results
//! - [`pool`] — the memory that a scan may use, and the file for records that exceed it
//! - [`scan`] — visits all inodes and collects the blocks that they own, while others change them
//! - [`collected`] — the records that a scan collected for one region, and whether they contradict
//!   each other
//! - [`reap`] — frees the blocks of replaced trees
//! - [`run`] — the framework of all checks and repairs
//! - [`names`] — counts the entries of directories that lead to each inode
//! - [`inodes`] — walks the inodes in use without a scan
//! - [`inode_bitmap`], [`bitmap`], [`rmap`], [`refcount`], [`inode`], [`links`] — the scrub types,
//!   one file each
//! - [`types`] — the table of scrub types
//! - [`upkeep`] — background repair and maintenance
//! - [`fsmap`], [`ioctl`] — the interface to programs
//! - [`attach`] — attaches everything to volumes at mount and unmount
//!
//! To add a scrub type, add a file with its [`run::ScrubType`], a row in [`types`], its number in
//! `include/uapi/rext4.h`, and a row in the table of `tools/src/scrub.rs`.

mod attach;
mod bitmap;
mod collected;
mod fsmap;
mod inode;
mod inode_bitmap;
mod inodes;
mod ioctl;
mod links;
mod names;
mod pool;
mod reap;
mod refcount;
mod report;
mod rmap;
mod run;
mod runs;
mod scan;
mod scrubber;
mod types;
mod upkeep;

pub(crate) use attach::Beside;
