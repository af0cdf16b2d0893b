# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: log e2fsck
# Changes of names happen entirely or not at all, also on damaged volumes; and no name refers to the
# file system's own inodes.
. "$(dirname "$0")/lib.sh"

export DISK COPY=$DISK2
ask() { debugfs -w -f - "$DISK" >/dev/null 2>&1; }
# fresh [OPTION]...: create a volume with two directories and a file.
fresh() {
    mke2fs -q -F -t ext4 -b 1024 -N 1024 "$@" "$DISK" 16M
    mount -t ext4 "$DISK" $MNT
    mkdir -p $MNT/d/sub $MNT/e
    echo one >$MNT/d/sub/one
    echo kept >$MNT/file
    sync
    umount $MNT
}
# refused ERRNO COMMAND...: the command must fail with this error message.
refused() {
    local why=$1; shift
    must_fail "$@" 2>/tmp/why
    grep -q "$why" /tmp/why || { cat /tmp/why; die "not $why: $*"; }
}

# A directory whose first block is damaged is neither moved nor exchanged.
fresh -O metadata_csum
block=$(debugfs -R 'bmap /d/sub 0' "$DISK" 2>/dev/null)
printf '\377\377' | dd of="$DISK" bs=1 seek=$((block * 1024 + 12)) conv=notrunc,fsync status=none
mount -t rext4 "$DISK" $MNT
refused 'Bad message' mv $MNT/d/sub $MNT/e/sub
refused 'Bad message' python3 -c '
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
old, new = (path.encode() for path in sys.argv[1:])
if libc.renameat2(-100, old, -100, new, 2):
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))' $MNT/d/sub $MNT/e
for try in 1 2; do
    [ -d $MNT/d/sub ] && [ ! -e $MNT/e/sub ] || die "the directory has moved"
    echo new >$MNT/e/new-$try
    umount $MNT
    mount -t rext4 "$DISK" $MNT
done
umount $MNT

# A name that refers to one of the file system's own inodes is an error: it cannot be opened, linked
# or renamed.
fresh -O orphan_file
own=$(dumpe2fs -h "$DISK" 2>/dev/null | sed -n 's/^Orphan file inode: *//p')
printf '%s\n' "ln <$own> orphan" 'ln <8> journal' 'ln <7> resize' 'ln <2> root' | ask
debugfs -R 'ls -l /' "$DISK" 2>/dev/null | grep -q orphan || die "debugfs has not created the name"
mount -t rext4 -o errors=continue "$DISK" $MNT
for name in orphan journal resize; do
    refused 'needs cleaning' cat $MNT/$name
    refused 'needs cleaning' ln $MNT/$name $MNT/other
    refused 'needs cleaning' mv $MNT/$name $MNT/other
    refused 'needs cleaning' sh -c "echo x >>$MNT/$name"
done
said "inode $own: illegal inode"
[ "$(cat $MNT/file)" = kept ] || die "the rest cannot be read"
umount $MNT
printf '%s\n' 'unlink orphan' 'unlink journal' 'unlink resize' 'unlink root' "sif <$own> links_count 1" 'ssv state 1' | ask
clean "$DISK"

# With dirsync or sync, and in directories with the corresponding flag, a name is on disk when the
# call returns.
# crashed NAME: return whether a power cut now would preserve that name.
crashed() {
    dd if="$DISK" of="$COPY" bs=1M count=16 iflag=direct oflag=direct status=none
    debugfs -w -R jr "$COPY" >/dev/null 2>&1
    debugfs -R "stat $1" "$COPY" 2>/dev/null | grep -q '^Inode:'
}
fresh
echo 'sif /d flags 0x90000' | ask
for option in rw dirsync sync; do
    mount -t rext4 -o $option,commit=300 "$DISK" $MNT 2>/dev/null || mount -t rext4 -o $option "$DISK" $MNT
    sync
    mkdir $MNT/e/$option
    case $option in
        rw) ! crashed /e/rw || die "changes are on disk without the option, so nothing is tested" ;;
        *) crashed /e/$option || die "$option: the directory is not on disk" ;;
    esac
    touch $MNT/d/flag-$option
    crashed /d/flag-$option || die "a name in a directory with the flag is not on disk"
    umount $MNT
done
clean "$DISK"

# More subdirectories than the link count can represent, and links to a file up to the limit.
fresh -O dir_nlink
for feature in dir_nlink ^dir_nlink; do
    debugfs -w -R "feature $feature" "$DISK" >/dev/null 2>&1
    printf '%s\n' 'sif /e links_count 64999' 'sif /file links_count 64999' | ask
    mount -t rext4 "$DISK" $MNT
    mkdir $MNT/e/1
    case $feature in
        dir_nlink)
            mkdir $MNT/e/2 $MNT/e/3
            [ "$(stat -c %h $MNT/e)" = 1 ] || die "$(stat -c %h $MNT/e) links"
            rmdir $MNT/e/2 ;;
        *)  refused 'Too many links' mkdir $MNT/e/2
            mkdir $MNT/d/2
            refused 'Too many links' mv $MNT/d/2 $MNT/e/2
            rmdir $MNT/d/2 ;;
    esac
    ln $MNT/file $MNT/name
    refused 'Too many links' ln $MNT/file $MNT/more
    rm $MNT/name
    rm -r $MNT/e/*
    umount $MNT
    printf '%s\n' 'sif /e links_count 2' 'sif /file links_count 1' | ask
    clean "$DISK"
done

# An inode bitmap that marks used inodes as free: nothing in use is allocated or zeroed.
# files WHAT: create (new) or check (old, new) files that contain their numbers.
files() {
    python3 - $MNT/d "$1" <<'PY'
import os, sys
top, what = sys.argv[1:]
if what == "make":
    for i in range(40): open(f"{top}/old-{i}", "w").write(f"old-{i}")
elif what == "more":
    for i in range(60): open(f"{top}/new-{i}", "w").write(f"new-{i}")
else:
    lost = [name for name in os.listdir(top) if name != "sub" and open(f"{top}/{name}").read() != name]
    assert not lost and len(os.listdir(top)) > 40, lost
PY
}
for features in metadata_csum ^metadata_csum,uninit_bg ^metadata_csum,^uninit_bg; do
    fresh -N 2048 -E lazy_itable_init=0 -O $features
    mount -t ext4 "$DISK" $MNT
    files make
    ino=$(stat -c %i $MNT/d/old-3)
    umount $MNT
    for i in $(seq "$ino" $((ino + 27))); do echo "freei <$i>"; done | ask
    dmesg -C
    mount -t rext4 "$DISK" $MNT
    files more
    sync
    echo 3 >/proc/sys/vm/drop_caches
    files look || die "$features: a file is lost"
    umount $MNT
    said 'group [0-9]*: no inodes are allocated in it'
    e2fsck -fy "$DISK" >/tmp/e2fsck.log 2>&1 || [ $? = 1 ] || { cat /tmp/e2fsck.log; die "$features: e2fsck"; }
    mount -t ext4 -o ro "$DISK" $MNT
    files look || die "$features: a file is lost after e2fsck"
    umount $MNT
done

# A file that replaces another by rename, or its own contents after a truncation, is complete after
# a crash, even without fsync.
for option in auto_da_alloc noauto_da_alloc; do
    fresh
    mount -t rext4 -o $option "$DISK" $MNT
    python3 - $MNT <<'PY'
import os, sys, time
top = sys.argv[1]
names = [f"{top}/d/{how}-{i}" for how in ("renamed", "cut") for i in range(10)]
for name in names:
    open(name, "w").write("old" * 1000)
os.sync()
for name in names:
    path = f"{top}/d/new" if "renamed" in name else name
    with open(path, "w") as f:
        f.write("new" * 1000)
    if path != name:
        os.rename(path, name)
time.sleep(1)
os.fsync(os.open(f"{top}/d", os.O_RDONLY))
PY
    dd if="$DISK" of="$COPY" bs=1M count=16 iflag=direct oflag=direct status=none
    umount $MNT
    mount -t rext4 "$COPY" $MNT
    whole=0
    for name in $MNT/d/renamed-* $MNT/d/cut-*; do
        size=$(tr -d '\0' <"$name" | wc -c)
        [ "$size" = 3000 ] && whole=$((whole + 1))
    done
    case $option in
        auto_da_alloc) [ $whole = 20 ] || die "only $whole of 20 files are complete after a crash" ;;
        *) [ $whole != 20 ] || die "$option: all files are complete, so nothing is tested" ;;
    esac
    umount $MNT
    clean "$COPY"
done

# Files without a name: they are deleted with their last user, or get a name; a crash leaves nothing
# behind.
fresh
mount -t rext4 "$DISK" $MNT
python3 - $MNT <<'PY'
import os, sys
top = sys.argv[1]
root = os.open("/", os.O_RDONLY)
# With a directory descriptor, Python follows the link to the file.
def link(fd, name): os.link(f"/proc/self/fd/{fd}", f"{top}/d/{name}", src_dir_fd=root)
fds = [os.open(f"{top}/d", os.O_TMPFILE | os.O_RDWR, 0o640) for _ in range(4)]
for i, fd in enumerate(fds):
    os.write(fd, b"%d" % i * 5000)
    assert os.fstat(fd).st_nlink == 0
link(fds[2], "named")
assert os.fstat(fds[2]).st_nlink == 1 and open(f"{top}/d/named").read() == "2" * 5000
only = os.open(f"{top}/d", os.O_TMPFILE | os.O_RDWR | os.O_EXCL)
try:
    link(only, "never")
    raise SystemExit("linked what must not get a name")
except FileNotFoundError:
    pass
os.sync()
os.system(f"dd if={os.environ['DISK']} of={os.environ['COPY']} bs=1M count=16 iflag=direct oflag=direct status=none")
PY
# A whiteout replaces the renamed name.
python3 - $MNT <<'PY'
import ctypes, os, stat, sys
top = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
for new in "moved", "file":
    open(f"{top}/d/old", "w").write("contents")
    if libc.renameat2(-100, f"{top}/d/old".encode(), -100, f"{top}/{new}".encode(), 4):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    assert open(f"{top}/{new}").read() == "contents"
    found = os.stat(f"{top}/d/old")
    assert stat.S_ISCHR(found.st_mode) and found.st_rdev == 0 and found.st_nlink == 1, found
    os.unlink(f"{top}/d/old")
open(f"{top}/d/old", "w").close()
assert libc.renameat2(-100, f"{top}/d/old".encode(), -100, f"{top}/d/new".encode(), 4) == 0
PY
umount $MNT
clean "$DISK"
mount -t rext4 "$COPY" $MNT
[ "$(stat -c '%h %s' $MNT/d/named)" = '1 5000' ] || die "the named file has changed"
umount $MNT
clean "$COPY"
finish
