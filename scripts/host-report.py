#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Summarizes the results of `make bench-host`.

host-report.py FOLDER REPORT

FOLDER has the output of criterion, and the list of bytes per record. The tables are written to REPORT and printed.
"""

import glob
import json
import os
import platform
import sys

# The benchmarks in each group, and the maps that they are compared with.
APPENDING = ["appender", "2 appenders", "add"], ["BTreeMap", "SkipMap by 2"]
GROUPS = {
    "append/sorted": ("a scan's records, in order of blocks", *APPENDING),
    "append/inodes": ("a scan's records, in order of inodes", *APPENDING),
    "append/random": ("a scan's records, in random order", *APPENDING),
    "append/adversarial": ("a scan's records, each halfway between two much earlier ones", *APPENDING),
    "load": ("building a tree from the collected records", ["load"], ["BTreeMap"]),
    "update": ("owners removed from and added to a tree", ["tree"], ["BTreeMap"]),
}
# Two workers are compared with two workers.
PEER = {"2 appenders": "SkipMap by 2"}


def measured(folder):
    """Records per second, by group, name and number of records."""
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
    """Bytes per record, by order, name and number of records."""
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
        yield f"**{group}**: {what}. Million records per second, and the ratio to the peer."
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
    yield "**memory**: peak bytes per record during collection, as requested from the allocator, with all overhead."
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
            f"Written by `make bench-host` on {processor()}; medians of at least ten samples.",
            "",
            "`appender` is one worker of a scan, including the merge; `2 appenders` are two of them; `add` inserts records one by one,",
            "as live updates do. `load` writes nodes with checksums, `tree` modifies them. The peers, `BTreeMap` of the standard",
            "library and `SkipMap` of crossbeam (filled by two workers without a lock), have the same keys and values, but no",
            "checksums and no queries for overlaps. `2 appenders` are compared with two workers filling a `SkipMap`, everything else",
            "with `BTreeMap`. A dash means not measured. `tests/host/bench/benches/engine.rs` describes each benchmark.",
            "",
            *lines,
            ""]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
