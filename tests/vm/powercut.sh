# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: model e2fsck
# The state of the disk after a power cut: everything promised by fsync is there, and nothing of a
# file that was truncated.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

COPY=$DISK2
for block in 1024 4096; do
    mke2fs -q -F -t ext4 -b $block "$DISK" 32M
    mount -t "$FS" "$DISK" $MNT
    python3 - $MNT <<'PY'
import ctypes, os, sys, time
top = sys.argv[1]
join = os.path.join
libc = ctypes.CDLL(None)


def synced(name, data):
    fd = os.open(join(top, name), os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, data, 0)
    os.fsync(fd)
    return fd


def writeback(interval):
    """Sets the interval of periodic writeback of pages and inodes, in 1/100 s; 0 for never."""
    for name in "dirty_expire_centisecs", "dirty_writeback_centisecs":
        with open("/proc/sys/vm/" + name, "w") as f:
            f.write(str(interval))


for name in "up", "append":
    os.close(synced(name, b"x" * 10_000))

# The data is on disk, its mapping only in the running transaction; the VFS considers the inode
# clean and evicts it. Recently used dentries and inodes survive one or two rounds of reclaim.
fd = os.open(join(top, "evicted"), os.O_RDWR | os.O_CREAT)
os.pwrite(fd, b"z" * 50_000, 0)
os.fsync(fd)
os.pwrite(fd, b"w" * 50_000, 50_000)
os.close(fd)
writeback(20)
time.sleep(1)
writeback(0)
for _ in range(4):
    with open("/proc/sys/vm/drop_caches", "w") as f:
        f.write("3")

# Truncated within a block and extended again; no page is written back on its own afterwards.
for name in "up", "append":
    os.truncate(join(top, name), 5_000)
os.truncate(join(top, "up"), 10_000)
fd = os.open(join(top, "append"), os.O_WRONLY)
os.pwrite(fd, b"y" * 4096, 8192)
assert libc.sync_file_range(fd, ctypes.c_long(8192), ctypes.c_long(4096), 7) == 0

os.fsync(os.open(join(top, "evicted"), os.O_RDWR))
PY
    dd if="$DISK" of="$COPY" bs=1M count=32 iflag=direct oflag=direct status=none
    dumpe2fs -h "$COPY" 2>/dev/null | grep -q needs_recovery || die "the copy needs no recovery"
    umount $MNT
    clean "$DISK"
    mount -t "$FS" "$COPY" $MNT
    model python3 - $MNT <<'PY'
import os, sys
top = sys.argv[1]
read = lambda name: open(os.path.join(top, name), "rb").read()
assert read("evicted") == b"z" * 50_000 + b"w" * 50_000, "evicted"
for name in "up", "append":
    data = read(name)
    assert len(data) in (5_000, 10_000, 12_288), (name, len(data))
    assert data[:5_000] == b"x" * 5_000, name
    assert not data[5_000:8_192].strip(b"\0"), f"{name}: what was cut off is back"
PY
    umount $MNT
    clean "$COPY"
done
finish
