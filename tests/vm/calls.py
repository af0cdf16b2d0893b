# SPDX-License-Identifier: GPL-2.0
# calls.py CALL PATH [ARGUMENT]...: makes a system call that has no command of its own, and prints
# the result. If it fails, prints the name of the error, and exits with status 1.
import ctypes, errno, fcntl, os, random, struct, sys

# Of two names of a number, the one that kernel developers use.
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


def resize(path, blocks):
    fcntl.ioctl(opened(path), ioc(1, "f", 16, 8), struct.pack("Q", int(blocks)))


def extend(path, blocks):
    fcntl.ioctl(opened(path), ioc(1, "f", 7, 8), struct.pack("Q", int(blocks)))


GETFLAGS, SETFLAGS = ioc(2, "f", 1, 8), ioc(1, "f", 2, 8)
GETXATTR, SETXATTR = ioc(2, "X", 31, 28), ioc(1, "X", 32, 28)
IMMUTABLE, APPEND = 0x10, 0x20
# Of extents, of data in the journal: stock ext4 changes how a file is stored.
STORAGE = 0x80000 | 0x4000


def told(act):
    """What a call answered, or its error."""
    try:
        return act()
    except OSError as error:
        return NAMES[error.errno]


def get_flags(path):
    fd = opened(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return struct.unpack("I", fcntl.ioctl(fd, GETFLAGS, bytes(4)))[0]
    finally:
        os.close(fd)


def set_flags(path, flags):
    fd = opened(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, SETFLAGS, struct.pack("I", int(flags)))
    finally:
        os.close(fd)
    return "ok"


def get_xflags(path):
    fd = opened(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return struct.unpack("IIIII8x", fcntl.ioctl(fd, GETXATTR, bytes(28)))
    finally:
        os.close(fd)


def set_xflags(path, xflags, project=0):
    fd = opened(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, SETXATTR, struct.pack("IIIII8x", int(xflags), 0, 0, int(project), 0))
    finally:
        os.close(fd)
    return "ok"


def statx(path):
    """Mask, attributes and their mask, time of birth and the alignment of direct reads and writes."""
    buffer = ctypes.create_string_buffer(256)
    if libc.statx(-100, path.encode(), 0x100, 0x7ff | 0x800 | 0x2000, buffer):
        raise OSError(ctypes.get_errno(), "statx")
    mask, = struct.unpack_from("I", buffer, 0)
    attributes, = struct.unpack_from("Q", buffer, 8)
    of, = struct.unpack_from("Q", buffer, 56)
    born = struct.unpack_from("qI", buffer, 80)
    return f"{mask & 0x2fff:#x} {attributes & 0xff:#x} {of & 0xff:#x} {struct.unpack_from('II', buffer, 152)}", born


def born(path):
    return " ".join(map(str, statx(path)[1]))


def flags(top):
    """All that can be done with flags, step by step, for a comparison with another file system."""
    os.makedirs(top)
    os.umask(0o022)
    kinds = [(f"{top}/file", lambda path: open(path, "w").write("x" * 9000)), (f"{top}/dir", os.mkdir),
             (f"{top}/pipe", lambda path: os.mkfifo(path, 0o666))]
    for path, make in kinds:
        make(path)
        first = told(lambda: get_flags(path))
        print(path, "new", first, told(lambda: get_xflags(path)), statx(path)[0])
        if not isinstance(first, int):
            continue
        for bit in range(32):
            if 1 << bit & STORAGE:
                continue
            said = told(lambda: set_flags(path, first | 1 << bit))
            print(path, f"{1 << bit:#x}", said, told(lambda: get_flags(path)), told(lambda: get_xflags(path)), statx(path)[0])
            told(lambda: set_flags(path, first))
        for bit in range(32):
            print(path, f"x {1 << bit:#x}", told(lambda: set_xflags(path, 1 << bit)), told(lambda: get_flags(path)))
            told(lambda: set_xflags(path, 0))
        print(path, "project", told(lambda: set_xflags(path, 0, 7)))
    file, folder = f"{top}/file", f"{top}/dir"
    open(f"{folder}/old", "w").close()
    before = [os.open(file, os.O_RDWR), os.open(file, os.O_WRONLY | os.O_APPEND)]
    for flag in IMMUTABLE, APPEND, IMMUTABLE | APPEND:
        set_flags(file, get_flags(file) | flag)
        set_flags(folder, get_flags(folder) | flag)
        for name, act in [
            ("open", lambda: os.close(os.open(file, os.O_WRONLY))),
            ("append", lambda: os.close(os.open(file, os.O_WRONLY | os.O_APPEND))),
            ("write", lambda: os.pwrite(before[0], b"y", 0)),
            ("at the end", lambda: os.write(before[1], b"y")),
            ("ftruncate", lambda: os.ftruncate(before[0], 10)),
            ("truncate", lambda: os.truncate(file, 10)),
            ("fallocate", lambda: os.posix_fallocate(before[0], 0, 100000)),
            ("fchmod", lambda: os.fchmod(before[0], 0o600)),
            ("fchown", lambda: os.fchown(before[0], 1, 1)),
            ("utime", lambda: os.utime(file, (1, 1))),
            ("touch", lambda: os.utime(file)),
            ("xattr", lambda: os.setxattr(file, "user.a", b"b")),
            ("unlink", lambda: os.unlink(file)),
            ("link", lambda: os.link(file, f"{top}/other")),
            ("rename", lambda: os.rename(file, f"{top}/other")),
            ("nodump", lambda: set_flags(file, get_flags(file) | 0x40)),
            ("create", lambda: os.close(os.open(f"{folder}/new", os.O_CREAT | os.O_WRONLY))),
            ("remove", lambda: os.unlink(f"{folder}/old")),
            ("rmdir", lambda: os.rmdir(folder)),
        ]:
            print(f"flags {flag:#x}", name, told(act), os.stat(file).st_size, sorted(os.listdir(folder)))
        set_flags(file, get_flags(file) & ~(IMMUTABLE | APPEND))
        set_flags(folder, get_flags(folder) & ~(IMMUTABLE | APPEND))
    # All that a directory can have, and what is made in it gets.
    have = get_flags(folder)
    for bit in range(32):
        if 1 << bit & (STORAGE | IMMUTABLE | APPEND) == 0:
            told(lambda: set_flags(folder, get_flags(folder) | 1 << bit))
    print("all", f"{get_flags(folder):#x}")
    os.mkdir(f"{folder}/sub")
    open(f"{folder}/sub/file", "w").close()
    os.mkfifo(f"{folder}/sub/pipe")
    os.symlink("x", f"{folder}/sub/link")
    for name in "sub", "sub/file", "sub/pipe":
        print(name, told(lambda: get_flags(f"{folder}/{name}")), told(lambda: get_xflags(f"{folder}/{name}")), statx(f"{folder}/{name}")[0])
    print("link", statx(f"{folder}/sub/link")[0])


def label(path, new=None):
    """The label, or sets it."""
    if new is None:
        return fcntl.ioctl(opened(path), ioc(2, "\x94", 49, 256), bytes(256)).rstrip(b"\0").decode()
    fcntl.ioctl(opened(path), ioc(1, "\x94", 50, 256), new.encode().ljust(256, b"\0"))


def uuid(path, room=16, flags=0):
    answer = fcntl.ioctl(opened(path), ioc(2, "f", 44, 8), struct.pack("II16x", int(room), int(flags)))
    length, flags, found = struct.unpack("II16s", answer)
    return f"{length} {found.hex()}"


def version(path, new=None):
    """The generation, by both numbers of the call, or sets it."""
    fd = opened(path)
    if new is not None:
        fcntl.ioctl(fd, ioc(1, "f", 4, 8), struct.pack("I", int(new)))
        return None
    found = [struct.unpack("I", fcntl.ioctl(fd, ioc(2, kind, number, 8), bytes(4)))[0] for kind, number in (("f", 3), ("v", 1))]
    assert found[0] == found[1]
    return found[0]


def set_version_old(path, new):
    fcntl.ioctl(opened(path), ioc(1, "v", 2, 8), struct.pack("I", int(new)))


def handle(path):
    """The handle of a file: its inode and generation."""
    buffer = ctypes.create_string_buffer(struct.pack("Ii128x", 128, 0))
    mount = ctypes.c_int()
    if libc.name_to_handle_at(-100, path.encode(), buffer, ctypes.byref(mount), 0):
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    size, kind = struct.unpack_from("Ii", buffer)
    return f"{kind} {buffer[8:8 + size].hex()}"


def by_handle(mount, kind, content):
    """The path of what a handle leads to, and its contents if it is a file."""
    content = bytes.fromhex(content)
    buffer = ctypes.create_string_buffer(struct.pack("Ii", len(content), int(kind)) + content)
    fd = libc.open_by_handle_at(opened(mount), buffer, os.O_RDONLY)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "open_by_handle_at")
    path = os.readlink(f"/proc/self/fd/{fd}")
    if os.path.isdir(f"/proc/self/fd/{fd}"):
        return f"{path} {' '.join(sorted(os.listdir(fd)))}"
    return os.read(fd, 100).decode()


def by_number(mount, ino, generation=0):
    return by_handle(mount, 1, struct.pack("II", int(ino), int(generation)).hex())


def call_unlink(path):
    os.unlink(path)


def busy(path):
    """What writing to a file and shortening it answer."""
    fd = opened(path, os.O_RDWR)
    return " ".join(told(lambda: act() and "ok" or "ok") for act in (lambda: os.pwrite(fd, b"x", 0), lambda: os.ftruncate(fd, 4096)))


def nowait(path):
    """What reading and writing with RWF_NOWAIT answer."""
    fd = opened(path, os.O_RDWR)
    buffer = bytearray(4096)
    return f"{told(lambda: os.preadv(fd, [buffer], 0, os.RWF_NOWAIT))} {told(lambda: os.pwritev(fd, [buffer], 0, 8))}"


COLLAPSE, INSERT = 8, 32


def fallocate(path, mode, start, length):
    fd = opened(path, os.O_RDWR)
    if libc.fallocate(fd, int(mode), ctypes.c_long(int(start)), ctypes.c_long(int(length))):
        raise OSError(ctypes.get_errno(), "fallocate")
    os.close(fd)


def shift(top, seed, steps, block, clones):
    """Random changes of files that move their contents, beside a model of the files in memory."""
    rng = random.Random(int(seed))
    block, names = int(block), [f"{top}/shifted-{i}" for i in range(3)]
    files = {name: bytearray() for name in names}
    for name in names:
        open(name, "wb").close()
    for step in range(int(steps)):
        name = rng.choice(names)
        data = files[name]
        blocks = len(data) // block
        kind = rng.choice(["write"] * 4 + ["collapse", "insert"] * 4 + ["punch", "allocate", "sync"] + ["clone"] * int(clones))
        at, count = rng.randrange(blocks + 1) * block, rng.randrange(1, 40) * block
        if kind == "write" and len(data) < 3 << 20:
            start, content = rng.randrange(len(data) + 3 * block), rng.randbytes(rng.randrange(1, 90000))
            with open(name, "r+b") as file:
                file.seek(start)
                file.write(content)
            data.extend(bytes(max(0, start + len(content) - len(data))))
            data[start:start + len(content)] = content
        elif kind == "collapse":
            said = told(lambda: fallocate(name, COLLAPSE, at, count))
            assert said == ("EINVAL" if at + count >= len(data) else None), (step, kind, said)
            if said is None:
                del data[at:at + count]
        elif kind == "insert":
            said = told(lambda: fallocate(name, INSERT, at, count))
            assert said == ("EINVAL" if at >= len(data) else None), (step, kind, said)
            if said is None:
                data[at:at] = bytes(count)
        elif kind == "punch":
            fallocate(name, 3, at, count)
            data[at:at + count] = bytes(max(0, min(len(data) - at, count)))
        elif kind == "allocate":
            fallocate(name, 1, at, count)
        elif kind == "sync":
            fd = opened(name)
            os.fsync(fd)
            os.close(fd)
        elif kind == "clone":
            other = rng.choice(names)
            if other != name:
                to, source = opened(name, os.O_RDWR), opened(other)
                os.ftruncate(to, 0)
                fcntl.ioctl(to, 0x40049409, source)
                os.close(to), os.close(source)
                files[name] = bytearray(files[other])
        if step % 10 == 0 or step == int(steps) - 1:
            for name, data in files.items():
                found = open(name, "rb").read()
                if found != data:
                    first = next((i for i, (a, b) in enumerate(zip(found, data)) if a != b), min(len(found), len(data)))
                    sys.exit(f"step {step} {kind}: {name} has {len(found)} bytes instead of {len(data)}, and differs at {first}")


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
