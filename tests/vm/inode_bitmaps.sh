# SPDX-License-Identifier: GPL-2.0
# kernels: uml/2
# oracles: log e2fsck model
# A single scrub repairs damaged inode bitmaps, counts of inodes and directories, and flags of
# groups while files and directories are made and removed. An inode that looks free, but owns blocks
# or has a name, keeps its bit.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

edit() { debugfs -w -R "$1" "$DISK" 2>/dev/null; }
marked() { debugfs -R "testi <$1>" "$DISK" 2>/dev/null | grep -q 'marked in use'; }
# fresh OPTION...: create a volume with several groups and some files, and a good reverse map.
fresh() {
    umount $MNT 2>/dev/null || true
    mkfs.ext4 -q -F -b 1024 "$@" "$DISK" 160M
    mount -t rext4 "$DISK" $MNT
    for i in 1 2 3 4 5 6 7 8; do
        mkdir -p $MNT/d$i/sub/deep
        head -c $((i * 15))K /dev/urandom >$MNT/d$i/file
        ln -s a$i $MNT/d$i/link
    done
    settled $MNT
    ( cd $MNT && sha256sum d*/file ) >/tmp/sums
    file=$(stat -c %i $MNT/d3/file)
    dir=$(stat -c %i $MNT/d4/sub)
    group=$(((file - 1) / $(dumpe2fs -h "$DISK" 2>/dev/null | awk '/^Inodes per group:/ { print $4 }')))
    last=$(dumpe2fs -h "$DISK" 2>/dev/null | awk '/^Inode count:/ { print $3 }')
    umount $MNT
    dmesg -C
}
# churn: make and remove files, links and directories until /tmp/stop exists.
churn() {
    local round=0
    while [ ! -e /tmp/stop ]; do
        round=$((round + 1))
        mkdir -p $MNT/d1/w$((round % 5))/x $MNT/w$((round % 9))
        : >$MNT/d1/w$((round % 5))/f
        rm -rf $MNT/d1/w$((round * 3 % 5)) $MNT/w$((round * 4 % 9))
    done
}
# repaired: after one scrub under writers, e2fsck finds nothing wrong, and the files are unchanged.
repaired() {
    mount -t rext4 "$DISK" $MNT
    rm -f /tmp/stop
    churn 2>/dev/null & churn=$!
    ends_with 4 "$REXT4" scrub --type inode-bitmap $MNT
    ends_with 1 "$REXT4" scrub --repair $MNT
    for round in 1 2 3; do ends_with 0 "$REXT4" scrub --type inode-bitmap $MNT; done
    touch /tmp/stop; wait $churn
    ends_with 0 "$REXT4" scrub $MNT
    ( cd $MNT && model sha256sum --quiet -c /tmp/sums )
    umount $MNT
    clean "$DISK"
}

# Bits of a file and of a directory are cleared.
fresh
edit "freei <$file>"
edit "freei <$dir>"
repaired
marked "$file" || die "the file's bit is still clear"
said "inode-bitmap: inode $file is free in the inode bitmap but in use"

# Bits of free inodes are set, also in a group that was never used.
fresh
edit "seti <$((file + 40))>"
edit "seti <$((last - 7))>"
repaired
said "inode-bitmap: inode $((file + 40)) is marked in use but free"
! marked $((last - 7)) || die "the free inode is still marked in use"

# Counts, with each kind of descriptor checksums.
for features in metadata_csum ^metadata_csum,uninit_bg ^metadata_csum,^uninit_bg; do
    fresh -O "$features"
    edit "set_bg $group free_inodes_count 17"
    edit "set_bg $group used_dirs_count 3"
    edit "set_bg $group checksum calc"
    edit "freei <$file>"
    repaired
    said "inode-bitmap: group $group: counts 17 free inodes"
done

# The flag of a bitmap that was never written, and the count of never used inodes, on a group in
# use.
fresh
edit "set_bg $group flags 1"
edit "set_bg $group checksum calc"
repaired
fresh
edit "set_bg $group itable_unused $(debugfs -R stats "$DISK" 2>/dev/null | awk '/^Inodes per group:/ { print $4 }')"
edit "set_bg $group checksum calc"
repaired
said "inode-bitmap: group $group: counts [0-9]+ never used inodes"

# A bitmap that was overwritten with garbage. Afterwards all inodes of the group can be allocated.
fresh
bitmap=$(dumpe2fs "$DISK" 2>/dev/null | awk -v group="$group:" '/^Group/ { here = $2 == group } here && /Inode bitmap at/ { print $4; exit }' | tr -d ,)
dd if=/dev/urandom of="$DISK" bs=1024 seek="$bitmap" count=1 conv=notrunc status=none
repaired

# Deleted files that are open are neither freed nor counted as wrong.
fresh
mount -t rext4 "$DISK" $MNT
exec 7>$MNT/d2/open; echo kept >&7; rm $MNT/d2/open
exec 8<$MNT/d5/sub/deep; rmdir $MNT/d5/sub/deep
ends_with 0 "$REXT4" scrub --repair --type inode-bitmap $MNT
exec 7>&- 8<&-
umount $MNT
clean "$DISK"

# A slot that was overwritten looks free. It owns blocks, or has at least a name.
for victim in file link; do
    fresh
    mount -t rext4 "$DISK" $MNT; victim=$(stat -c %i $MNT/d3/$victim); umount $MNT
    edit "clri <$victim>"
    mount -t rext4 "$DISK" $MNT
    ends_with 4 "$REXT4" scrub --repair --type inode-bitmap $MNT
    umount $MNT
    marked "$victim" || die "inode $victim was freed although it has a name"
    said "inode-bitmap: inode $victim is marked in use and its slot is free, but it owns blocks or has a name"
done

finish
