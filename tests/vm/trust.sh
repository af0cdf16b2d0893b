# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: log ext4 e2fsck owners
# When a file counts as a tree file, and when its contents are trusted: after a crash, and when a
# user has a file of that name.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

COPY=$DISK2

# A crash with a deleted file still open; then stock ext4 mounts read-only, which replays the
# journal and frees the file's blocks. It changes none of the times and counts in the superblock
# that a mount for writing changes. Without an orphan file that the journal was to be replayed is
# what tells.
for case in "orphan_file no" "orphan_file yes" "^orphan_file no" "^orphan_file yes"; do
    by_stock=${case#* }
    mkfs.ext4 -q -F -b 1024 -O "${case% *}" "$DISK" 64M
    mount -t rext4 "$DISK" $MNT
    settled $MNT
    head -c 2M /dev/urandom >$MNT/kept
    head -c 3M /dev/urandom >$MNT/deleted
    exec 7<$MNT/deleted
    rm $MNT/deleted
    sync -f $MNT/kept
    dd if="$DISK" of="$COPY" bs=1M count=64 iflag=direct oflag=direct status=none
    exec 7<&-
    umount $MNT
    dmesg -C
    if [ $by_stock = yes ]; then
        mount -t ext4 -o ro "$COPY" $MNT
        umount $MNT
    fi
    mount -t rext4 "$COPY" $MNT
    if [ $by_stock = no ] && logged 'written by others'; then
        die "a crash of our own made the map stale ($case)"
    fi
    settled $MNT
    "$REXT4" scrub $MNT || die "scrub finds something after a crash ($case)"
    umount $MNT
    clean "$COPY"
    owned "$COPY"
    if [ $by_stock = yes ]; then
        logged 'written by others' || die "the map was believed after stock ext4 had freed an orphan ($case)"
    fi
done

# A tree file whose own mapping is damaged is recreated, and writes and clones continue. A scrub
# frees its former blocks.
for kind in rmap refcount; do
    mkfs.ext4 -q -F -b 1024 "$DISK" 64M
    mount -t rext4 "$DISK" $MNT
    settled $MNT
    head -c 300k /dev/urandom >$MNT/file
    cp --reflink=always $MNT/file $MNT/clone
    sha256sum $MNT/file $MNT/clone >/tmp/sum
    umount $MNT
    clean "$DISK"
    ino=$(debugfs -R "stat /.rext4/$kind" "$DISK" 2>/dev/null | sed -n 's/^Inode: \([0-9]*\) .*/\1/p')
    debugfs -w -R "sif <$ino> block[0] 0" "$DISK" 2>/dev/null
    dmesg -C
    mount -t rext4 -o errors=remount-ro "$DISK" $MNT || { dmesg | tail; die "$kind: refused"; }
    said "$kind: the mapping of inode $ino is damaged: the file is recreated"
    settled $MNT
    "$REXT4" scrub --repair $MNT || [ $? = 1 ] || die "$kind: scrub cannot repair the volume"
    "$REXT4" scrub $MNT || die "$kind: scrub finds something"
    head -c 300k /dev/urandom >$MNT/new
    cp --reflink=always $MNT/new $MNT/another
    rm $MNT/new
    sync -f $MNT/another || die "$kind: the volume is not writable"
    sha256sum --quiet -c /tmp/sum
    umount $MNT
    e2fsck -fy "$DISK" >/tmp/e2fsck.log 2>&1 || [ $? = 1 ] || { cat /tmp/e2fsck.log; die "$kind: e2fsck"; }
    lacks 'ultiply-claimed|llegal block|invalid' /tmp/e2fsck.log
    mount -t rext4 "$DISK" $MNT
    settled $MNT
    umount $MNT
    clean "$DISK"
    owned "$DISK"
done

# not_ours: rext4 mounts the volume, leaves the file alone whose sum is in /tmp/sum, and says so.
not_ours() {
    dmesg -C
    mount -t rext4 "$DISK" $MNT
    echo written >$MNT/by-us
    rm $MNT/by-us
    umount $MNT
    logged '/.rext4/(rmap)? was not created by rext4' || { dmesg | tail; die "no log message about a file that is not ours"; }
    logged 'mounted without a reverse map' || die "no log message about the missing map"
    clean "$DISK"
    mount -t ext4 -o ro "$DISK" $MNT
    sha256sum --quiet -c /tmp/sum || die "a user's file was overwritten"
    umount $MNT
}

# A user's own directory and file. They are not hidden, either.
mkfs.ext4 -q -F -b 1024 "$DISK" 64M
mount -t ext4 "$DISK" $MNT
mkdir $MNT/.rext4
head -c 280000 /dev/urandom >$MNT/.rext4/rmap
sha256sum $MNT/.rext4/rmap >/tmp/sum
umount $MNT
not_ours
mount -t rext4 "$DISK" $MNT
sha256sum --quiet -c /tmp/sum || die "a user's file is hidden or changed"
umount $MNT

# The name refers to another inode: a user's file, even with the same flags as a tree file, or the
# orphan file.
for victim in file guarded orphans; do
    mkfs.ext4 -q -F -b 1024 "$DISK" 64M
    mount -t rext4 "$DISK" $MNT
    settled $MNT
    head -c 280000 /dev/urandom >$MNT/file
    umount $MNT
    mount -t ext4 "$DISK" $MNT
    sha256sum $MNT/file >/tmp/sum
    chattr -i $MNT/.rext4/rmap
    rm $MNT/.rext4/rmap
    case $victim in
    guarded)
        mv $MNT/file $MNT/.rext4/rmap
        chmod 600 $MNT/.rext4/rmap
        chattr +i $MNT/.rext4/rmap
        sed -i 's#/file$#/.rext4/rmap#' /tmp/sum
        ;;
    file) ln $MNT/file $MNT/.rext4/rmap ;;
    esac
    umount $MNT
    if [ $victim = orphans ]; then
        orphans=$(dumpe2fs -h "$DISK" 2>/dev/null | awk '/^Orphan file inode:/ { print $NF }')
        debugfs -w -R "ln <$orphans> /.rext4/rmap" "$DISK" >/dev/null 2>&1
        dmesg -C
        mount -t rext4 "$DISK" $MNT
        umount $MNT
        logged 'illegal inode' || { dmesg | tail; die "the orphan file was used as the map"; }
        debugfs -w -R "unlink /.rext4/rmap" "$DISK" >/dev/null 2>&1
        clean "$DISK"
        mount -t ext4 "$DISK" $MNT
        sha256sum --quiet -c /tmp/sum
        umount $MNT
    else
        not_ours
    fi
done

# Blocks without an owner on a volume with shared blocks, as a crash may leave them. While the
# superblock has errors recorded they are not freed; the region remembers that this remains to be
# done, although its map is good.
mkfs.ext4 -q -F -b 1024 "$DISK" 64M
mount -t rext4 "$DISK" $MNT
settled $MNT
head -c 300k /dev/urandom >$MNT/file
cp --reflink=always $MNT/file $MNT/clone
umount $MNT
clean "$DISK"
first=$(debugfs -R 'ffb 10' "$DISK" 2>/dev/null | sed 's/.*: \([0-9]*\).*/\1/')
group=$(((first - 1) / 8192))
free=$(dumpe2fs "$DISK" 2>/dev/null | awk -v group="$group:" '$1 == "Group" && $2 == group { found = 1 } found && / free blocks,/ { print $1; exit }')
all=$(dumpe2fs -h "$DISK" 2>/dev/null | awk '/^Free blocks:/ { print $NF }')
cat >/tmp/commands <<END
setb $first 10
set_bg $group free_blocks_count $((free - 10))
set_bg $group checksum calc
set_super_value free_blocks_count $((all - 10))
set_super_value state 3
END
debugfs -w -f /tmp/commands "$DISK" >/tmp/debugfs.log 2>&1 || { cat /tmp/debugfs.log; die "debugfs failed"; }
mount -t rext4 "$DISK" $MNT
umount $MNT
# Only the state is changed, not the fields that indicate another writer.
python3 - "$DISK" <<'PY'
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
raw = bytearray(os.pread(fd, 1024, 1024))
assert raw[0x3a] == 3, raw[0x3a]
raw[0x3a] = 1
sum = 0xffffffff
for byte in raw[:1020]:
    sum ^= byte
    for _ in range(8):
        sum = sum >> 1 ^ (0x82f63b78 if sum & 1 else 0)
raw[1020:] = sum.to_bytes(4, "little")
os.pwrite(fd, raw, 1024)
os.fsync(fd)
PY
if e2fsck -fn "$DISK" >/tmp/e2fsck.log 2>&1; then die "e2fsck does not see blocks without an owner"; fi
dmesg -C
mount -t rext4 "$DISK" $MNT
umount $MNT
if logged 'written by others'; then die "the map was not trusted"; fi
clean "$DISK"
owned "$DISK"
finish
