#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""contents.py FILE...: a checksum of each file, as sha256sum prints it, of what is not zero in it and where that lies.

Only the data that SEEK_DATA finds is read in full, and each hole at both its ends and once a MiB, where it must be zero: a
file of some GiB without blocks takes milliseconds. Files of the same contents have the same checksum, whatever their holes.
"""

import hashlib
import os
import sys

PIECE = 1 << 20
# The smallest block of any volume: data begins at a multiple of it.
BLOCK = 1024
ZEROS = bytes(PIECE)


def data(fd, size):
    """The ranges that are said to hold data; what lies between them is checked."""
    at = 0
    while at < size:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            begin = size
        for hole in [*range(at, begin, PIECE), max(at, begin - BLOCK)] if at < begin else []:
            length = min(BLOCK, begin - hole)
            if os.pread(fd, length, hole) != ZEROS[:length]:
                sys.exit(f"a hole is not zero at {hole}")
        if begin >= size:
            return
        at = os.lseek(fd, begin, os.SEEK_HOLE)
        yield begin, at


def checksum(path):
    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    found = hashlib.sha256(str(size).encode())
    for begin, end in data(fd, size):
        for low in range(begin, min(end, size), PIECE):
            length = min(PIECE, end - low, size - low)
            piece = os.pread(fd, length, low)
            if len(piece) != length:
                sys.exit(f"{path}: {len(piece)} bytes at {low}, not {length}")
            for at in range(0, length, BLOCK):
                block = piece[at:at + BLOCK]
                if block != ZEROS[:len(block)]:
                    found.update(str(low + at).encode() + block)
    os.close(fd)
    return found.hexdigest()


for name in sys.argv[1:]:
    print(f"{checksum(name)}  {name}")
