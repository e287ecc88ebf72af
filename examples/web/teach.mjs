// The panel that trains an adapter on the visitor's lines.
import { ask, start } from './link.mjs';
import { $, alarm, onFiles } from './dom.mjs';
import { drawCurve } from './curve.mjs';

const sample = 'Once upon a time';
let job = null, paused = false, isRunning = false, isUnsaved = false;

/** Leaving the page would lose what is being learned, or what has not been downloaded. */
export const wouldBeLost = () => isRunning || isUnsaved;

/** Asks the visitor, unless nothing would be lost. */
const mayBeLost = what => !isUnsaved || confirm(`What the model has learned is not downloaded, and is lost. ${what} all the same?`);

function busy(is) {
    isRunning = is;
    $('teach').disabled = $('adapter-file').disabled = is;
    $('pause').disabled = $('cancel').disabled = !is;
    paused = false;
    $('pause').textContent = 'Pause';
}

function learned({ after }) {
    $('sample-after').textContent = sample + after;
    $('download').disabled = false;
    $('write-adapter').hidden = false;
    $('use-adapter').checked = true;
}

async function teach() {
    const lines = $('lines').value.split('\n').map(line => line.trim()).filter(Boolean), losses = [];
    let note = '';
    if (!lines.length) return void ($('teach-status').textContent = 'Write a line first.');
    if (!mayBeLost('Train again')) return;
    const passes = Math.max(1, Math.min(500, +$('passes').value || 1)), steps = passes * Math.ceil(lines.length / 8), wasAfter = $('sample-after').textContent;
    const value = { lines, passes, rank: +$('rank').value, rate: +$('rate').value, sample };
    busy(true);
    drawCurve($('curve'), losses, steps);
    $('sample-after').textContent = '…';
    $('teach-status').textContent = 'Training …';
    job = start('teach', value, event => {
        if (event.cut) $('teach-status').textContent += note = ` ${event.cut} too long: only the first ${event.most} tokens of ${event.cut > 1 ? 'each' : 'it'} count.`;
        if (event.before !== undefined) $('sample-before').textContent = sample + event.before;
        if (event.loss === undefined) return;
        losses.push(event.loss);
        drawCurve($('curve'), losses, steps);
        $('curve-now').textContent = `Step ${losses.length} of ${steps}: loss ${event.loss.toFixed(3)}, at first ${losses[0].toFixed(3)}.`;
    });
    try {
        learned(await job.done);
        isUnsaved = true;
        $('teach-status').textContent = `Done: the loss went from ${losses[0].toFixed(2)} to ${losses.at(-1).toFixed(2)}.${note}`;
    } catch (error) {
        $('teach-status').textContent = error.stopped ? 'Canceled; nothing was kept.' : '';
        $('sample-after').textContent = wasAfter;
        if (!error.stopped) alarm(error);
    }
    busy(false);
}

function pause() {
    paused = !paused;
    if (paused) job.pause();
    else job.resume();
    $('pause').textContent = paused ? 'Resume' : 'Pause';
    $('teach-status').textContent = paused ? 'Paused.' : 'Training …';
}

async function download() {
    const link = document.createElement('a');
    try {
        link.href = URL.createObjectURL(new Blob([await ask('save')], { type: 'application/octet-stream' }));
    } catch (error) {
        return alarm(error);
    }
    link.download = 'adapter.gguf';
    link.click();
    isUnsaved = false;
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function openAdapter(file) {
    if (!mayBeLost(`Open ${file.name}`)) return;
    try {
        const opened = await ask('open', { bytes: new Uint8Array(await file.arrayBuffer()), sample });
        $('sample-before').textContent = sample + opened.before;
        learned(opened);
        isUnsaved = false;
        $('teach-status').textContent = `${file.name} is in use.`;
    } catch (error) {
        alarm(`${file.name}: ${error.message}`);
    }
}

/** Another model: what was learned belongs to the one before. */
export function forget() {
    job?.stop();
    isUnsaved = false;
    if (!$('teach-status').textContent.startsWith('Canceled')) $('teach-status').textContent = '';
    drawCurve($('curve'), [], 1);
    $('curve-now').textContent = 'Nothing has been learned yet.';
    $('download').disabled = true;
    $('write-adapter').hidden = true;
    $('sample-before').textContent = $('sample-after').textContent = '…';
}

export function setUp() {
    $('sample-prompt').textContent = sample;
    drawCurve($('curve'), [], 1);
    $('teach-form').onsubmit = event => { event.preventDefault(); teach(); };
    $('pause').onclick = pause;
    $('cancel').onclick = () => job?.stop();
    $('download').onclick = download;
    onFiles($('adapter-file'), ([file]) => openAdapter(file));
}
