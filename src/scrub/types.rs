// SPDX-License-Identifier: GPL-2.0

//! The table of scrub types.

use super::{bitmap, inode, inode_bitmap, links, refcount, rmap, run::ScrubType};

/// All scrub types, each after the types that it depends on.
pub(super) static TYPES: [&ScrubType; 6] = [
    &inode_bitmap::TYPE,
    &bitmap::TYPE,
    &rmap::TYPE,
    &refcount::TYPE,
    &inode::TYPE,
    &links::TYPE,
];

/// Returns the scrub type with this `REXT4_SCRUB_TYPE_` number.
pub(super) fn of_number(number: u32) -> Option<&'static ScrubType> {
    TYPES.into_iter().find(|kind| kind.number == number)
}
