// SPDX-License-Identifier: GPL-2.0
/* Reading and writing the page cache, and completing writeback. */

#include <linux/pagemap.h>
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
