#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""journal_csum.py IMAGE INCOMPAT_BITS (hexadecimal): changes the checksum features of a volume's empty journal.

The bits replace checksum_v2 (8) and checksum_v3 (10) in the journal's superblock, whose checksum is updated.
"""
import re
import struct
import subprocess
import sys

MAGIC, INCOMPAT, TYPE, CHECKSUM, SIZE = 0xC03B3998, 0x28, 0x50, 0xFC, 1024


def crc32c(data):
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register


image, bits = sys.argv[1], int(sys.argv[2], 16)
told = subprocess.run(["debugfs", "-R", "blocks <8>", image], capture_output=True, text=True, check=True).stdout
block = int(re.match(r"\d+", told).group())
told = subprocess.run(["dumpe2fs", "-h", image], capture_output=True, text=True, check=True).stdout
size = int(re.search(r"Block size: *(\d+)", told).group(1))
with open(image, "r+b") as volume:
    volume.seek(block * size)
    raw = bytearray(volume.read(SIZE))
    assert struct.unpack_from(">I", raw, 0)[0] == MAGIC
    (features,) = struct.unpack_from(">I", raw, INCOMPAT)
    struct.pack_into(">I", raw, INCOMPAT, features & ~0x18 | bits)
    raw[TYPE] = 4
    struct.pack_into(">I", raw, CHECKSUM, 0)
    struct.pack_into(">I", raw, CHECKSUM, crc32c(raw))
    volume.seek(block * size)
    volume.write(raw)
