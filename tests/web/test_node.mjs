// The module as an npm package, in Node: the same text as the native program, training, files that are no models.
import { mkdtempSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { execFileSync } from 'node:child_process';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { check, native, same, sum, test } from './check.mjs';

const build = path.resolve(process.argv[2] ?? 'build'), web = path.join(build, 'web'), file = path.join(web, 'stories.gguf');
const folder = mkdtempSync(path.join(tmpdir(), 'minillama-')); // a project that has the package
mkdirSync(path.join(folder, 'node_modules'));
symlinkSync(web, path.join(folder, 'node_modules', 'minillama'));
writeFileSync(path.join(folder, 'use.mjs'), "export * from 'minillama';\n");
const { load, Llama, targets } = await import(pathToFileURL(path.join(folder, 'use.mjs')));

const write = (llama, prompt, options) => Array.from(llama.generate(prompt, options), token => token.text).join('');
const llama = await load(file);

await test('the greedy text is that of the program in plain C, to the end of the context', () => {
    same('Once upon a time' + write(llama, 'Once upon a time'), native(path.join(build, 'generate_plain'), file), 'not the same text');
});

await test('... and for other prompts at least at first', () => {
    // two C libraries' sinf and cosf differ in a last bit, which may fork a story after a hundred tokens
    for (const prompt of ['Tom had a red ball. He', 'The dragon was', 'One day, Lily']) {
        const begin = prompt + write(llama, prompt, { maxTokens: 60 });
        same(begin, native(path.join(build, 'generate_plain'), file, prompt).slice(0, begin.length), 'not the same text');
    }
});

await test('a text begins with bos only where the file says so', async () => {
    const bytes = Buffer.from(readFileSync(file)), key = 'tokenizer.ggml.add_bos_token';
    bytes[bytes.indexOf(key) + key.length + 4] = 0; // behind the type, a bool
    const without = await load(bytes);
    same([llama.addsBos, without.addsBos].join(), 'true,false', 'what the files say');
    same([...without.encode('Once upon', { bos: true })].join(), [...llama.encode('Once upon')].join(), 'ids');
    const options = { maxTokens: 8 };
    same(write(without, 'Once upon', options), write(llama, llama.encode('Once upon'), options), 'not the same text');
    without.free();
});

await test('the module without training writes the same', async () => {
    const small = await load(readFileSync(file), { wasm: path.join(web, 'minillama-small.wasm') });
    same(write(small, 'Once upon a time', { maxTokens: 60 }), write(llama, 'Once upon a time', { maxTokens: 60 }), 'not the same text');
    small.free();
});

await test('alternatives are in order, and the greedy token is the first of them', () => {
    for (const { id, p, alternatives } of llama.generate('Once upon a time', { maxTokens: 20, alternatives: 6 })) {
        same(alternatives.length, 6, 'their number');
        same(alternatives[0].id, id, 'the first');
        check(Math.abs(alternatives[0].p - p) < 1e-6, `p is ${p}, not ${alternatives[0].p}`);
        check(alternatives.every((a, i) => !i || a.p <= alternatives[i - 1].p), 'not in order');
        check(alternatives.reduce((s, a) => s + a.p, 0) <= 1.00001, 'more than 1');
    }
    // over the whole vocabulary they are 1; 2048 float sums are off by 1e-5 at most
    const all = llama.alternatives(llama.encode('Once', { bos: true }), llama.config.vocabSize);
    check(Math.abs(all.reduce((s, a) => s + a.p, 0) - 1) < 1e-4, 'the probabilities do not add up to 1');
});

await test('the same seed draws the same story', async () => {
    const draw = seed => write(llama, 'Once upon a time', { temperature: 1, maxTokens: 30, seed });
    same(draw(7), draw(7), 'not the same');
    check(draw(7) !== draw(8), 'two seeds draw the same');
    for (const seed of [-1, 0.5, NaN, 2 ** 60])
        same(await failure(() => draw(seed)), `a seed is a whole number from 0 on, not ${seed}`, 'seed');
});

await test('text becomes tokens and text again', () => {
    for (const text of ['Once upon a time', 'Ein Bär aß 3 Äpfel – „süß“ 🙂'])
        same(llama.decode(llama.encode(text)), text, 'not the same text');
});

await test('the modules are as small as examples/web/README.md promises', () => {
    const bytes = name => readFileSync(path.join(web, `${name}.wasm`)), gzip = input => execFileSync('gzip', ['-9c'], { input }).length;
    for (const [what, n] of [['minillama.wasm with gzip', gzip(bytes('minillama'))], ['minillama-small.wasm', bytes('minillama-small').length]])
        check(n <= 100000, `${what}: ${n} bytes are more than 100,000`);
});

await test('attention: each row is a distribution over what came before', () => {
    const ids = llama.encode('Tom gave his ball to Lily.', { bos: true }), { layers, heads, n, weights } = llama.attention(ids);
    same(n, ids.length, 'tokens');
    for (let row = 0; row < layers * heads * n; row++) {
        const of = weights.subarray(row * n, row * n + n), i = row % n;
        check(Math.abs(of.reduce((s, w) => s + w) - 1) < 1e-5, `row ${row} does not add up to 1`);
        check(of.subarray(i + 1).every(w => w === 0), `row ${row} looks ahead`);
    }
});

await test('the likelihood of a text is the product of the probabilities of its tokens', () => {
    const before = [...llama.encode('Once upon', { bos: true })], all = llama.encode('Once upon the moon', { bos: true });
    let expected = 0;
    for (let i = before.length; i < all.length; i++) expected += Math.log(llama.probability(all.slice(0, i), all[i]));
    const { logProbability, tokens } = llama.likelihood('Once upon', ' the moon');
    same(tokens, all.length - before.length, 'tokens');
    // one by one or in one pass: 8-bit activations are the same, sums differ in their order
    check(Math.abs(logProbability - expected) < 1e-3, `${logProbability}, not ${expected}`);
});

await test('the likelihood of nothing is 1', () => {
    for (const context of ['Once upon', ''])
        same(JSON.stringify(llama.likelihood(context, '')), '{"logProbability":0,"tokens":0}', `after "${context}"`);
    same(llama.likelihood('', 'Once').tokens, llama.encode('Once').length, 'tokens');
});

await test('an adapter learns, is saved, loaded, and works natively', () => {
    const rows = ['Zip is a robot. He lives on the moon.', 'Zip likes oil. He drinks a cup of it.']
        .map(text => [...llama.encode(text, { bos: true }), llama.bos]);
    const plain = write(llama, 'Zip', { maxTokens: 40 });
    const adapter = llama.createAdapter({ rank: 4, alpha: 8, targets: targets.all });
    const trainer = llama.createTrainer({ adapter, maxTokens: 64, learningRate: 5e-3 });
    const first = trainer.loss(rows);
    check(Math.abs(trainer.step(rows) - first) < 1e-6, 'the loss of the first step is another');
    for (let i = 0; i < 15; i++) trainer.step(rows);
    const last = trainer.loss(rows);
    check(last < first / 2, `the loss went from ${first} to ${last}`);
    trainer.free();
    llama.use(adapter);
    const learned = write(llama, 'Zip', { maxTokens: 40 }), name = path.join(folder, 'adapter.gguf');
    check(learned !== plain, 'nothing was learned');
    writeFileSync(name, adapter.save());
    llama.use(llama.loadAdapter(readFileSync(name)));
    same(write(llama, 'Zip', { maxTokens: 40 }), learned, 'a saved adapter writes something else');
    llama.use(null);
    same(write(llama, 'Zip', { maxTokens: 40 }), plain, 'the model itself has changed');
    const args = ['--pretrained-model-path', file, '--lora', name, '--prompt', 'Zip', '--temperature', '0', '--max_new_tokens', '40'];
    const said = native(path.join(build, 'run_llama'), '--option', 'generate', ...args);
    check(said.includes('Zip' + learned), `run_llama writes ${said}, not Zip${learned}`);
    adapter.free();
});

await test('a head learns to tell two kinds of sentences', () => {
    const texts = ['I loved it, it was good.', 'What a bad and boring film.'], rows = texts.map(text => llama.encode(text, { bos: true }));
    const adapter = llama.createAdapter({ rank: 4 }), head = llama.createHead(2, { adapter });
    const trainer = llama.createTrainer({ adapter, head, maxTokens: 64, learningRate: 5e-3 });
    for (let i = 0; i < 12; i++) trainer.step(rows, [1, 0]);
    trainer.free();
    const [good, bad] = texts.map(text => head.classify(text));
    check(Math.abs(good[0] + good[1] - 1) < 1e-5, 'not a distribution');
    check(good[1] > 0.8 && bad[0] > 0.8, `${good} and ${bad}`);
    same(head.classify(rows[0]).join(), good.join(), 'of ids');
    head.free();
    adapter.free();
});

await test('a head and an adapter that do not belong together are refused', async () => {
    const [adapter, other] = [1, 2].map(() => llama.createAdapter({ rank: 2 })), head = llama.createHead(2), both = llama.createHead(2, { adapter });
    const said = 'this head belongs to another adapter, or to none: createHead(classes, { adapter }) and createTrainer({ adapter, head }) take the same';
    for (const options of [{ adapter, head }, { adapter: other, head: both }, { head: both }])
        same(await failure(() => llama.createTrainer({ ...options, maxTokens: 8 })), said, Object.keys(options).join());
    for (const options of [{ head }, { adapter, head: both }]) llama.createTrainer({ ...options, maxTokens: 8 }).free();
    [head, both, adapter, other].forEach(thing => thing.free());
});

await test('a head sees the whole of a text', async () => {
    const bytes = Buffer.from(readFileSync(file)), key = 'llama.context_length', n = 600;
    bytes.writeUInt32LE(n, bytes.indexOf(key) + key.length + 4); // behind the type
    const long = await load(bytes);
    const head = long.createHead(2), row = Array(n).fill(5);
    check(head.classify(row).join() !== head.classify([...row.slice(1), 6]).join(), 'the end is not seen');
    same(await failure(() => head.classify([...row, 6])), `a text of ${n + 1} tokens does not fit a context of ${n}`, 'one more');
    head.free();
    long.free();
});

/** Logits after 20 tokens that are read at once, and after three more, as web_models does it. */
function logitsOf(llama) {
    const { run } = llama, n = llama.config.vocabSize, ids = Int32Array.from({ length: 23 }, (_, i) => (7 * i + 3) % n);
    const row = run.put(ids), all = [20, 21, 22, 23].map(k => run.floats(run.check(run.call.session_read(llama.session, row, k)) >>> 0, n).slice());
    run.call.free(row);
    return all;
}

await test('every type of weights has the logits of plain C, with and without SIMD', async () => {
    execFileSync(path.join(build, 'web_models'), [folder, file]);
    for (const type of ['F32', 'F16', 'BF16', 'Q8_0', 'Q4_0', 'Q5_0', 'Q5_1', 'Q4_K', 'Q5_K', 'Q6_K']) {
        const bytes = readFileSync(path.join(folder, `${type}.logits`)), expected = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
        for (const kind of ['all', 'plain']) {
            const of = await load(path.join(folder, `${type}.gguf`), { wasm: path.join(web, `minillama-${kind}.wasm`) });
            const rows = logitsOf(of), n = of.config.vocabSize;
            // Equal bits: vectors of four and plain loops add in the same order, and WebAssembly rounds every product.
            rows.forEach((row, k) => row.forEach((x, i) => same(x, expected[k * n + i], `${type}, minillama-${kind}.wasm: logit ${i} after ${20 + k}`)));
            check(rows[3].some(x => Math.abs(x) > 1e-3), `${type}: all logits are 0`);
            of.free();
        }
    }
});

await test('of a padded vocabulary only tokens with a piece are drawn', async () => {
    const padded = await load(path.join(folder, 'padded.gguf')); // of random weights: a token of four has a piece
    for (const temperature of [0, 1]) {
        const drawn = Array.from(padded.generate([1], { temperature, maxTokens: 20 }));
        check(drawn.length && drawn.every(({ id }) => id < padded.config.vocabSize / 4), `drawn: ${drawn.map(({ id }) => id)}`);
    }
    padded.free();
});

await test('a prompt of one token began the text, and the next keeps its space', () => {
    const ends = llama.alternatives(llama.encode('Once'), llama.config.vocabSize).filter(a => a.ends);
    check(ends.some(a => a.id === llama.eos) && ends.length < 4 && ends.every(a => !a.text), 'which tokens end a text');
    const [once] = llama.encode('Once'), [next] = llama.generate([once], { maxTokens: 1 });
    same(next.text, llama.show(next.id), 'its text');
    check(next.text.startsWith(' '), `no word comes next, but ${next.text}`);
});

await test('no more than 4 GB are handed out, and nothing twice', async () => {
    const { run } = await load(file, { contextLength: 16 }), large = [2 ** 31 - 2 ** 20, 2 ** 31 - 2 ** 22].map(n => [run.call.alloc(n, 0) >>> 0, n]);
    let count = 0;
    for (let at; (at = run.call.alloc(60000, 0) >>> 0) && count < 200; count++)
        check(large.every(([begin, n]) => !begin || at + 60000 <= begin || at >= begin + n), `${at} is in use`);
    check(count < 200, 'it never ends');
});

/** The sentence with which something fails. */
async function failure(run) {
    try {
        await run();
    } catch (error) {
        return error.message;
    }
    return 'no failure';
}

await test('what was freed is refused, and is freed but once', async () => {
    const other = await load(file), adapter = other.createAdapter({ rank: 2 }), head = other.createHead(2, { adapter });
    const trainer = other.createTrainer({ adapter, maxTokens: 8 });
    head.classify('Once');
    trainer.free();
    trainer.free();
    same(await failure(() => trainer.step([[1, 2, 3]])), 'this trainer has been freed', 'trainer');
    adapter.free();
    adapter.free();
    same(await failure(() => other.use(adapter)), 'this adapter has been freed', 'adapter');
    same(await failure(() => adapter.save()), 'this adapter has been freed', 'adapter that is saved');
    same(await failure(() => head.classify('Once')), 'this adapter has been freed', 'adapter of a head');
    head.free();
    head.free();
    same(await failure(() => head.classify('Once')), 'this head has been freed', 'head');
    const story = other.generate('Once'), late = other.createAdapter({ rank: 2 });
    story.next();
    other.free();
    other.free();
    late.free();
    same(await failure(() => story.next()), 'this model has been freed', 'model that writes');
    same(await failure(() => other.encode('Once')), 'this model has been freed', 'model');
});

await test('two models do not share adapters and heads', async () => {
    const other = await load(file), adapter = other.createAdapter({ rank: 2 }), head = other.createHead(2);
    const of = what => `this ${what} belongs to another model`;
    same(await failure(() => llama.use(adapter)), of('adapter'), 'use');
    same(await failure(() => llama.createHead(2, { adapter })), of('adapter'), 'createHead');
    same(await failure(() => llama.createTrainer({ adapter })), of('adapter'), 'createTrainer');
    same(await failure(() => llama.createTrainer({ head })), of('head'), 'createTrainer with a head');
    const one = llama.generate('Once upon a time', { maxTokens: 12 }), two = other.generate('Tom and Lily', { maxTokens: 12 });
    let [a, b] = ['', ''];
    for (let i = 0; i < 12; i++) a += one.next().value.text, b += two.next().value.text;
    same(a, write(llama, 'Once upon a time', { maxTokens: 12 }), 'the first of two that write at once');
    same(b, write(llama, 'Tom and Lily', { maxTokens: 12 }), 'the second');
    other.free();
});

await test('ids, labels and numbers are checked', async () => {
    const ids = 'token ids are expected: encode() gives those of a text';
    same(await failure(() => llama.alternatives('Once')), ids, 'a text');
    same(await failure(() => llama.attention('Once')), ids, 'attention of a text');
    same(await failure(() => [...llama.generate(7)]), ids, 'a number');
    for (const id of [-1, llama.config.vocabSize, NaN])
        same(await failure(() => llama.probability([1], id)), `token ${id} is outside the vocabulary of 2048`, 'probability');
    for (const k of [0, -1, NaN, 1.5]) same(llama.alternatives([1], k).length, 1, `${k} alternatives`);
    same(Array.from(llama.generate({ length: 1, 0: 1 }, { maxTokens: 3 })).length, 3, 'what is like an array');
    same(Array.from(llama.generate(Array(256).fill(5))).length, 0, 'of a full context');
    same(await failure(() => [...llama.generate(Array(257).fill(5))]), 'a prompt of 257 tokens does not fit a context of 256', 'prompt');
    for (const [name, value] of [['temperature', 'hot'], ['temperature', -1], ['topK', -3], ['topP', NaN], ['minP', -1], ['penalty', -1], ['maxTokens', NaN]])
        same(await failure(() => [...llama.generate('Once', { [name]: value })]), `${name} is a number from 0 on, not ${value}`, name);
    for (const [name, value, of] of [['topP', 90, '0 to 1'], ['minP', 5, '0 to 1'], ['penalty', 5000, '0.001 to 1000 (0 or 1: none)'],
        ['penalty', 1e-9, '0.001 to 1000 (0 or 1: none)']])
        same(await failure(() => [...llama.generate('Once', { [name]: value })]), `${name} is a number from ${of}, not ${value}`, name);
    for (const topK of [2 ** 31, 0.5])
        same(await failure(() => [...llama.generate('Once', { topK })]), `topK is a whole number of 32 bits, not ${topK}`, 'topK');
    for (const settings of [{ topP: 1 }, { minP: 1 }, { penalty: 1000 }, { penalty: 0.001 }, { topK: 2 ** 31 - 1 }])
        same([...llama.generate('Once', { temperature: 1, maxTokens: 2, ...settings })].length, 2, JSON.stringify(settings));
    same(await failure(() => llama.attention(Array(257).fill(5))), '257 tokens do not fit a context of 256', 'attention');
    same(llama.attention(Array(256).fill(5)).n, 256, 'attention of a full context');
    same(await failure(() => llama.createHead(2, { pooling: 'first' })), "pooling is 'last', 'mean' or 'max', not first", 'pooling');
    for (const [call, said] of [[() => llama.createHead(2.5), 'the number of classes is a whole number of 32 bits, not 2.5'],
        [() => llama.createHead(), 'the number of classes is a whole number of 32 bits, not undefined'],
        [() => llama.createAdapter({ rank: '4' }), 'rank is a whole number of 32 bits, not 4'],
        [() => llama.createTrainer({ maxTokens: 8.5 }), 'maxTokens is a whole number of 32 bits, not 8.5'],
        [() => llama.createTrainer({ maxRows: NaN }), 'maxRows is a whole number of 32 bits, not NaN'],
        [() => llama.createTrainer({ steps: 0.5 }), 'steps is a whole number of 32 bits, not 0.5']])
        same(await failure(call), said, 'a whole number');
    const head = llama.createHead(2), trainer = llama.createTrainer({ head, maxTokens: 8 });
    same(await failure(() => trainer.step([[1, 2], [1, 3]], [1])), '2 rows have 1 labels', 'labels');
    same(await failure(() => trainer.step(['Once'], [1])), ids, 'a row of text');
    for (const label of ['bad', undefined, 0.5, NaN, 2 ** 32])
        same(await failure(() => trainer.step([[1, 2]], [label])), `a label is a whole number of 32 bits, not ${label}`, 'label');
    for (const labels of ['0', 0])
        same(await failure(() => trainer.loss([[1, 2]], labels)), 'labels are a list: a whole number for each row', 'labels');
    for (const what of ['step', 'loss'])
        same(await failure(() => trainer[what]([[1, 2]])), 'there are no labels: with a head each row has one', what);
    trainer.free();
    head.free();
    const adapter = llama.createAdapter({ rank: 2 }), plain = llama.createTrainer({ adapter, maxTokens: 8 });
    for (const what of ['step', 'loss'])
        same(await failure(() => plain[what]([[1, 2]], [0])), 'labels are for a trainer with a head', what);
    check(plain.loss([[1, 2]], null) > 0, 'no labels');
    for (const id of ['x', NaN, 1.5, 2 ** 32]) {
        const said = `a token id is a whole number of 32 bits, not ${id}`, row = [1, id];
        for (const call of [() => [...llama.generate(row)], () => llama.alternatives(row), () => llama.probability(row, 1), () => llama.attention(row),
            () => llama.decode(row), () => llama.pieces(row), () => llama.show(id), () => plain.step([row])])
            same(await failure(call), said, call);
    }
    same(await failure(() => llama.probability([1], 0.5)), 'token 0.5 is outside the vocabulary of 2048', 'probability');
    plain.free();
    adapter.free();
    const small = await load(file, { wasm: path.join(web, 'minillama-small.wasm') });
    for (const call of [() => small.createAdapter(), () => small.createHead(2), () => small.createTrainer()])
        check(/^this module does not train/.test(await failure(call)), await failure(call));
    small.free();
});

await test('what the small module cannot read is read by a larger one', async () => {
    const quantized = await load(path.join(folder, 'Q4_K.gguf'));
    same(quantized.config.dim, 256, 'width');
    same(quantized.run.call.memory === llama.run.call.memory, false, 'memory');
    quantized.free();
});

await test('without SIMD the plain module writes the same', async () => {
    const { validate } = WebAssembly;
    WebAssembly.validate = () => false; // as where a type of 128 bits is not known
    const plain = await load(file);
    WebAssembly.validate = validate;
    const module = await WebAssembly.compile(readFileSync(path.join(web, 'minillama-plain.wasm')));
    same(Object.keys(plain.run.call).join(), WebAssembly.Module.exports(module).map(e => e.name).join(), 'functions');
    same(write(plain, 'Once upon a time', { maxTokens: 60 }), write(llama, 'Once upon a time', { maxTokens: 60 }), 'not the same text');
    plain.free();
});

await test('a model that is too large is refused with a sentence', async () => {
    const blob = { size: 3e9, slice: () => new Blob(), arrayBuffer: () => 0 };
    const said = await load(blob).then(() => 'accepted', error => error.message);
    same(said, 'There is not enough memory: 3000 MB more are needed.', 'sentence');
    const full = await load(file);
    let message = '';
    for (let i = 0; i < 3 && !message; i++)
        try {
            full.run.alloc(2e9); // twice is about all that a module can have
        } catch (error) {
            message = error.message;
        }
    full.free();
    check(/not enough memory: 2000 MB/.test(message), message);
});

await test('memory that is given back is used again', () => {
    const once = () => {
        const adapter = llama.createAdapter(), trainer = llama.createTrainer({ adapter, maxTokens: 32 });
        trainer.step([llama.encode('Once upon a time', { bos: true })]);
        trainer.free();
        llama.attention(llama.encode('Once upon a time'));
        adapter.free();
    };
    once();
    const before = llama.run.call.memory.buffer.byteLength;
    for (let i = 0; i < 10; i++) once();
    same(llama.run.call.memory.buffer.byteLength, before, 'bytes of memory');
});

await test('what is no model is refused with a sentence', async () => {
    for (const bytes of [new Uint8Array(100), readFileSync(file).subarray(0, 5000)]) {
        const said = await load(bytes).then(() => 'accepted', error => error.message);
        check(said.length > 10 && said !== 'accepted', said);
    }
    let said = '';
    try {
        llama.loadAdapter(readFileSync(file));
    } catch (error) {
        said = error.message;
    }
    check(said.length > 10, 'a model was loaded as an adapter');
});

await test('the types know what the module has', () => {
    const types = readFileSync(path.join(web, 'minillama.d.ts'), 'utf8');
    for (const name of Object.getOwnPropertyNames(Llama.prototype))
        check(name === 'constructor' || types.includes(`    ${name}(`), `minillama.d.ts lacks ${name}`);
    const used = readFileSync(new URL('./types.ts', import.meta.url), 'utf8');
    for (const [, name] of types.matchAll(/^export (?:function|class|interface|type|const) (\w+)/gm))
        check(used.match(new RegExp(`\\b${name}\\b`, 'g'))?.length > 1, `types.ts does not use ${name}`);
    for (const [, name] of types.matchAll(/^    (?:readonly )?(\w+)\??[:(]/gm))
        check(name === 'constructor' || new RegExp(`\\b${name}\\b`).test(used), `types.ts does not use ${name}`);
});

await test('the package has what it needs, for bundlers and for TypeScript without the types of a browser', () => {
    const { version, files } = JSON.parse(readFileSync(path.join(web, 'package.json')));
    same(version, readFileSync('minillama.h', 'utf8').match(/ML_VERSION_STRING "(.*)"/)[1], 'version');
    for (const name of [...files, 'README.md', 'LICENSE']) check(readFileSync(path.join(web, name)).length > 500, `${name} is empty`); // npm takes these two by itself
    check(!/import\((\/\*.*?\*\/ *)*['"`]/.test(readFileSync(path.join(web, 'minillama.mjs'), 'utf8')), 'bundlers look for what is imported by its name');
    const types = readFileSync(path.join(web, 'minillama.d.ts'), 'utf8').replace(/\/\*[^]*?\*\//g, '');
    check(!/WebAssembly\./.test(types), 'Node has no types of WebAssembly');
});

llama.free();
rmSync(folder, { recursive: true });
sum('test_node');
