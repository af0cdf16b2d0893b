# SPDX-License-Identifier: GPL-2.0
# kernels: uml debug
# oracles: ext4 e2fsck
# Names on a writable volume: directories, links, symbolic links, devices, renames and deletions,
# checked by e2fsck and stock ext4, with blocks of 1 and 4 KiB.
. "$(dirname "$0")/lib.sh"

work() {
    local i
    mkdir -p $MNT/a/b/c $MNT/many
    for i in $(seq 1 400); do : >$MNT/many/an-empty-file-with-a-name-$i; done
    mkdir $MNT/a/dir-{1..60}
    ln -s a/b $MNT/short-link
    ln -s "$(printf 'x/%.0s' $(seq 1 200))" $MNT/long-link
    mknod $MNT/null c 1 3
    mknod $MNT/big-device b 300 70000
    mkfifo $MNT/fifo
    ln $MNT/many/an-empty-file-with-a-name-1 $MNT/a/hard
    mv $MNT/many/an-empty-file-with-a-name-2 $MNT/a/b/moved
    mv $MNT/many/an-empty-file-with-a-name-3 $MNT/many/an-empty-file-with-a-name-4
    mv $MNT/a/dir-1 $MNT/many/dir-moved
    mv $MNT/a/b/c $MNT/c
    mv -T $MNT/a/dir-2 $MNT/a/dir-3
    rm $MNT/many/an-empty-file-with-a-name-{5..400..3}
    rmdir $MNT/a/dir-{10..40}
    chmod 3751 $MNT/a/b/moved
    chown 70000:80000 $MNT/a/b/moved
    touch -d '1999-01-02 03:04:05.678' $MNT/fifo
    must_fail rmdir $MNT/a 2>/dev/null
    must_fail mkdir $MNT/a 2>/dev/null
    must_fail mkdir "$MNT/$(printf 'n%.0s' $(seq 1 256))" 2>/dev/null
    must_fail mv $MNT/a $MNT/a/b/inside 2>/dev/null
    must_fail ln $MNT/a $MNT/linked 2>/dev/null
    # Open and deleted: the inode is freed with the last descriptor.
    exec 9<$MNT/many/an-empty-file-with-a-name-6
    rm $MNT/many/an-empty-file-with-a-name-6
    exec 9<&-
    sync
}

blocks="1024 4096"
is_slow && blocks=1024
for block in $blocks; do
    mke2fs -q -F -t ext4 -b $block "$DISK" 200M
    mount -t rext4 "$DISK" $MNT
    work
    # The free counts of the volume, while it is mounted and afterwards.
    listing $MNT >/tmp/live.list
    mount -o remount,ro $MNT
    clean "$DISK"
    mount -o remount,rw $MNT
    mkdir $MNT/again
    rmdir $MNT/again
    umount $MNT
    clean "$DISK"
    mount -t rext4 -o ro "$DISK" $MNT; listing $MNT >/tmp/ours.list; umount $MNT
    mount -t ext4 -o ro "$DISK" $MNT; listing $MNT >/tmp/stock.list; umount $MNT
    same /tmp/ours.list /tmp/stock.list
    [ "$(wc -l </tmp/live.list)" -gt 300 ] || die "too few names for a meaningful test"
    same <(cut -d'|' -f1-7 /tmp/live.list) <(cut -d'|' -f1-7 /tmp/stock.list)

    # First stock ext4 writes, then rext4 again.
    mount -t ext4 "$DISK" $MNT; rm -r $MNT/many; mkdir $MNT/stock; head -c 3000000 /dev/urandom >$MNT/stock/data; umount $MNT
    mount -t rext4 "$DISK" $MNT; rm -r $MNT/stock $MNT/a; mkdir $MNT/ours; umount $MNT
    clean "$DISK"
done

# A full volume: the right errno, and nothing is lost.
mke2fs -q -F -t ext4 -b 1024 -N 64 "$DISK" 8M
mount -t rext4 "$DISK" $MNT
must_fail mkdir $MNT/d-{1..80} 2>/dev/null
made=$(ls $MNT | grep -c '^d-')
[ "$made" -gt 20 ] && [ "$made" -lt 80 ] || die "made $made directories of 64 inodes"
umount $MNT
clean "$DISK"
finish
