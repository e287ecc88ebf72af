#!/bin/sh
# sum.sh PROGRAM...: runs test programs (by $RUNNER, if set), one on each processor at a time, and closes with one line, summed
# over theirs. One that crashes, hangs for ten minutes or ends without its own line "NAME: N passed, N failed, N skipped" is
# a failure.
export OMP_WAIT_POLICY=passive # waiting threads sleep: a busy machine or an emulator is slow enough
if [ "$1" = --one ]; then
    limit=$(command -v timeout >/dev/null && echo timeout 600)
    $limit $RUNNER "$2" >"$2.log" 2>&1
    echo "exit status $?" >>"$2.log"
    exit 0
fi

jobs=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
printf '%s\n' "$@" | xargs -P "$jobs" -n 1 sh "$0" --one
passed=0 failed=0 skipped=0
for program; do
    sed '$d' "$program.log"
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
