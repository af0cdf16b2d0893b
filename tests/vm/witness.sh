# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: log e2fsck
# Scrub and mount never trust a single witness. An inode or blocks of a file that a bitmap marks as
# free, a mapping that cannot be read, bad blocks that belong to no file: on such evidence nothing
# is freed and no record is removed from the reverse map. The finding is reported, and everything
# that it does not affect is repaired.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

# records INODE: print the reverse map's records of it; the volume must not be mounted.
records() { "$REXT4" dump "$DISK" | awk -v inode="$1" '$4 == inode'; }
# in_use BLOCK...: all of these must be allocated in the block bitmap.
in_use() {
    local block
    for block in "$@"; do
        debugfs -R "testb $block" "$DISK" 2>/dev/null | grep -q 'marked in use' || die "block $block was freed"
    done
}
blocks() { debugfs -R "blocks <$1>" "$DISK" 2>/dev/null; }
fresh() { umount $MNT 2>/dev/null || true; mkfs.ext4 -q -F -b 1024 "$@" "$DISK" 300M; dmesg -C; }

# An inode bit is cleared while the file exists; the change also makes the trees stale.
fresh
mount -t rext4 "$DISK" $MNT
head -c 100K /dev/urandom >$MNT/live
inode=$(stat -c %i $MNT/live)
settled $MNT
umount $MNT
records "$inode" >/tmp/before.list
[ -s /tmp/before.list ] || die "no records of the file"
debugfs -w -R "freei <$inode>" "$DISK" 2>/dev/null
mount -t rext4 "$DISK" $MNT
settled $MNT
ends_with 4 "$REXT4" scrub --repair --type rmap $MNT
said "inode $inode: free in the inode bitmap, but it has links and contents"
umount $MNT
records "$inode" >/tmp/after.list
same /tmp/before.list /tmp/after.list
mount -t rext4 "$DISK" $MNT
ends_with 1 "$REXT4" scrub --repair $MNT
umount $MNT
records "$inode" >/tmp/after.list
same /tmp/before.list /tmp/after.list
clean "$DISK"

# The same for files with shared blocks, which must stay allocated.
fresh
mount -t rext4 "$DISK" $MNT
head -c 24K /dev/urandom >$MNT/1
for i in 2 3 4 5; do cp --reflink=always $MNT/1 $MNT/$i; done
inodes=$(stat -c %i $MNT/[1-5])
umount $MNT
shared=$(blocks "$(echo "$inodes" | head -1)")
[ "$(wc -w <<<"$shared")" = 24 ] || die "not the blocks of the file: $shared"
for inode in $inodes; do debugfs -w -R "freei <$inode>" "$DISK" 2>/dev/null; done
mount -t rext4 "$DISK" $MNT
umount $MNT
in_use $shared

# Block bits cleared under a file: its region cannot be rebuilt before the bitmap is repaired.
fresh
mount -t rext4 "$DISK" $MNT
head -c 100K /dev/urandom >$MNT/file
inode=$(stat -c %i $MNT/file)
settled $MNT
umount $MNT
lost=$(blocks "$inode" | awk '{ print $20 }')
debugfs -w -R "freeb $lost 1" "$DISK" 2>/dev/null
mount -t rext4 "$DISK" $MNT
ends_with 4 "$REXT4" scrub --repair --type rmap $MNT
said "rmap: block $lost is free in the block bitmap but part of .* of inode $inode"
ends_with 1 "$REXT4" scrub --repair $MNT
umount $MNT
clean "$DISK"

# Tree files and the orphan file never share blocks, even on a volume with shared blocks: a user's
# file that claims a block of theirs is reported, and its claim is not recorded.
for victim in tree orphans; do
    fresh
    mount -t rext4 "$DISK" $MNT
    head -c 8K /dev/urandom >$MNT/1
    cp --reflink=always $MNT/1 $MNT/2
    head -c 1K /dev/urandom >$MNT/crossed
    inode=$(stat -c %i $MNT/crossed)
    settled $MNT
    umount $MNT
    case $victim in
        tree) own=$(debugfs -R 'stat /.rext4/rmap' "$DISK" 2>/dev/null | sed -n 's/^Inode: \([0-9]*\) .*/\1/p') ;;
        orphans) own=$(dumpe2fs -h "$DISK" 2>/dev/null | awk '/^Orphan file inode:/ { print $NF }') ;;
    esac
    taken=$(debugfs -R "bmap <$own> 1" "$DISK" 2>/dev/null)
    [ "$taken" -gt 0 ] || die "$victim: no block"
    debugfs -w -R "sif <$inode> block[5] $taken" "$DISK" 2>/dev/null
    mount -t rext4 "$DISK" $MNT
    ends_with 4 "$REXT4" scrub --repair $MNT
    said "rmap: blocks have two owners but must not be shared: blocks .* of inode "
    logged "blocks $taken-$taken of inode $inode" || { dmesg | tail; die "$victim: not both claims are told"; }
    umount $MNT
    in_use "$taken"
done

# Bad blocks have an owner, which is no inode that can be opened.
echo 30000 >/tmp/bad.list
fresh -l /tmp/bad.list
mount -t rext4 "$DISK" $MNT
head -c 24K /dev/urandom >$MNT/1
cp --reflink=always $MNT/1 $MNT/2
umount $MNT
debugfs -w -R "ssv mnt_count 77" "$DISK" 2>/dev/null
mount -t rext4 "$DISK" $MNT
ends_with 0 "$REXT4" scrub $MNT
umount $MNT
in_use 30000
clean "$DISK"
records 1 | grep -q . || die "the reverse map has no owner of the bad block"

# A mapping that cannot be read aborts neither the scan nor the mount.
fresh
mount -t rext4 "$DISK" $MNT
head -c 100K /dev/urandom >$MNT/bad
head -c 100K /dev/urandom >$MNT/good
inode=$(stat -c %i $MNT/bad)
settled $MNT
umount $MNT
debugfs -w -R "sif <$inode> block[0] 0" "$DISK" 2>/dev/null
mount -t rext4 -o errors=remount-ro "$DISK" $MNT
settled $MNT
ends_with 4 "$REXT4" scrub --repair $MNT
said "inode $inode: cannot be scanned"
echo still >$MNT/writable || die "a check made the volume read-only"
sync -f $MNT
umount $MNT

# Every owner of a block is listed once, however many ioctl calls are needed.
fresh
mount -t rext4 "$DISK" $MNT
python3 - $MNT <<'PY'
import fcntl, os, sys
top = sys.argv[1]
with open(f"{top}/0", "wb") as f:
    f.write(os.urandom(1024))
source = os.open(f"{top}/0", os.O_RDONLY)
for i in range(1, 1300):
    clone = os.open(f"{top}/{i}", os.O_RDWR | os.O_CREAT)
    fcntl.ioctl(clone, 0x40049409, source)
    os.close(clone)
PY
sync -f $MNT
block=$(filefrag -v $MNT/0 | awk '$1 == "0:" { print $4 + 0 }')
stat -c %i $MNT/[0-9]* | sort >/tmp/before.list
"$REXT4" map $MNT | awk -v block="$block" '$1 == block { print $3 }' | sort >/tmp/after.list
same /tmp/before.list /tmp/after.list
umount $MNT
clean "$DISK"
finish
