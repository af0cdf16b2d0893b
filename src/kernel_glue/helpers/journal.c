// SPDX-License-Identifier: GPL-2.0
/* Handles and the journal. */

#include <linux/mutex.h>
#include <linux/sched/mm.h>
#include <linux/unaligned.h>
#include <linux/wait.h>

#include "../helpers.h"

/*
 * jbd2 requires the buffer to be locked, so that it is not read from the disk meanwhile. Like the
 * next three functions, this leaves the contents borrowed for writing, unless it fails.
 */
int rext4_create_access(handle_t *handle, struct buffer_head *bh)
{
	int error = rext4_contents_lock(bh, true);

	if (error)
		return error;
	lock_buffer(bh);
	error = jbd2_journal_get_create_access(handle, bh);
	if (!error) {
		memset(bh->b_data, 0, bh->b_size);
		clear_bit(REXT4_BH_VERIFIED, &bh->b_state);
		set_buffer_uptodate(bh);
	}
	unlock_buffer(bh);
	if (error)
		rext4_contents_unlock(bh, true);
	return error;
}

/*
 * Like rext4_create_access(), for a block that the committing transaction may be using: that
 * transaction gets its own copy of the old contents.
 */
int rext4_renew_access(handle_t *handle, struct buffer_head *bh)
{
	int error = rext4_contents_lock(bh, true);

	if (error)
		return error;
	lock_buffer(bh);
	if (!buffer_uptodate(bh)) {
		memset(bh->b_data, 0, bh->b_size);
		set_buffer_uptodate(bh);
	}
	unlock_buffer(bh);
	error = jbd2_journal_get_write_access(handle, bh);
	if (error) {
		rext4_contents_unlock(bh, true);
		return error;
	}
	clear_bit(REXT4_BH_VERIFIED, &bh->b_state);
	memset(bh->b_data, 0, bh->b_size);
	return 0;
}

/* jbd2 copies the bitmap, which must not change meanwhile. */
int rext4_undo_access(handle_t *handle, struct buffer_head *bh)
{
	int error = rext4_contents_lock(bh, true);

	if (error)
		return error;
	error = jbd2_journal_get_undo_access(handle, bh);
	if (error)
		rext4_contents_unlock(bh, true);
	return error;
}

/*
 * jbd2 may wait until a commit has written the block; the borrow comes after that, so that readers
 * need not wait as well. If jbd2 copies the contents, they belong to a transaction that no handle
 * can change any more.
 */
int rext4_write_access(handle_t *handle, struct buffer_head *bh)
{
	int error = jbd2_journal_get_write_access(handle, bh);

	return error ?: rext4_contents_lock(bh, true);
}

/*
 * Bits of a bitmap that the running transaction clears stay set in the committed state. For a block that the committing
 * transaction took, that state is still the one before it, and would call the block free for both.
 */
void rext4_bitmap_hold_freed(struct buffer_head *bh, u32 start, u32 len)
{
	struct journal_head *jh = jbd2_journal_grab_journal_head(bh);
	u32 bit;

	if (!jh)
		return;
	spin_lock(&jh->b_state_lock);
	if (jh->b_committed_data)
		for (bit = start; bit < start + len; bit++)
			__set_bit_le(bit, jh->b_committed_data);
	spin_unlock(&jh->b_state_lock);
	jbd2_journal_put_journal_head(jh);
}

/* jbd2 keeps the committed state of a bitmap only while the transaction that changed it is not on disk. */
int rext4_bitmap_with_committed(struct buffer_head *bh, u8 *out, size_t len)
{
	int error = rext4_buffer_copy(bh, 0, out, len);
	struct journal_head *jh;
	size_t i;

	if (error)
		return error;
	jh = jbd2_journal_grab_journal_head(bh);
	if (!jh)
		return 0;
	spin_lock(&jh->b_state_lock);
	if (jh->b_committed_data) {
		for (i = 0; i + sizeof(u64) <= len; i += sizeof(u64))
			put_unaligned(get_unaligned((u64 *)(out + i)) |
				      get_unaligned((u64 *)(jh->b_committed_data + i)), (u64 *)(out + i));
		for (; i < len; i++)
			out[i] |= jh->b_committed_data[i];
	}
	spin_unlock(&jh->b_state_lock);
	jbd2_journal_put_journal_head(jh);
	return 0;
}

/* Finds the first bit in start..end that rext4_bitmap_with_committed() would set; end if there is none. */
int rext4_bitmap_next_used(struct buffer_head *bh, u32 start, u32 end, u32 *found)
{
	int error = rext4_contents_lock(bh, false);
	struct journal_head *jh;

	if (error)
		return error;
	end = find_next_bit_le(bh->b_data, end, start);
	rext4_contents_unlock(bh, false);
	jh = jbd2_journal_grab_journal_head(bh);
	if (jh) {
		spin_lock(&jh->b_state_lock);
		if (jh->b_committed_data)
			end = find_next_bit_le(jh->b_committed_data, end, start);
		spin_unlock(&jh->b_state_lock);
		jbd2_journal_put_journal_head(jh);
	}
	*found = end;
	return 0;
}

void rext4_journal_tune(journal_t *journal, const struct rext4_journal_tuning *to)
{
	write_lock(&journal->j_state_lock);
	journal->j_commit_interval = to->commit_seconds * HZ;
	journal->j_min_batch_time = to->min_batch_time;
	journal->j_max_batch_time = to->max_batch_time;
	if (to->barrier)
		journal->j_flags |= JBD2_BARRIER;
	else
		journal->j_flags &= ~JBD2_BARRIER;
	write_unlock(&journal->j_state_lock);
}

bool rext4_journal_is_aborted(journal_t *journal)
{
	return is_journal_aborted(journal);
}

/* Returns the running transaction, or else the committing one, or else the last committed one. */
unsigned int rext4_journal_newest_tid(journal_t *journal)
{
	transaction_t *transaction;
	unsigned int tid;

	read_lock(&journal->j_state_lock);
	transaction = journal->j_running_transaction ?: journal->j_committing_transaction;
	tid = transaction ? transaction->t_tid : journal->j_commit_sequence;
	read_unlock(&journal->j_state_lock);
	return tid;
}

/*
 * current->journal_info is either a handle of jbd2 or, as in stock ext4, the number of the task's
 * handles without a journal, which is too small for a pointer.
 */
#define REXT4_UNLOGGED_COUNT	GENMASK(10, 0)
/* Set if the task already ran under memalloc_nofs_save() before the first of these handles. */
#define REXT4_UNLOGGED_NOFS	BIT(11)
#define REXT4_UNLOGGED_LIMIT	BIT(12)

/* A task that has a handle of another volume open cannot join it, and jbd2 would stop the machine. */
handle_t *rext4_handle_start(journal_t *journal, int blocks, int revokes)
{
	handle_t *open = journal_current_handle();

	if (WARN_ON_ONCE(open && (unsigned long)open < REXT4_UNLOGGED_LIMIT))
		return ERR_PTR(-EDEADLK);
	if (WARN_ON_ONCE(open && open->h_transaction && open->h_transaction->t_journal != journal))
		return ERR_PTR(-EDEADLK);
	/* Whatever starts one on a frozen volume has left out the guard that a freeze waits for. */
	WARN_ON_ONCE(journal->j_inode && journal->j_inode->i_sb->s_writers.frozen == SB_FREEZE_COMPLETE);
	return jbd2__journal_start(journal, blocks, 0, revokes, GFP_NOFS, 0, 0);
}

int rext4_handle_credits(handle_t *handle)
{
	return jbd2_handle_buffer_credits(handle);
}

int rext4_handle_revokes(handle_t *handle)
{
	return handle->h_revoke_credits;
}

unsigned int rext4_handle_tid(handle_t *handle)
{
	return handle->h_transaction ? handle->h_transaction->t_tid : 0;
}

void rext4_handle_set_sync(handle_t *handle)
{
	handle->h_sync = 1;
}

int rext4_revoke(handle_t *handle, struct super_block *sb, sector_t block)
{
	return jbd2_journal_revoke(handle, block, sb_find_get_block(sb, block));
}

unsigned int rext4_journal_room(journal_t *journal)
{
	return journal->j_max_transaction_buffers;
}

/*
 * A volume without a journal. Its handles only keep the volume from becoming read-only meanwhile.
 * Each volume counts its own, so they may end in any order. Reclaim must not enter file systems
 * that would look at current->journal_info.
 */
struct rext4_unlogged {
	atomic_t open;			/* handles */
	bool stopped;			/* no task may start its first handle */
	struct mutex stopping;		/* held while that is so */
	wait_queue_head_t wait;		/* for either to change */
	struct super_block *sb;
};

struct rext4_unlogged *rext4_unlogged_new(struct super_block *sb)
{
	struct rext4_unlogged *unlogged = kzalloc(sizeof(*unlogged), GFP_KERNEL);

	if (unlogged) {
		mutex_init(&unlogged->stopping);
		init_waitqueue_head(&unlogged->wait);
		unlogged->sb = sb;
	}
	return unlogged;
}

void rext4_unlogged_free(struct rext4_unlogged *unlogged)
{
	kfree(unlogged);
}

static void rext4_unlogged_leave(struct rext4_unlogged *unlogged)
{
	/* Orders the count before the look, as rext4_unlogged_stop() does the other way round. */
	if (atomic_dec_and_test(&unlogged->open) && READ_ONCE(unlogged->stopped))
		wake_up_all(&unlogged->wait);
}

/* Fails with EDEADLK in a handle of jbd2. */
int rext4_unlogged_begin(struct rext4_unlogged *unlogged)
{
	unsigned long info = (unsigned long)current->journal_info;

	if (WARN_ON_ONCE(info >= REXT4_UNLOGGED_LIMIT || (info & REXT4_UNLOGGED_COUNT) == REXT4_UNLOGGED_COUNT))
		return -EDEADLK;
	atomic_inc(&unlogged->open);
	if (!info) {
		smp_mb__after_atomic();
		while (READ_ONCE(unlogged->stopped)) {
			rext4_unlogged_leave(unlogged);
			wait_event(unlogged->wait, !READ_ONCE(unlogged->stopped));
			atomic_inc(&unlogged->open);
			smp_mb__after_atomic();
		}
		info = memalloc_nofs_save() ? REXT4_UNLOGGED_NOFS : 0;
	}
	current->journal_info = (void *)(info + 1);
	return 0;
}

void rext4_unlogged_end(struct rext4_unlogged *unlogged)
{
	unsigned long info = (unsigned long)current->journal_info - 1;

	if (!(info & REXT4_UNLOGGED_COUNT)) {
		memalloc_nofs_restore(info & REXT4_UNLOGGED_NOFS ? PF_MEMALLOC_NOFS : 0);
		info = 0;
	}
	current->journal_info = (void *)info;
	rext4_unlogged_leave(unlogged);
}

void rext4_unlogged_stop(struct rext4_unlogged *unlogged)
{
	mutex_lock(&unlogged->stopping);
	WRITE_ONCE(unlogged->stopped, true);
	smp_mb();
	wait_event(unlogged->wait, !atomic_read(&unlogged->open));
}

void rext4_unlogged_go_on(struct rext4_unlogged *unlogged)
{
	WRITE_ONCE(unlogged->stopped, false);
	wake_up_all(&unlogged->wait);
	mutex_unlock(&unlogged->stopping);
}

struct block_device *rext4_unlogged_device(const struct rext4_unlogged *unlogged)
{
	return unlogged->sb->s_bdev;
}

int rext4_unlogged_sync(struct rext4_unlogged *unlogged)
{
	return sync_blockdev(unlogged->sb->s_bdev);
}

/* A buffer of a freed block must not be written over the block's next contents. */
void rext4_unlogged_forget(struct super_block *sb, sector_t block)
{
	struct buffer_head *bh = sb_find_get_block(sb, block);

	if (bh) {
		wait_on_buffer(bh);
		bforget(bh);
	}
}

/* Leaves the contents borrowed for writing, unless it fails. */
int rext4_unlogged_clear(struct buffer_head *bh)
{
	int error = rext4_contents_lock(bh, true);

	if (error)
		return error;
	lock_buffer(bh);
	memset(bh->b_data, 0, bh->b_size);
	clear_bit(REXT4_BH_VERIFIED, &bh->b_state);
	set_buffer_uptodate(bh);
	unlock_buffer(bh);
	return 0;
}
