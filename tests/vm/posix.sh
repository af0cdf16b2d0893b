# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# needs: posix
# oracles: model e2fsck owners
# long: 1200
# What POSIX says of each system call on files, by pjdfstest, and random reads, writes, mapped
# writes, sizes, holes, preallocation and copies within one file, by fsx, with blocks of 1 and 4
# KiB.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/judge.bash"

# The users that pjdfstest acts as.
grep -q ^tests: /etc/passwd || echo tests:x:4242:4242::/:/bin/false >>/etc/passwd
grep -q ^tests: /etc/group || echo tests:x:4242: >>/etc/group
mkdir -p /tmp/other
mount -t tmpfs other /tmp/other
# The C library takes the maximum number of links, 65000, from the name under which the driver of
# ext4 shows the volume.
if [ -d /sys/fs/ext4 ]; then
    mount -t tmpfs other /sys/fs/ext4
    mkdir "/sys/fs/ext4/${DISK##*/}"
fi
cat >/tmp/pjdfstest.toml <<'TOML'
[features]
secondary_fs = "/tmp/other"
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.03
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["tests", "tests"]]
TOML

# volume SIZE: make and mount a volume with blocks of that size.
volume() {
    mke2fs -q -F -t ext4 -b "$1" "$DISK" 1G
    mount -t $FS "$DISK" $MNT
    [ "$FS" != rext4 ] || settled $MNT
}
end() {
    umount $MNT
    clean "$DISK"
    owned "$DISK"
}

echo "pjdfstest"
volume 4096
chmod 755 $MNT
# pjdfstest SKIPPED [OPTION]...: run it; no test may fail, and no others may be skipped.
pjdfstest() {
    local skipped=$1; shift
    model /share/bin/pjdfstest -c /tmp/pjdfstest.toml -p $MNT "$@" >/tmp/pjdfstest.out 2>&1 ||
        { grep -A 3 -a FAILED /tmp/pjdfstest.out || true; tail -n 20 /tmp/pjdfstest.out; die "pjdfstest"; }
    grep -a Summary /tmp/pjdfstest.out
    grep -aq "Summary: 0 failed, $skipped skipped, [1-9]" /tmp/pjdfstest.out || { grep -aA 1 skipped /tmp/pjdfstest.out; die "tests were skipped"; }
}
pjdfstest 13
# Those that remount the volume read-only. A process of their own, since others leave files open.
sed -i 's/^allow_remount = .*/allow_remount = true/' /tmp/pjdfstest.toml
pjdfstest 0 erofs
end

# fsx NAME OPERATIONS <SETTINGS: run fsx with these settings.
fsx() {
    cat >/tmp/fsx.toml
    rm -rf /tmp/fsx; mkdir /tmp/fsx
    model /share/bin/fsx -f /tmp/fsx.toml -N "$2" -S "$seed" -P /tmp/fsx $MNT/"$1" >/tmp/fsx.out 2>&1 ||
        { tail -n 40 /tmp/fsx.out; die "fsx: $1, seed $seed, $2 operations, blocks of $size bytes"; }
}
seeds=1 operations=3000
if is_long; then seeds=20 operations=10000; fi
for size in 1024 4096; do
    volume $size
    for seed in $(seq $seeds); do
        echo "fsx: seed $seed, blocks of $size bytes"
        fsx buffered $operations <<'TOML'
[weights]
close_open = 1
invalidate = 2
mapread = 0
mapwrite = 0
fsync = 1
fdatasync = 1
TOML
        fsx mapped $operations <<'TOML'
[weights]
invalidate = 1
mapread = 10
mapwrite = 10
read = 2
write = 2
truncate = 5
fsync = 1
TOML
        fsx holes $operations <<'TOML'
[weights]
invalidate = 2
punch_hole = 10
posix_fallocate = 10
sendfile = 3
posix_fadvise = 3
fsync = 1
TOML
        fsx copies $operations <<'TOML'
[opsize]
max = 65536
align = 4096
[weights]
close_open = 1
invalidate = 2
copy_file_range = 20
punch_hole = 3
fsync = 1
TOML
        # The size never changes.
        truncate -s 256K $MNT/block
        fsx block $operations <<'TOML'
blockmode = true
[opsize]
min = 512
max = 65536
align = 512
[weights]
truncate = 0
invalidate = 5
fdatasync = 2
TOML
    done
    end
done
finish
