// SPDX-License-Identifier: GPL-2.0

//! Checksums: crc32c of the metadata_csum feature, crc16 of the older descriptor checksum.
//!
//! ext4 uses the raw crc32c: it starts from all ones (or from a seed computed over preceding bytes)
//! and is not inverted at the end. If a structure contains its own checksum, that field is taken as
//! zero.

/// Continues the crc32c `seed` over `data`.
pub(crate) use crate::kernel_glue::crc32c;

/// Initial value of the crc32c.
pub(crate) const START: u32 = !0;

/// Continues `seed` over `data`, with the `width` bytes at `hole` taken as zero.
pub(crate) fn crc32c_with_hole(seed: u32, data: &[u8], hole: usize, width: usize) -> u32 {
    let (head, rest) = data.split_at(hole.min(data.len()));
    let tail = rest.get(width..).unwrap_or(&[]);
    let zeros = [0u8; 4];
    let sum = crc32c(seed, head);
    let sum = crc32c(sum, zeros.get(..width).unwrap_or(&zeros));
    crc32c(sum, tail)
}

/// Continues a crc16 (polynomial 0x8005, reflected) over `data`.
pub(crate) fn crc16(seed: u16, data: &[u8]) -> u16 {
    let mut crc = seed;
    for &byte in data {
        crc ^= u16::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 != 0 {
                (crc >> 1) ^ 0xa001
            } else {
                crc >> 1
            };
        }
    }
    crc
}
