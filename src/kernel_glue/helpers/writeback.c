// SPDX-License-Identifier: GPL-2.0
/* Reading and writing the page cache, and completing writeback. */

#include <linux/list_sort.h>
#include <linux/llist.h>
#include <linux/pagemap.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "../helpers.h"

void rext4_bio_read_folio(struct folio *folio, const struct iomap_ops *ops)
{
	iomap_bio_read_folio(folio, ops);
}

void rext4_bio_readahead(struct readahead_control *rac, const struct iomap_ops *ops)
{
	iomap_bio_readahead(rac, ops);
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

/*
 * The worker of a volume. Completing writeback takes sleeping locks and starts handles: it may have
 * to wait for this volume's journal and, if the volume is an image file on another one, for the
 * completion of the other one's writeback. Each volume therefore has its own workqueue, with a
 * rescuer, since memory may be short.
 */
struct rext4_completions {
	struct workqueue_struct *queue;
	void (*finish)(struct iomap_ioend *ioend, int error);
	spinlock_t lock;
	struct list_head done;		/* ioends whose I/O is complete, protected by lock */
	struct work_struct work;
	struct llist_head released;	/* inodes whose last reference was dropped inside a handle */
	struct work_struct release;
};

static int rext4_ioend_order(void *unused, const struct list_head *a, const struct list_head *b)
{
	const struct iomap_ioend *first = list_entry(a, struct iomap_ioend, io_list);
	const struct iomap_ioend *second = list_entry(b, struct iomap_ioend, io_list);

	if (first->io_inode != second->io_inode)
		return first->io_inode < second->io_inode ? -1 : 1;
	return first->io_offset < second->io_offset ? -1 : first->io_offset > second->io_offset;
}

/* Those of an inode are finished in the order of the file, adjacent ones together. */
static void rext4_complete_writeback(struct work_struct *work)
{
	struct rext4_completions *to = container_of(work, struct rext4_completions, work);
	struct iomap_ioend *ioend, *next;
	LIST_HEAD(done);
	LIST_HEAD(same);

	spin_lock_irq(&to->lock);
	list_splice_init(&to->done, &done);
	spin_unlock_irq(&to->lock);
	list_sort(NULL, &done, rext4_ioend_order);
	while ((ioend = list_first_entry_or_null(&done, struct iomap_ioend, io_list))) {
		list_for_each_entry(next, &done, io_list)
			if (next->io_inode != ioend->io_inode)
				break;
		/* Only those of the same inode can be merged. */
		list_cut_before(&same, &done, &next->io_list);
		while ((ioend = list_first_entry_or_null(&same, struct iomap_ioend, io_list))) {
			list_del_init(&ioend->io_list);
			iomap_ioend_try_merge(ioend, &same);
			to->finish(ioend, blk_status_to_errno(ioend->io_bio.bi_status));
			cond_resched();
		}
	}
}

static void rext4_ioend_end_io(struct bio *bio)
{
	struct iomap_ioend *ioend = iomap_ioend_from_bio(bio);
	struct rext4_completions *to = ioend->io_private;
	unsigned long flags;

	/*
	 * The ioend, and through it the volume, must not be accessed after the lock is released.
	 * The volume itself waits for the queue.
	 */
	spin_lock_irqsave(&to->lock, flags);
	list_add_tail(&ioend->io_list, &to->done);
	queue_work(to->queue, &to->work);
	spin_unlock_irqrestore(&to->lock, flags);
}

void rext4_ioend_defer(struct iomap_ioend *ioend, struct rext4_completions *to)
{
	ioend->io_private = to;
	ioend->io_bio.bi_end_io = rext4_ioend_end_io;
}

/* An inode that is still being created is discarded, and tasks waiting for it look it up again. */
static void rext4_inode_end(struct inode *inode)
{
	if (inode_state_read_once(inode) & I_NEW)
		discard_new_inode(inode);
	else
		iput(inode);
}

static void rext4_release_inodes(struct work_struct *work)
{
	struct rext4_completions *to = container_of(work, struct rext4_completions, release);
	struct rext4_release *this, *next;

	llist_for_each_entry_safe(this, next, llist_del_all(&to->released), node) {
		rext4_inode_end(this->inode);
		cond_resched();
	}
}

static void rext4_inode_release_later(struct inode *inode, struct rext4_release *release, struct rext4_completions *to)
{
	release->inode = inode;
	/* Not queued on the volume's own queue, whose rescuer must never wait for an eviction. */
	if (llist_add(&release->node, &to->released))
		queue_work(system_dfl_wq, &to->release);
}

/*
 * Drops a reference to an inode. Evicting an inode starts a handle and waits for writeback of its
 * pages. Neither is permitted inside a handle, where the last reference is left to a worker.
 */
void rext4_inode_put(struct inode *inode, struct rext4_release *release, struct rext4_completions *to)
{
	if (!current->journal_info)
		iput(inode);
	else if (!atomic_add_unless(&inode->i_count, -1, 1))
		rext4_inode_release_later(inode, release, to);
}

/*
 * Discards an inode that is in the cache and still being created. Its link count is cleared, so
 * that its eviction frees it.
 */
void rext4_inode_discard(struct inode *inode, struct rext4_release *release, struct rext4_completions *to)
{
	clear_nlink(inode);
	if (!current->journal_info)
		rext4_inode_end(inode);
	else
		rext4_inode_release_later(inode, release, to);
}

/* Waits until the inodes that were left to the worker are released. */
void rext4_completions_release(struct rext4_completions *to)
{
	do {
		flush_work(&to->release);
		cond_resched();
	} while (!llist_empty(&to->released));
}

struct rext4_completions *rext4_completions_new(struct super_block *sb,
						void (*finish)(struct iomap_ioend *ioend, int error))
{
	struct rext4_completions *to = kzalloc_obj(*to);

	if (!to)
		return NULL;
	to->queue = alloc_workqueue("rext4-%s", WQ_MEM_RECLAIM | WQ_UNBOUND, 0, sb->s_id);
	if (!to->queue) {
		kfree(to);
		return NULL;
	}
	to->finish = finish;
	spin_lock_init(&to->lock);
	INIT_LIST_HEAD(&to->done);
	INIT_WORK(&to->work, rext4_complete_writeback);
	init_llist_head(&to->released);
	INIT_WORK(&to->release, rext4_release_inodes);
	return to;
}

/* There must be no writeback in progress, and no inodes left. */
void rext4_completions_free(struct rext4_completions *to)
{
	rext4_completions_release(to);
	destroy_workqueue(to->queue);
	kfree(to);
}
