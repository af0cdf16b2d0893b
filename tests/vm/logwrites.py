#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Replays a log of device mapper's log-writes target up to any point, as if the power had been cut there.

logwrites.py count LOG                  prints the number of entries
logwrites.py mark LOG NAME              prints the entry at which `dmsetup message DEV 0 mark NAME` was given
logwrites.py marks LOG                  prints all marks: the entry, and the name
logwrites.py points LOG FROM TO COUNT   prints COUNT entry numbers spread over [FROM, TO], flushes and FUA writes first
logwrites.py replay LOG DISK FROM TO    writes the entries [FROM, TO) to DISK

The log is a superblock in its first sector and then one sector for each entry, followed by the entry's data. A write is
logged when the flush that makes it durable completes, in the order of completion; so a prefix of the log is a possible state
of the disk after a power cut.

Source: drivers/md/dm-log-writes.c.
"""

import os
import struct
import sys

MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8


class Log:
    def __init__(self, path):
        self.fd = os.open(path, os.O_RDONLY)
        magic, version, self.count, self.sector = struct.unpack("<QQQI", os.pread(self.fd, 28, 0))
        if magic != MAGIC or version != 1:
            sys.exit(f"logwrites: {path} is no log")

    def entries(self):
        """Yields each entry's number, target offset, length, flags, and the offset of its data in the log."""
        place = self.sector
        for number in range(self.count):
            sector, sectors, flags, size = struct.unpack("<QQQQ", os.pread(self.fd, 32, place))
            data = place + (32 if flags & MARK else self.sector)
            yield number, sector * self.sector, sectors * self.sector, flags, data, size
            place += self.sector
            if not flags & DISCARD:
                place += sectors * self.sector


def main():
    command, log = sys.argv[1], Log(sys.argv[2])
    if command == "count":
        print(log.count)
    elif command == "marks":
        for number, _, _, flags, data, size in log.entries():
            if flags & MARK:
                print(number, os.pread(log.fd, size, data).rstrip(b"\0").decode(errors="replace"))
    elif command == "mark":
        for number, _, _, flags, data, size in log.entries():
            if flags & MARK and os.pread(log.fd, size, data).rstrip(b"\0").decode(errors="replace") == sys.argv[3]:
                print(number)
                return
        sys.exit(f"logwrites: no mark {sys.argv[3]}")
    elif command == "points":
        low, high, wanted = map(int, sys.argv[3:6])
        # Points right after a flush reveal wrong write ordering; the others are spread evenly.
        flushes = [n + 1 for n, _, _, flags, _, _ in log.entries() if low <= n < high and flags & (FLUSH | FUA)]
        half = wanted // 2
        chosen = {flushes[i * len(flushes) // half] for i in range(half)} if len(flushes) > half else set(flushes)
        spread = sorted(set(range(low, high + 1)) - chosen)
        missing = min(wanted - len(chosen), len(spread))
        chosen.update(spread[i * len(spread) // missing] for i in range(missing))
        print(*sorted(chosen))
    elif command == "replay":
        disk = os.open(sys.argv[3], os.O_WRONLY)
        low, high = map(int, sys.argv[4:6])
        for number, target, size, flags, data, _ in log.entries():
            if number >= high:
                break
            if number < low or flags & MARK or not size:
                continue
            done = 0
            while done < size:
                part = min(size - done, 1 << 20)
                bytes_ = b"\0" * part if flags & DISCARD else os.pread(log.fd, part, data + done)
                done += os.pwrite(disk, bytes_, target + done)
        os.close(disk)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
