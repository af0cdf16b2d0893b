// SPDX-License-Identifier: GPL-2.0

//! The ioctls that stock ext4 has.

use crate::{
    fs::{alloc::trim, state::Volume, volume::shutdown},
    kernel_glue::{
        abi::{self, TrimRange},
        is_admin, unsupported, Inode, Ioctl,
    },
};
use kernel::{
    ioctl::{_IOR, _IOWR},
    prelude::*,
};

const SHUTDOWN: u32 = _IOR::<u32>(b'X' as u32, 125);
const TRIM: u32 = _IOWR::<TrimRange>(b'X' as u32, 121);

/// Answers a call, if it is one of these.
pub(in crate::fs) fn call(inode: &Inode<Volume>, call: &Ioctl<'_>) -> Option<Result> {
    Some(match call.command {
        SHUTDOWN => shut_down(inode, call),
        TRIM => discard_free(inode, call),
        _ => return None,
    })
}

fn shut_down(inode: &Inode<Volume>, call: &Ioctl<'_>) -> Result {
    if !is_admin() {
        return Err(EPERM);
    }
    let how: u32 = abi::read(call.argument)?;
    let sb = inode.super_block();
    shutdown::shut_down(sb.volume()?, sb, how)
}

fn discard_free(inode: &Inode<Volume>, call: &Ioctl<'_>) -> Result {
    if !is_admin() {
        return Err(EPERM);
    }
    let sb = inode.super_block();
    sb.discard_granularity().ok_or_else(unsupported)?;
    let mut range: TrimRange = abi::read(call.argument)?;
    range.len = trim::trim(sb, range.start, range.len, range.minlen)?;
    abi::write(call.argument, &range)
}
