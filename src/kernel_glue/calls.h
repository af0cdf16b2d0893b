/* SPDX-License-Identifier: GPL-2.0 */
/*
 * C functions behind the calls of programs that are not plain reading and writing: see calls.rs.
 */
#ifndef REXT4_CALLS_H
#define REXT4_CALLS_H

#include <linux/fs.h>

/* Freezes the volume through its device, so that other file systems above it are told, and ends that. */
int rext4_freeze_device(struct super_block *sb);
void rext4_thaw_device(struct super_block *sb);

/* Tells programs that watch for errors (FAN_FS_ERROR). Neither waits; both may be called with any lock held. */
void rext4_report_damage(struct super_block *sb, u64 ino);
void rext4_report_shutdown(struct super_block *sb);

/* Bytes of the device's unit of discards, 0 where it cannot discard. */
unsigned int rext4_discard_granularity(struct super_block *sb);
int rext4_discard(struct super_block *sb, sector_t block, sector_t count);

#endif
