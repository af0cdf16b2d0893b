# SPDX-License-Identifier: GPL-2.0
# kernels: uml debug
# oracles: model ext4 xfs@uml e2fsck owners
# Files with shared blocks: under random writes of all kinds, clones and dedupes they have the
# contents of a model, and the same ranges are shared as on XFS (which the debug kernel lacks).
# e2fsck and stock ext4 agree, and the volume can be converted back to one without shared blocks.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

PEER=$DISK2
XFS=/mnt2
mkdir -p $XFS
need_modules fs/xfs/xfs drivers/block/loop
count=500 blocks="1024 4096" writes=10240 size=40
is_slow && count=80 blocks=1024 writes=600 size=10
kinds="write write_direct write_mapped resize punch zero allocate read read_direct read_mapped to_disk clone dedupe unshare"

contents() { ( cd "$1" && sha256sum file-* ); }
features() { dumpe2fs -h "$DISK" 2>/dev/null | grep '^Filesystem features'; }

for block in $blocks; do
    echo "random things, blocks of $block bytes"
    mke2fs -q -F -t ext4 -b $block "$DISK" 256M
    mount -t "$FS" -o noatime "$DISK" $MNT
    [ "$FS" != rext4 ] || settled $MNT
    model python3 "$HERE/stream.py" $MNT $block $count $kinds
    contents $MNT >/tmp/rext4.list
    python3 "$HERE/stream.py" shared $MNT/file-* >/tmp/rext4.shared
    grep -q ' .*-' /tmp/rext4.shared || die "nothing is shared"
    if ! is_slow; then
        mkfs.xfs -q -f -b size=$block -m reflink=1 "$PEER"
        mount -t xfs -o noatime "$PEER" $XFS
        python3 "$HERE/stream.py" $XFS $block $count $kinds
        contents $XFS >/tmp/xfs.list
        same /tmp/xfs.list /tmp/rext4.list
        python3 "$HERE/stream.py" shared $XFS/file-* >/tmp/xfs.shared
        same /tmp/xfs.shared /tmp/rext4.shared
        umount $XFS
    fi
    judge
    features | grep -q shared_blocks || die "the superblock does not have the feature shared_blocks"

    echo "  a read-only mount knows that as well"
    mount -t "$FS" -o ro,noatime "$DISK" $MNT
    python3 "$HERE/stream.py" shared $MNT/file-* >/tmp/read-only.shared
    same /tmp/rext4.shared /tmp/read-only.shared
    "$REXT4" map $MNT >/tmp/read-only.map
    must_fail "$REXT4" scrub $MNT 2>/dev/null
    mount -o remount,rw $MNT
    "$REXT4" map $MNT >/tmp/writable.map
    same /tmp/writable.map /tmp/read-only.map
    mount -o remount,ro $MNT
    "$REXT4" map $MNT >/tmp/read-only.map
    same /tmp/writable.map /tmp/read-only.map
    umount $MNT

    echo "  e2fsck makes it a volume that stock ext4 writes to"
    cp --sparse=always "$DISK" /tmp/back.img
    status=0; e2fsck -fy -E unshare_blocks /tmp/back.img >/tmp/e2fsck.log 2>&1 || status=$?
    [ $status -le 1 ] || { cat /tmp/e2fsck.log; die "e2fsck -E unshare_blocks: status $status"; }
    mount -t ext4 -o loop,rw /tmp/back.img $MNT
    contents $MNT >/tmp/back.list
    same /tmp/rext4.list /tmp/back.list
    echo more >>$MNT/file-0
    umount $MNT
    clean /tmp/back.img
    rm /tmp/back.img

    echo "  the last one that shares is gone, and with it what the superblock says"
    mount -t "$FS" -o noatime "$DISK" $MNT
    contents $MNT >/tmp/again.list
    same /tmp/rext4.list /tmp/again.list
    rm $MNT/file-0 $MNT/file-1 $MNT/file-2
    umount $MNT
    clean "$DISK"
    owned "$DISK"
    mount -t "$FS" -o noatime "$DISK" $MNT
    umount $MNT
    must_fail sh -c "dumpe2fs -h $DISK 2>/dev/null | grep -q shared_blocks"
done

echo "cp, and writing to copies"
mke2fs -q -F -t ext4 -b 4096 "$DISK" 256M
mount -t "$FS" -o noatime "$DISK" $MNT
[ "$FS" != rext4 ] || settled $MNT
dd if=/dev/urandom of=$MNT/original bs=1M count=$size status=none
sum=$(sha256sum <$MNT/original)
before=$(stat -f -c %f $MNT)
for i in 1 2 3; do cp --reflink=always $MNT/original $MNT/copy-$i; done
sync
[ $((before - $(stat -f -c %f $MNT))) -lt 100 ] || die "the copies take $((before - $(stat -f -c %f $MNT))) blocks"
for i in 1 2 3; do [ "$(sha256sum <$MNT/copy-$i)" = "$sum" ] || die "copy $i"; done
dd if=/dev/zero of=$MNT/copy-1 bs=4k seek=100 count=10 conv=notrunc status=none
truncate -s 1000001 $MNT/copy-2
dd if=/dev/zero of=$MNT/copy-3 bs=1M seek=3 count=5 conv=notrunc oflag=direct status=none
[ "$(sha256sum <$MNT/original)" = "$sum" ] || die "writing to the copies changed the original"
sync
echo 3 >/proc/sys/vm/drop_caches
[ "$(sha256sum <$MNT/original)" = "$sum" ] || die "writing to the copies changed the original on disk"
judge

# When searching for equal files itself, duperemove supports only btrfs and XFS.
echo "duperemove has equal files share"
mount -t "$FS" -o noatime "$DISK" $MNT
mkdir $MNT/equal
for i in 1 2 3 4; do dd if=$MNT/original of=$MNT/equal/$i bs=1M count=4 skip=$((i / 4)) status=none; done
sync
( cd $MNT/equal && sha256sum * ) >/tmp/equal.sums
before=$(stat -f -c %f $MNT)
printf '%s\n' $MNT/equal/{1,2,3} '' | duperemove --fdupes >/tmp/duperemove.log 2>&1 || { tail /tmp/duperemove.log; die "duperemove failed"; }
sync
gained=$(($(stat -f -c %f $MNT) - before))
[ $gained -gt 2000 ] || { tail /tmp/duperemove.log; die "only $gained blocks were gained"; }
( cd $MNT/equal && sha256sum --quiet -c /tmp/equal.sums ) || die "duperemove changed a file"
rm -r $MNT/equal
judge

echo "small writes here and there leave a file of larger extents"
mount -t "$FS" -o noatime "$DISK" $MNT
cp --reflink=always $MNT/original $MNT/random
python3 - $MNT/random $writes <<'PY'
import os, random, sys
random.seed(1)
fd = os.open(sys.argv[1], os.O_RDWR)
order = list(range(int(sys.argv[2])))
random.shuffle(order)
for n, block in enumerate(order):
    os.pwrite(fd, b"%8d" % block * 512, block * 4096)
    if n % 300 == 0:
        os.fsync(fd)
os.fsync(fd)
PY
extents=$(filefrag $MNT/random | sed 's/.*: \([0-9]*\) extent.*/\1/')
echo "  $extents extents"
[ "$extents" -lt 500 ] || die "$extents extents"
judge

echo "what is refused"
if ! is_slow; then
    mkfs.xfs -q -f -m reflink=1 "$PEER"
    mount -t xfs "$PEER" $XFS
else
    mount -t tmpfs tmpfs $XFS
fi
mount -t "$FS" -o noatime "$DISK" $MNT
[ "$FS" != rext4 ] || settled $MNT
rm $MNT/copy-* $MNT/random
mkdir $XFS/work $MNT/work
python3 "$HERE/reflink-refused.py" $MNT/work $XFS >/tmp/rext4.refused
cat /tmp/rext4.refused
if ! is_slow; then
    python3 "$HERE/reflink-refused.py" $XFS/work $MNT >/tmp/xfs.refused
    same /tmp/xfs.refused /tmp/rext4.refused
fi
mount -o remount,ro $MNT
must_fail cp --reflink=always $MNT/original $MNT/x 2>/tmp/refused
grep -q 'Read-only' /tmp/refused || die "$(cat /tmp/refused)"
mount -o remount,rw $MNT
umount $XFS
judge

echo "an immutable file"
debugfs -w -R 'set_inode_field /work/a flags 0x80010' "$DISK" >/dev/null 2>&1
mount -t "$FS" -o noatime "$DISK" $MNT
[ "$FS" != rext4 ] || settled $MNT
must_fail cp --reflink=always $MNT/original $MNT/work/a 2>/tmp/refused
grep -q 'Operation not permitted' /tmp/refused || die "$(cat /tmp/refused)"
judge
finish
