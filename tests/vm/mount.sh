# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: log e2fsck owners
# Mounting, remounting and unmounting: nothing is lost on the way to read-only, a journal that was
# not replayed is never written over, and the superblock is left as stock ext4 leaves it.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

value() { dumpe2fs -h "${2:-$DISK}" 2>/dev/null | sed -n "s/^$1: *//p"; }
# has FEATURE [IMAGE]: return whether the superblock has the feature.
has() { value 'Filesystem features' "${2:-$DISK}" | grep -qw "$1"; }
# written_back: the data copied to the volume must be visible to stock ext4.
written_back() {
    clean "$DISK"
    mount -t ext4 "$DISK" $MNT
    cmp /tmp/data $MNT/data || die "data was lost"
    umount $MNT
}
dd if=/dev/urandom of=/tmp/data bs=1M count=8 status=none

echo "a remount to read-only writes everything out"
mke2fs -q -F -t ext4 "$DISK" 200M
mount -t rext4 "$DISK" $MNT
for round in 1 2; do
    rm -f $MNT/data
    cp /tmp/data $MNT/data
    mount -o remount,ro $MNT
    must_fail touch $MNT/other 2>/dev/null
    echo 3 >/proc/sys/vm/drop_caches
    cmp /tmp/data $MNT/data || die "round $round: data was lost"
    head -c 200M "$DISK" >/tmp/image
    clean /tmp/image
    [ "$round" = 2 ] || mount -o remount,rw $MNT
done
umount $MNT
written_back

echo "so does the emergency remount of all volumes"
if [ -w /proc/sysrq-trigger ]; then
    mount -t rext4 "$DISK" $MNT
    rm -f $MNT/data
    cp /tmp/data $MNT/data
    exec 9>>$MNT/data
    echo u >/proc/sysrq-trigger
    for _ in $(seq 100); do
        ! findmnt -n -o OPTIONS $MNT | grep -qw ro || break
        sleep 0.1
    done
    findmnt -n -o OPTIONS $MNT | grep -qw ro || die "$(findmnt -n -o OPTIONS $MNT)"
    must_fail touch $MNT/other 2>/dev/null
    exec 9>&-
    umount $MNT
    written_back
fi

echo "a crash leaves a volume that its journal puts right"
mount -t rext4 "$DISK" $MNT
settled $MNT
sync
[ "$(value 'Filesystem state')" = clean ] || die "in use the volume is $(value 'Filesystem state')"
cp /tmp/data $MNT/crash
sync
head -c 200M "$DISK" >/tmp/image
umount $MNT
has needs_recovery /tmp/image || die "the image needs no recovery"
status=0
e2fsck -p /tmp/image >/tmp/out 2>&1 || status=$?
grep -q 'recovering journal' /tmp/out || { cat /tmp/out; die "no replay"; }
if grep -q 'check forced' /tmp/out; then cat /tmp/out; die "a full check after a crash"; fi
[ $((status & ~1)) = 0 ] || { cat /tmp/out; die "e2fsck -p: $status"; }
clean /tmp/image

echo "a volume that was not valid stays so"
mke2fs -q -F -t ext4 "$DISK" 200M
debugfs -w -R 'set_super_value state 0' "$DISK" 2>/dev/null
mount -t rext4 "$DISK" $MNT
said 'the volume was not unmounted cleanly'
umount $MNT
[ "$(value 'Filesystem state')" = 'not clean' ] || die "it is $(value 'Filesystem state')"

echo "a journal that was not replayed is not written"
mke2fs -q -F -t ext4 "$DISK" 200M
mount -t rext4 "$DISK" $MNT
cp /tmp/data $MNT/data
sync
head -c 200M "$DISK" >/tmp/image
umount $MNT
before=$(sha256sum </tmp/image)
loop=$(losetup -f --show /tmp/image)
must_fail mount -t rext4 -o noload "$loop" $MNT 2>/dev/null
mount -t rext4 -o ro,noload "$loop" $MNT
must_fail mount -o remount,rw $MNT 2>/dev/null
must_fail touch $MNT/other 2>/dev/null
umount $MNT
[ "$(sha256sum </tmp/image)" = "$before" ] || die "written nevertheless"
mount -t rext4 "$loop" $MNT
cmp /tmp/data $MNT/data || die "data was lost"
umount $MNT
losetup -d "$loop"
clean /tmp/image

echo "an error that the journal recorded is carried over to the volume"
mke2fs -q -F -t ext4 -O ^metadata_csum "$DISK" 200M
errno_at=$(($(debugfs -R 'blocks <8>' "$DISK" 2>/dev/null | awk '{ print $1 }') * $(value 'Block size') + 32))
printf '\377\377\377\373' | dd of="$DISK" bs=1 seek=$errno_at conv=notrunc,fsync status=none
mount -t rext4 "$DISK" $MNT
said 'an earlier mount aborted the journal: error -5'
umount $MNT
[ "$(value 'Filesystem state')" = 'clean with errors' ] || die "it is $(value 'Filesystem state')"
errno=$(dd if="$DISK" bs=1 skip=$errno_at count=4 status=none | od -An -tx1 | tr -d ' \n')
[ "$errno" = 00000000 ] || die "the journal still has $errno"

echo "a journal has one kind of checksum"
for journal_csum in 08 10; do
    mke2fs -q -F -t ext4 "$DISK" 200M
    mount -t rext4 "$DISK" $MNT
    cp /tmp/data $MNT/data
    umount $MNT
    # The state left by older kernels: checksum_v2 instead of checksum_v3, with the corresponding
    # checksum.
    python3 "$(dirname "$0")/journal_csum.py" "$DISK" $journal_csum
    clean "$DISK"
    mount -t rext4 "$DISK" $MNT
    cp /tmp/data $MNT/other
    umount $MNT
    dumpe2fs -h "$DISK" 2>/dev/null | grep '^Journal features' >/tmp/out
    grep -q journal_checksum_v3 /tmp/out || { cat /tmp/out; die "not the checksums of today"; }
    if grep -q journal_checksum_v2 /tmp/out; then cat /tmp/out; die "two kinds of checksum"; fi
    written_back
done

options() { findmnt -n -o OPTIONS $MNT; }
shown() { options | tr , '\n' | grep -qx -- "$1" || die "$1 is not among $(options)"; }

echo "every option of stock ext4 is taken, and what is in force is shown"
mke2fs -q -F -t ext4 "$DISK" 200M
dmesg -C
all=acl,user_xattr,discard,commit=30,barrier,data=ordered,nodelalloc,auto_da_alloc,noauto_da_alloc,lazytime,bsddf,nogrpid
all+=,sysvgroups,grpid,bsdgroups,resuid=12,resgid=34,errors=continue,nouid32,debug,oldalloc,orlov,nobh,bh,min_batch_time=100
all+=,max_batch_time=2000,journal_checksum,nojournal_checksum,data_err=ignore,data_err=abort,usrjquota=,grpjquota=,jqfmt=vfsv0
all+=,grpquota,quota,noquota,usrquota,prjquota,barrier=1,i_version,dax=never,stripe=16,delalloc,warn_on_error,nowarn_on_error
all+=,debug_want_extra_isize=32,mblk_io_submit,nomblk_io_submit,block_validity,noblock_validity,inode_readahead_blks=32
all+=,journal_ioprio=3,auto_da_alloc=1,dioread_nolock,nodioread_nolock,dioread_lock,nodiscard,init_itable,init_itable=10
all+=,noinit_itable,max_dir_size_kb=100,nombcache,no_mbcache,prefetch_block_bitmaps,no_prefetch_block_bitmaps,mb_optimize_scan=1
all+=,check=none,nocheck,reservation,noreservation,journal=7,inlinecrypt
mount -t rext4 -o "$all" "$DISK" $MNT
for option in commit=30 resuid=12 resgid=34 min_batch_time=100 max_batch_time=2000 errors=continue lazytime; do shown $option; done
for option in delalloc grpid stripe usrquota; do said "the mount option $option has no effect"; done
for option in oldalloc i_version check; do said "the mount option $option is obsolete and ignored"; done
[ "$(dmesg | grep -c 'the mount option grpid')" = 1 ] || die "told more than once"
mount -o remount,commit=7,nobarrier,minixdf,resuid=0,resgid=0 $MNT
shown commit=7
shown nobarrier
shown minixdf
shown min_batch_time=100
if options | grep -q resuid; then die "$(options)"; fi
[ "$(stat -f -c %b $MNT)" = "$(value 'Block count')" ] || die "minixdf: $(stat -f -c %b $MNT) blocks"
mount -o remount,barrier,bsddf,commit=0 $MNT
if options | grep -qE 'nobarrier|minixdf|commit'; then die "$(options)"; fi
must_fail mount -o remount,data=writeback $MNT 2>/dev/null
must_fail mount -o remount,commit=never $MNT 2>/dev/null
umount $MNT
for bad in nonsense commit=x commit=4294967295 data=never errors= journal_ioprio=8 inode_readahead_blks=3 dax=always noload=1 \
    journal_async_commit data=journal journal_dev=3 resuid barrier=x test_dummy_encryption; do
    must_fail mount -t rext4 -o "$bad" "$DISK" $MNT 2>/tmp/out
    grep -qiE 'bad option|wrong fs type|invalid argument|unknown parameter|bad value' /tmp/out || { cat /tmp/out; die "$bad"; }
done
mount -t rext4 -o data=writeback,journal_async_commit "$DISK" $MNT
umount $MNT

echo "a superblock may ask for options by itself"
tune2fs -o nobarrier -e panic "$DISK" >/dev/null
debugfs -w -R 'set_super_value mount_opts commit=17,reflink=on' "$DISK" 2>/dev/null
mount -t rext4 "$DISK" $MNT
for option in commit=17 reflink=on nobarrier errors=panic; do shown $option; done
umount $MNT
mount -t rext4 -o commit=9,errors=continue "$DISK" $MNT
shown commit=9
shown errors=continue
umount $MNT
debugfs -w -R 'set_super_value mount_opts commit=17,nonsense' "$DISK" 2>/dev/null
mount -t rext4 -o errors=continue "$DISK" $MNT
said 'the mount options in the superblock are ignored'
umount $MNT

echo "files share blocks where that was requested, and never wait"
mke2fs -q -F -t ext4 "$DISK" 200M
mount -t rext4 -o reflink=off "$DISK" $MNT
settled $MNT
cp /tmp/data $MNT/data
must_fail cp --reflink=always $MNT/data $MNT/copy 2>/tmp/out
grep -q 'not supported' /tmp/out || { cat /tmp/out; die "unexpected error"; }
cp $MNT/data $MNT/copy
cmp $MNT/data $MNT/copy
if has shared_blocks; then die "cp alone shares blocks"; fi
mount -o remount,reflink=on $MNT
cp --reflink=always $MNT/data $MNT/clone
umount $MNT
has shared_blocks || die "nothing is shared"
mount -t rext4 -o reflink=off "$DISK" $MNT
settled $MNT
cp --reflink=always $MNT/data $MNT/another || die "cloning fails although blocks are shared"
rm $MNT/clone $MNT/another
sync
umount $MNT
if has shared_blocks; then die "the feature is set although nothing is shared"; fi
clean "$DISK"

echo "a frozen volume stays as it is, and only writers wait"
mke2fs -q -F -t ext4 "$DISK" 64M
mount -t rext4 -o reflink=on "$DISK" $MNT
settled $MNT
cp /tmp/data $MNT/data
cp --reflink=always $MNT/data $MNT/clone
exec 9<>$MNT/clone
# Blocks are set aside for what is written over shared ones; direct reads keep them from being given
# back by the freeze.
dd if=/tmp/data of=/dev/fd/9 bs=4k count=3 conv=notrunc status=none
while [ ! -e /tmp/stop ]; do dd if=$MNT/clone of=/dev/null bs=1M iflag=direct status=none; done & reader=$!
sync -f $MNT/clone
dd if=/tmp/data of=/dev/fd/9 bs=4k count=1 seek=100 conv=notrunc status=none
timeout 60 fsfreeze -f $MNT
content() { dd if="$DISK" bs=1M count=64 iflag=direct status=none | sha256sum; }
before=$(content)
exec 9>&-
touch /tmp/stop
wait $reader
rm /tmp/stop
timeout 20 sync || die "sync waits for the thaw"
timeout 20 sh -c 'echo 3 >/proc/sys/vm/drop_caches' || die "reclaim waits for the thaw"
timeout 20 cmp -n 12288 /tmp/data $MNT/clone || die "readers wait for the thaw"
timeout 20 ls -R $MNT >/dev/null
[ "$(content)" = "$before" ] || die "a frozen volume has changed"
fsfreeze -u $MNT
echo more >$MNT/more
"$REXT4" scrub $MNT || die "scrub finds something after a freeze"
umount $MNT
clean "$DISK"
mount -t rext4 "$DISK" $MNT
settled $MNT
umount $MNT
clean "$DISK"
owned "$DISK"

echo "statfs and the UUID are what stock ext4 says"
mke2fs -q -F -t ext4 "$DISK" 200M
mount -t ext4 "$DISK" $MNT
stat -f -c '%i %s %S %b %f %c %d %l' $MNT >/tmp/stock
umount $MNT
mount -t rext4 -o ro "$DISK" $MNT
stat -f -c '%i %s %S %b %f %c %d %l' $MNT >/tmp/here
umount $MNT
same /tmp/stock /tmp/here

echo "times that an inode has no room for become those that stock ext4 makes of them"
for size in 128 256; do
    for type in ext4 rext4; do
        mke2fs -q -F -t ext4 -I $size "$DISK" 64M 2>/dev/null
        mount -t $type "$DISK" $MNT
        for time in '1890-01-01' '1910-01-01' '2020-01-01 00:00:00.5' '2100-01-01' '2500-01-01'; do
            touch -d "$time UTC" "$MNT/${time%% *}"
        done
        stat -c '%n %y' $MNT/[12]* >/tmp/times.live
        umount $MNT
        mount -t $type "$DISK" $MNT
        stat -c '%n %y' $MNT/[12]* >/tmp/times.$type
        umount $MNT
        same /tmp/times.live /tmp/times.$type
    done
    same /tmp/times.ext4 /tmp/times.rext4
done

echo "damage is no reason not to read"
mke2fs -q -F -t ext4 -b 1024 "$DISK" 64M
mount -t ext4 "$DISK" $MNT
mkdir $MNT/dir
for n in $(seq 50); do cp /bin/true $MNT/dir/$n; done
sum=$(cat $MNT/dir/* | sha256sum)
umount $MNT
head -c 64M "$DISK" >/tmp/image
printf '\377\377' | dd of="$DISK" bs=1 seek=$((2048 + 64 + 30)) conv=notrunc,fsync status=none
blockdev --flushbufs "$DISK"
dmesg -C
must_fail mount -t rext4 "$DISK" $MNT 2>/dev/null
mount -t rext4 -o ro "$DISK" $MNT
said 'group 1: descriptor checksum mismatch'
[ "$(cat $MNT/dir/* | sha256sum)" = "$sum" ] || die "not all can be read"
must_fail mount -o remount,rw $MNT 2>/dev/null
umount $MNT
# The journal needs to be replayed, but its inode is gone.
dd if=/tmp/image of="$DISK" bs=1M conv=fsync status=none
debugfs -w -R 'clri <8>' "$DISK" 2>/dev/null
debugfs -w -R 'feature needs_recovery' "$DISK" >/dev/null 2>&1
blockdev --flushbufs "$DISK"
must_fail mount -t rext4 "$DISK" $MNT 2>/dev/null
mount -t rext4 -o ro "$DISK" $MNT
said 'the journal cannot be replayed'
[ "$(cat $MNT/dir/* | sha256sum)" = "$sum" ] || die "not all can be read"
umount $MNT

echo "a volume of 134 million groups takes no memory to speak of"
truncate -s 4T /tmp/huge
python3 - /tmp/huge <<'P'
import struct, sys
# Blocks of 4 KiB; 8 blocks and 16 inodes per group.
raw = bytearray(1024)
groups = 1 << 27
def put(at, size, value): raw[at:at + size] = value.to_bytes(size, "little")
put(0, 4, 16 * groups); put(4, 4, 8 * groups); put(24, 4, 2); put(28, 4, 2)
put(32, 4, 8); put(36, 4, 8); put(40, 4, 16); put(56, 2, 0xEF53); put(58, 2, 1)
put(76, 4, 1); put(84, 4, 11); put(88, 2, 256); put(96, 4, 0x42)
with open(sys.argv[1], "r+b") as image:
    image.seek(1024)
    image.write(raw)
P
loop=$(losetup -f --show /tmp/huge)
free=$(awk '/^MemAvailable/ { print $2 }' /proc/meminfo)
must_fail timeout 20 mount -t rext4 "$loop" $MNT 2>/dev/null
must_fail timeout 20 mount -t rext4 -o ro "$loop" $MNT 2>/dev/null
[ $((free - $(awk '/^MemAvailable/ { print $2 }' /proc/meminfo))) -lt 100000 ] || die "memory was leaked"
losetup -d "$loop"
rm /tmp/huge

echo "what is not handled is refused by its name"
mke2fs -q -F -t ext4 -b 1024 -O bigalloc "$DISK" 64M 2>/dev/null
dmesg -C
must_fail mount -t rext4 -o ro "$DISK" $MNT 2>/dev/null
said 'the feature bigalloc is not supported'

# sums DIR: print the checksum of each file below it.
sums() { ( cd "$1" && find . -type f -exec sha256sum {} + | sort ); }

# kind ARGUMENT...: create a volume with these mke2fs options, and write to it with stock ext4, then
# rext4, then stock ext4.
kind() {
    echo "kind: $*"
    mke2fs -q -F "$@" "$DISK" 64M
    mount -t ext4 "$DISK" $MNT
    mkdir $MNT/stock
    cp -r /etc/. $MNT/stock/
    sums $MNT/stock >/tmp/sums
    cp /tmp/data $MNT/data
    umount $MNT
    mount -t rext4 "$DISK" $MNT
    cmp /tmp/data $MNT/data
    mkdir $MNT/here
    cp -r $MNT/stock/. $MNT/here/
    rm -r $MNT/stock
    mv $MNT/data $MNT/moved
    cp /tmp/data $MNT/new
    truncate -s 5000 $MNT/new
    sync
    umount $MNT
    clean "$DISK"
    mount -t ext4 "$DISK" $MNT
    cmp /tmp/data $MNT/moved
    cmp -n 5000 /tmp/data $MNT/new
    sums $MNT/here >/tmp/after
    same /tmp/sums /tmp/after
    umount $MNT
}
kind -t ext4 -O meta_bg,^resize_inode -b 1024 -g 256 -N 2048
kind -t ext4 -O large_dir
kind -t ext4 -O ^has_journal
value 'Filesystem state' | grep -qx clean || die "not left clean"
mount -t rext4 "$DISK" $MNT
cp /tmp/data $MNT/more
sync $MNT/more
[ "$(value 'Filesystem state')" = 'not clean' ] || die "in use without a journal it is $(value 'Filesystem state')"
head -c 64M "$DISK" >/tmp/image
debugfs -R 'dump /more /tmp/more' /tmp/image 2>/dev/null
cmp /tmp/data /tmp/more || die "fsync without a journal did not write all data"
mount -o remount,ro $MNT
[ "$(value 'Filesystem state')" = clean ] || die "read-only it is $(value 'Filesystem state')"
umount $MNT
clean "$DISK"
finish
