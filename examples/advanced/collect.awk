# All runs of run.sh in one CSV file, with the row's name in front: awk -f csv.awk -f collect.awk OUT/*-[0-9]*.csv
# The first row of a run's file is its result; columns are found by their names. Files without a task are no runs.
# settings: the command in rows.txt that made the run, "" where its file does not say.
BEGIN {
    n = split("program,method,model,task,seed,dev,test,gold,trained,seconds,cpu_seconds,peak_mb,settings", name, ",")
    printf "name"
    for (i = 1; i <= n; i++) printf ",%s", name[i]
    print ""
}
FNR == 1 { find_columns($0, at) }
FNR == 2 && FILENAME ~ /-[a-z0-9]+-[0-9]+\.csv$/ && "task" in at {
    row = FILENAME
    sub(/.*\//, "", row); sub(/-[^-]*-[0-9]*\.csv$/, "", row)
    fields($0, field)
    printf "%s", row
    for (i = 1; i < n; i++) printf ",%s", name[i] in at ? field[at[name[i]]] : ""
    print "," ("settings" in at ? quoted(unquoted(field[at["settings"]])) : "\"\"")
}
