# SPDX-License-Identifier: GPL-2.0
# kernels: uml/2 debug/2
# oracles: ext4 model e2fsck owners
# A volume with shared blocks: its reference counts are derived before the mount completes, kept up
# to date while files are truncated and removed, found damaged and repaired, and removed with the
# feature when nothing is shared any more. Blocks that are not shared are not affected, and no
# contents change.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

TARGETS=120
is_slow && TARGETS=60

# Creates a volume with shared blocks by means of stock ext4 and debugfs. DISK is left unmounted;
# the checksums of the files are in /tmp/sums.list.
make_shared() { # BLOCK_SIZE SEED
    mkfs.ext4 -q -F -b "$1" "$DISK" 600M
    mount -t ext4 "$DISK" $MNT
    python3 - $MNT "$1" "$2" $TARGETS <<'PY'
import os, random, sys
top, size, seed, targets = sys.argv[1], *map(int, sys.argv[2:])
random.seed(seed)
os.mkdir(top + "/s"); os.mkdir(top + "/t")
for i in range(40):
    with open(f"{top}/s/{i}", "wb") as f:
        f.write(random.randbytes(random.randrange(1, 200) * size))
for i in range(targets):
    open(f"{top}/t/{i}", "wb").close()
PY
    umount $MNT
    python3 "$HERE/share.py" "$DISK" "$2" $(seq -f '/s/%g' 0 39) -- $(seq -f '/t/%g' 0 $((TARGETS - 1))) >/tmp/pieces.list
    clean "$DISK"
    # Stock ext4 reads such a volume, but does not write to it.
    must_fail mount -t ext4 -o rw "$DISK" $MNT 2>/dev/null
    mount -t ext4 -o ro "$DISK" $MNT
    ( cd $MNT && sha256sum s/* t/* ) >/tmp/sums.list
    umount $MNT
}

# The remaining files have their original contents.
unchanged() {
    asked model
    ( cd $MNT && sha256sum --quiet --ignore-missing -c /tmp/sums.list ) || die "contents have changed"
}

check() { # BLOCK_SIZE
    make_shared "$1" 7
    mount -t rext4 "$DISK" $MNT
    ! stale $MNT || die "the mount completed before the trees were good"
    unchanged
    "$REXT4" scrub $MNT || die "scrub reports problems in new trees"
    "$REXT4" map --json $MNT | grep -q '"shared":true' || die "no block is reported as shared"
    umount $MNT
    clean "$DISK"
    owned "$DISK"

    # Files with shared blocks are removed and truncated: blocks are freed with their last owner.
    mount -t rext4 "$DISK" $MNT
    ! stale $MNT || die "trees are stale although nothing happened"
    rm $MNT/t/[12]? $MNT/s/1?
    truncate -s "$((7 * $1))" $MNT/t/3? $MNT/s/2?
    sed -i -E '/ (t\/3.|s\/2.)$/d' /tmp/sums.list
    head -c 5M /dev/urandom >$MNT/more
    unchanged
    "$REXT4" scrub $MNT || die "scrub reports problems in updated trees"
    umount $MNT
    clean "$DISK"
    owned "$DISK"

    # When the last one is removed, the feature is cleared, and stock ext4 can write again.
    mount -t rext4 "$DISK" $MNT
    rm $MNT/t/*
    unchanged
    umount $MNT
    clean "$DISK"
    owned "$DISK"
    dumpe2fs -h "$DISK" >/tmp/super 2>/dev/null
    lacks shared_blocks /tmp/super
    mount -t ext4 "$DISK" $MNT
    echo by stock >$MNT/by-stock
    umount $MNT
    mount -t rext4 "$DISK" $MNT
    settled $MNT
    umount $MNT
    clean "$DISK"
    owned "$DISK"
}

# Damages trees, removes files meanwhile, and repairs.
try_damage() { # TREE:KIND...
    local one status left
    make_shared 1024 11
    dmesg -C
    mount -t rext4 "$DISK" $MNT
    umount $MNT
    owned "$DISK"
    for one in "$@"; do
        "$REXT4" corrupt --seed 3 --tree "${one%%:*}" "${one##*:}" "$DISK" || die "could not damage: $one"
    done
    mount -t rext4 "$DISK" $MNT
    if [[ $* != *header* ]]; then
        status=0
        "$REXT4" scrub --json $MNT >/tmp/scrub.json || status=$?
        # The mount itself reads the counts, and has them rebuilt if it cannot.
        [ $status = 4 ] || { [ $status = 0 ] && logged 'is stale and will be rebuilt'; } ||
            die "$*: scrub ended with $status"
    fi
    ( for i in $(seq 0 2 $((TARGETS - 1))); do rm "$MNT/t/$i"; echo "$i" >"$MNT/new-$i"; done ) & local remover=$!
    status=0
    "$REXT4" scrub --repair $MNT || status=$?
    [ $status = 0 ] || [ $status = 1 ] || die "$*: repair ended with $status"
    wait $remover || die "$*: a file could not be removed"
    settled $MNT
    "$REXT4" scrub $MNT || die "$*: scrub reports problems after the repair"
    unchanged
    umount $MNT
    clean "$DISK"
    owned "$DISK"
    left=$(wc -l </tmp/counts.list)
    [ "$left" -gt 20 ] || die "$*: only $left runs are shared: nothing was tested"
}

check 1024
is_slow || check 4096
# Other kinds are tried while files are cloned (counts.sh).
kinds=(refcount:key refcount:sibling refcount:checksum refcount:root refcount:header rmap:zero)
is_slow && kinds=(refcount:key)
for kind in "${kinds[@]}"; do try_damage "$kind"; done
try_damage rmap:zero refcount:zero
is_slow || try_damage rmap:header refcount:header

# Forced rebuilds of intact trees, while files are created and removed.
make_shared 1024 13
mount -t rext4 "$DISK" $MNT
( for i in $(seq 0 2 $((TARGETS - 1))); do rm "$MNT/t/$i"; done ) & remover=$!
for i in 1 2 3; do
    "$REXT4" scrub --repair --force $MNT || [ $? = 1 ] || die "forced rebuild $i"
done
wait $remover
"$REXT4" scrub $MNT || die "scrub reports problems after forced rebuilds"
unchanged
umount $MNT
clean "$DISK"
owned "$DISK"
finish
