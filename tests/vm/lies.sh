# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: log e2fsck
# Volumes with valid checksums over wrong contents: fixed metadata is neither allocated, nor freed,
# nor written through a mapping that refers to it; impossible sizes and counts are rejected.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

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
    # A long symbolic link takes the first free block of the group, which is one of those.
    ln -s "$(printf %0100d 0)" $MNT/link || die "one bad bitmap made a link fail"
    dd if=/dev/urandom of=$MNT/new bs=64k count=500 conv=fsync status=none || die "one bad bitmap made a write fail"
    must_fail dd if=/dev/urandom of=$MNT/more bs=64k count=1000 2>/tmp/out
    grep -q 'No space left' /tmp/out || { cat /tmp/out; die "unexpected error"; }
    umount $MNT
}
# The directory of the trees may be made in that group, with inodes at the start of its table.
unchanged $((table + 100)) 156 taken
said 'group [0-9]+: blocks of the file system are free'
said 'group [0-9]+: no blocks are allocated in it until its bitmap is repaired'
[ "$(dmesg | grep -c 'no blocks are allocated in it')" = 1 ] || die "a fenced group is logged more than once"

echo "a file that has more blocks than i_blocks counts"
volume
echo 'sif /file blocks 4' | debug
[ "$(show 'stat /file' | grep -o 'Blockcount: [0-9]*')" = 'Blockcount: 4' ] || die "i_blocks was not set"
mount -t rext4 -o errors=continue "$DISK" $MNT
truncate -s 1000 $MNT/file
sync
head -c 1M /dev/urandom >$MNT/new
sync
said 'inode [0-9]+: i_blocks is smaller than its number of blocks'
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

echo "extended attributes in an inode table"
volume
table=$(field 'Inode table')
mount -t ext4 "$DISK" $MNT
python3 -c 'import os, sys; os.setxattr(sys.argv[1], "user.long", b"x" * 700)' $MNT/file
umount $MNT
echo "sif /file file_acl $((table + 100))" | debug
mount -t rext4 -o errors=continue "$DISK" $MNT
hidden() {
    needs_cleaning getfattr -d $MNT/file
    needs_cleaning setfattr -n user.other -v "$(head -c 600 /dev/zero | tr '\0' y)" $MNT/file
    rm $MNT/file || true
    umount $MNT
}
unchanged $((table + 100)) 1 hidden
said 'inode [0-9]+: block [0-9]+: mapping leads to blocks of the file system'

echo "all pointers of a mapping lead to one block, over three levels"
# many FILE BLOCKS: create a file of this many blocks, mapped by three levels of indirect blocks
# that all lead to the same few.
many() {
    python3 - "$DISK" "$1" "$2" <<'PY'
import os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
blocks = list(map(int, sys.argv[3].split()))
for block, below in zip(blocks, blocks[1:]):
    os.pwrite(fd, struct.pack("<I", below) * 256, block * 1024)
os.fsync(fd)
PY
    printf '%s\n' "sif <$1> block[TIND] ${2%% *}" "sif <$1> size 17000000000" | debug
    blockdev --flushbufs "$DISK"
}
volume -O ^extent,^metadata_csum,^64bit
mount -t ext4 "$DISK" $MNT
head -c 4096 /dev/urandom >$MNT/four
ino=$(stat -c %i $MNT/other)
umount $MNT
four=$(show 'blocks /four')
# The pointer leads to the file's own blocks, so no other file is harmed. The journal cannot be
# read, but the rest can.
many 8 "$four"
must_fail timeout 20 mount -t rext4 "$DISK" $MNT 2>/dev/null
timeout 20 mount -t rext4 -o ro "$DISK" $MNT || die "a damaged journal refuses a read-only mount, or takes for ever"
said 'inode 8: block [0-9]+: indirect blocks lead to more blocks than there are'
# The file whose blocks the journal claims is an error, the rest can be read.
timeout 20 cat $MNT/file $MNT/other >/dev/null || die "not all can be read"
umount $MNT
volume -O ^extent,^metadata_csum,^64bit
mount -t ext4 "$DISK" $MNT
head -c 4096 /dev/urandom >$MNT/four
umount $MNT
many "$ino" "$(show 'blocks /four')"
mount -t rext4 -o errors=continue "$DISK" $MNT
for try in $(seq 100); do
    ! logged "inode $ino: cannot be scanned" || break
    sleep 0.1
done
said "inode $ino: block [0-9]+: indirect blocks lead to more blocks than there are"
said "inode $ino: cannot be scanned"
status=0; timeout 20 "$REXT4" scrub $MNT >/dev/null 2>&1 || status=$?
[ $status = 4 ] || die "scrub ends with $status"
timeout 20 rm $MNT/other || die "rm does not end"
echo more >$MNT/more || die "one damaged file stops the volume"
timeout 20 umount $MNT

echo "all entries of an extent node lead to one leaf"
volume -O ^metadata_csum
mount -t ext4 "$DISK" $MNT
python3 - $MNT/pieces <<'PY'
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
for i in range(1500): os.pwrite(fd, b"x", i * 4096)
PY
ino=$(stat -c %i $MNT/pieces)
umount $MNT
node=$(show 'extents /pieces' | awk '$1 == "0/" { print $8; exit }')
[ -n "$node" ] || die "no node"
python3 - "$DISK" "$node" <<'PY'
import os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
at = int(sys.argv[2]) * 1024
magic, entries = struct.unpack("<HH", os.pread(fd, 4, at))
assert magic == 0xf30a and entries > 3, (magic, entries)
first = os.pread(fd, 12, at + 12)
for i in range(1, entries):
    entry = os.pread(fd, 12, at + 12 + 12 * i)
    os.pwrite(fd, entry[:4] + first[4:], at + 12 + 12 * i)
os.fsync(fd)
PY
blockdev --flushbufs "$DISK"
mount -t rext4 -o errors=continue "$DISK" $MNT
must_fail timeout 20 cat $MNT/pieces >/dev/null 2>&1
said "inode $ino: block [0-9]+: extents? .*(out of order|beyond its node)"
timeout 20 rm $MNT/pieces || true
timeout 20 umount $MNT

# poke BYTE MASK: changes a byte of the volume in use, in the cache that its metadata is in.
poke() {
    python3 -c '
import os, sys
fd, at, mask = os.open(sys.argv[1], os.O_RDWR), int(sys.argv[2]), int(sys.argv[3])
os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ mask]), at)' "$DISK" "$1" "$2"
}

echo "a descriptor that is damaged while the volume is in use stays with its group"
volume
mount -t rext4 -o errors=continue "$DISK" $MNT
settled $MNT
sync
# Of group 0, in which the root and its files are.
poke $((2048 + 30)) 85
for i in $(seq 20); do echo "$i" >$MNT/new-$i || die "one bad descriptor fails a create"; done
head -c 100000 /dev/urandom >$MNT/new
sync -f $MNT/new
rm $MNT/file || die "one bad descriptor fails an unlink"
said 'group 0: descriptor checksum mismatch'
said 'group 0: no inodes are allocated in it'
[ "$(cat $MNT/new-7)" = 7 ] || die "a new file is not there"
umount $MNT

echo "an inode that is in use without a name, and free in the bitmap, is not taken"
volume -O ^metadata_csum
mount -t rext4 -o errors=continue "$DISK" $MNT
settled $MNT
echo kept >$MNT/open
exec 9<$MNT/open
ino=$(stat -c %i $MNT/open)
rm $MNT/open
sync
poke $(($(field 'Inode bitmap') * 1024 + (ino - 1) / 8)) $((1 << (ino - 1) % 8))
for i in $(seq 5); do
    echo new >$MNT/new-$i
    [ "$(stat -c %i $MNT/new-$i)" != "$ino" ] || die "the number was taken"
done
said "inode $ino: free in the inode bitmap, in use in memory"
[ "$(cat <&9)" = kept ] || die "the open file was lost"
exec 9<&-
umount $MNT

echo "counts of a group that cannot be"
volume
echo "set_bg 0 used_dirs_count 65535" | debug
echo "set_bg 0 checksum calc" | debug
must_fail mount -t rext4 "$DISK" $MNT 2>/dev/null
said 'group 0: more directories than inodes'
mount -t rext4 -o ro "$DISK" $MNT || die "a wrong count refuses a read-only mount"
umount $MNT

echo "an orphan file that is too large"
volume
orphans=$(show 'stats -h' | sed -n 's/^Orphan file inode: *//p')
echo "sif <$orphans> size 4294966272" | debug
mount -t rext4 -o ro "$DISK" $MNT || die "a bad orphan file refuses a read-only mount"
umount $MNT
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
[ "$(stat -f -c %a $MNT)" -le 1 ] || die "$(stat -f -c %a $MNT) unreserved blocks were left"
must_fail as 77 "head -c 4096 /dev/zero >$MNT/open/more" 2>/dev/null
as 1234 "head -c 400000 /dev/zero >$MNT/open/his" || die "the user named in the superblock got no blocks"
umount $MNT
clean "$DISK"
finish
