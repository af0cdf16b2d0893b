#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Makes each system call of a list fail at its n-th site, for n = 1, 2, ... until it succeeds without a fault.

call_faults.py list                        prints the names of the calls
call_faults.py run HOW MOUNT SNAPSHOT CALL...
                                           tests these calls on the volume mounted at MOUNT, and writes its contents at the end
                                           to SNAPSHOT
call_faults.py compare MOUNT SNAPSHOT      compares the volume, mounted again, with SNAPSHOT
call_faults.py mounts DEVICE MOUNT TYPE    tests mounting and unmounting the device

HOW is one of

  memory      what the calling task allocates, as /proc/self/fail-nth counts it
  disk        that, and what the task submits to the disk
  space       there is room for n - 1 blocks on the volume

A call that fails must not have changed anything, and one that succeeds must have the same effect as without a fault. Calls
that work piece by piece may have done a part. A call that failed is repeated without a fault and must succeed.
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import mmap
import os
import stat
import struct
import sys

BLOCK = 1024
FICLONE, FICLONERANGE, FIDEDUPERANGE = 0x40049409, 0x4020940D, 0xC0189436
FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
GETFSMAP = 0xC0C0583B
LEGAL = {errno.ENOMEM, errno.EIO, errno.ENOSPC, errno.EAGAIN, errno.EINTR}
libc = ctypes.CDLL(None, use_errno=True)


def call(function, *arguments):
    done = getattr(libc, function)(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{function}: {os.strerror(code)}")
    return done


def data(seed, length):
    return b"".join(hashlib.sha256(f"{seed} {n}".encode()).digest() for n in range(-(-length // 32)))[:length]


class Case:
    """A call, in a directory of its own."""

    def __init__(self, name, setup, act, partial=False, query=False, fails_with=()):
        self.name, self.setup, self.act = name, setup, act
        # `partial`: it may do a part of its work. `query`: it changes nothing.
        self.partial, self.query = partial, query
        self.legal = LEGAL | set(fails_with)


def aligned(content):
    memory = mmap.mmap(-1, len(content))
    memory[:] = content
    return memory


def file(path, length=8 * BLOCK, flags=0, seed="old"):
    """An open file of that length, on disk."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    if length:
        os.write(fd, data(seed, length))
    os.fsync(fd)
    if flags:
        os.close(fd)
        fd = os.open(path, os.O_RDWR | flags)
    return fd


def one(name="f", length=8 * BLOCK, flags=0):
    return lambda d: {"fd": file(f"{d}/{name}", length, flags), "d": d, "path": f"{d}/{name}"}


def two(same=False):
    def setup(d):
        return {"a": file(f"{d}/a", 16 * BLOCK, seed="a"), "b": file(f"{d}/b", 16 * BLOCK, seed="a" if same else "b"),
                "d": d}
    return setup


def nothing(d):
    return {"d": d}


def pieces(d):
    """Creates a file with enough extents for its mapping to have nodes."""
    c = one()(d)
    for block in range(0, 60, 2):
        os.pwrite(c["fd"], data(block, BLOCK), block * BLOCK)
    os.fsync(c["fd"])
    return c


def unwritten(d):
    c = one(length=0)(d)
    call("fallocate", c["fd"], 0, 0, 32 * BLOCK)
    os.fsync(c["fd"])
    return c


def mapped(d):
    c = one(length=16 * BLOCK)(d)
    c["map"] = mmap.mmap(c["fd"], 16 * BLOCK)
    for at in range(0, 16 * BLOCK, 4096):
        c["map"][at:at + 4] = b"mmap"
    return c


def shared(d):
    c = two()(d)
    fcntl.ioctl(c["b"], FICLONE, c["a"])
    return c


def directory(d):
    os.mkdir(f"{d}/sub")
    return {"d": d}


def names(d):
    for name in "x", "y":
        os.close(file(f"{d}/{name}", BLOCK, seed=name))
    os.mkdir(f"{d}/sub")
    return {"d": d}


def attributed(size):
    def setup(d):
        c = one()(d)
        os.setxattr(c["path"], "user.old", b"o" * size)
        return c
    return setup


def tmpfile(c):
    fd = os.open(c["d"], os.O_TMPFILE | os.O_RDWR, 0o600)
    try:
        call("linkat", -100, f"/proc/self/fd/{fd}".encode(), -100, f"{c['d']}/linked".encode(), 0x400)
    finally:
        os.close(fd)


def many(d):
    for n in range(40):
        os.close(os.open(f"{d}/{n}-{'n' * 50}", os.O_CREAT | os.O_WRONLY))
    return {"d": d, "fd": os.open(d, os.O_RDONLY)}


def rename(c, a, b, flags):
    call("renameat2", -100, f"{c['d']}/{a}".encode(), -100, f"{c['d']}/{b}".encode(), flags)


def access_list():
    # Version 2; user, named user, group, mask, others.
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, rights, who) for tag, rights, who in
                                          ((1, 6, 0xFFFFFFFF), (2, 4, 1000), (4, 4, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF),
                                           (32, 0, 0xFFFFFFFF)))


def dedupe(c):
    request = bytearray(struct.pack("=QQHHI", 0, 8 * BLOCK, 1, 0, 0) + struct.pack("=qQQiI", c["b"], 0, 0, 0, 0))
    fcntl.ioctl(c["a"], FIDEDUPERANGE, request)
    status = struct.unpack_from("=i", request, 24 + 24)[0]
    if status < 0:
        raise OSError(-status, "FIDEDUPERANGE")
    assert status == 0, status


def freeze(c):
    fcntl.ioctl(c["fd"], FIFREEZE, 0)
    c["frozen"] = True
    fcntl.ioctl(c["fd"], FITHAW, 0)
    c["frozen"] = False


def thaw(c):
    if c.get("frozen"):
        fcntl.ioctl(c["fd"], FITHAW, 0)
        c["frozen"] = False


def mapping(c):
    request = bytearray(192 + 24 * 20)
    struct.pack_into("=II", request, 0, 0, 0)
    struct.pack_into("=I", request, 8, 200 // 10)
    struct.pack_into("=IIQQQQ", request, 64 + 64, 0xFFFFFFFF, 0xFFFFFFFF, *([0xFFFFFFFFFFFFFFFF] * 3), 0)
    fcntl.ioctl(c["fd"], GETFSMAP, request)


def scrub(flags):
    def act(c):
        request = bytearray(136)
        struct.pack_into("<3I", request, 0, 1, flags, 0xFFFFFFFF)
        fcntl.ioctl(c["fd"], 3 << 30 | 136 << 16 | ord("r") << 8 | 0x80, request)
    return act


def remount(c):
    if libc.mount(None, c["mount"].encode(), None, ctypes.c_ulong(0x20), b"commit=7"):
        raise OSError(ctypes.get_errno(), "remount")


CASES = [
    Case("create", nothing, lambda c: os.close(os.open(f"{c['d']}/new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))),
    Case("mkdir", nothing, lambda c: os.mkdir(f"{c['d']}/new")),
    Case("mknod", nothing, lambda c: os.mknod(f"{c['d']}/new", 0o600 | stat.S_IFCHR, os.makedev(1, 3))),
    Case("symlink", nothing, lambda c: os.symlink("t" * 20, f"{c['d']}/new")),
    Case("symlink_block", nothing, lambda c: os.symlink("t" * 300, f"{c['d']}/new")),
    Case("link", one(), lambda c: os.link(c["path"], f"{c['d']}/new")),
    Case("unlink", one(), lambda c: os.unlink(c["path"])),
    Case("rmdir", directory, lambda c: os.rmdir(f"{c['d']}/sub")),
    Case("rename", names, lambda c: rename(c, "x", "sub/z", 0)),
    Case("rename_over", names, lambda c: rename(c, "x", "y", 0)),
    Case("rename_exchange", names, lambda c: rename(c, "x", "sub", 2)),
    Case("rename_whiteout", names, lambda c: rename(c, "x", "z", 4)),
    Case("truncate_down", pieces, lambda c: os.ftruncate(c["fd"], 5 * BLOCK + 100), partial=True),
    Case("truncate_up", one(), lambda c: os.ftruncate(c["fd"], 40 * BLOCK + 100), partial=True),
    Case("truncate_shared", shared, lambda c: os.ftruncate(c["b"], 3 * BLOCK), partial=True),
    Case("punch_shared", shared, lambda c: call("fallocate", c["b"], 3, 3 * BLOCK, 8 * BLOCK), partial=True),
    Case("unlink_shared", shared, lambda c: os.unlink(f"{c['d']}/b")),
    Case("fallocate", one(), lambda c: call("fallocate", c["fd"], 0, 4 * BLOCK, 30 * BLOCK), partial=True),
    Case("fallocate_keep", one(), lambda c: call("fallocate", c["fd"], 1, 4 * BLOCK, 30 * BLOCK), partial=True),
    Case("punch", pieces, lambda c: call("fallocate", c["fd"], 3, 3 * BLOCK + 7, 20 * BLOCK), partial=True),
    Case("zero_range", pieces, lambda c: call("fallocate", c["fd"], 0x10, 3 * BLOCK + 7, 20 * BLOCK), partial=True),
    Case("unshare_range", shared, lambda c: call("fallocate", c["b"], 0x40, 0, 16 * BLOCK), partial=True),
    Case("write", one(), lambda c: os.pwrite(c["fd"], data("new", 6 * BLOCK), 0), partial=True),
    Case("write_append", one(), lambda c: os.pwrite(c["fd"], data("new", 20 * BLOCK), 8 * BLOCK), partial=True),
    Case("write_hole", one(), lambda c: os.pwrite(c["fd"], data("new", 6 * BLOCK), 100 * BLOCK), partial=True),
    Case("write_direct", one(flags=os.O_DIRECT), lambda c: os.pwritev(c["fd"], [aligned(data("new", 6 * BLOCK))], 0),
         partial=True),
    Case("append_direct", one(flags=os.O_DIRECT),
         lambda c: os.pwritev(c["fd"], [aligned(data("new", 20 * BLOCK))], 8 * BLOCK), partial=True),
    Case("write_unwritten", unwritten, lambda c: os.pwrite(c["fd"], data("new", 6 * BLOCK), 4 * BLOCK), partial=True),
    Case("write_shared", shared, lambda c: os.pwrite(c["b"], data("new", 6 * BLOCK), 0), partial=True),
    Case("write_sync", one(flags=os.O_DSYNC), lambda c: os.pwrite(c["fd"], data("new", 20 * BLOCK), 4 * BLOCK),
         partial=True),
    Case("msync", mapped, lambda c: c["map"].flush(), partial=True),
    Case("fsync", lambda d: dirty(d), lambda c: os.fsync(c["fd"]), query=True),
    Case("fdatasync", lambda d: dirty(d), lambda c: os.fdatasync(c["fd"]), query=True),
    Case("setxattr", one(), lambda c: os.setxattr(c["fd"], "user.new", b"n" * 20)),
    Case("setxattr_block", one(), lambda c: os.setxattr(c["fd"], "user.new", b"n" * 600)),
    Case("setxattr_grow", attributed(20), lambda c: os.setxattr(c["fd"], "user.old", b"n" * 600)),
    Case("removexattr", attributed(20), lambda c: os.removexattr(c["fd"], "user.old")),
    Case("removexattr_block", attributed(600), lambda c: os.removexattr(c["fd"], "user.old")),
    Case("chmod", one(), lambda c: os.fchmod(c["fd"], 0o4711)),
    Case("chown", one(), lambda c: os.fchown(c["fd"], 70000, 70000)),
    Case("utimens", one(), lambda c: os.utime(c["fd"], ns=(10 ** 17, 10 ** 17 + 1))),
    Case("acl", one(), lambda c: os.setxattr(c["fd"], "system.posix_acl_access", access_list())),
    Case("clone", two(), lambda c: fcntl.ioctl(c["b"], FICLONE, c["a"]), partial=True),
    Case("clone_range", two(), lambda c: fcntl.ioctl(c["b"], FICLONERANGE, struct.pack(
        "=qQQQ", c["a"], 4 * BLOCK, 8 * BLOCK, 2 * BLOCK)), partial=True),
    Case("dedupe", two(same=True), dedupe),
    Case("copy_range", two(), lambda c: os.copy_file_range(c["a"], c["b"], 8 * BLOCK, 0, 4 * BLOCK), partial=True),
    Case("tmpfile", nothing, tmpfile),
    Case("readdir", many, lambda c: os.listdir(c["fd"]), query=True),
    Case("read", lambda d: forgotten(d), lambda c: os.pread(c["fd"], 30 * BLOCK, 0), query=True),
    Case("statfs", one(), lambda c: os.fstatvfs(c["fd"]), query=True),
    Case("sync", lambda d: dirty(d), lambda c: call("syncfs", c["fd"]), query=True),
    Case("remount", one(), remount, query=True),
    Case("freeze", one(), freeze, query=True),
    Case("fsmap", one(), mapping, query=True),
    Case("scrub", one(), scrub(0), query=True),
    Case("scrub_repair", one(), scrub(1 | 1 << 8), query=True),
]


def dirty(d):
    c = one(length=0)(d)
    os.write(c["fd"], data("dirty", 20 * BLOCK))
    return c


def forgotten(d):
    c = pieces(d)
    os.posix_fadvise(c["fd"], 0, 0, os.POSIX_FADV_DONTNEED)
    return c


def tree(top):
    """What there is below a directory."""
    found = {}
    for folder, folders, files in os.walk(top):
        for name in folders + files + ["."]:
            path = os.path.normpath(os.path.join(folder, name))
            s = os.lstat(path)
            seen = [s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_rdev]
            if stat.S_ISREG(s.st_mode):
                with open(path, "rb") as f:
                    seen += [s.st_size, f.read().hex()]
            elif stat.S_ISLNK(s.st_mode):
                seen += [os.readlink(path)]
            if s.st_mtime < 10 ** 9:
                seen += [s.st_mtime_ns]
            seen += [[attribute, os.getxattr(path, attribute, follow_symlinks=False).hex()]
                     for attribute in sorted(os.listxattr(path, follow_symlinks=False))]
            found[os.path.relpath(path, top)] = seen
    return found


def is_between(found, before, after):
    """Returns whether each block of each file is as before or as after the call, and all else is either."""
    if set(found) != set(before):
        return found == after
    for path, seen in found.items():
        old, new = before[path], after[path]
        if seen in (old, new):
            continue
        if not stat.S_ISREG(seen[0]) or seen[:5] not in (old[:5], new[:5]) or seen[7:] not in (old[7:], new[7:]):
            return False
        # As a write may be cut short at any byte, sizes in between are right.
        if not min(old[5], new[5]) <= seen[5] <= max(old[5], new[5]):
            return False
        for at in range(0, len(seen[6]), 2 * BLOCK):
            # What is behind an end reads as zeroes once the file is longer.
            length = min(2 * BLOCK, len(seen[6]) - at)
            piece = seen[6][at:at + length]
            if piece not in (text[at:at + length].ljust(length, "0") for text in (old[6], new[6], "")):
                return False
    return True


class Faults:
    """Faults of one way; `at(n)` begins, `end()` ends and tells whether the n-th site was reached."""

    def __init__(self, how, mount):
        self.how, self.mount = how, mount
        self.device = os.path.basename(next(
            line.split()[0] for line in open("/proc/mounts") if line.split()[1] == mount)) if mount else None
        debug = "/sys/kernel/debug"
        for name in "failslab", "fail_page_alloc":
            self.set(f"{debug}/{name}/ignore-gfp-wait", "N")
        self.set(f"{debug}/fail_page_alloc/min-order", 0)
        for name in "failslab", "fail_page_alloc", "fail_make_request":
            self.set(f"{debug}/{name}/verbose", 0)

    def set(self, path, value):
        with open(path, "w") as f:
            f.write(str(value))

    def fails_requests(self, on):
        if self.device:
            self.set(f"/sys/block/{self.device}/make-it-fail", int(on))

    def at(self, n):
        if self.how == "space":
            self.fill(n - 1)
            return
        self.fails_requests(self.how == "disk")
        self.fd = os.open("/proc/thread-self/fail-nth", os.O_RDWR)
        os.write(self.fd, b"%d" % n)

    def end(self, error):
        if self.how == "space":
            os.unlink(f"{self.mount}/filler")
            os.sync()
            return error is not None
        left = int(os.pread(self.fd, 20, 0).rstrip(b"\0\n") or b"0")
        os.write(self.fd, b"0")
        os.close(self.fd)
        self.fails_requests(False)
        return left == 0

    def fill(self, room):
        """Fills the volume except for `room` blocks."""
        fd = os.open(f"{self.mount}/filler", os.O_RDWR | os.O_CREAT)
        end, length = 0, 1 << 20
        while length >= BLOCK:
            try:
                call("fallocate", fd, 0, end, length)
                end += length
            except OSError as e:
                assert e.errno == errno.ENOSPC, e
                length //= 2
        os.ftruncate(fd, max(end - room * BLOCK, 0))
        os.close(fd)
        os.sync()


def close(c):
    for name in "fd", "a", "b":
        if name in c:
            try:
                os.close(c[name])
            except OSError:
                # A writeback error that was not reported yet.
                pass
    if "map" in c:
        c["map"].close()


class Runner:
    def __init__(self, how, mount):
        self.how, self.mount = how, mount
        self.faults = Faults(how, mount)
        self.failures = []
        # Directories with a file whose data could not be written, so that it need not be on disk.
        self.lost = set()

    def wrong(self, case, n, text):
        self.failures.append(f"{case.name}, {self.how} {n}: {text}")
        print(f"call_faults: {self.failures[-1]}", flush=True)

    def begin(self, case, name):
        d = f"{self.mount}/{case.name}-{name}"
        os.mkdir(d)
        c = case.setup(d)
        c["mount"] = self.mount
        os.sync()
        return d, c

    def run(self, case):
        d, c = self.begin(case, "right")
        case.act(c)
        close(c)
        right = tree(d)
        n = failed = passed = 0
        while True:
            n += 1
            d, c = self.begin(case, n)
            before = tree(d)
            self.faults.at(n)
            try:
                case.act(c)
                error = None
            except OSError as e:
                error = e
            hit = self.faults.end(error)
            if case.name == "freeze":
                thaw(c)
            failed, passed = failed + (error is not None), passed + (error is None)
            found = tree(d)
            if error is not None and error.errno == errno.EIO and case.partial:
                self.lost.add(os.path.basename(d))
            if error is not None and error.errno not in case.legal:
                self.wrong(case, n, f"unexpected error: {error}")
            wanted = before if case.query or error is not None else right
            if found != wanted and not (case.partial and is_between(found, before, right)):
                self.wrong(case, n, f"{error or 'success'}, and it has not {'happened' if error is None else 'been left'}: "
                                    f"{differences(found, wanted)}")
            if not hit:
                if error is not None:
                    self.wrong(case, n, f"failed without a fault: {error}")
                close(c)
                break
            if error is not None and found == before:
                try:
                    case.act(c)
                except OSError as e:
                    # A writeback error of the first call may be reported only now.
                    if e.errno != errno.EIO:
                        self.wrong(case, n, f"does not succeed after {error}: {e}")
                else:
                    found = tree(d)
                    if not case.query and found != right:
                        self.wrong(case, n, f"repeated after {error}: {differences(found, right)}")
            close(c)
            if n > 5000:
                self.wrong(case, n, "no end")
                break
        print(f"{self.how} {case.name}: {n - 1} sites, {failed} failed", flush=True)


def differences(found, wanted):
    paths = [path for path in sorted(set(found) | set(wanted)) if found.get(path) != wanted.get(path)]
    return "; ".join(f"{path}: {str(found.get(path))[:150]} for {str(wanted.get(path))[:150]}" for path in paths[:3])


def run(how, mount, snapshot, wanted):
    runner = Runner(how, mount)
    for case in CASES:
        if case.name in wanted:
            runner.run(case)
    with open(snapshot, "w") as f:
        json.dump({path: seen for path, seen in tree(mount).items() if path.split("/")[0] not in runner.lost}, f)
    sys.exit(1 if runner.failures else 0)


def compare(mount, snapshot):
    with open(snapshot) as f:
        wanted = json.load(f)
    known = {path.split("/")[0] for path in wanted}
    found = {path: seen for path, seen in json.loads(json.dumps(tree(mount))).items() if path.split("/")[0] in known}
    for some in found, wanted:
        some.pop(".", None)
    if found != wanted:
        sys.exit(f"call_faults: not the same after a mount: {differences(found, wanted)}")


def mounts(device, mount, kind):
    faults = Faults("memory", None)
    for unmounts in False, True:
        n = failed = 0
        while True:
            n += 1
            if unmounts:
                assert libc.mount(device.encode(), mount.encode(), kind.encode(), 0, None) == 0
                with open(f"{mount}/file-{n}", "w") as f:
                    f.write("some text")
            faults.at(n)
            if unmounts:
                done = libc.umount2(mount.encode(), 0)
            else:
                done = libc.mount(device.encode(), mount.encode(), kind.encode(), 0, None)
            code = ctypes.get_errno()
            hit = faults.end(None)
            if done:
                failed += 1
                assert code in LEGAL | {errno.EROFS, errno.EINVAL}, (n, errno.errorcode[code])
            is_mounted = any(line.split()[1] == mount for line in open("/proc/mounts"))
            assert is_mounted == ((done != 0) == unmounts), (n, is_mounted, done)
            if is_mounted:
                if unmounts:
                    with open(f"{mount}/file-{n}") as f:
                        assert f.read() == "some text"
                assert libc.umount2(mount.encode(), 0) == 0, n
            if os.system(f"e2fsck -fn {device} >/tmp/e2fsck.log 2>&1"):
                sys.exit(f"call_faults: {'unmount' if unmounts else 'mount'} {n}: e2fsck: {open('/tmp/e2fsck.log').read()}")
            if not hit:
                assert not done, n
                break
        print(f"memory {'unmount' if unmounts else 'mount'}: {n - 1} sites, {failed} failed", flush=True)


def main():
    command = sys.argv[1]
    if command == "list":
        print(*(case.name for case in CASES))
    elif command == "run":
        run(sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:])
    elif command == "compare":
        compare(sys.argv[2], sys.argv[3])
    else:
        mounts(*sys.argv[2:5])


if __name__ == "__main__":
    main()
