// SPDX-License-Identifier: GPL-2.0

//! The file system's own files, in the directory `/.rext4`, which nobody sees while this mounts the volume.
//!
//! To others they are plain files: mode 0600, immutable, in a directory of mode 0700. Their blocks hold metadata and are
//! written through the journal by who owns the file; what is in a block that was just added is not defined.

use crate::{
    format::{
        self,
        extent::{self, Extent},
        inode::flags,
    },
    fs::{
        alloc::{balloc, space},
        disk::inode::{self, Part},
        map::extent_tree,
        names::{dir, namei},
        owners::OwnerKind,
        state::Volume,
    },
    kernel_glue::{corrupted, Blank, Inherited, Inode, InodeRef, Make, SuperBlock},
};
use kernel::{prelude::*, sync::atomic::Relaxed};

const NOTHING: Make<'_> = Make {
    device: 0,
    target: None,
    labelled: false,
    lists: Inherited::NONE,
};

/// Finds a system file; `None` when there is none.
pub(crate) fn find(sb: &SuperBlock<Volume>, name: &[u8]) -> Result<Option<InodeRef<Volume>>> {
    let root = inode::get(sb, format::inode::ROOT)?;
    let Some(dir) = dir::find(&root, dir::SYSTEM_DIR)? else {
        return Ok(None);
    };
    sb.volume()?.has_system_dir.store(true, Relaxed);
    if !dir.is_directory() {
        return Err(corrupted());
    }
    match dir::find(&dir, name)? {
        Some(file) if !file.is_file() || !file.data()?.has_extents() => Err(corrupted()),
        found => Ok(found),
    }
}

/// Finds a system file or makes it, empty, and the directory for it. Must not be called with a handle open.
pub(crate) fn find_or_make(sb: &SuperBlock<Volume>, name: &[u8]) -> Result<InodeRef<Volume>> {
    if let Some(file) = find(sb, name)? {
        return Ok(file);
    }
    let root = inode::get(sb, format::inode::ROOT)?;
    let dir = match dir::find(&root, dir::SYSTEM_DIR)? {
        Some(dir) => dir,
        None => {
            let root = root.lock();
            namei::make(&root, dir::SYSTEM_DIR, Blank::internal(sb, 0o040700)?, &NOTHING)?.publish()
        }
    };
    sb.volume()?.has_system_dir.store(true, Relaxed);
    let file = {
        let dir = dir.lock();
        namei::make(&dir, name, Blank::internal(sb, 0o100600)?, &NOTHING)?.publish()
    };
    let handle = sb.volume()?.begin(inode::STORE_CREDITS, 0)?;
    let data = file.data()?;
    data.set_flags(data.flags() | flags::IMMUTABLE);
    inode::store(&handle, &file, Part::Attributes)?;
    handle.stop()?;
    Ok(file)
}

/// Lengthens a system file by `blocks` blocks, in as few pieces as there are. Must not be called with a handle open.
///
/// Fails with `ENOSPC`; the file may have grown by less then.
pub(crate) fn grow(file: &Inode<Volume>, blocks: u32) -> Result {
    let volume = file.super_block().volume()?;
    let data = file.data()?;
    let bits = volume.layout.block_bits;
    let mut left = blocks;
    while left > 0 {
        let credits = extent_tree::INSERT_CREDITS + 2 + inode::STORE_CREDITS + space::credits(volume, 2);
        let handle = volume.begin(credits, 0)?;
        let mut root = data.root.write();
        let offset = u32::try_from(data.disk_size() >> bits).map_err(|_| EFBIG)?;
        let kind = OwnerKind::Data {
            offset,
            unwritten: false,
        };
        let want = left.min(extent::max_len(false));
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
        let done = extent_tree::insert(&handle, file, &mut root, extent)
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
