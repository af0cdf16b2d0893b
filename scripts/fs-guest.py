#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The part of scripts/bench-fs that runs in the guest: fs-guest.py ROUNDS SCALE [ROW...]

Each row is measured on a new volume, made by the defaults of mkfs, except that ext4's tables are written at once. The
volumes lie in the guest's memory (brd), one at a time on the same device. In each round every row goes through stock ext4,
rext4, XFS and tmpfs in turn; tmpfs shows what the page cache, the names and the programs cost on any file system. SCALE
divides the sizes: 1 for figures, more for a trial. A measurement ends when the data is on the volume (sync or fsync).

Results are JSON lines in /out/results; the host adds the processor time by the numbers of the spans.
"""

import os
import re
import signal
import subprocess
import sys
import time
import zlib

from spans import Span, note, ready

HERE = os.path.dirname(os.path.abspath(__file__))
REXT4, WORK = "/tmp/rext4", "/tmp/fs-work"
DEVICE, MNT, TREE_TAR = "/dev/ram0", "/mnt", "/dev/shm/tree.tar"
KINDS = ("ext4", "rext4", "xfs", "tmpfs")
TREE = ["usr/share/man", "usr/include", "usr/lib/python3.13", "usr/share/perl", "usr/share/doc", "usr/lib/x86_64-linux-gnu/perl"]


def run(*command, statuses=(0,)):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode not in statuses:
        sys.exit(f"{' '.join(command)} ended with status {done.returncode}: {done.stdout.strip()[-500:]}")
    return done.stdout


def shell(command):
    run("bash", "-euc", command)


def work(name, *numbers):
    return run(WORK, name, MNT, *(str(int(number)) for number in numbers))


def drop_caches():
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3\n")


def extents(*paths):
    return sum(int(re.search(r": (\d+) extents? found", run("filefrag", path))[1]) for path in paths)


def mount(kind, mib=None):
    if kind == "tmpfs":
        run("mount", "-t", "tmpfs", "-o", "size=50%", "tmpfs", MNT)
        return
    if kind == "xfs":
        run("mkfs.xfs", "-q", "-f", "-m", "rmapbt=1,reflink=1", *(["-d", f"size={mib}m"] if mib else []), DEVICE)
    else:
        run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", DEVICE, *([f"{mib}M"] if mib else []))
    run("mount", "-t", kind, DEVICE, MNT)
    if kind == "rext4":
        settled()


def settled():
    for _ in range(600):
        if '"stale"' not in run(REXT4, "info", "--json", MNT):
            return
        time.sleep(0.05)
    sys.exit("the reverse map stays stale")


def unmount():
    # A program that was killed in a call of the file system ends a moment later.
    for _ in range(100):
        if subprocess.run(["umount", MNT], stderr=subprocess.DEVNULL).returncode == 0:
            return
        time.sleep(0.1)
    sys.exit("the volume stays in use")


def untar():
    run("tar", "-C", MNT, "-xf", TREE_TAR)


def filled(mib):
    shell(f"dd if=/dev/zero of={MNT}/big bs=1M count={int(mib)} conv=fsync status=none")


class Row:
    """What is done on a volume: `before` is not measured, `act` is; the extents of the files `whose` are counted. What is to be
    read from the volume, or needs one of a certain size, has no meaning on tmpfs."""

    def __init__(self, what, act, before=lambda: None, whose=(), on_tmpfs=True, mib=None):
        self.what, self.act, self.before, self.whose, self.on_tmpfs, self.mib = what, act, before, whose, on_tmpfs, mib


def rows(scale):
    many, few, mib = 50000 // scale, 5000 // scale, lambda size: max(4, size // scale)
    appended = [f"{MNT}/appended-{n}" for n in range(8)]
    whole = mib(1024)
    laid = lambda: shell(f"dd if=/dev/zero of={MNT}/file bs=1M count={mib(64)} conv=fsync status=none")
    return {
        "create": Row(f"{many:,} files of 1 KiB in 50 directories", lambda: work("create", 50, many, 1024)),
        "one-directory": Row(f"{many:,} names in one directory", lambda: work("create", 1, many, 0)),
        "small-directory": Row(f"{few:,} names in one directory", lambda: work("create", 1, few, 0)),
        "lookup": Row(f"{4 * few:,} lookups in a directory of {few:,} names, cold", lambda: work("lookup", 1, few, 4 * few),
                      lambda: work("create", 1, few, 0)),
        "unlink": Row(f"{few:,} names removed from one directory", lambda: work("remove", 1, few), lambda: work("create", 1, few, 0)),
        "untar": Row("a tree of 11,000 files unpacked", untar),
        "rm": Row("that tree removed", lambda: shell(f"rm -rf {MNT}/usr"), untar),
        "find": Row("that tree listed with sizes, cold", lambda: shell(f"find {MNT} -printf %s >/dev/null"), untar, on_tmpfs=False),
        "read-tree": Row("that tree read, cold", lambda: shell(f"tar -C {MNT} -cf - usr | cat >/dev/null"), untar, on_tmpfs=False),
        "write": Row(f"one file of {whole} MiB written", lambda: filled(whole), whose=("big",)),
        "read": Row(f"one file of {whole} MiB read, cold", lambda: run("dd", f"if={MNT}/big", "of=/dev/null", "bs=1M"),
                    lambda: filled(whole), on_tmpfs=False),
        "holes": Row(f"{many:,} writes of 4 KiB at random into a file of {mib(256)} MiB without blocks",
                     lambda: work("overwrite", mib(256) * 256, many, 0), whose=("file",)),
        "overwrite": Row(f"{many:,} writes of 4 KiB at random into a file of {mib(64)} MiB, one fsync",
                         lambda: work("overwrite", mib(64) * 256, many, 0), laid),
        "fsync": Row(f"{few:,} writes of 4 KiB at random, fsync after each", lambda: work("overwrite", mib(64) * 256, few, 1), laid),
        "log": Row(f"{few:,} appends of 512 bytes, fdatasync after each", lambda: work("append", 1, 512, 512 * few, 1)),
        "append": Row(f"8 programs append {mib(32)} MiB each, 4 KiB at a time", lambda: work("append", 8, 4096, mib(32) << 20, 0),
                      whose=appended),
        "append-sync": Row(f"8 programs append {mib(8)} MiB each, fdatasync after every 64 KiB",
                           lambda: work("append", 8, 4096, mib(8) << 20, 16), whose=appended),
        "punch": Row(f"fallocate, {many // 2:,} single blocks punched out", lambda: work("punch", many // 256 + 1, many // 2)),
        "fragmented": Row(f"one file of {mib(400)} MiB into free space in pieces of 32 KiB", lambda: filled(mib(400)),
                          lambda: work("fragment", 4000), whose=("big",), on_tmpfs=False, mib=1200),
        "mixed": Row(f"4 programs, {2 * few:,} mixed operations each", lambda: work("mixed", 4, 2 * few, 0)),
    }


def measure(name, kind, round_, row):
    mount(kind, row.mib)
    row.before()
    drop_caches()
    with Span() as span:
        row.act()
        os.sync()
    paths = [os.path.join(MNT, path) for path in row.whose]
    note(row=name, kind=kind, round=round_, span=span.number, extents=extents(*paths) if paths and kind != "tmpfs" else None)
    print(f"{name:16} {kind:6} {round_} {span.seconds:8.3f} s", flush=True)
    unmount()
    if round_ == 0 and kind in ("ext4", "rext4"):
        run("e2fsck", "-fn", DEVICE)


def scan_beside_writers(round_, scale):
    """Two programs that write, for some seconds, alone, beside a loop of checks or rebuilds, and beside one that only computes."""
    calls = lambda what: f"xfs_io -x {' '.join(f'-c {chr(39)}{what} {group}{chr(39)}' for group in range(4))} {MNT}"
    loops = {
        "rext4": {"checks": f"{REXT4} scrub {MNT}", "rebuilds": f"{REXT4} scrub --repair --force {MNT}"},
        "xfs": {"checks": calls("scrub rmapbt"), "rebuilds": calls("repair -R rmapbt")},
    }
    for kind, beside in loops.items():
        for what, command in {"alone": None, **beside, "computing": ":"}.items():
            mount(kind)
            work("create", 50, 20000 // scale, 4096)
            os.sync()
            loop = command and subprocess.Popen(["bash", "-c", f"while :; do {command} >/dev/null 2>&1; done"], start_new_session=True)
            with Span() as span:
                rate = float(work("mixed", 2, 0, 3))
            if loop:
                os.killpg(loop.pid, signal.SIGKILL)
                loop.wait()
            note(row="scan", kind=kind, beside=what, round=round_, span=span.number, rate=rate)
            print(f"scan             {kind:6} {round_} {what}: {rate:.0f} operations a second", flush=True)
            unmount()


def main():
    rounds, scale, *wanted = sys.argv[1:]
    rounds, scale = int(rounds), int(scale)
    table = rows(scale)
    unknown = set(wanted) - {*table, "scan"}
    if unknown:
        sys.exit(f"no row is named {', '.join(unknown)}; there are {', '.join(table)} and scan")
    run("cp", f"{HERE}/../build/rext4", REXT4)
    run("cp", f"{HERE}/../build/fs-work", WORK)
    run("tar", "-C", "/", "-cf", TREE_TAR, *TREE[:1 if scale > 1 else None])
    # The host gives memory when it is first touched, which takes time; so all of it is touched before.
    free = int(re.search(r"MemFree: *(\d+)", open("/proc/meminfo").read())[1]) >> 10
    run("mount", "-t", "tmpfs", "-o", "size=95%", "tmpfs", MNT)
    shell(f"dd if=/dev/zero of={MNT}/touched bs=1M count={max(free - 600, 1)} status=none")
    run("umount", MNT)
    note(machine={"kernel": os.uname().release, "cpus": os.cpu_count(), "scale": scale, "rounds": rounds,
                  "rows": {**{name: row.what for name, row in table.items()}, "scan": "a scan beside writers"}})
    ready()
    for round_ in range(rounds):
        for name, row in table.items():
            if wanted and name not in wanted:
                continue
            kinds = [kind for kind in KINDS if kind != "tmpfs" or row.on_tmpfs]
            # The file systems take turns in being the first, from row to row and from round to round.
            turn = (round_ + zlib.crc32(name.encode())) % len(kinds)
            for kind in kinds[turn:] + kinds[:turn]:
                measure(name, kind, round_, row)
        if not wanted or "scan" in wanted:
            scan_beside_writers(round_, scale)


main()
