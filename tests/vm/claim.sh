# SPDX-License-Identifier: GPL-2.0
# kernels: stock
# oracles: log
# The module does not take over the name ext4 from stock ext4: loading it fails then, and leaves
# nothing behind.
. "$(dirname "$0")/lib.sh"

rmmod rext4
dmesg -C
must_fail insmod "$MODULE" claim_ext4=1 2>/tmp/out
grep -q 'busy' /tmp/out || { cat /tmp/out; die "unexpected error"; }
logged 'rext4: the file system type ext4 is registered already' || { dmesg | tail -5; die "the log does not say so"; }
must_fail grep -qw rext4 /proc/filesystems
insmod "$MODULE"
grep -qw rext4 /proc/filesystems || die "not registered"
finish
