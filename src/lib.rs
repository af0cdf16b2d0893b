// SPDX-License-Identifier: GPL-2.0

//! rext4: a file system driver for ext4 volumes, with a reverse map and online repair.
//!
//! The layers, of which each imports only those below it:
//!
//! - [`scrub`] — checks, rebuilds and repairs while the volume is mounted
//! - [`trees`] — the reverse map and the reference counts, in files on the volume
//! - [`fs`] — ext4 on top of the VFS
//! - [`engine`] — ordered indexes: B+trees, bulk loading, the scan's cursor
//! - [`format`] — on-disk structures as pure functions over bytes
//! - [`kernel_glue`] — safe wrappers of the kernel's C interfaces, and the only unsafe code

use kernel::prelude::*;

#[deny(unsafe_code)]
mod engine;
#[deny(unsafe_code)]
mod format;
#[deny(unsafe_code)]
mod fs;
mod kernel_glue;
#[cfg(CONFIG_KUNIT = "y")]
#[deny(unsafe_code)]
mod kunit;
#[deny(unsafe_code)]
mod scrub;
#[deny(unsafe_code)]
mod sort;
#[deny(unsafe_code)]
mod trees;

module! {
    type: Rext4,
    name: "rext4",
    authors: ["the rext4 authors"],
    description: "ext4 volumes with a reverse map and online repair",
    license: "GPL v2",
    alias: ["fs-rext4"],
    params: {
        claim_ext4: u8 {
            default: 0,
            description: "1: also register the file system type ext4, if stock ext4 is not loaded",
        },
        reflink: u8 {
            default: 0,
            description: "1: permit shared blocks where neither a mount option nor the volume says whether they are permitted",
        },
        rebuild_memory: u32 {
            default: 256,
            description: "MiB of memory for records collected by a scan; the rest is spilled to a tmpfs file",
        },
    },
}

/// The module: its file system type, registered as long as this lives.
struct Rext4 {
    _registration: kernel_glue::Registration<fs::Volume>,
}

impl kernel::Module for Rext4 {
    fn init(module: &'static ThisModule) -> Result<Self> {
        fs::companion::set(&scrub::Beside);
        let claimed = *module_parameters::claim_ext4.value() != 0;
        Ok(Rext4 {
            _registration: kernel_glue::Registration::new(module, claimed.then_some(c"ext4"))?,
        })
    }
}
