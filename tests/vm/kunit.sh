#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
# kernels: uml debug/2
# oracles: ktap
# Results of the module's KUnit suites, which ran when the module was loaded. Loading succeeds even
# if a test fails, and a suite that is not compiled in is silently absent, so the required suites
# are listed here.
. "$(dirname "$0")/lib.sh"

SUITES="rext4_abi rext4_acl rext4_counts rext4_engine rext4_hooks rext4_locks rext4_pinned rext4_rmap rext4_scan rext4_tasks rext4_tree_file"
RESULTS=/sys/kernel/debug/kunit

# judge NAME FILE: the KTAP output of a suite must have its plan, a passed line for each of its
# tests, and nothing else.
judge() {
    asked ktap
    awk -v suite="$1" '
        { sub(/^ +/, "") }
        /^# Subtest: / { inside = 1; next }
        /^1\.\.[0-9]+$/ && inside && !planned { planned = substr($0, 4) + 0; next }
        /^(not )?ok [0-9]+/ {
            name = $0; sub(/^(not )?ok [0-9]+ (- )?/, "", name); sub(/ #.*$/, "", name)
            # The last line summarizes the suite and has its name.
            if (name == suite) { summed = $1 == "ok" && !/# SKIP/; next }
            if ($1 != "ok") { print suite ": failed: " name; bad = 1 }
            else if (/# SKIP/) { print suite ": skipped: " name; bad = 1 }
            else passed++
        }
        END {
            if (!planned || passed != planned) { print suite ": " passed + 0 " of " planned + 0 " tests passed"; bad = 1 }
            if (!summed) { print suite ": did not end well"; bad = 1 }
            if (!bad) print suite ": " passed " passed"
            exit bad
        }' "$2"
}

complaints=0 tests=0
for suite in $SUITES; do
    if [ ! -e "$RESULTS/$suite/results" ]; then
        echo "$suite: is not there"
        complaints=$((complaints + 1))
    elif judge "$suite" "$RESULTS/$suite/results" >/tmp/verdict; then
        cat /tmp/verdict
        tests=$((tests + $(sed 's/.*: \([0-9]*\) passed/\1/' /tmp/verdict)))
    else
        cat /tmp/verdict "$RESULTS/$suite/results"
        complaints=$((complaints + 1))
    fi
done
# A new suite must be listed above, or its absence would go unnoticed.
for there in "$RESULTS"/rext4_*; do
    case " $SUITES " in *" ${there##*/} "*) ;; *) die "${there##*/} is not named in this file" ;; esac
done
# A failed assertion in a thread other than the test's own does not change the result.
if dmesg | grep -B2 'ASSERTION FAILED\|not reported to KUnit\|kunit: '; then die "an assertion failed"; fi
[ "$complaints" = 0 ] || die "$complaints suites"
echo "kunit: $(wc -w <<<"$SUITES") suites, $tests tests passed"
finish
