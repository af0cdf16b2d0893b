// SPDX-License-Identifier: GPL-2.0

//! Access control lists as stored in attributes: a version, then entries. Only an entry for a named
//! user or group has an id.
//!
//! Source: `fs/ext4/acl.h`.

use super::{ensure, Checked, Corrupt};

/// `a_version`.
const VERSION: u32 = 1;

/// `e_tag`: the subject of an entry.
const USER_OBJ: u16 = 0x1;
const USER: u16 = 0x2;
const GROUP_OBJ: u16 = 0x4;
const GROUP: u16 = 0x8;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// An entry of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The subject, with the same numbers as in the VFS.
    pub(crate) tag: u16,
    /// Three bits: read, write, execute.
    pub(crate) permissions: u16,
    /// User or group id, for a named user or group.
    pub(crate) id: Option<u32>,
}

impl Entry {
    /// Returns the on-disk entry and its length in bytes.
    pub(crate) fn encode(&self) -> ([u8; 8], usize) {
        let ([a, b], [c, d]) = (self.tag.to_le_bytes(), self.permissions.to_le_bytes());
        let named = matches!(self.tag, USER | GROUP);
        let [e, f, g, h] = self.id.unwrap_or(0).to_le_bytes();
        ([a, b, c, d, e, f, g, h], if named { 8 } else { 4 })
    }
}

/// The header of a list.
pub(crate) const HEADER: [u8; 4] = VERSION.to_le_bytes();

/// Iterates over the entries of a list and ends after the first error. Whether the entries form a
/// valid list is not checked.
pub(crate) fn entries(value: &[u8]) -> Checked<impl Iterator<Item = Checked<Entry>> + '_> {
    let (version, rest) = value
        .split_first_chunk()
        .ok_or(Corrupt("access list cut short"))?;
    ensure(u32::from_le_bytes(*version) == VERSION, "bad access list version")?;
    let mut rest = Some(rest);
    Ok(core::iter::from_fn(move || {
        let bytes = rest.take().filter(|bytes| !bytes.is_empty())?;
        match first(bytes) {
            Ok((entry, more)) => {
                rest = Some(more);
                Some(Ok(entry))
            }
            Err(what) => Some(Err(what)),
        }
    }))
}

fn first(bytes: &[u8]) -> Checked<(Entry, &[u8])> {
    let short = Corrupt("access list cut short");
    let (&[a, b, c, d], rest) = bytes.split_first_chunk().ok_or(short)?;
    let (tag, permissions) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
    ensure(permissions <= 7, "bad permissions in an access list")?;
    let (id, rest) = match tag {
        USER | GROUP => {
            let (id, rest) = rest.split_first_chunk().ok_or(short)?;
            (Some(u32::from_le_bytes(*id)), rest)
        }
        USER_OBJ | GROUP_OBJ | MASK | OTHER => (None, rest),
        _ => return Err(Corrupt("bad entry of an access list")),
    };
    let entry = Entry { tag, permissions, id };
    Ok((entry, rest))
}
