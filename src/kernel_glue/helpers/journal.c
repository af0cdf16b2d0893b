// SPDX-License-Identifier: GPL-2.0
/* Handles and the journal. */

#include "../helpers.h"

/* jbd2 wants the buffer locked, so that nobody reads it from the disk meanwhile. */
int rext4_create_access(handle_t *handle, struct buffer_head *bh)
{
	int error;

	lock_buffer(bh);
	error = jbd2_journal_get_create_access(handle, bh);
	if (!error) {
		memset(bh->b_data, 0, bh->b_size);
		clear_bit(REXT4_BH_VERIFIED, &bh->b_state);
		set_buffer_uptodate(bh);
	}
	unlock_buffer(bh);
	return error;
}

/* As above for a block that a transaction which is being committed may hold: it gets its own copy of the old contents. */
int rext4_renew_access(handle_t *handle, struct buffer_head *bh)
{
	int error;

	lock_buffer(bh);
	if (!buffer_uptodate(bh)) {
		memset(bh->b_data, 0, bh->b_size);
		set_buffer_uptodate(bh);
	}
	unlock_buffer(bh);
	error = jbd2_journal_get_write_access(handle, bh);
	if (!error) {
		clear_bit(REXT4_BH_VERIFIED, &bh->b_state);
		memset(bh->b_data, 0, bh->b_size);
	}
	return error;
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
void rext4_bitmap_with_committed(struct buffer_head *bh, u8 *out, size_t len)
{
	struct journal_head *jh;
	size_t i;

	memcpy(out, bh->b_data, len);
	jh = jbd2_journal_grab_journal_head(bh);
	if (!jh)
		return;
	spin_lock(&jh->b_state_lock);
	if (jh->b_committed_data)
		for (i = 0; i < len; i++)
			out[i] |= jh->b_committed_data[i];
	spin_unlock(&jh->b_state_lock);
	jbd2_journal_put_journal_head(jh);
}

void rext4_journal_set_barrier(journal_t *journal)
{
	write_lock(&journal->j_state_lock);
	journal->j_flags |= JBD2_BARRIER;
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
