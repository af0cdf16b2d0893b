// SPDX-License-Identifier: GPL-2.0
/* Open files: reading, writing and mapping them, and cloning. */

#include <linux/blkdev.h>
#include <linux/compat.h>
#include <linux/file.h>
#include <linux/filelock.h>
#include <linux/pagemap.h>
#include <linux/uio.h>

#include "../helpers.h"

bool rext4_dir_emit(struct dir_context *ctx, const char *name, int len, u64 ino, unsigned int type)
{
	return dir_emit(ctx, name, len, ino, type);
}

/*
 * Returns true if positions in a directory have 31 bits: for version 2 of NFS, and for a task of 32
 * bits that asks for nothing else.
 */
bool rext4_dir_is_narrow(struct file *file)
{
	if (file->f_mode & FMODE_32BITHASH)
		return true;
	if (file->f_mode & FMODE_64BITHASH)
		return false;
#ifdef CONFIG_COMPAT
	return in_compat_syscall();
#else
	return BITS_PER_LONG == 32;
#endif
}

void rext4_set_delayed_free(struct delayed_call *call, void *memory)
{
	set_delayed_call(call, kfree_link, memory);
}

/* The file supports direct I/O, and requests that must not wait. */
void rext4_file_allow(struct file *file)
{
	file->f_mode |= FMODE_CAN_ODIRECT | FMODE_NOWAIT;
}

/* Called while the file is being closed, and is still counted as a writer. */
bool rext4_file_is_last_writer(struct file *file)
{
	return file->f_mode & FMODE_WRITE && atomic_read(&file_inode(file)->i_writecount) <= 1;
}

bool rext4_file_is_sync(struct file *file)
{
	return file->f_flags & (__O_SYNC | O_DSYNC) || IS_SYNC(file_inode(file));
}

unsigned int rext4_sector_bytes(struct inode *inode)
{
	return bdev_logical_block_size(inode->i_sb->s_bdev);
}

size_t rext4_iter_count(const struct iov_iter *iter)
{
	return iov_iter_count(iter);
}

void rext4_iter_truncate(struct iov_iter *iter, u64 count)
{
	iov_iter_truncate(iter, count);
}

void rext4_file_accessed(struct file *file)
{
	file_accessed(file);
}

ssize_t rext4_write_sync(struct kiocb *iocb, ssize_t count)
{
	return generic_write_sync(iocb, count);
}

bool rext4_faults_trylock(struct inode *inode)
{
	return down_write_trylock(&inode->i_mapping->invalidate_lock);
}

void rext4_faults_lock(struct inode *inode)
{
	filemap_invalidate_lock(inode->i_mapping);
}

void rext4_faults_unlock(struct inode *inode)
{
	filemap_invalidate_unlock(inode->i_mapping);
}

void rext4_remap_unlock(struct inode *in, struct inode *out)
{
	filemap_invalidate_unlock_two(in->i_mapping, out->i_mapping);
	unlock_two_nondirectories(in, out);
}

int rext4_clone_held(struct file *to, unsigned int from_fd)
{
	CLASS(fd, from)(from_fd);
	struct file *source;
	loff_t done;

	if (fd_empty(from))
		return -EBADF;
	source = fd_file(from);
	if (file_inode(source)->i_sb != file_inode(to)->i_sb)
		return -EXDEV;
	if (!S_ISREG(file_inode(source)->i_mode) || !S_ISREG(file_inode(to)->i_mode))
		return -EINVAL;
	if (!(source->f_mode & FMODE_READ) || !(to->f_mode & FMODE_WRITE) || (to->f_flags & O_APPEND))
		return -EBADF;
	if (!to->f_op->remap_file_range)
		return -EOPNOTSUPP;
	done = to->f_op->remap_file_range(source, 0, to, 0, 0, 0);
	return done < 0 ? done : 0;
}

int rext4_setlease(struct file *file, int type, struct file_lease **lease, void **owner)
{
	return generic_setlease(file, type, lease, owner);
}
