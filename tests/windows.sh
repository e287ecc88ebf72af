#!/bin/sh
# windows.sh [quick]: what can be tried for Windows without it. clang reads the header by the rules of Microsoft's
# compiler (tests/compile/msvc.h stands for its C library); mingw-w64 compiles all examples, tools and tests; wine runs
# the tests. quick: three programs and two tests. TESTS="load save": these. What is not installed is skipped, with a
# sentence. The last line is the sum. WINDOWS_BUILD is the folder (build/windows).
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
    clang "$@" --target=x86_64-pc-windows-msvc -ffreestanding -fsyntax-only -Wall -Wextra -Wshadow -Wconversion -Werror \
        -isystem "$out/msvc" -I. tests/compile/implementation.c
}
read_as_msvc() {
    mkdir -p "$out/msvc"
    for header in assert errno io math stdio stdlib string wchar; do
        echo '#include "tests/compile/msvc.h"' >"$out/msvc/$header.h"
    done
    try "MSVC, C99" msvc -std=c99
    try "MSVC, C11, AVX2" msvc -std=c11 -mavx2 -mfma -mf16c
    try "MSVC, C++14" msvc -x c++ -std=c++14
    try "MSVC, C++20" msvc -x c++ -std=c++20
    for switch in ML_NO_STDIO ML_NO_SAVE ML_NO_TRAINING; do try "MSVC, $switch" msvc -std=c99 -D$switch; done
}

# Warnings about isfinite are mingw's own: its macros convert to each type of float.
build() { # build MAKE'S ARGUMENTS...
    ${MAKE:-make} -s -k BUILD="$out" CC=$mingw RUNNER="sh tests/windows.sh --run" ARCH=-mavx2\ -mfma\ -mf16c OPENMP= QUICK= \
        CFLAGS="-static -O1 -Wno-float-conversion -Werror" "$@"
}

# Without those that start or stop other programs, or run shell scripts.
all_tests='adapters adversarial archive archive_save attention bpe byte_level components decoding efficient formats forward
fuzz_archive fuzz_load fuzz_tokenizer generate gradients head_files hostile interpolate kernels llama load look operations
optimizer parts plain plot quant regularize rope save session table tokenizer train tuning yardsticks zero_shot'
programs='all'
[ "$1" = quick ] && all_tests='archive load' && programs="$out/generate $out/run_llama $out/table"

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
        export WINEDEBUG=-all WINEPREFIX="${WINEPREFIX:-$PWD/$out/wine}"
        case $out in /*) WINEPREFIX=$out/wine ;; esac
        tests=
        for test in ${TESTS:-$all_tests}; do tests="$tests $out/test_$test"; done
        build test TESTS="$tests" >"$out/tests.log" 2>&1
        grep -v '^[0-9]* passed, ' "$out/tests.log"
        counts=$(tail -n 1 "$out/tests.log" | grep '^[0-9]* passed, [0-9]* failed, [0-9]* skipped$')
        set -- ${counts:-0 passed, 1 failed, 0 skipped}
        passed=$((passed + $1)) failed=$((failed + $3)) skipped=$((skipped + $5))
    else
        skip "the tests: there is no wine"
    fi
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
