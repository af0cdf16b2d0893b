// SPDX-License-Identifier: GPL-2.0

//! See `rext4_core::fuzz::operations`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rext4_core::fuzz::operations(data));
