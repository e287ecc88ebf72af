# The first run of another model than -v model=NAME or, if that is "", than the first run's:
#     awk -v model=NAME -f csv.awk -f models.awk rows.txt FILE...
# A FILE is one run's, or has all of them as results.csv. What has a --model of its own is passed over, as are yardsticks
# and runs of which nobody knows the command.
FNR == 1 { is_rows = FILENAME ~ /rows\.txt$/ }
is_rows { command[$1] = $4; for (i = 5; i <= NF; i++) command[$1] = command[$1] " " $i; next }
FNR == 1 { find_columns($0, at); next }
"model" in at && "task" in at {
    fields($0, field)
    name = FILENAME
    sub(/.*\//, "", name); sub(/-[^-]*-[0-9]*\.csv$/, "", name)
    if ("name" in at) name = field[at["name"]]
    made_by = "settings" in at ? unquoted(field[at["settings"]]) : ""
    if (made_by == "") made_by = command[name]
    its = unquoted(field[at["model"]])
    if (its == "" || made_by == "" || made_by ~ /^yardstick_/ || made_by ~ / --model /) next
    if (model == "") model = its
    if (its == model) next
    print FILENAME " " ("name" in at ? "has" : "is") " a run of " its ", not of " model
    exit
}
