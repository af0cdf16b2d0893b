// SPDX-License-Identifier: GPL-2.0

//! Block pointers of files without extents, and the limits of small inodes.

use crate::format::{
    indirect::{self, root_slot, way, DIRECT, SLOTS},
    inode::{self, Time},
    superblock::{ro_compat, Layout, RawSuper},
};
use zerocopy::FromZeros;

/// Returns the first file block that a path leads to.
fn block_of(bits: u32, way: &indirect::Way) -> u64 {
    let (first, _, levels) = root_slot(bits, way.slot(0));
    assert_eq!(levels, way.levels);
    let below: u64 = (1..=way.levels)
        .map(|level| u64::from(way.slot(level)) * way.each(bits, level))
        .sum();
    first + below
}

#[test]
fn each_block_has_a_way_of_its_own() {
    for bits in [8, 9, 10] {
        let mut next = 0;
        for slot in 0..SLOTS {
            let (first, all, _) = root_slot(bits, slot);
            assert_eq!(first, next);
            next += all;
        }
        let mut blocks: Vec<u64> = (0..SLOTS)
            .flat_map(|slot| {
                let (first, all, _) = root_slot(bits, slot);
                [first, first + 1, first + all / 2, first + all - 1]
            })
            .chain((0..2000).map(|step| step * (next / 2000)))
            .collect();
        blocks.retain(|&block| block < next);
        for block in blocks {
            let found = way(bits, block as u32).unwrap();
            assert_eq!(block_of(bits, &found), block);
            // All blocks within reach have their pointers in the same table, and the next one does
            // not.
            let reach = found.reach(bits);
            let last = way(bits, block as u32 + reach - 1).unwrap();
            assert_eq!(last.slots[..last.levels], found.slots[..found.levels]);
            assert_eq!(last.reach(bits), 1);
        }
        assert_eq!(way(bits, next as u32), None);
        assert_eq!(way(bits, u32::MAX), None);
    }
    assert_eq!(way(10, DIRECT).unwrap().slots, [12, 0, 0, 0]);
    assert_eq!(way(10, 12 + 1024).unwrap().slots, [13, 0, 0, 0]);
}

#[test]
fn files_are_as_long_as_with_stock_ext4() {
    // The maximum offsets of lseek(2) on volumes mounted by stock ext4.
    assert_eq!(indirect::max_size(10, true), 17_247_252_480);
    assert_eq!(indirect::max_size(12, true), 4_402_345_721_856);
    assert_eq!(indirect::max_size(12, false), 2_196_873_666_560);
    assert_eq!(inode::max_size(12, true), 0xffff_ffff << 12);
    assert_eq!(inode::max_size(12, false), 0x1fff_ffff << 12);
}

fn layout(inode_size: u16, huge_file: bool) -> Layout {
    let mut raw = RawSuper::new_zeroed();
    raw.magic.set(0xef53);
    raw.rev_level.set(1);
    raw.inode_size.set(inode_size);
    raw.log_block_size.set(2);
    raw.blocks_count_lo.set(8192);
    raw.inodes_count.set(1024);
    raw.inodes_per_group.set(1024);
    raw.blocks_per_group.set(32768);
    raw.clusters_per_group.set(32768);
    raw.log_cluster_size.set(2);
    raw.first_ino.set(11);
    if huge_file {
        raw.feature_ro_compat.set(ro_compat::HUGE_FILE);
    }
    Layout::read(&raw, 8192 << 12).unwrap()
}

fn written(layout: &Layout, seconds: i64, sectors: u64) -> Result<inode::Inode, crate::format::Corrupt> {
    let mut bytes = vec![0; usize::from(layout.inode_size)];
    let made = Time::default();
    inode::clear(layout, made, &mut bytes).unwrap();
    let mut fields = inode::read(layout, 12, &bytes).unwrap();
    fields.mtime = Time {
        seconds,
        nanoseconds: 5,
    };
    fields.sectors = sectors;
    inode::write(layout, 12, &fields, false, &mut bytes)?;
    inode::read(layout, 12, &bytes)
}

#[test]
fn small_inodes_clamp_times() {
    let (small, large) = (layout(128, true), layout(256, true));
    let y2040 = 2_208_988_800;
    assert_eq!(written(&large, y2040, 0).unwrap().mtime.seconds, y2040);
    assert_eq!(written(&large, y2040, 0).unwrap().mtime.nanoseconds, 5);
    assert_eq!(written(&small, y2040, 0).unwrap().mtime.seconds, i32::MAX.into());
    assert_eq!(
        written(&small, -1 << 40, 0).unwrap().mtime.seconds,
        i32::MIN.into()
    );
    assert_eq!(written(&small, 1000, 0).unwrap().mtime.seconds, 1000);
    assert!(!inode::has_extra_times(128) && inode::has_extra_times(256));
}

#[test]
fn sectors_are_counted_as_far_as_the_features_go() {
    let (huge, small) = (layout(256, true), layout(256, false));
    for sectors in [0, 8, u64::from(u32::MAX), 1 << 40, (1 << 48) - 1, 1 << 50] {
        assert_eq!(written(&huge, 0, sectors).unwrap().sectors, sectors);
        let found = written(&small, 0, sectors).map(|found| found.sectors).ok();
        assert_eq!(found, (sectors <= u32::MAX.into()).then_some(sectors));
    }
}
