// All that computes, away from the page, so that the page never waits. Jobs run side by side: each gives way after
// every token and every step, which is when the page can stop it, pause it, or begin another one.
import { load } from './minillama.mjs';

let llama = null, adapter = null, classifier = null, endOfText = -1, newest = null, begun = 0;
const jobs = new Map(); // by the number that the page gave them

const { port1, port2 } = new MessageChannel(), waiting = [];
port1.onmessage = () => waiting.shift()();
const turn = () => new Promise(resolve => { waiting.push(resolve); port2.postMessage(0); });

/** Gives way; waits while the job is paused; false when it has been stopped. */
async function goesOn(job) {
    await turn();
    while (job.paused && !job.stopped) await new Promise(resolve => { job.wake = resolve; });
    return !job.stopped;
}

/** Texts of this model end with its bos or its eos: with the one that it expects at the end of a story. */
function findEnd(model) {
    if (model.bos < 0 || model.eos < 0) return Math.max(model.bos, model.eos);
    const ids = model.encode('Once upon a time there was a cat. The end.', { bos: true }).slice(0, model.contextLength);
    return model.probability(ids, model.bos) > model.probability(ids, model.eos) ? model.bos : model.eos;
}

const row = text => [...llama.encode(text, { bos: true })].slice(0, Math.min(256, llama.contextLength) - 1);
const chunks = (list, n) => Array.from({ length: Math.ceil(list.length / n) }, (_, i) => list.slice(i * n, i * n + n));

const longest = batches => Math.max(...batches.map(batch => batch.reduce((n, r) => n + r.length, 0))); // in tokens

/** Tokens with their texts, which make up the whole; of a character of several tokens, the last has it. */
function shown(ids) {
    const reader = new TextDecoder();
    return llama.pieces(ids).map((bytes, i) => ({ id: ids[i], text: reader.decode(bytes, { stream: true }) }));
}

function greedy(text, maxTokens) {
    let written = '';
    for (const token of llama.generate(text, { maxTokens })) written += token.text;
    return written;
}

const actions = {
    async load({ source, tokenizer, config }, emit, job) {
        const order = ++begun;
        let loaded, end;
        try {
            loaded = await load(source, { tokenizer, config });
            loaded.encode(''); // fails without a tokenizer
            end = findEnd(loaded); // fails without an output layer
            if (newest?.order > order) throw new Error('stopped');
            job.order = order;
            newest = job;
            while (jobs.size > 1 && newest === job) { // until nothing uses the last model any more
                for (const other of jobs.values()) // some may have begun meanwhile
                    if (other !== job) other.stopped = true, other.wake?.();
                await turn();
            }
            if (newest !== job) throw new Error('stopped');
        } catch (error) {
            job.stopped = newest?.order > order; // another model was opened while this one was loaded
            loaded?.free();
            throw error;
        }
        llama?.free();
        llama = loaded;
        adapter = classifier = null;
        endOfText = end;
        return { ...llama.config, parameters: llama.parameters, type: llama.type };
    },

    async write({ prompt, ids, options, withAdapter }, emit, job) {
        const use = () => llama.use(withAdapter ? adapter : null); // other jobs may have changed that
        use();
        const given = ids ?? [...llama.encode(prompt, { bos: true })];
        const begin = performance.now();
        let n = 0;
        if (!ids) emit({ prompt: shown(given) });
        for (const token of llama.generate(given, options)) {
            emit({ token });
            n++;
            if (!await goesOn(job)) break;
            use();
        }
        return { tokens: n, seconds: (performance.now() - begin) / 1000 };
    },

    async look({ text, withAdapter, most }) {
        llama.use(withAdapter ? adapter : null);
        const ids = row(text).slice(0, most);
        if (!ids.length) throw new Error('Write a text first.'); // a model without a token that begins one
        return { ...llama.attention(ids), tokens: shown(ids).map((token, i) => i || token.text ? token.text : '⟨begin⟩') };
    },

    /** Trains an adapter on lines of text. */
    async teach({ lines, passes, rank, rate, sample }, emit, job) {
        const rows = lines.map(line => [...row(line), ...endOfText < 0 ? [] : [endOfText]]), batches = chunks(rows, 8);
        const cut = lines.filter(line => llama.encode(line, { bos: true }).length > row(line).length).length;
        if (cut) emit({ cut, most: Math.max(...lines.map(line => row(line).length)) });
        llama.use(null);
        emit({ before: greedy(sample, 40) });
        const made = llama.createAdapter({ rank, alpha: 2 * rank });
        let trainer = null;
        try {
            trainer = llama.createTrainer({ adapter: made, maxTokens: longest(batches), maxRows: 8, learningRate: rate, steps: passes * batches.length });
            emit({ parameters: trainer.parameters });
            for (let pass = 0; pass < passes; pass++)
                for (const batch of batches) {
                    emit({ loss: trainer.step(batch) });
                    if (!await goesOn(job)) throw new Error('stopped');
                }
        } catch (error) {
            made.free();
            throw error;
        } finally {
            trainer?.free();
        }
        adapter?.free();
        adapter = made;
        llama.use(adapter);
        return { after: greedy(sample, 40) };
    },

    async save() { return adapter.save(); },

    async open({ bytes, sample }) {
        const opened = llama.loadAdapter(bytes);
        llama.use(null);
        const before = greedy(sample, 40);
        adapter?.free();
        adapter = opened;
        llama.use(adapter);
        return { before, after: greedy(sample, 40), parameters: adapter.parameters };
    },

    /** Trains a head and an adapter on labeled texts. */
    async trainClassifier({ examples, test, classes, passes }, emit, job) {
        const head = { adapter: llama.createAdapter({ rank: 8, alpha: 16 }) };
        const batches = chunks(examples.map(e => ({ row: row(e.text), label: e.label })), 10), all = batches.length * passes;
        let trainer, done = 0;
        try {
            head.head = llama.createHead(classes, { adapter: head.adapter });
            trainer = llama.createTrainer({ ...head, maxTokens: longest(batches.map(batch => batch.map(e => e.row))), maxRows: 10,
                learningRate: 4e-3, steps: all });
            for (let pass = 0; pass < passes; pass++)
                for (const batch of batches) {
                    const loss = trainer.step(batch.map(e => e.row), batch.map(e => e.label));
                    emit({ loss, done: ++done / all });
                    if (!await goesOn(job)) throw new Error('stopped');
                }
        } catch (error) {
            head.head?.free();
            head.adapter.free();
            throw error;
        } finally {
            trainer?.free();
        }
        classifier?.head.free();
        classifier?.adapter.free();
        classifier = head;
        let right = 0;
        for (const { text, label } of test) {
            const p = head.head.classify(row(text));
            if (p.indexOf(Math.max(...p)) === label) right++;
            await turn();
        }
        return { accuracy: right / test.length };
    },

    /** With the head if it is for these labels, else by how much likelier the text makes each of the words. */
    async classify({ text, labels }) {
        if (classifier?.head.classes === labels.length) return { p: classifier.head.classify(row(text)), trained: true };
        llama.use(null);
        const room = llama.contextLength - 24, ids = llama.encode(text); // for the question and the label
        if (ids.length > room) text = llama.decode(ids.slice(0, room));
        const scores = labels.map(label => llama.likelihood(`${text} It was`, ` ${label}.`).logProbability -
            llama.likelihood('It was', ` ${label}.`).logProbability);
        const most = Math.max(...scores), e = scores.map(s => Math.exp(s - most)), sum = e.reduce((a, b) => a + b);
        return { p: e.map(x => x / sum), trained: false };
    },
};

onmessage = async ({ data: { id, action, value } }) => {
    const job = jobs.get(id);
    if (action === 'stop' || action === 'pause' || action === 'resume') {
        if (!job) return;
        if (action === 'stop') job.stopped = true;
        job.paused = action === 'pause';
        job.wake?.();
        return;
    }
    const started = { stopped: false, paused: false };
    jobs.set(id, started);
    try {
        if (!llama && action !== 'load') throw new Error('There is no model yet: open one first.');
        postMessage({ id, result: await actions[action](value, event => postMessage({ id, event }), started) });
    } catch (error) {
        postMessage({ id, error: error.message, stopped: started.stopped });
    } finally {
        jobs.delete(id);
    }
};
