# report.md from report.in.md: awk -f fill.awk -v parts=FOLDER FOLDER/facts report.in.md
#     @part NAME           the file NAME of the folder
#     @if NAME ... @end    only if there is such a file, and it is not empty
#     {name}               a fact
function has(name,    line, is) {
    is = (getline line < (parts "/" name)) > 0
    close(parts "/" name)
    return is
}
function put(name,    line) {
    while ((getline line < (parts "/" name)) > 0) print line
    close(parts "/" name)
}
BEGIN { FS = "\t" }
NR == FNR { facts[$1] = $2; next }
/^@if / { is_left_out = !has(substr($0, 5)); next }
/^@end/ { is_left_out = 0; next }
is_left_out { next }
/^@part / { put(substr($0, 7)); next }
{
    rest = $0
    out = ""
    while (match(rest, /\{[a-z_]+\}/)) {
        name = substr(rest, RSTART + 1, RLENGTH - 2)
        if (!(name in facts)) { print "report.in.md: there is no fact " name > "/dev/stderr"; failed = 1 }
        out = out substr(rest, 1, RSTART - 1) facts[name]
        rest = substr(rest, RSTART + RLENGTH)
    }
    print out rest
}
END { exit failed }
