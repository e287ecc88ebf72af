// The panel that writes: a story of tokens, and the alternatives to each.
import { start } from './link.mjs';
import { $, alarm, bars, inlineButton, named, roving, visible } from './dom.mjs';

let tokens = []; // { id, text, p, alternatives, given }
let job = null, chosen = -1;

export const storyText = () => tokens.map(token => token.text).join('').trim();
export const usesAdapter = () => !$('write-adapter').hidden && $('use-adapter').checked;

const options = () => ({
    temperature: +$('temperature').value, maxTokens: +$('length').value, seed: Math.abs(Math.trunc(+$('seed').value)) || 0, topP: 0.95, alternatives: 8,
});

/** The rarer a token was, the stronger its color: 1 in 2 is faint, 1 in 100 is full. */
const surprise = p => `${Math.round(60 * Math.min(1, -Math.log(p) / Math.log(100)))}%`;

function add(token) {
    const at = tokens.push(token) - 1;
    if (!token.text && !token.ends) return;
    const button = inlineButton(token.ends ? '∎' : visible(token.text), () => choose(at));
    if (token.ends) {
        button.classList.add('end');
        button.ariaLabel = 'the end';
    }
    button.dataset.at = at;
    button.tabIndex = $('story').children.length ? -1 : 0;
    if (token.given) button.classList.add('given');
    else button.style.setProperty('--strength', surprise(token.p));
    $('story').append(button);
}

function choose(at) {
    chosen = at;
    const token = tokens[at];
    for (const button of $('story').children) button.setAttribute('aria-pressed', String(+button.dataset.at === at));
    if (matchMedia('(max-width: 46rem)').matches) $('alternatives').scrollIntoView({ block: 'nearest' });
    $('alternatives-heading').textContent = `In place of ${token.ends ? 'the end' : named(token.text)}`;
    if (token.given) {
        $('alternatives-hint').textContent = 'This is yours: the model did not choose it.';
        bars($('alternatives-list'), []);
        return;
    }
    const all = token.alternatives.some(a => a.id === token.id) ? token.alternatives : [...token.alternatives, token];
    $('alternatives-hint').textContent = 'Choose one to go on from there.';
    bars($('alternatives-list'), all.map(a => ({
        name: a.ends ? '(the end)' : a.text ? visible(a.text) : '(no text)', p: a.p, current: a.id === token.id, choose: () => goOn(at, a),
    })));
}

/** Writes on from another token at this place, or ends the story there. */
function goOn(at, alternative) {
    const { p, id, text, ends } = alternative, { alternatives } = tokens[at];
    truncate(at);
    add({ p, id, text, alternatives, ends });
    choose(at);
    ($('story').querySelector(`[data-at="${at}"]`) ?? $('story').lastElementChild)?.focus({ preventScroll: true }); // the button that was pressed is gone
    if (ends) return end();
    write({ ids: tokens.map(token => token.id) });
}

function end() {
    job?.stop();
    job = null;
    $('stop').disabled = true;
    $('write-status').textContent = 'The story ends here.';
    $('story-text').textContent = storyText();
}

function truncate(n) {
    tokens.length = n;
    for (const button of [...$('story').children]) if (+button.dataset.at >= n) button.remove();
}

async function write(from) {
    job?.stop();
    const mine = job = start('write', { ...from, options: options(), withAdapter: usesAdapter() }, event => {
        if (job !== mine) return;
        event.prompt?.forEach(token => add({ ...token, given: true }));
        if (event.token) add(event.token);
    });
    $('stop').disabled = false;
    $('write-status').textContent = 'Writing …';
    try {
        const { tokens: n, seconds } = await mine.done;
        if (job === mine) $('write-status').textContent = n ? `${n} tokens, ${Math.round(n / seconds)} a second.` : 'The context is full.';
    } catch (error) {
        if (job !== mine) return;
        $('write-status').textContent = '';
        alarm(error);
    }
    if (job !== mine) return;
    job = null;
    $('stop').disabled = true;
    $('story-text').textContent = storyText();
}

export function begin() {
    truncate(0);
    chosen = -1;
    $('alternatives-heading').textContent = 'Alternatives';
    $('alternatives-hint').textContent = 'Choose a token of the story.';
    bars($('alternatives-list'), []);
    return write({ prompt: $('prompt').value });
}

export function setUp() {
    roving($('story'));
    for (const name of ['temperature', 'length']) $(name).oninput = () => { $(`${name}-value`).textContent = $(name).value; };
    $('write-form').onsubmit = event => { event.preventDefault(); begin(); };
    $('stop').onclick = () => job?.stop();
}
