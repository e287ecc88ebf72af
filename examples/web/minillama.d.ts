/** What a model, a tokenizer or the module itself is read from. In Node a string is a path, in a browser a URL. */
export type Source = Uint8Array | ArrayBuffer | Blob | Response | URL | string;

/** WebAssembly.Module, where the types of the environment have it (those of Node alone do not) */
export type Module = typeof globalThis extends { WebAssembly: { Module: { prototype: infer M } } } ? M : object;

/** Which matrices an adapter changes: a sum of these. */
export const targets: {
    readonly q: 1; readonly k: 2; readonly v: 4; readonly o: 8; readonly w1: 16; readonly w2: 32; readonly w3: 64;
    readonly attention: 15; readonly all: 127;
};

export interface LoadOptions {
    /** default: of those beside minillama.mjs the smallest that reads the model: minillama.wasm, or minillama-all.wasm for
     *  K-quants and other rarer types and files of llama2.c; minillama-plain.wasm where there is no SIMD */
    wasm?: Source | Module;
    /** of a model whose file has none: tokenizer.model, tokenizer.json or llama2.c's tokenizer.bin */
    tokenizer?: Source;
    /** config.json or params.json, of a model whose file has none */
    config?: Source;
    /** tokens that a session holds; default: the model's, at most 1024 */
    contextLength?: number;
}

export function load(model: Source, options?: LoadOptions): Promise<Llama>;

export interface Config {
    dim: number; hiddenDim: number; layers: number; heads: number; kvHeads: number; vocabSize: number; contextLength: number;
}

export interface Alternative {
    id: number;
    p: number;
    /** empty for a token without text */
    text: string;
    /** that it would end the text */
    ends: boolean;
}

export interface Token {
    id: number;
    /** what it adds to the text; a character of several tokens comes with the last of them */
    text: string;
    /** the probability that the model gave it */
    p: number;
    /** it ended the text, and is not part of it */
    ends: boolean;
    /** the most likely tokens in its place, most likely first */
    alternatives: Alternative[];
}

export interface GenerateOptions {
    maxTokens?: number;
    /** 0, the default: always the most likely token */
    temperature?: number;
    /** topK is whole; topP and minP are at most 1 */
    topK?: number; topP?: number; minP?: number;
    /** of repetitions: 0.001 to 1000; 0 or 1: none */
    penalty?: number;
    /** a whole number from 0 on; default 1 */
    seed?: number;
    /** how many alternatives each token is to come with; default 1 */
    alternatives?: number;
}

export interface Attention {
    layers: number; heads: number; n: number;
    /** weights[((layer * heads + head) * n + from) * n + to] */
    weights: Float32Array;
}

export interface AdapterOptions { rank?: number; alpha?: number; targets?: number; seed?: number }
export interface TrainerOptions {
    /** a head learns with the adapter that it was created with, or both without one: anything else is an error */
    adapter?: Adapter | null; head?: Head | null;
    maxTokens?: number; maxRows?: number; learningRate?: number; dropout?: number;
    /** the rate falls to 0 over so many along a cosine; 0: it stays */
    steps?: number;
}

export class Llama {
    private constructor();
    readonly config: Config;
    readonly contextLength: number;
    readonly parameters: number;
    /** of the matrices: "F32", "Q8_0", ... */
    readonly type: string;
    /** token ids; -1: there is none */
    readonly bos: number;
    readonly eos: number;
    /** whether texts begin with bos, by the tokenizer's file */
    readonly addsBos: boolean;
    readonly adapter: Adapter | null;
    /** `bos` is put in front where addsBos says so, `eos` behind where there is one */
    encode(text: string, options?: { bos?: boolean; eos?: boolean }): Int32Array;
    decode(ids: ArrayLike<number>): string;
    /** the bytes that each token adds */
    pieces(ids: ArrayLike<number>): Uint8Array[];
    /** one token alone, with the space that it may begin with */
    show(id: number): string;
    /** A prompt of text gets the token that begins a text; ids are taken as they are. A prompt that is longer than
     *  contextLength is an error; the text ends where the context does. */
    generate(prompt: string | ArrayLike<number>, options?: GenerateOptions): Generator<Token, void, void>;
    alternatives(ids: ArrayLike<number>, k?: number): Alternative[];
    /** that token `id` follows */
    probability(ids: ArrayLike<number>, id: number): number;
    /** of at most as many ids as the model's context has */
    attention(ids: ArrayLike<number>): Attention;
    /** of a continuation that is empty: 0, and 0 tokens */
    likelihood(context: string, continuation: string): { logProbability: number; tokens: number };
    /** null: without an adapter */
    use(adapter: Adapter | null): void;
    forget(): void;
    createAdapter(options?: AdapterOptions): Adapter;
    loadAdapter(bytes: Uint8Array | ArrayBuffer): Adapter;
    createHead(classes: number, options?: { adapter?: Adapter | null; pooling?: 'last' | 'mean' | 'max'; seed?: number }): Head;
    createTrainer(options?: TrainerOptions): Trainer;
    free(): void;
}

export interface Adapter {
    readonly parameters: number;
    /** a GGUF file, which llama.cpp reads, too */
    save(): Uint8Array;
    free(): void;
}

export interface Head {
    readonly classes: number;
    /** The probability of each class. A text gets the token that begins one; ids are taken as they are. More of them
     *  than the model's contextLength are an error. */
    classify(text: string | ArrayLike<number>): number[];
    free(): void;
}

export interface Trainer {
    readonly parameters: number;
    /** One step on rows of token ids, with a head on their labels: the numbers of their classes, from 0 on; without a
     *  head there are none. Returns the loss before it. */
    step(rows: ArrayLike<number>[], labels?: ArrayLike<number>): number;
    loss(rows: ArrayLike<number>[], labels?: ArrayLike<number>): number;
    free(): void;
}
