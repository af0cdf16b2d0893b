// SPDX-License-Identifier: GPL-2.0

//! Walks the inodes in use of some groups, without a scan of all inodes.

use crate::{
    fs::{
        scan::{self, Next},
        Volume,
    },
    kernel_glue::SuperBlock,
};
use core::ops::Range;
use kernel::prelude::*;

/// A part of a group, up to an inode.
#[derive(Clone, Copy)]
pub(super) enum Slots {
    /// Inodes in use, from the first to the last.
    Used(u32, u32),
    /// Nothing is known up to this inode: the bitmap or the table cannot be read.
    Unread(u32),
}

/// Calls `each` with runs of inodes that are in use, in order. Inodes that are made or freed
/// meanwhile may be left out or included.
///
/// # Errors
///
/// `ENOMEM`, and errors of `each`.
pub(super) fn for_each_used(
    sb: &SuperBlock<Volume>,
    groups: Range<u32>,
    each: &mut dyn FnMut(Slots) -> Result,
) -> Result {
    let per_group = sb.volume()?.inodes_per_group().max(1);
    for group in groups {
        let last = group * per_group + per_group;
        let mut next = group * per_group + 1;
        let _ = scan::read_slots(sb, next, last);
        while next <= last {
            let mut bitmap = Ok(());
            let found = scan::next_used(sb, next, last, &mut bitmap, &mut |_, _| ());
            let run = match found {
                Err(ENOMEM) => return Err(ENOMEM),
                Err(_) => Slots::Unread(last),
                Ok(Next::Nothing) if bitmap.is_err() => Slots::Unread(last),
                Ok(Next::Nothing) => break,
                Ok(Next::Used(first, last)) => Slots::Used(first, last),
                Ok(Next::Doubtful(ino)) => Slots::Used(ino, ino),
            };
            each(run)?;
            let (Slots::Used(_, end) | Slots::Unread(end)) = run;
            next = end.saturating_add(1);
        }
    }
    Ok(())
}
