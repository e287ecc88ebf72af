// The page in headless Chromium: writes what the native program writes, goes on from an alternative, shows attention,
// classifies, trains, pauses, cancels; the adapter that it downloads works natively.
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { mkdtempSync, rmSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { check, native, same, sum, test } from './check.mjs';

const require = createRequire(path.join(process.cwd(), 'package.json'));
let chromium;
try {
    ({ chromium } = require('playwright-core'));
} catch {
    console.log('skipped test_page: no playwright-core (npm install it anywhere; PLAYWRIGHT=.../node_modules names the place)');
    process.exit(0);
}

const build = path.resolve(process.argv[2] ?? 'build'), web = path.join(build, 'web'), model = path.join(web, 'stories.gguf');
const kinds = { '.html': 'text/html', '.mjs': 'text/javascript', '.css': 'text/css', '.wasm': 'application/wasm' };
const server = createServer(async ({ url }, answer) => {
    const name = path.join(web, path.normalize(url === '/' ? 'index.html' : url));
    try {
        const bytes = await readFile(name);
        answer.setHeader('content-type', kinds[path.extname(name)] ?? 'application/octet-stream');
        answer.end(bytes);
    } catch {
        answer.writeHead(404).end();
    }
});
await new Promise(resolve => server.listen(0, '127.0.0.1', resolve));
const address = `http://127.0.0.1:${server.address().port}/`;

const folder = mkdtempSync(path.join(tmpdir(), 'minillama-'));
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ['--no-sandbox'] });
const page = await browser.newPage();
page.setDefaultTimeout(120000); // machines that test are busy
const complaints = [], strangers = [];
page.on('console', message => ['error', 'warning'].includes(message.type()) && complaints.push(message.text()));
page.on('pageerror', error => complaints.push(error.message));
page.on('request', request => { if (!/^(blob|data):/.test(request.url()) && !request.url().startsWith(address)) strangers.push(request.url()); });

const text = id => page.textContent(`#${id}`);
const says = (id, pattern) => page.waitForFunction(([id, pattern]) => new RegExp(pattern).test(document.getElementById(id).textContent), [id, pattern]);
const story = async () => (await page.locator('#story > *').allTextContents()).join('').replaceAll(/[⏎∎]/g, '');
const set = (id, value) => page.evaluate(([id, value]) => {
    const input = document.getElementById(id);
    input.value = value;
    input.dispatchEvent(new Event('input', { bubbles: true }));
}, [id, value]);

await page.goto(address);
await says('write-status', 'a second');

await test('the story is that of the native program', async () => {
    await set('temperature', 0);
    await set('length', 250);
    await page.click('#write');
    await says('write-status', 'a second');
    const expected = native(path.join(build, 'generate_plain'), model, 'Once upon a time');
    const written = (await story()).trim(); // the context has room for a few tokens more than the page asks for
    same(written, expected.slice(0, written.length), 'not the same text');
    check(written.length > 0.9 * expected.length, 'it ends early');
    same(await text('story-text'), written, 'not the text for screen readers');
});

await test('a token has alternatives, and the story goes on from one', async () => {
    const before = await story(), token = page.locator('#story [role=button]').nth(6);
    await token.focus();
    await page.keyboard.press('Enter');
    same(await token.getAttribute('aria-pressed'), 'true', 'pressed');
    const rows = page.locator('#alternatives-list button');
    check(await rows.count() >= 8, 'too few alternatives');
    const word = (await rows.nth(1).locator('.name').textContent());
    await rows.nth(1).click();
    await says('write-status', 'a second');
    same(await page.locator('#story [role=button]').nth(6).textContent(), word, 'not the chosen one');
    check(await story() !== before, 'the story is the same');
});

await test('arrow keys move among tokens and among tabs', async () => {
    const at = () => page.evaluate(() => [...document.activeElement.parentElement.children].indexOf(document.activeElement));
    await page.locator('#story [role=button]').first().focus();
    await page.keyboard.press('ArrowRight');
    await page.keyboard.press('ArrowRight');
    same(await at(), 2, 'token');
    await page.focus('#tab-write');
    await page.keyboard.press('ArrowRight');
    same(await page.getAttribute('#tab-look', 'aria-selected'), 'true', 'tab');
});

await test('attention is shown by layer and head', async () => {
    await page.click('#tab-look');
    await page.waitForFunction(() => document.querySelectorAll('#heads button').length === 24); // 6 layers of 4 heads
    const reached = await page.evaluate(() => [...document.querySelectorAll('#heads [tabindex="0"], #look-tokens [tabindex="0"]')].map(e => e.ariaPressed));
    same(reached.join(), 'true,true', 'Tab reaches what is not chosen');
    await page.click('#heads [aria-label="Layer 2, head 3"]');
    same(await text('map-heading'), 'Attention of layer 2, head 3', 'heading');
    check(/^Attention map of layer 2, head 3/.test(await page.getAttribute('#map', 'aria-label')), 'the map has no name');
    await page.locator('#look-tokens [role=button]').nth(5).click();
    check(/looks \d+\s% at/.test(await text('look-sentence')), await text('look-sentence'));
});

await test('a sentence is classified while it is typed', async () => {
    await page.click('#tab-classify');
    await page.waitForFunction(() => document.querySelectorAll('#verdict li').length === 2);
    const before = await text('verdict');
    await page.fill('#opinion', 'It was awful and boring, a bad film.');
    await page.waitForFunction(before => document.getElementById('verdict').textContent !== before, before);
    await page.click('#train-classifier');
    await says('classify-status', '^Loss');
    await page.click('#stop-classifier');
    await says('classify-status', '^Stopped');
});

await test('training lowers the loss, pauses and goes on', async () => {
    await page.click('#tab-teach');
    await page.fill('#lines', 'Zip is a robot. He lives on the moon.\nZip likes oil. He drinks a cup of it.');
    await page.fill('#passes', '25');
    await page.click('#teach');
    await says('curve-now', 'Step [3-9] of 25');
    await page.click('#pause');
    let paused;
    do { // a step that had begun ends; on a busy machine that takes a while
        paused = await text('curve-now');
        await page.waitForTimeout(1500);
    } while (await text('curve-now') !== paused);
    check(!/^Step 25/.test(paused), 'it went on to the end');
    await page.waitForTimeout(700);
    same(await text('curve-now'), paused, 'it goes on while it is paused');
    await page.click('#pause');
    await says('teach-status', '^Done');
    const [first, last] = (await text('teach-status')).match(/[\d.]+\d/g).map(Number);
    check(last < first / 2, `from ${first} to ${last}`);
    check(/\d+ steps/.test(await page.getAttribute('#curve', 'aria-label')), 'the curve has no description');
    check(await text('sample-before') !== await text('sample-after'), 'nothing was learned');
});

await test('the adapter works natively, and gives the text of the page', async () => {
    const file = path.join(folder, 'adapter.gguf');
    const [download] = await Promise.all([page.waitForEvent('download'), page.click('#download')]);
    await download.saveAs(file);
    const args = ['--pretrained-model-path', model, '--lora', file, '--prompt', 'Once upon a time', '--temperature', '0'];
    const said = native(path.join(build, 'run_llama'), '--option', 'generate', ...args, '--max_new_tokens', '40');
    const shown = await text('sample-after');
    check(said.includes(shown), `run_llama writes ${said}, the page ${shown}`);
    await page.setInputFiles('#adapter-file', file);
    await says('teach-status', 'is in use');
    same(await text('sample-after'), shown, 'opened again it writes something else');
});

await test('canceling keeps nothing', async () => {
    const before = await text('sample-after');
    await page.click('#teach');
    await says('curve-now', 'Step [2-9] of 25');
    await page.click('#cancel');
    await says('teach-status', '^Canceled');
    check(await page.isEnabled('#teach'), 'no new training can begin');
    check(await page.isEnabled('#download'), 'what was learned before is gone');
    same(await text('sample-after'), before, 'what was learned before writes something else');
});

await test('the page stays as wide as a phone', async () => {
    await page.setViewportSize({ width: 360, height: 740 });
    for (const tab of ['write', 'look', 'classify', 'teach']) {
        await page.click(`#tab-${tab}`);
        same(await page.evaluate(() => document.documentElement.scrollWidth), 360, `width of ${tab}`);
    }
});

await test('every field and button has a name', async () => {
    const nameless = await page.evaluate(() => [...document.querySelectorAll('input, select, textarea, button, canvas[role], svg[role]')]
        .filter(e => !(e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label'))).map(e => e.outerHTML));
    same(nameless.join(), '', 'without a name');
});

await page.setViewportSize({ width: 1200, height: 900 });

/** The least contrast (WCAG 2) of words in view to what is behind them, and of the borders of fields to both sides. */
const contrasts = () => page.evaluate(() => {
    const numbers = color => color.match(/[\d.]+/g).map(Number), over = ([r, g, b, a = 1], under) => [r, g, b].map((x, i) => a * x + (1 - a) * under[i]);
    const behind = element => element ? over(numbers(getComputedStyle(element).backgroundColor), behind(element.parentElement)) : [255, 255, 255];
    const light = color => color.map(x => x / 255).map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
        .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0.05);
    const contrast = (a, b) => Math.max(light(a) / light(b), light(b) / light(a));
    const least = all => all.reduce((a, b) => b.contrast < a.contrast ? b : a);
    const words = [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && !e.closest('svg, option, :disabled') &&
        [...e.childNodes].some(child => child.nodeType === 3 && child.data.trim()));
    const fields = [...document.querySelectorAll('textarea, input[type=number], select')].filter(e => e.checkVisibility());
    const of = element => numbers(getComputedStyle(element).color);
    return {
        word: least(words.map(e => ({ what: e.textContent, contrast: contrast(over(of(e), behind(e)), behind(e)) }))),
        border: fields.length ? least(fields.map(e => ({ what: e.id, contrast: Math.min(...[e, e.parentElement].map(side =>
            contrast(numbers(getComputedStyle(e).borderTopColor).slice(0, 3), behind(side)))) }))) : null,
        shades: [...document.querySelectorAll('.tokens [role=button]')].filter(e => e.checkVisibility()).map(e => e.style.getPropertyValue('--strength')),
    };
});

await test('words and borders are seen well, where the page is light and where it is dark', async () => {
    await set('temperature', 1.5);
    await page.click('#tab-write');
    await page.click('#write'); // says "Writing" at once
    await says('write-status', 'a second');
    await page.click('#tab-look');
    await page.locator('#look-tokens [role=button]').first().click(); // it can but look at itself: the strongest shade
    for (const colorScheme of ['light', 'dark']) {
        await page.emulateMedia({ colorScheme });
        for (const tab of ['write', 'look', 'classify', 'teach']) {
            await page.click(`#tab-${tab}`);
            const { word, border, shades } = await contrasts();
            if (tab === 'write') check(shades.includes('60%'), `no word is surprising: ${shades}`);
            if (tab === 'look') check(parseInt(shades[0]) >= 30, `the strongest shade is ${shades[0]}`);
            check(word.contrast >= 4.5, `${colorScheme}, ${tab}: “${word.what}” has a contrast of ${word.contrast.toFixed(2)}`);
            check(border.contrast >= 3, `${colorScheme}, ${tab}: the border of ${border.what} has a contrast of ${border.contrast.toFixed(2)}`);
        }
    }
    await page.emulateMedia({ colorScheme: null });
});

await page.click('#tab-write');

/** Drops files on the page, as a mouse does. */
async function drop(...names) {
    const files = await Promise.all(names.map(async name => [path.basename(name), (await readFile(name)).toString('base64')]));
    const data = await page.evaluateHandle(files => {
        const transfer = new DataTransfer();
        for (const [name, bytes] of files) transfer.items.add(new File([Uint8Array.from(atob(bytes), c => c.charCodeAt(0))], name));
        return transfer;
    }, files);
    await page.dispatchEvent('#story', 'drop', { dataTransfer: data });
}

/** The sentence with which files are refused. */
async function refusal(...names) {
    await drop(...names);
    await says('model-name', `^${path.basename(names[0])} was not opened. In use: `);
    const said = await text('alert-text');
    check(/^[A-Za-z\d].{20,}/.test(said), `no sentence: ${said}`);
    check(await page.isVisible('#alert'), 'it is hidden');
    await page.click('#close-alert');
    check(!await page.isVisible('#alert'), 'it cannot be closed');
    return said;
}

const convert = (name, ...options) => {
    const to = path.join(folder, name);
    native(path.join(build, 'convert'), model, to, ...options);
    return to;
};

await test('a file that is no model is refused with a sentence, and the page goes on', async () => {
    await refusal(path.resolve('examples/web/README.md'));
    const half = path.join(folder, 'half.gguf');
    await writeFile(half, (await readFile(model)).subarray(0, 700000));
    await refusal(half);
    check(/tokenizer/.test(await refusal(convert('alone.pt'))), 'the tokenizer is not missed');
    const body = convert('body.safetensors'), config = path.join(folder, 'config.json'), tokenizer = path.join(folder, 'tokenizer.gguf');
    await writeFile(tokenizer, await readFile(model));
    const tied = await readFile(config, 'utf8'), untied = tied.replace(/("tie_word_embeddings": *)true/, '$1false');
    check(untied !== tied, 'the model that ships has an output layer');
    await writeFile(config, untied);
    check(/output layer/.test(await refusal(body, config, tokenizer)), 'the output layer is not missed');
    await page.click('#write');
    await says('write-status', 'a second');
    await page.setInputFiles('#model-file', { name: 'bad.gguf', mimeType: 'x/y', buffer: Buffer.from('GGUF and nothing else') });
    await says('model-name', '^bad.gguf was not opened');
});

await test('a PyTorch file of the course is dropped with its tokenizer, and writes what the native program writes', async () => {
    const wide = convert('wide.gguf', '--type', 'F32'), course = convert('course.pt', '--type', 'F32');
    await drop(course, model); // of which the smaller one gives the tokenizer
    await says('model-name', '^course.pt: 1.3 million parameters .F32.');
    await set('temperature', 0);
    await set('length', 100);
    await page.click('#write');
    await says('write-status', 'a second');
    const written = (await story()).trim();
    check(written.length > 200, written);
    same(written, native(path.join(build, 'generate_plain'), wide, 'Once upon a time').slice(0, written.length), 'not the same text');
});

await test('a GGUF of K-quants is dropped, and the larger module reads it', async () => {
    const small = convert('q4_k_m.gguf', '--type', 'Q4_K_M'); // the rows are no multiple of 256: Q5_0 stands in
    await drop(small);
    await says('model-name', '^q4_k_m.gguf: 1.3 million');
    await page.click('#write');
    await says('write-status', 'a second');
    const written = (await story()).trim();
    same(written, native(path.join(build, 'generate_plain'), small, 'Once upon a time').slice(0, written.length), 'not the same text');
});

await test('of two models that are opened at once the last one is used', async () => {
    for (const name of [path.join(folder, 'wide.gguf'), model]) await page.setInputFiles('#model-file', name); // does not wait for the model
    await says('model-name', '^stories.gguf: 1.3 million');
    await says('write-status', 'a second');
    await page.waitForTimeout(500);
    check(/^stories/.test(await text('model-name')), await text('model-name'));
});

await test('an alternative may be chosen while the story is written', async () => {
    await set('length', 250);
    await page.click('#write');
    const { status, first, word } = await page.evaluate(() => new Promise(resolve => {
        const $ = id => document.getElementById(id), act = () => {
            const tokens = [...$('story').children];
            if (tokens.length < 12) return setTimeout(act);
            tokens[8].click();
            const row = $('alternatives-list').querySelectorAll('button')[2];
            resolve({ status: $('write-status').textContent, first: tokens.slice(0, 8).map(t => t.textContent), word: row.querySelector('.name').textContent });
            row.click();
        };
        act();
    }));
    same(status, 'Writing …', 'the story has ended already');
    await says('write-status', 'a second');
    const now = await page.locator('#story [role=button]').allTextContents();
    same(now.slice(0, 9).join('|'), [...first, word].join('|'), 'the beginning');
    check(now.length > 20, 'it does not go on');
});

await test('training and a story do not disturb each other', async () => {
    const expected = native(path.join(build, 'generate_plain'), model, 'Once upon a time');
    await page.click('#tab-teach');
    await page.click('#teach');
    await says('curve-now', 'Step [2-9] of 25');
    await page.click('#tab-write');
    await page.click('#write');
    await says('write-status', 'a second');
    const written = (await story()).trim();
    same(written, expected.slice(0, written.length), 'not the same text');
    await says('teach-status', '^Done');
    const [first, last] = (await text('teach-status')).match(/[\d.]+\d/g).map(Number);
    check(last < first / 2, `from ${first} to ${last}`);
});

await page.click('#tab-teach'); // what was learned is kept: no question, when the next model is opened
if (await page.isEnabled('#download')) await Promise.all([page.waitForEvent('download'), page.click('#download')]);
await page.click('#tab-write');

await test('a piece of text may be dragged into a field', async () => {
    const taken = await page.evaluate(() => {
        const transfer = new DataTransfer();
        transfer.setData('text/plain', 'a dragon');
        return ['dragover', 'drop'].map(kind => !document.getElementById('prompt').dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true })));
    });
    same(taken.join(), 'false,false', 'the page takes it');
});

await test('the same file may be opened twice in a row', async () => {
    await page.setInputFiles('#model-file', model);
    await says('model-name', '^stories.gguf: 1.3 million');
    same(await page.inputValue('#model-file'), '', 'a browser tells nothing when the same is chosen again');
});

await test('of the files of a folder the model is found, however large the others are', async () => {
    const large = path.join(folder, 'tokenizer_config.json'), other = path.join(folder, 'generation_config.json');
    await writeFile(large, '{}'.padEnd(2e6)); // the model has 1.5 MB
    await writeFile(other, '{"dim": "none"}');
    await drop(large, model, other);
    await says('model-name', '(^stories.gguf: 1.3 million)|not opened');
    check(/^stories/.test(await text('model-name')), await text('alert-text'));
    check(!await page.isVisible('#alert'), await text('alert-text'));
});

await test('after an alternative the keyboard is in the story, and the end is one', async () => {
    await set('prompt', 'The end.');
    await set('temperature', 1);
    await set('length', 10);
    for (let seed = 1, n = 0; n < 6; seed++) { // begin, four tokens, and one that the model wrote; 1 in 4 times it ends at once
        await set('seed', seed);
        await page.click('#write'); // says "Writing" at once
        await says('write-status', 'a second');
        n = await page.locator('#story [role=button]:not(.end)').count();
    }
    const at = await page.locator('#story .given').count(), token = page.locator('#story [role=button]').nth(at);
    await token.press('Enter');
    await page.locator('#alternatives-list button', { hasText: /^(?!\(the end)/ }).nth(1).press('Enter');
    await says('write-status', 'a second');
    check(await page.evaluate(() => !!document.activeElement.closest('#story')), 'the focus is lost');
    await token.press('Enter');
    await page.locator('#alternatives-list button', { hasText: '(the end)' }).press('Enter');
    await page.waitForTimeout(1000);
    same(await story(), 'The end.', 'the story goes on');
    same(await text('write-status'), 'The story ends here.', 'status');
    same(await text('alternatives-heading'), 'In place of the end', 'heading');
    check(await page.evaluate(() => document.activeElement.classList.contains('end')), 'the focus is not at the end');
    await page.locator('#alternatives-list button').nth(1).press('Enter'); // and from the end back
    await says('write-status', 'a second');
    check((await story()).length > 9, 'the story does not go on');
});

await test('the token that ends a story is one of its tokens', async () => {
    const end = page.locator('#story .end');
    let seed = 1;
    for (; seed < 40; seed++) {
        await set('seed', seed);
        await page.click('#write');
        await says('write-status', 'a second');
        if (await end.count()) break;
    }
    check(seed < 40, 'no story shows its end');
    same(await end.getAttribute('aria-label'), 'the end', 'its name');
    same(await page.locator('#story > *').last().textContent(), '∎', 'the last token');
    check(!(await text('story-text')).includes('∎'), 'it is in the text');
    await end.click();
    same(await text('alternatives-heading'), 'In place of the end', 'heading');
    same(await text('alternatives-hint'), 'Choose one to go on from there.', 'hint');
    same(await page.locator('#alternatives-list [aria-current=true] .name').textContent(), '(the end)', 'what was written');
    await page.locator('#alternatives-list button:not([aria-current])').first().click();
    await says('write-status', 'a second|ends here');
    same(await page.locator('#story .end ~ *').count(), 0, 'the end is not the last token');
});

await test('a text that is too long is refused or cut with a sentence', async () => {
    await set('prompt', 'q '.repeat(500));
    await page.click('#write');
    await says('alert-text', '^a prompt of .* does not fit a context of 256');
    await page.focus('#close-alert');
    await page.keyboard.press('Escape');
    check(!await page.isVisible('#alert'), 'Escape does not close the alarm');
    await set('prompt', 'Once upon a time');
    await page.click('#tab-classify');
    await page.waitForFunction(() => document.querySelectorAll('#verdict li').length === 2);
    const before = await text('verdict');
    await page.fill('#opinion', '🙂'.repeat(125));
    await page.waitForFunction(before => !document.getElementById('alert').hidden || document.getElementById('verdict').textContent !== before, before);
    check(!await page.isVisible('#alert'), await text('alert-text'));
});

await test('Train, pressed twice, trains one classifier', async () => {
    await page.click('#tab-classify');
    await page.evaluate(() => document.getElementById('train-classifier').click());
    check(await page.isDisabled('#train-classifier'), 'it can be pressed again');
    await says('classify-status', '^Loss');
    await page.click('#stop-classifier');
    await says('classify-status', '^Stopped');
    same(await page.getAttribute('#classify-status', 'aria-live'), 'polite', 'a screen reader does not say it');
});

await test('what was learned is not lost without a question, and a long line not cut without a word', async () => {
    await page.click('#tab-teach');
    await page.fill('#lines', `Zip is a robot.\n${'He likes oil. '.repeat(100)}`);
    await page.fill('#passes', '2');
    await page.click('#teach');
    await says('teach-status', '^Done.* 1 too long: only the first 25\\d tokens of it count');
    const asked = [], answer = dialog => { asked.push(dialog.message()); dialog.dismiss(); };
    page.on('dialog', answer);
    await page.setInputFiles('#model-file', convert('wide.gguf', '--type', 'F32'));
    await page.setInputFiles('#adapter-file', { name: 'adapter.gguf', mimeType: 'x/y', buffer: Buffer.from('GGUF') });
    await page.waitForTimeout(500);
    const done = await text('teach-status');
    await page.click('#teach');
    same(await text('teach-status'), done, 'it trains again');
    page.off('dialog', answer);
    same(asked.length, 3, 'questions');
    check(asked.every(said => /is lost/.test(said)), asked.join());
    check(/^stories/.test(await text('model-name')) && await page.isEnabled('#download'), 'it is gone');
});

await test('a model that is opened while the maps are in view is the one that is in view', async () => {
    await page.click('#tab-look');
    await says('look-status', '^\\d+ tokens');
    page.once('dialog', dialog => dialog.accept());
    await page.evaluate(() => document.getElementById('heads').firstChild.classList.add('old'));
    await page.setInputFiles('#model-file', convert('wide.gguf', '--type', 'F32'));
    await says('model-name', '^wide.gguf: 1.3 million');
    await page.waitForFunction(() => document.querySelectorAll('#heads button:not(.old)').length === 24);
    const n = complaints.length;
    await page.click('#heads [aria-label="Layer 1, head 1"]');
    same(complaints.length, n, 'complaints');
    same(await text('map-heading'), 'Attention of layer 1, head 1', 'heading');
    same(await text('teach-status'), '', 'what the model before had learned is still told');
});

await test('the page follows the size of text that is set in the browser', async () => {
    const devtools = await page.context().newCDPSession(page), size = () => page.evaluate(() => getComputedStyle(document.body).fontSize);
    same(await size(), '17px', 'size');
    await devtools.send('Page.setFontSizes', { fontSizes: { standard: 32 } });
    same(await size(), '32px', 'twice the size, in which the page is as narrow as on a phone');
    await page.setViewportSize({ width: 400, height: 800 }); // ... and on a phone, as with a zoom of 200 %
    await devtools.send('Page.setFontSizes', { fontSizes: { standard: 32 } });
    for (const tab of ['write', 'look', 'classify', 'teach']) {
        await page.click(`#tab-${tab}`);
        if (tab === 'classify') await page.waitForFunction(() => document.querySelectorAll('#verdict li').length === 2);
        same(await page.evaluate(() => document.documentElement.scrollWidth), 400, `width of ${tab}`);
        same(await page.evaluate(() => [...document.querySelectorAll('[role=tab], .percent')].filter(e => e.getBoundingClientRect().right > 400).length), 0, `what is cut in ${tab}`);
    }
    await devtools.send('Page.setFontSizes', { fontSizes: { standard: 16 } });
});

await test('what cannot work yet, or at all, is told', async () => {
    for (const [missing, expected] of [['stories.gguf', /^adapter.gguf: There is no model yet/], ['worker.mjs', /worker failed/]]) {
        const other = await browser.newPage();
        await other.route(`**/${missing}`, route => route.abort());
        await other.goto(address);
        await other.waitForFunction(() => !document.getElementById('alert').hidden);
        if (missing === 'stories.gguf') {
            await other.click('#tab-teach');
            await other.setInputFiles('#adapter-file', { name: 'adapter.gguf', mimeType: 'x/y', buffer: Buffer.from('GGUF') });
            await other.waitForFunction(() => /^adapter/.test(document.getElementById('alert-text').textContent));
        }
        const said = await other.textContent('#alert-text');
        check(expected.test(said), said);
        await other.close();
    }
});

await test('no complaints in the console, and no request to anybody else', () => {
    same(complaints.join('\n'), '', 'console');
    same(strangers.join('\n'), '', 'requests');
});

await browser.close();
server.close();
rmSync(folder, { recursive: true });
sum('test_page');
