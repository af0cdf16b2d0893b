// SPDX-License-Identifier: GPL-2.0
/* The superblock and its device. */

#include <linux/blkdev.h>
#include <linux/part_stat.h>
#include <linux/percpu-rwsem.h>

#include "../helpers.h"

struct file_system_type *rext4_fs_type(bool other)
{
	static struct file_system_type types[2];

	return &types[other];
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

/* Returns false if the volume is frozen or being frozen. */
bool rext4_try_internal_write(struct super_block *sb)
{
	return sb_start_intwrite_trylock(sb);
}

void rext4_set_identity(struct super_block *sb, const u8 *uuid)
{
	super_set_uuid(sb, uuid, UUID_SIZE);
	super_set_sysfs_name_bdev(sb);
}

void rext4_panic(const char *device)
{
	if (system_state < SYSTEM_HALT)
		panic("rext4: %s: panic forced after error\n", device);
}

static struct percpu_rw_semaphore *rext4_stage(struct super_block *sb, int stage)
{
	return &sb->s_writers.rw_sem[stage - 1];
}

/* The superblock is pinned as long as its writers are held, by whichever task they are released. */
int rext4_hold_writers(struct super_block *sb)
{
	int error;

	if (!atomic_inc_not_zero(&sb->s_active))
		return -EBUSY;
	percpu_down_write(rext4_stage(sb, SB_FREEZE_WRITE));
	down_read(&sb->s_umount);
	percpu_down_write(rext4_stage(sb, SB_FREEZE_PAGEFAULT));
	/* Clean pages are write-protected, so the next write through a mapping faults. */
	error = sync_filesystem(sb);
	up_read(&sb->s_umount);
	if (error) {
		percpu_up_write(rext4_stage(sb, SB_FREEZE_PAGEFAULT));
		percpu_up_write(rext4_stage(sb, SB_FREEZE_WRITE));
		deactivate_super(sb);
		return error;
	}
	/* The task returns to user space with the locks held, and another task may release them. */
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
	deactivate_super(sb);
}
