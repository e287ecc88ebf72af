# Mean loss of each kind of attention (with its deviation over the seeds, if there are several, and a mark where it differs
# from the first kind's by more than twice the deviation of both), and its speed where the machine was least busy, from the
# files of build/attention, one for each seed (awk -F,).
FNR == 1 { seed++; next }
!($1 in fastest) { kind[++n_kinds] = $1; fastest[$1] = 0 }
{ n[$1, seed]++; sum[$1, seed] += $3; if ($4 > fastest[$1]) fastest[$1] = $4 }
function deviation(name, mean,    i, s) {
    for (i = 1; i <= seed; i++) s += (sum[name, i] / n[name, i] - mean) ^ 2
    return sqrt(s / (seed - 1))
}
END {
    if (!n_kinds) exit
    print "| attention | loss | tokens a CPU second |\n| --- | --- | --- |"
    for (i = 1; i <= n_kinds; i++) {
        mean = 0
        for (j = 1; j <= seed; j++) mean += sum[kind[i], j] / n[kind[i], j] / seed
        spread = seed == 1 ? 0 : deviation(kind[i], mean)
        if (i == 1) { usual = mean; its_spread = spread }
        d = mean - usual
        says = seed == 1 || d * d < 2 * (spread ^ 2 + its_spread ^ 2) ? "" : d < 0 ? " ▲" : d > 0 ? " ▼" : ""
        printf "| %s | %.3f%s%s | %d |\n", kind[i], mean, seed == 1 ? "" : sprintf(" (%.3f)", spread), says, fastest[kind[i]]
    }
}
