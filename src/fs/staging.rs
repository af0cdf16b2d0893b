// SPDX-License-Identifier: GPL-2.0

//! The blocks of all inodes of a volume that are reserved until their data is on disk: staged for
//! copy-on-write, or reserved for holes of files without extents. In memory only.
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
    /// They are reserved only in memory, for a hole of a file without extents; on disk they are
    /// free.
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
pub(in crate::fs) struct Staging(RBTree<Key, Piece>);

impl Staging {
    pub(in crate::fs) fn new() -> Staging {
        Staging(RBTree::new())
    }

    /// Adds a piece that starts at file block `offset` of an inode. It must not overlap existing
    /// ones.
    pub(in crate::fs) fn insert(&mut self, spare: Spare, ino: u32, offset: u32, piece: Piece) {
        self.0.insert(spare.into_node((ino, offset), piece));
    }

    /// Removes the piece that starts at file block `offset` of an inode.
    pub(in crate::fs) fn remove(&mut self, ino: u32, offset: u32) {
        self.0.remove(&(ino, offset));
    }

    /// Returns the piece of an inode that contains file block `block`, or else the next one after
    /// it.
    pub(in crate::fs) fn find(&self, ino: u32, block: u32) -> Option<Stretch> {
        let part = |(key, piece): (&Key, &Piece)| {
            let part = Stretch {
                offset: key.1,
                piece: *piece,
            };
            (key.0 == ino).then_some(part)
        };
        let covers = |part: &Stretch| part.end() > u64::from(block);
        match self.0.cursor_lower_bound(&(ino, block)) {
            Some(cursor) => {
                let before = cursor.peek_prev().and_then(part).filter(covers);
                before.or_else(|| part(cursor.current()))
            }
            None => {
                let last = self.0.cursor_back()?;
                let found = part(last.current()).filter(covers);
                found
            }
        }
    }

    /// Returns the first inode, starting at `ino`, that has any pieces.
    pub(in crate::fs) fn next_inode(&self, ino: u32) -> Option<u32> {
        Some(self.0.cursor_lower_bound(&(ino, 0))?.current().0 .0)
    }

    /// Removes a part of a piece, or marks it as issued.
    pub(in crate::fs) fn split(&mut self, ino: u32, part: Stretch, issued: bool, spare: [Spare; 3]) {
        let Some(whole) = self
            .find(ino, part.offset)
            .filter(|whole| whole.offset <= part.offset)
        else {
            return;
        };
        self.0.remove(&(ino, whole.offset));
        let [first, second, third] = spare;
        let mut put = |part: Option<Stretch>, spare: Spare| {
            if let Some(part) = part {
                self.0.insert(spare.into_node((ino, part.offset), part.piece));
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

/// Preallocated memory for one more piece.
pub(in crate::fs) type Spare = RBTreeNodeReservation<Key, Piece>;
