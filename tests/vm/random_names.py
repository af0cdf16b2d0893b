#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""random_names.py DIRECTORY SEED COUNT: a workload of changes to names and attributes that depends only on its seed.

Prints every result, including errors, so that two file systems can be compared.
"""

import errno
import os
import random
import stat
import sys

top, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
dirs, names = [top], []
held = []


def fresh():
    stem = rng.choice(["a", "name", "a-rather-long-name-for-an-entry-", "n" * 200])
    return os.path.join(rng.choice(dirs), f"{stem}{rng.randrange(400)}")


def some():
    return rng.choice(names) if names and rng.random() < 0.95 else fresh()


def create():
    path = fresh()
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, rng.choice([0o600, 0o644, 0o4755]))
    names.append(path)
    if rng.random() < 0.02:
        held.append(fd)  # stays open: when removed later, it continues to exist without a name
    else:
        os.close(fd)


def mkdir():
    path = fresh()
    os.mkdir(path, rng.choice([0o755, 0o1777, 0o2770]))
    dirs.append(path)


def rmdir():
    if len(dirs) == 1:
        return
    path = rng.choice(dirs[1:])
    os.rmdir(path)
    dirs.remove(path)


def unlink():
    path = some()
    os.unlink(path)
    if path in names:
        names.remove(path)


def link():
    path, new = some(), fresh()
    os.link(path, new, follow_symlinks=False)
    names.append(new)


def symlink():
    path = fresh()
    os.symlink("t" * rng.choice([1, 30, 59, 60, 61, 300, 900]), path)
    names.append(path)


def rename():
    old, new = some(), rng.choice([fresh, some])()
    os.rename(old, new)
    if old in names:
        names.remove(old)
    if new not in names:
        names.append(new)


def rename_dir():
    global dirs, names
    if len(dirs) == 1:
        return
    old, new = rng.choice(dirs[1:]), fresh()
    os.rename(old, new)
    if old == new:
        return
    moved = lambda path: new + path[len(old):] if path == old or path.startswith(old + "/") else path
    dirs, names = [moved(path) for path in dirs if path != new], [moved(path) for path in names]


def mknod():
    path = fresh()
    kind = rng.choice([stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
    os.mknod(path, kind | 0o640, os.makedev(rng.choice([1, 300]), rng.choice([3, 70000])))
    names.append(path)


def attributes():
    path = rng.choice(names + dirs)
    if os.path.islink(path):
        return
    rng.choice([
        lambda: os.chmod(path, rng.choice([0o600, 0o711, 0o6755])),
        lambda: os.chown(path, rng.choice([0, 1000, 70000]), rng.choice([0, 80000])),
        lambda: os.utime(path, ns=(rng.randrange(10**18), rng.randrange(10**18))),
    ])()


def sync():
    fd = os.open(rng.choice(dirs), os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


OPS = [(create, 40), (mkdir, 6), (rmdir, 4), (unlink, 14), (link, 6), (symlink, 6), (rename, 12), (rename_dir, 3),
       (mknod, 3), (attributes, 8), (sync, 1)]
for step in range(count):
    op = rng.choices([op for op, _ in OPS], [weight for _, weight in OPS])[0]
    try:
        op()
        print(step, op.__name__, "ok")
    except OSError as e:
        print(step, op.__name__, errno.errorcode[e.errno])
        if e.errno in (errno.EIO, errno.EUCLEAN, errno.EROFS, errno.ENOSPC):
            sys.exit(f"names: {op.__name__}: {e}")
for fd in held:
    os.close(fd)
