# SPDX-License-Identifier: GPL-2.0
# kernels: stock
# long
# The power goes while files are cloned, written to and unshared. From each point the next mount finds every block of every
# file as it was at the last fsync or later, a map and counts that are right, and nothing staged that is left behind.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

LOG=/dev/vdc
POINTS=50
need_modules drivers/md/dm-mod drivers/md/dm-log-writes drivers/block/loop

mke2fs -q -F -t ext4 -b 1024 "$DISK" 48M
mount -t rext4 "$DISK" $MNT
settled $MNT
umount $MNT
dd if="$DISK" of=/tmp/now bs=1M count=48 conv=sparse status=none

dmsetup create cut --table "0 98304 log-writes $DISK $LOG"
mount -t rext4 -o noatime /dev/dm-0 $MNT
dmsetup message cut 0 mark begin
python3 "$HERE/reflink_cut.py" run $MNT /tmp/history
umount $MNT
dmsetup message cut 0 mark end
dmsetup remove cut
clean "$DISK"
owned "$DISK"

begin=$(python3 "$HERE/logwrites.py" mark $LOG begin)
end=$(python3 "$HERE/logwrites.py" mark $LOG end)
python3 "$HERE/logwrites.py" marks $LOG >/tmp/marks
at=0 number=0
for point in $(python3 "$HERE/logwrites.py" points $LOG "$begin" "$end" $POINTS); do
    python3 "$HERE/logwrites.py" replay $LOG /tmp/now $at "$point"
    at=$point
    number=$((number + 1))
    durable=$(awk -v point="$point" '$1 < point && $2 ~ /^step-/ { sub("step-", "", $2); last = $2 } END { print last + 0 }' /tmp/marks)
    cp --sparse=always /tmp/now /tmp/cut.img
    loop=$(losetup -f --show /tmp/cut.img)
    mount -t rext4 "$loop" $MNT || die "entry $point: cannot be mounted"
    ! stale $MNT || die "entry $point: the map is stale"
    python3 "$HERE/reflink_cut.py" check $MNT /tmp/history "$durable" || die "entry $point: a file is not what it was"
    "$REXT4" scrub $MNT >/tmp/scrub.log 2>&1 || { cat /tmp/scrub.log; die "entry $point: scrub finds something"; }
    umount $MNT
    losetup -d "$loop"
    clean /tmp/cut.img
    owned /tmp/cut.img
done
[ $number = $POINTS ] || die "only $number points"
