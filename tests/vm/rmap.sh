# SPDX-License-Identifier: GPL-2.0
# kernels: uml debug
# oracles: ext4 log e2fsck owners
# The reverse map agrees with e2fsprogs record for record: after it is created by the first writable
# mount of a volume filled by stock ext4, after further writes, and after it is rebuilt because
# stock ext4 has written to the volume.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

# A volume with every kind of owner, created by stock ext4.
fill() {
    local i
    mkdir "$1/many" "$1/deep"
    for i in $(seq $names); do echo "$i" >"$1/many/a-name-that-is-rather-long-to-fill-the-directory-$i"; done
    # Every other block of a fully written file is freed: many extents, and an extent tree of two
    # levels.
    head -c 4M /dev/urandom >"$1/holes"
    python3 - "$1/holes" "$2" <<'PY'
import ctypes, os, sys
fd, step = os.open(sys.argv[1], os.O_RDWR), int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
for at in range(0, 4 << 20, 2 * step):
    assert libc.fallocate(fd, 3, ctypes.c_long(at), ctypes.c_long(step)) == 0, ctypes.get_errno()
PY
    fallocate -l 3M "$1/unwritten"
    head -c 100k /dev/urandom | dd of="$1/unwritten" bs=1k seek=1000 conv=notrunc status=none
    truncate -s 50M "$1/sparse"
    echo end >>"$1/sparse"
    ln -s "$(head -c 200 /dev/zero | tr '\0' x)" "$1/long-link"
    ln -s short "$1/short-link"
    mknod "$1/fifo" p
    # Too much for the inode itself: an attribute block, and one that two inodes share.
    setfattr -n user.large -v "$(head -c 600 /dev/zero | tr '\0' y)" "$1/many"
    setfattr -n user.large -v "$(head -c 600 /dev/zero | tr '\0' z)" "$1/holes" "$1/sparse"
}

names=400
is_slow && names=120

check() { # BLOCK_SIZE MKE2FS_OPTION...
    local size=$1; shift
    mkfs.ext4 -q -F -b "$size" "$@" "$DISK" 600M
    mount -t ext4 "$DISK" $MNT
    fill $MNT "$size"
    listing $MNT >/tmp/before.list
    umount $MNT
    clean "$DISK"

    mount -t rext4 "$DISK" $MNT
    settled $MNT
    "$REXT4" scrub $MNT || die "scrub reports problems in a new map"
    umount $MNT
    clean "$DISK"
    owned "$DISK"

    mount -t rext4 "$DISK" $MNT
    ! stale $MNT || die "the map is stale although nothing happened"
    rm -r $MNT/many
    truncate -s 1M $MNT/holes
    head -c 300k /dev/urandom | dd of=$MNT/unwritten bs=1k seek=2000 conv=notrunc status=none
    mkdir $MNT/new
    python3 - $MNT/new <<'PY'
import os, sys
names = [f"{sys.argv[1]}/{i}" for i in range(1, 301)]
for i, name in enumerate(names):
    with open(name, "wb") as f:
        f.write(os.urandom(50 * i))
for name in names[0::3]:
    os.unlink(name)
for name in names[1::3]:
    os.truncate(name, 4096)
PY
    rm $MNT/sparse
    "$REXT4" scrub $MNT || die "scrub reports problems in an updated map"
    umount $MNT
    clean "$DISK"
    owned "$DISK"

    # Stock ext4 does not maintain the map; a mount that writes nothing does no harm.
    mount -t ext4 -o ro,noload "$DISK" $MNT
    umount $MNT
    mount -t rext4 "$DISK" $MNT
    ! stale $MNT || die "the map is stale after another driver has only read"
    umount $MNT
    mount -t ext4 "$DISK" $MNT
    rm $MNT/new/?? $MNT/long-link
    head -c 2M /dev/urandom >$MNT/by-stock
    umount $MNT
    mount -t rext4 "$DISK" $MNT
    echo more >$MNT/at-once
    settled $MNT
    "$REXT4" scrub $MNT || die "scrub reports problems in a rebuilt map"
    umount $MNT
    clean "$DISK"
    owned "$DISK"
    logged 'written by others' || die "no log message about the other writer"

    # After a remount, a freeze, and the removal of the map itself.
    mount -t rext4 "$DISK" $MNT
    mount -o remount,ro $MNT
    mount -o remount,rw $MNT
    ! stale $MNT || die "the map is stale after a remount"
    fsfreeze -f $MNT
    fsfreeze -u $MNT
    echo thawed >$MNT/thawed
    umount $MNT
    owned "$DISK"
    mount -t ext4 "$DISK" $MNT
    chattr -i $MNT/.rext4/rmap
    rm -r $MNT/.rext4
    umount $MNT
    mount -t rext4 "$DISK" $MNT
    settled $MNT
    umount $MNT
    clean "$DISK"
    owned "$DISK"
}

check 1024
if ! is_slow; then
    check 2048 -O ^flex_bg
    check 4096
fi
finish
