// SPDX-License-Identifier: GPL-2.0

//! Nothing: a package must have a target besides its benches.
