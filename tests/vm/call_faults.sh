# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: model e2fsck owners
# long: 3000
# Each point at which a system call can fail does so in turn: memory allocations, disk requests,
# block allocations. The call has happened or has not, and can be repeated; the volume is in order,
# and the disk has what was seen in memory. Ten calls (56 in the long form), mount and unmount.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

calls="create symlink_block rename_over rename_whiteout truncate_down punch write_append write_shared
    setxattr_grow clone"
if is_long; then calls=$(python3 "$HERE/call_faults.py" list); fi

for how in memory disk space; do
    for call in $calls; do
        mke2fs -q -F -t ext4 -b 1024 -N 2048 "$DISK" 24M
        mount -t "$FS" "$DISK" $MNT
        settled $MNT
        model python3 "$HERE/call_faults.py" run $how $MNT /tmp/snapshot "$call" || die "$call, $how"
        umount $MNT
        # The next mount completes what a disk error has left undone.
        if [ $how = disk ]; then mount -t "$FS" "$DISK" $MNT; settled $MNT; umount $MNT; fi
        clean "$DISK"
        owned "$DISK"
        mount -t "$FS" "$DISK" $MNT
        model python3 "$HERE/call_faults.py" compare $MNT /tmp/snapshot ||
            die "$call, $how: memory and disk differ"
        umount $MNT
    done
done

# Without a journal: jbd2 warns when it removes a file in /proc that it could not create.
mke2fs -q -F -t ext4 -O ^has_journal -b 1024 "$DISK" 24M
model python3 "$HERE/call_faults.py" mounts "$DISK" $MNT "$FS" || die "mounting or unmounting"
clean "$DISK"
finish
