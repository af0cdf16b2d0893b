// SPDX-License-Identifier: GPL-2.0

//! Journal costs: how many journal blocks a change of a tree file may use.
//!
//! All credits that the trees request are sums of these. A cost is an upper bound; jbd2 reclaims
//! the credits that a handle does not use.

use crate::{
    engine::{node::MAX_LEVELS, owners::owner_nodes_touched},
    kernel_glue::{Credits, Handle},
};

/// Storing the header of a tree file.
pub(crate) const HEADER: u32 = 1;
/// Storing a region's entry of the region table.
pub(crate) const ENTRY: u32 = 1;
/// Changing a space map.
pub(crate) const SPACE_MAP: u32 = 1;
/// Assigning a new generation to a tree.
pub(crate) const GENERATION: u32 = HEADER;
/// Allocating and initializing a node.
pub(crate) const NODE: u32 = SPACE_MAP + 1;
/// Creating an empty tree and installing it.
pub(crate) const EMPTY_TREE: u32 = GENERATION + NODE + ENTRY;
/// Marking a tree stale: storing its entry or, if that fails, the header.
pub(crate) const MARK_STALE: u32 = ENTRY + HEADER;
/// Marking both trees of a region stale.
pub(crate) const MARK_BOTH_STALE: u32 = 2 * MARK_STALE;

/// Number of levels that a change may touch in a tree whose root has this level. The tree may grow
/// by one level while a handle is open.
fn levels(level: u16) -> u16 {
    level.min(MAX_LEVELS as u16) + 1
}

/// One change of an owner: nodes, and the space maps of nodes allocated or freed.
pub(crate) fn owner_change(level: u16) -> u32 {
    let level = levels(level);
    owner_nodes_touched(level) + 2 * u32::from(level) + 3
}

/// `changes` changes of owners in one region, storing the new root, and marking the tree stale if
/// they fail.
pub(crate) fn owner_changes(level: u16, changes: u32) -> u32 {
    changes
        .saturating_mul(owner_change(level).saturating_add(ENTRY))
        .saturating_add(MARK_STALE)
}

/// One change of counts in a tree with `records` records covering or adjacent to the blocks
/// concerned: the leaves that contain these (a third full on average, after merges), the nodes
/// above them, the splits at both ends, and the space maps of nodes allocated or freed.
pub(crate) fn count_change(level: u16, records: u32) -> u32 {
    // With the smallest block size, a leaf has room for 82 records.
    let leaves = records / 27 + 3;
    leaves
        .saturating_mul(4)
        .saturating_add(u32::from(levels(level)) * 8)
        .saturating_add(4)
}

/// One change of counts, storing the new root, and marking both trees stale if it fails.
pub(crate) fn count_change_stored(level: u16, records: u32) -> u32 {
    count_change(level, records).saturating_add(MARK_BOTH_STALE)
}

/// Ensures that a handle has credits for `wanted` blocks, extending it if necessary. Returns false
/// if that is not possible.
pub(crate) fn ensure(handle: &Handle, wanted: u32) -> bool {
    let have = handle.blocks_left();
    have >= wanted
        || matches!(
            handle.extend(Credits {
                blocks: wanted - have,
                revokes: 0,
            }),
            Ok(true)
        )
}
