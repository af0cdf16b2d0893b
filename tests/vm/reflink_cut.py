#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""reflink_cut.py run DIR HISTORY     clones, writes to and truncates files, and records the contents of each block over time
reflink_cut.py check DIR HISTORY N    each block of each file must have its contents as of step N or some later time

A block contains one number repeatedly, so that torn blocks are detected. Each step ends with fsync and then a mark in the log
of writes: its changes must be present from that mark on.
"""

import fcntl
import json
import mmap
import os
import random
import struct
import subprocess
import sys

FICLONERANGE = 0x4020940D
BLOCK, BLOCKS, FILES, STEPS = 1024, 160, 5, 150
command, top, history_path = sys.argv[1:4]


def paths():
    return [os.path.join(top, f"file-{n}") for n in range(FILES)]


def content(tag):
    return struct.pack("<Q", tag) * (BLOCK // 8)


def run():
    random.seed(17)
    # One state per file and step: a tag for each block, 0 for a hole.
    state = [[0] * BLOCKS for _ in range(FILES)]
    history = [[list(tags) for tags in state]]
    files = [os.open(path, os.O_RDWR | os.O_CREAT, 0o600) for path in paths()]
    direct = [os.open(path, os.O_RDWR | os.O_DIRECT) for path in paths()]
    tag = 1

    def write(n, first, count):
        nonlocal tag
        data = b""
        for block in range(first, first + count):
            state[n][block] = tag
            data += content(tag)
            tag += 1
        if random.random() < 0.3:
            with mmap.mmap(-1, len(data)) as memory:
                memory[:] = data
                assert os.pwritev(direct[n], [memory], first * BLOCK) == len(data)
        else:
            os.pwrite(files[n], data, first * BLOCK)

    def clone(to, source, first, count):
        fcntl.ioctl(files[to], FICLONERANGE,
                    struct.pack("=qQQQ", files[source], first * BLOCK, count * BLOCK, first * BLOCK))
        state[to][first:first + count] = state[source][first:first + count]

    def done(*numbers):
        for n in numbers:
            os.fsync(files[n])
        history.append([list(tags) for tags in state])
        subprocess.run(["dmsetup", "message", "cut", "0", "mark", f"step-{len(history) - 1}"], check=True)

    for n in range(FILES):
        write(n, 0, BLOCKS)
    done(*range(FILES))
    for _ in range(STEPS):
        n = random.randrange(FILES)
        what = random.random()
        if what < 0.35:
            first = random.randrange(BLOCKS)
            clone(n, random.choice([m for m in range(FILES) if m != n]), first, random.randrange(BLOCKS - first) + 1)
        elif what < 0.9:
            for _ in range(random.randrange(1, 12)):
                first = random.randrange(BLOCKS)
                write(n, first, min(BLOCKS - first, random.choice((1, 1, 3, 20))))
        else:
            first = random.randrange(BLOCKS)
            count = random.randrange(BLOCKS - first) + 1
            subprocess.run(["fallocate", "-p", "-o", str(first * BLOCK), "-l", str(count * BLOCK), paths()[n]], check=True)
            state[n][first:first + count] = [0] * count
        done(n)
    # The last shared blocks are dropped.
    for n in range(FILES - 1):
        write(n, 0, BLOCKS)
        done(n)
    with open(history_path, "w") as f:
        json.dump(history, f)


def check(durable):
    with open(history_path) as f:
        history = json.load(f)
    for n, path in enumerate(paths()):
        if not os.path.exists(path) and durable == 0:
            continue
        with open(path, "rb") as f:
            data = f.read()
        if len(data) != BLOCKS * BLOCK and durable > 0:
            sys.exit(f"{path}: {len(data)} bytes")
        for block in range(len(data) // BLOCK):
            piece = data[block * BLOCK:(block + 1) * BLOCK]
            tag = struct.unpack_from("<Q", piece)[0]
            if tag == history[durable][n][block] and piece == content(tag):
                continue
            legal = {states[n][block] for states in history[durable:]}
            # A step may write a block more than once; its first write is newer than the previous
            # contents.
            between = any(low < tag < high for low, high in zip(sorted(legal), sorted(legal)[1:]))
            if piece != content(tag) or not (tag in legal or between):
                sys.exit(f"{path}: block {block} holds {tag}, of {sorted(legal)[:8]} after step {durable}")


if command == "run":
    run()
else:
    check(int(sys.argv[4]))
