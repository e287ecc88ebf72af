# The results of run.sh as a table in Markdown, in the order of rows.txt:
#
#     awk -f examples/advanced/summary.awk -v task=sst examples/advanced/rows.txt OUT/results.csv
#
# A cell is mean (standard deviation) over the seeds. The difference from the row "baseline" is called noise where it is
# smaller than twice the deviation (the root of the mean of both rows' squares).
function mean(name, field) { return n[name] ? sum[name, field] / n[name] : 0 }
function deviation(name, field,    m) {
    if (n[name] < 2) return 0
    m = mean(name, field)
    return sqrt(max0(square[name, field] - n[name] * m * m) / (n[name] - 1))
}
function max0(x) { return x > 0 ? x : 0 }
function points(x) { return x >= 1 || x <= -1 ? sprintf("%.3f", x) : substr(sprintf("%.3f", x), x < 0 ? 1 : 2) }
function cell(name, field) {
    if (!count[name, field]) return ""
    return points(mean(name, field)) (n[name] > 1 ? " (" points(deviation(name, field)) ")" : "")
}
function verdict(name,    d, s) {
    if (name == "baseline" || !n["baseline"] || n[name] < 2) return ""
    d = mean(name, "dev") - mean("baseline", "dev")
    s = sqrt((deviation(name, "dev") ^ 2 + deviation("baseline", "dev") ^ 2) / 2)
    return sprintf("%+.3f%s", d, d * d < 4 * s * s ? ", noise" : "")
}
FNR == 1 { is_rows = FILENAME ~ /rows\.txt$/ }
is_rows {
    if ($0 !~ /^#/ && NF && $1 != "made") order[++rows] = $1
    next
}
FNR == 1 {
    k = split($0, head, ",")
    for (i = 1; i <= k; i++) column[head[i]] = i
    next
}
{
    split($0, value, ",")
    if (value[column["task"]] != task) next
    name = value[1]
    n[name]++
    for (f in column) {
        v = value[column[f]]
        if (v == "" || v + 0 == 0 && v !~ /^[0.]+$/) continue
        sum[name, f] += v; square[name, f] += v * v; count[name, f]++
    }
}
END {
    print "| row | dev | test |" (task == "cfimdb" ? " real test |" : "") " against the baseline | trained | seconds | MB | seeds |"
    print "| --- | --- | --- |" (task == "cfimdb" ? " --- |" : "") " --- | --- | --- | --- | --- |"
    for (i = 1; i <= rows; i++) {
        r = order[i]
        if (!n[r]) continue
        printf "| %s | %s | %s |%s %s | %d | %.0f | %.0f | %d |\n", r, cell(r, "dev"), cell(r, "test"),
               task == "cfimdb" ? " " cell(r, "gold") " |" : "", verdict(r), mean(r, "trained"), mean(r, "seconds"),
               mean(r, "peak_mb"), n[r]
    }
}
