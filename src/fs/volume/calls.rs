// SPDX-License-Identifier: GPL-2.0

//! The ioctls that stock ext4 has.

use crate::{
    fs::{
        alloc::trim,
        disk::{
            inode::{self, Part},
            super_disk,
        },
        state::Volume,
        volume::{resize, shutdown},
    },
    kernel_glue::{
        abi::{self, TrimRange, VolumeUuid, VolumeUuidHead},
        is_admin, no_such_ioctl, unsupported, Inode, Ioctl,
    },
};
use kernel::{
    ioctl::{_IOR, _IOW, _IOWR},
    prelude::*,
};

const SHUTDOWN: u32 = _IOR::<u32>(b'X' as u32, 125);
const TRIM: u32 = _IOWR::<TrimRange>(b'X' as u32, 121);
const GET_VERSION: u32 = _IOR::<c_long>(b'f' as u32, 3);
const SET_VERSION: u32 = _IOW::<c_long>(b'f' as u32, 4);
/// `FS_IOC_GETVERSION` and `FS_IOC_SETVERSION`.
const GET_VERSION_OLD: u32 = _IOR::<c_long>(b'v' as u32, 1);
const SET_VERSION_OLD: u32 = _IOW::<c_long>(b'v' as u32, 2);
/// Bytes of a label at most, as the calls have it.
const LABEL_ROOM: usize = 256;
const GET_LABEL: u32 = _IOR::<[u8; LABEL_ROOM]>(0x94, 49);
const SET_LABEL: u32 = _IOW::<[u8; LABEL_ROOM]>(0x94, 50);
const GET_UUID: u32 = _IOR::<VolumeUuidHead>(b'f' as u32, 44);

const RESIZE_FS: u32 = _IOW::<u64>(b'f' as u32, 16);
const GROUP_EXTEND: u32 = _IOW::<c_ulong>(b'f' as u32, 7);

/// Answers a call, if it is one of these.
pub(in crate::fs) fn call(inode: &Inode<Volume>, call: &Ioctl<'_>) -> Option<Result> {
    Some(match call.command {
        SHUTDOWN => shut_down(inode, call),
        TRIM => discard_free(inode, call),
        GET_VERSION | GET_VERSION_OLD => abi::write(call.argument, &inode.generation()),
        SET_VERSION | SET_VERSION_OLD => set_version(inode, call),
        GET_LABEL => get_label(inode, call),
        SET_LABEL => set_label(inode, call),
        GET_UUID => get_uuid(inode, call),
        RESIZE_FS => resize(inode, call),
        GROUP_EXTEND => extend(inode, call),
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

/// Sets the generation of an inode. Checksums of its blocks depend on it, so that it cannot change
/// where there are any.
fn set_version(inode: &Inode<Volume>, call: &Ioctl<'_>) -> Result {
    if !call.file.is_owned() {
        return Err(EPERM);
    }
    let sb = inode.super_block();
    let volume = sb.volume()?;
    if volume.layout.has_metadata_csum() {
        pr_warn!(
            "{}: the version of an inode cannot be set on a volume with metadata_csum\n",
            sb.name()
        );
        return Err(no_such_ioctl());
    }
    let _write = call.file.want_write()?;
    let generation: u32 = abi::read(call.argument)?;
    let inode = inode.lock();
    let handle = volume.begin(inode::STORE_CREDITS, 0)?;
    inode.touch(false);
    inode.set_generation(generation);
    inode::store(&handle, &inode, Part::Attributes)?;
    handle.stop()
}

/// Bytes of the label in the superblock.
const LABEL: usize = 16;

fn get_label(inode: &Inode<Volume>, call: &Ioctl<'_>) -> Result {
    let sb = inode.super_block();
    let mut label = [0u8; LABEL + 1];
    let found = super_disk::label(sb.volume()?, sb)?;
    for (to, from) in label.iter_mut().zip(found) {
        *to = from;
    }
    abi::write(call.argument, &label)
}

fn set_label(inode: &Inode<Volume>, call: &Ioctl<'_>) -> Result {
    if !is_admin() {
        return Err(EPERM);
    }
    let given: [u8; LABEL + 1] = abi::read(call.argument)?;
    let len = given.iter().position(|&byte| byte == 0).ok_or(EINVAL)?;
    let mut label = [0u8; LABEL];
    for (to, from) in label.iter_mut().zip(given.iter().take(len)) {
        *to = *from;
    }
    let _write = call.file.want_write()?;
    let sb = inode.super_block();
    super_disk::set_label(sb.volume()?, sb, &label)
}

fn get_uuid(inode: &Inode<Volume>, call: &Ioctl<'_>) -> Result {
    let asked: VolumeUuidHead = abi::read(call.argument)?;
    let uuid = inode.super_block().volume()?.layout.uuid;
    let len = uuid.len() as u32;
    match asked.len {
        // The caller asks how long it is.
        0 => abi::write(call.argument, &len),
        given if given < len || asked.flags != 0 => Err(EINVAL),
        _ => abi::write(call.argument, &VolumeUuid { len, flags: 0, uuid }),
    }
}

fn resize(inode: &Inode<Volume>, call: &Ioctl<'_>) -> Result {
    let blocks: u64 = abi::read(call.argument)?;
    resize::resize(inode.super_block(), &call.file, blocks)
}

fn extend(inode: &Inode<Volume>, call: &Ioctl<'_>) -> Result {
    // The call was defined with a long, and reads 32 bits.
    let blocks: u32 = abi::read(call.argument)?;
    resize::extend(inode.super_block(), &call.file, blocks.into())
}
