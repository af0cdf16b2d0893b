// SPDX-License-Identifier: GPL-2.0

//! The exit status of the command.

use std::process::ExitCode;

/// Exit status; the values are those of e2fsck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Nothing is wrong.
    Clean = 0,
    /// Something was wrong and has been repaired.
    Repaired = 1,
    /// Something is wrong.
    Corrupt = 4,
    /// The operation could not be completed.
    Failed = 8,
    /// The command line is invalid.
    Usage = 16,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        ExitCode::from(status as u8)
    }
}
