/* SPDX-License-Identifier: GPL-2.0 */
/*
 * C functions of calls.rs and status.rs.
 */
#ifndef REXT4_CALLS_H
#define REXT4_CALLS_H

#include <linux/fs.h>

struct file_kattr;
struct iomap_ops;
struct swap_info_struct;

/* The attributes of an inode that the VFS does not know. */
struct rext4_status {
	u32 flags;
	bool has_made;
	time64_t made_seconds;
	u32 made_nanoseconds;
	u64 pending_sectors;
	u32 hidden_links;
};

void rext4_getattr(struct mnt_idmap *idmap, const struct path *path, struct kstat *stat, u32 mask,
		   const struct rext4_status *more);
void rext4_fileattr_fill(struct file_kattr *to, u32 flags);
u32 rext4_fileattr_flags(const struct file_kattr *from, u32 *project);

/* Freeze the volume through its device, which informs file systems stacked on it; thaw it. */
int rext4_freeze_device(struct super_block *sb);
void rext4_thaw_device(struct super_block *sb);

/* Report to programs that watch for errors (FAN_FS_ERROR). Do not sleep; any lock may be held. */
void rext4_report_damage(struct super_block *sb, u64 ino);
void rext4_report_shutdown(struct super_block *sb);

/* Returns the discard granularity in bytes, 0 if the device cannot discard. */
unsigned int rext4_discard_granularity(struct super_block *sb);
int rext4_discard(struct super_block *sb, sector_t block, sector_t count);

/* Take and drop write access to the mount that a file was opened through. */
int rext4_want_write(struct file *file);
void rext4_drop_write(struct file *file);
/* Returns true if the task owns the file, as its mount maps owners, or has CAP_FOWNER. */
bool rext4_owns(struct file *file);

int rext4_encode_handle(struct inode *inode, u32 *handle, int *len, struct inode *parent);

int rext4_swap_activate(struct swap_info_struct *to, struct file *file, sector_t *span, const struct iomap_ops *ops);

#endif
