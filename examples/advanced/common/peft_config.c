/* adapter_config.json, as PEFT's LoraConfig, IA3Config, PromptTuningConfig and PrefixTuningConfig write it. */
#include "methods.h"
#include "peft.h"

/* DoRA's; `to` has room for `size` bytes. */
static void put_dora(const efficient *e, char *to, size_t size) {
    static const char *const names[7] = {"q_proj",    "k_proj",    "v_proj", "o_proj",
                                         "gate_proj", "down_proj", "up_proj"};
    char modules[128] = "";
    for (int i = 0, n = 0; i < 7; i++)
        if (e->targets >> i & 1)
            n += snprintf(modules + n, sizeof modules - (size_t)n, "%s\"%s\"", n ? ", " : "", names[i]);
    snprintf(to, size,
             ",\n  \"alpha_pattern\": {},\n  \"bias\": \"none\",\n  \"fan_in_fan_out\": false,\n"
             "  \"init_lora_weights\": true,\n  \"layers_to_transform\": null,\n  \"lora_alpha\": %.9g,\n"
             "  \"lora_dropout\": 0.0,\n  \"r\": %d,\n  \"rank_pattern\": {},\n  \"target_modules\": [%s],\n"
             "  \"use_dora\": true,\n  \"use_rslora\": false",
             (double)efficient_alpha(e), efficient_rank(e), modules);
}

static void put_prompt(const tuning *t, int is_prefix, char *to, size_t size) {
    const ml_config *c = &t->model->config;
    int kv_dim = c->head_dim * c->n_kv_heads;
    int n =
        snprintf(to, size,
                 ",\n  \"num_attention_heads\": %d,\n  \"num_layers\": %d,\n"
                 "  \"num_transformer_submodules\": 1,\n  \"num_virtual_tokens\": %d,\n  \"token_dim\": %d",
                 is_prefix ? c->n_kv_heads : c->n_heads, c->n_layers, efficient_length(efficient_of(t)),
                 is_prefix ? kv_dim : c->dim);
    if (is_prefix)
        snprintf(to + n, size - (size_t)n,
                 ",\n  \"encoder_hidden_size\": %d,\n  \"prefix_projection\": false", kv_dim);
    else
        snprintf(to + n, size - (size_t)n, ",\n  \"prompt_tuning_init\": \"RANDOM\"");
}

void peft_config(const tuning *t, char to[PEFT_CONFIG_SIZE]) {
    const efficient *e = efficient_of(t);
    int n = snprintf(to, PEFT_CONFIG_SIZE,
                     "{\n  \"base_model_name_or_path\": null,\n  \"inference_mode\": true,\n"
                     "  \"modules_to_save\": [\"classifier\", \"score\"],\n  \"peft_type\": \"%s\",\n"
                     "  \"task_type\": \"SEQ_CLS\"",
                     e->kind->peft);
    size_t left = PEFT_CONFIG_SIZE - (size_t)n;
    if (e->kind->setup == dora_setup)
        put_dora(e, to + n, left);
    else if (e->kind->setup == ia3_setup)
        snprintf(
            to + n, left,
            ",\n  \"fan_in_fan_out\": false,\n  \"feedforward_modules\": [\"down_proj\"],\n"
            "  \"init_ia3_weights\": true,\n  \"target_modules\": [\"k_proj\", \"v_proj\", \"down_proj\"]");
    else
        put_prompt(t, peft_is_prefix(e), to + n, left);
    snprintf(to + strlen(to), PEFT_CONFIG_SIZE - strlen(to), "\n}\n");
}
