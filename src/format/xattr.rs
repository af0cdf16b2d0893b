// SPDX-License-Identifier: GPL-2.0

//! The header of a block of extended attributes.
//!
//! Source: `Documentation/filesystems/ext4/attributes.rst`.

use super::{
    csum::{crc32c, crc32c_with_hole},
    superblock::Layout,
    Checked, Corrupt,
};

/// `h_magic`.
pub(crate) const MAGIC: u32 = 0xea02_0000;
/// Where the checksum lies.
const CHECKSUM: usize = 16;

/// Puts the right checksum into a block, which lies at `place` on the volume.
pub(crate) fn seal(layout: &Layout, place: u64, block: &mut [u8]) -> Checked<()> {
    if !layout.has_metadata_csum() {
        return Ok(());
    }
    let sum = crc32c(layout.seed, &place.to_le_bytes());
    let sum = crc32c_with_hole(sum, block, CHECKSUM, 4);
    let field = block.get_mut(CHECKSUM..CHECKSUM + 4);
    field
        .ok_or(Corrupt("attribute block cut short"))?
        .copy_from_slice(&sum.to_le_bytes());
    Ok(())
}
