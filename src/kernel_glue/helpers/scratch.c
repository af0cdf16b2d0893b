// SPDX-License-Identifier: GPL-2.0
/* An unlinked tmpfs file, whose pages can be swapped out. */

#include <linux/file.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/shmem_fs.h>

#include "../helpers.h"

#ifdef CONFIG_SHMEM
static struct lock_class_key rext4_scratch_key;

struct file *rext4_scratch_open(void)
{
	struct file *file = shmem_kernel_file_setup("rext4", 0, mk_vma_flags(VMA_NORESERVE_BIT));

	if (!IS_ERR(file)) {
		/* Used under locks that nest inside those of programs' own tmpfs files. */
		lockdep_set_class(&file_inode(file)->i_rwsem, &rext4_scratch_key);
		mapping_set_gfp_mask(file->f_mapping, GFP_KERNEL);
	}
	return file;
}

/* Called before the file is closed. Freed inodes are reused with their lock class, so it is reset. */
void rext4_scratch_end(struct file *file)
{
	struct inode *inode = file_inode(file);

	lockdep_set_class(&inode->i_rwsem, &inode->i_sb->s_type->i_mutex_key);
}

int rext4_scratch_copy(struct file *file, u64 at, void *bytes, size_t count, bool write)
{
	struct inode *inode = file_inode(file);
	unsigned int flags = memalloc_nofs_save();
	int error = 0;

	/* shmem has no pages beyond the end. Several tasks may write to the file. */
	if (write) {
		spin_lock(&inode->i_lock);
		if (at + count > i_size_read(inode))
			i_size_write(inode, at + count);
		spin_unlock(&inode->i_lock);
	}
	while (count && !error) {
		struct folio *folio = NULL;
		size_t offset, len;

		error = shmem_get_folio(inode, at >> PAGE_SHIFT, 0, &folio, write ? SGP_CACHE : SGP_READ);
		if (error)
			break;
		if (!folio) {
			error = -EIO;
			break;
		}
		error = filemap_check_wb_err(inode->i_mapping, 0);
		offset = offset_in_folio(folio, at);
		len = min(count, folio_size(folio) - offset);
		if (write) {
			memcpy(folio_address(folio) + offset, bytes, len);
			folio_mark_dirty(folio);
		} else {
			memcpy(bytes, folio_address(folio) + offset, len);
		}
		folio_unlock(folio);
		folio_put(folio);
		at += len;
		bytes += len;
		count -= len;
	}
	memalloc_nofs_restore(flags);
	return error;
}
#else
struct file *rext4_scratch_open(void)
{
	return ERR_PTR(-EOPNOTSUPP);
}

void rext4_scratch_end(struct file *file)
{
}

int rext4_scratch_copy(struct file *file, u64 at, void *bytes, size_t count, bool write)
{
	return -EIO;
}
#endif
