#!/bin/sh
# check.sh [quick]: builds and runs the header in every way that it offers, without one warning: compilers x standards x
# instruction sets, each leave-out switch, several translation units; then (unless quick) all tests in each
# instruction set. What the machine lacks is skipped, with a sentence. The last line sums up.
cd "$(dirname "$0")/.." || exit 1

# One job of the lists below: NAME|COMMAND.
if [ "$1" = --job ]; then
    if output=$(sh -c "${2#*|}" 2>&1); then
        echo "ok ${2%%|*}"
    else
        printf 'FAILED %s\n%s\n%s\n' "${2%%|*}" "${2#*|}" "$(printf "%s\n" "$output" | head -n 30)"
    fi
    exit 0
fi

quick=$1
out=build/check
here=tests/compile
flags="-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror -I."
jobs=$(nproc 2>/dev/null || echo 2)
rm -rf $out && mkdir -p $out

has() { command -v "$1" >/dev/null; }
skip() { echo "skipped $1: $2"; }
cpu_has() { for flag; do grep -qw "$flag" /proc/cpuinfo || return 1; done; }

# Instruction sets, the flags that choose them, and whether this processor has them.
case $(uname -m) in
x86_64) paths="scalar x86-64 avx2 avx512 native" ;;
*) paths="scalar native" ;;
esac
path_flags() {
    case $1 in
    scalar) echo "-march=native -DML_NO_SIMD" ;;
    x86-64) echo "-march=x86-64" ;;
    avx2) echo "-mavx2 -mfma -mf16c" ;;
    avx512) echo "-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq" ;; # without VNNI
    native) echo "-march=native" ;;
    esac
}
path_runs() {
    case $1 in
    avx2) cpu_has avx2 fma f16c ;;
    avx512) cpu_has avx2 fma f16c avx512f avx512bw avx512vl avx512dq ;;
    esac
}

compilers=$(for cc in gcc clang; do has $cc && echo $cc; done)
cxx_of() { case $1 in *gcc) echo "${1%gcc}g++" ;; *) echo "$1++" ;; esac; }

# job NAME COMPILER STANDARD FLAGS SOURCES...: builds a program and runs it; prints the job.
job() {
    name=$1 compiler=$2 standard=$3 more=$4
    shift 4
    program=$out/$(echo "$name" | tr -c 'a-zA-Z0-9+\n' '-')
    case $standard in c++*) compiler="$(cxx_of $compiler) -x c++" ;; esac
    echo "$name|$compiler -std=$standard -O1 $flags $more $* -o $program -lm && $program"
}

# Each standard at an optimisation level of its own: a compiler warns of other things at each.
level() { case $1 in c99) echo -O3 ;; c11) echo -O2 ;; c++11) echo -O1 ;; c++17) echo -O0 ;; esac; }
matrix() {
    for cc in $compilers; do
        for std in $standards; do
            for path in $matrix_paths; do
                path_runs $path || continue
                job "$cc $std $(level $std) $path" $cc $std "$(level $std) $(path_flags $path)" $here/one.c
            done
        done
    done
}

# Every switch that the header knows, one at a time and all at once; gcc as C, clang as C++.
leave_out() {
    switches=$(grep -oE 'ML_NO_[A-Z0-9_]+' minillama.h | sort -u)
    for cc in $compilers; do
        case $cc in clang) std=c++11 ;; *) std=c99 ;; esac
        for switch in $switches; do job "$cc $std $switch" $cc $std "-march=native -D$switch" $here/one.c; done
        job "$cc $std without all of it" $cc $std "$(printf ' -D%s' $switches)" $here/one.c
    done
}

# Two callers with one implementation, two with a static one each, and C++ that calls C.
units() {
    callers="$here/main.c $here/caller_a.c $here/caller_b.c"
    for cc in $compilers; do
        job "$cc callers and implementation" $cc c99 "" $callers $here/implementation.c
        for std in c99 c++11; do
            job "$cc $std static in two units" $cc $std "-DML_STATIC -DMINILLAMA_IMPLEMENTATION" $callers
        done
        o=$out/$cc-c.o
        echo "$cc C++ calls C|$cc -std=c99 -O1 $flags -c $here/implementation.c -o $o && \
$(cxx_of $cc) -std=c++11 -O1 $flags -x c++ $callers -x none $o -o $out/$cc-mixed -lm && $out/$cc-mixed"
    done
}

# The object file: it defines every public function, shows nothing else, and calls nothing that a switch leaves out.
symbols() {
    public=$(sed -n 's/^ML_DEF .*[ *]\(ml_[a-z0-9_]*\)(.*/\1/p' minillama.h)
    echo "defines every public function|$(object all "") && \
for f in $(echo $public); do nm $out/all.o | grep -q \" T \$f\$\" || { echo \$f is missing; exit 1; }; done"
    echo "shows only ml_ names|$(object visible "") && ! nm -g --defined-only $out/visible.o | grep -v ' ml_'"
    echo "ML_NO_MALLOC calls no malloc|$(object malloc -DML_NO_MALLOC) && \
! nm -u $out/malloc.o | grep -E ' (malloc|calloc|realloc|free)\$'"
    echo "ML_NO_STDIO opens and prints nothing|$(object stdio -DML_NO_STDIO) && \
! nm -u $out/stdio.o | grep -E ' (f[a-z]*open|fread|fwrite|open|read|write|mmap|rename|remove|[a-z]*printf|put[a-z]*)\$'"
}
object() { echo "$(echo $compilers | cut -d ' ' -f 1) -std=c99 -O1 -I. $2 -c $here/implementation.c -o $out/$1.o"; }

# tests_in NAME VARIABLE=VALUE...: all tests, built in one way.
tests_in() {
    name=$1
    shift
    ${MAKE:-make} -s -k -j "$jobs" test BUILD=$out/tests "$@" >$out/tests.log 2>&1
    counts=$(tail -n 1 $out/tests.log | grep '^[0-9]* passed, [0-9]* failed, [0-9]* skipped$')
    case $counts in
    *" 0 failed,"*) ;;
    *) cat $out/tests.log ;;
    esac
    echo "tests $name: ${counts:-0 passed, 1 failed, 0 skipped}"
}

all_tests() {
    for cc in $compilers; do
        for path in $test_paths; do
            if path_runs $path; then
                tests_in "$cc $path" CC=$cc ARCH="$(path_flags $path)" CFLAGS="-O1 -Werror"
            else
                skip "tests $cc $path" "this processor has none of it"
            fi
        done
    done
    if has aarch64-linux-gnu-gcc && has qemu-aarch64; then
        tests_in NEON CC=aarch64-linux-gnu-gcc ARCH= OPENMP= CFLAGS="-static -O1 -Werror" RUNNER=qemu-aarch64
    else
        skip "tests NEON" "that takes aarch64-linux-gnu-gcc and qemu-aarch64"
    fi
}

if [ "$quick" ]; then
    standards="c99 c++11" matrix_paths="x86-64 native" test_paths=
else
    standards="c99 c11 c++11 c++17" matrix_paths=$paths test_paths=${paths#scalar x86-64 }
fi
{
    for cc in gcc clang; do has $cc || skip $cc "it is not installed"; done
    { matrix && leave_out && units && symbols; } | tr '\n' '\0' | xargs -0 -n 1 -P "$jobs" sh "$0" --job
    [ "$quick" ] || all_tests
} | tee $out/log

awk '/^ok /      { passed++ }
     /^FAILED /  { failed++ }
     /^skipped / { skipped++ }
     /^tests .*: [0-9]+ passed, / { n = split($0, at, ": "); split(at[n], count, " ");
                                    passed += count[1]; failed += count[3]; skipped += count[5] }
     END { if (!passed) failed++
           printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped; exit failed > 0 }' $out/log
