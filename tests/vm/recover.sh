# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: log e2fsck
# A volume that was not unmounted: the journal is replayed, and committed data is there.
. "$(dirname "$0")/lib.sh"

COPY=$DISK2
for block in 1024 4096; do
    mke2fs -q -F -t ext4 -b $block "$DISK" 64M
    mount -t ext4 "$DISK" $MNT
    mkdir $MNT/d
    sync
    for i in $(seq 1 300); do echo "$i" >$MNT/d/file-$i; done
    mv $MNT/d/file-1 $MNT/d/renamed
    rm $MNT/d/file-2
    # Committed, but not checkpointed: the copy is the state that a power cut would leave.
    python3 -c 'import os; os.fsync(os.open("/mnt/d", os.O_RDONLY))'
    sync -f $MNT/d/renamed
    dd if="$DISK" of="$COPY" bs=1M count=64 iflag=direct oflag=direct status=none
    dumpe2fs -h "$COPY" 2>/dev/null | grep -q needs_recovery || die "the copy needs no recovery"
    listing $MNT | sed 's/|[^|]*|[^|]*|[^|]*|[^|]*$//' >/tmp/live.list
    umount $MNT

    mount -t rext4 -o ro "$COPY" $MNT
    listing $MNT | sed 's/|[^|]*|[^|]*|[^|]*|[^|]*$//' >/tmp/ours.list
    umount $MNT
    same /tmp/live.list /tmp/ours.list
    grep -q '^d/renamed' /tmp/ours.list || die "the rename is lost"
    logged "rext4: ${COPY##*/}: the journal was replayed" || die "no log message about the replay"
    ! dumpe2fs -h "$COPY" 2>/dev/null | grep -q needs_recovery || die "the volume still needs recovery"
    clean "$COPY"

    # A read-only device is not mounted unless the journal is to be ignored.
    dmesg -C
    debugfs -w -R 'feature needs_recovery' "$COPY" >/dev/null 2>&1
    blockdev --setro "$COPY"
    must_fail mount -t rext4 -o ro "$COPY" $MNT 2>/dev/null
    logged 'the device is read-only' || die "there is no log message about the refusal"
    mount -t rext4 -o ro,norecovery "$COPY" $MNT
    [ -e $MNT/d/renamed ] || die "files are missing with norecovery"
    umount $MNT
    blockdev --setrw "$COPY"
done
finish
