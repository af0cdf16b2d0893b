// SPDX-License-Identifier: GPL-2.0

//! The file system's own files, in the directory `/.rext4`, which is hidden while rext4 mounts the
//! volume.
//!
//! To other drivers they are plain files: mode 0600, immutable, in a directory of mode 0700. Their
//! blocks contain metadata, which the owner of the file writes through the journal. The contents of
//! newly added blocks are undefined.

use crate::{
    format::{self, extent::Extent, extent_edit, inode::flags, superblock::incompat},
    fs::{
        alloc::{balloc, space},
        disk::inode::{self, Part},
        map::{change::MapChange, extent_tree, mapping},
        names::{dir, namei},
        owners::OwnerKind,
        state::Volume,
    },
    kernel_glue::{Blank, Inherited, Inode, InodeRef, Make, SuperBlock},
};
use kernel::{prelude::*, sync::atomic::Relaxed};

const NOTHING: Make<'_> = Make {
    device: 0,
    target: None,
    labelled: false,
    lists: Inherited::NONE,
};

/// The names of the files.
const FILES: [&[u8]; 2] = [b"rmap", b"refcount"];

/// Owner, group and permissions of an inode.
fn access(inode: &Inode<Volume>) -> (u32, u32, u16) {
    (inode.uid(), inode.gid(), inode.mode() & 0o7777)
}

/// Returns true if a directory can be the system directory: owned by root, with mode 0700.
pub(in crate::fs) fn is_own_dir(dir: &Inode<Volume>) -> bool {
    dir.is_directory() && access(dir) == (0, 0, 0o700)
}

/// Returns true if a file can be a system file: a regular file, mapped like all new ones, with one
/// name, owned by root, with mode 0600, immutable, and neither the journal nor the orphan file. A
/// crash may have left one that is empty and not immutable yet.
fn is_own_file(file: &Inode<Volume>) -> Result<bool> {
    let layout = file.super_block().volume()?.layout();
    let data = file.data()?;
    let special = [layout.journal_inode, layout.orphan_inode].contains(&file.number());
    Ok(file.is_file()
        && !special
        && data.has_extents() == layout.features.incompat(incompat::EXTENTS)
        && (data.flags() & flags::IMMUTABLE != 0 || file.size() == 0 && file.sectors() == 0)
        && file.links() == 1
        && access(file) == (0, 0, 0o600))
}

/// Logs that one of the system files' names is used by something that rext4 did not create. It is
/// left alone.
pub(crate) fn refuse_foreign(sb: &SuperBlock<Volume>, name: &[u8]) -> Error {
    let name = core::str::from_utf8(name).unwrap_or_default();
    pr_warn!(
        "{}: /.rext4/{name} was not created by rext4 and is ignored; move it away so that it can be created\n",
        sb.name()
    );
    EEXIST
}

/// Returns the directory of the system files; `None` if there is none.
///
/// # Errors
///
/// `EEXIST` when something that rext4 did not create has its name.
fn find_dir(root: &Inode<Volume>) -> Result<Option<InodeRef<Volume>>> {
    let sb = root.super_block();
    let Some(dir) = dir::find(root, dir::SYSTEM_DIR)? else {
        return Ok(None);
    };
    if !is_own_dir(&dir) {
        return Err(refuse_foreign(sb, b""));
    }
    let volume = sb.volume()?;
    volume.has_system_dir.store(true, Relaxed);
    volume.note_system_inode(dir.number());
    Ok(Some(dir))
}

/// Returns a system file; `None` if there is none.
///
/// # Errors
///
/// `EEXIST` when something that rext4 did not create has its name.
pub(crate) fn find(sb: &SuperBlock<Volume>, name: &[u8]) -> Result<Option<InodeRef<Volume>>> {
    let root = inode::get(sb, format::inode::ROOT)?;
    let Some(dir) = find_dir(&root)? else {
        return Ok(None);
    };
    match dir::find(&dir, name)? {
        Some(file) if !is_own_file(&file)? => Err(refuse_foreign(sb, name)),
        Some(file) => {
            sb.volume()?.note_system_inode(file.number());
            Ok(Some(file))
        }
        None => Ok(None),
    }
}

/// Notes which inodes the file system's own files in `dir`, their directory, have, also of a volume
/// that is only read.
pub(in crate::fs) fn note_inodes(dir: &Inode<Volume>) -> Result {
    let volume = dir.super_block().volume()?;
    volume.note_system_inode(dir.number());
    for name in FILES {
        if let Some(file) = dir::find(dir, name)? {
            volume.note_system_inode(file.number());
        }
    }
    Ok(())
}

/// Finds a system file or makes it, empty, and the directory for it. Must not be called with a
/// handle open.
pub(crate) fn find_or_make(sb: &SuperBlock<Volume>, name: &[u8]) -> Result<InodeRef<Volume>> {
    if let Some(file) = find(sb, name)? {
        if file.data()?.flags() & flags::IMMUTABLE == 0 {
            make_immutable(sb, &file)?;
        }
        return Ok(file);
    }
    let root = inode::get(sb, format::inode::ROOT)?;
    let dir = match find_dir(&root)? {
        Some(dir) => dir,
        None => {
            let root = root.lock();
            namei::make(&root, dir::SYSTEM_DIR, Blank::internal(sb, 0o040700)?, &NOTHING)?.publish()
        }
    };
    let volume = sb.volume()?;
    volume.has_system_dir.store(true, Relaxed);
    volume.note_system_inode(dir.number());
    let file = {
        let dir = dir.lock();
        let file = namei::make(&dir, name, Blank::internal(sb, 0o100600)?, &NOTHING)?;
        volume.note_system_inode(file.number());
        file.publish()
    };
    make_immutable(sb, &file)?;
    Ok(file)
}

/// Empties a system file whose mapping is damaged. Its blocks stay in use, because the rest of the
/// mapping cannot be trusted to name them. Must not be called with a handle open.
pub(crate) fn empty(file: &Inode<Volume>) -> Result {
    let file = file.lock();
    let data = file.data()?;
    let mut change = MapChange::begin(&file, inode::STORE_CREDITS, 0)?;
    let (_, root) = change.parts()?;
    root.fill(0);
    let started = match data.has_extents() {
        true => extent_edit::start(root, 0, false)
            .map_err(|what| inode::bad(file.super_block(), file.number(), what)),
        false => Ok(()),
    };
    data.set_disk_size(0);
    file.set_size(0);
    let sectors = i64::try_from(file.sectors()).unwrap_or(i64::MAX);
    // As many as there are.
    let _ = file.add_sectors(-sectors);
    change.end(started)
}

fn make_immutable(sb: &SuperBlock<Volume>, file: &Inode<Volume>) -> Result {
    let handle = sb.volume()?.begin(inode::STORE_CREDITS, 0)?;
    let data = file.data()?;
    data.set_flags(data.flags() | flags::IMMUTABLE);
    inode::store(&handle, file, Part::Attributes)?;
    handle.stop()
}

/// Maximum number of changes of owners in a step of [`grow`]: the blocks, and a node of the extent
/// tree.
const GROW_CHANGES: u32 = 2;

/// Extends a system file by `blocks` blocks, in as few extents as possible. Must not be called with
/// a handle open.
///
/// Fails with `ENOSPC`; the file may have grown by fewer blocks then.
pub(crate) fn grow(file: &Inode<Volume>, blocks: u32) -> Result {
    let volume = file.super_block().volume()?;
    let data = file.data()?;
    let bits = volume.layout.block_bits;
    let mut left = blocks;
    while left > 0 {
        let credits = extent_tree::INSERT_CREDITS
            + balloc::ALLOCATE_CREDITS
            + inode::STORE_CREDITS
            + space::credits(volume, GROW_CHANGES);
        let handle = volume.begin(credits, 0)?;
        let mut root = data.root.write();
        let offset = u32::try_from(data.disk_size() >> bits).map_err(|_| EFBIG)?;
        let kind = OwnerKind::Data {
            offset,
            unwritten: false,
        };
        let want = left.min(mapping::reach(file, offset)?);
        offset.checked_add(want).ok_or(EFBIG)?;
        let (start, len) = match space::take(&handle, file, extent_tree::group_goal(file)?, want, kind) {
            Err(ENOSPC) => {
                drop(root);
                handle.stop()?;
                if balloc::wait_for_frees(volume)? {
                    continue;
                }
                return Err(ENOSPC);
            }
            taken => taken?,
        };
        let extent = Extent {
            offset,
            start,
            len,
            unwritten: false,
        };
        let done = mapping::insert(&handle, file, &mut root, extent)
            .or_else(|error| space::give(&handle, file, start, len, kind, false).and(Err(error)));
        data.new_version();
        if done.is_ok() {
            let size = u64::from(offset).saturating_add(u64::from(len)) << bits;
            data.set_disk_size(size);
            file.extend_size(size);
        }
        inode::store(&handle, file, Part::Mapping(&root))?;
        drop(root);
        handle.stop()?;
        done?;
        left = left.saturating_sub(len);
    }
    Ok(())
}
