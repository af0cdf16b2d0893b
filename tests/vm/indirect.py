#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""indirect.py WHAT DIR BLOCK: the operations of indirect.sh on files without extents; BLOCK is the block size in bytes."""

import ctypes
import errno
import mmap
import os
import random
import sys

what, top, block = sys.argv[1], sys.argv[2], int(sys.argv[3])
rng = random.Random(block)
each = block // 4
# The first block after the direct ones, and after those of each level.
borders = [12, 12 + each, 12 + each + each ** 2]
libc = ctypes.CDLL(None, use_errno=True)


def fallocate(fd, mode, at, length):
    return 0 if libc.fallocate(fd, mode, ctypes.c_long(at), ctypes.c_long(length)) == 0 else ctypes.get_errno()


def fill():
    for number in range(3):
        with open(f"{top}/whole{number}", "wb") as f:
            f.write(bytes([65 + number]) * (borders[1] + 40) * block)
    for number in range(1500):
        open(f"{top}/a-name-of-some-length-to-fill-the-directory-{number}", "w").close()
    os.symlink("x" * 200, f"{top}/long")
    os.symlink("short", f"{top}/short")


def change():
    """Truncates, overwrites, appends to and removes files created by stock ext4."""
    assert open(f"{top}/whole0", "rb").read() == b"A" * (borders[1] + 40) * block
    os.truncate(f"{top}/whole0", 1000)
    assert open(f"{top}/whole0", "rb").read() == b"A" * 1000
    with open(f"{top}/whole1", "r+b") as f:
        f.seek(5 * block - 10)
        f.write(b"overwritten")
        f.seek(0, 2)
        f.write(b"appended" * 20000)
    with open(f"{top}/whole1", "rb") as f:
        data = f.read()
    assert data[5 * block - 10:5 * block + 1] == b"overwritten" and data.endswith(b"appended" * 20000)
    os.unlink(f"{top}/whole2")
    assert os.readlink(f"{top}/long") == "x" * 200 and os.readlink(f"{top}/short") == "short"
    for number in range(0, 1500, 2):
        os.unlink(f"{top}/a-name-of-some-length-to-fill-the-directory-{number}")
    os.mkdir(f"{top}/sub")
    for number in range(3000):
        open(f"{top}/sub/a-name-of-some-length-to-fill-the-directory-{number}", "w").close()
    os.symlink("y" * 300, f"{top}/longer")
    assert len(os.listdir(f"{top}/sub")) == 3000 and os.readlink(f"{top}/longer") == "y" * 300


def levels():
    """Compares a sparse file around the boundaries of all levels with a model; then many random ones."""
    path = f"{top}/sparse"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    direct = os.open(path, os.O_RDWR | os.O_DIRECT)
    model, size = {}, 0
    area = mmap.mmap(-1, 1 << 20)

    def check(at):
        got = os.pread(fd, block, at * block)
        want = model.get(at, bytes(block))[:max(0, size - at * block)]
        assert got == want, f"block {at}: {got[:8]} for {want[:8]}"

    for step in range(600):
        border = rng.choice(borders)
        at = max(0, border + rng.randrange(-6, 40))
        kind = rng.randrange(10)
        if kind < 5:
            count = rng.randrange(1, 9)
            data = [bytes([rng.randrange(1, 256)]) * block for _ in range(count)]
            if kind == 0:
                area.seek(0)
                area.write(b"".join(data))
                done = os.pwritev(direct, [memoryview(area)[:count * block]], at * block)
            else:
                done = os.pwrite(fd, b"".join(data), at * block)
            assert done == count * block
            model.update(zip(range(at, at + count), data))
            size = max(size, (at + count) * block)
        elif kind == 5:
            size = rng.choice((at * block, at * block + 7, size))
            os.ftruncate(fd, size)
            for number in [n for n in model if n * block >= size]:
                del model[number]
            last = size // block
            if last in model:
                model[last] = model[last][:size % block].ljust(block, b"\0")
        elif kind == 6:
            count = rng.choice((1, 5, 100, each, 3 * each))
            assert fallocate(fd, 3, at * block, count * block) == 0
            for number in [n for n in model if at <= n < at + count]:
                del model[number]
        elif kind == 7:
            os.fsync(fd)
        elif kind == 8 and step % 20 == 8:
            os.fsync(fd)
            open("/proc/sys/vm/drop_caches", "w").write("1")
        if model:
            check(rng.choice(list(model)))
        check(at)
    assert os.fstat(fd).st_size == size
    os.fsync(fd)
    for number in list(model) + borders:
        check(number)
    # The result of SEEK_DATA before the data is on disk.
    new = os.open(f"{top}/fresh", os.O_RDWR | os.O_CREAT)
    os.pwrite(new, b"z" * block, 20 * block)
    assert os.lseek(new, 0, os.SEEK_DATA) <= 20 * block, "fresh data is taken for a hole"
    assert os.fstat(new).st_blocks >= block // 512, "no blocks right after a write"
    for number in range(200):
        with open(f"{top}/file{number}", "wb") as f:
            f.write(bytes([number]) * rng.randrange(1, 40 * block))
    for number in range(0, 200, 3):
        os.unlink(f"{top}/file{number}")


def limits():
    top_dir = f"{top}/limits"
    os.mkdir(top_dir)
    fd = os.open(f"{top_dir}/far", os.O_RDWR | os.O_CREAT)
    most = (12 + each + each ** 2 + each ** 3) * block
    for at in (most, most + 12345):
        try:
            os.pwrite(fd, b"x", at)
        except OSError as e:
            assert e.errno == errno.EFBIG, e
        else:
            raise AssertionError(f"a file without extents was written at {at}")
    assert os.pwrite(fd, b"xyz", most - 2) == 2, "a write over the limit is cut there"
    try:
        os.ftruncate(fd, most + 1)
    except OSError as e:
        assert e.errno == errno.EFBIG, e
    else:
        raise AssertionError("longer than can be mapped")
    for mode in (0, 1, 0x10, 0x11):
        assert fallocate(fd, mode, 0, 10 * block) == errno.EOPNOTSUPP, f"fallocate of mode {mode}"
    os.ftruncate(fd, 3 << 30)
    os.fsync(fd)
    assert os.pread(fd, 10, (3 << 30) - 10) == bytes(10)


def dirty():
    """Creates one file that is on disk, and one whose data is not on disk yet."""
    with open(f"{top}/kept", "wb") as f:
        f.write(b"k" * 500 * block)
        os.fsync(f.fileno())
    with open(f"{top}/gone", "wb") as f:
        f.write(b"g" * 500 * block)
        os.fsync(f.fileno())
    os.unlink(f"{top}/gone")
    os.sync()
    fd = os.open(f"{top}/dirty", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 600 * block)
    os.fsync(fd)
    os.pwrite(fd, b"d" * 400 * block, 0)
    # Commits the journal without the data.
    other = os.open(f"{top}/other", os.O_RDWR | os.O_CREAT)
    os.fsync(other)


def crashed():
    assert open(f"{top}/kept", "rb").read() == b"k" * 500 * block
    data = open(f"{top}/dirty", "rb").read()
    assert len(data) == 600 * block and not data.strip(b"d\0"), "stale data in a file"


globals()[what]()
