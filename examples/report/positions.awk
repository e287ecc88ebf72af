# Mean loss of each kind of position in texts of each length, as a table, from lines position,length,from,loss (awk -F,).
!($1 in seen) { seen[$1] = 1; kind[++n_kinds] = $1 }
!($2 in known) { known[$2] = 1; size[++n_sizes] = $2 }
{ n[$1, $2]++; sum[$1, $2] += $4 }
END {
    if (!n_kinds) exit
    line = "| positions"; rule = "| ---"
    for (j = 1; j <= n_sizes; j++) { line = line " | " size[j]; rule = rule " | ---" }
    print line " |"; print rule " |"
    for (i = 1; i <= n_kinds; i++) {
        line = "| " kind[i]
        for (j = 1; j <= n_sizes; j++) line = line sprintf(" | %.2f", sum[kind[i], size[j]] / n[kind[i], size[j]])
        print line " |"
    }
}
