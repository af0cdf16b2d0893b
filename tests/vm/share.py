#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Makes files on an unmounted ext4 volume share blocks, using only debugfs, as if they had been cloned.

share.py IMAGE SEED SOURCE... -- TARGET...

Each target, an empty file, gets up to four random pieces of the sources as its contents; some get a piece twice. All extents
of a source must be in its inode. Then the feature shared_blocks is set. Prints one line per target: its name, then file,
first block and number of blocks of each piece.
"""

import random
import re
import struct
import subprocess
import sys

WORDS = [f"block[{i}]" for i in range(12)] + ["block[IND]", "block[DIND]", "block[TIND]"]


def debugfs(image, commands, *options):
    done = subprocess.run(["debugfs", *options, "-f", "-", image], input="\n".join(commands) + "\n", text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=True)
    return done.stdout


def extents(disk, block_size, place):
    """Yields the extents of the inode at a byte offset of the image: first file block, length, first block on the volume."""
    disk.seek(place + 40)
    raw = disk.read(60)
    magic, count, _, depth = struct.unpack_from("<4H", raw)
    assert magic == 0xf30a and depth == 0, "not mapped by extents in the inode"
    for index in range(count):
        first, length, high, low = struct.unpack_from("<IHHI", raw, 12 + 12 * index)
        assert length <= 32768, "unwritten"
        yield first, length, (high << 32) | low


def main():
    image, seed = sys.argv[1], int(sys.argv[2])
    split = sys.argv.index("--")
    sources, targets = sys.argv[3:split], sys.argv[split + 1:]
    random.seed(seed)
    block_size = int(re.search(r"Block size: *(\d+)", subprocess.run(["dumpe2fs", "-h", image], text=True, check=True,
                     stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)[1])
    places = re.findall(r"located at block (\d+), offset 0x([0-9a-f]+)",
                        debugfs(image, [f"imap {name}" for name in sources]))
    assert len(places) == len(sources)
    pieces = []
    with open(image, "rb") as disk:
        for name, (block, offset) in zip(sources, places):
            for extent in extents(disk, block_size, int(block) * block_size + int(offset, 16)):
                pieces.append((name, *extent))
    commands = []
    for name in targets:
        chosen = [random.choice(pieces) for _ in range(random.randint(1, 4))]
        if len(chosen) < 4 and random.random() < 0.2:
            chosen.append(chosen[0])
        raw = struct.pack("<4HI", 0xf30a, len(chosen), 4, 0, 0)
        offset, told = 0, []
        for source, first, length, start in chosen:
            skip = random.randrange(length)
            part = random.randint(1, length - skip)
            raw += struct.pack("<IHHI", offset, part, (start + skip) >> 32, (start + skip) & 0xffffffff)
            told += [source, str(first + skip), str(part)]
            offset += part
        raw = raw.ljust(60, b"\0")
        for word, field in zip(struct.unpack("<15I", raw), WORDS):
            commands.append(f"sif {name} {field} {word}")
        commands.append(f"sif {name} size {offset * block_size}")
        commands.append(f"sif {name} blocks {offset * block_size // 512}")
        print(name, *told)
    commands.append("feature shared_blocks")
    debugfs(image, commands, "-w")


if __name__ == "__main__":
    main()
