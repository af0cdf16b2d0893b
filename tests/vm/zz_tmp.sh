# SPDX-License-Identifier: GPL-2.0
# kernels: stock
# processors: 1
# Files that are deleted while they are open, on volumes with and without an orphan file: a crash leaves them to the next
# mount, ours or stock ext4's; and what is wrong in the orphan file or the legacy list never stands against a mount.
. "$(dirname "$0")/lib.sh"

FS=${FS:-rext4}
COPY=$DISK2

# hold COMMANDS: runs them, lines of Python, in the background with `hold(N)`, which makes N files, opens and deletes them and
# returns the descriptors; they stay open until `let_go`.
hold() {
    rm -f /tmp/held; mkfifo /tmp/go
    python3 - $MNT "$1" <<'PY' &
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
top, commands = sys.argv[1:]
def hold(count):
    held = []
    for i in range(count):
        name = f"{top}/d/{i}"
        held.append(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        os.write(held[-1], b"x" * 2000)
        os.unlink(name)
        assert not os.path.exists(name)
    assert not os.listdir(f"{top}/d"), os.listdir(f"{top}/d")[:3]
    return held
exec(commands)
os.sync()
open("/tmp/held", "w").close()
open("/tmp/go").read()
PY
    HOLDER=$!
    while [ ! -e /tmp/held ]; do kill -0 $HOLDER || die "the files could not be deleted"; sleep 0.1; done
}
let_go() { echo >/tmp/go; wait $HOLDER; rm -f /tmp/go; }

# crash: copies what a power cut would leave now.
crash() { dd if="$DISK" of="$COPY" bs=1M count=16 iflag=direct oflag=direct status=none; }

# orphans IMAGE: how many inodes the legacy list has, on a volume with blocks of 1 KiB and descriptors of 64 bytes.
orphans() {
    python3 - "$1" <<'PY'
import struct, sys
image = open(sys.argv[1], "rb")
def word(at):
    image.seek(at)
    return struct.unpack("<I", image.read(4))[0]
each, ino, seen = word(1024 + 40), word(1024 + 232), set()
while ino:
    assert ino not in seen, "the legacy list has no end"
    seen.add(ino)
    group, index = divmod(ino - 1, each)
    ino = word(word(2048 + group * 64 + 8) * 1024 + index * 256 + 20)
print(len(seen))
PY
}

# replayed: replays the journal of the copy and nothing else, so that the list can be looked at.
replayed() { debugfs -w -R 'jr' "$COPY" >/dev/null 2>&1; }

# empty IMAGE: e2fsck has nothing to say, and as many blocks and inodes are free as before there were any files.
mke2fs -q -F -t ext4 -b 1024 -N 1024 -O orphan_file "$DISK" 16M
mount -t ext4 "$DISK" $MNT
mkdir $MNT/d
hold 'held = hold(30); os.close(held[5])'
crash
let_go
umount $MNT
mount -t rext4 "$COPY" $MNT
umount $MNT
clean "$COPY"
