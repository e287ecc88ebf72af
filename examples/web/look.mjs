// The panel that shows attention: small maps of all heads, a large one, and what one token looks at.
import { ask } from './link.mjs';
import { $, alarm, color, make, named, roving, visible } from './dom.mjs';
import { storyText, usesAdapter } from './write.mjs';

const most = 48;
let seen = null, layer = 0, head = 0, from = -1;

const weight = (l, h, i, j) => seen.weights[((l * seen.heads + h) * seen.n + i) * seen.n + j];

/** Row i is the token that looks. The root makes small weights visible. */
function draw(canvas, l, h, size) {
    const scale = window.devicePixelRatio || 1, cell = Math.max(1, Math.floor(size * scale / seen.n));
    canvas.width = canvas.height = cell * seen.n;
    const pen = canvas.getContext('2d'), line = color('--line'), gap = cell > 6 ? 1 : 0;
    for (let i = 0; i < seen.n; i++)
        for (let j = 0; j <= i; j++) {
            pen.fillStyle = line;
            pen.globalAlpha = 0.35;
            pen.fillRect(j * cell, i * cell, cell - gap, cell - gap);
            pen.fillStyle = color2;
            pen.globalAlpha = Math.sqrt(weight(l, h, i, j));
            pen.fillRect(j * cell, i * cell, cell - gap, cell - gap);
        }
    pen.globalAlpha = 1;
    if (canvas.id === 'map' && from >= 0) {
        pen.strokeStyle = color('--ink');
        pen.lineWidth = 2;
        pen.strokeRect(1, from * cell, (from + 1) * cell, cell);
    }
}
let color2 = '';

function drawAll() {
    color2 = color('--accent');
    for (const button of $('heads').children) draw(button.firstChild, +button.dataset.layer, +button.dataset.head, 64);
    drawMap();
}

function drawMap() {
    draw($('map'), layer, head, $('map').clientWidth || 400);
    $('map').setAttribute('aria-label', `Attention map of layer ${layer + 1}, head ${head + 1}, of ${seen.n} tokens`);
    $('map-heading').textContent = `Attention of layer ${layer + 1}, head ${head + 1}`;
}

function pickHead(l, h) {
    [layer, head] = [l, h];
    for (const button of $('heads').children)
        button.setAttribute('aria-pressed', String(+button.dataset.layer === l && +button.dataset.head === h));
    pickToken(from);
}

function pickToken(i) {
    from = i;
    const buttons = [...$('look-tokens').children];
    buttons.forEach((button, j) => {
        button.setAttribute('aria-pressed', String(j === i));
        button.style.setProperty('--strength', `${j <= i ? Math.round(80 * Math.sqrt(weight(layer, head, i, j))) : 0}%`);
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
    $('look-status').textContent = 'Looking …';
    try {
        seen = await ask('look', { text: $('look-text').value, withAdapter: usesAdapter(), most });
    } catch (error) {
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
            button.tabIndex = maps.length ? -1 : 0;
            maps.push(button);
        }
    $('heads').replaceChildren(...maps);
    $('look-tokens').replaceChildren(...seen.tokens.map((text, i) =>
        make('button', { type: 'button', textContent: visible(text), tabIndex: i ? -1 : 0, onclick: () => pickToken(i) })));
    from = seen.n - 1;
    color2 = color('--accent');
    pickHead(...liveliest());
    drawAll();
}

export const isEmpty = () => !seen;
export const forget = () => { seen = null; };
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
