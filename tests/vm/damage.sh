# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: log
# Damaged volumes: the right errno and a log line with the inode or block, and never a crash.
. "$(dirname "$0")/lib.sh"

GOOD=$DISK2
mke2fs -q -F -t ext4 -b 1024 "$GOOD" 32M
mount -t ext4 "$GOOD" $MNT
mkdir $MNT/dir
for i in $(seq 1 400); do echo "$i" >$MNT/dir/a-file-with-a-name-$i; done
python3 - <<'PY'
import os
fd = os.open("/mnt/fragments", os.O_WRONLY | os.O_CREAT)
for i in range(600):
    os.pwrite(fd, b"x", i * 4096)
os.close(fd)
PY
umount $MNT
clean "$GOOD"

fresh() { dd if="$GOOD" of="$DISK" bs=1M count=32 conv=fsync status=none; dmesg -C; }
# flip BYTE...: damage the volume at these offsets.
flip() {
    python3 - "$DISK" "$@" <<'PY'
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for at in map(int, sys.argv[2:]):
    byte = os.pread(fd, 1, at)
    os.pwrite(fd, bytes([byte[0] ^ 0x55]), at)
os.fsync(fd)
PY
    blockdev --flushbufs "$DISK"
}

fresh; flip 1128
must_fail mount -t rext4 -o ro "$DISK" $MNT 2>/dev/null
said 'superblock: superblock checksum mismatch'

fresh; debugfs -w -R 'feature encrypt' "$DISK" >/dev/null 2>&1
must_fail mount -t rext4 -o ro "$DISK" $MNT 2>/dev/null
said 'the feature encrypt is not supported'

fresh; flip 2056
must_fail mount -t rext4 -o ro "$DISK" $MNT 2>/dev/null
said 'group 0: descriptor checksum mismatch'

# A descriptor with the right locations can be used for reading even if its checksum is wrong, but
# not for writing.
fresh; flip 2060
must_fail mount -t rext4 "$DISK" $MNT 2>/dev/null
said 'group 0: descriptor checksum mismatch'
mount -t rext4 -o ro "$DISK" $MNT
[ "$(ls $MNT/dir | wc -l)" = 400 ] || die "not all files are there"
cat $MNT/dir/* | cmp - <(cd $MNT/dir && for file in *; do echo "${file##*-}"; done) || die "not all files can be read"
must_fail mount -o remount,rw $MNT 2>/dev/null
umount $MNT

fresh
where=$(debugfs -R 'imap /fragments' "$DISK" 2>/dev/null | sed -n 's/.*located at block \([0-9]*\), offset 0x\([0-9a-f]*\).*/\1 \2/p')
flip $(( ${where% *} * 1024 + 0x${where#* } + 4 ))
mount -t rext4 -o ro "$DISK" $MNT
bad_message stat $MNT/fragments
said 'inode [0-9]+: block [0-9]+: inode checksum mismatch'
[ "$(ls $MNT/dir | wc -l)" = 400 ] || die "the rest of the volume is not there"
umount $MNT

fresh
# The second line is the first index entry: level, entries, file blocks, and the child node.
leaf=$(debugfs -R 'extents /fragments' "$DISK" 2>/dev/null | awk 'NR == 2 { print $8 }')
flip $(( leaf * 1024 + 100 ))
mount -t rext4 -o ro "$DISK" $MNT
# A read through the page cache reports EIO, as on stock ext4.
must_fail cat $MNT/fragments >/tmp/out 2>&1
said "inode [0-9]+: block $leaf: extent node checksum mismatch"
umount $MNT

fresh
flip $(( $(debugfs -R 'blocks /dir' "$DISK" 2>/dev/null | awk '{ print $4 }') * 1024 + 30 ))
mount -t rext4 -o ro "$DISK" $MNT
bad_message ls $MNT/dir
said 'inode [0-9]+: block [0-9]+: directory block checksum mismatch'
umount $MNT

# Random damage of any kind: every file is accessed, and nothing but errors may result. Without
# checksums, the damage reaches all further checks.
mke2fs -q -F -t ext4 -b 1024 -O ^metadata_csum,^uninit_bg "$GOOD" 32M
mount -t ext4 "$GOOD" $MNT
mkdir -p $MNT/dir/sub
for i in $(seq 1 100); do echo "$i" >$MNT/dir/file-$i; ln -s "$(printf 'l%.0s' $(seq 1 $i))" $MNT/dir/sub/link-$i; done
python3 -c '
import os
fd = os.open("/mnt/fragments", os.O_WRONLY | os.O_CREAT)
for i in range(600): os.pwrite(fd, b"x", i * 4096)'
umount $MNT
# The metadata and most of the data are in the first blocks.
used=3000
mounted=0
for seed in $(seq 1 16); do
    fresh
    python3 - "$DISK" "$seed" "$used" <<'PY'
import os, random, sys
rng = random.Random(int(sys.argv[2]))
fd = os.open(sys.argv[1], os.O_RDWR)
for _ in range(400):
    at = rng.randrange(2048, int(sys.argv[3]) * 1024)
    os.pwrite(fd, bytes([rng.randrange(256)]), at)
os.fsync(fd)
PY
    blockdev --flushbufs "$DISK"
    if mount -t rext4 -o ro "$DISK" $MNT 2>/dev/null; then
        mounted=$((mounted + 1))
        timeout 60 find $MNT -printf '%p %l\n' >/dev/null 2>&1 || true
        timeout 60 find $MNT -type f -size -1000k -exec cat {} + >/dev/null 2>&1 || true
        umount $MNT
    fi
done
echo "$mounted of 16 damaged volumes could be mounted"
[ "$mounted" -ge 5 ] || die "too few for a meaningful test"
finish
