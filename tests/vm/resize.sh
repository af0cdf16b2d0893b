# SPDX-License-Identifier: GPL-2.0
# kernels: uml/2
# oracles: e2fsck owners ext4 log
# Growing a mounted volume by an unmodified resize2fs, with each way to find room for descriptors,
# under writers and next to a scan: sizes and counts are those that stock ext4 ends with.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

# counts DISK: what describes the size of the volume.
counts() { dumpe2fs -h "$1" 2>/dev/null | grep -E '^(Inode count|Block count|Reserved block count|Reserved GDT blocks|First meta block group)' || true; }
# write DIR: files of which the checksums are kept.
write() {
    mkdir -p "$1"
    for n in $(seq 20); do head -c $((n * 40000)) /dev/urandom >"$1/$n"; done
    sync -f "$1"
    (cd "$1" && md5sum ./*) >"/tmp/sums.$(basename "$1")"
}
intact() { (cd "$1" && md5sum --quiet -c "/tmp/sums.$(basename "$1")") || die "$1 differs"; }

# grow OPTIONS SIZE TO...: make a volume, and grow it step by step while it is written.
grow() {
    local options=$1 size=$2 to writer; shift 2
    echo "$options: from $size to $*"
    # shellcheck disable=SC2086
    mke2fs -q -F -t ext4 $options "$DISK2" "$size"
    mount -t ext4 "$DISK2" $MNT
    for to in "$@"; do resize2fs "$DISK2" "$to" >/tmp/out 2>&1 || { cat /tmp/out; die "stock ext4 does not grow"; }; done
    umount $MNT
    # shellcheck disable=SC2086
    mke2fs -q -F -t ext4 $options "$DISK" "$size"
    mount -t rext4 -o noatime "$DISK" $MNT
    settled $MNT
    write $MNT/before
    (while [ ! -e /tmp/stop ]; do echo "$RANDOM" >"$MNT/w$((RANDOM % 50))"; mkdir -p $MNT/d$((RANDOM % 50)); done) &
    writer=$!
    for to in "$@"; do
        resize2fs "$DISK" "$to" >/tmp/out 2>&1 || { cat /tmp/out; dmesg | tail; die "cannot be grown to $to"; }
    done
    touch /tmp/stop; wait $writer; rm /tmp/stop
    intact $MNT/before
    # The new groups are used, and the blocks of them are in the reverse map.
    write $MNT/after
    fallocate -l $(($(stat -f -c '%a * %S' $MNT) * 9 / 10)) $MNT/large
    settled $MNT
    $REXT4 scrub $MNT >/tmp/out || { cat /tmp/out; die "a scrub finds something"; }
    judge
    [ "$(counts "$DISK")" = "$(counts "$DISK2")" ] || { counts "$DISK"; counts "$DISK2"; die "stock ext4 has another size"; }
    mount -t ext4 "$DISK" $MNT
    intact $MNT/before
    intact $MNT/after
    rm -r $MNT/large
    umount $MNT
    clean "$DISK"
    mount -t rext4 -o noatime "$DISK" $MNT
    intact $MNT/after
    settled $MNT
    umount $MNT
    clean "$DISK"
}

grow "-b 4096" 100M 120M 300M
grow "-b 1024" 20M 25M 43M 300M 700M
grow "-b 1024 -O meta_bg,^resize_inode" 20M 170M 300M
grow "-b 1024 -O ^flex_bg,^metadata_csum,^uninit_bg,^64bit" 20M 45M 300M
grow "-b 1024 -O ^metadata_csum,uninit_bg -I 128" 30M 300M
grow "-b 1024 -O ^has_journal" 20M 60M 200M

echo "a crash after the growth loses nothing"
mke2fs -q -F -t ext4 -b 1024 "$DISK" 20M
mount -t rext4 -o noatime "$DISK" $MNT
write $MNT/before
resize2fs "$DISK" 200M >/tmp/out 2>&1
write $MNT/after
call shutdown $MNT 2
umount $MNT
mount -t rext4 -o noatime "$DISK" $MNT
intact $MNT/before
intact $MNT/after
settled $MNT
judge

echo "a scrub that runs meanwhile starts again"
mke2fs -q -F -t ext4 -b 1024 -N 60000 "$DISK" 60M
mount -t rext4 -o noatime "$DISK" $MNT
for n in $(seq 40); do mkdir $MNT/$n; for f in $(seq 50); do echo "$f" >$MNT/$n/"$f"; done; done
sync -f $MNT
settled $MNT
for to in 70M 90M 250M; do
    $REXT4 scrub --type rmap $MNT >/tmp/out &
    resize2fs "$DISK" $to >/tmp/grown 2>&1 || { cat /tmp/grown; die "cannot be grown to $to"; }
    wait $! || { cat /tmp/out; die "the scrub finds something or fails"; }
done
settled $MNT
judge

echo "what stock ext4 refuses is refused, and what is not done yet"
mke2fs -q -F -t ext4 -b 1024 "$DISK" 20M
mount -t rext4 -o noatime "$DISK" $MNT
fails EPERM as-nobody resize $MNT 30000
fails EINVAL resize $MNT 10000
fails ENOSPC resize $MNT $((1 << 40))
[ "$(call resize $MNT 20480)" = "" ] || die "to the same size"
call extend $MNT 24000
[ "$(stat -f -c %b $MNT)" -lt 24577 ] || die "more than the last group"
call extend $MNT 99999
fails EPERM extend $MNT 99999
mount -o remount,ro $MNT
fails EROFS resize $MNT 30000
umount $MNT
clean "$DISK"
mke2fs -q -F -t ext4 -b 1024 -O ^resize_inode "$DISK" 20M
mount -t rext4 -o noatime "$DISK" $MNT
fails EOPNOTSUPP resize $MNT 700000
said "not resized to 700000 blocks: no blocks are reserved for so many descriptors"
umount $MNT
clean "$DISK"
mke2fs -q -F -t ext4 -b 1024 "$DISK" 60M
mount -t rext4 -o noatime,reflink=on "$DISK" $MNT
settled $MNT
write $MNT/before
cp --reflink=always $MNT/before/20 $MNT/clone
fails EOPNOTSUPP resize $MNT 300000
said 'a volume with shared blocks does not get more regions while mounted'
resize2fs "$DISK" 90M >/tmp/out 2>&1 || { cat /tmp/out; die "cannot be grown within a region"; }
settled $MNT
intact $MNT/before
umount $MNT
clean "$DISK"
owned "$DISK"

finish
