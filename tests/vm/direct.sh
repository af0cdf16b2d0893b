# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: model ext4 e2fsck owners
# Files with direct, buffered and mapped writes, holes, zeroed ranges and preallocation have the
# contents that a model has, in memory and on disk, and are the same on stock ext4.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

count=900
is_slow && count=300

contents() { ( cd "$1" && sha256sum file-* ); }

for block in 1024 4096; do
    echo "blocks of $block bytes"
    mke2fs -q -F -t ext4 -b $block "$DISK" 128M
    mount -t ext4 -o noatime "$DISK" $MNT
    model python3 "$HERE/stream.py" $MNT $block $count
    contents $MNT >/tmp/ext4.list
    umount $MNT

    mke2fs -q -F -t ext4 -b $block "$DISK" 128M
    mount -t "$FS" -o noatime "$DISK" $MNT
    model python3 "$HERE/stream.py" $MNT $block $count
    contents $MNT >/tmp/rext4.list
    same /tmp/ext4.list /tmp/rext4.list
    judge
done

echo "what fallocate does and refuses"
mke2fs -q -F -t ext4 -b 4096 "$DISK" 128M
mount -t "$FS" -o noatime "$DISK" $MNT
fallocate -l 1M $MNT/a
[ "$(stat -c '%s %b' $MNT/a)" = "1048576 2048" ] || die "$(stat -c '%s %b' $MNT/a)"
fallocate -n -o 1M -l 1M $MNT/a
[ "$(stat -c '%s %b' $MNT/a)" = "1048576 4096" ] || die "$(stat -c '%s %b' $MNT/a)"
truncate -s 1M $MNT/a
[ "$(stat -c '%s %b' $MNT/a)" = "1048576 2048" ] || die "blocks beyond the end are kept: $(stat -c '%s %b' $MNT/a)"
fallocate -p -o 4096 -l 8192 $MNT/a
[ "$(stat -c '%s %b' $MNT/a)" = "1048576 2032" ] || die "$(stat -c '%s %b' $MNT/a)"
must_fail fallocate -l 1G $MNT/b 2>/tmp/refused
grep -qi 'no space' /tmp/refused || die "$(cat /tmp/refused)"
rm $MNT/b
must_fail dd if=/dev/zero of=$MNT/c bs=300 count=1 oflag=direct 2>/tmp/refused
grep -qi 'invalid argument' /tmp/refused || die "$(cat /tmp/refused)"
judge

echo "one extent is punched into many, and those away again"
mke2fs -q -F -t ext4 -b 1024 "$DISK" 256M
mount -t "$FS" -o noatime "$DISK" $MNT
python3 - $MNT <<'PY'
import ctypes, os, random, sys

libc = ctypes.CDLL(None, use_errno=True)
random.seed(5)
fd = os.open(f"{sys.argv[1]}/sieve", os.O_RDWR | os.O_CREAT)
blocks = 12_000
model = bytearray(random.randbytes(blocks * 1024))
os.pwrite(fd, model, 0)
os.fsync(fd)


def punch(first, count):
    assert libc.fallocate(fd, 3, ctypes.c_long(first * 1024), ctypes.c_long(count * 1024)) == 0
    model[first * 1024:(first + count) * 1024] = bytes(count * 1024)


odd = list(range(1, blocks, 2))
random.shuffle(odd)
for block in odd:
    punch(block, 1)
assert os.pread(fd, len(model), 0) == model
for _ in range(60):
    punch(random.randrange(blocks - 150), random.randrange(150))
os.fsync(fd)
with open("/proc/sys/vm/drop_caches", "w") as f:
    f.write("3")
assert os.pread(fd, len(model), 0) == model
PY
judge
finish
