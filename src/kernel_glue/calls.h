/* SPDX-License-Identifier: GPL-2.0 */
/*
 * C functions behind the calls of programs that are not plain reading and writing: see calls.rs.
 */
#ifndef REXT4_CALLS_H
#define REXT4_CALLS_H

#include <linux/fs.h>

struct file_kattr;
struct iomap_ops;
struct swap_info_struct;

/* What programs are told of an inode, beyond what the VFS knows of it. */
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

/* Freezes the volume through its device, so that other file systems above it are told, and ends that. */
int rext4_freeze_device(struct super_block *sb);
void rext4_thaw_device(struct super_block *sb);

/* Tells programs that watch for errors (FAN_FS_ERROR). Neither waits; both may be called with any lock held. */
void rext4_report_damage(struct super_block *sb, u64 ino);
void rext4_report_shutdown(struct super_block *sb);

/* Bytes of the device's unit of discards, 0 where it cannot discard. */
unsigned int rext4_discard_granularity(struct super_block *sb);
int rext4_discard(struct super_block *sb, sector_t block, sector_t count);

/* The right to change something on the mount that a file was opened through. */
int rext4_want_write(struct file *file);
void rext4_drop_write(struct file *file);
/* The task owns the file, as its mount maps owners, or may do as if. */
bool rext4_owns(struct file *file);

int rext4_encode_handle(struct inode *inode, u32 *handle, int *len, struct inode *parent);

int rext4_swap_activate(struct swap_info_struct *to, struct file *file, sector_t *span, const struct iomap_ops *ops);

#endif
