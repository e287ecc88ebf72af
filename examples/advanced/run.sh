#!/bin/sh
# Runs the experiments of rows.txt, each with its seeds on its data sets, and skips those that are done already:
#
#     sh examples/advanced/run.sh MODEL DATA OUT [NAME...]
#     sh examples/advanced/run.sh --from results.csv OUT [MODEL]
#
# The second form: the runs of a former OUT count as done, on any machine; they are refused if MODEL is not theirs, or if
# OUT has runs of another one.
#
# DATA has sst-*.txt and cfimdb-*.txt. A run leaves OUT/NAME-TASK-SEED.csv (its result, and the line of rows.txt that made
# it) and .log; it is done when the .csv is there, unless rows.txt now has another command for it. NAME...: only these
# rows. All rows get their first seed before any gets its second. BUILD is where the programs are (build), THREADS how
# many threads they use (2), TASKS the data sets (sst,cfimdb; all), SEEDS the most seeds of a row (10), TOKENIZER the
# model's, if there is none in or next to it. Two may run at once in one OUT, with different rows.
#
# Two kinds of lines are no rows. "made FILE COMMAND...": the command is run before the first line that names
# {OUT}/FILE, if that file is not there. "once FILE SEEDS COMMAND...": it is run for each of these seeds, if
# OUT/FILE is not there. {FILE} in either stands for the file until it is complete; without it, what a "once" command
# prints becomes the file. What another row saves (--save_model {OUT}/FILE) is made by that row.
#
# Some "once" lines need what the repository does not have: SMALL, a model that is smaller than MODEL, with SMALL_TOKENIZER,
# and STORIES, a file of TinyStories. They are left out without.
LC_ALL=C # numbers with points, in every awk
export LC_ALL
unset COMMAND # settings.awk reads it
trap 'exit 130' INT TERM # also where a program saves and ends normally, after which bash would go on
here=$(dirname "$0")
usage() { echo "usage: sh run.sh MODEL DATA OUT [NAME...], or sh run.sh --from results.csv OUT [MODEL]" >&2; exit 2; }
rows=$here/rows.txt

# The runs of OUT are those of one model: of this name or, if it is "", of the first run's.
same_model() { # name file...
    of=$1
    shift
    for file; do # without patterns that matched nothing
        shift
        [ ! -f "$file" ] || set -- "$@" "$file"
    done
    other=$(awk -v model="$of" -f "$here/csv.awk" -f "$here/models.awk" "$rows" "$@") || exit 1
    [ -z "$other" ] || { echo "$other: choose another folder" >&2; exit 1; }
}

if [ "$1" = --from ]; then
    [ $# = 3 ] || [ $# = 4 ] || usage
    [ -f "$2" ] || { echo "$2: there is no such file" >&2; exit 1; }
    mkdir -p "$3" || exit 1
    same_model "${4##*/}" "$2" "$3"/*-[0-9]*.csv
    awk -v out="$3" -f "$here/csv.awk" -f "$here/restore.awk" "$2"
    exit
fi
[ $# -ge 3 ] || usage
model=$1 data=$2 out=$3
shift 3
wanted=" $* "
tasks=$(echo "$TASKS" | tr , ' ')
only=" $tasks "
build=${BUILD:-build} threads=${THREADS:-2} most=${SEEDS:-10} failed=0 broken=' '
refuse() { echo "run.sh: $*" >&2; exit 2; }
case $most in '' | *[!0-9]*) refuse "SEEDS is a number, not $most" ;; esac
case $here$model$data$out$build$TOKENIZER$SMALL$SMALL_TOKENIZER$STORIES in
    *[[:space:]\|\&]*) refuse "paths have neither spaces nor | nor &: the commands of rows.txt are words" ;;
esac
for task in $tasks; do
    awk -v task="$task" '$1 != "made" && $1 != "once" && index("," $2 ",", "," task ",") { found = 1 } END { exit !found }' "$rows" ||
        refuse "TASKS: rows.txt has no row for $task"
done
for name; do
    awk -v wanted="$name" '{ name = $1 } $1 == "once" { name = $2; sub(/[.].*/, "", name); sub(/-[{]SEED[}]$/, "", name) }
                           name == wanted && name != "made" { found = 1 } END { exit !found }' "$rows" || refuse "rows.txt has no $name"
done
[ -f "$model" ] || { echo "$model: no such model" >&2; exit 1; }
[ -f "$data/sst-train.txt" ] || { echo "$data: there is no sst-train.txt" >&2; exit 1; }
mkdir -p "$out" || exit 1
parts=$out/.part.$$ # the beginning of a file's name, until it is complete
trap 'rm -f "$parts".*' EXIT
same_model "${model##*/}" "$out"/*-[0-9]*.csv

# made-from: a line with sum, size and name for the model, which comes first, and for each file of the data. Another file
# of the same name is another model, or other data. A new file changes no run: those without real test labels, say, stay
# as they are when labels come. A line without a name is of a former form, and says nothing.
sums() {
    for file in "$model" "$data"/sst-*.txt "$data"/cfimdb-*.txt; do
        [ -f "$file" ] || continue
        sum=$(cksum < "$file") && echo "$sum ${file##*/}" || return 1
    done
}
sums=$(sums) || exit 1
made_from=$({ cat "$out/made-from" 2>/dev/null; echo; echo "$sums"; } | awk '
    NF == 2 { next }
    NF == 0 { is_now = 1; next }
    { sum = $1 " " $2; name = $0; sub(/^[^ ]* [^ ]* /, "", name); key = n[is_now]++ ? name : "model" }
    is_now && key in was && was[key] != sum { changed = 1; all = name; exit }
    !(key in was) { was[key] = sum; all = all $0 "\n" }
    END { printf "%s", all; exit changed }') || {
    echo "$out has runs of another $made_from: choose another folder, or remove it" >&2
    exit 1
}
echo "$made_from" > "$out/made-from" || { echo "$out/made-from cannot be written" >&2; exit 1; }

# Whether a run is done by the command that rows.txt has now. Of runs whose file does not say it, it is believed.
is_done() { # file command
    [ -s "$1.csv" ] || return 1
    made_by=$(awk -f "$here/csv.awk" -f "$here/settings.awk" "$1.csv")
    case $made_by in '' | "$2") return 0 ;; esac
    echo "$1.csv is from another command, and made again: $made_by"
    return 1
}

run() { # name task seed command (a line of rows.txt)
    file=$out/$1-$2-$3 part=$parts.$1-$2-$3 task=$2 seed=$3 line=$4
    # shellcheck disable=SC2046 # words
    set -- --data "$data" --task "$task" --seed "$seed" --threads "$threads" $(filled "${line#"${line%% *}"}")
    case $line in
        yardstick_*) ;; # which have no model
        *) set -- --model "$model" ${TOKENIZER:+--tokenizer "$TOKENIZER"} "$@" ;;
    esac
    set -- "$build/${line%% *}" "$@"
    echo "$*"
    rm -f "$part"
    if "$@" --csv "$part" > "$file.log" 2>&1 </dev/null &&
        COMMAND=$line awk -f "$here/csv.awk" -f "$here/settings.awk" "$part" > "$part.new"; then
        mv "$part.new" "$file.csv" && rm -f "$part"
    else
        echo "failed: see $file.log" >&2
        return 1
    fi
}

# Words of rows.txt that stand for what differs from run to run.
filled() {
    echo "$*" | sed -e "s|{HERE}|$here|g; s|{OUT}|$out|g; s|{DATA}|$data|g; s|{MODEL}|$model|g; s|{BUILD}|$build|g" \
        -e "s|{SEED}|$seed|g; s|{TASK}|$task|g; s|{THREADS}|$threads|g; s|{STORIES}|$STORIES|g" \
        -e "s|{TOKENIZER}|${TOKENIZER:+--tokenizer $TOKENIZER}|g" \
        -e "s|{ITS_TOKENIZER}|--tokenizer ${TOKENIZER:-$model}|g" \
        -e "s|{JUDGE_TOKENIZER}|${TOKENIZER:+--judge_tokenizer $TOKENIZER}|g" \
        -e "s|{SMALL}|$SMALL${SMALL_TOKENIZER:+ --tokenizer $SMALL_TOKENIZER}|g"
}

# Runs the command of a file of OUT, which is there only when it is complete. 3: what it needs was not given.
make_file() { # file command
    part=$parts.$1 log=$out/$1.log
    for need in SMALL STORIES; do
        eval "value=\$$need"
        # shellcheck disable=SC2154 # value is set by eval
        case $2 in *"{$need}"*) [ -n "$value" ] || { echo "$1 is left out: $need was not given"; return 3; } ;; esac
    done
    command=$(filled "$2" | sed "s|{FILE}|$part|g")
    rm -f "$part" "$part".* # of a process of this number that was killed: pretrain begins no run over another
    echo "$command"
    # shellcheck disable=SC2086 # a command is words
    $command > "$log" 2>&1 </dev/null || { echo "failed: see $log" >&2; return 1; }
    case $2 in *'{FILE}'*) mv "$part" "$out/$1" ;; esac
}

# Makes the files that a command names and that are not there, first what their own commands name.
make_needs() ( # command
    while read -r name file command; do
        [ "$name" = made ] && [ ! -s "$out/$file" ] || continue
        case " $1 " in *"{OUT}/$file "*) ;; *) continue ;; esac
        make_needs "$(echo "$command" | sed "s|{OUT}/$file||")" && make_file "$file" "$command" || exit $?
    done < "$rows"
    while read -r name tasks seeds command; do
        file=${command##* --save_model }
        [ "$name" != made ] && [ "$file" != "$command" ] || continue
        file=${file%% *} task=${tasks%%,*}
        case " ${1%% --save_model *} " in *" $file "*) ;; *) continue ;; esac
        [ ! -s "$(filled "$file")" ] || continue
        make_needs "$command" && run "$name" "$task" "$seed" "$command" || exit $?
    done < "$rows"
)

# A line of rows.txt whose needs could not be made is not tried again for every seed.
is_broken() { case $broken in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
fail() { # line status
    broken="$broken$1 "
    [ "$2" = 3 ] || failed=$((failed + 1))
}

run_row() { # name tasks seeds command
    rest=$3
    for task in $(echo "$2" | tr , ' '); do
        task_seeds=${rest%%,*} rest=${rest#*,}
        case $only in '  ' | *" $task "*) ;; *) continue ;; esac
        [ "$seed" -le "$task_seeds" ] && ! is_broken "$1" || continue
        is_done "$out/$1-$task-$seed" "$4" && continue
        make_needs "$4" || { fail "$1" $?; continue; }
        run "$1" "$task" "$seed" "$4" || failed=$((failed + 1))
    done
}

run_once() { # file seeds command
    [ "$seed" -le "$2" ] && ! is_broken "$1" || return 0
    file=$(filled "$1") name=${1%%.*}
    name=${name%-\{SEED\}}
    case $wanted in '  ' | *" $name "*) ;; *) return 0 ;; esac
    [ ! -s "$out/$file" ] || return 0
    make_needs "$3" && make_file "$file" "$3" || { fail "$1" $?; return 0; }
    case $3 in *'{FILE}'*) ;; *) mv "$out/$file.log" "$out/$file" ;; esac
}

seed=1
while [ "$seed" -le "$most" ]; do
    while read -r name tasks seeds command; do
        case $name in '' | '#'* | made) continue ;; esac
        # shellcheck disable=SC2086 # single spaces between words
        set -- $command
        if [ "$name" = once ]; then run_once "$tasks" "$seeds" "$*"; continue; fi
        case $wanted in '  ' | *" $name "*) run_row "$name" "$tasks" "$seeds" "$*" ;; esac
    done < "$rows"
    seed=$((seed + 1))
done
# All runs in one file, with the row's name in front
set -- "$out"/*-[0-9]*.csv
if [ -f "$1" ]; then
    awk -f "$here/csv.awk" -f "$here/collect.awk" "$@" > "$parts.results" && mv "$parts.results" "$out/results.csv" ||
        failed=$((failed + 1))
fi

[ "$failed" = 0 ] || { echo "$failed runs failed" >&2; exit 1; }
