# SPDX-License-Identifier: GPL-2.0
# kernels: uml/2 debug/2
# oracles: log e2fsck model
# Wrong link counts of files and directories are found and corrected by one scrub, and none that is
# right is found wrong, while names are made, linked, moved, exchanged and removed. An inode without
# a name is reported and left alone.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

links() { debugfs -R "stat <$1>" "$DISK" 2>/dev/null | sed -n 's/.*Links: \([0-9]*\) .*/\1/p'; }
cat >/tmp/names.py <<'PY'
import ctypes, os, random, sys
top, stop = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
number = random.Random(7)
def path(): return f"{top}/d{number.randrange(6)}/{number.choice('abcdef')}"
def some():
    kind = number.randrange(9)
    if kind == 0: os.close(os.open(path(), os.O_CREAT | os.O_WRONLY))
    elif kind == 1: os.link(path(), path())
    elif kind == 2: os.unlink(path())
    elif kind == 3: os.mkdir(path())
    elif kind == 4: os.rmdir(path())
    elif kind in (5, 6): os.rename(path(), path())
    elif kind == 7: libc.renameat2(-100, path().encode(), -100, path().encode(), number.choice((1, 2, 4)))
    else:
        file = os.open(f"{top}/d{number.randrange(6)}", os.O_TMPFILE | os.O_RDWR)
        try: os.link(f"/proc/self/fd/{file}", path(), follow_symlinks=True)
        finally: os.close(file)
while not os.path.exists(stop):
    for _ in range(50):
        try: some()
        except OSError: pass
PY

for options in '' '-O ^metadata_csum,^filetype,^dir_index'; do
    # shellcheck disable=SC2086
    mkfs.ext4 -q -F -b 1024 $options "$DISK" 160M
    mount -t rext4 "$DISK" $MNT
    mkdir -p $MNT/d{0,1,2,3,4,5} $MNT/still/{a,b,c}
    head -c 30K /dev/urandom >$MNT/still/one
    head -c 30K /dev/urandom >$MNT/still/two
    ln $MNT/still/two $MNT/still/a/other
    ln $MNT/still/two $MNT/still/b/other
    settled $MNT
    ( cd $MNT && sha256sum still/one still/a/other ) >/tmp/sums
    read -r one two dir sub < <(echo $(stat -c %i $MNT/still/one $MNT/still/two $MNT/still $MNT/still/c))
    umount $MNT
    dmesg -C
    for change in "<$one> links_count 7" "<$two> links_count 1" "<$dir> links_count 3" "<$sub> links_count 9" "<2> links_count 40"; do
        debugfs -w -R "sif $change" "$DISK" 2>/dev/null
    done
    mount -t rext4 "$DISK" $MNT
    rm -f /tmp/stop
    for worker in 1 2; do python3 /tmp/names.py $MNT /tmp/stop & done
    ends_with 4 "$REXT4" scrub --type links $MNT
    ends_with 1 "$REXT4" scrub --repair --type links $MNT
    updates=0
    for round in $(seq 30); do
        ends_with 0 "$REXT4" scrub --type links $MNT
        updates=$((updates + $(sed -n 's/.* \([0-9]*\) live updates.*/\1/p' /tmp/scrub.log)))
    done
    [ "$updates" -gt 20 ] || die "only $updates names changed while they were counted"
    touch /tmp/stop; wait
    # Removing one of three names keeps the file.
    rm $MNT/still/two
    ends_with 0 "$REXT4" scrub --repair $MNT
    ( cd $MNT && model sha256sum --quiet -c /tmp/sums )
    umount $MNT
    clean "$DISK"
    said "links: inode $two: link count is 1, should be 3"
    [ "$(links "$dir")" = 5 ] && [ "$(links "$two")" = 2 ] || die "wrong counts after the repair"
done

# A name was removed without its inode.
debugfs -w -R "unlink /still/one" "$DISK" 2>/dev/null
mount -t rext4 "$DISK" $MNT
ends_with 4 "$REXT4" scrub --repair --type links $MNT
said "links: inode $one is in use but has no name"
umount $MNT
[ "$(links "$one")" = 1 ] || die "the inode without a name was changed"

# A directory that cannot be read: counts that look too high are kept.
block=$(debugfs -R "blocks /still/a" "$DISK" 2>/dev/null | tr -d ' ')
dd if=/dev/urandom of="$DISK" bs=1024 seek="$block" count=1 conv=notrunc status=none
mount -t rext4 "$DISK" $MNT
ends_with 8 "$REXT4" scrub --repair --type links $MNT
umount $MNT
[ "$(links "$two")" = 2 ] || die "a link count was lowered although a directory could not be read"

finish
