#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Lists the owners of all blocks of an ext4 volume, using only the output of e2fsprogs.

owners.py IMAGE [COUNTS] > RECORDS

Prints one line per record: start, length, kind, inode, offset. Starts and lengths are in file system blocks from the
beginning of the volume, offsets in blocks of the file. Kinds are `data`, `unwritten`, `mapping` (blocks of an extent tree,
indirect blocks) and `xattr`. As in the reverse map, the records are as long as possible, but none extends from one region (a
flex group, or 16 groups) into the next; so the map must equal this list line by line.

The list of reference counts is written to COUNTS: for each run of data blocks that are referenced more than once, start,
length, `shared`, the number of references, and 0; also cut at region boundaries.

`debugfs stat` of every used inode provides the mappings, `dumpe2fs` the layout and the free blocks. To check itself, the
program compares the union of all owners and the fixed metadata with the used blocks according to the block bitmaps, and fails
if they differ: otherwise no used block is missing from the list, and none is free.

The volume must not be mounted for writing, and its journal must be empty.
"""

import os
import re
import subprocess
import sys


def run(*command, text=None):
    # Uses a file: debugfs flushes a pipe after each command.
    with open(os.memfd_create(command[0]), "w+", errors="replace") as answer:
        subprocess.run(command, input=text, stdout=answer, stderr=subprocess.DEVNULL, text=True, check=True)
        answer.seek(0)
        return answer.read()


def spans(text):
    """Returns the number ranges of `a-b, c, ...`."""
    for low, high in re.findall(r"(\d+)(?:-(\d+))?", text):
        yield int(low), int(high or low)


class Layout:
    """The volume according to dumpe2fs: its geometry, fixed metadata, and free blocks and inodes."""

    def __init__(self, image):
        fixed, free, free_inodes = [], [], set()
        groups = 0
        fields = {}
        for line in run("dumpe2fs", image).splitlines():
            name, colon, value = line.partition(":")
            if re.match(r"Group \d+:", line):
                groups += 1
            elif not groups and colon:
                fields[name] = value.strip()
            elif name.strip() == "Free blocks":
                free.extend(spans(value))
            elif name.strip() == "Free inodes":
                for low, high in spans(value):
                    free_inodes.update(range(low, high + 1))
            else:
                # Bitmaps, inode tables, superblocks, descriptors and blocks reserved for more of
                # them.
                for place in re.findall(r"(?:superblock|descriptors|blocks|bitmap|table) at (\d+(?:-\d+)?)", line):
                    fixed.extend(spans(place))
        self.block_size = int(fields["Block size"])
        self.first = int(fields["First block"])
        self.blocks = int(fields["Block count"])
        # One byte per block: fixed metadata, and free.
        self.fixed = self.paint(fixed)
        self.free = self.paint(free)
        self.inodes = [n for n in range(1, int(fields["Inode count"]) + 1) if n not in free_inodes]
        self.region = int(fields["Blocks per group"]) * int(fields.get("Flex block group size", 16))

    def paint(self, ranges):
        """Returns a byte for each block, 1 if a range covers it."""
        map_ = bytearray(self.blocks)
        for low, high in ranges:
            map_[low:high + 1] = b"\1" * (high + 1 - low)
        return map_


def pieces(layout, image):
    """Yields each mapping according to debugfs: start, length, kind, inode, offset."""
    text = run("debugfs", "-f", "-", image, text="".join(f"stat <{n}>\n" for n in layout.inodes))
    inode = None
    mappings = False
    for line in text.splitlines():
        if line.startswith("Inode: "):
            inode, mappings = int(line.split()[1]), False
        elif line.startswith(("EXTENTS:", "BLOCKS:")):
            mappings = True
        elif line.startswith("TOTAL:"):
            mappings = False
        elif mappings:
            for what, low, high in re.findall(r"\(([^)]+)\):(\d+)(?:-(\d+))?", line):
                start, end = int(low), int(high or low)
                if inode == 7 and layout.fixed[start]:
                    continue  # its indirect blocks are among the reserved descriptor blocks, which are fixed metadata
                if what.startswith("ETB") or what.endswith("IND"):
                    yield start, end - start + 1, "mapping", inode, 0
                elif inode == 7:
                    continue  # as are the blocks that they refer to
                else:
                    kind = "unwritten" if "[u]" in what else "data"
                    yield start, end - start + 1, kind, inode, int(re.match(r"\d+", what)[0])
        elif "File ACL: " in line:
            xattr = int(line.partition("File ACL: ")[2].split()[0])
            if xattr:
                yield xattr, 1, "xattr", inode, 0


def canonical(layout, found):
    """Returns the records cut at region boundaries, sorted, and merged as far as possible."""
    order = {"data": 0, "unwritten": 1, "mapping": 2, "xattr": 3}
    cut = []
    for start, length, kind, inode, offset in found:
        while length:
            end = ((start - layout.first) // layout.region + 1) * layout.region + layout.first
            part = min(length, end - start)
            cut.append((start, part, kind, inode, offset))
            start, length = start + part, length - part
            if kind in ("data", "unwritten"):
                offset += part
    cut.sort(key=lambda r: (r[0], r[3], order[r[2]], r[4]))
    merged = []
    for start, length, kind, inode, offset in cut:
        if merged:
            last = merged[-1]
            grown = last[4] + last[1] if kind in ("data", "unwritten") else 0
            if (last[0] + last[1], last[2], last[3], grown) == (start, kind, inode, offset) \
                    and (start - layout.first) % layout.region:
                merged[-1] = (last[0], last[1] + length, kind, inode, last[4])
                continue
        merged.append((start, length, kind, inode, offset))
    return merged


def counts(layout, records):
    """Yields the longest runs that more than one data record covers: start, length, owners."""
    change = {}
    for start, length, kind, *_ in records:
        if kind in ("data", "unwritten"):
            change[start] = change.get(start, 0) + 1
            change[start + length] = change.get(start + length, 0) - 1
    found, owners, begin = [], 0, 0
    for block in sorted(change):
        if owners > 1:
            last = found[-1] if found else None
            if last and (last[0] + last[1], last[2]) == (begin, owners) and (begin - layout.first) % layout.region:
                found[-1] = (last[0], block - last[0], owners)
            else:
                found.append((begin, block - begin, owners))
        owners, begin = owners + change[block], block
    return found


def check_against_bitmaps(layout, records):
    owned = layout.paint((start, start + length - 1) for start, length, *_ in records)
    used = int.from_bytes(owned, "little") | int.from_bytes(layout.fixed, "little")
    # A block is either used or free, so the exclusive or must be 1 everywhere.
    block = (used ^ int.from_bytes(layout.free, "little")).to_bytes(layout.blocks, "little").find(0, layout.first)
    if block >= 0:
        print(f"owners: block {block} is {'owned but free' if owned[block] else 'used but not owned'}", file=sys.stderr)
    return block < 0


def main():
    image = sys.argv[1]
    layout = Layout(image)
    records = canonical(layout, pieces(layout, image))
    for record in records:
        print(*record)
    if len(sys.argv) > 2:
        with open(sys.argv[2], "w") as out:
            for start, length, owners in counts(layout, records):
                print(start, length, "shared", owners, 0, file=out)
    return 0 if check_against_bitmaps(layout, records) else 1


if __name__ == "__main__":
    sys.exit(main())
