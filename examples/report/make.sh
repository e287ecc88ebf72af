#!/bin/sh
# Makes report.md and report.pdf, with their tables and figures, from report.in.md and the CSV files of this folder:
#
#     sh examples/report/make.sh BUILD/report [OUT [OUT2]]      (NO_PDF=1: only report.md)
#
# BUILD/report is for what is made on the way. OUT is a folder of run.sh (make advanced): its runs become results.csv
# before, and its other CSV files are copied; the runs of OUT2, with the second base model, become results-base.csv. A CSV
# file that is not there leaves its part out. Decoding and speculative decoding come from examples/advanced/decoding.md; what
# the text says of the results is said of the CSV files of this repository. pandoc and weasyprint make the PDF.
set -e
LC_ALL=C # numbers with points, in every awk
export LC_ALL
here=$(dirname "$0") advanced=$(dirname "$0")/../advanced parts=${1:?}
mkdir -p "$parts"
rm -f "$parts"/*

collect() { # OUT CSV
    [ -n "$1" ] || return 0
    ls "$1"/*-[0-9]*.csv >/dev/null 2>&1 || { echo "$1: there are no runs in it (NAME-TASK-SEED.csv)" >&2; exit 1; }
    awk -f "$advanced/csv.awk" -f "$advanced/collect.awk" "$1"/*-[0-9]*.csv > "$parts/runs" && cp "$parts/runs" "$2"
}
collect "$2" "$here/results.csv"
collect "$3" "$here/results-base.csv"
for name in zero-shot zero-shot-small decoding positions-1 positions-2 positions-3 attention-1 attention-2 attention-3; do
    if [ -n "$2" ] && [ -s "$2/$name.csv" ]; then cp "$2/$name.csv" "$here/"; fi
done
if [ -n "$3" ] && [ -s "$3/zero-shot.csv" ]; then cp "$3/zero-shot.csv" "$here/zero-shot-base.csv"; fi
for task in sst cfimdb; do # WiSE-FT's curve of the first seed
    if [ -n "$2" ] && [ -s "$2/wise-$task-1.csv" ]; then cp "$2/wise-$task-1.csv" "$here/wise-$task.csv"; fi
done

run() { # PROGRAM CSV OPTION...: a program over the results of the rows
    program=$1 csv=$2
    shift 2
    [ ! -f "$csv" ] || awk -f "$advanced/csv.awk" -f "$advanced/statistics.awk" -f "$here/svg.awk" -f "$here/$program.awk" "$@" "$advanced/rows.txt" "$csv"
}
# Lines "series,x,y" as a picture
lines() { awk -f "$here/svg.awk" -f "$here/lines.awk" "$@"; }
# What is in a CSV file, without its first line; nothing if it is not there
data() { [ ! -f "$here/$1.csv" ] || awk 'NR > 1' "$here/$1.csv"; } # the last line may have no end
table() { awk -f "$here/columns.awk" "$@" "$advanced/decoding.md"; }

# others.csv: results of programs that rows.txt does not run, as the yardsticks
[ ! -f "$here/results.csv" ] || { awk 1 "$here/results.csv"; data others; } > "$parts/runs.csv"
[ ! -f "$parts/runs.csv" ] || { cat "$parts/runs.csv"; data results-base | sed 's/,/+,/'; } > "$parts/all.csv"
for name in results results-base; do
    data $name | awk -v csv="$name.csv" 'NR == FNR { row[$1] = 1; next } { sub(/,.*/, "") }
        !($0 in row) { row[$0] = 1; print csv ": rows.txt has no row " $0 > "/dev/stderr" }' "$advanced/rows.txt" -
done
run facts "$parts/all.csv" > "$parts/facts"
awk -F'\t' -v width=62 -f "$here/commands.awk" "$parts/facts" > "$parts/commands"
run table "$parts/runs.csv" > "$parts/results"
run table "$here/results-base.csv" -v short=1 > "$parts/results-base"
run differences "$parts/runs.csv" > "$parts/differences.svg"
run trained "$parts/runs.csv" > "$parts/trained.svg"

data base | awk -F, '{ print "a batch," $1 "," $2; if ($3 != "") print "kept back," $1 "," $3 }' |
    lines -v x_name="step" -v y_name="loss (nats per token)" > "$parts/base.svg"
data base | awk -F, '{ step = $1; if ($3 != "") loss = $3 } END { print "base_steps\t" step; printf "base_loss\t%.2f\n", loss }' >> "$parts/facts"

{
    data wise-sst | awk -F, '{ print "SST-5," $1 "," $2 }'
    data wise-cfimdb | awk -F, '{ print "CFIMDB," $1 "," $2 }'
} | lines -v x_name="a" -v y_name="accuracy on dev" > "$parts/wise.svg"

set -- # of MODEL, of the second base model, and of a smaller one
for name in zero-shot zero-shot-base zero-shot-small; do
    [ ! -f "$here/$name.csv" ] || set -- "$@" "$here/$name.csv"
done
[ $# = 0 ] || awk -f "$here/zero_shot.awk" "$@" > "$parts/zero-shot"
table -v first=method -v columns='method;setting;perplexity;rep-4, %;distinct-2;tokens/s;' > "$parts/decoding"
table -v first=drafted > "$parts/speculation"

# Files with a number for each seed, as one with the means over the seeds in the last column; how many there are
seeds() { # NAME
    set -- "$here/$1"-[0-9]*.csv
    if [ -f "$1" ]; then echo $#; else echo 0; fi
}
means() { # NAME
    set -- "$here/$1"-[0-9]*.csv
    [ ! -f "$1" ] || awk -F, 'FNR == 1 { next }
        { key = $0; sub(/,[^,]*$/, "", key); if (!(key in n)) keys[++n_keys] = key; n[key]++; sum[key] += $NF }
        END { for (i = 1; i <= n_keys; i++) printf "%s,%.4f\n", keys[i], sum[keys[i]] / n[keys[i]] }' "$@"
}
printf 'position_seeds\t%d\nattention_seeds\t%d\n' "$(seeds positions)" "$(seeds attention)" >> "$parts/facts"

# Positions: loss by position in the longest texts, and the means of every length; attention: each kind's mean over
# positions, its deviation over seeds, and its speed where the machine was least busy
means positions > "$parts/positions.csv"
sort -t, -k2,2n -s "$parts/positions.csv" | awk -F, '{ line[NR] = $1 "," $3 "," $4; length_of[NR] = $2 }
    END { for (i = 1; i <= NR; i++) if (length_of[i] == length_of[NR]) print line[i] }' > "$parts/longest"
context=$(awk -F, 'NR == 1 { print $2 }' "$parts/positions.csv")
lines -v x_name="position" -v y_name="loss (nats per token)" -v at="$context" "$parts/longest" > "$parts/positions.svg"
awk -F, -f "$here/positions.awk" "$parts/positions.csv" > "$parts/positions"
set -- "$here"/attention-[0-9]*.csv
[ ! -f "$1" ] || awk -F, -f "$here/attention.awk" "$@" > "$parts/attention"

rm -f "$here"/*.svg
for picture in "$parts"/*.svg; do
    if [ -s "$picture" ]; then cp "$picture" "$here/"; fi
done
awk -f "$here/fill.awk" -v parts="$parts" "$parts/facts" "$here/report.in.md" > "$parts/report.md"
cp "$parts/report.md" "$here/report.md"
[ -z "$NO_PDF" ] || exit 0

missing=
for package in pandoc weasyprint; do command -v $package >/dev/null || missing="$missing $package"; done
if [ -n "$missing" ]; then
    echo "report.md is made; report.pdf needs packages that are not installed: apt-get install$missing" >&2
    exit 1
fi
{
    echo '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Report</title></head><body>'
    # .386 is not divided after its point: a word joiner, but not in commands
    pandoc --from markdown-smart+markdown_in_html_blocks --to html5 --columns=10000 "$here/report.md" |
        sed '/<pre/,/<\/pre>/!s/\([ (>]\)\.\([0-9]\)/\1.\&#8288;\2/g'
    echo '</body></html>'
} > "$parts/report.html"
SOURCE_DATE_EPOCH=0 weasyprint --base-url "$here/" --stylesheet "$here/report.css" "$parts/report.html" "$parts/report.pdf"
pages=$(grep -ac '/Type /Page$' "$parts/report.pdf" || :)
echo "report.pdf: $pages pages"
cp "$parts/report.pdf" "$here/report.pdf"
[ "$pages" -le 3 ] || { echo "report.pdf: more than three pages" >&2; exit 1; }
