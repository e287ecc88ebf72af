# The difference of each row's accuracy on dev to the baseline's, as a picture: a dot with a bar of twice the deviation
# to both sides, hollow where the bar reaches 0: noise. (awk -f csv.awk -f statistics.awk -f svg.awk -f differences.awk rows.txt
# results.csv)
function limit(task,    i, r, d, w) {
    x0 = -0.02; x1 = 0.02
    for (i = 1; i <= rows; i++) {
        r = order[i]
        if (verdict(r, task, "dev") == "") continue
        d = difference(r, task, "dev"); w = 2 * spread(r, task, "dev")
        x0 = least(x0, d - w); x1 = most(x1, d + w)
    }
    x0 = most(x0, -0.155); x1 = least(x1, 0.155) # what is farther out is drawn at the edge
}
function inside(x) { return most(left, least(right, ax(x))) }
function row(task, name, y,    d, w, says) {
    says = verdict(name, task, "dev")
    if (says == "") return
    d = difference(name, task, "dev"); w = 2 * spread(name, task, "dev")
    if (d >= x0 && d <= x1) {
        rule(inside(d - w), y, inside(d + w), y, "stroke='#555'")
        dot(ax(d), y, says == "noise" ? "white" : "#222")
    } else
        text(inside(d), y + 3, d < 0 ? "start" : "end", d < 0 ? "◀ " tick(d, .001) : tick(d, .001) " ▶")
}
function panel(task, name, from, to,    i, y) {
    left = from; right = to
    limit(task)
    x_axis("", 4)
    rule(ax(0), top, ax(0), bottom, "stroke='#222'")
    bold(left, top - 6, name)
    for (i = 1; i <= n_shown; i++) if (is_row[i]) row(task, shown[i], top + HEIGHT * (i - .5))
}
END {
    HEIGHT = 13
    for (i = 1; i <= rows; i++) {
        r = order[i]
        if (verdict(r, "sst", "dev") == "" && verdict(r, "cfimdb", "dev") == "") continue
        if (group[r] != last) shown[++n_shown] = last = group[r]
        shown[++n_shown] = r; is_row[n_shown] = 1
    }
    sheet(252, HEIGHT * n_shown + 36)
    top = 20; bottom = top + HEIGHT * n_shown
    for (i = 1; i <= n_shown; i++)
        if (is_row[i]) text(84, top + HEIGHT * (i - .5) + 3, "end", shown[i])
        else bold(2, top + HEIGHT * (i - .5) + 3, shown[i])
    panel("sst", "SST-5, dev", 90, 166)
    panel("cfimdb", "CFIMDB, dev", 174, 250)
    sheet_end()
}
