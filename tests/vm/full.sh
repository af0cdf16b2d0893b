# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: model ext4 e2fsck owners log
# long: 2400
# A full volume keeps everything that it accepted: data whose extents split during writeback when no
# block is left, and files that grow into single free blocks until none is left.
# Blocks of deleted files become free although the trees had no room to be kept up.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

# Dirty pages are written back only on request.
echo 100000 >/proc/sys/vm/dirty_expire_centisecs
echo 0 >/proc/sys/vm/dirty_writeback_centisecs

# The block bitmaps must match the mappings. The reverse map is not checked, because there is no
# space to keep it up to date.
owned() { asked owners; python3 "$HERE/owners.py" "$1" >/tmp/owners.list || die "the block bitmaps of $1 do not match its mappings"; }

echo "extents fall into pieces when nothing is left"
mke2fs -q -F -t ext4 -b 1024 -m 0 "$DISK" 48M
mount -t "$FS" -o noatime "$DISK" $MNT
model python3 "$HERE/full.py" pieces $MNT
judge

echo "single free blocks, until there is none"
mke2fs -q -F -t ext4 -b 1024 -m 0 "$DISK" 16M
mount -t ext4 "$DISK" $MNT
model python3 "$HERE/full.py" holes $MNT
umount $MNT
mount -t "$FS" -o noatime "$DISK" $MNT
model python3 "$HERE/full.py" scattered $MNT
judge

echo "a file that was allocated in advance, and not one free block"
mke2fs -q -F -t ext4 -b 1024 -m 0 "$DISK" 24M
mount -t ext4 "$DISK" $MNT
echo 0 >/sys/fs/ext4/"${DISK#/dev/}"/reserved_clusters
fallocate -l 8M $MNT/prepared
model python3 "$HERE/full.py" filler $MNT
[ "$(stat -f -c %f $MNT)" = 0 ] || die "there are free blocks"
umount $MNT
mount -t "$FS" -o noatime "$DISK" $MNT
model python3 "$HERE/full.py" prepared $MNT
judge

echo "what was just freed is there again, for names too"
mke2fs -q -F -t ext4 -b 1024 -m 0 -N 4096 "$DISK" 16M
mount -t "$FS" -o noatime "$DISK" $MNT
model python3 "$HERE/full.py" again $MNT
judge

echo "a file that shares all its blocks is written to until there is no space left"
mke2fs -q -F -t ext4 -b 1024 -m 0 "$DISK" 48M
mount -t "$FS" -o noatime "$DISK" $MNT
model python3 "$HERE/full.py" shared $MNT
judge
echo "the trees have no room to be kept up, and files that share blocks go"
mke2fs -q -F -t ext4 -b 1024 -m 0 "$DISK" 32M
mount -t "$FS" -o noatime "$DISK" $MNT
free=$(stat -f -c %f $MNT)
model python3 "$HERE/full.py" parted $MNT
said 'rmap: region 0 is stale'
said 'refcount: region 0 is stale'
# Most of it becomes free once the blocks whose owners were unknown have been freed.
for try in $(seq 40); do
    [ "$(stat -f -c %f $MNT)" -lt $((free / 2)) ] || break
    sleep 0.5
done
[ "$(stat -f -c %f $MNT)" -ge $((free / 2)) ] || die "the blocks of deleted files are not free"
umount $MNT
clean "$DISK"
owned "$DISK"
# The same without time for upkeep.
mke2fs -q -F -t ext4 -b 1024 -m 0 "$DISK" 32M
mount -t "$FS" -o noatime "$DISK" $MNT
model python3 "$HERE/full.py" parted $MNT
umount $MNT
clean "$DISK"
owned "$DISK"

# Random operations on a volume that is all but full.
is_long && rounds=40 || rounds=0
for round in $(seq $rounds); do
    mke2fs -q -F -t ext4 -b 1024 -m 0 -N 4096 "$DISK" $((8 + round % 3 * 8))M
    mount -t "$FS" "$DISK" $MNT
    python3 "$HERE/stress.py" $MNT "$round-0" 300
    mkdir $MNT/"$round"-{1,2,3}
    free=$(stat -f -c %f $MNT)
    dd if=/dev/zero of=$MNT/filler bs=1k count=$((free * (80 + round % 4 * 5) / 100)) status=none
    for seed in 1 2 3; do
        python3 "$HERE/stress.py" $MNT "$round-$seed" 500 & programs[seed]=$!
    done
    for seed in 1 2 3; do wait "${programs[seed]}" || die "round $round: a program failed"; done
    umount $MNT
    clean "$DISK"
    owned "$DISK"
done
finish
