#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""stream.py DIR SEED OPERATIONS [KIND...]: performs random operations on a few files and compares them with a model after each.
stream.py shared PATH...: prints the ranges of files that FIEMAP reports as shared, in bytes.

The operations are all kinds of writes (buffered, direct, mapped), punching holes, zeroing, preallocation, changes of size, and
all kinds of reads; only KINDs, if any are named. `clone`, `dedupe` and `unshare` are performed only if named. The same seed
results in the same operations on any file system, so that the final contents can be compared.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import random
import struct
import sys

PAGE = 4096
MOST = 120 * PAGE
PUNCH, ZERO, KEEP, UNSHARE = 2, 16, 1, 64
FICLONERANGE, FIDEDUPERANGE = 0x4020940D, 0xC0189436
SIZES = (10, 1024, 5000, 60_000, 200_000)
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]


class File:
    def __init__(self, path):
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.direct = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.map = libc.mmap(None, MOST, 3, 1, self.fd, 0)
        assert self.map != ctypes.c_void_p(-1).value
        self.model = bytearray()

    def put(self, start, data):
        if data:
            self.model.extend(bytes(max(0, start + len(data) - len(self.model))))
            self.model[start:start + len(data)] = data

    def close(self):
        libc.munmap(ctypes.c_void_p(self.map), ctypes.c_size_t(MOST))
        os.close(self.fd)
        os.close(self.direct)


def fallocate(file, mode, start, length):
    if libc.fallocate(file.fd, mode, ctypes.c_long(start), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), "fallocate")


class Stream:
    def __init__(self, top, seed, unit):
        self.rng = random.Random(seed)
        self.files = [File(os.path.join(top, f"file-{n}")) for n in range(3)]
        self.unit = unit

    def where(self, limit, unit=1):
        """Returns an offset and a length within `limit`, in units; often at block and page boundaries."""
        start = self.rng.randrange(limit)
        if self.rng.random() < 0.4:
            start = start // 1024 * 1024
        length = self.rng.randrange(1, min(limit - start, self.rng.choice(SIZES)) + 1)
        start = start // unit * unit
        return start, max(unit, min(length, limit - start) // unit * unit)

    def write(self, file):
        start, length = self.where(MOST)
        data = self.rng.randbytes(length)
        assert os.pwrite(file.fd, data, start) == length
        file.put(start, data)
        return start, length

    def write_direct(self, file):
        # Whole sectors, some of which are parts of blocks.
        start, length = self.where(MOST, self.rng.choice((512, 4096, 4096)))
        with mmap.mmap(-1, length) as memory:
            memory[:] = data = self.rng.randbytes(length)
            done = os.pwritev(file.direct, [memory], start)
            assert done == length, (start, length, done)
        file.put(start, data)
        return start, length

    def write_mapped(self, file):
        if not file.model:
            return None
        start, length = self.where(len(file.model))
        data = self.rng.randbytes(length)
        ctypes.memmove(file.map + start, data, length)
        file.put(start, data)
        return start, length

    def resize(self, file):
        size = self.rng.choice((self.rng.randrange(MOST), len(file.model) + self.rng.randrange(3000)))
        size = min(size, MOST)
        os.ftruncate(file.fd, size)
        del file.model[size:]
        file.model.extend(bytes(size - len(file.model)))
        return size

    def punch(self, file):
        start, length = self.where(MOST)
        fallocate(file, PUNCH | KEEP, start, length)
        file.put(start, bytes(max(0, min(length, len(file.model) - start))))
        return start, length

    def zero(self, file):
        start, length = self.where(MOST)
        keep = self.rng.random() < 0.5
        fallocate(file, ZERO | (KEEP if keep else 0), start, length)
        file.put(start, bytes(max(0, min(length, len(file.model) - start)) if keep else length))
        return start, length, keep

    def allocate(self, file):
        start, length = self.where(MOST)
        keep = self.rng.random() < 0.5
        fallocate(file, KEEP if keep else 0, start, length)
        if not keep:
            file.model.extend(bytes(max(0, start + length - len(file.model))))
        return start, length, keep

    def read(self, file):
        start, length = self.where(MOST)
        assert os.pread(file.fd, length, start) == file.model[start:start + length], "pread"
        return start, length

    def read_direct(self, file):
        start, length = self.where(MOST, 512)
        with mmap.mmap(-1, length) as memory:
            done = os.preadv(file.direct, [memory], start)
            assert memory[:done] == file.model[start:start + length], "direct read"
        return start, length

    def read_mapped(self, file):
        if not file.model:
            return None
        start, length = self.where(len(file.model))
        assert ctypes.string_at(file.map + start, length) == file.model[start:start + length], "mapping"
        return start, length

    def to_disk(self, file):
        start, length = self.where(MOST)
        assert libc.sync_file_range(file.fd, ctypes.c_long(start), ctypes.c_long(length), 7) == 0
        return start, length

    def forget(self, file):
        os.fsync(file.fd)
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("1")

    def source(self, file):
        """Returns aligned offsets of a source range, in another file or in this one, and of its target."""
        other = self.rng.choice(self.files)
        start, length = self.where(max(len(other.model), self.unit), self.unit)
        to = self.rng.randrange(MOST) // self.unit * self.unit
        length = min(length, MOST - to)
        if start + length >= len(other.model) or self.rng.random() < 0.2:
            # Up to the end of the source, which may be within a block.
            length = max(0, len(other.model) - start)
        return other, start, to, length

    def refused(self, file, other, start, to, length):
        """Returns true if the kernel rejects cloning: an empty range, overlapping ranges, an unaligned end within the target."""
        if not length or start >= len(other.model) or to + length > MOST:
            return True
        whole = -(-length // self.unit) * self.unit
        if file is other and to < start + whole and start < to + whole:
            return True
        return length % self.unit != 0 and to + length < len(file.model)

    def clone(self, file):
        other, start, to, length = self.source(file)
        if self.refused(file, other, start, to, length):
            return None
        data = bytes(other.model[start:start + length])
        fcntl.ioctl(file.fd, FICLONERANGE, struct.pack("=qQQQ", other.fd, start, length, to))
        file.put(to, data)
        return other.path[-1], start, to, length

    def dedupe(self, file):
        other, start, to, length = self.source(file)
        length = length // self.unit * self.unit
        if self.refused(file, other, start, to, length) or to + length > len(file.model):
            return None
        equal = other.model[start:start + length] == file.model[to:to + length]
        if not equal and self.rng.random() < 0.7:
            # First make the ranges equal.
            data = bytes(other.model[start:start + length])
            assert os.pwrite(file.fd, data, to) == length
            file.put(to, data)
            equal = True
        request = struct.pack("=QQHHI", start, length, 1, 0, 0) + struct.pack("=qQQiI", file.fd, to, 0, 0, 0)
        answer = fcntl.ioctl(other.fd, FIDEDUPERANGE, request)
        _, _, done, status, _ = struct.unpack("=qQQiI", answer[24:])
        assert (status, done) == ((0, length) if equal else (1, 0)), (status, done, equal)
        return other.path[-1], start, to, length, equal

    def unshare(self, file):
        if not file.model:
            return None
        start, length = self.where(len(file.model))
        fallocate(file, UNSHARE, start, length)
        return start, length


WEIGHTS = {
    "write": 4, "write_direct": 4, "write_mapped": 4, "resize": 1, "punch": 2, "zero": 2, "allocate": 2, "read": 2,
    "read_direct": 2, "read_mapped": 2, "to_disk": 2,
}
SHARING = {"clone": 8, "dedupe": 3, "unshare": 1}


def run(top, seed, operations, kinds):
    unit = os.statvfs(top).f_bsize
    stream = Stream(top, seed, unit)
    weights = {kind: WEIGHTS.get(kind) or SHARING[kind] for kind in kinds or WEIGHTS}
    if "clone" in weights:
        weights["resize"] = 0.3
    log = []
    for number in range(operations):
        kind = "forget" if number % 150 == 149 else stream.rng.choices(list(weights), weights.values())[0]
        file = stream.rng.choice(stream.files)
        try:
            before = len(file.model)
            log.append((kind, file.path[-1], before, getattr(stream, kind)(file)))
            for file in stream.files if number % 20 == 0 else [file]:
                assert os.fstat(file.fd).st_size == len(file.model), "size"
                with open(file.path, "rb") as f:
                    found = f.read()
                if found != file.model:
                    bad = [i for i in range(len(found)) if found[i] != file.model[i]]
                    raise AssertionError(f"whole {file.path}: {len(bad)} bytes, {bad[0]} to {bad[-1]}")
        except (AssertionError, OSError) as e:
            sys.exit(f"operation {number}, {kind} {file.path[-1]} of {before}: {e!r}; before it {log[-12:]}")
    for file in stream.files:
        os.fsync(file.fd)
        file.close()


def shared(path):
    """Returns the shared ranges of a file."""
    found = []
    with open(path, "rb") as f:
        at, last = 0, False
        while not last:
            answer = bytearray(struct.pack("=QQIIII", at, 2**63, 1, 0, 128, 0) + bytes(128 * 56))
            fcntl.ioctl(f.fileno(), 0xC020660B, answer)
            count = struct.unpack_from("=I", answer, 20)[0]
            last = not count
            for i in range(count):
                logical, _, length, _, _, flags = struct.unpack_from("=QQQQQI", answer, 32 + i * 56)
                at, last = logical + length, bool(flags & 1)
                if flags & 0x2000:
                    if found and found[-1][1] == logical:
                        found[-1][1] = at
                    else:
                        found.append([logical, at])
    return found


if __name__ == "__main__" and sys.argv[1] == "shared":
    for path in sys.argv[2:]:
        print(os.path.basename(path), *(f"{low}-{high}" for low, high in shared(path)))
elif __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
