// SPDX-License-Identifier: GPL-2.0

//! The static key of the watchers of owner changes.
//!
//! C header: [`include/linux/jump_label.h`](srctree/include/linux/jump_label.h)

use super::bindings;
use kernel::jump_label::static_branch_unlikely;

/// Keeps the branch to the watchers open, on all volumes, until some time after it is dropped.
///
/// Made and dropped with no lock held: the code of all processors is patched.
pub(crate) struct Hooks(());

impl Hooks {
    /// Opens the branch.
    pub(crate) fn new() -> Self {
        // SAFETY: The key is static; this may sleep, which the caller lets it.
        unsafe { bindings::rext4_watched_add() };
        Hooks(())
    }

    /// Closes the branch now if nobody keeps it open.
    pub(crate) fn flush() {
        // SAFETY: The key is static; this may sleep, which the caller lets it.
        unsafe { bindings::rext4_watched_flush() };
    }

    /// Whether anybody keeps it open, or did of late. Costs no load and no comparison while nobody does.
    #[inline(always)]
    pub(crate) fn are_on() -> bool {
        // SAFETY: The key is a real one, and static.
        unsafe { static_branch_unlikely!(bindings::rext4_watched, bindings::static_key_false_deferred, key) }
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        // SAFETY: `new` added one, which is taken back once.
        unsafe { bindings::rext4_watched_remove() };
    }
}
