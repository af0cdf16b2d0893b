# SPDX-License-Identifier: GPL-2.0
# attributes.py DIR SEED STEPS BLOCK: applies a random sequence of changes to attributes, access
# control lists and modes below DIR, and prints the result of each, one line per step, so that two
# file systems can be compared.
import errno, os, random, struct, sys

top, seed, steps, block = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
rng = random.Random(seed)
os.makedirs(top, exist_ok=True)
os.umask(0o022)
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


def acl():
    """Returns an access list as a program would pass it; sometimes one equivalent to a mode, sometimes an invalid one."""
    named = [(2, rng.randrange(1000, 1030)) for _ in range(rng.choice([0, 0, 1, 2, 5, 40]))]
    named += [(8, rng.randrange(2000, 2030)) for _ in range(rng.choice([0, 0, 1, 3]))]
    entries = [(1, None)] + sorted(set(e for e in named if e[0] == 2))
    entries += [(4, None)] + sorted(set(e for e in named if e[0] == 8))
    if named or rng.random() < 0.2:
        entries.append((16, None))
    entries.append((32, None))
    if rng.random() < 0.05:
        entries.pop(rng.randrange(len(entries)))
    data = struct.pack("<I", 2)
    for tag, who in entries:
        data += struct.pack("<HHI", tag, rng.randrange(8), 0xFFFFFFFF if who is None else who)
    return data


def value():
    kind = rng.random()
    if kind < 0.1:
        return b""
    if kind < 0.7:
        return rng.randbytes(rng.randrange(1, 60))
    if kind < 0.85:
        return rng.randbytes(rng.randrange(60, 400))
    return rng.randbytes(rng.randrange(block // 2, block + 100))


def attribute():
    space = rng.choice(["user", "user", "trusted", "security"])
    return f"{space}.{'nÄ'[rng.randrange(2)] * rng.choice([1, 1, 2, 7, 30])}{rng.randrange(6)}"


def paths():
    found = [top]
    for where, dirs, files in os.walk(top):
        dirs.sort()
        found += sorted(os.path.join(where, name) for name in dirs + files)
    return found


names = paths()
for step in range(steps):
    if step % 50 == 0:
        names = paths()
    path = rng.choice(names)
    said = ""
    op = rng.choice(["set"] * 8 + ["remove"] * 5 + ["acl"] * 3 + ["default", "unacl", "undefault", "chmod", "chmod"] +
                    ["create"] * 3 + ["mkdir", "mknod", "symlink", "unlink", "write", "chown", "link"])
    where = path if os.path.isdir(path) and not os.path.islink(path) else os.path.dirname(path)
    new = os.path.join(where, f"{op}-{step}")
    try:
        if op == "set":
            os.setxattr(path, attribute(), value(), rng.choice([0, 0, 0, os.XATTR_CREATE, os.XATTR_REPLACE]), follow_symlinks=False)
        elif op == "remove":
            have = sorted(os.listxattr(path, follow_symlinks=False))
            os.removexattr(path, rng.choice(have + [attribute()]), follow_symlinks=False)
        elif op == "acl":
            os.setxattr(path, ACCESS, acl(), follow_symlinks=False)
        elif op == "default":
            os.setxattr(rng.choice([where, path]), DEFAULT, acl(), follow_symlinks=False)
        elif op == "unacl":
            os.removexattr(path, ACCESS, follow_symlinks=False)
        elif op == "undefault":
            os.removexattr(path, DEFAULT, follow_symlinks=False)
        elif op == "chmod":
            mode = rng.choice([rng.randrange(0o1000), rng.randrange(0o10000)])
            if not os.path.islink(path):
                os.chmod(path, mode)
        elif op == "create":
            os.close(os.open(new, os.O_CREAT | os.O_WRONLY, rng.choice([0o666, 0o600, 0o777])))
        elif op == "mkdir":
            os.mkdir(new, rng.choice([0o777, 0o700]))
        elif op == "mknod":
            os.mknod(new, rng.choice([0o010666, 0o020644]), os.makedev(1, 3))
        elif op == "symlink":
            os.symlink("t" * rng.choice([5, 59, 60, 300]), new)
        elif op == "link":
            os.link(path, new, follow_symlinks=False)
        elif op == "unlink":
            if path != top:
                (os.rmdir if os.path.isdir(path) and not os.path.islink(path) else os.unlink)(path)
        elif op == "write":
            if os.path.isfile(path) and not os.path.islink(path):
                if rng.random() < 0.5:
                    os.setxattr(path, "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
                with open(path, "ab") as file:
                    file.write(b"x" * 100)
        elif op == "chown":
            os.chown(path, rng.randrange(1000, 1003), rng.randrange(2000, 2003), follow_symlinks=False)
        status = os.lstat(path) if os.path.lexists(path) else None
        said = f"{status.st_mode:o}" if status else "gone"
    except OSError as error:
        said = errno.errorcode[error.errno]
    print(step, op, os.path.relpath(path, top), said)
