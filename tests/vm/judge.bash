# SPDX-License-Identifier: GPL-2.0
# What the writing scenarios share: the type they mount (FS=ext4 runs them against stock ext4, which tries the scenario
# itself), and the judge of who owns what.

FS=${FS:-rext4}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# In the guest's own memory, so that it starts fast.
REXT4=/tmp/rext4
cp "$HERE/../../build/rext4" $REXT4

# owned IMAGE: the block bitmaps call used what the inodes and the layout use, and nothing else; and the reverse map, which
# must be there and not stale, has exactly these records, and the reference counts, if blocks were ever shared, what
# follows from them.
owned() {
    asked owners
    python3 "$HERE/owners.py" "$1" /tmp/counts.list >/tmp/owners.list || die "the block bitmaps of $1 do not match its mappings"
    [ "$FS" = rext4 ] || return 0
    "$REXT4" dump "$1" >/tmp/rmap.list || die "the reverse map of $1 cannot be read"
    same /tmp/owners.list /tmp/rmap.list
    if grep -q '^Inode:' < <(debugfs -R 'stat /.rext4/refcount' "$1" 2>/dev/null); then
        "$REXT4" dump --tree refcount "$1" >/tmp/refcount.list || die "the reference counts of $1 cannot be read"
        same /tmp/counts.list /tmp/refcount.list
    elif [ -s /tmp/counts.list ]; then
        die "$1 shares blocks and has no reference counts"
    fi
    # The feature is there exactly as long as blocks are shared.
    if grep -q '^Filesystem features:.* shared_blocks' < <(dumpe2fs -h "$1" 2>/dev/null); then
        [ -s /tmp/counts.list ] || die "$1 says that it shares blocks, and does not"
    elif [ -s /tmp/counts.list ]; then
        die "$1 does not say that it shares blocks"
    fi
}

# judge: unmounts the volume and has all of them judge it: e2fsck, the owners of its blocks, and stock ext4, to which every
# file must look as it did.
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

# stale DIR: whether a region's tree of the volume mounted there is stale.
stale() {
    "$REXT4" info --json "$1" >/tmp/info.json || die "no reverse map at $1"
    grep -q 'state_name":"stale"' /tmp/info.json
}

# settled DIR: waits until the reverse map of the volume mounted there is good.
settled() {
    local try
    for try in $(seq 300); do
        stale "$1" || return 0
        sleep 0.1
    done
    die "the reverse map at $1 stays stale"
}
