// SPDX-License-Identifier: GPL-2.0

//! `rext4 snapshot --freeze`: a tree of which all is as it is at one moment.
//!
//! rext4 can hold off whoever would change something on a volume, who makes the snapshot too: only clones are let through.
//! So as many empty files as will be needed are made before. While the volume is held they become clones, and all else,
//! names, owners, attributes, is only read, and kept in memory. Then writers go on, and the tree is put together. The
//! kernel ends the hold by itself when this program ends.

use crate::{
    ioctl,
    snapshot::{Interrupted, Maker, ROOT, SYSTEM, WORK},
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

/// The folder of empty files, in the folder of work.
pub const POOL: &CStr = c"pool";
/// How often more of them are made when those there were did not do.
const TRIES: usize = 5;

/// Something in a folder, as it was while the volume was held.
struct Node {
    name: CString,
    found: Statx,
    attributes: Attributes,
    what: What,
}

enum What {
    Folder(Vec<Node>),
    /// A folder or file that something else is mounted on.
    Foreign,
    /// A file, and the number of its clone.
    File(usize),
    /// Another name of something that was met before.
    Link,
    Symlink(CString),
    Special,
}

/// There were not enough empty files.
#[derive(Debug)]
struct TooFew;

impl std::fmt::Display for TooFew {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("files are made faster than they can be counted")
    }
}

impl std::error::Error for TooFew {}

/// A hold on a volume, which ends with the drop.
struct Hold<'a>(&'a OwnedFd);

impl Hold<'_> {
    fn take(folder: &OwnedFd) -> Result<Hold<'_>> {
        match ioctl::hold(folder) {
            Ok(()) => Ok(Hold(folder)),
            Err(Errno::NOTTY) => bail!("only a volume that rext4 has mounted can be held"),
            Err(Errno::BUSY) => bail!("somebody else holds the volume"),
            Err(Errno::PERM) => bail!("only root may hold a volume"),
            Err(error) => Err(error).context("cannot hold the volume"),
        }
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        // When somebody else has ended it, a clone has failed before.
        let _ = ioctl::release(self.0);
    }
}

fn number(number: usize) -> CString {
    // Digits hold no zero byte.
    CString::new(number.to_string()).unwrap_or_default()
}

/// Makes the whole tree.
pub fn make(maker: &mut Maker, from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    fs::mkdirat(&maker.work, POOL, Mode::RWXU).context("cannot make the folder of empty files")?;
    let pool = open_subfolder(&maker.work, POOL)?;
    let mut made = 0;
    let mut wanted = count(maker, from)?;
    for _ in 0..TRIES {
        // More may come until the volume is held.
        wanted = wanted.saturating_add(wanted / 8 + 64);
        while made < wanted {
            ensure_going(maker)?;
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            fs::openat(&pool, number(made), flags, Mode::RUSR | Mode::WUSR)
                .context("cannot make an empty file")?;
            made += 1;
        }
        // So that there is little left to write while others wait.
        fs::syncfs(&pool).context("cannot write the volume out")?;
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

/// About how many files there are below a folder.
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

/// Reads a tree and clones its files, while nobody changes it.
struct Capture<'a> {
    maker: &'a mut Maker,
    pool: &'a OwnedFd,
    /// Empty files that there are, and how many have become clones.
    made: usize,
    used: usize,
    /// Inodes with several names that were met.
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
                .with_context(|| self.maker.at("cannot take"))?;
            nodes.extend(node);
            self.maker.path.pop();
        }
        Ok(nodes)
    }

    /// Opens an empty file to be written to. By its name alone that might wait: who opens to write something that has left
    /// the cache is taken for one who wants to make it.
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
                "something was mounted there"
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

/// Puts together what a folder holds.
fn place(maker: &mut Maker, pool: &OwnedFd, nodes: Vec<Node>, to: &OwnedFd) -> Result<()> {
    for node in nodes {
        let Node {
            name,
            found,
            attributes,
            what,
        } = node;
        if maker.stop.load(Relaxed) {
            bail!("ended before it was done; the same command begins anew, and one with --discard removes what there is");
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
                    .context("a name without its file")?;
                fs::linkat(&maker.tree, first, to, &name, fs::AtFlags::empty())
                    .with_context(|| maker.at("cannot link"))?;
                maker.report.links += 1;
            }
            What::File(own) => {
                let own = number(own);
                let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let file = fs::openat(pool, &own, flags, Mode::empty())?;
                maker.finish(&attributes, &Object::Open(file.as_fd()), &found, (pool, &own))?;
                fs::renameat(pool, &own, to, &name).with_context(|| maker.at("cannot give its place to"))?;
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
                    .with_context(|| maker.at("cannot give its place to"))?;
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
