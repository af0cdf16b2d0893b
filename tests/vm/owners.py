#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Lists the owners of all blocks of an ext4 volume, using only the output of e2fsprogs.

owners.py IMAGE [COUNTS [FACTS [RMAP]]] > RECORDS

Prints one line per record: start, length, kind, inode, offset. Starts and lengths are in file system blocks from the
beginning of the volume, offsets in blocks of the file. Kinds are `data`, `unwritten`, `mapping` (blocks of an extent tree,
indirect blocks) and `xattr`. As in the reverse map, the records are as long as possible, but none extends from one region (a
flex group, or 16 groups) into the next; so the map must equal this list line by line.

The list of reference counts is written to COUNTS: for each run of data blocks that are referenced more than once, start,
length, `shared`, the number of references, and 0; also cut at region boundaries.

FACTS gets a line `shared_blocks` if the volume has that feature, and a line `refcount` if it has a reference count file.

After a crash, blocks may be in use that were staged for copy-on-write and belong to no inode. Those with such a record in RMAP,
a file written by `rext4 dump`, count as owned.

The library of e2fsprogs reads every used inode and its mappings, `dumpe2fs` prints the layout and the free blocks. To check
itself, the program compares the union of all owners and the fixed metadata with the used blocks according to the block bitmaps,
and fails if they differ: otherwise no used block is missing from the list, and none is free.

The volume must not be mounted for writing, and its journal must be empty.
"""

import ctypes
import re
import subprocess
import sys


def run(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace", check=True).stdout


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
                for place in re.findall(r"(?:superblock|descriptors?|blocks|bitmap|table) at (\d+(?:-\d+)?)", line):
                    fixed.extend(spans(place))
        self.block_size = int(fields["Block size"])
        self.first = int(fields["First block"])
        self.blocks = int(fields["Block count"])
        # One byte per block: fixed metadata, and free.
        self.fixed = self.paint(fixed)
        self.free = self.paint(free)
        self.inodes = [n for n in range(1, int(fields["Inode count"]) + 1) if n not in free_inodes]
        self.features = fields["Filesystem features"].split()
        self.region = int(fields["Blocks per group"]) * int(fields.get("Flex block group size", 16))

    def paint(self, ranges):
        """Returns a byte for each block, 1 if a range covers it."""
        map_ = bytearray(self.blocks)
        for low, high in ranges:
            map_[low:high + 1] = b"\1" * (high + 1 - low)
        return map_


class Volume:
    """The inodes and their mappings, read with libext2fs.

    `debugfs stat` reports the same, but makes about 25 system calls per inode, which used to take most of the run time of many
    scenarios under User Mode Linux.
    """

    # From ext2fs.h and ext2_err.h.
    OPEN_64BITS, SOFT_FEATURES, READ_ONLY = 0x20000, 0x8000, 8
    ROOT, NEXT = 1, 9
    LEAF, UNWRITTEN, SECOND_VISIT = 1, 2, 4
    NO_NEXT = 2133571328 + 124
    EXTENTS = 0x80000

    class Extent(ctypes.Structure):
        _fields_ = [("physical", ctypes.c_uint64), ("logical", ctypes.c_uint64), ("length", ctypes.c_uint32), ("flags", ctypes.c_uint32)]

    VISIT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint64), ctypes.c_int64, ctypes.c_uint64,
                             ctypes.c_int, ctypes.c_void_p)

    def __init__(self, image):
        self.library = library = ctypes.CDLL("libext2fs.so.2")
        for name in ("open", "read_inode", "extent_open", "extent_get", "block_iterate3", "namei"):
            getattr(library, f"ext2fs_{name}").restype = ctypes.c_long
        self.messages = ctypes.CDLL("libcom_err.so.2")
        self.messages.error_message.restype = ctypes.c_char_p
        library.initialize_ext2_error_table()
        self.fs = ctypes.c_void_p()
        self.must(library.ext2fs_open(image.encode(), self.OPEN_64BITS | self.SOFT_FEATURES, 0, 0,
                                      ctypes.c_void_p.in_dll(library, "unix_io_manager"), ctypes.byref(self.fs)), image)

    def must(self, error, what):
        if error:
            sys.exit(f"owners: {what}: {self.messages.error_message(error).decode()}")

    def has(self, path):
        inode = ctypes.c_uint32()
        root = ctypes.c_uint32(2)
        return not self.library.ext2fs_namei(self.fs, root, root, path.encode(), ctypes.byref(inode))

    def inode(self, number):
        """Yields each mapping of the inode: start, length, kind, inode, offset."""
        raw = ctypes.create_string_buffer(128)
        self.must(self.library.ext2fs_read_inode(self.fs, number, raw), f"inode {number}")
        xattr = int.from_bytes(raw[104:108] + raw[118:120], "little")
        if xattr:
            yield xattr, 1, "xattr", number, 0
        if not self.library.ext2fs_inode_has_valid_blocks2(self.fs, raw):
            return
        if int.from_bytes(raw[32:36], "little") & self.EXTENTS:
            yield from self.extents(number)
        else:
            yield from self.blocks(number)

    def extents(self, number):
        handle, extent = ctypes.c_void_p(), self.Extent()
        self.must(self.library.ext2fs_extent_open(self.fs, number, ctypes.byref(handle)), f"inode {number}")
        get, at = self.library.ext2fs_extent_get, ctypes.byref(extent)
        error = get(handle, self.ROOT, at)
        while not error:
            flags = extent.flags
            if not flags & self.LEAF:
                if not flags & self.SECOND_VISIT:
                    yield extent.physical, 1, "mapping", number, 0
            else:
                yield extent.physical, extent.length, "unwritten" if flags & self.UNWRITTEN else "data", number, extent.logical
            error = get(handle, self.NEXT, at)
        self.library.ext2fs_extent_free(handle)
        if error != self.NO_NEXT:
            self.must(error, f"inode {number}: extents")

    def blocks(self, number):
        found = []

        def visit(_fs, block, logical, _block_of_reference, _offset, _context):
            found.append((block[0], 1, "data" if logical >= 0 else "mapping", number, max(logical, 0)))
            return 0

        self.must(self.library.ext2fs_block_iterate3(self.fs, number, self.READ_ONLY, None, self.VISIT(visit), None),
                  f"inode {number}: blocks")
        return found


def pieces(layout, volume):
    """Yields each mapping of the volume: start, length, kind, inode, offset."""
    for number in layout.inodes:
        for piece in volume.inode(number):
            # The resize inode maps the reserved descriptor blocks, and most of its indirect blocks are among
            # them; these are part of the fixed metadata.
            if number != 7 or piece[2] == "mapping" and not layout.fixed[piece[0]] or piece[2] == "xattr":
                yield piece


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
    layout, volume = Layout(image), Volume(image)
    records = canonical(layout, pieces(layout, volume))
    for record in records:
        print(*record)
    if len(sys.argv) > 2:
        with open(sys.argv[2], "w") as out:
            for start, length, owners in counts(layout, records):
                print(start, length, "shared", owners, 0, file=out)
    if len(sys.argv) > 3:
        with open(sys.argv[3], "w") as out:
            if "shared_blocks" in layout.features:
                print("shared_blocks", file=out)
            if volume.has("/.rext4/refcount"):
                print("refcount", file=out)
    staged = []
    if len(sys.argv) > 4:
        with open(sys.argv[4]) as rmap:
            fields = (line.split() for line in rmap)
            staged = [(int(start), int(length)) for start, length, kind, *_ in fields if kind == "cow"]
    return 0 if check_against_bitmaps(layout, records + staged) else 1


if __name__ == "__main__":
    sys.exit(main())
