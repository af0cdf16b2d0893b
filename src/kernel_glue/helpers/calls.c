// SPDX-License-Identifier: GPL-2.0
/* What the calls of programs that are not plain reading and writing need of the kernel. */

#include <linux/blkdev.h>
#include <linux/fserror.h>

#include "../calls.h"

int rext4_freeze_device(struct super_block *sb)
{
	return bdev_freeze(sb->s_bdev);
}

void rext4_thaw_device(struct super_block *sb)
{
	bdev_thaw(sb->s_bdev);
}

/*
 * An inode that is being set up or freed is not named: a reference to it could not be taken, or
 * would have to be given back before its owner is done.
 */
void rext4_report_damage(struct super_block *sb, u64 ino)
{
	struct inode *inode;

	rcu_read_lock();
	inode = ino ? find_inode_by_ino_rcu(sb, ino) : NULL;
	if (inode && !(inode_state_read_once(inode) & (I_NEW | I_CREATING | I_FREEING | I_WILL_FREE)))
		fserror_report_file_metadata(inode, -EFSCORRUPTED, GFP_ATOMIC);
	else
		fserror_report_metadata(sb, -EFSCORRUPTED, GFP_ATOMIC);
	rcu_read_unlock();
}

void rext4_report_shutdown(struct super_block *sb)
{
	fserror_report_shutdown(sb, GFP_NOFS);
}

unsigned int rext4_discard_granularity(struct super_block *sb)
{
	if (!bdev_max_discard_sectors(sb->s_bdev))
		return 0;
	return max(bdev_discard_granularity(sb->s_bdev), 1U);
}

int rext4_discard(struct super_block *sb, sector_t block, sector_t count)
{
	return sb_issue_discard(sb, block, count, GFP_NOFS, 0);
}
