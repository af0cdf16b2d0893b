# SPDX-License-Identifier: GPL-2.0
# Power cuts: device mapper's log-writes target records the writes to a volume's disk, which are
# later replayed up to any point. The result is mounted and checked. Sourced after judge.bash.

LOG=$DISK2
POINTS=${POINTS:-50}
need_modules drivers/md/dm-mod drivers/md/dm-log-writes drivers/block/loop

# begin_record MIB: mount the volume on DISK, which has this size, and start recording the writes to
# its disk.
begin_record() {
    dd if="$DISK" of=/tmp/now bs=1M count="$1" conv=sparse status=none
    dmsetup create cut --table "0 $(($1 * 2048)) log-writes $DISK $LOG"
    mount -t rext4 -o noatime /dev/dm-0 $MNT
    mark begin
}

# mark NAME: set a mark in the record.
mark() { dmsetup message cut 0 mark "$1"; }

# end_record: unmount the volume, which must be in order.
end_record() {
    umount $MNT
    mark end
    dmsetup remove cut
    clean "$DISK"
    owned "$DISK"
}

# cuts FOUND [BETWEEN]...: cut the power at each of POINTS points between the marks `begin` and
# `end`. The volume must be mountable, and its trees good at once and right. Then FOUND is called
# with the number of the log entry, to check the contents. After unmounting, e2fsck and the owners
# of the blocks must agree. With BETWEEN, every third volume is first passed to that function, with
# the number of the log entry; its trees must become good. A second BETWEEN gets another third.
cuts() {
    local begin end at=0 number=0 point loop between found=$1
    shift
    begin=$(python3 "$HERE/logwrites.py" mark $LOG begin)
    end=$(python3 "$HERE/logwrites.py" mark $LOG end)
    for point in $(python3 "$HERE/logwrites.py" points $LOG "$begin" "$end" $POINTS); do
        python3 "$HERE/logwrites.py" replay $LOG /tmp/now $at "$point"
        at=$point
        number=$((number + 1))
        cp --sparse=always /tmp/now /tmp/cut.img
        case $((number % 3)) in
            0) between=${1:-} ;;
            1) between=${2:-} ;;
            2) between= ;;
        esac
        [ -z "$between" ] || "$between" /tmp/cut.img "$point"
        loop=$(losetup -f --show /tmp/cut.img)
        mount -t rext4 "$loop" $MNT || die "entry $point: cannot be mounted"
        [ -z "$between" ] || settled $MNT
        ! stale $MNT || die "entry $point: a tree is stale"
        "$found" "$point"
        "$REXT4" scrub $MNT >/tmp/scrub.log 2>&1 || { cat /tmp/scrub.log; die "entry $point: scrub finds something"; }
        umount $MNT
        losetup -d "$loop"
        clean /tmp/cut.img
        owned /tmp/cut.img
    done
    [ $number = $POINTS ] || die "only $number points"
}
