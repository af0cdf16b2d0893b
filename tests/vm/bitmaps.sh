# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: log e2fsck model
# A single scrub repairs damaged block bitmaps and free counts while files are being written: blocks
# in use that are marked free, blocks without an owner, a wrong checksum, padding, free counts.
# Blocks that may have an owner, according to the reverse map or because an inode cannot be read,
# are not freed, and no file changes.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

blocks() { debugfs -R "blocks <$1>" "$DISK" 2>/dev/null; }
testb() { debugfs -R "testb $1 1" "$DISK" 2>/dev/null; }
# free_behind: print the block 1,000 blocks after the last one of the file, which is free and in the
# same group.
free_behind() { echo $(($(blocks "$file" | awk '{ print $NF }') + 1000)); }
# fresh OPTION...: create a volume with several groups and regions and some files, and a good
# reverse map.
fresh() {
    umount $MNT 2>/dev/null || true
    mkfs.ext4 -q -F -b 1024 "$@" "$DISK" 300M
    mount -t rext4 "$DISK" $MNT
    for i in 1 2 3 4 5 6 7 8; do
        mkdir $MNT/d$i
        head -c $((i * 150))K /dev/urandom >$MNT/d$i/file
    done
    settled $MNT
    ( cd $MNT && sha256sum d*/file ) >/tmp/sums
    file=$(stat -c %i $MNT/d3/file)
    umount $MNT
    dmesg -C
}
# repaired: after one scrub, e2fsck finds nothing wrong, and the files are unchanged.
repaired() {
    mount -t rext4 "$DISK" $MNT
    ends_with 4 "$REXT4" scrub $MNT
    ends_with 1 "$REXT4" scrub --repair $MNT
    ends_with 0 "$REXT4" scrub $MNT
    ( cd $MNT && model sha256sum --quiet -c /tmp/sums )
    umount $MNT
    clean "$DISK"
}

# Blocks of a file are marked free; the file is named in the log.
fresh
debugfs -w -R "freeb $(blocks "$file" | cut -d' ' -f20) 21" "$DISK" 2>/dev/null
repaired
said "bitmap: block $(blocks "$file" | cut -d' ' -f20) is free in the block bitmap but belongs to .* of inode $file"
said "bitmap: region [0-9]+: [0-9]+ groups repaired, 21 blocks marked in use, 0 blocks freed"

# Blocks of fixed metadata are marked free: one of an inode table.
fresh
table=$(dumpe2fs "$DISK" 2>/dev/null | awk '/Inode table at/ { sub(/-.*/, "", $4); print $4; exit }')
debugfs -w -R "freeb $((table + 3)) 2" "$DISK" 2>/dev/null
repaired

# Blocks without an owner, in the group of a file.
fresh
behind=$(free_behind)
debugfs -w -R "setb $behind 300" "$DISK" 2>/dev/null
debugfs -w -R "setb $((behind + 401)) 7" "$DISK" 2>/dev/null
repaired
said "bitmap: blocks $behind-$((behind + 299)) are marked in use but have no owner"

# A bitmap that was overwritten with garbage has a wrong checksum. After the repair, all free blocks
# of its group can be allocated.
fresh
bitmap=$(dumpe2fs "$DISK" 2>/dev/null | awk '/Block bitmap at/ { print $4; exit }' | tr -d ,)
dd if=/dev/urandom of="$DISK" bs=1024 seek="$bitmap" count=1 conv=notrunc status=none
repaired
mount -t rext4 "$DISK" $MNT
free=$(stat -f -c %f $MNT)
dd if=/dev/zero of=$MNT/all bs=1M status=none 2>/dev/null || true
[ "$(stat -f -c %a $MNT)" -lt 100 ] || die "not all of $free free blocks could be used"
umount $MNT
clean "$DISK"

# Wrong free counts, with and without checksums.
for features in metadata_csum ^metadata_csum,uninit_bg ^metadata_csum,^uninit_bg; do
    fresh -O "$features"
    debugfs -w -R 'set_bg 0 free_blocks_count 17' "$DISK" 2>/dev/null
    debugfs -w -R 'set_bg 0 checksum calc' "$DISK" 2>/dev/null
    debugfs -w -R 'freeb 3000 5' "$DISK" 2>/dev/null
    repaired
done

# All of this at once, while files are created and removed.
fresh
behind=$(free_behind)
debugfs -w -R "setb $behind 64" "$DISK" 2>/dev/null
debugfs -w -R "freeb $(blocks "$file" | cut -d' ' -f20) 21" "$DISK" 2>/dev/null
mount -t rext4 "$DISK" $MNT
ends_with 1 "$REXT4" scrub --repair $MNT
( for round in $(seq 40); do
    head -c $((round * 7919 % 200000)) /dev/zero >$MNT/d1/$((round % 7)); rm -f $MNT/d1/$((round * 3 % 7)); done ) &
for round in 1 2 3; do ends_with 0 "$REXT4" scrub --repair --type bitmap $MNT; done
wait $!
( cd $MNT && model sha256sum --quiet -c /tmp/sums )
umount $MNT
clean "$DISK"

# The mount cannot detect the change of a bitmap without a checksum, but the reverse map is intact:
# the blocks of the file are not allocated again, and no blocks are allocated in the group until the
# bitmap is repaired.
fresh -O ^metadata_csum
bitmap=$(dumpe2fs "$DISK" 2>/dev/null | awk -v block="$(blocks "$file" | cut -d' ' -f1)" '
    /^Group/ { split($4, range, "-"); here = block >= range[1] && block <= range[2] + 0 }
    here && /Block bitmap at/ { print $4; exit }' | tr -d ,)
dd if=/dev/zero of="$DISK" bs=1024 seek="$bitmap" count=1 conv=notrunc status=none
mount -t rext4 "$DISK" $MNT
cp $MNT/d3/file $MNT/d3/copy
dd if=/dev/zero of=$MNT/d3/all bs=1M status=none 2>/dev/null || true
( cd $MNT && model sha256sum --quiet -c /tmp/sums )
said 'group [0-9]+: blocks of (files|the file system) are free'
said 'group [0-9]+: no blocks are allocated in it until its bitmap is repaired'
rm $MNT/d3/all
ends_with 1 "$REXT4" scrub --repair $MNT
umount $MNT
clean "$DISK"

# An unreadable inode may own blocks that no readable inode owns: nothing is freed, and that is
# logged.
fresh
behind=$(free_behind)
debugfs -w -R "setb $behind 64" "$DISK" 2>/dev/null
debugfs -w -R "set_inode_field <$file> extra_isize 4000" "$DISK" 2>/dev/null
mount -t rext4 "$DISK" $MNT
ends_with 4 "$REXT4" scrub --repair --type bitmap $MNT
umount $MNT
testb $behind | grep -q 'marked in use' || die "a block was freed that an unreadable inode may own"

finish
