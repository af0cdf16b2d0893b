// SPDX-License-Identifier: GPL-2.0

//! Extended attributes and access control lists: those written by debugfs, and malformed ones.

use crate::format::{
    acl,
    inode::{self, Inode},
    superblock::{self, Layout, RawSuper},
    xattr::{self, index, Area, Attribute, Change, Changed},
    Corrupt,
};
use proptest::prelude::*;
use std::{collections::BTreeMap, fs, io::Write, path::PathBuf, process::Command};
use zerocopy::FromBytes;

const KINDS: &[&[&str]] = &[
    &["-b", "1024"],
    &["-b", "4096", "-I", "1024"],
    &["-b", "1024", "-I", "128", "-O", "^metadata_csum"],
];

fn tool(name: &str, arguments: &[&str]) -> String {
    let path = format!("{}:/sbin:/usr/sbin", std::env::var("PATH").unwrap());
    let output = Command::new(name)
        .args(arguments)
        .env("PATH", path)
        .output()
        .expect("e2fsprogs is installed");
    assert!(output.status.success(), "{name} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A volume with one file that has these attributes.
struct Image {
    bytes: Vec<u8>,
    layout: Layout,
    ino: u32,
}

impl Image {
    fn new(kind: &[&str], attributes: &BTreeMap<String, Vec<u8>>) -> Image {
        let dir = tempfile::tempdir().unwrap();
        let path: PathBuf = dir.path().join("image");
        let image = path.to_str().unwrap();
        let mut arguments = vec!["-q", "-F", "-t", "ext4"];
        arguments.extend_from_slice(kind);
        arguments.extend_from_slice(&[image, "8M"]);
        tool("mke2fs", &arguments);
        let mut script = fs::File::create(dir.path().join("script")).unwrap();
        writeln!(script, "write /dev/null file").unwrap();
        for (i, (name, value)) in attributes.iter().enumerate() {
            let file = dir.path().join(format!("value-{i}"));
            fs::write(&file, value).unwrap();
            writeln!(script, "ea_set -f {} file {name}", file.display()).unwrap();
        }
        drop(script);
        let script = dir.path().join("script");
        tool("debugfs", &["-w", "-f", script.to_str().unwrap(), image]);
        let stat = tool("debugfs", &["-R", "stat file", image]);
        let ino = stat["Inode: ".len()..].split_whitespace().next().unwrap();
        let bytes = fs::read(&path).unwrap();
        let raw = RawSuper::read_from_prefix(&bytes[superblock::OFFSET..])
            .unwrap()
            .0;
        Image {
            layout: Layout::read(&raw, bytes.len() as u64).unwrap(),
            ino: ino.parse().unwrap(),
            bytes,
        }
    }

    fn inode_bytes(&self) -> &[u8] {
        let (group, number) = self.layout.locate_inode(self.ino).unwrap();
        let (block, offset) = self.layout.desc_location(group);
        let group =
            crate::format::group::Group::read(&self.layout, group, &self.block(block)[offset..]).unwrap();
        let size = usize::from(self.layout.inode_size);
        let start = group.inode_table as usize * self.layout.block_size as usize + number as usize * size;
        &self.bytes[start..][..size]
    }

    fn inode(&self) -> Inode {
        inode::read(&self.layout, self.ino, self.inode_bytes()).unwrap()
    }

    fn block(&self, number: u64) -> &[u8] {
        let size = self.layout.block_size as usize;
        &self.bytes[number as usize * size..][..size]
    }
}

fn full_name(index: u8, name: &[u8]) -> String {
    let prefix = match index {
        index::USER => "user.",
        index::TRUSTED => "trusted.",
        index::SECURITY => "security.",
        _ => panic!("namespace {index}"),
    };
    format!("{prefix}{}", std::str::from_utf8(name).unwrap())
}

fn some_attributes() -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    all.insert("user.a".into(), b"1".to_vec());
    all.insert("user.empty".into(), Vec::new());
    all.insert("trusted.name".into(), b"twelve bytes".to_vec());
    all.insert("security.name".into(), vec![7; 61]);
    all.insert(format!("user.{}", "n".repeat(200)), vec![9; 130]);
    all.insert("user.large".into(), vec![3; 250]);
    all
}

#[test]
fn attributes_of_debugfs_are_read() {
    for kind in KINDS {
        let all = some_attributes();
        let image = Image::new(kind, &all);
        let mut found = BTreeMap::new();
        let mut take = |area: Area<'_>| {
            for attribute in area.iter() {
                assert_eq!(area.find(attribute.index, attribute.name), Some(attribute.value));
                found.insert(
                    full_name(attribute.index, attribute.name),
                    attribute.value.to_vec(),
                );
            }
            assert_eq!(area.find(index::USER, b"none"), None);
        };
        if let Some(area) = Area::in_inode(&image.layout, image.inode_bytes()).unwrap() {
            take(area);
        }
        let place = image.inode().file_acl;
        if place != 0 {
            take(Area::in_block(&image.layout, place, image.block(place), true).unwrap());
            let mut again = image.block(place).to_vec();
            again[16..20].fill(0x5a);
            if image.layout.has_metadata_csum() {
                let area = Area::in_block(&image.layout, place, &again, true);
                assert_eq!(area.err(), Some(Corrupt("attribute block checksum mismatch")));
                xattr::seal(&image.layout, place, &mut again).unwrap();
                assert_eq!(again, image.block(place));
            }
        }
        assert_eq!(found, all, "{kind:?}");
    }
}

#[test]
fn damage_of_attributes_is_named() {
    let image = Image::new(KINDS[2], &some_attributes());
    let place = image.inode().file_acl;
    let good = image.block(place);
    let with = |at: usize, bytes: &[u8]| {
        let mut block = good.to_vec();
        block[at..at + bytes.len()].copy_from_slice(bytes);
        let area = Area::in_block(&image.layout, place, &block, true);
        area.err().map(|what| what.0)
    };
    assert_eq!(with(0, b""), None);
    assert_eq!(with(0, b"x"), Some("bad attribute block magic"));
    assert_eq!(with(4, &[0; 4]), Some("attribute block without holders"));
    assert_eq!(with(8, &[2]), Some("bad attribute block size"));
    // The first entry: the length of its name, and the offset, inode and size of its value.
    assert_eq!(with(32, &[255]), Some("bad attribute name"));
    assert_eq!(with(34, &[40, 0]), Some("attribute value out of bounds"));
    assert_eq!(with(34, &[255, 255]), Some("attribute value out of bounds"));
    assert_eq!(with(36, &[1]), Some("attribute value in an inode"));
    assert_eq!(with(40, &[255; 4]), Some("attribute value out of bounds"));
    let mut entries = vec![1; good.len()];
    entries[..32].copy_from_slice(&good[..32]);
    let area = Area::in_block(&image.layout, place, &entries, true);
    assert!(area.is_err());
    // The third entry (the second one has an empty value) with the first one's value.
    let third = (0..2).fold(32, |at, _| at + 16 + usize::from(good[at]).next_multiple_of(4));
    assert_eq!(with(third + 2, &good[34..36]), Some("attribute values overlap"));
}

/// Returns the fields of a block that must not depend on its layout: its own hash, and each
/// entry's.
fn hashes(block: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let (mut at, mut entries) = (32, Vec::new());
    while block[at..at + 4] != [0; 4] {
        entries.push(block[at + 12..at + 16].to_vec());
        at += 16 + usize::from(block[at]).next_multiple_of(4);
    }
    (block[12..16].to_vec(), entries)
}

#[test]
fn hashes_are_those_of_others() {
    let image = Image::new(KINDS[2], &some_attributes());
    let place = image.inode().file_acl;
    let old = image.block(place);
    let area = Area::in_block(&image.layout, place, old, true).unwrap();
    assert!(area.iter().count() > 3);
    for attribute in area.iter() {
        let Attribute { index, name, value } = attribute;
        let change = |value| Change { index, name, value };
        // Removed and added again, so that its hash is computed anew.
        let mut without = vec![0; old.len()];
        let gone = change(None).in_block(Some(area), &mut without).unwrap();
        assert_eq!(gone, Changed::Filled);
        let without = Area::in_block(&image.layout, place, &without, false).unwrap();
        let mut again = vec![0x5a; old.len()];
        let filled = change(Some(value)).in_block(Some(without), &mut again).unwrap();
        assert_eq!(filled, Changed::Filled);
        let (block, entries) = hashes(&again);
        assert_eq!(entries, hashes(old).1);
        // debugfs does not store the hash of a block; it is derived from those of the entries.
        let all = entries.iter().fold(0u32, |hash, entry| {
            (hash << 16) ^ (hash >> 16) ^ u32::from_le_bytes(entry[..].try_into().unwrap())
        });
        assert_eq!(block, all.to_le_bytes());
    }
}

/// Returns an access control list: for each entry a tag, permissions, and an id if it has one.
fn list(entries: &[(u16, u16, Option<u32>)]) -> Vec<u8> {
    let mut bytes = vec![1, 0, 0, 0];
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend(id.iter().flat_map(|id| id.to_le_bytes()));
    }
    bytes
}

#[test]
fn access_lists_are_read() {
    let all = [
        (1, 7, None),
        (2, 5, Some(70000)),
        (4, 5, None),
        (8, 0, Some(100)),
        (16, 7, None),
        (32, 4, None),
    ];
    let read = |bytes: &[u8]| acl::entries(bytes)?.collect::<Result<Vec<_>, Corrupt>>();
    let bytes = list(&all);
    let found = read(&bytes).unwrap();
    let found: Vec<_> = found.iter().map(|e| (e.tag, e.permissions, e.id)).collect();
    assert_eq!(found, all);
    let mut written = acl::HEADER.to_vec();
    for (tag, permissions, id) in all {
        let (entry, len) = acl::Entry { tag, permissions, id }.encode();
        written.extend_from_slice(&entry[..len]);
    }
    assert_eq!(written, bytes);
    for len in 1..bytes.len() {
        if let Ok(found) = read(&bytes[..len]) {
            assert!(list(&all[..found.len()]) == bytes[..len]);
        }
    }
    assert!(read(&list(&[(1, 8, None)])).is_err());
    assert!(read(&list(&[(3, 7, None)])).is_err());
    assert!(read(&[2, 0, 0, 0]).is_err());
    assert_eq!(read(&[1, 0, 0, 0]), Ok(Vec::new()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bytes_lead_astray(seed in any::<u64>(), changes in 1usize..40) {
        thread_local! {
            static IMAGE: Image = Image::new(KINDS[2], &some_attributes());
        }
        IMAGE.with(|image| {
            let place = image.inode().file_acl;
            let mut block = image.block(place).to_vec();
            let mut state = seed | 1;
            let mut next = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as usize
            };
            for _ in 0..changes {
                let at = if next() % 2 == 0 { 32 + next() % 200 } else { next() % block.len() };
                block[at] = [0, 1, 4, 16, 255, next() as u8][next() % 6];
            }
            block[..12].copy_from_slice(&image.block(place)[..12]);
            let area = Area::in_block(&image.layout, place, &block, false);
            if let Ok(area) = area {
                let values: usize = area.iter().map(|attribute| attribute.value.len()).sum();
                assert!(values <= block.len());
            }
            // With the same bytes as an inode's.
            let mut wide = image.layout;
            wide.inode_size = 1024;
            block[128..130].copy_from_slice(&[32, 0]);
            block[160..164].copy_from_slice(&xattr::MAGIC.to_le_bytes());
            if let Ok(Some(area)) = Area::in_inode(&wide, &block) {
                for attribute in area.iter() {
                    let _ = acl::entries(attribute.value).map(|entries| entries.count());
                }
            }
        });
    }

    #[test]
    fn changes_leave_what_a_map_has(
        in_inode in any::<bool>(),
        changes in proptest::collection::vec((0u8..3, 0usize..9, 0usize..2, 0usize..400), 1..60),
    ) {
        thread_local! {
            static IMAGE: Image = Image::new(KINDS[1], &BTreeMap::new());
        }
        IMAGE.with(|image| {
            let layout = &image.layout;
            let mut bytes = if in_inode { image.inode_bytes().to_vec() } else { vec![0; 1024] };
            let room = if in_inode { 1024 - 128 - 32 - 4 } else { 1024 - 32 };
            let mut model: BTreeMap<(u8, usize, String), Vec<u8>> = BTreeMap::new();
            for (number, &(index, name, remove, len)) in changes.iter().enumerate() {
                let name = "n".repeat(name * 3) + &name.to_string();
                let value = (remove == 0).then(|| vec![number as u8; len % [7, 60, 400][len % 3]]);
                let key = (index + 1, name.len(), name.clone());
                let mut next = model.clone();
                match &value {
                    Some(value) => next.insert(key, value.clone()),
                    None => next.remove(&key),
                };
                let size: usize = next
                    .iter()
                    .map(|((_, len, _), value)| 16 + len.next_multiple_of(4) + value.len().next_multiple_of(4))
                    .sum();
                let change = Change { index: index + 1, name: name.as_bytes(), value: value.as_deref() };
                let mut new = bytes.clone();
                let done = if in_inode {
                    change.in_inode(layout, &bytes, &mut new).unwrap()
                } else {
                    let old = (bytes[..4] != [0; 4]).then(|| Area::in_block(layout, 7, &bytes, false).unwrap());
                    change.in_block(old, &mut new).unwrap()
                };
                let expected = match next.is_empty() {
                    true => Changed::Empty,
                    false if size + 4 > room => Changed::NoRoom,
                    false => Changed::Filled,
                };
                assert_eq!(done, expected);
                if done == Changed::NoRoom {
                    continue;
                }
                (bytes, model) = (new, next);
                if done == Changed::Empty && !in_inode {
                    bytes.fill(0);
                    continue;
                }
                let area = match in_inode {
                    true => Area::in_inode(layout, &bytes).unwrap(),
                    false => Some(Area::in_block(layout, 7, &bytes, false).unwrap()),
                };
                let found: Vec<_> = area
                    .iter()
                    .flat_map(Area::iter)
                    .map(|one| (one.index, one.name.len(), String::from_utf8(one.name.to_vec()).unwrap()))
                    .collect();
                let mut sorted = found.clone();
                sorted.sort();
                assert!(in_inode || found == sorted);
                assert!(sorted.iter().eq(model.keys()));
                for ((index, _, name), value) in &model {
                    assert_eq!(area.unwrap().find(*index, name.as_bytes()), Some(&value[..]));
                }
            }
            // The fields before the attributes of an inode stay unchanged.
            assert!(!in_inode || bytes[..160] == image.inode_bytes()[..160]);
        });
    }

    #[test]
    fn no_access_list_leads_astray(bytes in proptest::collection::vec(0u8..40, 0..64)) {
        let mut bytes = bytes;
        if let Some(version) = bytes.get_mut(..4) {
            version.copy_from_slice(&[1, 0, 0, 0]);
        }
        if let Ok(entries) = acl::entries(&bytes) {
            assert!(entries.count() <= bytes.len() / 4 + 1);
        };
    }
}
