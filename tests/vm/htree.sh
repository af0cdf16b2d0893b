# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: model ext4 e2fsck log
# Hashed directories: the index is used and kept by random creations, renames and deletions, with
# every hash, on volumes that stock ext4 writes before and after. It grows to two levels, with
# large_dir to three, is refused more, and a damaged one is passed over. Names are listed by hash,
# at positions that hold over changes.
. "$(dirname "$0")/lib.sh"

# index IMAGE PATH: what debugfs says of the index of a directory, which must have one.
index() {
    debugfs -R "htree_dump $2" "$1" >/tmp/htree.dump 2>&1
    grep -q 'Root node dump' /tmp/htree.dump || { head -n 5 /tmp/htree.dump; die "$2 has no index"; }
}

# no_index IMAGE PATH: the directory must have none.
no_index() {
    debugfs -R "htree_dump $2" "$1" >/tmp/htree.dump 2>&1
    lacks 'Root node dump' /tmp/htree.dump || die "$2 has an index"
}

# levels IMAGE PATH: the levels between the root of the index and the leaves.
levels() { index "$1" "$2"; sed -n 's/.*Indirect levels: //p' /tmp/htree.dump; }

names() { model python3 "$(dirname "$0")/htree.py" "$@" || die "the names are not those of the model"; }

# round HASH FLAG BLOCK [OPTION]...: with that hash, of signed bytes (1) or unsigned ones (2).
round() {
    local algorithm=$1 flag=$2 block=$3; shift 3
    echo "htree: $algorithm, flag $flag, blocks of $block, mke2fs $* ($SECONDS s)"
    mke2fs -q -F -t ext4 -b "$block" -N 16384 "$@" "$DISK" 100M
    tune2fs -E "hash_alg=$algorithm" "$DISK" >/dev/null
    debugfs -w -R "ssv flags $flag" "$DISK" 2>/dev/null
    rm -f /tmp/model /tmp/ours
    # Stock ext4 makes one index, we make another.
    mount -t ext4 "$DISK" $MNT; mkdir $MNT/d; names random $MNT/d /tmp/model 1 200; umount $MNT
    index "$DISK" /d
    mount -t rext4 "$DISK" $MNT
    mkdir $MNT/ours
    names random $MNT/d /tmp/model 2 500 $MNT/ours /tmp/ours 3 300
    umount $MNT
    clean "$DISK"
    index "$DISK" /d
    index "$DISK" /ours
    mount -t ext4 "$DISK" $MNT
    names random $MNT/d /tmp/model 4 100 $MNT/ours /tmp/ours 5 100
    for dir in d ours; do names cookies $MNT/$dir; done >/tmp/cookies.ext4
    umount $MNT
    mount -t rext4 "$DISK" $MNT
    # Both list the names in one order, with the same positions.
    for dir in d ours; do names cookies $MNT/$dir; done >/tmp/cookies.rext4
    same /tmp/cookies.ext4 /tmp/cookies.rext4
    names seek $MNT/ours
    names random $MNT/d /tmp/model 6 50 $MNT/ours /tmp/ours 7 50
    umount $MNT
    clean "$DISK"
}

for flag in 1 2; do
    round legacy $flag 1024
    round tea $flag 1024
done
round half_md4 1 4096

# A volume that does not say how it hashes: it does after a writable mount.
mke2fs -q -F -t ext4 "$DISK" 16M
debugfs -w -R "ssv flags 0" "$DISK" 2>/dev/null
mount -t rext4 "$DISK" $MNT
umount $MNT
dumpe2fs -h "$DISK" 2>/dev/null | grep -q '^Filesystem flags: .*unsigned_directory_hash' || die "which hash it is was not written down"

echo "htree: 50,000 names (${SECONDS} s)"
# 50,000 names, of which half go, then some of stock ext4's.
mke2fs -q -F -t ext4 "$DISK" 200M
rm -f /tmp/model
mount -t rext4 "$DISK" $MNT
mkdir $MNT/d
names links $MNT/d /tmp/model 1 50000 25000
umount $MNT
clean "$DISK"
[ "$(levels "$DISK" /d)" = 1 ] || die "the index of 50,000 names has not two levels"
mount -t ext4 "$DISK" $MNT; names links $MNT/d /tmp/model 2 5000 3000; umount $MNT
mount -t rext4 "$DISK" $MNT; names links $MNT/d /tmp/model 3 5000 20000; umount $MNT
clean "$DISK"
index "$DISK" /d

# To make room for the new name moves the old one.
round half_md4 2 1024 -O ^metadata_csum
mount -t rext4 "$DISK" $MNT
mkdir $MNT/rename
names rename $MNT/rename
umount $MNT
clean "$DISK"

# A directory outgrows its block: debugfs sees no index first, and one then.
mount -t rext4 "$DISK" $MNT
mkdir $MNT/small
touch $MNT/small/{1..10}
names cookies $MNT/small >/tmp/cookies.rext4
umount $MNT
mount -t ext4 "$DISK" $MNT; names cookies $MNT/small >/tmp/cookies.ext4; umount $MNT
# Stock ext4 lists `.` and `..` by their hash here, which can be what is behind another name.
same <(cut -d' ' -f1 /tmp/cookies.ext4) <(cut -d' ' -f1 /tmp/cookies.rext4)
no_index "$DISK" /small
mount -t rext4 "$DISK" $MNT
names seek $MNT/small
touch $MNT/small/{11..200}
umount $MNT
index "$DISK" /small

# A root that has a cycle, and one with an unknown hash: all names are found without the index.
at=$(($(debugfs -R 'bmap /d 0' "$DISK" 2>/dev/null) * 1024))
printf '\0\0\0\0' | dd of="$DISK" bs=1 seek=$((at + 36)) conv=notrunc status=none
mount -t rext4 -o ro "$DISK" $MNT
names random $MNT/d /tmp/model 8 0
said 'inode [0-9]+: directory index has a cycle .block 0 of the directory.; searching without the index'
umount $MNT
printf '\011' | dd of="$DISK" bs=1 seek=$((at + 28)) conv=notrunc status=none
mount -t rext4 "$DISK" $MNT
names random $MNT/d /tmp/model 9 0
said 'inode [0-9]+: directory index with an unknown hash'
# Without checksums the index goes with the next name.
names random $MNT/d /tmp/model 10 100
umount $MNT
clean "$DISK"
no_index "$DISK" /d

# Two levels full of long names: no more, until some go. With large_dir there are three.
for large in "" large_dir; do
    mke2fs -q -F -t ext4 -b 1024 -N 1024 ${large:+-O $large} "$DISK" 100M
    mount -t rext4 "$DISK" $MNT
    names fill $MNT 32000 >/tmp/count
    free=$(stat -f -c %f $MNT)
    umount $MNT
    clean "$DISK"
    count=$(tail -n 1 /tmp/count)
    echo "htree: $count long names ${large:+with $large} ($SECONDS s)"
    [ "$free" -gt 10000 ] || die "the volume is full, not the index"
    if [ "$large" ]; then
        [ "$count" = 32000 ] && [ "$(levels "$DISK" /full)" = 2 ] || die "the index has not three levels"
    else
        [ "$count" -lt 32000 ] && [ "$(levels "$DISK" /full)" = 1 ] || die "the index has not two levels"
        said 'inode [0-9]+: the index of the directory is full .2 levels.'
    fi
    mount -t ext4 "$DISK" $MNT; names filled $MNT "$count"; umount $MNT
done

# Without a free block for the directory no name comes, and none is lost.
mke2fs -q -F -t ext4 -b 1024 -N 256 -m 0 "$DISK" 8M
mount -t rext4 "$DISK" $MNT
dd if=/dev/zero of=$MNT/most bs=1K count=$(($(stat -f -c %a $MNT) - 300)) status=none
names fill $MNT 32000 >/tmp/count
[ "$(tail -n 1 /tmp/count)" -lt 1000 ] || die "the volume is not full"
umount $MNT
clean "$DISK"
finish
