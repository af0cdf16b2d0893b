// SPDX-License-Identifier: GPL-2.0

//! A tree file in an image: its blocks, read and written at their place on the volume.
//!
//! The block mapping comes from e2fsprogs' `debugfs`, so that the interpretation of an inode is
//! independent of ours; the few superblock fields are read here. Nothing is cached: every node is
//! read once.

use crate::{
    format::{Tree, Volume, SUPER_SIZE},
    ioctl,
};
use anyhow::{bail, ensure, Context, Result};
use rustix::{fs::OFlags, io::Errno};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    path::Path,
    process::Command,
};

/// The blocks of a tree file, by their number in the file.
pub trait TreeFile {
    /// Number of blocks of the file.
    fn blocks(&self) -> u32;
    /// Returns the block of the volume that holds a block of the file.
    fn physical(&self, block: u32) -> Option<u64>;
    /// Reads a block.
    fn read(&self, block: u32) -> Result<Vec<u8>>;
    /// Writes a block.
    fn write(&mut self, block: u32, bytes: &[u8]) -> Result<()>;
}

/// Describes a block of the file in messages.
pub fn place(file: &dyn TreeFile, block: u32) -> String {
    match file.physical(block) {
        Some(physical) => format!("block {block} of the file (block {physical} of the volume)"),
        None => format!("block {block}, which the file does not have"),
    }
}

/// A contiguous extent of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    /// First block of the file.
    offset: u32,
    len: u32,
    /// First block on the volume.
    start: u64,
}

/// An image file, or the block device of a volume.
pub struct Image {
    file: File,
    /// The parameters from its superblock.
    pub volume: Volume,
    pieces: Vec<Piece>,
}

impl Image {
    /// Opens an image for reading.
    pub fn open(path: &Path, tree: Tree) -> Result<Image> {
        Self::of(
            File::open(path).with_context(|| format!("cannot open {}", path.display()))?,
            path,
            tree,
        )
    }

    /// Opens an image for writing. Fails if it is in use.
    pub fn open_writable(path: &Path, tree: Tree) -> Result<Image> {
        let kind = fs::metadata(path).with_context(|| format!("cannot stat {}", path.display()))?;
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if kind.file_type().is_block_device() {
            // The kernel refuses to open a device exclusively if it is mounted or claimed by
            // another driver.
            options.custom_flags(OFlags::EXCL.bits() as i32);
        } else {
            refuse_looped(path, &kind)?;
        }
        let file = options
            .open(path)
            .map_err(|error| match Errno::from_io_error(&error) {
                Some(Errno::BUSY) => anyhow::anyhow!("{} is mounted or otherwise in use", path.display()),
                _ => anyhow::Error::new(error).context(format!("cannot open {}", path.display())),
            })?;
        Self::of(file, path, tree)
    }

    fn of(file: File, path: &Path, tree: Tree) -> Result<Image> {
        let mut bytes = [0; SUPER_SIZE];
        file.read_exact_at(&mut bytes, SUPER_SIZE as u64)
            .context("cannot read the superblock")?;
        let volume = Volume::load(&bytes)?.with(tree);
        let name = tree.path();
        if volume.needs_recovery {
            bail!("the volume is mounted, or needs journal recovery");
        }
        let pieces = pieces(name, &ask_debugfs(name, path)?)?;
        if let Some(piece) = pieces
            .iter()
            .find(|piece| piece.start + u64::from(piece.len) > volume.blocks)
        {
            bail!("block {} of {name} is beyond the end of the volume", piece.offset);
        }
        Ok(Image { file, volume, pieces })
    }

    /// Syncs the image to disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().context("cannot sync the image")
    }

    fn byte(&self, block: u32) -> Result<u64> {
        let physical = self
            .physical(block)
            .with_context(|| format!("{} has no block {block}", self.volume.tree.path()))?;
        Ok(physical * u64::from(self.volume.block_size))
    }
}

impl TreeFile for Image {
    fn blocks(&self) -> u32 {
        self.pieces.last().map_or(0, |piece| piece.offset + piece.len)
    }

    fn physical(&self, block: u32) -> Option<u64> {
        let behind = self.pieces.partition_point(|piece| piece.offset <= block);
        let piece = self.pieces.get(behind.checked_sub(1)?)?;
        let within = block - piece.offset;
        (within < piece.len).then(|| piece.start + u64::from(within))
    }

    fn read(&self, block: u32) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.volume.block_size as usize];
        let at = self.byte(block)?;
        self.file
            .read_exact_at(&mut bytes, at)
            .with_context(|| format!("cannot read block {block} of {}", self.volume.tree.path()))?;
        Ok(bytes)
    }

    fn write(&mut self, block: u32, bytes: &[u8]) -> Result<()> {
        ensure!(
            bytes.len() == self.volume.block_size as usize,
            "the data to be written is not one block"
        );
        let at = self.byte(block)?;
        self.file
            .write_all_at(bytes, at)
            .with_context(|| format!("cannot write block {block} of {}", self.volume.tree.path()))
    }
}

/// Fails if a loop device is backed by the file, mounted or not. Only root can check; other users
/// cannot mount a loop device.
fn refuse_looped(path: &Path, image: &fs::Metadata) -> Result<()> {
    for device in fs::read_dir("/dev").into_iter().flatten().flatten() {
        let name = device.file_name().to_string_lossy().into_owned();
        let number = name
            .strip_prefix("loop")
            .and_then(|rest| rest.parse::<u32>().ok());
        let Some(shown) = number.and_then(|_| ioctl::loop_info(File::open(device.path()).ok()?).ok()) else {
            continue;
        };
        if (shown.device, shown.inode) == (image.dev(), image.ino()) {
            bail!("{} is in use as {name}", path.display());
        }
    }
    Ok(())
}

/// Returns the output of `debugfs stat` for the file.
fn ask_debugfs(name: &str, image: &Path) -> Result<String> {
    let answer = Command::new("debugfs")
        .arg("-R")
        .arg(format!("stat {name}"))
        .arg(image)
        .output();
    let answer = match answer {
        // An ordinary user's PATH may not include /sbin.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Command::new("/sbin/debugfs")
            .arg("-R")
            .arg(format!("stat {name}"))
            .arg(image)
            .output(),
        other => other,
    };
    let answer = answer.context("cannot run debugfs, of e2fsprogs")?;
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    if !answer.status.success() || !text.starts_with("Inode:") {
        let complaint = String::from_utf8_lossy(&answer.stderr);
        // The first line is the version of debugfs.
        let complaint = complaint.lines().skip(1).collect::<Vec<_>>().join("; ");
        bail!("debugfs cannot find {name}: {complaint}");
    }
    Ok(text)
}

/// Parses the output of `debugfs stat`; returns the file's extents in order and without holes.
fn pieces(name: &str, text: &str) -> Result<Vec<Piece>> {
    let (_, list) = text
        .split_once("EXTENTS:")
        .or_else(|| text.split_once("BLOCKS:"))
        .with_context(|| format!("debugfs lists no blocks of {name}"))?;
    // A list of blocks, unlike one of extents, is followed by their number.
    let list = list.split_once("TOTAL:").map_or(list, |(list, _)| list);
    let mut pieces = Vec::new();
    let mut next = 0;
    // `(0-7):100-107, (ETB0):9, (8[u]):200` or `(0-11):100-111, (IND):112, (12):113`, over one or
    // several lines.
    for word in list
        .split([',', '\n'])
        .map(str::trim)
        .filter(|word| !word.is_empty())
    {
        let parsed = word.strip_prefix('(').and_then(|word| word.split_once("):"));
        let (logical, physical) =
            parsed.with_context(|| format!("cannot parse the extent `{word}` in the output of debugfs"))?;
        if logical.starts_with("ETB") || logical.ends_with("IND") {
            continue;
        }
        ensure!(!logical.contains("[u]"), "block {next} of {name} is unwritten");
        let (first, last) = range(logical)?;
        let (start, end) = range(physical)?;
        ensure!(first == next, "{name} has a hole at block {next}");
        ensure!(
            last - first == end - start,
            "debugfs printed `{word}`, whose lengths differ"
        );
        next = last + 1;
        let offset = u32::try_from(first).context("the file is too long")?;
        let len = u32::try_from(next - first).context("the file is too long")?;
        ensure!(offset.checked_add(len).is_some(), "the file is too long");
        pieces.push(Piece { offset, len, start });
    }
    ensure!(!pieces.is_empty(), "{name} is empty");
    Ok(pieces)
}

/// Parses `a-b` or `a`.
fn range(text: &str) -> Result<(u64, u64)> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| {
        text.parse::<u64>()
            .with_context(|| format!("cannot parse the number `{text}` in the output of debugfs"))
    };
    let (low, high) = (number(low)?, number(high)?);
    ensure!(
        low <= high && high < u64::MAX,
        "debugfs printed `{text}`, which runs backwards"
    );
    Ok((low, high))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{Kind, Record};
    use crate::{corrupt, dump::dump, synthetic};

    #[test]
    fn extents_of_debugfs() {
        let text = "Inode: 12 Type: regular\nEXTENTS:\n(ETB0):9, (0-7):100-107, (8):50, \n(9-10):200-201\n";
        let found = pieces("/a", text).unwrap();
        let piece = |offset, len, start| Piece { offset, len, start };
        assert_eq!(found, [piece(0, 8, 100), piece(8, 1, 50), piece(9, 2, 200)]);
    }

    #[test]
    fn indirect_blocks_of_debugfs() {
        let text = "Inode: 12 Type: regular\nBLOCKS:\n(0-11):100-111, (IND):112, (12-20):113-121, (DIND):9, (IND):10, \n(21):50\nTOTAL: 25\n";
        let found = pieces("/a", text).unwrap();
        let piece = |offset, len, start| Piece { offset, len, start };
        assert_eq!(found, [piece(0, 12, 100), piece(12, 9, 113), piece(21, 1, 50)]);
    }

    #[test]
    fn files_that_are_no_tree() {
        let says = |text: &str| pieces("/a", text).unwrap_err().to_string();
        assert!(says("Fast link dest: \"a\"\n").contains("lists no blocks"));
        assert!(says("EXTENTS:\n(0-1):5-6, (3):9\n").contains("hole at block 2"));
        assert!(says("EXTENTS:\n(0[u]):5\n").contains("unwritten"));
        assert!(says("EXTENTS:\n").contains("empty"));
        assert!(says("EXTENTS:\n(0-1):5\n").contains("lengths differ"));
    }

    /// Runs a program of e2fsprogs. Returns false if it is not installed.
    fn e2fsprogs(program: &str, arguments: &[&str]) -> bool {
        let path = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";
        match Command::new(program).args(arguments).env("PATH", path).output() {
            Ok(answer) => {
                assert!(answer.status.success(), "{program} {arguments:?}: {answer:?}");
                true
            }
            Err(_) => false,
        }
    }

    /// Creates a volume with these contents and room for a synthetic file. Returns `None` if the
    /// tools are not installed.
    fn volume_with(folder: &Path, contents: &Path) -> Option<std::path::PathBuf> {
        let path = folder.join("image");
        let (image, commands) = (path.to_str().unwrap(), folder.join("commands"));
        // The synthetic file uses 200 blocks, wherever mke2fs finds room for them.
        fs::write(folder.join("filler"), vec![7; 201 * 1024]).unwrap();
        let filler = folder.join("filler");
        let text = format!("mkdir .rext4\ncd .rext4\nwrite {} rmap\n", filler.display());
        fs::write(&commands, text).unwrap();
        let contents = contents.to_str().unwrap();
        let options = [
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "1024",
            "-G",
            "2",
            "-O",
            "64bit,metadata_csum",
            "-d",
            contents,
        ];
        if !e2fsprogs("mke2fs", &[options.as_slice(), &[image, "40001"]].concat()) {
            println!("not tested: this machine has no e2fsprogs");
            return None;
        }
        e2fsprogs("debugfs", &["-w", "-f", commands.to_str().unwrap(), image]);
        Some(path)
    }

    /// Writes a synthetic file.
    fn fill(image: &mut Image, file: synthetic::Memory) {
        for (block, bytes) in (0..).zip(file.0) {
            image.write(block, &bytes).unwrap();
        }
    }

    fn dumped(path: &Path) -> (Vec<String>, String) {
        let mut text = Vec::new();
        let image = Image::open(path, Tree::Rmap).unwrap();
        let found = dump(&image.volume, &image, &mut text).unwrap();
        (found, String::from_utf8(text).unwrap())
    }

    #[test]
    fn as_owners_says() {
        let folder = tempfile::tempdir().unwrap();
        let contents = folder.path().join("contents");
        for index in 0..60u64 {
            let sub = contents.join(format!("{}", index % 7));
            fs::create_dir_all(&sub).unwrap();
            let file = File::create(sub.join(format!("{index}"))).unwrap();
            // Files with holes, so that some have extent trees of more than one block.
            for piece in 0..index % 9 {
                file.write_all_at(&vec![1; 300 * index as usize], piece * 40_000)
                    .unwrap();
            }
        }
        let Some(path) = volume_with(folder.path(), &contents) else {
            return;
        };
        let owners = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vm/owners.py");
        let Ok(answer) = Command::new("python3").arg(owners).arg(&path).output() else {
            println!("not tested: this machine has no python");
            return;
        };
        assert!(answer.status.success(), "{answer:?}");
        let wanted = String::from_utf8(answer.stdout).unwrap();
        let mut image = Image::open_writable(&path, Tree::Rmap).unwrap();
        let volume = image.volume.clone();
        let mut records = vec![Vec::new(); volume.regions() as usize];
        for line in wanted.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |index: usize| words[index].parse::<u32>().unwrap();
            let start = number(0) - volume.first;
            let kind = match words[2] {
                "mapping" => Kind::Mapping,
                "xattr" => Kind::Xattr,
                _ => Kind::Data,
            };
            records[(start / volume.region_blocks) as usize].push(Record {
                start: start % volume.region_blocks,
                len: number(1),
                kind,
                unwritten: words[2] == "unwritten",
                owner: number(3),
                offset: number(4),
            });
        }
        assert!(records[0].len() > 100 && wanted.contains("mapping"), "{wanted}");
        fill(&mut image, synthetic::file_with(&volume, &records));
        assert_eq!(dumped(&path), (Vec::new(), wanted));
    }

    #[test]
    fn on_a_volume() {
        let folder = tempfile::tempdir().unwrap();
        let contents = folder.path().join("contents");
        fs::create_dir(&contents).unwrap();
        let Some(path) = volume_with(folder.path(), &contents) else {
            return;
        };
        let mut opened = Image::open_writable(&path, Tree::Rmap).unwrap();
        let volume = opened.volume.clone();
        assert_eq!((volume.block_size, volume.first, volume.blocks), (1024, 1, 40001));
        assert_eq!(
            (volume.region_blocks, volume.regions(), opened.blocks()),
            (16384, 3, 201)
        );
        assert!(opened.read(200).unwrap().iter().all(|byte| *byte == 7));
        assert!(opened.read(201).is_err());
        fill(&mut opened, synthetic::file_of(&volume));
        drop(opened);

        assert_eq!(dumped(&path), (Vec::new(), synthetic::text_of(&volume)));
        let damage = |kind, region| {
            corrupt::run(&corrupt::Args {
                region,
                seed: 1,
                kind,
                tree: Tree::Rmap,
                image: path.clone(),
            })
            .unwrap();
        };
        damage(corrupt::Kind::Drop, Some(0));
        let (found, text) = dumped(&path);
        assert_eq!(
            (found.len(), text.lines().count()),
            (0, synthetic::text().lines().count() - 1)
        );
        damage(corrupt::Kind::Root, None);
        assert!(!dumped(&path).0.is_empty());

        // Any other writer makes the trees stale. In another second than mke2fs, `s_wtime` differs
        // as well.
        e2fsprogs("tune2fs", &["-C", "9", path.to_str().unwrap()]);
        let seen = |finding: &String| {
            finding.contains("s_mnt_count was 0 and is 9") || finding.contains("s_wtime was")
        };
        assert!(dumped(&path).0.iter().any(seen));
    }
}
