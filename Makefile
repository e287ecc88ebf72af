# minillama.h itself needs no building. This builds what stands around it, and asks for a C compiler only.
#
#   make            examples and tools, into build/
#   make run        a model writes: MODEL=file TOKENIZER=file PROMPT=text
#   make test       the tests
#   make check      compilers x standards x instruction sets x leave-out switches; several minutes
#   make sanitize   the tests under the address and undefined-behaviour sanitizers (SANITIZED="load train": some of them)
#   make fuzz       every parser under libFuzzer, FUZZ_SECONDS each (clang)
#   make demo       the model that ships labels film opinions: by prompting, fine-tuned, and with LoRA; about a minute
#   make table      MODEL=file DATA=folder: the assignment's settings on SST-5 and CFIMDB (TABLE="--seeds 10": more)
#   make bench      this machine's peaks, and what the kernels and models reach of them
#   make format     clang-format; check-format only looks
#
# CFLAGS=... is appended to the flags below, ARCH=... chooses the instructions, CC=... the compiler, BUILD=... the
# folder, RUNNER=... a command that runs the test programs.

CC ?= cc
BUILD ?= build
FUZZ_SECONDS ?= 60
WARNINGS := -Wall -Wextra -Wpedantic -Wshadow -Wconversion

# This machine's own instructions and OpenMP, where the compiler has them.
accepted = $(shell echo 'int main(void) { return 0; }' | $(CC) $(CFLAGS) $(1) -x c -o /dev/null - 2>/dev/null && echo $(1))
ifeq ($(origin ARCH),undefined)
ARCH := $(call accepted,-march=native)
endif
ifeq ($(origin OPENMP),undefined)
OPENMP := $(call accepted,-fopenmp)
endif
FLAGS := -std=c99 -O3 $(WARNINGS) $(ARCH) $(OPENMP) -I. $(CFLAGS)

HEADERS := minillama.h $(wildcard tests/*.h examples/*.h tools/*.h)
PROGRAMS := $(patsubst examples/%.c,$(BUILD)/%,$(wildcard examples/*.c)) \
            $(patsubst tools/%.c,$(BUILD)/%,$(wildcard tools/*.c))
TESTS := $(patsubst tests/%.c,$(BUILD)/%,$(wildcard tests/test_*.c))
FUZZERS := $(patsubst tests/%.c,$(BUILD)/%,$(wildcard tests/fuzz_*.c))
SOURCES := $(wildcard minillama.h examples/*.[ch] tools/*.[ch] tests/*.[ch] tests/compile/*.[ch])

all: $(PROGRAMS)

$(BUILD)/%: examples/%.c $(HEADERS) $(BUILD)/flags
	$(CC) $(FLAGS) -o $@ $< -lm
$(BUILD)/%: tools/%.c $(HEADERS) $(BUILD)/flags
	$(CC) $(FLAGS) -o $@ $< -lm
$(BUILD)/test_%: tests/test_%.c $(HEADERS) $(wildcard examples/*.c tools/*.c) $(BUILD)/flags
	$(CC) $(FLAGS) -o $@ $< -lm
$(BUILD)/fuzz_%: tests/fuzz_%.c $(HEADERS)
	@mkdir -p $(BUILD)
	clang $(FLAGS) -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -o $@ $< -lm

# Other flags than last time build everything anew.
$(BUILD)/flags: FORCE
	@mkdir -p $(BUILD)
	@echo '$(CC) $(FLAGS)' | cmp -s - $@ || echo '$(CC) $(FLAGS)' > $@

MODEL ?= $(firstword $(wildcard examples/models/*.gguf ../shared/models/stories260K.pt))
TOKENIZER ?= $(if $(filter %/stories260K.pt,$(MODEL)),$(wildcard $(dir $(MODEL))tok512.bin))
PROMPT ?= Once upon a time

run: $(BUILD)/run_llama
	@test -n "$(MODEL)" || { echo "Which model? Try: make run MODEL=path/to/stories42M.pt"; exit 1; }
	$< --option generate --pretrained-model-path "$(MODEL)" \
	    $(if $(TOKENIZER),--tokenizer "$(TOKENIZER)") --prompt "$(PROMPT)" \
	    --temperature 0.5 --epsilon 0.02

test: $(TESTS)
	@RUNNER="$(RUNNER)" sh tests/sum.sh $(TESTS)

check:
	@MAKE="$(MAKE)" sh tests/check.sh

SANITIZED ?= $(patsubst tests/test_%.c,%,$(wildcard tests/test_*.c))
sanitize:
	@$(MAKE) --no-print-directory test BUILD=$(BUILD)/sanitize TESTS="$(SANITIZED:%=$(BUILD)/sanitize/test_%)" \
	    CFLAGS="$(CFLAGS) -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"

fuzz: $(FUZZERS)
	@for fuzzer in $(FUZZERS); do \
	    mkdir -p $$fuzzer.corpus && echo "$$fuzzer" && \
	    $$fuzzer -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 -verbosity=0 \
	        -artifact_prefix=$$fuzzer. $$fuzzer.corpus $(wildcard tests/seeds) || exit 1; \
	done

bench: $(BUILD)/bench
	$< $(BENCH)

# What all settings of the demo share: $(1) is the number of classes. Passive: threads that wait sleep, so that a busy machine
# takes a little longer and not many times as long.
demo_run = OMP_WAIT_POLICY=passive $< --mode llama --batch_size 10 --epochs 6 --pretrained-model-path $(DEMO_MODEL) \
    --label-names examples/data/opinions$(1)-labels.json --state $(BUILD)/demo.gguf \
    --train examples/data/opinions$(1)-train.txt --dev examples/data/opinions$(1)-dev.txt \
    --test examples/data/opinions$(1)-test.txt --dev_out $(BUILD)/demo-dev.txt --test_out $(BUILD)/demo-test.txt
DEMO_MODEL := examples/models/stories.gguf

demo: $(BUILD)/run_llama
	@echo "== 1. The model writes."
	$< --pretrained-model-path $(DEMO_MODEL) --max_new_tokens 60 --prompt "I watched a film about a dragon. It was"
	@echo "== 2. It is asked, untrained, which of 2 and of 5 labels fits an opinion (chance: 0.5, 0.2), and then calibrated."
	$(call demo_run,2) --option prompt
	$(call demo_run,2) --option prompt --score calibrated
	$(call demo_run,5) --option prompt
	$(call demo_run,5) --option prompt --score calibrated
	@echo "== 3. It is fine-tuned on 240 and on 300 opinions, a classifier on top."
	$(call demo_run,2) --option finetune --lr 5e-4
	$(call demo_run,5) --option finetune --lr 5e-4
	@echo "== 4. The same with LoRA: the model stays as it is, and a few percent of new weights learn."
	$(call demo_run,2) --option lora --lr 3e-3 --lora_rank 8 --lora_alpha 16
	$(call demo_run,5) --option lora --lr 3e-3 --lora_rank 8 --lora_alpha 16
	@echo "== The last predictions are in $(BUILD)/demo-test.txt:" && head -n 5 $(BUILD)/demo-test.txt

DATA ?= $(firstword $(wildcard data ../shared/data) data)
table: $(BUILD)/table $(BUILD)/run_llama
	@test -n "$(MODEL)" || { echo "Which model? Try: make table MODEL=path/to/stories42M.pt"; exit 1; }
	$< --model "$(MODEL)" $(if $(TOKENIZER),--tokenizer "$(TOKENIZER)") --data "$(DATA)" \
	    --out "$(BUILD)/tables/$(notdir $(MODEL))" --run_llama $(BUILD)/run_llama $(TABLE)

format:
	clang-format -i $(SOURCES)

check-format:
	clang-format --dry-run -Werror $(SOURCES)

clean:
	rm -rf $(BUILD)

.PHONY: all run test check sanitize fuzz bench demo table format check-format clean FORCE
