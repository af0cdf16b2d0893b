#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The results of scripts/bench-fs.

fs-report.py keep FOLDER OUT VERSION    joins results and spans in OUT, and keeps those of each row in FOLDER/ROW.json
fs-report.py tables FOLDER [PAGE]       prints the tables; writes them to PAGE, if one is named, once every row was measured in three rounds
"""

import collections
import glob
import json
import math
import os
import re
import sys
from statistics import median

KINDS = ("ext4", "rext4", "xfs", "tmpfs")
HEAD = ["row", "ext4, ms", "rext4, ms", "of it in rext4.ko", "XFS, ms", "tmpfs, ms", "**speed, of ext4's**", "speed, of XFS's", "spread",
        "wall, s: ext4", "rext4", "XFS", "extents: ext4", "rext4", "XFS"]
ENOUGH = 0.95
NOTES = """\
## What is compared

- **ms** is processor time of the kernel's own code, the median of {rounds} rounds in which the file systems take turns. The
  process of User Mode Linux is sampled on the host; its costs as a guest (system calls of the host, switches between
  processes, access to the programs' memory) are left out.
- **speed** is the other's processor time divided by rext4's: below 1 rext4 is slower. Rows are sorted by it.
- **tmpfs** has no volume: its time is that of the page cache, the name cache and memory management.
- **spread** is the largest deviation of a round from the median, in percent, among ext4, rext4 and XFS.
- **wall** is the time that passed, including the programs and the costs of User Mode Linux, where a system call takes many
  times as long as on hardware. It shows where a file system waits, and is no measure of speed.
- **extents** is the total number of extents of the files written, according to `filefrag`.

The volumes are in memory, and one processor does all the work, so neither waiting for disks nor parallelism is measured. XFS has rmapbt and reflink. crc32c is computed by the processor's instruction for each file system.
rext4 is compiled with opt-level 2, like the kernel.
"""


def lines_of(path):
    with open(path) as file:
        return [json.loads(line) for line in file]


def keep(folder, out, version):
    spans = {span["number"]: span for span in lines_of(f"{out}/spans")}
    machine, found = None, collections.defaultdict(list)
    for line in lines_of(f"{out}/results"):
        if "machine" in line:
            machine = {**line["machine"], "version": version}
        else:
            found[line["row"]].append({**line, **spans[line["span"]]})
    for row, measured in found.items():
        with open(f"{folder}/{row}.json", "w") as file:
            for line in [{"machine": machine}, *measured]:
                file.write(json.dumps(line) + "\n")


def table(head, rows):
    yield "| " + " | ".join(head) + " |"
    yield "|" + "|".join("---" if not column else "---:" for column in range(len(head))) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def shown(value, digits=0):
    return "–" if value is None else f"{value:,.{digits}f}"


def readable(symbol):
    """Returns the path in a mangled Rust name, without the crate."""
    if not symbol.startswith("_R"):
        return symbol
    crates, at = [], 2
    while at < len(symbol):
        # A disambiguator or a reference back; a crate; a name behind its length.
        skipped = re.match(r"[sB][0-9a-zA-Z]*_", symbol[at:])
        if symbol[at] == "C":
            crates.append([])
            at += 1
        elif skipped:
            at += skipped.end()
        elif symbol[at].isdigit():
            digits = re.match(r"\d+", symbol[at:])[0]
            begin = at + len(digits) + (symbol[at + len(digits):][:1] == "_")
            at = begin + int(digits)
            if not crates:
                crates.append([])
            crates[-1].append(symbol[begin:at])
        else:
            at += 1
    # The last crate is often only the one that the function was made for.
    paths = [path for path in crates if len(path) > 1]
    return "::".join([*paths[0][1:], *paths[-1][-1:]][:len(paths[0]) - 1 + (len(paths) > 1)]) if paths else symbol


class Row:
    def __init__(self, name, what, found):
        self.name, self.what = name, what
        self.found = {kind: [one for one in found if one["kind"] == kind] for kind in KINDS}
        self.ms = {kind: self.middle(kind, "kernel_ms") for kind in KINDS}
        self.speed = {kind: self.ms[kind] / self.ms["rext4"] for kind in ("ext4", "xfs")}

    def middle(self, kind, key):
        values = [one[key] for one in self.found[kind] if one[key] is not None]
        return median(values) if values else None

    def spread(self):
        return max(abs(one["kernel_ms"] - self.ms[kind]) / self.ms[kind] for kind in KINDS[:3] for one in self.found[kind]) * 100

    def cells(self):
        return [f"{self.name}: {self.what}", shown(self.ms["ext4"]), shown(self.ms["rext4"]), shown(self.middle("rext4", "module_ms")),
                shown(self.ms["xfs"]), shown(self.ms["tmpfs"]), f"**{shown(self.speed['ext4'], 2)}**", shown(self.speed["xfs"], 2),
                f"{self.spread():.0f} %", *(shown(self.middle(kind, "seconds"), 2) for kind in KINDS[:3]),
                *(shown(self.middle(kind, "extents")) for kind in KINDS[:3])]

    def hottest(self, kind):
        total = collections.Counter()
        for one in self.found[kind]:
            for name, cost in one["hottest"]:
                total[name] += cost / len(self.found[kind])
        return ", ".join(f"`{readable(name)}` {cost:.0f}" for name, cost in total.most_common(10))


def scans(found):
    whats = list(dict.fromkeys(one["beside"] for one in found))

    def rate(kind, what):
        return median(one["rate"] for one in found if (one["kind"], one["beside"]) == (kind, what))

    yield ("Operations per second of two programs that write, on the one processor, alone, beside a loop of checks or of rebuilds of "
           "the reverse map, and beside a program that only computes; in parentheses relative to alone:")
    yield ""
    yield from table(["", *whats], [
        [{"xfs": "XFS"}.get(kind, kind), *(f"{rate(kind, what):,.0f} ({rate(kind, what) / rate(kind, 'alone'):.2f})" for what in whats)]
        for kind in dict.fromkeys(one["kind"] for one in found)])


def tables(folder, page=None):
    machines, rows, beside = [], [], []
    for path in glob.glob(f"{folder}/*.json"):
        machine, *found = lines_of(path)
        machine, name = machine["machine"], os.path.basename(path)[:-len(".json")]
        machines.append(machine)
        if name == "scan":
            beside = found
        else:
            rows.append(Row(name, machine["rows"][name], found))
    if not machines:
        sys.exit("no results are kept")
    rows.sort(key=lambda row: row.speed["ext4"])
    lines = []
    if rows:
        mean = math.exp(sum(math.log(row.speed["ext4"]) for row in rows) / len(rows))
        lines += [f"Speed relative to stock ext4: geometric mean **{mean:.2f}** of {len(rows)} rows; the lowest is {rows[0].name} "
                  f"with {rows[0].speed['ext4']:.2f}; {sum(row.speed['ext4'] < ENOUGH for row in rows)} rows are below {ENOUGH}.", "",
                  *table(HEAD, [row.cells() for row in rows])]
    if beside:
        lines += ["", *scans(beside)]
    losing = [row for row in rows if row.speed["ext4"] < ENOUGH]
    if losing:
        lines += ["", f"The ten functions that take most of each row below {ENOUGH}, in ms:", ""]
        lines += table(["row", "rext4", "ext4"], [[row.name, row.hottest("rext4"), row.hottest("ext4")] for row in losing])
    print("\n".join(["", *lines, ""]))
    missing = set(machines[0]["rows"]) - {row.name for row in rows} - {"scan" if beside else None}
    rounds = min(machine["rounds"] for machine in machines)
    if page and missing:
        print(f"{page} is not written: not measured yet: {', '.join(sorted(missing))}")
    elif page and rounds < 3:
        print(f"{page} is not written: it takes three rounds, and some row was measured in {rounds}")
    elif page:
        versions = sorted({machine["version"] for machine in machines})
        with open(page, "w") as file:
            file.write("\n".join(["# Everyday work, beside ext4 and XFS", "",
                                  f"Written by `make bench-fs` at {', '.join(versions)}. Kernel {machines[0]['kernel']} (User Mode "
                                  f"Linux), {machines[0]['cpus']} processor.", "", *lines, "", NOTES.format(rounds=rounds)]))


what, *arguments = sys.argv[1:]
{"keep": keep, "tables": tables}[what](*arguments)
