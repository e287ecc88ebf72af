// The panel that classifies while one types, and trains the classifier.
import { ask, start } from './link.mjs';
import { $, alarm, bars } from './dom.mjs';

let labels = [], job = null, timer = 0, newest = 0, isTrained = false;

const file = name => fetch(new URL(`./data/${name}`, import.meta.url)).then(answer => {
    if (!answer.ok) throw new Error(`${name} cannot be read: ${answer.status}`);
    return answer.text();
});

/** Lines of "LABEL ||| TEXT". */
const examplesOf = text => text.trim().split('\n').map(line => line.split(' ||| ')).map(([label, text]) => ({ label: +label, text }));

async function answer() {
    const text = $('opinion').value.trim(), mine = ++newest;
    if (!text || !labels.length) return bars($('verdict'), labels.map(name => ({ name, p: 0 })));
    try {
        const { p, trained } = await ask('classify', { text, labels });
        if (mine !== newest) return;
        $('verdict-how').textContent = trained ? 'trained' : 'untrained: a guess';
        bars($('verdict'), labels.map((name, i) => ({ name, p: p[i], current: p[i] === Math.max(...p) })));
    } catch (error) {
        if (mine === newest) alarm(error);
    }
}

export async function chooseLabels() {
    try {
        labels = JSON.parse(await file(`opinions${$('classes').value}-labels.json`));
        await answer();
    } catch (error) {
        alarm(error);
    }
}

async function train() {
    const n = $('classes').value;
    job = null;
    busy(true); // before the files come: a second press would begin a second training
    try {
        const [examples, test] = await Promise.all(['train', 'test'].map(part => file(`opinions${n}-${part}.txt`).then(examplesOf)));
        job = start('trainClassifier', { examples, test, classes: labels.length, passes: 4 }, ({ loss, done }) => {
            $('classify-progress').value = done;
            $('classify-status').textContent = `Loss ${loss.toFixed(2)}, ${Math.round(100 * done)} % done.`;
        });
        $('classify-status').setAttribute('aria-live', 'off'); // the progress bar tells the rest
        $('stop-classifier').disabled = false;
        const { accuracy } = await job.done;
        $('classify-status').setAttribute('aria-live', 'polite');
        $('classify-status').textContent =
            `Trained on ${examples.length} opinions. Of ${test.length} others it labels ${Math.round(100 * accuracy)} % right.`;
        isTrained = true;
        await answer();
    } catch (error) {
        $('classify-status').setAttribute('aria-live', 'polite');
        $('classify-status').textContent = error.stopped ? 'Stopped; nothing was learned.' : '';
        if (!error.stopped) alarm(error);
    } finally {
        busy(false);
    }
}

function busy(is) {
    $('classify-progress').hidden = !is;
    $('train-classifier').disabled = $('classes').disabled = is;
    $('classify-progress').value = 0;
    $('stop-classifier').disabled = true; // until there is something to stop
}

/** Another model: the classifier belonged to the one before. */
export function forget() {
    if (isTrained) $('classify-status').textContent = '';
    isTrained = false;
}

export function setUp() {
    $('classify-form').onsubmit = event => event.preventDefault();
    $('opinion').oninput = () => {
        clearTimeout(timer);
        timer = setTimeout(answer, 120);
    };
    $('classes').onchange = chooseLabels;
    $('train-classifier').onclick = train;
    $('stop-classifier').onclick = () => job?.stop();
}
