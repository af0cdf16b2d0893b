# SPDX-License-Identifier: GPL-2.0
# kernels: uml/2
# oracles: e2fsck owners
# A check and a rebuild with almost no memory: the collected records are spilled to a tmpfs file,
# next to a writer that never stops. Neither starves the other.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

pieces=60000
is_slow && pieces=20000
mkfs.ext4 -q -F -b 1024 "$DISK" 500M
mount -t rext4 "$DISK" $MNT
mkdir $MNT/w
python3 - $MNT/fragments $pieces <<'PY'
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
count = int(sys.argv[2])
os.ftruncate(fd, 2 * count * 1024)
for i in range(count):
    os.pwrite(fd, bytes(1024), 2 * i * 1024)
os.fsync(fd)
PY
settled $MNT

# Writes, truncates and removes files until it is killed, and counts the operations.
cat >/tmp/writer.py <<'PY'
import os, random, sys
random.seed(7)
done = os.open("/tmp/done", os.O_WRONLY | os.O_CREAT)
count = 0
while not os.path.exists("/tmp/stop"):
    name = f"{sys.argv[1]}/{random.randrange(50)}"
    what = random.random()
    if what < 0.6:
        with open(name, "ab") as f:
            f.write(random.randbytes(random.randrange(1, 20000)))
    elif what < 0.8 and os.path.exists(name):
        os.truncate(name, random.randrange(0, 20000))
    elif os.path.exists(name):
        os.unlink(name)
    count += 1
    os.pwrite(done, b"%12d" % count, 0)
PY
rm -f /tmp/stop /tmp/done
python3 /tmp/writer.py $MNT/w & writer=$!
until [ -s /tmp/done ]; do sleep 0.1; done

# field NAME: print a field of the last result.
field() { python3 -c 'import json, sys; print(json.load(open("/tmp/scrub.json"))[sys.argv[1]])' "$1"; }

written=0
for how in "" "--repair --force" "" "--repair --force" "--repair --force --memory 1000000"; do
    case $how in *--memory*) limit=() ;; *) limit=(--memory 64) ;; esac
    before=$(cat /tmp/done)
    # shellcheck disable=SC2086
    "$REXT4" scrub $how "${limit[@]}" --json $MNT >/tmp/scrub.json || die "scrub $how: status $?"
    written=$((written + $(cat /tmp/done) - before))
    cat /tmp/scrub.json
    [ "$(field records)" -gt $pieces ] || die "scrub $how: too few records"
    if [ ${#limit[@]} = 0 ]; then
        [ "$(field spilled)" = 0 ] || die "scrub $how: memory was sufficient"
    else
        [ "$(field memory)" -gt 0 ] && [ "$(field memory)" -le 65536 ] || die "scrub $how: $(field memory) bytes of 64 KiB"
        [ "$(field spilled)" -gt 0 ] || die "scrub $how: nothing went to the file"
    fi
done
[ $written -gt 0 ] || die "the writer was stopped"
kill -0 $writer || die "the writer failed"
touch /tmp/stop
wait $writer || die "the writer failed"
"$REXT4" scrub $MNT
umount $MNT
clean "$DISK"
owned "$DISK"
finish
