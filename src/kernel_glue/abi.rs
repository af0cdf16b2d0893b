// SPDX-License-Identifier: GPL-2.0

//! The structures that programs pass through ioctls, as bindgen reads them from the C headers.
//!
//! C headers: `include/uapi/rext4.h`, [`include/uapi/linux/fsmap.h`](srctree/include/uapi/linux/fsmap.h)

use super::bindings;
use kernel::{
    prelude::*,
    transmute::{AsBytes, FromBytes},
    uaccess::{UserPtr, UserSlice, UserSliceWriter},
};

pub(crate) use bindings::{
    fsmap as Fsmap, fsmap_head as FsmapHead, rext4_region_info as RegionInfo,
    rext4_scrub_metadata as ScrubMetadata, rext4_scrub_progress as ScrubProgress,
};

/// Constants of `include/uapi/rext4.h` and `linux/fsmap.h`.
pub(crate) mod value {
    pub(crate) use super::bindings::{
        FMH_OF_DEV_T, FMR_OF_ATTR_FORK, FMR_OF_EXTENT_MAP, FMR_OF_LAST, FMR_OF_PREALLOC, FMR_OF_SHARED,
        FMR_OF_SPECIAL_OWNER, REXT4_OWNER_BLKBM, REXT4_OWNER_FREE, REXT4_OWNER_FS, REXT4_OWNER_GDT,
        REXT4_OWNER_INOBM, REXT4_OWNER_INODES, REXT4_OWNER_RESV_GDT, REXT4_OWNER_UNKNOWN, REXT4_REGION_GOOD,
        REXT4_REGION_NONE, REXT4_REGION_STALE, REXT4_SCRUB_FLAGS_IN, REXT4_SCRUB_IFLAG_FORCE_REBUILD,
        REXT4_SCRUB_IFLAG_REPAIR, REXT4_SCRUB_OFLAG_CORRUPT, REXT4_SCRUB_OFLAG_INCOMPLETE,
        REXT4_SCRUB_OFLAG_NO_REPAIR_NEEDED, REXT4_SCRUB_OFLAG_PREEN, REXT4_SCRUB_OFLAG_XCORRUPT,
        REXT4_SCRUB_OFLAG_XFAIL, REXT4_SCRUB_PHASE_CHECK, REXT4_SCRUB_PHASE_IDLE, REXT4_SCRUB_PHASE_LOAD,
        REXT4_SCRUB_PHASE_REAP, REXT4_SCRUB_PHASE_SCAN, REXT4_SCRUB_PROGRESS_BACKGROUND,
        REXT4_SCRUB_PROGRESS_REPAIR, REXT4_SCRUB_TYPE_BITMAP, REXT4_SCRUB_TYPE_PROBE,
        REXT4_SCRUB_TYPE_REFCOUNT, REXT4_SCRUB_TYPE_RMAP,
    };

    /// All regions; the header's own value, which bindgen takes for a signed one.
    pub(crate) const REXT4_SCRUB_ALL_REGIONS: u32 = super::bindings::REXT4_SCRUB_ALL_REGIONS as u32;
}

/// Says that structures of a C header are plain numbers without padding.
macro_rules! plain {
    ($($name:ident)*) => {
        $(
            // SAFETY: It holds numbers only, so that any bytes make one.
            unsafe impl FromBytes for $name {}
            // SAFETY: The header lays it out without padding, so that all its bytes are set.
            unsafe impl AsBytes for $name {}
        )*
    };
}

plain! { ScrubMetadata ScrubProgress RegionInfo Fsmap FsmapHeadFixed TrimRange VolumeUuid VolumeUuidHead }

/// The part of `struct fsmap_head` before the records.
#[repr(C)]
#[allow(missing_docs)]
pub(crate) struct FsmapHeadFixed {
    pub(crate) fmh_iflags: u32,
    pub(crate) fmh_oflags: u32,
    pub(crate) fmh_count: u32,
    pub(crate) fmh_entries: u32,
    pub(crate) fmh_reserved: [u64; 6],
    pub(crate) fmh_keys: [Fsmap; 2],
}

/// `struct fstrim_range`. All in bytes.
#[repr(C)]
#[allow(missing_docs)]
pub(crate) struct TrimRange {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) minlen: u64,
}

/// `struct fsuuid` with a UUID behind it.
#[repr(C)]
#[allow(missing_docs)]
pub(crate) struct VolumeUuid {
    pub(crate) len: u32,
    pub(crate) flags: u32,
    pub(crate) uuid: [u8; 16],
}

/// The head of `struct fsuuid`.
#[repr(C)]
#[allow(missing_docs)]
pub(crate) struct VolumeUuidHead {
    pub(crate) len: u32,
    pub(crate) flags: u32,
}

const _: () = assert!(size_of::<TrimRange>() == size_of::<bindings::fstrim_range>());
const _: () = assert!(size_of::<FsmapHeadFixed>() == size_of::<FsmapHead>());

/// Reads a structure at an address of the calling program. Fails with `EFAULT`.
pub(crate) fn read<T: FromBytes>(address: usize) -> Result<T> {
    UserSlice::new(UserPtr::from_addr(address), size_of::<T>())
        .reader()
        .read()
}

/// Writes a structure to an address of the calling program. Fails with `EFAULT`.
pub(crate) fn write<T: AsBytes>(address: usize, value: &T) -> Result {
    UserSlice::new(UserPtr::from_addr(address), size_of::<T>())
        .writer()
        .write(value)
}

/// An array of structures at an address of the calling program, written from front to back.
pub(crate) struct Array<T>(UserSliceWriter, core::marker::PhantomData<T>);

impl<T: AsBytes> Array<T> {
    /// Room for `count` of them.
    pub(crate) fn new(address: usize, count: usize) -> Result<Self> {
        let bytes = count.checked_mul(size_of::<T>()).ok_or(EINVAL)?;
        Ok(Array(
            UserSlice::new(UserPtr::from_addr(address), bytes).writer(),
            core::marker::PhantomData,
        ))
    }

    /// Writes the next one. Fails with `EFAULT`, also behind the last one.
    pub(crate) fn push(&mut self, value: &T) -> Result {
        self.0.write(value)
    }
}
