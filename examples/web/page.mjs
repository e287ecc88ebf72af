// The page: its tabs, the model, and the four panels.
import { ask } from './link.mjs';
import { $, alarm, roving } from './dom.mjs';
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
        $('alert').hidden = true;
        for (const id of ['write', 'look', 'look-story', 'train-classifier', 'teach']) $(id).disabled = false;
        teach.forget();
        look.forget();
        await write.begin();
    } catch (error) {
        if (error.stopped) return; // another one is being opened
        $('model-name').textContent = `${name} was not opened.${model ? ` In use: ${model}` : ''}`;
        alarm(`${name}: ${error.message}`);
    }
}

/** A model, and what belongs to it: a tokenizer, a configuration. The largest file is the model. */
function openFiles(files) {
    const all = [...files].sort((a, b) => b.size - a.size), model = all.shift();
    if (!model) return;
    const config = all.find(file => /(config|params)\.json$/.test(file.name)), tokenizer = all.find(file => file !== config);
    open({ source: model, config, tokenizer }, model.name);
}

roving(document.querySelector('[role=tablist]'));
tabs.forEach(tab => {
    tab.onclick = () => show(tab);
    tab.addEventListener('focus', () => tab.matches(':focus-visible') && show(tab));
});
[write, look, classify, teach].forEach(panel => panel.setUp());
$('model-file').onchange = event => openFiles(event.target.files);
addEventListener('dragover', event => { event.preventDefault(); document.body.classList.add('dropping'); });
addEventListener('dragleave', event => event.relatedTarget || document.body.classList.remove('dropping'));
addEventListener('drop', event => {
    event.preventDefault();
    document.body.classList.remove('dropping');
    openFiles(event.dataTransfer.files);
});
addEventListener('beforeunload', event => teach.wouldBeLost() && event.preventDefault());
$('close-alert').onclick = () => { $('alert').hidden = true; };
open({ source: new URL('./stories.gguf', import.meta.url).href }, 'stories.gguf');
