// SPDX-License-Identifier: GPL-2.0

//! The `rext4` command: queries the reverse map of a mounted volume, checks and repairs it, reads
//! or damages the trees of an unmounted image, and makes snapshots of directory trees.
//!
//! This file only dispatches the command line; each subcommand defines its own arguments. `scrub`,
//! `map`, `whatis` and `info` talk to the kernel through [`ioctl`]. `dump` and `corrupt` read the
//! trees from an [`image`], using the structures in [`format`]. Those were written from
//! `docs/on-disk.md` and share only the constants of the layout with the kernel module, so that
//! each checks the other. `snapshot` works on files, links and directories, and needs rext4 only
//! for `--freeze`.
//!
//! It is a library so that `examples/pages.rs` can generate the manual pages and shell completions
//! from the same definition that parses the command line.

mod corrupt;
mod dump;
mod format;
mod held;
mod image;
mod info;
mod ioctl;
mod maker;
mod map;
mod node;
mod scrub;
mod snapshot;
mod status;
mod survey;
#[cfg(test)]
mod synthetic;
mod tree;
// The layout of the trees on disk is shared with the module.
#[path = "../../src/format/tree_layout.rs"]
mod tree_layout;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use status::Status;
use std::{io, process::ExitCode};

/// Query, check and repair the reverse map of rext4 volumes, and make snapshots
///
/// The reverse map records for each block of a volume which inode owns it. It is divided into
/// regions, one flex group each; every region has a tree of its own, which can be checked and
/// rebuilt while the volume is in use. A second set of trees holds the reference counts of blocks
/// that files share. See rext4(5) for mount options and limits.
#[derive(Parser)]
#[command(
    name = "rext4",
    version,
    after_help = "Exit status: 0 clean, 1 repaired, 4 corrupt and not repaired, 8 operational error, 16 usage error."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check block bitmaps, reverse map and reference counts of a mounted volume, and optionally
    /// repair them
    ///
    /// Compares the block bitmaps and the reverse map with all inodes, and the reference counts
    /// with the reverse map, while the volume is in use. With --repair, wrong bits are corrected,
    /// and every region whose tree is wrong gets a new one; writers are stopped only for the moment
    /// in which a region's new tree is installed.
    ///
    /// The volume must be mounted writable. Progress is shown if standard error is a terminal. An
    /// interrupt cancels the operation; regions that were already repaired stay repaired.
    Scrub(scrub::Args),
    /// List the extents of a mounted volume with their owners
    ///
    /// Prints one line per extent: start, length, owner, kind and offset in the file, in file
    /// system blocks. The owner is an inode number, or the name of the fixed metadata or free space
    /// at that place. The kind is data, unwritten, mapping (a node of an extent tree or an
    /// indirect block), xattr, or - if the owner is not an inode.
    ///
    /// A shared extent is listed once for each owner.
    Map(map::Args),
    /// Show who owns one block of a mounted volume
    ///
    /// Prints one line per owner: its inode, the kind of the extent, the block's position in the
    /// file, and the extent that the block belongs to. A block of free space or fixed metadata is
    /// named as such.
    ///
    /// To find the file that a bad sector belongs to, divide the sector's byte offset in the file
    /// system by the block size.
    Whatis(map::WhatisArgs),
    /// Show the state of the trees of a mounted volume, region by region
    ///
    /// A region is a flex group. The state of a region's tree is stale (to be rebuilt, not used for
    /// queries) or good (kept up to date with every change); the reference counts also have the
    /// state none (no block of the volume was ever shared).
    Info(info::Args),
    /// Copy a directory tree on the same volume, sharing all blocks with the original
    ///
    /// The snapshot is a plain directory tree that can be modified, and that `rm -r` removes. It
    /// keeps owners, modes, extended attributes, access control lists, and times except the change
    /// time; hard links within the tree, symbolic links, devices, pipes and sockets. It does not
    /// copy attributes set by chattr, and leaves out other mounts and /.rext4.
    ///
    /// The tree is assembled in the directory .NAME.rext4-snapshot next to NAME and renamed last,
    /// so a snapshot that has its name is complete. Running the same command again resumes an
    /// interrupted run.
    ///
    /// Each file is copied atomically. With --freeze the whole tree is: anyone who modifies the
    /// volume blocks until the tree has been read and cloned. This needs rext4, needs memory for
    /// the names and attributes of the tree, and always starts over. Without --freeze the command
    /// works on any file system that supports cloning files.
    Snapshot(snapshot::Args),
    /// Verify the structure of a tree in an unmounted image and list its records
    ///
    /// Prints one line per record: start, length, kind, inode, and offset in the file; for the
    /// reference counts: start, length, shared or staged, number of owners, 0. Problems and stale
    /// regions are reported on standard error.
    Dump(dump::Args),
    /// Damage a tree of an unmounted image, for tests
    ///
    /// Prints what was changed and where. The kinds record, drop and extra leave a well-formed tree
    /// with wrong contents; key, sibling and root break its structure but keep its checksums valid;
    /// checksum, zero and header do what a bad disk does.
    Corrupt(corrupt::Args),
}

fn run(command: Command) -> Result<Status> {
    match command {
        Command::Scrub(args) => scrub::run(&args),
        Command::Map(args) => map::run(&args),
        Command::Whatis(args) => map::whatis(&args),
        Command::Info(args) => info::run(&args),
        Command::Snapshot(args) => snapshot::run(&args),
        Command::Dump(args) => dump::run(&args),
        Command::Corrupt(args) => corrupt::run(&args),
    }
}

/// Returns true if the reader of our output has exited, as `head` does.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let direct = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let json = cause
            .downcast_ref::<serde_json::Error>()
            .and_then(serde_json::Error::io_error_kind);
        direct.or(json) == Some(io::ErrorKind::BrokenPipe)
    })
}

/// Parses the command line, runs the command, and returns its exit status.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Requested help is not an error. There is nowhere to report a failure to print it.
            drop(error.print());
            return if error.use_stderr() {
                Status::Usage.into()
            } else {
                Status::Clean.into()
            };
        }
    };
    match run(cli.command) {
        Ok(status) => status.into(),
        Err(error) if is_broken_pipe(&error) => Status::Clean.into(),
        Err(error) => {
            eprintln!("rext4: {error:#}");
            Status::Failed.into()
        }
    }
}

/// Returns the definition of the command line, from which the manual pages and completions are
/// generated.
pub fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_valid() {
        Cli::command().debug_assert();
        assert!(Cli::try_parse_from(["rext4", "scrub", "--force", "/mnt"]).is_err());
        assert!(Cli::try_parse_from(["rext4", "scrub", "--repair", "--force", "/mnt"]).is_ok());
        assert!(Cli::try_parse_from(["rext4", "corrupt", "--seed", "3", "drop", "image"]).is_ok());
    }
}
