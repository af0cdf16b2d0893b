#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Sums up what `make bench-host` measured.

host-report.py FOLDER REPORT

FOLDER is what criterion wrote, and the list of bytes a record. The tables go to REPORT and are printed.
"""

import glob
import json
import os
import platform
import sys

# In each group, who is measured and beside whom.
APPENDING = ["appender", "2 appenders", "add"], ["BTreeMap", "SkipMap by 2"]
GROUPS = {
    "append/sorted": ("a scan's records, in order of blocks", *APPENDING),
    "append/inodes": ("a scan's records, in order of inodes", *APPENDING),
    "append/random": ("a scan's records, in random order", *APPENDING),
    "append/adversarial": ("a scan's records, each halfway between two that came long before", *APPENDING),
    "load": ("a tree of what was collected", ["load"], ["BTreeMap"]),
    "update": ("owners removed from and added to a tree", ["tree"], ["BTreeMap"]),
}
# What is done by two is set beside what two do.
PEER = {"2 appenders": "SkipMap by 2"}


def measured(folder):
    """Records a second, by group, name and number of records."""
    rates = {}
    for path in glob.glob(os.path.join(folder, "**", "new", "benchmark.json"), recursive=True):
        with open(path) as file:
            what = json.load(file)
        with open(os.path.join(os.path.dirname(path), "estimates.json")) as file:
            nanoseconds = json.load(file)["median"]["point_estimate"]
        records = what["throughput"]["Elements"]
        rates[what["group_id"], what["function_id"], int(what["value_str"])] = records / nanoseconds * 1e9
    return rates


def memory(folder):
    """Bytes a record, by order, name and number of records."""
    with open(os.path.join(folder, "memory")) as file:
        return {(order, name, int(count)): each for order, name, count, each in map(str.split, file)}


def processor():
    with open("/proc/cpuinfo") as info:
        names = [line.split(":")[1].strip() for line in info if line.startswith("model name")]
    return f"{len(names)} processors ({names[0]})" if names else platform.machine()


def said(rate):
    return f"{rate / 1e6:.2f}" if rate else "–"


def tables(rates, each):
    sizes = sorted({size for _, _, size in rates})
    for group, (what, ours, peers) in GROUPS.items():
        yield f"**{group}**: {what}. Million records a second, and how that is to the peer's."
        yield ""
        yield "| records | " + " | ".join(ours + peers) + " |"
        yield "|---:" * (1 + len(ours) + len(peers)) + "|"
        for size in sizes:
            cells = []
            for name in ours:
                rate, peer = (rates.get((group, who, size)) for who in (name, PEER.get(name, peers[0])))
                cells.append(said(rate) + (f" ({rate / peer:.1f}×)" if rate and peer else ""))
            cells += [said(rates.get((group, name, size))) for name in peers]
            yield f"| {size:,} | " + " | ".join(cells) + " |"
        yield ""
    yield "**memory**: bytes a record at most while it is collected, all included, as asked of the allocator."
    yield ""
    names = list(dict.fromkeys((order, name) for order, name, _ in each))
    yield "| records | " + " | ".join(f"{order}: {name}" for order, name in names) + " |"
    yield "|---:" * (1 + len(names)) + "|"
    for size in sizes:
        yield f"| {size:,} | " + " | ".join(each[order, name, size] for order, name in names) + " |"


def main():
    folder, report = sys.argv[1:]
    lines = list(tables(measured(folder), memory(folder)))
    with open(report, "w") as file:
        file.write("\n".join([
            "# The pure layers on the host",
            "",
            f"Written by `make bench-host` on {processor()}; the median of ten samples at least.",
            "",
            "`appender` is a worker of a scan, to the end of the merge, `2 appenders` are two; `add` takes records one at a time,",
            "as live updates come. `load` writes nodes with checksums, `tree` changes them. The maps (`BTreeMap` of the standard",
            "library, `SkipMap` of crossbeam, which two workers fill without a lock) hold the same key and contents; they have no",
            "checksums, and answer no question about overlaps. `2 appenders` stand beside two workers with a `SkipMap`, all others",
            "beside `BTreeMap`. What was not asked for is a dash. How each is made stands at the head of `tests/host/bench/benches/engine.rs`.",
            "",
            *lines,
            ""]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
