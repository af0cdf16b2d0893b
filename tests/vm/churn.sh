# SPDX-License-Identifier: GPL-2.0
# kernels: uml/2
# oracles: e2fsck owners
# What one transaction gives back and the next takes again, while the first is still on its way to the disk: inodes, blocks
# of their tables, of directories, links and mappings.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

for block in 1024 4096; do
    mke2fs -q -F -t ext4 -b "$block" "$DISK" 300M
    mount -t "$FS" "$DISK" $MNT
    mkdir $MNT/d
    python3 "$HERE/churn.py" $MNT/d 250 || die "churn, blocks of $block"
    umount $MNT
    clean "$DISK"
    owned "$DISK"
done
finish
