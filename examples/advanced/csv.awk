# Lines of CSV files, for the programs that follow on awk's command line.
# The fields of a line as they are, with their quotes: to[1 .. n]; returns n. A comma in quotes divides nothing.
function fields(line, to,    n, k, i, part, is_open) {
    k = split(line, part, ",")
    for (i = 1; i <= k; i++) {
        if (is_open) to[n] = to[n] "," part[i]
        else to[++n] = part[i]
        is_open = gsub(/"/, "\"", to[n]) % 2 # how many quotes there are
    }
    return n + 0
}
function unquoted(field) {
    if (field ~ /^".*"$/) { field = substr(field, 2, length(field) - 2); gsub(/""/, "\"", field) }
    return field
}
function quoted(text) { gsub(/"/, "\"\"", text); return "\"" text "\"" }
# Which field has which name: at[name], from the first line of a file.
function find_columns(line, at,    n, i, name) {
    n = fields(line, name)
    split("", at)
    for (i = 1; i <= n; i++) at[unquoted(name[i])] = i
    return n
}
