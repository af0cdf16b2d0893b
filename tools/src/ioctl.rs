// SPDX-License-Identifier: GPL-2.0

//! The interface of the kernel module, `include/uapi/rext4.h` and `linux/fsmap.h`, in Rust.
//!
//! The structures repeat the headers field by field; a test compares them with the headers by means
//! of a C compiler. All `unsafe` code of the program is here, behind functions that are safe to
//! call on any open file: a file system that does not know an ioctl returns `ENOTTY`.

#![allow(unsafe_code)]

use anyhow::Context;
use rustix::{
    fd::{AsFd, AsRawFd},
    io::{Errno, Result},
    ioctl::{ioctl, opcode, Getter, IntegerSetter, NoArg, Opcode, Updater},
};
use serde::Serialize;
use std::{ffi::c_int, fs::File, path::Path};

/// Checks nothing; used to find out whether the ioctl exists.
#[cfg(test)]
pub const TYPE_PROBE: u32 = 0;
/// Checks the reverse map against all inodes.
pub const TYPE_RMAP: u32 = 1;
/// Checks the reference counts against the reverse map.
pub const TYPE_REFCOUNT: u32 = 2;
/// The block bitmaps and free counts, against all inodes and the reverse map.
pub const TYPE_BITMAP: u32 = 3;
/// The inode bitmaps and counts of inodes, against the inode tables.
pub const TYPE_INODE_BITMAP: u32 = 4;
/// The counts of blocks of inodes, against their mappings.
pub const TYPE_INODE: u32 = 5;
/// The link counts, against the entries of all directories.
pub const TYPE_LINKS: u32 = 6;

/// In: repair what is wrong.
pub const IFLAG_REPAIR: u32 = 1 << 0;
/// In, with [`IFLAG_REPAIR`]: also rebuild trees that are right.
pub const IFLAG_FORCE_REBUILD: u32 = 1 << 8;
/// Out: the metadata is wrong, or was wrong before the repair.
pub const OFLAG_CORRUPT: u32 = 1 << 1;
/// Out: the metadata is right, but a repair would free blocks of replaced trees.
pub const OFLAG_PREEN: u32 = 1 << 2;
/// Out: some inodes could not be read from disk.
pub const OFLAG_XFAIL: u32 = 1 << 3;
/// Out: some inodes are damaged or contradict each other.
pub const OFLAG_XCORRUPT: u32 = 1 << 4;
/// Out: part of the request was not checked, or is still not in order.
pub const OFLAG_INCOMPLETE: u32 = 1 << 5;
/// Out: a repair was requested, but nothing had to be repaired.
pub const OFLAG_NO_REPAIR_NEEDED: u32 = 1 << 7;
/// All regions of the volume, in one scan.
pub const ALL_REGIONS: u32 = !0;

/// Nothing is running.
pub const PHASE_IDLE: u32 = 0;
/// Scanning inodes.
pub const PHASE_SCAN: u32 = 1;
/// Comparing trees.
pub const PHASE_CHECK: u32 = 2;
/// Rebuilding trees.
pub const PHASE_LOAD: u32 = 3;
/// Freeing blocks of replaced trees.
pub const PHASE_REAP: u32 = 4;
/// It was started by the kernel in the background.
pub const PROGRESS_BACKGROUND: u32 = 1 << 0;
/// It is a repair.
#[cfg(test)]
pub const PROGRESS_REPAIR: u32 = 1 << 1;

/// The region's tree is to be rebuilt.
pub const REGION_STALE: u32 = 0;
/// The region's tree is kept up to date with every change.
pub const REGION_GOOD: u32 = 1;
/// The tree does not exist: no block of the volume was ever shared.
pub const REGION_NONE: u32 = 2;

/// An unwritten extent.
pub const FMR_OF_PREALLOC: u32 = 0x1;
/// Blocks of extended attributes.
pub const FMR_OF_ATTR_FORK: u32 = 0x2;
/// Blocks that hold mapping metadata.
pub const FMR_OF_EXTENT_MAP: u32 = 0x4;
/// Shared with another file.
pub const FMR_OF_SHARED: u32 = 0x8;
/// The owner is one of the `FMR_OWN_` values.
pub const FMR_OF_SPECIAL_OWNER: u32 = 0x10;
/// The last record.
pub const FMR_OF_LAST: u32 = 0x20;

const fn owner(class: u8, code: u32) -> u64 {
    ((class as u64) << 32) | code as u64
}

/// Free space.
pub const FMR_OWN_FREE: u64 = owner(0, 1);
/// The owner is unknown.
pub const FMR_OWN_UNKNOWN: u64 = owner(0, 2);
/// Metadata of some kind.
pub const FMR_OWN_METADATA: u64 = owner(0, 3);
/// Superblocks.
pub const FMR_OWN_FS: u64 = owner(b'X', 1);
/// Inode tables.
pub const FMR_OWN_INODES: u64 = owner(b'X', 5);
/// Group descriptors.
pub const FMR_OWN_GDT: u64 = owner(b'f', 1);
/// Blocks reserved for more group descriptors.
pub const FMR_OWN_RESV_GDT: u64 = owner(b'f', 2);
/// Block bitmaps.
pub const FMR_OWN_BLKBM: u64 = owner(b'f', 3);
/// Inode bitmaps.
pub const FMR_OWN_INOBM: u64 = owner(b'f', 4);

/// `struct rext4_scrub_metadata`. Times are in nanoseconds; sizes are in bytes of memory or in file
/// system blocks, as named.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct ScrubMetadata {
    #[serde(rename = "type")]
    pub kind: u32,
    pub flags: u32,
    pub region: u32,
    pub bad_regions: u32,
    pub rebuilt_regions: u32,
    #[serde(skip)]
    pub memory_limit: u32,
    pub inodes: u64,
    pub records: u64,
    pub blocks: u64,
    pub live_updates: u64,
    pub memory: u64,
    pub scan_ns: u64,
    pub check_ns: u64,
    pub load_ns: u64,
    pub reap_ns: u64,
    pub stall_ns: u64,
    pub spilled: u64,
    pub failed_regions: u32,
    #[serde(skip)]
    pub reserved0: u32,
    #[serde(skip)]
    pub reserved: [u64; 2],
}

/// `struct rext4_scrub_progress`. `done` and `total` count inodes or regions, depending on the
/// phase.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct ScrubProgress {
    pub kind: u32,
    pub phase: u32,
    pub flags: u32,
    pub reserved0: u32,
    pub done: u64,
    pub total: u64,
    pub records: u64,
    pub reserved: [u64; 4],
}

/// `struct rext4_region_info`. `start` and `blocks` are in file system blocks; `root`,
/// `file_blocks` and `free_blocks` in blocks of the tree file; `block_size` in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct RegionInfo {
    pub region: u32,
    pub state: u32,
    pub regions: u32,
    pub generation: u32,
    pub start: u64,
    pub blocks: u64,
    pub level: u32,
    pub root: u32,
    pub file_blocks: u32,
    pub free_blocks: u32,
    pub block_size: u32,
    pub inode: u32,
    pub count_state: u32,
    pub count_generation: u32,
    pub count_blocks: u32,
    pub count_free_blocks: u32,
    #[serde(skip)]
    pub reserved: [u64; 2],
}

/// `struct fsmap`. `physical`, `offset` and `length` are in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Fsmap {
    pub device: u32,
    pub flags: u32,
    pub physical: u64,
    pub owner: u64,
    pub offset: u64,
    pub length: u64,
    pub reserved: [u64; 3],
}

/// `struct fsmap_head` without the records that follow it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct FsmapHead {
    pub iflags: u32,
    pub oflags: u32,
    pub count: u32,
    pub entries: u32,
    pub reserved: [u64; 6],
    pub keys: [Fsmap; 2],
}

/// Maximum number of records returned by one call.
const FSMAP_BATCH: usize = 512;

/// `struct fsmap_head` with room for records.
#[repr(C)]
struct FsmapBuffer {
    head: FsmapHead,
    records: [Fsmap; FSMAP_BATCH],
}

/// `struct loop_info64`, of which only the backing file is used: its device, in the encoding of
/// `stat`, and its inode.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct LoopInfo {
    pub device: u64,
    pub inode: u64,
    reserved: [u64; 27],
}

const SCRUB_METADATA: Opcode = opcode::read_write::<ScrubMetadata>(b'r', 0x80);
const SCRUB_PROGRESS: Opcode = opcode::read::<ScrubProgress>(b'r', 0x81);
const SCRUB_CANCEL: Opcode = opcode::none(b'r', 0x82);
const REGION_INFO: Opcode = opcode::read_write::<RegionInfo>(b'r', 0x83);
const HOLD: Opcode = opcode::none(b'r', 0x90);
const RELEASE: Opcode = opcode::none(b'r', 0x91);
const CLONE_HELD: Opcode = opcode::write::<c_int>(b'r', 0x92);
const GETFSMAP: Opcode = opcode::read_write::<FsmapHead>(b'X', 59);
/// Predates the encoding of direction and size in ioctl numbers.
const LOOP_GET_STATUS64: Opcode = 0x4c05;

/// Opens a file or directory of a mounted volume, to issue ioctls on it.
pub fn open_mount(path: &Path) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// Runs a check, or a check and repair, and returns when it has ended. If it fails after it has
/// started, `request` contains the findings and results so far, and [`OFLAG_INCOMPLETE`] is set.
pub fn scrub_metadata(file: impl AsFd, request: &mut ScrubMetadata) -> Result<()> {
    // SAFETY: The ioctl reads and writes only this structure, to which the pointer is valid.
    unsafe { ioctl(file, Updater::<SCRUB_METADATA, _>::new(request)) }
}

/// Returns the progress of the running check or repair.
pub fn scrub_progress(file: impl AsFd) -> Result<ScrubProgress> {
    // SAFETY: The ioctl fills this structure completely, and all bit patterns are valid for it.
    unsafe { ioctl(file, Getter::<SCRUB_PROGRESS, ScrubProgress>::new()) }
}

/// Cancels the running check or repair, and waits for its end.
pub fn scrub_cancel(file: impl AsFd) -> Result<()> {
    // SAFETY: The ioctl takes no argument.
    unsafe { ioctl(file, NoArg::<SCRUB_CANCEL>::new()) }
}

/// Blocks all tasks that want to modify the volume of this directory, until [`release`] is called
/// or the directory is closed.
///
/// Fails with `EBUSY` if the volume is held already.
pub fn hold(folder: impl AsFd) -> Result<()> {
    // SAFETY: The ioctl takes no argument.
    unsafe { ioctl(folder, NoArg::<HOLD>::new()) }
}

/// Ends the hold. Fails with `ENOENT` if the volume is not held.
pub fn release(folder: impl AsFd) -> Result<()> {
    // SAFETY: The ioctl takes no argument.
    unsafe { ioctl(folder, NoArg::<RELEASE>::new()) }
}

/// Makes a file share all blocks of another file on the volume while the volume is held.
pub fn clone_held(to: impl AsFd, from: impl AsFd) -> Result<()> {
    let from = from.as_fd().as_raw_fd();
    let from = usize::try_from(from).map_err(|_| Errno::BADF)?;
    // SAFETY: The ioctl's argument is a file descriptor, not a pointer.
    unsafe { ioctl(to, IntegerSetter::<CLONE_HELD>::new_usize(from)) }
}

/// Returns the state of a region's trees. Fails with `EINVAL` beyond the last region.
pub fn region_info(file: impl AsFd, region: u32) -> Result<RegionInfo> {
    let mut info = RegionInfo {
        region,
        ..RegionInfo::default()
    };
    // SAFETY: The ioctl reads and writes only this structure, to which the pointer is valid.
    unsafe { ioctl(file, Updater::<REGION_INFO, _>::new(&mut info)) }?;
    Ok(info)
}

/// Returns the backing file of a loop device. Fails with `ENXIO` if it has none.
pub fn loop_info(device: impl AsFd) -> Result<LoopInfo> {
    // SAFETY: The ioctl fills this structure completely, and all bit patterns are valid for it.
    unsafe { ioctl(device, Getter::<LOOP_GET_STATUS64, LoopInfo>::new()) }
}

/// The high key after every record.
pub const FSMAP_END: Fsmap = Fsmap {
    device: u32::MAX,
    flags: u32::MAX,
    physical: u64::MAX,
    owner: u64::MAX,
    offset: u64::MAX,
    length: 0,
    reserved: [0; 3],
};

/// Calls `each` with every mapping between two keys, in order, until it returns an error.
///
/// One call returns as many records as fit into the buffer. The last of them becomes the low key of
/// the next call; its nonzero length tells the kernel to continue after it.
pub fn for_each_mapping<E: From<Errno>>(
    file: impl AsFd,
    low: Fsmap,
    high: Fsmap,
    mut each: impl FnMut(&Fsmap) -> core::result::Result<(), E>,
) -> core::result::Result<(), E> {
    let mut buffer = Box::new(FsmapBuffer {
        head: FsmapHead::default(),
        records: [Fsmap::default(); FSMAP_BATCH],
    });
    let mut low = low;
    loop {
        buffer.head = FsmapHead {
            count: FSMAP_BATCH as u32,
            keys: [low, high],
            ..FsmapHead::default()
        };
        // SAFETY: The ioctl reads and writes the head, and writes at most `count` records, for
        // which the buffer has room.
        unsafe { ioctl(&file, Updater::<GETFSMAP, _>::new(&mut *buffer)) }?;
        let found = buffer
            .records
            .get(..buffer.head.entries as usize)
            .ok_or(Errno::INVAL)?;
        let Some(last) = found.last() else {
            return Ok(());
        };
        for mapping in found {
            each(mapping)?;
        }
        // If the kernel returned the key itself, this would loop forever.
        if last.flags & FMR_OF_LAST != 0 || *last == low {
            return Ok(());
        }
        low = *last;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};
    use std::{fmt::Write, fs, process::Command};

    /// Returns pairs of a C expression and its value here.
    fn expressions() -> Vec<(String, u64)> {
        let mut all: Vec<(String, u64)> = Vec::new();
        macro_rules! values {
            ($($name:literal = $value:expr;)*) => { $(all.push(($name.into(), u64::from($value)));)* };
        }
        macro_rules! layout {
            ($c:literal, $rust:ty, $($field:literal = $name:ident),*) => {
                all.push((format!("sizeof(struct {})", $c), size_of::<$rust>() as u64));
                $(all.push((format!("offsetof(struct {}, {})", $c, $field), offset_of!($rust, $name) as u64));)*
            };
        }
        values! {
            "REXT4_IOC_SCRUB_METADATA" = SCRUB_METADATA;
            "REXT4_IOC_SCRUB_PROGRESS" = SCRUB_PROGRESS;
            "REXT4_IOC_SCRUB_CANCEL" = SCRUB_CANCEL;
            "REXT4_IOC_REGION_INFO" = REGION_INFO;
            "REXT4_IOC_HOLD" = HOLD;
            "REXT4_IOC_RELEASE" = RELEASE;
            "REXT4_IOC_CLONE_HELD" = CLONE_HELD;
            "FS_IOC_GETFSMAP" = GETFSMAP;
            "LOOP_GET_STATUS64" = LOOP_GET_STATUS64;
            "REXT4_SCRUB_TYPE_PROBE" = TYPE_PROBE;
            "REXT4_SCRUB_TYPE_RMAP" = TYPE_RMAP;
            "REXT4_SCRUB_TYPE_REFCOUNT" = TYPE_REFCOUNT;
            "REXT4_SCRUB_TYPE_BITMAP" = TYPE_BITMAP;
            "REXT4_SCRUB_TYPE_INODE_BITMAP" = TYPE_INODE_BITMAP;
            "REXT4_SCRUB_TYPE_INODE" = TYPE_INODE;
            "REXT4_SCRUB_TYPE_LINKS" = TYPE_LINKS;
            "REXT4_SCRUB_IFLAG_REPAIR" = IFLAG_REPAIR;
            "REXT4_SCRUB_IFLAG_FORCE_REBUILD" = IFLAG_FORCE_REBUILD;
            "REXT4_SCRUB_FLAGS_IN" = IFLAG_REPAIR | IFLAG_FORCE_REBUILD;
            "REXT4_SCRUB_OFLAG_CORRUPT" = OFLAG_CORRUPT;
            "REXT4_SCRUB_OFLAG_PREEN" = OFLAG_PREEN;
            "REXT4_SCRUB_OFLAG_XFAIL" = OFLAG_XFAIL;
            "REXT4_SCRUB_OFLAG_XCORRUPT" = OFLAG_XCORRUPT;
            "REXT4_SCRUB_OFLAG_INCOMPLETE" = OFLAG_INCOMPLETE;
            "REXT4_SCRUB_OFLAG_NO_REPAIR_NEEDED" = OFLAG_NO_REPAIR_NEEDED;
            "REXT4_SCRUB_FLAGS_OUT" = OFLAG_CORRUPT | OFLAG_PREEN | OFLAG_XFAIL | OFLAG_XCORRUPT | OFLAG_INCOMPLETE
                | OFLAG_NO_REPAIR_NEEDED;
            "REXT4_SCRUB_ALL_REGIONS" = ALL_REGIONS;
            "REXT4_SCRUB_PHASE_IDLE" = PHASE_IDLE;
            "REXT4_SCRUB_PHASE_SCAN" = PHASE_SCAN;
            "REXT4_SCRUB_PHASE_CHECK" = PHASE_CHECK;
            "REXT4_SCRUB_PHASE_LOAD" = PHASE_LOAD;
            "REXT4_SCRUB_PHASE_REAP" = PHASE_REAP;
            "REXT4_SCRUB_PROGRESS_BACKGROUND" = PROGRESS_BACKGROUND;
            "REXT4_SCRUB_PROGRESS_REPAIR" = PROGRESS_REPAIR;
            "REXT4_REGION_STALE" = REGION_STALE;
            "REXT4_REGION_GOOD" = REGION_GOOD;
            "REXT4_REGION_NONE" = REGION_NONE;
            "FMR_OF_PREALLOC" = FMR_OF_PREALLOC;
            "FMR_OF_ATTR_FORK" = FMR_OF_ATTR_FORK;
            "FMR_OF_EXTENT_MAP" = FMR_OF_EXTENT_MAP;
            "FMR_OF_SHARED" = FMR_OF_SHARED;
            "FMR_OF_SPECIAL_OWNER" = FMR_OF_SPECIAL_OWNER;
            "FMR_OF_LAST" = FMR_OF_LAST;
            "FMR_OWN_FREE" = FMR_OWN_FREE;
            "FMR_OWN_UNKNOWN" = FMR_OWN_UNKNOWN;
            "FMR_OWN_METADATA" = FMR_OWN_METADATA;
            "REXT4_FMR_OWN_FS" = FMR_OWN_FS;
            "REXT4_FMR_OWN_INODES" = FMR_OWN_INODES;
            "REXT4_FMR_OWN_GDT" = FMR_OWN_GDT;
            "REXT4_FMR_OWN_RESV_GDT" = FMR_OWN_RESV_GDT;
            "REXT4_FMR_OWN_BLKBM" = FMR_OWN_BLKBM;
            "REXT4_FMR_OWN_INOBM" = FMR_OWN_INOBM;
        }
        layout!(
            "rext4_scrub_metadata",
            ScrubMetadata,
            "sm_type" = kind,
            "sm_flags" = flags,
            "sm_region" = region,
            "sm_bad_regions" = bad_regions,
            "sm_rebuilt_regions" = rebuilt_regions,
            "sm_memory_limit" = memory_limit,
            "sm_inodes" = inodes,
            "sm_records" = records,
            "sm_blocks" = blocks,
            "sm_live_updates" = live_updates,
            "sm_memory" = memory,
            "sm_scan_ns" = scan_ns,
            "sm_check_ns" = check_ns,
            "sm_load_ns" = load_ns,
            "sm_reap_ns" = reap_ns,
            "sm_stall_ns" = stall_ns,
            "sm_spilled" = spilled,
            "sm_failed_regions" = failed_regions,
            "sm_reserved0" = reserved0,
            "sm_reserved" = reserved
        );
        layout!(
            "rext4_scrub_progress",
            ScrubProgress,
            "sp_type" = kind,
            "sp_phase" = phase,
            "sp_flags" = flags,
            "sp_reserved0" = reserved0,
            "sp_done" = done,
            "sp_total" = total,
            "sp_records" = records,
            "sp_reserved" = reserved
        );
        layout!(
            "rext4_region_info",
            RegionInfo,
            "ri_region" = region,
            "ri_state" = state,
            "ri_regions" = regions,
            "ri_generation" = generation,
            "ri_start" = start,
            "ri_blocks" = blocks,
            "ri_level" = level,
            "ri_root" = root,
            "ri_file_blocks" = file_blocks,
            "ri_free_blocks" = free_blocks,
            "ri_block_size" = block_size,
            "ri_inode" = inode,
            "ri_count_state" = count_state,
            "ri_count_generation" = count_generation,
            "ri_count_blocks" = count_blocks,
            "ri_count_free_blocks" = count_free_blocks,
            "ri_reserved" = reserved
        );
        layout!(
            "fsmap",
            Fsmap,
            "fmr_device" = device,
            "fmr_flags" = flags,
            "fmr_physical" = physical,
            "fmr_owner" = owner,
            "fmr_offset" = offset,
            "fmr_length" = length,
            "fmr_reserved" = reserved
        );
        layout!(
            "fsmap_head",
            FsmapHead,
            "fmh_iflags" = iflags,
            "fmh_oflags" = oflags,
            "fmh_count" = count,
            "fmh_entries" = entries,
            "fmh_reserved" = reserved,
            "fmh_keys" = keys
        );
        layout!(
            "loop_info64",
            LoopInfo,
            "lo_device" = device,
            "lo_inode" = inode,
            "lo_rdevice" = reserved
        );
        all.push((
            "offsetof(struct fsmap_head, fmh_recs)".into(),
            offset_of!(FsmapBuffer, records) as u64,
        ));
        all
    }

    #[test]
    fn headers_say_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("abi.c");
        let program = folder.path().join("abi");
        let expressions = expressions();
        let mut text = String::from(
            "#include <stddef.h>\n#include <stdio.h>\n#include <linux/fsmap.h>\n#include <linux/loop.h>\n#include \"rext4.h\"\nint main(void) {\n",
        );
        for (expression, _) in &expressions {
            writeln!(text, "printf(\"%llu\\n\", (unsigned long long)({expression}));").unwrap();
        }
        text.push_str("return 0; }\n");
        fs::write(&source, text).unwrap();
        let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("../include/uapi");
        let built = Command::new("cc")
            .arg("-I")
            .arg(include)
            .arg("-o")
            .arg(&program)
            .arg(&source)
            .status();
        let Ok(built) = built else {
            println!("not tested: this machine has no C compiler");
            return;
        };
        assert!(built.success(), "the headers do not compile");
        let answer = Command::new(&program).output().unwrap();
        let answer = String::from_utf8(answer.stdout).unwrap();
        let said: Vec<u64> = answer.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(said.len(), expressions.len());
        for ((expression, here), said) in expressions.iter().zip(said) {
            assert_eq!(*here, said, "{expression}");
        }
    }
}
