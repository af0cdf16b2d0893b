# SPDX-License-Identifier: GPL-2.0
# kernels: uml debug/2
# oracles: e2fsck owners
# A rebuild that fails leaves the old map in place and intact, and the next one succeeds: each of
# its allocations fails in turn, blocks cannot be read, the caller is killed or interrupted.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

sound() { "$REXT4" scrub $MNT >/tmp/scrub.log 2>&1 || { cat /tmp/scrub.log; die "$*: scrub reports problems"; }; }

fill() {
    python3 - $MNT <<'PY'
import ctypes, os, sys
top = sys.argv[1]
os.mkdir(f"{top}/d")
for i in range(300):
    with open(f"{top}/d/{i}", "wb") as f:
        f.write(bytes(1500))
fd = os.open(f"{top}/holes", os.O_RDWR | os.O_CREAT)
os.write(fd, os.urandom(2 << 20))
libc = ctypes.CDLL(None)
for at in range(0, 2 << 20, 8192):
    assert libc.fallocate(fd, 3, ctypes.c_long(at), ctypes.c_long(4096)) == 0
PY
}

mkfs.ext4 -q -F -b 1024 "$DISK" 100M
mount -t ext4 "$DISK" $MNT
fill
umount $MNT
mount -t rext4 "$DISK" $MNT
settled $MNT

# With one processor, the caller does all of the work, and its allocations can be made to fail one
# by one.
second=/sys/devices/system/cpu/cpu1/online
[ ! -e $second ] || echo 0 >$second
[ "$(nproc)" = 1 ] || die "more than one processor"
echo N >/sys/kernel/debug/failslab/ignore-gfp-wait
echo N >/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait
echo 0 >/sys/kernel/debug/fail_page_alloc/min-order
echo 0 >/sys/kernel/debug/failslab/verbose
echo 0 >/sys/kernel/debug/fail_page_alloc/verbose
python3 - $MNT "$REXT4" <<'PY'
import errno, fcntl, os, struct, subprocess, sys
mount, rext4 = sys.argv[1:]
SIZE = 136
CALL = 3 << 30 | SIZE << 16 | ord("r") << 8 | 0x80
RMAP, REPAIR, FORCE, ALL = 1, 1, 1 << 8, 0xffffffff
fd = os.open(mount, os.O_RDONLY)
failed = passed = nth = 0
while True:
    nth += 1
    call = bytearray(SIZE)
    struct.pack_into("<3I", call, 0, RMAP, REPAIR | FORCE, ALL)
    fault = os.open("/proc/thread-self/fail-nth", os.O_RDWR)
    os.write(fault, b"%d" % nth)
    try:
        fcntl.ioctl(fd, CALL, call)
        error = 0
    except OSError as e:
        error = e.errno
    left = int(os.pread(fault, 20, 0).rstrip(b"\0\n") or b"0")
    os.write(fault, b"0")
    os.close(fault)
    if left:
        assert error == 0, f"without a fault: {errno.errorcode[error]}"
        break
    assert error in (0, errno.ENOMEM), f"allocation {nth}: {errno.errorcode[error]}"
    failed += error != 0
    passed += error == 0
    if nth % 20 == 1:
        subprocess.run([rext4, "scrub", mount], check=True, stdout=subprocess.DEVNULL)
print(f"allocations: {failed} failed the rebuild, {passed} did not")
assert failed > 20, "too few failures to mean anything"
PY
[ ! -e $second ] || echo 1 >$second
sound "after failed allocations"
umount $MNT
clean "$DISK"
owned "$DISK"

# The caller is killed or interrupted.
mount -t rext4 "$DISK" $MNT
for i in $(seq 20); do
    signal=KILL; [ $((i % 2)) = 0 ] && signal=INT
    "$REXT4" scrub --repair --force $MNT >/dev/null 2>&1 & caller=$!
    sleep "0.$((RANDOM % 3))$((RANDOM % 10))"
    kill -$signal $caller 2>/dev/null || true
    wait $caller || true
    echo $i >$MNT/d/after-$i
done
sound "after killed callers"
umount $MNT
clean "$DISK"
owned "$DISK"

# Device mapper makes reads of some blocks fail: first a node of the map, then a block needed by the
# scan.
sectors=$(blockdev --getsz "$DISK")
dmsetup create rough --table "0 $sectors linear $DISK 0"
fail_block() { # BLOCK: make reads of this block of 1 KiB fail from now on
    dmsetup suspend rough
    printf '%s\n' "0 $(($1 * 2)) linear $DISK 0" "$(($1 * 2)) 2 error" \
        "$(($1 * 2 + 2)) $((sectors - $1 * 2 - 2)) linear $DISK $(($1 * 2 + 2))" | dmsetup load rough
    dmsetup resume rough
}
heal() { dmsetup suspend rough; echo "0 $sectors linear $DISK 0" | dmsetup load rough; dmsetup resume rough; }
mount -t rext4 /dev/dm-0 $MNT
root=$("$REXT4" info --json $MNT | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["root"])')
node=$(debugfs -R "bmap /.rext4/rmap $root" /dev/dm-0 2>/dev/null)
[ "$node" -gt 0 ] || die "no node"
fail_block "$node"
echo 3 >/proc/sys/vm/drop_caches
status=0; "$REXT4" scrub $MNT || status=$?
[ $status = 4 ] || die "a node that cannot be read: scrub ended with $status"
status=0; "$REXT4" scrub --repair $MNT || status=$?
[ $status = 1 ] || die "a node that cannot be read: repair ended with $status"
sound "after the repair of a node that cannot be read"
heal
umount $MNT
clean "$DISK"
owned "$DISK"
# A block of an extent tree.
block=$(debugfs -R 'stat /holes' "$DISK" 2>/dev/null | grep -o '(ETB[0-9]*):[0-9]*' | tail -1 | cut -d: -f2)
[ -n "$block" ] || die "no extent-tree block"
dmsetup suspend rough; dmsetup resume rough
mount -t rext4 /dev/dm-0 $MNT
sync
fail_block "$block"
echo 3 >/proc/sys/vm/drop_caches
status=0; "$REXT4" scrub --repair --force $MNT || status=$?
[ $status = 8 ] || die "a mapping that cannot be read: repair ended with $status"
echo still >$MNT/d/still-writable
heal
sound "after a mapping could not be read"
umount $MNT
clean "$DISK"
owned "$DISK"
dmsetup remove rough
finish
