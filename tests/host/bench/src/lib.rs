// SPDX-License-Identifier: GPL-2.0

//! Empty: a package must have a target other than its benchmarks.
