# The files of known runs, out of a CSV file with all of them; those that are there stay as they are:
#     awk -v out=OUT -f csv.awk -f restore.awk results.csv
FNR == 1 { find_columns($0, at); head = $0; sub(/^[^,]*,/, "", head); next }
{
    fields($0, field)
    file = field[1] "-" field[at["task"]] "-" field[at["seed"]] ".csv"
    if (file !~ /^[A-Za-z0-9._]+(-[A-Za-z0-9._]+)*-[0-9]+\.csv$/) { print "no run: " $0 > "/dev/stderr"; failed = 1; next }
    file = out "/" file
    is_there = (getline line < file) > 0 # an empty file is no run
    close(file)
    if (is_there) next
    row = $0
    sub(/^[^,]*,/, "", row)
    print head "\n" row > file
    close(file)
    n++
}
END { print n + 0 " runs are known"; exit failed }
