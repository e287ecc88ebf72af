// speed.mjs A.wasm B.wasm ... [MODEL.gguf] [ROUNDS]: tokens a second and milliseconds a training step of each, measured in
// turn; the best of several rounds, so that what else the machine does matters little.
import { load } from '../../examples/web/minillama.mjs';

const given = process.argv.slice(2), files = given.filter(name => name.endsWith('.wasm')), best = new Map();
const rounds = +given.find(Number) || 8;
const model = given.find(name => name.endsWith('.gguf')) ?? new URL('../../examples/models/stories.gguf', import.meta.url);
/** Milliseconds of processor time, which other programs do not lengthen as they do those of a clock. */
const timed = run => {
    const begin = process.cpuUsage();
    run();
    const { user, system } = process.cpuUsage(begin);
    return (user + system) / 1000;
};
const llamas = await Promise.all(files.map(file => load(model, { wasm: file })));
const prompt = Array.from({ length: 24 }, () => 'Once upon a time there was a').join(' ');

function measure(llama) {
    const { run } = llama, ids = [...llama.encode(prompt, { bos: true })].slice(0, 200), row = run.put(Int32Array.from(ids));
    llama.forget();
    const read = timed(() => run.call.session_read(llama.session, row, ids.length)) / ids.length;
    llama.forget();
    const decode = timed(() => { for (let n = 1; n <= 100; n++) run.call.session_read(llama.session, row, n); }) / 100;
    run.call.free(row);
    const adapter = llama.createAdapter(), trainer = llama.createTrainer({ adapter, maxTokens: 240 });
    const step = timed(() => trainer.step([ids.slice(0, 60), ids.slice(0, 60), ids.slice(0, 60), ids.slice(0, 60)]));
    trainer.free();
    adapter.free();
    return [decode, read, step];
}

for (let round = 0; round < rounds; round++)
    llamas.forEach((llama, i) => {
        const times = measure(llama), least = best.get(i) ?? times;
        best.set(i, times.map((time, k) => Math.min(time, least[k])));
    });
files.forEach((file, i) => {
    const [decode, read, step] = best.get(i);
    console.log(`${file}: decoding ${(1000 / decode).toFixed(0)} tokens/s, reading ${(1000 / read).toFixed(0)} tokens/s, ` +
        `LoRA step of 240 tokens ${step.toFixed(0)} ms`);
});
