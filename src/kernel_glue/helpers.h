/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Static inline functions and macros of the kernel's headers, which Rust cannot call, each wrapped
 * in a function with the same arguments.
 */
#ifndef REXT4_HELPERS_H
#define REXT4_HELPERS_H

#include <linux/buffer_head.h>
#include <linux/fs.h>
#include <linux/iomap.h>
#include <linux/jbd2.h>
#include <linux/jump_label_ratelimit.h>
#include <linux/llist.h>
#include <linux/posix_acl.h>
#include <linux/slab.h>
#include <linux/writeback.h>

/*
 * Returns the storage of the file system type, under its own name or another one. Static, since
 * lockdep requires static lock classes.
 */
struct file_system_type *rext4_fs_type(bool other);

/* The first buffer state bit available to a file system whose buffers jbd2 also uses. */
#define REXT4_BH_VERIFIED BH_JBDPrivateStart

struct buffer_head *rext4_sb_bread(struct super_block *sb, sector_t block);
void rext4_get_bh(struct buffer_head *bh);
void rext4_brelse(struct buffer_head *bh);
bool rext4_buffer_verified(const struct buffer_head *bh);
void rext4_buffer_set_verified(struct buffer_head *bh);
/* Borrow the contents of a buffer: shared for reading, or exclusively for writing. */
int rext4_contents_lock(struct buffer_head *bh, bool write);
void rext4_contents_unlock(struct buffer_head *bh, bool write);

struct buffer_head *rext4_sb_getblk(struct super_block *sb, sector_t block);
int rext4_create_access(handle_t *handle, struct buffer_head *bh);
int rext4_renew_access(handle_t *handle, struct buffer_head *bh);
int rext4_undo_access(handle_t *handle, struct buffer_head *bh);
int rext4_write_access(handle_t *handle, struct buffer_head *bh);
void rext4_bitmap_hold_freed(struct buffer_head *bh, u32 start, u32 len);
int rext4_bitmap_with_committed(struct buffer_head *bh, u8 *out, size_t len);
int rext4_bitmap_next_used(struct buffer_head *bh, u32 start, u32 end, u32 *found);
bool rext4_may_use_reserve(u32 uid, u32 gid);

/* Commit interval in seconds, batch times in microseconds, whether to flush the device's cache. */
struct rext4_journal_tuning {
	u32 commit_seconds;
	u32 min_batch_time;
	u32 max_batch_time;
	bool barrier;
};

void rext4_journal_tune(journal_t *journal, const struct rext4_journal_tuning *to);
/* The handles of a volume without a journal. */
struct rext4_unlogged;
struct rext4_unlogged *rext4_unlogged_new(struct super_block *sb);
void rext4_unlogged_free(struct rext4_unlogged *unlogged);
int rext4_unlogged_begin(struct rext4_unlogged *unlogged);
void rext4_unlogged_end(struct rext4_unlogged *unlogged);
/* Waits until no handle runs, and lets none start. */
void rext4_unlogged_stop(struct rext4_unlogged *unlogged);
void rext4_unlogged_go_on(struct rext4_unlogged *unlogged);
struct block_device *rext4_unlogged_device(const struct rext4_unlogged *unlogged);
int rext4_unlogged_sync(struct rext4_unlogged *unlogged);
void rext4_unlogged_forget(struct super_block *sb, sector_t block);
int rext4_unlogged_clear(struct buffer_head *bh);
bool rext4_journal_is_aborted(journal_t *journal);
unsigned int rext4_journal_newest_tid(journal_t *journal);
handle_t *rext4_handle_start(journal_t *journal, int blocks, int revokes);
int rext4_handle_credits(handle_t *handle);
int rext4_handle_revokes(handle_t *handle);
unsigned int rext4_handle_tid(handle_t *handle);
void rext4_handle_set_sync(handle_t *handle);
int rext4_revoke(handle_t *handle, struct super_block *sb, sector_t block);

u64 rext4_sb_bytes(struct super_block *sb);
bool rext4_sb_device_read_only(struct super_block *sb);
u64 rext4_sb_device_id(struct super_block *sb);
u64 rext4_sb_sectors_written(struct super_block *sb);

struct kmem_cache *rext4_inode_cache(const char *name, unsigned int size, unsigned int align, void (*ctor)(void *));
void *rext4_inode_alloc(struct super_block *sb, struct kmem_cache *cache);
bool rext4_wbc_waits(struct writeback_control *wbc);
void rext4_start_internal_write(struct super_block *sb);
void rext4_end_internal_write(struct super_block *sb);
int rext4_flush_device(struct super_block *sb);
int rext4_zero_out(struct super_block *sb, sector_t block, sector_t count);
bool rext4_try_internal_write(struct super_block *sb);
void rext4_set_identity(struct super_block *sb, const u8 *uuid);
void rext4_panic(const char *device);

u32 rext4_inode_uid(const struct inode *inode);
u32 rext4_inode_gid(const struct inode *inode);
void rext4_inode_get_times(const struct inode *inode, time64_t *sec, u32 *nsec);
void rext4_inode_touch(struct inode *inode, bool modified);
void rext4_inode_init_times(struct inode *inode);
bool rext4_inode_add_sectors(struct inode *inode, s64 sectors);
time64_t rext4_now(void);

void rext4_inode_lock(struct inode *inode);
void rext4_inode_unlock(struct inode *inode);
void rext4_inode_lock_shared(struct inode *inode);
void rext4_inode_unlock_shared(struct inode *inode);
void rext4_inode_downgrade(struct inode *inode);
void rext4_remap_unlock(struct inode *in, struct inode *out);
bool rext4_inode_trylock(struct inode *inode);
int rext4_open_tmpfile(struct file *file, struct inode *inode);
bool rext4_faults_trylock(struct inode *inode);
void rext4_faults_lock(struct inode *inode);
void rext4_faults_unlock(struct inode *inode);
bool rext4_mapping_is_clean(struct inode *inode);
bool rext4_inode_has_writers(struct inode *inode);
bool rext4_file_is_last_writer(struct file *file);
void rext4_file_allow(struct file *file);
bool rext4_file_is_sync(struct file *file);
unsigned int rext4_sector_bytes(struct inode *inode);
size_t rext4_iter_count(const struct iov_iter *iter);
void rext4_iter_truncate(struct iov_iter *iter, u64 count);
void rext4_file_accessed(struct file *file);
int rext4_setlease(struct file *file, int type, struct file_lease **lease, void **owner);
bool rext4_is_dying(void);
bool rext4_is_reclaiming(void);
bool rext4_may_log(void);
void rext4_log_left_out(void);
ssize_t rext4_write_sync(struct kiocb *iocb, ssize_t count);
vm_fault_t rext4_page_mkwrite(struct vm_fault *vmf, const struct iomap_ops *ops);

/* Allocated with each inode, for leaving the drop of its last reference to a worker. */
struct rext4_release {
	struct llist_node node;
	struct inode *inode;
};

/* The worker of a volume that completes its writeback and evicts its inodes. */
struct rext4_completions;
struct rext4_completions *rext4_completions_new(struct super_block *sb,
						void (*finish)(struct iomap_ioend *ioend, int error));
void rext4_completions_free(struct rext4_completions *to);
void rext4_completions_release(struct rext4_completions *to);
void rext4_ioend_defer(struct iomap_ioend *ioend, struct rext4_completions *to);
void rext4_inode_put(struct inode *inode, struct rext4_release *release, struct rext4_completions *to);
void rext4_inode_discard(struct inode *inode, struct rext4_release *release, struct rext4_completions *to);

u64 rext4_inodes_cached(struct super_block *sb, u64 first, unsigned int count);
u64 rext4_inodes_live(struct super_block *sb, u64 first, unsigned int count);
struct inode *rext4_inode_grab(struct super_block *sb, u64 ino);
bool rext4_block_is_cached(struct super_block *sb, sector_t block);
void rext4_read_ahead(struct super_block *sb, sector_t block, unsigned int count);
bool rext4_inode_is_new(struct inode *inode);
void rext4_inode_set_owner(struct inode *inode, u32 uid, u32 gid);
void rext4_inode_set_times(struct inode *inode, time64_t asec, u32 ansec, time64_t csec, u32 cnsec, time64_t msec,
			   u32 mnsec);
void rext4_inode_set_size(struct inode *inode, loff_t size);
void rext4_inode_extend_size(struct inode *inode, loff_t size);
void rext4_mapping_set_large_folios(struct inode *inode);

/* An entry of an access control list; `id` is valid if the tag is a named user or group. */
struct rext4_acl_entry {
	u16 tag;
	u16 permissions;
	u32 id;
};

struct posix_acl *rext4_acl_new(const struct rext4_acl_entry *entries, unsigned int count);
void rext4_acl_get(struct posix_acl *acl);
void rext4_acl_release(struct posix_acl *acl);
unsigned int rext4_acl_count(const struct posix_acl *acl);
void rext4_acl_entry(const struct posix_acl *acl, unsigned int number, struct rext4_acl_entry *entry);

/* Gets the labels of a new inode from the security modules: `take` is called for each. */
typedef int (*rext4_take_label)(void *data, const char *name, const void *value, size_t len);
int rext4_init_security(struct inode *inode, struct inode *dir, const char *name, u32 len, rext4_take_label take,
			void *data);

/*
 * Blocks tasks that are about to change something on a volume, like the first levels of a freeze,
 * and writes back dirty data. The journal continues, and so do changes that do not take the VFS's
 * write protection.
 */
int rext4_hold_writers(struct super_block *sb);
void rext4_release_writers(struct super_block *sb);
/* Clones the file that is open as a descriptor, without write protection: writers are held. */
int rext4_clone_held(struct file *to, unsigned int from_fd);

bool rext4_dir_emit(struct dir_context *ctx, const char *name, int len, u64 ino, unsigned int type);
bool rext4_dir_is_narrow(struct file *file);
void rext4_set_delayed_free(struct delayed_call *call, void *memory);

void rext4_bio_read_folio(struct folio *folio, const struct iomap_ops *ops);
void rext4_bio_readahead(struct readahead_control *rac, const struct iomap_ops *ops);

/*
 * Static key: whether there are watchers of owner changes. It is disabled some time after the last
 * watcher has gone, since patching the code stops all processors, and another check may follow
 * soon.
 */
extern struct static_key_false_deferred rext4_watched;
void rext4_watched_add(void);
void rext4_watched_remove(void);
void rext4_watched_flush(void);

unsigned int rext4_no_reclaim_begin(void);
void rext4_no_reclaim_end(unsigned int flags);

/* A block written past the journal: its bytes are put in place and on their way. */
int rext4_buffer_fill(struct buffer_head *bh, const u8 *bytes);
int rext4_buffer_write_now(struct buffer_head *bh, size_t offset, const u8 *bytes, size_t len);
int rext4_buffer_copy(struct buffer_head *bh, size_t offset, u8 *out, size_t len);
void rext4_buffers_submit(struct buffer_head *const *bhs, size_t count);
int rext4_buffer_wait(struct buffer_head *bh);

unsigned int rext4_journal_room(journal_t *journal);
bool rext4_is_admin(void);
bool rext4_may_resize(void);
unsigned int rext4_processors(void);

int rext4_run_parallel(void (*run)(void *data), void *data, unsigned int count);

struct rext4_background;
struct rext4_background *rext4_background_new(void (*run)(void *data), void *data);
void rext4_background_start(struct rext4_background *work, unsigned int delay_ms);
void rext4_background_free(struct rext4_background *work);

/* An unlinked tmpfs file. */
struct file *rext4_scratch_open(void);
void rext4_scratch_end(struct file *file);
int rext4_scratch_copy(struct file *file, u64 at, void *bytes, size_t count, bool write);

#endif
