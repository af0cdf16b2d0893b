# SPDX-License-Identifier: GPL-2.0
# kernels: uml/2
# oracles: log e2fsck model
# Wrong counts of blocks (i_blocks) of files and directories are found and corrected by one scrub
# while the files are written, cloned and truncated.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

ino() { stat -c %i "$MNT/$1"; }

for options in '' '-O ^extents,^64bit' '-O ^metadata_csum'; do
    # shellcheck disable=SC2086
    mkfs.ext4 -q -F -b 1024 -I 256 $options "$DISK" 160M
    mount -t rext4 "$DISK" $MNT
    mkdir $MNT/dir
    head -c 300K /dev/urandom >$MNT/dir/plain
    # Enough extents for nodes of the mapping.
    python3 -c '
import os, sys
with open(sys.argv[1], "wb") as f:
    for i in range(300):
        f.seek(i * 3072)
        f.write(os.urandom(1024))' $MNT/dir/holes
    head -c 40K /dev/urandom >$MNT/dir/busy
    setfattr -n user.long -v "$(head -c 700 /dev/zero | tr '\0' x)" $MNT/dir/plain
    ln -s "$(head -c 200 /dev/zero | tr '\0' y)" $MNT/dir/link
    settled $MNT
    ( cd $MNT && sha256sum dir/plain dir/holes ) >/tmp/sums
    numbers=$(ino dir; ino dir/plain; ino dir/holes; ino dir/busy; ino dir/link)
    umount $MNT
    dmesg -C
    count=1
    for inode in $numbers; do
        debugfs -w -R "sif <$inode> blocks $((count * 7 % 5000))" "$DISK" 2>/dev/null
        count=$((count * 91))
    done
    mount -t rext4 "$DISK" $MNT
    ( for round in $(seq 60); do
        head -c $((round * 7919 % 200000)) /dev/zero >>$MNT/dir/busy
        [ $((round % 3)) != 0 ] || truncate -s $((round * 100)) $MNT/dir/busy
      done ) & writer=$!
    ends_with 4 "$REXT4" scrub --type inode $MNT
    ends_with 1 "$REXT4" scrub --repair --type inode $MNT
    for round in 1 2 3; do ends_with 0 "$REXT4" scrub --type inode $MNT; done
    wait $writer
    ends_with 0 "$REXT4" scrub --repair $MNT
    ( cd $MNT && model sha256sum --quiet -c /tmp/sums )
    umount $MNT
    clean "$DISK"
    for inode in $numbers; do
        [ "$inode" = "$(echo "$numbers" | sed -n 4p)" ] || said "inode: inode $inode: i_blocks is [0-9]+, should be [0-9]+"
    done
done

# The flag that says that the count is in blocks.
mount -t rext4 "$DISK" $MNT; inode=$(ino dir/plain); umount $MNT
flags=$(debugfs -R "stat <$inode>" "$DISK" 2>/dev/null | sed -n 's/.*Flags: \(0x[0-9a-f]*\).*/\1/p')
debugfs -w -R "sif <$inode> flags $((flags | 0x40000))" "$DISK" 2>/dev/null
mount -t rext4 "$DISK" $MNT
ends_with 1 "$REXT4" scrub --repair $MNT
umount $MNT
clean "$DISK"

# An inode whose mapping is damaged is reported and left alone; the others are corrected.
mount -t rext4 "$DISK" $MNT; bad=$(ino dir/holes); umount $MNT
debugfs -w -R "sif <$bad> block[0] 0" "$DISK" 2>/dev/null
debugfs -w -R "sif <$inode> blocks 2" "$DISK" 2>/dev/null
mount -t rext4 "$DISK" $MNT
ends_with 4 "$REXT4" scrub --repair --type inode $MNT
said "inode: inode $bad cannot be checked"
said "inode: inode $inode: i_blocks is 2, should be"
umount $MNT
debugfs -R "stat <$inode>" "$DISK" 2>/dev/null | grep -q 'Blockcount: 6[0-9][0-9]' || die "the count of a sound inode was not corrected"

finish
