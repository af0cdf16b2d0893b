# SPDX-License-Identifier: GPL-2.0
# kernels: uml stock
# oracles: ext4 e2fsck owners
# A volume written by rext4 passes e2fsck and reads the same under stock ext4: all everyday
# operations, with files of many extents and directories of many entries, with blocks of 1, 2 and 4
# KiB. Each block has the owner determined by e2fsprogs.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

work() {
    python3 - "$1" <<'PY'
import ctypes, errno, mmap, os, random, sys

top = sys.argv[1]
random.seed(7)
join = os.path.join


def blob(n):
    return random.randbytes(n)


def write(path, data, offset=0):
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
    assert os.pwrite(fd, data, offset) == len(data)
    os.close(fd)


def read(path):
    with open(path, "rb") as f:
        return f.read()


# Many entries in one directory, some of which are removed, some renamed over others.
many = join(top, "many")
os.mkdir(many)
for i in range(1200):
    write(join(many, f"a-rather-long-name-for-a-file-{i}"), b"%d\n" % i)
for i in range(0, 1200, 3):
    os.unlink(join(many, f"a-rather-long-name-for-a-file-{i}"))
for i in range(1, 1200, 6):
    os.rename(join(many, f"a-rather-long-name-for-a-file-{i}"), join(many, f"renamed-{i % 50}"))
assert len(os.listdir(many)) == 1200 - 400 - 200 + 25, len(os.listdir(many))

# A tree of directories, moved as a whole, with parts of it removed.
for i in range(20):
    os.makedirs(join(top, f"tree/{i}/a/b"))
    write(join(top, f"tree/{i}/a/b/leaf"), blob(3000))
os.rename(join(top, "tree/3"), join(top, "moved"))
os.rename(join(top, "tree/4/a"), join(top, "moved/a2"))
for i in range(10, 20):
    os.unlink(join(top, f"tree/{i}/a/b/leaf"))
    os.removedirs(join(top, f"tree/{i}/a/b"))
try:
    os.rmdir(join(top, "moved"))
    raise SystemExit("rmdir of a full directory")
except OSError as e:
    assert e.errno == errno.ENOTEMPTY

# Large writes, overwrites in the middle, a file truncated and extended again: the extended part
# must read as zeroes.
model = bytearray(blob(6_000_000))
large = join(top, "large")
write(large, bytes(model))
for _ in range(60):
    at, n = random.randrange(5_900_000), random.randrange(1, 60_000)
    piece = blob(n)
    write(large, piece, at)
    model[at:at + n] = piece
os.truncate(large, 3_333_333)
os.truncate(large, 4_000_001)
model = model[:3_333_333] + bytes(4_000_001 - 3_333_333)
assert read(large) == bytes(model), "large"

# More extents than fit into the inode, then more than fit into one tree block, with holes between
# them; then truncated to half.
sparse = join(top, "sparse")
fd = os.open(sparse, os.O_RDWR | os.O_CREAT)
for i in range(1500):
    os.pwrite(fd, b"%08d" % i, i * 12288)
os.fsync(fd)
for i in range(1500):
    assert os.pread(fd, 8, i * 12288) == b"%08d" % i
    assert i == 1499 or os.pread(fd, 8, i * 12288 + 8192) == bytes(8)
os.ftruncate(fd, 700 * 12288)
os.fdatasync(fd)
os.close(fd)

# Shared mappings: over a hole, over data, beyond everything written so far.
mapped = join(top, "mapped")
fd = os.open(mapped, os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 1_000_000)
with mmap.mmap(fd, 1_000_000) as m:
    for at in range(0, 1_000_000, 70_000):
        m[at:at + 5] = b"mmap!"
    m.flush()
    os.pwrite(fd, b"write", 5)
    assert m[:10] == b"mmap!write"
os.close(fd)

# Both kinds of links; a file that lives on without a name; one removed while open.
os.link(large, join(top, "hard"))
os.symlink("large", join(top, "short-link"))
os.symlink("x/" * 200, join(top, "long-link"))
assert os.stat(large).st_nlink == 2
fd = os.open(join(top, "gone"), os.O_RDWR | os.O_CREAT)
os.write(fd, blob(500_000))
os.unlink(join(top, "gone"))
assert os.fstat(fd).st_nlink == 0 and len(os.pread(fd, 500_000, 0)) == 500_000
os.close(fd)

os.chmod(large, 0o4711)
os.chown(sparse, 70000, 80000)
os.utime(mapped, ns=(10**18 + 7, 2 * 10**18 + 9))
fd = os.open(top, os.O_RDONLY)
os.fsync(fd)
os.close(fd)
os.sync()
PY
}

check() {
    echo "writing: mke2fs $*"
    mke2fs -q -F "$@" "$DISK" 400M
    mount -t "$FS" -o noatime "$DISK" $MNT
    mkdir $MNT/d
    work $MNT/d
    judge

    echo "  read again by ourselves, who go on writing"
    mount -t "$FS" -o noatime "$DISK" $MNT
    listing $MNT >/tmp/again.list
    same /tmp/live.list /tmp/again.list
    rm -r $MNT/d/many $MNT/d/sparse
    umount $MNT
    clean "$DISK"
    owned "$DISK"

    echo "  stock ext4 writes, and then we again"
    mount -t ext4 "$DISK" $MNT
    # Programs may take a lease on a file, as on stock ext4.
    python3 -c 'import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_CREAT)
for lease in fcntl.F_RDLCK, fcntl.F_UNLCK:
    fcntl.fcntl(fd, fcntl.F_SETLEASE, lease)
    assert fcntl.fcntl(fd, fcntl.F_GETLEASE) == lease' $MNT/d/leased
    cp $MNT/d/large $MNT/d/copy
    rm -r $MNT/d/tree
    umount $MNT
    mount -t "$FS" "$DISK" $MNT
    cmp $MNT/d/large $MNT/d/copy
    rm $MNT/d/large
    umount $MNT
    clean "$DISK"
    owned "$DISK"
}

check -t ext4 -b 1024
check -t ext4 -b 2048
check -t ext4 -b 4096

echo "a volume of an older mke2fs, as it is and with an orphan file"
mke2fs -q -F -t ext4 -O ^orphan_file,^metadata_csum_seed "$DISK" 128M
mount -t ext4 "$DISK" $MNT
head -c 1M /dev/urandom >$MNT/before
umount $MNT
mount -t "$FS" "$DISK" $MNT
findmnt -n -o OPTIONS $MNT | grep -qw rw || die "not mounted writable without an orphan file"
cp $MNT/before $MNT/without
umount $MNT
clean "$DISK"
tune2fs -O orphan_file "$DISK" >/tmp/tune2fs.log 2>&1 || { cat /tmp/tune2fs.log; die "tune2fs"; }
mount -t "$FS" "$DISK" $MNT
findmnt -n -o OPTIONS $MNT | grep -qw rw || die "not mounted writable"
cp $MNT/before $MNT/after
cmp $MNT/before $MNT/after
cmp $MNT/before $MNT/without
rm $MNT/before
judge
finish
