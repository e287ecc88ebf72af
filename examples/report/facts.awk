# What the text says in numbers, as lines "name<TAB>text" (awk -f csv.awk -f statistics.awk -f facts.awk rows.txt CSV).
# The CSV has the results on both base models; those on the second have a + after their names. A row is chosen by its
# mean on dev, never on test. Rows with less than three runs are not chosen, unless none has as many; nor are yardsticks,
# which are no Llamas, and results whose row is not in rows.txt, which have no command.
function is_second(name) { return name ~ /\+$/ }
function plain(name) { sub(/\+$/, "", name); return name }
function shown(name) { return "`" plain(name) "`" (is_second(name) ? " on " model_of["baseline+", "sst"] : "") }
function can_win(name) { return name !~ /^yardstick/ && command[plain(name)] != "" }
function is_complete(name, task) { return runs[name, task] && runs[name, task] >= enough_runs && can_win(name) }
function best_of(task,    i, r, best) {
    for (i = 1; i <= rows; i++) {
        r = order[i]
        if (is_complete(r, task) && (best == "" || mean(r, task, "dev") > mean(best, task, "dev"))) best = r
    }
    return best
}
function fact(name, value) { print name "\t" value }
function goal(name, row, task, field, enough) {
    if (row == "") { fact(name, "not measured"); return }
    fact(name, cell(row, task, field) (mean(row, task, field) >= enough ? ", reached" : ", not reached"))
}
# With those of the row whose network it starts from; -1 if that row has not run, and where the network learned in
# another way than by pretraining, whose time is not known.
function all_seconds(name, task,    file, other, part, before) {
    if (!match(command[plain(name)], / --model [{]OUT[}][^ ]*/)) return cost(name, task)
    file = " --save_model " substr(command[plain(name)], RSTART + 9, RLENGTH - 9) " "
    for (other in command) {
        if (!index(command[other] " ", file)) continue
        split(command[other], part, " "); sub(/,.*/, "", part[2])
        if (is_second(name)) other = other "+"
        before = runs[other, part[2]] ? all_seconds(other, part[2]) : -1
        return before < 0 ? before : before + cost(name, task)
    }
    match(file, /\/[^ ]*/)
    return maker[substr(file, RSTART + 1, RLENGTH - 1)] ~ /pretrain$/ ? cost(name, task) : -1
}
# The row that takes the least time among those whose mean on dev is at least that of the assignment's 42M model.
function fastest(name, task, enough,    i, r, best, its, quickest) {
    for (i = 1; i <= rows; i++) {
        r = order[i]
        if (!is_complete(r, task) || mean(r, task, "dev") < enough) continue
        its = all_seconds(r, task)
        if (its >= 0 && (best == "" || its < quickest)) { best = r; quickest = its }
    }
    if (best == "") fact(name, "by no row")
    else fact(name, sprintf("by %s (%s) in %.0f s of processor time", shown(best),
                            points(mean(best, task, "dev")), quickest))
}
function count_verdicts(task,    i, says, n) {
    for (i = 1; i <= rows; i++) {
        if (is_second(order[i]) || group[order[i]] ~ /^without/) continue
        says = verdict(order[i], task, "dev")
        n[says]++
        if (says == "better" || says == "worse") names[task, says] = names[task, says] (names[task, says] == "" ? "" : ", ") "`" order[i] "`"
    }
    fact("better_" task, n["better"] + 0); fact("worse_" task, n["worse"] + 0); fact("noise_" task, n["noise"] + 0)
    fact("better_rows_" task, names[task, "better"] == "" ? "none" : names[task, "better"])
}
# The commands of a row, as run.sh and `make advanced` give them, and what a run costs.
function commands(name, task,    s, model, set) {
    s = command[plain(name)]
    if (s == "") return
    set = is_second(name) ? "baseline+" : "baseline"
    model = model_of[set, task] == "" ? model_of[set, "sst"] : model_of[set, task]
    if (model == "stories.gguf") model = "examples/models/stories.gguf"
    sub(/^[^ ]+ +[^ ]+ +[^ ]+ +/, "", s)
    sub(/ --save_model [^ ]+/, "", s) # for other rows
    sub(/ |$/, (s ~ / --model / ? "" : " --model " model) " --data DATA --task " task " --seed 1 --threads 2 ", s)
    gsub(/\{OUT\}/, "build/advanced/" base(model), s); gsub(/\{MODEL\}/, model, s); gsub(/\{DATA\}/, "DATA", s)
    gsub(/\{SEED\}/, 1, s); gsub(/\{TASK\}/, task, s)
    fact("command_" task, "make advanced MODEL=" model " DATA=DATA SEEDS=3 ROWS=" plain(name))
    fact("command_" task "_one", "build/" s)
}
function base(path) { sub(/.*\//, "", path); sub(/\.[^.]*$/, "", path); return path }
function put_best(task,    r) {
    r = best_of(task)
    fact("best_" task, r == "" ? "none" : shown(r))
    fact("best_seconds_" task, r == "" ? "none" : sprintf("%.0f", cost(r, task)))
    if (r != "") commands(r, task)
    return r
}
function accuracy(name, row, task, field) { fact(name, count[row, task, field] ? points(mean(row, task, field)) : "(not measured)") }
# How many numbers the rows of the second base model train: one text, or the least and the most.
function second_trained(    i, r, t, n, low, high) {
    for (i = 1; i <= rows; i++)
        for (t = 1; t <= 2; t++) {
            r = order[i]
            n = is_second(r) ? mean(r, t == 1 ? "sst" : "cfimdb", "trained") : 0
            if (n && (!low || n < low)) low = n
            if (n > high) high = n
        }
    return number(low) (number(low) == number(high) ? "" : " to " number(high))
}
function total(    key, n) { for (key in runs) n += runs[key]; return n }
END {
    for (key in runs) {
        split(key, part, SUBSEP)
        if (can_win(part[1]) && runs[key] > enough_runs && enough_runs < 3) enough_runs = runs[key] < 3 ? runs[key] : 3
    }
    fact("runs", total() + 0)
    fact("model", model_of["baseline", "sst"]); fact("second_model", model_of["baseline+", "sst"])
    s = put_best("sst"); c = put_best("cfimdb")
    goal("goal_sst_dev", s, "sst", "dev", .47); goal("goal_sst_test", s, "sst", "test", .46)
    goal("goal_cfimdb_dev", c, "cfimdb", "dev", .93); goal("goal_cfimdb_gold", c, "cfimdb", "gold", .93)
    accuracy("best_sst_dev", s, "sst", "dev"); accuracy("best_sst_test", s, "sst", "test")
    accuracy("best_cfimdb_dev", c, "cfimdb", "dev"); accuracy("best_cfimdb_gold", c, "cfimdb", "gold")
    accuracy("average_dev", "yardstick-average", "sst", "dev"); accuracy("average_test", "yardstick-average", "sst", "test")
    accuracy("words_dev", "yardstick-words", "cfimdb", "dev"); accuracy("words_gold", "yardstick-words", "cfimdb", "gold")
    twice = count["baseline+", "sst", "dev"] > 1 || count["baseline+", "cfimdb", "dev"] > 1
    fact("second_verdicts", twice ? "▲ and ▼: against its own baseline" : "without verdicts: its baseline has not run with two seeds")
    fact("second_trained", second_trained())
    fact("long_note", runs["baseline-long", "sst"] ? "" : " (not run yet)")
    fastest("fastest_sst", "sst", .411); fastest("fastest_cfimdb", "cfimdb", .833)
    count_verdicts("sst"); count_verdicts("cfimdb")
}
