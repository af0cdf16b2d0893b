// SPDX-License-Identifier: GPL-2.0
/* The bodies of helpers.h: nothing but the call that Rust cannot make. */

#include <linux/jbd2.h>
#include <linux/pagemap.h>
#include <linux/statfs.h>

#include "helpers.h"

struct buffer_head *rext4_sb_bread(struct super_block *sb, sector_t block)
{
	return sb_bread(sb, block);
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

struct kmem_cache *rext4_inode_cache(const char *name, unsigned int size, unsigned int align, void (*ctor)(void *))
{
	return kmem_cache_create(name, size, align, SLAB_RECLAIM_ACCOUNT | SLAB_ACCOUNT, ctor);
}

void *rext4_inode_alloc(struct super_block *sb, struct kmem_cache *cache)
{
	return alloc_inode_sb(sb, cache, GFP_NOFS);
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
