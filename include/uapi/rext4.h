/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * ioctls of a mounted rext4 volume, in addition to the generic ones.
 *
 * All of them can be issued on any open file or directory of the volume and require CAP_SYS_ADMIN.
 * Reserved fields must be zero; they are returned as zero. FS_IOC_GETFSMAP (linux/fsmap.h) returns
 * the contents of the reverse map; see the owners below.
 */
#ifndef _UAPI_REXT4_H
#define _UAPI_REXT4_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* The kind of metadata: sm_type. */
#define REXT4_SCRUB_TYPE_PROBE		0	/* none; tells whether the ioctl exists */
#define REXT4_SCRUB_TYPE_RMAP		1	/* the reverse map; compared with all inodes */
#define REXT4_SCRUB_TYPE_REFCOUNT	2	/* the reference counts; compared with the reverse map */
#define REXT4_SCRUB_TYPE_BITMAP		3	/* block bitmaps and free counts; compared with all inodes, and
						   before a block is freed also with the reverse map */
#define REXT4_SCRUB_TYPE_INODE_BITMAP	4	/* inode bitmaps, counts of inodes and directories; compared with
						   the inode tables, and before an inode is freed also with
						   the reverse map and all names */
#define REXT4_SCRUB_TYPE_INODE		5	/* the counts of blocks of inodes; compared with their mappings */
#define REXT4_SCRUB_TYPE_LINKS		6	/* link counts; compared with the entries of all directories */

/* Input flags in sm_flags. Without any, the metadata is checked and nothing is changed. */
#define REXT4_SCRUB_IFLAG_REPAIR	(1u << 0)	/* repair regions that are wrong or stale */
#define REXT4_SCRUB_IFLAG_FORCE_REBUILD	(1u << 8)	/* with REPAIR: also rebuild regions that are
							   not stale, without checking them */
#define REXT4_SCRUB_FLAGS_IN		(REXT4_SCRUB_IFLAG_REPAIR | REXT4_SCRUB_IFLAG_FORCE_REBUILD)

/*
 * Output flags in sm_flags. Each is set if it applies to any of the requested regions.
 *
 * CORRUPT: the metadata is wrong (sm_bad_regions), or was wrong before the repair.
 * PREEN: the metadata is right, but blocks of replaced trees have not been freed. A repair frees
 *	them.
 * XFAIL: some inodes, or their group, could not be read from disk. Regions that contain blocks of
 *	such an inode according to their tree were neither judged nor rebuilt; on a volume with
 *	shared blocks, no stale region was rebuilt either.
 * XCORRUPT: some inodes are damaged, with the same consequences as for XFAIL; or inodes claim the
 *	same blocks but must not share them, in which case the regions of these blocks were neither
 *	judged nor rebuilt. For REFCOUNT: the reverse map of a region could not be read. For BITMAP:
 *	a group descriptor is damaged. For INODE_BITMAP: likewise, or inodes are damaged, or look
 *	free but own blocks or have names; their bits are not changed. For INODE: inodes are damaged.
 *	For LINKS: an inode in use has no name, or a name leads to a free one.
 * INCOMPLETE: a requested region was not judged, or is stale, or the call failed.
 * NO_REPAIR_NEEDED: a repair was requested, but nothing had to be repaired.
 *
 * Each finding is described in the kernel log: the first difference of a region, contradictory
 * claims, and inodes that could not be read.
 */
#define REXT4_SCRUB_OFLAG_CORRUPT	(1u << 1)
#define REXT4_SCRUB_OFLAG_PREEN		(1u << 2)
#define REXT4_SCRUB_OFLAG_XFAIL		(1u << 3)
#define REXT4_SCRUB_OFLAG_XCORRUPT	(1u << 4)
#define REXT4_SCRUB_OFLAG_INCOMPLETE	(1u << 5)
#define REXT4_SCRUB_OFLAG_NO_REPAIR_NEEDED (1u << 7)
#define REXT4_SCRUB_FLAGS_OUT		(REXT4_SCRUB_OFLAG_CORRUPT | REXT4_SCRUB_OFLAG_PREEN | \
					 REXT4_SCRUB_OFLAG_XFAIL | REXT4_SCRUB_OFLAG_XCORRUPT | \
					 REXT4_SCRUB_OFLAG_INCOMPLETE | REXT4_SCRUB_OFLAG_NO_REPAIR_NEEDED)

/* sm_region: all regions of the volume, with a single scan. */
#define REXT4_SCRUB_ALL_REGIONS		(~0u)

/*
 * REXT4_IOC_SCRUB_METADATA: runs a check, or a check and repair.
 *
 * Errors that occur before anything is started; the structure is not written back:
 *	EPERM		the caller lacks CAP_SYS_ADMIN
 *	EFAULT		the structure cannot be read or written
 *	EINVAL		unknown type, flag or region, or a reserved field that is not zero
 *	EROFS		the volume is mounted read-only
 *	EOPNOTSUPP	the volume has no reverse map in use
 *	EBUSY		another requested check or repair is running (a background one is waited for)
 *	EINTR		a signal arrived while waiting for a background check or repair
 *	ECANCELED	the volume is being unmounted
 *
 * Otherwise the structure is written back, even if the call fails, with the findings and results so
 * far. The repair of a region is atomic: the region has either its old tree or its new one, and
 * regions that were rebuilt before a failure stay rebuilt (sm_rebuilt_regions). Bitmaps are
 * repaired one group at a time, and groups that were repaired before a failure stay so. Errors:
 *	EINTR		interrupted by a signal; the remaining regions are unchanged
 *	ECANCELED	cancelled by REXT4_IOC_SCRUB_CANCEL or by the unmount; likewise
 *	EROFS		the volume became read-only; likewise
 *	ENOMEM, ENOSPC, EIO, EUCLEAN
 *			the scan of the inodes failed, and no region was checked; or the check or repair of a
 *			region failed (sm_failed_regions) and that region is unchanged. The other regions were
 *			processed nevertheless; the errno is that of the first failure.
 *
 * Damaged inodes are not an error; see XFAIL and XCORRUPT.
 */
struct rext4_scrub_metadata {
	__u32 sm_type;		/* in: REXT4_SCRUB_TYPE_ */
	__u32 sm_flags;		/* in and out: REXT4_SCRUB_IFLAG_, REXT4_SCRUB_OFLAG_ */
	__u32 sm_region;	/* in: a region, or REXT4_SCRUB_ALL_REGIONS */
	__u32 sm_bad_regions;	/* out: number of regions found to be wrong */
	__u32 sm_rebuilt_regions; /* out: number of regions that were repaired */
	__u32 sm_memory_limit;	/* in: KiB of memory for collected records, the rest is spilled to a
				   tmpfs file; 0: the module parameter rebuild_memory */
	__u64 sm_inodes;	/* out: number of inodes in use that were scanned */
	__u64 sm_records;	/* out: number of records that the scan collected */
	__u64 sm_blocks;	/* out: number of tree blocks or bitmaps written */
	__u64 sm_live_updates;	/* out: number of live updates received while it ran */
	__u64 sm_memory;	/* out: bytes of memory used for collected records */
	__u64 sm_scan_ns;	/* out: nanoseconds for the scan, */
	__u64 sm_check_ns;	/*      for the comparison, */
	__u64 sm_load_ns;	/*      for writing new trees and catching up, */
	__u64 sm_reap_ns;	/*      and for freeing old ones */
	__u64 sm_stall_ns;	/* out: the longest time for which a region was locked, in nanoseconds */
	__u64 sm_spilled;	/* out: bytes spilled to the tmpfs file */
	__u32 sm_failed_regions; /* out: number of regions whose check or repair failed */
	__u32 sm_reserved0;
	__u64 sm_reserved[2];
};

/* sp_phase: the phase of a check or repair. */
#define REXT4_SCRUB_PHASE_IDLE		0	/* nothing is running */
#define REXT4_SCRUB_PHASE_SCAN		1	/* scanning inodes */
#define REXT4_SCRUB_PHASE_CHECK		2	/* comparing regions */
#define REXT4_SCRUB_PHASE_LOAD		3	/* rebuilding regions */
#define REXT4_SCRUB_PHASE_REAP		4	/* freeing replaced trees */

/* sp_flags */
#define REXT4_SCRUB_PROGRESS_BACKGROUND	(1u << 0)	/* started by the kernel in the background */
#define REXT4_SCRUB_PROGRESS_REPAIR	(1u << 1)	/* a repair */

struct rext4_scrub_progress {
	__u32 sp_type;		/* out: REXT4_SCRUB_TYPE_ */
	__u32 sp_phase;		/* out: REXT4_SCRUB_PHASE_ */
	__u32 sp_flags;		/* out: REXT4_SCRUB_PROGRESS_ */
	__u32 sp_reserved0;
	__u64 sp_done;		/* out: number of inodes or regions done in this phase, */
	__u64 sp_total;		/*      and their total number */
	__u64 sp_records;	/* out: number of records collected so far */
	__u64 sp_reserved[4];
};

/* ri_state, ri_count_state: the state of a region's tree. */
#define REXT4_REGION_STALE		0	/* to be rebuilt; not used for queries */
#define REXT4_REGION_GOOD		1	/* kept up to date with every change */
#define REXT4_REGION_NONE		2	/* does not exist: no block was ever shared */

/*
 * REXT4_IOC_REGION_INFO: returns the state of a region. Fails with EINVAL beyond the last region,
 * and with EOPNOTSUPP if the volume has no reverse map in use.
 */
struct rext4_region_info {
	__u32 ri_region;	/* in: the region, counted from 0 */
	__u32 ri_state;		/* out: REXT4_REGION_ */
	__u32 ri_regions;	/* out: number of regions of the volume */
	__u32 ri_generation;	/* out: generation of the tree; changes with each rebuild */
	__u64 ri_start;		/* out: first block of the region, */
	__u64 ri_blocks;	/*      and its length, in file system blocks */
	__u32 ri_level;		/* out: level of the root node */
	__u32 ri_root;		/* out: block of the root node in the tree file */
	__u32 ri_file_blocks;	/* out: blocks of the tree file, for all regions, */
	__u32 ri_free_blocks;	/*      and how many of them are free */
	__u32 ri_block_size;	/* out: file system block size in bytes */
	__u32 ri_inode;		/* out: inode of the tree file */
	__u32 ri_count_state;	/* out: state of the tree of reference counts, */
	__u32 ri_count_generation; /*   its generation, */
	__u32 ri_count_blocks;	/*      blocks of its file, for all regions, */
	__u32 ri_count_free_blocks; /*  and how many of them are free */
	__u64 ri_reserved[2];
};

#define REXT4_IOC_SCRUB_METADATA	_IOWR('r', 0x80, struct rext4_scrub_metadata)
#define REXT4_IOC_SCRUB_PROGRESS	_IOR('r', 0x81, struct rext4_scrub_progress)
/* Cancels the running check or repair and waits for its end. Fails with ENOENT if none is running. */
#define REXT4_IOC_SCRUB_CANCEL		_IO('r', 0x82)
#define REXT4_IOC_REGION_INFO		_IOWR('r', 0x83, struct rext4_region_info)

/*
 * Cloning many files at one point in time. REXT4_IOC_HOLD, on an open directory, blocks all tasks
 * that want to change something on the volume, including the caller, and writes back dirty data;
 * readers continue. The hold lasts until REXT4_IOC_RELEASE, which may be issued by any process on
 * any open directory of the volume, or until the directory on which it was taken is closed for the
 * last time; after a fork both processes have it open. During a hold, REXT4_IOC_CLONE_HELD, on a
 * regular file that is open for writing, makes that file share all blocks of the regular file whose
 * descriptor is the argument, as FICLONE does.
 *
 * HOLD fails with EBUSY if the volume is held already, EROFS, or EIO; RELEASE and CLONE_HELD fail
 * with ENOENT if it is not held; all of them fail with ENOTDIR or EINVAL on the wrong type of file,
 * and CLONE_HELD also fails as FICLONE does.
 */
#define REXT4_IOC_HOLD			_IO('r', 0x90)
#define REXT4_IOC_RELEASE		_IO('r', 0x91)
#define REXT4_IOC_CLONE_HELD		_IOW('r', 0x92, int)

/*
 * Owners returned by FS_IOC_GETFSMAP. If FMR_OF_SPECIAL_OWNER is set in fmr_flags, fmr_owner is one
 * of these or of those in linux/fsmap.h (FMR_OWN_FREE, FMR_OWN_UNKNOWN, FMR_OWN_METADATA).
 * Otherwise it is an inode number, and fmr_offset is the offset in the file in bytes.
 * FMR_OF_EXTENT_MAP marks extent-tree nodes and indirect blocks, FMR_OF_ATTR_FORK blocks of
 * extended attributes, FMR_OF_PREALLOC unwritten extents, and FMR_OF_SHARED data of which some
 * block has another owner as well. The values are those used by ext4.
 */
#define REXT4_FMR_OWN_FS		FMR_OWNER('X', 1)	/* superblocks */
#define REXT4_FMR_OWN_INODES		FMR_OWNER('X', 5)	/* inode tables */
#define REXT4_FMR_OWN_GDT		FMR_OWNER('f', 1)	/* group descriptors */
#define REXT4_FMR_OWN_RESV_GDT		FMR_OWNER('f', 2)	/* blocks reserved for more of them */
#define REXT4_FMR_OWN_BLKBM		FMR_OWNER('f', 3)	/* block bitmaps */
#define REXT4_FMR_OWN_INOBM		FMR_OWNER('f', 4)	/* inode bitmaps */

#endif /* _UAPI_REXT4_H */
