# All rows, both tasks side by side, as a table in HTML (awk -f csv.awk -f statistics.awk -f table.awk rows.txt results.csv).
# -v short=1: only accuracies and seeds, for half a page's width.
function number(x) {
    return x >= 1e6 ? sprintf("%.2f M", x / 1e6) : x >= 1e4 ? sprintf("%.0f k", x / 1e3) : sprintf("%.0f", x)
}
function mark(name, task,    says) {
    says = verdict(name, task, "dev")
    return says == "better" ? " ▲" : says == "worse" ? " ▼" : ""
}
# Processor seconds of the fastest run, and wall seconds where a file has no other.
function seconds(name, task) {
    return least_of(name, task, count[name, task, "cpu_seconds"] ? "cpu_seconds" : "seconds")
}
# sst / cfimdb, one of them where they are the same or only one was measured
function both(a, b) { return a == "" || a == b ? b : b == "" ? a : a "/" b }
function whole(name, task, x) { return runs[name, task] ? sprintf("%.0f", x) : "" }
function trained(name, task) { return runs[name, task] ? number(mean(name, task, "trained")) : "" }
function td(s) { return "<td>" s "</td>" }
function put_head() {
    print "<table class=\"" (short ? "short" : "results") "\">"
    print "<thead><tr><th></th><th colspan=\"2\">SST-5</th><th colspan=\"" (short ? 2 : 3) "\">CFIMDB</th>" \
          "<th colspan=\"" (short ? 1 : 4) "\"></th></tr>"
    print "<tr><th>row</th><th>dev</th><th>test</th><th>dev</th>" (short ? "" : "<th>test*</th>") "<th>real test</th>" \
          (short ? "" : "<th>trained</th><th>CPU s</th><th>MB</th>") "<th>seeds</th></tr></thead>"
    print "<tbody>"
}
function costs(r) {
    return td(both(trained(r, "sst"), trained(r, "cfimdb"))) \
           td(both(whole(r, "sst", seconds(r, "sst")), whole(r, "cfimdb", seconds(r, "cfimdb")))) \
           td(both(whole(r, "sst", mean(r, "sst", "peak_mb")), whole(r, "cfimdb", mean(r, "cfimdb", "peak_mb"))))
}
END {
    put_head()
    for (i = 1; i <= rows; i++) {
        r = order[i]
        if (!runs[r, "sst"] && !runs[r, "cfimdb"]) continue
        if (group[r] != last) print "<tr><th colspan=\"" (short ? 6 : 10) "\">" (last = group[r]) "</th></tr>"
        print "<tr>" td(r) td(cell(r, "sst", "dev") mark(r, "sst")) td(cell(r, "sst", "test")) \
              td(cell(r, "cfimdb", "dev") mark(r, "cfimdb")) (short ? "" : td(cell(r, "cfimdb", "test"))) \
              td(cell(r, "cfimdb", "gold")) (short ? "" : costs(r)) td(both(runs[r, "sst"], runs[r, "cfimdb"])) "</tr>"
    }
    print "</tbody></table>"
}
