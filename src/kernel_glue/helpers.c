// SPDX-License-Identifier: GPL-2.0
/* The bodies of helpers.h: nothing but the call that Rust cannot make. */

#include <linux/blkdev.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/file.h>
#include <linux/pagemap.h>
#include <linux/percpu-rwsem.h>
#include <linux/part_stat.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/security.h>
#include <linux/seq_file.h>
#include <linux/shmem_fs.h>
#include <linux/statfs.h>
#include <linux/workqueue.h>
#include <linux/xattr.h>

#include "helpers.h"

struct file_system_type *rext4_fs_type(bool other)
{
	static struct file_system_type types[2];

	return &types[other];
}

struct buffer_head *rext4_sb_bread(struct super_block *sb, sector_t block)
{
	return sb_bread(sb, block);
}

void rext4_get_bh(struct buffer_head *bh)
{
	get_bh(bh);
}

void rext4_brelse(struct buffer_head *bh)
{
	brelse(bh);
}

/* The first of the buffer state bits that are left to a file system whose buffers jbd2 also uses. */
#define REXT4_BH_VERIFIED BH_JBDPrivateStart

bool rext4_buffer_verified(const struct buffer_head *bh)
{
	return test_bit(REXT4_BH_VERIFIED, &bh->b_state);
}

void rext4_buffer_set_verified(struct buffer_head *bh)
{
	set_bit(REXT4_BH_VERIFIED, &bh->b_state);
}

struct buffer_head *rext4_sb_getblk(struct super_block *sb, sector_t block)
{
	return sb_getblk(sb, block);
}

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

bool rext4_may_use_reserve(u32 uid, u32 gid)
{
	kgid_t group = make_kgid(&init_user_ns, gid);

	return uid_eq(make_kuid(&init_user_ns, uid), current_fsuid()) || (gid && in_group_p(group)) ||
	       capable(CAP_SYS_RESOURCE);
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

u64 rext4_sb_bytes(struct super_block *sb)
{
	return bdev_nr_bytes(sb->s_bdev);
}

bool rext4_sb_device_read_only(struct super_block *sb)
{
	return bdev_read_only(sb->s_bdev);
}

u64 rext4_sb_device_id(struct super_block *sb)
{
	return huge_encode_dev(sb->s_bdev->bd_dev);
}

u64 rext4_sb_sectors_written(struct super_block *sb)
{
	return part_stat_read(sb->s_bdev, sectors[STAT_WRITE]);
}

struct kmem_cache *rext4_inode_cache(const char *name, unsigned int size, unsigned int align, void (*ctor)(void *))
{
	return kmem_cache_create(name, size, align, SLAB_RECLAIM_ACCOUNT | SLAB_ACCOUNT, ctor);
}

void *rext4_inode_alloc(struct super_block *sb, struct kmem_cache *cache)
{
	return alloc_inode_sb(sb, cache, GFP_NOFS);
}

bool rext4_wbc_waits(struct writeback_control *wbc)
{
	return wbc->sync_mode == WB_SYNC_ALL && !wbc->for_sync;
}

void rext4_start_internal_write(struct super_block *sb)
{
	sb_start_intwrite(sb);
}

void rext4_end_internal_write(struct super_block *sb)
{
	sb_end_intwrite(sb);
}

int rext4_flush_device(struct super_block *sb)
{
	return blkdev_issue_flush(sb->s_bdev);
}

int rext4_zero_out(struct super_block *sb, sector_t block, sector_t count)
{
	return sb_issue_zeroout(sb, block, count, GFP_NOFS);
}

void rext4_set_read_only(struct super_block *sb)
{
	sb->s_flags |= SB_RDONLY;
}

void rext4_panic(const char *device)
{
	if (system_state < SYSTEM_HALT)
		panic("rext4: %s: panic forced after error\n", device);
}

void rext4_show_option(struct seq_file *file, const char *option)
{
	seq_printf(file, ",%s", option);
}

u32 rext4_inode_uid(const struct inode *inode)
{
	return i_uid_read(inode);
}

u32 rext4_inode_gid(const struct inode *inode)
{
	return i_gid_read(inode);
}

/* Change, modification and access time, in this order. */
void rext4_inode_get_times(const struct inode *inode, time64_t *sec, u32 *nsec)
{
	sec[0] = inode_get_ctime_sec(inode);
	nsec[0] = inode_get_ctime_nsec(inode);
	sec[1] = inode_get_mtime_sec(inode);
	nsec[1] = inode_get_mtime_nsec(inode);
	sec[2] = inode_get_atime_sec(inode);
	nsec[2] = inode_get_atime_nsec(inode);
}

void rext4_inode_touch(struct inode *inode, bool modified)
{
	struct timespec64 now = inode_set_ctime_current(inode);

	if (modified)
		inode_set_mtime_to_ts(inode, now);
}

void rext4_inode_init_times(struct inode *inode)
{
	simple_inode_init_ts(inode);
}

void rext4_inode_add_sectors(struct inode *inode, s64 sectors)
{
	spin_lock(&inode->i_lock);
	inode->i_blocks += sectors;
	spin_unlock(&inode->i_lock);
}

time64_t rext4_now(void)
{
	return ktime_get_real_seconds();
}

u64 rext4_inodes_cached(struct super_block *sb, u64 first, unsigned int count)
{
	u64 cached = 0;
	unsigned int i;

	rcu_read_lock();
	for (i = 0; i < count && i < 64; i++)
		if (find_inode_by_ino_rcu(sb, first + i))
			cached |= 1ULL << i;
	rcu_read_unlock();
	return cached;
}

/* An inode that is in the cache and has a name, without waiting for one that comes or goes. */
struct inode *rext4_inode_grab(struct super_block *sb, u64 ino)
{
	struct inode *inode;

	rcu_read_lock();
	inode = find_inode_by_ino_rcu(sb, ino);
	if (inode)
		inode = READ_ONCE(inode->i_nlink) ? igrab(inode) : NULL;
	rcu_read_unlock();
	return inode;
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

bool rext4_inode_is_new(struct inode *inode)
{
	return inode_state_read_once(inode) & I_NEW;
}

void rext4_inode_set_owner(struct inode *inode, u32 uid, u32 gid)
{
	i_uid_write(inode, uid);
	i_gid_write(inode, gid);
}

void rext4_inode_set_times(struct inode *inode, time64_t asec, u32 ansec, time64_t csec, u32 cnsec, time64_t msec,
			   u32 mnsec)
{
	inode_set_atime(inode, asec, ansec);
	inode_set_ctime(inode, csec, cnsec);
	inode_set_mtime(inode, msec, mnsec);
}

void rext4_inode_set_size(struct inode *inode, loff_t size)
{
	i_size_write(inode, size);
}

void rext4_mapping_set_large_folios(struct inode *inode)
{
	mapping_set_large_folios(inode->i_mapping);
}

struct posix_acl *rext4_acl_new(const struct rext4_acl_entry *entries, unsigned int count)
{
	struct posix_acl *acl = posix_acl_alloc(count, GFP_NOFS);
	unsigned int i;

	if (!acl)
		return ERR_PTR(-ENOMEM);
	for (i = 0; i < count; i++) {
		acl->a_entries[i].e_tag = entries[i].tag;
		acl->a_entries[i].e_perm = entries[i].permissions;
		if (entries[i].tag == ACL_USER)
			acl->a_entries[i].e_uid = make_kuid(&init_user_ns, entries[i].id);
		else if (entries[i].tag == ACL_GROUP)
			acl->a_entries[i].e_gid = make_kgid(&init_user_ns, entries[i].id);
	}
	if (posix_acl_valid(&init_user_ns, acl)) {
		posix_acl_release(acl);
		return ERR_PTR(-EUCLEAN);
	}
	return acl;
}

void rext4_acl_release(struct posix_acl *acl)
{
	posix_acl_release(acl);
}

unsigned int rext4_acl_count(const struct posix_acl *acl)
{
	return acl->a_count;
}

void rext4_acl_entry(const struct posix_acl *acl, unsigned int number, struct rext4_acl_entry *entry)
{
	const struct posix_acl_entry *from = &acl->a_entries[number];

	entry->tag = from->e_tag;
	entry->permissions = from->e_perm;
	entry->id = 0;
	if (from->e_tag == ACL_USER)
		entry->id = from_kuid(&init_user_ns, from->e_uid);
	else if (from->e_tag == ACL_GROUP)
		entry->id = from_kgid(&init_user_ns, from->e_gid);
}

struct rext4_labels {
	rext4_take_label take;
	void *data;
};

static int rext4_take_labels(struct inode *inode, const struct xattr *labels, void *info)
{
	struct rext4_labels *to = info;
	int error;

	for (; labels->name; labels++) {
		error = to->take(to->data, labels->name, labels->value, labels->value_len);
		if (error)
			return error;
	}
	return 0;
}

int rext4_init_security(struct inode *inode, struct inode *dir, const char *name, u32 len, rext4_take_label take,
			void *data)
{
	struct qstr last = QSTR_INIT(name, len);
	struct rext4_labels to = { .take = take, .data = data };

	return security_inode_init_security(inode, dir, &last, rext4_take_labels, &to);
}

static struct percpu_rw_semaphore *rext4_stage(struct super_block *sb, int stage)
{
	return &sb->s_writers.rw_sem[stage - 1];
}

int rext4_hold_writers(struct super_block *sb)
{
	int error;

	percpu_down_write(rext4_stage(sb, SB_FREEZE_WRITE));
	down_read(&sb->s_umount);
	percpu_down_write(rext4_stage(sb, SB_FREEZE_PAGEFAULT));
	/* Cleaned pages are write-protected, so that who has them mapped must ask again. */
	error = sync_filesystem(sb);
	up_read(&sb->s_umount);
	if (error) {
		percpu_up_write(rext4_stage(sb, SB_FREEZE_PAGEFAULT));
		percpu_up_write(rext4_stage(sb, SB_FREEZE_WRITE));
		return error;
	}
	/* The task goes back to its program with them held, and another one may give them back. */
	percpu_rwsem_release(rext4_stage(sb, SB_FREEZE_PAGEFAULT), _THIS_IP_);
	percpu_rwsem_release(rext4_stage(sb, SB_FREEZE_WRITE), _THIS_IP_);
	return 0;
}

void rext4_release_writers(struct super_block *sb)
{
	percpu_rwsem_acquire(rext4_stage(sb, SB_FREEZE_WRITE), 0, _THIS_IP_);
	percpu_rwsem_acquire(rext4_stage(sb, SB_FREEZE_PAGEFAULT), 0, _THIS_IP_);
	percpu_up_write(rext4_stage(sb, SB_FREEZE_PAGEFAULT));
	percpu_up_write(rext4_stage(sb, SB_FREEZE_WRITE));
}

int rext4_clone_held(struct file *to, unsigned int from_fd)
{
	CLASS(fd, from)(from_fd);
	struct file *source;
	loff_t done;

	if (fd_empty(from))
		return -EBADF;
	source = fd_file(from);
	if (file_inode(source)->i_sb != file_inode(to)->i_sb)
		return -EXDEV;
	if (!S_ISREG(file_inode(source)->i_mode) || !S_ISREG(file_inode(to)->i_mode))
		return -EINVAL;
	if (!(source->f_mode & FMODE_READ) || !(to->f_mode & FMODE_WRITE) || (to->f_flags & O_APPEND))
		return -EBADF;
	if (!to->f_op->remap_file_range)
		return -EOPNOTSUPP;
	done = to->f_op->remap_file_range(source, 0, to, 0, 0, 0);
	return done < 0 ? done : 0;
}

int rext4_stat(struct mnt_idmap *idmap, const struct path *path, struct kstat *stat, u32 mask, u32 hidden_links)
{
	generic_fillattr(idmap, mask, d_inode(path->dentry), stat);
	if (stat->nlink > hidden_links)
		stat->nlink -= hidden_links;
	return 0;
}

bool rext4_dir_emit(struct dir_context *ctx, const char *name, int len, u64 ino, unsigned int type)
{
	return dir_emit(ctx, name, len, ino, type);
}

void rext4_set_delayed_free(struct delayed_call *call, void *memory)
{
	set_delayed_call(call, kfree_link, memory);
}

void rext4_bio_read_folio(struct folio *folio, const struct iomap_ops *ops)
{
	iomap_bio_read_folio(folio, ops);
}

void rext4_bio_readahead(struct readahead_control *rac, const struct iomap_ops *ops)
{
	iomap_bio_readahead(rac, ops);
}

void rext4_inode_lock(struct inode *inode)
{
	inode_lock(inode);
}

void rext4_inode_unlock(struct inode *inode)
{
	inode_unlock(inode);
}

void rext4_inode_lock_shared(struct inode *inode)
{
	inode_lock_shared(inode);
}

void rext4_inode_unlock_shared(struct inode *inode)
{
	inode_unlock_shared(inode);
}

void rext4_inode_downgrade(struct inode *inode)
{
	downgrade_write(&inode->i_rwsem);
}

bool rext4_inode_trylock(struct inode *inode)
{
	return inode_trylock(inode);
}

bool rext4_faults_trylock(struct inode *inode)
{
	return down_write_trylock(&inode->i_mapping->invalidate_lock);
}

/* Nothing of the file waits for being written, or is on its way. */
bool rext4_mapping_is_clean(struct inode *inode)
{
	return !mapping_tagged(inode->i_mapping, PAGECACHE_TAG_DIRTY) &&
	       !mapping_tagged(inode->i_mapping, PAGECACHE_TAG_WRITEBACK) && !atomic_read(&inode->i_dio_count);
}

bool rext4_inode_has_writers(struct inode *inode)
{
	return atomic_read(&inode->i_writecount) > 0;
}

/* Asked while the file is being closed, and still counts. */
bool rext4_file_is_last_writer(struct file *file)
{
	return file->f_mode & FMODE_WRITE && atomic_read(&file_inode(file)->i_writecount) <= 1;
}

void rext4_file_allow_direct(struct file *file)
{
	file->f_mode |= FMODE_CAN_ODIRECT;
}

bool rext4_file_is_sync(struct file *file)
{
	return file->f_flags & (__O_SYNC | O_DSYNC) || IS_SYNC(file_inode(file));
}

unsigned int rext4_sector_bytes(struct inode *inode)
{
	return bdev_logical_block_size(inode->i_sb->s_bdev);
}

size_t rext4_iter_count(const struct iov_iter *iter)
{
	return iov_iter_count(iter);
}

void rext4_file_accessed(struct file *file)
{
	file_accessed(file);
}

bool rext4_is_dying(void)
{
	return fatal_signal_pending(current);
}

void rext4_remap_unlock(struct inode *in, struct inode *out)
{
	filemap_invalidate_unlock_two(in->i_mapping, out->i_mapping);
	unlock_two_nondirectories(in, out);
}

void rext4_faults_lock(struct inode *inode)
{
	filemap_invalidate_lock(inode->i_mapping);
}

void rext4_faults_unlock(struct inode *inode)
{
	filemap_invalidate_unlock(inode->i_mapping);
}

ssize_t rext4_write_sync(struct kiocb *iocb, ssize_t count)
{
	return generic_write_sync(iocb, count);
}

vm_fault_t rext4_page_mkwrite(struct vm_fault *vmf, const struct iomap_ops *ops)
{
	struct inode *inode = file_inode(vmf->vma->vm_file);
	vm_fault_t done;

	sb_start_pagefault(inode->i_sb);
	file_update_time(vmf->vma->vm_file);
	filemap_invalidate_lock_shared(inode->i_mapping);
	done = iomap_page_mkwrite(vmf, ops, NULL);
	filemap_invalidate_unlock_shared(inode->i_mapping);
	sb_end_pagefault(inode->i_sb);
	return done;
}

/* Writeback whose I/O is done waits here for a worker: what follows takes locks that interrupts may not. */
static LIST_HEAD(rext4_ioends);
static DEFINE_SPINLOCK(rext4_ioends_lock);
static struct workqueue_struct *rext4_ioends_queue;
static void (*rext4_ioends_finish)(struct iomap_ioend *ioend, int error);

static void rext4_ioends_work_fn(struct work_struct *work)
{
	struct iomap_ioend *ioend;
	LIST_HEAD(done);

	spin_lock_irq(&rext4_ioends_lock);
	list_splice_init(&rext4_ioends, &done);
	spin_unlock_irq(&rext4_ioends_lock);
	while ((ioend = list_first_entry_or_null(&done, struct iomap_ioend, io_list))) {
		list_del_init(&ioend->io_list);
		rext4_ioends_finish(ioend, blk_status_to_errno(ioend->io_bio.bi_status));
		cond_resched();
	}
}

static DECLARE_WORK(rext4_ioends_work, rext4_ioends_work_fn);

static void rext4_ioend_end_io(struct bio *bio)
{
	struct iomap_ioend *ioend = iomap_ioend_from_bio(bio);
	unsigned long flags;

	spin_lock_irqsave(&rext4_ioends_lock, flags);
	list_add_tail(&ioend->io_list, &rext4_ioends);
	spin_unlock_irqrestore(&rext4_ioends_lock, flags);
	queue_work(rext4_ioends_queue, &rext4_ioends_work);
}

int rext4_ioends_start(void (*finish)(struct iomap_ioend *ioend, int error))
{
	rext4_ioends_finish = finish;
	rext4_ioends_queue = alloc_workqueue("rext4", WQ_MEM_RECLAIM | WQ_UNBOUND, 0);
	return rext4_ioends_queue ? 0 : -ENOMEM;
}

void rext4_ioends_stop(void)
{
	destroy_workqueue(rext4_ioends_queue);
}

void rext4_ioend_defer(struct iomap_ioend *ioend)
{
	ioend->io_bio.bi_end_io = rext4_ioend_end_io;
}

DEFINE_STATIC_KEY_DEFERRED_FALSE(rext4_watched, 30 * HZ);

void rext4_watched_add(void)
{
	static_branch_deferred_inc(&rext4_watched);
}

void rext4_watched_remove(void)
{
	static_branch_slow_dec_deferred(&rext4_watched);
}

void rext4_watched_flush(void)
{
	static_key_deferred_flush(&rext4_watched);
}

unsigned int rext4_no_reclaim_begin(void)
{
	return memalloc_nofs_save();
}

void rext4_no_reclaim_end(unsigned int flags)
{
	memalloc_nofs_restore(flags);
}

void rext4_buffer_fill(struct buffer_head *bh, const u8 *bytes)
{
	lock_buffer(bh);
	memcpy(bh->b_data, bytes, bh->b_size);
	set_buffer_uptodate(bh);
	set_bit(REXT4_BH_VERIFIED, &bh->b_state);
	unlock_buffer(bh);
	mark_buffer_dirty(bh);
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

unsigned int rext4_journal_room(journal_t *journal)
{
	return journal->j_max_transaction_buffers;
}

bool rext4_is_admin(void)
{
	return capable(CAP_SYS_ADMIN);
}

bool rext4_is_interrupted(void)
{
	return signal_pending(current);
}

unsigned int rext4_processors(void)
{
	return num_online_cpus();
}

void rext4_pause(unsigned int milliseconds)
{
	msleep(milliseconds);
}

/* On a timer of its own: msleep() takes up to three ticks for one. */
void rext4_pause_briefly(unsigned int microseconds)
{
	if (microseconds)
		usleep_range(microseconds, microseconds + microseconds / 2);
}

struct rext4_background {
	struct work_struct work;
	void (*run)(void *data);
	void *data;
};

static void rext4_background_fn(struct work_struct *work)
{
	struct rext4_background *background = container_of(work, struct rext4_background, work);

	background->run(background->data);
}

/* A macro, so that each user's work is of a lock class of its own: work may wait for work of another kind. */
#define rext4_background_init(background, function, argument)		\
	do {								\
		INIT_WORK(&(background)->work, rext4_background_fn);	\
		(background)->run = (function);				\
		(background)->data = (argument);			\
	} while (0)

/* Runs a function in so many threads at once, the caller's among them, and waits for all. */
int rext4_run_parallel(void (*run)(void *data), void *data, unsigned int count)
{
	unsigned int others = count > 1 ? count - 1 : 0;
	struct rext4_background *parts = kcalloc(others, sizeof(*parts), GFP_KERNEL);
	unsigned int i;

	if (others && !parts)
		return -ENOMEM;
	for (i = 0; i < others; i++) {
		rext4_background_init(&parts[i], run, data);
		queue_work(system_dfl_wq, &parts[i].work);
	}
	run(data);
	for (i = 0; i < others; i++)
		flush_work(&parts[i].work);
	kfree(parts);
	return 0;
}

struct rext4_background *rext4_background_new(void (*run)(void *data), void *data)
{
	struct rext4_background *background = kzalloc(sizeof(*background), GFP_KERNEL);

	if (background)
		rext4_background_init(background, run, data);
	return background;
}

void rext4_background_start(struct rext4_background *background)
{
	queue_work(system_dfl_long_wq, &background->work);
}

void rext4_background_free(struct rext4_background *background)
{
	cancel_work_sync(&background->work);
	kfree(background);
}

#ifdef CONFIG_SHMEM
static struct lock_class_key rext4_scratch_key;

struct file *rext4_scratch_open(void)
{
	struct file *file = shmem_kernel_file_setup("rext4", 0, mk_vma_flags(VMA_NORESERVE_BIT));

	if (!IS_ERR(file)) {
		/* It is used with locks held that are taken inside those of files that programs have in tmpfs. */
		lockdep_set_class(&file_inode(file)->i_rwsem, &rext4_scratch_key);
		mapping_set_gfp_mask(file->f_mapping, GFP_KERNEL);
	}
	return file;
}

/* Inodes are used again with the class that they had. */
void rext4_scratch_close(struct file *file)
{
	struct inode *inode = file_inode(file);

	lockdep_set_class(&inode->i_rwsem, &inode->i_sb->s_type->i_mutex_key);
	fput(file);
}

int rext4_scratch_copy(struct file *file, u64 at, void *bytes, size_t count, bool write)
{
	struct inode *inode = file_inode(file);
	unsigned int flags = memalloc_nofs_save();
	int error = 0;

	/* A page behind the end is not given. Writers of the same file may be many. */
	if (write) {
		spin_lock(&inode->i_lock);
		if (at + count > i_size_read(inode))
			i_size_write(inode, at + count);
		spin_unlock(&inode->i_lock);
	}
	while (count && !error) {
		struct folio *folio = NULL;
		size_t offset, len;

		error = shmem_get_folio(inode, at >> PAGE_SHIFT, 0, &folio, write ? SGP_CACHE : SGP_READ);
		if (error)
			break;
		if (!folio) {
			error = -EIO;
			break;
		}
		error = filemap_check_wb_err(inode->i_mapping, 0);
		offset = offset_in_folio(folio, at);
		len = min(count, folio_size(folio) - offset);
		if (write) {
			memcpy(folio_address(folio) + offset, bytes, len);
			folio_mark_dirty(folio);
		} else {
			memcpy(bytes, folio_address(folio) + offset, len);
		}
		folio_unlock(folio);
		folio_put(folio);
		at += len;
		bytes += len;
		count -= len;
	}
	memalloc_nofs_restore(flags);
	return error;
}
#else
struct file *rext4_scratch_open(void)
{
	return ERR_PTR(-EOPNOTSUPP);
}

void rext4_scratch_close(struct file *file)
{
	fput(file);
}

int rext4_scratch_copy(struct file *file, u64 at, void *bytes, size_t count, bool write)
{
	return -EIO;
}
#endif
