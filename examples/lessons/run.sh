#!/bin/sh
# Runs lessons and exercises for the Makefile:
#   run.sh all PROGRAM...                each with its picture; prints what failed, and last how many passed
#   run.sh exercise PROGRAM SOURCE       one student's copy
#   run.sh grade FOLDER PART:EXERCISE... a table of the parts: passed or not
# RUNNER is a command that runs the programs.
export LC_ALL=C
action=$1
shift

# Whether a program ended as it must: a student's copy, blank_NN, as long as nothing is written into it, with WRONG checks.
ended_well() {
    case $1 in
    blank_*) [ "$2" -eq 1 ] && grep -q '^  WRONG' "$3" ;;
    *) [ "$2" -eq 0 ] ;;
    esac
}

all() {
    passed=0 failed=0
    for program; do
        name=${program##*/} folder=${program%/*}/lessons
        output=$folder/$name.txt
        $RUNNER "$program" "$folder/${name##*_}.svg" >"$output" 2>&1
        if ended_well "$name" $? "$output"; then
            passed=$((passed + 1))
            echo "$name: $(tail -n 1 "$output")"
        else
            failed=$((failed + 1))
            echo "FAILED $name" && cat "$output"
        fi
    done
    echo "$passed passed, $failed failed, 0 skipped"
    [ "$failed" -eq 0 ]
}

exercise() {
    $RUNNER "$1" && echo "done: every check of $2 holds" && return
    echo "not yet: write into $2 where it says \"your turn\", and run the same command again"
    return 1
}

grade() {
    folder=$1 passed=0
    shift
    printf '%-11s %-14s %s\n' part exercise result
    for entry; do
        program=$folder/${entry#*:}
        if [ ! -f "$program.c" ]; then
            result="there is no copy $program.c"
        elif [ ! -x "$program" ] || [ "$program.c" -nt "$program" ]; then
            result="does not compile: make exercise-${entry#*:} says why"
        elif output=$($RUNNER "$program" 2>&1); then
            result=passed passed=$((passed + 1))
        else
            wrong=$(printf '%s\n' "$output" | grep -c '^  WRONG')
            result="not passed: $wrong checks wrong, see make exercise-${entry#*:}"
        fi
        printf '%-11s %-14s %s\n' "${entry%:*}" "${entry#*:}" "$result"
    done
    echo "$passed of $# parts passed"
    [ "$passed" -eq $# ]
}

"$action" "$@"
