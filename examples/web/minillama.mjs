// minillama.h for JavaScript: a small Llama that writes, is looked into, and learns, in a browser or in Node.
//
//     import { load } from 'minillama';
//     const llama = await load(bytes);  // of a GGUF, safetensors or PyTorch file
//     for (const token of llama.generate('Once upon a time')) console.log(token.text);
//
// Everything here computes at once, in the thread that calls it: in a page, use it in a worker. The memory of the module
// grows and may move, so arrays that it returns are copies. What has a `free` must be freed before its model is.

/** Which matrices an adapter changes: a sum of these. */
export const targets = { q: 1, k: 2, v: 4, o: 8, w1: 16, w2: 32, w3: 64, attention: 15, all: 127 };

const most = 2 ** 31 - 1; // bytes in one piece, of 4 GB in all
const unsupported = -6; // ML_ERROR_UNSUPPORTED
const isNode = typeof process === 'object' && !!process.versions?.node;
const nodeFiles = isNode && 'node:fs/promises'; // a variable: bundlers for browsers look for what is imported by its name

async function bytesOf(source) {
    if (source instanceof Uint8Array) return source;
    if (source instanceof ArrayBuffer) return new Uint8Array(source);
    if (typeof source?.arrayBuffer === 'function') return new Uint8Array(await source.arrayBuffer()); // Blob, File
    const url = source instanceof URL ? source : null;
    if (isNode && (!url || url.protocol === 'file:')) {
        const { readFile } = await import(/* webpackIgnore: true */ /* @vite-ignore */ nodeFiles);
        return readFile(url ?? source);
    }
    const answer = await fetch(source);
    if (!answer.ok) throw new Error(`${source} cannot be read: ${answer.status} ${answer.statusText}`);
    return new Uint8Array(await answer.arrayBuffer());
}

/** A module beside this file, or what the caller gave. */
async function compiled(wasm) {
    if (wasm instanceof WebAssembly.Module) return wasm;
    return WebAssembly.compile(await bytesOf(wasm));
}
const beside = name => new URL(`./${name}.wasm`, import.meta.url);

/** Whether vectors of 128 bits are known here: a module that has a function which returns one. */
const hasSimd = () => WebAssembly.validate(Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123));

/** The module's functions, and its memory as arrays. */
class Runtime {
    constructor() {
        this.written = []; // of the file that is being saved
        this.writer = new TextEncoder();
    }

    async start(module) {
        const write = (user, at, n) => { this.written.push(this.u8.slice(at >>> 0, (at >>> 0) + n)); return 1; };
        this.call = (await WebAssembly.instantiate(module, { page: { write } })).exports;
        return this;
    }

    get u8() { return new Uint8Array(this.call.memory.buffer); }
    floats(at, n) { return new Float32Array(this.call.memory.buffer, at, n); }
    ints(at, n) { return new Int32Array(this.call.memory.buffer, at, n); }

    text(at, n) {
        const bytes = this.u8;
        if (n === undefined) for (n = 0; bytes[at + n]; n++);
        return new TextDecoder().decode(bytes.subarray(at, at + n));
    }

    fail() { throw Object.assign(new Error(this.text(this.call.error())), { code: this.call.error_code() }); }
    check(result) { return result || this.fail(); }

    alloc(n) {
        const at = n > most ? 0 : this.call.alloc(n) >>> 0; // beyond 2 GB pointers are not negative
        if (!at) throw new Error(`There is not enough memory: ${Math.ceil(n / 1e6)} MB more are needed.`);
        return at;
    }

    /** A copy of bytes or integers in the module's memory. */
    put(array) {
        const at = this.alloc(array.byteLength || 1);
        this.u8.set(new Uint8Array(array.buffer, array.byteOffset, array.byteLength), at);
        return at;
    }

    /** The same of a Blob, which need not be in memory as a whole before. */
    async read(blob) {
        const at = this.alloc(blob.size || 1), step = 1 << 24;
        for (let n = 0; n < blob.size; n += step)
            this.u8.set(new Uint8Array(await blob.slice(n, n + step).arrayBuffer()), at + n);
        return at;
    }

    /** Calls use(...pointers) with copies of the arrays (null: 0), and frees them afterwards. */
    lend(arrays, use) {
        const all = arrays.map(array => array ? this.put(array) : 0);
        try {
            return use(...all);
        } finally {
            all.forEach(at => this.call.free(at));
        }
    }
}

/** A number as the module takes it: any other would silently become one, often 0. */
function whole(value, what) {
    if (Number.isInteger(value) && value === (value | 0)) return value;
    throw new RangeError(`${what} is a whole number of 32 bits, not ${String(value)}`);
}

/** Ids as the module takes them. */
function int32(ids, what = 'a token id', lacking = 'token ids are expected: encode() gives those of a text') {
    if (ids instanceof Int32Array) return ids;
    if (typeof ids !== 'object' || !(ids?.length >= 0)) throw new TypeError(lacking);
    return Int32Array.from(ids, id => whole(id, what));
}

/** Labels of rows, which a trainer with a head needs, and no other has a use for. */
function classesOf(rows, labels, head) {
    const missing = labels === null || labels === undefined;
    if (missing !== !head) throw new TypeError(head ? 'there are no labels: with a head each row has one' : 'labels are for a trainer with a head');
    if (missing) return null;
    const ids = int32(labels, 'a label', 'labels are a list: a whole number for each row');
    if (ids.length !== rows) throw new RangeError(`${rows} rows have ${ids.length} labels`);
    return ids;
}

function wholeSeed(seed) {
    if (!Number.isSafeInteger(seed) || seed < 0) throw new RangeError(`a seed is a whole number from 0 on, not ${seed}`);
    return seed;
}

/** The ids of a text, with the token that begins one, or ids as they are: not more than the context has. */
function fitting(llama, text, what) {
    const ids = typeof text === 'string' ? llama.encode(text, { bos: true }) : int32(text);
    if (ids.length <= llama.contextLength) return ids;
    throw new RangeError(`a ${what} of ${ids.length} tokens does not fit a context of ${llama.contextLength}`);
}

/** How tokens are drawn; refuses what ml_session_generate would. */
function checkSampler(settings) {
    for (const [name, value] of Object.entries(settings))
        if (!(value >= 0)) throw new RangeError(`${name} is a number from 0 on, not ${value}`);
    const { topK, topP, minP, penalty } = settings;
    whole(topK, 'topK');
    for (const [name, value] of Object.entries({ topP, minP }))
        if (value > 1) throw new RangeError(`${name} is a number from 0 to 1, not ${value}`);
    if (penalty > 1000 || (penalty > 0 && penalty < 0.001)) throw new RangeError(`penalty is a number from 0.001 to 1000 (0 or 1: none), not ${penalty}`);
}

/** What a freed model has in place of its runtime. */
const freed = new Proxy({}, { get() { throw new Error('this model has been freed'); } });

/** The pointer of an adapter, head or trainer (null: 0), which must be this model's and not be freed. */
function pointer(thing, what, llama) {
    if (!thing) return 0;
    if (thing.llama !== llama) throw new Error(`this ${what} belongs to another model`);
    if (!thing.at) throw new Error(`this ${what} has been freed`);
    return thing.at;
}

/** Rows of tokens, one after another, as ml_batch has them. */
function packed(rows) {
    const start = new Int32Array(rows.length + 1);
    rows.forEach((row, i) => { start[i + 1] = start[i] + row.length; });
    const tokens = new Int32Array(start[rows.length]);
    rows.forEach((row, i) => tokens.set(row, start[i]));
    return { tokens, start };
}

/** LoRA: thin matrices beside those of a model, which learn while the model stays as it is. */
class Adapter {
    constructor(llama, at) {
        this.llama = llama;
        this.at = at;
        this.parameters = llama.run.call.lora_parameters(at);
    }

    /** Its GGUF file, which llama.cpp and the programs of examples/ read, too. */
    save() {
        const { run } = this.llama;
        if (!run.call.lora_save) throw new Error('this module does not save');
        run.written = [];
        run.check(run.call.lora_save(pointer(this, 'adapter', this.llama), this.llama.at));
        const file = new Uint8Array(run.written.reduce((n, bytes) => n + bytes.length, 0));
        run.written.reduce((at, bytes) => (file.set(bytes, at), at + bytes.length), 0);
        run.written = [];
        return file;
    }

    free() {
        if (this.at && this.llama.at) {
            if (this.llama.adapter === this) this.llama.use(null);
            this.llama.run.call.lora_free(this.at);
        }
        this.at = 0;
    }
}

/** A classifier on top of a model, and of an adapter if it learned together with one. */
class Head {
    constructor(llama, at, classes, adapter) {
        Object.assign(this, { llama, at, classes, adapter });
        this.session = 0;
    }

    /** The probability of each class for a text or ids. */
    classify(text) {
        const { llama } = this, { run } = llama, head = pointer(this, 'head', llama), adapter = pointer(this.adapter, 'adapter', llama);
        const ids = fitting(llama, text, 'text');
        this.session ||= run.check(run.call.session_new(llama.at, adapter, llama.contextLength, llama.contextLength));
        const out = run.alloc(4 * this.classes);
        try {
            run.lend([ids], at => run.check(run.call.head_eval(head, this.session, at, ids.length, out)));
            return Array.from(run.floats(out, this.classes), Math.exp);
        } finally {
            run.call.free(out);
        }
    }

    free() {
        if (this.at && this.llama.at) {
            this.llama.run.call.session_free(this.session);
            this.llama.run.call.head_free(this.at);
        }
        this.at = this.session = 0;
    }
}

/** A training run of an adapter, a head, or both. */
class Trainer {
    constructor(llama, at, adapter, head) {
        Object.assign(this, { llama, at, adapter, head });
        this.parameters = llama.run.call.trainer_parameters(at);
    }

    #run(rows, labels, step) {
        const { run } = this.llama, trainer = pointer(this, 'trainer', this.llama), all = Array.from(rows, row => int32(row)), { tokens, start } = packed(all);
        pointer(this.adapter, 'adapter', this.llama);
        pointer(this.head, 'head', this.llama);
        const classes = classesOf(all.length, labels, this.head);
        const targets = this.head ? null : packed(all.map(row => [...row.slice(1), -1])).tokens;
        const loss = run.lend([tokens, start, targets, classes], (tokensAt, startAt, targetsAt, labelsAt) =>
            run.call.trainer_step(trainer, tokensAt, tokens.length, startAt, all.length, targetsAt, labelsAt, step));
        if (Number.isNaN(loss)) run.fail();
        return loss;
    }

    /** One step on rows of token ids: to predict what follows each, or with a head the rows' labels. The loss before it. */
    step(rows, labels) {
        if (this.adapter && this.adapter === this.llama.adapter)
            this.llama.forget(); // what the session holds was computed with the adapter as it was
        return this.#run(rows, labels, 1);
    }

    /** The loss without learning. */
    loss(rows, labels) { return this.#run(rows, labels, 0); }

    free() {
        if (this.at && this.llama.at) this.llama.run.call.trainer_free(this.at);
        this.at = 0;
    }
}

export class Llama {
    constructor(run, at, data, { contextLength } = {}) {
        Object.assign(this, { run, at, data });
        const c = run.ints(run.call.model_config(at) >>> 0, 7);
        this.config = { dim: c[0], hiddenDim: c[1], layers: c[2], heads: c[3], kvHeads: c[4], vocabSize: c[5], contextLength: c[6] };
        this.contextLength = Math.min(contextLength || 1024, c[6]);
        this.parameters = run.call.model_parameters(at);
        this.type = run.text(run.call.model_type(at));
        this.bos = run.call.model_bos(at);
        this.eos = run.call.model_eos(at);
        this.addsBos = !!run.call.model_adds_bos(at);
        this.adapter = null;
        this.session = 0;
        this.forget();
    }

    /** From now on with this adapter (null: without). */
    use(adapter) {
        if (adapter === this.adapter) return;
        pointer(adapter, 'adapter', this);
        this.adapter = adapter;
        this.forget();
    }

    /** Makes a new session: nothing that was computed before is used again. */
    forget() {
        if (this.session) this.run.call.session_free(this.session);
        this.session = 0;
        this.session = this.run.check(this.run.call.session_new(this.at, this.adapter?.at ?? 0, this.contextLength, 0));
    }

    /** Token ids of a text; with `bos` in front where the model's tokenizer wants it there. */
    encode(text, { bos = false, eos = false } = {}) {
        const { run } = this, bytes = run.writer.encode(text), size = run.call.encode_size(bytes.length), ids = run.alloc(size);
        try {
            const n = run.lend([bytes], at => run.call.encode(this.at, at, bytes.length, 0, ids, size));
            if (n < 0) run.fail();
            return Int32Array.from([...(bos && this.addsBos ? [this.bos] : []), ...run.ints(ids, n), ...(eos && this.eos >= 0 ? [this.eos] : [])]);
        } finally {
            run.call.free(ids);
        }
    }

    /** The bytes that each token adds to the text. */
    pieces(ids) {
        const row = int32(ids), { run } = this, state = run.put(new Int32Array(2));
        const all = Array.from(row, id => {
            const at = run.call.decode(this.at, id, state) >>> 0;
            return run.u8.slice(at, at + run.ints(state, 2)[1]);
        });
        run.call.free(state);
        return all;
    }

    /** The text of token ids. */
    decode(ids) {
        const reader = new TextDecoder();
        return this.pieces(ids).map(bytes => reader.decode(bytes, { stream: true })).join('') + reader.decode();
    }

    /** How a token looks when it stands alone, with the space that it may begin with. */
    show(id) {
        whole(id, 'a token id');
        const { run } = this, state = run.put(Int32Array.of(1, 0)); // a text has begun: the space stays
        const at = run.call.decode(this.at, id, state) >>> 0, text = run.text(at, run.ints(state, 2)[1]);
        run.call.free(state);
        return text;
    }

    /** Reads ids (what the session holds of them is not read again), and calls use(pointer to logits, pointer to ids). */
    #read(ids, use) {
        const { run } = this, row = int32(ids);
        return run.lend([row], at => use(run.check(run.call.session_read(this.session, at, row.length)) >>> 0, at));
    }

    /** How many of the vocabulary: at least one. */
    #rows(k) { return Math.max(1, Math.min(Math.floor(k) || 1, this.config.vocabSize)); }

    /** The k most likely tokens, and the probability of token `id`. */
    #ranked(logits, k, id = 0) {
        const { run } = this, at = run.alloc(8 * k + 4);
        run.call.rank(logits, this.config.vocabSize, at, k, id, at + 8 * k);
        const p = run.floats(at, 2 * k + 1).slice(), ids = run.ints(at, 2 * k).slice(); // copies: show() may let memory grow
        const best = Array.from({ length: k }, (_, i) => ({ id: ids[2 * i + 1], p: p[2 * i], text: this.show(ids[2 * i + 1]), ends: !!run.call.model_ends(this.at, ids[2 * i + 1]) }));
        const found = { best, p: p[2 * k] };
        run.call.free(at);
        return found;
    }

    /** The k most likely tokens after these ids: [{ id, p, text, ends }]. */
    alternatives(ids, k = 5) {
        return this.#read(ids, logits => this.#ranked(logits, this.#rows(k)).best);
    }

    /** The probability that token `id` follows these ids. */
    probability(ids, id) {
        if (!(Number.isInteger(id) && id >= 0 && id < this.config.vocabSize)) throw new RangeError(`token ${id} is outside the vocabulary of ${this.config.vocabSize}`);
        return this.#read(ids, logits => this.#ranked(logits, 1, id).p);
    }

    /**
     * Continues a text or ids, a token at a time: yields { id, text, p, alternatives, ends }, where p is the probability
     * that the model gave the token, and ends says that it ended the text (its `text` is empty).
     */
    *generate(prompt, { maxTokens = Infinity, temperature = 0, topK = 0, topP = 0, minP = 0, penalty = 0, seed = 1, alternatives = 1 } = {}) {
        const { run } = this, n = run.call.model_drawn(this.at), k = this.#rows(alternatives);
        const ids = [...fitting(this, prompt, 'prompt')];
        checkSampler({ maxTokens, temperature, topK, topP, minP, penalty });
        const work = run.alloc(12 * n), random = run.check(run.call.random_new(wholeSeed(seed))), reader = new TextDecoder();
        const state = run.lend([Int32Array.from(ids)], at => run.put(Int32Array.of(run.call.model_has_begun(this.at, at, ids.length), 0)));
        try {
            for (let count = 0; count < maxTokens && ids.length < this.contextLength; count++) {
                const found = this.#read(ids, (logits, at) => {
                    const id = run.call.sample(logits, n, work, random, at, ids.length, temperature, topK, topP, minP, penalty);
                    return id < 0 ? run.fail() : { id, ...this.#ranked(logits, k, id) };
                });
                const { id, p } = found, ends = !!run.call.model_ends(this.at, id);
                const piece = run.call.decode(this.at, id, state) >>> 0;
                const text = ends ? '' : reader.decode(run.u8.slice(piece, piece + run.ints(state, 2)[1]), { stream: true });
                yield { id, text, p, ends, alternatives: found.best };
                if (ends) return;
                ids.push(id);
            }
        } finally {
            [work, random, state].forEach(at => run.call.free(at));
        }
    }

    /** How much each token attends to each: weights[((layer * heads + head) * n + from) * n + to]. */
    attention(ids) {
        ids = int32(ids);
        const { run } = this, n = ids.length, { layers, heads, contextLength } = this.config, size = layers * heads * n * n;
        if (n > contextLength) throw new RangeError(`${n} tokens do not fit a context of ${contextLength}`);
        const at = run.alloc(4 * size);
        try {
            run.lend([ids], idsAt => run.check(run.call.attention(this.at, this.adapter?.at ?? 0, idsAt, n, at)));
            return { layers, heads, n, weights: run.floats(at, size).slice() };
        } finally {
            run.call.free(at);
        }
    }

    /** log p(continuation | context), and of how many tokens. */
    likelihood(context, continuation) {
        const before = this.encode(context, { bos: true }), all = this.encode(context + continuation, { bos: true });
        let first = 0;
        while (first < before.length && before[first] === all[first]) first++; // to the end: an empty continuation
        const sum = this.run.lend([all], at => this.run.call.likelihood(this.session, at, first, all.length));
        if (Number.isNaN(sum)) this.run.fail();
        return { logProbability: sum, tokens: all.length - first };
    }

    /** Functions of the module that not all modules have. */
    #training() {
        if (!this.run.call.trainer_new) throw new Error('this module does not train: load the model without the option wasm, or with a larger module');
        return this.run.call;
    }

    createAdapter({ rank = 8, alpha = 16, targets: which = targets.all, seed = 1 } = {}) {
        return new Adapter(this, this.run.check(this.#training().lora_new(this.at, whole(rank, 'rank'), alpha, which, wholeSeed(seed))));
    }

    /** An adapter from the bytes of its file. */
    loadAdapter(bytes) {
        if (bytes instanceof ArrayBuffer) bytes = new Uint8Array(bytes);
        return new Adapter(this, this.run.lend([bytes], at => this.run.check(this.run.call.lora_load(at, bytes.length, this.at))));
    }

    /** pooling: what the head sees of a text, its 'last' hidden state, or the 'mean' or 'max' of all. */
    createHead(classes, { adapter = null, pooling = 'last', seed = 1 } = {}) {
        const kind = ['last', 'mean', 'max'].indexOf(pooling);
        if (kind < 0) throw new RangeError(`pooling is 'last', 'mean' or 'max', not ${pooling}`);
        pointer(adapter, 'adapter', this);
        return new Head(this, this.run.check(this.#training().head_new(this.at, whole(classes, 'the number of classes'), kind, wholeSeed(seed))), classes, adapter);
    }

    /** Batches have up to maxTokens tokens in up to maxRows rows. With `steps`, the rate falls to 0 along a cosine. */
    createTrainer({ adapter = null, head = null, maxTokens = 1024, maxRows = Math.min(64, maxTokens), learningRate = 1e-3, dropout = 0, steps = 0 } = {}) {
        for (const [name, value] of Object.entries({ maxTokens, maxRows, steps })) whole(value, name);
        const adapterAt = pointer(adapter, 'adapter', this), headAt = pointer(head, 'head', this);
        if (head && (head.adapter || null) !== (adapter || null)) // it would learn with one model, and classify with another
            throw new Error('this head belongs to another adapter, or to none: createHead(classes, { adapter }) and createTrainer({ adapter, head }) take the same');
        const at = this.#training().trainer_new(this.at, adapterAt, headAt, maxTokens, maxRows, learningRate, dropout, steps);
        return new Trainer(this, this.run.check(at), adapter, head);
    }

    free() {
        if (!this.at) return;
        const { call } = this.run;
        call.session_free(this.session);
        call.model_free(this.at);
        call.free(this.data);
        this.at = 0;
        this.run = freed;
    }
}

/** The three files as bytes or Blobs, in a new instance of the module. */
async function loadWith(wasm, { model, tokenizer, config }, options) {
    const run = await new Runtime().start(await compiled(wasm)), size = model.size ?? model.length;
    const data = model instanceof Uint8Array ? run.put(model) : await run.read(model);
    const at = run.lend([tokenizer, config], (tokenizerAt, configAt) =>
        run.check(run.call.model_load(data, size, tokenizerAt, tokenizer?.length ?? 0, configAt, config?.length ?? 0)));
    return new Llama(run, at, data, options);
}

/**
 * Loads a model from bytes, a Blob, a URL or (in Node) a path. Options: wasm (the same kinds, or a WebAssembly.Module),
 * tokenizer and config (files that belong to a model that lacks them), contextLength (tokens that a session holds;
 * default the model's, at most 1024). The default of wasm is beside this file: minillama.wasm; for a file that this one
 * cannot read, but which minillama-all.wasm may, that; and minillama-plain.wasm where there is no SIMD.
 */
export async function load(model, options = {}) {
    const bytes = source => source ? bytesOf(source) : null, isBlob = typeof model?.slice === 'function' && model.size >= 0;
    const files = { model: isBlob ? model : await bytesOf(model), tokenizer: await bytes(options.tokenizer), config: await bytes(options.config) };
    if (options.wasm) return loadWith(options.wasm, files, options);
    if (!hasSimd()) return loadWith(beside('minillama-plain'), files, options);
    try {
        return await loadWith(beside('minillama'), files, options);
    } catch (error) {
        if (error.code !== unsupported) throw error;
        return loadWith(beside('minillama-all'), files, options);
    }
}
