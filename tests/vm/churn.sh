# SPDX-License-Identifier: GPL-2.0
# kernels: uml/2
# oracles: e2fsck owners
# Reuse of inodes, inode table blocks, directory blocks, symbolic links and mapping blocks that a
# transaction freed while that transaction is still being committed.
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
