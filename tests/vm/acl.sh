# SPDX-License-Identifier: GPL-2.0
# kernels: uml
# oracles: ext4 e2fsck
# Access control lists on a volume that stock ext4 filled read the same under rext4, and grant and
# deny the same to every user.
. "$(dirname "$0")/lib.sh"

fill() {
    mkdir "$1"
    local i
    for i in $(seq 1 6); do
        echo "$i" >"$1/file-$i"
        chmod 640 "$1/file-$i"
        chown 1001:2001 "$1/file-$i"
    done
    mkdir -m 770 "$1/dir" "$1/inherits"
    mkdir -m 700 "$1/open"
    echo inside >"$1/dir/inside"
    setfacl -m u:1002:rw "$1/file-1"
    setfacl -m u:1002:rwx,g:2002:r,m::rx "$1/file-2"
    setfacl -m u:1003:---,g:2003:---,o::rwx "$1/file-3"
    setfacl -m g:2002:rw,g:2003:x "$1/file-4"
    setfacl -m "$(for i in $(seq 5000 5060); do printf 'u:%d:rw,' "$i"; done)u:1004:r" "$1/file-5"
    setfacl -m u:1002:rx,g:2003:wx "$1/dir"
    setfacl -m d:u:1002:rx,d:g:2002:rwx,d:m::rx "$1/inherits"
    setfacl -m d:u::rwx,d:g::rx,d:o::- "$1/open"
    mknod "$1/null" c 1 3
    setfacl -m u:1002:- "$1/null"
    echo inherited >"$1/inherits/file"
    mkdir "$1/inherits/dir"
}

# rights DIR: list the permissions of each user on each file.
rights() {
    python3 - "$1" <<'PY'
import os, sys
os.chdir(sys.argv[1])
paths = sorted(os.path.join(top, name) for top, dirs, files in os.walk(".") for name in dirs + files)
for user in (1001, 1002, 1003, 1004, 5060, 9999):
    for groups in ((2001,), (2002,), (2003,), (9999,), (9999, 2002), (2001, 2003)):
        sys.stdout.flush()
        if os.fork() == 0:
            os.setgroups(groups[1:])
            os.setresgid(*[groups[0]] * 3)
            os.setresuid(*[user] * 3)
            for path in paths:
                may = "".join(c if os.access(path, m) else "-" for c, m in (("r", os.R_OK), ("w", os.W_OK), ("x", os.X_OK)))
                try:
                    with open(path, "rb") as f:
                        may += " reads"
                except OSError as error:
                    may += f" {error.errno}"
                print(user, groups, path, may)
            sys.stdout.flush()
            os._exit(0)
        assert os.wait()[1] == 0
PY
}
sorted() { ( cd "$1"; find . -path ./.rext4 -prune -o -print0 | LC_ALL=C sort -z ); }
lists() { ( cd "$1"; sorted . | xargs -0 getfacl -n ); }
names() { ( cd "$1"; sorted . | xargs -0 getfattr -d -m - ); }

# change DIR: change lists and modes in a directory, which is filled first if necessary.
change() {
    [ -d "$1" ] || fill "$1"
    setfacl -m u:1002:r,g:2002:rwx "$1/file-6"
    setfacl -x u:1002 "$1/file-1"
    setfacl -b "$1/file-2"
    chmod 604 "$1/file-3"
    chmod g-w,u+s "$1/file-4"
    setfacl -k "$1/inherits"
    setfacl -m d:u:1003:rw,d:g:2003:rx "$1/dir"
    ( umask 077
      echo new >"$1/dir/new"
      mkdir -m 751 "$1/dir/new-dir"
      echo deeper >"$1/dir/new-dir/file"
      mknod "$1/dir/new-dir/zero" c 1 5
      ln -s file "$1/dir/new-dir/link" )
    chown 1003:2001 "$1/dir/new"
}

# all_of TYPE: list everything about the volume as mounted with this file system type.
all_of() {
    lists $MNT >/tmp/$1.list
    rights $MNT/d >/tmp/$1.rights
    names $MNT >/tmp/$1.names 2>&1
}
all_same() {
    local what
    for what in list rights names; do same /tmp/stock.$what /tmp/ours.$what; done
}

check() {
    echo "checking: mke2fs $*"
    mke2fs -q -F "$@" "$DISK" 64M
    mount -t ext4 "$DISK" $MNT
    chmod 755 $MNT
    fill $MNT/d
    umount $MNT
    mount -t ext4 "$DISK" $MNT
    all_of stock
    umount $MNT
    mount -t rext4 "$DISK" $MNT
    all_of ours
    all_same
    [ "$(grep -c '^user:[0-9]' /tmp/ours.list)" -gt 60 ] || die "too few entries for a meaningful test"

    echo "  what is made elsewhere obeys the mask of who makes it"
    ( umask 027; echo x >$MNT/d/masked; mkdir $MNT/d/masked-dir )
    [ "$(stat -c %a $MNT/d/masked) $(stat -c %a $MNT/d/masked-dir)" = "640 750" ] || die "wrong modes"
    ( umask 0; echo x >$MNT/d/open/new )
    [ "$(stat -c %a $MNT/d/open/new)" = 640 ] || die "mode $(stat -c %a $MNT/d/open/new)"

    echo "  lists that are written hold"
    change $MNT/d
    all_of ours
    umount $MNT
    mount -t rext4 "$DISK" $MNT
    lists $MNT >/tmp/again.list
    same /tmp/ours.list /tmp/again.list
    umount $MNT
    mount -t ext4 "$DISK" $MNT
    all_of stock
    all_same
    change $MNT/e
    umount $MNT
    mount -t rext4 "$DISK" $MNT
    change $MNT/f
    ( cd $MNT/e; lists . ) >/tmp/stock.list
    ( cd $MNT/f; lists . ) >/tmp/ours.list
    same /tmp/stock.list /tmp/ours.list
    umount $MNT
    clean "$DISK"
}

check -t ext4 -b 1024
check -t ext4 -b 4096 -I 128
finish
