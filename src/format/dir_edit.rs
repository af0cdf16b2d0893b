// SPDX-License-Identifier: GPL-2.0

//! Modifies linear directory blocks: adds, removes and changes entries, and updates the checksum.
//!
//! An entry is added in the slack of another one, or replaces an unused one. A removed entry
//! becomes slack of the entry before it. So the chain of entries always fills the block.

use super::{
    csum::crc32c,
    dir::{names_end, Entries, HEADER, NAME_LEN, TAIL, TAIL_TYPE},
    superblock::Layout,
    Checked, Corrupt,
};

const SHORT: Corrupt = Corrupt("directory block cut short");

/// Minimum size in bytes of an entry with a name of this length.
pub(super) fn room(name: usize) -> usize {
    (HEADER + name + 3) & !3
}

pub(super) fn put(
    block: &mut [u8],
    offset: usize,
    inode: u32,
    len: usize,
    file_type: u8,
    name: &[u8],
) -> Checked<()> {
    let entry = block.get_mut(offset..offset + len).ok_or(SHORT)?;
    let (header, rest) = entry.split_at_mut_checked(HEADER).ok_or(SHORT)?;
    let [a, b, c, d] = inode.to_le_bytes();
    let [e, f] = (len as u16).to_le_bytes();
    header.copy_from_slice(&[a, b, c, d, e, f, name.len() as u8, file_type]);
    rest.get_mut(..name.len()).ok_or(SHORT)?.copy_from_slice(name);
    Ok(())
}

pub(super) fn set_len(block: &mut [u8], offset: usize, len: usize) -> Checked<()> {
    let field = block.get_mut(offset + 4..offset + 6).ok_or(SHORT)?;
    field.copy_from_slice(&(len as u16).to_le_bytes());
    Ok(())
}

fn set_inode(block: &mut [u8], offset: usize, inode: u32) -> Checked<()> {
    let field = block.get_mut(offset..offset + 4).ok_or(SHORT)?;
    field.copy_from_slice(&inode.to_le_bytes());
    Ok(())
}

/// Returns the file type as this volume stores it: 0 without the filetype feature.
fn typed(layout: &Layout, file_type: u8) -> u8 {
    if layout.features.incompat(super::superblock::incompat::FILETYPE) {
        file_type
    } else {
        0
    }
}

/// Initializes a block without names.
pub(crate) fn clear(layout: &Layout, block: &mut [u8]) -> Checked<()> {
    block.fill(0);
    let len = names_end(layout, block);
    put(block, 0, 0, len, 0, &[])
}

/// Initializes the first block of a new directory.
pub(crate) fn start(layout: &Layout, block: &mut [u8], own: u32, parent: u32) -> Checked<()> {
    block.fill(0);
    let len = names_end(layout, block);
    let directory = typed(layout, 2);
    put(block, 0, own, 12, directory, b".")?;
    put(
        block,
        12,
        parent,
        len.checked_sub(12).ok_or(SHORT)?,
        directory,
        b"..",
    )
}

/// Room for a name in a block; valid as long as the block is not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// Offset of the entry whose slack is used.
    offset: usize,
    /// Bytes that this entry keeps.
    used: usize,
    /// Its length.
    len: usize,
}

/// Finds room for an entry of this name.
pub(crate) fn find_room(layout: &Layout, block: &[u8], name: &[u8]) -> Checked<Option<Room>> {
    if name.is_empty() || name.len() > NAME_LEN {
        return Err(Corrupt("bad directory name"));
    }
    let need = room(name.len());
    let end = names_end(layout, block);
    for entry in Entries::new(layout, block) {
        let entry = entry?;
        let used = if entry.inode == 0 {
            0
        } else {
            room(entry.name.len())
        };
        // An index block that is no longer referenced may have an entry where the checksum belongs.
        let len = entry.len.min(end.saturating_sub(entry.offset));
        if len.saturating_sub(used) >= need {
            return Ok(Some(Room {
                offset: entry.offset,
                used,
                len,
            }));
        }
    }
    Ok(None)
}

/// Adds an entry where [`find_room`] has found room for its name.
pub(crate) fn add_at(
    layout: &Layout,
    block: &mut [u8],
    Room { offset, used, len }: Room,
    name: &[u8],
    inode: u32,
    file_type: u8,
) -> Checked<()> {
    let free = len.checked_sub(used).ok_or(SHORT)?;
    if used > 0 {
        set_len(block, offset, used)?;
    }
    let file_type = typed(layout, file_type);
    put(block, offset + used, inode, free, file_type, name)
}

/// Adds an entry. Returns false if there is no room.
pub(crate) fn add(
    layout: &Layout,
    block: &mut [u8],
    name: &[u8],
    inode: u32,
    file_type: u8,
) -> Checked<bool> {
    match find_room(layout, block, name)? {
        Some(room) => add_at(layout, block, room, name, inode, file_type).map(|()| true),
        None => Ok(false),
    }
}

/// Removes an entry. Returns false if it does not exist.
pub(crate) fn remove(layout: &Layout, block: &mut [u8], name: &[u8]) -> Checked<bool> {
    let mut before: Option<(usize, usize)> = None;
    let mut found = None;
    for entry in Entries::new(layout, block) {
        let entry = entry?;
        if entry.inode != 0 && entry.name == name {
            found = Some((entry.offset, entry.len));
            break;
        }
        before = Some((entry.offset, entry.len));
    }
    let Some((offset, len)) = found else {
        return Ok(false);
    };
    set_inode(block, offset, 0)?;
    if let Some((offset, before)) = before {
        set_len(block, offset, before + len)?;
    }
    Ok(true)
}

/// Points an entry to another inode. Returns false if the entry does not exist.
pub(crate) fn replace(
    layout: &Layout,
    block: &mut [u8],
    name: &[u8],
    inode: u32,
    file_type: u8,
) -> Checked<bool> {
    let mut found = None;
    for entry in Entries::new(layout, block) {
        let entry = entry?;
        if entry.inode != 0 && entry.name == name {
            found = Some(entry.offset);
            break;
        }
    }
    let Some(offset) = found else {
        return Ok(false);
    };
    set_inode(block, offset, inode)?;
    *block.get_mut(offset + 7).ok_or(SHORT)? = typed(layout, file_type);
    Ok(true)
}

/// Points the `..` of a directory's first block to another inode, also in a hashed directory.
pub(crate) fn set_parent(block: &mut [u8], parent: u32) -> Checked<()> {
    if block.get(18..22) != Some(&[2, block.get(19).copied().unwrap_or(0), b'.', b'.']) {
        return Err(Corrupt("directory without .."));
    }
    set_inode(block, 12, parent)
}

/// Updates the checksum at the end of a block of names. `seed` is that of the directory's inode.
pub(crate) fn seal(layout: &Layout, block: &mut [u8], seed: u32) -> Checked<()> {
    if !layout.has_metadata_csum() {
        return Ok(());
    }
    let at = block.len().checked_sub(TAIL).ok_or(SHORT)?;
    let (names, tail) = block.split_at_mut_checked(at).ok_or(SHORT)?;
    let [a, b, c, d] = crc32c(seed, names).to_le_bytes();
    tail.copy_from_slice(&[0, 0, 0, 0, TAIL as u8, 0, 0, TAIL_TYPE, a, b, c, d]);
    Ok(())
}
