#!/bin/sh
# check.sh [quick]: builds and runs the header in every way that it offers, without one warning: compilers x standards
# x instruction sets, each leave-out switch, several translation units; then (unless quick) all tests in each
# instruction set. What the machine lacks is skipped, with a sentence. The last line is the sum. quick: what `make test`
# does not compile anyway and finds most faults a second: mostly without code, or without optimization; a quarter of the
# time. CHECK_BUILD is the folder (build/check).
cd "$(dirname "$0")/.." || exit 1
export LC_ALL=C
flags="-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror -I."

# One job of the lists below: NAME|COMMAND.
if [ "$1" = --job ]; then
    if output=$(sh -c "${2#*|}" 2>&1); then
        echo "ok ${2%%|*}"
    else
        printf 'FAILED %s\n%s\n%s\n' "${2%%|*}" "${2#*|}" "$(printf "%s\n" "$output" | head -n 30)"
    fi
    exit 0
fi

# The public functions that the header declares with these switches, and those that an object of it defines.
declared() {
    "$@" -E -P -DML_DEF=ML_PUBLIC minillama.h 2>/dev/null | tr '\n' ' ' | grep -o 'ML_PUBLIC [^(;]*(' |
        sed 's/.*[ *]\(ml_[a-z0-9_]*\) *($/\1/' | sort
}
# Those that it defines there, by its text: without a compilation.
written() {
    "$@" -E -P -DMINILLAMA_IMPLEMENTATION -DML_DEF=ML_PUBLIC minillama.h 2>/dev/null | tr '\n' ' ' |
        grep -o 'ML_PUBLIC [^;{]*[;{]' | sed -n 's/^\([^(]*\)(.*{$/\1/; s/.*[ *]\(ml_[a-z0-9_]*\) *$/\1/p' | sort
}
defined() { nm -g "$1" | sed -n 's/^.* [TDBRS] _*\(.*\)/\1/p' | sort; }

# --same OBJECT COMPILER SWITCH...: do the two agree? Everything else that an object shows is a mistake.
if [ "$1" = --same ]; then
    object=$2
    shift 2
    "$@" -std=c99 -O0 $flags -c tests/compile/implementation.c -o "$object" || exit 1
    declared "$@" -x c >"$object.declared"
    defined "$object" >"$object.defined"
    [ -s "$object.declared" ] && diff "$object.declared" "$object.defined"
    exit
fi

# --text FILE COMPILER SWITCH...: the same, without an object.
if [ "$1" = --text ]; then
    file=$2
    shift 2
    declared "$@" -x c >"$file.declared"
    written "$@" -x c >"$file.written"
    [ -s "$file.declared" ] && diff "$file.declared" "$file.written"
    exit
fi

quick=$1
out=${CHECK_BUILD:-build/check}
here=tests/compile
jobs=$(nproc 2>/dev/null || echo 2)
rm -rf $out && mkdir -p $out

has() { command -v "$1" >/dev/null; }
skip() { echo "skipped $1: $2"; }
cpu_has() { for flag; do grep -qsw "$flag" /proc/cpuinfo || return 1; done; }

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

# A different optimization level for each standard: compilers warn of different things at each.
level() { case $1 in c99) echo -O3 ;; c11) echo -O2 ;; c++11) echo -O1 ;; c++17) echo -O0 ;; esac; }
quick_matrix() { # gcc's C of this processor is in `make test`
    for cc in $compilers; do
        looks "$cc c++11" $(cxx_of $cc) -x c++ -std=c++11 -march=native
        case $cc in gcc) path=x86-64 std=c++11 ;; *) path=native std=c99 ;; esac
        job "$cc $std $path" $cc $std "$(path_flags $path)" $here/one.c
    done
}
matrix() {
    [ ! "$quick" ] || { quick_matrix && return; }
    for cc in $compilers; do
        for std in $standards; do
            for path in $matrix_paths; do
                path_runs $path || continue
                job "$cc $std $(level $std) $path" $cc $std "$(level $std) $(path_flags $path)" $here/one.c
            done
        done
    done
}

# The rest of standards and optimization levels, once each; whole programs at link time; other C libraries and compilers.
more() {
    for cc in $compilers; do
        for level in -O0 -O1 -O2 -Os -Og; do job "$cc c99 $level" $cc c99 "$level -march=native" $here/one.c; done
        for std in c17 c2x c++14 c++20 c++2b; do
            case $std in c++*) language=c++ ;; *) language=c ;; esac
            accepts $cc -x $language -std=$std && job "$cc $std -Os" $cc $std "-Os -march=native" $here/one.c
        done
        callers="$here/main.c $here/caller_a.c $here/caller_b.c $here/implementation.c"
        accepts $cc -x c -O2 -flto && job "$cc -flto" $cc c99 "-O2 -flto" "$callers"
        [ "$(uname -m)" != x86_64 ] || job "$cc -masm=intel" $cc c99 "-O3 -march=native -masm=intel" $here/root.c
    done
    musl=/usr/include/$(uname -m)-linux-musl # of which those of Emscripten are made
    has clang && [ -d $musl ] &&
        looks "clang, headers of Emscripten" clang --target=wasm64-unknown-emscripten -isystem $musl -std=c99
    has tcc && job "tcc" tcc c99 "" $here/one.c
    has musl-gcc && job "musl" musl-gcc c99 "-O2 -static" $here/one.c
    has gcc && job "gcc -fshort-enums" gcc c99 "-march=native -fshort-enums" $here/one.c # as on microcontrollers
    true
}

# Every switch that the header knows, one at a time (quick: without its code) and all at once; gcc as C, clang as C++.
switches=$(grep -oE 'ML_NO_[A-Z0-9_]+' minillama.h | sort -u)
leave_out() {
    for cc in $compilers; do
        case $cc in clang) std=c++11 ;; *) std=c99 ;; esac
        for switch in $switches; do
            if [ ! "$quick" ]; then
                job "$cc $std $switch" $cc $std "-march=native -D$switch" $here/one.c
            elif [ $cc = clang ]; then
                looks "clang++ $switch" clang++ -x c++ -std=c++11 -march=native -D$switch
            fi # gcc has their text in `symbols`
        done
        job "$cc $std without all of it" $cc $std "$(printf ' -D%s' $switches)" $here/one.c
        job "$cc $std GGUF only" $cc $std "-DML_NO_PT -DML_NO_JSON -DML_NO_BIN -DML_NO_SAVE" $here/one.c
        [ "$quick" ] && continue # `freestanding` has smaller ones
        job "$cc $std small" $cc $std "-march=native -Os" $here/one.c
        job "$cc $std small, plain" $cc $std "-Os -DML_NO_SIMD" $here/one.c
        job "$cc $std ML_SMALL" $cc $std "-O2 -march=native -DML_SMALL" $here/one.c
    done
    [ ! "$quick" ] || job "gcc small" gcc c99 "-march=native -Os" $here/one.c
}

# Two callers with one implementation, two with a static one each, and C++ that calls C.
units() {
    callers="$here/main.c $here/caller_a.c $here/caller_b.c" level=-O1
    [ ! "$quick" ] || level=-O0
    for cc in $compilers; do
        job "$cc callers and implementation" $cc c99 $level $callers $here/implementation.c
        job "$cc without POSIX" $cc c99 $level $here/no_system.c
        for std in c99 c++11; do
            [ "$quick" ] && [ "$cc $std" = "clang c99" ] && continue
            job "$cc $std static in two units" $cc $std "$level -DML_STATIC -DMINILLAMA_IMPLEMENTATION" $callers
        done
        o=$out/$cc-c.o
        echo "$cc C++ calls C|$cc -std=c99 $level $flags -c $here/implementation.c -o $o && \
$(cxx_of $cc) -std=c++11 $level $flags -x c++ $callers -x none $o -o $out/$cc-mixed -lm && $out/$cc-mixed"
    done
}

# Compilers that are newer or older than the usual one, and standards to come: only whether there are warnings.
mingw=x86_64-w64-mingw32-gcc
newer="gcc-10 gcc-11 gcc-13 gcc-14 gcc-15 clang-13 clang-15 clang-16 clang-17 clang-18 clang-19 clang-20 clang-21"
accepts() { printf '#include <errno.h>\nint main() { return 0; }\n' | "$@" -o $out/accepted - -lm 2>/dev/null; }
looks() { # looks NAME COMMAND...: compiles the implementation, without its code
    name=$1
    shift
    echo "no warnings, $name|$* $flags -fsyntax-only $here/implementation.c"
}
warnings() {
    for cc in $compilers $(for cc in $newer; do has $cc && echo $cc; done); do
        case $cc in clang*) cxx=clang++${cc#clang} ;; *) cxx=g++${cc#gcc} ;; esac
        accepts $cc -x c -std=c2x && looks "$cc c2x" $cc -std=c2x -march=native
        for std in $newest_cxx; do # in C++26 arithmetic between enumerations is an error
            accepts $cxx -x c++ -std=$std && looks "$cxx $std" $cxx -x c++ -std=$std -march=native
        done
        has $cxx && looks "$cxx, casts" $cxx -x c++ -std=c++17 -Wold-style-cast -Wundef
    done
    has g++ && looks "g++, useless casts" g++ -x c++ -std=c++17 -Wold-style-cast -Wuseless-cast -march=native
    accepts gcc -m32 -x c && looks "gcc, 32 bits" gcc -std=c99 -m32 -O2
    for cc in gcc g++; do # an enum is then one byte without a sign, as with arm-none-eabi-gcc
        case $cc in g++) language="-x c++ -std=c++11" ;; *) language=-std=c99 ;; esac
        has $cc && looks "$cc -fshort-enums" $cc $language -fshort-enums
    done
    for cc in i686 arm-linux-gnueabihf aarch64 riscv64 s390x powerpc mips; do
        case $cc in *-*) cc=$cc-gcc ;; *) cc=$cc-linux-gnu-gcc ;; esac
        has $cc && looks "$cc" $cc -std=c99 -O2
    done
    has arm-none-eabi-gcc && looks "arm-none-eabi-gcc" arm-none-eabi-gcc -std=c99 -mcpu=cortex-m4 -mthumb -DML_NO_STDIO
    true
}

# With ML_STATIC a file without the implementation has no warning, unless it calls what is not there; without it the
# options that break what NUMERICS promises do not compile, unless they are asked for.
refusals() {
    for cc in $compilers; do
        for cxx in "$cc -x c -std=c99" "$(cxx_of $cc) -x c++ -std=c++11"; do
            compile="$cxx $flags -DML_STATIC -S -o /dev/null"
            echo "${cxx%% *}, static declarations alone|echo '#include \"minillama.h\"' | $compile -"
            echo "${cxx%% *}, a static function without a body|$compile $here/left_out.c 2>&1 | \
grep -q 'ml_trainer_step.* defined'"
            echo "${cxx%% *}, after macros of other libraries|$cxx $flags -fsyntax-only $here/macros.c"
        done
        unsafe= # of which clang says nothing
        case $cc in *clang*) ;; *) unsafe="-O2 -funsafe-math-optimizations" ;; esac
        for fast in -Ofast "-O2 -ffast-math" "-O1 -ffinite-math-only" "$unsafe"; do
            [ "$fast" ] || continue
            echo "$cc refuses $fast|$cc -std=c99 $flags $fast -fsyntax-only $here/implementation.c 2>&1 | \
grep -q 'Compile with -O3'"
        done
        [ "$quick" ] || job "$cc -ffast-math allowed" $cc c99 "-march=native -O3 -ffast-math -DML_ALLOW_FAST_MATH" $here/one.c
    done
}

# The object file, with each switch: it has no warning, it defines the functions that the header declares and nothing
# else, and it calls nothing that a switch leaves out. A function of a part that is left out cannot be called.
symbols() {
    cc=$(echo $compilers | cut -d ' ' -f 1)
    for switch in ML_ALL $switches; do
        if [ "$quick" ] && [ $switch != ML_ALL ]; then
            echo "declares and defines the same functions, $switch|sh $0 --text $out/$switch $cc -D$switch"
        else
            echo "declares and defines the same functions, $switch object|sh $0 --same $out/$switch.o $cc -D$switch"
        fi
    done
    echo "a left-out function is not declared|! $cc -std=c99 -Werror -I. -DML_NO_TRAINING -fsyntax-only $here/left_out.c \
2>$out/left_out && grep -q ml_trainer_step $out/left_out && $cc -std=c99 -Werror -I. -fsyntax-only $here/left_out.c"
    echo "the recipes of the opening comment compile|sh tests/manual.sh >$out/manual.c && \
$cc -std=c99 -Wall -Wshadow -Wconversion -Werror -I. -o $out/manual $out/manual.c -lm"
    echo "ML_NO_MALLOC calls no malloc|$(object malloc -DML_NO_MALLOC) && \
! nm -u $out/malloc.o | grep -E ' (malloc|calloc|realloc|free)\$'"
    echo "ML_NO_STDIO opens and prints nothing|$(object stdio -DML_NO_STDIO) && \
! nm -u $out/stdio.o | grep -E ' (f[a-z]*open|fread|fwrite|open|read|write|mmap|rename|remove|[a-z]*printf|put[a-z]*)\$'"
}

# Windows, where mingw is installed: compiled with windows.h first, whose macros and types must not matter.
windows() {
    mingw=x86_64-w64-mingw32
    after="-include windows.h -fsyntax-only $here/implementation.c"
    for switch in "" -DML_NO_SAVE -DML_NO_STDIO; do
        [ "$quick" ] && [ "$switch" = -DML_NO_SAVE ] && continue
        has $mingw-gcc && echo "mingw C $switch|$mingw-gcc -std=c99 $flags $switch $after"
        has $mingw-g++ && echo "mingw C++ $switch|$mingw-g++ -std=c++11 $flags $switch -x c++ $after"
    done
    true
}

# A program without any library, started by hand, writes what the ordinary one writes; its object wants four functions at
# most. The code is that of a small target, whose frames and whole stack are measured.
alone="-DML_NO_STDIO -DML_NO_MALLOC -DML_NO_LIBM"
least="$(sh tools/size.sh --switches)"
wanted="' (memcpy|memmove|memset|memcmp|__aeabi_.*|__.*di.*|__.*[sd]f.*)\$'"
frames() { # frames LIMIT FILE...: every frame that gcc lists is at most so large
    echo "awk '\$(NF - 1) > $1 { print; bad = 1 } END { exit bad || !NR }' $2"
}
freestanding() {
    for cc in $compilers; do
        o=$out/$cc-alone
        [ "$quick" ] && [ $cc = clang ] || echo "$cc, four functions wanted|$cc -std=c99 -O2 $flags -ffreestanding $alone -c $here/implementation.c -o $o.o && \
! nm -u $o.o | grep -vE $wanted"
        [ "$quick" ] || echo "$cc, the four defined|$cc -std=c99 -O2 $flags -ffreestanding $alone -DML_MEMORY_FUNCTIONS -c \
$here/implementation.c -o $o-all.o && [ -z \"\$(nm -u $o-all.o)\" ]"
        [ "$(uname -sm)" = "Linux x86_64" ] || continue
        for level in $alone_levels; do
            echo "$cc $level, a story without any library|$cc -std=gnu99 $level -march=native -w -I. $alone -ffreestanding \
-DML_MEMORY_FUNCTIONS -nostdlib -static -fno-stack-protector $here/freestanding.c -o $o$level && \
$cc -std=gnu99 -O0 -march=native -w -I. -DHOSTED $here/freestanding.c -o $o-hosted$level -lm && \
$o$level >$o$level.text && $o-hosted$level | cmp - $o$level.text && [ -s $o$level.text ]"
        done
    done
    has gcc && echo "gcc -Os, frames of 1 KB at most|top=\$PWD && cd $out && gcc -std=gnu99 -Os -w -I\$top $least -DHOSTED \
-DML_NO_SIMD -fstack-usage -c \$top/$here/freestanding.c -o frames.o -DMODEL='\"'\$top'/examples/models/stories.gguf\"' && \
$(frames 1024 frames.su)"
    arm=arm-none-eabi-gcc
    [ ! "$quick" ] && has $arm || return 0 # the programs for the board are in make test
    built="$arm -std=gnu99 -Os -w -mcpu=cortex-m4 -mthumb -mfloat-abi=hard -mfpu=fpv4-sp-d16 -ffunction-sections -I. $least \
-nostdlib -Wl,--gc-sections -Wl,-Ttext-segment=0x100000"
    echo "Cortex-M4, linked without a library, frames of 1 KB and code of 41 KB at most|$built -fstack-usage \
$here/freestanding.c -lgcc -o $out/cortex && $(frames 1024 "$out/cortex*.su") && \
arm-none-eabi-size -A $out/cortex | awk '/^.text/ { print; bad = \$2 > 41984 } END { exit bad }'"
    has qemu-arm || return 0
    echo "Cortex-M4, the same story|$built -DLINUX $here/freestanding.c -lgcc -o $out/cortex-run && qemu-arm $out/cortex-run \
>$out/cortex.text && gcc -std=gnu99 -O1 -w -I. -DHOSTED -DML_NO_SIMD $here/freestanding.c -o $out/story -lm && \
$out/story | cmp - $out/cortex.text"
    echo "Cortex-M4, 4 KB of stack|$built -DLINUX -DSTACK $here/freestanding.c -lgcc -o $out/cortex-stack && \
bytes=\$(qemu-arm $out/cortex-stack) && echo \$bytes && [ \$bytes -le 4096 ]"
}

object() { echo "$(echo $compilers | cut -d ' ' -f 1) -std=c99 -O0 -I. $2 -c $here/implementation.c -o $out/$1.o"; }

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
    test_paths= newest_cxx="c++2b c++2c" alone_levels=-O2
else
    newest_cxx="c++20 c++2b c++2c" alone_levels="-O2 -Os"
    standards="c99 c11 c++11 c++17" matrix_paths=$paths test_paths=${paths#scalar x86-64 }
fi
{
    for cc in gcc clang $mingw; do has $cc || skip $cc "it is not installed"; done
    [ "$quick" ] || { has arm-none-eabi-gcc && has qemu-arm; } || skip "Cortex-M4" "that takes arm-none-eabi-gcc and qemu-arm"
    accepts gcc -m32 -x c || has i686-linux-gnu-gcc || skip "32 bits" "that takes gcc-multilib or gcc-i686-linux-gnu"
    [ "$quick" ] || for cc in tcc musl-gcc; do has $cc || skip $cc "it is not installed"; done
    absent=$(for cc in $newer; do has $cc || echo $cc; done)
    [ "$quick" ] || [ -z "$absent" ] || skip "other versions" "not installed: $(echo $absent)"
    { matrix && { [ "$quick" ] || more; } && leave_out && units && warnings && refusals && symbols && freestanding && windows; } | tr '\n' '\0' | xargs -0 -n 1 -P "$jobs" sh "$0" --job
    [ "$quick" ] || all_tests
} | tee $out/log

awk '/^ok /      { passed++ }
     /^FAILED /  { failed++ }
     /^skipped / { skipped++ }
     /^tests .*: [0-9]+ passed, / { n = split($0, at, ": "); split(at[n], count, " ");
                                    passed += count[1]; failed += count[3]; skipped += count[5] }
     END { if (!passed) failed++
           printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped; exit failed > 0 }' $out/log
