// SPDX-License-Identifier: GPL-2.0

//! The bindings that bindgen generates from `bindings_helper.h`, on top of the kernel crate's own.
//!
//! The generated file contains only definitions that the kernel crate lacks, and imports everything
//! else from it, so that both use the same types. Some types are opaque in the kernel crate and
//! complete here (`fs_context`, `buffer_head`, `iomap_ops`, ...): the definitions here shadow the
//! glob imports, and pointers to these types are cast at the boundary.

#![allow(
    clippy::all,
    clippy::as_underscore,
    clippy::cast_lossless,
    clippy::ptr_as_ptr,
    clippy::ref_as_ptr,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]

pub(crate) use kernel::bindings::*;
use kernel::ffi;
use pin_init::MaybeZeroable;

type __kernel_size_t = usize;
type __kernel_ssize_t = isize;

include!(env!("REXT4_BINDINGS"));
