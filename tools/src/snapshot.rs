// SPDX-License-Identifier: GPL-2.0

//! `rext4 snapshot`: a copy of a folder tree that shares its blocks with the original, made of clones (`FICLONE`).
//!
//! Each file, link and device is made under one name in a folder of work beside the target, `.NAME.rext4-snapshot`, gets
//! its owner, attributes, mode and times there, and is renamed to its place in the tree when it is whole. So what has a
//! place is whole, and a run that was ended goes on where it was: what has its place and still equals the original, by
//! type, size, owner, mode and time of modification, stays, what differs is made anew, and what the original no longer has
//! goes. Folders get theirs last, from the inside out. The finished tree is written out and renamed to its name; until
//! then there is none.
//!
//! A file is cloned at one moment; the tree as a whole is not, when others write to it meanwhile. For a whole tree at one
//! moment see [`held`].

use crate::{
    held,
    tree::{
        are_equal, device_of, kind_of, mode_of, names, open_folder, open_subfolder, remove, stat, times_of,
        Attributes, Object,
    },
    Status,
};
use anyhow::{anyhow, bail, ensure, Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{self, AtFlags, FileType, FlockOperation, Gid, Mode, OFlags, Statx, Uid},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashMap, HashSet},
    ffi::{CStr, CString, OsStr, OsString},
    fs::File,
    io::{stderr, stdout, IsTerminal, Read, Write},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, Ordering::Relaxed},
        Arc,
    },
    time::{Duration, Instant},
};

/// What is made, before it has its place.
pub const WORK: &CStr = c"work";
/// Of which folder the snapshot is.
const SOURCE: &CStr = c"source";
/// The same, before it is whole.
const NEW_SOURCE: &CStr = c"source.new";
/// The tree, before it has its name.
const TREE: &CStr = c"tree";
/// The folder that rext4 keeps for itself at the root of a volume.
pub const SYSTEM: &CStr = c".rext4";
/// The inode of that root.
pub const ROOT: u64 = 2;
/// The default access list, which a folder of work must not have.
const DEFAULT_LIST: &CStr = c"system.posix_acl_default";

/// How often a file is cloned anew that changes while it is.
const TRIES: usize = 8;
/// How often the progress is drawn.
const TICK: Duration = Duration::from_millis(200);

/// Arguments of `rext4 snapshot`.
#[derive(clap::Args)]
pub struct Args {
    /// Copy the whole tree at one point in time; writers to the volume block until it is cloned
    #[arg(long)]
    freeze: bool,
    /// Remove what an interrupted run left behind
    #[arg(long, conflicts_with_all = ["json", "freeze"])]
    discard: bool,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
    /// The directory to copy; not needed with --discard
    #[arg(required_unless_present = "discard")]
    source: Option<PathBuf>,
    /// The path of the snapshot
    #[arg(value_name = "NAME", required_unless_present = "discard")]
    target: Option<PathBuf>,
}

/// What was done, as it is printed in JSON.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Report {
    source: String,
    snapshot: String,
    /// An earlier run had begun it.
    resumed: bool,
    pub folders: u64,
    /// Files that were cloned,
    pub files: u64,
    /// and their bytes.
    pub bytes: u64,
    pub symlinks: u64,
    /// Devices, pipes and sockets.
    pub special: u64,
    /// Names of files that have another one.
    pub links: u64,
    /// What an earlier run had made, and is as it shall be.
    pub kept: u64,
    /// Folders that something else is mounted on: they are empty in the snapshot.
    pub mounts: u64,
    seconds: f64,
    /// Seconds for which writers were held off.
    pub held_seconds: f64,
}

impl Report {
    fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        writeln!(
            out,
            "{}: {} folders, {} files of {} bytes, {} symbolic links, {} devices, pipes and sockets, {} further names",
            self.snapshot, self.folders, self.files, self.bytes, self.symlinks, self.special, self.links,
        )?;
        if self.resumed {
            writeln!(out, "{} of an earlier run were kept", self.kept)?;
        }
        if self.mounts > 0 {
            writeln!(
                out,
                "note: {} folders are empty, since something else is mounted on them",
                self.mounts
            )?;
        }
        write!(out, "{:.2} s", self.seconds)?;
        if self.held_seconds > 0.0 {
            write!(out, "; writers waited for {:.2} s", self.held_seconds)?;
        }
        writeln!(out)
    }
}

/// Which folder a snapshot that was begun is of.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Source {
    version: u32,
    device: u64,
    inode: u64,
    /// It was begun to be of one moment.
    freeze: bool,
}

/// Where a snapshot shall be: the folder that gets it, and its name there.
struct Place {
    folder: OwnedFd,
    name: OsString,
    /// The folder of work.
    work: OsString,
}

impl Place {
    fn of(path: &Path) -> Result<Place> {
        let name = path
            .file_name()
            .with_context(|| format!("{} names no place for a snapshot", path.display()))?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut work = OsString::from(".");
        work.push(name);
        work.push(".rext4-snapshot");
        Ok(Place {
            folder: open_folder(fs::CWD, parent.as_os_str())
                .with_context(|| format!("cannot open {}", parent.display()))?,
            name: name.to_owned(),
            work,
        })
    }

    /// The folder of work, if there is one, locked against another run.
    fn open_work(&self) -> Result<Option<OwnedFd>> {
        let shown = Path::new(&self.work).display();
        let work = match open_folder(&self.folder, &self.work) {
            Err(Errno::NOENT) => return Ok(None),
            found => found.with_context(|| format!("cannot open {shown}"))?,
        };
        let found = stat(&work, c"")?;
        let ours =
            found.stx_uid == rustix::process::geteuid().as_raw() && u32::from(found.stx_mode) & 0o077 == 0;
        ensure!(ours, "{shown} is somebody else's");
        match fs::flock(&work, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => bail!("another run is making this snapshot"),
            locked => locked.context("cannot lock the folder of work")?,
        }
        Ok(Some(work))
    }
}

/// Somebody asked for an end.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("ended before it was done; the same command goes on, and one with --discard removes what there is")
    }
}

impl std::error::Error for Interrupted {}

/// A snapshot that is being made.
pub struct Maker {
    pub work: OwnedFd,
    pub tree: OwnedFd,
    /// Device and mount of the original; other ones are left out.
    pub device: u64,
    pub mount: u64,
    /// The inode of the folder of work, which is left out should it lie in the original.
    pub own: u64,
    /// Files that have several names, by inode: where in the tree the first one is.
    pub links: HashMap<u64, CString>,
    /// The same files' inodes in the tree.
    linked: HashSet<u64>,
    /// Where we are in the tree, for messages and links.
    pub path: PathBuf,
    pub report: Report,
    pub stop: Arc<AtomicBool>,
    bar: Option<ProgressBar>,
    drawn: Instant,
}

impl Maker {
    /// Makes what a folder holds, and then gives the copy what the original has.
    fn folder(&mut self, from: &OwnedFd, to: &OwnedFd) -> Result<()> {
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
        let own = stat(from, c"").with_context(|| self.at("cannot look at"))?;
        self.finish(
            &Object::Open(from.as_fd()).all()?,
            &Object::Open(to.as_fd()),
            &own,
            (to, c""),
        )?;
        self.report.folders += 1;
        Ok(())
    }

    pub fn at(&self, what: &str) -> String {
        format!("{what} {}", Path::new(".").join(&self.path).display())
    }

    fn entry(&mut self, from: &OwnedFd, to: &OwnedFd, name: &CStr) -> Result<()> {
        if self.stop.load(Relaxed) {
            return Err(Interrupted.into());
        }
        self.draw();
        let found = match stat(from, name) {
            // It was removed meanwhile.
            Err(Errno::NOENT) => return remove(to.as_fd(), name),
            found => found.with_context(|| self.at("cannot look at"))?,
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
            // Something may have been mounted or moved there just now.
            let again = stat(&from, c"")?;
            ensure!(
                device_of(&again) == self.device && again.stx_mnt_id == self.mount,
                self.at("something was mounted on")
            );
            let to = self.make_folder(to, name)?;
            return self.folder(&from, &to);
        }

        let there = match stat(to, name) {
            Err(Errno::NOENT) => None,
            there => Some(there.with_context(|| self.at("cannot look at the copy of"))?),
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
            fs::renameat(&self.work, WORK, to, name).with_context(|| self.at("cannot give its place to"))?;
        }
        if several {
            let own = stat(to, name)?.stx_ino;
            self.linked.insert(own);
            let path = CString::new(self.path.as_os_str().as_bytes())?;
            self.links.insert(found.stx_ino, path);
        }
        Ok(())
    }

    /// Sees to it that something can be made, and put in the place of what may be there.
    fn clear(&self, to: &OwnedFd, name: &CStr, there: Option<&Statx>) -> Result<()> {
        remove(self.work.as_fd(), WORK)?;
        if there.is_some_and(|there| kind_of(there) == FileType::Directory) {
            remove(to.as_fd(), name)?;
        }
        Ok(())
    }

    pub fn make_folder(&self, to: &OwnedFd, name: &CStr) -> Result<OwnedFd> {
        match fs::mkdirat(to, name, Mode::RWXU) {
            Err(Errno::EXIST) => match open_subfolder(to, name) {
                Ok(folder) => {
                    // An earlier run may have finished it.
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
        .with_context(|| self.at("cannot make folder"))?;
        Ok(open_subfolder(to, name)?)
    }

    /// Makes a copy of what is no folder, whole but for its place; answers whether the original was still there.
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

    pub fn make_symlink(&mut self, target: &CStr) -> Result<()> {
        self.report.symlinks += 1;
        fs::symlinkat(target, &self.work, WORK).with_context(|| self.at("cannot make link"))
    }

    /// Makes a device, a pipe or a socket.
    pub fn make_special(&mut self, found: &Statx) -> Result<()> {
        self.report.special += 1;
        let device = fs::makedev(found.stx_rdev_major, found.stx_rdev_minor);
        let mode = Mode::RUSR | Mode::WUSR;
        fs::mknodat(&self.work, WORK, kind_of(found), mode, device)
            .with_context(|| self.at("cannot make device"))
    }

    fn clone(&mut self, from: &OwnedFd, name: &CStr) -> Result<bool> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opened = match fs::openat(from, name, flags | OFlags::NOATIME, Mode::empty()) {
            // Only the owner may leave the time of access as it is.
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
            .with_context(|| self.at("cannot make a copy of"))?;
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

    pub fn explain(&self, error: Errno) -> anyhow::Error {
        let what = match error {
            Errno::OPNOTSUPP | Errno::INVAL | Errno::NOTTY => "the volume cannot share blocks:",
            Errno::XDEV => "the snapshot must lie on the same volume:",
            Errno::TXTBSY => "a file that is swapped to:",
            Errno::NOSPC => "no space left to clone",
            _ => "cannot clone",
        };
        anyhow::Error::new(error).context(self.at(what))
    }

    /// Gives a copy the owner, the attributes, the mode and the times of the original.
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
        // The owner first: a new one takes capabilities and rights away.
        fs::chownat(folder, name, owner.0, owner.1, flags)
            .with_context(|| self.at("cannot give the owner to the copy of"))?;
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

    pub fn draw(&mut self) {
        if let Some(bar) = &self.bar {
            if self.drawn.elapsed() >= TICK {
                self.drawn = Instant::now();
                let report = &self.report;
                bar.set_message(format!(
                    "{} folders, {} files, {} MiB shared, {} kept",
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

/// Opens the folder of work for a snapshot of `source`, or makes it; answers whether there was one.
fn begin(place: &Place, source: &Source) -> Result<(OwnedFd, bool)> {
    let begun = place.open_work()?;
    let work = match begun {
        Some(work) => work,
        None => {
            fs::mkdirat(&place.folder, &place.work, Mode::RWXU).context("cannot make a folder of work")?;
            place.open_work()?.context("the folder of work is gone")?
        }
    };
    // What is made in it gets only the access list of the original.
    match fs::fremovexattr(&work, DEFAULT_LIST) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => (),
        Err(error) => return Err(error).context("cannot prepare the folder of work"),
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match fs::openat(&work, SOURCE, flags, Mode::empty()) {
        Ok(file) => {
            let mut text = String::new();
            File::from(file).read_to_string(&mut text)?;
            let of: Source =
                serde_json::from_str(&text).context("the folder of work is not of this program")?;
            ensure!(
                of == *source,
                "a snapshot of another folder or with other options was begun with this name; --discard removes it"
            );
            Ok((work, true))
        }
        Err(Errno::NOENT) => {
            let strange = names(&work)?
                .into_iter()
                .any(|(_, name)| name.as_c_str() != NEW_SOURCE);
            ensure!(!strange, "the folder of work is not of this program");
            remove(work.as_fd(), NEW_SOURCE)?;
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let mut file = File::from(fs::openat(&work, NEW_SOURCE, flags, Mode::RUSR | Mode::WUSR)?);
            file.write_all(serde_json::to_string(source)?.as_bytes())?;
            file.sync_all()?;
            fs::renameat(&work, NEW_SOURCE, &work, SOURCE)?;
            Ok((work, false))
        }
        Err(error) => Err(error).context("cannot look into the folder of work"),
    }
}

/// Removes the folder of work.
fn end(place: &Place) -> Result<()> {
    let name = CString::new(place.work.clone().into_vec())?;
    remove(place.folder.as_fd(), &name)
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<Status> {
    match (args.discard, &args.source, &args.target) {
        (false, Some(source), Some(target)) => make(source, target, args),
        // --discard takes one path, the snapshot's, which comes last if both are given.
        (_, Some(target), None) | (_, _, Some(target)) => discard(target),
        (_, None, None) => bail!("no snapshot to discard was named"),
    }
}

/// Makes a snapshot, or finishes one that was interrupted.
fn make(source: &Path, target: &Path, args: &Args) -> Result<Status> {
    let since = Instant::now();
    let place = Place::of(target)?;
    let from = open_folder(fs::CWD, source.as_os_str())
        .with_context(|| format!("cannot open {}", source.display()))?;
    let (original, folder) = (stat(&from, c"")?, stat(&place.folder, c"")?);
    ensure!(
        device_of(&original) == device_of(&folder),
        "{} and {} are not on the same volume",
        source.display(),
        target.display()
    );
    let name = CString::new(place.name.clone().into_vec())?;
    ensure!(
        matches!(stat(&place.folder, &name), Err(Errno::NOENT)),
        "{} is there already",
        target.display()
    );
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    ctrlc::set_handler(move || asked.store(true, Relaxed)).context("cannot catch interrupts")?;

    let of = Source {
        version: 1,
        device: device_of(&original),
        inode: original.stx_ino,
        freeze: args.freeze,
    };
    let (mut work, mut resumed) = begin(&place, &of)?;
    if args.freeze && resumed {
        // What was made at another moment is of no use.
        drop(work);
        end(&place)?;
        (work, resumed) = begin(&place, &of)?;
    }
    let own = stat(&work, c"")?.stx_ino;
    match fs::mkdirat(&work, TREE, Mode::RWXU) {
        Ok(()) => (),
        Err(Errno::EXIST) if resumed => (),
        Err(error) => return Err(anyhow!(error).context("cannot make the tree")),
    }
    let tree = open_subfolder(&work, TREE)?;
    fs::fchmod(&tree, Mode::RWXU)?;
    let to = open_subfolder(&work, TREE)?;
    let mut maker = Maker {
        device: device_of(&original),
        mount: original.stx_mnt_id,
        own,
        links: HashMap::new(),
        linked: HashSet::new(),
        path: PathBuf::new(),
        report: Report {
            source: source.display().to_string(),
            snapshot: target.display().to_string(),
            resumed,
            ..Report::default()
        },
        stop,
        bar: stderr().is_terminal().then(new_bar),
        drawn: since,
        work,
        tree,
    };
    let done = match args.freeze {
        true => held::make(&mut maker, &from, &to),
        false => maker.folder(&from, &to),
    };
    if let Some(bar) = &maker.bar {
        bar.finish_and_clear();
    }
    done?;
    // All of it is on the disk before it has a name.
    fs::syncfs(&maker.tree).context("cannot write the snapshot out")?;
    fs::renameat_with(
        &maker.work,
        TREE,
        &place.folder,
        &name,
        fs::RenameFlags::NOREPLACE,
    )
    .with_context(|| format!("cannot give the name to {}", target.display()))?;
    end(&place)?;
    fs::fsync(&place.folder).context("cannot write the snapshot's name out")?;

    let mut report = maker.report;
    report.seconds = since.elapsed().as_secs_f64();
    let mut out = stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &report)?;
        writeln!(out)?;
    } else {
        report.print(&mut out)?;
    }
    Ok(Status::Clean)
}

/// Removes what a run left that did not come to its end.
fn discard(target: &Path) -> Result<Status> {
    let place = Place::of(target)?;
    let work = place.open_work()?.context("no snapshot of this name was begun")?;
    let ours = names(&work)?
        .iter()
        .all(|(_, name)| [WORK, SOURCE, NEW_SOURCE, TREE, held::POOL].contains(&name.as_c_str()));
    ensure!(ours, "the folder of work is not of this program");
    end(&place)?;
    Ok(Status::Clean)
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    // A template that does not parse costs the looks, not the snapshot.
    if let Ok(style) = ProgressStyle::with_template("snapshot {spinner} {msg} {elapsed}") {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_begun_is_known_again() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::of(&folder.path().join("name")).unwrap();
        assert!(place.open_work().unwrap().is_none());
        let source = |inode| Source {
            version: 1,
            device: 5,
            inode,
            freeze: false,
        };
        let (work, resumed) = begin(&place, &source(7)).unwrap();
        assert!(!resumed);
        // While one runs there is no other.
        assert!(begin(&place, &source(7)).is_err());
        drop(work);
        let (work, resumed) = begin(&place, &source(7)).unwrap();
        assert!(resumed);
        drop(work);
        assert!(begin(&place, &source(8)).is_err());
        assert!(folder.path().join(".name.rext4-snapshot/source").exists());
        end(&place).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn folders_of_others_are_left() {
        let folder = tempfile::tempdir().unwrap();
        let work = folder.path().join(".name.rext4-snapshot");
        std::fs::create_dir_all(work.join("something")).unwrap();
        let place = Place::of(&folder.path().join("name")).unwrap();
        fs::fchmod(&place.folder, Mode::RWXU).unwrap();
        assert!(discard(&folder.path().join("name")).is_err());
        assert!(work.join("something").exists());
        assert!(Place::of(Path::new("/")).is_err());
    }
}
