#!/bin/sh
# manual.sh: prints the recipes of the header's opening comment as one C file, so that check.sh can compile them: the first is
# a program, that of autograd stands by itself, the others become the body of a function, in their order.
cd "$(dirname "$0")/.." || exit 1
recipe() { awk -v from="^   $1" '/\*\//{exit} /^   [A-Z]/{on = $0 ~ from} on && /^      /' minillama.h; }
recipe GENERATE
recipe "COMPUTE ANYTHING"
cat <<'END'
static int next_batch(ml_batch *batch) { return batch->n_tokens == 0; }
void recipes(ml_model *model, ml_session *session, const void *gguf, size_t gguf_size);
void recipes(ml_model *model, ml_session *session, const void *gguf, size_t gguf_size) {
    ml_error error;
    (void)learn;
END
for name in CLASSIFY "TRAIN WITH LoRA" "TRAIN FROM SCRATCH" "WITHOUT MALLOC"; do recipe "$name"; done
echo '    (void)log_probs;'
echo '}'
