// SPDX-License-Identifier: GPL-2.0

//! `rext4 snapshot --freeze`: copies a whole tree at one point in time.
//!
//! rext4 can hold a volume: every task that wants to modify it blocks, including this program; only
//! clones are permitted. The empty files that will become clones are therefore created first. While
//! the volume is held, files are cloned into them, and everything else (names, owners, attributes)
//! is read into memory. Then the hold ends, and the tree is assembled. The kernel ends the hold if
//! this program exits early.

use crate::{
    ioctl,
    maker::{Interrupted, Maker, ROOT, SYSTEM, WORK},
    tree::{device_of, kind_of, names, open_subfolder, remove, stat, Attributes, Object},
};
use anyhow::{bail, ensure, Context, Result};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{self, FileType, Mode, OFlags, Statx},
    io::Errno,
};
use std::{
    collections::HashSet,
    ffi::{CStr, CString, OsStr},
    os::{fd::AsRawFd, unix::ffi::OsStrExt},
    sync::atomic::Ordering::Relaxed,
    time::Instant,
};

/// The directory of empty files, in the work directory.
pub const POOL: &CStr = c"pool";
/// Number of times that the operation is retried with more empty files if there were too few.
const TRIES: usize = 5;

/// An entry of a directory, as it was while the volume was held.
struct Node {
    name: CString,
    found: Statx,
    attributes: Attributes,
    what: What,
}

enum What {
    Folder(Vec<Node>),
    /// A mount point of another file system.
    Foreign,
    /// A regular file, with the number of its clone.
    File(usize),
    /// A further hard link to a file that was already cloned.
    Link,
    Symlink(CString),
    Special,
}

/// There were not enough empty files.
#[derive(Debug)]
struct TooFew;

impl std::fmt::Display for TooFew {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("the tree grows faster than empty files can be created")
    }
}

impl std::error::Error for TooFew {}

/// A hold on a volume; dropping it releases the volume.
struct Hold<'a>(&'a OwnedFd);

impl Hold<'_> {
    fn take(folder: &OwnedFd) -> Result<Hold<'_>> {
        match ioctl::hold(folder) {
            Ok(()) => Ok(Hold(folder)),
            Err(Errno::NOTTY) => bail!("only a volume that rext4 has mounted can be held"),
            Err(Errno::BUSY) => bail!("another process holds the volume"),
            Err(Errno::PERM) => bail!("only root may hold a volume"),
            Err(error) => Err(error).context("cannot hold the volume"),
        }
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        // If someone else has ended the hold, a clone has already failed.
        let _ = ioctl::release(self.0);
    }
}

fn number(number: usize) -> CString {
    // Digits contain no NUL byte.
    CString::new(number.to_string()).unwrap_or_default()
}

/// Copies the whole tree.
pub fn make(maker: &mut Maker, from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    fs::mkdirat(&maker.work, POOL, Mode::RWXU).context("cannot create the directory of empty files")?;
    let pool = open_subfolder(&maker.work, POOL)?;
    let mut made = 0;
    let mut wanted = count(maker, from)?;
    for _ in 0..TRIES {
        // Some more, since files may be created until the volume is held.
        wanted = wanted.saturating_add(wanted / 8 + 64);
        while made < wanted {
            ensure_going(maker)?;
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            fs::openat(&pool, number(made), flags, Mode::RUSR | Mode::WUSR)
                .context("cannot create an empty file")?;
            made += 1;
        }
        // A hold writes back all dirty data. Doing that now keeps the time short for which writers
        // block.
        fs::syncfs(&pool).context("cannot sync the volume")?;
        let mut capture = Capture {
            maker,
            pool: &pool,
            made,
            used: 0,
            seen: HashSet::new(),
        };
        let hold = Hold::take(from)?;
        let since = Instant::now();
        let found = capture.whole(from);
        drop(hold);
        let held = since.elapsed().as_secs_f64();
        maker.report.held_seconds = maker.report.held_seconds.max(held);
        match found {
            Err(error) if error.is::<TooFew>() => wanted = wanted.max(made).saturating_mul(2),
            Err(error) => return Err(error),
            Ok((nodes, root, attributes)) => {
                place(maker, &pool, nodes, to)?;
                maker.finish(&attributes, &Object::Open(to.as_fd()), &root, (to, c""))?;
                maker.report.folders += 1;
                drop(pool);
                return remove(maker.work.as_fd(), POOL);
            }
        }
    }
    Err(TooFew.into())
}

fn ensure_going(maker: &Maker) -> Result<()> {
    match maker.stop.load(Relaxed) {
        true => Err(Interrupted.into()),
        false => Ok(()),
    }
}

/// Estimates the number of files below a directory.
fn count(maker: &Maker, folder: &OwnedFd) -> Result<usize> {
    ensure_going(maker)?;
    let mut files = 0usize;
    for (_, name) in names(folder)? {
        let Ok(found) = stat(folder, &name) else { continue };
        match kind_of(&found) {
            FileType::RegularFile => files += 1,
            FileType::Directory if !is_foreign(maker, &found) => {
                if let Ok(inner) = open_subfolder(folder, &name) {
                    files = files.saturating_add(count(maker, &inner)?);
                }
            }
            _ => (),
        }
    }
    Ok(files)
}

fn is_foreign(maker: &Maker, found: &Statx) -> bool {
    device_of(found) != maker.device || found.stx_mnt_id != maker.mount
}

/// Reads a tree and clones its files while the volume is held.
struct Capture<'a> {
    maker: &'a mut Maker,
    pool: &'a OwnedFd,
    /// Number of empty files.
    made: usize,
    /// Number of those that have become clones.
    used: usize,
    /// Inodes with several hard links that were visited.
    seen: HashSet<u64>,
}

impl Capture<'_> {
    fn whole(&mut self, from: &OwnedFd) -> Result<(Vec<Node>, Statx, Attributes)> {
        let nodes = self.folder(from)?;
        let found = stat(from, c"")?;
        Ok((nodes, found, Object::Open(from.as_fd()).all()?))
    }

    fn folder(&mut self, from: &OwnedFd) -> Result<Vec<Node>> {
        let is_root = stat(from, c"")?.stx_ino == ROOT;
        let mut nodes = Vec::new();
        for (_, name) in names(from).with_context(|| self.maker.at("cannot read"))? {
            if is_root && name.as_c_str() == SYSTEM {
                continue;
            }
            ensure_going(self.maker)?;
            self.maker.path.push(OsStr::from_bytes(name.to_bytes()));
            let node = self
                .node(from, name)
                .with_context(|| self.maker.at("cannot clone"))?;
            nodes.extend(node);
            self.maker.path.pop();
        }
        Ok(nodes)
    }

    /// Opens the next empty file for writing. Opens it by way of an `O_PATH` descriptor: opening it
    /// by name would block if its dentry has left the cache, since the VFS then asks for write
    /// access to the volume in case it has to create it.
    fn next_empty(&self) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let found = fs::openat(self.pool, number(self.used), flags, Mode::empty())?;
        let path = format!("/proc/self/fd/{}", found.as_raw_fd());
        Ok(fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?)
    }

    fn node(&mut self, from: &OwnedFd, name: CString) -> Result<Option<Node>> {
        let found = stat(from, &name)?;
        let node = |what, attributes| {
            Ok(Some(Node {
                name: name.clone(),
                found,
                attributes,
                what,
            }))
        };
        if is_foreign(self.maker, &found) {
            return node(What::Foreign, Vec::new());
        }
        let kind = kind_of(&found);
        if kind == FileType::Directory {
            if found.stx_ino == self.maker.own {
                return Ok(None);
            }
            let folder = open_subfolder(from, &name)?;
            ensure!(
                !is_foreign(self.maker, &stat(&folder, c"")?),
                "another file system was mounted there"
            );
            let inner = self.folder(&folder)?;
            return node(What::Folder(inner), Object::Open(folder.as_fd()).all()?);
        }
        if found.stx_nlink > 1 && !self.seen.insert(found.stx_ino) {
            return node(What::Link, Vec::new());
        }
        match kind {
            FileType::RegularFile => {
                if self.used >= self.made {
                    return Err(TooFew.into());
                }
                let flags = OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
                let old = fs::openat(from, &name, flags | OFlags::RDONLY, Mode::empty())?;
                let new = self.next_empty()?;
                ioctl::clone_held(&new, &old).map_err(|error| self.maker.explain(error))?;
                self.used += 1;
                node(What::File(self.used - 1), Object::Open(old.as_fd()).all()?)
            }
            FileType::Symlink => {
                let target = fs::readlinkat(from, &name, Vec::new())?;
                node(What::Symlink(target), Object::at(from, &name)?.all()?)
            }
            _ => node(What::Special, Object::at(from, &name)?.all()?),
        }
    }
}

/// Assembles the entries of a directory.
fn place(maker: &mut Maker, pool: &OwnedFd, nodes: Vec<Node>, to: &OwnedFd) -> Result<()> {
    for node in nodes {
        let Node {
            name,
            found,
            attributes,
            what,
        } = node;
        if maker.stop.load(Relaxed) {
            bail!("interrupted; run the same command again to start over, or with --discard to remove the incomplete snapshot");
        }
        maker.draw();
        maker.path.push(OsStr::from_bytes(name.to_bytes()));
        let several = found.stx_nlink > 1;
        match what {
            What::Foreign => {
                maker.report.mounts += 1;
                if kind_of(&found) == FileType::Directory {
                    drop(maker.make_folder(to, &name)?);
                }
            }
            What::Folder(inner) => {
                let folder = maker.make_folder(to, &name)?;
                place(maker, pool, inner, &folder)?;
                maker.finish(&attributes, &Object::Open(folder.as_fd()), &found, (&folder, c""))?;
                maker.report.folders += 1;
            }
            What::Link => {
                let first = maker
                    .links
                    .get(&found.stx_ino)
                    .context("a hard link without its file")?;
                fs::linkat(&maker.tree, first, to, &name, fs::AtFlags::empty())
                    .with_context(|| maker.at("cannot link"))?;
                maker.report.links += 1;
            }
            What::File(own) => {
                let own = number(own);
                let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let file = fs::openat(pool, &own, flags, Mode::empty())?;
                maker.finish(&attributes, &Object::Open(file.as_fd()), &found, (pool, &own))?;
                fs::renameat(pool, &own, to, &name).with_context(|| maker.at("cannot move into place:"))?;
                maker.report.files += 1;
                maker.report.bytes += found.stx_size;
            }
            What::Symlink(_) | What::Special => {
                match &what {
                    What::Symlink(target) => maker.make_symlink(target)?,
                    _ => maker.make_special(&found)?,
                }
                maker.finish(
                    &attributes,
                    &Object::at(&maker.work, WORK)?,
                    &found,
                    (&maker.work, WORK),
                )?;
                fs::renameat(&maker.work, WORK, to, &name)
                    .with_context(|| maker.at("cannot move into place:"))?;
            }
        }
        if several && !maker.links.contains_key(&found.stx_ino) && kind_of(&found) != FileType::Directory {
            let path = CString::new(maker.path.as_os_str().as_bytes())?;
            maker.links.insert(found.stx_ino, path);
        }
        maker.path.pop();
    }
    Ok(())
}
