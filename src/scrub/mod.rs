// SPDX-License-Identifier: GPL-2.0

//! Online check and repair of the trees that are kept for a volume.
//!
//! Each file uses only those listed before it:
//!
//! - [`runs`] — runs of blocks with their owners, as programs see them
//! - [`scrubber`] — one check or repair at a time on a volume: its progress, and how it is ended
//! - [`report`] — what is asked for, and what was found and done
//! - [`pool`] — the memory a scan may take, and the file for what does not fit
//! - [`scan`] — visits all inodes and collects what they own, while others change them
//! - [`collected`] — what a scan collected for one region, and whether it contradicts itself
//! - [`reap`] — frees the blocks of replaced trees
//! - [`run`] — the frame of every check and repair
//! - [`rmap`], [`refcount`] — the scrub types, one file each
//! - [`types`] — the table of scrub types
//! - [`upkeep`] — what is done in the background without being asked for
//! - [`fsmap`], [`ioctl`] — what programs ask for
//! - [`attach`] — ties all of it to the volumes that come and go
//!
//! To add a scrub type, add a file with its [`run::ScrubType`], a row in [`types`], its number in
//! `include/uapi/rext4.h`, and a row in the table of `tools/src/scrub.rs`.

mod attach;
mod collected;
mod fsmap;
mod ioctl;
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
