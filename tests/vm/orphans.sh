# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: log e2fsck ext4
# Files that are deleted while open, on volumes with and without an orphan file: after a crash they
# are freed by the next mount, by rext4 or stock ext4; wrong entries in the orphan file or the
# legacy list never prevent a mount, nor do right ones prevent that of a volume with shared blocks.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

FS=${FS:-rext4}
COPY=$DISK2

# hold COMMANDS: run these lines of Python in the background, with `hold(N)`, which creates, opens
# and deletes N files and returns the descriptors; they stay open until `let_go`.
hold() {
    rm -f /tmp/held; mkfifo /tmp/go
    python3 - $MNT "$1" <<'PY' &
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
top, commands = sys.argv[1:]
def hold(count):
    held = []
    for i in range(count):
        name = f"{top}/d/{i}"
        held.append(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        os.write(held[-1], b"x" * 2000)
        os.unlink(name)
        assert not os.path.exists(name)
    assert not os.listdir(f"{top}/d"), os.listdir(f"{top}/d")[:3]
    return held
exec(commands)
os.sync()
open("/tmp/held", "w").close()
open("/tmp/go").read()
PY
    HOLDER=$!
    while [ ! -e /tmp/held ]; do kill -0 $HOLDER || die "the files could not be deleted"; sleep 0.1; done
}
let_go() { echo >/tmp/go; wait $HOLDER; rm -f /tmp/go; }

# crash: copy the state that a power cut would leave now.
crash() { dd if="$DISK" of="$COPY" bs=1M count=16 iflag=direct oflag=direct status=none; }

# orphans IMAGE: print the length of the legacy list, on a volume with blocks of 1 KiB and
# descriptors of 64 bytes.
orphans() {
    python3 - "$1" <<'PY'
import struct, sys
image = open(sys.argv[1], "rb")
def word(at):
    image.seek(at)
    return struct.unpack("<I", image.read(4))[0]
each, ino, seen = word(1024 + 40), word(1024 + 232), set()
while ino:
    assert ino not in seen, "the legacy list has no end"
    seen.add(ino)
    group, index = divmod(ino - 1, each)
    ino = word(word(2048 + group * 64 + 8) * 1024 + index * 256 + 20)
print(len(seen))
PY
}

# replayed: only replay the journal of the copy, so that the list can be inspected.
replayed() { debugfs -w -R 'jr' "$COPY" >/dev/null 2>&1; }

# empty IMAGE: e2fsck finds nothing wrong, and as many blocks and inodes are free as before any
# files were created.
empty() {
    clean "$1"
    dumpe2fs -h "$1" 2>/dev/null | grep -E '^Free (blocks|inodes)' >/tmp/free.now
    same /tmp/free.before /tmp/free.now
}

# With the legacy list only; with both, if the orphan file has one block; with the orphan file only.
for kind in "-O ^orphan_file" "-O orphan_file -E orphan_file_size=1" "-O orphan_file"; do
    mke2fs -q -F -t ext4 -b 1024 -N 1024 $kind "$DISK" 16M
    # The volume has its reverse map and the directory from the start, so that free space can be
    # compared later.
    mount -t rext4 "$DISK" $MNT
    mkdir $MNT/d
    umount $MNT
    dumpe2fs -h "$DISK" 2>/dev/null | grep -E '^Free (blocks|inodes)' >/tmp/free.before
    mount -t "$FS" "$DISK" $MNT
    hold 'held = hold(300); [os.close(fd) for fd in (held[3], held[0], held[299], held[150])]'
    crash
    let_go
    umount $MNT
    empty "$DISK"
    dd if="$COPY" of=/tmp/crashed.img bs=1M count=16 status=none
    replayed
    listed=$(orphans "$COPY")
    case $kind in
        *^orphan_file) [ "$listed" = 296 ] || die "$listed orphans are in the list" ;;
        *size=1) [ "$listed" -gt 10 ] && [ "$listed" -lt 296 ] || die "$listed orphans are in the list, all or none of them" ;;
        *) [ "$listed" = 0 ] || die "$listed orphans are in the list" ;;
    esac
    # A read-only mount frees them, too.
    for type in "$FS" ext4 "$FS -o ro"; do
        dd if=/tmp/crashed.img of="$COPY" bs=1M conv=fsync status=none
        dmesg -C
        mount -t $type "$COPY" $MNT
        [ "$type" = ext4 ] || logged 'orphans: 296 deleted files were freed' || die "the orphans were not freed"
        umount $MNT
        empty "$COPY"
    done
    # Orphans left by stock ext4.
    mount -t ext4 "$DISK" $MNT
    hold 'held = hold(30); os.close(held[5])'
    crash
    let_go
    umount $MNT
    dmesg -C
    mount -t "$FS" "$COPY" $MNT
    logged 'orphans: 29 deleted files were freed' || die "stock ext4's orphans were not freed"
    umount $MNT
    empty "$COPY"
done

# With shared blocks, stock ext4 mounts the volume only read-only, and then only if the orphan file
# is empty: orphans from before the first clone and later ones are in the list.
mke2fs -q -F -t ext4 -b 1024 -N 1024 -O orphan_file "$DISK" 16M
mount -t rext4 -o reflink=on "$DISK" $MNT
settled $MNT
mkdir $MNT/d
dd if=/dev/urandom of=$MNT/file bs=1k count=40 status=none
hold 'import subprocess
held = hold(20)
os.close(held[7])
subprocess.run(["cp", "--reflink=always", f"{top}/file", f"{top}/clone"], check=True)
for fd in held[8:12] + hold(3): os.close(fd)
held += hold(10)'
crash
let_go
umount $MNT
clean "$DISK"
mount -t ext4 -o ro "$COPY" $MNT
cmp $MNT/file $MNT/clone
umount $MNT
listed=$(orphans "$COPY")
[ "$listed" = 25 ] || die "$listed orphans are in the list of the volume with shared blocks"
dmesg -C
mount -t rext4 "$COPY" $MNT
logged 'orphans: 25 deleted files were freed' || die "the orphans of the volume with shared blocks were not freed"
cmp $MNT/file $MNT/clone
umount $MNT
clean "$COPY"

# A rename that replaces an open file when the orphan file is full.
mke2fs -q -F -t ext4 -b 1024 -N 1024 -O orphan_file -E orphan_file_size=1 "$DISK" 16M
mount -t "$FS" "$DISK" $MNT
mkdir $MNT/d
hold 'held = hold(300)
for i in range(20):
    for name in "a", "b": open(f"{top}/{name}", "w").write(name)
    held.append(os.open(f"{top}/b", os.O_RDONLY))
    os.rename(f"{top}/a", f"{top}/b")
    assert open(f"{top}/b").read() == "a" and not os.path.exists(f"{top}/a")'
let_go
umount $MNT
clean "$DISK"

# Wrong entries are skipped with a log line, and the volume is mounted writable.
# wrong MESSAGE: mount the volume, write to it, and look for that line; `wrong MESSAGE orphan` also
# expects an orphan to be freed.
wrong() {
    dmesg -C
    mount -t "$FS" "$DISK" $MNT || die "$1: refused"
    logged "$1" || { dmesg; die "the log does not say: $1"; }
    [ "${2:-}" != orphan ] || logged 'orphans: 1 deleted files' || die "$1: the right orphan was not freed"
    grep -q "^kept$" $MNT/file || die "$1: the file is gone"
    echo more >$MNT/more; rm $MNT/more
    umount $MNT
}
fresh() {
    mke2fs -q -F -t ext4 -b 1024 -N 1024 -O ^metadata_csum,"$1" "$DISK" 16M
    mount -t ext4 "$DISK" $MNT
    echo kept >$MNT/file
    ino=$(stat -c %i $MNT/file)
    umount $MNT
}
ask() { debugfs -w -f - "$DISK" >/dev/null 2>&1; }
fresh ^orphan_file
echo 'ssv last_orphan 900' | ask
wrong 'inode 900 in the orphan list is free'
clean "$DISK"
for bad in 7 4000000000; do
    echo "ssv last_orphan $bad" | ask
    wrong "invalid inode $bad in the legacy orphan list"
    clean "$DISK"
done
# A circular list: the file, which has a name, is an orphan to be truncated, and its own successor.
printf '%s\n' "ssv last_orphan $ino" "sif <$ino> dtime $ino" | ask
wrong "invalid inode $ino in the legacy orphan list"
clean "$DISK"

fresh orphan_file
# slot N INO: write a slot of the orphan file, which has no checksums here.
file=$(dumpe2fs -h "$DISK" 2>/dev/null | sed -n 's/^Orphan file inode: *//p')
slot() {
    local block; block=$(debugfs -R "bmap <$file> 0" "$DISK" 2>/dev/null)
    python3 -c 'import os, struct, sys; n, ino = map(int, sys.argv[1:]); sys.stdout.buffer.write(struct.pack("<I", ino))' "$1" "$2" |
        dd of="$DISK" bs=1 seek=$((block * 1024 + $1 * 4)) conv=notrunc,fsync status=none
    debugfs -w -R 'feature orphan_present' "$DISK" >/dev/null 2>&1
}
slot 3 900
wrong 'inode 900 in the orphan file is free'
clean "$DISK"
slot 3 "$file"
wrong "inode $file in the orphan file is none that can be deleted"
clean "$DISK"
# The orphan file itself is not in use, so the legacy list is used instead.
echo "sif <$file> links_count 0" | ask
dmesg -C
mount -t "$FS" "$DISK" $MNT
logged "the orphan file \(inode $file\) cannot be read" || die "no log message about the orphan file"
mkdir $MNT/d
hold 'hold(5)'
let_go
umount $MNT
echo "sif <$file> links_count 1" | ask
clean "$DISK"
finish
