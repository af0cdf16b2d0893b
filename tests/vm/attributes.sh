# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: e2fsck owners
# Attribute blocks shared by several inodes: each inode drops its reference, the last one frees the
# block, and the reverse map has the right owners at every step.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

for block in 1024 4096; do
    mke2fs -q -F -t ext4 -b $block "$DISK" 64M
    mount -t ext4 "$DISK" $MNT
    for i in $(seq 1 20); do
        echo "$i" >$MNT/file-$i
        setfattr -n user.long -v "$(printf 'v%.0s' $(seq 1 700))" $MNT/file-$i
    done
    umount $MNT
    debugfs -R 'stat /file-1' "$DISK" 2>/dev/null | grep -q 'File ACL: [1-9]' || die "the attributes are in the inode"
    for gone in 7 "$(seq 1 6) $(seq 8 19)" 20; do
        mount -t "$FS" "$DISK" $MNT
        settled $MNT
        for i in $gone; do rm $MNT/file-$i; done
        umount $MNT
        clean "$DISK"
        owned "$DISK"
    done
    lacks ' xattr ' /tmp/owners.list
done
finish
