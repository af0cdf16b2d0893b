#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The part of scripts/peers that runs in the virtual machine.

peers-guest.py compare RESULTS EXT4_DISK XFS_DISK
peers-guest.py stalls RESULTS EXT4_DISK FRAGMENTS...

compare: for each set of files a volume of each kind is laid out by the defaults of its mkfs and filled; then, each REPEAT times:

- rext4, with its volume mounted: `rext4 scrub` and `rext4 scrub --repair --force`;
- XFS, mounted: the calls behind `xfs_io -x -c 'scrub rmapbt N'` and `-c 'repair -R rmapbt N'`, for each allocation group
  that holds records of the files. They are made from here, so that no start of a program is counted;
- `e2fsck -fn` of the ext4 volume, once that is not mounted any more.

stalls: volumes of one fragmented file are rebuilt while a program writes to them and times each of its operations, for
what that is held up.

All that was measured goes to RESULTS, one JSON object a line, written out after each set.
"""

import array
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
REXT4 = os.path.join(HERE, "..", "build", "rext4")
FILES = os.path.join(HERE, "demo-files.py")
MNT = "/mnt"
REPEAT = 3
BLOCK = 4096
SMALL_FILES = 20000
FILES_IN_A_DIRECTORY = 200

# linux/xfs: struct xfs_scrub_metadata
XFS_IOC_SCRUB_METADATA = 3 << 30 | 64 << 16 | ord("X") << 8 | 60
XFS_SCRUB_TYPE_RMAPBT = 9
REPAIR_AND_FORCE = 1 << 0 | 1 << 8
# CORRUPT, XFAIL, XCORRUPT, INCOMPLETE
NOT_GOOD = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5


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
    """One file with every other block, each a mapping of its own."""
    data = os.urandom(BLOCK)
    fd = os.open(os.path.join(top, "fragments"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    # In front of its end nothing is allocated ahead.
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
    # 1: it was wrong, and has been repaired, which must not happen here.
    return json.loads(run(REXT4, "scrub", "--json", *options, MNT))


def mount_rext4(disk, files, pieces):
    """Makes and fills a volume and mounts it, its reverse map made; answers with how many regions it has."""
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
    check = [scrub() for _ in range(REPEAT)]
    repair = [scrub("--repair", "--force") for _ in range(REPEAT)]
    if any(one["rebuilt_regions"] != regions for one in repair):
        fail("not all regions were rebuilt")
    for one in repair:
        parts = " ".join(f"{part} {one[part + '_ns'] / 1e9:.3f}" for part in ("scan", "check", "load", "reap"))
        step(f"rext4: {one['records']} records, {one['seconds']:.3f} s: {parts}")
    run("umount", MNT)
    e2fsck = [timed(lambda: run("e2fsck", "-fn", disk)) for _ in range(REPEAT)]
    step(f"e2fsck -fn: {', '.join(f'{t:.3f}' for t in e2fsck)} s")
    return {"regions": regions, "check": check, "repair": repair}, e2fsck


def longest(times, since, until):
    """The longest operation, in ms, of those under way at some moment of a time, and how many there were."""
    lengths = [length * 1000 for start, length in zip(times[::2], times[1::2]) if start < until and start + length > since]
    return (max(lengths), len(lengths)) if lengths else (None, 0)


def under_a_writer(disk, pieces):
    """Rebuilds beside a program that writes; and the same program alone, and beside programs that only compute."""
    step(f"{pieces} fragments, to be rebuilt beside a writer")
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
    step(f"rext4: held up for {max(result['kernel_ms']):.3f} ms says the kernel, {max(result['writer_ms']):.1f} ms says "
         f"the writer; alone {result['alone_ms']:.1f} ms, beside busy loops {result['busy_ms']:.1f} ms")
    return result


def xfs_call(fd, group, flags):
    """A check of a group's reverse map, or check and repair."""
    argument = bytearray(struct.pack("=IIQII40x", XFS_SCRUB_TYPE_RMAPBT, flags, 0, 0, group))
    try:
        fcntl.ioctl(fd, XFS_IOC_SCRUB_METADATA, argument)
    except OSError as error:
        fail(f"XFS, group {group}: {error}")
    answer = struct.unpack_from("=II", argument)[1]
    if answer & NOT_GOOD:
        fail(f"XFS, group {group}: answers {answer:#x}")


def xfs_repair_time(disk):
    """Seconds that XFS says to have spent in repairs of rmapbt so far, checks before and after not counted."""
    with open(f"/sys/kernel/debug/xfs/{os.path.basename(disk)}/scrub/stats") as stats:
        for line in stats:
            fields = line.split()
            if fields and fields[0] == "rmapbt":
                return int(fields[-1]) / 1e6
    return None


def xfs_groups(disk):
    """Records of the reverse map by group, of those groups in which files have any."""
    geometry = run("xfs_info", MNT)
    size = int(geometry.split("agsize=")[1].split()[0]) * BLOCK // 512
    records, with_files = {}, set()
    listing = run("xfs_io", "-r", "-c", "fsmap -m -n 4096", MNT).splitlines()
    columns = listing[0].split(",")
    start, owner = columns.index("PSTART"), columns.index("OWNER")
    for line in listing[1:]:
        fields = line.split(",")
        # What no record covers is shown as free (0:1) or unknown (0:2).
        if fields[owner] in ("special_0:1", "special_0:2"):
            continue
        group = int(fields[start]) // size
        records[group] = records.get(group, 0) + 1
        if fields[owner].startswith("inode_"):
            with_files.add(group)
    return {group: records[group] for group in sorted(with_files)}


def xfs(disk, files, pieces):
    run("mkfs.xfs", "-q", "-f", "-K", disk)
    run("mount", "-t", "xfs", disk, MNT)
    step("XFS: writing the files")
    fill(MNT, files, pieces)
    groups = xfs_groups(disk)
    if not groups:
        fail("no record of a file in XFS's reverse map")
    fd = os.open(MNT, os.O_RDONLY)

    def all_groups(flags):
        for group in groups:
            xfs_call(fd, group, flags)

    check = [timed(lambda: all_groups(0)) for _ in range(REPEAT)]
    repair, bare = [], []
    for _ in range(REPEAT):
        before = xfs_repair_time(disk)
        repair.append(timed(lambda: all_groups(REPAIR_AND_FORCE)))
        bare.append(xfs_repair_time(disk) - before)
    os.close(fd)
    run("umount", MNT)
    result = {"records": sum(groups.values()), "groups": groups, "check": check, "repair": repair, "bare": bare}
    step(f"XFS: {result['records']} records in {len(groups)} groups; repair {', '.join(f'{t:.3f}' for t in repair)} s, "
         f"of it the rebuild alone {', '.join(f'{t:.3f}' for t in bare)} s; check {', '.join(f'{t:.3f}' for t in check)} s")
    return result


def compare(results, ext4_disk, xfs_disk):
    full = bool(os.environ.get("BENCH_FULL"))
    sets = [
        ("b4", "one file of 10,000 one-block fragments", 0, 10 ** 4),
        ("a", "20,000 files of one block", SMALL_FILES, 0),
        ("b", "one file of 100,000 one-block fragments", 0, 10 ** 5),
        ("c", "both: 20,000 files and 100,000 fragments", SMALL_FILES, 10 ** 5),
    ]
    if full:
        sets.append(("b6", "one file of 1,000,000 one-block fragments", 0, 10 ** 6))
    with open("/proc/cpuinfo") as info:
        cpu = next(line.split(":")[1].strip() for line in info if line.startswith("model name"))
    note(results, machine={"kernel": os.uname().release, "cpus": os.cpu_count(), "cpu": cpu, "full": full,
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
    elif what == "stalls":
        for pieces in rest:
            note(results, stall={"fragments": int(pieces), **under_a_writer(ext4_disk, int(pieces))})
    else:
        sys.exit(__doc__)


BEGUN = time.monotonic()
if __name__ == "__main__":
    main()
