# SPDX-License-Identifier: GPL-2.0
# kernels: uml/2 stock/2 debug/2
# oracles: e2fsck owners
# Every kind of damage to the reverse map is found and repaired online while files are written;
# afterwards it agrees with e2fsprogs.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

# Writes, truncates and removes files until the file STOP exists.
writer() { # DIR STOP SEED
    python3 - "$1" "$2" "$3" <<'PY'
import os, random, sys
top, stop = sys.argv[1:3]
random.seed(int(sys.argv[3]))
os.makedirs(top, exist_ok=True)
count = 0
while not os.path.exists(stop):
    name = os.path.join(top, str(random.randrange(200)))
    what = random.random()
    if what < 0.6:
        with open(name, "ab") as f:
            f.write(random.randbytes(random.randrange(1, 30000)))
    elif what < 0.8 and os.path.exists(name):
        os.truncate(name, random.randrange(0, 20000))
    elif os.path.exists(name):
        os.unlink(name)
    count += 1
print(f"writer: {count} operations")
PY
}

try_damage() { # KIND
    local kind=$1 status
    "$REXT4" corrupt --seed 5 "$kind" "$DISK" || die "could not damage: $kind"
    clean "$DISK"
    mount -t rext4 "$DISK" $MNT
    # If the header is damaged, the mount itself rebuilds the trees.
    if [ "$kind" = header ]; then
        settled $MNT
    else
        status=0
        "$REXT4" scrub --json $MNT >/tmp/scrub.json || status=$?
        [ $status = 4 ] || die "$kind: scrub ended with $status"
        grep -q '"corrupt": *true' /tmp/scrub.json || die "$kind: not called corrupt"
    fi
    rm -f /tmp/stop
    writer $MNT/w1 /tmp/stop 1 & local one=$!
    writer $MNT/w2 /tmp/stop 2 & local two=$!
    status=0
    "$REXT4" scrub --repair --json $MNT >/tmp/scrub.json || status=$?
    cat /tmp/scrub.json
    # If a writer detects the damage first, the region is rebuilt in the background.
    [ $status = 1 ] || [ $status = 0 ] || die "$kind: repair ended with $status"
    "$REXT4" scrub $MNT || die "$kind: scrub reports problems after the repair"
    touch /tmp/stop
    wait $one || die "a writer failed"
    wait $two || die "a writer failed"
    umount $MNT
    clean "$DISK"
    owned "$DISK"
}

mkfs.ext4 -q -F -b 1024 "$DISK" 500M
mount -t rext4 "$DISK" $MNT
python3 - $MNT/d <<'PY'
import os, sys
os.mkdir(sys.argv[1])
for i in range(1000):
    with open(f"{sys.argv[1]}/{i}", "wb") as f:
        f.write(bytes(3000))
PY
settled $MNT
umount $MNT
owned "$DISK"
kinds=(record drop extra key sibling checksum zero root header)
is_slow && kinds=(record zero header)
for kind in "${kinds[@]}"; do try_damage "$kind"; done

# Forced rebuilds of intact trees, a few times, under load.
mount -t rext4 "$DISK" $MNT
rm -f /tmp/stop
writer $MNT/w1 /tmp/stop 3 & one=$!
for i in 1 2 3; do
    "$REXT4" scrub --repair --force $MNT || [ $? = 1 ] || die "forced rebuild $i"
done
touch /tmp/stop
wait $one || die "a writer failed"
umount $MNT
clean "$DISK"
owned "$DISK"
finish
