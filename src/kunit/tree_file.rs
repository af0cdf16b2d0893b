// SPDX-License-Identifier: GPL-2.0

//! A tree file's own structures can be read back after writing, and every changed byte is detected.

use kernel::prelude::*;

#[kunit_tests(rext4_tree_file)]
mod tests {
    use crate::format::tree_file::{
        check_map, seal_map, set_use, start_map, use_of, Frame, Header, Kind, Region, Stamp, Use,
        HEADER_SIZE, REGION_SIZE, TABLE,
    };
    use kernel::prelude::*;

    /// Number of blocks in the file of a [`frame`].
    const BLOCKS: u32 = 5000;

    fn frame(block_size: u32) -> Frame {
        Frame {
            kind: Kind::Rmap,
            seed: 0x1234_5678,
            uuid: *b"0123456789abcdef",
            block_size,
            first_block: u32::from(block_size == 1024),
            region_blocks: 16 * 32768,
            regions: 77,
        }
    }

    fn header() -> Header {
        Header {
            blocks: BLOCKS,
            generation: 42,
            in_use: true,
            stamp: Stamp::default(),
        }
    }

    fn region() -> Region {
        Region {
            good: true,
            unsettled: false,
            generation: 7,
            root: 100,
            level: 3,
            reap: true,
        }
    }

    /// Returns how many single-bit changes `is_refused` fails to detect.
    fn overlooked(bytes: &mut [u8], bits: &[u8], is_refused: &dyn Fn(&[u8]) -> bool) -> usize {
        let mut count = 0;
        for at in 0..bytes.len() {
            for bit in bits {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << bit;
                }
                count += usize::from(!is_refused(bytes));
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << bit;
                }
            }
        }
        count
    }

    const EACH_BIT: [u8; 8] = [0, 1, 2, 3, 4, 5, 6, 7];

    #[test]
    fn header_comes_back() -> Result {
        let frame = frame(4096);
        let mut bytes = KVVec::from_elem(0xffu8, 4096, GFP_KERNEL)?;
        assert!(header().store(&frame, &mut bytes).is_ok());
        let found = Header::read(&frame, BLOCKS, &bytes).map_err(|_| EINVAL)?;
        assert_eq!(found.blocks, BLOCKS);
        assert_eq!(found.generation, 42);
        assert!(found.in_use);
        assert!(found.stamp == Stamp::default());
        // The rest of the block stays untouched.
        assert_eq!(bytes.get(HEADER_SIZE), Some(&0xff));
        Ok(())
    }

    #[test]
    fn header_with_a_flipped_bit_is_refused() {
        let frame = frame(4096);
        let mut bytes = [0; HEADER_SIZE];
        assert!(header().store(&frame, &mut bytes).is_ok());
        let is_refused = |bytes: &[u8]| Header::read(&frame, BLOCKS, bytes).is_err();
        assert!(!is_refused(&bytes));
        assert_eq!(overlooked(&mut bytes, &EACH_BIT, &is_refused), 0);
        assert!(!is_refused(&bytes));
    }

    #[test]
    fn header_of_something_else_is_refused() {
        let frame = frame(4096);
        let mut bytes = [0; HEADER_SIZE];
        assert!(header().store(&frame, &mut bytes).is_ok());
        let is_refused = |frame: Frame| Header::read(&frame, BLOCKS, &bytes).is_err();
        assert!(!is_refused(frame));
        assert!(is_refused(Frame { seed: 1, ..frame }));
        assert!(is_refused(Frame {
            kind: Kind::Refcount,
            ..frame
        }));
        assert!(is_refused(Frame {
            uuid: [0; 16],
            ..frame
        }));
        assert!(is_refused(Frame {
            block_size: 1024,
            ..frame
        }));
        assert!(is_refused(Frame {
            first_block: 1,
            ..frame
        }));
        assert!(is_refused(Frame {
            region_blocks: 1,
            ..frame
        }));
        assert!(is_refused(Frame { regions: 78, ..frame }));
        // A truncated file, a truncated header, and a buffer that is too small.
        assert!(Header::read(&frame, BLOCKS - 1, &bytes).is_err());
        assert!(Header::read(&frame, BLOCKS, bytes.get(1..).unwrap_or(&[])).is_err());
        assert!(header().store(&frame, &mut [0; HEADER_SIZE - 1]).is_err());
    }

    #[test]
    fn region_comes_back_and_a_flipped_bit_is_refused() {
        let frame = frame(2048);
        let unsettled = Region {
            unsettled: true,
            ..region()
        };
        for entry in [region(), unsettled, Region::default()] {
            let mut bytes = [0; REGION_SIZE];
            assert!(entry.store(&frame, 5, &mut bytes).is_ok());
            assert!(Region::read(&frame, BLOCKS, 5, &bytes).is_ok_and(|found| found == entry));
            let is_refused = |bytes: &[u8]| Region::read(&frame, BLOCKS, 5, bytes).is_err();
            assert_eq!(overlooked(&mut bytes, &EACH_BIT, &is_refused), 0);
            assert!(Region::read(&frame, BLOCKS, 6, &bytes).is_err());
        }
    }

    #[test]
    fn region_that_leads_nowhere_is_refused() {
        let frame = frame(2048);
        for root in [0, 1, TABLE, frame.map_of(BLOCKS - 1).0, BLOCKS, u32::MAX] {
            let mut bytes = [0; REGION_SIZE];
            let entry = Region { root, ..region() };
            assert!(entry.store(&frame, 5, &mut bytes).is_ok());
            assert!(Region::read(&frame, BLOCKS, 5, &bytes).is_err());
            // A stale region's root is never used, so it is not checked.
            let entry = Region { good: false, ..entry };
            assert!(entry.store(&frame, 5, &mut bytes).is_ok());
            assert!(Region::read(&frame, BLOCKS, 5, &bytes).is_ok());
        }
    }

    #[test]
    fn space_map_comes_back() -> Result {
        for size in [1024, 2048, 4096] {
            let frame = frame(size);
            let chunk = frame.chunk().get();
            for (map, _) in [frame.map_of(0), frame.map_of(3 * chunk + 2)] {
                let mut bytes = KVVec::from_elem(0xffu8, size as usize, GFP_KERNEL)?;
                start_map(&frame, map, &mut bytes);
                assert!(check_map(&frame, map, &bytes).is_ok());
                assert!(check_map(&frame, map + chunk, &bytes).is_err());
                let mut wrong = 0;
                for entry in 0..chunk {
                    let is_free = use_of(&bytes, entry) == Use::Free;
                    wrong += u32::from(is_free == frame.is_fixed(map - 1 + entry));
                }
                assert_eq!(wrong, 0);
                let node = |entry: u32| Use::Node {
                    region: entry * 3,
                    generation: u32::MAX - entry,
                };
                for entry in 0..chunk {
                    set_use(&mut bytes, entry, node(entry));
                }
                assert!(check_map(&frame, map, &bytes).is_err());
                seal_map(&frame, &mut bytes);
                assert!(check_map(&frame, map, &bytes).is_ok());
                let wrong = (0..chunk).filter(|&entry| use_of(&bytes, entry) != node(entry));
                assert_eq!(wrong.count(), 0);
                set_use(&mut bytes, chunk - 1, Use::Free);
                assert_eq!(use_of(&bytes, chunk - 1), Use::Free);
                assert_eq!(use_of(&bytes, chunk), Use::Fixed);
            }
        }
        Ok(())
    }

    #[test]
    fn space_map_with_a_flipped_bit_is_refused() -> Result {
        for (size, bits) in [(1024, [0, 7]), (4096, [3, 4])] {
            let frame = frame(size);
            let mut bytes = KVVec::from_elem(0u8, size as usize, GFP_KERNEL)?;
            start_map(&frame, 1, &mut bytes);
            let is_refused = |bytes: &[u8]| check_map(&frame, 1, bytes).is_err();
            assert!(!is_refused(&bytes));
            assert_eq!(overlooked(&mut bytes, &bits, &is_refused), 0);
            assert!(check_map(&frame, 1, bytes.get(1..).unwrap_or(&[])).is_err());
        }
        Ok(())
    }
}
