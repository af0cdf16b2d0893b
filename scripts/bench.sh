# SPDX-License-Identifier: GPL-2.0
# The products that builds and tests need, and how each is made. Sourced after lib.sh. Each `get_X`
# sets $X to the product's directory, and makes the product (and its prerequisites) if it does not
# exist.

# Both the build environment and the guest's userland.
SYSROOT_PACKAGES=(make gcc libc6-dev flex bison bc libelf-dev libssl-dev python3 perl xz-utils zstd cargo rustc rust-src
    rustfmt rust-clippy bindgen clang lld llvm libclang-dev kmod cpio pahole rsync git ca-certificates e2fsprogs xfsprogs
    dmsetup attr acl procps util-linux busybox-static duperemove)

get_sysroot() {
    [ -n "${SYSROOT:-}" ] && return
    local key
    key=$(printf '%s\n' trixie 1 "${SYSROOT_PACKAGES[@]}" | hash_of)
    make_once sysroot "$key" make_sysroot
    SYSROOT=$MADE SYSROOT_KEY=$key
}

make_sysroot() {
    need mmdebstrap=mmdebstrap
    local packages
    packages=$(IFS=,; printf '%s' "${SYSROOT_PACKAGES[*]}")
    mmdebstrap --quiet --dpkgopt=force-unsafe-io --variant=minbase --include="$packages" trixie "$1" \
        "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) trixie main" >&2
}

# Debian's kernel: image, modules, headers, configuration and source of one version, the newest for
# which all of them exist.
get_debs() {
    [ -n "${DEBS:-}" ] && return
    make_once kernel-packages "$(printf '%s\n' "$KERNEL_SERIES" 1 | hash_of)" make_debs
    DEBS=$MADE
    KVERSION=$(cat "$DEBS/version")
    KABI=$(cat "$DEBS/abi")
}

make_debs() {
    need apt-get=apt dpkg-deb=dpkg
    local apt=$1/apt opts abi version
    mkdir -p "$apt"/{lists,cache/archives}/partial
    printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s trixie-backports main\n' "$(mirror)" >"$apt/sources.list"
    opts=(-qq -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$apt/lists"
        -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root)
    apt-get "${opts[@]}" update >&2
    # linux-binary-VERSION+deb13-amd64 contains the ABI name; the same version of the source package
    # must exist as well.
    while read -r abi; do
        version=$(apt-cache "${opts[@]}" show "linux-binary-$abi" | awk '/^Version:/ { print $2; exit }')
        if apt-cache "${opts[@]}" show "linux-source-$KERNEL_SERIES=$version" >/dev/null 2>&1; then
            ( cd "$1" && apt-get "${opts[@]}" download "linux-source-$KERNEL_SERIES=$version" "linux-binary-$abi=$version" \
                "linux-modules-$abi=$version" "linux-headers-$abi=$version" "linux-base-$abi=$version" >&2 ) || continue
            printf '%s\n' "$abi" >"$1/abi"
            printf '%s\n' "$version" >"$1/version"
            rm -rf "$apt"
            return
        fi
    done < <(apt-cache "${opts[@]}" pkgnames "linux-binary-$KERNEL_SERIES." | sed 's/^linux-binary-//' |
        grep -E "^$KERNEL_SERIES\.[0-9]+\+deb13-amd64\$" | sort -rV)
    die "the archive has no linux $KERNEL_SERIES whose image, modules, headers and source agree"
}

get_source() {
    [ -n "${SOURCE:-}" ] && return
    get_debs
    make_once linux-source "$(printf '%s\n' "$KVERSION" | hash_of)" make_source
    SOURCE=$MADE
}

make_source() {
    need xz=xz-utils
    dpkg-deb --fsys-tarfile "$DEBS"/linux-source-*.deb |
        tar -xO "./usr/src/linux-source-$KERNEL_SERIES.tar.xz" | xz -dc -T0 | tar -x --strip-components=1 -C "$1"
}

# Paths of the kernel's source and build tree inside the sysroot. Fixed, because they are recorded
# in files of the build trees.
SRC_IN=/usr/src/linux
out_in() { printf '/usr/src/build-%s' "$1"; }

# Debian's unmodified kernel, and a build tree with the `rust/` metadata that its headers lack.
# Modules built against it load into the unmodified kernel, since the same compiler and flags
# produce the same symbol hashes.
get_stock() {
    [ -n "${STOCK:-}" ] && return
    get_sysroot; get_source
    make_once stock "$(printf '%s\n' "$KVERSION" "$SYSROOT_KEY" 1 | hash_of)" make_stock
    STOCK=$MADE
}

make_stock() {
    local deb
    mkdir -p "$1"/{build,debian}
    for deb in binary modules headers base; do dpkg-deb -x "$DEBS"/linux-$deb-*.deb "$1/debian"; done
    cp "$1/debian/usr/lib/modules/$KABI/config" "$1/build/.config"
    cp "$1/debian/usr/lib/modules/$KABI/vmlinuz" "$1/vmlinuz"
    sed -i 's/^CONFIG_SYSTEM_TRUSTED_KEYS=.*/CONFIG_SYSTEM_TRUSTED_KEYS=""/' "$1/build/.config"
    local out; out=$(out_in stock)
    BINDS="$SOURCE:$SRC_IN $1/build:$out" in_sysroot "$SYSROOT" "
        make -C $SRC_IN O=$out olddefconfig
        make -C $SRC_IN O=$out -j$JOBS LOCALVERSION=${KABI#"${KABI%%+*}"} modules_prepare" >"$1/log" 2>&1 ||
        { tail -30 "$1/log" >&2; die "the stock kernel's build tree failed"; }
    cp "$1/debian/usr/src/linux-headers-$KABI/Module.symvers" "$1/build/"
    printf '%s\n' "$KABI" >"$1/release"
    # Keep only the modules of Debian's packages; the guest's initramfs takes its modules from them.
    mv "$1/debian/usr/lib/modules/$KABI" "$1/modules"
    rm -rf "$1/debian"
}

# A kernel with all debugging options: KUnit, lockdep, KASAN, kmemleak, fault injection.
get_debug() {
    [ -n "${DEBUG:-}" ] && return
    get_sysroot; get_source
    make_once debug "$( { printf '%s\n' "$KVERSION" "$SYSROOT_KEY" 1; cat "$TREE/scripts/debug.config"; } | hash_of)" make_debug
    DEBUG=$MADE
}

make_debug() {
    mkdir -p "$1/build"
    cp "$TREE/scripts/debug.config" "$1/fragment"
    local out; out=$(out_in debug)
    BINDS="$SOURCE:$SRC_IN $1/build:$out" in_sysroot "$SYSROOT" "
        make -C $SRC_IN O=$out LLVM=1 tinyconfig
        cat >$out/fragment
        cd $SRC_IN && scripts/kconfig/merge_config.sh -m -O $out $out/.config $out/fragment
        make -C $SRC_IN O=$out LLVM=1 olddefconfig
        grep -E '^CONFIG' $out/fragment | grep -vxF -f $out/.config | sed 's/^/not taken: /'" <"$1/fragment" >"$1/log" 2>&1 || true
    if grep '^not taken: .*=y' "$1/log" >&2; then die "the debug kernel's configuration was not applied completely"; fi
    say "compiling the debug kernel (about 10 minutes on two cores)"
    BINDS="$SOURCE:$SRC_IN $1/build:$out" in_sysroot "$SYSROOT" "
        make -C $SRC_IN O=$out LLVM=1 -j$((JOBS + 1)) bzImage modules" >>"$1/log" 2>&1 ||
        { tail -30 "$1/log" >&2; die "the debug kernel failed to build"; }
    cp "$1/build/arch/x86/boot/bzImage" "$1/vmlinuz"
    cp "$1/build/include/config/kernel.release" "$1/release"
}

# User Mode Linux from the same source: runs as a process of this machine, at native speed. Linked
# statically, since it is built with the C library of the sysroot.
get_uml() {
    [ -n "${UML:-}" ] && return
    get_sysroot; get_source
    make_once uml "$( { printf '%s\n' "$KVERSION" "$SYSROOT_KEY" 2; cat "$TREE"/scripts/uml{.config,-crc32.h}; } | hash_of)" make_uml
    UML=$MADE
}

make_uml() {
    mkdir -p "$1/build/crc"
    cp "$TREE/scripts/uml-crc32.h" "$1/build/crc/crc32.h"
    cp "$TREE/scripts/uml.config" "$1/fragment"
    local out; out=$(out_in uml)
    BINDS="$SOURCE:$SRC_IN $1/build:$out" in_sysroot "$SYSROOT" "
        make -C $SRC_IN O=$out ARCH=um tinyconfig
        cat >$out/fragment
        cd $SRC_IN && ARCH=um scripts/kconfig/merge_config.sh -m -O $out $out/.config $out/fragment
        make -C $SRC_IN O=$out ARCH=um olddefconfig
        grep -E '^CONFIG' $out/fragment | grep -vxF -f $out/.config | sed 's/^/not taken: /'" <"$1/fragment" >"$1/log" 2>&1 || true
    if grep '^not taken: .*=y' "$1/log" >&2; then die "the UML kernel's configuration was not applied completely"; fi
    say "compiling User Mode Linux (about 5 minutes on two cores)"
    BINDS="$SOURCE:$SRC_IN $1/build:$out" in_sysroot "$SYSROOT" "
        make -C $SRC_IN O=$out ARCH=um CFLAGS_crc32-main.o='-DCONFIG_CRC32_ARCH=1 -I$out/crc' -j$((JOBS + 1)) linux modules" >>"$1/log" 2>&1 ||
        { tail -30 "$1/log" >&2; die "the UML kernel failed to build"; }
    cp "$1/build/linux" "$1/linux"
    cp "$1/build/include/config/kernel.release" "$1/release"
}

# own_functions KERNEL_DIR: print the names of the functions of a User Mode Linux kernel, without
# those that make it a guest (arch/um) and those of the C library, which is linked into it.
own_functions() {
    local out; out=$(out_in uml)
    # shellcheck disable=SC2016
    BINDS="$1/build:$out" in_sysroot "$SYSROOT" "cd $out"'
        functions() { xargs nm 2>/dev/null | sed -n "s/^[0-9a-f]* [tTwW] //p" | LC_ALL=C sort -u; }
        LC_ALL=C comm -23 <(echo vmlinux.o | functions) <(find arch/um arch/x86/um -name "*.o" | grep -v /vdso/ | functions)'
}

# The guest boots from a small initramfs that loads the drivers for the root disk and mounts a
# writable overlay on top of it.
get_initramfs() {
    get_sysroot
    make_once initramfs "$( { printf '%s\n' "$KERNEL" "$SYSROOT_KEY" 1; cat "$TREE/scripts/guest-init"; } | hash_of)" make_initramfs
    INITRAMFS=$MADE
}

make_initramfs() {
    local root=$1/.initramfs name file
    mkdir -p "$root"/{bin,modules,proc,sys,dev,base,over,new}
    cp "$SYSROOT/usr/bin/busybox" "$root/bin/"
    cp "$TREE/scripts/guest-init" "$root/init"
    chmod +x "$root/init"
    : >"$root/modules/order"
    if [ -d "$KERNEL/modules" ]; then
        for name in virtio_blk crc16 crc32c-cryptoapi mbcache jbd2 ext4 netfs 9pnet 9pnet_virtio 9p overlay; do
            file=$(find "$KERNEL/modules" -name "$name.ko*" | head -n 1)
            [ -n "$file" ] || continue
            case $file in
                *.xz) xz -dc "$file" >"$root/modules/$name.ko" ;;
                *) cp "$file" "$root/modules/$name.ko" ;;
            esac
            printf '%s.ko\n' "$name" >>"$root/modules/order"
        done
    fi
    ( cd "$root" && find . | "$SYSROOT/usr/bin/busybox" cpio -o -H newc 2>/dev/null | gzip -1 ) >"$1/initramfs.gz"
    rm -rf "$root"
}

# The sysroot as a read-only disk image for the guest.
get_guest() {
    [ -n "${GUEST:-}" ] && return
    get_sysroot
    make_once guest "$(printf '%s\n' "$SYSROOT_KEY" 1 | hash_of)" make_guest
    GUEST=$MADE
}

make_guest() {
    need mke2fs=e2fsprogs
    truncate -s 6G "$1/root.img"
    PATH=$PATH:/sbin:/usr/sbin mke2fs -q -t ext4 -O ^has_journal -m 0 -d "$SYSROOT" "$1/root.img"
}

# pjdfstest and fsx, as published by their authors, built in the sysroot.
POSIX_CRATES=(pjdfstest@0.2.2 fsx@0.3.2)
get_posix() {
    [ -n "${POSIX:-}" ] && return
    get_sysroot
    make_once posix "$(printf '%s\n' "${POSIX_CRATES[@]}" "$SYSROOT_KEY" 1 | hash_of)" make_posix
    POSIX=$MADE
}

make_posix() {
    mkdir -p "$1/target" "$REXT4_CACHE/cargo"
    KEEP_ENV="CARGO_HOME=/var/cache/cargo CARGO_TARGET_DIR=/var/cache/posix/target" \
    BINDS="$REXT4_CACHE/cargo:/var/cache/cargo $1:/var/cache/posix" in_sysroot "$SYSROOT" \
        "cargo install --quiet --locked --no-track --root /var/cache/posix ${POSIX_CRATES[*]}" >"$1/log" 2>&1 ||
        { tail -n 30 "$1/log" >&2; die "pjdfstest and fsx failed to build"; }
    rm -rf "$1/target"
}

# For a trap: terminates this script and all its children.
end_all() { trap "" TERM; kill 0; exit 130; }

# at_once COMMAND...: run the commands in parallel; fail if one of them fails. An interrupt
# terminates them all.
at_once() {
    local command pid pids=() status=0 traps
    traps=$(trap -p INT TERM)
    trap end_all INT TERM
    for command; do "$command" & pids+=($!); done
    for pid in "${pids[@]}"; do wait "$pid" || status=1; done
    trap - INT TERM
    eval "$traps"
    return "$status"
}

# get_bench KERNEL...: everything that virtual machines with these kernels need. Much of the work is
# single-threaded, so the kernels are built in parallel; the guest's disk is made before, because
# kernel builds keep scratch files in the sysroot.
get_bench() {
    local kernel
    at_once get_guest get_source
    at_once "${@/#/get_}"
    # Repeat this here: the parallel commands set their variables in other processes.
    get_guest
    for kernel; do "get_$kernel"; done
}

# kernel_dir NAME: set $KERNEL to that kernel's directory, and $INITRAMFS to that of its initramfs.
kernel_dir() {
    case $1 in
        stock) get_stock; KERNEL=$STOCK ;;
        debug) get_debug; KERNEL=$DEBUG ;;
        uml) get_uml; KERNEL=$UML ;;
        *) die "no kernel is named '$1' (stock, debug, uml)" ;;
    esac
    get_initramfs
}
