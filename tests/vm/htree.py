#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""htree.py COMMAND DIRECTORY ...: change the names of a directory, and compare them with a model.

The model, a file, holds the names and their inodes. The directory must hold each of them with its inode, found by the name and
listed once, and no other.

random DIRECTORY MODEL SEED COUNT [DIRECTORY ...]: COUNT creations, renames and deletions at random; compares before and after.
links DIRECTORY MODEL SEED ADD REMOVE: ADD links to a few files, then REMOVE deletions; compares before and after.
rename DIRECTORY: renames within directories of which each needs room for the new name.
fill DIRECTORY MOST: links with long names until the index or the volume is full or there are MOST; prints how many.
filled DIRECTORY COUNT: there are as many.
cookies DIRECTORY: prints each name but `.` and `..` with the position behind it, in the order in which they are listed.
seek DIRECTORY: from each position the names behind it are listed, and while others come and go each name is, once.
"""

import ctypes
import errno
import json
import os
import random
import sys


def load(path):
    if not os.path.exists(path):
        return {}
    with open(path, encoding="ascii") as file:
        return {bytes.fromhex(name): ino for name, ino in json.load(file).items()}


def save(path, model):
    with open(path, "w", encoding="ascii") as file:
        json.dump({name.hex(): ino for name, ino in model.items()}, file)


def make(path):
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    return os.stat(path).st_ino


def compare(top, model):
    listed = os.listdir(top)
    assert len(listed) == len(set(listed)), "a name is listed twice"
    extra, missing = set(listed) - set(model), set(model) - set(listed)
    assert not extra and not missing, (sorted(extra)[:5], sorted(missing)[:5])
    for name, ino in model.items():
        assert os.stat(os.path.join(top, name), follow_symlinks=False).st_ino == ino, name


def shuffle(top, path, seed, count, *others):
    rng = random.Random(int(seed))
    model = load(path)
    compare(top, model)

    def fresh():
        # Bytes above 127 tell signed hashes from unsigned ones; long names fill blocks.
        stem = rng.choice([b"a", b"na\xc3\xafve-\xff", b"m" * 90, b"\xfe" * 200, b"l" * 230])
        return stem + b"%d" % rng.randrange(10**9)

    def some():
        return rng.choice(list(model)) if model else None

    for _ in range(int(count)):
        name, other = fresh(), some()
        at = os.path.join(top, name)
        draw = rng.random()
        if draw < 0.6 or other is None:
            model[name] = make(at)
        elif draw < 0.7:
            os.link(os.path.join(top, other), at)
            model[name] = model[other]
        elif draw < 0.8:
            os.rename(os.path.join(top, other), at)
            model[name] = model.pop(other)
        elif draw < 0.85:
            # Onto another one, unless both name one inode: then nothing happens.
            target = some()
            os.rename(os.path.join(top, other), os.path.join(top, target))
            if model[target] != model[other]:
                model[target] = model.pop(other)
        else:
            os.unlink(os.path.join(top, other))
            del model[other]
        if rng.random() < 0.1:
            assert not os.path.exists(os.path.join(top, fresh() + b"-absent"))
    compare(top, model)
    save(path, model)
    if others:
        shuffle(others[0].encode(), *others[1:])


def links(top, path, seed, add, remove):
    rng = random.Random(int(seed))
    model = load(path)
    compare(top, model)
    if not model:
        for number in range(8):
            name = b"file-%d" % number
            model[name] = make(os.path.join(top, name))
    files = [name for name in model if name.startswith(b"file-")]
    for _ in range(int(add)):
        name = b"%x" % rng.getrandbits(128)
        file = rng.choice(files)
        os.link(os.path.join(top, file), os.path.join(top, name))
        model[name] = model[file]
    for name in rng.sample(sorted(set(model) - set(files)), int(remove)):
        os.unlink(os.path.join(top, name))
        del model[name]
    compare(top, model)
    save(path, model)


def rename(top):
    # Four such names fill a block of 1 KiB. The fifth one, which takes the place of another, makes a block outgrow itself or
    # splits a leaf, in which the old name may be.
    rng = random.Random(1)
    for size in range(4, 40):
        folder = os.path.join(top, b"%d" % size)
        os.mkdir(folder)
        model = {}
        for number in range(size):
            name = b"%d-" % number + b"x" * 220
            model[name] = make(os.path.join(folder, name))
        for _ in range(8):
            old, new = rng.choice(list(model)), b"%d-" % rng.randrange(10**6) + b"y" * 220
            os.rename(os.path.join(folder, old), os.path.join(folder, new))
            model[new] = model.pop(old)
            assert not os.path.lexists(os.path.join(folder, old)), "the old name is still there"
        compare(folder, model)


def long_name(number):
    return b"%06d" % number + b"n" * 244


def fill(top, most):
    file, folder = os.path.join(top, b"file"), os.path.join(top, b"full")
    make(file)
    os.mkdir(folder)
    number = 0
    try:
        while number < int(most):
            os.link(file, os.path.join(folder, long_name(number)))
            number += 1
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        assert not os.path.lexists(os.path.join(folder, long_name(number)))
        # The leaf of a name that goes has room for it.
        for gone in range(0, number, 1000):
            os.unlink(os.path.join(folder, long_name(gone)))
            os.link(file, os.path.join(folder, long_name(gone)))
    filled(top, number)
    print(number)


def filled(top, count):
    folder = os.path.join(top, b"full")
    names = os.listdir(folder)
    assert sorted(names) == [long_name(number) for number in range(int(count))], len(names)
    ino = os.stat(os.path.join(top, b"file")).st_ino
    for name in names:
        assert os.stat(os.path.join(folder, name)).st_ino == ino, name


def listed(directory, size):
    """One call of getdents64: names with the positions behind them."""
    buffer = ctypes.create_string_buffer(size)
    got = LIBC.syscall(217, directory, buffer, size)
    assert got >= 0, os.strerror(ctypes.get_errno())
    names, at = [], 0
    while at < got:
        position = int.from_bytes(buffer.raw[at + 8 : at + 16], "little")
        length = int.from_bytes(buffer.raw[at + 16 : at + 18], "little")
        names.append((buffer.raw[at + 19 : at + length].split(b"\0")[0], position))
        at += length
    return names


def everything(directory, size):
    names = []
    while some := listed(directory, size):
        names += some
    return names


def cookies(top):
    directory = os.open(top, os.O_RDONLY)
    for name, position in everything(directory, 1 << 16):
        if name not in (b".", b".."):
            print(name.hex(), position)


def seek(top):
    rng = random.Random(2)
    directory = os.open(top, os.O_RDONLY)
    names = everything(directory, 1 << 16)
    for at in rng.sample(range(len(names)), min(len(names), 100)):
        assert os.lseek(directory, names[at][1], os.SEEK_SET) == names[at][1]
        assert everything(directory, 300 + rng.randrange(4000)) == names[at + 1 :], at
    # Names come, so that leaves are split, and go while others are read.
    os.lseek(directory, 0, os.SEEK_SET)
    stay, seen, added = {name for name, _ in names}, [], 0
    while some := listed(directory, 400):
        seen += [name for name, _ in some if name in stay]
        for _ in range(4):
            make(os.path.join(top, b"new-%d" % added + b"n" * 200))
            added += 1
        os.unlink(os.path.join(top, b"new-%d" % (added - 1) + b"n" * 200))
        added -= 1
        assert added < 100 * len(names), "the directory does not end"
    assert sorted(seen) == sorted(stay), (len(seen), len(stay))
    for number in range(added):
        os.unlink(os.path.join(top, b"new-%d" % number + b"n" * 200))
    os.close(directory)


LIBC = ctypes.CDLL(None, use_errno=True)
COMMANDS = {"cookies": cookies, "seek": seek, "random": shuffle, "links": links, "rename": rename, "fill": fill, "filled": filled}
COMMANDS[sys.argv[1]](sys.argv[2].encode(), *sys.argv[3:])
