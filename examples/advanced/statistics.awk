# Mean, deviation and verdict of the runs in a CSV file of run.sh, for the programs that follow on awk's command line:
#
#     awk -f csv.awk -f statistics.awk -f PROGRAM.awk rows.txt results.csv
#
# order[1 .. rows]: the names in rows.txt; group[name]: the comment above it, up to a comma; command[name]: its line; names that are
# only in the results come last. maker[file]: the program that a "made" line has for it. runs[name, task]: how many runs there are. A field is a column of the CSV file, such as "dev".
# Columns are found by their names.
function mean(name, task, field,    k) {
    k = count[name, task, field]
    return k ? sum[name, task, field] / k : 0
}
# Of times: what else the machine did only adds to them.
function least_of(name, task, field) { return least_run[name, task, field] + 0 }
function deviation(name, task, field,    k, m, s) { # of a sample: the divisor is n - 1
    k = count[name, task, field]
    if (k < 2) return 0
    m = mean(name, task, field)
    s = square[name, task, field] - k * m * m
    return s > 0 ? sqrt(s / (k - 1)) : 0
}
# The baseline of the same budget: the long one for what takes more than 1.5 times the time of the other, or stops by itself.
function rival(name, task) {
    if (name == "baseline-long" || count["baseline-long", task, "dev"] < 2) return "baseline"
    if (command[name] ~ / --patience /) return "baseline-long"
    return cost(name, task) > 1.5 * cost("baseline", task) ? "baseline-long" : "baseline"
}
# Processor seconds of the fastest run, and wall seconds where a file has no other.
function cost(name, task) { return least_of(name, task, count[name, task, "cpu_seconds"] ? "cpu_seconds" : "seconds") }
# The deviation of one run, of this row's and its baseline's: the root of the mean of both squares.
function spread(name, task, field) {
    return sqrt((deviation(name, task, field) ^ 2 + deviation(rival(name, task), task, field) ^ 2) / 2)
}
function difference(name, task, field) { return mean(name, task, field) - mean(rival(name, task), task, field) }
# How it compares with its baseline: "" where that cannot be said, with less than two runs of either; "noise" for a
# difference smaller than twice the deviation; otherwise "better" or "worse".
function verdict(name, task, field,    d) {
    if (name == "baseline" || count[name, task, field] < 2 || count[rival(name, task), task, field] < 2) return ""
    d = difference(name, task, field)
    if (d * d < 4 * spread(name, task, field) ^ 2) return "noise"
    return d > 0 ? "better" : d < 0 ? "worse" : "noise"
}
# 1.30 M, 108 k, 645
function number(x) {
    return x >= 1e6 ? sprintf("%.2f M", x / 1e6) : x >= 1e4 ? sprintf("%.0f k", x / 1e3) : sprintf("%.0f", x)
}
# .386, 1.000, -.012
function points(x) { x = sprintf("%.3f", x); sub(/^0\./, ".", x); sub(/^-0\./, "-.", x); return x }
# mean (deviation), "" where there is no number
function cell(name, task, field) {
    if (!count[name, task, field]) return ""
    return points(mean(name, task, field)) (count[name, task, field] > 1 ? " (" points(deviation(name, task, field)) ")" : "")
}
function read_head() { find_columns($0, column); n_columns = fields($0, head) }
function read_run(    value, name, task, i) {
    fields($0, value)
    name = value[1]; task = value[column["task"]]
    if (!(name in group)) { order[++rows] = name; group[name] = "others" }
    runs[name, task]++; model_of[name, task] = value[column["model"]]
    for (i = 2; i <= n_columns; i++) {
        if (value[i] !~ /^-?[0-9.]+$/) continue
        if (!((name, task, head[i]) in least_run) || value[i] + 0 < least_run[name, task, head[i]]) least_run[name, task, head[i]] = value[i] + 0
        count[name, task, head[i]]++; sum[name, task, head[i]] += value[i]; square[name, task, head[i]] += value[i] ^ 2
    }
}
FNR == 1 { is_rows = FILENAME ~ /rows\.txt$/ }
!is_rows && FNR == 1 { read_head(); next }
!is_rows { read_run(); next }
$1 == "made" { maker[$2] = $3 }
/^# *NAME/ || $1 == "made" || $1 == "once" || !NF { next }
/^#/ { heading = substr($0, 3); sub(/,.*/, "", heading); next }
{ order[++rows] = $1; group[$1] = heading ""; command[$1] = $0 }
