# All runs of run.sh in one CSV file, with the row's name in front: awk -f collect.awk OUT/*-[0-9]*.csv
# The first row of a run's file is its result; columns are found by their names.
BEGIN {
    FS = ","
    n = split("program,method,model,task,seed,dev,test,gold,trained,seconds,cpu_seconds,peak_mb", name, ",")
    printf "name"
    for (i = 1; i <= n; i++) printf ",%s", name[i]
    print ""
}
FNR == 1 { split("", at); for (i = 1; i <= NF; i++) at[$i] = i }
FNR == 2 && FILENAME ~ /-[a-z0-9]+-[0-9]+\.csv$/ {
    row = FILENAME
    sub(/.*\//, "", row); sub(/-[^-]*-[0-9]*\.csv$/, "", row)
    printf "%s", row
    for (i = 1; i <= n; i++) printf ",%s", name[i] in at ? $at[name[i]] : ""
    print ""
}
