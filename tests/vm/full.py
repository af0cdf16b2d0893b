#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Fills volumes to the last block, and checks that everything written is kept.

full.py WHAT DIR, where WHAT is one of

  pieces     a long file is written to the page cache, then another one fills the volume; then every other page of the first
             is written back, so that it gets as many extents as possible
  holes      only single free blocks are left on the volume (needs a file system that can punch holes)
  filler     one file takes all remaining space
  prepared   parts of a preallocated file are written
  again      all space is allocated and freed, then directories and files are created immediately
  shared     parts of a file whose blocks are all shared are written until no space is left
  parted     a file shares all its blocks with another one and loses every other block, until neither tree has room to be
             kept up; then the other file is removed, and half of the first one
  scattered  a file grows by writes of any length at any offset until no space is left
"""

import ctypes
import errno
import fcntl
import os
import random
import sys

PAGE = 4096
WRITE = 1 | 2 | 4  # SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE, _WAIT_AFTER
libc = ctypes.CDLL(None, use_errno=True)


def sync_range(fd, offset, length):
    """Writes back these bytes, and nothing else."""
    if libc.sync_file_range(fd, ctypes.c_long(offset), ctypes.c_long(length), WRITE):
        raise OSError(ctypes.get_errno(), "sync_file_range")


def punch(fd, offset, length):
    if libc.fallocate(fd, 3, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), "fallocate")


def forget():
    """Drops clean pages, dentries and inodes from memory."""
    with open("/proc/sys/vm/drop_caches", "w") as f:
        f.write("3")


def fill(path):
    """Fills the volume with one file. Returns the file's expected contents."""
    held = b""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    for length in (1 << 20, 1024):
        while True:
            piece = random.randbytes(length)
            try:
                done = os.pwrite(fd, piece, len(held))
            except OSError as e:
                assert e.errno == errno.ENOSPC, e
                break
            held += piece[:done]
    os.fsync(fd)
    os.close(fd)
    return held


def compare(path, model):
    with open(path, "rb") as f:
        found = f.read()
    if found == model:
        return
    bad = [at for at in range(0, max(len(found), len(model)), 1024) if found[at:at + 1024] != model[at:at + 1024]]
    sys.exit(f"{path}: {len(found)} bytes for {len(model)}, {len(bad)} KiB differ, the first at {bad[0]}")


def pieces(top):
    path, pages = f"{top}/pieces", 3000
    model = bytearray(random.randbytes(pages * PAGE))
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    for page in range(pages):
        os.pwrite(fd, model[page * PAGE:(page + 1) * PAGE], page * PAGE)
    filler = fill(f"{top}/filler")
    odd = list(range(1, pages, 2))
    random.shuffle(odd)
    for page in odd:
        sync_range(fd, page * PAGE, PAGE)
    forget()
    compare(path, model)
    os.fsync(fd)
    os.close(fd)
    forget()
    compare(path, model)
    compare(f"{top}/filler", filler)


def filler(top):
    fill(f"{top}/filler")


def prepared(top):
    path, pages = f"{top}/prepared", (8 << 20) // PAGE
    model = bytearray(pages * PAGE)
    fd = os.open(path, os.O_RDWR)
    odd = list(range(1, pages, 2))
    random.shuffle(odd)
    for page in odd[:400]:
        piece = random.randbytes(PAGE)
        assert os.pwrite(fd, piece, page * PAGE) == PAGE
        model[page * PAGE:(page + 1) * PAGE] = piece
        sync_range(fd, page * PAGE, PAGE)
    os.fsync(fd)
    os.close(fd)
    forget()
    compare(path, model)


def holes(top):
    # Holes need extent-tree nodes, too.
    with open(f"{top}/spare", "wb") as f:
        f.write(bytes(300 << 10))
        os.fsync(f.fileno())
    fill(f"{top}/filler")
    os.unlink(f"{top}/spare")
    os.sync()
    fd = os.open(f"{top}/filler", os.O_RDWR)
    for block in range(0, os.fstat(fd).st_size // 1024, 2):
        punch(fd, block * 1024, 1024)
    os.close(fd)


def again(top):
    for number in range(3):
        fill(f"{top}/filler")
        os.sync()
        left = os.statvfs(top).f_bfree
        os.unlink(f"{top}/filler")
        # All but a few of the blocks that were free at the last commit.
        with open(f"{top}/file-{number}", "wb") as f:
            f.write(bytes((left - 10) * 1024))
        for i in range(60):
            os.mkdir(f"{top}/directory-{number}-{i}")


def shared(top):
    size = 10 << 20
    original, path = f"{top}/original", f"{top}/clone"
    model = bytearray(random.randbytes(size))
    first = bytes(model)
    with open(original, "wb") as f:
        f.write(model)
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    with open(original, "rb") as f:
        fcntl.ioctl(fd, 0x40049409, f.fileno())
    # All blocks but a few for the copies.
    with open(f"{top}/spare", "wb") as f:
        f.write(bytes(2 << 20))
        os.fsync(f.fileno())
    filler = fill(f"{top}/filler")
    os.unlink(f"{top}/spare")
    os.sync()
    full = written = 0
    while full < 30:
        offset = random.randrange(size - 6000)
        piece = random.randbytes(random.choice((100, 1024, 6000)))
        try:
            done = os.pwrite(fd, piece, offset)
        except OSError as e:
            assert e.errno == errno.ENOSPC, e
            full += 1
            continue
        written += 1
        model[offset:offset + done] = piece[:done]
        if random.random() < 0.1:
            sync_range(fd, random.randrange(size) & ~4095, 256 << 10)
    # Everything that was written reaches the disk.
    os.fsync(fd)
    os.close(fd)
    assert written > 50, written
    forget()
    compare(path, model)
    compare(original, first)
    compare(f"{top}/filler", filler)


def parted(top):
    original, clone = f"{top}/original", f"{top}/clone"
    # The first blocks that are shared need some for their counts.
    for name in original, clone:
        with open(name, "wb") as f:
            f.write(bytes(1024))
    with open(original, "rb") as a, open(clone, "r+b") as b:
        fcntl.ioctl(b, 0x40049409, a.fileno())
    model = fill(original)
    fd = os.open(clone, os.O_RDWR | os.O_CREAT)
    with open(original, "rb") as f:
        fcntl.ioctl(fd, 0x40049409, f.fileno())
    # No block of the volume gets free by this.
    for block in range(0, len(model) // 1024, 2):
        try:
            punch(fd, block * 1024, 1024)
        except OSError as e:
            assert e.errno == errno.ENOSPC, e
            break
    print(f"parted: {block // 2} holes of {len(model) // 2048}")
    os.unlink(original)
    # A part of a shared block would have to be zeroed, for which there is no block.
    os.ftruncate(fd, len(model) // 2048 * 1024)
    os.fsync(fd)
    os.close(fd)
    forget()
    with open(clone, "rb") as f:
        found = f.read()
    for at in range(0, len(found), 1024):
        wanted = bytes(1024) if at < block * 1024 and at // 1024 % 2 == 0 else model[at:at + 1024]
        assert found[at:at + 1024] == wanted, f"block {at // 1024} has changed"


def scattered(top):
    path = f"{top}/scattered"
    model = bytearray()
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    full = 0
    while full < 30:
        offset, length = random.randrange(12 << 20), random.randrange(1, 40_000)
        piece = random.randbytes(length)
        try:
            done = os.pwrite(fd, piece, offset)
        except OSError as e:
            assert e.errno == errno.ENOSPC, e
            full += 1
            continue
        model.extend(bytes(max(0, offset + done - len(model))))
        model[offset:offset + done] = piece[:done]
        if random.random() < 0.2:
            sync_range(fd, random.randrange(12 << 20) & ~4095, 64 << 10)
    os.fsync(fd)
    os.close(fd)
    forget()
    compare(path, model)


random.seed(11)
globals()[sys.argv[1]](sys.argv[2])
