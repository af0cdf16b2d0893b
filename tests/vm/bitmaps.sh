# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: log e2fsck model
# One scrub makes damaged block bitmaps and free counts right again, under writers: blocks in use that are marked free, blocks
# that nobody owns, a wrong checksum, padding, free counts. Blocks that the reverse map or an unreadable inode may own are not
# freed, and no file changes.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

# ends_with STATUS COMMAND...
ends_with() {
    local want=$1 status=0; shift
    "$@" >/tmp/scrub.log 2>&1 || status=$?
    [ $status = "$want" ] || { cat /tmp/scrub.log; dmesg | tail -20; die "$*: status $status, not $want"; }
}
blocks() { debugfs -R "blocks <$1>" "$DISK" 2>/dev/null; }
testb() { debugfs -R "testb $1 1" "$DISK" 2>/dev/null; }
# free_behind: a free block with 1,000 free ones behind it, in the group of the file.
free_behind() { echo $(($(blocks "$file" | awk '{ print $NF }') + 1000)); }
# fresh OPTION...: a volume of several groups and regions with some files, whose reverse map is good.
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
# repaired: what was damaged is whole after one scrub, by e2fsck's word, and so are the files.
repaired() {
    mount -t rext4 "$DISK" $MNT
    ends_with 4 "$REXT4" scrub $MNT
    ends_with 1 "$REXT4" scrub --repair $MNT
    ends_with 0 "$REXT4" scrub $MNT
    ( cd $MNT && model sha256sum --quiet -c /tmp/sums )
    umount $MNT
    clean "$DISK"
}

# Blocks of a file that are marked free; the file is named.
fresh
debugfs -w -R "freeb $(blocks "$file" | cut -d' ' -f20) 21" "$DISK" 2>/dev/null
repaired
said "bitmap: block $(blocks "$file" | cut -d' ' -f20) is free in the block bitmap but belongs to .* of inode $file"
said "bitmap: region [0-9]+: [0-9]+ groups repaired, 21 blocks marked in use, 0 blocks freed"

# Blocks of fixed metadata that are marked free: one of an inode table.
fresh
table=$(dumpe2fs "$DISK" 2>/dev/null | awk '/Inode table at/ { sub(/-.*/, "", $4); print $4; exit }')
debugfs -w -R "freeb $((table + 3)) 2" "$DISK" 2>/dev/null
repaired

# Blocks that nobody owns, in the group of a file.
fresh
behind=$(free_behind)
debugfs -w -R "setb $behind 300" "$DISK" 2>/dev/null
debugfs -w -R "setb $((behind + 401)) 7" "$DISK" 2>/dev/null
repaired
said "bitmap: blocks $behind-$((behind + 299)) are marked in use but have no owner"

# A bitmap that was overwritten with garbage has a wrong checksum. No files can be made in its group, and all can afterwards.
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

# Free counts, with and without checksums.
for features in metadata_csum ^metadata_csum,uninit_bg ^metadata_csum,^uninit_bg; do
    fresh -O "$features"
    debugfs -w -R 'set_bg 0 free_blocks_count 17' "$DISK" 2>/dev/null
    debugfs -w -R 'set_bg 0 checksum calc' "$DISK" 2>/dev/null
    debugfs -w -R 'freeb 3000 5' "$DISK" 2>/dev/null
    repaired
done

# All of it at once, while files come and go.
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

# Nothing tells the mount that a bitmap without a checksum has changed, and the reverse map is good. No block of the file is
# given to another one all the same, its group is closed to allocation until the bitmap is repaired.
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

# Somebody may own what no readable inode does: nothing is freed, and it is said.
fresh
behind=$(free_behind)
debugfs -w -R "setb $behind 64" "$DISK" 2>/dev/null
debugfs -w -R "set_inode_field <$file> extra_isize 4000" "$DISK" 2>/dev/null
mount -t rext4 "$DISK" $MNT
ends_with 4 "$REXT4" scrub --repair --type bitmap $MNT
umount $MNT
testb $behind | grep -q 'marked in use' || die "a block was freed that an unreadable inode may own"

finish
