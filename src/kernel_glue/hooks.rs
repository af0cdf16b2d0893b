// SPDX-License-Identifier: GPL-2.0

//! The static key for the watchers of owner changes.
//!
//! C header: [`include/linux/jump_label.h`](srctree/include/linux/jump_label.h)

use super::bindings;
use kernel::jump_label::static_branch_unlikely;

/// Keeps the branch to the watchers enabled, on all volumes, until some time after it is dropped.
///
/// Must be created and dropped without holding locks, since the code of all processors is patched.
pub(crate) struct Hooks(());

impl Hooks {
    /// Enables the branch.
    pub(crate) fn new() -> Self {
        // SAFETY: The key is static. This may sleep, which the caller permits.
        unsafe { bindings::rext4_watched_add() };
        Hooks(())
    }

    /// Disables the branch now if no one keeps it enabled.
    pub(crate) fn flush() {
        // SAFETY: The key is static. This may sleep, which the caller permits.
        unsafe { bindings::rext4_watched_flush() };
    }

    /// Returns true if the branch is enabled, or was until recently. While it is disabled, this
    /// costs no load and no comparison.
    #[inline(always)]
    pub(crate) fn are_on() -> bool {
        // SAFETY: The key is valid, and static.
        unsafe { static_branch_unlikely!(bindings::rext4_watched, bindings::static_key_false_deferred, key) }
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        // SAFETY: `new` incremented the key once.
        unsafe { bindings::rext4_watched_remove() };
    }
}
