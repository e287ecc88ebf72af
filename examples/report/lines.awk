# Lines as a picture, from lines "series,x,y" (awk -f svg.awk -f lines.awk -v x_name=... -v y_name=... DATA). Names stand
# at the ends of the lines; -v at=X draws a vertical line there.
BEGIN { FS = ","; split("none;5 3;1.5 2;9 3;6 2 1.5 2;none;3 3", dashes, ";"); split("#000;#000;#000;#666;#666;#aaa;#aaa", grays, ";") }
NF < 3 || $2 !~ /^[-0-9.]/ || $3 !~ /^[-0-9.]/ { next }
!($1 in points) { names[++n] = $1 }
{
    k = ++points[$1]; xs[$1, k] = $2 + 0; ys[$1, k] = $3 + 0
    if (n == 1 && k == 1) { x0 = x1 = $2 + 0; y0 = y1 = $3 + 0 }
    x0 = least(x0, $2); x1 = most(x1, $2); y0 = least(y0, $3); y1 = most(y1, $3)
}
function line(i,    k, name) {
    name = names[i]
    printf "<polyline fill='none' stroke='%s' stroke-width='1.3' stroke-dasharray='%s' points='", grays[i], dashes[i]
    for (k = 1; k <= points[name]; k++) printf "%.1f,%.1f ", ax(xs[name, k]), ay(ys[name, k])
    print "'/>"
}
# Highest end first; a name goes lower where another one stands, and all of them higher where the last would leave the axes.
function labels(    i, k, best, last, done, place, y) {
    last = -100
    for (k = 1; k <= n; k++) {
        best = 0
        for (i = 1; i <= n; i++) if (!(i in done) && (!best || end_of(i) > end_of(best))) best = i
        done[best] = 1
        place[best] = last = most(ay(end_of(best)) + 3, last + 10)
    }
    for (i = 1; i <= n; i++) {
        y = place[i] - most(0, last - bottom)
        text(right + 4, y, "start", names[i])
        rule(right + 54, y - 3, right + 76, y - 3, "stroke='" grays[i] "' stroke-width='1.3' stroke-dasharray='" dashes[i] "'")
    }
}
function end_of(i) { return ys[names[i], points[names[i]]] }
END {
    if (x1 > x0) {
        y0 -= (y1 - y0) * .03; y1 += (y1 - y0) * .03
        sheet(310, 104)
        left = 26; right = 230; top = 16; bottom = 78
        x_axis(x_name, 5); y_axis(5)
        text(left, top - 5, "start", y_name)
        if (at != "") rule(ax(at), top, ax(at), bottom, "stroke='#222'")
        for (i = 1; i <= n; i++) line(i)
        labels()
        sheet_end()
    }
}
