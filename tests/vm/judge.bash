# SPDX-License-Identifier: GPL-2.0
# What the writing scenarios share: the type they mount (FS=ext4 runs them against stock ext4, which tries the scenario
# itself), and the judge of who owns what.

FS=${FS:-rext4}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# owned IMAGE: the block bitmaps call used what the inodes and the layout use, and nothing else.
owned() { python3 "$HERE/owners.py" "$1" >/tmp/owners.list || die "the block bitmaps of $1 do not match its mappings"; }
