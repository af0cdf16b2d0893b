// SPDX-License-Identifier: GPL-2.0

//! `rext4 corrupt`: damages a tree in an unmounted image, so that tests have something to find.
//!
//! There are three groups of damage. `record`, `drop` and `extra` leave a well-formed tree with
//! wrong contents: only a comparison with the inodes finds them. `key`, `sibling` and `root` break
//! the structure but keep checksums valid. `checksum`, `zero` and `header` do what a bad disk does.
//! The same seed does the same damage to the same image.

use crate::{
    format::{put, Tree, Volume, HEADER_SIZE, REGION_SIZE},
    image::{place, Image, TreeFile},
    node::{summary, Key, Kind as RecordKind, Node, Record, MAX_LEN},
    status::Status,
    survey::{survey, Place, Survey},
};
use anyhow::{bail, ensure, Context, Result};
use std::path::PathBuf;

/// A kind of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Change a record's owner, length or offset
    Record,
    /// Remove a record
    Drop,
    /// Add a record of blocks that have no owner
    Extra,
    /// Change a key of an inner node
    Key,
    /// Change a sibling pointer of a node
    Sibling,
    /// Flip a bit of a node without updating its checksum
    Checksum,
    /// Zero a node
    Zero,
    /// Change the root block in a region table entry
    Root,
    /// Flip a bit of the header without updating its checksum
    Header,
}

/// Arguments of `rext4 corrupt`.
#[derive(clap::Args)]
pub struct Args {
    /// Damage only this region
    #[arg(long, value_name = "N")]
    pub region: Option<u32>,
    /// Selects where; the same seed damages the same image in the same way
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
    /// The kind of damage
    pub kind: Kind,
    /// Which tree to damage
    #[arg(long, value_enum, default_value_t = Tree::Rmap)]
    pub tree: Tree,
    /// Image file or block device
    pub image: PathBuf,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<Status> {
    let mut image = Image::open_writable(&args.image, args.tree)?;
    let volume = image.volume.clone();
    let done = corrupt(&volume, &mut image, args.kind, args.region, args.seed)?;
    image.sync()?;
    println!("{done}");
    Ok(Status::Clean)
}

/// A small random number generator (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `limit`; 0 if `limit` is 0.
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % (limit.max(1) as u64)) as usize
    }

    /// Returns all numbers below `limit`, starting at a random one and wrapping around.
    fn round(&mut self, limit: usize) -> impl Iterator<Item = usize> {
        let first = self.below(limit);
        (first..limit).chain(0..first)
    }
}

/// Damages a tree file; returns a description of the change.
pub fn corrupt(
    volume: &Volume,
    file: &mut dyn TreeFile,
    kind: Kind,
    region: Option<u32>,
    seed: u64,
) -> Result<String> {
    // Spreads consecutive seeds.
    let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
    if kind == Kind::Header {
        return header(file, &mut random);
    }
    let survey = survey(volume, file, &mut |_, _| Ok(()))?;
    ensure!(
        survey.header.is_some(),
        "the header cannot be read, so no tree is found"
    );
    let regions: Vec<u32> = match region {
        Some(region) => {
            ensure!(
                region < volume.regions(),
                "the volume has {} regions",
                volume.regions()
            );
            vec![region]
        }
        None => (0..volume.regions()).collect(),
    };
    for index in random.round(regions.len()) {
        let Some(&region) = regions.get(index) else {
            continue;
        };
        let mut target = Target {
            volume,
            survey: &survey,
            region,
            random: &mut random,
        };
        if let Some(done) = target.corrupt(file, kind)? {
            return Ok(format!("region {region}: {done}"));
        }
    }
    bail!(
        "{}",
        match kind {
            Kind::Key => "no tree has an inner node",
            Kind::Record | Kind::Drop | Kind::Extra =>
                "no leaf has a record that this can be applied to undetectably",
            _ => "no tree is readable",
        }
    )
}

/// Flips a bit of a structure that occupies the first `len` bytes of a block.
fn flip(file: &mut dyn TreeFile, random: &mut Random, block: u32, len: usize) -> Result<String> {
    let mut bytes = file.read(block)?;
    let at = random.below(len.min(bytes.len()));
    let bit = random.below(8);
    let byte = bytes.get_mut(at).context("the block is empty")?;
    *byte ^= 1 << bit;
    file.write(block, &bytes)?;
    Ok(format!("{}: flipped bit {bit} of byte {at}", place(file, block)))
}

fn header(file: &mut dyn TreeFile, random: &mut Random) -> Result<String> {
    flip(file, random, 0, HEADER_SIZE).map(|done| format!("header, {done}"))
}

/// The region to damage.
struct Target<'a> {
    volume: &'a Volume,
    survey: &'a Survey,
    region: u32,
    random: &'a mut Random,
}

/// Describes a record, with its start relative to the volume.
fn tell(volume: &Volume, region: u32, record: &Record) -> String {
    let start = volume.region_start(region) + u64::from(record.first_block());
    format!(
        "{start} {} {} {} {}",
        record.len,
        record.kind_name(),
        record.owner,
        record.offset
    )
}

impl Target<'_> {
    /// Applies the damage. Returns `None` if this region has nothing to apply it to.
    fn corrupt(&mut self, file: &mut dyn TreeFile, kind: Kind) -> Result<Option<String>> {
        let nodes = self
            .survey
            .nodes
            .get(self.region as usize)
            .cloned()
            .unwrap_or_default();
        match kind {
            Kind::Record | Kind::Drop | Kind::Extra => self.leaf(file, &nodes, kind),
            Kind::Key => self.key(file, &nodes),
            Kind::Root => self.root(file),
            Kind::Header => header(file, self.random).map(Some),
            Kind::Sibling | Kind::Checksum | Kind::Zero => {
                let Some(node) = nodes.get(self.random.below(nodes.len())) else {
                    return Ok(None);
                };
                let done = match kind {
                    Kind::Sibling => self.sibling(file, node, &nodes)?,
                    Kind::Checksum => flip(file, self.random, node.block, self.volume.block_size as usize)?,
                    _ => {
                        file.write(node.block, &vec![0; self.volume.block_size as usize])?;
                        format!("{}: zeroed", place(file, node.block))
                    }
                };
                Ok(Some(format!("node of level {}, {done}", node.level)))
            }
        }
    }

    fn leaf(&mut self, file: &mut dyn TreeFile, nodes: &[Place], kind: Kind) -> Result<Option<String>> {
        let leaves: Vec<u32> = nodes
            .iter()
            .filter(|node| node.level == 0)
            .map(|node| node.block)
            .collect();
        for index in self.random.round(leaves.len()) {
            let Some(&block) = leaves.get(index) else {
                continue;
            };
            let mut node = Node(file.read(block)?, self.volume.tree);
            // Leaves that are already damaged are skipped: it would not be clear what a check has
            // found.
            let Ok(records) = node.records().collect::<Result<Vec<Record>>>() else {
                continue;
            };
            let leaf = Leaf::of(self.volume, self.region, &node, records);
            let changed = match kind {
                Kind::Record => leaf.change(self.random),
                Kind::Drop => leaf.drop_one(self.random),
                _ => leaf.add(self.random),
            };
            if let Some((records, what)) = changed {
                node.set_records(&records);
                node.seal(self.volume.seed);
                file.write(block, &node.0)?;
                return Ok(Some(format!("leaf, {}: {what}", place(file, block))));
            }
        }
        Ok(None)
    }

    fn key(&mut self, file: &mut dyn TreeFile, nodes: &[Place]) -> Result<Option<String>> {
        let inner: Vec<&Place> = nodes.iter().filter(|node| node.level > 0).collect();
        let Some(&&Place { block, level }) = inner.get(self.random.below(inner.len())) else {
            return Ok(None);
        };
        let mut node = Node(file.read(block)?, self.volume.tree);
        let mut entries: Vec<_> = node.entries().collect();
        let index = self.random.below(entries.len());
        let low = self.random.below(2) == 0;
        let Some(entry) = entries.get_mut(index) else {
            return Ok(None);
        };
        let was = *entry;
        if low {
            let [start, ..] = &mut entry.low;
            *start = start.wrapping_add(1);
        } else {
            entry.high = entry.high.wrapping_sub(1);
        }
        let now = *entry;
        node.set_entries(&entries);
        node.seal(self.volume.seed);
        file.write(block, &node.0)?;
        let place = place(file, block);
        Ok(Some(if low {
            format!(
                "node of level {level}, {place}: entry {index}: least key {:?} made {:?}",
                was.low, now.low
            )
        } else {
            format!(
                "node of level {level}, {place}: entry {index}: last block {} made {}",
                was.high, now.high
            )
        }))
    }

    fn sibling(&mut self, file: &mut dyn TreeFile, node: &Place, nodes: &[Place]) -> Result<String> {
        let mut bytes = Node(file.read(node.block)?, self.volume.tree);
        let (left, right) = bytes.siblings();
        let is_right = self.random.below(2) == 1;
        let was = if is_right { right } else { left };
        // Another node, or none where there is one; the node itself if it is the only one and has
        // no sibling.
        let other = nodes
            .get(self.random.below(nodes.len()))
            .map_or(0, |other| other.block);
        let now = [other, 0, node.block]
            .into_iter()
            .find(|now| *now != was)
            .unwrap_or(0);
        if is_right {
            bytes.set_siblings(left, now);
        } else {
            bytes.set_siblings(now, right);
        }
        bytes.seal(self.volume.seed);
        file.write(node.block, &bytes.0)?;
        let side = if is_right { "right" } else { "left" };
        Ok(format!(
            "{}: {side} sibling {was} made {now}",
            place(file, node.block)
        ))
    }

    fn root(&mut self, file: &mut dyn TreeFile) -> Result<Option<String>> {
        let header = self.survey.header.context("the header cannot be read")?;
        let Some(Some(entry)) = self.survey.table.get(self.region as usize).copied() else {
            return Ok(None);
        };
        if !entry.good {
            return Ok(None);
        }
        let root = self
            .random
            .round(header.blocks as usize)
            .find(|root| *root as u32 != entry.root);
        let mut changed = entry;
        changed.root = root.context("the file has only one block")? as u32;
        let each = self.volume.regions_per_block();
        let block = header.table + self.region / each;
        let at = (self.region % each) as usize * REGION_SIZE;
        let mut bytes = file.read(block)?;
        let mut slot = [0; REGION_SIZE];
        changed.store(self.volume, self.region, &mut slot);
        put(&mut bytes, at, &slot);
        file.write(block, &bytes)?;
        Ok(Some(format!(
            "region table, {}: root {} made {}",
            place(file, block),
            entry.root,
            changed.root
        )))
    }
}

/// The changed records of a leaf, and a description of the change.
type Changed = Option<(Vec<Record>, String)>;

/// A leaf, and the properties that a change has to keep so that the tree alone does not reveal it.
struct Leaf<'a> {
    volume: &'a Volume,
    region: u32,
    records: Vec<Record>,
    room: usize,
    /// True if the leaf has siblings, whose records are not known here.
    left: bool,
    right: bool,
    /// The parent's entry for this leaf; `None` for a root.
    summary: Option<(Key, u32)>,
}

impl<'a> Leaf<'a> {
    fn of(volume: &'a Volume, region: u32, node: &Node, records: Vec<Record>) -> Self {
        let (left, right) = node.siblings();
        let (left, right) = (left != 0, right != 0);
        Leaf {
            volume,
            region,
            room: node.capacity(),
            left,
            right,
            summary: if left || right { summary(&records) } else { None },
            records,
        }
    }

    fn tell(&self, record: &Record) -> String {
        tell(self.volume, self.region, record)
    }

    /// Returns true if the tree is well-formed with these records in this leaf.
    fn is_unseen(&self, records: &[Record]) -> bool {
        let blocks = self.volume.region_len(self.region);
        let fits = records.iter().all(|record| {
            record.last_block() < blocks
                && Record::load(self.volume.tree, &record.bytes()).is_ok_and(|again| again == *record)
        });
        let overlap = self.volume.shared_blocks && self.volume.tree == Tree::Rmap;
        let ordered = records
            .windows(2)
            .all(|pair| matches!(pair, [a, b] if a.key() < b.key() && (overlap || a.last() < b.start)));
        // A record may be continued by one with others in between, but only where blocks are
        // shared.
        let maximal = records
            .iter()
            .enumerate()
            .all(|(index, record)| records.iter().skip(index + 1).all(|next| !record.continues(next)));
        let summary_stays = self.summary.is_none() || self.summary == summary(records);
        !records.is_empty() && fits && ordered && maximal && summary_stays
    }

    /// Returns false for a record next to a neighbouring leaf, whose records could continue it.
    fn is_inside(&self, index: usize) -> bool {
        (index > 0 || !self.left) && (index + 1 < self.records.len() || !self.right)
    }

    fn change(&self, random: &mut Random) -> Changed {
        for index in random
            .round(self.records.len())
            .filter(|index| self.is_inside(*index))
        {
            let was = *self.records.get(index)?;
            for way in random.round(5) {
                let mut now = was;
                match way {
                    0 => now.owner = now.owner.checked_add(1)?,
                    1 if now.len > 1 => now.len -= 1,
                    2 if now.len < MAX_LEN => now.len += 1,
                    3 if now.kind == RecordKind::Data => now.offset = now.offset.wrapping_add(1),
                    4 if now.kind == RecordKind::Data && now.offset > 0 => now.offset -= 1,
                    _ => continue,
                }
                let mut records = self.records.clone();
                *records.get_mut(index)? = now;
                if self.is_unseen(&records) {
                    return Some((
                        records,
                        format!("record {index}: {} made {}", self.tell(&was), self.tell(&now)),
                    ));
                }
            }
        }
        None
    }

    fn drop_one(&self, random: &mut Random) -> Changed {
        for index in random
            .round(self.records.len())
            .filter(|index| self.is_inside(*index))
        {
            let mut records = self.records.clone();
            let was = records.remove(index);
            // An empty root is also well-formed.
            if self.is_unseen(&records) || (records.is_empty() && self.summary.is_none()) {
                return Some((records, format!("record {index}: {} removed", self.tell(&was))));
            }
        }
        None
    }

    fn add(&self, random: &mut Random) -> Changed {
        if self.records.len() >= self.room {
            return None;
        }
        // After a record: in a gap, or, if blocks may be shared, overlapping the next record.
        for index in random.round(self.records.len() + 1) {
            let start = match index.checked_sub(1) {
                Some(before) => self.records.get(before)?.last().checked_add(1)?,
                None => 0,
            };
            let counts = self.volume.tree == Tree::Refcount;
            let added = Record {
                start,
                len: 1,
                kind: if counts {
                    RecordKind::Shared
                } else {
                    RecordKind::Data
                },
                unwritten: false,
                // The root directory's inode, which every volume has; for reference counts, two
                // owners.
                owner: 2,
                offset: if counts {
                    0
                } else {
                    1000 + random.below(1000) as u32
                },
            };
            let mut records = self.records.clone();
            records.insert(index, added);
            if self.is_unseen(&records)
                && (index > 0 || !self.left)
                && (index < self.records.len() || !self.right)
            {
                return Some((records, format!("record {index}: {} added", self.tell(&added))));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dump::dump;
    use crate::synthetic::{self, Memory};

    /// Damages a fresh file; returns the description, the findings, the records, and the blocks
    /// that differ.
    fn damage(
        kind: Kind,
        region: Option<u32>,
        seed: u64,
    ) -> Result<(String, Vec<String>, String, Vec<usize>)> {
        let volume = synthetic::volume();
        let before = synthetic::file();
        let mut file = before.clone();
        let said = corrupt(&volume, &mut file, kind, region, seed)?;
        let mut text = Vec::new();
        let found = dump(&volume, &file, &mut text)?;
        Ok((said, found, String::from_utf8(text)?, differing(&before, &file)))
    }

    fn differing(a: &Memory, b: &Memory) -> Vec<usize> {
        (0..a.0.len()).filter(|&block| a.0[block] != b.0[block]).collect()
    }

    #[test]
    fn what_only_the_inodes_tell() {
        let lines = synthetic::text().lines().count();
        for seed in 0..200 {
            for (kind, more) in [(Kind::Record, 0), (Kind::Drop, -1), (Kind::Extra, 1)] {
                let (said, found, text, blocks) = damage(kind, None, seed).unwrap();
                assert_eq!(found, Vec::<String>::new(), "{said}");
                assert_eq!(text.lines().count() as i64, lines as i64 + more, "{said}");
                assert_ne!(text, synthetic::text());
                assert_eq!(blocks.len(), 1);
                assert!(said.contains(&format!(
                    "block {} of the file (block {} of",
                    blocks[0],
                    5000 + blocks[0]
                )));
            }
        }
    }

    #[test]
    fn what_the_shape_tells() {
        for seed in 0..200 {
            for kind in [Kind::Key, Kind::Sibling, Kind::Root] {
                let (said, found, _, blocks) = damage(kind, None, seed).unwrap();
                assert!(!found.is_empty(), "{said}");
                // If the root is changed to a block of another kind, its magic or checksum reveals
                // it.
                let sealed = found.iter().all(|finding| !finding.contains("checksum"));
                assert!(sealed || kind == Kind::Root, "{said}: {found:#?}");
                assert_eq!(blocks.len(), 1);
            }
        }
    }

    #[test]
    fn what_checksums_tell() {
        for seed in 0..200 {
            for kind in [Kind::Checksum, Kind::Zero, Kind::Header] {
                let (said, found, _, blocks) = damage(kind, None, seed).unwrap();
                assert!(!found.is_empty(), "{said}");
                assert_eq!(blocks.len(), 1);
            }
        }
    }

    #[test]
    fn only_where_it_is_asked() {
        for seed in 0..50 {
            for kind in [
                Kind::Record,
                Kind::Drop,
                Kind::Extra,
                Kind::Sibling,
                Kind::Zero,
                Kind::Root,
            ] {
                assert!(damage(kind, Some(1), seed).unwrap().0.starts_with("region 1: "));
            }
        }
        assert!(damage(Kind::Key, Some(1), 1).is_err());
        assert!(damage(Kind::Drop, Some(2), 1).is_err());
        assert!(damage(Kind::Drop, Some(3), 1).is_err());
    }

    #[test]
    fn a_seed_says_it_all() {
        let said = |seed| damage(Kind::Record, None, seed).unwrap().0;
        assert_eq!(said(5), said(5));
        assert!((0..10).any(|seed| said(seed) != said(5)));
    }
}
