# SPDX-License-Identifier: GPL-2.0
# Shared by the scenarios. They run in the guest as root, with the module loaded and scratch disks $DISK1 and $DISK2.
#
# The head of a scenario says
#
#   # kernels: NAME[/PROCESSORS]...   which kernels it runs on (uml), with how many processors (1)
#   # oracles: NAME[@KERNEL]...       who judges beside the scenario itself (on that kernel): each of them must have been asked
#   # ...                             what it judges
#
# The oracles are e2fsck (clean), owners (owned: the owner of each block as e2fsprogs tells it), ext4 and xfs (stock file systems,
# when they are mounted), model (a program that knows what must be there, called by `model`) and log (said, logged). The last line
# of a scenario is `finish`; one that comes to its end otherwise has failed, and so has one that left out a `must_fail`.

set -euo pipefail

DISK=$DISK1
MNT=/mnt
ASKED=/tmp/asked FINISHED=
SCENARIO=$(realpath "$0")
: >$ASKED
# What has failed is said where the scenario's own output goes, wherever that of the command went.
exec {SAID}>&2
die() { echo "FAILED: $*" >&$SAID; exit 1; }

# asked ORACLE: notes that it judged.
asked() { echo "$1" >>$ASKED; }

at_exit() {
    local status=$?
    [ "$status" != 0 ] || [ -n "$FINISHED" ] || die "the scenario did not come to its end"
}
trap at_exit EXIT

# finish: the end of a scenario.
finish() {
    local oracle line
    for oracle in $(sed -n 's/^# oracles: //p' "$SCENARIO"); do
        case $oracle in *@*) [ "${oracle#*@}" = "$KERNEL" ] || continue ;; esac
        oracle=${oracle%@*}
        grep -qx "$oracle" $ASKED || die "$oracle was not asked"
    done
    if ! is_slow; then
        for line in $(grep -nE '(^|[ ;])must_fail ' "$SCENARIO" | cut -d: -f1); do
            grep -qx "must_fail $line" $ASKED || die "line $line: must_fail did not run"
        done
    fi
    FINISHED=1
    echo "$(basename "$SCENARIO" .sh): the end"
}

# Mounting a stock file system asks it.
mount() {
    command mount "$@" || return
    case " $* " in
        *" -t ext4 "*) asked ext4 ;;
        *" -t xfs "*) asked xfs ;;
    esac
}

# model COMMAND...: a program that compares what is there with what must be.
model() { "$@" || return; asked model; }

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
logged() { asked log; grep -qE "$1" < <(dmesg); }

# said PATTERN: the log must have it, of the volume on DISK.
said() { logged "rext4: ${DISK##*/}: $1" || { dmesg | tail -5; die "the log does not say: $1"; }; }

# must_fail COMMAND...: a statement of its own, not behind another's && or ||. A command that is not there or dies has not failed
# in the way that is meant.
must_fail() {
    local status=0
    [ "${BASH_SOURCE[1]}" != "$0" ] || asked "must_fail ${BASH_LINENO[0]}"
    "$@" || status=$?
    [ "$status" != 0 ] || die "succeeded: $*"
    [ "$status" -lt 126 ] || die "ended with status $status: $*"
}

# needs_cleaning COMMAND...: must fail with EUCLEAN.
needs_cleaning() {
    must_fail "$@" >/tmp/out 2>&1
    grep -q 'Structure needs cleaning' /tmp/out || { cat /tmp/out; die "another error: $*"; }
}

# bad_message COMMAND...: must fail with EBADMSG, which stock ext4 reports for a wrong checksum.
bad_message() {
    must_fail "$@" >/tmp/out 2>&1
    grep -q 'Bad message' /tmp/out || { cat /tmp/out; die "another error: $*"; }
}

# lacks PATTERN FILE: the file is there, and no line of it matches.
lacks() {
    local status=0
    grep -E "$1" "$2" || status=$?
    [ "$status" = 1 ] || die "$2 has $1, or cannot be read"
}

# clean IMAGE: e2fsck must have nothing to say.
clean() {
    asked e2fsck
    e2fsck -fn "$1" >/tmp/e2fsck.log 2>&1 || { cat /tmp/e2fsck.log; die "e2fsck -fn of $1"; }
}

# need_modules PATH...: loads modules of the kernel's own, named by where they lie. A kernel without any has them built in.
need_modules() {
    local path folder; folder=/lib/modules/$(uname -r)/kernel
    [ -n "$(ls "$folder")" ] || return 0
    for path in "$@"; do insmod "$folder/$path.ko.xz"; done
}

# is_slow: whether this kernel checks everything that it does, so that less has to do.
is_slow() { [ -e /proc/lockdep ]; }
