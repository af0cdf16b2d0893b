// SPDX-License-Identifier: GPL-2.0

//! Directories, their entries, and extended attributes, as [`snapshot`](crate::snapshot) needs
//! them.

use anyhow::{Context, Result};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{
        self, AtFlags, Dir, FileType, Mode, OFlags, RawMode, Statx, StatxFlags, Timespec, Timestamps,
        XattrFlags,
    },
    io::Errno,
};
use std::{
    ffi::{CStr, CString},
    os::fd::AsRawFd,
};

/// Opens a directory. A symbolic link is followed.
pub fn open_folder(at: impl AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::openat(at, name, flags, Mode::empty())
}

/// Opens a subdirectory. No symbolic link is followed, so that a walk never leaves its tree.
pub fn open_subfolder(at: impl AsFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    fs::openat(at, name, flags, Mode::empty())
}

/// Stats an entry of a directory, or the directory itself if the name is empty.
pub fn stat(at: impl AsFd, name: &CStr) -> rustix::io::Result<Statx> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    fs::statx(at, name, flags, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)
}

pub fn device_of(stat: &Statx) -> u64 {
    fs::makedev(stat.stx_dev_major, stat.stx_dev_minor)
}

pub fn kind_of(stat: &Statx) -> FileType {
    FileType::from_raw_mode(RawMode::from(stat.stx_mode))
}

pub fn mode_of(stat: &Statx) -> Mode {
    Mode::from_raw_mode(RawMode::from(stat.stx_mode) & 0o7777)
}

pub fn times_of(stat: &Statx) -> Timestamps {
    let time = |seconds, nanoseconds: u32| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.into(),
    };
    Timestamps {
        last_access: time(stat.stx_atime.tv_sec, stat.stx_atime.tv_nsec),
        last_modification: time(stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
    }
}

/// Returns true if both have the same type, size, owner, mode and modification time: one is an
/// unchanged copy of the other.
pub fn are_equal(one: &Statx, other: &Statx) -> bool {
    let key = |stat: &Statx| {
        (
            (stat.stx_mode, stat.stx_uid, stat.stx_gid, stat.stx_size),
            (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            (stat.stx_rdev_major, stat.stx_rdev_minor),
        )
    };
    key(one) == key(other)
}

/// Returns the entries of a directory with their inode numbers, without `.` and `..`, in order of
/// the inodes: this is their order on disk.
pub fn names(folder: &OwnedFd) -> rustix::io::Result<Vec<(u64, CString)>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push((entry.ino(), entry.file_name().to_owned()));
        }
    }
    names.sort();
    Ok(names)
}

/// Removes an entry of a directory, recursively.
pub fn remove(at: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    match fs::unlinkat(at, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => (),
        Err(error) => return Err(error).with_context(|| format!("cannot remove {name:?}")),
    }
    let folder = open_subfolder(at, name).with_context(|| format!("cannot open {name:?}"))?;
    // If the mode cannot be changed, the removal reports it.
    let _ = fs::fchmod(&folder, Mode::RWXU);
    for (_, inner) in names(&folder)? {
        remove(folder.as_fd(), &inner)?;
    }
    fs::unlinkat(at, name, AtFlags::REMOVEDIR).with_context(|| format!("cannot remove {name:?}"))
}

/// Names and values of extended attributes.
pub type Attributes = Vec<(CString, Vec<u8>)>;

/// An object with extended attributes: an open file or directory, or a path to a link or device.
pub enum Object<'a> {
    Open(BorrowedFd<'a>),
    Path(CString),
}

impl Object<'_> {
    pub fn at(folder: &OwnedFd, name: &CStr) -> Result<Object<'static>> {
        let mut path = format!("/proc/self/fd/{}/", folder.as_raw_fd()).into_bytes();
        path.extend_from_slice(name.to_bytes());
        Ok(Object::Path(CString::new(path)?))
    }

    /// Calls `ask` with a larger buffer until the result fits.
    fn grow(mut ask: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
        let mut buffer = vec![0; 1024];
        loop {
            match ask(&mut buffer) {
                Ok(len) => {
                    buffer.truncate(len);
                    return Ok(buffer);
                }
                Err(Errno::RANGE) if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 4, 0),
                Err(error) => return Err(error),
            }
        }
    }

    pub fn names(&self) -> Result<Vec<CString>> {
        let list = Self::grow(|buffer| match self {
            Object::Open(fd) => fs::flistxattr(fd, buffer),
            Object::Path(path) => fs::llistxattr(path, buffer),
        });
        let list = match list {
            Err(Errno::OPNOTSUPP) => Vec::new(),
            list => list.context("cannot list attributes")?,
        };
        let names = list.split(|&byte| byte == 0).filter(|name| !name.is_empty());
        names.map(|name| Ok(CString::new(name)?)).collect()
    }

    /// Returns the attribute's value, or `None` if it was removed in the meantime.
    fn get(&self, name: &CStr) -> Result<Option<Vec<u8>>> {
        let value = Self::grow(|buffer| match self {
            Object::Open(fd) => fs::fgetxattr(fd, name, buffer),
            Object::Path(path) => fs::lgetxattr(path, name, buffer),
        });
        match value {
            Ok(value) => Ok(Some(value)),
            Err(Errno::NODATA) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read attribute {name:?}")),
        }
    }

    fn set(&self, name: &CStr, value: &[u8]) -> Result<()> {
        let none = XattrFlags::empty();
        match self {
            Object::Open(fd) => fs::fsetxattr(fd, name, value, none),
            Object::Path(path) => fs::lsetxattr(path, name, value, none),
        }
        .with_context(|| format!("cannot write attribute {name:?}"))
    }

    fn remove(&self, name: &CStr) -> rustix::io::Result<()> {
        match self {
            Object::Open(fd) => fs::fremovexattr(fd, name),
            Object::Path(path) => fs::lremovexattr(path, name),
        }
    }

    /// Returns all attributes.
    pub fn all(&self) -> Result<Attributes> {
        let mut all = Vec::new();
        for name in self.names()? {
            if let Some(value) = self.get(&name)? {
                all.push((name, value));
            }
        }
        Ok(all)
    }

    /// Sets these attributes and removes all others.
    pub fn set_all(&self, wanted: &Attributes) -> Result<()> {
        for name in self.names()? {
            let is_wanted = wanted.iter().any(|(other, _)| *other == name);
            // A security label that was set at creation may not be removable; it does no harm.
            if !is_wanted && !name.to_bytes().starts_with(b"security.") {
                match self.remove(&name) {
                    Ok(()) | Err(Errno::NODATA) => (),
                    Err(error) => {
                        return Err(error).with_context(|| format!("cannot remove attribute {name:?}"))
                    }
                }
            }
        }
        for (name, value) in wanted {
            if self.get(name)?.as_ref() != Some(value) {
                self.set(name, value)?;
            }
        }
        Ok(())
    }
}
