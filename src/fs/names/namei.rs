// SPDX-License-Identifier: GPL-2.0

//! Adding, removing and renaming names.
//!
//! Each operation is one handle, so that after a crash it happened or did not. [`insert`] describes
//! where a name is added.

use crate::{
    format::{
        dir::{Entries, NAME_LEN},
        dir_edit, htree,
        inode::{flags, BLOCK_BYTES},
        superblock::ro_compat,
        Checked, Corrupt,
    },
    fs::{
        alloc::{ialloc, space},
        disk::inode::{self, Part},
        names::{
            acl,
            dir::{self, Found},
            dir_block::{self, append, bad, change, APPEND_CREDITS},
            insert::{self, Plan},
            orphan, xattr,
        },
        state::Volume,
    },
    kernel_glue::{
        name_too_long, not_empty, too_many_links, AttributeSpace, Blank, Buffer, Handle, Inode, Locked, Make,
        NewInode, Rename, SetMode,
    },
};
use kernel::prelude::*;

/// Maximum number of links of an inode.
pub(in crate::fs) const MAX_LINKS: u32 = 65000;

/// Returns the file type of an entry for an inode with this mode.
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

/// Starts a handle for an operation that adds the planned name, if any, and writes `more` blocks.
fn begin(dirs: &[&Inode<Volume>], plan: Option<&Plan<'_>>, more: u32) -> Result<Handle> {
    let sb = dirs.first().ok_or(EINVAL)?.super_block();
    let volume = sb.volume()?;
    // Each block of a directory may need a node of the mapping.
    let owners = 2 * plan.map_or(0, Plan::appends) + 3;
    let blocks = plan.map_or(0, Plan::credits) + more + space::credits(volume, owners);
    let handle = volume.begin(blocks, xattr::REVOKES)?;
    if dirs.iter().any(|dir| dir.is_dir_sync()) {
        handle.set_sync();
    }
    Ok(handle)
}

/// Finds the block of a name that refers to inode `ino`. Called before the first change, so that
/// nothing is half done if a block of the directory cannot be read.
///
/// Fails with `ENOENT` if the name does not exist, or refers to another inode.
fn find<'a>(dir: &'a Inode<Volume>, name: &[u8], ino: u32) -> Result<Found<'a>> {
    match dir::locate(dir, name)? {
        Some(found) if found.inode == ino => Ok(found),
        _ => Err(ENOENT),
    }
}

/// Modifies the block of a name, and stores the directory with its new times.
fn edit(
    handle: &Handle,
    dir: &Inode<Volume>,
    place: &mut Found<'_>,
    edit: impl FnOnce(&mut [u8]) -> Checked<bool>,
) -> Result {
    if !change(handle, dir, &mut place.block, edit)? {
        return Err(bad(dir, Corrupt("a name that was found is gone")));
    }
    dir.touch(true);
    inode::store(handle, dir, Part::Attributes)
}

fn remove(handle: &Handle, dir: &Inode<Volume>, name: &[u8], mut place: Found<'_>) -> Result {
    let volume = dir.super_block().volume()?;
    edit(handle, dir, &mut place, |bytes| {
        dir_edit::remove(&volume.layout, bytes, name)
    })?;
    volume.name_changed(dir.number(), place.inode, false, false);
    let data = dir.data()?;
    data.set_hint(data.hint().min(place.number));
    Ok(())
}

fn replace(
    handle: &Handle,
    dir: &Inode<Volume>,
    name: &[u8],
    mut place: Found<'_>,
    inode: &Inode<Volume>,
) -> Result {
    let volume = dir.super_block().volume()?;
    let kind = file_type(inode.mode());
    edit(handle, dir, &mut place, |bytes| {
        dir_edit::replace(&volume.layout, bytes, name, inode.number(), kind)
    })?;
    volume.name_changed(dir.number(), place.inode, false, false);
    volume.name_changed(dir.number(), inode.number(), false, true);
    Ok(())
}

/// Keeps the blocks of these inodes in memory, so that storing them cannot fail half way through an
/// operation.
fn pin<const N: usize>(inodes: [&Inode<Volume>; N]) -> Result<[Option<Buffer<'_>>; N]> {
    let mut pins = [const { None }; N];
    for (pin, inode) in pins.iter_mut().zip(inodes) {
        *pin = Some(inode::pin(inode.super_block(), inode.number())?);
    }
    Ok(pins)
}

/// Runs the part of an operation that must be atomic. All resources that it needs have been checked
/// and reserved before. An error aborts the journal, so that a partial change never reaches the
/// disk.
fn whole<T>(handle: &Handle, act: impl FnOnce() -> Result<T>) -> Result<T> {
    act().inspect_err(|&error| handle.abort(error))
}

/// Fails with `EMLINK` if a directory cannot have another subdirectory. With `dir_nlink` there is
/// no limit.
fn check_links(dir: &Inode<Volume>) -> Result {
    let layout = &dir.super_block().volume()?.layout;
    if dir.links() >= MAX_LINKS && !layout.features.ro_compat(ro_compat::DIR_NLINK) {
        return Err(too_many_links());
    }
    Ok(())
}

/// Updates the link count for a new subdirectory of `dir`. A count of 1 means too many to be
/// counted.
fn add_subdir(dir: &Locked<Volume>) {
    match dir.links() {
        ..2 => (),
        MAX_LINKS.. => dir.set_links(1),
        _ => dir.add_link(),
    }
}

/// Updates the link count for a removed subdirectory of `dir`.
fn drop_subdir(dir: &Locked<Volume>) {
    if dir.links() > 2 {
        dir.drop_link();
    }
}

/// Reports that a directory got `.` and `..`, or lost them.
fn note_dots(dir: &Inode<Volume>, parent: u32, added: bool) -> Result {
    let volume = dir.super_block().volume()?;
    for ino in [dir.number(), parent] {
        volume.name_changed(dir.number(), ino, true, added);
    }
    Ok(())
}

/// Creates an inode with a name.
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

/// Creates an inode with a name, including hidden ones.
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
    let plan = insert::plan(dir, name)?;
    let more = ialloc::CREDITS + inode::STORE_CREDITS + APPEND_CREDITS + orphan::CREDITS + xattr::CREDITS;
    // Freed after the handle has ended, whatever fails: it takes handles of its own.
    let mut made = None;
    let handle = begin(&[dir], Some(&plan), more)?;
    let new = made.insert(ialloc::make(&handle, dir, blank, make.device)?);
    let done = furnish(&handle, dir, name, new, make).and_then(|()| {
        insert::add(&handle, dir, name, plan, new.number(), file_type(new.mode()))?;
        if directory {
            note_dots(new, dir.number(), true)?;
            add_subdir(dir);
            inode::store(&handle, dir, Part::Attributes)?;
        }
        Ok(())
    });
    if let Err(error) = done {
        // The orphan file keeps it until it is dropped.
        whole(&handle, || leave_nameless(&handle, new))?;
        handle.stop()?;
        return Err(error);
    }
    handle.stop()?;
    made.ok_or(EIO)
}

/// Creates an inode without a name, which is an orphan until it gets one.
pub(in crate::fs) fn tmpfile(
    dir: &Inode<Volume>,
    blank: Blank<Volume>,
    make: &Make<'_>,
) -> Result<NewInode<Volume>> {
    let more = ialloc::CREDITS + inode::STORE_CREDITS + orphan::CREDITS + xattr::CREDITS;
    let mut made = None;
    let handle = begin(&[dir], None, more)?;
    let new = made.insert(ialloc::make(&handle, dir, blank, make.device)?);
    let done = furnish(&handle, dir, b"", new, make);
    whole(&handle, || leave_nameless(&handle, new))?;
    handle.stop()?;
    done?;
    made.ok_or(EIO)
}

/// Makes a new inode an orphan, which is freed when it is closed or, after a crash, by the next
/// mount.
fn leave_nameless(handle: &Handle, new: &Locked<Volume>) -> Result {
    new.set_links(0);
    orphan::add(handle, new)?;
    inode::store(handle, new, Part::Attributes)
}

/// Stores a new inode with its initial contents, access control lists and security labels.
fn furnish(
    handle: &Handle,
    dir: &Inode<Volume>,
    name: &[u8],
    new: &NewInode<Volume>,
    make: &Make<'_>,
) -> Result {
    fill(handle, dir, new, make)?;
    acl::inherit(handle, new, &make.lists)?;
    if make.labelled {
        new.security_labels(dir, name, &mut |label, value| {
            let space = AttributeSpace::Security;
            xattr::change(handle, new, space, label, Some(value), SetMode::New)
        })?;
    }
    Ok(())
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

/// Adds a name to an inode.
pub(in crate::fs) fn link(inode: &Locked<Volume>, dir: &Locked<Volume>, name: &[u8]) -> Result {
    if inode.links() >= MAX_LINKS {
        return Err(too_many_links());
    }
    if dir::is_hidden(dir, name) {
        return Err(EPERM);
    }
    let plan = insert::plan(dir, name)?;
    let handle = begin(&[dir], Some(&plan), inode::STORE_CREDITS + orphan::CREDITS)?;
    let _pins = pin([inode])?;
    insert::add(&handle, dir, name, plan, inode.number(), file_type(inode.mode()))?;
    whole(&handle, || {
        // A file that had no name (O_TMPFILE) is no longer an orphan.
        if inode.links() == 0 {
            orphan::remove(&handle, inode)?;
            inode.set_links(1);
        } else {
            inode.add_link();
        }
        inode.touch(false);
        inode::store(&handle, inode, Part::Attributes)
    })?;
    handle.stop()
}

/// Returns whether a directory has no entries except `.` and `..`.
fn is_empty(dir: &Inode<Volume>) -> Result<bool> {
    let layout = &dir.super_block().volume()?.layout;
    for number in 0..dir_block::blocks(dir)? {
        let (_, block) = dir_block::walk_block(dir, number)?;
        for entry in Entries::new(layout, &block.bytes()?) {
            let entry = entry.map_err(|what| bad(dir, what))?;
            if entry.inode != 0 && !matches!(entry.name, b"." | b"..") {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Returns true if removing one name of an inode removes its last one.
fn loses_last_name(inode: &Inode<Volume>) -> bool {
    inode.is_directory() || inode.links() <= 1
}

/// Updates an inode in a handle that has removed one of its names. If that was the last one, the
/// inode has already been recorded as an orphan.
fn drop_name(handle: &Handle, dir: &Locked<Volume>, inode: &Locked<Volume>) -> Result {
    if inode.is_directory() {
        inode.set_links(0);
        note_dots(inode, dir.number(), false)?;
        drop_subdir(dir);
        inode::store(handle, dir, Part::Attributes)?;
    } else {
        inode.drop_link();
    }
    inode.touch(false);
    inode::store(handle, inode, Part::Attributes)
}

/// Removes a name, of an empty directory or of any other inode.
pub(in crate::fs) fn unlink(dir: &Locked<Volume>, name: &[u8], inode: &Locked<Volume>) -> Result {
    if inode.is_directory() && !is_empty(inode)? {
        return Err(not_empty());
    }
    let more = 3 + 2 * inode::STORE_CREDITS + orphan::CREDITS;
    let handle = begin(&[dir], None, more)?;
    let place = find(dir, name, inode.number())?;
    let _pins = pin([dir, inode])?;
    if loses_last_name(inode) {
        orphan::add(&handle, inode)?;
    }
    whole(&handle, || {
        remove(&handle, dir, name, place)?;
        drop_name(&handle, dir, inode)
    })?;
    handle.stop()
}

/// The first block of a directory that moves to another one, as it is and as it will be.
struct Parent<'a> {
    block: Buffer<'a>,
    bytes: KVec<u8>,
}

impl<'a> Parent<'a> {
    /// Reads and checks the block, and prepares its new bytes, which name the new parent.
    fn prepare(moved: &'a Inode<Volume>, parent: u32) -> Result<Parent<'a>> {
        let layout = &moved.super_block().volume()?.layout;
        let data = moved.data()?;
        let indexed = dir_block::is_indexed(moved)?;
        let block = match indexed {
            true => dir_block::read_index(moved, 0)?,
            false => dir_block::read_block(moved, 0)?.1,
        };
        let mut bytes = dir_block::copy(&block)?;
        for entry in Entries::new(layout, &bytes).take(2) {
            entry.map_err(|what| bad(moved, what))?;
        }
        dir_edit::set_parent(&mut bytes, parent)
            .and_then(|()| match indexed {
                true => htree::seal(layout, &mut bytes, data.seed),
                false => dir_edit::seal(layout, &mut bytes, data.seed),
            })
            .map_err(|what| bad(moved, what))?;
        Ok(Parent { block, bytes })
    }

    fn write(&mut self, handle: &Handle) -> Result {
        handle.write(&mut self.block)?.copy_from_slice(&self.bytes);
        Ok(())
    }
}

/// Reports that `..` of a directory leads to another one.
fn note_moved(moved: &Inode<Volume>, from: &Inode<Volume>, to: &Inode<Volume>) -> Result {
    let volume = moved.super_block().volume()?;
    volume.name_changed(moved.number(), from.number(), true, false);
    volume.name_changed(moved.number(), to.number(), true, true);
    Ok(())
}

/// Number of journal credits for a rename, in addition to those for the new name.
const RENAME_CREDITS: u32 =
    4 + 6 * inode::STORE_CREDITS + 2 * orphan::CREDITS + ialloc::CREDITS + inode::STORE_CREDITS + 4;

/// Renames an inode; the new name is replaced or exchanged if it exists.
pub(in crate::fs) fn rename(this: &Rename<'_, Volume>) -> Result {
    let (old_dir, new_dir) = (this.old_dir, this.new_dir);
    if dir::is_hidden(new_dir, this.new_name) || dir::is_hidden(old_dir, this.old_name) {
        return Err(EPERM);
    }
    if let Some(target) = this.exchanged {
        return exchange(this, target);
    }
    let moves = this.inode.is_directory() && old_dir.number() != new_dir.number();
    if let Some(target) = this.replaced {
        if target.is_directory() && !is_empty(target)? {
            return Err(not_empty());
        }
    } else if moves {
        check_links(new_dir)?;
    }
    if this.replaced.is_some()
        && this.inode.is_file()
        && new_dir.super_block().volume()?.options().has_auto_da_alloc()
    {
        // A program that replaces a file this way expects either the old or the new contents after
        // a crash, not an empty file.
        this.inode.write_out(0..u64::MAX)?;
    }
    let plan = match this.replaced {
        Some(_) => None,
        None => Some(insert::plan(new_dir, this.new_name)?),
    };
    let mut whiteout = None;
    let handle = begin(&[new_dir, old_dir], plan.as_ref(), RENAME_CREDITS)?;
    let mut old_place = find(old_dir, this.old_name, this.inode.number())?;
    let mut parent = match moves {
        true => Some(Parent::prepare(this.inode, new_dir.number())?),
        false => None,
    };
    let _pins = pin([
        old_dir,
        new_dir,
        this.inode,
        this.replaced.map_or(this.inode, |target| target),
    ])?;
    let target_place = match this.replaced {
        Some(target) => Some(find(new_dir, this.new_name, target.number())?),
        None => None,
    };
    if let Some(blank) = this.whiteout {
        whiteout = Some(ialloc::make(&handle, old_dir, blank()?, 0)?);
    }
    let reserved = || -> Result<bool> {
        if let Some(whiteout) = &whiteout {
            inode::store(&handle, whiteout, Part::New(&whiteout.data()?.root.read()))?;
        }
        if let Some(target) = this.replaced {
            if loses_last_name(target) {
                orphan::add(&handle, target)?;
            }
        }
        let (ino, kind) = (this.inode.number(), file_type(this.inode.mode()));
        match plan {
            Some(plan) => insert::add(&handle, new_dir, this.new_name, plan, ino, kind),
            None => Ok(false),
        }
    };
    let names_moved = match reserved() {
        Ok(moved) => moved,
        Err(error) => {
            if let Some(whiteout) = &whiteout {
                whole(&handle, || leave_nameless(&handle, whiteout))?;
            }
            handle.stop()?;
            return Err(error);
        }
    };
    whole(&handle, || {
        if names_moved && old_dir.number() == new_dir.number() {
            // The old name may have gone to another block to make room for the new one.
            old_place = find(old_dir, this.old_name, this.inode.number())?;
        }
        if let Some(place) = target_place {
            replace(&handle, new_dir, this.new_name, place, this.inode)?;
        }
        // The new name may be in the block of the old one, which is the same buffer.
        match &whiteout {
            Some(whiteout) => replace(&handle, old_dir, this.old_name, old_place, whiteout)?,
            None => remove(&handle, old_dir, this.old_name, old_place)?,
        }
        if let Some(target) = this.replaced {
            drop_name(&handle, new_dir, target)?;
        }
        if let Some(parent) = &mut parent {
            parent.write(&handle)?;
            note_moved(this.inode, old_dir, new_dir)?;
            drop_subdir(old_dir);
            add_subdir(new_dir);
            inode::store(&handle, old_dir, Part::Attributes)?;
            inode::store(&handle, new_dir, Part::Attributes)?;
        }
        this.inode.touch(false);
        inode::store(&handle, this.inode, Part::Attributes)
    })?;
    handle.stop()?;
    drop(whiteout.map(NewInode::publish));
    Ok(())
}

/// Exchanges two names.
fn exchange(this: &Rename<'_, Volume>, target: &Inode<Volume>) -> Result {
    let (old_dir, new_dir) = (this.old_dir, this.new_dir);
    let across = old_dir.number() != new_dir.number();
    for (moved, other, to) in [(this.inode, target, new_dir), (target, this.inode, old_dir)] {
        if across && moved.is_directory() && !other.is_directory() {
            check_links(to)?;
        }
    }
    let handle = begin(&[old_dir, new_dir], None, RENAME_CREDITS)?;
    let old_place = find(old_dir, this.old_name, this.inode.number())?;
    let new_place = find(new_dir, this.new_name, target.number())?;
    let mut parents = [None, None];
    for (parent, (moved, to)) in parents.iter_mut().zip([(this.inode, new_dir), (target, old_dir)]) {
        if across && moved.is_directory() {
            *parent = Some(Parent::prepare(moved, to.number())?);
        }
    }
    let _pins = pin([old_dir, new_dir, this.inode, target])?;
    whole(&handle, || {
        replace(&handle, old_dir, this.old_name, old_place, target)?;
        replace(&handle, new_dir, this.new_name, new_place, this.inode)?;
        let moves = [(this.inode, old_dir, new_dir), (target, new_dir, old_dir)];
        for (parent, (moved, from, to)) in parents.iter_mut().zip(moves) {
            if let Some(parent) = parent {
                parent.write(&handle)?;
                note_moved(moved, from, to)?;
                drop_subdir(from);
                add_subdir(to);
            }
        }
        for changed in [old_dir, new_dir] {
            inode::store(&handle, changed, Part::Attributes)?;
        }
        for moved in [this.inode, target] {
            moved.touch(false);
            inode::store(&handle, moved, Part::Attributes)?;
        }
        Ok(())
    })?;
    handle.stop()
}
