# SPDX-License-Identifier: GPL-2.0
# stopped.py ERRNO FILE, or stopped.py --abort|--shutdown MOUNTPOINT: on a volume that accepts no more changes, everything that
# promises that data is on disk fails with that error, each time. An option brings the volume into this state first.
import ctypes
import errno
import fcntl
import mmap
import os
import struct
import subprocess
import sys

libc = ctypes.CDLL(None, use_errno=True)


def fails(what, call, wanted):
    try:
        call()
    except OSError as error:
        if error.errno == wanted:
            return
        sys.exit(f"FAILED: {what}: {error.strerror}, not {os.strerror(wanted)}")
    sys.exit(f"FAILED: {what} succeeds")


def syncfs(file):
    if libc.syncfs(file) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def check(error, files, folder):
    for turn in range(3):
        for name, file in files.items():
            fails(f"fsync of {name}, time {turn}", lambda: os.fsync(file), error)
            fails(f"fdatasync of {name}, time {turn}", lambda: os.fdatasync(file), error)
        fails(f"fsync of the directory, time {turn}", lambda: os.fsync(folder), error)
        fails(f"syncfs, time {turn}", lambda: syncfs(folder), error)


def stop(how, mountpoint):
    if how == "--abort":
        subprocess.run(["mount", "-o", "remount,abort", mountpoint], check=True)
        return errno.EROFS
    folder = os.open(mountpoint, os.O_RDONLY)
    # EXT4_IOC_SHUTDOWN, which writes nothing.
    fcntl.ioctl(folder, 0x8004587D, struct.pack("=I", 2))
    return errno.EIO


def main():
    if not sys.argv[1].startswith("--"):
        error, path = getattr(errno, sys.argv[1]), sys.argv[2]
        file, folder = os.open(path, os.O_RDONLY), os.open(os.path.dirname(path), os.O_RDONLY)
        check(error, {"a file": file}, folder)
        return
    top = sys.argv[2]
    folder = os.open(top, os.O_RDONLY)
    files = {}
    for name in "written", "overwritten", "preallocated", "made", "mapped", "read":
        files[name] = os.open(f"{top}/{name}", os.O_RDWR | os.O_CREAT, 0o644)
        if name != "made":
            os.write(files[name], b"old" * 2000)
    os.posix_fallocate(files["preallocated"], 0, 1 << 20)
    os.sync()
    for name in "written", "overwritten", "preallocated", "made":
        os.pwrite(files[name], b"new" * 3000, 0 if name == "overwritten" else 100000)
    os.link(f"{top}/read", f"{top}/link")
    pages = mmap.mmap(files["mapped"], 6000)
    pages[0:3] = b"new"
    error = stop(sys.argv[1], top)
    check(error, files, folder)
    fails("msync", pages.flush, error)
    for name, file in files.items():
        fails(f"a write to {name}", lambda: os.pwrite(file, b"more", 0), error)
        fails(f"a change of the mode of {name}", lambda: os.fchmod(file, 0o700), error)
        fails(f"a new size of {name}", lambda: os.ftruncate(file, 1), error)
        fails(f"preallocation for {name}", lambda: os.posix_fallocate(file, 1 << 20, 4096), error)
        fails(f"opening {name}", lambda: os.open(f"{top}/{name}", os.O_RDWR), error)
        if os.fstat(file).st_mode & 0o777 != 0o644:
            sys.exit(f"FAILED: the mode of {name} changed although that was refused")
    fails("a new file", lambda: os.open(f"{top}/new", os.O_RDWR | os.O_CREAT), error)
    check(error, files, folder)
    os._exit(0)


main()
