// SPDX-License-Identifier: GPL-2.0

//! Building the tree of a snapshot, entry by entry; used with and without `--freeze`.

use crate::tree::{
    are_equal, device_of, kind_of, mode_of, names, open_subfolder, remove, stat, times_of, Attributes, Object,
};
use anyhow::{ensure, Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Statx, Uid},
    io::Errno,
};
use serde::Serialize;
use std::{
    collections::{HashMap, HashSet},
    ffi::{CStr, CString, OsStr},
    io::Write,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, Ordering::Relaxed},
        Arc,
    },
    time::{Duration, Instant},
};

/// Name of an entry in the work directory until it is renamed to its place.
pub const WORK: &CStr = c"work";
/// The directory in the root of a volume that rext4 keeps its trees in.
pub const SYSTEM: &CStr = c".rext4";
/// The inode of the root directory of a volume.
pub const ROOT: u64 = 2;

/// Number of attempts to clone a file that changes while it is cloned.
const TRIES: usize = 8;
/// Interval of the progress display.
const TICK: Duration = Duration::from_millis(200);

/// The result of a run; this is also its JSON output.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Report {
    pub source: String,
    pub snapshot: String,
    /// An earlier run was resumed.
    pub resumed: bool,
    pub folders: u64,
    /// Files that were cloned.
    pub files: u64,
    /// Bytes in cloned files.
    pub bytes: u64,
    pub symlinks: u64,
    /// Devices, pipes and sockets.
    pub special: u64,
    /// Further hard links to files that were already copied.
    pub links: u64,
    /// Entries of an earlier run that are still equal to the original.
    pub kept: u64,
    /// Mount points of other file systems; they are empty in the snapshot.
    pub mounts: u64,
    pub seconds: f64,
    /// Seconds for which writers were blocked.
    pub held_seconds: f64,
}

impl Report {
    /// Prints the result for a human reader.
    pub fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        writeln!(
            out,
            "{}: {} directories, {} files of {} bytes, {} symbolic links, {} devices, pipes and sockets, {} additional hard links",
            self.snapshot, self.folders, self.files, self.bytes, self.symlinks, self.special, self.links,
        )?;
        if self.resumed {
            writeln!(out, "{} entries of an earlier run were kept", self.kept)?;
        }
        if self.mounts > 0 {
            writeln!(
                out,
                "note: {} mount points of other file systems are empty in the snapshot",
                self.mounts
            )?;
        }
        write!(out, "{:.2} s", self.seconds)?;
        if self.held_seconds > 0.0 {
            write!(out, "; writers were blocked for {:.2} s", self.held_seconds)?;
        }
        writeln!(out)
    }
}

/// The user interrupted the run.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("interrupted; run the same command again to resume, or with --discard to remove the incomplete snapshot")
    }
}

impl std::error::Error for Interrupted {}

/// A snapshot under construction.
pub struct Maker {
    /// The work directory.
    pub work: OwnedFd,
    /// The root of the new tree.
    pub tree: OwnedFd,
    /// Device and mount of the original; anything on other ones is left out.
    pub device: u64,
    pub mount: u64,
    /// The inode of the work directory, which is left out if it is inside the original.
    pub own: u64,
    /// Files with several hard links, by inode of the original: the path of the first one in the
    /// new tree.
    pub links: HashMap<u64, CString>,
    /// Inodes of those files in the new tree.
    pub linked: HashSet<u64>,
    /// The current path within the tree, for messages and links.
    pub path: PathBuf,
    pub report: Report,
    pub stop: Arc<AtomicBool>,
    pub bar: Option<ProgressBar>,
    /// When the progress was last drawn.
    pub drawn: Instant,
}

impl Maker {
    /// Copies the entries of a directory, then the attributes of the directory itself.
    pub fn folder(&mut self, from: &OwnedFd, to: &OwnedFd) -> Result<()> {
        let wanted = names(from).with_context(|| self.at("cannot read"))?;
        if self.report.resumed {
            let set: HashSet<&CStr> = wanted.iter().map(|(_, name)| name.as_c_str()).collect();
            for (_, name) in names(to)? {
                if !set.contains(name.as_c_str()) {
                    remove(to.as_fd(), &name)?;
                }
            }
        }
        let is_root = stat(from, c"")?.stx_ino == ROOT;
        for (_, name) in &wanted {
            if is_root && name.as_c_str() == SYSTEM {
                continue;
            }
            self.path.push(OsStr::from_bytes(name.to_bytes()));
            self.entry(from, to, name)?;
            self.path.pop();
        }
        let own = stat(from, c"").with_context(|| self.at("cannot stat"))?;
        self.finish(
            &Object::Open(from.as_fd()).all()?,
            &Object::Open(to.as_fd()),
            &own,
            (to, c""),
        )?;
        self.report.folders += 1;
        Ok(())
    }

    /// Returns `what` followed by the current path, for error messages.
    pub fn at(&self, what: &str) -> String {
        format!("{what} {}", Path::new(".").join(&self.path).display())
    }

    fn entry(&mut self, from: &OwnedFd, to: &OwnedFd, name: &CStr) -> Result<()> {
        if self.stop.load(Relaxed) {
            return Err(Interrupted.into());
        }
        self.draw();
        let found = match stat(from, name) {
            // Removed in the meantime.
            Err(Errno::NOENT) => return remove(to.as_fd(), name),
            found => found.with_context(|| self.at("cannot stat"))?,
        };
        let folder = kind_of(&found) == FileType::Directory;
        let foreign = device_of(&found) != self.device || found.stx_mnt_id != self.mount;
        if found.stx_ino == self.own && folder && !foreign {
            return Ok(());
        }
        if foreign {
            self.report.mounts += 1;
            if folder {
                drop(self.make_folder(to, name)?);
            }
            return Ok(());
        }
        if folder {
            let from = match open_subfolder(from, name) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return remove(to.as_fd(), name),
                opened => opened.with_context(|| self.at("cannot open"))?,
            };
            // Check again: something may have been mounted or moved there after the first check.
            let again = stat(&from, c"")?;
            ensure!(
                device_of(&again) == self.device && again.stx_mnt_id == self.mount,
                self.at("another file system was mounted on")
            );
            let to = self.make_folder(to, name)?;
            return self.folder(&from, &to);
        }

        let there = match stat(to, name) {
            Err(Errno::NOENT) => None,
            there => Some(there.with_context(|| self.at("cannot stat the copy of"))?),
        };
        let several = found.stx_nlink > 1;
        if several {
            if let Some(first) = self.links.get(&found.stx_ino) {
                let first_there = stat(&self.tree, first)?;
                if there.is_some_and(|there| there.stx_ino == first_there.stx_ino) {
                    self.report.kept += 1;
                    return Ok(());
                }
                self.clear(to, name, there.as_ref())?;
                fs::linkat(&self.tree, first, &self.work, WORK, AtFlags::empty())
                    .and_then(|()| fs::renameat(&self.work, WORK, to, name))
                    .with_context(|| self.at("cannot link"))?;
                self.report.links += 1;
                return Ok(());
            }
        }
        let kept = there.filter(|there| {
            are_equal(there, &found)
                && (several || there.stx_nlink == 1)
                && !self.linked.contains(&there.stx_ino)
        });
        if kept.is_some() {
            self.report.kept += 1;
        } else {
            self.clear(to, name, there.as_ref())?;
            if !self.make(from, name, &found)? {
                return remove(to.as_fd(), name);
            }
            fs::renameat(&self.work, WORK, to, name).with_context(|| self.at("cannot move into place:"))?;
        }
        if several {
            let own = stat(to, name)?.stx_ino;
            self.linked.insert(own);
            let path = CString::new(self.path.as_os_str().as_bytes())?;
            self.links.insert(found.stx_ino, path);
        }
        Ok(())
    }

    /// Removes what would prevent an entry from being created in the work directory or renamed to
    /// its place.
    fn clear(&self, to: &OwnedFd, name: &CStr, there: Option<&Statx>) -> Result<()> {
        remove(self.work.as_fd(), WORK)?;
        if there.is_some_and(|there| kind_of(there) == FileType::Directory) {
            remove(to.as_fd(), name)?;
        }
        Ok(())
    }

    /// Creates a directory, or prepares the one that an earlier run created.
    pub fn make_folder(&self, to: &OwnedFd, name: &CStr) -> Result<OwnedFd> {
        match fs::mkdirat(to, name, Mode::RWXU) {
            Err(Errno::EXIST) => match open_subfolder(to, name) {
                Ok(folder) => {
                    // An earlier run may have set its final mode already.
                    fs::fchmod(&folder, Mode::RWXU)?;
                    return Ok(folder);
                }
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    remove(to.as_fd(), name)?;
                    fs::mkdirat(to, name, Mode::RWXU)
                }
                Err(error) => Err(error),
            },
            made => made,
        }
        .with_context(|| self.at("cannot create directory"))?;
        Ok(open_subfolder(to, name)?)
    }

    /// Copies an entry that is not a directory into the work directory. Returns false if the
    /// original is gone.
    fn make(&mut self, from: &OwnedFd, name: &CStr, found: &Statx) -> Result<bool> {
        let kind = kind_of(found);
        match kind {
            FileType::RegularFile => return self.clone(from, name),
            FileType::Symlink => match fs::readlinkat(from, name, Vec::new()) {
                Err(Errno::NOENT | Errno::INVAL) => return Ok(false),
                target => self.make_symlink(&target.with_context(|| self.at("cannot read"))?)?,
            },
            _ => self.make_special(found)?,
        }
        let (old, new) = (Object::at(from, name)?, Object::at(&self.work, WORK)?);
        self.finish(&old.all()?, &new, found, (&self.work, WORK))?;
        Ok(true)
    }

    /// Creates a symbolic link in the work directory.
    pub fn make_symlink(&mut self, target: &CStr) -> Result<()> {
        self.report.symlinks += 1;
        fs::symlinkat(target, &self.work, WORK).with_context(|| self.at("cannot create symbolic link"))
    }

    /// Creates a device, a pipe or a socket in the work directory.
    pub fn make_special(&mut self, found: &Statx) -> Result<()> {
        self.report.special += 1;
        let device = fs::makedev(found.stx_rdev_major, found.stx_rdev_minor);
        let mode = Mode::RUSR | Mode::WUSR;
        fs::mknodat(&self.work, WORK, kind_of(found), mode, device)
            .with_context(|| self.at("cannot create device"))
    }

    fn clone(&mut self, from: &OwnedFd, name: &CStr) -> Result<bool> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opened = match fs::openat(from, name, flags | OFlags::NOATIME, Mode::empty()) {
            // Only the owner of a file may use O_NOATIME.
            Err(Errno::PERM) => fs::openat(from, name, flags, Mode::empty()),
            opened => opened,
        };
        let old = match opened {
            Err(Errno::NOENT | Errno::LOOP) => return Ok(false),
            opened => opened.with_context(|| self.at("cannot open"))?,
        };
        let mut before = stat(&old, c"")?;
        if kind_of(&before) != FileType::RegularFile {
            return Ok(false);
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let new = fs::openat(&self.work, WORK, flags, Mode::RUSR | Mode::WUSR)
            .with_context(|| self.at("cannot create the copy of"))?;
        for _ in 0..TRIES {
            fs::ioctl_ficlone(&new, &old).map_err(|error| self.explain(error))?;
            let after = stat(&old, c"")?;
            if are_equal(&before, &after) {
                break;
            }
            before = after;
        }
        self.finish(
            &Object::Open(old.as_fd()).all()?,
            &Object::Open(new.as_fd()),
            &before,
            (&self.work, WORK),
        )?;
        self.report.files += 1;
        self.report.bytes += before.stx_size;
        Ok(true)
    }

    /// Explains an error of a clone.
    pub fn explain(&self, error: Errno) -> anyhow::Error {
        let what = match error {
            Errno::OPNOTSUPP | Errno::INVAL | Errno::NOTTY => "the volume cannot share blocks:",
            Errno::XDEV => "the snapshot must be on the same volume:",
            Errno::TXTBSY => "active swap file:",
            Errno::NOSPC => "no space left to clone",
            _ => "cannot clone",
        };
        anyhow::Error::new(error).context(self.at(what))
    }

    /// Sets owner, attributes, mode and times of a copy to those of the original.
    pub fn finish(
        &self,
        attributes: &Attributes,
        new: &Object<'_>,
        found: &Statx,
        place: (&OwnedFd, &CStr),
    ) -> Result<()> {
        let (folder, name) = place;
        let flags = match name.is_empty() {
            true => AtFlags::EMPTY_PATH,
            false => AtFlags::SYMLINK_NOFOLLOW,
        };
        let owner = (
            Some(Uid::from_raw(found.stx_uid)),
            Some(Gid::from_raw(found.stx_gid)),
        );
        // The owner comes first: changing it clears capabilities and the set-id bits.
        fs::chownat(folder, name, owner.0, owner.1, flags)
            .with_context(|| self.at("cannot set the owner of the copy of"))?;
        new.set_all(attributes)
            .with_context(|| self.at("cannot copy attributes of"))?;
        if kind_of(found) != FileType::Symlink {
            match new {
                Object::Open(fd) => fs::fchmod(fd, mode_of(found)),
                Object::Path(_) => fs::chmodat(folder, name, mode_of(found), AtFlags::empty()),
            }
            .with_context(|| self.at("cannot set the mode of the copy of"))?;
        }
        match new {
            Object::Open(fd) => fs::futimens(fd, &times_of(found)),
            Object::Path(_) => fs::utimensat(folder, name, &times_of(found), AtFlags::SYMLINK_NOFOLLOW),
        }
        .with_context(|| self.at("cannot set the times of the copy of"))
    }

    /// Updates the progress display, a few times per second.
    pub fn draw(&mut self) {
        if let Some(bar) = &self.bar {
            if self.drawn.elapsed() >= TICK {
                self.drawn = Instant::now();
                let report = &self.report;
                bar.set_message(format!(
                    "{} directories, {} files, {} MiB shared, {} kept",
                    report.folders,
                    report.files,
                    report.bytes >> 20,
                    report.kept
                ));
                bar.tick();
            }
        }
    }
}

/// Creates the progress display on standard error.
pub fn new_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    // A template error would cost only the appearance.
    if let Ok(style) = ProgressStyle::with_template("snapshot {spinner} {msg} {elapsed}") {
        bar.set_style(style);
    }
    bar
}
