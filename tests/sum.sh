#!/bin/sh
# sum.sh PROGRAM...: runs test programs (by $RUNNER, if set) and closes with one line, summed over theirs. One that
# crashes, hangs for ten minutes or ends without its own line "NAME: N passed, N failed, N skipped" is a failure.
passed=0 failed=0 skipped=0
export OMP_WAIT_POLICY=passive # waiting threads sleep: a busy machine or an emulator is slow enough
limit=$(command -v timeout >/dev/null && echo timeout 600)
for program; do
    output=$($limit $RUNNER "$program" 2>&1)
    status=$?
    printf '%s\n' "$output"
    counts=$(printf '%s\n' "$output" | sed -n 's/^.*: \([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p')
    counts=$(printf '%s\n' "$counts" | tail -n 1)
    set -- ${counts:-0 0 0}
    if [ -z "$counts" ] || { [ "$status" -ne 0 ] && [ "$2" -eq 0 ]; }; then
        echo "FAILED $program: exit status $status"
        failed=$((failed + 1))
    fi
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
done
[ "$passed" -gt 0 ] || failed=$((failed + 1)) # no test ran: nothing is shown
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
