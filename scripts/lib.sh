# SPDX-License-Identifier: GPL-2.0
# Shared by the bench's scripts: where products are kept, how each is made once, and how to enter
# the sysroot.
#
# Products that are expensive to make are kept in $REXT4_CACHE (default ~/.cache/rext4), one
# directory each, whose name ends with a hash of its inputs. A product is made in a scratch
# directory under a lock and then renamed: a directory that exists is complete, and concurrent runs
# wait for each other instead of making it twice.

set -euo pipefail

REXT4_CACHE=${REXT4_CACHE:-${HOME:-/root}/.cache/rext4}
TREE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
KERNEL_SERIES=7.2
JOBS=$(nproc)
mkdir -p "$REXT4_CACHE"

say() { printf '%s  %s\n' "$(date +%H:%M:%S)" "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
hash_of() { sha256sum | cut -c1-12; }

# need COMMAND=PACKAGE...: install the Debian packages of missing commands.
need() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -eq 0 ] && return
    [ "$(id -u)" = 0 ] || die "missing packages: ${missing[*]}; install them, or run as root"
    say "installing ${missing[*]}"
    # One at a time: concurrent runs wait for the package lock.
    exec 7>"$REXT4_CACHE/apt.lock"; flock 7
    apt-get -qq update >/dev/null 2>&1 || apt-get update >&2
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=600 install --no-install-recommends \
        "${missing[@]}" >"$REXT4_CACHE/apt.log" 2>&1 || { tail -20 "$REXT4_CACHE/apt.log" >&2; die "apt-get install failed"; }
    flock -u 7
}

# Print the Debian archive that this machine installs packages from.
mirror() {
    local uri
    uri=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 2>/dev/null |
        awk '$2 ~ /^(bookworm|trixie|forky)$/ && $3 == "main" { print $1; exit }')
    [ -n "$uri" ] || uri=$(cat /etc/apt/sources.list.d/*.sources 2>/dev/null | awk '/^URIs:/ { print $2; exit }')
    [ -n "$uri" ] || uri=$(awk '$1 == "deb" { for (i = 2; i <= NF; i++) if ($i ~ /:\/\//) { print $i; exit } }' /etc/apt/sources.list)
    [ -n "$uri" ] || die "no Debian archive in this machine's apt configuration"
    printf '%s\n' "${uri%/}"
}

# make_once NAME KEY MAKER: set $MADE to the product's directory, calling `MAKER SCRATCH_DIR` if it
# does not exist yet.
make_once() {
    local name=$1 key=$2 maker=$3 scratch
    MADE=$REXT4_CACHE/$name-$key
    [ -d "$MADE" ] && return
    exec 8>"$REXT4_CACHE/$name-$key.lock"
    flock 8
    if [ ! -d "$MADE" ]; then
        scratch=$REXT4_CACHE/.making-$name-$key
        rm -rf --one-file-system "$scratch"
        mkdir -p "$scratch"
        say "making $name (kept in $MADE)"
        local since=$SECONDS
        "$maker" "$scratch"
        mv "$scratch" "$MADE"
        say "made $name in $((SECONDS - since)) s"
    fi
    flock -u 8
}

# in_sysroot SYSROOT COMMAND: run a shell command inside it, in a separate mount namespace. BINDS
# lists FROM:TO pairs.
in_sysroot() {
    local root=$1; shift
    need mount=mount
    unshare --mount --propagation private env ROOT="$root" BINDS="${BINDS:-}" bash -euc '
        for pair in $BINDS; do
            mkdir -p "$ROOT${pair#*:}"
            mount --bind "${pair%%:*}" "$ROOT${pair#*:}"
        done
        mount -t proc proc "$ROOT/proc"
        mount --rbind /dev "$ROOT/dev"
        # Package clients inside use the name resolution and the CA certificates of this machine.
        for file in /etc/resolv.conf /etc/hosts /etc/ssl/certs; do
            [ "$file" != /etc/ssl/certs ] || [ -s "$file/ca-certificates.crt" ] || continue
            if [ -e "$file" ]; then
                [ -e "$ROOT$file" ] || touch "$ROOT$file"
                mount --bind "$file" "$ROOT$file"
            fi
        done
        exec chroot "$ROOT" /usr/bin/env -i HOME=/root TERM=dumb LANG=C.UTF-8 \
            PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin ${KEEP_ENV:-} bash -euc "$*"
    ' _ "$@"
}
