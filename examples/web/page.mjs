// The page: its tabs, the model, and the four panels.
import { ask } from './link.mjs';
import { $, alarm, closeAlarm, onFiles, roving } from './dom.mjs';
import * as write from './write.mjs';
import * as look from './look.mjs';
import * as classify from './classify.mjs';
import * as teach from './teach.mjs';

const tabs = [...document.querySelectorAll('[role=tab]')];

function show(tab) {
    for (const other of tabs) {
        other.setAttribute('aria-selected', String(other === tab));
        other.tabIndex = other === tab ? 0 : -1;
        $(other.getAttribute('aria-controls')).hidden = other !== tab;
    }
    fill(tab);
}

/** What a panel shows of the model without being asked. */
function fill(tab) {
    if ($('look').disabled) return; // no model yet
    if (tab.id === 'tab-look') look.isEmpty() ? look.look() : look.redraw();
    if (tab.id === 'tab-classify') classify.chooseLabels();
}

const million = n => n >= 1e6 ? `${(n / 1e6).toFixed(1)} million` : `${Math.round(n / 1000)} thousand`;

let model = ''; // in words

async function open(value, name) {
    $('model-name').textContent = `Loading ${name} …`;
    try {
        const opened = await ask('load', value);
        model = `${name}: ${million(opened.parameters)} parameters (${opened.type}), ` +
            `${opened.layers} layers, context of ${opened.contextLength} tokens`;
        $('model-name').textContent = model;
        closeAlarm();
        for (const id of ['write', 'look', 'look-story', 'train-classifier', 'teach']) $(id).disabled = false;
        teach.forget();
        look.forget();
        classify.forget();
        fill(tabs.find(tab => tab.getAttribute('aria-selected') === 'true')); // it shows the model before, or nothing yet
        await write.begin();
    } catch (error) {
        if (error.stopped) return; // another one is being opened
        $('model-name').textContent = `${name} was not opened.${model ? ` In use: ${model}` : ''}`;
        alarm(`${name}: ${error.message}`);
    }
}

/**
 * A model, and what belongs to it: a tokenizer, a configuration. The largest file is the model, unless its name says that
 * it is something else: a tokenizer may be larger than a small model, and folders of models hold more JSON files.
 */
function openFiles(files) {
    const all = [...files].sort((a, b) => b.size - a.size), other = /\.(json|txt|md)$|tokenizer[^/]*\.(model|bin)$/i;
    const model = all.find(file => !other.test(file.name)) ?? all[0];
    if (!model || teach.wouldBeLost() && !confirm(`What the model has learned under “Teach” is not downloaded, and is lost. Open ${model.name} all the same?`)) return;
    const rest = all.filter(file => file !== model), named = pattern => rest.find(file => pattern.test(file.name));
    const config = named(/^(config|params)\b.*\.json$/i) ?? named(/^(?!tokenizer_|generation_|adapter_|preprocessor_).*(config|params)\.json$/i);
    const tokenizer = named(/^tokenizer(?!_config).*\.(model|json|bin)$/i) ?? rest.find(file => file !== config && !/(config|_map)\.json$|\.(txt|md)$/i.test(file.name));
    open({ source: model, config, tokenizer }, model.name);
}

const hasFiles = event => event.dataTransfer.types.includes('Files'); // else a piece of text is dragged into a field

roving(document.querySelector('[role=tablist]'));
tabs.forEach(tab => {
    tab.onclick = () => show(tab);
    tab.addEventListener('focus', () => tab.matches(':focus-visible') && show(tab));
});
[write, look, classify, teach].forEach(panel => panel.setUp());
onFiles($('model-file'), openFiles);
addEventListener('dragover', event => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    document.body.classList.add('dropping');
});
addEventListener('dragleave', event => event.relatedTarget || document.body.classList.remove('dropping'));
addEventListener('drop', event => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    document.body.classList.remove('dropping');
    openFiles(event.dataTransfer.files);
});
addEventListener('beforeunload', event => teach.wouldBeLost() && event.preventDefault());
$('close-alert').onclick = closeAlarm;
addEventListener('keydown', event => event.key === 'Escape' && closeAlarm());
open({ source: new URL('./stories.gguf', import.meta.url).href }, 'stories.gguf');
