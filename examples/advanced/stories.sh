#!/bin/sh
# What decoding is measured with, from a file of TinyStories (Eldan & Li 2023) whose stories are divided by lines
# <|endoftext|>, the beginning of the validation split:
#
#     sh examples/advanced/stories.sh STORIES FOLDER
#
# FOLDER/stories.txt: the first 1555 stories, on which examples/models/stories.gguf was trained; held.txt: the others, one
# a line; prompts.txt: the first six words of 60 of these.
set -e
[ $# = 2 ] || { echo "usage: sh stories.sh STORIES FOLDER" >&2; exit 2; }
[ -f "$1" ] || { echo "$1: there is no such file" >&2; exit 1; }
for name in stories held prompts; do
    [ ! "$1" -ef "$2/$name.txt" ] ||
        { echo "$2/$name.txt is also read, and would be lost: name another FOLDER" >&2; exit 1; }
done
trap 'rm -f "$2"/*.part.$$' EXIT # where another of these may write, too
awk -v folder="$2" -v pid=$$ 'BEGIN { RS = "<[|]endoftext[|]>" }
    { gsub(/\r/, ""); gsub(/^[ \n]+|[ \n]+$/, "") }
    $0 == "" { next }
    ++n <= 1555 { printf "%s%s\n", (n > 1 ? "<|endoftext|>\n" : ""), $0 > (folder "/stories.part." pid); next }
    { gsub(/[ \n]+/, " "); print > (folder "/held.part." pid) }
    n <= 1555 + 60 { split($0, word, " "); print word[1], word[2], word[3], word[4], word[5], word[6] > (folder "/prompts.part." pid) }
    END { if (n <= 1555) { print "there are only " n + 0 " stories, not more than 1555" > "/dev/stderr"; exit 1 } }' "$1"
for name in stories held prompts; do mv "$2/$name.part.$$" "$2/$name.txt"; done # they are complete
