// SPDX-License-Identifier: GPL-2.0
/* Freezing, discards, error reports, attributes of inodes, file handles, swap files. */

#include <linux/blkdev.h>
#include <linux/exportfs.h>
#include <linux/fileattr.h>
#include <linux/fserror.h>
#include <linux/iomap.h>
#include <linux/mount.h>

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
 * An inode that is being set up or freed is not reported: no reference to it can be taken, or it
 * would have to be dropped before its creator is done.
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

void rext4_getattr(struct mnt_idmap *idmap, const struct path *path, struct kstat *stat, u32 mask,
		   const struct rext4_status *more)
{
	static const struct {
		u32 flag;
		u32 attribute;
	} attributes[] = {
		{ FS_APPEND_FL, STATX_ATTR_APPEND },
		{ FS_COMPR_FL, STATX_ATTR_COMPRESSED },
		{ FS_ENCRYPT_FL, STATX_ATTR_ENCRYPTED },
		{ FS_IMMUTABLE_FL, STATX_ATTR_IMMUTABLE },
		{ FS_NODUMP_FL, STATX_ATTR_NODUMP },
		{ FS_VERITY_FL, STATX_ATTR_VERITY },
	};
	struct inode *inode = d_inode(path->dentry);
	unsigned int i;

	if (more->has_made && (mask & STATX_BTIME)) {
		stat->result_mask |= STATX_BTIME;
		stat->btime.tv_sec = more->made_seconds;
		stat->btime.tv_nsec = more->made_nanoseconds;
	}
	if (S_ISREG(inode->i_mode) && (mask & STATX_DIOALIGN)) {
		stat->result_mask |= STATX_DIOALIGN;
		stat->dio_mem_align = bdev_dma_alignment(inode->i_sb->s_bdev) + 1;
		stat->dio_offset_align = bdev_logical_block_size(inode->i_sb->s_bdev);
	}
	for (i = 0; i < ARRAY_SIZE(attributes); i++) {
		stat->attributes_mask |= attributes[i].attribute;
		if (more->flags & attributes[i].flag)
			stat->attributes |= attributes[i].attribute;
	}
	generic_fillattr(idmap, mask, inode, stat);
	stat->blocks += more->pending_sectors;
	if (stat->nlink > more->hidden_links)
		stat->nlink -= more->hidden_links;
}

void rext4_fileattr_fill(struct file_kattr *to, u32 flags)
{
	fileattr_fill_flags(to, flags);
}

u32 rext4_fileattr_flags(const struct file_kattr *from, u32 *project)
{
	*project = from->fsx_projid;
	return from->flags;
}

int rext4_want_write(struct file *file)
{
	return mnt_want_write_file(file);
}

void rext4_drop_write(struct file *file)
{
	mnt_drop_write_file(file);
}

bool rext4_owns(struct file *file)
{
	return inode_owner_or_capable(file_mnt_idmap(file), file_inode(file));
}

int rext4_encode_handle(struct inode *inode, u32 *handle, int *len, struct inode *parent)
{
#if IS_ENABLED(CONFIG_EXPORTFS)
	return generic_encode_ino32_fh(inode, handle, len, parent);
#else
	return FILEID_INVALID;
#endif
}

int rext4_swap_activate(struct swap_info_struct *to, struct file *file, sector_t *span, const struct iomap_ops *ops)
{
	return iomap_swapfile_activate(to, file, span, ops);
}
