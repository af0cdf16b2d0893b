# SPDX-License-Identifier: GPL-2.0
# calls.py CALL PATH [ARGUMENT]...: one system call that has no command of its own, and what it
# answered. An error is told by its name, with status 1.
import ctypes, errno, fcntl, os, random, struct, sys

# Where a number has two names, the one that kernel developers use.
NAMES = errno.errorcode | {errno.EOPNOTSUPP: "EOPNOTSUPP", errno.EAGAIN: "EAGAIN"}

libc = ctypes.CDLL(None, use_errno=True)


def ioc(direction, kind, number, size):
    return direction << 30 | size << 16 | ord(kind) << 8 | number


def opened(path, flags=os.O_RDONLY):
    return os.open(path, flags)


def shutdown(path, how):
    fcntl.ioctl(opened(path), ioc(2, "X", 125, 4), struct.pack("I", int(how)))


def trim(path, start=0, length=1 << 62, least=0):
    """The bytes that were discarded."""
    range = struct.pack("QQQ", int(start), int(length), int(least))
    return struct.unpack("QQQ", fcntl.ioctl(opened(path), ioc(3, "X", 121, 24), range))[1]


GETFLAGS, SETFLAGS = ioc(2, "f", 1, 8), ioc(1, "f", 2, 8)
GETXATTR, SETXATTR = ioc(2, "X", 31, 28), ioc(1, "X", 32, 28)
IMMUTABLE, APPEND = 0x10, 0x20
# Of extents, of data in the journal: stock ext4 changes how a file is stored.
STORAGE = 0x80000 | 0x4000


COLLAPSE, INSERT = 8, 32


def as_nobody(call, *arguments):
    """The same call by a user without privileges."""
    fd = opened(arguments[0])
    os.setgid(65534)
    os.setuid(65534)
    return CALLS[call](f"/proc/self/fd/{fd}", *arguments[1:])


def held(path, *command):
    """Runs a command while the file is open, and then says whether it can still be written and synced."""
    fd = opened(path, os.O_RDWR)
    if os.spawnvp(os.P_WAIT, command[0], command):
        sys.exit("the command failed")
    told = []
    for name, act in [("read", lambda: os.pread(fd, 1, 0)), ("write", lambda: os.pwrite(fd, b"x", 0)),
                      ("fsync", lambda: os.fsync(fd)), ("truncate", lambda: os.ftruncate(fd, 1)),
                      ("fallocate", lambda: os.posix_fallocate(fd, 0, 1 << 20)), ("chmod", lambda: os.fchmod(fd, 0o600))]:
        try:
            act()
            told.append(f"{name}=ok")
        except OSError as error:
            told.append(f"{name}={NAMES[error.errno]}")
    return " ".join(told)


CALLS = {name.replace("_", "-"): call for name, call in list(globals().items()) if callable(call)}

if __name__ == "__main__":
    try:
        answer = CALLS[sys.argv[1]](*sys.argv[2:])
    except OSError as error:
        sys.exit(NAMES[error.errno])
    if answer is not None:
        print(answer)
