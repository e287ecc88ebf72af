# minillama.h needs no building. This builds what is around it, and needs a C compiler only.
#
#   make            examples and tools, into build/
#   make run        a model writes: MODEL=file TOKENIZER=file PROMPT=text
#   make test       the tests
#   make check      compilers x standards x instruction sets x leave-out switches; several minutes
#   make cross      the tests on other processors, emulated, big-endian and 32-bit ones too (CROSS=quick, bits, "s390x armhf")
#   make windows    everything compiled for Windows, with mingw and by the rules of MSVC; the tests where there is wine
#   make sanitize   the tests under the address and undefined-behavior sanitizers (SANITIZED="load train": these)
#   make fuzz       every parser under libFuzzer, FUZZ_SECONDS each (clang)
#   make demo       the model in examples/models labels film opinions: prompted, fine-tuned, with LoRA; a minute
#   make table      MODEL=file DATA=folder: the assignment's settings on SST-5 and CFIMDB (TABLE="--seeds 10": more)
#   make advanced   MODEL=file DATA=folder: the experiments of examples/advanced; hours, continued where it was stopped
#                   (KNOWN=examples/report/results.csv: its runs count as done; see examples/advanced/run.sh)
#   make report     examples/report/report.md and .pdf from the CSV files there; needs pandoc and weasyprint
#                   (FROM=folder of make advanced: from its results; FROM2=folder: and those of a second base model)
#   make lessons    the twelve programs of examples/lessons and the solutions of their exercises, with their checks
#   make lesson-07  one of them; what it shows, and its picture in build/lessons
#   make exercise-07   your copy of its exercise, build/exercises/07.c, which checks what you write into it
#   make grade      the table of the assignment's five parts: which of your exercises pass
#   make microcontroller   a Cortex-M in qemu-system-arm writes a story; needs arm-none-eabi-gcc
#   make web        examples/web into build/web: a page and a JavaScript module (clang with wasm-ld; no Emscripten)
#   make web-test   tests them in Node and, with playwright-core, in Chromium; web-bench: how fast, with and without SIMD
#   make size       code and constants by feature and by section, for a Cortex-M4 (arm-none-eabi-gcc) and this processor
#   make manifests  MANIFEST_URL=https://...: the header, published there, as packages for Arduino, PlatformIO and
#                   ESP-IDF, into build/packages
#   make bench      this machine's peaks, and how much of them the kernels and models reach
#   make format     clang-format; check-format only reports
#   make clean      removes build/, except your copies of exercises
#   make help       this list
#
# CFLAGS=... is appended to the flags below, ARCH=... chooses the instructions, OPENMP= leaves threads out, CC=... is
# the compiler, BUILD=... the folder, RUNNER=... a command that runs the test programs, QUICK=1 the tests without those
# that take minutes when the compiler does not optimize. V=1 shows each command; make -j compiles in parallel.

CC ?= cc
BUILD ?= build
FUZZ_SECONDS ?= 60
WARNINGS := -Wall -Wextra -Wpedantic -Wshadow -Wconversion

ifneq ($(words [$(BUILD)]),1)
$(error BUILD="$(BUILD)" has a space in it, and make takes that for two folders: choose one without)
endif

# This machine's own instructions and OpenMP, where the compiler has them: the first time that the flags are needed, a
# program is compiled with the flag, linked and run. (musl-gcc links GNU's OpenMP, which then does not load.)
PROBE = $(BUILD)/probe-$$$$
accepted = $(shell { mkdir -p $(BUILD) && $(CC) $(CFLAGS) $(1) $(2) -o $(PROBE) tests/compile/probe.c && \
                     $(RUNNER) $(PROBE); } >/dev/null 2>&1 && echo $(1); rm -f $(PROBE) $(PROBE).*)
ifeq ($(origin ARCH),undefined)
ARCH = $(eval ARCH := $(call accepted,-march=native))$(ARCH)
endif
ifeq ($(origin OPENMP),undefined)
OPENMP = $(eval OPENMP := $(call accepted,-fopenmp,-DPROBE_OPENMP))$(OPENMP)
NO_OPENMP = $(if $(OPENMP),,echo 'OpenMP: not available with $(CC): one thread';)
endif
# How it writes the headers that an object was made from; tcc knows only the second.
LISTED = $(eval LISTED := $(or $(call accepted,-MMD -MP),$(call accepted,-MD)))$(LISTED)
# Where C99 would be computed in wider numbers than floats (x87; gcc on s390x): in floats, as everywhere else.
NARROW = $(eval NARROW := $(if $(call accepted,-std=c99,-DPROBE_WIDE),$\
    $(or $(call accepted,-msse2 -mfpmath=sse),$(call accepted,-fexcess-precision=fast))))$(NARROW)
LEVEL := -O3
FLAGS = -std=c99 $(LEVEL) $(WARNINGS) $(ARCH) $(NARROW) $(OPENMP) -D_FILE_OFFSET_BITS=64 -I. $(CFLAGS)
BUILT_WITH = $(CC) $(FLAGS) $(INSIDE_LEVEL)
POSIX := -D_DEFAULT_SOURCE -D_DARWIN_C_SOURCE # for examples and tools; the header needs the C library only

# The library is compiled once, and linked by every program that does not define MINILLAMA_IMPLEMENTATION itself: a
# program of one file, or a test that looks inside the library.
LIBRARY := $(BUILD)/minillama.o
ALONE := $(shell grep -ls '^.define MINILLAMA_IMPLEMENTATION' examples/*.c examples/advanced/*.c tools/*.c tests/*.c) \
         $(shell grep -Ls '^.include "minillama.h"' examples/lessons/*.c examples/lessons/solutions/*.c)

# A program is a file of examples/, examples/advanced/ or tools/, or a folder of examples/ with a main.c; a test is a
# file of tests/.
FILES := $(wildcard examples/*.c examples/advanced/*.c tools/*.c)
FOLDERS := $(patsubst %/main.c,%,$(wildcard examples/*/main.c))
LESSONS := $(sort $(wildcard examples/lessons/[0-9][0-9]_*.c))
SOLUTIONS := $(sort $(wildcard examples/lessons/solutions/*.c))
lesson = $(BUILD)/lesson_$(firstword $(subst _, ,$(notdir $(1:.c=)))) # 07_attention.c: lesson_07
PROGRAMS := $(addprefix $(BUILD)/,$(notdir $(FILES:.c=) $(FOLDERS))) $(foreach file,$(LESSONS),$(call lesson,$(file)))
unexport TESTS # those of the scripts have other names
TESTS := $(patsubst tests/%.c,$(BUILD)/%,$(wildcard tests/test_*.c)) \
         $(patsubst tests/%.c,$(BUILD)/test_%,$(wildcard tests/fuzz_*.c))
FUZZERS := $(patsubst tests/%.c,$(BUILD)/%,$(wildcard tests/fuzz_*.c))

# Code that is not optimized, as all of tcc's, needs a minute to ten minutes for each of these; without them, all others
# together need two.
QUICK ?= $(findstring tcc,$(notdir $(firstword $(CC))))
LONG := $(if $(QUICK),$(addprefix $(BUILD)/test_,examples generate pretrain resume sentiment session tokenizer train))
SOURCES := $(wildcard minillama.h $(foreach folder,examples examples/* examples/advanced/common examples/lessons/solutions \
                                                   examples/web/libc tools tools/* tests tests/compile,$(folder)/*.c $(folder)/*.h))

# Compiling the library for each test that looks inside takes most of the time of `make test`: this is done at -O1
# (INSIDE_LEVEL), except where the subject is the compiled kernels themselves. All other tests run the library as it is
# used, at -O3.
INSIDE_LEVEL := -O1
INSIDE := $(filter-out $(patsubst %,tests/test_%.c,kernels quant formats),$(filter tests/%,$(ALONE)))
$(INSIDE:%.c=$(BUILD)/obj/%.o): override LEVEL := $(INSIDE_LEVEL)
$(BUILD)/flags: override LEVEL := $(LEVEL) # not that of the object for which it is asked first

# short LINE: the line is printed in place of the command that follows; with V=1 the command itself, with -s nothing.
short = $(if $(V),,@$(if $(findstring s,$(firstword -$(MAKEFLAGS))),,echo '$(1)';))

all: $(PROGRAMS)

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

# What a program is linked with besides its own files.
uses_pretrain := tools/bpe/bpe.c
uses_train_tokenizer := tools/bpe/bpe.c
uses_test_sentiment := $(addprefix examples/run_llama/,reviews.c sentiment.c finetune.c prompt.c)
uses_zero_shot := $(uses_test_sentiment)
uses_test_zero_shot := $(uses_test_sentiment)
uses_test_pretrain := examples/pretrain/corpus.c examples/pretrain/model.c tools/bpe/bpe.c

# What every experiment shares; a program has it that includes tuning.h.
TUNING := $(wildcard examples/advanced/common/*.c) examples/run_llama/reviews.c
TUNED := $(shell grep -ls '^.include ".*common/tuning.h"' examples/advanced/*.c tests/*.c)

# program NAME,SOURCES: the rule that links it.
define program
$(BUILD)/$(1): $(patsubst %.c,$(BUILD)/obj/%.o,$(2) $(uses_$(1)) $(if $(filter $(TUNED),$(2)),$(TUNING))) \
    $(if $(filter $(ALONE),$(2)),,$(LIBRARY))
	$$(call short,link $$@)$$(CC) $$(FLAGS) -o $$@ $$(filter %.o,$$^) -lm
endef
$(foreach file,$(FILES) $(wildcard tests/test_*.c),$(eval $(call program,$(notdir $(file:.c=)),$(file))))
$(foreach folder,$(FOLDERS),$(eval $(call program,$(notdir $(folder)),$(wildcard $(folder)/*.c))))
$(foreach file,$(wildcard tests/fuzz_*.c),$(eval $(call program,test_$(notdir $(file:.c=)),$(file))))
$(foreach file,$(LESSONS),$(eval $(call program,$(notdir $(call lesson,$(file))),$(file))))
$(foreach file,$(SOLUTIONS),$(eval $(call program,solution_$(notdir $(file:.c=)),$(file))))
$(BUILD)/test_examples: | $(addprefix $(BUILD)/,generate classify lora train chat embed xor characters own_head run_llama convert \
                            inspect train_tokenizer write_stories draw_curve look array random_model bench efficient positions attention speculate decode_table \
                            generate_few) # which it runs

# The programs for a microcontroller, where their compiler and the emulator are.
BOARD_TOOLS := $(shell command -v arm-none-eabi-gcc >/dev/null && command -v qemu-system-arm >/dev/null && echo yes)
BOARD_MAKE = $(MAKE) -s --no-print-directory -C examples/microcontroller CFLAGS= BUILD='$(abspath $(BUILD))/microcontroller
$(BUILD)/test_microcontroller: | $(if $(BOARD_TOOLS),board)
board:
	$(call short,cc $(BUILD)/microcontroller (for Cortex-M))$(BOARD_MAKE)' all && \
	    $(BOARD_MAKE)/long' OPTIONS=-DPOSITIONS=256 only-story && $(BOARD_MAKE)/helium' BOARD=an547 only-kernels
manifests: # packages for Arduino, PlatformIO and ESP-IDF
	@sh tools/manifests.sh $(BUILD)/packages "$(MANIFEST_URL)"
microcontroller: board
	@$(BOARD_MAKE)' story

$(LIBRARY): tests/compile/implementation.c $(BUILD)/flags
	$(call short,cc $@ (the library: about 10 s))$(CC) $(FLAGS) $(LISTED) -c -o $@ $<
$(BUILD)/obj/tests/%.o: tests/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(call short,cc $@)$(CC) $(FLAGS) $(LISTED) -c -o $@ $<
$(BUILD)/obj/examples/lessons/%.o: examples/lessons/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(call short,cc $@)$(CC) $(FLAGS) $(LISTED) -c -o $@ $<
$(BUILD)/obj/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(call short,cc $@)$(CC) $(FLAGS) $(POSIX) $(LISTED) -c -o $@ $<
$(BUILD)/fuzz_%: tests/fuzz_%.c tests/fuzz.h minillama.h
	@mkdir -p $(BUILD)
	$(call short,clang $@)clang $(FLAGS) -O1 -g -DFUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION=1 -fsanitize=fuzzer,address,undefined \
	    -fno-sanitize-recover=all -DML_STATIC -DML_NO_SIMD $(if $(filter $(ALONE),$<),,-DMINILLAMA_IMPLEMENTATION) -o $@ $< -lm
# Headers that each object was made from.
-include $(wildcard $(BUILD)/*.d $(BUILD)/obj/*/*.d $(BUILD)/obj/*/*/*.d $(BUILD)/obj/*/*/*/*.d)

# Other flags than last time compile everything again.
$(BUILD)/flags: FORCE
	@mkdir -p $(BUILD) 2>/dev/null && test -w $(BUILD) || \
	    { echo '$(BUILD)/ cannot be made here: use BUILD=elsewhere, as in make BUILD=/tmp/minillama'; exit 1; }
	@echo '$(BUILT_WITH)' | cmp -s - $@ || { $(NO_OPENMP) echo '$(BUILT_WITH)' > $@; }

MODEL ?= $(firstword $(wildcard examples/models/*.gguf ../shared/models/stories260K.pt))
TOKENIZER ?= $(if $(filter %/stories260K.pt,$(MODEL)),$(wildcard $(dir $(MODEL))tok512.bin))
PROMPT ?= Once upon a time
ifeq ($(OS)$(origin PROMPT),Windows_NTenvironment) # cmd.exe's own
PROMPT := Once upon a time
endif

run: export PROMPT := $(PROMPT)
run: $(BUILD)/run_llama
	@test -n "$(MODEL)" || { echo "Which model? Try: make run MODEL=path/to/stories42M.pt"; exit 1; }
	$< --option generate --pretrained-model-path "$(MODEL)" \
	    $(if $(TOKENIZER),--tokenizer "$(TOKENIZER)") --prompt "$$PROMPT" \
	    --temperature 0.5 --epsilon 0.02

test: $(filter-out $(LONG),$(TESTS))
	@$(if $(LONG),echo 'the quick tests (QUICK= runs all):';) RUNNER="$(RUNNER)" sh tests/sum.sh $^

check:
	@MAKE="$(MAKE)" sh tests/check.sh

cross:
	@MAKE="$(MAKE)" sh tests/cross.sh $(CROSS)

windows:
	@MAKE="$(MAKE)" sh tests/windows.sh $(WINDOWS)

SANITIZED ?= $(TESTS:$(BUILD)/test_%=%)
sanitize:
	@$(MAKE) --no-print-directory test BUILD=$(BUILD)/sanitize TESTS="$(SANITIZED:%=$(BUILD)/sanitize/test_%)" \
	    CFLAGS="$(CFLAGS) -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"

fuzz: $(FUZZERS) $(FUZZERS:$(BUILD)/%=$(BUILD)/test_%)
	@for fuzzer in $(FUZZERS); do \
	    mkdir -p $$fuzzer.corpus && echo "$$fuzzer" && $(BUILD)/test_$${fuzzer##*/} --seeds $$fuzzer.corpus && \
	    $$fuzzer -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 -verbosity=0 \
	        -artifact_prefix=$$fuzzer. $$fuzzer.corpus  || exit 1; \
	done

# Each lesson with its picture, each solution, and each student's copy as it begins: of the first two every check must
# hold, of the last some must not.
lessons: $(foreach file,$(LESSONS),$(call lesson,$(file))) $(SOLUTIONS:examples/lessons/solutions/%.c=$(BUILD)/solution_%) \
         $(SOLUTIONS:examples/lessons/solutions/%.c=$(BUILD)/blank_%)
	@mkdir -p $(BUILD)/lessons; RUNNER="$(RUNNER)" sh examples/lessons/run.sh all $^

$(BUILD)/blank_%.c: examples/lessons/solutions/%.c examples/lessons/exercise.awk
	@awk -f examples/lessons/exercise.awk $< > $@
$(BUILD)/blank_%: $(BUILD)/blank_%.c $(LIBRARY)
	$(call short,cc $@)$(student)

lesson-%: $(BUILD)/lesson_%
	@mkdir -p $(BUILD)/lessons
	@$(RUNNER) $< $(BUILD)/lessons/$*.svg

# The student's copy is the solution without what stands between the markers; it is never written over. (A teacher may
# have taken the solutions away.)
ifneq ($(SOLUTIONS),)
$(SOLUTIONS:examples/lessons/solutions/%=$(BUILD)/exercises/%): $(BUILD)/exercises/%.c: | examples/lessons/solutions/%.c
	@mkdir -p $(@D)
	@awk -f examples/lessons/exercise.awk $| > $@
	@echo 'your copy: $@ (look for "your turn")'
endif

# Half-written code has unused variables; everything else is worth a warning.
student = $(CC) $(FLAGS) -Iexamples/lessons/solutions -Wno-unused -Wno-unused-parameter -o $@ $< $(LIBRARY) -lm
$(BUILD)/exercises/%: $(BUILD)/exercises/%.c $(LIBRARY) examples/lessons/lesson.h
	$(call short,cc $@)$(student)

exercise-%: $(BUILD)/exercises/%
	@RUNNER="$(RUNNER)" sh examples/lessons/run.sh exercise $< $<.c

.PRECIOUS: $(BUILD)/exercises/%.c $(BUILD)/exercises/% $(BUILD)/blank_%.c

# PART:EXERCISE, in the assignment's order.
PARTS := model:08 classifier:08_classifier optimizer:10 rope:06 lora:11
grade: $(LIBRARY)
	@for part in $(PARTS); do \
	    $(MAKE) -s --no-print-directory $(BUILD)/exercises/$${part#*:} >/dev/null 2>&1; done; \
	RUNNER="$(RUNNER)" sh examples/lessons/run.sh grade $(BUILD)/exercises $(PARTS)

size:
	@BUILD="$(BUILD)/size" sh tools/size.sh

bench: $(BUILD)/bench
	$< $(BENCH)

# What all settings of the demo share; $(1) is the number of classes. Passive: waiting threads sleep, so that a busy
# machine takes a little longer, and not many times as long.
demo_run = OMP_WAIT_POLICY=passive $< --mode llama --batch_size 10 --epochs 6 --pretrained-model-path $(DEMO_MODEL) \
    --label-names examples/data/opinions$(1)-labels.json \
    --train examples/data/opinions$(1)-train.txt --dev examples/data/opinions$(1)-dev.txt \
    --test examples/data/opinions$(1)-test.txt --dev_out $(BUILD)/demo-dev.txt --test_out $(BUILD)/demo-test.txt
DEMO_MODEL := examples/models/stories.gguf
DEMO_STATE = --state $(BUILD)/demo.gguf

demo: $(BUILD)/run_llama
	@echo "== 1. The model writes."
	$< --pretrained-model-path $(DEMO_MODEL) --max_new_tokens 60 --prompt "I watched a film about a dragon. It was"
	@echo "== 2. It is asked, untrained, which of 2 and of 5 labels fits an opinion (chance: 0.5, 0.2), and then calibrated."
	$(call demo_run,2) --option prompt
	$(call demo_run,2) --option prompt --score calibrated
	$(call demo_run,5) --option prompt
	$(call demo_run,5) --option prompt --score calibrated
	@echo "== 3. It is fine-tuned on 240 and on 300 opinions, a classifier on top; the epoch that is best on dev is kept."
	$(call demo_run,2) --option finetune --lr 5e-4 $(DEMO_STATE)
	$(call demo_run,5) --option finetune --lr 5e-4 $(DEMO_STATE)
	@echo "== 4. The same with LoRA: the model stays as it is, and a few percent of new weights learn."
	$(call demo_run,2) --option lora --lr 3e-3 --lora_rank 8 --lora_alpha 16 $(DEMO_STATE)
	$(call demo_run,5) --option lora --lr 3e-3 --lora_rank 8 --lora_alpha 16 $(DEMO_STATE)
	@echo "== The last predictions are in $(BUILD)/demo-test.txt:" && head -n 5 $(BUILD)/demo-test.txt

DATA ?= $(firstword $(wildcard data ../shared/data) data)
table: $(BUILD)/table $(BUILD)/run_llama
	@test -n "$(MODEL)" || { echo "Which model? Try: make table MODEL=path/to/stories42M.pt"; exit 1; }
	@test -d "$(DATA)" || { echo "Where are sst-*.txt and cfimdb-*.txt? Try: make table DATA=path/to/data"; exit 1; }
	$< --model "$(MODEL)" $(if $(TOKENIZER),--tokenizer "$(TOKENIZER)") --data "$(DATA)" \
	    --out "$(BUILD)/tables/$(notdir $(MODEL))" --run_llama $(BUILD)/run_llama $(TABLE)

ADVANCED ?= $(BUILD)/advanced/$(notdir $(basename $(MODEL)))
advanced: $(PROGRAMS)
	$(if $(KNOWN),sh examples/advanced/run.sh --from "$(KNOWN)" "$(ADVANCED)" "$(MODEL)")
	BUILD="$(BUILD)" TOKENIZER="$(TOKENIZER)" sh examples/advanced/run.sh "$(MODEL)" "$(DATA)" "$(ADVANCED)" $(ROWS); status=$$?; \
	if test -f "$(ADVANCED)/results.csv"; then for task in sst cfimdb; do echo; echo "$$task:"; \
	    LC_ALL=C awk -f examples/advanced/csv.awk -f examples/advanced/statistics.awk -f examples/advanced/summary.awk \
	        -v task=$$task examples/advanced/rows.txt "$(ADVANCED)"/results.csv; done; fi; \
	exit $$status

report:
	@sh examples/report/make.sh "$(BUILD)/report" "$(FROM)" "$(FROM2)"

# WebAssembly. Kernels are inlined and unrolled, all else is small: with __OPTIMIZE_SIZE__ the kernels would be, too.
WASM_CC ?= clang
WASM_TOOLS := $(abspath $(BUILD))/obj/tools
WASM := $(WASM_CC) --target=wasm32 -B$(WASM_TOOLS) -std=c99 $(WARNINGS) -Wno-pass-failed -mbulk-memory -mnontrapping-fptoint -msign-ext -nostdlib \
        -isystem examples/web/libc -I. -fvisibility=hidden -Wl,--no-entry -Wl,--strip-all -Wl,--compress-relocations -Wl,--stack-first -Wl,-z,stack-size=262144 $(WASM_FLAGS)
WASM_WITH := minillama.h examples/web/minillama.c examples/web/memory.h examples/web/libc/string.h Makefile $(WASM_TOOLS)/wasm-opt
# clang runs binaryen's wasm-opt where that is installed, with flags by which it refuses SIMD: one that does nothing is found first.
$(WASM_TOOLS)/wasm-opt:
	@mkdir -p $(@D) && echo '#!/bin/sh' > $@ && chmod +x $@
WITHOUT = $(addprefix -DML_NO_,$(1))
WEB_FILES := $(wildcard examples/web/*.mjs examples/web/*.d.ts examples/web/*.json examples/web/*.html examples/web/*.css \
                        examples/models/stories.gguf) $(wildcard examples/data/opinions*) \
             examples/web/README.md LICENSE
WEB := $(BUILD)/web

# All kernels, but small otherwise: -Oz would also keep the branch of every loop at its top, which costs a third of the speed.
# Reading is a quarter slower, too, where loops of more than 100 instructions are unrolled; 80 in place of 100 takes half a percent
# of the size and 2 % of the speed. The last two flags leave out copies of code that only save a jump: 1 % of the size, at the same
# speed.
WASM_KERNELS := -Os -U__OPTIMIZE_SIZE__ -fno-vectorize -fno-slp-vectorize -mllvm -inline-threshold=-5 -mllvm -disable-lsr \
                -mllvm -unroll-threshold=80 -mllvm -enable-pre=0 -mllvm -jump-threading-threshold=1
$(WEB)/minillama.wasm: $(WASM_WITH)
	@mkdir -p $(@D)
	$(call short,clang $@)$(WASM) $(WASM_KERNELS) -msimd128 $(call WITHOUT,K_QUANTS BIN) -o $@ examples/web/minillama.c
# What that one cannot read, and where there is no SIMD: loaded only when they are needed. Without vectors of four, whose lanes
# stay in memory unless every loop over them is unrolled, plain loops are faster.
$(WEB)/minillama-all.wasm: $(WASM_WITH)
	@mkdir -p $(@D)
	$(call short,clang $@)$(WASM) $(WASM_KERNELS) -msimd128 -o $@ examples/web/minillama.c
$(WEB)/minillama-plain.wasm: $(WASM_WITH)
	@mkdir -p $(@D)
	$(call short,clang $@)$(WASM) -O3 -DML_SMALL -o $@ examples/web/minillama.c
# Without training, of files only GGUF with a SentencePiece tokenizer, and short errors.
$(WEB)/minillama-small.wasm: $(WASM_WITH)
	@mkdir -p $(@D)
	$(call short,clang $@)$(WASM) -Oz -msimd128 -o $@ examples/web/minillama.c \
	    $(call WITHOUT,TRAINING SAVE K_QUANTS BPE BIN PT SAFETENSORS JSON TOKENIZER_MODEL ERROR_TEXT)
$(BUILD)/obj/%.wasm: $(WASM_WITH)
	@mkdir -p $(@D)
	$(call short,clang $@)$(WASM) -O3 $(if $(findstring simd,$*),-msimd128) -o $@ examples/web/minillama.c

WEB_MODULES := $(WEB)/minillama.wasm $(WEB)/minillama-small.wasm $(WEB)/minillama-all.wasm $(WEB)/minillama-plain.wasm
web: $(WEB_MODULES) $(WEB_FILES)
	@mkdir -p $(WEB)/data && cp $(filter examples/data/%,$(WEB_FILES)) $(WEB)/data && \
	    cp $(filter-out examples/data/%,$(WEB_FILES)) $(WEB)
	@for file in $(WEB_MODULES); do echo "$$file: $$(wc -c <$$file) bytes, $$(gzip -9c $$file | wc -c) with gzip"; done
	@echo 'To see it: python3 -m http.server --directory $(WEB), and then http://localhost:8000'

# WebAssembly adds as plain C does; other instruction sets round differently, and after some 200 tokens a story may fork.
$(BUILD)/generate_plain: examples/generate.c minillama.h
	@mkdir -p $(@D)
	$(call short,cc $@)$(CC) -std=c99 -O1 -ffp-contract=off -DML_NO_SIMD -I. -o $@ $< -lm

# A build that leaves types out computes the same.
$(BUILD)/generate_few: examples/generate.c minillama.h $(BUILD)/flags
	@mkdir -p $(@D)
	$(call short,cc $@)$(CC) $(FLAGS) -O1 $(call WITHOUT,K_QUANTS F16_WEIGHTS) -o $@ $< -lm

$(BUILD)/web_models: tests/web/models.c minillama.h
	@mkdir -p $(@D)
	$(call short,cc $@)$(CC) -std=c99 $(WARNINGS) -O1 -ffp-contract=off -I. -o $@ $< -lm

web-test: web $(BUILD)/generate_plain $(BUILD)/web_models $(BUILD)/run_llama $(BUILD)/convert
	@BUILD="$(BUILD)" sh tests/web/run.sh

web-bench: $(WEB)/minillama.wasm $(WEB)/minillama-plain.wasm $(BUILD)/obj/simd.wasm $(BUILD)/obj/plain.wasm
	node tests/web/speed.mjs $^

CLANG_FORMAT ?= clang-format # version 14
format:
	$(CLANG_FORMAT) -i $(SOURCES)

check-format:
	$(CLANG_FORMAT) --dry-run -Werror $(SOURCES)

# Copies of exercises are somebody's work: where there are any, all else goes.
clean:
	@if [ -z "$$(ls -A $(BUILD)/exercises 2>/dev/null)" ]; then rm -rf $(BUILD); \
	elif [ -e $(BUILD)/Makefile ]; then echo 'BUILD=$(BUILD) is no folder of its own: nothing is removed' && exit 1; \
	else find $(BUILD)/. ! -name . -prune ! -name exercises -exec rm -rf {} + && \
	    echo 'kept: $(BUILD)/exercises, with what you wrote (rm -r $(BUILD)/exercises removes it)'; fi

.PHONY: all help run board microcontroller manifests lessons grade test check cross windows sanitize fuzz size bench web web-test web-bench demo table advanced report format check-format clean FORCE
