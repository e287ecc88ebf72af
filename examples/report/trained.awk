# Accuracy on dev over how many numbers are trained, of the rows of efficient tuning and the baseline, as a picture.
# (awk -f csv.awk -f statistics.awk -f svg.awk -f trained.awk rows.txt results.csv)
function is_shown(name, task) { return runs[name, task] && (name == "baseline" || group[name] ~ /^efficient/) }
# Its letter stands to the right of each dot, or lower where another letter stands.
function letter(r) {
    if (!(r in letters)) {
        letters[r] = substr("abcdefghijklmnopqrstuvwxyz", ++n_letters, 1)
        text(336, top - 2 + 11 * n_letters, "start", letters[r] "  " r)
    }
    return letters[r]
}
function label(x, y, r,    j, covered) {
    do {
        covered = 0
        for (j = 1; j <= n_labels; j++)
            if (x - label_x[j] < 6 && label_x[j] - x < 6 && y - label_y[j] < 8 && label_y[j] - y < 8) { y = label_y[j] + 8.01; covered = 1 }
    } while (covered)
    label_x[++n_labels] = x; label_y[n_labels] = y
    text(x + 4, y, "start", letter(r))
}
function panel(task, name, from, to,    i, r, s, x, y) {
    left = from; right = to; x0 = 1e9; x1 = 0; y0 = 1; y1 = 0
    for (i = 1; i <= rows; i++) {
        r = order[i]
        if (!is_shown(r, task)) continue
        x0 = least(x0, mean(r, task, "trained")); x1 = most(x1, mean(r, task, "trained"))
        y0 = least(y0, mean(r, task, "dev")); y1 = most(y1, mean(r, task, "dev"))
    }
    if (!x1) return
    x0 = 10 ^ floor(log10(x0)); x1 = most(x1 * 1.4, x0 * 10); y0 -= .01; y1 += .01
    x_axis("numbers trained", 0); y_axis(5)
    bold(left, top - 6, name)
    for (i = 1; i <= rows; i++) {
        r = order[i]
        if (!is_shown(r, task)) continue
        s = deviation(r, task, "dev"); x = ax(mean(r, task, "trained")); y = mean(r, task, "dev")
        rule(x, ay(y - s), x, ay(y + s), "stroke='#555'")
        dot(x, ay(y), r == "baseline" ? "white" : "#222")
        label(x, ay(y) + 3, r)
    }
}
END {
    log_x = 1
    sheet(410, 176)
    top = 18; bottom = 150
    panel("sst", "SST-5, dev", 22, 162)
    panel("cfimdb", "CFIMDB, dev", 186, 326)
    sheet_end()
}
