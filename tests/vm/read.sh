# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: ext4 e2fsck
# Everything written by stock ext4 reads the same: names, attributes, times, contents and mappings
# of every kind of file, with blocks of 1, 2 and 4 KiB, small and large inodes, with and without
# checksums, with extents and indirect blocks.
. "$(dirname "$0")/lib.sh"

fill() {
    local dir=$1 i
    mkdir -p "$dir/deep/a/b/c/d" "$dir/many"
    for i in $(seq 1 1500); do echo "file number $i" >"$dir/many/a-rather-long-name-for-a-file-$i"; done
    rm "$dir"/many/*7
    head -c 5000000 /dev/urandom >"$dir/large"
    head -c 1 /dev/urandom >"$dir/tiny"
    : >"$dir/empty"
    # Enough extents for a tree of several levels, with holes between them.
    python3 - "$dir/sparse" <<'PY'
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
for i in range(1500):
    os.pwrite(fd, b"%08d" % i, i * 12288)
os.pwrite(fd, b"end", 60 << 20)
os.close(fd)
PY
    fallocate -l 300000 "$dir/unwritten" || true
    ln "$dir/large" "$dir/deep/hard"
    ln -s large "$dir/short-link"
    ln -s "$(printf 'x/%.0s' $(seq 1 200))" "$dir/long-link"
    mknod "$dir/null" c 1 3
    mknod "$dir/big-device" b 300 70000
    mkfifo "$dir/fifo"
    touch -d '1940-01-02 03:04:05.678' "$dir/tiny"
    chown 70000:80000 "$dir/empty"
    chmod 6751 "$dir/empty"
}

check() {
    echo "checking: mke2fs $*"
    mke2fs -q -F "$@" "$DISK" 400M
    mount -t ext4 -o noatime "$DISK" $MNT
    fill $MNT/d
    sync
    umount $MNT
    mount -t ext4 -o ro,noatime "$DISK" $MNT
    listing $MNT >/tmp/stock.list; extents $MNT >/tmp/stock.map; usage $MNT >/tmp/stock.usage
    umount $MNT

    mount -t rext4 -o ro "$DISK" $MNT
    listing $MNT >/tmp/ours.list; extents $MNT >/tmp/ours.map; usage $MNT >/tmp/ours.usage
    must_fail touch $MNT/new 2>/dev/null
    must_fail test -e $MNT/no-such-name
    must_fail ls "$MNT/$(printf 'n%.0s' $(seq 1 256))" 2>/dev/null
    umount $MNT
    same /tmp/stock.list /tmp/ours.list
    same /tmp/stock.map /tmp/ours.map
    same /tmp/stock.usage /tmp/ours.usage
    [ "$(wc -l </tmp/ours.map)" -gt 1500 ] || die "too few extents for a meaningful test"
    [ "$(wc -l </tmp/ours.list)" -gt 2000 ] || die "the listing is too short for a meaningful test"
    clean "$DISK"
}

check -t ext4 -b 1024
check -t ext4 -b 2048
check -t ext4 -b 4096
check -t ext4 -b 4096 -I 128 -O ^metadata_csum,uninit_bg,^64bit
check -t ext4 -b 1024 -O ^extents,^64bit,^dir_index,^orphan_file,^flex_bg
finish
