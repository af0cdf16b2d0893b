/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What Rust cannot call: static inlines and macros of the kernel's headers, each as a function of the same arguments.
 */
#ifndef REXT4_HELPERS_H
#define REXT4_HELPERS_H

#include <linux/buffer_head.h>
#include <linux/fs.h>
#include <linux/iomap.h>
#include <linux/slab.h>

struct buffer_head *rext4_sb_bread(struct super_block *sb, sector_t block);
void rext4_brelse(struct buffer_head *bh);
bool rext4_buffer_verified(const struct buffer_head *bh);
void rext4_buffer_set_verified(struct buffer_head *bh);

u64 rext4_sb_bytes(struct super_block *sb);
bool rext4_sb_device_read_only(struct super_block *sb);
u64 rext4_sb_device_id(struct super_block *sb);

struct kmem_cache *rext4_inode_cache(const char *name, unsigned int size, unsigned int align, void (*ctor)(void *));
void *rext4_inode_alloc(struct super_block *sb, struct kmem_cache *cache);
bool rext4_inode_is_new(struct inode *inode);
void rext4_inode_set_owner(struct inode *inode, u32 uid, u32 gid);
void rext4_inode_set_times(struct inode *inode, time64_t asec, u32 ansec, time64_t csec, u32 cnsec, time64_t msec,
			   u32 mnsec);
void rext4_inode_set_size(struct inode *inode, loff_t size);
void rext4_mapping_set_large_folios(struct inode *inode);

bool rext4_dir_emit(struct dir_context *ctx, const char *name, int len, u64 ino, unsigned int type);
void rext4_set_delayed_free(struct delayed_call *call, void *memory);

void rext4_bio_read_folio(struct folio *folio, const struct iomap_ops *ops);
void rext4_bio_readahead(struct readahead_control *rac, const struct iomap_ops *ops);

#endif
