// SPDX-License-Identifier: GPL-2.0

//! Dividing a volume into regions, and cutting runs of blocks at their boundaries.

use kernel::prelude::*;

#[kunit_tests(rext4_rmap)]
mod tests {
    use crate::{
        engine::record::{Kind, Rmap},
        format::{
            superblock::{Features, Layout},
            tree_file::Frame,
        },
        fs::space::{Owner, OwnerKind},
        trees::region::{cut, frame, locate},
    };
    use kernel::prelude::*;

    fn layout(blocks: u64, blocks_per_group: u32, flex_bits: u8, first_data_block: u32) -> Layout {
        Layout {
            features: Features {
                compat: 0,
                incompat: 0,
                ro_compat: 0,
            },
            block_size: if first_data_block == 1 { 1024 } else { 4096 },
            block_bits: if first_data_block == 1 { 10 } else { 12 },
            blocks,
            first_data_block,
            blocks_per_group,
            groups: 1,
            inodes: 8192,
            inodes_per_group: 8192,
            first_inode: 11,
            inode_size: 256,
            desc_size: 64,
            desc_blocks: 1,
            reserved_gdt_blocks: 0,
            first_meta_bg: None,
            backup_groups: None,
            flex_bits,
            seed: 0xdead_beef,
            uuid: [7; 16],
            journal_inode: 8,
            orphan_inode: 0,
            hash_seed: [0; 4],
            hash_version: 1,
            hash_unsigned: true,
        }
    }

    /// Returns the pieces into which an owner's blocks are cut.
    fn pieces(frame: &Frame, start: u64, len: u32, kind: OwnerKind) -> Result<KVVec<(u32, Rmap)>> {
        let mut all = KVVec::new();
        cut(
            frame,
            start,
            len,
            Owner { ino: 12, kind },
            &mut |region, record| Ok(all.push((region, record), GFP_KERNEL)?),
        )?;
        Ok(all)
    }

    const DATA: OwnerKind = OwnerKind::Data {
        offset: 1000,
        unwritten: true,
    };

    #[test]
    fn regions_of_ordinary_volumes() {
        let with_flex = frame(&layout(1 << 20, 32768, 4, 0));
        assert_eq!(with_flex.region_blocks, 16 * 32768);
        assert_eq!(with_flex.regions, 2);
        assert_eq!(with_flex.seed, 0xdead_beef);
        assert_eq!(with_flex.uuid, [7; 16]);
        // Without flex groups, the same number of groups forms a region.
        assert!(frame(&layout(1 << 20, 32768, 0, 0)) == with_flex);
        // Blocks of 1 KiB: the first block is in no group and in no region.
        let small = frame(&layout(16 * 8192 + 1, 8192, 4, 1));
        assert_eq!((small.first_block, small.regions), (1, 1));
        assert_eq!(locate(&small, 0), None);
        assert_eq!(locate(&small, 1), Some((0, 0)));
        assert_eq!(frame(&layout(16 * 8192 + 2, 8192, 4, 1)).regions, 2);
    }

    #[test]
    fn regions_of_odd_volumes() {
        // A flex group larger than the volume.
        for flex_bits in [16, 31, 32, 255] {
            let huge = frame(&layout(1 << 20, 32768, flex_bits, 0));
            assert_eq!((huge.region_blocks, huge.regions), (1 << 28, 1));
        }
        // One group per region, the last of which has few blocks.
        let single = frame(&layout(32768 * 5 + 9, 32768, 0, 0));
        assert_eq!(single.regions, 1);
        let tiny = frame(&layout(256 * 100 + 9, 256, 1, 0));
        assert_eq!((tiny.region_blocks, tiny.regions), (512, 51));
        assert_eq!(locate(&tiny, 256 * 100 + 8), Some((50, 8)));
        assert_eq!(locate(&tiny, 512 * 51), None);
        // The largest possible volume: 2^48 blocks.
        let large = frame(&layout(1 << 48, 32768, 4, 0));
        assert_eq!(large.regions, 1 << 29);
        assert_eq!(
            locate(&large, (1 << 48) - 1),
            Some(((1 << 29) - 1, (1 << 19) - 1))
        );
        assert_eq!(locate(&large, 1 << 48), None);
        assert_eq!(locate(&large, u64::MAX), None);
        // No blocks, and values that the superblock checks would reject.
        assert_eq!(frame(&layout(0, 32768, 4, 0)).regions, 0);
        assert_eq!(frame(&layout(10, 0, 4, 0)).regions, 10);
        assert_eq!(locate(&frame(&layout(10, 0, 4, 0)), 9), Some((9, 0)));
    }

    #[test]
    fn blocks_within_a_region_stay_whole() -> Result {
        let frame = frame(&layout(1 << 20, 32768, 4, 0));
        for start in [0, 1 << 18, (1 << 19) - 100, 1 << 19, (1 << 20) - 100] {
            let all = pieces(&frame, start, 100, DATA)?;
            let (region, record) = *all.first().ok_or(EINVAL)?;
            assert_eq!(all.len(), 1);
            assert_eq!(u64::from(region) * (1 << 19) + u64::from(record.start), start);
            assert_eq!((record.len, record.owner, record.offset), (100, 12, 1000));
            assert!(record.kind == Kind::Data && record.unwritten);
        }
        assert!(pieces(&frame, 5, 0, DATA)?.is_empty());
        Ok(())
    }

    #[test]
    fn blocks_are_cut_at_borders() -> Result {
        for first in [0, 1] {
            let frame = frame(&layout(512 * 20 + u64::from(first), 256, 1, first));
            for (kind, steps) in [(DATA, 1), (OwnerKind::Mapping, 0), (OwnerKind::Attributes, 0)] {
                for (start, len) in [
                    (0, 512),
                    (511, 2),
                    (1, 512),
                    (300, 5000),
                    (0, 512 * 20),
                    (512, 1024),
                ] {
                    let start = start + u64::from(first);
                    let all = pieces(&frame, start, len, kind)?;
                    let mut next = start;
                    let mut wrong = 0;
                    for (region, record) in all.iter() {
                        let at = u64::from(first) + u64::from(region * 512 + record.start);
                        let before = (next - start) as u32;
                        let offset = if steps == 1 { 1000 + before } else { 0 };
                        let is_right = at == next
                            && record.len > 0
                            && record.start + record.len <= 512
                            && record.offset == offset
                            && record.unwritten == (steps == 1)
                            && record.owner == 12;
                        wrong += u32::from(!is_right);
                        next += u64::from(record.len);
                    }
                    assert_eq!(wrong, 0);
                    assert_eq!(next, start + u64::from(len));
                    let borders = (start - u64::from(first) + u64::from(len) - 1) / 512;
                    let inside = borders - (start - u64::from(first)) / 512;
                    assert_eq!(all.len() as u64, inside + 1);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn blocks_outside_are_refused() {
        let frame = frame(&layout(512 * 20 + 1, 256, 1, 1));
        assert!(pieces(&frame, 0, 1, DATA).is_err());
        assert!(pieces(&frame, 512 * 20 + 1, 1, DATA).is_err());
        assert!(pieces(&frame, 512 * 20, 2, DATA).is_err());
        assert!(pieces(&frame, u64::MAX, 1, DATA).is_err());
        // An offset beyond any file.
        let kind = OwnerKind::Data {
            offset: u32::MAX - 100,
            unwritten: false,
        };
        assert!(pieces(&frame, 412, 200, kind).is_err());
        assert!(pieces(&frame, 412, 100, kind).is_ok());
    }
}
