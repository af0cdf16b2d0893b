// SPDX-License-Identifier: GPL-2.0

//! See `rext4_core::fuzz::record`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rext4_core::fuzz::record(data));
