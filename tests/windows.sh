#!/bin/sh
# windows.sh [quick]: what can be tried for Windows without it. clang reads the header, the examples and the tools by the
# rules of Microsoft's compiler (tests/compile/msvc.h stands for its C library and windows.h); mingw-w64 compiles all
# examples, tools and tests; wine runs the tests, and programs on files with letters that no code page has. quick: a few
# programs and two tests. TESTS="load save" sh tests/windows.sh: these. What is not installed is skipped, with a sentence.
# The last line is the sum. WINDOWS_BUILD is the folder (build/windows).
cd "$(dirname "$0")/.." || exit 1
export LC_ALL=C

# --run PROGRAM ARGUMENTS...: mingw gives a program the ending that Windows wants, and lines end in CR LF there.
if [ "$1" = --run ]; then
    program=$2
    shift 2
    exec 3>&1
    status=$({ { wine "$program.exe" "$@" && echo 0 >&4 || echo 1 >&4; } | tr -d '\r' >&3; } 4>&1)
    exit "$status"
fi

out=${WINDOWS_BUILD:-build/windows}
mingw=x86_64-w64-mingw32-gcc
passed=0 failed=0 skipped=0

has() { command -v "$1" >/dev/null; }
skip() { echo "skipped: $1" && skipped=$((skipped + 1)); }
try() { # try NAME COMMAND...
    name=$1
    shift
    if said=$("$@" 2>&1); then
        echo "ok $name" && passed=$((passed + 1))
    else
        echo "FAILED $name" && printf '%s\n' "$said" | head -n 30 && failed=$((failed + 1))
    fi
}

# By the rules of Microsoft's compiler. C++14 is the least that it has.
msvc() {
    clang "$@" --target=x86_64-pc-windows-msvc -ffreestanding -fsyntax-only -Wall -Wextra -Wpedantic -Wvla -Wshadow \
        -Wconversion -Werror -isystem "$out/msvc" -I.
}
library=tests/compile/implementation.c
read_as_msvc() {
    mkdir -p "$out/msvc"
    for header in assert ctype direct errno fcntl io math process psapi shellapi signal stdio stdlib string time wchar windows; do
        echo '#include "tests/compile/msvc.h"' >"$out/msvc/$header.h"
    done
    printf '#define near\n#define far\n' >>"$out/msvc/windows.h"
    try "MSVC, C99" msvc -std=c99 $library
    try "MSVC, C11, AVX2" msvc -std=c11 -mavx2 -mfma -mf16c $library
    try "MSVC, C++14" msvc -x c++ -std=c++14 $library
    try "MSVC, C++20" msvc -x c++ -std=c++20 $library
    for switch in ML_NO_STDIO ML_NO_SAVE ML_NO_TRAINING; do try "MSVC, $switch" msvc -std=c99 -D$switch $library; done
    for folder in examples examples/pretrain examples/run_llama examples/advanced examples/advanced/common \
        examples/lessons examples/lessons/solutions tools tools/bpe; do
        try "MSVC, $folder" msvc -std=c11 $folder/*.c
    done
}

# Warnings about isfinite are mingw's own: its macros convert to each type of float.
build() { # build MAKE'S ARGUMENTS...
    ${MAKE:-make} -s -k BUILD="$out" CC=$mingw RUNNER="sh tests/windows.sh --run" ARCH=-mavx2\ -mfma\ -mf16c OPENMP= QUICK= \
        LEVEL=-O1 INSIDE_LEVEL=-O0 CFLAGS="-static -Wno-float-conversion -Werror" "$@"
}

# Names of files, as arguments of a program: read, written beside, and said.
other_letters() {
    from="$out/Märchen ☃.gguf" to="$out/größer ☃.gguf"
    cp examples/models/stories.gguf "$from" && rm -f "$to" && export LC_ALL=C.UTF-8
    wine "$out/convert.exe" --type F16 "$from" "$to" && [ -s "$to" ] && wine "$out/inspect.exe" "$to" &&
        ! said=$(wine "$out/convert.exe" "$from" "$from" 2>&1) && case $said in *"Märchen ☃.gguf"*) ;; *) false ;; esac
}

# Without those that start or stop other programs, or run shell scripts.
all_tests='adapters adversarial archive archive_save attention bpe byte_level chat components decoding efficient formats forward
functions fuzz_archive fuzz_load fuzz_parts fuzz_tokenizer generate gradients head_files hostile interpolate kernels llama load look operations
optimizer parts plain plot quant regularize rope save session small tokenizer train tuning yardsticks zero_shot'
programs='all'
[ "$1" = quick ] && all_tests='archive load' && programs="$out/generate $out/run_llama $out/table $out/convert $out/inspect"

if has clang; then read_as_msvc; else skip "the rules of MSVC: there is no clang"; fi
if ! has $mingw; then
    skip "mingw: there is no $mingw"
else
    for flags in "-std=c99" "-std=c99 -mavx2 -mfma -mf16c" "-std=c99 -DML_NO_STDIO"; do
        try "mingw, $flags" $mingw $flags -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror -I. -fsyntax-only \
            -include windows.h tests/compile/implementation.c
    done
    try "mingw, the programs" build $programs
    if has wine; then
        export LIMIT=3600 WINEDEBUG=-all WINEPREFIX="${WINEPREFIX:-$PWD/$out/wine}"
        case $out in /*) WINEPREFIX=$out/wine ;; esac
        (other_letters) >"$out/letters.log" 2>&1
        try "wine, other letters" expr $? = 0
        tests=
        for test in ${TESTS:-$all_tests}; do tests="$tests $out/test_$test"; done
        build test TESTS="$tests" >"$out/tests.log" 2>&1
        grep -v '^[0-9]* passed, ' "$out/tests.log"
        counts=$(grep '^[0-9]* passed, [0-9]* failed, [0-9]* skipped$' "$out/tests.log" | tail -n 1)
        set -- ${counts:-0 passed, 1 failed, 0 skipped}
        passed=$((passed + $1)) failed=$((failed + $3)) skipped=$((skipped + $5))
    else
        skip "the tests: there is no wine"
    fi
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
