// SPDX-License-Identifier: GPL-2.0

//! The `rext4` command: asks a mounted volume about its reverse map, has it checked and repaired, and reads or damages the
//! map of an image that is not mounted; and makes snapshots of trees.
//!
//! This file only takes the command line apart. `scrub`, `map`, `whatis` and `info` speak to the kernel by [`ioctl`];
//! `dump` and `corrupt` read the map from an [`image`], with structures of [`format`] that were written from
//! `docs/on-disk.md` and share no code with the kernel module, so that each is a check of the other.
//! `snapshot` works on files, links and folders, and asks rext4 only when all shall be of one moment.

mod corrupt;
mod dump;
mod format;
mod held;
mod image;
mod info;
mod ioctl;
mod map;
mod node;
mod scrub;
mod snapshot;
mod survey;
#[cfg(test)]
mod synthetic;
mod tree;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// How the program ends; the numbers are e2fsck's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// Nothing is wrong.
    Clean = 0,
    /// Something was wrong and has been repaired.
    Repaired = 1,
    /// Something is wrong.
    Corrupt = 4,
    /// It could not be found out.
    Failed = 8,
    /// The command line makes no sense.
    Usage = 16,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        ExitCode::from(status as u8)
    }
}

/// Asks rext4 volumes about their reverse map, checks and repairs it, and makes snapshots.
///
/// Exit status: 0 clean, 1 repaired, 4 corrupt and not repaired, 8 failed, 16 wrong usage.
#[derive(Parser)]
#[command(name = "rext4", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check the reverse map and the reference counts of a mounted volume, and repair them if asked to
    Scrub {
        /// Repair what is wrong
        #[arg(long)]
        repair: bool,
        /// Rebuild also what is right
        #[arg(long, requires = "repair")]
        force: bool,
        /// Only this tree
        #[arg(long, value_enum)]
        tree: Option<format::Tree>,
        /// Memory for what the scan collects; the rest goes to a file in tmpfs [default: as the module's parameter says]
        #[arg(long, value_name = "KIB", value_parser = clap::value_parser!(u32).range(1..))]
        memory: Option<u32>,
        /// Only this region
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..u32::MAX as i64))]
        region: Option<u32>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        /// Any file or folder of the volume
        mount: PathBuf,
    },
    /// Print who owns each block of a mounted volume: start, length, owner, kind and offset in the file, in blocks
    Map {
        /// Print one JSON object a line
        #[arg(long)]
        json: bool,
        /// Any file or folder of the volume
        mount: PathBuf,
    },
    /// Print who owns one block of a mounted volume
    Whatis {
        /// Look for the names of the owner; walks all folders below MOUNT
        #[arg(long)]
        path: bool,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
        /// Any file or folder of the volume
        mount: PathBuf,
        /// A file system block
        block: u64,
    },
    /// Print how the tree of each region of a mounted volume stands
    Info {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
        /// Any file or folder of the volume
        mount: PathBuf,
    },
    /// Make a copy of a folder tree that shares its blocks with the original, on the same volume
    ///
    /// The same command goes on with one that was ended. Each file is as it was at one moment; the tree as a whole is so
    /// with --freeze. A snapshot is a plain tree: `rm -r` removes it.
    Snapshot {
        /// Have all files as they are at one moment; whoever writes to the volume waits while they are cloned
        #[arg(long)]
        freeze: bool,
        /// Remove what a run left that did not come to its end
        #[arg(long, conflicts_with_all = ["json", "freeze"])]
        discard: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        /// The original; left out with --discard
        #[arg(required_unless_present = "discard")]
        source: Option<PathBuf>,
        /// Where the snapshot shall be
        #[arg(value_name = "NAME", required_unless_present = "discard")]
        target: Option<PathBuf>,
    },
    /// Check the shape of a tree in an unmounted image, and print its records: start, length, kind, inode or count, offset
    Dump {
        /// Of which tree
        #[arg(long, value_enum, default_value_t = format::Tree::Rmap)]
        tree: format::Tree,
        /// A file or block device
        image: PathBuf,
    },
    /// Damage a tree of an unmounted image, for tests
    Corrupt {
        /// Only in this region
        #[arg(long, value_name = "N")]
        region: Option<u32>,
        /// Chooses where; the same seed damages the same image in the same way
        #[arg(long, value_name = "S", default_value_t = 1)]
        seed: u64,
        /// What to do
        kind: corrupt::Kind,
        /// To which tree
        #[arg(long, value_enum, default_value_t = format::Tree::Rmap)]
        tree: format::Tree,
        /// A file or block device
        image: PathBuf,
    },
}

fn run(command: Command) -> Result<Status> {
    match command {
        Command::Scrub {
            repair,
            force,
            tree,
            memory,
            region,
            json,
            mount,
        } => {
            let wish = scrub::Wish {
                repair,
                force,
                tree,
                memory,
                region,
                json,
            };
            scrub::run(&mount, wish)
        }
        Command::Map { json, mount } => map::run(&mount, json),
        Command::Whatis {
            path,
            json,
            mount,
            block,
        } => map::whatis(&mount, block, path, json),
        Command::Info { json, mount } => info::run(&mount, json),
        Command::Snapshot {
            discard: false,
            freeze,
            json,
            source: Some(source),
            target: Some(target),
        } => snapshot::run(&source, &target, snapshot::Wish { freeze, json }),
        Command::Snapshot { source, target, .. } => match (source, target) {
            // There is one name to tell, and it comes last.
            (Some(target), None) | (_, Some(target)) => snapshot::discard(&target),
            (None, None) => anyhow::bail!("which snapshot shall be discarded?"),
        },
        Command::Dump { tree, image } => dump::run(&image, tree),
        Command::Corrupt {
            region,
            seed,
            kind,
            tree,
            image,
        } => corrupt::run(&image, tree, kind, region, seed),
    }
}

/// Opens a file or folder of a mounted volume, to ask the volume about itself.
fn open_mount(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// Whether the reader of the output has gone away, as `head` does.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let direct = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let json = cause
            .downcast_ref::<serde_json::Error>()
            .and_then(serde_json::Error::io_error_kind);
        direct.or(json) == Some(io::ErrorKind::BrokenPipe)
    })
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help that was asked for is no error. That it cannot be printed is nobody's concern.
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_sound() {
        Cli::command().debug_assert();
        assert!(Cli::try_parse_from(["rext4", "scrub", "--force", "/mnt"]).is_err());
        assert!(Cli::try_parse_from(["rext4", "scrub", "--repair", "--force", "/mnt"]).is_ok());
        assert!(Cli::try_parse_from(["rext4", "corrupt", "--seed", "3", "drop", "image"]).is_ok());
    }
}
