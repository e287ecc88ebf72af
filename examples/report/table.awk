# All rows, both tasks side by side, as a table in HTML (awk -f csv.awk -f statistics.awk -f table.awk rows.txt results.csv).
# -v short=1: without the accuracy by placeholders and what is trained, for half a page's width.
function mark(name, task,    says) {
    says = verdict(name, task, "dev")
    return says == "better" ? " ▲" : says == "worse" ? " ▼" : ""
}
# sst / cfimdb, one of them where they are the same or only one was measured
function both(a, b) { return a == "" || a == b ? b : b == "" ? a : a "/" b }
function whole(name, task, x) { return runs[name, task] ? sprintf("%.0f", x) : "" }
function trained(name, task) { return runs[name, task] ? number(mean(name, task, "trained")) : "" }
function td(s) { return "<td>" s "</td>" }
function put_head() {
    print "<table class=\"" (short ? "short" : "results") "\">"
    print "<thead><tr><th></th><th colspan=\"2\">SST-5</th><th colspan=\"" (short ? 2 : 3) "\">CFIMDB</th>" \
          "<th colspan=\"" (short ? 3 : 4) "\"></th></tr>"
    print "<tr><th>row</th><th>dev</th><th>test</th><th>dev</th>" (short ? "" : "<th>test*</th>") "<th>real test</th>" \
          (short ? "" : "<th>trained</th>") "<th>CPU s</th><th>MB</th><th>seeds</th></tr></thead>"
    print "<tbody>"
}
function costs(r) {
    return (short ? "" : td(both(trained(r, "sst"), trained(r, "cfimdb")))) \
           td(both(whole(r, "sst", cost(r, "sst")), whole(r, "cfimdb", cost(r, "cfimdb")))) \
           td(both(whole(r, "sst", mean(r, "sst", "peak_mb")), whole(r, "cfimdb", mean(r, "cfimdb", "peak_mb"))))
}
END {
    put_head()
    for (i = 1; i <= rows; i++) {
        r = order[i]
        if (!runs[r, "sst"] && !runs[r, "cfimdb"]) continue
        if (group[r] != last) print "<tr><th colspan=\"" (short ? 8 : 10) "\">" (last = group[r]) "</th></tr>"
        print "<tr>" td(r) td(cell(r, "sst", "dev") mark(r, "sst")) td(cell(r, "sst", "test")) \
              td(cell(r, "cfimdb", "dev") mark(r, "cfimdb")) (short ? "" : td(cell(r, "cfimdb", "test"))) \
              td(cell(r, "cfimdb", "gold")) costs(r) td(both(runs[r, "sst"], runs[r, "cfimdb"])) "</tr>"
    }
    print "</tbody></table>"
}
