#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""stress.py DIR SEED COUNT [BLOCK]

Random operations on files and directories below DIR, as many as COUNT, most of which take space. Whether one succeeds is not
examined, except for errors that no operation on a sound volume returns: EIO, EROFS, EUCLEAN and EBADMSG end the program.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import random
import sys

FICLONE, FICLONERANGE = 0x40049409, 0x4020940D
libc = ctypes.CDLL(None, use_errno=True)


def fallocate(fd, mode, offset, length):
    if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), "fallocate")


class Stress:
    def __init__(self, top, seed, block):
        self.random = random.Random(seed)
        self.top, self.block = f"{top}/{seed}", block
        os.makedirs(self.top, exist_ok=True)
        self.names = 0

    def some(self, kind="f"):
        names = [name for name in os.listdir(self.top) if name.startswith(kind)]
        return f"{self.top}/{self.random.choice(names)}" if names else self.fresh(kind)

    def fresh(self, kind="f"):
        self.names += 1
        return f"{self.top}/{kind}{self.names}" + "x" * self.random.randrange(60)

    def offset(self):
        return self.random.randrange(400) * self.block

    def length(self):
        return self.random.choice((1, 1, 3, 20, 200)) * self.block

    def open(self, name, flags=0):
        return os.open(name, os.O_RDWR | os.O_CREAT | flags, 0o644)

    def write(self):
        fd = self.open(self.some() if self.random.random() < 0.8 else self.fresh())
        try:
            for _ in range(self.random.randrange(1, 8)):
                os.pwrite(fd, self.random.randbytes(self.length() - self.random.randrange(self.block)),
                          self.offset() + self.random.choice((0, 0, 77)))
            if self.random.random() < 0.2:
                os.fsync(fd)
        finally:
            os.close(fd)

    def direct(self):
        fd = self.open(self.some(), os.O_DIRECT)
        try:
            length = self.length()
            with mmap.mmap(-1, length) as memory:
                memory[:] = self.random.randbytes(length)
                os.pwritev(fd, [memory], self.offset())
        finally:
            os.close(fd)

    def mapped(self):
        fd = self.open(self.some())
        try:
            size = os.fstat(fd).st_size
            if size:
                with mmap.mmap(fd, size) as memory:
                    for _ in range(4):
                        # A fault that finds no space is a signal; what is mapped already has none.
                        memory[self.random.randrange(size)]
                    memory.flush()
        finally:
            os.close(fd)

    def allocate(self):
        fd = self.open(self.some())
        try:
            # Allocate, keep the size, punch, zero, unshare.
            fallocate(fd, self.random.choice((0, 1, 3, 3, 3, 0x10, 0x11, 0x40)), self.offset(), self.length())
        finally:
            os.close(fd)

    def clone(self):
        source, target = self.open(self.some()), self.open(self.some() if self.random.random() < 0.6 else self.fresh())
        try:
            if self.random.random() < 0.5:
                fcntl.ioctl(target, FICLONE, source)
            else:
                call = (source, self.offset(), self.length(), self.offset())
                fcntl.ioctl(target, FICLONERANGE, b"".join(n.to_bytes(8, "little") for n in call))
        finally:
            os.close(source)
            os.close(target)

    def cut(self):
        os.truncate(self.some(), self.offset() + self.random.choice((0, 33)))

    def remove(self):
        os.unlink(self.some())

    def attribute(self):
        name = self.some()
        if self.random.random() < 0.3:
            os.removexattr(name, "user.a")
        else:
            os.setxattr(name, "user.a", self.random.randbytes(self.random.choice((10, 300, 800))))

    def directory(self):
        os.mkdir(self.fresh("d"))

    def name(self):
        what = self.random.randrange(4)
        if what == 0:
            os.rename(self.some(), self.fresh())
        elif what == 1:
            os.rename(self.some(), self.some())
        elif what == 2:
            os.symlink("t" * self.random.choice((10, 200)), self.fresh("s"))
        else:
            os.rmdir(self.some("d"))

    def sync(self):
        os.sync()

    def run(self, count):
        what = [self.write] * 8 + [self.direct] * 3 + [self.mapped] + [self.allocate] * 6 + [self.clone] * 5 \
            + [self.cut] * 2 + [self.remove] * 3 + [self.attribute] * 2 + [self.directory] + [self.name] * 3
        full = 0
        for number in range(count):
            try:
                (self.sync if number % 300 == 299 else self.random.choice(what))()
            except OSError as e:
                full += e.errno == errno.ENOSPC
                if e.errno in (errno.EIO, errno.EROFS, errno.EUCLEAN, errno.EBADMSG):
                    sys.exit(f"stress: {e}")
        print(f"stress: {full} of {count} operations found no space")


Stress(sys.argv[1], sys.argv[2], int(sys.argv[4]) if len(sys.argv) > 4 else 1024).run(int(sys.argv[3]))
