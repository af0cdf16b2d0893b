// SPDX-License-Identifier: GPL-2.0

//! `rext4 dump`: the reverse map or the reference counts of an unmounted image, as text.
//!
//! One line per record: start, length, kind, inode, offset; starts and lengths in file system
//! blocks from the beginning of the volume, offsets in blocks of the file. For reference counts:
//! start, length, `shared` or `staged`, owners, 0. `tests/vm/owners.py` derives the same lines from
//! the inodes, so `diff` compares the trees with the truth. Problems and stale regions are reported
//! on standard error.

use crate::{
    format::{Tree, Volume},
    image::{Image, TreeFile},
    node::Record,
    status::Status,
    survey::survey,
};
use anyhow::Result;
use std::{
    io::{stdout, BufWriter, Write},
    path::PathBuf,
};

/// Maximum number of findings that are printed; further ones are counted.
const SHOWN: usize = 50;

/// Arguments of `rext4 dump`.
#[derive(clap::Args)]
pub struct Args {
    /// Which tree to read
    #[arg(long, value_enum, default_value_t = Tree::Rmap)]
    tree: Tree,
    /// Image file or block device
    image: PathBuf,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<Status> {
    let image = Image::open(&args.image, args.tree)?;
    let mut out = BufWriter::new(stdout().lock());
    let findings = dump(&image.volume, &image, &mut out)?;
    out.flush()?;
    for finding in findings.iter().take(SHOWN) {
        eprintln!("rext4: {finding}");
    }
    if let Some(more) = findings.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        eprintln!("rext4: and {more} more");
    }
    Ok(if findings.is_empty() {
        Status::Clean
    } else {
        Status::Corrupt
    })
}

/// Prints all readable records; returns the findings.
pub fn dump(volume: &Volume, file: &dyn TreeFile, out: &mut impl Write) -> Result<Vec<String>> {
    let found = survey(volume, file, &mut |region, record| {
        print(volume, out, region, record)
    })?;
    Ok(found.findings)
}

fn print(volume: &Volume, out: &mut impl Write, region: u32, record: &Record) -> Result<()> {
    let start = volume.region_start(region) + u64::from(record.first_block());
    let kind = record.kind_name();
    writeln!(
        out,
        "{start} {} {kind} {} {}",
        record.len, record.owner, record.offset
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{seal, Header};
    use crate::node::Node;
    use crate::synthetic::{self, data, Memory};

    fn findings(file: &Memory) -> Vec<String> {
        findings_on(&synthetic::volume(), file)
    }

    fn findings_on(volume: &Volume, file: &Memory) -> Vec<String> {
        dump(volume, file, &mut std::io::sink()).unwrap()
    }

    /// Asserts that there is a finding with this text.
    fn says(file: &Memory, what: &str) {
        let found = findings(file);
        assert!(
            found.iter().any(|finding| finding.contains(what)),
            "{what:?} is not in {found:#?}"
        );
    }

    /// Returns the file with a modified root leaf of region 1, checksum updated.
    fn with_leaf(change: impl FnOnce(&mut Node)) -> Memory {
        let mut file = synthetic::file();
        let block = root(&file, 1);
        let mut node = Node(file.read(block).unwrap(), Tree::Rmap);
        change(&mut node);
        node.seal(synthetic::volume().seed);
        file.write(block, &node.0).unwrap();
        file
    }

    fn root(file: &Memory, region: u32) -> u32 {
        let survey = survey(&synthetic::volume(), file, &mut |_, _| Ok(())).unwrap();
        survey.table[region as usize].unwrap().root
    }

    #[test]
    fn a_sound_file() {
        let file = synthetic::file();
        let mut text = Vec::new();
        let found = dump(&synthetic::volume(), &file, &mut text).unwrap();
        assert_eq!(found, Vec::<String>::new());
        assert_eq!(String::from_utf8(text).unwrap(), synthetic::text());
    }

    #[test]
    fn headers() {
        let file = synthetic::file();
        let mut volume = synthetic::volume();
        volume.uuid[0] ^= 1;
        assert!(findings_on(&volume, &file)[0].contains("another volume"));
        let mut volume = synthetic::volume();
        volume.blocks += 8192;
        assert!(findings_on(&volume, &file)[0].contains("regions: it has 3, the volume has 4"));
        let mut broken = file.clone();
        broken.0[0][80] ^= 1;
        says(
            &broken,
            "header, block 0 of the file (block 5000 of the volume): checksum mismatch",
        );
        let mut longer = file;
        longer.0.truncate(150);
        says(&longer, "200 blocks in use, but the file has 150");
    }

    #[test]
    fn stamps() {
        let mut file = synthetic::file();
        let mut volume = synthetic::volume();
        volume.stamp.free_blocks = 99;
        assert!(findings_on(&volume, &file)[0].contains("s_free_blocks_count was 5 and is 99"));
        // This field changes while the volume is in use.
        let mut header = Header::load(&volume, &file.0[0]).unwrap();
        header.in_use = true;
        header.store(&volume, &mut file.0[0]);
        assert!(findings_on(&volume, &file).is_empty());
        // Stock ext4 cleared it in a read-only mount, which changes no other field.
        volume.orphan_present = false;
        assert!(findings_on(&volume, &file)[0].contains("another implementation has replayed the journal"));
        volume.orphan_present = true;
        volume.stamp.mnt_count = 8;
        assert!(findings_on(&volume, &file)[0].contains("s_mnt_count was 7 and is 8"));
    }

    #[test]
    fn region_table() {
        let volume = synthetic::volume();
        let mut file = synthetic::file();
        file.0[2][40] ^= 1;
        says(
            &file,
            "entry of region 1, block 2 of the file (block 5002 of the volume): checksum mismatch",
        );
        let mut file = synthetic::file();
        file.0[2][8] = 0;
        seal(volume.seed, &mut file.0[2][..32], 0);
        says(&file, "region 0 is stale");
    }

    #[test]
    fn space_maps() {
        let mut file = synthetic::file();
        file.0[125][900] ^= 1;
        says(
            &file,
            "space map, block 125 of the file (block 5125 of the volume): checksum mismatch",
        );
        let mut file = synthetic::file();
        synthetic::give(&mut file, 199, 1, synthetic::GENERATION);
        says(
            &file,
            "block 199 of the file (block 5199 of the volume) belongs to region 0, but is not in its tree",
        );
        let mut file = synthetic::file();
        synthetic::give(&mut file, 199, 1, 3);
        says(&file, "is not marked to be freed");
        let mut file = synthetic::file();
        synthetic::give(&mut file, 2, 0, 0);
        says(
            &file,
            "block 2 of the file (block 5002 of the volume) is allocated to 0",
        );
        let mut file = synthetic::file();
        let block = root(&file, 1);
        synthetic::give(&mut file, block, 1, synthetic::GENERATION);
        says(&file, "the space map allocates it to 1, generation 7");
    }

    #[test]
    fn nodes() {
        let mut file = synthetic::file();
        let block = root(&file, 0) as usize;
        file.0[block].fill(0);
        says(&file, "all zero");
        let (from, to) = (
            root(&synthetic::file(), 1) as usize,
            root(&synthetic::file(), 2) as usize,
        );
        let mut file = synthetic::file();
        file.0[to] = file.0[from].clone();
        says(&file, &format!("block is {from}, should be {to}"));
        says(&with_leaf(|node| node.0[16] = 6), "generation is 6, should be 7");
        says(&with_leaf(|node| node.0[12] = 0), "region is 0, should be 1");
        says(
            &with_leaf(|node| node.0[22] = 200),
            "200 records or entries where there is room for 62",
        );
        says(
            &with_leaf(|node| node.set_siblings(9, 0)),
            "its left sibling is block 0, and it says 9",
        );
    }

    #[test]
    fn leaves() {
        let with = |records: &[Record]| with_leaf(|node| node.set_records(records));
        says(
            &with(&[data(5, 1, 9, 0), data(2, 1, 9, 0)]),
            "record 1: it is out of order",
        );
        says(
            &with(&[data(5, 3, 9, 0), data(6, 1, 10, 0)]),
            "record 1: it overlaps another",
        );
        says(
            &with(&[data(5, 3, 9, 0), data(8, 1, 9, 3)]),
            "record 1: it continues another",
        );
        says(
            &with(&[data(8190, 3, 9, 0)]),
            "record 0: it extends beyond the 8192 blocks of the region",
        );
        says(&with(&[data(5, 0, 9, 0)]), "record 0: its length is zero");
        let mut reserved = data(5, 1, 9, 0);
        reserved.len |= crate::tree_layout::HIDDEN;
        says(&with(&[reserved]), "record 0: a reserved bit is set");
        // Where blocks are shared, records may overlap, and a record may continue one that is not
        // its predecessor.
        let mut volume = synthetic::volume();
        volume.shared_blocks = true;
        let shared = [data(5, 3, 9, 0), data(6, 1, 10, 0), data(8, 1, 9, 7)];
        assert!(findings_on(&volume, &with(&shared)).is_empty());
        let parted = [data(5, 3, 9, 0), data(6, 1, 10, 0), data(8, 1, 9, 3)];
        assert!(findings_on(&volume, &with(&parted))[0].contains("it continues another"));
    }

    #[test]
    fn the_rest_is_still_read() {
        let mut file = synthetic::file();
        let survey = survey(&synthetic::volume(), &file, &mut |_, _| Ok(())).unwrap();
        let leaf = survey.nodes[0]
            .iter()
            .filter(|node| node.level == 0)
            .nth(2)
            .unwrap()
            .block;
        file.0[leaf as usize][500] ^= 1;
        let mut text = Vec::new();
        let found = dump(&synthetic::volume(), &file, &mut text).unwrap();
        assert_eq!(found.len(), 1, "{found:#?}");
        let lines = String::from_utf8(text).unwrap().lines().count();
        assert_eq!(lines, synthetic::text().lines().count() - 10);
    }
}
