/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * The ioctls of a mounted rext4 volume, beside the calls that every file system has.
 *
 * All calls go to any open file or directory of the volume and need CAP_SYS_ADMIN. Reserved fields must be zero; they
 * come back as zero. FS_IOC_GETFSMAP (linux/fsmap.h) answers from the reverse map; see the owners below.
 */
#ifndef _UAPI_REXT4_H
#define _UAPI_REXT4_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* The kind of metadata: sm_type. */
#define REXT4_SCRUB_TYPE_PROBE		0	/* none: tells whether the call is there */
#define REXT4_SCRUB_TYPE_RMAP		1	/* the reverse map, against all inodes */
#define REXT4_SCRUB_TYPE_REFCOUNT	2	/* the reference counts, against the reverse map */

/* In, in sm_flags. Without any the metadata is checked, and nothing is changed. */
#define REXT4_SCRUB_IFLAG_REPAIR	(1u << 0)	/* repair regions that are wrong or stale */
#define REXT4_SCRUB_IFLAG_FORCE_REBUILD	(1u << 8)	/* with REPAIR: rebuild, without a comparison, also regions that
							   are not stale */
#define REXT4_SCRUB_FLAGS_IN		(REXT4_SCRUB_IFLAG_REPAIR | REXT4_SCRUB_IFLAG_FORCE_REBUILD)

/*
 * Out, in sm_flags. Each is set if it is so of any region that was asked for.
 *
 * CORRUPT: the metadata is wrong (sm_bad_regions). After a repair it tells what was found before.
 * PREEN: the metadata is right, and blocks of replaced trees are still to be freed. A repair frees them.
 * XFAIL: inodes, or the group of some, could not be read from the disk. Regions that, by their tree, hold blocks of such
 *	an inode were neither judged nor rebuilt; on a volume that shares blocks no stale region was rebuilt either.
 * XCORRUPT: the same of inodes that are damaged. Besides, inodes claim the same blocks and must not share them: these
 *	regions were neither judged nor rebuilt. For REFCOUNT: the reverse map of a region could not be read.
 * INCOMPLETE: a region that was asked for was not judged, or is stale, or the call failed.
 * NO_REPAIR_NEEDED: a repair was asked for, and there was nothing to do.
 *
 * The kernel's log names each finding: the first difference of a region, the claims that contradict each other, the
 * inodes that could not be read.
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

/* sm_region: all regions of the volume, in one scan. */
#define REXT4_SCRUB_ALL_REGIONS		(~0u)

/*
 * REXT4_IOC_SCRUB_METADATA: a check, or a check and repair.
 *
 * Fails before anything is begun, and then writes nothing back, with
 *	EPERM		the caller lacks CAP_SYS_ADMIN
 *	EFAULT		the structure cannot be read or written
 *	EINVAL		unknown type, flag or region, or a reserved field that is not zero
 *	EROFS		the volume is mounted read-only
 *	EOPNOTSUPP	the volume has no reverse map in use
 *	EBUSY		another caller's check or repair is running (one in the background is waited for)
 *	EINTR		a signal came while a check or repair in the background was waited for
 *	ECANCELED	the volume is being unmounted
 *
 * Otherwise the structure is written back, also when the call fails, and tells what was found and done until then. A
 * region's repair is whole or not at all: a region is left with its old tree or with its new one, and those that were
 * rebuilt before a failure stay rebuilt (sm_rebuilt_regions). Fails with
 *	EINTR		ended by a signal,
 *	ECANCELED	by REXT4_IOC_SCRUB_CANCEL or by the unmount: the regions that were not done yet are as they were
 *	EROFS		the volume became read-only: likewise
 *	ENOMEM, ENOSPC, EIO, EUCLEAN
 *			the scan of the inodes failed, and no region was looked at; or a region's check or repair failed
 *			(sm_failed_regions) and that region is as it was. The others were done all the same; the errno is
 *			the first one's.
 *
 * Damage to inodes is no failure: see XFAIL and XCORRUPT.
 */
struct rext4_scrub_metadata {
	__u32 sm_type;		/* in: REXT4_SCRUB_TYPE_ */
	__u32 sm_flags;		/* in and out: REXT4_SCRUB_IFLAG_, REXT4_SCRUB_OFLAG_ */
	__u32 sm_region;	/* in: a region, or REXT4_SCRUB_ALL_REGIONS */
	__u32 sm_bad_regions;	/* out: regions found to be wrong */
	__u32 sm_rebuilt_regions; /* out: regions that got a new tree */
	__u32 sm_memory_limit;	/* in: KiB of memory for what the scan collects, the rest goes to a file in tmpfs; 0: as
				   the module's parameter rebuild_memory says */
	__u64 sm_inodes;	/* out: inodes in use that were scanned */
	__u64 sm_records;	/* out: records that the scan collected */
	__u64 sm_blocks;	/* out: tree blocks written */
	__u64 sm_live_updates;	/* out: changes by others while it ran, that it took in */
	__u64 sm_memory;	/* out: bytes of memory taken at most for collected records */
	__u64 sm_scan_ns;	/* out: nanoseconds of the scan, */
	__u64 sm_check_ns;	/*      of the comparison, */
	__u64 sm_load_ns;	/*      of writing new trees and catching up, */
	__u64 sm_reap_ns;	/*      and of freeing old ones */
	__u64 sm_stall_ns;	/* out: the longest time for which a region was locked, to compare or to swap its tree */
	__u64 sm_spilled;	/* out: bytes written to that file */
	__u32 sm_failed_regions; /* out: regions whose check or repair failed */
	__u32 sm_reserved0;
	__u64 sm_reserved[2];
};

/* The phase that a check or repair is in: sp_phase. */
#define REXT4_SCRUB_PHASE_IDLE		0	/* none is running */
#define REXT4_SCRUB_PHASE_SCAN		1	/* inodes */
#define REXT4_SCRUB_PHASE_CHECK		2	/* regions compared */
#define REXT4_SCRUB_PHASE_LOAD		3	/* regions rebuilt */
#define REXT4_SCRUB_PHASE_REAP		4	/* regions of which old blocks are freed */

/* sp_flags */
#define REXT4_SCRUB_PROGRESS_BACKGROUND	(1u << 0)	/* it was started by the mount, not by a call */
#define REXT4_SCRUB_PROGRESS_REPAIR	(1u << 1)	/* it repairs */

struct rext4_scrub_progress {
	__u32 sp_type;		/* out: REXT4_SCRUB_TYPE_ */
	__u32 sp_phase;		/* out: REXT4_SCRUB_PHASE_ */
	__u32 sp_flags;		/* out: REXT4_SCRUB_PROGRESS_ */
	__u32 sp_reserved0;
	__u64 sp_done;		/* out: of the phase's inodes or regions, */
	__u64 sp_total;		/*      and how many there are */
	__u64 sp_records;	/* out: records collected so far */
	__u64 sp_reserved[4];
};

/* How a region's tree stands: ri_state. */
#define REXT4_REGION_STALE		0	/* to be rebuilt; nothing is answered from it */
#define REXT4_REGION_GOOD		1	/* kept up with every change */
#define REXT4_REGION_NONE		2	/* there is none: no block of the volume was ever shared */

/* A region's tree. Fails with EINVAL beyond the last region, EOPNOTSUPP when the volume has no reverse map in use. */
struct rext4_region_info {
	__u32 ri_region;	/* in: which one, from 0 on */
	__u32 ri_state;		/* out: REXT4_REGION_ */
	__u32 ri_regions;	/* out: regions of the volume */
	__u32 ri_generation;	/* out: counts rebuilds */
	__u64 ri_start;		/* out: its first block, */
	__u64 ri_blocks;	/*      and how many it has, in file system blocks */
	__u32 ri_level;		/* out: the level of the tree's root */
	__u32 ri_root;		/* out: the root's block in the tree file */
	__u32 ri_file_blocks;	/* out: blocks of the tree file, of all regions, */
	__u32 ri_free_blocks;	/*      and those of them that are free */
	__u32 ri_block_size;	/* out: bytes of a file system block */
	__u32 ri_inode;		/* out: the inode of the tree file */
	__u32 ri_count_state;	/* out: how the tree of the reference counts stands, */
	__u32 ri_count_generation; /*   its generation, */
	__u32 ri_count_blocks;	/*      the blocks of its file, of all regions, */
	__u32 ri_count_free_blocks; /*  and those of them that are free */
	__u64 ri_reserved[2];
};

#define REXT4_IOC_SCRUB_METADATA	_IOWR('r', 0x80, struct rext4_scrub_metadata)
#define REXT4_IOC_SCRUB_PROGRESS	_IOR('r', 0x81, struct rext4_scrub_progress)
/* Ends the check or repair that is running, and waits for its end. Fails with ENOENT when there is none. */
#define REXT4_IOC_SCRUB_CANCEL		_IO('r', 0x82)
#define REXT4_IOC_REGION_INFO		_IOWR('r', 0x83, struct rext4_region_info)

/*
 * One moment for many files. REXT4_IOC_HOLD, on an open directory, has all wait who want to change something on the
 * volume, the caller too, and writes out what is dirty; who reads goes on. It lasts until REXT4_IOC_RELEASE, which anybody
 * may call on any open directory of the volume, or until the directory that it was called on is closed for the last time:
 * a program that forks or runs another one has it open in both. Meanwhile REXT4_IOC_CLONE_HELD, on a regular file that is
 * open for writing, has it share all blocks of the regular file that is open as the descriptor given as the argument, as
 * FICLONE does.
 *
 * HOLD fails with EBUSY when the volume is held, EROFS, EIO; RELEASE and CLONE_HELD with ENOENT when it is not; all with
 * ENOTDIR or EINVAL on the wrong kind of file, CLONE_HELD as FICLONE.
 */
#define REXT4_IOC_HOLD			_IO('r', 0x90)
#define REXT4_IOC_RELEASE		_IO('r', 0x91)
#define REXT4_IOC_CLONE_HELD		_IOW('r', 0x92, int)

/*
 * Owners in the answers of FS_IOC_GETFSMAP. With FMR_OF_SPECIAL_OWNER in fmr_flags fmr_owner is one of these or of those
 * in linux/fsmap.h (FMR_OWN_FREE, FMR_OWN_UNKNOWN, FMR_OWN_METADATA); without it, it is an inode, and fmr_offset the
 * place in the file, in bytes. Extent-tree nodes and indirect blocks bear FMR_OF_EXTENT_MAP, blocks of extended
 * attributes FMR_OF_ATTR_FORK, unwritten extents FMR_OF_PREALLOC, data of which any block has another owner as well
 * FMR_OF_SHARED. The values are those that ext4 gives.
 */
#define REXT4_FMR_OWN_FS		FMR_OWNER('X', 1)	/* superblocks */
#define REXT4_FMR_OWN_INODES		FMR_OWNER('X', 5)	/* inode tables */
#define REXT4_FMR_OWN_GDT		FMR_OWNER('f', 1)	/* group descriptors */
#define REXT4_FMR_OWN_RESV_GDT		FMR_OWNER('f', 2)	/* blocks kept for more of them */
#define REXT4_FMR_OWN_BLKBM		FMR_OWNER('f', 3)	/* block bitmaps */
#define REXT4_FMR_OWN_INOBM		FMR_OWNER('f', 4)	/* inode bitmaps */

#endif /* _UAPI_REXT4_H */
