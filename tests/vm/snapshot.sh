# SPDX-License-Identifier: GPL-2.0
# kernels: uml stock/2
# oracles: xfs e2fsck owners
# Snapshots: the tree made by `rext4 snapshot` equals the original in every respect, shares its
# blocks, stays unchanged when the original changes, and is completed by the next run after an
# interruption. The scenario also runs on XFS, which supports clones as well, as a test of the
# scenario itself.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

need_modules fs/xfs/xfs
snapshot() { "$REXT4" snapshot "$@"; }

# tree DIR: print everything that can be observed about a tree, except inode numbers.
tree() {
    ( cd "$1"
      find . -printf '%p|%y|%m|%U|%G|%T@|%A@|%l\n' | LC_ALL=C sort
      getfattr -R -P -h -d -m - -e hex . 2>/dev/null | LC_ALL=C sort
      find . ! -type l -print0 | LC_ALL=C sort -z | xargs -0 getfacl -n -P
      find . \( -type b -o -type c \) -print0 | LC_ALL=C sort -z | xargs -0 -r stat -c '%n %t %T'
      find . -type f -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum
      # The names that refer to the same file.
      find . ! -type d -links +1 -printf '%i %n %p\n' | LC_ALL=C sort -k3 |
          awk '{ if (!($1 in first)) first[$1] = NR; print first[$1], $2, $3 }' )
}

fill() {
    python3 - "$1" <<'PY'
import os, random, socket, sys
top = sys.argv[1]
rng = random.Random(1)
os.mkdir(top)
os.chdir(top)
def file(name, data=b"x"):
    with open(name, "wb") as f:
        f.write(data)
for i in range(60):
    os.makedirs(f"d{i % 7}/e{i % 3}", exist_ok=True)
    file(f"d{i % 7}/e{i % 3}/f{i}", rng.randbytes(rng.choice([0, 1, 5000, 70000, 300000])))
file("big", rng.randbytes(20 << 20))
with open("holes", "wb") as f:
    for at in range(0, 8 << 20, 1 << 20):
        f.seek(at)
        f.write(rng.randbytes(5000))
for i in range(8):
    os.link(f"d{i % 7}/e{i % 3}/f{i}", f"link-{i}")
    os.link(f"d{i % 7}/e{i % 3}/f{i}", f"d{(i + 3) % 7}/link-{i}")
os.symlink("big", "symlink")
os.symlink("y" * 900, "d1/long")
os.link("d1/long", "d2/long", follow_symlinks=False)
os.symlink("nowhere", b"d1/\xff\xfe odd\nname")
file(b"d2/\xff\xfe odd\nname")
os.mknod("d3/null", 0o20640, os.makedev(1, 3))
os.mknod("d3/disk", 0o60640, os.makedev(8, 300))
os.mkfifo("d3/pipe")
socket.socket(socket.AF_UNIX).bind("d3/socket")
os.makedirs("deep/" + "/".join(f"{i}" for i in range(100)))
os.mkdir("empty")
os.mkdir("closed", 0)
file("closed/secret")
os.chmod("closed", 0)
file("program")
os.chown("program", 12, 13)
os.chmod("program", 0o6755)
os.setxattr("program", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
for name in ("big", "d1", "d3/pipe", "symlink"):
    os.setxattr(name, "trusted.mark", name.encode() * 9, follow_symlinks=False)
os.setxattr("d2", "user.empty", b"")
os.setxattr("d3", "user.large", rng.randbytes(700))
PY
    setfacl -m u:1002:rw,g:2002:r "$1/big"
    setfacl -m d:u:1003:rwx,d:g:2003:rx,u:1004:x "$1/d4"
    echo inherits >"$1/d4/inherits"
    mkdir "$1/d4/inherits-too"
    chown -R 1000:2000 "$1/d5"
    chmod 2751 "$1/d5"
    chmod 1777 "$1/d6"
    # Times with nanoseconds, before 1970 and in the far future.
    touch -h -d '1965-03-04 05:06:07.123456789' "$1/d3/null" "$1/symlink" "$1/holes"
    touch -d '2100-03-04 05:06:07.987654321' "$1/d1/e1" "$1/d0"
    touch -a -d '2001-01-01 00:00:00.5' "$1/big"
}

# unshared DIR: list the files below it of which no block is shared.
unshared() {
    ( cd "$1"; find . -type f -size +0 -print0 | LC_ALL=C sort -z | xargs -0 -r -n 1 filefrag -v |
        awk '/^File size of/ { name = $4 } /^ *[0-9]+:/ { if (!/shared/) print name }' )
}

# no_rest DIR: nothing of the work directory is left.
no_rest() { [ -z "$(find "$1" -name '.*rext4-snapshot*')" ] || die "something is left: $(find "$1" -name '.*rext4-snapshot*')"; }

check() {
    local kind=$1
    echo "checking: $kind"
    case $kind in
        xfs) mkfs.xfs -q -f -m reflink=1 "$DISK" ;;
        rext4) mke2fs -q -F -t ext4 "$DISK" 1G ;;
    esac
    mount -t "$kind" "$DISK" $MNT
    [ "$kind" != rext4 ] || settled $MNT
    fill $MNT/source
    # Otherwise reading changes access times.
    mount -o remount,noatime $MNT
    setfacl -d -m u:77:rwx $MNT     # inherited by files created next to the original
    tree $MNT/source >/tmp/source.list
    snapshot --json $MNT/source $MNT/copy >/tmp/report.json
    python3 - <<'PY'
import json
report = json.load(open("/tmp/report.json"))
assert report["resumed"] is False and report["files"] > 60 and report["links"] == 17 and report["bytes"] > 20 << 20, report
PY
    tree $MNT/copy >/tmp/copy.list
    same /tmp/source.list /tmp/copy.list
    tree $MNT/source >/tmp/again.list
    same /tmp/source.list /tmp/again.list
    sync
    [ -z "$(unshared $MNT/copy)" ] || die "not shared: $(unshared $MNT/copy | head)"
    no_rest $MNT

    echo "  what is there already stays, and so does the snapshot when the original changes"
    must_fail snapshot $MNT/source $MNT/copy 2>/tmp/out
    grep -q 'already exists' /tmp/out || { cat /tmp/out; die "unexpected error"; }
    must_fail snapshot $MNT/source /tmp/copy 2>/tmp/out
    grep -q 'same volume' /tmp/out || { cat /tmp/out; die "unexpected error"; }
    must_fail snapshot --discard $MNT/other 2>/dev/null
    dd if=/dev/urandom of=$MNT/source/big bs=1M count=3 seek=2 conv=notrunc status=none
    echo more >>$MNT/source/link-0
    rm -r $MNT/source/d1
    tree $MNT/copy >/tmp/again.list
    same /tmp/copy.list /tmp/again.list

    echo "  a snapshot of what holds the snapshots, and of a snapshot; other mounts stay out"
    mkdir $MNT/source/snapshots
    snapshot $MNT/source $MNT/source/snapshots/one >/dev/null
    [ -d $MNT/source/snapshots/one/snapshots ] || die "no directory for snapshots"
    [ -z "$(ls -A $MNT/source/snapshots/one/snapshots)" ] || die "the snapshot contains itself"
    snapshot $MNT/copy $MNT/copy2 >/dev/null
    tree $MNT/copy2 >/tmp/again.list
    same /tmp/copy.list /tmp/again.list
    mount -t tmpfs none $MNT/copy2/empty
    echo x >$MNT/copy2/empty/x
    mount --bind $MNT/source $MNT/copy2/d6
    snapshot --json $MNT/copy2 $MNT/copy3 >/tmp/report.json
    grep -q '"mounts":2' /tmp/report.json || die "mounts were not counted"
    [ -z "$(ls -A $MNT/copy3/empty $MNT/copy3/d6 | grep -v :)" ] || die "another mount was copied"
    umount $MNT/copy2/empty $MNT/copy2/d6
    rm -r $MNT/copy2 $MNT/copy3 $MNT/source/snapshots
    no_rest $MNT

    echo "  ended and taken up again"
    ended $MNT

    echo "  during writes"
    writing $MNT
    if [ "$kind" = rext4 ]; then
        echo "  at one moment"
        tree $MNT/copy >/tmp/copy.list
        snapshot --freeze $MNT/copy $MNT/frozen >/dev/null
        tree $MNT/frozen >/tmp/again.list
        same /tmp/copy.list /tmp/again.list
        frozen $MNT
    else
        must_fail snapshot --freeze $MNT/copy $MNT/frozen 2>/tmp/out
        grep -q 'only a volume that rext4' /tmp/out || { cat /tmp/out; die "unexpected error"; }
        snapshot --discard $MNT/frozen
    fi
    umount $MNT
    case $kind in
        xfs) xfs_repair -n "$DISK" >/dev/null 2>&1 || die "xfs_repair -n" ;;
        rext4) clean "$DISK"; owned "$DISK" ;;
    esac
}

# Runs are interrupted or killed at random times, and the original changes in between.
ended() {
    python3 - "$1" "$REXT4" <<'PY'
import json, os, random, shutil, signal, subprocess, sys, time
top, rext4 = sys.argv[1:]
os.chdir(top)
rng = random.Random(3)
os.mkdir("many")
def file(name, size=100):
    with open(name, "wb") as f:
        f.write(rng.randbytes(size))
for i in range(20):
    os.mkdir(f"many/{i}")
for i in range(600):
    file(f"many/{i % 20}/{i}")
    if i % 5 == 0:
        os.link(f"many/{i % 20}/{i}", f"many/{(i + 1) % 20}/link-{i}")
ends = 0
for round in range(30):
    run = subprocess.Popen([rext4, "snapshot", "--json", "many", "kept"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while run.poll() is None and not os.path.exists(".kept.rext4-snapshot/tree"):
        time.sleep(0.01)
    try:
        out, err = run.communicate(timeout=rng.random() * 0.02 * 1.3 ** round)
    except subprocess.TimeoutExpired:
        run.send_signal(rng.choice([signal.SIGINT, signal.SIGKILL, signal.SIGTERM]))
        out, err = run.communicate()
    if run.returncode == 0:
        break
    assert run.returncode in (8, -2, -9, -15), (run.returncode, err)
    ends += 1
    assert not os.path.exists("kept")
    if round >= 10:
        continue
    # Changes between the runs.
    i = rng.randrange(600)
    for act in (lambda: file(f"many/{i % 20}/{i}", rng.randrange(200)),
                lambda: os.unlink(f"many/{(i * 7) % 20}/{(i * 7) % 600}"),
                lambda: (os.unlink(f"many/{(i + 1) % 20}/link-{i}"), file(f"many/{(i + 1) % 20}/link-{i}")),
                lambda: os.replace(f"many/{(i + 5) % 20}/{(i + 5) % 600}", f"many/{rng.randrange(20)}/moved-{round}"),
                lambda: os.link(f"many/{i % 20}/{i}", f"many/another-{round}"),
                lambda: os.chmod(f"many/{(i + 9) % 20}/{(i + 9) % 600}", 0o604),
                lambda: (shutil.rmtree(f"many/{round}"), file(f"many/{round}")) if round in (1, 3) else None,
                lambda: (os.unlink("many/3"), os.mkdir("many/3"), file("many/3/3")) if round == 4 else None):
        try:
            act()
        except OSError:
            pass
else:
    raise AssertionError("it never came to its end")
report = json.loads(out)
print(f"    {ends} runs were ended; {report['kept']} of {report['files'] + report['links'] + report['kept']} were there")
assert ends >= 2 and report["resumed"] and report["kept"] > 50, (ends, report)
PY
    tree $MNT/many >/tmp/source.list
    tree $MNT/kept >/tmp/copy.list
    same /tmp/source.list /tmp/copy.list
    no_rest $MNT
    # Discard a snapshot that was interrupted in time.
    local run try caught=
    for try in $(seq 50); do
        "$REXT4" snapshot $MNT/many $MNT/other >/dev/null 2>&1 & run=$!
        until [ -d $MNT/.other.rext4-snapshot/tree ] || [ -d $MNT/other ]; do sleep 0.01; done
        kill -9 $run 2>/dev/null || true
        wait $run 2>/dev/null || true
        [ -d $MNT/other ] || { caught=1; break; }
        rm -r $MNT/other
    done
    [ -n "$caught" ] || die "no run was interrupted in time"
    must_fail snapshot $MNT/source $MNT/other 2>/tmp/out
    grep -q 'another directory' /tmp/out || { cat /tmp/out; die "unexpected error"; }
    snapshot --discard $MNT/other
    no_rest $MNT
    rm -rf $MNT/kept $MNT/other $MNT/many
}

# Each file is copied atomically while it is being written.
writing() {
    python3 - "$1" "$REXT4" <<'PY'
import os, random, subprocess, sys, threading
top, rext4 = sys.argv[1:]
os.chdir(top)
os.mkdir("busy")
stop = False
def write(seed):
    rng = random.Random(seed)
    while not stop:
        with open(f"busy/{rng.randrange(30)}", "r+b" if rng.random() < 0.9 else "wb") as f:
            f.write(bytes([rng.randrange(256)]) * 65536)
        name = f"busy/new-{seed}-{rng.randrange(20)}"
        if os.path.exists(name):
            os.unlink(name)
        else:
            with open(name, "wb") as f:
                f.write(b"n" * 65536)
for i in range(30):
    with open(f"busy/{i}", "wb") as f:
        f.write(b"i" * 65536)
threads = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
for thread in threads:
    thread.start()
try:
    for round in range(5):
        subprocess.run([rext4, "snapshot", "busy", f"calm-{round}"], check=True, stdout=subprocess.DEVNULL)
        found = os.listdir(f"calm-{round}")
        assert len([name for name in found if name.isdigit()]) == 30
        for name in found:
            data = open(f"calm-{round}/{name}", "rb").read()
            assert len(data) in (0, 65536) and data == data[:1] * len(data), (round, name)
finally:
    stop = True
    for thread in threads:
        thread.join()
PY
    no_rest $MNT
    rm -r $MNT/calm-* $MNT/busy
}

# The whole tree is copied at one point in time: writes made in a certain order, by system calls or
# through mappings, are found in that order.
frozen() {
    python3 - "$1" "$REXT4" <<'PY'
import ctypes, errno, fcntl, json, mmap, os, signal, struct, subprocess, sys, time
HOLD, RELEASE, CLONE_HELD = 0x7290, 0x7291, 0x40047292
top, rext4 = sys.argv[1:]
os.chdir(top)
os.mkdir("ordered")
FILES = 12
for i in range(FILES):
    for name in (f"ordered/call-{i}", f"ordered/memory-{i}"):
        with open(name, "wb") as f:
            f.write(bytes(8192))
os.mkdir("ordered/names")

def child(act):
    pid = os.fork()
    if pid == 0:
        try:
            act()
        finally:
            os._exit(1)
    return pid

def by_calls():
    files = [os.open(f"ordered/call-{i}", os.O_WRONLY) for i in range(FILES)]
    n = 0
    while True:
        n += 1
        for fd in files:
            os.pwrite(fd, struct.pack("<Q", n), 4096)

def by_memory():
    files = [open(f"ordered/memory-{i}", "r+b") for i in range(FILES)]
    maps = [mmap.mmap(f.fileno(), 8192) for f in files]
    n = 0
    while True:
        n += 1
        for m in maps:
            m[4096:4104] = struct.pack("<Q", n)

def by_names():
    n = 0
    while True:
        n += 1
        os.close(os.open(f"ordered/names/{n}", os.O_CREAT | os.O_WRONLY))
        os.setxattr("ordered", "user.last", str(n).encode())
        if n > 50:
            os.unlink(f"ordered/names/{n - 50}")

writers = [child(act) for act in (by_calls, by_memory, by_names)]
try:
    for round in range(4):
        out = subprocess.run([rext4, "snapshot", "--freeze", "--json", "ordered", f"moment-{round}"], check=True, stdout=subprocess.PIPE).stdout
        report = json.loads(out)
        assert report["held_seconds"] > 0 and not report["resumed"], report
        at = f"moment-{round}"
        for kind in ("call", "memory"):
            found = []
            for i in range(FILES):
                with open(f"{at}/{kind}-{i}", "rb") as f:
                    found.append(struct.unpack("<Q", f.read()[4096:4104])[0])
            assert found == sorted(found, reverse=True) and found[0] - found[-1] <= 1, (kind, found)
        last = int(os.getxattr(at, "user.last")) if "user.last" in os.listxattr(at) else 0
        names = sorted(map(int, os.listdir(f"{at}/names")))
        assert names == list(range(names[0], names[-1] + 1)) and names[-1] in (last, last + 1) and len(names) <= 51, (last, names)
        time.sleep(0.05)
    # Interrupted at any time; writers continue.
    for round in range(4):
        run = subprocess.Popen([rext4, "snapshot", "--freeze", "ordered", "ended"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while run.poll() is None and not os.path.exists(".ended.rext4-snapshot/pool"):
            time.sleep(0.01)
        time.sleep(0.2 * round)
        run.kill()
        run.wait()
        before = int(os.getxattr("ordered", "user.last"))
        for _ in range(100):
            if int(os.getxattr("ordered", "user.last")) != before:
                break
            time.sleep(0.05)
        else:
            raise AssertionError("the volume stays held")
        if os.path.exists("ended"):
            subprocess.run(["rm", "-r", "ended"], check=True)
        elif os.path.exists(".ended.rext4-snapshot"):
            subprocess.run([rext4, "snapshot", "--discard", "ended"], check=True)
finally:
    for pid in writers:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

# The ioctls themselves.
def fails(code, *call):
    try:
        fcntl.ioctl(*call)
    except OSError as error:
        assert error.errno == code, (error, code)
        return
    raise AssertionError(f"did not fail with {code}")
folder, again = os.open(".", os.O_RDONLY), os.open("ordered", os.O_RDONLY)
source, target = os.open("ordered/call-1", os.O_RDWR), os.open("target", os.O_CREAT | os.O_WRONLY)
fails(errno.ENOENT, folder, RELEASE)
fails(errno.ENOENT, target, CLONE_HELD, source)
fails(errno.ENOTDIR, target, HOLD)
fcntl.ioctl(folder, HOLD)
fails(errno.EBUSY, again, HOLD)
writer = child(lambda: (os.mkdir("waits"), os._exit(0)))
freezer = subprocess.Popen(["fsfreeze", "-f", top])
time.sleep(0.5)
assert os.waitpid(writer, os.WNOHANG) == (0, 0) and freezer.poll() is None and not os.path.exists("waits")
assert len(open("ordered/call-1", "rb").read()) == 8192
fcntl.ioctl(target, CLONE_HELD, source)
assert open("target", "rb").read() == open("ordered/call-1", "rb").read()
fails(errno.EBADF, target, CLONE_HELD, 999)
fails(errno.EINVAL, target, CLONE_HELD, folder)
fcntl.ioctl(again, RELEASE)
assert freezer.wait(20) == 0
subprocess.run(["fsfreeze", "-u", top], check=True)
assert os.waitpid(writer, 0)[1] == 0 and os.path.isdir("waits")
# Released when the directory is closed, and only by the process that took the hold.
fcntl.ioctl(folder, HOLD)
os.close(again)
# The child has it open as well.
writer = child(lambda: (os.close(folder), os.rmdir("waits"), os._exit(0)))
time.sleep(0.3)
assert os.waitpid(writer, os.WNOHANG) == (0, 0)
os.close(folder)
assert os.waitpid(writer, 0)[1] == 0
os.setuid(77)
other = os.open(".", os.O_RDONLY)
fails(errno.EPERM, other, HOLD)
PY
    no_rest "$1"
}

echo "a volume that shares nothing"
mke2fs -q -F -t ext4 "$DISK" 64M
mount -t ext4 "$DISK" $MNT
mkdir $MNT/source
echo x >$MNT/source/file
must_fail snapshot $MNT/source $MNT/copy 2>/tmp/out
grep -q 'cannot share blocks' /tmp/out || { cat /tmp/out; die "unexpected error"; }
snapshot --discard $MNT/copy
no_rest $MNT
umount $MNT

check xfs
check rext4
finish
