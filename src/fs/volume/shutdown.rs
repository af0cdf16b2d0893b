// SPDX-License-Identifier: GPL-2.0

//! Shutting a mounted volume down (`EXT4_IOC_SHUTDOWN`): from then on nothing is written to it, and
//! files are neither read nor written. Programs keep their open files until they close them, and
//! unmounting works.
//!
//! Before that nothing is written out, or what the journal holds, or everything, as the caller
//! asks. The journal is then aborted, so that no handle can be started; the volume stays as a power
//! cut at this moment would leave it.

use crate::{fs::state::Volume, kernel_glue::SuperBlock};
use kernel::{
    prelude::*,
    sync::atomic::{Full, Relaxed},
};

/// All is written out first, and the volume left clean.
const EVERYTHING: u32 = 0;
/// The running transaction is committed first.
const JOURNAL: u32 = 1;
/// Nothing is written out.
const NOTHING: u32 = 2;

/// Shuts the volume down.
///
/// # Errors
///
/// `EINVAL` for flags that are not known, or the error of freezing the volume, with which nothing
/// has happened.
pub(in crate::fs) fn shut_down(volume: &Volume, sb: &SuperBlock<Volume>, how: u32) -> Result {
    if how > NOTHING {
        return Err(EINVAL);
    }
    if volume.check_alive().is_err() {
        return Ok(());
    }
    pr_alert!("{}: shut down requested ({how})\n", sb.name());
    let frozen = match how {
        EVERYTHING => Some(sb.freeze_device()?),
        _ => None,
    };
    let journal = volume.journal();
    if let (JOURNAL, Ok(journal)) = (how, &journal) {
        // An error aborts the journal, which is about to be done anyway.
        let _ = journal.commit(true);
    }
    let was_down = volume.shut_down.xchg(true, Full);
    volume.freed.on.store(false, Relaxed);
    if let Ok(journal) = &journal {
        journal.shut_down();
    }
    drop(frozen);
    if !was_down {
        sb.report_shutdown();
    }
    Ok(())
}

/// The device is gone.
pub(in crate::fs) fn device_gone(volume: &Volume, sb: &SuperBlock<Volume>) {
    // It fails for unknown flags and while freezing only.
    let _ = shut_down(volume, sb, NOTHING);
}
