#!/usr/bin/python3
"""The table of letters and numbers in minillama.h (>>words, mli_unicode_starts), from Python's unicodedata.

    python3 tools/unicode_classes.py     (prints the table, to be pasted into the header)

An entry says from which code point on characters are of another class: 4 * code point + class. Classes: 0 neither of
the following, 1 a letter (Unicode's categories L*), 2 a number (N*). ASCII is not in it: the header compares there.
"""
import sys
import unicodedata

MOST = 110  # columns


def class_of(code):
    return {"L": 1, "N": 2}.get(unicodedata.category(chr(code))[0], 0)


def starts():
    last = 0
    for code in range(0x80, sys.maxunicode + 1):
        if class_of(code) != last:
            last = class_of(code)
            yield 4 * code + last


def main():
    entries = list(starts())
    print(f"/* Unicode {unicodedata.unidata_version}; {len(entries)} entries, {4 * len(entries)} bytes. */")
    print("/* clang-format off */")
    print("static const uint32_t mli_unicode_starts[] = {")
    line = "   "
    for i, entry in enumerate(entries):
        text = f" {entry:#x}" + ("," if i + 1 < len(entries) else "};")
        if len(line + text) > MOST:
            print(line)
            line = "   "
        line += text
    print(line)
    print("/* clang-format on */")


main()
