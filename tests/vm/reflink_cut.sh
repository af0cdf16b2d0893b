# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: model e2fsck owners
# The power is cut at fifty points while files are cloned, written to and unshared, including the
# last shared ones. In each case the next mount finds every block of every file as of the last fsync
# or later, a correct reverse map and correct counts, and no staged blocks left behind; also if
# e2fsck replayed the journal first, so that no tree is trusted.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"
. "$(dirname "$0")/cut.bash"

mke2fs -q -F -t ext4 -b 1024 "$DISK" 48M
mount -t rext4 "$DISK" $MNT
settled $MNT
umount $MNT

begin_record 48
python3 "$HERE/reflink_cut.py" run $MNT /tmp/history
end_record

python3 "$HERE/logwrites.py" marks $LOG >/tmp/marks
shared=0
found() {
    local durable
    durable=$(awk -v point="$1" '$1 < point && $2 ~ /^step-/ { sub("step-", "", $2); last = $2 } END { print last + 0 }' /tmp/marks)
    model python3 "$HERE/reflink_cut.py" check $MNT /tmp/history "$durable" || die "entry $1: a file has changed"
    filefrag -v $MNT/file-* 2>/dev/null | grep -q shared && shared=$((shared + 1))
    return 0
}
leaked=0
by_others() {
    e2fsck -y -E journal_only "$1" >/tmp/e2fsck.log 2>&1 || [ $? -eq 1 ] || { cat /tmp/e2fsck.log; die "e2fsck -E journal_only"; }
    e2fsck -fn "$1" >/tmp/e2fsck.log 2>&1 || leaked=$((leaked + 1))
}
cuts found by_others
staged=$(dmesg | grep -c 'blocks left over from a crash were freed') || true
others=$(dmesg | grep -c 'the volume was written by others') || true
echo "of $POINTS images $shared shared blocks, and $staged had some set aside; others wrote to $others, in which $leaked had"
[ $shared -gt $((POINTS / 4)) ] && [ $shared -lt $POINTS ] && [ "$staged" -gt "$leaked" ] || die "too few points of each kind"
[ "$others" -gt $((POINTS / 4)) ] && [ $leaked -gt 0 ] || die "too few points without trusted trees"
finish
