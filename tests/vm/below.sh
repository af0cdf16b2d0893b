# SPDX-License-Identifier: GPL-2.0
# kernels: uml/2
# oracles: log e2fsck
# The storage below a volume: an image file on another volume, which must not deadlock; and a device
# that disappears before unmount.
. "$(dirname "$0")/lib.sh"

need_modules drivers/block/loop drivers/md/dm-mod

echo "a volume in a file of another one, both written and synced"
mkdir -p /tmp/inner
mke2fs -q -F -t ext4 "$DISK" 400M
mount -t rext4 "$DISK" $MNT
truncate -s 250M $MNT/image
# With a small journal, tasks that start handles wait for commits and checkpoints all the time.
mke2fs -q -F -t ext4 -b 1024 -J size=1 $MNT/image
mount -t rext4 -o loop $MNT/image /tmp/inner
# Files are kept, so that each write goes to blocks that the image does not have yet. Each program
# terminates on its own; one that hangs cannot be killed, so wait for it until a deadline.
cat >/tmp/load.py <<'PY'
import os, sys, time
path, seconds = sys.argv[1], float(sys.argv[2])
end = time.monotonic() + seconds
fd = os.open(path, os.O_RDWR | os.O_CREAT)
size = 24 << 20
os.posix_fallocate(fd, 0, size)
turn = 0
while time.monotonic() < end and turn * 8192 < size:
    # Parts of preallocated extents: their conversion at I/O completion fills the journal.
    os.pwrite(fd, os.urandom(4096), turn * 8192)
    turn += 1
    if turn % 4 == 0:
        os.fsync(fd)
print(f"{path}: {turn} writes")
PY
pids=()
for name in 1 2 3 4 5; do python3 /tmp/load.py /tmp/inner/$name 20 & pids+=($!); done
python3 /tmp/load.py $MNT/beside 20 & pids+=($!)
for ((waited = 0; waited < 90; waited++)); do
    sleep 1
    running=0
    for pid in "${pids[@]}"; do [ ! -d "/proc/$pid" ] || running=1; done
    [ $running = 1 ] || break
done
[ $running = 0 ] || { for pid in "${pids[@]}"; do cat "/proc/$pid/stack" 2>/dev/null; done; die "programs hang"; }
for pid in "${pids[@]}"; do wait "$pid" || die "a program failed"; done
umount /tmp/inner
clean $MNT/image
umount $MNT
clean "$DISK"

echo "a device that is gone at unmount"
sectors=$(blockdev --getsz "$DISK")
dmsetup create --noudevsync under --table "0 $sectors linear $DISK 0"
UNDER=/dev/$(dmsetup info -c --noheadings -o blkdevname under)
[ -b "$UNDER" ] || die "no device $UNDER"
mke2fs -q -F -t ext4 "$UNDER" 200M
# Only the mount itself reads the device, so each block is in a separate page, which can be evicted.
blockdev --flushbufs "$UNDER"
busybox mount -t rext4 "$UNDER" $MNT
echo text >$MNT/file
sync
fsfreeze -f $MNT
fsfreeze -u $MNT
blockdev --flushbufs "$UNDER"
dmsetup suspend --nolockfs under
dmsetup load under --table "0 $sectors error"
dmsetup resume --noudevsync under
blockdev --flushbufs "$UNDER"
dmesg -C
umount $MNT
dmesg | grep -E 'rext4|JBD2|BUG|Busy' || true
logged 'could not be left clean' || die "the superblock was read from the cache"
! logged 'BUG|Busy inodes' || die "resources are left after unmounting"
dmsetup remove --noudevsync under
mount -t rext4 "$DISK" $MNT
[ "$(cat $MNT/file)" = text ] || die "synced data is lost"
umount $MNT
clean "$DISK"
finish
