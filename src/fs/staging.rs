// SPDX-License-Identifier: GPL-2.0

//! The blocks of all inodes of a volume that are reserved until their data is on disk: staged for
//! copy-on-write, or reserved for holes. In memory only.
//!
//! All of them are in one tree, ordered by inode and file block. This file contains only the data
//! structure; [`crate::fs::data::cow`] describes its use.

use kernel::rbtree::{RBTree, RBTreeNodeReservation};

/// Staged blocks for a range of a file.
#[derive(Clone, Copy)]
pub(in crate::fs) struct Piece {
    /// First block on the volume.
    pub(in crate::fs) start: u64,
    /// Number of blocks.
    pub(in crate::fs) len: u32,
    /// Direct I/O to them has been issued, or is about to be.
    pub(in crate::fs) issued: bool,
    /// They are reserved only in memory, for a hole; on disk they are free.
    pub(in crate::fs) reserved: bool,
}

/// A range of a file, in blocks, and the blocks staged for it.
#[derive(Clone, Copy)]
pub(in crate::fs) struct Stretch {
    pub(in crate::fs) offset: u32,
    pub(in crate::fs) piece: Piece,
}

impl Stretch {
    pub(in crate::fs) fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.piece.len)
    }

    /// Returns the part within `from..to`.
    pub(in crate::fs) fn within(&self, from: u32, to: u64) -> Option<Stretch> {
        let first = self.offset.max(from);
        let len = self.end().min(to).checked_sub(u64::from(first))?;
        let piece = Piece {
            start: self.piece.start + u64::from(first - self.offset),
            len: u32::try_from(len).ok().filter(|&len| len > 0)?,
            ..self.piece
        };
        Some(Stretch { offset: first, piece })
    }
}

/// Inode number and file block.
pub(in crate::fs) type Key = (u32, u32);

/// The staged blocks of a volume's inodes.
pub(in crate::fs) struct Staging {
    tree: RBTree<Key, Piece>,
    /// Number of reserved pieces.
    reserved: usize,
}

impl Staging {
    pub(in crate::fs) fn new() -> Staging {
        Staging {
            tree: RBTree::new(),
            reserved: 0,
        }
    }

    /// Adds a piece that starts at file block `offset` of an inode. It must not overlap existing
    /// ones.
    pub(in crate::fs) fn insert(&mut self, spare: Spare, ino: u32, offset: u32, piece: Piece) {
        self.reserved += usize::from(piece.reserved);
        self.tree.insert(spare.into_node((ino, offset), piece));
    }

    /// Adds reserved blocks from file block `offset` on to the piece in front of them, if that is
    /// reserved as well and ends there, in the file and on the volume. Returns false otherwise.
    pub(in crate::fs) fn extend(&mut self, ino: u32, offset: u32, start: u64, len: u32) -> bool {
        let Some(Stretch { offset: first, piece }) = self.before(ino, offset) else {
            return false;
        };
        let joins = piece.reserved
            && !piece.issued
            && offset - first == piece.len
            && piece.start + u64::from(piece.len) == start;
        let Some(len) = piece.len.checked_add(len).filter(|_| joins) else {
            return false;
        };
        match self.tree.get_mut(&(ino, first)) {
            Some(piece) => piece.len = len,
            None => return false,
        }
        true
    }

    /// Returns the number of reserved pieces.
    pub(in crate::fs) fn reserved(&self) -> usize {
        self.reserved
    }

    /// Removes the piece that starts at file block `offset` of an inode.
    pub(in crate::fs) fn remove(&mut self, ino: u32, offset: u32) {
        if let Some(piece) = self.tree.remove(&(ino, offset)) {
            self.reserved -= usize::from(piece.reserved);
        }
    }

    /// Returns the piece of an inode that contains file block `block`, or else the next one after
    /// it.
    pub(in crate::fs) fn find(&self, ino: u32, block: u32) -> Option<Stretch> {
        let before = self.before(ino, block);
        if let Some(part) = before.filter(|part| part.end() > u64::from(block)) {
            return Some(part);
        }
        let next = self.tree.cursor_lower_bound(&(ino, block))?;
        part_of(ino, next.current())
    }

    /// Returns the last piece of an inode that begins before file block `block`.
    pub(in crate::fs) fn before(&self, ino: u32, block: u32) -> Option<Stretch> {
        match self.tree.cursor_lower_bound(&(ino, block)) {
            Some(cursor) => part_of(ino, cursor.peek_prev()?),
            None => part_of(ino, self.tree.cursor_back()?.current()),
        }
    }

    /// Returns the reserved piece of an inode that contains file block `from`, or else the next one
    /// before `to`.
    pub(in crate::fs) fn find_reserved(&self, ino: u32, from: u32, to: u64) -> Option<Stretch> {
        let mut at = from;
        loop {
            let part = self.find(ino, at).filter(|part| u64::from(part.offset) < to)?;
            if part.piece.reserved {
                return Some(part);
            }
            at = u32::try_from(part.end()).ok()?;
        }
    }

    /// Returns the first inode, starting at `ino`, that has any pieces.
    pub(in crate::fs) fn next_inode(&self, ino: u32) -> Option<u32> {
        Some(self.tree.cursor_lower_bound(&(ino, 0))?.current().0 .0)
    }

    /// Removes a part of a piece, or marks it as issued.
    pub(in crate::fs) fn split(&mut self, ino: u32, part: Stretch, issued: bool, spare: [Spare; 3]) {
        let Some(whole) = self
            .find(ino, part.offset)
            .filter(|whole| whole.offset <= part.offset)
        else {
            return;
        };
        self.remove(ino, whole.offset);
        let [first, second, third] = spare;
        let mut put = |part: Option<Stretch>, spare: Spare| {
            if let Some(part) = part {
                self.insert(spare, ino, part.offset, part.piece);
            }
        };
        put(whole.within(whole.offset, part.offset.into()), first);
        let behind = u32::try_from(part.end()).ok();
        put(
            behind.and_then(|behind| whole.within(behind, whole.end())),
            second,
        );
        let issued = issued.then_some(Stretch {
            piece: Piece {
                issued: true,
                ..part.piece
            },
            ..part
        });
        put(issued, third);
    }
}

/// Returns the piece of an entry of the tree, if it is the inode's.
fn part_of(ino: u32, (key, piece): (&Key, &Piece)) -> Option<Stretch> {
    let part = Stretch {
        offset: key.1,
        piece: *piece,
    };
    (key.0 == ino).then_some(part)
}

/// Preallocated memory for one more piece.
pub(in crate::fs) type Spare = RBTreeNodeReservation<Key, Piece>;
