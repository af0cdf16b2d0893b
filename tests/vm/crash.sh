# SPDX-License-Identifier: GPL-2.0
# kernels: uml/2
# oracles: model e2fsck owners ext4
# long: 3000
# Power cuts at 12 points (500 in the long form) of a mixed load of three programs. In two images of
# three the journal is first replayed by others, stock ext4 or e2fsck: right after the replay the
# volume is in order, and the reverse map equals the inodes. Then rext4 mounts it. Whoever replays,
# everything that was promised is there, and no file is torn.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"
POINTS=12 STEPS=120 SIZE=64
if is_long; then POINTS=500 STEPS=1500 SIZE=96; fi
. "$(dirname "$0")/cut.bash"

mke2fs -q -F -t ext4 -b 1024 "$DISK" ${SIZE}M
mount -t rext4 "$DISK" $MNT
settled $MNT
umount $MNT

begin_record $SIZE
for worker in 0 1 2; do
    python3 "$HERE/load.py" run $MNT /tmp/history-$worker $worker $STEPS & workers[worker]=$!
done
for worker in 0 1 2; do wait "${workers[worker]}" || die "worker $worker failed"; done
end_record
python3 "$HERE/logwrites.py" marks $LOG >/tmp/marks

# kept POINT: check that the files contain what they may after a power cut there.
kept() {
    local worker step
    for worker in 0 1 2; do
        step=$(awk -v point="$1" -v worker="$worker-" \
            '$1 < point && index($2, worker) == 1 { last = substr($2, length(worker) + 1) }
             END { print last + 0 }' /tmp/marks)
        model python3 "$HERE/load.py" check $MNT /tmp/history-$worker $worker "$step" ||
            die "entry $1: a promise is broken"
    done
}

# by_stock IMAGE POINT: let stock ext4 replay the journal, and check what it finds.
compared=0 staged=0
by_stock() {
    local how=rw loop image
    compare "$1" "$2"
    # It does not write to a volume with shared blocks, and leaves the orphans of such a one alone.
    # It looks at the superblock before the replay, in which a crash may have left the feature.
    for image in "$1" /tmp/replayed.img; do
        dumpe2fs -h "$image" >/tmp/features 2>/dev/null || die "entry $2: no superblock"
        ! grep -q '^Filesystem features:.* shared_blocks' /tmp/features || how=ro
    done
    # Even to mount read-only it has to write the device.
    loop=$(losetup -f --show "$1")
    mount -t ext4 -o $how "$loop" $MNT || die "entry $2: stock ext4 does not mount the volume"
    kept "$2"
    umount $MNT
    losetup -d "$loop"
    [ $how = ro ] || clean "$1"
}
# by_e2fsck IMAGE POINT: let e2fsck replay the journal, and check that it finds nothing else.
by_e2fsck() {
    compare "$1" "$2"
    e2fsck -y -E journal_only "$1" >/tmp/e2fsck.log 2>&1 || [ $? -eq 1 ] ||
        { cat /tmp/e2fsck.log; die "entry $2: e2fsck -E journal_only"; }
    # Blocks staged for copy-on-write have no owner until the next mount by rext4.
    grep -q ' cow ' /tmp/rmap.list || clean "$1"
}
# compare IMAGE POINT: replay the journal and do nothing else, and check that the block bitmaps and
# the reverse map agree with the inodes and the staged blocks.
compare() {
    cp --sparse=always "$1" /tmp/replayed.img
    # Before the replay checksums need not match. The superblock in the journal has the flag set.
    debugfs -w -n -R journal_run /tmp/replayed.img >/tmp/debugfs.log 2>&1 &&
        debugfs -w -R 'feature -needs_recovery' /tmp/replayed.img >>/tmp/debugfs.log 2>&1 ||
        { cat /tmp/debugfs.log; die "entry $2: no replay"; }
    # It reports that another driver has written to the volume, and must report nothing else.
    "$REXT4" dump /tmp/replayed.img >/tmp/rmap.list 2>/tmp/dump.log || true
    ! grep -v '^rext4: stale: ' /tmp/dump.log || { cat /tmp/debugfs.log; die "entry $2: the reverse map is damaged"; }
    [ -s /tmp/rmap.list ] || die "entry $2: no reverse map"
    asked owners
    python3 "$HERE/owners.py" /tmp/replayed.img /tmp/counts.list /tmp/facts.list /tmp/rmap.list >/tmp/owners.list ||
        die "entry $2: bitmaps and owners differ"
    grep -v ' cow ' /tmp/rmap.list >/tmp/known.list
    same /tmp/known.list /tmp/owners.list
    ! grep -q ' cow ' /tmp/rmap.list || staged=$((staged + 1))
    compared=$((compared + 1))
}
cuts kept by_e2fsck by_stock
echo "of $POINTS images $compared were compared right after the replay, $staged of them with staged blocks"
[ $compared -gt $((POINTS / 2)) ] || die "only $compared images were compared"
finish
