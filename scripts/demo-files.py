#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The files of scripts/demo: fills a volume, writes to it while timing each operation, and reports the results.

demo-files.py fill DIR COUNT LIST
    Creates COUNT files below DIR, most of one block, with four processes; their checksums are written to LIST.N.sums.
demo-files.py write DIR LIST SEED
    Creates, appends to, truncates, extends and removes files in DIR until SIGTERM. Then writes the checksums of the
    remaining files to LIST.sums, and the start and duration of every operation to LIST.times.
demo-files.py report FOLDER REGIONS TIME...
    Prints a table of FOLDER/scrub.json, FOLDER/repair.json and FOLDER/writer-*.times, and the line for programs last.

Checksums are computed from the data that the program wrote, never from data that it read back.
"""

import array
import gc
import glob
import hashlib
import json
import os
import random
import signal
import sys
import time

PROCESSES = 4
FILES_IN_A_DIRECTORY = 250


def checksum_line(data, path):
    return f"{hashlib.sha256(data).hexdigest()}  {path}\n"


def fill_part(top, count, list_name, part):
    """Every PROCESSES-th directory."""
    chance = random.Random(part)
    pool = chance.randbytes(256 << 10)
    with open(f"{list_name}.{part}.sums", "w") as sums:
        for first in range(part * FILES_IN_A_DIRECTORY, count, PROCESSES * FILES_IN_A_DIRECTORY):
            directory = f"d{first // FILES_IN_A_DIRECTORY}"
            os.mkdir(os.path.join(top, directory))
            for number in range(first, min(first + FILES_IN_A_DIRECTORY, count)):
                path = f"{directory}/f{number}"
                # One in a hundred has up to 16 blocks. No two are equal.
                size = chance.randrange(1, 65536 if number % 100 == 0 else 4096)
                start = chance.randrange(len(pool) - size)
                data = (path.encode() + pool[start:start + size])[:max(size, len(path))]
                fd = os.open(os.path.join(top, path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                if os.write(fd, data) != len(data):
                    sys.exit(f"{path}: a short write")
                os.close(fd)
                sums.write(checksum_line(data, path))


def fill(top, count, list_name):
    children = []
    for part in range(PROCESSES):
        child = os.fork()
        if child == 0:
            fill_part(top, count, list_name, part)
            # Without the clean-up of the parent's affairs, but not without its buffers.
            sys.stdout.flush()
            os._exit(0)
        children.append(child)
    if any(os.waitpid(child, 0)[1] for child in children):
        sys.exit("a process that fills the volume failed")


def write(top, list_name, seed):
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    chance = random.Random(seed)
    pool = chance.randbytes(256 << 10)
    files = {}
    times = array.array("d")
    # A garbage collection during an operation would look like a stall of the file system.
    gc.disable()
    os.mkdir(top)
    while not stopped:
        name = f"w{chance.randrange(200)}"
        path = os.path.join(top, name)
        what = chance.random()
        start = chance.randrange(len(pool) - 32768)
        data = pool[start:start + chance.randrange(1, 32768)]
        size = chance.randrange(60000)
        old = files.get(name)
        at, before = time.time(), time.perf_counter()
        if old is None:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            written = os.write(fd, data)
            os.close(fd)
        elif what < 0.5 and len(old) < 200000:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND)
            written = os.write(fd, data)
            os.close(fd)
        elif what < 0.75:
            os.truncate(path, size)
        else:
            os.unlink(path)
        times.extend((at, time.perf_counter() - before))
        # The expected contents.
        if old is None:
            files[name] = bytearray(data[:written])
        elif what < 0.5 and len(old) < 200000:
            old += data[:written]
        elif what < 0.75:
            del old[size:]
            old += bytes(size - len(old))
        else:
            del files[name]
    with open(f"{list_name}.times", "wb") as out:
        times.tofile(out)
    with open(f"{list_name}.sums", "w") as sums:
        for name, data in sorted(files.items()):
            sums.write(checksum_line(data, name))


def in_window(folder, since, until):
    """Sorted durations in ms of the operations that overlap a time window."""
    lengths = []
    for name in glob.glob(f"{folder}/writer-*.times"):
        times = array.array("d")
        with open(name, "rb") as file:
            times.frombytes(file.read())
        for start, length in zip(times[::2], times[1::2]):
            if start < until and start + length > since:
                lengths.append(length * 1000)
    return sorted(lengths)


def fail(why):
    print(why)
    sys.exit(1)


def report(folder, regions, since, mounted, made, repair, repaired, alone, busy, left):
    with open(f"{folder}/scrub.json") as scrub, open(f"{folder}/repair.json") as again:
        before, found = json.load(scrub), json.load(again)
    if before["bad_regions"] != regions:
        fail(f"scrub found {before['bad_regions']} of {regions} damaged regions")
    if found["rebuilt_regions"] != regions or not found["repaired"]:
        fail(f"{found['rebuilt_regions']} of {regions} regions were rebuilt")
    # The sharing program may run into the damage before the repair does, which starts a recount.
    if not before["refcount"]["bad_regions"]:
        fail("scrub did not find the damage of the reference counts")
    windows = [(repair, repaired), (alone, busy), (busy, left)]
    operations = [in_window(folder, *window) for window in windows]
    if not all(operations):
        fail("the writers did nothing")
    records, seconds = found["records"], found["seconds"]

    def row(name, *values):
        print(f"  {name:44}" + "".join(f"{value:>16}" for value in values))

    print()
    row("first mount, s", f"{mounted - since:.2f}")
    row("creation of the reverse map, s", f"{made - mounted:.2f}")
    print()
    row("scrub, with a cold inode cache, s", f"{before['seconds']:.2f}")
    row("repair: regions damaged and rebuilt", f"{found['bad_regions']}")
    row("inodes scanned", f"{found['inodes']}")
    row("records", f"{records}")
    row("live updates", f"{found['live_updates']}")
    row("memory for records, KiB", f"{found['memory'] // 1024}")
    for phase in ("scan", "check", "load", "reap"):
        row(f"{phase}, s", f"{found[phase + '_ns'] / 1e9:.2f}")
    row("total, s", f"{seconds:.2f}")
    row("records/s", f"{records / seconds:.0f}")
    row("reference counts, total, s", f"{found['refcount']['seconds']:.2f}")
    row("longest install of a tree (by the kernel), ms", f"{found['stall_ms']:.2f}")
    print()
    row("writers", "during repair", "alone", "with busy loops")
    row("time, s", *(f"{until - since:.2f}" for since, until in windows))
    row("operations", *map(len, operations))
    row("median, ms", *(f"{part[len(part) // 2]:.2f}" for part in operations))
    row("99.9th percentile, ms", *(f"{part[len(part) * 999 // 1000]:.2f}" for part in operations))
    row("longest, ms", *(f"{part[-1]:.1f}" for part in operations))
    print()
    print(f"demo: records={records} rebuild_seconds={seconds:.2f} records_per_second={records / seconds:.0f} "
          f"longest_stall_ms={operations[0][-1]:.1f} e2fsck=clean stock_ext4=equal")


def main():
    what, *rest = sys.argv[1:]
    if what == "fill":
        fill(rest[0], int(rest[1]), rest[2])
    elif what == "write":
        write(rest[0], rest[1], int(rest[2]))
    elif what == "report":
        report(rest[0], int(rest[1]), *map(float, rest[2:]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
