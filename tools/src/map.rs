// SPDX-License-Identifier: GPL-2.0

//! `rext4 map` and `rext4 whatis`: the owners of the blocks of a mounted volume, according to
//! `FS_IOC_GETFSMAP`.
//!
//! The ioctl uses bytes, the output file system blocks. An owner is an inode, or the name of fixed
//! metadata. The reverse map does not contain paths: on request they are found by walking the
//! directories and comparing inode numbers.

use crate::{
    ioctl::{self, Fsmap},
    status::Status,
};
use anyhow::{bail, Context, Result};
use rustix::io::Errno;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{stdout, BufWriter, Write},
    os::unix::fs::{DirEntryExt, MetadataExt},
    path::{Path, PathBuf},
};

/// Arguments of `rext4 map`.
#[derive(clap::Args)]
pub struct Args {
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
    /// Any file or directory of the volume
    mount: PathBuf,
}

/// Arguments of `rext4 whatis`.
#[derive(clap::Args)]
pub struct WhatisArgs {
    /// Look up the path names of the owner; walks all directories below MOUNT
    #[arg(long)]
    path: bool,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
    /// Any file or directory of the volume
    mount: PathBuf,
    /// File system block number
    block: u64,
}

/// A run of blocks and one owner. Units are file system blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Extent {
    start: u64,
    length: u64,
    /// The inode that owns it, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    inode: Option<u64>,
    /// The inode number, or the name of the fixed metadata.
    owner: String,
    kind: &'static str,
    /// First block in the file.
    offset: u64,
    /// Other files own it, too.
    shared: bool,
}

impl Extent {
    fn of(found: &Fsmap, block_size: u64) -> Extent {
        let has = |flag| found.flags & flag != 0;
        let special = has(ioctl::FMR_OF_SPECIAL_OWNER);
        let kind = if special {
            "-"
        } else if has(ioctl::FMR_OF_EXTENT_MAP) {
            "mapping"
        } else if has(ioctl::FMR_OF_ATTR_FORK) {
            "xattr"
        } else if has(ioctl::FMR_OF_PREALLOC) {
            "unwritten"
        } else {
            "data"
        };
        Extent {
            start: found.physical / block_size,
            length: found.length / block_size,
            inode: (!special).then_some(found.owner),
            owner: if special {
                special_name(found.owner)
            } else {
                found.owner.to_string()
            },
            kind,
            offset: if special { 0 } else { found.offset / block_size },
            shared: has(ioctl::FMR_OF_SHARED),
        }
    }
}

/// Returns the name of an owner that is not an inode.
fn special_name(owner: u64) -> String {
    let name = match owner {
        ioctl::FMR_OWN_FREE => "free",
        ioctl::FMR_OWN_UNKNOWN => "unknown",
        ioctl::FMR_OWN_METADATA => "metadata",
        ioctl::FMR_OWN_FS => "superblock",
        ioctl::FMR_OWN_INODES => "inode-table",
        ioctl::FMR_OWN_GDT => "descriptors",
        ioctl::FMR_OWN_RESV_GDT => "reserved-descriptors",
        ioctl::FMR_OWN_BLKBM => "block-bitmap",
        ioctl::FMR_OWN_INOBM => "inode-bitmap",
        _ => return format!("special:{owner:#x}"),
    };
    name.to_string()
}

fn explain(error: Errno) -> anyhow::Error {
    let what = match error {
        Errno::PERM => "only root may do this",
        Errno::NOTTY => "the file system has no reverse map",
        Errno::OPNOTSUPP => "the volume has no reverse map in use",
        _ => "cannot read the reverse map",
    };
    anyhow::Error::new(error).context(what)
}

/// An error while listing mappings.
enum Trouble {
    Kernel(Errno),
    Output(anyhow::Error),
}

impl From<Errno> for Trouble {
    fn from(error: Errno) -> Self {
        Trouble::Kernel(error)
    }
}

fn for_each(
    volume: &File,
    low: Fsmap,
    high: Fsmap,
    block_size: u64,
    mut each: impl FnMut(Extent) -> Result<()>,
) -> Result<()> {
    let done = ioctl::for_each_mapping(volume, low, high, |found| {
        each(Extent::of(found, block_size)).map_err(Trouble::Output)
    });
    match done {
        Ok(()) => Ok(()),
        Err(Trouble::Kernel(error)) => Err(explain(error)),
        Err(Trouble::Output(error)) => Err(error),
    }
}

/// Returns the file system's block size in bytes.
fn block_size(volume: &File) -> Result<u64> {
    let size = rustix::fs::fstatvfs(volume)
        .context("cannot get the block size")?
        .f_bsize;
    if size == 0 {
        bail!("the file system reports a block size of 0");
    }
    Ok(size)
}

/// Runs `rext4 map`.
pub fn run(args: &Args) -> Result<Status> {
    let volume = ioctl::open_mount(&args.mount)?;
    let block_size = block_size(&volume)?;
    let mut out = BufWriter::new(stdout().lock());
    for_each(
        &volume,
        Fsmap::default(),
        ioctl::FSMAP_END,
        block_size,
        |extent| print(&mut out, &extent, args.json),
    )?;
    out.flush()?;
    Ok(Status::Clean)
}

/// Prints one line per extent, also as JSON, since a volume may have more extents than a reader can
/// hold in memory.
fn print(out: &mut impl Write, extent: &Extent, json: bool) -> Result<()> {
    if json {
        serde_json::to_writer(&mut *out, extent)?;
        writeln!(out)?;
    } else {
        writeln!(
            out,
            "{} {} {} {} {}",
            extent.start, extent.length, extent.owner, extent.kind, extent.offset
        )?;
    }
    Ok(())
}

/// An owner of the requested block.
#[derive(Serialize)]
struct Answer {
    #[serde(flatten)]
    extent: Extent,
    /// The block's position in the file.
    file_block: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    paths: Vec<PathBuf>,
}

/// Runs `rext4 whatis`.
pub fn whatis(args: &WhatisArgs) -> Result<Status> {
    let block = args.block;
    let volume = ioctl::open_mount(&args.mount)?;
    let block_size = block_size(&volume)?;
    let end = block.checked_add(1).and_then(|next| next.checked_mul(block_size));
    let end = end.context("no volume has that many blocks")?;
    let low = Fsmap {
        physical: end - block_size,
        ..Fsmap::default()
    };
    let high = Fsmap {
        physical: end - 1,
        ..ioctl::FSMAP_END
    };
    let mut answers = Vec::new();
    for_each(&volume, low, high, block_size, |extent| {
        // The kernel may return whole extents, and extents that are merely adjacent.
        if let Some(skipped) = block
            .checked_sub(extent.start)
            .filter(|skipped| *skipped < extent.length)
        {
            let step = matches!(extent.kind, "data" | "unwritten");
            answers.push(Answer {
                file_block: extent.offset + if step { skipped } else { 0 },
                extent,
                paths: Vec::new(),
            });
        }
        Ok(())
    })?;
    if answers.is_empty() {
        bail!("block {block} is not on the volume");
    }
    if args.path {
        let wanted = answers.iter().filter_map(|answer| answer.extent.inode).collect();
        let mut found = paths_of(&args.mount, &wanted)?;
        for answer in &mut answers {
            answer.paths = answer
                .extent
                .inode
                .and_then(|inode| found.remove(&inode))
                .unwrap_or_default();
        }
    }
    let mut out = stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &answers)?;
        writeln!(out)?;
    } else {
        for answer in &answers {
            print_answer(&mut out, block, answer)?;
        }
    }
    Ok(Status::Clean)
}

fn print_answer(out: &mut impl Write, block: u64, answer: &Answer) -> std::io::Result<()> {
    let extent = &answer.extent;
    let last = extent.start + extent.length - 1;
    let within = format!("in {}-{last}", extent.start);
    let shared = if extent.shared { ", shared" } else { "" };
    match (extent.inode, extent.kind) {
        (None, _) => writeln!(out, "block {block}: {} ({within})", extent.owner)?,
        (Some(inode), "data" | "unwritten") => writeln!(
            out,
            "block {block}: inode {inode}, {}, block {} of the file ({within}){shared}",
            extent.kind, answer.file_block
        )?,
        (Some(inode), kind) => writeln!(out, "block {block}: inode {inode}, {kind} ({within}){shared}")?,
    }
    for path in &answer.paths {
        writeln!(out, "    {}", path.display())?;
    }
    Ok(())
}

/// Returns the path names, below `mount` and on the same file system, of the wanted inodes.
/// Directories that cannot be read are skipped.
fn paths_of(mount: &Path, wanted: &BTreeSet<u64>) -> Result<BTreeMap<u64, Vec<PathBuf>>> {
    let top = mount
        .metadata()
        .with_context(|| format!("cannot stat {}", mount.display()))?;
    let mut found: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    if wanted.contains(&top.ino()) {
        found.entry(top.ino()).or_default().push(mount.to_path_buf());
    }
    let mut folders = vec![mount.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.flatten() {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            // If another file system is mounted on a directory, the directory's own inode is
            // hidden.
            let here = !is_folder || entry.metadata().is_ok_and(|folder| folder.dev() == top.dev());
            if wanted.contains(&entry.ino()) {
                found.entry(entry.ino()).or_default().push(entry.path());
            }
            if is_folder && here {
                folders.push(entry.path());
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(flags: u32, owner: u64) -> Extent {
        let found = Fsmap {
            flags,
            physical: 40960,
            owner,
            offset: 8192,
            length: 4096,
            ..Fsmap::default()
        };
        Extent::of(&found, 4096)
    }

    #[test]
    fn bytes_become_blocks() {
        let extent = mapping(ioctl::FMR_OF_SHARED, 12);
        assert_eq!((extent.start, extent.length, extent.offset), (10, 1, 2));
        assert_eq!(
            (extent.inode, extent.kind, extent.shared),
            (Some(12), "data", true)
        );
    }

    #[test]
    fn owners_have_names() {
        let fixed = mapping(ioctl::FMR_OF_SPECIAL_OWNER, ioctl::FMR_OWN_INODES);
        assert_eq!(
            (fixed.inode, fixed.owner.as_str(), fixed.kind, fixed.offset),
            (None, "inode-table", "-", 0)
        );
        assert_eq!(mapping(ioctl::FMR_OF_EXTENT_MAP, 12).kind, "mapping");
        assert_eq!(mapping(ioctl::FMR_OF_ATTR_FORK, 12).kind, "xattr");
        assert_eq!(mapping(ioctl::FMR_OF_PREALLOC, 12).kind, "unwritten");
    }

    #[test]
    fn a_line_an_extent() {
        let mut text = Vec::new();
        print(&mut text, &mapping(0, 12), false).unwrap();
        assert_eq!(text, b"10 1 12 data 2\n");
    }

    #[test]
    fn every_name_of_an_inode() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        let first = folder.path().join("sub/one");
        std::fs::write(&first, "x").unwrap();
        std::fs::hard_link(&first, folder.path().join("two")).unwrap();
        let inode = first.metadata().unwrap().ino();
        let found = paths_of(folder.path(), &BTreeSet::from([inode])).unwrap();
        assert_eq!(found[&inode].len(), 2);
    }
}
