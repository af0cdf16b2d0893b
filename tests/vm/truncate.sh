# SPDX-License-Identifier: GPL-2.0
# kernels: uml debug/2
# oracles: model ext4 e2fsck owners
# A file under random writes, reads, mappings and changes of size has the contents of a model, in
# memory and on disk, also while another process faults its pages in.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

operations=1500
is_slow && operations=500
for block in 1024 4096; do
    echo "blocks of $block bytes"
    mke2fs -q -F -t ext4 -b $block "$DISK" 64M
    mount -t "$FS" -o noatime "$DISK" $MNT
    model python3 "$HERE/truncate.py" $MNT $block $operations
    judge
done
finish
