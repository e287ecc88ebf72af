#!/bin/sh
# Runs the experiments of rows.txt, each with its seeds on its data sets, and skips those that are done already:
#
#     sh examples/advanced/run.sh MODEL DATA OUT [NAME...]
#
# DATA has sst-*.txt and cfimdb-*.txt. A run leaves OUT/NAME-TASK-SEED.csv (one row) and .log; it is done when the .csv
# is there. NAME...: only these rows. All rows get their first seed before any gets its second. BUILD is where the
# programs are (build), THREADS how many threads they use (2), TASKS the data sets (all), SEEDS the most seeds of a row
# (10). What rows need is in lines "made FILE COMMAND...": such a command is run before the first row that names
# {OUT}/FILE, if that file is not there.
[ $# -ge 3 ] || { echo "usage: sh run.sh MODEL DATA OUT [NAME...]" >&2; exit 2; }
model=$1 data=$2 out=$3
shift 3
wanted=" $* "
only=" ${TASKS:-} "
build=${BUILD:-build} threads=${THREADS:-2} most=${SEEDS:-10} failed=0
rows=$(dirname "$0")/rows.txt
[ -f "$model" ] || { echo "$model: no such model" >&2; exit 1; }
[ -f "$data/sst-train.txt" ] || { echo "$data: there is no sst-train.txt" >&2; exit 1; }
mkdir -p "$out" || exit 1

run() { # name task seed program flags...
    file=$out/$1-$2-$3 task=$2 seed=$3 program=$4
    shift 4
    [ -s "$file.csv" ] && return 0
    set -- --data "$data" --task "$task" --seed "$seed" --threads "$threads" "$@"
    case $program in yardstick_*) ;; *) set -- --model "$model" "$@" ;; esac # which have none
    set -- "$build/$program" "$@"
    echo "$*"
    rm -f "$file.part"
    if "$@" --csv "$file.part" > "$file.log" 2>&1; then mv "$file.part" "$file.csv"; else
        echo "failed: see $file.log" >&2
        return 1
    fi
}

# Words of rows.txt that stand for what differs from run to run.
filled() {
    echo "$*" | sed -e "s|{OUT}|$out|g; s|{DATA}|$data|g; s|{MODEL}|$model|g; s|{BUILD}|$build|g; s|{SEED}|$seed|g"
}

# Makes the files that a command names and that are not there, first what their own commands name.
make_files() ( # command
    while read -r name file command; do
        [ "$name" = made ] && [ ! -s "$out/$file" ] || continue
        case " $1 " in *"{OUT}/$file "*) ;; *) continue ;; esac
        make_files "$(echo "$command" | sed "s|{OUT}/$file||")" || exit 1
        command=$(filled "$command")
        echo "$command"
        # shellcheck disable=SC2086 # a command is words
        $command > "$out/$file.log" 2>&1 </dev/null || { echo "failed: see $out/$file.log" >&2; exit 1; }
    done < "$rows"
)

seed=1
while [ "$seed" -le "$most" ]; do
    while read -r name tasks seeds program flags; do
        case $name in '' | '#'* | made) continue ;; esac
        case $wanted in '  ' | *" $name "*) ;; *) continue ;; esac
        for task in $(echo "$tasks" | tr , ' '); do
            task_seeds=${seeds%%,*} seeds=${seeds#*,}
            case $only in '  ' | *" $task "*) ;; *) continue ;; esac
            [ "$seed" -le "$task_seeds" ] || continue
            make_files "$flags" || exit 1
            # shellcheck disable=SC2086 # flags are words
            run "$name" "$task" "$seed" "$program" $(filled "$flags") </dev/null || failed=$((failed + 1))
        done
    done < "$rows"
    seed=$((seed + 1))
done
# All runs in one file, with the row's name in front
awk -f "$(dirname "$0")/collect.awk" "$out"/*-[0-9]*.csv > "$out/results.csv"

[ "$failed" = 0 ] || { echo "$failed runs failed" >&2; exit 1; }
