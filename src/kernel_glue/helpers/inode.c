// SPDX-License-Identifier: GPL-2.0
/* The inode cache, and the fields and locks of an inode. */

#include <linux/pagemap.h>
#include <linux/statfs.h>

#include "../helpers.h"

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

u64 rext4_inodes_cached(struct super_block *sb, u64 first, unsigned int count)
{
	u64 cached = 0;
	unsigned int i;

	rcu_read_lock();
	for (i = 0; i < count && i < 64; i++)
		if (find_inode_by_ino_rcu(sb, first + i))
			cached |= 1ULL << i;
	rcu_read_unlock();
	return cached;
}

/* Leaves out inodes that are being set up: one that is being read may turn out to be free. */
u64 rext4_inodes_live(struct super_block *sb, u64 first, unsigned int count)
{
	struct inode *inode;
	u64 live = 0;
	unsigned int i;

	rcu_read_lock();
	for (i = 0; i < count && i < 64; i++) {
		inode = find_inode_by_ino_rcu(sb, first + i);
		if (inode && !(inode_state_read_once(inode) & (I_NEW | I_CREATING)))
			live |= 1ULL << i;
	}
	rcu_read_unlock();
	return live;
}

/*
 * Takes a reference to an inode that is in the cache and has a name, without waiting for one that
 * is being created or freed. I_NEW and I_CREATING are cleared under the inode's lock once its
 * fields are valid, so they are tested under that lock.
 */
struct inode *rext4_inode_grab(struct super_block *sb, u64 ino)
{
	struct inode *inode;
	bool ready;

	rcu_read_lock();
	inode = find_inode_by_ino_rcu(sb, ino);
	if (inode) {
		spin_lock(&inode->i_lock);
		ready = !(inode_state_read(inode) & (I_NEW | I_CREATING | I_FREEING | I_WILL_FREE)) && inode->i_nlink;
		if (ready)
			__iget(inode);
		spin_unlock(&inode->i_lock);
		if (!ready)
			inode = NULL;
	}
	rcu_read_unlock();
	return inode;
}

bool rext4_wbc_waits(struct writeback_control *wbc)
{
	return wbc->sync_mode == WB_SYNC_ALL && !wbc->for_sync;
}

u32 rext4_inode_uid(const struct inode *inode)
{
	return i_uid_read(inode);
}

u32 rext4_inode_gid(const struct inode *inode)
{
	return i_gid_read(inode);
}

void rext4_inode_set_owner(struct inode *inode, u32 uid, u32 gid)
{
	i_uid_write(inode, uid);
	i_gid_write(inode, gid);
}

/* Change, modification and access time, in this order. */
void rext4_inode_get_times(const struct inode *inode, time64_t *sec, u32 *nsec)
{
	sec[0] = inode_get_ctime_sec(inode);
	nsec[0] = inode_get_ctime_nsec(inode);
	sec[1] = inode_get_mtime_sec(inode);
	nsec[1] = inode_get_mtime_nsec(inode);
	sec[2] = inode_get_atime_sec(inode);
	nsec[2] = inode_get_atime_nsec(inode);
}

void rext4_inode_set_times(struct inode *inode, time64_t asec, u32 ansec, time64_t csec, u32 cnsec, time64_t msec,
			   u32 mnsec)
{
	inode_set_atime(inode, asec, ansec);
	inode_set_ctime(inode, csec, cnsec);
	inode_set_mtime(inode, msec, mnsec);
}

void rext4_inode_touch(struct inode *inode, bool modified)
{
	struct timespec64 now = inode_set_ctime_current(inode);

	if (modified)
		inode_set_mtime_to_ts(inode, now);
}

void rext4_inode_init_times(struct inode *inode)
{
	simple_inode_init_ts(inode);
}

bool rext4_inode_add_sectors(struct inode *inode, s64 sectors)
{
	bool fits;

	spin_lock(&inode->i_lock);
	fits = sectors >= 0 || inode->i_blocks >= -sectors;
	if (fits)
		inode->i_blocks += sectors;
	else
		inode->i_blocks = 0;
	spin_unlock(&inode->i_lock);
	return fits;
}

void rext4_inode_set_size(struct inode *inode, loff_t size)
{
	i_size_write(inode, size);
}

void rext4_inode_extend_size(struct inode *inode, loff_t size)
{
	spin_lock(&inode->i_lock);
	if (size > i_size_read(inode))
		i_size_write(inode, size);
	spin_unlock(&inode->i_lock);
}

void rext4_mapping_set_large_folios(struct inode *inode)
{
	mapping_set_large_folios(inode->i_mapping);
}

/* Returns true if no data of the file is dirty, under writeback or in direct I/O. */
bool rext4_mapping_is_clean(struct inode *inode)
{
	return !mapping_tagged(inode->i_mapping, PAGECACHE_TAG_DIRTY) &&
	       !mapping_tagged(inode->i_mapping, PAGECACHE_TAG_WRITEBACK) && !atomic_read(&inode->i_dio_count);
}

bool rext4_inode_has_writers(struct inode *inode)
{
	return atomic_read(&inode->i_writecount) > 0;
}

void rext4_inode_lock(struct inode *inode)
{
	inode_lock(inode);
}

void rext4_inode_unlock(struct inode *inode)
{
	inode_unlock(inode);
}

void rext4_inode_lock_shared(struct inode *inode)
{
	inode_lock_shared(inode);
}

void rext4_inode_unlock_shared(struct inode *inode)
{
	inode_unlock_shared(inode);
}

void rext4_inode_downgrade(struct inode *inode)
{
	downgrade_write(&inode->i_rwsem);
}

bool rext4_inode_trylock(struct inode *inode)
{
	return inode_trylock(inode);
}

/*
 * Opens a file on a new, locked inode without a name. Takes over the reference to the inode and
 * unlocks it.
 */
int rext4_open_tmpfile(struct file *file, struct inode *inode)
{
	d_mark_tmpfile(file, inode);
	d_instantiate_new(file->f_path.dentry, inode);
	return finish_open_simple(file, 0);
}
