# The results of run.sh for one task as a table in Markdown, in the order of rows.txt:
#
#     cd examples/advanced; awk -f csv.awk -f statistics.awk -f summary.awk -v task=sst rows.txt OUT/results.csv
#
# A cell is mean (standard deviation) over the seeds. The difference from the row "baseline" is called noise where it is
# smaller than twice the deviation. The last column is the program with its flags, to which run.sh adds --model, --data,
# --task, --seed and --threads.
function flags(name,    s) {
    s = command[name]
    sub(/^[^ ]+ +[^ ]+ +[^ ]+ +/, "", s)
    return s == "" ? "" : "`" s "`"
}
END {
    print "| row | dev | test |" (task == "cfimdb" ? " real test |" : "") " against the baseline | trained | seconds | MB | seeds | program and flags |"
    print "| --- | --- | --- |" (task == "cfimdb" ? " --- |" : "") " --- | --- | --- | --- | --- | --- |"
    for (i = 1; i <= rows; i++) {
        r = order[i]
        if (!runs[r, task]) continue
        says = verdict(r, task, "dev")
        if (says != "") says = sprintf("%+.3f%s", difference(r, task, "dev"), says == "noise" ? ", noise" : "")
        printf "| %s | %s | %s |%s %s | %d | %.0f | %.0f | %d | %s |\n", r, cell(r, task, "dev"), cell(r, task, "test"),
               (task == "cfimdb" ? " " cell(r, task, "gold") " |" : ""), says, mean(r, task, "trained"),
               mean(r, task, "seconds"), mean(r, task, "peak_mb"), runs[r, task], flags(r)
    }
}
