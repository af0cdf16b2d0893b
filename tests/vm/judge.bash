# SPDX-License-Identifier: GPL-2.0
# Shared by the writing scenarios: the type to mount (FS=ext4 runs them on stock ext4, as a test of
# the scenario itself), and the check of block owners.

FS=${FS:-rext4}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# In the guest's memory, so that it starts fast.
REXT4=/tmp/rext4
cp "$HERE/../../build/rext4" $REXT4

# owned IMAGE: check that the block bitmaps match the inodes and the layout; that the reverse map
# exists, is not stale and has exactly the expected records; and that the reference counts match, if
# blocks were ever shared.
owned() {
    asked owners
    python3 -S "$HERE/owners.py" "$1" /tmp/counts.list /tmp/owners.facts >/tmp/owners.list || die "the block bitmaps of $1 do not match its mappings"
    [ "$FS" = rext4 ] || return 0
    "$REXT4" dump "$1" >/tmp/rmap.list || die "the reverse map of $1 cannot be read"
    same /tmp/owners.list /tmp/rmap.list
    local facts; mapfile -t facts </tmp/owners.facts
    if [[ " ${facts[*]} " == *' refcount '* ]]; then
        "$REXT4" dump --tree refcount "$1" >/tmp/refcount.list || die "the reference counts of $1 cannot be read"
        same /tmp/counts.list /tmp/refcount.list
    elif [ -s /tmp/counts.list ]; then
        die "$1 has shared blocks but no reference counts"
    fi
    # The feature is set exactly as long as blocks are shared.
    if [[ " ${facts[*]} " == *' shared_blocks '* ]]; then
        [ -s /tmp/counts.list ] || die "$1 has the feature shared_blocks but no shared blocks"
    elif [ -s /tmp/counts.list ]; then
        die "$1 has shared blocks without the feature"
    fi
}

# judge: unmount the volume, and check it with e2fsck, by the owners of its blocks, and with stock
# ext4, on which every file must look the same.
judge() {
    listing $MNT >/tmp/live.list
    umount $MNT
    clean "$DISK"
    owned "$DISK"
    mount -t ext4 -o ro,noatime "$DISK" $MNT
    listing $MNT >/tmp/stock.list
    umount $MNT
    same /tmp/live.list /tmp/stock.list
}

# stale DIR: return whether the tree of some region of the volume mounted there is stale.
stale() {
    "$REXT4" info --json "$1" >/tmp/info.json || die "no reverse map at $1"
    grep -q 'state_name":"stale"' /tmp/info.json
}

# settled DIR: wait until the reverse map of the volume mounted there is good.
settled() {
    local try
    for try in $(seq 300); do
        stale "$1" || return 0
        sleep 0.1
    done
    die "the reverse map at $1 remains stale"
}

# ends_with STATUS COMMAND...: the command must end with this status.
ends_with() {
    local want=$1 status=0; shift
    "$@" >/tmp/scrub.log 2>&1 || status=$?
    [ $status = "$want" ] || { cat /tmp/scrub.log; dmesg | tail -20; die "$*: status $status, not $want"; }
}

# call CALL PATH [ARGUMENT]...: make a system call that has no command of its own (calls.py).
call() { python3 "$HERE/calls.py" "$@"; }
# fails ERRNO CALL...: a call must fail with this error.
fails() {
    local error=$1 said; shift
    if said=$(call "$@" 2>&1); then die "succeeded: $*"; fi
    [ "$said" = "$error" ] || die "$said instead of $error: $*"
}
