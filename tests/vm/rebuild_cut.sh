# SPDX-License-Identifier: GPL-2.0
# kernels: uml/2
# oracles: e2fsck owners
# The power is cut at fifty points of rebuilds and of the steps that follow them, while files are
# being written. In each case the next mount finds a reverse map that is good at once and agrees
# with e2fsprogs, and frees the blocks left behind.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"
. "$(dirname "$0")/cut.bash"

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

begin_record 48
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
touch /tmp/stop
wait $writer || die "the writer failed"
end_record
cuts true
finish
