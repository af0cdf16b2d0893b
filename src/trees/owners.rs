// SPDX-License-Identifier: GPL-2.0

//! The interface through which the file system reports changes of owners ([`OwnerIndex`]). Each
//! change is cut at region boundaries, and applied to the trees of each region under its lock.

use super::{cost, index::RmapIndex, region::cut};
use crate::{
    engine::{
        rebuild::Update,
        record::{Kind, Record, Rmap},
        refcount::{Turn, STAGED},
    },
    fs::space::{Owner, OwnerIndex, OwnerKind},
    kernel_glue::{is_interrupted, pause, pause_briefly, Handle},
};
use core::any::Any;
use kernel::{prelude::*, sync::atomic::Relaxed};

/// Delay in microseconds per unit of lag, for a task that has changed owners during a rebuild.
const THROTTLE: u32 = 1000;
/// Number of times, at intervals of 10 ms, that a task that is about to share blocks checks whether
/// the reverse map is complete.
const PATIENCE: u32 = 3000;

/// Returns the change of counts for blocks that are staged or unstaged; `None` for any other
/// record.
fn staging(record: &Rmap, up: bool) -> Option<Turn> {
    (record.kind == Kind::Cow).then_some(Turn {
        start: STAGED | record.start,
        len: record.len,
        up,
    })
}

impl RmapIndex {
    /// Cuts a run of blocks at region boundaries; see [`cut`].
    pub(crate) fn cut(
        &self,
        start: u64,
        len: u32,
        owner: Owner,
        out: &mut impl FnMut(u32, Rmap) -> Result,
    ) -> Result {
        cut(&self.rmap.file.frame, start, len, owner, out)
    }
}

impl OwnerIndex for RmapIndex {
    fn credits(&self, changes: u32) -> u32 {
        // A change may span two regions.
        let counts = self
            .counts()
            .map_or(0, |counts| cost::count_change_stored(counts.level(), 4));
        cost::owner_changes(self.rmap.level(), changes)
            .saturating_add(changes.saturating_mul(counts.saturating_add(cost::ENTRY)))
            .saturating_add(cost::MARK_STALE)
    }

    fn give_credits(&self, blocks: u32) -> u32 {
        self.counts()
            .map_or(0, |counts| cost::count_change_stored(counts.level(), blocks))
    }

    fn add(&self, handle: &Handle, start: u64, len: u32, owner: Owner) -> Result {
        self.cut(start, len, owner, &mut |region, record| {
            self.change(handle, region, &[Update::Add(record)], staging(&record, true))
        })
    }

    fn remove(&self, handle: &Handle, start: u64, len: u32, owner: Owner) -> Result {
        self.cut(start, len, owner, &mut |region, record| {
            self.change(handle, region, &[Update::Remove(record)], staging(&record, false))
        })
    }

    fn convert(&self, handle: &Handle, start: u64, len: u32, ino: u32, offset: u32) -> Result {
        let kind = OwnerKind::Data {
            offset,
            unwritten: true,
        };
        self.cut(start, len, Owner { ino, kind }, &mut |region, old| {
            let new = Rmap {
                unwritten: false,
                ..old
            };
            self.change(handle, region, &[Update::Remove(old), Update::Add(new)], None)
        })
    }

    fn adopt(&self, handle: &Handle, start: u64, len: u32, ino: u32, offset: u32) -> Result {
        let kind = OwnerKind::Data {
            offset,
            unwritten: false,
        };
        self.cut(start, len, Owner { ino, kind }, &mut |region, new| {
            let old = Rmap {
                offset: 0,
                kind: Kind::Cow,
                ..new
            };
            let updates = [Update::Remove(old), Update::Add(new)];
            self.change(handle, region, &updates, staging(&old, false))
        })
    }

    fn share(&self, handle: &Handle, start: u64, len: u32, owner: Owner) -> Result {
        self.cut(start, len, owner, &mut |region, record| {
            let turn = Turn {
                start: record.start,
                len: record.len,
                up: true,
            };
            self.change(handle, region, &[Update::Add(record)], Some(turn))
        })
    }

    fn leave(
        &self,
        handle: &Handle,
        start: u64,
        len: u32,
        owner: Owner,
        lost: &mut KVVec<(u64, u32)>,
    ) -> Result {
        self.cut(start, len, owner, &mut |region, record| {
            let mut region = self.lock(region)?;
            let before = lost.len();
            let mut known = self.lost_by_counts(handle, &mut region, &record, lost)?;
            self.change_owners(handle, &mut region, &[Update::Remove(record)])?;
            if known {
                let freed = lost.get(before..).unwrap_or_default();
                known = self.agrees(handle, &mut region, &record, freed)?;
            }
            if !known {
                lost.truncate(before);
                self.lost_by_owners(&mut region, &record, lost)?;
            }
            let turn = Turn {
                start: record.start,
                len: record.len,
                up: false,
            };
            self.change_counts(handle, &mut region, &turn)
        })
    }

    fn is_owned(&self, start: u64, len: u32) -> Result<bool> {
        let any = Owner {
            ino: 0,
            kind: OwnerKind::Mapping,
        };
        let mut owned = false;
        self.cut(start, len, any, &mut |number, part| {
            let region = self.lock(number)?;
            if region.rmap.good && !owned {
                let looked = self.rmap.look(&region, |tree| {
                    tree.overlapping(part.start, part.last(), &mut |_: &Rmap| {
                        owned = true;
                        Ok(false)
                    })
                });
                // An unreadable tree has no say. The change that follows marks it stale.
                owned &= looked.is_ok();
            }
            Ok(())
        })?;
        Ok(owned)
    }

    fn sharing(&self, start: u64, len: u32) -> Result<(u32, bool)> {
        self.look_up_sharing(start, len)
    }

    fn is_complete(&self) -> Result<bool> {
        for region in 0..self.regions() {
            if !self.lock(region)?.rmap.good {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn prepare_sharing(&self) -> Result {
        self.open_counts(None, false)?;
        // While the reverse map is incomplete, too many blocks count as shared.
        for _ in 0..PATIENCE {
            let mut stale = false;
            for region in 0..self.regions() {
                stale |= !self.lock(region)?.rmap.good;
            }
            if !stale {
                break;
            }
            if is_interrupted() {
                return Err(EINTR);
            }
            self.keeper.kick();
            pause(10);
        }
        Ok(())
    }

    fn shares(&self) -> bool {
        self.sharing_regions() > 0
    }

    fn throttle(&self) {
        // A reported lag delays only the first task that gets here.
        if self.lag.load(Relaxed) > 0 {
            pause_briefly(self.lag.xchg(0, Relaxed) * THROTTLE);
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
