# SPDX-License-Identifier: GPL-2.0
# Shared by the scenarios. They run in the guest as root, with the module loaded and scratch disks $DISK1 and $DISK2.

set -euo pipefail

DISK=$DISK1
MNT=/mnt
die() { echo "FAILED: $*" >&2; exit 1; }

# listing DIR: every name below it with type, mode, owner, links, size, times and target, and a checksum of each file. The
# links of DIR itself are left out: stock ext4 counts the directory that rext4 hides.
listing() {
    ( cd "$1"
      stat -c '.|%F|%a|%u|%g|%s' .
      find . -mindepth 1 -path ./lost+found -prune -o -path ./.rext4 -prune -o -printf '%P|%y|%m|%U|%G|%n|%s|%T@|%A@|%C@|%l\n' | LC_ALL=C sort
      find . -path ./lost+found -prune -o -path ./.rext4 -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum )
}

# extents DIR: where the blocks of every file of more than 100 KB lie, as FIEMAP says. Pieces that lie together are
# shown as one: how much of a mapping one call answers with is nobody's business.
extents() {
    ( cd "$1"
      find . -path ./lost+found -prune -o -type f -size +100k -print0 | LC_ALL=C sort -z | xargs -0 -r filefrag -v -e |
        python3 -c '
import re, sys
piece = None
for line in sys.stdin:
    numbers = [int(n) for n in re.findall(r"\d+", line)]
    flags = line.rsplit(":", 1)[-1].strip().split(",")
    # How filefrag words the end depends on whether it asks by FIEMAP or by FIBMAP.
    flags = ",".join(flag for flag in flags if flag not in ("last", "eof", "merged", ""))
    if re.match(r" *\d+:", line):
        _, first, last, start, _, length = numbers[:6]
        if piece and piece[3] == flags and piece[0] + piece[2] == first and piece[1] + piece[2] == start:
            piece[2] += length
            continue
        if piece: print(*piece)
        piece = [first, start, length, flags]
    elif line.startswith("File size"):
        if piece: print(*piece)
        piece = None
        print(line.strip())
if piece: print(*piece)' )
}

# usage DIR: blocks and inodes in all and free, as statfs says. What is available to users is left out: stock ext4 keeps
# some blocks back for its own delayed allocation.
usage() { stat -f -c 'blocks %b free %f inodes %c free %d of %S bytes, names %l' "$1"; }

# same A B: two files must be equal.
same() { diff "$1" "$2" >/tmp/same.diff || { head -n 20 /tmp/same.diff; die "$1 and $2 differ"; }; }

# logged PATTERN: whether the kernel's log has it. The status is grep's alone: it ends when it has found something, and in a pipe
# the program that still writes to it would then be what failed.
logged() { grep -qE "$1" < <(dmesg); }

# said PATTERN: the log must have it, of the volume on DISK.
said() { logged "rext4: ${DISK##*/}: $1" || { dmesg | tail -5; die "the log does not say: $1"; }; }

# must_fail COMMAND...
must_fail() { if "$@"; then die "succeeded: $*"; fi; }

# clean IMAGE: e2fsck must have nothing to say.
clean() { e2fsck -fn "$1" >/tmp/e2fsck.log 2>&1 || { cat /tmp/e2fsck.log; die "e2fsck -fn of $1"; }; }

# need_modules PATH...: loads modules of the kernel's own, named by where they lie; those that are built in are there.
need_modules() {
    local path
    for path in "$@"; do
        path=/lib/modules/$(uname -r)/kernel/$path.ko.xz
        [ ! -e "$path" ] || insmod "$path"
    done
}

# is_slow: whether this kernel checks everything that it does, so that less has to do.
is_slow() { [ -e /proc/lockdep ]; }
