#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Summarizes the results of scripts/peers.

peers-report.py RESULTS [FOLDER]

Prints the tables and the lines for programs; with FOLDER, writes the tables to FOLDER/bench.md, and two plots to
FOLDER/bench-*.svg.
Repeated measurements are represented by their median, stalls of writers by the longest.
"""

import json
import math
import sys
from statistics import median

COLOURS = ["#0b6e99", "#c4572b", "#5b8c2a", "#7a4fa3"]


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join("---" if not i else "---:" for i in range(len(head))) + "|"]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]


def number(value):
    return f"{value:,.0f}"


def seconds(value):
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def times(value):
    return f"{value:.1f}×"


class Set:
    """What was measured of one set of files."""

    def __init__(self, found):
        self.name, self.what = found["name"], found["what"]
        repair, xfs = found["rext4"]["repair"], found["xfs"]
        self.regions, self.groups = found["rext4"]["regions"], len(xfs["groups"])
        self.records = repair[0]["records"]
        self.inodes = repair[0]["inodes"]
        self.repair = median(one["seconds"] for one in repair)
        self.check = median(one["seconds"] for one in found["rext4"]["check"])
        self.parts = {part: median(one[part + "_ns"] for one in repair) / 1e9 for part in ("scan", "check", "load", "reap")}
        self.memory = max(one["memory"] for one in repair)
        self.rate = self.records / self.repair
        self.xfs_records = xfs["records"]
        self.xfs_repair, self.xfs_check, self.xfs_bare = (median(xfs[what]) for what in ("repair", "check", "bare"))
        self.xfs_rate, self.xfs_bare_rate = (self.xfs_records / took for took in (self.xfs_repair, self.xfs_bare))
        self.e2fsck = median(found["e2fsck"])
        self.ratio, self.ratio_bare = self.rate / self.xfs_rate, self.rate / self.xfs_bare_rate
        self.check_ratio = (self.records / self.check) / (self.xfs_records / self.xfs_check)

    def line(self):
        return (f"bench: set={self.name} rext4_records={self.records} rext4_rps={self.rate:.0f} "
                f"xfs_records={self.xfs_records} xfs_rps={self.xfs_rate:.0f} ratio={self.ratio:.1f} "
                f"xfs_rebuild_only_rps={self.xfs_bare_rate:.0f} ratio_rebuild_only={self.ratio_bare:.1f} "
                f"rext4_check_seconds={self.check:.3f} xfs_check_seconds={self.xfs_check:.3f} "
                f"ratio_check={self.check_ratio:.1f} rext4_seconds={self.repair:.3f} e2fsck_seconds={self.e2fsck:.3f} "
                f"ratio_e2fsck={self.e2fsck / self.repair:.1f} bytes_per_record={self.memory / self.records:.1f}")


def sharing(found):
    """What was measured of sharing: the time of each, in seconds, by rext4 and by XFS."""
    sizes, both = found["sizes"], (found["rext4"], found["xfs"])
    trees = [(f"{what} of the {name}", f"{what}_{tree}", [one["trees"][what][tree] for one in both])
             for what in ("check", "repair") for tree, name in (("rmap", "reverse map"), ("refcount", "reference counts"))]
    return [
        (f"first clone of a file of {number(sizes['extents'])} extents", "first_clone", [one["clone"][0] for one in both]),
        ("later clone of it", "later_clone", [median(one["clone"][1:]) for one in both]),
        (f"{number(sizes['writes'])} writes of 4 KiB at random places of a clone, fsync after each", "overwrite",
         [one["overwrite"] for one in both]),
        (f"{sizes['clones']} clones of a file of {number(sizes['some'])} extents", "clones", [one["clones"] for one in both]),
        *trees,
        ("removal of the clones until `unlink` returns", "remove", [one["remove"] for one in both]),
        ("removal of the clones until everything is written and unmounted", "remove_stored", [one["remove"] + one["unmount"] for one in both]),
    ]


def plot(path, title, across, up, series):
    """A plot with a logarithmic scale both ways; a series is a name and its points."""
    width, height, left, right, top, bottom = 720, 440, 70, 190, 40, 56
    points = [point for _, some in series for point in some]
    low = [math.floor(math.log10(min(point[axis] for point in points)) + 1e-9) for axis in (0, 1)]
    high = [max(low[axis] + 1, math.ceil(math.log10(max(point[axis] for point in points)) - 1e-9)) for axis in (0, 1)]
    span = (width - left - right, height - top - bottom)

    def at(point):
        part = [(math.log10(point[axis]) - low[axis]) / (high[axis] - low[axis]) for axis in (0, 1)]
        return left + part[0] * span[0], height - bottom - part[1] * span[1]

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">',
           f'<rect width="{width}" height="{height}" fill="#fff"/>',
           f'<text x="{left}" y="24" font-size="16">{title}</text>']
    for axis in (0, 1):
        for power in range(low[axis], high[axis] + 1):
            value = 10.0 ** power
            label = f"{value:,.0f}" if power >= 0 else f"{value:g}"
            if axis == 0:
                x, _ = at((value, 10.0 ** low[1]))
                out.append(f'<path d="M{x:.1f} {top}V{height - bottom}" stroke="#ddd"/>')
                out.append(f'<text x="{x:.1f}" y="{height - bottom + 20}" text-anchor="middle">{label}</text>')
            else:
                _, y = at((10.0 ** low[0], value))
                out.append(f'<path d="M{left} {y:.1f}H{width - right}" stroke="#ddd"/>')
                out.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    middle = left + span[0] / 2, top + span[1] / 2
    out.append(f'<text x="{middle[0]:.1f}" y="{height - 14}" text-anchor="middle">{across}</text>')
    out.append(f'<text transform="translate(18 {middle[1]:.1f}) rotate(-90)" text-anchor="middle">{up}</text>')
    for index, (name, some) in enumerate(series):
        colour, some = COLOURS[index % len(COLOURS)], sorted(some)
        places = [at(point) for point in some]
        out.append(f'<path d="M{" L".join(f"{x:.1f} {y:.1f}" for x, y in places)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in places]
        y = top + 12 + 22 * index
        out.append(f'<circle cx="{width - right + 18}" cy="{y - 4}" r="4" fill="{colour}"/>')
        out.append(f'<text x="{width - right + 30}" y="{y}">{name}</text>')
    out.append("</svg>")
    with open(path, "w") as file:
        file.write("\n".join(out) + "\n")


def of_each_region(found, what):
    """Milliseconds that a region without files adds."""
    return (median(found[what]["all"]) - median(found[what]["one"])) / (found["regions"] - 1) * 1000


class Native:
    """The same comparison at the speed of this machine: the sets, and the processor time of the kernel's own code in each span."""

    def __init__(self):
        self.sets, self.spans = [], {}

    def add(self, found):
        if "set" in found:
            self.sets.append(found["set"])
        elif "number" in found:
            self.spans[found["number"]] = found

    def kernel_ms(self, numbers):
        return median(self.spans[number]["kernel_ms"] for number in numbers)

    def table(self, emulated):
        """With the ratios of the emulated machine beside it, which must agree."""
        ratios = {one.name: one for one in emulated}
        rows = []
        for found in sorted(self.sets, key=lambda one: one["name"]):
            ours, xfs = found["rext4"], found["xfs"]
            kernel = self.kernel_ms(ours["spans"]["repair"])
            theirs = [self.kernel_ms(xfs["spans"][which]) for which in ("repair", "every_group")]
            wall = median(one["seconds"] for one in ours["repair"])
            records = ours["repair"][0]["records"] / xfs["records"]
            rows.append([found["name"], f"{kernel:.1f}", *(f"{one:.1f}" for one in theirs),
                         f"**{times(theirs[0] / kernel * records)}**" if kernel else "–",
                         times(ratios[found["name"]].ratio) if found["name"] in ratios else "–",
                         seconds(wall), *(seconds(median(xfs[which])) for which in ("repair", "every_group")),
                         seconds(median(found["e2fsck"])), times(median(found["e2fsck"]) / wall),
                         times(ratios[found["name"]].e2fsck / ratios[found["name"]].repair) if found["name"] in ratios else "–"])
        return table(["files", "rext4: kernel, ms", "XFS, groups with files: kernel, ms", "XFS, all groups: kernel, ms",
                      "**rext4 to XFS, by record**", "the same, emulated, by wall time", "rext4: wall, s", "XFS: wall, s",
                      "XFS, all groups: wall, s", "e2fsck -fn: wall, s", "rext4 to e2fsck", "the same, emulated"], rows)


def compared(sets):
    yield from table(
        ["files", "rext4: records", "s", "records/s", "XFS: records", "s", "records/s", "**rext4 relative to XFS**", "relative to XFS's rebuild alone",
         "e2fsck -fn, s", "**rext4 relative to e2fsck**", "bytes of memory per record"],
        [[f"{s.name}: {s.what}", number(s.records), seconds(s.repair), number(s.rate), number(s.xfs_records),
          seconds(s.xfs_repair), number(s.xfs_rate), f"**{times(s.ratio)}**", times(s.ratio_bare), seconds(s.e2fsck),
          f"**{times(s.e2fsck / s.repair)}**", f"{s.memory / s.records:.1f}"] for s in sets])
    yield ""
    yield "Time per phase of rext4, and checks without a repair, in seconds:"
    yield ""
    yield from table(
        ["files", "regions", "inodes", "scan", "merge", "rebuild", "free", "whole", "check only", "XFS: check only",
         "check, records/s relative to XFS"],
        [[s.name, s.regions, number(s.inodes), *(seconds(s.parts[part]) for part in ("scan", "check", "load", "reap")),
          seconds(s.repair), seconds(s.check), seconds(s.xfs_check), times(s.check_ratio)] for s in sets])


def report(machine, sets, stalls, shared, empty, native):
    if sets:
        yield from compared(sets)
    if native.sets:
        yield ""
        yield ("The rebuild once more at the speed of this machine (User Mode Linux, one processor, volumes in memory). *Kernel* is "
               "processor time of the kernel's own code, without the costs of User Mode Linux:")
        yield ""
        yield from native.table(sets)
    if stalls:
        yield ""
        yield (f"Longest stall during {machine['repeat']} rebuilds next to a program that creates, appends to, truncates and removes "
               "files, in milliseconds:")
        yield ""
        yield from table(
            ["records", "rebuild, s", "live updates", "region locked for the install, as measured by the kernel",
             "longest operation, as measured by the program", "operations", "longest operation without a rebuild", "longest operation next to busy loops"],
            [[number(s["records"]), seconds(median(s["seconds"])), number(sum(s["live_updates"])),
              f"{max(s['kernel_ms']):.2f}", f"{max(s['writer_ms']):.1f}", number(sum(s["operations"])),
              f"{s['alone_ms']:.1f}", f"{s['busy_ms']:.1f}"] for s in stalls])
    for found in empty:
        yield ""
        yield (f"An empty volume of {found['regions']} regions: rebuilding all of them takes {seconds(median(found['repair']['all']))} s, "
               f"rebuilding one {seconds(median(found['repair']['one']))} s; checking them takes {seconds(median(found['check']['all']))} and "
               f"{seconds(median(found['check']['one']))} s. So each empty region adds {of_each_region(found, 'repair'):.2f} ms to a rebuild "
               f"and {of_each_region(found, 'check'):.2f} ms to a check.")
    for found in shared:
        yield ""
        yield "Sharing blocks, in seconds:"
        yield ""
        yield from table(["", "rext4", "XFS", "**rext4 relative to XFS**"], [
            [what, *(seconds(took) for took in both), f"**{times(both[1] / both[0])}**"] for what, _, both in sharing(found)])
        yield ""
        pieces = [number(found[name]["pieces"]) for name in ("rext4", "xfs")]
        yield (f"The overwritten clone of {number(found['sizes']['blocks'])} blocks ends up with {pieces[0]} extents on rext4 and "
               f"{pieces[1]} on XFS.")


NOTES = """\
## What is compared

Equal sets of files, on volumes of the same size created with the defaults of `mkfs.ext4` and `mkfs.xfs`, in one boot of
Debian's unmodified kernel, with warm caches. Values are medians of {repeat} runs.

- **rext4**: `rext4 scrub --repair --force`, the whole call: it scans all inodes, merges the records, writes and installs a
  new tree for each region, and frees the old ones. With `--force` there is no comparison before the rebuild. The check is
  `rext4 scrub`: the same scan, then each tree is checked and compared with the records.
- **XFS**: `XFS_IOC_SCRUB_METADATA` for rmapbt, as issued by `xfs_io -x -c 'repair -R rmapbt N'`, summed over the allocation
  groups in which files have records. It includes a check before and after the rebuild. The duration of the rebuild alone,
  according to XFS (`scrub/stats` in debugfs), is given as well; comparing rext4's whole call with it favours XFS most. The
  check is `scrub rmapbt N`, which compares the map with the other trees of the group and reads no inode; rext4's check reads
  all inodes and their mappings, and spends most of its time on that. Without `-R`, XFS rebuilds nothing that its check finds
  correct.
- **e2fsck -fn**: on the same ext4 volume, unmounted. It writes no reverse map, but checks more: names, link counts,
  bitmaps. The ratio compares times for the volume, not work.
- **Sharing**: the same requests to each file system on an empty volume, once, except for the later clones. A clone is
  `FICLONE` and an fsync of the clone. rext4 updates both trees with each call, as XFS does. The trees are checked, and
  rebuilt by force, while all clones exist: `rext4 scrub` next to XFS's calls for rmapbt and refcountbt. XFS frees removed
  files in the background, so compare the time until everything is written and unmounted.

XFS's map also has records for its own metadata (inode chunks, its trees, its log); these are counted.

## How far to trust it

The machine is emulated (QEMU's TCG, {cpus} processors, disks that are files in the host's cache and are never flushed), so
no time here is that of real hardware. Instructions are many times slower, disks cost next to nothing, and other load on the
host affects every number. Only ratios within one run are meaningful, and they favour the file system that executes
fewer instructions over the one that waits less for disks. The program's longest operation includes scheduling by the host;
this is why it is also given without a rebuild and next to busy loops.
{load}"""


def main():
    results, *folder = sys.argv[1:]
    machine, sets, stalls, shared, empty, load, versions = {}, [], [], [], [], [], set()
    native = Native()
    with open(results) as file:
        for line in file:
            for kind, what in json.loads(line).items():
                if kind == "native":
                    native.add(what)
                elif kind == "machine":
                    machine = what
                elif kind == "set":
                    sets.append(Set(what))
                elif kind == "stall":
                    stalls.append(what)
                elif kind == "share":
                    shared.append(what)
                elif kind == "empty":
                    empty.append(what)
                elif kind == "load":
                    load.append(f"{what['before']} to {what['after']} ({what['part']})")
                    versions.add(what["version"])
                    processors = what["processors"]
    sets.sort(key=lambda s: (s.name[0], s.records))
    stalls.sort(key=lambda s: s["records"])
    lines = list(report(machine, sets, stalls, shared, empty, native))
    print("\n".join(["", *lines, ""]))
    if folder:
        load = f"\nThe host's load average over one minute, on {processors} processors: {', '.join(load)}.\n"
        write(folder[0], machine, ", ".join(sorted(versions)), lines, load, sets, stalls)
    summary(sets, stalls, shared, empty)


def write(folder, machine, version, lines, load, sets, stalls):
    """The page and the plots."""
    command = (f"BENCH_FULL={machine['full']} " if machine["full"] else "") + "make bench"
    with open(f"{folder}/bench.md", "w") as file:
        file.write("\n".join([
            "# rext4 compared with XFS and e2fsck",
            "",
            f"Written by `{command}` at {version}. Kernel {machine['kernel']}, {machine['cpus']} processors ({machine['cpu']}).",
            "",
            *lines,
            "",
            "![seconds by records](bench-records.svg)",
            "",
            "![stall by records](bench-stall.svg)",
            "",
            NOTES.format(**machine, load=load)]))
    ladder = [s for s in sets if s.name.startswith("b")]
    plot(f"{folder}/bench-records.svg", "One file of single-block fragments: time for the whole map", "records", "seconds", [
        ("rext4: repair", [(s.records, s.repair) for s in ladder]),
        ("XFS: repair", [(s.xfs_records, s.xfs_repair) for s in ladder]),
        ("XFS: rebuild alone", [(s.xfs_records, s.xfs_bare) for s in ladder]),
        ("e2fsck -fn", [(s.records, s.e2fsck) for s in ladder]),
    ])
    if stalls:
        plot(f"{folder}/bench-stall.svg", "Longest stall of a writer during a rebuild", "records", "milliseconds", [
            ("kernel: install", [(s["records"], max(s["kernel_ms"])) for s in stalls]),
            ("program", [(s["records"], max(s["writer_ms"])) for s in stalls]),
            ("no rebuild", [(s["records"], s["alone_ms"]) for s in stalls]),
            ("next to busy loops", [(s["records"], s["busy_ms"]) for s in stalls]),
        ])


def summary(sets, stalls, shared, empty):
    """The lines for programs."""
    for s in sets:
        print(s.line())
    for s in stalls:
        print(f"bench: stall records={s['records']} kernel_ms={max(s['kernel_ms']):.2f} writer_ms={max(s['writer_ms']):.1f} "
              f"alone_ms={s['alone_ms']:.1f} busy_ms={s['busy_ms']:.1f}")
    for found in empty:
        print(f"bench: empty regions={found['regions']} repair_ms_each={of_each_region(found, 'repair'):.2f} "
              f"check_ms_each={of_each_region(found, 'check'):.2f}")
    for found in shared:
        parts = " ".join(f"{name}={both[0]:.3f} xfs_{name}={both[1]:.3f} ratio_{name}={both[1] / both[0]:.2f}"
                         for _, name, both in sharing(found))
        print(f"bench: share {parts} pieces={found['rext4']['pieces']} xfs_pieces={found['xfs']['pieces']}")


if __name__ == "__main__":
    main()
