# SPDX-License-Identifier: GPL-2.0
# kernels: uml/2 debug/2
# oracles: model e2fsck owners
# Reference counts under clones: both trees are damaged, then checked and repaired online, while
# programs clone files, write to the clones, truncate and remove them. Afterwards the trees agree
# with e2fsprogs, and no file has changed that was not written to. Without space for the counts,
# nothing is shared.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

SHARERS="python3 $HERE/sharers.py"
size=1024

# Programs that work until `judged` is called.
at_work() {
    rm -f /tmp/stop
    $SHARERS run $MNT/d $size "$1" /tmp/stop & one=$!
    $SHARERS run $MNT/d $size "$(($1 + 1))" /tmp/stop & two=$!
}
done_working() {
    touch /tmp/stop
    wait $one || die "a program failed"
    wait $two || die "a program failed"
}
judged() {
    "$REXT4" scrub $MNT || die "$*: scrub reports problems"
    model $SHARERS check $MNT/d $size || die "$*: a file has changed"
    umount $MNT
    clean "$DISK"
    owned "$DISK"
}

mkfs.ext4 -q -F -b $size "$DISK" 300M
mount -t rext4 "$DISK" $MNT
settled $MNT
$SHARERS make $MNT/d $size
at_work 1
for i in 1 2 3; do
    sleep 2
    "$REXT4" scrub $MNT || die "scrub reports problems in updated trees"
    "$REXT4" scrub --repair --force $MNT || [ $? = 1 ] || die "forced rebuild $i"
done
done_working
judged "forced rebuilds"

seed=10
damages=("refcount:drop" "refcount:record" "refcount:zero" "rmap:zero" "rmap:drop refcount:extra" "rmap:zero refcount:zero")
is_slow && damages=("refcount:record" "rmap:zero refcount:zero")
for damage in "${damages[@]}"; do
    for one in $damage; do
        "$REXT4" corrupt --seed $seed --tree "${one%%:*}" "${one##*:}" "$DISK" || die "could not damage: $one"
    done
    mount -t rext4 "$DISK" $MNT
    at_work 1
    sleep 1
    status=0; "$REXT4" scrub --repair $MNT || status=$?
    [ $status = 0 ] || [ $status = 1 ] || die "$damage: repair ended with $status"
    settled $MNT
    done_working
    judged "$damage"
    seed=$((seed + 2))
done

# When no shared blocks are left, the feature is cleared while the volume is mounted.
mount -t rext4 "$DISK" $MNT
find $MNT/d ! -name 'base-*' -type f -delete
for try in $(seq 50); do
    sync
    dumpe2fs -h "$DISK" 2>/dev/null | grep -q shared_blocks || break
    sleep 0.2
done
[ "$try" -lt 50 ] || die "the feature is not cleared"
judged "nothing shared"

# Without space for the counts, nothing is shared, and nothing has changed.
mkfs.ext4 -q -F -b 4096 -m 0 "$DISK" 24M
mount -t rext4 "$DISK" $MNT
settled $MNT
head -c 64k /dev/urandom >$MNT/file
dd if=/dev/zero of=$MNT/filler bs=64k status=none 2>/dev/null || true
must_fail cp --reflink=always $MNT/file $MNT/clone 2>/tmp/clone.log
grep -q 'No space left' /tmp/clone.log || { cat /tmp/clone.log; die "not due to lack of space"; }
[ ! -s $MNT/clone ] || die "the clone has contents"
rm -f $MNT/filler $MNT/clone
cp --reflink=always $MNT/file $MNT/clone || die "no clone when there is room"
cmp $MNT/file $MNT/clone
umount $MNT
clean "$DISK"
owned "$DISK"
finish
