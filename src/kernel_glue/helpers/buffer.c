// SPDX-License-Identifier: GPL-2.0
/* Metadata blocks in the block device's cache. */

#include <linux/blkdev.h>
#include <linux/buffer_head.h>

#include "../helpers.h"

bool rext4_buffer_verified(const struct buffer_head *bh)
{
	return test_bit(REXT4_BH_VERIFIED, &bh->b_state);
}

void rext4_buffer_set_verified(struct buffer_head *bh)
{
	set_bit(REXT4_BH_VERIFIED, &bh->b_state);
}

/*
 * Reads a block, if it is not cached. A buffer that could not be written is marked as not up to date, but holds contents
 * that are newer than those on disk: they are never read over, as in stock ext4. The check of a block vouches for the
 * contents that were checked, not for others that are read into the same buffer later.
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

/* Where both ends are in the cache the rest is taken to be there. */
void rext4_read_ahead(struct super_block *sb, sector_t block, unsigned int count)
{
	struct blk_plug plug;
	unsigned int i;

	if (count && rext4_block_is_cached(sb, block) && rext4_block_is_cached(sb, block + count - 1))
		return;
	blk_start_plug(&plug);
	for (i = 0; i < count; i++)
		sb_breadahead(sb, block + i);
	blk_finish_plug(&plug);
}

void rext4_buffer_fill(struct buffer_head *bh, const u8 *bytes)
{
	lock_buffer(bh);
	memcpy(bh->b_data, bytes, bh->b_size);
	/* That earlier contents could not be written says nothing of these. */
	clear_buffer_write_io_error(bh);
	set_buffer_uptodate(bh);
	set_bit(REXT4_BH_VERIFIED, &bh->b_state);
	unlock_buffer(bh);
	mark_buffer_dirty(bh);
}

/* A superblock that could not be written is written anew, as in stock ext4. */
int rext4_buffer_write_now(struct buffer_head *bh, size_t offset, const u8 *bytes, size_t len)
{
	lock_buffer(bh);
	memcpy(bh->b_data + offset, bytes, len);
	clear_buffer_write_io_error(bh);
	set_buffer_uptodate(bh);
	unlock_buffer(bh);
	mark_buffer_dirty(bh);
	return sync_dirty_buffer(bh);
}

void rext4_buffer_copy(const struct buffer_head *bh, size_t offset, u8 *out, size_t len)
{
	memcpy(out, bh->b_data + offset, len);
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
