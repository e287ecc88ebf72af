#!/bin/sh
# cross.sh [quick | bits | TARGET...]: tests on processors that are not here: for each target below the tests are linked
# statically by Debian's cross compiler (gcc-s390x-linux-gnu and so on) and run by qemu-user; and without vectors, which
# add up in another order, tests/compile/bits.c must print there what it prints here: stories, hashes of logits, losses of
# training, hashes of the weights after it. A target without compiler or emulator is skipped, with a sentence. quick: a
# few tests on one processor with vectors, one big-endian and one of 32 bits. bits: on all of them, but no tests.
# TESTS="load save" sh tests/cross.sh TARGET: these (make has a TESTS of its own). The last line is the sum. CROSS_BUILD
# is the folder (build/cross).
cd "$(dirname "$0")/.." || exit 1
export LC_ALL=C LIMIT=${LIMIT:-7200} # an emulator is slow
out=${CROSS_BUILD:-build/cross}

# TARGET|COMPILER|EMULATOR|FLAGS|WHAT IT SHOWS
targets='aarch64|aarch64-linux-gnu-gcc|qemu-aarch64||NEON
dotprod|aarch64-linux-gnu-gcc|qemu-aarch64|-march=armv8.2-a+dotprod|NEON with dot products of bytes
armhf|arm-linux-gnueabihf-gcc|qemu-arm|-mfpu=neon-vfpv4|32 bits (its vectors are not used)
i686|i686-linux-gnu-gcc|qemu-i386|-msse2 -mfpmath=sse|32 bits
riscv64|riscv64-linux-gnu-gcc|qemu-riscv64||64 bits without vectors
s390x|s390x-linux-gnu-gcc|qemu-s390x|-fexcess-precision=fast|big-endian, 64 bits
powerpc|powerpc-linux-gnu-gcc|qemu-ppc||big-endian, 32 bits
mips|mips-linux-gnu-gcc|qemu-mips||big-endian, 32 bits'

# Not among them: what takes a quarter of an hour and more when it is emulated (generate, resume, session, tokenizer,
# train), and tests of programs and scripts, which are not about the processor.
all_tests='adapters adversarial archive archive_save attention bpe byte_level chat decoding formats forward functions
fuzz_archive fuzz_load fuzz_parts fuzz_tokenizer gradients head_files hostile interpolate kernels llama load look operations
optimizer parts plain quant regularize rope save small'

tests_of() {
    case $quick,$1 in
    quick,aarch64) echo kernels ;;
    quick,s390x) echo archive load ;;
    quick,armhf) echo archive optimizer ;;
    *,dotprod) echo ${TESTS:-kernels quant formats} ;;
    *) echo ${TESTS:-$all_tests} ;;
    esac
}

has() { command -v "$1" >/dev/null; }
count() { echo "$1 passed, $2 failed, $3 skipped" >>"$out/counts"; }

# What the plain build prints; here once, and there.
bits() { # bits COMPILER EMULATOR FLAGS FILE
    $1 -std=c99 -O1 -w -DML_NO_SIMD $3 -I. -o "$4" tests/compile/bits.c -lm && $2 "$4" examples/models/stories.gguf >"$4.txt"
}
compare_bits() { # compare_bits TARGET COMPILER EMULATOR FLAGS
    [ -s "$out/here.txt" ] || bits "${CC:-cc}" "" "" "$out/here" || return 1
    bits "$2" "$3" "-static $4" "$out/$1/bits" && diff "$out/here.txt" "$out/$1/bits.txt"
}

# qemu-ppc 7.2 ends at an instruction in glibc's sine, which older processors take for another one; 10.0 runs it.
runs_libm() { # runs_libm COMPILER EMULATOR FLAGS FILE
    echo '#include <math.h>
int main(int n, char **words) { return words == 0 || sin(n) < 0.8; }' >"$4.c"
    $1 -std=c99 -static $3 "$4.c" -o "$4" -lm && $2 "$4" 2>/dev/null
}

run_target() { # run_target TARGET COMPILER EMULATOR FLAGS WHAT
    for program in "$2" "$3"; do
        has "$program" && continue
        echo "skipped $1 ($5): there is no $program"
        count 0 0 1
        return
    done
    echo "== $1: $5"
    mkdir -p "$out/$1"
    if ! runs_libm "$2" "$3" "$4" "$out/$1/libm"; then
        echo "skipped $1: this $3 does not run the C library's sine; a newer one may"
        count 0 0 1
        return
    fi
    [ "$quick" = bits ] || run_tests "$@"
    if compare_bits "$1" "$2" "$3" "$4"; then count 1 0 0; else echo "FAILED $1: other bits" && count 0 1 0; fi
}

run_tests() { # run_tests TARGET COMPILER EMULATOR FLAGS
    tests=
    for test in $(tests_of "$1"); do tests="$tests $out/$1/test_$test"; done
    ${MAKE:-make} -s -k test BUILD="$out/$1" CC="$2" RUNNER="$3" ARCH= OPENMP= QUICK= TESTS="$tests" \
        CFLAGS="-static -O1 -Werror $4" >"$out/$1.log" 2>&1
    status=$?
    grep -v '^[0-9]* passed, \|^cc \|^link ' "$out/$1.log"
    counts=$(grep '^[0-9]* passed, [0-9]* failed, [0-9]* skipped$' "$out/$1.log" | tail -n 1)
    echo "$1: ${counts:-make failed: exit status $status}"
    echo "${counts:-0 passed, 1 failed, 0 skipped}" >>"$out/counts"
}

quick=
case $1 in
quick) quick=quick && set -- aarch64 s390x armhf ;;
bits) quick=bits && shift ;;
esac
mkdir -p "$out" && : >"$out/counts" && rm -f "$out/here.txt" || exit 1
wanted=" ${*:-$(echo "$targets" | cut -d '|' -f 1 | tr '\n' ' ')} "
echo "$targets" | while IFS='|' read -r target compiler emulator flags what; do
    case $wanted in *" $target "*) run_target "$target" "$compiler" "$emulator" "$flags" "$what" </dev/null ;; esac
done
awk '{ passed += $1; failed += $3; skipped += $5 }
     END { if (!passed && !skipped) failed++
           printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped; exit failed > 0 }' "$out/counts"
