// SPDX-License-Identifier: GPL-2.0

//! The on-disk format, compared with mke2fs images and the output of debugfs.

use crate::format::{
    csum::crc16,
    dir::{self, Entries},
    extent::{Extent, Found, Node},
    extent_edit,
    group::{self, Group},
    inode::{self, flags},
    superblock::{self, incompat, Features, Layout, RawSuper},
    zones::{self, Zone},
    Corrupt,
};
use proptest::prelude::*;
use std::{fs, path::Path, process::Command};
use zerocopy::FromBytes;

fn run(command: &mut Command) -> String {
    let output = command.output().expect("e2fsprogs is installed");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Returns a command of e2fsprogs, which may not be in an ordinary user's path.
fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env(
        "PATH",
        format!("{}:/sbin:/usr/sbin", std::env::var("PATH").unwrap()),
    );
    command
}

/// An image made by mke2fs with the given arguments, with a few files in it.
pub(crate) struct Image {
    bytes: Vec<u8>,
    path: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl Image {
    pub(crate) fn new(arguments: &[&str]) -> Image {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("many")).unwrap();
        for i in 0..700 {
            fs::write(
                tree.join("many").join(format!("a-name-of-some-length-{i}")),
                format!("{i}"),
            )
            .unwrap();
        }
        fs::write(tree.join("large"), vec![7; 3_000_000]).unwrap();
        std::os::unix::fs::symlink("large", tree.join("link")).unwrap();
        let path = dir.path().join("image");
        run(tool("mke2fs")
            .args(["-q", "-F", "-d"])
            .arg(&tree)
            .args(arguments)
            .arg(&path)
            .arg("64M"));
        Image {
            bytes: fs::read(&path).unwrap(),
            path,
            _dir: dir,
        }
    }

    /// Makes e2fsck index the directories of more than one block.
    pub(crate) fn index_directories(&mut self) {
        // It ends with status 1 when it has changed something.
        let status = tool("e2fsck")
            .arg("-fyD")
            .arg(&self.path)
            .output()
            .unwrap()
            .status;
        assert!(matches!(status.code(), Some(0 | 1)), "{status}");
        self.bytes = fs::read(&self.path).unwrap();
    }

    fn raw_super(&self) -> RawSuper {
        RawSuper::read_from_prefix(&self.bytes[superblock::OFFSET..])
            .unwrap()
            .0
    }

    pub(crate) fn layout(&self) -> Layout {
        Layout::read(&self.raw_super(), self.bytes.len() as u64).unwrap()
    }

    pub(crate) fn block(&self, layout: &Layout, block: u64) -> &[u8] {
        let size = layout.block_size as usize;
        &self.bytes[block as usize * size..][..size]
    }

    fn group(&self, layout: &Layout, number: u32) -> Group {
        let (block, offset) = layout.desc_location(number);
        Group::read(layout, number, &self.block(layout, block)[offset..]).unwrap()
    }

    pub(crate) fn inode_bytes(&self, layout: &Layout, ino: u32) -> &[u8] {
        let (group, index) = layout.locate_inode(ino).unwrap();
        let table = self.group(layout, group).inode_table;
        let start =
            table as usize * layout.block_size as usize + index as usize * usize::from(layout.inode_size);
        &self.bytes[start..][..usize::from(layout.inode_size)]
    }

    /// Returns the location of each block of a file, by walking its extent tree.
    pub(crate) fn blocks_of(&self, layout: &Layout, ino: u32) -> Vec<(u32, u64)> {
        let found = inode::read(layout, ino, self.inode_bytes(layout, ino)).unwrap();
        assert!(found.flags & flags::EXTENTS != 0);
        let seed = superblock::inode_seed(layout.seed, ino, found.generation);
        let mut blocks = Vec::new();
        let root = Node::read(layout, &found.block, None, None, (0, u32::MAX)).unwrap();
        self.collect(layout, root, seed, u32::MAX, &mut blocks);
        blocks
    }

    fn collect(&self, layout: &Layout, node: Node<'_>, seed: u32, last: u32, blocks: &mut Vec<(u32, u64)>) {
        for extent in node.extents() {
            for i in 0..extent.len {
                assert_eq!(node.find(extent.offset + i), Found::Mapped(extent));
                blocks.push((extent.offset + i, extent.start + u64::from(i)));
            }
        }
        for index in node.indices() {
            let (found, next) = node.descend(index.offset).unwrap();
            assert_eq!(found, index);
            let last = next.map_or(last, |next| next - 1);
            let bytes = self.block(layout, index.child);
            let range = (index.offset, last);
            let child = Node::read(layout, bytes, Some(node.depth() - 1), Some(seed), range).unwrap();
            self.collect(layout, child, seed, last, blocks);
        }
    }

    /// Returns the number of the inode with this path.
    pub(crate) fn inode_of(&self, path: &str) -> u32 {
        let stat = self.debugfs(&format!("stat {path}"));
        let number = stat["Inode: ".len()..].split_whitespace().next();
        number.unwrap().parse().unwrap()
    }

    pub(crate) fn debugfs(&self, request: &str) -> String {
        run(tool("debugfs").args(["-R", request]).arg(&self.path))
    }
}

pub(crate) const KINDS: &[&[&str]] = &[
    &["-t", "ext4", "-b", "1024"],
    &["-t", "ext4", "-b", "2048"],
    &["-t", "ext4", "-b", "4096"],
    &["-t", "ext4", "-b", "4096", "-I", "128"],
    &[
        "-t",
        "ext4",
        "-b",
        "1024",
        "-O",
        "^metadata_csum,uninit_bg,^64bit",
    ],
    &[
        "-t",
        "ext4",
        "-b",
        "1024",
        "-O",
        "^flex_bg,^resize_inode,metadata_csum_seed",
    ],
    &["-t", "ext4", "-b", "1024", "-O", "sparse_super2"],
];

/// Volumes whose files have no extents, or whose group descriptors are stored elsewhere.
const LAYOUTS: &[&[&str]] = &[
    &[
        "-t",
        "ext4",
        "-b",
        "1024",
        "-g",
        "256",
        "-O",
        "meta_bg,^resize_inode",
    ],
    &[
        "-t",
        "ext4",
        "-b",
        "1024",
        "-g",
        "256",
        "-O",
        "meta_bg,^resize_inode,^64bit,^sparse_super",
    ],
    &["-t", "ext4", "-b", "1024", "-O", "large_dir"],
    &["-t", "ext2", "-E", "revision=0"],
];

/// Returns the value of a field in dumpe2fs's description of the superblock.
fn field(dump: &str, name: &str) -> u64 {
    let line = dump
        .lines()
        .find(|line| line.starts_with(name))
        .unwrap_or_else(|| panic!("no {name}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn layout_agrees_with_dumpe2fs() {
    for kind in KINDS.iter().chain(LAYOUTS) {
        let image = Image::new(kind);
        let layout = image.layout();
        assert_eq!(layout.features.unsupported(false).next(), None, "{kind:?}");
        let dump = run(tool("dumpe2fs").arg(&image.path));
        assert_eq!(layout.blocks, field(&dump, "Block count:"));
        assert_eq!(u64::from(layout.inodes), field(&dump, "Inode count:"));
        assert_eq!(
            u64::from(layout.inodes_per_group),
            field(&dump, "Inodes per group:")
        );
        assert_eq!(
            u64::from(layout.inode_table_blocks()),
            field(&dump, "Inode blocks per group:")
        );
        // dumpe2fs lists the superblock of each group that has a copy.
        for number in 0..layout.groups {
            let head = format!("Group {number}:");
            let text = &dump[dump.find(&head).unwrap()..];
            let text = &text[..text[1..].find("\nGroup ").map_or(text.len(), |end| end + 1)];
            assert_eq!(
                layout.has_super(number),
                text.contains("superblock at"),
                "group {number}: {text}"
            );
            let range = format!("{}-{}", layout.group_start(number), {
                layout.group_start(number) + u64::from(layout.group_blocks(number)) - 1
            });
            assert!(text.contains(&range), "group {number}: {text}");
            let found = image.group(&layout, number);
            assert!(
                text.contains(&format!("Inode table at {}-", found.inode_table)),
                "{text}"
            );
            assert!(text.contains(&format!(
                "{} free blocks, {} free inodes",
                found.free_blocks, found.free_inodes
            )));
            // A group's bitmap tells which blocks precede its first free block.
            let descs = text
                .lines()
                .find(|line| line.contains("roup descriptor"))
                .map_or(0, |line| {
                    let place = line.rsplit(" at ").next().unwrap().trim();
                    let mut ends = place.splitn(2, '-').map(|end| end.parse::<u32>().unwrap());
                    let first = ends.next().unwrap();
                    ends.next().map_or(1, |last| last - first + 1)
                });
            assert_eq!(layout.leading_descs(number), descs, "group {number}: {text}");
            assert_eq!(
                group::Group::table_of(&layout, {
                    let (block, offset) = layout.desc_location(number);
                    &image.block(&layout, block)[offset..]
                }),
                Ok(found.inode_table)
            );
        }
    }
}

#[test]
fn descriptors_survive_being_stored() {
    for kind in KINDS {
        let image = Image::new(kind);
        let layout = image.layout();
        for number in 0..layout.groups {
            let (block, offset) = layout.desc_location(number);
            let before = &image.block(&layout, block)[offset..][..usize::from(layout.desc_size)];
            let mut after = before.to_vec();
            // The checksum is restored whatever it was before.
            after[30] ^= 0x5a;
            let found = Group::read(&layout, number, before).unwrap();
            if layout.has_metadata_csum() {
                assert_eq!(
                    Group::read(&layout, number, &after),
                    Err(Corrupt("descriptor checksum mismatch"))
                );
            }
            found.store(&layout, number, &mut after).unwrap();
            assert_eq!(before, after);
        }
    }
}

#[test]
fn bitmap_checksums_hold() {
    for kind in KINDS {
        let image = Image::new(kind);
        let layout = image.layout();
        if !layout.has_metadata_csum() {
            continue;
        }
        for number in 0..layout.groups {
            let found = image.group(&layout, number);
            if found.flags & group::BLOCK_UNINIT == 0 {
                let bitmap = image.block(&layout, found.block_bitmap);
                let sum = group::bitmap_checksum(&layout, bitmap, layout.blocks_per_group).unwrap();
                assert_eq!(sum, found.block_bitmap_csum, "{kind:?} group {number}");
            }
            if found.flags & group::INODE_UNINIT == 0 {
                let bitmap = image.block(&layout, found.inode_bitmap);
                let sum = group::bitmap_checksum(&layout, bitmap, layout.inodes_per_group).unwrap();
                assert_eq!(sum, found.inode_bitmap_csum, "{kind:?} group {number}");
            }
        }
    }
}

#[test]
fn names_and_blocks_agree_with_debugfs() {
    for kind in KINDS {
        let image = Image::new(kind);
        let layout = image.layout();
        let ino = image.inode_of("/many");
        let found = inode::read(&layout, ino, image.inode_bytes(&layout, ino)).unwrap();
        let seed = superblock::inode_seed(layout.seed, ino, found.generation);
        let mut names = Vec::new();
        let blocks = image.blocks_of(&layout, ino);
        for (number, place) in &blocks {
            let block = image.block(&layout, *place);
            let indexed = found.flags & flags::INDEX != 0 && dir::is_index(block, *number == 0);
            if !indexed {
                dir::verify(&layout, block, seed).unwrap();
            }
            for entry in Entries::new(&layout, block) {
                let entry = entry.unwrap();
                if entry.inode != 0 {
                    names.push((String::from_utf8(entry.name.to_vec()).unwrap(), entry.inode));
                }
            }
        }
        names.sort();
        let listed = image.debugfs("ls -p /many");
        let mut expected: Vec<(String, u32)> = listed
            .lines()
            .filter(|line| line.starts_with('/'))
            .map(|line| {
                let parts: Vec<&str> = line.split('/').collect();
                (parts[5].to_string(), parts[1].parse().unwrap())
            })
            .collect();
        expected.sort();
        assert_eq!(names, expected);
        assert_eq!(names.len(), 702);
        let listed: Vec<u64> = image
            .debugfs("blocks /many")
            .split_whitespace()
            .map(|n| n.parse().unwrap())
            .collect();
        for (_, place) in blocks {
            assert!(listed.contains(&place));
        }
    }
}

#[test]
fn flags_are_inherited_by_inodes_that_may_have_them() {
    use inode::flags::{allowed, inherited, CHANGEABLE, VISIBLE};
    // As `EXT4_FL_INHERITED`, `EXT4_REG_FLMASK` and `EXT4_OTHER_FLMASK` of the kernel.
    assert_eq!(inherited(0o040755, u32::MAX), 0x6201_c4cf);
    assert_eq!(inherited(0o100644, u32::MAX), 0x0200_c4cf);
    assert_eq!(inherited(0o010644, u32::MAX), 0xc0);
    assert_eq!(allowed(0o120777, 0x10), 0);
    assert_eq!((CHANGEABLE, VISIBLE), (0x624b_c0ff, 0x725b_dfff));
}

#[test]
fn the_time_of_birth_is_read_where_there_is_room() {
    for kind in KINDS {
        let image = Image::new(kind);
        let layout = image.layout();
        let told = image.debugfs("stat <2>");
        let told = told
            .lines()
            .find_map(|line| line.trim().strip_prefix("crtime: 0x"));
        let told = told.map(|line| u32::from_str_radix(&line[..8], 16).unwrap());
        let made = inode::made(&layout, image.inode_bytes(&layout, inode::ROOT));
        assert_eq!(made.map(|time| time.seconds as u32), told);
    }
}

#[test]
fn every_inode_in_use_is_read_and_sealed_again() {
    for kind in KINDS {
        let image = Image::new(kind);
        let layout = image.layout();
        let mut seen = 0;
        for ino in 1..=layout.inodes {
            let bytes = image.inode_bytes(&layout, ino);
            if inode::is_free(bytes) {
                continue;
            }
            let found = inode::read(&layout, ino, bytes).unwrap();
            seen += 1;
            let mut again = bytes.to_vec();
            inode::seal(&layout, ino, &mut again).unwrap();
            assert_eq!(bytes, again, "inode {ino}");
            // The legacy orphan list is linked through `i_dtime`, so writing other fields must
            // leave it unchanged.
            inode::set_dtime(&layout, ino, 17, &mut again).unwrap();
            let kept = inode::Inode { dtime: None, ..found };
            inode::write(&layout, ino, &kept, false, &mut again).unwrap();
            let orphan = inode::outline(&layout, ino, &again, true).unwrap();
            assert_eq!(orphan.dtime(), 17);
            again.copy_from_slice(bytes);
            // Inodes with a valid checksum of this volume always count, others only if the table is
            // known to be written.
            let has_names = |bytes: &[u8], written| inode::has_names(&layout, ino, bytes, written);
            assert_eq!(has_names(bytes, true), found.links > 0);
            assert_eq!(
                has_names(bytes, false),
                found.links > 0 && layout.has_metadata_csum()
            );
            if layout.has_metadata_csum() {
                again[8] ^= 1;
                assert_eq!(
                    inode::read(&layout, ino, &again).err(),
                    Some(Corrupt("inode checksum mismatch"))
                );
                assert!(!inode::has_names(&layout, ino, &again, false));
                assert_eq!(inode::has_names(&layout, ino, &again, true), found.links > 0);
            }
            let own = ino != inode::ROOT && ino < layout.first_inode
                || [layout.journal_inode, layout.orphan_inode].contains(&ino);
            assert_eq!(inode::is_ordinary(&layout, ino), !own);
            assert!(
                found.size < 64 << 20 || ino == inode::RESIZE,
                "inode {ino} has {} bytes",
                found.size
            );
        }
        assert!(seen > 700);
    }
}

#[test]
fn damaged_superblocks_are_refused() {
    let image = Image::new(KINDS[2]);
    let good = image.raw_super();
    let bytes = image.bytes.len() as u64;
    let refused = |change: &dyn Fn(&mut RawSuper)| {
        let mut raw = good;
        change(&mut raw);
        let sealed = superblock::checksum(&raw);
        raw.checksum.set(sealed);
        Layout::read(&raw, bytes).err()
    };
    assert_eq!(refused(&|_| ()), None);
    assert_eq!(refused(&|raw| raw.magic.set(0)), Some(Corrupt("bad magic")));
    assert_eq!(
        refused(&|raw| raw.log_block_size.set(40)),
        Some(Corrupt("block size is not 1, 2 or 4 KiB"))
    );
    assert_eq!(
        refused(&|raw| raw.blocks_count_hi.set(1)),
        Some(Corrupt("volume is larger than its device"))
    );
    assert_eq!(
        refused(&|raw| raw.blocks_per_group.set(0)),
        Some(Corrupt("bad blocks per group"))
    );
    assert_eq!(
        refused(&|raw| raw.inode_size.set(100)),
        Some(Corrupt("bad inode size"))
    );
    assert_eq!(
        refused(&|raw| raw.inodes_per_group.set(7)),
        Some(Corrupt("bad inodes per group"))
    );
    assert_eq!(
        refused(&|raw| raw.desc_size.set(0)),
        Some(Corrupt("bad descriptor size"))
    );
    let mut raw = good;
    raw.uuid[3] ^= 1;
    assert_eq!(
        Layout::read(&raw, bytes).err(),
        Some(Corrupt("superblock checksum mismatch"))
    );
}

#[test]
fn features_are_refused_by_name() {
    let features = Features {
        compat: 0,
        incompat: incompat::ENCRYPT | (1 << 31),
        ro_compat: 0x100,
    };
    let names: Vec<_> = features.unsupported(true).collect();
    assert_eq!(names, [(Some("encrypt"), incompat::ENCRYPT), (None, 1 << 31)]);
    let names: Vec<_> = features.unsupported(false).map(|(name, _)| name).collect();
    assert_eq!(names, [Some("encrypt"), None, Some("quota")]);
}

#[test]
fn times_keep_34_bits_of_seconds() {
    for seconds in [
        0,
        -1,
        1,
        i64::from(i32::MIN),
        i64::from(i32::MAX),
        1 << 31,
        1 << 32,
        15_032_385_535,
    ] {
        let time = inode::Time {
            seconds,
            nanoseconds: 123_456_789,
        };
        let (low, extra) = time.encode();
        assert_eq!(i64::from(low as i32) + (i64::from(extra & 3) << 32), seconds);
        assert_eq!(extra >> 2, 123_456_789);
    }
}

#[test]
fn crc16_has_the_value_everybody_knows() {
    assert_eq!(crc16(0, b"123456789"), 0xbb3d);
}

fn any_layout() -> Layout {
    let image = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert!(image.exists());
    thread_local! {
        static LAYOUT: Layout = Image::new(KINDS[0]).layout();
    }
    LAYOUT.with(|layout| *layout)
}

proptest! {
    /// Merged zones give the same answer for every run of blocks as the original zones.
    #[test]
    fn zones_meet_what_they_hold(ranges in prop::collection::vec((0u64..300, 0u64..20), 0..30)) {
        let mut list: Vec<Zone> = ranges.iter().map(|&(start, len)| Zone { start, end: start + len }).collect();
        let kept = zones::merge(&mut list);
        list.truncate(kept);
        prop_assert!(list.windows(2).all(|pair| pair[0].end < pair[1].start));
        for start in 0..330u64 {
            for len in [0u32, 1, 7, 40] {
                let naive = (start..start + u64::from(len))
                    .any(|block| ranges.iter().any(|&(first, len)| block >= first && block < first + len));
                prop_assert_eq!(zones::meets(&list, start, len), naive);
                let end = start + u64::from(len);
                let mut outside = Vec::new();
                let listed: Result<(), ()> = zones::outside(&list, start, end, &mut |from, to| {
                    assert!(from < to);
                    outside.extend(from..to);
                    Ok(())
                });
                prop_assert!(listed.is_ok());
                let naive: Vec<u64> = (start..end).filter(|&block| !zones::meets(&list, block, 1)).collect();
                prop_assert_eq!(outside, naive);
            }
        }
        prop_assert!(!zones::meets(&list, u64::MAX - 1, 5));
    }

    /// No contents of a disk may make a parser panic.
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048), depth in 0u16..6) {
        let layout = any_layout();
        let _ = RawSuper::read_from_prefix(&bytes).map(|(raw, _)| Layout::read(&raw, 1 << 40));
        let _ = Group::read(&layout, 0, &bytes);
        let _ = inode::read(&layout, 12, &bytes);
        let _ = Node::read(&layout, &bytes, Some(depth), Some(1), (5, 100));
        let _ = dir::verify(&layout, &bytes, 1);
        prop_assert!(Entries::new(&layout, &bytes).count() <= bytes.len() / 12 + 1);
    }

    /// A superblock with one wrong field is rejected or results in a consistent layout.
    #[test]
    fn one_wrong_field_is_refused_or_harmless(offset in 0usize..1020, value in any::<u32>()) {
        thread_local! {
            static GOOD: Vec<u8> = Image::new(KINDS[4]).bytes[superblock::OFFSET..][..superblock::SIZE].to_vec();
        }
        let mut bytes = GOOD.with(|good| good.clone());
        bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        let raw = RawSuper::read_from_prefix(&bytes).unwrap().0;
        if let Ok(layout) = Layout::read(&raw, 64 << 20) {
            prop_assert!(layout.groups > 0 && layout.group_blocks(layout.groups - 1) > 0);
            prop_assert!(layout.locate_inode(layout.inodes).is_some());
            let _ = layout.has_super(layout.groups - 1);
            let _ = layout.desc_location(layout.groups - 1);
        }
    }

    /// Converting parts of unwritten extents leaves every block in place and marks exactly those
    /// parts as written; a leaf without room is left unchanged.
    #[test]
    fn conversion_loses_nothing(
        lens in prop::collection::vec((1u32..20, any::<bool>(), any::<bool>()), 1..6),
        steps in prop::collection::vec((0u32..120, 1u32..30), 1..20),
        room in 0usize..12,
    ) {
        let layout = any_layout();
        let mut leaf = vec![0; 12 + (lens.len() + room) * 12];
        extent_edit::start(&mut leaf, 0, false).unwrap();
        let (mut offset, mut start) = (3, 20_000);
        for (i, &(len, unwritten, gap)) in lens.iter().enumerate() {
            let extent = Extent { offset, start, len, unwritten };
            extent_edit::insert(&mut leaf, i, &extent_edit::extent_entry(&extent)).unwrap();
            offset += len + u32::from(gap);
            start += u64::from(len) + 5 * u64::from(!gap && i % 2 == 0);
        }
        // For each block: its location, and whether it is written.
        let blocks = |leaf: &[u8]| {
            let mut all = std::collections::BTreeMap::new();
            for extent in Node::read(&layout, leaf, None, None, (0, u32::MAX)).unwrap().extents() {
                for i in 0..extent.len {
                    all.insert(extent.offset + i, (extent.start + u64::from(i), !extent.unwritten));
                }
            }
            all
        };
        for &(from, len) in &steps {
            let mut model = blocks(&leaf);
            let held: Vec<Extent> = Node::read(&layout, &leaf, None, None, (0, u32::MAX)).unwrap().extents().collect();
            let found = held.iter().position(|e| e.unwritten && e.offset <= from && from < e.offset + e.len);
            let Some(index) = found else {
                continue;
            };
            let to = (from + len).min(held[index].offset + held[index].len);
            let before = leaf.clone();
            if extent_edit::convert(&mut leaf, index, from, to).unwrap() {
                for block in from..to {
                    model.get_mut(&block).unwrap().1 = true;
                }
                prop_assert_eq!(blocks(&leaf), model);
            } else {
                prop_assert!(held.len() + 2 > lens.len() + room);
                prop_assert_eq!(&leaf, &before);
            }
        }
    }

    /// A node with arbitrary entries is rejected, or every block that it maps is found at the right
    /// location.
    #[test]
    fn leaves_find_what_they_hold(entries in prop::collection::vec((0u32..400, 1u16..40, 0u32..60000), 0..4)) {
        let layout = any_layout();
        let mut bytes = vec![0; 60];
        bytes[0..2].copy_from_slice(&0xf30au16.to_le_bytes());
        bytes[2..4].copy_from_slice(&(entries.len() as u16).to_le_bytes());
        bytes[4..6].copy_from_slice(&4u16.to_le_bytes());
        for (i, (block, len, start)) in entries.iter().enumerate() {
            let at = 12 + i * 12;
            bytes[at..at + 4].copy_from_slice(&block.to_le_bytes());
            bytes[at + 4..at + 6].copy_from_slice(&len.to_le_bytes());
            bytes[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        }
        let ordered = entries.windows(2).all(|pair| pair[0].0 + u32::from(pair[0].1) <= pair[1].0);
        let inside = entries.iter().all(|entry| layout.contains(u64::from(entry.2), u32::from(entry.1)));
        match Node::read(&layout, &bytes, None, None, (0, u32::MAX)) {
            Err(_) => prop_assert!(!ordered || !inside),
            Ok(node) => {
                prop_assert!(ordered && inside);
                for block in 0..450 {
                    let naive = entries.iter().find(|entry| block >= entry.0 && block < entry.0 + u32::from(entry.1));
                    match node.find(block) {
                        Found::Mapped(extent) => prop_assert_eq!(Some(extent.offset), naive.map(|entry| entry.0)),
                        Found::Hole { end } => {
                            prop_assert!(naive.is_none());
                            let next = entries.iter().map(|entry| u64::from(entry.0)).find(|&next| next > u64::from(block));
                            prop_assert_eq!(end, next.unwrap_or(1 << 32));
                        }
                    }
                }
            }
        }
    }
}
