# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: e2fsck owners ext4 log
# System calls that tools use: each does what stock ext4 does, or fails with its errno.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

# is EXPECTED CALL...: a call must succeed with this answer.
is() {
    local expected=$1 said; shift
    said=$(call "$@" 2>&1) || die "$said: $*"
    [ "$said" = "$expected" ] || die "$said instead of $expected: $*"
}
feature() { grep -q "^Filesystem features:.* $1" < <(dumpe2fs -h "$DISK" 2>/dev/null); }
dd if=/dev/urandom of=/tmp/data bs=1M count=4 status=none

echo "a volume that is shut down is left as the call says, and nothing is written or read any more"
for how in 0 1 2; do
    mke2fs -q -F -t ext4 "$DISK" 100M
    mount -t "$FS" "$DISK" $MNT
    [ "$FS" != rext4 ] || settled $MNT
    cp /tmp/data $MNT/synced
    mkdir $MNT/sub
    sync -f $MNT
    cp /tmp/data $MNT/not-synced
    fails EPERM as-nobody shutdown $MNT $how
    fails EINVAL shutdown $MNT 3
    dmesg -C
    is "read=EIO write=EIO fsync=EIO truncate=EIO fallocate=EIO chmod=EIO" \
        held $MNT/synced python3 "$HERE/calls.py" shutdown $MNT $how
    call shutdown $MNT 2
    [ "$FS" != rext4 ] || said "shut down requested \\($how\\)"
    for command in "cat $MNT/synced" "touch $MNT/new" "rm $MNT/synced" "mkdir $MNT/dir" "rmdir $MNT/sub" "mv $MNT/synced $MNT/b" \
        "ln $MNT/synced $MNT/c" "ln -s x $MNT/d" "setfattr -n user.a -v b $MNT/synced" "sync -f $MNT" "mount -o remount,ro $MNT"; do
        must_fail $command 2>/tmp/out >/tmp/out
    done
    stat $MNT/synced >/dev/null
    findmnt -n -o OPTIONS $MNT | grep -qw shutdown || die "the options do not say that it is shut down"
    umount $MNT
    if logged 'could not be|not all blocks|left clean'; then dmesg; die "the log has errors of what cannot be done any more"; fi
    if [ $how = 0 ]; then
        if feature needs_recovery; then die "not left clean"; fi
        clean "$DISK"
    else
        feature needs_recovery || die "left clean"
    fi
    mount -t ext4 "$DISK" $MNT
    cmp /tmp/data $MNT/synced || die "what was synced is lost"
    [ $how != 0 ] || cmp /tmp/data $MNT/not-synced || die "what was written is lost"
    umount $MNT
    clean "$DISK"
    mount -t "$FS" -o noatime "$DISK" $MNT
    [ "$FS" != rext4 ] || settled $MNT
    cmp /tmp/data $MNT/synced
    judge
done

echo "flags do and answer the same as with stock ext4, which reads them"
for size in 128 256; do
    for fs in ext4 "$FS"; do
        mke2fs -q -F -t ext4 -I $size "$DISK" 100M
        mount -t $fs "$DISK" $MNT
        call flags $MNT/flags >/tmp/flags.$fs || die "flags of $fs"
        if [ $fs = rext4 ]; then
            cp /tmp/data $MNT/file
            fails EOPNOTSUPP set-flags $MNT/file 0
            fails EOPNOTSUPP set-flags $MNT/file $((0x80000 | 0x4000))
        fi
        lsattr -R $MNT/flags 2>/dev/null | sort >/tmp/list.live || true
        call born $MNT/flags/file >/tmp/born.live
        umount $MNT
    done
    same /tmp/flags.ext4 /tmp/flags.$FS
    clean "$DISK"
    mount -t ext4 "$DISK" $MNT
    lsattr -R $MNT/flags 2>/dev/null | sort >/tmp/list.stock || true
    call born $MNT/flags/file >/tmp/born.stock
    umount $MNT
    [ "$(wc -l </tmp/list.live)" -gt 4 ] || die "lsattr lists nothing"
    same /tmp/list.live /tmp/list.stock
    same /tmp/born.live /tmp/born.stock
done

echo "labels, UUID and generations"
for options in ^metadata_csum metadata_csum,sparse_super2; do
    mke2fs -q -F -t ext4 -b 4096 -O $options -L before "$DISK" 200M
    mount -t "$FS" "$DISK" $MNT
    is before label $MNT
    fails EPERM as-nobody label $MNT x
    fails EINVAL label $MNT 12345678901234567
    call label $MNT 1234567890123456
    is 1234567890123456 label $MNT
    call label $MNT new
    is "16 $(dumpe2fs -h "$DISK" 2>/dev/null | sed -n 's/^Filesystem UUID: *//p' | tr -d -)" uuid $MNT
    is "16 00000000000000000000000000000000" uuid $MNT 0
    fails EINVAL uuid $MNT 8
    fails EINVAL uuid $MNT 16 1
    echo 1 >$MNT/file
    sync -f $MNT
    is "$(debugfs -R 'stat /file' "$DISK" 2>/dev/null | sed -n 's/.*Generation: \([0-9]*\) .*/\1/p')" version $MNT/file
    case $options in
        ^*) call version $MNT/file 77
            is 77 version $MNT/file
            call set-version-old $MNT/file 4000000000
            fails EPERM as-nobody version $MNT/file 1 ;;
        *)  fails ENOTTY version $MNT/file 77 ;;
    esac
    generation=$(call version $MNT/file)
    umount $MNT
    clean "$DISK"
    [ "$(e2label "$DISK")" = new ] || die "the label is $(e2label "$DISK")"
    # The copies have it as well.
    copy=$(dumpe2fs "$DISK" 2>/dev/null | sed -n 's/.*Backup superblock at \([0-9]*\),.*/\1/p' | tail -1)
    [ "$(dumpe2fs -h -o superblock=$copy -o blocksize=4096 "$DISK" 2>/dev/null | sed -n 's/^Filesystem volume name: *//p')" = new ] ||
        die "the copy of the superblock at $copy has another label"
    mount -t ext4 "$DISK" $MNT
    is $generation version $MNT/file
    umount $MNT
done

echo "a handle leads to its file and to no other"
mke2fs -q -F -t ext4 -I 256 "$DISK" 100M
mount -t "$FS" "$DISK" $MNT
[ "$FS" != rext4 ] || settled $MNT
mkdir -p $MNT/a/b/c
echo contents >$MNT/a/b/c/file
touch $MNT/a/b/c/other
file=$(call handle $MNT/a/b/c/file) folder=$(call handle $MNT/a/b/c)
for round in cached read mounted; do
    is contents by-handle $MNT $file
    is "$MNT/a/b/c file other" by-handle $MNT $folder
    fails EPERM as-nobody by-handle $MNT $file
    case $round in
        cached) sync; echo 3 >/proc/sys/vm/drop_caches ;;
        # Stock ext4 has the same handles.
        read) umount $MNT; mount -t ext4 "$DISK" $MNT ;;
    esac
done
is contents by-handle $MNT $file
umount $MNT
mount -t "$FS" "$DISK" $MNT
ino=$(stat -c %i $MNT/a/b/c/file)
is contents by-number $MNT "$ino" "$(call version $MNT/a/b/c/file)"
is contents by-number $MNT "$ino"
fails ESTALE by-number $MNT "$ino" 12345
rm $MNT/a/b/c/file
fails ESTALE by-handle $MNT $file
for i in $(seq 20); do echo $i >$MNT/a/b/c/again-$i; done
[ "$(stat -c %i $MNT/a/b/c/again-1)" = "$ino" ] || die "the inode was not taken again"
fails ESTALE by-handle $MNT $file
dmesg -C
# No inode, the file system's own ones, and those that were never used.
numbers="0 1 3 7 8 11111111 20000 25000"
if [ "$FS" = rext4 ]; then
    sync -f $MNT
    for name in /.rext4 /.rext4/rmap; do
        numbers+=" $(debugfs -R "stat $name" "$DISK" 2>/dev/null | sed -n 's/^Inode: \([0-9]*\) .*/\1/p')"
    done
fi
if [ "$FS" = rext4 ]; then
    for number in $numbers; do fails ESTALE by-number $MNT $number; done
fi
if logged 'rext4: .*inode'; then dmesg; die "a handle that was made up is damage"; fi
umount $MNT
clean "$DISK"

echo "contents move within files, shared blocks as well"
for options in "-b 1024" "-b 4096"; do
    mke2fs -q -F -t ext4 $options "$DISK" 200M
    block=${options#* } clones=0
    if [ "$FS" = rext4 ]; then
        clones=3
        mount -t rext4 -o noatime,reflink=on "$DISK" $MNT
        settled $MNT
    else
        mount -t "$FS" "$DISK" $MNT
    fi
    call shift $MNT $block 300 $block $clones || die "contents are not what they should be"
    # A file of many extents, in a tree of several levels.
    python3 -c "
with open('$MNT/pieces', 'wb') as file:
    for i in range(0, 3000, 2):
        file.seek(i * $block)
        file.write(i.to_bytes(4, 'little') * ($block // 4))"
    sync -f $MNT
    call fallocate $MNT/pieces 8 $((block * 100)) $((block * 7))
    call fallocate $MNT/pieces 32 $((block * 51)) $((block * 1000))
    python3 -c "
data = bytearray(2999 * $block)
for i in range(0, 3000, 2):
    data[i * $block:(i + 1) * $block] = i.to_bytes(4, 'little') * ($block // 4)
del data[100 * $block:107 * $block]
data[51 * $block:51 * $block] = bytes(1000 * $block)
assert open('$MNT/pieces', 'rb').read() == data" || die "a file of many pieces is not what it should be"
    cp /tmp/data $MNT/file
    fails EINVAL fallocate $MNT/file 8 $block 100
    fails EINVAL fallocate $MNT/file 32 100 $block
    fails EINVAL fallocate $MNT/file 8 $block $((4 << 20))
    fails EINVAL fallocate $MNT/file 32 $((4 << 20)) $block
    fails EFBIG fallocate $MNT/file 32 0 $(((1 << 62) - 1))
    rm $MNT/file
    if [ "$FS" = rext4 ]; then judge; else umount $MNT; fi
done
mke2fs -q -F -t ext3 "$DISK" 50M
mount -t "$FS" "$DISK" $MNT
cp /tmp/data $MNT/file
fails EOPNOTSUPP fallocate $MNT/file 8 4096 4096
fails EOPNOTSUPP fallocate $MNT/file 32 4096 4096
cmp /tmp/data $MNT/file
umount $MNT

echo "files are swapped to, and keep their blocks meanwhile"
# no_swap FILE: it must not be possible to swap to it. swapon ends with status 255 then.
no_swap() { if swapon "$1" 2>/dev/null; then die "swaps to $1"; fi; }
for type in ext4 ext3; do
    mke2fs -q -F -t $type "$DISK" 100M
    options=
    [ "$FS$type" != rext4ext4 ] || options=reflink=on
    mount -t "$FS" ${options:+-o $options} "$DISK" $MNT
    [ "$FS" != rext4 ] || settled $MNT
    dd if=/dev/zero of=$MNT/written bs=1M count=16 status=none
    [ $type != ext4 ] || fallocate -l 16M $MNT/allocated
    truncate -s 16M $MNT/hole
    for file in $MNT/*; do
        [ -f $file ] || continue
        chmod 600 $file
        mkswap -q $file >/dev/null 2>&1 || mkswap $file >/dev/null
    done
    no_swap $MNT/hole
    for file in $MNT/written $MNT/allocated; do
        [ -e $file ] || continue
        swapon $file
        grep -q "^$file " /proc/swaps || die "$file is not swapped to"
        fails ETXTBSY fallocate $file 3 0 4096
        fails EPERM call-unlink $file
        is "ETXTBSY ETXTBSY" busy $file
        if [ -n "$options" ]; then
            must_fail cp --reflink=always $file $MNT/clone 2>/tmp/out
            grep -q 'Text file busy' /tmp/out || { cat /tmp/out; die "another error of a clone"; }
        fi
        swapoff $file
        is "ok ok" busy $file
    done
    if [ -n "$options" ]; then
        dd if=/dev/zero of=$MNT/written bs=1M count=16 status=none
        mkswap $MNT/written >/dev/null
        rm -f $MNT/clone
        cp --reflink=always $MNT/written $MNT/clone
        no_swap $MNT/written
        rm $MNT/clone
        swapon $MNT/written
        swapoff $MNT/written
    fi
    umount $MNT
    clean "$DISK"
done

echo "requests that must not wait are served from the cache, or not at all"
mke2fs -q -F -t ext4 "$DISK" 100M
mount -t "$FS" "$DISK" $MNT
cp /tmp/data $MNT/file
sync -f $MNT
is "4096 EOPNOTSUPP" nowait $MNT/file
umount $MNT

echo "it serves as the upper layer of an overlay, without complaint"
mount -t "$FS" "$DISK" $MNT
mkdir $MNT/upper $MNT/work $MNT/lower /tmp/merged
echo lower >$MNT/lower/file
mkdir $MNT/lower/dir
echo lower >$MNT/lower/dir/file
dmesg -C
command mount -t overlay -o lowerdir=$MNT/lower,upperdir=$MNT/upper,workdir=$MNT/work,index=on overlay /tmp/merged
if logged 'overlayfs: .*(fall|not support|disabl|upper fs)'; then dmesg; die "overlayfs complains"; fi
echo upper >/tmp/merged/file
rm -r /tmp/merged/dir
mkdir /tmp/merged/dir
touch /tmp/merged/dir/new
[ "$(cat $MNT/upper/file) $(ls /tmp/merged/dir)" = "upper new" ] || die "the overlay is not what it should be"
umount /tmp/merged
umount $MNT
clean "$DISK"

echo "free blocks are discarded on request, and no others"
truncate -s 160M /tmp/disk.img
DISK=$(losetup -f --show /tmp/disk.img)
# used: what the device keeps, in MiB.
used() { sync -f /tmp; echo $(($(stat -c %b /tmp/disk.img) / 2048)); }
sums() { (cd $MNT && find . -type f -exec sha256sum {} +) | sort; }
mke2fs -q -F -t ext4 -E nodiscard -b 1024 "$DISK"
options=noatime,commit=300
[ "$FS" != rext4 ] || options+=,reflink=on
mount -t "$FS" -o $options "$DISK" $MNT
[ "$FS" != rext4 ] || settled $MNT
for i in $(seq 8); do cp /tmp/data $MNT/data-$i; done
fallocate -l 8M $MNT/allocated
dd if=/tmp/data of=$MNT/allocated bs=1k seek=1000 count=1000 conv=notrunc status=none
if [ "$FS" = rext4 ]; then
    for i in 1 2 3; do
        cp --reflink=always $MNT/data-1 $MNT/clone-$i
        for at in $(seq 0 97 3900); do
            dd if=/dev/zero of=$MNT/clone-$i bs=1k seek=$at count=1 conv=notrunc status=none
        done
    done
fi
sync -f $MNT
sums >/tmp/before.sums
dd if=/dev/urandom of=$MNT/gone bs=1M count=40 status=none
sync -f $MNT
rm $MNT/gone
sync -f $MNT
full=$(used)
fails EPERM as-nobody trim $MNT
fails EINVAL trim $MNT $((1 << 40)) 4096 0
fails EINVAL trim $MNT 0 100 0
fails EINVAL trim $MNT 0 $((1 << 40)) $((1 << 30))
[ "$(call trim $MNT 0 $((1 << 62)) 0)" -gt 60000000 ] || die "little was discarded"
[ "$(used)" -lt $((full - 35)) ] || die "$(used) of $full MiB are kept"
# Nothing was freed since.
is 0 trim $MNT 0 $((1 << 62)) 0
echo 3 >/proc/sys/vm/drop_caches
sums >/tmp/after.sums
same /tmp/before.sums /tmp/after.sums

rm $MNT/data-8
call trim $MNT 0 $((1 << 62)) 0 >/dev/null
sync -f $MNT
[ "$(call trim $MNT 0 $((1 << 62)) 0)" -gt 4000000 ] || die "what was freed shortly before is forgotten"

echo "what was freed and is not committed is kept"
cp /tmp/data $MNT/back
sync -f $MNT
rm $MNT/back
call trim $MNT 0 $((1 << 62)) 0 >/dev/null
call shutdown $MNT 2
umount $MNT
mount -t "$FS" -o $options "$DISK" $MNT
[ "$FS" != rext4 ] || settled $MNT
cmp /tmp/data $MNT/back || die "a file that is not deleted was discarded"

echo "writers go on meanwhile"
for round in $(seq 10); do call trim $MNT 0 $((1 << 62)) $((round * 1024)) >/dev/null; done &
for i in $(seq 40); do cp /tmp/data $MNT/file-$((i % 7)); rm -f $MNT/file-$(((i + 3) % 7)); done
wait
for file in $MNT/file-*; do cmp /tmp/data $file || die "$file"; done
call trim $MNT 0 $((1 << 62)) 0 >/dev/null
[ "$FS" != rext4 ] || judge

echo "with discard, what was freed is discarded after the commit"
mountpoint -q $MNT || mount -t "$FS" "$DISK" $MNT
mount -o remount,discard $MNT
findmnt -n -o OPTIONS $MNT | grep -qw discard || die "the options do not say that it discards"
dd if=/dev/urandom of=$MNT/gone bs=1M count=30 status=none
sync -f $MNT
full=$(used)
rm $MNT/gone
sync -f $MNT
for _ in $(seq 100); do
    [ "$(used)" -ge $((full - 28)) ] || break
    sleep 0.1
done
[ "$(used)" -lt $((full - 28)) ] || die "$(used) of $full MiB are kept"
dd if=/dev/urandom of=$MNT/gone bs=1M count=30 status=none
sync -f $MNT
full=$(used)
rm $MNT/gone
listing $MNT >/tmp/live.list
umount $MNT
[ "$(used)" -lt $((full - 28)) ] || die "unmounted, $(used) of $full MiB are kept"
clean "$DISK"
owned "$DISK"
losetup -d "$DISK"
rm /tmp/disk.img
DISK=$DISK1
finish
