// SPDX-License-Identifier: GPL-2.0
/*
 * fs-work WORKLOAD DIR [NUMBER]...: the workloads of scripts/fs-guest.py that an interpreter would
 * distort.
 *
 * DIR is where the volume is mounted. The random numbers, and therefore the requests, are the same
 * in each run.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096L

static uint64_t seed = 88172645463325252ull;
static char data[1 << 20];
static char path[4096], other[4096];

static void fail(const char *what)
{
	fprintf(stderr, "fs-work: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t any(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static int opened(const char *name, int flags)
{
	int fd = open(name, flags, 0644);

	if (fd < 0)
		fail(name);
	return fd;
}

static void put(int fd, long length)
{
	if (write(fd, data, length) != length)
		fail("write");
}

/* The name of a file: in one of several directories, or in DIR itself. */
static void name_of(const char *dir, long file, long files, long dirs)
{
	if (dirs > 1)
		sprintf(path, "%s/d%ld/file-%ld", dir, file / ((files + dirs - 1) / dirs), file);
	else
		sprintf(path, "%s/file-%ld", dir, file);
}

/* create DIRS FILES BYTES */
static void create(const char *dir, long *n)
{
	for (long i = 0; n[0] > 1 && i < n[0]; i++) {
		sprintf(path, "%s/d%ld", dir, i);
		if (mkdir(path, 0755))
			fail(path);
	}
	for (long i = 0; i < n[1]; i++) {
		int fd;

		name_of(dir, i, n[1], n[0]);
		fd = opened(path, O_CREAT | O_EXCL | O_WRONLY);
		if (n[2])
			put(fd, n[2]);
		close(fd);
	}
}

/* lookup DIRS FILES COUNT */
static void lookup(const char *dir, long *n)
{
	struct stat st;

	for (long i = 0; i < n[2]; i++) {
		name_of(dir, any() % n[1], n[1], n[0]);
		if (stat(path, &st))
			fail(path);
	}
}

/* remove DIRS FILES */
static void removed(const char *dir, long *n)
{
	for (long i = 0; i < n[1]; i++) {
		name_of(dir, i, n[1], n[0]);
		if (unlink(path))
			fail(path);
	}
}

static void all_done(void)
{
	int status, bad = 0;

	while (wait(&status) > 0)
		bad |= status;
	if (bad)
		fail("a process of it");
}

/* append WRITERS BYTES_AT_ONCE BYTES WRITES_BETWEEN_SYNCS (0: only one, at the end) */
static void append(const char *dir, long *n)
{
	for (long w = 0; w < n[0]; w++) {
		if (fork())
			continue;
		sprintf(path, "%s/appended-%ld", dir, w);
		int fd = opened(path, O_CREAT | O_WRONLY | O_APPEND);

		for (long at = 0, i = 1; at < n[2]; at += n[1], i++) {
			put(fd, n[1]);
			if (n[3] && i % n[3] == 0 && fdatasync(fd))
				fail("fdatasync");
		}
		if (fsync(fd))
			fail("fsync");
		_exit(0);
	}
	all_done();
}

/* overwrite FILE_BLOCKS WRITES WRITES_BETWEEN_SYNCS: single blocks at random of one file, which is a hole if it is new */
static void overwrite(const char *dir, long *n)
{
	int fd;

	sprintf(path, "%s/file", dir);
	fd = opened(path, O_CREAT | O_WRONLY);
	if (ftruncate(fd, n[0] * BLOCK))
		fail("ftruncate");
	for (long i = 1; i <= n[1]; i++) {
		if (pwrite(fd, data, BLOCK, any() % n[0] * BLOCK) != BLOCK)
			fail("pwrite");
		if (n[2] && i % n[2] == 0 && fsync(fd))
			fail("fsync");
	}
	if (fsync(fd))
		fail("fsync");
}

/* punch MIB HOLES */
static void punch(const char *dir, long *n)
{
	int fd;

	sprintf(path, "%s/punched", dir);
	fd = opened(path, O_CREAT | O_RDWR);
	if (fallocate(fd, 0, 0, n[0] << 20))
		fail("fallocate");
	for (long i = 0; i < n[1]; i++)
		if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (2 * i + 1) * BLOCK, BLOCK))
			fail("fallocate");
	if (fsync(fd))
		fail("fsync");
}

/* fragment MIB: fills that much, or all there is, with files of 32 KiB, and removes every other one */
static void fragment(const char *dir, long *n)
{
	const long size = 32 << 10;
	long made = 0, wanted = (n[0] << 20) / size;

	for (; made < wanted; made++) {
		int fd;
		long put;

		sprintf(path, "%s/small-%ld", dir, made / 500);
		mkdir(path, 0755);
		sprintf(path, "%s/small-%ld/%ld", dir, made / 500, made);
		fd = open(path, O_CREAT | O_WRONLY, 0644);
		if (fd < 0)
			break;
		put = write(fd, data, size);
		close(fd);
		if (put != size)
			break;
	}
	sync();
	for (long i = 0; i < made; i += 2) {
		sprintf(path, "%s/small-%ld/%ld", dir, i / 500, i);
		unlink(path);
	}
	sync();
}

static void mixed_step(const char *dir, long worker)
{
	unsigned file = any() % 2000, what = any() % 100;
	struct stat st;
	int fd;

	sprintf(path, "%s/w%ld/%u/f%u", dir, worker, file % 20, file);
	if (what < 40) {
		fd = opened(path, O_CREAT | O_WRONLY | O_APPEND);
		put(fd, 1 + any() % 32768);
		close(fd);
	} else if (what < 75) {
		fd = open(path, what < 55 ? O_WRONLY : O_RDONLY);
		if (fd < 0)
			return;
		if (what >= 55 && read(fd, data, 65536) < 0)
			fail("read");
		if (what < 55 && !fstat(fd, &st) && st.st_size && pwrite(fd, data, BLOCK, any() % st.st_size / BLOCK * BLOCK) < 0)
			fail("pwrite");
		close(fd);
	} else if (what < 80) {
		if (truncate(path, any() % 20000) && errno != ENOENT)
			fail("truncate");
	} else if (what < 85) {
		file = any() % 2000;
		sprintf(other, "%s/w%ld/%u/f%u", dir, worker, file % 20, file);
		if (rename(path, other) && errno != ENOENT)
			fail("rename");
	} else if (what < 97) {
		if (unlink(path) && errno != ENOENT)
			fail("unlink");
	} else {
		fd = open(path, O_WRONLY);
		if (fd >= 0)
			fsync(fd);
		close(fd);
	}
}

/* mixed WORKERS STEPS_EACH SECONDS (0: by steps): prints how many steps were done a second */
static void mixed(const char *dir, long *n)
{
	long *done = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), all = 0;
	double begun = now();

	for (long w = 0; w < n[0]; w++) {
		if (fork())
			continue;
		seed += 977 * (w + 1);
		for (int i = 0; i < 20; i++)
			any();
		sprintf(path, "%s/w%ld", dir, w);
		mkdir(path, 0755);
		for (int i = 0; i < 20; i++) {
			sprintf(path, "%s/w%ld/%d", dir, w, i);
			mkdir(path, 0755);
		}
		while (n[2] ? now() - begun < n[2] : done[w] < n[1]) {
			mixed_step(dir, w);
			done[w]++;
		}
		_exit(0);
	}
	all_done();
	for (long w = 0; w < n[0]; w++)
		all += done[w];
	printf("%.0f\n", all / (now() - begun));
}

static const struct {
	const char *name;
	void (*run)(const char *dir, long *numbers);
} workloads[] = {
	{ "create", create }, { "lookup", lookup }, { "remove", removed }, { "append", append }, { "overwrite", overwrite },
	{ "punch", punch }, { "fragment", fragment }, { "mixed", mixed },
};

int main(int count, char **words)
{
	long numbers[8] = { 0 };

	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = any() >> 32;
	for (int i = 3; i < count && i < 11; i++)
		numbers[i - 3] = atol(words[i]);
	for (size_t i = 0; count > 2 && i < sizeof(workloads) / sizeof(*workloads); i++) {
		if (strcmp(words[1], workloads[i].name))
			continue;
		workloads[i].run(words[2], numbers);
		return 0;
	}
	fprintf(stderr, "usage: fs-work WORKLOAD DIR [NUMBER]...\n");
	return 2;
}
