/* adapter_config.json, as PEFT's LoraConfig, IA3Config, PromptTuningConfig and PrefixTuningConfig write it. */
#include "methods.h"
#include "peft.h"
#include "../../common/file.h"

static void put_modules(FILE *file, unsigned targets) {
    static const char *const names[7] = {"q_proj",    "k_proj",    "v_proj", "o_proj",
                                         "gate_proj", "down_proj", "up_proj"};
    int n = 0;
    for (int i = 0; i < 7; i++)
        if (targets >> i & 1) fprintf(file, "%s\"%s\"", n++ ? ", " : "", names[i]);
}

void peft_put_config(const tuning *t, FILE *file) {
    const efficient *e = efficient_of(t);
    int is_prefix = strcmp(e->kind->peft, "PREFIX_TUNING") == 0;
    const ml_config *c = &t->model->config;
    int length = e->set.length ? e->set.length : 8, rank = e->set.rank ? e->set.rank : 8;
    int hd = c->dim / c->n_heads, kv_dim = hd * c->n_kv_heads;
    fprintf(file,
            "{\n  \"base_model_name_or_path\": null,\n  \"inference_mode\": true,\n"
            "  \"modules_to_save\": [\"classifier\", \"score\"],\n  \"peft_type\": \"%s\",\n"
            "  \"task_type\": \"SEQ_CLS\"",
            e->kind->peft);
    if (e->kind->setup == dora_setup) {
        fprintf(file,
                ",\n  \"bias\": \"none\",\n  \"fan_in_fan_out\": false,\n  \"init_lora_weights\": true,\n"
                "  \"lora_alpha\": %.9g,\n  \"lora_dropout\": 0.0,\n  \"r\": %d,\n  \"use_dora\": true,\n"
                "  \"use_rslora\": false,\n  \"target_modules\": [",
                (double)(e->set.alpha > 0 ? e->set.alpha : 2 * (float)rank), rank);
        put_modules(file, e->targets);
        fprintf(file, "]");
    } else if (e->kind->setup == ia3_setup) {
        fprintf(
            file,
            ",\n  \"fan_in_fan_out\": false,\n  \"feedforward_modules\": [\"down_proj\"],\n"
            "  \"init_ia3_weights\": true,\n  \"target_modules\": [\"k_proj\", \"v_proj\", \"down_proj\"]");
    } else {
        fprintf(
            file,
            ",\n  \"num_attention_heads\": %d,\n  \"num_layers\": %d,\n  \"num_transformer_submodules\": 1,\n"
            "  \"num_virtual_tokens\": %d,\n  \"token_dim\": %d",
            is_prefix ? c->n_kv_heads : c->n_heads, c->n_layers, length, is_prefix ? kv_dim : c->dim);
        if (is_prefix)
            fprintf(file, ",\n  \"encoder_hidden_size\": %d,\n  \"prefix_projection\": false", kv_dim);
        else
            fprintf(file, ",\n  \"prompt_tuning_init\": \"RANDOM\"");
    }
    fprintf(file, "\n}\n");
}
