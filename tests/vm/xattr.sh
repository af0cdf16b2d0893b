# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: ext4 log e2fsck
# Extended attributes written by stock ext4 read the same: in all namespaces, in inodes and in
# blocks, including one shared by several inodes; damaged ones are rejected or read, and never do
# harm.
. "$(dirname "$0")/lib.sh"

# fill DIR: create files with attributes.
fill() {
    python3 - "$1" <<'PY'
import os, random, sys
top = sys.argv[1]
random.seed(5)
os.mkdir(top)
path = lambda name: os.path.join(top, name)


def touch(name):
    with open(path(name), "w") as f:
        f.write(name)
    return path(name)


set = os.setxattr
set(touch("small"), "user.a", b"1")
set(path("small"), "user.empty", b"")
set(touch("all"), "user.name", b"value" * 3)
set(path("all"), "trusted.name", b"hidden")
set(path("all"), "security.name", b"\0\1\2\xff")
set(path("all"), "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
set(touch("long"), "user." + "n" * 250, b"v" * 300)
set(path("long"), "trusted." + "n" * 247, b"")
# The same attributes in several inodes, which share a block.
for i in range(20):
    for k in range(4):
        set(touch(f"shared-{i}") if k == 0 else path(f"shared-{i}"), f"user.shared{k}", b"%d" % k * 100)
# Attributes that do not fit into an inode, and some that are small enough to stay there.
for i in range(150):
    touch(f"mixed-{i}")
    for k in range(random.randrange(8)):
        space = random.choice(["user", "trusted", "security"])
        try:
            set(path(f"mixed-{i}"), f"{space}.{'x' * random.randrange(1, 40)}", random.randbytes(random.randrange(140)))
        except OSError:
            pass
os.mkdir(path("dir"))
set(path("dir"), "user.dir", b"of a directory")
os.symlink("small", path("link"))
set(path("link"), "trusted.link", b"of a link", follow_symlinks=False)
os.symlink("x" * 200, path("long-link"))
set(path("long-link"), "security.link", b"of another link" * 5, follow_symlinks=False)
os.mknod(path("null"), 0o20666, os.makedev(1, 3))
set(path("null"), "trusted.device", b"of a device")
# Changed and removed again.
for i in range(0, 150, 5):
    for name in os.listxattr(path(f"mixed-{i}"))[::2]:
        os.removexattr(path(f"mixed-{i}"), name)
PY
}

# attributes DIR: print all attributes.
attributes() { ( cd "$1"; getfattr -R -P -h -d -m - -e hex . | LC_ALL=C sort ); }

check() {
    echo "checking: mke2fs $*"
    mke2fs -q -F "$@" "$DISK" 64M
    mount -t ext4 "$DISK" $MNT
    fill $MNT/d
    umount $MNT
    mount -t ext4 -o ro "$DISK" $MNT
    attributes $MNT >/tmp/stock.list
    umount $MNT
    mount -t rext4 -o ro "$DISK" $MNT
    attributes $MNT >/tmp/ours.list
    same /tmp/stock.list /tmp/ours.list
    [ "$(wc -l </tmp/ours.list)" -gt 500 ] || die "too few attributes for a meaningful test"
    # Results of unusual requests.
    python3 - $MNT/d/all <<'PY'
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
path = sys.argv[1].encode()
room = ctypes.create_string_buffer(100)
assert libc.getxattr(path, b"user.name", None, 0) == 15
assert libc.getxattr(path, b"user.name", room, 14) == -1 and ctypes.get_errno() == errno.ERANGE
assert libc.getxattr(path, b"user.name", room, 15) == 15
assert libc.getxattr(path, b"user.nam", room, 15) == -1 and ctypes.get_errno() == errno.ENODATA
assert libc.getxattr(path, b"system.richacl", room, 15) == -1 and ctypes.get_errno() == errno.EOPNOTSUPP
length = libc.listxattr(path, None, 0)
assert libc.listxattr(path, room, length - 1) == -1 and ctypes.get_errno() == errno.ERANGE
assert libc.listxattr(path, room, length) == length
if os.fork() == 0:
    os.setresuid(77, 77, 77)
    names = os.listxattr(path)
    os._exit(0 if b"trusted.name" not in map(os.fsencode, names) and "user.name" in names else 1)
assert os.wait()[1] == 0
PY
    umount $MNT
    clean "$DISK"
}

check -t ext4 -b 1024
check -t ext4 -b 4096
check -t ext4 -b 1024 -I 128 -O ^metadata_csum,uninit_bg

echo "damaged blocks of attributes"
blocks_of() {
    debugfs -R "ls -p $1" "$DISK" 2>/dev/null | cut -d/ -f2 | grep . |
        while read -r ino; do echo "stat <$ino>"; done | debugfs -f - "$DISK" 2>/dev/null |
        sed -n 's/.*File ACL: \([1-9][0-9]*\).*/\1/p' | sort -nu
}
mke2fs -q -F -t ext4 -b 1024 "$DISK" 64M
mount -t ext4 "$DISK" $MNT
fill $MNT/d
umount $MNT
shared=$(debugfs -R 'stat /d/shared-1' "$DISK" 2>/dev/null | sed -n 's/.*File ACL: \([0-9]*\).*/\1/p')
[ "$(debugfs -R 'stat /d/shared-2' "$DISK" 2>/dev/null | sed -n 's/.*File ACL: \([0-9]*\).*/\1/p')" = "$shared" ] || die "no block is shared"
python3 - "$DISK" $((shared * 1024 + 40)) <<'PY'
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(fd, b"\x77", int(sys.argv[2]))
os.fsync(fd)
PY
blockdev --flushbufs "$DISK"
dmesg -C
mount -t rext4 -o ro "$DISK" $MNT
must_fail getfattr -n user.shared1 $MNT/d/shared-3 2>/tmp/out
grep -q 'Bad message' /tmp/out || { cat /tmp/out; die "unexpected error"; }
said "inode [0-9]+: block $shared: attribute block checksum mismatch"
umount $MNT

# Without checksums, the damage reaches the code behind them.
GOOD=$DISK2
mke2fs -q -F -t ext4 -b 1024 -O ^metadata_csum,^uninit_bg "$DISK" 32M
mount -t ext4 "$DISK" $MNT
fill $MNT/d
umount $MNT
blocks_of /d >/tmp/blocks
[ "$(wc -l </tmp/blocks)" -gt 20 ] || die "too few blocks of attributes"
dumpe2fs "$DISK" 2>/dev/null | sed -n 's/.*Inode table at \([0-9]*\)-\([0-9]*\).*/\1 \2/p' | head -n 1 >/tmp/table
dd if="$DISK" of="$GOOD" bs=1M count=32 conv=fsync status=none
for seed in $(seq 1 12); do
    dd if="$GOOD" of="$DISK" bs=1M count=32 conv=fsync status=none
    python3 - "$DISK" "$seed" <<'PY'
import os, random, sys
rng = random.Random(int(sys.argv[2]))
fd = os.open(sys.argv[1], os.O_RDWR)
blocks = list(map(int, open("/tmp/blocks")))
first, last = map(int, open("/tmp/table").read().split())
wild = lambda: bytes([rng.choice([0, 1, 2, 4, 16, 127, 128, 255, rng.randrange(256)])])
for block in blocks:
    for _ in range(rng.randrange(3)):
        os.pwrite(fd, wild(), block * 1024 + rng.randrange(rng.choice([120, 1024])))
# In all but the first inodes, only the bytes after their fields.
for inode in range(first * 4 + 11, min(last * 4, first * 4 + 250)):
    for _ in range(rng.randrange(3)):
        os.pwrite(fd, wild(), inode * 256 + 128 + 32 + rng.randrange(96))
os.fsync(fd)
PY
    blockdev --flushbufs "$DISK"
    mount -t rext4 "$DISK" $MNT || die "not mounted"
    timeout 60 getfattr -R -P -h -d -m - -e hex $MNT >/dev/null 2>&1 || true
    timeout 60 python3 - $MNT/d "$seed" <<'PY'
import os, sys
top, seed = sys.argv[1], int(sys.argv[2])
for name in sorted(os.listdir(top)):
    for change in (lambda path: os.setxattr(path, "trusted.new", b"n" * seed * 17, follow_symlinks=False),
                   lambda path: seed % 3 == 0 and os.removexattr(path, "user.shared1", follow_symlinks=False)):
        try:
            change(os.path.join(top, name))
        except OSError:
            pass
PY
    if [ $((seed % 4)) = 0 ]; then rm -rf $MNT/d 2>/dev/null || true; fi
    umount $MNT
done
finish
