// SPDX-License-Identifier: GPL-2.0
/* Handles and the journal. */

#include "../helpers.h"

/*
 * jbd2 wants the buffer locked, so that nobody reads it from the disk meanwhile. This and the next two leave the contents
 * borrowed to be written, unless they fail.
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

/* As above for a block that a transaction which is being committed may hold: it gets its own copy of the old contents. */
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

/* jbd2 copies the bitmap, and so nobody may change it meanwhile. */
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
 * jbd2 may wait for a commit to have written the block, for which readers need not wait. Contents that it copies are those
 * of a transaction that nobody changes any more.
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
	if (jh->b_committed_data)
		for (i = 0; i < len; i++)
			out[i] |= jh->b_committed_data[i];
	spin_unlock(&jh->b_state_lock);
	jbd2_journal_put_journal_head(jh);
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

/* The transaction that runs, or else the one that commits, or else the last that did. */
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

/* A task that has a handle of another volume open cannot join it, and jbd2 would stop the machine. */
handle_t *rext4_handle_start(journal_t *journal, int blocks, int revokes)
{
	handle_t *open = journal_current_handle();

	if (WARN_ON_ONCE(open && open->h_transaction && open->h_transaction->t_journal != journal))
		return ERR_PTR(-EDEADLK);
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
 * A volume without a journal: its handles only keep the volume from going read-only meanwhile. A handle inside another of
 * the same task is counted where jbd2 keeps its own, and reclaim stays out of file systems that would look there.
 */
struct rext4_unlogged {
	struct rw_semaphore gate;
	struct super_block *sb;
};

struct rext4_unlogged *rext4_unlogged_new(struct super_block *sb)
{
	struct rext4_unlogged *unlogged = kzalloc(sizeof(*unlogged), GFP_KERNEL);

	if (unlogged) {
		init_rwsem(&unlogged->gate);
		unlogged->sb = sb;
	}
	return unlogged;
}

void rext4_unlogged_free(struct rext4_unlogged *unlogged)
{
	kfree(unlogged);
}

unsigned int rext4_unlogged_begin(struct rext4_unlogged *unlogged)
{
	unsigned long depth = (unsigned long)current->journal_info;
	unsigned int flags = 0;

	if (!depth) {
		flags = memalloc_nofs_save();
		down_read(&unlogged->gate);
	}
	current->journal_info = (void *)(depth + 1);
	return flags;
}

void rext4_unlogged_end(struct rext4_unlogged *unlogged, unsigned int flags)
{
	unsigned long depth = (unsigned long)current->journal_info - 1;

	current->journal_info = (void *)depth;
	if (!depth) {
		up_read(&unlogged->gate);
		memalloc_nofs_restore(flags);
	}
}

void rext4_unlogged_stop(struct rext4_unlogged *unlogged)
{
	down_write(&unlogged->gate);
}

void rext4_unlogged_go_on(struct rext4_unlogged *unlogged)
{
	up_write(&unlogged->gate);
}

struct block_device *rext4_unlogged_device(const struct rext4_unlogged *unlogged)
{
	return unlogged->sb->s_bdev;
}

int rext4_unlogged_sync(struct rext4_unlogged *unlogged)
{
	return sync_blockdev(unlogged->sb->s_bdev);
}

/* A freed block must not be written over what it holds next. */
void rext4_unlogged_forget(struct super_block *sb, sector_t block)
{
	struct buffer_head *bh = sb_find_get_block(sb, block);

	if (bh) {
		wait_on_buffer(bh);
		bforget(bh);
	}
}

/* Leaves the contents borrowed to be written, unless it fails. */
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
