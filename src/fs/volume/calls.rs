// SPDX-License-Identifier: GPL-2.0

//! The ioctls that stock ext4 has.

use crate::{
    fs::{state::Volume, volume::shutdown},
    kernel_glue::{abi, is_admin, Inode, Ioctl},
};
use kernel::{ioctl::_IOR, prelude::*};

const SHUTDOWN: u32 = _IOR::<u32>(b'X' as u32, 125);

/// Answers a call, if it is one of these.
pub(in crate::fs) fn call(inode: &Inode<Volume>, call: &Ioctl<'_>) -> Option<Result> {
    Some(match call.command {
        SHUTDOWN => shut_down(inode, call),
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
