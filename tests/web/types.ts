// Uses all that minillama.d.ts describes: run.sh compiles this with --strict, in a project that has the package.
import { load, targets, Llama } from 'minillama';
import type {
    Adapter, AdapterOptions, Alternative, Attention, Config, GenerateOptions, Head, LoadOptions, Module, Source, Token, Trainer, TrainerOptions,
} from 'minillama';

export async function open(source: Source, wasm: Module): Promise<Llama> {
    const options: LoadOptions = { wasm, tokenizer: 'tokenizer.model', config: new Uint8Array(2), contextLength: 64 };
    const llama = await load(source, options);
    const { dim, hiddenDim, layers, heads, kvHeads, vocabSize, contextLength }: Config = llama.config;
    const numbers: number[] = [dim, hiddenDim, layers, heads, kvHeads, vocabSize, contextLength, llama.contextLength, llama.parameters, llama.bos, llama.eos];
    const words: string[] = [llama.type, llama.show(numbers.length)];
    return words.length ? llama : load('stories.gguf');
}

export function write(llama: Llama): string {
    const options: GenerateOptions = { maxTokens: 9, temperature: 1, topK: 40, topP: 0.9, minP: 0.1, penalty: 1.1, seed: 1, alternatives: 3 };
    let text = '';
    for (const token of llama.generate('Once', options)) {
        const { id, p, ends, alternatives }: Token = token, first: Alternative | undefined = alternatives[0];
        if (!ends && first && first.id === id && first.p === p) text += token.text + first.text;
    }
    const ids: Int32Array = llama.encode(text, { bos: llama.addsBos, eos: false }), pieces: Uint8Array[] = llama.pieces(ids);
    const best: Alternative[] = llama.alternatives(ids, 5), p: number = llama.probability([1, 2], 3);
    const { logProbability, tokens } = llama.likelihood('Once', ' upon');
    const { layers, heads, n, weights }: Attention = llama.attention(ids), sum: number = layers + heads + n + (weights[0] ?? 0);
    return llama.decode(ids) + pieces.length + best.length + (p + logProbability + tokens + sum);
}

export function teach(llama: Llama): Uint8Array {
    const made: AdapterOptions = { rank: 4, alpha: 8, targets: targets.attention | targets.w1, seed: 1 };
    const adapter: Adapter = llama.createAdapter(made), head: Head = llama.createHead(2, { adapter, pooling: 'mean', seed: 1 });
    const options: TrainerOptions = { adapter, head, maxTokens: 64, maxRows: 8, learningRate: 1e-3, dropout: 0.1, steps: 10 };
    const trainer: Trainer = llama.createTrainer(options), loss: number = trainer.step([[1, 2], llama.encode('Once')], [0, 1]);
    if (trainer.loss([[1, 2]], [0]) < loss) llama.use(adapter);
    const p: number[] = head.classify('Once'), all: number = trainer.parameters + adapter.parameters + head.classes + p.length;
    trainer.free();
    head.free();
    llama.use(all ? llama.loadAdapter(adapter.save()) : null);
    const used: Adapter | null = llama.adapter, file = used ? used.save() : new Uint8Array();
    adapter.free();
    llama.forget();
    llama.free();
    return file;
}

// What is wrong is told.
export function refused(llama: Llama) {
    // @ts-expect-error: the constructor is private
    new Llama();
    // @ts-expect-error: ids are numbers
    llama.attention('Once');
    // @ts-expect-error: there is no such pooling
    llama.createHead(2, { pooling: 'first' });
    // @ts-expect-error: what a model is cannot be changed
    llama.config = null;
    return targets.q | targets.k | targets.v | targets.o | targets.w2 | targets.w3 | targets.all;
}
