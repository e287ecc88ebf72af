#!/bin/sh
# size.sh [--switches]: how large the code of minillama.h is in a program that loads a GGUF, tokenizes and generates, with
# -Os and without any library: for each feature what leaving it out saves, one after the other, and for the smallest
# the sections of the header, code and constants. For a Cortex-M4 (arm-none-eabi-gcc) and for this processor; what is missing is skipped.
cd "$(dirname "$0")/.." || exit 1
export LC_ALL=C
build=${BUILD:-build/size}
program=tests/compile/freestanding.c
model=examples/models/stories.gguf

base="-DML_NO_STDIO -DML_NO_MALLOC -DML_NO_LIBM -DML_MEMORY_FUNCTIONS"
features="ML_NO_TRAINING ML_NO_SAVE ML_NO_PT ML_NO_BPE ML_NO_JSON ML_NO_BIN ML_NO_TOKENIZER_MODEL ML_NO_K_QUANTS
ML_NO_F16_WEIGHTS ML_NO_ROPE_SCALING ML_NO_SAMPLER ML_NO_LOOK ML_NO_ERROR_TEXT"

# All of them, for a program that is to be small.
if [ "$1" = --switches ]; then
    echo $base $(printf ' -D%s' $features) -ffreestanding
    exit
fi
mkdir -p "$build" || exit 1

# link OUT COMPILER SWITCH...
link() {
    out=$1
    compiler=$2
    shift 2
    $compiler -std=gnu99 -Os -w -I. -ffreestanding -ffunction-sections -fdata-sections -fno-stack-protector \
        -fno-asynchronous-unwind-tables -nostdlib -static -Wl,--gc-sections "$@" $program -lgcc -o "$out" 2>"$out.log" ||
        { cat "$out.log"; exit 1; }
}

# The bytes of code and of constants, without the model.
bytes() {
    "$1" -A "$2" | awk -v model="$(wc -c <$model)" '
        /^\.text/ { code += $2 }
        /^\.(rodata|data|ARM)/ { constants += $2 }
        END { print code, constants - model }'
}

# Code and constants by section of the header: functions and tables, under the last heading above them. Sentences have no
# names, and are in no section.
by_section() {
    { awk '/^\/\* ==== >>/ { sub(/.*>>/, ""); sub(/ .*/, ""); section = $0 }
           /^[a-zA-Z].*[ *]mli?_[a-z0-9_]*\(/ {
               name = $0; sub(/\(.*/, "", name); sub(/.*[ *]/, "", name); print "in", name, section }
           /^(static.*|})[ *]mli_[a-z0-9_]*(\[| =)/ {
               name = $0; sub(/(\[| =).*/, "", name); sub(/.*[ *]/, "", name); print "in", name, section }' minillama.h
      "$1" -t d -S "$2"; } | awk '
        $1 == "in" { of[$2] = $3; next }
        NF < 4 || $3 !~ /[tTwWrRdDbB]/ || $4 ~ /^(model|memory|buffer|objects)/ || seen[$1]++ { next }
        { name = $4; sub(/\..*/, "", name)
          is_code = ($3 ~ /[tTwW]/)
          others = name ~ /^(run|_start|write_)/ ? "(inlined into the program)" : "(compiler: libgcc)"
          section = name in of ? of[name] : is_code ? others : "(tables of one function)"
          if (is_code) code[section] += $2; else constants[section] += $2
          all[section] = 1 }
        END { for (section in all) printf "    %-28s %7d %9d\n", section, code[section], constants[section] }' | sort -rn -k1.29
}

report() { # report NAME SIZE NM COMPILER...
    name=$1 size=$2 nm=$3
    shift 3
    echo "$name"
    printf '    %-28s %7s %9s\n' 'left out, one after the other' code constants
    switches=$base
    for feature in "" $features; do
        switches="$switches ${feature:+-D$feature}"
        link "$build/program" "$*" $switches
        printf '    %-28s %7d %9d\n' "${feature:-files, malloc, libm}" $(bytes "$size" "$build/program")
    done
    printf '    %-28s %7s %9s\n' 'the last, by section' code constants
    by_section "$nm" "$build/program"
}

arm=arm-none-eabi
if command -v $arm-gcc >/dev/null; then
    report "Cortex-M4F, $arm-gcc -Os" $arm-size $arm-nm "$arm-gcc -mcpu=cortex-m4 -mthumb -mfloat-abi=hard -mfpu=fpv4-sp-d16"
else
    echo "Cortex-M4F: $arm-gcc is not installed"
fi
[ "$(uname -sm)" = "Linux x86_64" ] && report "x86-64, ${CC:-gcc} -Os" size nm "${CC:-gcc}"
true
