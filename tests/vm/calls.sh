# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: e2fsck owners ext4 log
# System calls that tools use: each does what stock ext4 does, or fails with its errno.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

call() { python3 "$HERE/calls.py" "$@"; }
# fails ERRNO CALL...: a call must fail with this error.
fails() {
    local error=$1 said; shift
    if said=$(call "$@" 2>&1); then die "succeeded: $*"; fi
    [ "$said" = "$error" ] || die "$said instead of $error: $*"
}
# is EXPECTED CALL...: a call must succeed with this answer.
is() {
    local expected=$1 said; shift
    said=$(call "$@" 2>&1) || die "$said: $*"
    [ "$said" = "$expected" ] || die "$said instead of $expected: $*"
}
feature() { grep -q "^Filesystem features:.* $1" < <(dumpe2fs -h "$DISK" 2>/dev/null); }
dd if=/dev/urandom of=/tmp/data bs=1M count=4 status=none

echo "a volume that is shut down is left as the call says, and nothing is written or read any more"
for how in 0 1 2; do
    mke2fs -q -F -t ext4 "$DISK" 100M
    mount -t "$FS" "$DISK" $MNT
    [ "$FS" != rext4 ] || settled $MNT
    cp /tmp/data $MNT/synced
    mkdir $MNT/sub
    sync -f $MNT
    cp /tmp/data $MNT/not-synced
    fails EPERM as-nobody shutdown $MNT $how
    fails EINVAL shutdown $MNT 3
    dmesg -C
    is "read=EIO write=EIO fsync=EIO truncate=EIO fallocate=EIO chmod=EIO" \
        held $MNT/synced python3 "$HERE/calls.py" shutdown $MNT $how
    call shutdown $MNT 2
    [ "$FS" != rext4 ] || said "shut down requested \\($how\\)"
    for command in "cat $MNT/synced" "touch $MNT/new" "rm $MNT/synced" "mkdir $MNT/dir" "rmdir $MNT/sub" "mv $MNT/synced $MNT/b" \
        "ln $MNT/synced $MNT/c" "ln -s x $MNT/d" "setfattr -n user.a -v b $MNT/synced" "sync -f $MNT" "mount -o remount,ro $MNT"; do
        must_fail $command 2>/tmp/out >/tmp/out
    done
    stat $MNT/synced >/dev/null
    findmnt -n -o OPTIONS $MNT | grep -qw shutdown || die "the options do not say that it is shut down"
    umount $MNT
    if logged 'could not be|not all blocks|left clean'; then dmesg; die "the log has errors of what cannot be done any more"; fi
    if [ $how = 0 ]; then
        if feature needs_recovery; then die "not left clean"; fi
        clean "$DISK"
    else
        feature needs_recovery || die "left clean"
    fi
    mount -t ext4 "$DISK" $MNT
    cmp /tmp/data $MNT/synced || die "what was synced is lost"
    [ $how != 0 ] || cmp /tmp/data $MNT/not-synced || die "what was written is lost"
    umount $MNT
    clean "$DISK"
    mount -t "$FS" -o noatime "$DISK" $MNT
    [ "$FS" != rext4 ] || settled $MNT
    cmp /tmp/data $MNT/synced
    judge
done
finish
