# SPDX-License-Identifier: GPL-2.0
# Shared by the scenarios. They run in the guest as root, with the module loaded and scratch disks
# $DISK1 and $DISK2.
#
# The head of a scenario contains
#
#   # kernels: NAME[/PROCESSORS]...   the kernels it runs on (uml), with their processors (1)
#   # oracles: NAME[@KERNEL]...       what judges the result besides the scenario itself (on that
#                                     kernel); each must be used
#   # needs: posix                   pjdfstest and fsx in /share/bin
#   # long: SECONDS                   the scenario has a long form (is_long) that takes no longer;
#                                     `tests/run --long` runs it
#   # ...                             what the scenario checks
#
# The oracles are e2fsck (`clean`), owners (`owned`: the owner of each block according to
# e2fsprogs), ext4 and xfs (stock file systems, when they are mounted), model (a program that knows
# the expected contents, run by `model`), log (`said`, `logged`) and ktap (the results of KUnit).
# The last line of a scenario is `finish`; a scenario that ends without it, or skips a `must_fail`,
# has failed.

set -euo pipefail

# What a mount or an unmount waits for is shorter so, where there is one processor anyway.
[ "$KERNEL" != uml ] || echo 1 >/sys/kernel/rcu_expedited

DISK=$DISK1
MNT=/mnt
ASKED=/tmp/asked FINISHED=
SCENARIO=$(realpath "$0")
: >$ASKED
# Messages of `die` go to the scenario's own output, even if that of the command is redirected.
exec {SAID}>&2
die() { echo "FAILED: $*" >&$SAID; exit 1; }

# asked ORACLE: record that this oracle was used.
asked() { echo "$1" >>$ASKED; }

at_exit() {
    local status=$?
    [ "$status" != 0 ] || [ -n "$FINISHED" ] || die "the scenario did not finish"
}
trap at_exit EXIT

# finish: mark the end of a scenario.
finish() {
    local oracle line
    for oracle in $(sed -n 's/^# oracles: //p' "$SCENARIO"); do
        case $oracle in *@*) [ "${oracle#*@}" = "$KERNEL" ] || continue ;; esac
        oracle=${oracle%@*}
        grep -qx "$oracle" $ASKED || die "$oracle was not asked"
    done
    if ! is_slow; then
        for line in $(grep -nE '^[^#]*(^|[ ;])(must_fail|needs_cleaning|bad_message) ' "$SCENARIO" | cut -d: -f1); do
            grep -qx "must_fail $line" $ASKED || die "line $line: must_fail did not run"
        done
    fi
    FINISHED=1
    echo "$(basename "$SCENARIO" .sh): the end"
}

# Mounting a stock file system counts as using it as an oracle.
mount() {
    command mount "$@" || return
    case " $* " in
        *" -t ext4 "*) asked ext4 ;;
        *" -t xfs "*) asked xfs ;;
    esac
}

# model COMMAND...: run a program that compares the contents with the expected ones.
model() { "$@" || return; asked model; }

# listing DIR: print every name below DIR with type, mode, owner, links, size, times and target, and
# a checksum of each file. The link count of DIR itself is omitted, because stock ext4 counts the
# directory that rext4 hides. Files over 64 MiB, which may be holes of some GiB, are read by
# contents.py.
listing() {
    ( cd "$1"
      stat -c '.|%F|%a|%u|%g|%s' .
      find . -mindepth 1 -path ./lost+found -prune -o -path ./.rext4 -prune -o -printf '%P|%y|%m|%U|%G|%n|%s|%T@|%A@|%C@|%l\n' | LC_ALL=C sort
      find . -path ./lost+found -prune -o -path ./.rext4 -prune -o -type f \( -size +65536k -fprint0 /tmp/large.list -o -print0 \) |
        LC_ALL=C sort -z | xargs -0 -r sha256sum
      [ ! -s /tmp/large.list ] || LC_ALL=C sort -z /tmp/large.list | xargs -0 -r python3 -S "${SCENARIO%/*}/contents.py" )
}

# extents DIR: print the block mapping of every file of more than 100 KB, according to FIEMAP.
# Contiguous extents are merged, since the number of extents returned per call does not matter.
extents() {
    ( cd "$1"
      find . -path ./lost+found -prune -o -type f -size +100k -print0 | LC_ALL=C sort -z | xargs -0 -r filefrag -v -e |
        python3 -c '
import re, sys
piece = None
for line in sys.stdin:
    numbers = [int(n) for n in re.findall(r"\d+", line)]
    flags = line.rsplit(":", 1)[-1].strip().split(",")
    # filefrag marks the last extent differently depending on whether it uses FIEMAP or FIBMAP.
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

# usage DIR: print the number of blocks and inodes, total and free, according to statfs. The blocks
# available to users are omitted, because stock ext4 reserves some for delayed allocation.
usage() { stat -f -c 'blocks %b free %f inodes %c free %d of %S bytes, names %l' "$1"; }

# same A B: two files must be equal.
same() { diff "$1" "$2" >/tmp/same.diff || { head -n 20 /tmp/same.diff; die "$1 and $2 differ"; }; }

# logged PATTERN: return whether the kernel log contains it. dmesg is not in a pipeline, because
# grep exits at the first match and the failure of the still writing dmesg would become the status.
logged() { asked log; grep -qE "$1" < <(dmesg); }

# said PATTERN: the log must contain it, with the device of DISK.
said() { logged "rext4: ${DISK##*/}: $1" || { dmesg | tail -5; die "the log does not say: $1"; }; }

# must_fail COMMAND...: the command must fail. Must be a separate statement, not after another
# command's && or ||. A command that does not exist or is killed by a signal does not count as
# failed.
must_fail() {
    local status=0 frame
    # The line in the scenario, also if it called one of the functions below.
    for ((frame = 1; frame < ${#BASH_SOURCE[@]}; frame++)); do
        [ "${BASH_SOURCE[frame]}" = "$0" ] || continue
        asked "must_fail ${BASH_LINENO[frame - 1]}"
        break
    done
    "$@" || status=$?
    [ "$status" != 0 ] || die "succeeded: $*"
    [ "$status" -lt 126 ] || die "ended with status $status: $*"
}

# needs_cleaning COMMAND...: the command must fail with EUCLEAN.
needs_cleaning() {
    must_fail "$@" >/tmp/out 2>&1
    grep -q 'Structure needs cleaning' /tmp/out || { cat /tmp/out; die "unexpected error: $*"; }
}

# bad_message COMMAND...: the command must fail with EBADMSG, which stock ext4 reports for a wrong
# checksum.
bad_message() {
    must_fail "$@" >/tmp/out 2>&1
    grep -q 'Bad message' /tmp/out || { cat /tmp/out; die "unexpected error: $*"; }
}

# lacks PATTERN FILE: the file must exist, and no line of it may match.
lacks() {
    local status=0
    grep -E "$1" "$2" || status=$?
    [ "$status" = 1 ] || die "$2 has $1, or cannot be read"
}

# clean IMAGE: e2fsck must find nothing wrong.
clean() {
    asked e2fsck
    e2fsck -fn "$1" >/tmp/e2fsck.log 2>&1 || { cat /tmp/e2fsck.log; die "e2fsck -fn of $1"; }
}

# need_modules PATH...: load modules of the kernel, given by their paths. In a kernel without
# modules they are built in.
need_modules() {
    local path folder; folder=/lib/modules/$(uname -r)/kernel
    [ -n "$(ls "$folder")" ] || return 0
    for path in "$@"; do insmod "$folder/$path.ko.xz"; done
}

# is_slow: return true if this kernel has expensive debugging options, so that the scenario should
# do less.
is_slow() { [ -e /proc/lockdep ]; }

# is_long: return true if the long form of the scenario is wanted.
is_long() { [ -n "${LONG:-}" ]; }
