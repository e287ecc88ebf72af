// The panel that shows attention: small maps of all heads, a large one, and what one token looks at.
import { ask } from './link.mjs';
import { $, alarm, color, inlineButton, make, named, roving } from './dom.mjs';
import { storyText, usesAdapter } from './write.mjs';

const most = 48;
const strongest = 45; // percent of --heat under a word: more of it, and the word is hard to read where the page is dark
let seen = null, layer = 0, head = 0, from = -1, newest = 0;

const weight = (l, h, i, j) => seen.weights[((l * seen.heads + h) * seen.n + i) * seen.n + j];

/** Row i is the token that looks. The root makes small weights visible. Beside them is room for `margin`. */
function draw(canvas, l, h, size, margin = 0) {
    const scale = window.devicePixelRatio || 1, cell = Math.max(1, Math.floor((size - margin) * scale / seen.n));
    canvas.height = cell * seen.n;
    canvas.width = canvas.height + margin * scale;
    const pen = canvas.getContext('2d'), line = color('--line'), accent = color('--accent'), gap = cell > 6 ? 1 : 0;
    for (let i = 0; i < seen.n; i++)
        for (let j = 0; j <= i; j++) {
            pen.fillStyle = line;
            pen.globalAlpha = 0.35;
            pen.fillRect(j * cell, i * cell, cell - gap, cell - gap);
            pen.fillStyle = accent;
            pen.globalAlpha = Math.sqrt(weight(l, h, i, j));
            pen.fillRect(j * cell, i * cell, cell - gap, cell - gap);
        }
    pen.globalAlpha = 1;
    if (margin) label(pen, cell, scale);
}

/** The tokens beside the ends of their rows, and a frame around the row of the chosen one. */
function label(pen, cell, scale) {
    const high = Math.min(0.75 * cell, 14 * scale);
    pen.font = `${high}px system-ui, sans-serif`;
    pen.textBaseline = 'middle';
    seen.tokens.forEach((text, i) => {
        pen.fillStyle = color(i === from ? '--ink' : '--soft');
        if (high >= 7 * scale || i === from) pen.fillText(text.trim(), (i + 1) * cell + 4 * scale, (i + 0.5) * cell);
    });
    pen.strokeStyle = color('--ink');
    pen.lineWidth = 1.5 * scale;
    if (from >= 0) pen.strokeRect(scale, from * cell, (from + 1) * cell - scale, cell);
}

function drawAll() {
    for (const button of $('heads').children) draw(button.firstChild, +button.dataset.layer, +button.dataset.head, 64);
    drawMap();
}

function drawMap() {
    draw($('map'), layer, head, $('map').clientWidth || 400, 72);
    $('map').setAttribute('aria-label', `Attention map of layer ${layer + 1}, head ${head + 1}, of ${seen.n} tokens`);
    $('map-heading').textContent = `Attention of layer ${layer + 1}, head ${head + 1}`;
}

/** The pressed one of a group is the one that Tab reaches. */
function press(button, is) {
    button.setAttribute('aria-pressed', String(is));
    button.tabIndex = is ? 0 : -1;
}

function pickHead(l, h) {
    [layer, head] = [l, h];
    for (const button of $('heads').children) press(button, +button.dataset.layer === l && +button.dataset.head === h);
    pickToken(from);
}

function pickToken(i) {
    from = i;
    const buttons = [...$('look-tokens').children];
    buttons.forEach((button, j) => {
        press(button, j === i);
        button.style.setProperty('--strength', `${j <= i ? Math.round(strongest * Math.sqrt(weight(layer, head, i, j))) : 0}%`);
    });
    const order = Array.from({ length: i + 1 }, (_, j) => j).sort((a, b) => weight(layer, head, i, b) - weight(layer, head, i, a));
    const parts = order.slice(0, 3).map(j => `${Math.round(100 * weight(layer, head, i, j))} % at ${j === i ? 'itself' : named(seen.tokens[j])}`);
    $('look-sentence').textContent = `${named(seen.tokens[i])} looks ${parts.join(', ')}.`;
    drawMap();
}

/** The first head whose tokens look at something else than the beginning and themselves is worth a first look. */
function liveliest() {
    let best = [0, 0], high = -1;
    for (let l = 0; l < seen.layers; l++)
        for (let h = 0; h < seen.heads; h++) {
            let sum = 0;
            for (let i = 2; i < seen.n; i++)
                for (let j = 1; j < i; j++) sum += weight(l, h, i, j) ** 2;
            if (sum > high) [best, high] = [[l, h], sum];
        }
    return best;
}

export async function look() {
    const mine = ++newest;
    $('look-status').textContent = 'Looking …';
    try {
        const found = await ask('look', { text: $('look-text').value, withAdapter: usesAdapter(), most });
        if (mine !== newest) return;
        seen = found;
    } catch (error) {
        if (mine !== newest) return;
        $('look-status').textContent = '';
        return alarm(error);
    }
    $('look-status').textContent = `${seen.n} tokens, ${seen.layers} layers of ${seen.heads} heads.`;
    $('heads').style.gridTemplateColumns = `repeat(${seen.heads}, minmax(0, 1fr))`;
    roving($('heads'), seen.heads);
    const maps = [];
    for (let l = 0; l < seen.layers; l++)
        for (let h = 0; h < seen.heads; h++) {
            const button = make('button', { type: 'button', ariaLabel: `Layer ${l + 1}, head ${h + 1}`, onclick: () => pickHead(l, h) }, make('canvas'));
            Object.assign(button.dataset, { layer: l, head: h });
            maps.push(button);
        }
    $('heads').replaceChildren(...maps);
    $('look-tokens').replaceChildren(...seen.tokens.map((text, i) =>
        inlineButton(text, () => pickToken(i))));
    from = seen.n - 1;
    pickHead(...liveliest());
    drawAll();
}

export const isEmpty = () => !seen;
/** The maps of the model before. */
export function forget() {
    seen = null;
    newest++;
    for (const id of ['heads', 'look-tokens', 'look-sentence', 'look-status']) $(id).replaceChildren();
    $('map').width = $('map').height = 0;
    $('map').setAttribute('aria-label', 'No attention map yet');
    $('map-heading').textContent = 'Attention';
}
export const redraw = () => seen && drawAll();

export function setUp() {
    roving($('look-tokens'));
    $('look-form').onsubmit = event => { event.preventDefault(); look(); };
    $('look-story').onclick = () => {
        $('look-text').value = storyText().slice(0, 400);
        look();
    };
    $('map').onpointermove = event => {
        if (!seen) return;
        const box = $('map').getBoundingClientRect(), i = Math.floor((event.clientY - box.top) / box.height * seen.n);
        if (i !== from && i >= 0 && i < seen.n) pickToken(i);
    };
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);
}
