// SPDX-License-Identifier: GPL-2.0

//! The `rext4` command; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    rext4_tools::main()
}
