// SPDX-License-Identifier: GPL-2.0

//! The contents of files: writing, preallocation, truncation, copy-on-write and sharing.

pub(in crate::fs) mod cow;
pub(in crate::fs) mod file;
pub(in crate::fs) mod flags;
pub(in crate::fs) mod holes;
pub(in crate::fs) mod reflink;
pub(in crate::fs) mod reserve;
pub(crate) mod sharing;
pub(in crate::fs) mod shift;
pub(in crate::fs) mod truncate;
