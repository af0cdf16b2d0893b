// SPDX-License-Identifier: GPL-2.0

//! Blocks of a directory: reading, changing and appending them.

use crate::{
    format::{self, dir_edit, extent::Extent, htree, inode::flags, Checked, Corrupt},
    fs::{
        alloc::space,
        disk::{
            errors::corrupt_inode,
            inode::{self, Part},
        },
        map::{extent_tree, mapping},
        owners::OwnerKind,
        state::Volume,
    },
    kernel_glue::{is_dying, Buffer, FreshBuffer, Handle, Inode, Locked},
};
use kernel::prelude::*;

/// Blocks of the journal that [`append`] may write.
pub(in crate::fs) const APPEND_CREDITS: u32 = extent_tree::INSERT_CREDITS + 4;

/// Logs damage of a directory and returns the errno for it.
pub(in crate::fs) fn bad(dir: &Inode<Volume>, what: Corrupt) -> Error {
    corrupt_inode(dir.super_block(), dir.number(), None, what)
}

/// Returns true if a directory has an index.
pub(in crate::fs) fn is_indexed(dir: &Inode<Volume>) -> Result<bool> {
    Ok(dir.data()?.flags() & flags::INDEX != 0)
}

/// Returns the number of blocks of a directory, whose size must be a multiple of the block size.
pub(in crate::fs) fn blocks(dir: &Inode<Volume>) -> Result<u32> {
    let layout = &dir.super_block().volume()?.layout;
    let whole = dir.size() % u64::from(layout.block_size.max(1)) == 0;
    match u32::try_from(dir.size() >> layout.block_bits) {
        Ok(blocks) if whole && u64::from(blocks) <= layout.blocks => Ok(blocks),
        _ => Err(bad(dir, Corrupt("bad directory size"))),
    }
}

/// Reads a block of a directory and checks its checksum. Returns its number on the volume, too.
pub(in crate::fs) fn read_block(dir: &Inode<Volume>, block: u32) -> Result<(u64, Buffer<'_>)> {
    let sb = dir.super_block();
    // Holes are not skipped: with a wrong size there could be four billion of them.
    let (place, buffer) =
        mapping::read_block(dir, block)?.ok_or_else(|| bad(dir, Corrupt("hole in a directory")))?;
    if buffer.is_verified() {
        return Ok((place, buffer));
    }
    {
        let bytes = buffer.bytes()?;
        let indexed = is_indexed(dir)? && format::dir::is_index(&bytes, block == 0);
        if !indexed {
            format::dir::verify(&sb.volume()?.layout, &bytes, dir.data()?.seed)
                .map_err(|what| corrupt_inode(sb, dir.number(), Some(place), what))?;
            buffer.set_verified();
        }
    }
    Ok((place, buffer))
}

/// Reads a block as [`read_block`] does, for a task that walks all blocks and has changed nothing.
///
/// # Errors
///
/// `EINTR` if the task was killed: a damaged directory may be very long.
pub(in crate::fs) fn walk_block(dir: &Inode<Volume>, block: u32) -> Result<(u64, Buffer<'_>)> {
    match block > 0 && is_dying() {
        true => Err(EINTR),
        false => read_block(dir, block),
    }
}

/// Reads a block of a directory's index and checks its checksum.
///
/// # Errors
///
/// `EFSCORRUPTED` if the block is beyond the directory or is no index block, `EFSBADCRC` if its
/// checksum is wrong, `EIO`.
pub(in crate::fs) fn read_index(dir: &Inode<Volume>, number: u32) -> Result<Buffer<'_>> {
    let sb = dir.super_block();
    if number >= blocks(dir)? {
        return Err(bad(dir, Corrupt("directory index leads beyond the directory")));
    }
    let (place, buffer) =
        mapping::read_block(dir, number)?.ok_or_else(|| bad(dir, Corrupt("hole in a directory")))?;
    let damaged = |what| corrupt_inode(sb, dir.number(), Some(place), what);
    if number > 0 && !format::dir::is_index(&buffer.bytes()?, false) {
        return Err(damaged(Corrupt("directory index leads to a leaf")));
    }
    if !buffer.is_verified() {
        htree::verify(&sb.volume()?.layout, &buffer.bytes()?, dir.data()?.seed).map_err(damaged)?;
        buffer.set_verified();
    }
    Ok(buffer)
}

/// Reads a leaf that a directory's index leads to.
///
/// # Errors
///
/// `EFSCORRUPTED` if the block is beyond the directory or is an index block, `EFSBADCRC` if its
/// checksum is wrong, `EIO`.
pub(in crate::fs) fn read_leaf(dir: &Inode<Volume>, number: u32) -> Result<(u64, Buffer<'_>)> {
    if number == 0 || number >= blocks(dir)? {
        return Err(bad(dir, Corrupt("directory index leads beyond the directory")));
    }
    let (place, buffer) = read_block(dir, number)?;
    // Without checksums a leaf without names looks the same as an index block.
    if dir.super_block().volume()?.layout.has_metadata_csum()
        && format::dir::is_index(&buffer.bytes()?, false)
    {
        let what = Corrupt("directory index leads to an index block");
        return Err(corrupt_inode(dir.super_block(), dir.number(), Some(place), what));
    }
    Ok((place, buffer))
}

/// Changes a block of names and seals it.
pub(in crate::fs) fn change<T>(
    handle: &Handle,
    dir: &Inode<Volume>,
    block: &mut Buffer<'_>,
    change: impl FnOnce(&mut [u8]) -> Checked<T>,
) -> Result<T> {
    let layout = &dir.super_block().volume()?.layout;
    let seed = dir.data()?.seed;
    let mut bytes = handle.write(block)?;
    let done = change(&mut bytes).map_err(|what| bad(dir, what))?;
    dir_edit::seal(layout, &mut bytes, seed).map_err(|what| bad(dir, what))?;
    Ok(done)
}

/// Appends a zeroed block to a directory or a symbolic link, in the handle. The inode is stored.
///
/// # Errors
///
/// `ENOSPC`, `EFBIG`, `ENOMEM`: nothing was appended.
pub(in crate::fs) fn append<'a>(handle: &Handle, inode: &'a Locked<Volume>) -> Result<Buffer<'a>> {
    let sb = inode.super_block();
    let layout = &sb.volume()?.layout;
    let data = inode.data()?;
    let offset = match inode.is_directory() {
        true => blocks(inode)?,
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
    let goal = mapping::goal(Some(handle), inode, &root, offset)?.block;
    let (start, _) = space::take(handle, inode, goal, 1, kind)?;
    let extent = Extent {
        offset,
        start,
        len: 1,
        unwritten: false,
    };
    let mapped = FreshBuffer::new(sb, start)
        .and_then(|fresh| mapping::insert(handle, inode, &mut root, extent).map(|()| fresh));
    let fresh = match mapped {
        Ok(fresh) => fresh,
        Err(error) => {
            space::give(handle, inode, start, 1, kind, false)?;
            // Entries may have moved to other nodes.
            inode::store(handle, inode, Part::Mapping(&root))?;
            return Err(error);
        }
    };
    let buffer = handle
        .create(fresh)
        .inspect_err(|&error| handle.abort(error))?
        .into_buffer();
    if inode.is_directory() {
        inode.set_size(size);
    }
    inode::store(handle, inode, Part::Mapping(&root))?;
    Ok(buffer)
}

/// Returns new contents of a block, zeroed.
pub(in crate::fs) fn blank(dir: &Inode<Volume>) -> Result<KVec<u8>> {
    let size = dir.super_block().volume()?.layout.block_size as usize;
    Ok(KVec::from_elem(0, size, GFP_KERNEL)?)
}

/// Returns a copy of a block, to be changed.
pub(in crate::fs) fn copy(block: &Buffer<'_>) -> Result<KVec<u8>> {
    let mut bytes = KVec::with_capacity(block.len(), GFP_KERNEL)?;
    bytes.extend_from_slice(&block.bytes()?, GFP_KERNEL)?;
    Ok(bytes)
}

/// Appends a block and writes its contents and those of other blocks. Fails before the first
/// change, as [`append`] does, or aborts the journal.
pub(in crate::fs) fn grow(
    handle: &Handle,
    dir: &Locked<Volume>,
    fresh: &[u8],
    others: &mut [(&mut Buffer<'_>, &[u8])],
) -> Result {
    let mut block = append(handle, dir)?;
    let write = |block: &mut Buffer<'_>, bytes: &[u8]| -> Result {
        let mut open = handle.write(block)?;
        open.get_mut(..bytes.len()).ok_or(EIO)?.copy_from_slice(bytes);
        Ok(())
    };
    let done = write(&mut block, fresh).and_then(|()| {
        others
            .iter_mut()
            .try_for_each(|(block, bytes)| write(block, bytes))
    });
    done.inspect_err(|&error| handle.abort(error))
}
