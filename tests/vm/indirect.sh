# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: model ext4 e2fsck owners log
# Files without extents, as on volumes of ext2 and ext3 and upgraded ones: written, mapped,
# truncated, punched and freed over all levels of indirect blocks; directories and long symbolic
# links; limits; circular pointers.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

debug() { debugfs -w -f - "$DISK" >/dev/null 2>&1; }

for block in 1024 4096; do
    echo "blocks of $block bytes, no extents"
    mke2fs -q -F -t ext4 -O ^extent,^64bit,^large_file,orphan_file -b $block -m 0 "$DISK" 256M
    mount -t ext4 "$DISK" $MNT
    mkdir $MNT/stock
    model python3 "$HERE/indirect.py" fill $MNT/stock $block
    umount $MNT
    mount -t "$FS" -o noatime "$DISK" $MNT
    model python3 "$HERE/indirect.py" change $MNT/stock $block
    mkdir $MNT/random $MNT/levels
    model python3 "$HERE/truncate.py" $MNT/random $block 400
    model python3 "$HERE/indirect.py" levels $MNT/levels $block
    model python3 "$HERE/indirect.py" limits $MNT $block
    judge
    dumpe2fs -h "$DISK" 2>/dev/null | grep -q '^Filesystem features:.* large_file' || die "a file of 3 GiB, and no large_file"

    echo "all of it is freed again"
    mount -t "$FS" -o noatime "$DISK" $MNT
    rm -r ${MNT:?}/random $MNT/levels $MNT/stock $MNT/limits
    judge
    mount -t ext4 "$DISK" $MNT
    [ "$(ls $MNT)" = lost+found ] || die "something is left"
    used=$(( $(stat -f -c '%b - %f' $MNT) ))
    umount $MNT
    # The root directory, lost+found, and the reverse map.
    [ "$used" -lt $((2 << 20 >> 10)) ] || die "$used blocks are in use on an empty volume"
done

echo "a crash between reserving blocks and the data leaves neither stale data nor lost blocks"
mke2fs -q -F -t ext4 -O ^extent,^64bit,orphan_file -b 1024 -m 0 "$DISK" 64M
mount -t "$FS" "$DISK" $MNT
model python3 "$HERE/indirect.py" dirty $MNT 1024
cp --sparse=always "$DISK" "$DISK2"
umount $MNT
mount -t ext4 "$DISK2" $MNT
model python3 "$HERE/indirect.py" crashed $MNT 1024
umount $MNT
clean "$DISK2"

echo "pointers that lead in a circle"
mke2fs -q -F -t ext4 -O ^extent,^64bit,orphan_file -b 1024 -m 0 "$DISK" 64M
mount -t ext4 "$DISK" $MNT
python3 - $MNT/circle <<'PY'
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.pwrite(fd, b"x" * 100, (12 + 256 + 65536 + 5) * 1024)
os.truncate(fd, (12 + 256 + 65536 * 200) * 1024)
PY
umount $MNT
triple=$(debugfs -R 'stat /circle' "$DISK" 2>/dev/null | grep -o '(TIND):[0-9]*' | cut -d: -f2)
python3 - "$DISK" "$triple" <<'PY'
import os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(fd, struct.pack("<I", int(sys.argv[2])) * 256, int(sys.argv[2]) * 1024)
os.fsync(fd)
PY
mount -t "$FS" -o errors=continue "$DISK" $MNT
needs_cleaning timeout 20 dd if=$MNT/circle of=/dev/null iflag=direct bs=4096 skip=$(((12 + 256 + 65536 + 5) / 4)) count=1
said 'inode [0-9]+: block [0-9]+: indirect block leads to itself'
timeout 20 "$REXT4" scrub $MNT >/dev/null 2>&1 || [ $? != 124 ] || die "scrub does not end"
timeout 20 rm $MNT/circle || die "rm does not end"
umount $MNT
finish
