# SPDX-License-Identifier: GPL-2.0
# Power cuts: what a volume's disk receives is recorded by device mapper's log-writes target, and later replayed up to any
# point of it. What is there then is mounted and judged. Sourced behind judge.bash.

LOG=$DISK2
POINTS=50
need_modules drivers/md/dm-mod drivers/md/dm-log-writes drivers/block/loop

# begin_record MIB: mounts the volume on DISK, which is that large, and records what its disk receives from then on.
begin_record() {
    dd if="$DISK" of=/tmp/now bs=1M count="$1" conv=sparse status=none
    dmsetup create cut --table "0 $(($1 * 2048)) log-writes $DISK $LOG"
    mount -t rext4 -o noatime /dev/dm-0 $MNT
    mark begin
}

# mark NAME: notes where the record is.
mark() { dmsetup message cut 0 mark "$1"; }

# end_record: unmounts the volume, which must be in order.
end_record() {
    umount $MNT
    mark end
    dmsetup remove cut
    clean "$DISK"
    owned "$DISK"
}

# cuts FOUND [BETWEEN]: has the power gone at each of POINTS points between the marks `begin` and `end`. The volume must be
# mounted with trees that are good at once and right; then it is for FOUND to judge, which is called with the number of the
# entry in the log; and once it is unmounted e2fsck and the owners of its blocks must agree. With BETWEEN, every third volume
# is first given to that, by its name; its trees must come to be good.
cuts() {
    local begin end at=0 number=0 point loop between
    begin=$(python3 "$HERE/logwrites.py" mark $LOG begin)
    end=$(python3 "$HERE/logwrites.py" mark $LOG end)
    for point in $(python3 "$HERE/logwrites.py" points $LOG "$begin" "$end" $POINTS); do
        python3 "$HERE/logwrites.py" replay $LOG /tmp/now $at "$point"
        at=$point
        number=$((number + 1))
        cp --sparse=always /tmp/now /tmp/cut.img
        between=${2:-}
        [ $((number % 3)) = 0 ] || between=
        [ -z "$between" ] || "$between" /tmp/cut.img
        loop=$(losetup -f --show /tmp/cut.img)
        mount -t rext4 "$loop" $MNT || die "entry $point: cannot be mounted"
        [ -z "$between" ] || settled $MNT
        ! stale $MNT || die "entry $point: a tree is stale"
        "$1" "$point"
        "$REXT4" scrub $MNT >/tmp/scrub.log 2>&1 || { cat /tmp/scrub.log; die "entry $point: scrub finds something"; }
        umount $MNT
        losetup -d "$loop"
        clean /tmp/cut.img
        owned /tmp/cut.img
    done
    [ $number = $POINTS ] || die "only $number points"
}
