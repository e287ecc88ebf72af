# The table of zero-shot prompting, from the CSV file of build/zero_shot: for each way to score a label, the prompt and
# words that are best on dev. Runs with examples in the prompt are means over the seeds of the examples.
BEGIN { FS = ","; n_scores = split("reference,sum,mean,pmi,contextual,batch", scores, ",") }
FNR == 1 { for (i = 1; i <= NF; i++) column[$i] = i; next }
{
    key = $column["model"] SUBSEP $column["task"]
    if (!(key in seen)) { seen[key] = 1; keys[++n_keys] = key }
    split($1, part, "/")
    row = part[4] == "" ? part[3] : part[4]
    if (part[4] != "") shots = part[4]
    methods[key, row] = methods[key, row] " " $1
    n[key, $1]++; dev[key, $1] += $column["dev"]
    test[key, $1] += $column[$column["gold"] == "" ? "test" : "gold"]
}
function points(x) { x = sprintf("%.3f", x); sub(/^0/, "", x); return x }
# The method with that score, or with examples, that is best on dev
function best_of(key, row,    k, list, i, best) {
    k = split(methods[key, row], list, " ")
    for (i = 1; i <= k; i++)
        if (best == "" || dev[key, list[i]] / n[key, list[i]] > dev[key, best] / n[key, best]) best = list[i]
    return best
}
function cell(key, row,    m) {
    m = best_of(key, row)
    if (m == "") return ""
    if (winner[key] == "" || dev[key, m] / n[key, m] > dev[key, winner[key]] / n[key, winner[key]]) winner[key] = m
    return points(dev[key, m] / n[key, m]) " / " points(test[key, m] / n[key, m])
}
function print_row(row, name,    k, line) {
    line = "| " name
    for (k = 1; k <= n_keys; k++) line = line " | " cell(keys[k], row)
    print line " |"
}
END {
    if (!n_keys) exit
    line = "| score"; rule = "| ---"
    for (k = 1; k <= n_keys; k++) {
        split(keys[k], part, SUBSEP)
        line = line " | " part[1] ", " (part[2] == "sst" ? "SST" : "CFIMDB"); rule = rule " | ---"
    }
    print line " |"; print rule " |"
    for (i = 1; i <= n_scores; i++) print_row(scores[i], scores[i])
    if (shots != "") print_row(shots, shots)
    line = "| best"
    for (k = 1; k <= n_keys; k++) line = line " | `" winner[keys[k]] "`"
    print line " |"
    for (k = 1; k <= n_keys && shots != ""; k++)
        if (methods[keys[k], shots] == "") { print "\nBlank: with the prompt that was chosen, no example of every label fits half of the context."; break }
}
