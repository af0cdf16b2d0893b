#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The part of scripts/peers that runs in the virtual machine.

peers-guest.py compare RESULTS EXT4_DISK XFS_DISK
peers-guest.py stalls RESULTS EXT4_DISK FRAGMENTS...
peers-guest.py share RESULTS EXT4_DISK XFS_DISK
peers-guest.py empty RESULTS EXT4_DISK

compare: for each set of files, creates a volume of each kind with the defaults of its mkfs and fills it. Then, REPEAT times each:

- rext4, with its volume mounted: `rext4 scrub` and `rext4 scrub --repair --force`;
- XFS, mounted: the calls behind `xfs_io -x -c 'scrub rmapbt N'` and `-c 'repair -R rmapbt N'`, for each allocation group
  with records of the files, and the repairs for all groups as well. They are issued from here, so that the start of a
  program is not measured;
- `e2fsck -fn` of the unmounted ext4 volume.

stalls: rebuilds volumes of one fragmented file while a program writes to them and times each of its operations.

empty: checks and rebuilds all regions of a volume without files, and one of them.

share: on an empty volume of each kind, clones files, overwrites a clone block by block, checks and rebuilds both trees, and
removes clones; the requests to rext4 and XFS are the same.

The measurements are written to RESULTS, one JSON object per line, and synced after each set. With PROFILED in the
environment the calls of `compare` are marked for the profile (scripts/spans.py).
"""

import array
import ctypes
import fcntl
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time

import spans

HERE = os.path.dirname(os.path.abspath(__file__))
REXT4 = os.path.join(HERE, "..", "build", "rext4")
FILES = os.path.join(HERE, "demo-files.py")
MNT = "/mnt"
BLOCK = 4096
SMALL_FILES = 20000
FILES_IN_A_DIRECTORY = 200
FULL = os.environ.get("BENCH_FULL", "")
PROFILED = os.environ.get("PROFILED", "")
REPEAT = 5 if PROFILED else 3

# linux/xfs: struct xfs_scrub_metadata
XFS_IOC_SCRUB_METADATA = 3 << 30 | 64 << 16 | ord("X") << 8 | 60
XFS_TREES = {"rmap": 9, "refcount": 10}
REPAIR_AND_FORCE = 1 << 0 | 1 << 8
# CORRUPT, XFAIL, XCORRUPT, INCOMPLETE
NOT_GOOD = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5
# linux/fs.h
FICLONE = 1 << 30 | 4 << 16 | 0x94 << 8 | 9
FALLOCATE = ctypes.CDLL(None).fallocate
FALLOCATE.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
PUNCH_HOLE_KEEP_SIZE = 1 << 1 | 1 << 0


def fail(why):
    print(f"peers: {why}", flush=True)
    sys.exit(1)


def step(text):
    print(f"{time.monotonic() - BEGUN:6.1f} s  {text}", flush=True)


def run(*command, statuses=(0,)):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode not in statuses:
        fail(f"{' '.join(command)} ended with status {done.returncode}: {done.stdout.strip()[-500:]}")
    return done.stdout


def timed(call):
    since = time.monotonic()
    call()
    return time.monotonic() - since


def repeated(call):
    """Calls it REPEAT times; returns what it returned, and the numbers of the spans."""
    answers, numbers = [], []
    for _ in range(REPEAT):
        if PROFILED:
            with spans.Span() as span:
                answers.append(call())
            numbers.append(span.number)
        else:
            answers.append(call())
    return answers, numbers


def small_files(top, count):
    """Files of one block."""
    data = os.urandom(BLOCK)
    for first in range(0, count, FILES_IN_A_DIRECTORY):
        directory = os.path.join(top, f"d{first // FILES_IN_A_DIRECTORY}")
        os.mkdir(directory)
        for number in range(first, min(first + FILES_IN_A_DIRECTORY, count)):
            fd = os.open(os.path.join(directory, str(number)), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(fd, data)
            os.close(fd)


def fragments(top, count):
    """One file with every other block allocated, each as an extent of its own."""
    data = os.urandom(BLOCK)
    fd = os.open(os.path.join(top, "fragments"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    # Nothing is preallocated before the end of the file.
    os.ftruncate(fd, 2 * count * BLOCK)
    for number in range(count):
        os.pwrite(fd, data, 2 * number * BLOCK)
    os.fsync(fd)
    os.close(fd)


def fill(top, files, pieces):
    if files:
        small_files(top, files)
    if pieces:
        fragments(top, pieces)
    os.sync()


def scrub(*options):
    # 1 means that something was wrong and has been repaired, which must not happen here.
    return json.loads(run(REXT4, "scrub", "--json", *options, MNT))


def mount_rext4(disk, files=0, pieces=0):
    """Creates, fills and mounts a volume, and waits for its reverse map; returns the number of regions."""
    run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", disk)
    run("mount", "-t", "ext4", disk, MNT)
    step("ext4: writing the files")
    fill(MNT, files, pieces)
    run("umount", MNT)
    run("mount", "-t", "rext4", disk, MNT)
    for _ in range(600):
        if '"stale"' not in run(REXT4, "info", "--json", MNT):
            break
        time.sleep(0.2)
    else:
        fail("the reverse map stays stale")
    return len(json.loads(run(REXT4, "info", "--json", MNT)))


def rext4(disk, files, pieces):
    regions = mount_rext4(disk, files, pieces)
    check, check_spans = repeated(scrub)
    repair, repair_spans = repeated(lambda: scrub("--repair", "--force"))
    if any(one["rebuilt_regions"] != regions for one in repair):
        fail("not all regions were rebuilt")
    for one in repair:
        parts = " ".join(f"{part} {one[part + '_ns'] / 1e9:.3f}" for part in ("scan", "check", "load", "reap"))
        step(f"rext4: {one['records']} records, {one['seconds']:.3f} s: {parts}")
    run("umount", MNT)
    e2fsck = [timed(lambda: run("e2fsck", "-fn", disk)) for _ in range(REPEAT)]
    step(f"e2fsck -fn: {', '.join(f'{t:.3f}' for t in e2fsck)} s")
    return {"regions": regions, "check": check, "repair": repair, "spans": {"check": check_spans, "repair": repair_spans}}, e2fsck


def longest(times, since, until):
    """The longest operation, in ms, and the number of operations that overlap a time window."""
    lengths = [length * 1000 for start, length in zip(times[::2], times[1::2]) if start < until and start + length > since]
    return (max(lengths), len(lengths)) if lengths else (None, 0)


def under_a_writer(disk, pieces):
    """Rebuilds next to a writing program; then the same program alone, and next to busy loops."""
    step(f"{pieces} fragments, rebuilt next to a writer")
    mount_rext4(disk, 0, pieces)
    os.makedirs("/tmp/peers", exist_ok=True)
    writer = subprocess.Popen(["python3", FILES, "write", f"{MNT}/writer", "/tmp/peers/writer", "1"])
    time.sleep(2)
    found, windows = [], []
    for _ in range(REPEAT):
        since = time.time()
        found.append(scrub("--repair", "--force"))
        windows.append((since, time.time()))
    took = max(1.0, max(until - since for since, until in windows))
    alone = time.time()
    time.sleep(took)
    busy = time.time()
    loops = [subprocess.Popen(["python3", "-c", "while True: pass"]) for _ in range(os.cpu_count())]
    time.sleep(took)
    end = time.time()
    for loop in loops:
        loop.kill()
        loop.wait()
    writer.send_signal(signal.SIGTERM)
    if writer.wait() != 0:
        fail("the writer failed")
    times = array.array("d")
    with open("/tmp/peers/writer.times", "rb") as file:
        times.frombytes(file.read())
    run("umount", MNT)
    run("e2fsck", "-fn", disk)
    seen = [longest(times, *window) for window in windows]
    if not all(count for _, count in seen):
        fail("the writer did nothing")
    result = {
        "records": max(one["records"] for one in found),
        "seconds": [one["seconds"] for one in found],
        "live_updates": [one["live_updates"] for one in found],
        "kernel_ms": [one["stall_ns"] / 1e6 for one in found],
        "writer_ms": [length for length, _ in seen],
        "operations": [count for _, count in seen],
        "alone_ms": longest(times, alone, busy)[0],
        "busy_ms": longest(times, busy, end)[0],
    }
    step(f"rext4: writers stopped for {max(result['kernel_ms']):.3f} ms according to the kernel, {max(result['writer_ms']):.1f} ms "
         f"according to the writer; alone {result['alone_ms']:.1f} ms, next to busy loops {result['busy_ms']:.1f} ms")
    return result


def xfs_scrub(tree, groups, flags=0):
    """Checks, or checks and repairs, a tree of these groups; returns the duration in seconds."""
    fd = os.open(MNT, os.O_RDONLY)
    since = time.monotonic()
    for group in groups:
        argument = bytearray(struct.pack("=IIQII40x", XFS_TREES[tree], flags, 0, 0, group))
        try:
            fcntl.ioctl(fd, XFS_IOC_SCRUB_METADATA, argument)
        except OSError as error:
            fail(f"XFS, {tree} of group {group}: {error}")
        answer = struct.unpack_from("=II", argument)[1]
        if answer & NOT_GOOD:
            fail(f"XFS, {tree} of group {group}: answers {answer:#x}")
    took = time.monotonic() - since
    os.close(fd)
    return took


def xfs_repair_time(disk):
    """Seconds spent in repairs of rmapbt so far according to XFS, without the checks before and after."""
    with open(f"/sys/kernel/debug/xfs/{os.path.basename(disk)}/scrub/stats") as stats:
        for line in stats:
            fields = line.split()
            if fields and fields[0] == "rmapbt":
                return int(fields[-1]) / 1e6
    return None


def xfs_groups(disk):
    """Number of reverse map records per group, for groups in which files have any."""
    geometry = run("xfs_info", MNT)
    size = int(geometry.split("agsize=")[1].split()[0]) * BLOCK // 512
    records, with_files = {}, set()
    listing = run("xfs_io", "-r", "-c", "fsmap -m -n 4096", MNT).splitlines()
    columns = listing[0].split(",")
    start, owner = columns.index("PSTART"), columns.index("OWNER")
    for line in listing[1:]:
        fields = line.split(",")
        # Ranges without a record are reported as free (0:1) or unknown (0:2).
        if fields[owner] in ("special_0:1", "special_0:2"):
            continue
        group = int(fields[start]) // size
        records[group] = records.get(group, 0) + 1
        if fields[owner].startswith("inode_"):
            with_files.add(group)
    return {group: records[group] for group in sorted(with_files)}


def mount_xfs(disk):
    run("mkfs.xfs", "-q", "-f", "-K", disk)
    run("mount", "-t", "xfs", disk, MNT)


def xfs(disk, files, pieces):
    mount_xfs(disk)
    step("XFS: writing the files")
    fill(MNT, files, pieces)
    groups = xfs_groups(disk)
    if not groups:
        fail("no record of a file in XFS's reverse map")
    every = range(int(run("xfs_info", MNT).split("agcount=")[1].split(",")[0]))
    check, check_spans = repeated(lambda: xfs_scrub("rmap", groups))
    bare = []

    def repaired():
        before = xfs_repair_time(disk)
        took = xfs_scrub("rmap", groups, REPAIR_AND_FORCE)
        bare.append(xfs_repair_time(disk) - before)
        return took
    repair, repair_spans = repeated(repaired)
    whole, whole_spans = repeated(lambda: xfs_scrub("rmap", every, REPAIR_AND_FORCE))
    run("umount", MNT)
    result = {"records": sum(groups.values()), "groups": groups, "check": check, "repair": repair, "bare": bare,
              "every_group": whole, "spans": {"check": check_spans, "repair": repair_spans, "every_group": whole_spans}}
    step(f"XFS: {result['records']} records in {len(groups)} groups; repair {', '.join(f'{t:.3f}' for t in repair)} s, "
         f"of it the rebuild alone {', '.join(f'{t:.3f}' for t in bare)} s; check {', '.join(f'{t:.3f}' for t in check)} s")
    return result


def written(path, blocks):
    """A file of this many blocks."""
    with open(path, "wb") as file:
        for _ in range(0, blocks, 256):
            file.write(os.urandom(256 * BLOCK))
        os.fsync(file.fileno())


def perforated(path, extents):
    """A file of this many one-block extents, which are not adjacent on the disk either."""
    written(path, 2 * extents)
    with open(path, "r+b") as file:
        for number in range(extents):
            if FALLOCATE(file.fileno(), PUNCH_HOLE_KEEP_SIZE, (2 * number + 1) * BLOCK, BLOCK):
                fail(f"cannot punch holes into {path}")
        os.fsync(file.fileno())


def clone(source, target):
    """Clones a file and syncs the clone."""
    with open(source, "rb") as old, open(target, "wb") as new:
        fcntl.ioctl(new, FICLONE, old.fileno())
        os.fsync(new.fileno())


def overwrite(path, count):
    """Writes single blocks at random, with fsync after each."""
    data = os.urandom(BLOCK)
    fd = os.open(path, os.O_WRONLY)
    for block in random.Random(count).sample(range(os.stat(fd).st_size // BLOCK), count):
        os.pwrite(fd, data, block * BLOCK)
        os.fsync(fd)
    os.close(fd)


def pieces_of(path):
    return int(run("filefrag", path).rsplit(":", 1)[1].split()[0])


def rext4_trees(_disk):
    found = {what: scrub(*options) for what, options in (("check", ()), ("repair", ("--repair", "--force")))}
    return {"records": {"rmap": found["check"]["records"], "refcount": found["check"]["refcount"]["records"]},
            **{what: {"rmap": one["seconds"], "refcount": one["refcount"]["seconds"]} for what, one in found.items()}}


def xfs_trees(disk):
    groups = xfs_groups(disk)
    times = {what: {tree: xfs_scrub(tree, groups, flags) for tree in XFS_TREES}
             for what, flags in (("check", 0), ("repair", REPAIR_AND_FORCE))}
    return {"records": {"rmap": sum(groups.values())}, **times}


def sharing(sizes, trees):
    """Measures sharing on the mounted volume, in seconds; unmounts it at the end."""
    many, some, whole, changed = (os.path.join(MNT, name) for name in ("many", "some", "whole", "changed"))
    perforated(many, sizes["extents"])
    perforated(some, sizes["some"])
    written(whole, sizes["blocks"])
    os.sync()
    found = {"clone": [timed(lambda: clone(many, f"{many}.{n}")) for n in range(1 + REPEAT)]}
    clone(whole, changed)
    os.sync()
    found["overwrite"] = timed(lambda: overwrite(changed, sizes["writes"]))
    found["pieces"] = pieces_of(changed)
    clones = [f"{some}.{number}" for number in range(sizes["clones"])]
    found["clones"] = timed(lambda: [clone(some, one) for one in clones])
    found["trees"] = trees()
    os.sync()
    found["remove"] = timed(lambda: [os.unlink(one) for one in clones])
    found["unmount"] = timed(lambda: run("umount", MNT))
    return found


def share(results, ext4_disk, xfs_disk):
    sizes = {"extents": 10000, "some": 1000, "blocks": 65536, "writes": 10000 if FULL else 2000,
             "clones": 100 if FULL else 20}
    found = {}
    for name, disk, mount, trees in (("rext4", ext4_disk, mount_rext4, rext4_trees), ("xfs", xfs_disk, mount_xfs, xfs_trees)):
        step(f"{name}: sharing")
        mount(disk)
        found[name] = sharing(sizes, lambda: trees(disk))
        step(f"{name}: {json.dumps(found[name])}")
    run("e2fsck", "-fn", ext4_disk)
    note(results, share={"sizes": sizes, **found})


def empty(results, disk):
    regions = mount_rext4(disk)
    took = {
        what: {which: [scrub(*options, *region)["seconds"] for _ in range(REPEAT)]
               for which, region in (("all", ()), ("one", ("--region", str(regions - 1))))}
        for what, options in (("check", ()), ("repair", ("--repair", "--force")))
    }
    run("umount", MNT)
    run("e2fsck", "-fn", disk)
    step(f"{regions} regions without files: {json.dumps(took)}")
    note(results, empty={"regions": regions, **took})


def compare(results, ext4_disk, xfs_disk):
    sets = [
        ("b4", "one file of 10,000 one-block fragments", 0, 10 ** 4),
        ("a", "20,000 files of one block", SMALL_FILES, 0),
        ("b", "one file of 100,000 one-block fragments", 0, 10 ** 5),
        ("c", "both: 20,000 files and 100,000 fragments", SMALL_FILES, 10 ** 5),
    ]
    if FULL and FULL != "stalls":
        sets.append(("b6", "one file of 1,000,000 one-block fragments", 0, 10 ** 6))
    with open("/proc/cpuinfo") as info:
        cpu = next(line.split(":")[1].strip() for line in info if line.startswith(("model name", "host")))
    if PROFILED:
        spans.ready()
    note(results, machine={"kernel": os.uname().release, "cpus": os.cpu_count(), "cpu": cpu, "full": FULL,
                           "repeat": REPEAT})
    for name, what, files, pieces in sets:
        step(f"set {name}: {what}")
        ours, e2fsck = rext4(ext4_disk, files, pieces)
        note(results, set={
            "name": name,
            "what": what,
            "rext4": ours,
            "e2fsck": e2fsck,
            "xfs": xfs(xfs_disk, files, pieces),
        })


def note(results, **what):
    with open(results, "a") as file:
        json.dump(what, file)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def main():
    what, results, ext4_disk, *rest = sys.argv[1:]
    if what == "compare":
        compare(results, ext4_disk, *rest)
    elif what == "share":
        share(results, ext4_disk, *rest)
    elif what == "empty":
        empty(results, ext4_disk)
    elif what == "stalls":
        for pieces in rest:
            note(results, stall={"fragments": int(pieces), **under_a_writer(ext4_disk, int(pieces))})
    else:
        sys.exit(__doc__)


BEGUN = time.monotonic()
if __name__ == "__main__":
    main()
