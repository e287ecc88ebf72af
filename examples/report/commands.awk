# The commands of the best rows, from the facts, as a block of code with lines of at most `width` characters (awk -F'\t').
function put(command,    n, word, i, unit, line) {
    n = split(command, word, " ")
    for (i = 1; i <= n; i++) {
        unit = word[i]
        while (i < n && word[i] ~ /^--/ && word[i + 1] !~ /^--/) unit = unit " " word[++i] # a flag and its value
        if (line != "" && length(line " " unit) > width - 2) { print line " \\"; line = " " }
        line = line == "" ? unit : line " " unit
    }
    print line
}
/^command_/ { if (!n++) print "```"; put($2) }
END { if (n) print "```" }
