// SPDX-License-Identifier: GPL-2.0

//! `rext4 info`: the state of the trees of a mounted volume, region by region.
//!
//! The first reply contains the number of regions. Each region is queried separately, so the output
//! is not a snapshot while a rebuild is running.

use crate::{
    ioctl::{self, RegionInfo},
    status::Status,
};
use anyhow::{Context, Result};
use rustix::io::Errno;
use serde::Serialize;
use std::{
    io::{stdout, Write},
    path::PathBuf,
};

/// Arguments of `rext4 info`.
#[derive(clap::Args)]
pub struct Args {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
    /// Any file or directory of the volume
    mount: PathBuf,
}

#[derive(Serialize)]
struct Region {
    #[serde(flatten)]
    info: RegionInfo,
    /// The name of `state`: `stale`, `good`, or `unknown`.
    state_name: &'static str,
    /// The name of the state of the reference counts; `none` if no block was ever shared.
    count_state_name: &'static str,
}

fn state_name(state: u32) -> &'static str {
    match state {
        ioctl::REGION_STALE => "stale",
        ioctl::REGION_GOOD => "good",
        ioctl::REGION_NONE => "none",
        _ => "unknown",
    }
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<Status> {
    let volume = ioctl::open_mount(&args.mount)?;
    let mut regions = Vec::new();
    let mut count = 1;
    while (regions.len() as u32) < count {
        let info = ioctl::region_info(&volume, regions.len() as u32).map_err(|error| {
            let what = match error {
                Errno::PERM => "only root may do this",
                Errno::NOTTY => "not a volume that rext4 has mounted",
                Errno::OPNOTSUPP => "the volume has no reverse map in use",
                _ => "cannot get the state of a region",
            };
            anyhow::Error::new(error).context(what)
        })?;
        count = info.regions;
        let state_name = self::state_name(info.state);
        let count_state_name = self::state_name(info.count_state);
        regions.push(Region {
            info,
            state_name,
            count_state_name,
        });
    }
    let mut out = stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &regions)?;
        writeln!(out)?;
    } else {
        print(&mut out, &regions).context("cannot write the output")?;
    }
    Ok(Status::Clean)
}

fn print(out: &mut impl Write, regions: &[Region]) -> std::io::Result<()> {
    writeln!(
        out,
        "{:>8} {:7} {:>12} {:>10} {:>10} {:>5} {:>10} {:7}",
        "region", "state", "start", "blocks", "generation", "level", "root", "counts"
    )?;
    for Region {
        info,
        state_name,
        count_state_name,
    } in regions
    {
        writeln!(
            out,
            "{:>8} {:7} {:>12} {:>10} {:>10} {:>5} {:>10} {:7}",
            info.region,
            state_name,
            info.start,
            info.blocks,
            info.generation,
            info.level,
            info.root,
            count_state_name
        )?;
    }
    if let Some(Region { info, .. }) = regions.last() {
        let good = regions
            .iter()
            .filter(|region| region.info.state == ioctl::REGION_GOOD)
            .count();
        writeln!(
            out,
            "{good} of {} regions good; tree file: inode {}, {} blocks of {} bytes, {} free",
            regions.len(),
            info.inode,
            info.file_blocks,
            info.block_size,
            info.free_blocks
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table() {
        let info = RegionInfo {
            state: ioctl::REGION_GOOD,
            regions: 1,
            blocks: 524288,
            ..RegionInfo::default()
        };
        let state_name = state_name(info.state);
        let count_state_name = self::state_name(ioctl::REGION_NONE);
        let mut text = Vec::new();
        let region = Region {
            info,
            state_name,
            count_state_name,
        };
        print(&mut text, &[region]).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.lines().count(), 3);
        assert!(text.lines().nth(1).unwrap().contains("good"));
    }
}
