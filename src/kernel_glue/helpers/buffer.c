// SPDX-License-Identifier: GPL-2.0
/* Metadata blocks in the block device's buffer cache. */

#include <linux/blkdev.h>
#include <linux/buffer_head.h>
#include <linux/wait_bit.h>

#include "../helpers.h"

/*
 * The contents of a buffer are borrowed before they are accessed: shared for reading, exclusively
 * for writing. Bits of b_state that neither the buffer cache nor jbd2 uses count the borrows. The
 * locks of the structures in a block already exclude readers from writers, so a borrow waits only
 * for blocks that hold several structures with a lock each (group descriptors, entries of the
 * region table), and those are borrowed just for a copy. A borrow that is not granted within 30
 * seconds fails, so that a task which waits for itself does not hang.
 */
#define REXT4_CONTENTS_WAITED	BIT(38)
#define REXT4_CONTENTS_WRITTEN	BIT(39)
#define REXT4_CONTENTS_READER	BIT(40)
#define REXT4_CONTENTS_READERS	GENMASK(62, 40)

static_assert(BITS_PER_LONG == 64 && REXT4_BH_VERIFIED < 38);

static bool rext4_contents_try(struct buffer_head *bh, bool write)
{
	unsigned long refused = REXT4_CONTENTS_WRITTEN | (write ? REXT4_CONTENTS_READERS : 0);
	unsigned long old = READ_ONCE(bh->b_state);
	unsigned long new;

	do {
		if (old & refused || (old & REXT4_CONTENTS_READERS) == REXT4_CONTENTS_READERS)
			return false;
		new = write ? old | REXT4_CONTENTS_WRITTEN : old + REXT4_CONTENTS_READER;
	} while (!try_cmpxchg_acquire(&bh->b_state, &old, new));
	return true;
}

/* An unlock after the mark was set wakes us; an earlier one lets the second try succeed. */
static bool rext4_contents_try_or_mark(struct buffer_head *bh, bool write)
{
	if (rext4_contents_try(bh, write))
		return true;
	set_bit(__ffs(REXT4_CONTENTS_WAITED), &bh->b_state);
	smp_mb__after_atomic();
	return rext4_contents_try(bh, write);
}

static noinline int rext4_contents_wait(struct buffer_head *bh, bool write)
{
	int i;

	for (i = 0; i < 100; i++) {
		cpu_relax();
		if (rext4_contents_try(bh, write))
			return 0;
	}
	if (wait_var_event_timeout(&bh->b_state, rext4_contents_try_or_mark(bh, write), 30 * HZ))
		return 0;
	WARN_ONCE(1, "rext4: %pg: block %llu stays in use\n", bh->b_bdev, (u64)bh->b_blocknr);
	return -EDEADLK;
}

/* Borrows the contents until rext4_contents_unlock(). Fails with EDEADLK. */
int rext4_contents_lock(struct buffer_head *bh, bool write)
{
	return likely(rext4_contents_try(bh, write)) ? 0 : rext4_contents_wait(bh, write);
}

void rext4_contents_unlock(struct buffer_head *bh, bool write)
{
	unsigned long old = READ_ONCE(bh->b_state);
	unsigned long new;

	do {
		new = write ? old & ~REXT4_CONTENTS_WRITTEN : old - REXT4_CONTENTS_READER;
		new &= ~REXT4_CONTENTS_WAITED;
	} while (!try_cmpxchg_release(&bh->b_state, &old, new));
	if (unlikely(old & REXT4_CONTENTS_WAITED)) {
		smp_mb();
		wake_up_var(&bh->b_state);
	}
}

bool rext4_buffer_verified(const struct buffer_head *bh)
{
	return test_bit(REXT4_BH_VERIFIED, &bh->b_state);
}

void rext4_buffer_set_verified(struct buffer_head *bh)
{
	set_bit(REXT4_BH_VERIFIED, &bh->b_state);
}

/*
 * Reads a block unless it is cached. After a write error a buffer is marked as not up to date, but
 * its contents are newer than those on disk, so it is never read again, as in stock ext4. The
 * "verified" flag applies to the contents that were checked, not to those read into the same buffer
 * later.
 */
struct buffer_head *rext4_sb_bread(struct super_block *sb, sector_t block)
{
	struct buffer_head *bh = sb_getblk(sb, block);

	if (!bh)
		return NULL;
	if (!buffer_uptodate(bh) || buffer_write_io_error(bh)) {
		lock_buffer(bh);
		if (buffer_write_io_error(bh))
			set_buffer_uptodate(bh);
		clear_bit(REXT4_BH_VERIFIED, &bh->b_state);
		if (buffer_uptodate(bh))
			unlock_buffer(bh);
		else if (__bh_read(bh, REQ_META | REQ_PRIO, true) < 0) {
			brelse(bh);
			return NULL;
		}
	}
	return bh;
}

struct buffer_head *rext4_sb_getblk(struct super_block *sb, sector_t block)
{
	return sb_getblk(sb, block);
}

void rext4_get_bh(struct buffer_head *bh)
{
	get_bh(bh);
}

void rext4_brelse(struct buffer_head *bh)
{
	brelse(bh);
}

bool rext4_block_is_cached(struct super_block *sb, sector_t block)
{
	struct buffer_head *bh = sb_find_get_block(sb, block);
	bool cached = bh && buffer_uptodate(bh);

	brelse(bh);
	return cached;
}

/* If the first and the last block are cached, the others are assumed to be cached, too. */
void rext4_read_ahead(struct super_block *sb, sector_t block, unsigned int count)
{
	struct blk_plug plug;
	unsigned int i;

	if (count && rext4_block_is_cached(sb, block) && rext4_block_is_cached(sb, block + count - 1))
		return;
	blk_start_plug(&plug);
	for (i = 0; i < count; i++) {
		struct buffer_head *bh = sb_getblk(sb, block + i);

		/* Contents that could not be written are not read over, as in rext4_sb_bread(). */
		if (bh && !buffer_uptodate(bh) && trylock_buffer(bh)) {
			if (buffer_uptodate(bh) || buffer_write_io_error(bh))
				unlock_buffer(bh);
			else
				__bh_read(bh, REQ_RAHEAD, false);
		}
		brelse(bh);
	}
	blk_finish_plug(&plug);
}

int rext4_buffer_fill(struct buffer_head *bh, const u8 *bytes)
{
	int error = rext4_contents_lock(bh, true);

	if (error)
		return error;
	lock_buffer(bh);
	memcpy(bh->b_data, bytes, bh->b_size);
	/* An earlier write error does not concern the new contents. */
	clear_buffer_write_io_error(bh);
	set_buffer_uptodate(bh);
	set_bit(REXT4_BH_VERIFIED, &bh->b_state);
	unlock_buffer(bh);
	mark_buffer_dirty(bh);
	rext4_contents_unlock(bh, true);
	return 0;
}

/* After a write error, the superblock is written again, as in stock ext4. */
int rext4_buffer_write_now(struct buffer_head *bh, size_t offset, const u8 *bytes, size_t len)
{
	int error = rext4_contents_lock(bh, true);

	if (error)
		return error;
	lock_buffer(bh);
	memcpy(bh->b_data + offset, bytes, len);
	clear_buffer_write_io_error(bh);
	set_buffer_uptodate(bh);
	unlock_buffer(bh);
	mark_buffer_dirty(bh);
	rext4_contents_unlock(bh, true);
	return sync_dirty_buffer(bh);
}

int rext4_buffer_copy(struct buffer_head *bh, size_t offset, u8 *out, size_t len)
{
	int error = rext4_contents_lock(bh, false);

	if (error)
		return error;
	memcpy(out, bh->b_data + offset, len);
	rext4_contents_unlock(bh, false);
	return 0;
}

void rext4_buffers_submit(struct buffer_head *const *bhs, size_t count)
{
	struct blk_plug plug;
	size_t i;

	blk_start_plug(&plug);
	for (i = 0; i < count; i++)
		write_dirty_buffer(bhs[i], 0);
	blk_finish_plug(&plug);
}

int rext4_buffer_wait(struct buffer_head *bh)
{
	wait_on_buffer(bh);
	return buffer_uptodate(bh) && !buffer_write_io_error(bh) ? 0 : -EIO;
}
