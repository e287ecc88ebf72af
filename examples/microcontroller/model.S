/* The model as it is in its file; MODEL is the path. A GGUF's tensors are aligned to 32 bytes within the file. */
    .section .model, "a"
    .balign 64
    .global model_file, model_file_end
model_file:
    .incbin MODEL
model_file_end:
