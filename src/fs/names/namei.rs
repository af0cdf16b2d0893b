// SPDX-License-Identifier: GPL-2.0

//! Adding, removing and renaming names.
//!
//! Each operation is one handle, so that after a crash it happened or did not. A name goes into the first block with room
//! behind the last one that had some, or into a new block at the end. A hashed directory becomes a linear one with the
//! first name that is added to it: its index blocks are made blocks without names, and its flag goes.

use crate::{
    format::{
        dir::{Entries, NAME_LEN},
        dir_edit,
        extent::Extent,
        inode::{flags, BLOCK_BYTES},
        Checked, Corrupt,
    },
    fs::{
        alloc::{ialloc, space},
        disk::{
            errors::corrupt_inode,
            inode::{self, Part},
        },
        map::{extent_tree, mapping},
        names::{acl, dir, orphan, xattr},
        owners::OwnerKind,
        state::Volume,
    },
    kernel_glue::{
        corrupted, name_too_long, not_empty, too_many_links, AttributeSpace, Blank, Buffer, FreshBuffer,
        Handle, Inode, Locked, Make, NewInode, Rename, SetMode,
    },
};
use kernel::prelude::*;

/// Links that an inode can have.
const MAX_LINKS: u32 = 65000;
/// Blocks of the journal that [`append`] may write.
const APPEND_CREDITS: u32 = extent_tree::INSERT_CREDITS + 4;
/// And those for a name that goes into a linear directory, with the directory's inode.
const NAME_CREDITS: u32 = APPEND_CREDITS + 2;

/// The file type of an entry for an inode of this mode.
fn file_type(mode: u16) -> u8 {
    match mode & 0o170000 {
        0o100000 => 1,
        0o040000 => 2,
        0o020000 => 3,
        0o060000 => 4,
        0o010000 => 5,
        0o140000 => 6,
        0o120000 => 7,
        _ => 0,
    }
}

fn bad(inode: &Inode<Volume>, what: Corrupt) -> Error {
    corrupt_inode(inode.super_block(), inode.number(), None, what)
}

/// Starts a handle for something that adds at most `names` names to `dirs`, and writes `more` blocks.
fn begin(dirs: &[&Inode<Volume>], names: u32, more: u32) -> Result<Handle> {
    let mut blocks = names * NAME_CREDITS + more;
    let sb = dirs.first().ok_or(EINVAL)?.super_block();
    let volume = sb.volume()?;
    if names > 0 {
        for dir in dirs {
            blocks += index_blocks(dir)?;
        }
    }
    let handle = volume.begin(blocks + space::credits(volume, 2 * names + 3), xattr::REVOKES)?;
    if dirs.iter().any(|dir| dir.is_dir_sync()) {
        handle.set_sync();
    }
    Ok(handle)
}

/// Blocks that a directory's index takes, those that the first new name will change.
fn index_blocks(dir: &Inode<Volume>) -> Result<u32> {
    let mut count = 0;
    if dir.data()?.flags() & flags::INDEX != 0 {
        for number in 0..dir::blocks(dir)? {
            let (_, block) = dir::read_block(dir, number)?;
            count += u32::from(crate::format::dir::is_index(&block, number == 0));
        }
    }
    Ok(count)
}

/// Makes a hashed directory a linear one.
fn unhash(handle: &Handle, dir: &Inode<Volume>) -> Result {
    let data = dir.data()?;
    if data.flags() & flags::INDEX == 0 {
        return Ok(());
    }
    let layout = &dir.super_block().volume()?.layout;
    for number in 0..dir::blocks(dir)? {
        let (_, mut block) = dir::read_block(dir, number)?;
        if crate::format::dir::is_index(&block, number == 0) {
            change(handle, dir, &mut block, |bytes| {
                dir_edit::unhash(layout, bytes, number == 0).map(|_| ())
            })?;
        }
    }
    data.set_flags(data.flags() & !flags::INDEX);
    data.set_hint(0);
    inode::store(handle, dir, Part::Attributes)
}

/// Changes a block of names and seals it.
fn change<T>(
    handle: &Handle,
    dir: &Inode<Volume>,
    block: &mut Buffer,
    change: impl FnOnce(&mut [u8]) -> Checked<T>,
) -> Result<T> {
    let layout = &dir.super_block().volume()?.layout;
    let seed = dir.data()?.seed;
    let mut bytes = handle.write(block)?;
    let done = change(&mut bytes).map_err(|what| bad(dir, what))?;
    dir_edit::seal(layout, &mut bytes, seed).map_err(|what| bad(dir, what))?;
    Ok(done)
}

/// Gives a directory or a symbolic link one block more, at its end, zeroed and part of the handle. The inode is stored.
fn append(handle: &Handle, inode: &Locked<Volume>) -> Result<Buffer> {
    let sb = inode.super_block();
    let layout = &sb.volume()?.layout;
    let data = inode.data()?;
    let offset = match inode.is_directory() {
        true => dir::blocks(inode)?,
        false => 0,
    };
    let size = offset
        .checked_add(1)
        .map(|blocks| u64::from(blocks) << layout.block_bits);
    let size = size.ok_or(EFBIG)?;
    let kind = OwnerKind::Data {
        offset,
        unwritten: false,
    };
    let mut root = data.root.write();
    let (start, _) = space::take(handle, inode, extent_tree::group_goal(inode)?, 1, kind)?;
    let extent = Extent {
        offset,
        start,
        len: 1,
        unwritten: false,
    };
    let buffer = handle.create(FreshBuffer::new(sb, start)?)?.into_buffer();
    if let Err(error) = mapping::insert(handle, inode, &mut root, extent) {
        space::give(handle, inode, start, 1, kind, true)?;
        // Entries may have moved to other nodes.
        inode::store(handle, inode, Part::Mapping(&root))?;
        return Err(error);
    }
    if inode.is_directory() {
        inode.set_size(size);
    }
    inode::store(handle, inode, Part::Mapping(&root))?;
    Ok(buffer)
}

/// Adds a name. The directory is stored with its new times.
fn add(handle: &Handle, dir: &Locked<Volume>, name: &[u8], ino: u32, kind: u8) -> Result {
    if name.len() > NAME_LEN {
        return Err(name_too_long());
    }
    let layout = &dir.super_block().volume()?.layout;
    unhash(handle, dir)?;
    let data = dir.data()?;
    dir.touch(true);
    for number in data.hint()..dir::blocks(dir)? {
        let (_, mut block) = dir::read_block(dir, number)?;
        if dir_edit::has_room(layout, &block, name).map_err(|what| bad(dir, what))? {
            change(handle, dir, &mut block, |bytes| {
                dir_edit::add(layout, bytes, name, ino, kind)
            })?;
            data.set_hint(number);
            return inode::store(handle, dir, Part::Attributes);
        }
    }
    let mut block = append(handle, dir)?;
    change(handle, dir, &mut block, |bytes| {
        dir_edit::clear(layout, bytes)?;
        dir_edit::add(layout, bytes, name, ino, kind)
    })?;
    data.set_hint(dir::blocks(dir)?.saturating_sub(1));
    Ok(())
}

/// Finds the block of a name and changes it. The directory is stored with its new times.
fn edit(
    handle: &Handle,
    dir: &Inode<Volume>,
    name: &[u8],
    edit: impl FnOnce(&mut [u8]) -> Checked<bool>,
) -> Result<u32> {
    let layout = &dir.super_block().volume()?.layout;
    for number in 0..dir::blocks(dir)? {
        let (_, mut block) = dir::read_block(dir, number)?;
        let mut found = false;
        for entry in Entries::new(layout, &block) {
            let entry = entry.map_err(|what| bad(dir, what))?;
            if entry.inode != 0 && entry.name == name {
                found = true;
                break;
            }
        }
        if found {
            change(handle, dir, &mut block, edit)?;
            dir.touch(true);
            inode::store(handle, dir, Part::Attributes)?;
            return Ok(number);
        }
    }
    Err(ENOENT)
}

fn remove(handle: &Handle, dir: &Inode<Volume>, name: &[u8]) -> Result {
    let layout = &dir.super_block().volume()?.layout;
    let number = edit(handle, dir, name, |bytes| dir_edit::remove(layout, bytes, name))?;
    let data = dir.data()?;
    data.set_hint(data.hint().min(number));
    Ok(())
}

fn replace(handle: &Handle, dir: &Inode<Volume>, name: &[u8], inode: &Inode<Volume>) -> Result {
    let layout = &dir.super_block().volume()?.layout;
    let kind = file_type(inode.mode());
    edit(handle, dir, name, |bytes| {
        dir_edit::replace(layout, bytes, name, inode.number(), kind)
    })?;
    Ok(())
}

/// Whether a directory has a link left for one more directory in it.
fn check_links(dir: &Inode<Volume>) -> Result {
    if dir.links() >= MAX_LINKS {
        return Err(too_many_links());
    }
    Ok(())
}

/// A directory in `dir` came. A directory with one link has more of them than can be counted.
fn add_subdir(dir: &Locked<Volume>) {
    if dir.links() > 1 {
        dir.add_link();
    }
}

/// A directory in `dir` went.
fn drop_subdir(dir: &Locked<Volume>) {
    if dir.links() > 2 {
        dir.drop_link();
    }
}

/// Makes an inode with a name.
pub(in crate::fs) fn create(
    dir: &Locked<Volume>,
    name: &[u8],
    blank: Blank<Volume>,
    make: &Make<'_>,
) -> Result<NewInode<Volume>> {
    if dir::is_hidden(dir, name) {
        return Err(EPERM);
    }
    self::make(dir, name, blank, make)
}

/// Makes an inode with a name, also a hidden one.
pub(in crate::fs) fn make(
    dir: &Locked<Volume>,
    name: &[u8],
    blank: Blank<Volume>,
    make: &Make<'_>,
) -> Result<NewInode<Volume>> {
    let layout = &dir.super_block().volume()?.layout;
    if name.len() > NAME_LEN
        || make
            .target
            .is_some_and(|target| target.len() >= layout.block_size as usize)
    {
        return Err(name_too_long());
    }
    let directory = blank.fields().mode & 0o170000 == 0o040000;
    if directory {
        check_links(dir)?;
    }
    let more = ialloc::CREDITS + inode::STORE_CREDITS + APPEND_CREDITS + orphan::CREDITS + xattr::CREDITS;
    let handle = begin(&[dir], 1, more)?;
    let new = ialloc::make(&handle, dir, blank, make.device)?;
    let done = fill(&handle, dir, &new, make).and_then(|()| {
        acl::inherit(&handle, &new, &make.lists)?;
        if make.labelled {
            new.security_labels(dir, name, &mut |label, value| {
                let space = AttributeSpace::Security;
                xattr::change(&handle, &new, space, label, Some(value), SetMode::New)
            })?;
        }
        add(&handle, dir, name, new.number(), file_type(new.mode()))?;
        if directory {
            add_subdir(dir);
            inode::store(&handle, dir, Part::Attributes)?;
        }
        Ok(())
    });
    if let Err(error) = done {
        // It ends when it is dropped, after the handle; the orphan file keeps it till then.
        new.set_links(0);
        orphan::add(&handle, &new)?;
        inode::store(&handle, &new, Part::Attributes)?;
        handle.stop()?;
        return Err(error);
    }
    handle.stop()?;
    Ok(new)
}

/// Stores a new inode, with the first block of a directory or the target of a link.
fn fill(handle: &Handle, dir: &Inode<Volume>, new: &Locked<Volume>, make: &Make<'_>) -> Result {
    let layout = &dir.super_block().volume()?.layout;
    let data = new.data()?;
    match make.target {
        Some(target) if target.len() < BLOCK_BYTES => {
            let mut root = data.root.write();
            root.fill(0);
            root.get_mut(..target.len()).ok_or(EIO)?.copy_from_slice(target);
            data.set_flags(data.flags() & !flags::EXTENTS);
            new.set_size(target.len() as u64);
            return inode::store(handle, new, Part::New(&root));
        }
        _ => inode::store(handle, new, Part::New(&data.root.read()))?,
    }
    if let Some(target) = make.target {
        let mut block = append(handle, new)?;
        let mut bytes = handle.write(&mut block)?;
        bytes.get_mut(..target.len()).ok_or(EIO)?.copy_from_slice(target);
        drop(bytes);
        new.set_size(target.len() as u64);
        inode::store(handle, new, Part::Attributes)?;
    }
    if new.is_directory() {
        let mut block = append(handle, new)?;
        change(handle, new, &mut block, |bytes| {
            dir_edit::start(layout, bytes, new.number(), dir.number())
        })?;
        new.set_links(2);
        inode::store(handle, new, Part::Attributes)?;
    }
    Ok(())
}

/// Gives an inode another name.
pub(in crate::fs) fn link(inode: &Locked<Volume>, dir: &Locked<Volume>, name: &[u8]) -> Result {
    if inode.links() >= MAX_LINKS {
        return Err(too_many_links());
    }
    if dir::is_hidden(dir, name) {
        return Err(EPERM);
    }
    let handle = begin(&[dir], 1, inode::STORE_CREDITS + orphan::CREDITS)?;
    add(&handle, dir, name, inode.number(), file_type(inode.mode()))?;
    // A file that had no name (O_TMPFILE) is no orphan any more.
    if inode.links() == 0 {
        orphan::remove(&handle, inode)?;
        inode.set_links(1);
    } else {
        inode.add_link();
    }
    inode.touch(false);
    inode::store(&handle, inode, Part::Attributes)?;
    handle.stop()
}

/// Whether a directory has no names but its own two.
fn is_empty(dir: &Inode<Volume>) -> Result<bool> {
    let layout = &dir.super_block().volume()?.layout;
    for number in 0..dir::blocks(dir)? {
        let (_, block) = dir::read_block(dir, number)?;
        for entry in Entries::new(layout, &block) {
            let entry = entry.map_err(|what| bad(dir, what))?;
            if entry.inode != 0 && !matches!(entry.name, b"." | b"..") {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Takes the last or another name from an inode, in a handle that has removed it from its directory.
fn drop_name(handle: &Handle, dir: &Locked<Volume>, inode: &Locked<Volume>) -> Result {
    if inode.is_directory() {
        inode.set_links(0);
        drop_subdir(dir);
        inode::store(handle, dir, Part::Attributes)?;
    } else {
        inode.drop_link();
    }
    inode.touch(false);
    if inode.links() == 0 {
        orphan::add(handle, inode)?;
    }
    inode::store(handle, inode, Part::Attributes)
}

/// Takes a name away: an empty directory's, or another inode's.
pub(in crate::fs) fn unlink(dir: &Locked<Volume>, name: &[u8], inode: &Locked<Volume>) -> Result {
    if inode.is_directory() && !is_empty(inode)? {
        return Err(not_empty());
    }
    let more = 3 + 2 * inode::STORE_CREDITS + orphan::CREDITS;
    let handle = begin(&[dir], 0, more)?;
    remove(&handle, dir, name)?;
    drop_name(&handle, dir, inode)?;
    handle.stop()
}

/// Has a directory that moved name its new parent.
fn set_parent(handle: &Handle, moved: &Inode<Volume>, parent: u32) -> Result {
    let layout = &moved.super_block().volume()?.layout;
    let data = moved.data()?;
    let (_, mut block) = dir::read_block(moved, 0)?;
    let indexed = data.flags() & flags::INDEX != 0 && crate::format::dir::is_index(&block, true);
    let mut bytes = handle.write(&mut block)?;
    dir_edit::set_parent(&mut bytes, parent)
        .and_then(|()| match indexed {
            true => dir_edit::seal_index(layout, &mut bytes, data.seed),
            false => dir_edit::seal(layout, &mut bytes, data.seed),
        })
        .map_err(|what| bad(moved, what))
}

/// Renames, replacing or exchanging what bears the new name.
pub(in crate::fs) fn rename(this: &Rename<'_, Volume>) -> Result {
    let (old_dir, new_dir) = (this.old_dir, this.new_dir);
    let across = old_dir.number() != new_dir.number();
    if dir::is_hidden(new_dir, this.new_name) || dir::is_hidden(old_dir, this.old_name) {
        return Err(EPERM);
    }
    let more = 4 + 6 * inode::STORE_CREDITS + orphan::CREDITS + 4;
    if let Some(target) = this.exchanged {
        for (moved, other, to) in [(this.inode, target, new_dir), (target, this.inode, old_dir)] {
            if across && moved.is_directory() && !other.is_directory() {
                check_links(to)?;
            }
        }
        let handle = begin(&[old_dir, new_dir], 0, more)?;
        replace(&handle, old_dir, this.old_name, target)?;
        replace(&handle, new_dir, this.new_name, this.inode)?;
        if across {
            for (moved, from, to) in [(this.inode, old_dir, new_dir), (target, new_dir, old_dir)] {
                if moved.is_directory() {
                    set_parent(&handle, moved, to.number())?;
                    drop_subdir(from);
                    add_subdir(to);
                }
            }
            inode::store(&handle, old_dir, Part::Attributes)?;
            inode::store(&handle, new_dir, Part::Attributes)?;
        }
        for moved in [this.inode, target] {
            moved.touch(false);
            inode::store(&handle, moved, Part::Attributes)?;
        }
        return handle.stop();
    }
    let directory = this.inode.is_directory();
    if let Some(target) = this.replaced {
        if target.is_directory() && !is_empty(target)? {
            return Err(not_empty());
        }
    } else if directory && across {
        check_links(new_dir)?;
    }
    let handle = begin(&[new_dir, old_dir], u32::from(this.replaced.is_none()), more)?;
    match this.replaced {
        Some(_) => replace(&handle, new_dir, this.new_name, this.inode)?,
        None => add(
            &handle,
            new_dir,
            this.new_name,
            this.inode.number(),
            file_type(this.inode.mode()),
        )?,
    }
    if let Err(error) = remove(&handle, old_dir, this.old_name) {
        // Two names and one link: what is on disk must not become so.
        handle.abort(corrupted());
        return Err(error);
    }
    if let Some(target) = this.replaced {
        drop_name(&handle, new_dir, target)?;
    }
    if directory && across {
        set_parent(&handle, this.inode, new_dir.number())?;
        drop_subdir(old_dir);
        add_subdir(new_dir);
        inode::store(&handle, old_dir, Part::Attributes)?;
        inode::store(&handle, new_dir, Part::Attributes)?;
    }
    this.inode.touch(false);
    inode::store(&handle, this.inode, Part::Attributes)?;
    handle.stop()
}
