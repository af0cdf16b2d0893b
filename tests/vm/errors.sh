# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: log e2fsck ext4
# The superblock's record of lifetime writes and of errors, and the reactions to damage.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"
HERE=$(realpath "$(dirname "$0")")

value() { dumpe2fs -h "$DISK" 2>/dev/null | sed -n "s/^$1: *//p"; }

echo "lifetime writes"
mke2fs -q -F -t ext4 "$DISK" 200M
mount -t rext4 "$DISK" $MNT
settled $MNT
dd if=/dev/urandom of=$MNT/file bs=1M count=40 conv=fsync status=none
mount -o remount,ro $MNT
case $(value 'Lifetime writes') in 4[0-9]' MB' | 5[0-9]' MB') ;; *) die "$(value 'Lifetime writes')" ;; esac
mount -o remount,rw $MNT
dd if=/dev/urandom of=$MNT/file bs=1M count=40 conv=fsync status=none
umount $MNT
case $(value 'Lifetime writes') in 8[0-9]' MB' | 9[0-9]' MB') ;; *) die "$(value 'Lifetime writes')" ;; esac
clean "$DISK"
dmesg -C
mount -t rext4 "$DISK" $MNT
if stale $MNT; then die "the reverse map is stale after a clean end"; fi
umount $MNT

# is NAME VALUE: compare a field of the superblock on disk, as printed by dumpe2fs.
is() { blockdev --flushbufs "$DISK"; [ "$(value "$1")" = "$2" ] || die "$1 is $(value "$1"), not $2"; }
# damaged OPTION...: create a volume with a directory block whose checksum is wrong.
damaged() {
    mke2fs -q -F -t ext4 -b 1024 "$@" "$DISK" 64M
    mount -t ext4 "$DISK" $MNT
    mkdir $MNT/dir $MNT/other
    touch $MNT/dir/name
    ino=$(stat -c %i $MNT/dir)
    umount $MNT
    block=$(debugfs -R 'blocks /dir' "$DISK" 2>/dev/null | tr -d ' ')
    printf x | dd of="$DISK" bs=1 seek=$((block * 1024 + 40)) conv=notrunc,fsync status=none
    blockdev --flushbufs "$DISK"
    dmesg -C
}
meet() { must_fail ls $MNT/dir 2>/dev/null; said "inode $ino: block $block: "; sleep 1; }
noted() {
    is 'First error inode #' "$ino"
    is 'First error block #' "$block"
    is 'First error function' rext4
    is 'Last error function' rext4
    [ "$(value 'FS Error count')" -ge "$1" ] || die "$(value 'FS Error count') errors"
}
options() { findmnt -n -o OPTIONS $MNT; }

echo "damage is noted, and the mount goes on"
damaged
mount -t rext4 "$DISK" $MNT
options | grep -q errors=continue || die "$(options)"
settled $MNT
meet
noted 1
is 'Filesystem state' 'clean with errors'
echo text >$MNT/other/file
meet
umount $MNT
noted 2
is 'Filesystem state' 'clean with errors'
mount -t rext4 "$DISK" $MNT
said 'the volume has errors'
[ "$(cat $MNT/other/file)" = text ] || die "written data is lost"
if stale $MNT; then die "the reverse map is stale: recording errors made it look as if another driver had written"; fi
umount $MNT
e2fsck -fy "$DISK" >/dev/null 2>&1 || true
clean "$DISK"

readonly_from_now() {
    options | grep -q errors=remount-ro || die "$(options)"
    echo before >$MNT/other/before
    sync
    exec 9>$MNT/other/open
    meet
    must_fail touch $MNT/other/file 2>/tmp/out
    grep -q 'Read-only file system' /tmp/out || { cat /tmp/out; die "unexpected error"; }
    exec 9>&-
    options | grep -qw emergency_ro || die "$(options)"
    python3 "$HERE/stopped.py" EROFS $MNT/other/before
    must_fail mount -o remount,rw $MNT 2>/dev/null
    [ "$(cat $MNT/other/before)" = before ] || die "existing files cannot be read"
    noted 1
    umount $MNT
    noted 1
    e2fsck -fy "$DISK" >/dev/null 2>&1 || true
    clean "$DISK"
    mount -t rext4 "$DISK" $MNT
    [ "$(cat $MNT/other/before)" = before ] || die "existing files are lost"
    umount $MNT
}
echo "damage makes the mount read-only, as an option or the superblock says"
damaged -e remount-ro
mount -t rext4 -o errors=continue "$DISK" $MNT
options | grep -q errors=continue || die "$(options)"
umount $MNT
mount -t rext4 "$DISK" $MNT
readonly_from_now

echo "what to do can be changed while mounted, and a read-only mount writes nothing"
damaged
must_fail mount -t rext4 -o errors=never "$DISK" $MNT 2>/dev/null
before=$(head -c 64M "$DISK" | sha256sum)
mount -t rext4 -o ro,errors=remount-ro "$DISK" $MNT
meet
umount $MNT
[ "$(head -c 64M "$DISK" | sha256sum)" = "$before" ] || die "written"
mount -t rext4 "$DISK" $MNT
mount -o remount,errors=remount-ro $MNT
readonly_from_now
echo "after the journal was aborted, fsync and sync of what was written before fail, as with stock ext4"
for FS in ext4 rext4; do
    for kind in abort shutdown; do
        mke2fs -q -F -t ext4 "$DISK" 64M
        mount -t $FS "$DISK" $MNT
        python3 "$HERE/stopped.py" --$kind $MNT
        umount $MNT
        e2fsck -fy "$DISK" >/dev/null 2>&1 || true
        clean "$DISK"
    done
done

echo "after the journal was aborted the log does not tell of each inode, and says how many were left out"
mke2fs -q -F -t ext4 "$DISK" 64M
mount -t rext4 "$DISK" $MNT
dmesg -C
python3 - $MNT <<'PY'
import os, subprocess, sys, time
files = [os.open(f"{sys.argv[1]}/{n}", os.O_RDWR | os.O_CREAT) for n in range(300)]
for n in range(300):
    os.unlink(f"{sys.argv[1]}/{n}")
time.sleep(0.1)
# The last references to the deleted files are dropped afterwards.
subprocess.run(["mount", "-o", "remount,abort", sys.argv[1]])
PY
umount $MNT
lines=$(dmesg | grep -c 'could not be freed: error') || true
{ [ "$lines" -gt 0 ] && [ "$lines" -le 30 ]; } || die "$lines lines tell of inodes that could not be freed"
logged 'rext4: .* messages about inodes that could not be written were left out' || die "it is not said how many lines were left out"
e2fsck -fy "$DISK" >/dev/null 2>&1 || true
clean "$DISK"
finish
