#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A mixed load whose files can be checked after a power cut.

load.py run DIR HISTORY WORKER STEPS   works in DIR/WORKER and records the contents of each file at each step; after each
                                       fsync or sync it sets the mark `WORKER-STEP` in the log of writes
load.py check DIR HISTORY WORKER STEP  checks the files after a power cut; the last mark of this worker was WORKER-STEP (0: none)

There are three kinds of files, with different promises:

  blocks-N    written (buffered, direct, mapped), appended to, truncated, punched, cloned, given attributes. A block repeats
              one number, so that a torn block shows. The contents are those of the last fsync, or later ones.
  whole-N     replaced by a rename, without fsync. The whole file is of one version, and once there was a version on disk
              the file is never missing, empty or torn.
  name-N      created, removed, linked, renamed. Its state is that of the last fsync of the directory, or a later one.
"""

import bisect
import ctypes
import fcntl
import json
import mmap
import os
import random
import struct
import sys

FICLONERANGE, BLOCK = 0x4020940D, 1024
FILES, WHOLES, NAMES, MOST = 3, 3, 12, 220
libc = ctypes.CDLL(None, use_errno=True)


def mark(name):
    """Does the same as `dmsetup message cut 0 mark NAME`, in this process."""
    text = b"\0" * 8 + f"mark {name}".encode() + b"\0"
    size = 312 + len(text)
    call = bytearray(size)
    # struct dm_ioctl: version, data_size, data_start, target_count, open_count, flags, event_nr, padding, dev, name, uuid
    struct.pack_into("=3I7IQ", call, 0, 4, 0, 0, size, 312, 0, 0, 0, 0, 0, 0)
    call[48:51] = b"cut"
    call[312:] = text
    with open("/dev/mapper/control", "rb") as control:
        fcntl.ioctl(control, 0xC138FD0E, call)


def content(tag, length=BLOCK):
    return (struct.pack("<Q", tag) * (BLOCK // 8))[:length]


class Blocks:
    """The state of a blocks-N: its size in bytes, a number for each block (0: a hole or zeroes), and its attributes."""

    def __init__(self, size=None, tags=(), attributes=None):
        self.size, self.tags, self.attributes = size, list(tags), dict(attributes or {})

    def state(self):
        return [self.size, list(self.tags), dict(self.attributes)]


class Worker:
    def __init__(self, top, worker):
        self.random = random.Random(f"load {worker}")
        self.worker, self.top = worker, f"{top}/{worker}"
        os.makedirs(self.top, exist_ok=True)
        self.step = self.tag = 0
        self.files = [Blocks() for _ in range(FILES)]
        # By name: each state with the step since which it holds, and the steps at which the current state was promised.
        self.states = {self.path("blocks", n): [[0, Blocks().state()]] for n in range(FILES)}
        self.states.update({self.path("whole", n): [[0, 0]] for n in range(WHOLES)})
        self.states.update({self.path("name", n): [[0, ""]] for n in range(NAMES)})
        self.promises = {name: [0] for name in self.states}

    def path(self, kind, n):
        return f"{self.top}/{kind}-{n}"

    def note(self, name, state):
        self.states[name].append([self.step, state])

    def promise(self, names):
        for name in names:
            self.promises[name].append(self.step)
        mark(f"{self.worker}-{self.step}")

    def next_tag(self):
        self.tag += 1
        return self.tag

    # blocks-N

    def write(self, n, fd):
        file = self.files[n]
        first, count = self.random.randrange(MOST), self.random.choice((1, 1, 2, 5, 30))
        count = min(count, MOST - first)
        if file.size % BLOCK:
            # Otherwise the last block would end in zeroes.
            first, count = 0, min(count, file.size // BLOCK)
            if not count:
                return
        tags = [self.next_tag() for _ in range(count)]
        data = b"".join(map(content, tags))
        what = self.random.random()
        if what < 0.3:
            direct = os.open(self.path("blocks", n), os.O_RDWR | os.O_DIRECT)
            with mmap.mmap(-1, len(data)) as memory:
                memory[:] = data
                assert os.pwritev(direct, [memory], first * BLOCK) == len(data)
            os.close(direct)
        elif what < 0.5 and (first + count) * BLOCK <= file.size:
            with mmap.mmap(fd, file.size) as memory:
                memory[first * BLOCK:(first + count) * BLOCK] = data
        else:
            assert os.pwrite(fd, data, first * BLOCK) == len(data)
        file.tags.extend([0] * (first + count - len(file.tags)))
        file.tags[first:first + count] = tags
        file.size = max(file.size, (first + count) * BLOCK)

    def append(self, n, fd):
        file = self.files[n]
        length = self.random.choice((100, 1000, 5000, 20_000))
        data = b""
        if file.size % BLOCK:
            if not file.tags[-1]:
                return
            data = content(file.tags[-1])[file.size % BLOCK:]
        while len(data) < length and len(file.tags) < MOST:
            file.tags.append(self.next_tag())
            data += content(file.tags[-1])
        if len(file.tags) * BLOCK == file.size + len(data):
            data = data[:max(len(data) - self.random.choice((0, 0, 8, 512)), 1)]
        data = data[:len(data) // 8 * 8]
        if data:
            assert os.pwrite(fd, data, file.size) == len(data)
        file.size += len(data)
        del file.tags[-(-file.size // BLOCK):]

    def truncate(self, n, fd):
        file = self.files[n]
        if file.size % BLOCK and self.random.random() < 0.5:
            blocks = file.size // BLOCK
        else:
            blocks = self.random.randrange(MOST)
        if file.size % BLOCK:
            blocks = min(blocks, file.size // BLOCK)
        os.ftruncate(fd, blocks * BLOCK)
        del file.tags[blocks:]
        file.tags.extend([0] * (blocks - len(file.tags)))
        file.size = blocks * BLOCK

    def punch(self, n, fd):
        file = self.files[n]
        blocks = file.size // BLOCK
        if not blocks:
            return
        first = self.random.randrange(blocks)
        count = min(self.random.choice((1, 4, 50)), blocks - first)
        # Punch, or zero; both keep the size.
        if libc.fallocate(fd, self.random.choice((3, 0x11)), ctypes.c_long(first * BLOCK), ctypes.c_long(count * BLOCK)):
            raise OSError(ctypes.get_errno(), "fallocate")
        file.tags[first:first + count] = [0] * count

    def allocate(self, n, fd):
        if libc.fallocate(fd, 1, ctypes.c_long(self.random.randrange(MOST) * BLOCK), ctypes.c_long(20 * BLOCK)):
            raise OSError(ctypes.get_errno(), "fallocate")

    def clone(self, n, fd):
        file, other = self.files[n], self.random.randrange(FILES)
        source = self.files[other]
        blocks = min((source.size or 0) // BLOCK, MOST)
        if other == n or not blocks or file.size % BLOCK:
            return
        first = self.random.randrange(blocks)
        count = self.random.randrange(1, blocks - first + 1)
        with open(self.path("blocks", other), "rb") as f:
            fcntl.ioctl(fd, FICLONERANGE, struct.pack("=qQQQ", f.fileno(), first * BLOCK, count * BLOCK, first * BLOCK))
        file.tags.extend([0] * (first + count - len(file.tags)))
        file.tags[first:first + count] = source.tags[first:first + count]
        file.size = max(file.size, (first + count) * BLOCK)

    def attribute(self, n, fd):
        name = self.random.choice(("user.small", "user.large"))
        if name in self.files[n].attributes and self.random.random() < 0.3:
            os.removexattr(fd, name)
            del self.files[n].attributes[name]
        else:
            value = str(self.next_tag()) * (2 if name == "user.small" else 60)
            os.setxattr(fd, name, value.encode())
            self.files[n].attributes[name] = value

    def blocks(self):
        n = self.random.randrange(FILES)
        file, name = self.files[n], self.path("blocks", n)
        if file.size is None:
            file.size = 0
        fd = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
        for _ in range(self.random.randrange(1, 5)):
            what = self.random.choice([self.write] * 5 + [self.append] * 3 + [self.truncate, self.punch, self.punch,
                                      self.allocate, self.clone, self.clone, self.attribute])
            what(n, fd)
            self.note(name, file.state())
        if self.random.random() < 0.5:
            os.fsync(fd)
            self.promise([name])
        os.close(fd)

    # whole-N

    def whole(self):
        n = self.random.randrange(WHOLES)
        name, version = self.path("whole", n), self.next_tag()
        length = self.random.randrange(1, 40)
        data = struct.pack("<QQ", version, length * BLOCK) + content(version, BLOCK - 16) + content(version) * (length - 1)
        new = f"{self.top}/new-{n}"
        if self.random.random() < 0.2:
            fd = os.open(self.top, os.O_TMPFILE | os.O_RDWR, 0o600)
            os.write(fd, data)
            os.fsync(fd)
            # AT_SYMLINK_FOLLOW, which os.link() leaves out.
            if libc.linkat(-100, f"/proc/self/fd/{fd}".encode(), -100, new.encode(), 0x400):
                raise OSError(ctypes.get_errno(), "linkat")
        else:
            fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            os.write(fd, data)
            if self.states[name][-1][1] == 0:
                # There is no promise for the first version without this.
                os.fsync(fd)
        os.close(fd)
        os.rename(new, name)
        self.note(name, version)
        if self.random.random() < 0.2:
            self.sync_directory()

    # name-N

    def name(self):
        a, b = (self.path("name", n) for n in self.random.sample(range(NAMES), 2))
        before, after = (self.states[name][-1][1] for name in (a, b))
        what = self.random.randrange(5)
        if not before:
            if what == 0:
                os.mkdir(a)
                self.note(a, "directory")
            elif what == 1:
                os.symlink("t" * 100, a)
                self.note(a, "link")
            else:
                os.close(os.open(a, os.O_CREAT | os.O_WRONLY, 0o600))
                self.note(a, "file")
        elif what < 2:
            (os.rmdir if before == "directory" else os.unlink)(a)
            self.note(a, "")
        elif not after:
            if what == 2 and before == "file":
                os.link(a, b)
                self.note(b, before)
            else:
                os.rename(a, b)
                self.note(a, "")
                self.note(b, before)
        elif before == after == "file":
            os.rename(a, b)
            # If both are names of one inode, nothing happens.
            self.note(a, "file" if os.path.exists(a) else "")
        if self.random.random() < 0.3:
            self.sync_directory()

    def sync_directory(self):
        fd = os.open(self.top, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        self.promise([name for name in self.states if "/blocks-" not in name])

    def run(self, steps, history):
        for _ in range(steps):
            self.step += 1
            self.random.choice([self.blocks] * 5 + [self.whole] * 2 + [self.name] * 2)()
            if self.random.random() < 0.02:
                os.sync()
                self.promise(self.states)
        with open(history, "w") as f:
            json.dump([self.states, self.promises], f)


def legal_states(states, promises, step):
    """Returns the states that a name may have if the last mark before the power cut was at `step`: the one promised last by
    then, and all later ones."""
    promised = promises[bisect.bisect_right(promises, step) - 1]
    # The last state noted at that step or before it.
    first = max(index for index, (since, _) in enumerate(states) if since <= promised)
    return [state for _, state in states[first:]]


def check_blocks(name, legal):
    sizes = [size for size, _, _ in legal]
    if not os.path.exists(name):
        return None in sizes or "it is missing"
    with open(name, "rb") as f:
        data = f.read()
    there = [size or 0 for size in sizes]
    if not min(there) <= len(data) <= max(there):
        return f"{len(data)} bytes, not {min(there)} to {max(there)}"
    for block in range(-(-len(data) // BLOCK)):
        piece = data[block * BLOCK:(block + 1) * BLOCK]
        tag = struct.unpack_from("<Q", piece)[0]
        if piece != content(tag, len(piece)):
            return f"block {block} is torn: it begins with {tag}"
        # A later size may be on disk before the contents.
        may = {tags[block] if block < len(tags) else 0 for _, tags, _ in legal}
        if tag not in may:
            return f"block {block} holds {tag}, not one of {sorted(may)[:8]}"
    for attribute in "user.small", "user.large":
        found = os.getxattr(name, attribute).decode() if attribute in os.listxattr(name) else None
        if found not in [attributes.get(attribute) for _, _, attributes in legal]:
            return f"{attribute} is {found}"
    return True


def check_whole(name, legal):
    if not os.path.exists(name):
        return 0 in legal or "it is missing"
    with open(name, "rb") as f:
        data = f.read()
    if len(data) < BLOCK:
        return f"it has {len(data)} bytes"
    version, length = struct.unpack_from("<QQ", data)
    if length != len(data) or data[16:] != (content(version, BLOCK - 16) + content(version) * (length // BLOCK - 1)):
        return f"version {version} of {length} bytes is torn"
    return version in legal or f"it is version {version}, not one of {legal[:8]}"


def check_name(name, legal):
    kind = ""
    if os.path.lexists(name):
        kind = "link" if os.path.islink(name) else "directory" if os.path.isdir(name) else "file"
    return kind in legal or f"it is {kind or 'missing'}, not one of {sorted(set(legal))}"


def check(top, worker, step, history):
    with open(history) as f:
        states, promises = json.load(f)
    checks = {"blocks": check_blocks, "whole": check_whole, "name": check_name}
    failed = False
    for name, found in states.items():
        kind = os.path.basename(name).partition("-")[0]
        right = checks[kind](name, legal_states(found, promises[name], step))
        if right is not True:
            print(f"load: {name}, after {worker}-{step}: {right}", file=sys.stderr)
            failed = True
    sys.exit(failed)


def main():
    command, top, history, worker, number = sys.argv[1:6]
    if command == "run":
        Worker(top, worker).run(int(number), history)
    else:
        check(top, worker, int(number), history)


if __name__ == "__main__":
    main()
