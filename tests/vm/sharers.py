#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Creates and removes files with shared blocks at random, and checks their contents.

sharers.py make DIR BLOCK         creates the files that everything is cloned from: base-N
sharers.py run DIR BLOCK SEED STOP [sync]
                                  clones, writes to, truncates and removes its own files until the file STOP exists; with
                                  `sync`, many changes are synced at once, and sometimes all of its files are removed
sharers.py check DIR BLOCK        checks that every file has valid contents

Every block of a file consists of one repeated nonzero byte; anything else is a torn block, or a block of another file. A base
is never changed, and a file `same-S-N-M` is base N or a prefix of it.
"""

import fcntl
import os
import random
import sys

FICLONE, FICLONERANGE = 0x40049409, 0x4020940D
BASES, BLOCKS = 6, 160


def content(number, size):
    source = random.Random(number)
    return b"".join(bytes([source.randrange(1, 256)]) * size for _ in range(BLOCKS))


def make(top, size):
    os.makedirs(top, exist_ok=True)
    for number in range(BASES):
        with open(f"{top}/base-{number}", "wb") as f:
            f.write(content(number, size))


def clone(source, target):
    with open(source, "rb") as a, open(target, "wb") as b:
        fcntl.ioctl(b, FICLONE, a.fileno())


def step(top, size, seed, names, sync):
    base = random.randrange(BASES)
    what = random.random()
    if what < 0.3 or not names:
        kind = random.choice(["same", "mine"])
        name = f"{top}/{kind}-{seed}-{base}-{random.randrange(10)}"
        clone(f"{top}/base-{base}", name)
        names.add(name)
        return
    name = random.choice(sorted(names))
    if what < 0.65 and "/mine-" in name:
        end = os.path.getsize(name) // size
        with open(name, "r+b") as f:
            for _ in range(random.randrange(1, 4)):
                # Not beyond the end, which would leave a hole.
                f.seek(random.randrange(end + 1) * size)
                f.write(b"".join(bytes([random.randrange(1, 256)]) * size for _ in range(random.randrange(1, 9))))
            f.flush()
            if sync and random.random() < 0.5:
                os.fsync(f.fileno())
    elif what < 0.75 and "/mine-" in name:
        # A range of another file, or of this one.
        other = random.choice([f"{top}/base-{base}", name])
        at, to, count = random.randrange(40), random.randrange(80, 120), random.randrange(1, 40)
        if os.path.getsize(other) >= (at + count) * size and os.path.getsize(name) >= to * size:
            with open(other, "rb") as a, open(name, "r+b") as b:
                call = b"".join(n.to_bytes(8, "little") for n in (a.fileno(), at * size, count * size, to * size))
                fcntl.ioctl(b, FICLONERANGE, call)
    elif what < 0.85:
        os.truncate(name, random.randrange(os.path.getsize(name) // size + 1) * size)
    else:
        os.unlink(name)
        names.discard(name)


def run(top, size, seed, stop, sync):
    random.seed(seed)
    names, count = set(), 0
    while not os.path.exists(stop):
        step(top, size, seed, names, sync)
        count += 1
        if sync and count % 60 == 0:
            for name in names:
                os.unlink(name)
            names.clear()
            os.sync()
    print(f"sharers: {count} steps")


def check(top, size):
    for name in sorted(os.listdir(top)):
        with open(f"{top}/{name}", "rb") as f:
            data = f.read()
        for at in range(0, len(data), size):
            block = data[at:at + size]
            assert block[0] and block == block[:1] * len(block), f"{name}: block {at // size} is torn"
        kind, *numbers = name.split("-")
        if kind == "base":
            assert data == content(int(numbers[0]), size), f"{name} has changed"
        elif kind == "same":
            assert data == content(int(numbers[1]), size)[:len(data)], f"{name} is not what it was cloned from"


def main():
    what, top, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if what == "make":
        make(top, size)
    elif what == "check":
        check(top, size)
    else:
        run(top, size, int(sys.argv[4]), sys.argv[5], "sync" in sys.argv[6:])


if __name__ == "__main__":
    main()
