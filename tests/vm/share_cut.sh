# SPDX-License-Identifier: GPL-2.0
# kernels: stock
# long
# The power goes at fifty points while files are cloned, clones written to, and the last of them removed. From each the next
# mount finds good trees, frees what was set aside, and has what e2fsprogs says; no file is torn.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

LOG=/dev/vdc
POINTS=${POINTS:-50}
SHARERS="python3 $HERE/sharers.py"
need_modules drivers/md/dm-mod drivers/md/dm-log-writes drivers/block/loop

mke2fs -q -F -t ext4 -b 1024 "$DISK" 48M
mount -t rext4 "$DISK" $MNT
$SHARERS make $MNT/d 1024
settled $MNT
umount $MNT
dd if="$DISK" of=/tmp/now bs=1M count=48 conv=sparse status=none

dmsetup create cut --table "0 98304 log-writes $DISK $LOG"
mount -t rext4 -o noatime /dev/dm-0 $MNT
dmsetup message cut 0 mark begin
rm -f /tmp/stop
$SHARERS run $MNT/d 1024 5 /tmp/stop sync & writer=$!
sleep 25
dmsetup message cut 0 mark end
touch /tmp/stop
wait $writer || die "the writer failed"
umount $MNT
dmsetup remove cut
clean "$DISK"
owned "$DISK"

begin=$(python3 "$HERE/logwrites.py" mark $LOG begin)
end=$(python3 "$HERE/logwrites.py" mark $LOG end)
at=0 number=0 shared=0
for point in $(python3 "$HERE/logwrites.py" points $LOG "$begin" "$end" "$POINTS"); do
    python3 "$HERE/logwrites.py" replay $LOG /tmp/now $at "$point"
    at=$point
    number=$((number + 1))
    cp --sparse=always /tmp/now /tmp/cut.img
    loop=$(losetup -f --show /tmp/cut.img)
    mount -t rext4 "$loop" $MNT || die "entry $point: cannot be mounted"
    ! stale $MNT || die "entry $point: a tree is stale"
    "$REXT4" scrub $MNT >/tmp/scrub.log 2>&1 || { cat /tmp/scrub.log; die "entry $point: scrub finds something"; }
    $SHARERS check $MNT/d 1024 || die "entry $point"
    umount $MNT
    losetup -d "$loop"
    clean /tmp/cut.img
    owned /tmp/cut.img
    [ ! -s /tmp/counts.list ] || shared=$((shared + 1))
done
[ $number = "$POINTS" ] || die "only $number points"
echo "of $number images $shared shared blocks, and $(dmesg | grep -c 'blocks that a crash left were freed') had some set aside"
[ $shared -gt $((POINTS / 4)) ] && [ $shared -lt "$POINTS" ] || die "the points tell too little"
