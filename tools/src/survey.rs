// SPDX-License-Identifier: GPL-2.0

//! Reads a whole tree file and checks everything that can be checked without looking at inodes.
//!
//! Order: header, space maps, region table, then each region's tree level by level from the root
//! down, each level from left to right. So the leaves yield the records in order, and siblings are
//! read one after the other. Each node is checked individually and against its space map entry, its
//! parent's entry and its siblings, and so is the order of its contents. Records in leaves have to
//! be within the region and maximal, and may overlap only if the volume shares blocks. Finally,
//! every block that is allocated in a space map has to belong to a tree.
//!
//! A problem becomes a finding, and the survey continues with whatever is readable: the records
//! below a bad node are missing, all others are found.

use crate::{
    format::{check_map, map_entry, Header, Region, Tree, Volume, FIXED, REGION_SIZE},
    image::{place, TreeFile},
    node::{Entry, Key, Kind, Node, Record, MAX_LEVELS},
};
use anyhow::Result;
use std::collections::BTreeMap;

/// A readable node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Block of the node in the file.
    pub block: u32,
    /// Level; 0 for a leaf.
    pub level: u16,
}

/// Result of a survey.
#[derive(Default)]
pub struct Survey {
    /// The header, if it is valid.
    pub header: Option<Header>,
    /// The region table; `None` for an invalid entry.
    pub table: Vec<Option<Region>>,
    /// Description of each problem.
    pub findings: Vec<String>,
    /// The readable nodes of each region, from the root down.
    pub nodes: Vec<Vec<Place>>,
}

/// Reads the whole file and passes each readable record with its region to `each`.
pub fn survey(
    volume: &Volume,
    file: &dyn TreeFile,
    each: &mut dyn FnMut(u32, &Record) -> Result<()>,
) -> Result<Survey> {
    let mut found = Survey::default();
    let header = match Header::load(volume, &file.read(0)?) {
        Ok(header) => header,
        Err(what) => {
            found
                .findings
                .push(format!("header, {}: {what:#}", place(file, 0)));
            return Ok(found);
        }
    };
    found.header = Some(header);
    if let Some((field, then, now)) = header.stamp.differs(&volume.stamp, header.in_use) {
        found.findings.push(format!(
            "stale: another implementation has written to the volume; {field} was {then} and is {now}"
        ));
    }
    if header.in_use && !volume.orphan_present {
        found.findings.push(
            "stale: another implementation has replayed the journal and freed orphans since the trees were in use"
                .into(),
        );
    }
    let table_end = header.table.checked_add(volume.table_blocks());
    let Some(table_end) = table_end.filter(|end| header.table >= 2 && *end <= header.blocks) else {
        found.findings.push(format!(
            "header: the region table at block {} is outside the {} blocks in use",
            header.table, header.blocks
        ));
        return Ok(found);
    };
    if header.blocks > file.blocks() {
        found.findings.push(format!(
            "header: {} blocks in use, but the file has {}",
            header.blocks,
            file.blocks()
        ));
        return Ok(found);
    }
    let maps = Maps::read(volume, file, &header, table_end, &mut found.findings)?;
    for region in 0..volume.regions() {
        let each_block = volume.regions_per_block();
        let block = header.table + region / each_block;
        let bytes = file.read(block)?;
        let at = (region % each_block) as usize * REGION_SIZE;
        let entry = bytes.get(at..at + REGION_SIZE).unwrap_or(&[]);
        match Region::load(volume, region, entry) {
            Ok(entry) => found.table.push(Some(entry)),
            Err(what) => {
                let place = place(file, block);
                found.findings.push(format!(
                    "region table, entry of region {region}, {place}: {what:#}"
                ));
                found.table.push(None);
            }
        }
    }
    let mut seen = vec![false; maps.owners.len()];
    for region in 0..volume.regions() {
        let mut nodes = Vec::new();
        if let Some(Some(entry)) = found.table.get(region as usize) {
            if entry.good {
                let mut walk = Walk {
                    volume,
                    file,
                    maps: &maps,
                    region,
                    entry,
                    generation_limit: header.generation,
                    seen: &mut seen,
                    nodes: &mut nodes,
                    findings: &mut found.findings,
                };
                walk.tree(each)?;
            } else {
                found.findings.push(format!("region {region} is stale"));
            }
        }
        found.nodes.push(nodes);
    }
    maps.compare(file, &found.table, &seen, &mut found.findings);
    Ok(found)
}

/// The space maps of a file.
struct Maps {
    /// The entry of each block in use; `None` if the map is invalid.
    owners: Vec<Option<(u32, u32)>>,
}

impl Maps {
    fn read(
        volume: &Volume,
        file: &dyn TreeFile,
        header: &Header,
        table_end: u32,
        findings: &mut Vec<String>,
    ) -> Result<Maps> {
        let chunk = volume.chunk();
        let mut owners = Vec::with_capacity(header.blocks as usize);
        for first in (0..header.blocks).step_by(chunk as usize) {
            let here = chunk.min(header.blocks - first);
            let block = first + 1;
            let bytes = if block < header.blocks {
                file.read(block)?
            } else {
                Vec::new()
            };
            if let Err(what) = check_map(volume, block, &bytes) {
                findings.push(format!("space map, {}: {what:#}", place(file, block)));
                owners.extend(std::iter::repeat_n(None, here as usize));
                continue;
            }
            for index in 0..here {
                let at = first + index;
                let (owner, generation) = map_entry(&bytes, index as usize);
                let fixed = at == 0 || index == 1 || (header.table..table_end).contains(&at);
                let known = owner <= volume.regions() || owner == FIXED;
                if fixed != (owner == FIXED) || !known || (owner == 0 && generation != 0) {
                    let place = place(file, at);
                    findings.push(format!(
                        "space map: {place} is allocated to {owner}, generation {generation}"
                    ));
                }
                owners.push(Some((owner, generation)));
            }
        }
        Ok(Maps { owners })
    }

    /// Compares the space maps with the blocks that the trees use.
    fn compare(
        &self,
        file: &dyn TreeFile,
        table: &[Option<Region>],
        seen: &[bool],
        findings: &mut Vec<String>,
    ) {
        for (block, (owner, seen)) in (0u32..).zip(self.owners.iter().zip(seen)) {
            let Some((number, generation)) = *owner else {
                continue;
            };
            let region = number.wrapping_sub(1);
            let Some(Some(entry)) = table.get(region as usize) else {
                continue;
            };
            if *seen || number == FIXED {
                continue;
            }
            let place = place(file, block);
            if entry.good && entry.generation == generation {
                findings.push(format!(
                    "space map: {place} belongs to region {region}, but is not in its tree"
                ));
            } else if !entry.reap {
                findings.push(format!(
                    "space map: {place} belongs to region {region}, generation {generation}, and is not marked to be freed"
                ));
            }
        }
    }
}

/// A node as its parent describes it.
#[derive(Clone, Copy)]
struct Step {
    block: u32,
    expected: Option<(Key, u32)>,
}

/// The survey of one region's tree.
struct Walk<'a> {
    volume: &'a Volume,
    file: &'a dyn TreeFile,
    maps: &'a Maps,
    region: u32,
    entry: &'a Region,
    /// Upper bound of a valid generation.
    generation_limit: u32,
    /// Blocks that are part of a tree.
    seen: &'a mut [bool],
    nodes: &'a mut Vec<Place>,
    findings: &'a mut Vec<String>,
}

impl Walk<'_> {
    fn complain(&mut self, block: u32, what: impl std::fmt::Display) {
        let place = place(self.file, block);
        self.findings
            .push(format!("region {}: node, {place}: {what}", self.region));
    }

    fn tree(&mut self, each: &mut dyn FnMut(u32, &Record) -> Result<()>) -> Result<()> {
        let entry = self.entry;
        if entry.level >= MAX_LEVELS {
            self.findings.push(format!(
                "region {}: its root is at level {}",
                self.region, entry.level
            ));
            return Ok(());
        }
        if entry.generation == 0 || entry.generation > self.generation_limit {
            self.findings.push(format!(
                "region {}: its tree has generation {}, but the last assigned one is {}",
                self.region, entry.generation, self.generation_limit
            ));
        }
        let mut records = Records::default();
        // `None` stands for nodes that are missing because their parent could not be read.
        let mut steps = vec![Some(Step {
            block: entry.root,
            expected: None,
        })];
        for level in (0..=entry.level).rev() {
            let mut below = Vec::new();
            for index in 0..steps.len() {
                let Some(Some(step)) = steps.get(index).copied() else {
                    below.push(None);
                    continue;
                };
                let Some(node) = self.node(&step, level)? else {
                    below.push(None);
                    continue;
                };
                self.siblings(&node, &steps, index, step.block);
                if level > 0 {
                    self.entries(&node, &step, &mut below);
                } else {
                    self.leaf(&node, &step, &mut records, each)?;
                }
            }
            steps = below;
        }
        Ok(())
    }

    /// Reads a node and checks it individually.
    fn node(&mut self, step: &Step, level: u16) -> Result<Option<Node>> {
        let block = step.block;
        let Some(seen) = self.seen.get_mut(block as usize) else {
            self.complain(block, "it is beyond the blocks in use");
            return Ok(None);
        };
        if std::mem::replace(seen, true) {
            self.complain(block, "it is already part of a tree");
            return Ok(None);
        }
        if let Some(Some((owner, generation))) = self.maps.owners.get(block as usize).copied() {
            if owner.wrapping_sub(1) != self.region || generation != self.entry.generation {
                self.complain(
                    block,
                    format!("the space map allocates it to {owner}, generation {generation}"),
                );
            }
        }
        let node = Node(self.file.read(block)?, self.volume.tree);
        if let Err(what) = node.check(self.volume.seed, block, self.region, self.entry.generation, level) {
            self.complain(block, format!("{what:#}"));
            return Ok(None);
        }
        if node.count() == 0 && (level > 0 || step.expected.is_some()) {
            self.complain(block, "it is empty");
        }
        self.nodes.push(Place { block, level });
        Ok(Some(node))
    }

    /// Checks a node's siblings as far as they are known.
    fn siblings(&mut self, node: &Node, steps: &[Option<Step>], index: usize, block: u32) {
        let (left, right) = node.siblings();
        // The first and the last node of a level have no sibling on that side; this is known as
        // well.
        let at = |index: Option<usize>| match index.and_then(|index| steps.get(index)) {
            Some(step) => step.map(|step| step.block),
            None => Some(0),
        };
        for (side, said, is) in [
            ("left", left, at(index.checked_sub(1))),
            ("right", right, at(Some(index + 1))),
        ] {
            if let Some(is) = is.filter(|is| *is != said) {
                self.complain(
                    block,
                    format!("its {side} sibling is block {is}, and it says {said}"),
                );
            }
        }
    }

    fn expect(&mut self, step: &Step, is: Option<(Key, u32)>) {
        let (Some((low, high)), Some((is_low, is_high))) = (step.expected, is) else {
            return;
        };
        if low != is_low {
            self.complain(
                step.block,
                format!("its least key is {is_low:?}, and its parent says {low:?}"),
            );
        }
        if high != is_high {
            self.complain(
                step.block,
                format!("its last block is {is_high}, and its parent says {high}"),
            );
        }
    }

    fn entries(&mut self, node: &Node, step: &Step, below: &mut Vec<Option<Step>>) {
        let entries: Vec<Entry> = node.entries().collect();
        if let Some(index) = entries
            .windows(2)
            .position(|pair| matches!(pair, [a, b] if a.low >= b.low))
        {
            self.complain(
                step.block,
                format!("entries {index} and {} are not in order", index + 1),
            );
        }
        let high = entries.iter().map(|entry| entry.high).max();
        self.expect(step, entries.first().map(|entry| entry.low).zip(high));
        below.extend(entries.iter().map(|entry| {
            Some(Step {
                block: entry.child,
                expected: Some((entry.low, entry.high)),
            })
        }));
    }

    fn leaf(
        &mut self,
        node: &Node,
        step: &Step,
        records: &mut Records,
        each: &mut dyn FnMut(u32, &Record) -> Result<()>,
    ) -> Result<()> {
        let blocks = self.volume.region_len(self.region);
        let mut summary: Option<(Key, u32)> = None;
        for (index, record) in node.records().enumerate() {
            let record = match record {
                Ok(record) => record,
                Err(what) => {
                    self.complain(step.block, format!("record {index}: {what:#}"));
                    continue;
                }
            };
            if record.last_block() >= blocks {
                self.complain(
                    step.block,
                    format!("record {index}: it extends beyond the {blocks} blocks of the region"),
                );
            }
            if let Some(what) = records.next(
                &record,
                self.volume.shared_blocks && self.volume.tree == Tree::Rmap,
            ) {
                self.complain(step.block, format!("record {index}: {what}"));
            }
            let (_, high) = *summary.get_or_insert((record.key(), record.last()));
            summary = summary.map(|(low, _)| (low, high.max(record.last())));
            each(self.region, &record)?;
        }
        self.expect(step, summary);
        Ok(())
    }
}

/// State for checking the records of a tree in order.
#[derive(Default)]
struct Records {
    last: Option<Key>,
    /// End of the range covered so far, relative to the region, without attribute blocks.
    end: u64,
    /// End of the range covered by attribute blocks, which inodes may share on any volume.
    attributes_end: u64,
    /// Records that the next one could continue, by the block after their last.
    open: BTreeMap<u64, Vec<Record>>,
}

impl Records {
    /// Checks the next record; returns what is wrong with it.
    fn next(&mut self, record: &Record, shared: bool) -> Option<&'static str> {
        let start = u64::from(record.start);
        let end = start + u64::from(record.len);
        // Records come in order of their start, so a record that ends before it cannot be continued
        // any more.
        self.open = self.open.split_off(&start);
        let continued = self
            .open
            .get(&start)
            .is_some_and(|open| open.iter().any(|old| old.continues(record)));
        let wrong = if self.last.is_some_and(|last| last >= record.key()) {
            Some("it is out of order")
        } else if continued {
            Some("it continues another and should be merged with it")
        } else if (start < self.end || start < self.attributes_end && record.kind != Kind::Xattr) && !shared {
            Some("it overlaps another, but the volume has no shared blocks")
        } else {
            None
        };
        self.last = Some(record.key());
        match record.kind {
            Kind::Xattr => self.attributes_end = self.attributes_end.max(end),
            _ => self.end = self.end.max(end),
        }
        self.open.entry(end).or_default().push(*record);
        wrong
    }
}
