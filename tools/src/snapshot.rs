// SPDX-License-Identifier: GPL-2.0

//! `rext4 snapshot`: a copy of a directory tree that shares its blocks with the original, made of
//! clones (`FICLONE`).
//!
//! Every file, link and device is created under one name in a work directory next to the target,
//! `.NAME.rext4-snapshot`, gets its owner, attributes, mode and times there, and is renamed to its
//! place in the tree when it is complete. So everything in the tree is complete, and an interrupted
//! run can be resumed: entries that still equal the original by type, size, owner, mode and
//! modification time are kept, others are copied again, and entries that the original no longer has
//! are removed. Directories get their attributes last, from the inside out. The finished tree is
//! synced and renamed to its name; until then the name does not exist.
//!
//! Each file is cloned atomically. The tree as a whole is not if others write to it meanwhile;
//! [`held`] copies a whole tree at one point in time.

use crate::{
    held,
    maker::{new_bar, Maker, Report, WORK},
    status::Status,
    tree::{device_of, names, open_folder, open_subfolder, remove, stat},
};
use anyhow::{anyhow, bail, ensure, Context, Result};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{self, FlockOperation, Mode, OFlags},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashMap, HashSet},
    ffi::{CStr, CString, OsString},
    fs::File,
    io::{stderr, stdout, IsTerminal, Read, Write},
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, Ordering::Relaxed},
        Arc,
    },
    time::Instant,
};

/// Describes which directory the snapshot is a copy of.
const SOURCE: &CStr = c"source";
/// Name of [`SOURCE`] until it is complete.
const NEW_SOURCE: &CStr = c"source.new";
/// The tree, until it is renamed to its name.
const TREE: &CStr = c"tree";
/// The default access control list, which the work directory must not have.
const DEFAULT_LIST: &CStr = c"system.posix_acl_default";

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

/// Identifies the original of an incomplete snapshot.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Source {
    version: u32,
    device: u64,
    inode: u64,
    /// The run was started with --freeze.
    freeze: bool,
}

/// The path of a snapshot: its parent directory and its name there.
struct Place {
    folder: OwnedFd,
    name: OsString,
    /// Name of the work directory.
    work: OsString,
}

impl Place {
    fn of(path: &Path) -> Result<Place> {
        let name = path
            .file_name()
            .with_context(|| format!("{} is not a valid path for a snapshot", path.display()))?;
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

    /// Opens the work directory, if it exists, and locks it against other runs.
    fn open_work(&self) -> Result<Option<OwnedFd>> {
        let shown = Path::new(&self.work).display();
        let work = match open_folder(&self.folder, &self.work) {
            Err(Errno::NOENT) => return Ok(None),
            found => found.with_context(|| format!("cannot open {shown}"))?,
        };
        let found = stat(&work, c"")?;
        let ours =
            found.stx_uid == rustix::process::geteuid().as_raw() && u32::from(found.stx_mode) & 0o077 == 0;
        ensure!(ours, "{shown} belongs to another user or is accessible to others");
        match fs::flock(&work, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => bail!("another process is making this snapshot"),
            locked => locked.context("cannot lock the work directory")?,
        }
        Ok(Some(work))
    }
}

/// Opens or creates the work directory for a snapshot of `source`. Returns true with it if it
/// existed.
fn begin(place: &Place, source: &Source) -> Result<(OwnedFd, bool)> {
    let begun = place.open_work()?;
    let work = match begun {
        Some(work) => work,
        None => {
            fs::mkdirat(&place.folder, &place.work, Mode::RWXU)
                .context("cannot create the work directory")?;
            place.open_work()?.context("the work directory disappeared")?
        }
    };
    // Entries created in it must not inherit a default access control list.
    match fs::fremovexattr(&work, DEFAULT_LIST) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => (),
        Err(error) => return Err(error).context("cannot prepare the work directory"),
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match fs::openat(&work, SOURCE, flags, Mode::empty()) {
        Ok(file) => {
            let mut text = String::new();
            File::from(file).read_to_string(&mut text)?;
            let of: Source =
                serde_json::from_str(&text).context("the work directory was not created by this command")?;
            ensure!(
                of == *source,
                "an incomplete snapshot of another directory or with other options has this name; --discard removes it"
            );
            Ok((work, true))
        }
        Err(Errno::NOENT) => {
            let strange = names(&work)?
                .into_iter()
                .any(|(_, name)| name.as_c_str() != NEW_SOURCE);
            ensure!(!strange, "the work directory was not created by this command");
            remove(work.as_fd(), NEW_SOURCE)?;
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let mut file = File::from(fs::openat(&work, NEW_SOURCE, flags, Mode::RUSR | Mode::WUSR)?);
            file.write_all(serde_json::to_string(source)?.as_bytes())?;
            file.sync_all()?;
            fs::renameat(&work, NEW_SOURCE, &work, SOURCE)?;
            Ok((work, false))
        }
        Err(error) => Err(error).context("cannot read the work directory"),
    }
}

/// Removes the work directory.
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
        "{} already exists",
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
        // Clones made at another point in time cannot be used.
        drop(work);
        end(&place)?;
        (work, resumed) = begin(&place, &of)?;
    }
    let own = stat(&work, c"")?.stx_ino;
    match fs::mkdirat(&work, TREE, Mode::RWXU) {
        Ok(()) => (),
        Err(Errno::EXIST) if resumed => (),
        Err(error) => return Err(anyhow!(error).context("cannot create the tree")),
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
    // The tree is on disk before it gets its name.
    fs::syncfs(&maker.tree).context("cannot sync the snapshot")?;
    fs::renameat_with(
        &maker.work,
        TREE,
        &place.folder,
        &name,
        fs::RenameFlags::NOREPLACE,
    )
    .with_context(|| format!("cannot rename the tree to {}", target.display()))?;
    end(&place)?;
    fs::fsync(&place.folder).context("cannot sync the snapshot's directory")?;

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

/// Removes what an interrupted run left behind.
fn discard(target: &Path) -> Result<Status> {
    let place = Place::of(target)?;
    let work = place
        .open_work()?
        .context("there is no incomplete snapshot of this name")?;
    let ours = names(&work)?
        .iter()
        .all(|(_, name)| [WORK, SOURCE, NEW_SOURCE, TREE, held::POOL].contains(&name.as_c_str()));
    ensure!(ours, "the work directory was not created by this command");
    end(&place)?;
    Ok(Status::Clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incomplete_snapshots_are_recognized() {
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
        // The lock excludes a second run.
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
    fn foreign_directories_are_left_alone() {
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
