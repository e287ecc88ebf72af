#!/bin/sh
# sum.sh PROGRAM...: runs test programs (by $RUNNER, if set), one on each processor at a time, prints what each says when it
# ends, then why tests were skipped, and closes with one line, summed over theirs. One that crashes, hangs for ten minutes
# (LIMIT seconds) or ends without its own line "NAME: N passed, N failed, N skipped" is a failure. Temporary files go into one folder,
# which is removed at the end, also by a signal.
export OMP_WAIT_POLICY=passive # waiting threads sleep: a busy machine or an emulator is slow enough
if [ "$1" = --one ]; then
    TMPDIR=$TMPDIR/$$ # short: paths are in messages
    export TMPDIR
    mkdir "$TMPDIR" || exit 1
    limit=$(command -v timeout >/dev/null && echo "timeout ${LIMIT:-600}")
    $limit $RUNNER "$2" >"$2.log" 2>&1 &
    echo $! >"$TMPDIR.pid"
    wait $!
    status=$?
    [ -d "$TMPDIR" ] || exit 0 # a signal has ended it all
    [ $status -eq 0 ] || find "$TMPDIR" -name captured -exec cat {} + >>"$2.log" 2>/dev/null
    rm -rf "$TMPDIR.pid" "$TMPDIR"
    echo "exit status $status" >>"$2.log"
    said=$(sed '$d; /^skipped: /d' "$2.log")
    [ -z "$said" ] || printf '%s\n' "$said"
    exit 0
fi

TMPDIR=$(mktemp -d "${TMPDIR:-/tmp}/minillama-XXXXXX") || exit 1
export TMPDIR
clean_up() {
    [ -z "$all" ] || kill "$all"
    for pid in "$TMPDIR"/*.pid; do [ -s "$pid" ] && kill "$(cat "$pid")" 2>/dev/null; done
    rm -rf "$TMPDIR"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

jobs=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
printf '%s\0' "$@" | xargs -0 -P "$jobs" -n 1 sh "$0" --one &
all=$!
wait $all
all=
for program; do cat "$program.log"; done |
    awk '/^skipped: .* \([0-9]+\)$/ { n = substr($NF, 2) + 0; sub(/ \([0-9]+\)$/, ""); count[$0] += n }
         END { for (reason in count) printf "%s (%d test%s)\n", reason, count[reason], count[reason] == 1 ? "" : "s" }'
passed=0 failed=0 skipped=0
for program; do
    status=$(sed -n '$s/^exit status //p' "$program.log")
    counts=$(sed -n 's/^.*: \([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p' "$program.log" | tail -n 1)
    set -- ${counts:-0 0 0}
    if [ -z "$counts" ] || { [ "${status:-1}" -ne 0 ] && [ "$2" -eq 0 ]; }; then
        echo "FAILED $program: exit status $status"
        failed=$((failed + 1))
    fi
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
done
[ "$passed" -gt 0 ] || failed=$((failed + 1)) # no test ran: nothing is shown
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
