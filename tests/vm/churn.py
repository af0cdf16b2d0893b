#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""churn.py DIRECTORY COUNT: creates and removes the same few objects repeatedly while another thread forces journal commits
without a pause, so that blocks and inodes are reused that the committing transaction has just freed."""

import os
import sys
import threading

top, count = sys.argv[1], int(sys.argv[2])
path = os.path.join(top, "again")
done = threading.Event()
failed = []


def commit():
    fd = os.open(top, os.O_RDONLY)
    try:
        while not done.is_set():
            os.fsync(fd)
    except OSError as error:
        failed.append(error)
    os.close(fd)


def keep(n):
    """Keeps one more inode, so that the next one allocated is sometimes the first of its inode table block."""
    open(f"{path}-{n}", "w").close()


def file():
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    os.unlink(path)


def directory():
    os.mkdir(path)
    os.rmdir(path)


def symlink():
    os.symlink("t" * 300, path)
    os.unlink(path)


def fragments():
    """Creates more extents than fit into an inode, so that an extent-tree block is allocated and freed."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    for n in range(12):
        os.pwrite(fd, b"x", n * 8192)
    os.fsync(fd)
    os.close(fd)
    os.unlink(path)


committer = threading.Thread(target=commit)
committer.start()
try:
    for n in range(16):
        for _ in range(count):
            file()
        keep(n)
    for n in range(4):
        for _ in range(count):
            directory()
        keep(16 + n)
    for _ in range(count):
        symlink()
    for _ in range(count // 10):
        fragments()
finally:
    done.set()
    committer.join()
sys.exit(f"fsync: {failed[0]}" if failed else 0)
