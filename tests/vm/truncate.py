#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""truncate.py DIR SEED OPERATIONS: performs random operations on one file and compares it with a model after each.

The whole file stays mapped, and sometimes bytes beyond its end, in its last page, are written through the mapping: they must
read as zeroes when the file is extended over them. Then a file is truncated and extended while another process faults in its
pages as fast as possible: the truncated part must read as zeroes.
"""

import ctypes
import os
import random
import sys
import time

PAGE = 4096
MOST = 100 * PAGE
top, seed, operations = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
POPULATE_READ = 22


def map_whole(fd):
    at = libc.mmap(None, MOST, 3, 1, fd, 0)
    assert at != ctypes.c_void_p(-1).value
    return at


def workload(path):
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    at = map_whole(fd)
    model = bytearray()
    log = []

    def where(limit):
        """Returns an offset and a length within `limit`, often at block and page boundaries."""
        start = rng.randrange(limit)
        if rng.random() < 0.3:
            start = start // 1024 * 1024
        return start, rng.randrange(1, min(limit - start, rng.choice((10, 1024, 5000, 60_000))) + 1)

    def write():
        start, length = where(MOST)
        data = rng.randbytes(length)
        assert os.pwrite(fd, data, start) == length
        model.extend(bytes(max(0, start + length - len(model))))
        model[start:start + length] = data
        return start, length

    def mapped_write():
        if not model:
            return None
        start, length = where(len(model))
        data = rng.randbytes(length)
        ctypes.memmove(at + start, data, length)
        model[start:start + length] = data
        return start, length

    def behind_the_end():
        room = -len(model) % PAGE
        if room and model:
            ctypes.memmove(at + len(model), b"\xee" * room, room)
        return room

    def resize():
        size = rng.choice((0, rng.randrange(MOST), rng.randrange(MOST), len(model) + rng.randrange(3000)))
        size = min(size, MOST)
        os.ftruncate(fd, size)
        del model[size:]
        model.extend(bytes(size - len(model)))
        return size

    def read():
        start, length = where(MOST)
        assert os.pread(fd, length, start) == model[start:start + length], "pread"
        return start, length

    def mapped_read():
        if not model:
            return None
        start, length = where(len(model))
        assert ctypes.string_at(at + start, length) == model[start:start + length], "mapping"
        return start, length

    def to_disk():
        start, length = where(MOST)
        assert libc.sync_file_range(fd, ctypes.c_long(start), ctypes.c_long(length), 7) == 0
        return start, length

    def forget():
        os.fsync(fd)
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("1")

    steps = [write] * 5 + [mapped_write] * 4 + [behind_the_end] * 2 + [resize] * 4 + [read] * 3 + [mapped_read] * 3
    steps += [to_disk] * 2
    for number in range(operations):
        step = forget if number % 100 == 99 else rng.choice(steps)
        try:
            log.append((step.__name__, len(model), step()))
            if number % 10 == 0 or step is resize:
                with open(path, "rb") as f:
                    assert f.read() == model, "whole"
        except AssertionError as e:
            sys.exit(f"operation {number}, {step.__name__}: {e}; before it {log[-8:]}")
    os.fsync(fd)
    os.close(fd)


def race(path):
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    other = os.fork()
    if not other:
        at = map_whole(fd)
        while True:
            libc.madvise(at, MOST, POPULATE_READ)
            libc.madvise(at + rng.randrange(100) * PAGE, PAGE, POPULATE_READ)
    try:
        until = time.monotonic() + 6
        while time.monotonic() < until:
            size = rng.randrange(20_000)
            os.pwrite(fd, b"x" * MOST, 0)
            if rng.random() < 0.5:
                os.fsync(fd)
            os.ftruncate(fd, size)
            os.ftruncate(fd, MOST)
            assert os.pread(fd, MOST, 0) == b"x" * size + bytes(MOST - size), f"cut at {size}"
    finally:
        os.kill(other, 9)
        os.waitpid(other, 0)
    os.close(fd)


workload(os.path.join(top, "random"))
race(os.path.join(top, "raced"))
