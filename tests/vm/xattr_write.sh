# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: ext4 e2fsck owners
# Attributes and access control lists written by rext4: the same sequence of changes gives the same
# results as on stock ext4 at each step, and stock ext4, e2fsck and the reverse map find nothing
# wrong with the result.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

OTHER=$DISK2 PEER=/mnt2
mkdir -p $PEER

# attributes DIR: print all attributes, decoded access control lists, and modes.
attributes() {
    ( cd "$1"
      getfattr -R -P -h -d -m - -e hex d | LC_ALL=C sort
      find d ! -type l -print0 | LC_ALL=C sort -z | xargs -0 getfacl -n -p -P
      find d -printf '%p|%y|%m|%U|%G|%n|%l\n' | LC_ALL=C sort )
}

steps=400
# both SEED: the same sequence must leave both volumes equal.
both() {
    settled_if_ours
    python3 "$HERE/attributes.py" $MNT/d "$1" $steps "$block" >/tmp/ours.steps
    python3 "$HERE/attributes.py" $PEER/d "$1" $steps "$block" >/tmp/stock.steps
    same /tmp/stock.steps /tmp/ours.steps
    attributes $MNT >/tmp/ours.list
    attributes $PEER >/tmp/stock.list
    same /tmp/stock.list /tmp/ours.list
    umount $MNT $PEER
}
stream() {
    local block=$1; shift
    echo "stream: mke2fs -b $block $*"
    mke2fs -q -F -t ext4 -b "$block" "$@" "$DISK" 200M
    mke2fs -q -F -t ext4 -b "$block" "$@" $OTHER 200M
    mount -t "$FS" "$DISK" $MNT
    mount -t ext4 $OTHER $PEER
    both 1
    grep -q ENOSPC /tmp/ours.steps || die "no attribute was too large"
    clean "$DISK"
    owned "$DISK"
    mount -t ext4 -o ro "$DISK" $MNT
    attributes $MNT >/tmp/ours.list
    same /tmp/stock.list /tmp/ours.list
    umount $MNT

    echo "  goes on on what stock ext4 wrote, shared blocks and all"
    mount -t "$FS" $OTHER $MNT
    mount -t ext4 "$DISK" $PEER
    both 2
    clean $OTHER
    owned $OTHER
    clean "$DISK"
    mount -t "$FS" $OTHER $MNT
    rm -rf $MNT/d
    umount $MNT
    clean $OTHER
    owned $OTHER
    lacks ' xattr ' /tmp/owners.list
}
settled_if_ours() { [ "$FS" != rext4 ] || settled $MNT; }

stream 1024
stream 1024 -I 128 -O ^metadata_csum,uninit_bg
stream 4096 -I 512

echo "a block that stock ext4 shares is left to the others"
for block in 1024 4096; do
    mke2fs -q -F -t ext4 -b $block "$DISK" 64M
    mount -t ext4 "$DISK" $MNT
    long=$(printf 'v%.0s' $(seq 1 700))
    for i in $(seq 1 9); do
        echo "$i" >$MNT/file-$i
        setfattr -n user.long -v "$long" $MNT/file-$i
    done
    umount $MNT
    mount -t "$FS" "$DISK" $MNT
    settled_if_ours
    setfattr -n user.short -v x $MNT/file-1     # finds room in the inode
    setfattr -n user.long -v "${long}w" $MNT/file-2
    setfattr -x user.long $MNT/file-3
    setfattr -n user.other -v "${long:0:200}" $MNT/file-4
    for i in 5 6; do setfattr -x user.long $MNT/file-$i; done
    for i in 1 7 8 9; do
        [ "$(getfattr --only-values -n user.long $MNT/file-$i)" = "$long" ] || die "file $i lost its attribute"
    done
    [ "$(getfattr --only-values -n user.long $MNT/file-2)" = "${long}w" ] || die "file 2 has another attribute"
    umount $MNT
    clean "$DISK"
    owned "$DISK"
done

echo "times and hard cases"
mke2fs -q -F -t ext4 -b 1024 "$DISK" 64M
mount -t "$FS" "$DISK" $MNT
settled_if_ours
python3 - $MNT <<'PY'
import errno, os, sys, time
os.chdir(sys.argv[1])
open("file", "w").close()
os.utime("file", (5, 5))
def ctime(): return os.stat("file").st_ctime_ns
def changes(what):
    before = ctime()
    time.sleep(0.05)
    what()
    return ctime() != before
def fails(code, what):
    try:
        what()
    except OSError as error:
        assert error.errno == code, (error, code)
        return
    raise AssertionError(f"did not fail with {code}")
set = lambda *a: (lambda: os.setxattr("file", *a))
assert changes(set("user.a", b"1"))
assert not changes(set("user.a", b"1"))     # as stock ext4 does
assert changes(set("user.a", b"2"))
assert os.stat("file").st_mtime == 5
fails(errno.EEXIST, set("user.a", b"3", os.XATTR_CREATE))
fails(errno.ENODATA, set("user.b", b"3", os.XATTR_REPLACE))
fails(errno.ENODATA, lambda: os.removexattr("file", "user.b"))
fails(errno.ENOSPC, set("user.big", b"x" * 1000))
fails(errno.ENOSPC, set("user.big", b"x" * 65536))
fails(errno.E2BIG, set("user.big", b"x" * 65537))
fails(errno.ERANGE, set("user." + "n" * 251, b""))
set("user." + "n" * 250, b"")()
fails(errno.EOPNOTSUPP, set("system.other", b""))
fails(errno.EOPNOTSUPP, set("other.other", b""))
assert os.getxattr("file", "user.a") == b"2"
# Back and forth between the inode and the block.
for size in (1, 90, 700, 3, 0, 300, 20, 600):
    set("user.a", b"y" * size)()
    assert os.getxattr("file", "user.a") == b"y" * size
assert changes(lambda: os.removexattr("file", "user.a"))
os.removexattr("file", "user." + "n" * 250)
assert os.listxattr("file") == []
# A program that is written to loses its capabilities, and nothing else.
capability = bytes.fromhex("0100000200040000000000000000000000000000")
for act in (lambda: open("file", "a").write("x"), lambda: os.truncate("file", 0), lambda: os.chown("file", 7, 7)):
    set("security.capability", capability)()
    set("user.kept", b"1")()
    act()
    assert os.listxattr("file") == ["user.kept"], os.listxattr("file")
PY
umount $MNT
clean "$DISK"
owned "$DISK"

echo "on a full volume"
mke2fs -q -F -t ext4 -b 1024 "$DISK" 24M
mount -t ext4 "$DISK" $MNT
for i in $(seq 1 60); do
    echo "$i" >$MNT/shared-$i
    setfattr -n user.long -v "$long" $MNT/shared-$i
done
umount $MNT
mount -t "$FS" "$DISK" $MNT
settled_if_ours
for i in $(seq 1 60); do echo "$i" >$MNT/file-$i; done
dd if=/dev/zero of=$MNT/filler bs=64k status=none 2>/dev/null || true
dd if=/dev/zero of=$MNT/filler2 bs=1k status=none 2>/dev/null || true
python3 - $MNT <<'PY'
import errno, os, sys
os.chdir(sys.argv[1])
full = 0
for i in range(1, 61):
    for name, old in ((f"file-{i}", None), (f"shared-{i}", b"v" * 700)):
        try:
            os.setxattr(name, "user.more", b"m" * 200)
            os.setxattr(name, "user.long", b"w" * 500)
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            full += 1
            have = os.listxattr(name)
            assert (os.getxattr(name, "user.long") if "user.long" in have else None) == old, name
assert full > 0, "there was room for all"
for i in range(1, 61, 3):
    os.unlink(f"shared-{i}")
PY
umount $MNT
clean "$DISK"
owned "$DISK"
finish
