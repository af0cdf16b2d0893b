#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""reflink-refused.py DIR OTHER: prints the errors of invalid requests to share blocks, one line per case.

OTHER is a directory on another volume. The result must be the same on any file system that can share blocks.
"""

import errno
import fcntl
import os
import struct
import subprocess
import sys

FICLONE, FICLONERANGE, FIDEDUPERANGE, SETFLAGS = 0x40049409, 0x4020940D, 0xC0189436, 0x40086602
top, other = sys.argv[1:]
unit = os.statvfs(top).f_bsize


def make(name, size, where=top):
    with open(os.path.join(where, name), "wb") as f:
        f.write(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    return os.open(os.path.join(where, name), os.O_RDWR)


def case(name, call):
    try:
        answer = call()
        print(f"{name}: {'done' if isinstance(answer, bytes) else answer}")
    except OSError as e:
        print(f"{name}: {errno.errorcode[e.errno]}")


def clone(to, source, start, length, at):
    return lambda: fcntl.ioctl(to, FICLONERANGE, struct.pack("=qQQQ", source, start, length, at))


def dedupe(source, start, length, to, at):
    def call():
        request = struct.pack("=QQHHI", start, length, 1, 0, 0) + struct.pack("=qQQiI", to, at, 0, 0, 0)
        _, _, done, status, _ = struct.unpack("=qQQiI", fcntl.ioctl(source, FIDEDUPERANGE, request)[24:])
        return f"{done // unit} blocks, {errno.errorcode[-status] if status < 0 else status}"
    return call


a, b = make("a", 8 * unit), make("b", 8 * unit)
tail = make("tail", 2 * unit + 100)
empty = make("empty", 0)
case("the whole", lambda: fcntl.ioctl(b, FICLONE, a))
case("of nothing", lambda: fcntl.ioctl(b, FICLONE, empty))
case("unaligned start", clone(b, a, 100, unit, 0))
case("unaligned target", clone(b, a, 0, unit, 100))
case("unaligned length", clone(b, a, 0, unit + 1, 0))
case("behind the end of the source", clone(b, a, 8 * unit, unit, 0))
case("over the end of the source", clone(b, a, 7 * unit, 2 * unit, 0))
case("the tail into the middle", clone(b, tail, 2 * unit, 100, 0))
case("the tail to the end", clone(b, tail, 0, 0, 8 * unit))
case("size then", lambda: os.fstat(b).st_size - 10 * unit)
case("far behind the end", clone(b, a, 0, unit, 100 * unit))
case("onto itself", clone(a, a, 0, unit, 0))
case("overlapping itself", clone(a, a, 0, 2 * unit, unit))
case("beside itself", clone(a, a, 0, 2 * unit, 2 * unit))
case("offset over all", clone(b, a, 0, unit, 2**63 - unit))
read_only = os.open(os.path.join(top, "b"), os.O_RDONLY)
case("target open to read", lambda: fcntl.ioctl(read_only, FICLONE, a))
write_only = os.open(os.path.join(top, "a"), os.O_WRONLY)
case("source open to write", lambda: fcntl.ioctl(b, FICLONE, write_only))
append = os.open(os.path.join(top, "b"), os.O_WRONLY | os.O_APPEND)
case("target open to append", lambda: fcntl.ioctl(append, FICLONE, a))
directory = os.open(top, os.O_RDONLY)
case("source a directory", lambda: fcntl.ioctl(b, FICLONE, directory))
os.mkfifo(os.path.join(top, "pipe"))
pipe = os.open(os.path.join(top, "pipe"), os.O_RDWR)
case("source a pipe", lambda: fcntl.ioctl(b, FICLONE, pipe))
elsewhere = make("elsewhere", unit, other)
case("another volume", lambda: fcntl.ioctl(b, FICLONE, elsewhere))
case("equal", dedupe(a, 0, 2 * unit, b, 0))
fcntl.ioctl(b, FICLONE, a)
os.ftruncate(b, 8 * unit)
os.pwrite(b, b"?", 3 * unit)
case("differing", dedupe(a, 0, 8 * unit, b, 0))
case("equal before that", dedupe(a, 0, 3 * unit, b, 0))
case("unaligned", dedupe(a, 1, unit, b, 0))
case("over the end", dedupe(a, 7 * unit, 2 * unit, b, 0))
case("nothing", dedupe(a, 0, 0, b, 0))
swap = make("swap", 64 << 10)
os.pwrite(swap, bytes(64 << 10), 0)
os.fsync(swap)
os.fchmod(swap, 0o600)
path = os.path.join(top, "swap")
subprocess.run(["mkswap", path], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
if subprocess.run(["swapon", path], stderr=subprocess.DEVNULL).returncode == 0:
    case("to a swap file", lambda: fcntl.ioctl(swap, FICLONE, a))
    case("from a swap file", lambda: fcntl.ioctl(b, FICLONE, swap))
    subprocess.run(["swapoff", path], check=True)
else:
    print("swap files: none")
case("what was one", clone(b, swap, 0, 64 << 10, 0))
case("swapon of a shared file", lambda: subprocess.run(["swapon", path], stderr=subprocess.DEVNULL).returncode)
