# The command in rows.txt that made a run, in the column "settings" of the run's file: awk -f csv.awk -f settings.awk FILE
# prints it, "" if the file does not say; with the environment's COMMAND it prints the file with that in its place.
# -v column=NAME prints another column.
BEGIN { writes = "COMMAND" in ENVIRON; if (column == "") column = "settings" }
NR == 1 { n = find_columns($0, at) }
!writes { if (NR == 2 && column in at) { fields($0, field); print unquoted(field[at[column]]) } next }
NR == 1 { print $0 ("settings" in at ? "" : ",settings"); last = ("settings" in at) ? at["settings"] : n + 1; next }
{
    fields($0, field)
    field[last] = quoted(ENVIRON["COMMAND"])
    for (i = 1; i <= n || i <= last; i++) printf "%s%s", (i > 1 ? "," : ""), field[i]
    print ""
}
