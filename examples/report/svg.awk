# Pictures as SVG: a sheet, panels with axes, text. A panel maps x in [x0, x1] to [left, right] and y in [y0, y1] to
# [bottom, top]; log_x: x by its logarithm. Black, gray and white only, lines also differ by dashes.
function sheet(width, height) {
    printf "<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d' viewBox='0 0 %d %d' " \
           "font-family='DejaVu Sans Condensed, sans-serif' font-size='9' fill='#222'>\n", 1.5 * width, 1.5 * height, width, height
    printf "<rect width='%d' height='%d' fill='white'/>\n", width, height
}
function sheet_end() { print "</svg>" }
function text(x, y, anchor, s) {
    gsub(/&/, "\\&amp;", s); gsub(/</, "\\&lt;", s)
    printf "<text x='%.1f' y='%.1f' text-anchor='%s'>%s</text>\n", x, y, anchor, s
}
function bold(x, y, s) { printf "<text x='%.1f' y='%.1f' font-weight='bold'>%s</text>\n", x, y, s }
function rule(xa, ya, xb, yb, style) {
    printf "<line x1='%.1f' y1='%.1f' x2='%.1f' y2='%.1f' %s/>\n", xa, ya, xb, yb, style
}
function dot(x, y, fill) { printf "<circle cx='%.1f' cy='%.1f' r='2.4' fill='%s' stroke='#222'/>\n", x, y, fill }
function log10(x) { return log(x) / log(10) }
# 1, 2 or 5 times a power of ten: the smallest that divides the range into at most n parts
function tick_step(range, n,    power) {
    power = 10 ^ floor(log10(range / n))
    return power * (range / n <= power * 1.0000001 ? 1 : range / n <= power * 2 ? 2 : range / n <= power * 5 ? 5 : 10)
}
function floor(x,    i) { i = int(x); return i > x ? i - 1 : i }
function ceil(x) { return -floor(-x) }
function least(a, b) { return a < b ? a : b }
function most(a, b) { return a > b ? a : b }
function ax(x) {
    return left + (right - left) * (log_x ? (log(x) - log(x0)) / (log(x1) - log(x0)) : (x - x0) / (x1 - x0))
}
function ay(y) { return bottom - (bottom - top) * (y - y0) / (y1 - y0) }
# a tick's number, with as many decimals as the step has
function tick(x, step,    s) {
    s = sprintf("%." (step < 1 ? ceil(-log10(step) - 1e-6) : 0) "f", x)
    sub(/^0\./, ".", s); sub(/^-0\./, "-.", s)
    return s ~ /^-?[.0]*$/ ? "0" : s
}
function thousands(x) { return x >= 1e6 ? x / 1e6 " M" : x >= 1e4 ? x / 1e3 " k" : x }
function x_axis(name, n,    x, step) {
    rule(left, bottom, right, bottom, "stroke='#777'")
    step = log_x ? 0 : tick_step(x1 - x0, n)
    for (x = log_x ? 10 ^ ceil(log10(x0) - 1e-9) : step * ceil(x0 / step - 1e-9); x <= x1 * 1.0000001 + 1e-12; x = log_x ? x * 10 : x + step) {
        rule(ax(x), top, ax(x), bottom, "stroke='#ddd'")
        text(ax(x), bottom + 10, "middle", x1 >= 1000 ? thousands(x) : tick(x, step))
    }
    text((left + right) / 2, bottom + 21, "middle", name)
}
function y_axis(n,    y, step) {
    step = tick_step(y1 - y0, n)
    for (y = step * ceil(y0 / step - 1e-9); y <= y1 + step * 1e-6; y += step) {
        rule(left, ay(y), right, ay(y), "stroke='#ddd'")
        text(left - 3, ay(y) + 3, "end", tick(y, step))
    }
}
