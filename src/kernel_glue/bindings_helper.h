/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The input of bindgen, one header per line: Kbuild allows the items of exactly these headers, and
 * everything else that they refer to is imported from the kernel crate's bindings, so that both use
 * the same types.
 */
#include <linux/buffer_head.h>
#include <linux/crc16.h>
#include <linux/crc32.h>
#include <linux/exportfs.h>
#include <linux/falloc.h>
#include <linux/fiemap.h>
#include <linux/fs_context.h>
#include <linux/fs_parser.h>
#include <linux/fsmap.h>
#include <linux/iomap.h>
#include <linux/jbd2.h>
#include <linux/jump_label_ratelimit.h>
#include <linux/journal-head.h>
#include <linux/namei.h>
#include <linux/percpu_counter.h>
#include <linux/posix_acl.h>
#include <linux/posix_acl_xattr.h>
#include <linux/stackdepot.h>
#include <linux/statfs.h>
#include <linux/uio.h>
#include <linux/writeback.h>
#include <linux/xattr.h>

#include <rext4.h>

#include "helpers.h"
#include "calls.h"

/* bindgen evaluates only simple constants, so those that are casts are defined as variables. */
const unsigned long RUST_CONST_HELPER_REXT4_SB_RDONLY = SB_RDONLY;
const int RUST_CONST_HELPER_REXT4_IOCB_NOWAIT = IOCB_NOWAIT;
const fmode_t RUST_CONST_HELPER_REXT4_FMODE_WRITE = FMODE_WRITE;
const gfp_t RUST_CONST_HELPER_REXT4_GFP_NOFS = GFP_NOFS;
const unsigned long RUST_CONST_HELPER_REXT4_SB_SYNCHRONOUS = SB_SYNCHRONOUS;
const unsigned long RUST_CONST_HELPER_REXT4_SB_DIRSYNC = SB_DIRSYNC;
const unsigned long RUST_CONST_HELPER_REXT4_SB_POSIXACL = SB_POSIXACL;

/* The owners that FS_IOC_GETFSMAP tells of and that are no inodes. */
const u64 RUST_CONST_HELPER_REXT4_OWNER_FREE = FMR_OWN_FREE;
const u64 RUST_CONST_HELPER_REXT4_OWNER_UNKNOWN = FMR_OWN_UNKNOWN;
const u64 RUST_CONST_HELPER_REXT4_OWNER_FS = REXT4_FMR_OWN_FS;
const u64 RUST_CONST_HELPER_REXT4_OWNER_INODES = REXT4_FMR_OWN_INODES;
const u64 RUST_CONST_HELPER_REXT4_OWNER_GDT = REXT4_FMR_OWN_GDT;
const u64 RUST_CONST_HELPER_REXT4_OWNER_RESV_GDT = REXT4_FMR_OWN_RESV_GDT;
const u64 RUST_CONST_HELPER_REXT4_OWNER_BLKBM = REXT4_FMR_OWN_BLKBM;
const u64 RUST_CONST_HELPER_REXT4_OWNER_INOBM = REXT4_FMR_OWN_INOBM;

/* The numbers of our own calls, as C makes them of the sizes of their structures. */
const unsigned int RUST_CONST_HELPER_REXT4_CALL_SCRUB_METADATA = REXT4_IOC_SCRUB_METADATA;
const unsigned int RUST_CONST_HELPER_REXT4_CALL_SCRUB_PROGRESS = REXT4_IOC_SCRUB_PROGRESS;
const unsigned int RUST_CONST_HELPER_REXT4_CALL_REGION_INFO = REXT4_IOC_REGION_INFO;
