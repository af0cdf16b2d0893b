# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: log e2fsck
# Volumes with valid checksums over wrong contents: fixed metadata is neither allocated, nor freed,
# nor written through a mapping that refers to it; impossible sizes and counts are rejected.
. "$(dirname "$0")/lib.sh"

debug() { debugfs -w -f - "$DISK" >/dev/null 2>&1; }
show() { debugfs -R "$1" "$DISK" 2>/dev/null; }
field() { dumpe2fs "$DISK" 2>/dev/null | sed -n "s/.*$1 at \([0-9]*\).*/\1/p" | head -n 1; }
# unchanged BLOCK LEN COMMAND...: the command must not change these blocks.
unchanged() {
    local before after at=$1 len=$2; shift 2
    before=$(dd if="$DISK" bs=1024 skip="$at" count="$len" status=none iflag=direct | sha256sum)
    "$@"
    after=$(dd if="$DISK" bs=1024 skip="$at" count="$len" status=none iflag=direct | sha256sum)
    [ "$before" = "$after" ] || die "blocks $at to $((at + len - 1)) were written"
}
volume() {
    mke2fs -q -F -t ext4 -b 1024 "$@" "$DISK" 64M
    mount -t ext4 "$DISK" $MNT
    head -c 20000 /dev/urandom >$MNT/file
    head -c 20000 /dev/urandom >$MNT/other
    mkdir $MNT/dir $MNT/dir/sub
    umount $MNT
    dmesg -C
}

echo "the bitmap calls an inode table free, that of another group in the flex group"
volume
table=$(dumpe2fs "$DISK" 2>/dev/null | sed -n 's/.*Inode table at \([0-9]*\)-.*/\1/p' | sed -n 3p)
echo "freeb $table 256" | debug
mount -t rext4 "$DISK" $MNT
# The group is skipped from then on; the rest of the volume remains writable.
taken() {
    dd if=/dev/urandom of=$MNT/new bs=64k count=500 conv=fsync status=none || die "one bad bitmap fails a write"
    must_fail dd if=/dev/urandom of=$MNT/more bs=64k count=1000 2>/tmp/out
    grep -q 'No space left' /tmp/out || { cat /tmp/out; die "another error"; }
    umount $MNT
}
unchanged "$table" 256 taken
said 'group [0-9]+: blocks of the file system are free'
said 'group [0-9]+: no blocks are allocated in it until its bitmap is repaired'
[ "$(dmesg | grep -c 'no blocks are allocated in it')" = 1 ] || die "a fenced group is told of more than once"

echo "a file that has more blocks than i_blocks counts"
volume
echo 'sif /file blocks 4' | debug
[ "$(show 'stat /file' | grep -o 'Blockcount: [0-9]*')" = 'Blockcount: 4' ] || die "i_blocks was not set"
mount -t rext4 -o errors=continue "$DISK" $MNT
truncate -s 1000 $MNT/file
sync
head -c 1M /dev/urandom >$MNT/new
sync
said 'inode [0-9]+: i_blocks is smaller than the blocks it has'
umount $MNT
[ "$(show 'blocks /file' | wc -w)" = 1 ] || die "the file was not cut on disk"
e2fsck -fn "$DISK" >/tmp/out 2>&1 || true
! grep -qE 'ultiply-claimed|bitmap differences' /tmp/out || { cat /tmp/out; die "blocks were freed that are in use"; }

echo "a mapping leads to an inode table, another to the journal"
volume
table=$(field 'Inode table')
journal=$(show 'blocks <8>' | tr ' ' '\n' | sed -n 40p)
printf 'sif /file block[5] %s\nsif /other block[5] %s\n' "$((table + 100))" "$journal" | debug
mount -t rext4 "$DISK" $MNT
misled() {
    must_fail dd if=$MNT/file of=/dev/null status=none 2>/dev/null
    must_fail dd if=/dev/zero of=$MNT/file bs=4k count=1 conv=notrunc,fsync status=none 2>/dev/null
    must_fail dd if=/dev/zero of=$MNT/other bs=4k count=1 conv=notrunc,fsync status=none 2>/dev/null
    rm $MNT/file $MNT/other
    umount $MNT
}
# No inode in use is stored there.
unchanged $((table + 100)) 16 misled
said 'inode [0-9]+: block [0-9]+: mapping leads to blocks of the file system'
show "testb $((table + 100)) 20" >/tmp/out
! grep -q 'not in use' /tmp/out || die "blocks of the inode table were freed"

echo "directories of wrong sizes"
volume
printf 'sif /dir size 5000\nsif /dir/sub size 4000000000\n' | debug
mount -t rext4 "$DISK" $MNT
needs_cleaning touch $MNT/dir/name
said 'inode [0-9]+: bad directory size'
umount $MNT
printf 'sif /dir size 1024\nsif /dir/sub size 4294966272\n' | debug
mount -t rext4 "$DISK" $MNT
needs_cleaning touch $MNT/dir/sub/name
needs_cleaning timeout 20 ls $MNT/dir/sub
umount $MNT
# A size for which the volume has room, with blocks that do not exist.
printf 'sif /dir/sub size 1048576\n' | debug
mount -t rext4 "$DISK" $MNT
needs_cleaning touch $MNT/dir/sub/name
needs_cleaning timeout 20 ls $MNT/dir/sub
said 'inode [0-9]+: hole in a directory'
umount $MNT

echo "counts of a group that cannot be"
volume
echo "set_bg 0 used_dirs_count 65535" | debug
echo "set_bg 0 checksum calc" | debug
must_fail mount -t rext4 "$DISK" $MNT 2>/dev/null
said 'group 0: more directories than inodes'

echo "an orphan file that is too large"
volume
orphans=$(show 'stats -h' | sed -n 's/^Orphan file inode: *//p')
echo "sif <$orphans> size 4294966272" | debug
mount -t rext4 "$DISK" $MNT
said "inode $orphans: bad size of the orphan file"
said "the orphan file \(inode $orphans\) cannot be read"
# A file that is deleted while open is added to the legacy list.
exec 9>$MNT/open
rm $MNT/open
exec 9>&-
umount $MNT

echo "reserved blocks are for whom the superblock names, and all else is for everybody"
mke2fs -q -F -t ext4 -b 1024 -m 20 "$DISK" 16M
tune2fs -u 1234 "$DISK" >/dev/null
mount -t rext4 "$DISK" $MNT
mkdir -m 777 $MNT/open
as() { setpriv --reuid "$1" --regid "$1" --clear-groups --inh-caps=-all --bounding-set=-all bash -c "$2"; }
must_fail as 77 "dd if=/dev/zero of=$MNT/open/many bs=1M status=none" 2>/dev/null
[ "$(stat -f -c %a $MNT)" -le 1 ] || die "$(stat -f -c %a $MNT) blocks were left that everybody may have"
must_fail as 77 "head -c 4096 /dev/zero >$MNT/open/more" 2>/dev/null
as 1234 "head -c 400000 /dev/zero >$MNT/open/his" || die "the user whom the superblock names got nothing"
umount $MNT
clean "$DISK"
finish
