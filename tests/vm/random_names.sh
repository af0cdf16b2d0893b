# SPDX-License-Identifier: GPL-2.0
# kernels: uml/2
# oracles: ext4 e2fsck owners
# Names and attributes change as under stock ext4: the same random workload gets the same results
# and leaves the same tree, e2fsck finds nothing wrong, each used block has an owner, and stock ext4
# reads the result. Then the files written by stock ext4, among them files with many extents, are
# removed.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

PEER=$DISK2

# shape: print a listing without the properties that differ between any two volumes: times, and
# sizes of directories.
shape() { listing "$1" | sed -E '/^([^|]*\|d)/s/^(([^|]*\|){6})[^|]*/\1/; s/^(([^|]*\|){7})([^|]*\|){3}/\1/'; }

fill() {
    python3 - "$1" <<'PY'
import os, sys
top = sys.argv[1]
os.mkdir(top)
for i in range(400):
    with open(os.path.join(top, f"file-{i}"), "wb") as f:
        f.write(b"%d\n" % i * (i * 11))
for i in range(3):
    fd = os.open(os.path.join(top, f"sparse-{i}"), os.O_WRONLY | os.O_CREAT)
    for k in range(1200):
        os.pwrite(fd, b"%d" % k, k * 12288)
    os.posix_fallocate(fd, 20 << 20, 1 << 20)
    os.close(fd)
PY
}

check() {
    local seed=$1 count=$2; shift 2
    echo "names: seed $seed, mke2fs $*"
    for disk in "$DISK" "$PEER"; do mke2fs -q -F "$@" "$disk" 200M; done
    mount -t ext4 -o noatime "$PEER" $MNT
    mkdir $MNT/d
    python3 "$HERE/random_names.py" $MNT/d "$seed" "$count" >/tmp/peer.answers
    shape $MNT >/tmp/peer.list
    umount $MNT

    mount -t ext4 "$DISK" $MNT
    fill $MNT/before
    umount $MNT
    mount -t "$FS" -o noatime "$DISK" $MNT
    mkdir $MNT/d
    python3 "$HERE/random_names.py" $MNT/d "$seed" "$count" >/tmp/our.answers
    same /tmp/peer.answers /tmp/our.answers
    rm -r $MNT/before
    shape $MNT >/tmp/our.list
    same /tmp/peer.list /tmp/our.list
    listing $MNT >/tmp/live.list
    umount $MNT
    clean "$DISK"
    owned "$DISK"

    for type in ext4 "$FS"; do
        mount -t "$type" -o ro,noatime "$DISK" $MNT
        listing $MNT >/tmp/again.list
        umount $MNT
        same /tmp/live.list /tmp/again.list
    done

    # Four workers at once; the tree that they leave is removed in the end.
    mount -t "$FS" "$DISK" $MNT
    local workers=() n
    for n in 1 2 3 4; do
        mkdir $MNT/w$n
        python3 "$HERE/random_names.py" $MNT/w$n $((seed + n)) "$count" >/dev/null & workers+=($!)
    done
    for n in "${workers[@]}"; do wait "$n" || die "a worker failed"; done
    umount $MNT
    clean "$DISK"
    owned "$DISK"
    mount -t "$FS" "$DISK" $MNT
    rm -r $MNT/d $MNT/w?
    umount $MNT
    clean "$DISK"
    owned "$DISK"
}

check 1 1200 -t ext4 -b 1024
check 20 1200 -t ext4 -b 2048
check 300 1200 -t ext4 -b 4096
finish
