# Some columns of the first table of a Markdown file that begins with the column `first`:
#     awk -f columns.awk -v first=method -v columns="method;perplexity" decoding.md
# Column names are separated by semicolons; "" is the one without a name; of two with the same
# name it is the first. Without -v columns the whole table.
function cells(    i) { n = split($0, part, "|"); for (i = 1; i <= n; i++) gsub(/^ +| +$/, "", part[i]) }
/^\|/ && !is_in { cells(); if (part[2] != first || is_over) next; is_in = 1; for (i = n - 1; i > 1; i--) at[part[i]] = i; n_wanted = split(columns, wanted, ";") }
!/^\|/ && is_in { is_in = 0; is_over = 1 }
is_in && columns == "" { print; next }
is_in {
    cells()
    line = ""
    for (i = 1; i <= n_wanted; i++) line = line "| " (wanted[i] in at ? part[at[wanted[i]]] : "?") " "
    print line "|"
}
