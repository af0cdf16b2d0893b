# SPDX-License-Identifier: GPL-2.0
# kernels: stock
# The power goes at fifty points of rebuilds and of what follows them, files being written all the while. From each the
# next mount finds a map that is good at once, frees what was left behind, and has what e2fsprogs says.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

LOG=/dev/vdc
POINTS=50
need_modules drivers/md/dm-mod drivers/md/dm-log-writes drivers/block/loop

mke2fs -q -F -t ext4 -b 1024 "$DISK" 48M
mount -t rext4 "$DISK" $MNT
python3 - $MNT <<'PY'
import os, sys
for i in range(1200):
    with open(f"{sys.argv[1]}/{i}", "wb") as f:
        f.write(bytes(1100))
PY
settled $MNT
umount $MNT
dd if="$DISK" of=/tmp/now bs=1M count=48 conv=sparse status=none

dmsetup create cut --table "0 98304 log-writes $DISK $LOG"
mount -t rext4 -o noatime /dev/dm-0 $MNT
dmsetup message cut 0 mark begin
python3 - $MNT <<'PY' & writer=$!
import os, random, sys
top = sys.argv[1]
random.seed(3)
for i in range(100000):
    if os.path.exists("/tmp/stop"):
        break
    name = f"{top}/{random.randrange(1600)}"
    if random.random() < 0.6:
        with open(name, "ab") as f:
            f.write(bytes(random.randrange(1, 9000)))
            if i % 7 == 0:
                f.flush()
                os.fsync(f.fileno())
    elif os.path.exists(name):
        os.unlink(name)
print(f"writer: {i} operations")
PY
for i in $(seq 6); do
    status=0; "$REXT4" scrub --repair --force $MNT || status=$?
    [ $status = 0 ] || [ $status = 1 ] || die "rebuild $i ended with $status"
done
dmsetup message cut 0 mark end
touch /tmp/stop
wait $writer || die "the writer failed"
umount $MNT
dmsetup remove cut
clean "$DISK"
owned "$DISK"

begin=$(python3 "$HERE/logwrites.py" mark $LOG begin)
end=$(python3 "$HERE/logwrites.py" mark $LOG end)
at=0 number=0 left=0
for point in $(python3 "$HERE/logwrites.py" points $LOG "$begin" "$end" $POINTS); do
    python3 "$HERE/logwrites.py" replay $LOG /tmp/now $at "$point"
    at=$point
    number=$((number + 1))
    cp --sparse=always /tmp/now /tmp/cut.img
    loop=$(losetup -f --show /tmp/cut.img)
    mount -t rext4 "$loop" $MNT || die "entry $point: cannot be mounted"
    ! stale $MNT || die "entry $point: the map is stale"
    "$REXT4" scrub $MNT >/tmp/scrub.log 2>&1 || { cat /tmp/scrub.log; die "entry $point: scrub finds something"; }
    umount $MNT
    losetup -d "$loop"
    clean /tmp/cut.img
    owned /tmp/cut.img
done
[ $number = $POINTS ] || die "only $number points"
