# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: ext4 e2fsck owners
# Files are hardly more fragmented than on stock ext4: files that are appended to in turn, and
# blocks written at random into a hole.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

cat >/tmp/layout.py <<'PY'
import os, random, sys

top = sys.argv[1]
random.seed(3)
# Blocks at random into a hole, first some in front of which nothing is, written out now and then.
fd = os.open(f"{top}/holes", os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 32 << 20)
for step, block in enumerate(random.sample(range(8192), 4000)):
    os.pwrite(fd, bytes([block % 251]) * 4096, block * 4096)
    if step % 1000 == 0:
        os.fsync(fd)
os.close(fd)
# Eight files appended to in turn, and as many with an fsync now and then.
for sync in 0, 16:
    fds = [os.open(f"{top}/appended-{sync}-{n}", os.O_WRONLY | os.O_CREAT | os.O_APPEND) for n in range(8)]
    for step in range(1, 1025):
        for fd in fds:
            os.write(fd, bytes([step % 251]) * 4096)
            if sync and step % sync == 0:
                os.fdatasync(fd)
    for fd in fds:
        os.fsync(fd)
        os.close(fd)
os.sync()
PY

# extents DIR: the number of extents of each file, as filefrag counts them: a hole does not end one.
extents() { (cd "$1" && filefrag -- * | sed -E 's/: ([0-9]+) extents? found.*/ \1/'); }

for fs in ext4 "$FS"; do
    mke2fs -q -F -t ext4 "$DISK" 300M
    mount -t "$fs" "$DISK" $MNT
    python3 /tmp/layout.py $MNT || die "the files could not be written on $fs"
    rm -rf $MNT/lost+found
    sync
    extents $MNT >/tmp/extents-"$fs"
    umount $MNT
    clean "$DISK"
    [ "$fs" = ext4 ] || owned "$DISK"
done
echo "extents on stock ext4, on $FS:"
join /tmp/extents-ext4 /tmp/extents-"$FS" | tee /tmp/extents
awk '$3 > 4 * $2 + 256 { bad = 1 } END { exit bad || NR == 0 }' /tmp/extents || die "files are much more fragmented than on stock ext4"
finish
