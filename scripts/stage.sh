# SPDX-License-Identifier: GPL-2.0
# Sourced by demo and peers: they print each step, hide long output unless something fails, and end
# with a line for programs; after a failure, this is `NAME: failed: REASON`, with status 2, like
# that of make.
#
# STAGE has to be set to NAME before. $dir is a scratch directory, which is removed at the end.

why= doing="setting up" dir=
die() { why=${why:-$*}; printf 'error: %s\n' "$*" >&2; exit 2; }
finish() {
    local status=$?
    trap - EXIT
    [ -z "$dir" ] || rm -rf "$dir"
    [ "$status" = 0 ] && exit
    printf '%s: failed: %s\n' "$STAGE" "${why:-$doing}"
    exit 2
}
trap finish EXIT
trap 'why=interrupted; exit 2' INT TERM
now() { doing=$*; say "$*"; }

# quietly LOG COMMAND...: run a command and show its output only if it fails.
quietly() {
    local log=$TREE/build/$STAGE-$1.log; shift
    "$@" >"$log" 2>&1 || { tail -n 30 "$log" >&2; die "$doing (see $log)"; }
}

# set_stage [KERNEL]: build everything that a machine with this kernel (stock) needs, including the
# module and the command.
set_stage() {
    local kernel=${1:-stock}
    mkdir -p "$TREE/build"
    now "setting up the bench in $REXT4_CACHE (about 5 minutes the first time)"
    get_bench "$kernel"
    kernel_dir "$kernel"
    now "building the module for the kernel $(cat "$KERNEL/release") ($kernel)"
    quietly module "$TREE/scripts/build-module" "$kernel"
    now "building the rext4 command"
    quietly tools "$TREE/scripts/build-tools"
}

# Explains a status of scripts/vm if the guest itself printed no reason.
machine_failure() {
    case $1 in
        124) echo "the virtual machine took too long" ;;
        125) echo "the virtual machine died" ;;
        126) echo "the kernel printed warnings or errors" ;;
    esac
}
