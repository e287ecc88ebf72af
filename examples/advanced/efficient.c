/* Parameter-efficient tuning of a Llama as a classifier: fourteen methods, compared by accuracy, numbers trained,
   memory and time.
       build/efficient --method lora --rank 8 --lr 4e-3 --task sst
       build/efficient --method dora --targets q,v --save adapter/adapter_model.safetensors    (Hugging Face's PEFT)
       build/efficient --method dora --targets q,v --load adapter/adapter_model.safetensors --epochs 0 */
#include "common/tuning.h"
#include "common/methods.h"

int main(int argc, char **argv) {
    efficient e;
    tuning_method method = {0};
    memset(&e, 0, sizeof e);
    const option own[] = {
        {"--method", OPTION_TEXT, &e.set.method,
         "full, head, last, bitfit, lora (default), rslora, loraplus, dora,\n"
         "                                             adapter, parallel, prefix, prefix_mlp, prompt or ia3"},
        {"--rank", OPTION_INT, &e.set.rank, "of LoRA and its kin (8)"},
        {"--alpha", OPTION_FLOAT, &e.set.alpha, "LoRA is scaled by alpha / rank (twice the rank)"},
        {"--targets", OPTION_TEXT, &e.set.targets, "of q,k,v,o,w1,w2,w3, or attention, or all (all)"},
        {"--ratio", OPTION_FLOAT, &e.set.ratio, "loraplus: B's learning rate over A's (16)"},
        {"--bottleneck", OPTION_INT, &e.set.bottleneck,
         "width inside an adapter (16), or of prefix_mlp (the model's)"},
        {"--scale", OPTION_FLOAT, &e.set.scale, "of a parallel adapter (4)"},
        {"--length", OPTION_INT, &e.set.length, "tokens of a prompt or prefix (8)"},
        {"--layers", OPTION_INT, &e.set.layers, "last: how many are trained (2)"},
        {"--load", OPTION_TEXT, &e.set.load, "begin with what --save wrote"},
    };
    method.program = "efficient";
    method.state = &e;
    method.check = efficient_check;
    method.setup = efficient_setup;
    method.save = efficient_save;
    int status = tuning_main(argc, argv, &method, own, (int)(sizeof own / sizeof *own));
    efficient_free(&e);
    return status;
}
